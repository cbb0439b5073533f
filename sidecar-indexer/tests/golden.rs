//! Frames recorded from real engines, through decoder and index.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use affinity::page::page_of;
use affinity::{Slot, Stride, Tier, fingerprints, root};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;
use warmpath_indexer::events::{self, Event};
use warmpath_indexer::index::{Index, Options};
use warmpath_indexer::tokens::{Vocabulary, read_json};

const BLOCK: u32 = 32;
const STRIDE: u32 = 64;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn lines(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(fixtures().join("vllm-events").join(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// All recorded messages of one engine, in order.
fn recorded(prefix: &str) -> Vec<Value> {
    let mut frames: Vec<Value> = std::fs::read_dir(fixtures().join("vllm-events"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(prefix) && name.ends_with(".jsonl") && !name.contains("http"))
        .flat_map(|name| lines(&name))
        .collect();
    frames.sort_by_key(|frame| frame["seq"].as_u64());
    assert!(!frames.is_empty());
    frames
}

fn payload(frame: &Value) -> Vec<u8> {
    let hex = frame["frames_hex"][2].as_str().unwrap();
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn vocabulary() -> Arc<Vocabulary> {
    let json = read_json(&fixtures().join("tokenizer/tokenizer.json")).unwrap();
    Arc::new(Vocabulary::from_tokenizer_json(&json).unwrap())
}

fn index() -> Index {
    let stride = Stride::new(STRIDE).unwrap();
    let mut index = Index::new(Options { stride, max_blocks: 10_000, tiers: vec![Tier::Gpu] }, 1);
    index.add(Slot(0), "tiny", &vocabulary(), false);
    index
}

fn feed(index: &mut Index, frame: &Value) {
    let batch = events::decode(&payload(frame)).unwrap();
    assert_eq!(batch.skipped, 0);
    for event in batch.events() {
        index.apply(Slot(0), &event);
    }
}

fn rendered(request: &Value) -> String {
    let message = |m: &Value| {
        format!("<|im_start|>{}\n{}<|im_end|>\n", m["role"].as_str().unwrap(), m["content"].as_str().unwrap())
    };
    let messages = request["body"]["messages"].as_array().unwrap();
    messages.iter().map(message).collect::<String>() + "<|im_start|>assistant\n"
}

fn chats(file: &str) -> Vec<Value> {
    lines(file).into_iter().filter(|r| r["path"] == "/v1/chat/completions").collect()
}

#[test]
fn the_stored_tokens_of_a_chat_spell_its_rendered_text() {
    for engine in ["block32", "old0221-block32"] {
        let first = &recorded(&format!("{engine}."))[0];
        let batch = events::decode(&payload(first)).unwrap();
        let Some(Event::Stored(stored)) = batch.events().next() else { panic!("the first event is not a store") };
        let mut bytes = Vec::new();
        assert!(vocabulary().spell(stored.tokens, &mut bytes));
        let text = rendered(&chats(&format!("{engine}.http.jsonl"))[0]);
        // The prompt's last, incomplete block is not announced, and eight generated tokens may fill it up.
        let shared = bytes.len().min(text.len());
        assert_eq!(&bytes[..shared], &text.as_bytes()[..shared], "{engine}");
        assert!(text.len() - shared < 200, "{engine}");
    }
}

/// Tokens that the table says slot 0 holds of a prompt.
fn predicted(index: &Index, text: &str) -> u32 {
    let mut prints = Vec::new();
    fingerprints(Stride::new(STRIDE).unwrap(), root("tiny", None), text.as_bytes(), &mut prints);
    let find = |fingerprint| {
        let entries = index.entries(page_of(fingerprint, index.table().bits()));
        entries.into_iter().find(|e| e.fingerprint == fingerprint)
    };
    prints.into_iter().map_while(find).map(|e| e.tokens.0).last().unwrap_or(0)
}

#[test]
fn the_table_predicts_the_cached_tokens_that_the_engine_then_reported() {
    for engine in ["block32", "old0221-block32"] {
        let requests = chats(&format!("{engine}.http.jsonl"));
        let frames = recorded(&format!("{engine}."));
        let mut index = index();
        feed(&mut index, &frames[0]);
        // The first request again, and one that shares its system prompt.
        for request in &requests[1..3] {
            let reported = request["resp"]["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
            let predicted = predicted(&index, &rendered(request));
            assert!(reported > 300, "{engine}");
            assert!(
                u64::from(predicted).abs_diff(reported) <= u64::from(BLOCK),
                "{engine}: predicted {predicted}, reported {reported}"
            );
        }
    }
}

#[test]
fn a_salted_chat_is_found_under_its_salt_only() {
    let salted = lines("block32.06-cache-salt.jsonl");
    let mut index = index();
    feed(&mut index, &salted[0]);
    let text = rendered(&chats("block32.http.jsonl")[0]);
    assert_eq!(predicted(&index, &text), 0);
    let mut prints = Vec::new();
    fingerprints(Stride::new(STRIDE).unwrap(), root("tiny", Some("tenant-a")), text.as_bytes(), &mut prints);
    let entries = index.entries(page_of(prints[0], index.table().bits()));
    assert!(entries.iter().any(|e| e.fingerprint == prints[0]));
}
