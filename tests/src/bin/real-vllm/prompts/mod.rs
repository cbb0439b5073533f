//! `cargo xtask real-vllm --prompts`: each kind of request once.
//!
//! Three say what a prompt is. The engine's renderer gives the token ids that it would compute, and these spell bytes.
//! Our own code reads the same body with the profiles that the indexer gives to filters. And the request is sent twice
//! through Envoy: what the filter expects to be cached the second time is held against what the engine reports.

mod cases;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use affinity::profile::Profiles;
use affinity::prompt::{Api, Prompts};
use affinity::sync::{Frame, Request, read_frames};
use anyhow::{Context, Result, bail, ensure};
use reqwest::Method;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::sleep;
use warmpath_indexer::tokens::{Vocabulary, read_json};
use warmpath_tests::harness::{Client, Reply};
use warmpath_tests::vllm::{Install, MODEL, Replica, ReplicaOptions, VERSION, script};

use self::cases::{Case, cases};
use crate::gateway::Gateway;
use crate::{Cli, Progress, say};

/// The same model behind a tokenizer that puts a BOS token before each text.
const BOS_MODEL: &str = "bos";
const ALIAS: &str = "small";
const ADAPTER: &str = "ada";
/// So many that nothing is evicted.
const BLOCKS: u64 = 600;
/// Time for events to reach the filter.
const PAUSE: Duration = Duration::from_millis(500);

/// What came of a request.
#[derive(Debug, Serialize)]
struct Outcome {
    name: &'static str,
    path: &'static str,
    verdict: Verdict,
    /// Why it is declined or wrong.
    why: String,
    /// Of the prompt, by the engine's renderer.
    tokens: usize,
    /// Expected by the filter, the first time and the second.
    predicted: [u64; 2],
    /// Reported by the engine.
    cached: [u64; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// The bytes are the engine's.
    Exact,
    /// The filter says that it does not know them, or not all.
    Declined,
    /// The bytes are others, or more was expected than was cached.
    Wrong,
}

#[derive(Serialize)]
struct Report<'a> {
    cases: usize,
    exact: usize,
    declined: usize,
    wrong: usize,
    passed: bool,
    vllm_version: &'a str,
    per_case: &'a [Outcome],
}

/// Runs the check. What is not as it should be is returned.
///
/// # Errors
/// If something does not start, or does not answer as it is known to.
pub async fn check(cli: &Cli, install: &Install) -> Result<Vec<String>> {
    ensure!(cli.vllm_version == VERSION, "--prompts needs the renderer of vLLM {VERSION}");
    let setting = Setting::start(cli, install).await?;
    let cases = cases();
    let progress = Progress::new(cases.len());
    let mut outcomes = Vec::new();
    for case in &cases {
        outcomes.push(setting.outcome(case).await.with_context(|| format!("case {:?}", case.name))?);
        progress.at(outcomes.len(), &format!("wrong: {}", count(&outcomes, Verdict::Wrong)));
    }
    drop(progress);
    show(&outcomes);
    let wrong = outcomes.iter().filter(|outcome| outcome.verdict == Verdict::Wrong);
    let complaints: Vec<String> = wrong.map(|outcome| format!("{}: {}", outcome.name, outcome.why)).collect();
    if let Some(path) = &cli.json {
        let [exact, declined, wrong] =
            [Verdict::Exact, Verdict::Declined, Verdict::Wrong].map(|verdict| count(&outcomes, verdict));
        let report = Report {
            cases: outcomes.len(),
            exact,
            declined,
            wrong,
            passed: complaints.is_empty(),
            vllm_version: &cli.vllm_version,
            per_case: &outcomes,
        };
        let text = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(complaints)
}

fn count(outcomes: &[Outcome], verdict: Verdict) -> usize {
    outcomes.iter().filter(|outcome| outcome.verdict == verdict).count()
}

/// Everything that runs.
struct Setting {
    gateway: Gateway,
    tiny: Replica,
    bos: Replica,
    client: Client,
    prompts: Prompts,
    vocabulary: Vocabulary,
    /// Tokens by which a prediction may fall short: it ends at a block's end and at a stride's.
    slack: u64,
}

impl Setting {
    async fn start(cli: &Cli, install: &Install) -> Result<Self> {
        let variants = install.directory.join("variants");
        make_variants(install, &variants)?;
        let template = script("prompts.jinja").display().to_string();
        let adapter = format!("{ADAPTER}={}", variants.join("lora").display());
        let common = ["--enable-scale-out", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"];
        let common = [&common[..], &["--chat-template", &template, "--disable-uvicorn-access-log"]].concat();
        let lora = ["--enable-lora", "--lora-modules", &adapter, "--max-lora-rank", "8"];
        let tiny = [&common[..], &lora, &["--served-model-name", MODEL, ALIAS]].concat();
        let bos = [&common[..], &["--served-model-name", BOS_MODEL]].concat();
        let bos_model = variants.join("bos");
        say("starting two vLLM replicas, which takes a minute");
        let start = |number, model: &Path, more: &[&str]| {
            let options = ReplicaOptions {
                number,
                block_size: cli.block_size,
                blocks: BLOCKS,
                model,
                more,
                ..ReplicaOptions::new(install)
            };
            Replica::start(install, options)
        };
        let (mut tiny, mut bos) = (start(2, &install.model, &tiny)?, start(3, &bos_model, &bos)?);
        let client = Client::new()?;
        tiny.ready(&client).await?;
        bos.ready(&client).await?;
        say("starting the indexer and Envoy");
        let model = |name: &str, files: &PathBuf| json!({"name": name, "tokenizer": files, "chat_template": template});
        let (mut first, second) = (model(MODEL, &install.model), model(BOS_MODEL, &bos_model));
        first["aliases"] = json!([ALIAS]);
        first["loras"] = json!([ADAPTER]);
        first["token_ids"] = json!(true);
        let mut endpoints = [tiny.endpoint(), bos.endpoint()];
        endpoints[1]["model"] = json!(BOS_MODEL);
        let indexer = json!({"stride_bytes": cli.stride_bytes, "models": [first, second], "endpoints": endpoints});
        let gateway = Gateway::start(indexer, &[tiny.address, bos.address]).await?;
        let prompts = prompts(&gateway).await?;
        let vocabulary = Vocabulary::from_tokenizer_json(&read_json(&install.model.join("tokenizer.json"))?)?;
        // No token is shorter than a byte.
        let slack = cli.block_size + cli.stride_bytes;
        Ok(Self { gateway, tiny, bos, client, prompts, vocabulary, slack })
    }

    async fn outcome(&self, case: &Case) -> Result<Outcome> {
        let &Case { name, path, ref body } = case;
        let (tokens, theirs) = self.rendered(case).await?;
        let api = Api::of_path(path).context("the filter does not know this path")?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let ours = self.prompts.read(api, body.to_string().as_bytes(), i64::try_from(now)?).prompt;
        let (mut verdict, mut why) = match &ours {
            Err(unknown) => (Verdict::Declined, unknown.as_str().to_owned()),
            Ok(ours) if by_ids(body) => {
                let ids = tokens.iter().flat_map(|id| id.to_le_bytes());
                judge(&ours.bytes, ours.cut.is_none(), &ids.collect::<Vec<u8>>())
            }
            Ok(ours) => judge(&ours.bytes, ours.cut.is_none(), &theirs),
        };
        let (mut predicted, mut cached) = ([0; 2], [0; 2]);
        for time in 0..2 {
            let url = self.gateway.envoy.url(path);
            let reply = self.client.post(&url, &[("x-warmpath-debug", "1")], body).await?;
            ensure!(reply.status == 200, "the engine refused it: {} {}", reply.status, reply.body);
            predicted[time] = header(&reply, "x-warmpath-hit-tokens")?.parse().context("no number of tokens")?;
            cached[time] = cached_tokens(&reply)?;
            let known = header(&reply, "x-warmpath-prompt")?;
            if (known == "exact") != (verdict == Verdict::Exact) && verdict != Verdict::Wrong {
                (verdict, why) = (Verdict::Wrong, format!("the filter says {known}"));
            }
            if predicted[time] > cached[time] {
                verdict = Verdict::Wrong;
                why = format!("expected {} tokens to be cached, and {} were", predicted[time], cached[time]);
            }
            sleep(PAUSE).await;
        }
        if verdict == Verdict::Exact && predicted[1] + self.slack < cached[1] {
            verdict = Verdict::Wrong;
            why = format!("expected only {} tokens to be cached, and {} were", predicted[1], cached[1]);
        }
        Ok(Outcome { name, path, verdict, why, tokens: tokens.len(), predicted, cached })
    }

    /// What the engine makes of it: token ids, and the bytes that they spell. Of several prompts, the first.
    async fn rendered(&self, case: &Case) -> Result<(Vec<u32>, Vec<u8>)> {
        let replica = if case.body["model"] == BOS_MODEL { &self.bos } else { &self.tiny };
        let url = replica.url(&format!("{}/render", case.path));
        let reply = self.client.post(&url, &[], &case.body).await?;
        ensure!(reply.status == 200, "the engine's renderer refused it: {} {}", reply.status, reply.body);
        let rendered = reply.json()?;
        let ids = rendered.pointer("/0/token_ids").or_else(|| rendered.get("token_ids"));
        let ids: Vec<u32> = serde_json::from_value(ids.context("the engine's renderer gave no token ids")?.clone())?;
        let mut bytes = Vec::new();
        ensure!(
            self.vocabulary.spell(&ids, &mut bytes),
            "the engine's renderer gave a token that is not in the vocabulary"
        );
        Ok((ids, bytes))
    }
}

/// `whole`: what we know is all.
fn judge(ours: &[u8], whole: bool, theirs: &[u8]) -> (Verdict, String) {
    let common = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
    match (common == ours.len(), common == theirs.len(), whole) {
        (true, true, true) => (Verdict::Exact, String::new()),
        (true, _, false) => (Verdict::Declined, format!("known up to byte {common} of {}", theirs.len())),
        _ => {
            let around = |bytes: &[u8]| {
                let part = bytes.get(common.saturating_sub(20)..(common + 20).min(bytes.len())).unwrap_or_default();
                String::from_utf8_lossy(part).into_owned()
            };
            (Verdict::Wrong, format!("from byte {common} it is {:?}, not {:?}", around(theirs), around(ours)))
        }
    }
}

/// Whether the prompt is given as token ids.
fn by_ids(body: &Value) -> bool {
    body.pointer("/prompt/0").is_some_and(Value::is_number)
}

fn make_variants(install: &Install, directory: &Path) -> Result<()> {
    let mut python = Command::new(install.venv.join("bin/python"));
    python.arg(script("make_variants.py")).args([&install.model, directory]);
    let status = python.status().context("the environment's Python does not start")?;
    if !status.success() {
        bail!("make_variants.py has failed ({status}); its reason is above");
    }
    Ok(())
}

/// Made ready from the profiles that the indexer gives to a gateway.
async fn prompts(gateway: &Gateway) -> Result<Prompts> {
    let url = format!("http://{}/v1/sync", gateway.indexer.address);
    let http = reqwest::Client::builder().no_proxy().build()?;
    let asked = Request { gateway: 77, ..Request::default() };
    let reply = http.request(Method::POST, url).body(asked.encode()).send().await?.bytes().await?;
    let profiles = read_frames(&reply).find_map(|frame| match frame {
        Frame::Profiles(bytes) => Profiles::decode(bytes),
        _ => None,
    });
    let (prompts, failed) = Prompts::new(profiles.context("the indexer sent no profiles")?);
    ensure!(failed.is_empty(), "a template cannot be compiled: {failed:?}");
    Ok(prompts)
}

fn header<'r>(reply: &'r Reply, name: &str) -> Result<&'r str> {
    reply.header(name).with_context(|| format!("Envoy's response lacks {name}"))
}

/// As each API spells it.
fn cached_tokens(reply: &Reply) -> Result<u64> {
    let body = reply.json()?;
    let places = [
        "/usage/prompt_tokens_details/cached_tokens",
        "/usage/input_tokens_details/cached_tokens",
        "/usage/cache_read_input_tokens",
    ];
    let tokens = places.iter().find_map(|place| body.pointer(place)?.as_u64());
    tokens.with_context(|| format!("the response does not say what was cached: {}", reply.body))
}

fn show(outcomes: &[Outcome]) {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    // No lines between rows.
    table.remove_style(comfy_table::TableComponent::HorizontalLines);
    table.remove_style(comfy_table::TableComponent::MiddleIntersections);
    table.set_header(["request", "prompt", "tokens", "expected, second time", "cached", ""]);
    for outcome in outcomes {
        let verdict = match outcome.verdict {
            Verdict::Exact => "exact",
            Verdict::Declined => "declined",
            Verdict::Wrong => "WRONG",
        };
        let [tokens, expected, cached] = [outcome.tokens as u64, outcome.predicted[1], outcome.cached[1]];
        let [tokens, expected, cached] = [tokens, expected, cached].map(|number| number.to_string());
        table.add_row([outcome.name, verdict, &tokens, &expected, &cached, &outcome.why]);
    }
    println!("{table}");
    let [exact, declined, wrong] =
        [Verdict::Exact, Verdict::Declined, Verdict::Wrong].map(|verdict| count(outcomes, verdict));
    println!("{} kinds of requests: {exact} exact, {declined} declined, {wrong} wrong", outcomes.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_judged() {
        let of = |ours: &str, whole, theirs: &str| judge(ours.as_bytes(), whole, theirs.as_bytes()).0;
        assert_eq!(of("abc", true, "abc"), Verdict::Exact);
        assert_eq!(of("ab", false, "abc"), Verdict::Declined);
        for (ours, whole, theirs) in [("ab", true, "abc"), ("abc", true, "ab"), ("abx", false, "abc"), ("x", true, "")]
        {
            assert_eq!(of(ours, whole, theirs), Verdict::Wrong, "{ours} {theirs}");
        }
    }
}
