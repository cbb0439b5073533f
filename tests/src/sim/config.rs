//! What a simulated engine is started with, and what can be changed while it runs.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::events::Encoding;

/// An engine that speaks like vLLM: OpenAI API, metrics, KV cache events. It tokenises with a real
/// tokenizer and keeps a real paged prefix cache; only the computing is replaced by waiting.
///
/// Prints one JSON line with its addresses when it is ready, e.g.
/// {"http":"127.0.0.1:8000","events":"127.0.0.1:5557","replay":"127.0.0.1:5558"}, and serves until
/// SIGTERM or SIGINT. Beside vLLM's paths it has GET /sim/stats (what happened, request by request)
/// and POST /sim/config (speeds and faults while it runs).
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "warmpath-engine-sim", version)]
pub struct Config {
    /// Port of the HTTP API on 127.0.0.1; 0 picks a free one
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// Port of the ZeroMQ PUB socket with live KV events; 0 picks a free one
    #[arg(long, default_value_t = 0)]
    pub events_port: u16,
    /// Port of the ZeroMQ ROUTER socket that replays KV events; 0 picks a free one
    #[arg(long, default_value_t = 0)]
    pub replay_port: u16,
    /// Data-parallel ranks behind the HTTP API, each with a cache and events of its own. The ports above are rank 0's; the
    /// others get free ones, which /kv_event_sources tells
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub data_parallel_size: u16,
    /// Name of the served model
    #[arg(long, default_value = "tiny")]
    pub model: String,
    /// Name of a LoRA adapter that is served too; repeat for several
    #[arg(long = "lora", value_name = "NAME")]
    pub loras: Vec<String>,
    /// Directory with tokenizer.json and tokenizer_config.json [default: the test suite's]
    #[arg(long, value_name = "DIR", default_value_os_t = super::fixture_tokenizer(), hide_default_value = true)]
    pub tokenizer: PathBuf,
    /// Serve /v1/chat/completions/render and /v1/completions/render, as vLLM does with --enable-scale-out
    #[arg(long)]
    pub scale_out: bool,
    /// Tokens per cache block
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub block_size: u32,
    /// Blocks in the cache; one of them, vLLM's null block, is never used
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(2..=16_000_000))]
    pub blocks: u32,
    /// Longest prompt with its output, in tokens; the cache's size is a limit too
    #[arg(long, default_value_t = 32768)]
    pub max_model_len: u32,
    /// Requests that run at once; others wait
    #[arg(long, default_value_t = 256)]
    pub max_num_seqs: u32,
    /// Tokens computed per step at most, over all requests
    #[arg(long, default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_num_batched_tokens: u32,
    /// Uncached prompt tokens computed per second; 0 takes no time
    #[arg(long, default_value_t = 8000.0)]
    pub prefill_tokens_per_second: f64,
    /// Fixed time of a step that computes prompt tokens, in milliseconds
    #[arg(long, default_value_t = 1.0)]
    pub prefill_overhead_ms: f64,
    /// Time of a decode step, that is between two tokens of a request, in milliseconds
    #[arg(long, default_value_t = 10.0)]
    pub decode_ms_per_token: f64,
    /// Form of the KV events: map as vLLM 0.24 and later write them, array as earlier ones
    #[arg(long, value_enum, default_value_t = Encoding::Map)]
    pub encoding: Encoding,
    /// Topic of the KV events; by default kv@127.0.0.1:PORT@MODEL
    #[arg(long)]
    pub topic: Option<String>,
    /// Batches of events kept for replay
    #[arg(long, default_value_t = 10_000)]
    pub buffer_steps: u32,
    /// Fixes generated text and block hashes; without it both differ from start to start
    #[arg(long)]
    pub seed: Option<u64>,
    /// Requests remembered in the log of /sim/stats
    #[arg(long, default_value_t = 4096)]
    pub log_requests: usize,
    /// On a stop signal, time for requests in progress to finish, in milliseconds
    #[arg(long, default_value_t = 1000)]
    pub stop_grace_ms: u64,
}

impl Default for Config {
    /// The program's defaults.
    fn default() -> Self {
        <Self as clap::Parser>::parse_from(["warmpath-engine-sim"])
    }
}

impl Config {
    /// An engine that computes in no time, for tests of content rather than of load.
    pub fn instant() -> Self {
        Self { prefill_tokens_per_second: 0.0, prefill_overhead_ms: 0.0, decode_ms_per_token: 0.0, ..Self::default() }
    }

    pub(super) fn stop_grace(&self) -> Duration {
        Duration::from_millis(self.stop_grace_ms)
    }
}

/// What POST /sim/config can change; each call changes the fields it names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// That many of the next completions are answered `fail_status`.
    pub fail_next: u64,
    /// Status of those answers.
    pub fail_status: u16,
    /// Completions are accepted but not begun until this is false again.
    pub hang: bool,
    /// False: /health answers 503.
    pub healthy: bool,
    /// See [`Config::prefill_tokens_per_second`].
    pub prefill_tokens_per_second: f64,
    /// See [`Config::prefill_overhead_ms`].
    pub prefill_overhead_ms: f64,
    /// See [`Config::decode_ms_per_token`].
    pub decode_ms_per_token: f64,
    /// Events are kept back, in order, and replays unanswered, until this is false again.
    pub events_paused: bool,
    /// That many of the next live batches are lost on the way (replay has them). Reads 0 once
    /// the order was taken.
    pub lose_batches: u64,
}

impl Control {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            fail_next: 0,
            fail_status: 503,
            hang: false,
            healthy: true,
            prefill_tokens_per_second: config.prefill_tokens_per_second,
            prefill_overhead_ms: config.prefill_overhead_ms,
            decode_ms_per_token: config.decode_ms_per_token,
            events_paused: false,
            lose_batches: 0,
        }
    }

    /// This with the fields of the JSON object `changes` replaced. The error names the field.
    pub fn changed(&self, changes: &serde_json::Value) -> anyhow::Result<Self> {
        let serde_json::Value::Object(changes) = changes else {
            anyhow::bail!("expected a JSON object with fields of the simulator's configuration");
        };
        let mut all = serde_json::to_value(self)?;
        if let Some(all) = all.as_object_mut() {
            all.extend(changes.clone());
        }
        let changed: Self = serde_json::from_value(all)?;
        anyhow::ensure!(
            (400..600).contains(&changed.fail_status),
            "fail_status is {}; use an error status, 400 to 599",
            changed.fail_status
        );
        Ok(changed)
    }
}
