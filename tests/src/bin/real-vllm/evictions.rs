//! What the engines evict, by their own KV events: counted here, so that the indexer's word is not needed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use rmpv::Value;
use tokio::task::JoinSet;
use zeromq::{Socket, SocketRecv, SubSocket};

/// Counts while it lives.
pub struct Evictions {
    count: Arc<AtomicU64>,
    /// Ends with this value.
    _listeners: JoinSet<()>,
}

impl Evictions {
    /// Listens to engines that publish their KV events at these addresses.
    ///
    /// # Errors
    /// If one of them does not.
    pub async fn listen(publishers: impl Iterator<Item = &str>) -> Result<Self> {
        let count = Arc::new(AtomicU64::new(0));
        let mut listeners = JoinSet::new();
        for publisher in publishers {
            let mut socket = SubSocket::new();
            socket.connect(publisher).await.with_context(|| format!("no events at {publisher}"))?;
            socket.subscribe("").await?;
            let count = Arc::clone(&count);
            listeners.spawn(async move {
                // Frames: topic, number, payload.
                while let Ok(message) = socket.recv().await {
                    let payload = message.get(2).and_then(|frame| rmpv::decode::read_value(&mut frame.as_ref()).ok());
                    count.fetch_add(payload.as_ref().map_or(0, removed), Ordering::Relaxed);
                }
            });
        }
        Ok(Self { count, _listeners: listeners })
    }

    /// Blocks evicted so far.
    pub fn so_far(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// How many blocks a batch of events says were removed. A batch is `[time, events, ...]`; an event is a map, or before
/// vLLM 0.24 a list that begins with its name.
fn removed(batch: &Value) -> u64 {
    let events = batch.as_array().and_then(|batch| batch.get(1)?.as_array());
    let hashes = events.into_iter().flatten().filter_map(|event| {
        let field = |name: &str, place: usize| match event {
            Value::Map(fields) => fields.iter().find(|(key, _)| key.as_str() == Some(name)).map(|(_, value)| value),
            Value::Array(fields) => fields.get(place),
            _ => None,
        };
        (field("type", 0)?.as_str()? == "BlockRemoved").then(|| field("block_hashes", 1)?.as_array())?
    });
    hashes.map(|hashes| hashes.len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(event: Value) -> Value {
        let other = Value::Map(vec![("type".into(), "BlockStored".into()), ("block_hashes".into(), hashes(9))]);
        Value::Array(vec![1.5.into(), Value::Array(vec![other, event])])
    }

    fn hashes(n: u64) -> Value {
        Value::Array((0..n).map(Value::from).collect())
    }

    #[test]
    fn removed_blocks_are_counted_in_either_encoding_and_stored_ones_are_not() {
        let map = Value::Map(vec![("type".into(), "BlockRemoved".into()), ("block_hashes".into(), hashes(3))]);
        assert_eq!(removed(&batch(map)), 3);
        assert_eq!(removed(&batch(Value::Array(vec!["BlockRemoved".into(), hashes(2), "GPU".into()]))), 2);
        assert_eq!(removed(&batch(Value::Array(vec!["AllBlocksCleared".into()]))), 0);
        assert_eq!(removed(&Value::Nil), 0);
    }
}
