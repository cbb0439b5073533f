//! Who says what a prompt is: a real vLLM, and transformers.

use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use warmpath_tests::conformance::SPECIAL_TOKENS;
use warmpath_tests::harness::{Client, repository};
use warmpath_tests::vllm::{Install, Replica, ReplicaOptions};

use crate::model::Model;
use crate::progress::Progress;
use crate::templates::Template;

/// vLLM's clock, as POSIX spells [`UTC_OFFSET`](warmpath_tests::conformance::UTC_OFFSET): it counts westwards.
const TIME_ZONE: &str = "<+0530>-05:30";
/// Longest prompt, in tokens of the tiny model: what its weights allow.
const MAX_MODEL_LEN: &str = "32768";
/// Requests to vLLM at a time.
const AT_ONCE: usize = 12;

/// A request and what the oracles say of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    /// Whose template.
    pub template: String,
    /// The body, without the template.
    pub body: String,
    /// When it was sent and answered, in seconds since 1970.
    pub times: (i64, i64),
    /// The judge's word.
    pub vllm: Answer,
    /// What transformers makes of the messages as they are.
    pub transformers: Answer,
}

impl Case {
    /// One with a single oracle, which answered at once.
    #[must_use]
    pub fn of(template: String, body: String, now: i64, answer: Answer) -> Self {
        Self { template, body, times: (now, now), transformers: answer.clone(), vllm: answer }
    }
}

/// An oracle's word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The prompt.
    Text(String),
    /// It does not take this request, and why.
    Refused(String),
}

/// Asks both oracles about every request, which are pairs of template and body.
///
/// # Errors
/// If one of them does not work.
pub async fn ask(
    install: &Install,
    model: &Model,
    templates: &[Template],
    directory: &std::path::Path,
    requests: &[(usize, String)],
) -> Result<Vec<Case>> {
    crate::say("starting vLLM, which takes half a minute; meanwhile transformers renders");
    let options = ReplicaOptions {
        // The other programs have 0 and 1.
        number: 8,
        block_size: 32,
        // Room for the longest prompt, and a little more, as vLLM wants it.
        blocks: 1100,
        model: &model.directory,
        more: &[
            "--enable-scale-out",
            "--trust-request-chat-template",
            "--enable-auto-tool-choice",
            "--tool-call-parser",
            "hermes",
            "--max-model-len",
            MAX_MODEL_LEN,
            "--disable-uvicorn-access-log",
        ],
        environment: &[("TZ", TIME_ZONE), ("VLLM_LOGGING_LEVEL", "ERROR")],
        ..ReplicaOptions::new(install)
    };
    let mut replica = Replica::start(install, options)?;
    let client = Client::new()?;
    let progress = Progress::new("transformers", requests.len());
    let (ready, transformers) =
        tokio::join!(replica.ready(&client), transformers(install, model, templates, directory, requests, &progress));
    ready?;
    let transformers = transformers?;
    drop(progress);
    let url = replica.url("/v1/chat/completions/render");
    let progress = Progress::new("vLLM", requests.len());
    let done = AtomicUsize::new(0);
    let one = async |(template, body): &(usize, String)| {
        let answer = vllm(&client, &url, model, &templates[*template], body).await;
        progress.show(done.fetch_add(1, Ordering::Relaxed) + 1);
        answer
    };
    let answers: Vec<_> = stream::iter(requests).map(one).buffered(AT_ONCE).try_collect().await?;
    let cases =
        requests.iter().zip(answers).zip(transformers).map(|(((template, body), (times, vllm)), transformers)| Case {
            template: templates[*template].name.clone(),
            body: body.clone(),
            times,
            vllm,
            transformers,
        });
    Ok(cases.collect())
}

async fn vllm(
    client: &Client,
    url: &str,
    model: &Model,
    template: &Template,
    body: &str,
) -> Result<((i64, i64), Answer)> {
    #[derive(Deserialize)]
    struct Rendered {
        token_ids: Vec<u32>,
    }
    let opened = body.trim_end().strip_suffix('}').context("a body is no JSON object")?;
    let body = format!("{opened},\"chat_template\":{}}}", json!(template.source));
    let before = now();
    let reply = client.send(Method::POST, url, &[("content-type", "application/json")], body.into()).await?;
    let times = (before, now());
    let answer = if reply.status == 200 {
        let rendered: Rendered = serde_json::from_str(&reply.body).context("vLLM's answer has no token ids")?;
        Answer::Text(model.text(&rendered.token_ids)?)
    } else {
        let why = reply.json().ok().and_then(|json| json.pointer("/error/message")?.as_str().map(str::to_owned));
        Answer::Refused(format!("{}: {}", reply.status, why.unwrap_or(reply.body)))
    };
    Ok((times, answer))
}

/// Seconds since 1970.
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

async fn transformers(
    install: &Install,
    model: &Model,
    templates: &[Template],
    directory: &std::path::Path,
    requests: &[(usize, String)],
    progress: &Progress,
) -> Result<Vec<Answer>> {
    let mut child = Command::new(install.venv.join("bin/python"))
        .arg(repository().join("tests/conformance/templates.py"))
        .args([&model.directory, directory])
        .envs([("TZ", TIME_ZONE), ("HF_HUB_OFFLINE", "1"), ("TRANSFORMERS_VERBOSITY", "error")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("the transformers oracle does not start")?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let mut lines = BufReader::new(child.stdout.take().context("no standard output")?).lines();
    let write = async {
        for (template, body) in requests {
            let line = json!({"template": templates[*template].name, "body": body}).to_string() + "\n";
            stdin.write_all(line.as_bytes()).await.context("the transformers oracle has ended; its reason is above")?;
        }
        drop(stdin);
        anyhow::Ok(())
    };
    let read = async {
        let ended = "the transformers oracle has ended; its reason is above";
        let special: Value = serde_json::from_str(&lines.next_line().await?.context(ended)?)?;
        for (name, text) in SPECIAL_TOKENS {
            ensure!(special[name] == text, "transformers has {} for {name}, not {text}", special[name]);
        }
        let mut answers = Vec::new();
        while answers.len() < requests.len() {
            let line = lines.next_line().await?.context(ended)?;
            // Half surrogate pairs, which are no text, are all that can be wrong with it.
            answers.push(serde_json::from_str(&line).unwrap_or(Answer::Refused("no text".to_owned())));
            progress.show(answers.len());
        }
        anyhow::Ok(answers)
    };
    let (written, answers) = tokio::join!(write, read);
    let answers = answers?;
    written?;
    match child.wait().await? {
        status if status.success() => Ok(answers),
        status => bail!("the transformers oracle has failed ({status}); its reason is above"),
    }
}
