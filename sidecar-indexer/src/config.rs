//! The configuration file. Each option is documented here and nowhere else: the comments below make the annotated
//! example that `warmpath-indexer example-config` prints.
//!
//! The file is read again when it changes ([`crate::reload`]).

use crate::endpoints::{Events as Wired, file, spelling};
use crate::subscriber::bind;
use crate::zone::Zone;
use affinity::{Slot, Stride, Tier};
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

const HOUR_MS: u64 = 3_600_000;

/// An option's documentation.
pub(crate) struct Field {
    name: &'static str,
    docs: &'static [&'static str],
    example: &'static str,
}

/// Defines a section: its fields, their documentation, and an example value in YAML.
macro_rules! section {
    ($(#[doc = $about:literal])+ $name:ident {
        $( $(#[doc = $doc:literal])+ $(#[serde $serde:tt])? $field:ident: $ty:ty = $example:literal, )+
    }) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $( $(#[doc = $doc])+ $(#[serde $serde])? pub $field: $ty, )+
        }

        impl $name {
            pub(crate) const FIELDS: &'static [Field] =
                &[$( Field { name: stringify!($field), docs: &[$($doc),+], example: $example } ),+];
        }
    };
}

mod endpoint;
pub use endpoint::{DEFAULT_RATE, Endpoint, Events, IP, Metrics};

section! {
    /// The whole configuration.
    Config {
        /// Address and port to serve on: gateways' sync, /metrics, /healthz, /readyz.
        #[serde(default = "default_listen")]
        listen: SocketAddr = "127.0.0.1:9400",
        /// Bytes of prompt between two fingerprints: a multiple of 8, from 8 to 4096. About half a cache block is
        /// right, at 4 bytes a token: 32 for blocks of 16 tokens, 128 for 64. Smaller predicts finer and takes more
        /// memory, here and in every gateway.
        #[serde(default = "default_stride")]
        stride_bytes: u32 = "128",
        /// Least time between two messages of news to a gateway, in milliseconds: news after a pause is sent at once, more
        /// of it is collected so long. Less costs CPU here and in every gateway, more makes predictions late.
        #[serde(default = "default_coalesce")]
        coalesce_ms: u64 = "10",
        /// How often each engine's /metrics is read, in milliseconds.
        #[serde(default = "default_scrape")]
        scrape_interval_ms: u64 = "1000",
        /// Most cache blocks to keep track of, over all endpoints; about 64 bytes each, more where conversations are of
        /// few blocks. When they are reached, what is in doubt since a disconnect goes first, then those that were not
        /// used for the longest time, so that predictions fall short; `warmpath_index_evicted_blocks_total` counts them.
        #[serde(default = "default_blocks")]
        max_blocks: usize = "2000000",
        /// Cache tiers that count: gpu, cpu, disk. Add cpu or disk only where the engines announce removals from
        /// them: vLLM's own OffloadingConnector does, LMCache and Mooncake do not.
        #[serde(default = "default_tiers")]
        tiers: Vec<TierName> = "[gpu]",
        /// Other indexers of the same engines, as `http://HOST:PORT`: a stream that begins with nothing, after a start
        /// say, is first asked of them. A name may stand for several, this one among them.
        #[serde(default)]
        peers: Vec<String> = "[]",
        /// A Redis or Valkey that keeps what streams know, as `redis://HOST:PORT`, for indexers without peers that
        /// stay. All indexers may share it; nothing waits for it.
        #[serde(default)]
        store: Option<String> = "null",
        /// How often what has changed is written there, in milliseconds.
        #[serde(default = "default_store_interval")]
        store_interval_ms: u64 = "30000",
        /// Where engines dial in that connect to the indexer rather than the other way round, as `tcp://*:5557`. Their
        /// topic must be `kv@ADDRESS@MODEL`; data-parallel ranks dial the ports after it, as vLLM numbers them.
        #[serde(default)]
        bind: Option<String> = "null",
        /// The models served.
        models: Vec<Model> = "",
        /// How often the names among the endpoints are looked up, in milliseconds.
        #[serde(default = "default_dns")]
        dns_interval_ms: u64 = "5000",
        /// The engines.
        endpoints: Vec<Endpoint> = "",
    }
}

section! {
    /// One model, and how its prompts are made.
    Model {
        /// The name that clients ask for.
        name: String = "llama-3.1-8b",
        /// Other names for the same model.
        #[serde(default)]
        aliases: Vec<String> = "[llama]",
        /// LoRA adapters it serves, by the names that clients ask for.
        #[serde(default)]
        loras: Vec<String> = "[]",
        /// Where its vocabulary is: the model's folder with tokenizer.json, tekken.json, tokenizer.model or one
        /// *.tiktoken file, such a file itself (its folder is read as well), or `tiktoken:NAME` for a built-in one
        /// (`tiktoken:o200k_harmony` for gpt-oss). Relative to this file.
        tokenizer: String = "models/llama-3.1-8b",
        /// A file with the chat template (Jinja), if the engine is given one of its own (--chat-template); otherwise
        /// the one beside the tokenizer is used.
        #[serde(default)]
        chat_template: Option<String> = "null",
        /// The engine's --chat-template-content-format: auto (as vLLM tells by the template), string or openai.
        #[serde(default, alias = "content_format")]
        chat_template_content_format: ContentFormat = "auto",
        /// The engine's --default-chat-template-kwargs, e.g. {enable_thinking: false}.
        #[serde(default)]
        default_chat_template_kwargs: Map<String, Value> = "{}",
        /// The engine runs with --exclude-tools-when-tool-choice-none.
        #[serde(default)]
        exclude_tools_when_tool_choice_none: bool = "false",
        /// The engines' time zone, for chat templates that print the date: an IANA name such as Europe/Berlin, or an
        /// offset such as +02:00. Containers are in UTC unless told otherwise.
        #[serde(default)]
        time_zone: Zone = "UTC",
        /// Whether the tokenizer puts a BOS token before completions prompts: auto (as the tokenizer's own files
        /// say), always, never.
        #[serde(default)]
        bos: Bos = "auto",
        /// The engine's --tokenizer-mode: auto, hf or mistral. In auto, vLLM takes mistral for folders that hold
        /// consolidated*.safetensors and tekken.json or tokenizer.model.v*.
        #[serde(default)]
        tokenizer_mode: TokenizerMode = "auto",
        /// The engine runs with --trust-remote-code.
        #[serde(default)]
        trust_remote_code: bool = "false",
        /// Whether prompts given as token ids are predicted, too. Takes as much memory again.
        #[serde(default)]
        token_ids: bool = "false",
        /// Whether a few prompts are compared with what the engines themselves make of them (by their /render or
        /// /tokenize), now and then. Where they differ, no prompt of this model is predicted until they agree again.
        #[serde(default = "yes")]
        self_test: bool = "true",
    }
}

/// A tier by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TierName {
    /// The engine's own KV cache.
    Gpu,
    /// Host memory.
    Cpu,
    /// Disk, or a remote store.
    Disk,
}

impl From<TierName> for Tier {
    fn from(name: TierName) -> Self {
        match name {
            TierName::Gpu => Tier::Gpu,
            TierName::Cpu => Tier::Cpu,
            TierName::Disk => Tier::Disk,
        }
    }
}

/// Whether completions prompts begin with a BOS token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Bos {
    /// As the tokenizer's files say.
    #[default]
    Auto,
    /// They do.
    Always,
    /// They do not.
    Never,
}

/// Whose tokenizer an engine runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerMode {
    /// As vLLM chooses by the model's files.
    #[default]
    Auto,
    /// Hugging Face's.
    Hf,
    /// `mistral-common`.
    Mistral,
}

/// How contents are handed to the chat template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ContentFormat {
    /// As vLLM tells by the template.
    #[default]
    Auto,
    /// As text.
    String,
    /// As lists of parts.
    Openai,
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9400))
}

fn default_stride() -> u32 {
    128
}

fn default_coalesce() -> u64 {
    10
}

fn default_scrape() -> u64 {
    1000
}

fn default_store_interval() -> u64 {
    30_000
}

fn default_blocks() -> usize {
    2_000_000
}

fn default_tiers() -> Vec<TierName> {
    vec![TierName::Gpu]
}

fn default_dns() -> u64 {
    5000
}

fn yes() -> bool {
    true
}

impl Config {
    /// Reads and checks a configuration file; gives its text, too.
    ///
    /// # Errors
    /// Names the file, the option and, where it can, the line.
    pub fn read(path: &Path) -> Result<(Self, String)> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let config = Self::parse(&text).with_context(|| format!("{} is not usable", path.display()))?;
        Ok((config, text))
    }

    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// Names the option and, where it can, the line.
    pub fn parse(text: &str) -> Result<Self> {
        let yaml = serde_yaml_ng::Deserializer::from_str(text);
        let config: Self = serde_path_to_error::deserialize(yaml).map_err(|e| match e.path().to_string().as_str() {
            "." => anyhow::anyhow!("{}", e.inner()),
            path => {
                // The inner error repeats as much of the path as it knows.
                let inner = e.inner().to_string();
                let rest = inner.split_once(": ").filter(|(repeated, _)| path.starts_with(repeated));
                anyhow::anyhow!("{path}: {}", rest.map_or(inner.as_str(), |(_, rest)| rest))
            }
        })?;
        config.check()?;
        Ok(config)
    }

    /// Distance between fingerprints.
    #[must_use]
    pub fn stride(&self) -> Stride {
        Stride::new(self.stride_bytes).unwrap_or_default()
    }

    /// How long news is collected.
    #[must_use]
    pub fn coalesce(&self) -> Duration {
        Duration::from_millis(self.coalesce_ms)
    }

    /// How often names are looked up.
    #[must_use]
    pub fn dns_interval(&self) -> Duration {
        Duration::from_millis(self.dns_interval_ms)
    }

    /// How often the store is written to.
    #[must_use]
    pub fn store_interval(&self) -> Duration {
        Duration::from_millis(self.store_interval_ms)
    }

    /// Most bytes that a snapshot of an endpoint has: a block takes half of this. What is more is a lie.
    #[must_use]
    pub fn snapshot_limit(&self) -> usize {
        self.max_blocks.saturating_mul(64).saturating_add(16 << 20)
    }

    /// Ports after `bind`'s that ranks dial.
    #[must_use]
    pub fn dialled_ranks(&self) -> u16 {
        let dials = self.endpoints.iter().filter(|endpoint| endpoint.events == Some(Events::Bind));
        let last = |e: &Endpoint| e.data_parallel_start_rank.saturating_add(e.data_parallel_ranks.saturating_sub(1));
        dials.map(last).max().unwrap_or(0)
    }

    /// How often metrics are read.
    #[must_use]
    pub fn scrape_interval(&self) -> Duration {
        Duration::from_millis(self.scrape_interval_ms)
    }

    fn check(&self) -> Result<()> {
        let stride = self.stride_bytes;
        ensure!(Stride::new(stride).is_some(), "stride_bytes: {stride} is not a multiple of 8 from 8 to 4096");
        let coalesce = self.coalesce_ms;
        ensure!(coalesce <= 1000, "coalesce_ms: {coalesce} is above 1000, and would make every prediction stale");
        let scrape = self.scrape_interval_ms;
        ensure!(scrape >= 100, "scrape_interval_ms: {scrape} is below 100, too often for an engine");
        ensure!(scrape <= 2000, "scrape_interval_ms: {scrape} is above 2000; loads are no longer believed after 3000");
        self.check_company()?;
        ensure!(self.max_blocks > 0, "max_blocks: 0 would leave nothing to predict from");
        ensure!(!self.tiers.is_empty(), "tiers: the list is empty; [gpu] is the least that is of use");
        let mut names = BTreeSet::new();
        for (i, model) in self.models.iter().enumerate() {
            for name in std::iter::once(&model.name).chain(&model.aliases).chain(&model.loras) {
                ensure!(!name.is_empty(), "models[{i}]: a name, alias or LoRA is empty");
                ensure!(names.insert(name), "models[{i}]: {name:?} is the name, alias or LoRA of two models");
            }
            for name in model.default_chat_template_kwargs.keys() {
                ensure!(
                    !matches!(name.as_str(), "chat_template" | "tokenize"),
                    "models[{i}].default_chat_template_kwargs: {name:?} is refused by the engine; leave it out"
                );
            }
        }
        let most = usize::from(Slot::LIMIT);
        let endpoints: usize = self.endpoints.iter().map(|e| usize::from(e.data_parallel_ranks.max(1))).sum();
        ensure!(endpoints <= most, "endpoints: with their data-parallel ranks there are more than {most}");
        ensure!(!self.endpoints.is_empty(), "endpoints: the list is empty; name at least one engine");
        let interval = self.dns_interval_ms;
        ensure!(interval >= 100, "dns_interval_ms: {interval} is below 100, too often for a name server");
        ensure!(interval <= HOUR_MS, "dns_interval_ms: {interval} is more than an hour ({HOUR_MS})");
        let (mut places, mut sockets) = (BTreeSet::new(), BTreeSet::new());
        for (i, endpoint) in self.endpoints.iter().enumerate() {
            endpoint.check().with_context(|| format!("endpoints[{i}]"))?;
            ensure!(
                endpoint.events != Some(Events::Bind) || self.bind.is_some(),
                "endpoints[{i}].events: who dials in needs an address to dial: give the configuration's `bind`"
            );
            for (option, place) in [("address", &endpoint.address), ("dns", &endpoint.dns)] {
                let Some(place) = place else { continue };
                ensure!(places.insert(place), "endpoints[{i}].{option}: {place} is there twice");
            }
            let Some(address) = endpoint.address.as_ref().and_then(|address| address.parse().ok()) else { continue };
            for wanted in file::at(endpoint, address) {
                let Wired::At(at) = wanted.events else { continue };
                for (option, url) in std::iter::once(("events", at.events)).chain(at.replay.map(|url| ("replay", url)))
                {
                    ensure!(
                        sockets.insert(spelling(&url)),
                        "endpoints[{i}].{option}: {url} is there twice; every engine and data-parallel rank publishes \
                         and replays at ports of its own: give this one's"
                    );
                }
            }
        }
        for (i, endpoint) in self.endpoints.iter().enumerate() {
            if !self.models.iter().any(|m| m.name == endpoint.model) {
                let known = self.models.iter().map(|m| m.name.as_str()).collect::<Vec<_>>().join(", ");
                bail!("endpoints[{i}].model: {:?} is not among the models: {known}", endpoint.model);
            }
        }
        Ok(())
    }

    fn check_company(&self) -> Result<()> {
        let store = self.store_interval_ms;
        ensure!(store >= 1000, "store_interval_ms: {store} is below 1000, too often for what is written");
        ensure!(store <= HOUR_MS, "store_interval_ms: {store} is more than an hour ({HOUR_MS})");
        for peer in &self.peers {
            let usable = reqwest::Url::parse(peer).is_ok_and(|url| url.scheme() == "http" && url.has_host());
            ensure!(usable, "peers: {peer:?} is not http://HOST:PORT");
        }
        if let Some(store) = &self.store {
            let usable = store.starts_with("redis://") && redis::Client::open(store.as_str()).is_ok();
            ensure!(usable, "store: {store:?} is not redis://HOST:PORT");
        }
        if let Some(bind) = &self.bind {
            let port = bind::address(bind).map(|address| address.port());
            ensure!(port.is_some_and(|port| port > 0), "bind: {bind:?} is not tcp://*:PORT or tcp://IP:PORT");
            let ranks = self.dialled_ranks();
            let last = port.and_then(|port| port.checked_add(ranks));
            ensure!(
                last.is_some(),
                "bind: {bind:?} leaves no ports for the ranks that dial in, of which the last is {ranks}"
            );
        }
        Ok(())
    }

    /// An annotated example.
    #[must_use]
    pub fn example() -> String {
        let mut out =
            String::from("# Configuration of warmpath-indexer. Values shown for options that may be left out\n");
        out.push_str("# are their defaults, but for those of models and endpoints.\n");
        for field in Self::FIELDS {
            let items = match field.name {
                "models" => Some(Model::FIELDS),
                "endpoints" => Some(Endpoint::FIELDS),
                _ => None,
            };
            field.write(&mut out, "", "");
            for (i, field) in items.into_iter().flatten().enumerate() {
                field.write(&mut out, "    ", if i == 0 { "  - " } else { "    " });
            }
        }
        out
    }
}

impl Model {
    /// What an option means, as the example says it. Empty for one that is not there.
    #[must_use]
    pub fn about(option: &str) -> String {
        let field = Self::FIELDS.iter().find(|field| field.name == option);
        field.into_iter().flat_map(|field| field.docs).map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }
}

impl Field {
    fn write(&self, out: &mut String, indent: &str, start: &str) {
        if indent.is_empty() {
            out.push('\n');
        }
        for doc in self.docs {
            out.push_str(&format!("{indent}#{doc}\n"));
        }
        let value = if self.example.is_empty() { String::new() } else { format!(" {}", self.example) };
        out.push_str(&format!("{start}{}:{value}\n", self.name));
    }
}

#[cfg(test)]
mod tests;
