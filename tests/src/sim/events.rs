//! KV cache events on the wire: msgpack batches in the two forms vLLM has spoken.

use rmpv::Value;

use super::cache::CacheEvent;

/// How the events inside a batch are written, and with it the form of replay replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Encoding {
    /// Maps with a `type` key, as vLLM 0.24 and later; replay replies carry the topic.
    Map,
    /// Arrays with the tag first, as vLLM 0.23 and earlier; replay replies carry no topic.
    Array,
}

/// One batch: `[timestamp, events, data parallel rank 0]`, with the timestamp in Unix seconds.
pub fn encode_batch(encoding: Encoding, timestamp: f64, block_size: usize, events: &[CacheEvent]) -> Vec<u8> {
    let events = events.iter().map(|event| encode_event(encoding, block_size, event)).collect();
    let batch = Value::Array(vec![Value::F64(timestamp), Value::Array(events), Value::from(0)]);
    let mut bytes = Vec::new();
    // A Vec takes every write.
    let _ = rmpv::encode::write_value(&mut bytes, &batch);
    bytes
}

fn encode_event(encoding: Encoding, block_size: usize, event: &CacheEvent) -> Value {
    let (tag, mut fields) = match event {
        CacheEvent::Stored { hashes, parent, tokens, namespace, session } => {
            let lora = namespace.lora.as_ref();
            // The salt belongs to the block at token 0 only.
            let first = if parent.is_none() { 0 } else { 1 };
            let extra = (first..first + hashes.len()).map(|index| {
                namespace
                    .extra_keys(index)
                    .map_or(Value::Nil, |keys| Value::Array(keys.into_iter().map(Value::from).collect()))
            });
            let mut fields = vec![
                ("block_hashes", hashes.iter().copied().map(Value::from).collect()),
                ("parent_block_hash", parent.map_or(Value::Nil, Value::from)),
                ("token_ids", tokens.iter().copied().map(Value::from).collect()),
                ("block_size", Value::from(block_size)),
                ("lora_id", lora.map_or(Value::Nil, |(id, _)| Value::from(*id))),
                ("medium", Value::from("GPU")),
                ("lora_name", lora.map_or(Value::Nil, |(_, name)| Value::from(name.as_str()))),
                ("extra_keys", extra.collect()),
                ("group_idx", Value::from(0)),
                ("kv_cache_spec_kind", Value::from("full_attention")),
            ];
            match encoding {
                // Fields without a value are left out of maps; arrays end with the sliding window.
                Encoding::Map => {
                    fields.extend(session.as_deref().map(|id| ("session_id", Value::from(id))));
                }
                Encoding::Array => fields.push(("kv_cache_spec_sliding_window", Value::Nil)),
            }
            ("BlockStored", fields)
        }
        CacheEvent::Removed(hash) => (
            "BlockRemoved",
            vec![
                ("block_hashes", Value::Array(vec![Value::from(*hash)])),
                ("medium", Value::from("GPU")),
                ("group_idx", Value::from(0)),
            ],
        ),
        CacheEvent::Cleared => ("AllBlocksCleared", Vec::new()),
    };
    fields.insert(0, ("type", Value::from(tag)));
    match encoding {
        Encoding::Map => Value::Map(fields.into_iter().map(|(key, value)| (Value::from(key), value)).collect()),
        Encoding::Array => fields.into_iter().map(|(_, value)| value).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::cache::Namespace;
    use super::*;

    fn fixture(name: &str) -> String {
        let path = format!("{}/fixtures/vllm-events/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {path}: {error}"))
    }

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// Field of a recorded event, by name in map form and by place in array form.
    fn field<'a>(event: &'a Value, name: &str, place: usize) -> &'a Value {
        match event {
            Value::Map(pairs) => {
                pairs.iter().find(|(key, _)| key.as_str() == Some(name)).map_or(&Value::Nil, |(_, value)| value)
            }
            other => other.as_array().unwrap().get(place).unwrap_or(&Value::Nil),
        }
    }

    fn numbers(value: &Value) -> Vec<u64> {
        value.as_array().unwrap().iter().map(|item| item.as_u64().unwrap()).collect()
    }

    fn understand(event: &Value) -> CacheEvent {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        match field(event, "type", 0).as_str().unwrap() {
            "BlockStored" => {
                let salt = field(event, "extra_keys", 8)[0].as_array().map(|keys| text(&keys[0]).unwrap());
                CacheEvent::Stored {
                    hashes: numbers(field(event, "block_hashes", 1)),
                    parent: field(event, "parent_block_hash", 2).as_u64(),
                    tokens: numbers(field(event, "token_ids", 3)).iter().map(|&id| id as u32).collect(),
                    namespace: Namespace { lora: None, salt },
                    session: text(field(event, "session_id", 99)),
                }
            }
            "BlockRemoved" => CacheEvent::Removed(numbers(field(event, "block_hashes", 1))[0]),
            "AllBlocksCleared" => CacheEvent::Cleared,
            other => panic!("unknown event {other}"),
        }
    }

    fn same_bytes_as_recorded(encoding: Encoding, recordings: &[&str]) {
        let mut kinds = std::collections::BTreeSet::new();
        for line in recordings.iter().flat_map(|name| fixture(name).lines().map(str::to_owned).collect::<Vec<_>>()) {
            let record: serde_json::Value = serde_json::from_str(&line).unwrap();
            let payload = unhex(record["frames_hex"][2].as_str().unwrap());
            let batch = rmpv::decode::read_value(&mut payload.as_slice()).unwrap();
            let events: Vec<_> = batch[1].as_array().unwrap().iter().map(understand).collect();
            kinds.extend(events.iter().map(|event| format!("{event:?}")[..6].to_owned()));
            let encoded = encode_batch(encoding, batch[0].as_f64().unwrap(), 32, &events);
            assert_eq!(encoded, payload, "sequence {} differs", record["seq"]);
        }
        assert_eq!(kinds.len(), 3, "the recordings show every kind of event, not only {kinds:?}");
    }

    #[test]
    fn map_batches_have_the_very_bytes_of_vllm_0_32() {
        same_bytes_as_recorded(
            Encoding::Map,
            &[
                "block32.01-first.jsonl",
                "block32.03-shared-prefix.jsonl",
                "block32.04-long-generation.jsonl",
                "block32.06-cache-salt.jsonl",
                "block32.07-session-id.jsonl",
                "block32.10-request-after-reset.jsonl",
                "block32.11-evictions.jsonl",
            ],
        );
    }

    #[test]
    fn array_batches_have_the_very_bytes_of_vllm_0_22() {
        same_bytes_as_recorded(
            Encoding::Array,
            &[
                "old0221-block32.03-shared-prefix.jsonl",
                "old0221-block32.06-cache-salt.jsonl",
                "old0221-block32.10-request-after-reset.jsonl",
                "old0221-block32.11-evictions.jsonl",
            ],
        );
    }

    #[test]
    fn the_adapter_is_named_in_every_block_and_the_salt_in_the_first() {
        let namespace = Namespace { lora: Some((1, "sql".into())), salt: Some("tenant".into()) };
        let event =
            CacheEvent::Stored { hashes: vec![1, 2], parent: None, tokens: vec![5, 6], namespace, session: None };
        let bytes = encode_batch(Encoding::Map, 0.0, 1, &[event]);
        let batch = rmpv::decode::read_value(&mut bytes.as_slice()).unwrap();
        let stored = &batch[1][0];
        assert_eq!(stored["lora_id"], Value::from(1));
        assert_eq!(stored["lora_name"], Value::from("sql"));
        assert_eq!(stored["extra_keys"][0][0], Value::from("sql"));
        assert_eq!(stored["extra_keys"][0][1], Value::from("tenant"));
        assert_eq!(stored["extra_keys"][1].as_array().unwrap().len(), 1);
    }
}
