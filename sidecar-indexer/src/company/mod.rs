//! Other indexers, and what they know: a stream that begins with nothing is offered a checkpoint of a peer, or of the
//! store that all write to. It counts only once the engine's own replay has proved that it is of the engine's process
//! and goes on where the replay begins (see [`crate::stream`]), so peers and store can be slow, gone or stale without
//! harm. What they say was held at that place is believed: whoever may write to the store, or answer as a peer, can
//! make the index wrong, though not break it. Keep both as private as the indexer itself.

mod peers;
mod store;
#[cfg(test)]
mod tests;

pub use peers::POSITION;
pub use store::Store;

use crate::app::App;
use crate::endpoints::Key;
use crate::index::Holdings;
use crate::stream::{Checkpoint, Position};
use anyhow::{Context, Result, ensure};
use peers::Peers;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::spawn_blocking;

/// For all that is asked for one endpoint, turns waited for included. A replay alone does better than a long wait.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of the layout of snapshots; others are not read.
const FORMAT: u8 = 2;

/// An endpoint's holdings as of a place in its stream.
#[derive(Debug)]
pub struct Offer {
    /// The place.
    pub checkpoint: Checkpoint,
    /// The holdings.
    pub holdings: Holdings,
}

/// An [`Offer`] on its way: a byte that says the format, then this in msgpack.
#[derive(Debug, Serialize, Deserialize)]
struct Snapshot {
    endpoint: String,
    next: u64,
    last: f64,
    partial: bool,
    holdings: Holdings,
}

impl Offer {
    /// Written for others.
    ///
    /// # Errors
    /// When the holdings cannot be written.
    pub fn encode(self, key: Key) -> Result<Vec<u8>> {
        let Checkpoint { position: Position { next, last }, partial } = self.checkpoint;
        let snapshot = Snapshot { endpoint: key.to_string(), next, last, partial, holdings: self.holdings };
        let mut bytes = vec![FORMAT];
        rmp_serde::encode::write(&mut bytes, &snapshot)?;
        Ok(bytes)
    }

    /// Reads what was written for this endpoint.
    ///
    /// # Errors
    /// When it is of another version, of another endpoint, or no snapshot.
    pub fn decode(bytes: &[u8], key: Key) -> Result<Self> {
        let bytes = bytes.strip_prefix(&[FORMAT]).context("it is of another version of Warmpath")?;
        let snapshot: Snapshot = rmp_serde::from_slice(bytes).context("it cannot be read")?;
        ensure!(snapshot.endpoint == key.to_string(), "it is of {}", snapshot.endpoint);
        let position = Position { next: snapshot.next, last: snapshot.last };
        ensure!(position.provable(), "its position {position:?} is none");
        Ok(Self { checkpoint: Checkpoint { position, partial: snapshot.partial }, holdings: snapshot.holdings })
    }

    /// What there is of an endpoint, written, and as of where; without keeping others from this thread.
    ///
    /// # Errors
    /// As for [`Offer::encode`].
    pub async fn written(app: Arc<App>, key: Key) -> Result<Option<(Position, Vec<u8>)>> {
        let write = move || {
            let offer = app.snapshot(key);
            offer.map(|offer| Ok((offer.checkpoint.position, offer.encode(key)?))).transpose()
        };
        spawn_blocking(write).await?
    }

    /// Like [`Offer::decode`], without keeping others from this thread: it may be of millions of blocks.
    async fn read(bytes: Vec<u8>, key: Key) -> Result<Self> {
        spawn_blocking(move || Self::decode(&bytes, key)).await?
    }
}

/// Whom to ask.
pub struct Company {
    app: Arc<App>,
    peers: Option<Peers>,
    store: Option<Arc<Store>>,
}

impl Company {
    /// These peers and this store, if any. `limit`: most bytes that a snapshot may have.
    ///
    /// # Errors
    /// When there can be no HTTP client.
    pub fn new(app: Arc<App>, peers: &[String], store: Option<Arc<Store>>, limit: usize) -> Result<Self> {
        let peers = if peers.is_empty() { None } else { Some(Peers::new(peers, limit)?) };
        Ok(Self { app, peers, store })
    }

    /// Whether there is anybody to ask.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.peers.is_some() || self.store.is_some()
    }

    /// What others know of an endpoint: of the peers the one that is furthest, or else the store. Takes ten seconds
    /// at most.
    pub async fn seek(&self, key: Key) -> Option<Offer> {
        let found = tokio::time::timeout(PATIENCE, self.ask(key)).await.ok().flatten();
        self.app.metrics.sought(found.as_ref().map_or("nobody", |(who, _)| who));
        found.map(|(_, offer)| offer)
    }

    /// The offer, and whose it is.
    async fn ask(&self, key: Key) -> Option<(&'static str, Offer)> {
        if let Some(peers) = &self.peers
            && let Some(offer) = peers.ask(key).await
        {
            return Some(("peer", offer));
        }
        if let Some(store) = &self.store {
            match store.get(key).await {
                Ok(found) => return found.map(|offer| ("store", offer)),
                Err(error) => {
                    self.app.metrics.store_failed();
                    tracing::warn!(endpoint = %key, error = format!("{error:#}"), "the store has no use");
                }
            }
        }
        None
    }
}
