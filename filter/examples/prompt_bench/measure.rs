//! One round of `cargo xtask bench prompt`: what Warmpath does with chats' bodies, and tokenising the same prompts.
//!
//! The module in Envoy and the native program both contain this file, so both time the same.

use std::hint::black_box;
use std::time::{Duration, Instant};

use affinity::profile::{Profile, Profiles, Renderer, Template};
use affinity::prompt::{Api, Canonical, Prompts};
use affinity::{Fingerprint, Stride, fingerprints};
use serde::{Deserialize, Serialize};
use tiktoken_rs::o200k_harmony_singleton;

/// Chats of one kind, all for one model.
#[derive(Serialize, Deserialize)]
pub struct Case {
    /// The model's chat template.
    pub template: String,
    /// Asked before those that are timed: a gateway has been running for a while.
    pub before: Vec<Chat>,
    /// Each is timed once, so that it is new.
    pub timed: Vec<Chat>,
}

#[derive(Serialize, Deserialize)]
pub struct Chat {
    /// The body of a chat completion.
    pub body: String,
    /// The prompt that it must become, by other means.
    pub prompt: String,
}

/// Nanoseconds that a chat takes, each the median over those timed, and what came out.
#[derive(Clone, Serialize, Deserialize)]
pub struct Round {
    /// Body to fingerprints.
    pub warmpath_ns: f64,
    /// The fingerprints' part of it.
    pub fingerprints_ns: f64,
    /// Prompt to token ids.
    pub tokenising_ns: f64,
    /// Of all prompts that were timed.
    pub tokens: usize,
    /// Of all fingerprints, in order.
    pub digest: u64,
}

/// Some moment: templates may print the date.
const NOW: i64 = 1_750_000_000;

/// Times a case once, and checks every answer. The error says which was wrong.
pub fn measure(case: &Case) -> Result<Round, String> {
    let expected = check(case)?;
    let prompts = prompts(case)?;
    let mut out = Vec::new();
    for chat in &case.before {
        warmpath(&prompts, chat, &mut out)?;
    }
    let (mut digest, mut times) = (0, Vec::new());
    for chat in &case.timed {
        let start = Instant::now();
        warmpath(&prompts, chat, &mut out)?;
        times.push(start.elapsed());
        digest = digested(digest, &out);
    }
    if digest != expected {
        return Err("the fingerprints of the run that was timed differ".to_owned());
    }
    let mut hash_times = Vec::new();
    for chat in &case.timed {
        let prompt = spelled(&prompts, chat)?;
        let start = Instant::now();
        out.clear();
        fingerprints(Stride::default(), prompt.root, black_box(&prompt.bytes), &mut out);
        hash_times.push(start.elapsed());
    }
    let (tokens, tokenising) = tokenise(case)?;
    Ok(Round {
        warmpath_ns: median(times),
        fingerprints_ns: median(hash_times),
        tokenising_ns: median(tokenising),
        tokens,
        digest,
    })
}

/// Not the mean: on a busy machine some are interrupted.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times.get(times.len() / 2).map_or(0.0, |time| time.as_nanos() as f64)
}

/// What is timed, but with every prompt compared, and by `Prompts` of its own, which forget what they have seen.
fn check(case: &Case) -> Result<u64, String> {
    let prompts = prompts(case)?;
    let (mut digest, mut out) = (0, Vec::new());
    for (number, chat) in case.before.iter().chain(&case.timed).enumerate() {
        let Canonical { root, bytes, cut, .. } = spelled(&prompts, chat)?;
        if bytes != chat.prompt.as_bytes() || cut.is_some() {
            let same = bytes.iter().zip(chat.prompt.as_bytes()).take_while(|(a, b)| a == b).count();
            return Err(format!("chat {number} is spelled otherwise from byte {same} on: {}", chat.body));
        }
        if number >= case.before.len() {
            out.clear();
            fingerprints(Stride::default(), root, &bytes, &mut out);
            if out.len() != bytes.len() / Stride::default().bytes() {
                return Err(format!("chat {number} has {} fingerprints", out.len()));
            }
            digest = digested(digest, &out);
        }
    }
    Ok(digest)
}

/// As `filter/src/decide.rs` does it.
fn warmpath(prompts: &Prompts, chat: &Chat, out: &mut Vec<Fingerprint>) -> Result<(), String> {
    let prompt = spelled(prompts, chat)?;
    out.clear();
    fingerprints(Stride::default(), prompt.root, &prompt.bytes, out);
    Ok(())
}

fn spelled(prompts: &Prompts, chat: &Chat) -> Result<Canonical, String> {
    prompts.read(Api::Chat, black_box(chat.body.as_bytes()), NOW).prompt.map_err(|why| format!("unknown: {why:?}"))
}

fn prompts(case: &Case) -> Result<Prompts, String> {
    let template = Template { name: "default".into(), source: case.template.clone(), takes_parts: false };
    let profile = Profile { name: "bench".into(), renderer: Renderer::Jinja(vec![template]), ..Profile::default() };
    let (prompts, failed) = Prompts::new(Profiles { models: vec![profile] });
    if failed.is_empty() { Ok(prompts) } else { Err(format!("{failed:?}")) }
}

/// Each fingerprint depends on all before it, so the last and their number tell of all.
fn digested(digest: u64, fingerprints: &[Fingerprint]) -> u64 {
    let last = fingerprints.last().map_or(0, |fingerprint| fingerprint.0);
    digest.rotate_left(5).wrapping_add(last ^ fingerprints.len() as u64)
}

/// The tokens of gpt-oss's vocabulary, without looking for special tokens, which would take longer. How many there
/// are, and the time each chat takes.
fn tokenise(case: &Case) -> Result<(usize, Vec<Duration>), String> {
    let tokenizer = o200k_harmony_singleton();
    for chat in &case.before {
        black_box(tokenizer.encode_ordinary(&chat.prompt));
    }
    let (mut count, mut times) = (0, Vec::new());
    for chat in &case.timed {
        let start = Instant::now();
        let tokens = tokenizer.encode_ordinary(black_box(&chat.prompt));
        times.push(start.elapsed());
        if tokenizer.decode_bytes(&tokens).ok().as_deref() != Some(chat.prompt.as_bytes()) {
            return Err("the tokens do not spell the prompt".to_owned());
        }
        count += tokens.len();
    }
    Ok((count, times))
}
