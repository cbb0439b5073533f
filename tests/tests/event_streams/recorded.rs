//! Streams recorded from real engines.

use affinity::{Slot, Stride, Tier};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;
use warmpath_indexer::events::{self, Event};
use warmpath_indexer::index::{Index, Options};
use warmpath_indexer::tokens::{Vocabulary, read_json};
use warmpath_tests::residency::{Residency, compare};

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// All recorded messages of one engine, in order.
fn recorded(engine: &str) -> Vec<Value> {
    let files = std::fs::read_dir(fixtures().join("vllm-events")).unwrap().map(|entry| entry.unwrap().path());
    let of_engine = files.filter(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with(&format!("{engine}.")) && name.ends_with(".jsonl") && !name.ends_with(".http.jsonl")
    });
    let mut frames: Vec<Value> = of_engine
        .flat_map(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
        })
        .collect();
    frames.sort_by_key(|frame| frame["seq"].as_u64());
    frames
}

fn payload(frame: &Value) -> Vec<u8> {
    let hex = frame["frames_hex"][2].as_str().unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// An event as the recorder read it, by a MessagePack library of its own.
fn agree(event: &Event<'_>, recorded: &Value) {
    let field = |name: &str, place: usize| match recorded {
        Value::Array(fields) => fields.get(place).cloned().unwrap_or(Value::Null),
        _ => recorded.get(name).cloned().unwrap_or(Value::Null),
    };
    let numbers =
        |value: Value| -> Vec<u64> { value.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect() };
    match (event, field("type", 0).as_str().unwrap()) {
        (Event::Stored(stored), "BlockStored") => {
            assert_eq!(stored.hashes, numbers(field("block_hashes", 1)));
            assert_eq!(stored.parent, field("parent_block_hash", 2).as_u64());
            let tokens: Vec<u64> = stored.tokens.iter().map(|token| u64::from(*token)).collect();
            assert_eq!(tokens, numbers(field("token_ids", 3)));
            assert_eq!(u64::from(stored.block_size), field("block_size", 4).as_u64().unwrap());
            assert_eq!((stored.tier, stored.group, stored.readable), (Tier::Gpu, 0, stored.hashes.len()));
            assert_eq!(stored.salt, field("extra_keys", 8)[0][0].as_str());
        }
        (Event::Removed(removed), "BlockRemoved") => {
            assert_eq!(removed.hashes, numbers(field("block_hashes", 1)));
            assert_eq!((removed.tier, removed.group), (Tier::Gpu, Some(0)));
        }
        (Event::Cleared, "AllBlocksCleared") => {}
        (event, tag) => panic!("{tag} was read as {event:?}"),
    }
}

#[test]
fn after_every_message_the_index_holds_what_the_naive_count_says() {
    let json = read_json(&fixtures().join("tokenizer/tokenizer.json")).unwrap();
    let vocabulary = Arc::new(Vocabulary::from_tokenizer_json(&json).unwrap());
    let stride = Stride::new(64).unwrap();
    // vLLM 0.32.0 with blocks of 32 and of 128 tokens, one of many duplicates, and 0.22.1 (arrays).
    for (engine, messages) in [("block32", 19), ("default128", 22), ("dup32", 16), ("old0221-block32", 18)] {
        let frames = recorded(engine);
        assert_eq!(frames.len(), messages, "{engine}");
        let mut index = Index::new(Options { stride, max_blocks: 10_000, tiers: vec![Tier::Gpu] }, 1);
        index.add(Slot(0), "tiny", &vocabulary, false);
        let (mut residency, mut held) = (Residency::new("tiny", &[Tier::Gpu]), 0);
        for frame in &frames {
            let batch = events::decode(&payload(frame)).unwrap();
            let recorded = frame["decoded"][1].as_array().unwrap();
            assert_eq!((batch.skipped, batch.len(), batch.rank), (0, recorded.len(), Some(0)));
            assert_eq!(Some(batch.timestamp), frame["decoded"][0].as_f64());
            for (event, recorded) in batch.events().zip(recorded) {
                agree(&event, recorded);
                index.apply(Slot(0), &event);
                residency.apply(&event);
            }
            index.settle();
            let same = compare(&index, stride, &vocabulary, &[(Slot(0), &residency)]);
            assert_eq!(same, Ok(()), "{engine} after message {}", frame["seq"]);
            held = held.max(residency.copies().len());
        }
        assert!(held > 10, "{engine}: {held} blocks at most are not much of a test");
        index.clear(Slot(0));
        assert!(index.table().is_empty());
    }
}

/// In mode `full` the engine says again what it holds. That is no second copy: one removal is all there will be.
#[test]
fn what_is_only_said_again_is_counted_once() {
    for engine in ["block32", "default128"] {
        let frames = recorded(engine);
        let mut residency = Residency::new("tiny", &[Tier::Gpu]);
        let mut said_again = 0;
        for frame in &frames {
            let batch = events::decode(&payload(frame)).unwrap();
            for event in batch.events() {
                let before = residency.copies();
                residency.apply(&event);
                if let Event::Stored(stored) = event
                    && stored.hashes.iter().all(|hash| before.contains_key(hash))
                    && stored.parent.is_none()
                {
                    assert!(stored.may_repeat);
                    assert_eq!(residency.copies(), before);
                    said_again += 1;
                }
            }
        }
        assert_eq!(said_again, 1, "{engine}");
    }
}
