//! `warmpath-indexer prompt`: the canonical bytes of one request.

use super::{EngineOptions, see};
use affinity::profile::Profiles;
use affinity::prompt::{Api, Prompts};
use anyhow::{Context, Result, anyhow, ensure};
use serde::de::IgnoredAny;
use serde_json::Value;
use std::io::{IsTerminal, Read, Write, stderr, stdin, stdout};
use std::path::Path;
use std::process::ExitCode;
use warmpath_indexer::zone::Zone;
use warmpath_indexer::{models, reasons, zone};

/// Exit status where the prompt is not known, or only its beginning.
const DECLINED: u8 = 3;

/// Options of the command.
#[derive(clap::Args)]
#[command(after_long_help = after_help())]
pub struct Arguments {
    /// The model's folder, one of its vocabulary files, or `tiktoken:NAME`, as in the configuration's `tokenizer`.
    #[arg(long, value_name = "DIR")]
    model_dir: String,
    /// The path that the request is sent to.
    #[arg(long, value_name = "PATH", default_value = "/v1/chat/completions")]
    endpoint_path: String,
    /// A LoRA adapter that the model serves; repeat for several. Any other name is taken for the model's own.
    #[arg(long, value_name = "NAME")]
    lora: Vec<String>,
    /// The engine's time zone: an IANA name such as Europe/Berlin, or an offset such as +02:00
    /// [default: this machine's].
    #[arg(long, value_name = "ZONE", value_parser = Zone::parse, allow_hyphen_values = true)]
    time_zone: Option<Zone>,
    /// When the engine reads the request: seconds since 1970, or as in 2026-11-20T12:00:00Z [default: now].
    #[arg(long, value_name = "TIME", value_parser = zone::seconds, allow_negative_numbers = true)]
    now: Option<i64>,
    #[command(flatten)]
    engine: EngineOptions,
}

fn after_help() -> String {
    format!(
        "Exit status: 0: the prompt is exact. 3: it is not known, or only its beginning, which is then written. 1: bad \
         input.\n\nReasons for not knowing a prompt:\n{}\n\
         Example:\n  warmpath-indexer prompt --model-dir models/llama-3.1-8b < request.json | xxd",
        reasons::table()
    )
}

/// Reads a request from standard input and writes its canonical bytes to standard output, notes to standard error.
///
/// # Errors
/// When the model cannot be read, or the request is none.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let Arguments { model_dir, endpoint_path, lora, time_zone, now, engine } = arguments;
    let api = Api::of_path(&endpoint_path).ok_or_else(|| {
        anyhow!(
            "--endpoint-path: {endpoint_path:?} has no prompts; those of /v1/chat/completions, /v1/completions, \
             /v1/responses, /v1/messages and /v1/embeddings are known"
        )
    })?;
    let trusting = engine.trust_request_chat_template;
    let mut model = engine.model(model_dir);
    model.loras = lora;
    see(&model, "--model-dir")?;
    let loaded = models::load_tested(&model, Path::new("")).context("--model-dir")?;
    let body = request()?;
    let now = now.unwrap_or_else(zone::now);
    let mut profile = loaded.profile;
    profile.trust_request_template = trusting;
    profile.utc_offset = time_zone.unwrap_or_else(Zone::of_this_machine).offset(now);
    if let Some(asked) = name(&body).filter(|name| !profile.adapters.contains(name)) {
        profile.aliases.push(asked);
    }
    let mut notes = loaded.notes;
    let (prompts, failed) = Prompts::new(Profiles { models: vec![profile] });
    notes.extend(failed.into_iter().map(|(_, why)| format!("no chat prompt can be predicted: {why}")));

    let mut log = stderr().lock();
    for note in notes {
        writeln!(log, "note: {note}")?;
    }
    let (bytes, unknown) = match prompts.read(api, &body, now).prompt {
        Ok(canonical) => (canonical.bytes, canonical.cut),
        Err(why) => (Vec::new(), Some(why)),
    };
    let mut out = stdout().lock();
    out.write_all(&bytes).and_then(|()| out.flush()).context("standard output")?;
    match unknown {
        None => writeln!(log, "exact: {} bytes", bytes.len())?,
        Some(why) => {
            let known = if bytes.is_empty() { "nothing" } else { "only the beginning" };
            writeln!(log, "declined: {}: {}", why.as_str(), reasons::sentence(why))?;
            writeln!(log, "{known} is known of it: {} bytes", bytes.len())?;
        }
    }
    Ok(ExitCode::from(if unknown.is_some() { DECLINED } else { 0 }))
}

/// The body on standard input.
fn request() -> Result<Vec<u8>> {
    ensure!(!stdin().is_terminal(), "standard input is a terminal; give the request's body with `< request.json`");
    let mut body = Vec::new();
    stdin().read_to_end(&mut body).context("standard input")?;
    ensure!(!body.trim_ascii().is_empty(), "standard input is empty; give the request's body with `< request.json`");
    // Escapes that no Unicode has pass: engines take them.
    serde_json::from_slice::<IgnoredAny>(&body).context("standard input is not JSON")?;
    std::str::from_utf8(&body).context("standard input is not JSON")?;
    ensure!(body.trim_ascii_start().starts_with(b"{"), "standard input is not a JSON object, as all requests are");
    Ok(body)
}

/// The model that a body names.
fn name(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<Value>(body).ok()?.get("model")?.as_str().map(str::to_owned)
}
