//! The simulated engine's scheduler against recordings of real ones: the requests that a vLLM
//! served, scheduled here, give the events it published, batch by batch.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

use std::collections::HashMap;

use serde_json::{Map, Value};
use warmpath_tests::sim::cache::{CacheEvent, Namespace};
use warmpath_tests::sim::scheduler::{Job, Limits, Scheduler};
use warmpath_tests::sim::tokenizer::Tokenizer;

fn lines(name: &str) -> Vec<Value> {
    let path = format!("{}/fixtures/vllm-events/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {path}: {error}"));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// An event reduced to what does not depend on sampled text: hashes are named by their order of
/// appearance, tokens are kept for the first block of a prompt.
#[derive(Debug, PartialEq)]
enum Seen {
    Stored { hashes: Vec<usize>, parent: Option<usize>, tokens: usize, start: Vec<u64>, salt: Option<String> },
    Removed(usize),
    Cleared,
}

#[derive(Default)]
struct Names(HashMap<u64, usize>);

impl Names {
    fn name(&mut self, hash: u64) -> usize {
        let next = self.0.len();
        *self.0.entry(hash).or_insert(next)
    }

    fn stored(&mut self, hashes: &[u64], parent: Option<u64>, tokens: &[u64], salt: Option<String>) -> Seen {
        let parent = parent.map(|hash| self.name(hash));
        let hashes: Vec<usize> = hashes.iter().map(|&hash| self.name(hash)).collect();
        // Short prompts' first block holds sampled tokens too; its template part is fixed.
        let start = if parent.is_none() { tokens[..4].to_vec() } else { Vec::new() };
        Seen::Stored { hashes, parent, tokens: tokens.len(), start, salt }
    }

    fn recorded(&mut self, event: &Value) -> Seen {
        let field = |name: &str, place: usize| event.get(name).or_else(|| event.get(place)).unwrap_or(&Value::Null);
        let numbers = |value: &Value| -> Vec<u64> {
            value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap()).collect()
        };
        match field("type", 0).as_str().unwrap() {
            "BlockStored" => {
                let salt = field("extra_keys", 8)[0][0].as_str().map(str::to_owned);
                let hashes = numbers(field("block_hashes", 1));
                let tokens = numbers(field("token_ids", 3));
                self.stored(&hashes, field("parent_block_hash", 2).as_u64(), &tokens, salt)
            }
            "BlockRemoved" => Seen::Removed(self.name(numbers(field("block_hashes", 1))[0])),
            _ => Seen::Cleared,
        }
    }

    fn ours(&mut self, event: &CacheEvent) -> Seen {
        match event {
            CacheEvent::Stored { hashes, parent, tokens, namespace, .. } => {
                let tokens: Vec<u64> = tokens.iter().map(|&token| token.into()).collect();
                let salt = namespace.salt.clone().filter(|_| parent.is_none());
                self.stored(hashes, *parent, &tokens, salt)
            }
            CacheEvent::Removed(hash) => Seen::Removed(self.name(*hash)),
            CacheEvent::Cleared => Seen::Cleared,
        }
    }
}

fn job(tokenizer: &Tokenizer, body: &Value) -> Job {
    let mut variables = Map::new();
    variables.insert("add_generation_prompt".into(), true.into());
    let text = tokenizer.render(body["messages"].clone(), variables).unwrap();
    let prompt = tokenizer.encode(&text, false).unwrap();
    // Recorded greedily: one prompt always gives one text.
    let seed = prompt.iter().fold(0, |seed: u64, &token| seed.wrapping_mul(31) + u64::from(token));
    let count = body["max_tokens"].as_u64().unwrap() as usize;
    let salt = body["cache_salt"].as_str().map(str::to_owned);
    Job {
        prompt,
        output: tokenizer.generate(seed, count).unwrap().tokens,
        namespace: Namespace { lora: None, salt },
        session: None,
    }
}

/// Runs until idle and returns the batches. A `late` request joins after the first step.
fn run(scheduler: &mut Scheduler, mut late: Option<Job>, cached: &mut Vec<u64>) -> Vec<Vec<CacheEvent>> {
    let mut batches = Vec::new();
    loop {
        let plan = scheduler.schedule();
        if plan.items.is_empty() {
            return batches;
        }
        for progress in scheduler.complete(&plan) {
            if progress.token == 0 {
                cached.push(progress.cached_tokens as u64);
            }
        }
        let events = scheduler.take_events();
        if !events.is_empty() {
            batches.push(events);
        }
        if let Some(job) = late.take() {
            scheduler.add(job);
        }
    }
}

fn replays_the_recording(requests: &[&str], batches: &[&str], unhashed_first: bool) {
    let tokenizer = Tokenizer::load(&warmpath_tests::sim::fixture_tokenizer()).unwrap();
    let limits =
        Limits { block_size: 32, blocks: 48, max_running: 16, step_tokens: 2048, unhashed_first, hash_seed: 1 };
    let mut scheduler = Scheduler::new(limits);
    let (mut ours, mut cached, mut recorded_cached) = (Vec::new(), Vec::new(), Vec::new());
    let records: Vec<Value> = requests.iter().flat_map(|name| lines(name)).collect();
    let mut records = records.iter().peekable();
    while let Some(record) = records.next() {
        if record["path"] == "/reset_prefix_cache" {
            assert!(scheduler.reset_cache());
            continue;
        }
        // vLLM 0.22 leaves the details out where nothing was cached.
        let cached_in = |record: &Value| {
            let usage = &record["resp"]["usage"];
            assert!(usage.is_object(), "a completion: {record}");
            usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0)
        };
        recorded_cached.push(cached_in(record));
        scheduler.add(job(&tokenizer, &record["body"]));
        // Recorded when they ended: two long ones next to each other ran together.
        let together =
            |next: &&&Value| next["body"] == record["body"] && record["body"]["max_tokens"].as_u64() > Some(8);
        let late = records.next_if(|next| together(&next));
        recorded_cached.extend(late.map(cached_in));
        let late = late.map(|record| job(&tokenizer, &record["body"]));
        ours.extend(run(&mut scheduler, late, &mut cached));
    }
    assert_eq!(cached, recorded_cached, "cached tokens of the requests");

    let (mut our_names, mut their_names) = (Names::default(), Names::default());
    let recorded: Vec<Value> = batches.iter().flat_map(|name| lines(name)).collect();
    assert_eq!(ours.len(), recorded.len(), "number of batches");
    for (mine, theirs) in ours.iter().zip(&recorded) {
        let mine: Vec<Seen> = mine.iter().map(|event| our_names.ours(event)).collect();
        let events = theirs["decoded"][1].as_array().unwrap();
        let theirs_seen: Vec<Seen> = events.iter().map(|event| their_names.recorded(event)).collect();
        assert_eq!(mine, theirs_seen, "batch {}", theirs["seq"]);
    }
}

#[test]
fn requests_recorded_at_vllm_0_32_give_its_events() {
    replays_the_recording(
        // The second recording went on where the first ended.
        &["block32.http.jsonl", "dup32.http.jsonl"],
        &[
            "block32.01-first.jsonl",
            "block32.03-shared-prefix.jsonl",
            "block32.04-long-generation.jsonl",
            "block32.05-dup-concurrent.jsonl",
            "block32.06-cache-salt.jsonl",
            "block32.07-session-id.jsonl",
            // 08: asked to announce a hit anew (kv_cache_report_mode), which is not simulated.
            "block32.10-request-after-reset.jsonl",
            "block32.11-evictions.jsonl",
            "dup32.01-dup-then-evict.jsonl",
        ],
        true,
    );
}

#[test]
fn requests_recorded_at_vllm_0_22_give_its_events() {
    replays_the_recording(
        &["old0221-block32.http.jsonl"],
        &[
            "old0221-block32.01-first.jsonl",
            "old0221-block32.03-shared-prefix.jsonl",
            "old0221-block32.04-long-generation.jsonl",
            "old0221-block32.05-dup-concurrent.jsonl",
            "old0221-block32.06-cache-salt.jsonl",
            "old0221-block32.07-session-id.jsonl",
            "old0221-block32.10-request-after-reset.jsonl",
            "old0221-block32.11-evictions.jsonl",
        ],
        false,
    );
}
