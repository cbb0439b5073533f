//! Who has dialled in and not said yet who it is: what such callers may have the indexer keep.
//!
//! Anybody may call, and nothing tells an engine from others before its first message is there. Until then a caller gets
//! room for a message as engines send them, a bounded number of callers for a large one, and none for ever.

use super::relay::Refused;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

/// Most bytes of a first message. A step of 100,000 tokens, each in five bytes, and a hash for each block, told of for
/// each of four cache groups, would have 3 MB. An engine that begins with more is hung up on, and dials again.
pub(super) const FIRST: u64 = 4 << 20;
/// Bytes of a first message for which nobody waits: that is what usual ones have at most. And of a command.
pub(super) const FREE: u64 = 64 << 10;
/// Callers at a time whose first messages have more.
pub(super) const LARGE: usize = 32;
/// For a first message to come, once it has begun.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A caller until it is known.
pub(super) struct Stranger {
    known: oneshot::Receiver<()>,
    places: Arc<Semaphore>,
    place: Option<OwnedSemaphorePermit>,
    /// When what has begun must be there.
    due: Option<Instant>,
}

impl Stranger {
    /// `known` is sent to when it is; `places` are those for large first messages.
    pub(super) fn new(known: oneshot::Receiver<()>, places: Arc<Semaphore>) -> Self {
        Self { known, places, place: None, due: None }
    }

    /// Waits for room for a message of so many bytes; `begun`: one is on its way.
    pub(super) async fn admit(&mut self, bytes: u64, begun: bool) {
        if bytes > FREE && self.place.is_none() {
            // The places are never closed.
            self.place = self.places.clone().acquire_owned().await.ok();
            self.due = None;
        }
        self.due = begun.then(|| self.due.unwrap_or_else(|| Instant::now() + PATIENCE));
    }

    /// Does this unless it is late.
    pub(super) async fn in_time<T>(&self, reading: impl Future<Output = T>) -> Result<T, Refused> {
        match self.due {
            // What is ready would be read first, however late it is.
            Some(due) if due <= Instant::now() => Err(Refused::TooSlow),
            Some(due) => tokio::time::timeout_at(due, reading).await.map_err(|_| Refused::TooSlow),
            None => Ok(reading.await),
        }
    }

    /// Waits until it is known; `false` if it never will be.
    pub(super) async fn known(self) -> bool {
        self.known.await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_has_always_something_to_say_is_late_too() {
        let (_known, told) = oneshot::channel();
        let places = Arc::new(Semaphore::new(1));
        let mut stranger = Stranger::new(told, places.clone());
        stranger.admit(FREE + 1, true).await;
        assert_eq!(places.available_permits(), 0);
        let start = Instant::now();
        while stranger.in_time(std::future::ready(())).await.is_ok() {
            stranger.admit(FREE + 1, true).await;
            assert!(start.elapsed() < 2 * PATIENCE, "it keeps its place");
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(start.elapsed() >= PATIENCE);
    }
}
