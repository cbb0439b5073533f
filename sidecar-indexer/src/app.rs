//! The running indexer: the one shared state, and what wakes whom when it changes.

use crate::events::{Batch, DecodeError};
use crate::observe::Metrics;
use crate::scrape::Scrape;
use crate::stream::{Action, Reason, Stream};
use crate::sync::State;
use affinity::Slot;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;

/// Streams that have not come into sync by then do not keep the indexer from being ready.
const READY_AFTER: Duration = Duration::from_secs(15);

/// A message's content, read or not.
pub type Payload = Result<Batch, DecodeError>;

/// State shared by all tasks.
pub struct App {
    state: Mutex<State>,
    changes: watch::Sender<()>,
    stopping: watch::Sender<bool>,
    /// Per endpoint, by slot: told when its stream should be made anew.
    reconnect: Vec<watch::Sender<()>>,
    /// The indexer's own metrics.
    pub metrics: Metrics,
    /// How long news is collected.
    pub coalesce: Duration,
    started: Instant,
    /// Slots with an event stream.
    streams: Vec<Slot>,
}

impl App {
    /// Takes the state. `streams` are the slots with an event stream.
    #[must_use]
    pub fn new(state: State, streams: Vec<Slot>, coalesce: Duration) -> Self {
        let reconnect = state.fleet.addresses().map(|_| watch::Sender::new(())).collect();
        Self {
            state: Mutex::new(state),
            changes: watch::Sender::new(()),
            stopping: watch::Sender::new(false),
            reconnect,
            metrics: Metrics::default(),
            coalesce,
            started: Instant::now(),
            streams,
        }
    }

    /// The state. Never held across an await.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Told of every change of the state.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Tells of a change.
    pub fn changed(&self) {
        self.changes.send_replace(());
    }

    /// Told when this endpoint's stream should be made anew.
    pub fn reconnects(&self, slot: Slot) -> Option<watch::Receiver<()>> {
        self.reconnect.get(usize::from(slot.0)).map(watch::Sender::subscribe)
    }

    /// Becomes true when the indexer stops.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// Ends requests that are held open.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Whether filters get a table worth having: every stream is in sync, or had its time.
    #[must_use]
    pub fn ready(&self) -> bool {
        if self.started.elapsed() >= READY_AFTER {
            return true;
        }
        let state = self.state();
        self.streams.iter().all(|slot| state.fleet.events(*slot))
    }

    /// Does what an endpoint's stream says. Replays are the caller's to ask for. `live`: the messages are fresh.
    pub fn act(&self, slot: Slot, address: &str, stream: &Stream<Payload>, actions: &[Action<Payload>], live: bool) {
        let mut state = self.state();
        for action in actions {
            match action {
                Action::Replay => {}
                Action::Clear(reason) => {
                    state.index.clear(slot);
                    self.metrics.cleared(address, *reason);
                    // The other reasons are those of connections, which are logged where they are made.
                    if matches!(reason, Reason::Gap | Reason::Restarted) {
                        tracing::warn!(endpoint = address, ?reason, "holdings forgotten");
                    }
                }
                Action::Apply(message) => match &message.payload {
                    Ok(batch) => {
                        for event in &batch.events {
                            state.index.apply(slot, event);
                        }
                        let lag = live.then(|| unix_now() - batch.timestamp);
                        self.metrics.applied(address, &batch.events, batch.skipped, lag);
                    }
                    Err(error) => {
                        // It may have held removals: nothing known before it can be trusted.
                        state.index.clear(slot);
                        self.metrics.unreadable(address);
                        tracing::warn!(endpoint = address, %error, "an event message cannot be read");
                    }
                },
            }
        }
        state.index.settle();
        self.metrics.partial(address, stream.partial());
        let status = state.fleet.set_events(slot, stream.in_sync()).status;
        if status {
            state.gateways.fleet_changed(true);
        }
        drop(state);
        if status || !actions.is_empty() {
            self.changed();
        }
    }

    /// An endpoint's metrics were read, or could not be.
    pub fn scraped(&self, slot: Slot, scrape: Option<&Scrape>, now: Instant) {
        let mut state = self.state();
        let change = state.fleet.scraped(slot, scrape, now);
        if change.status || change.load {
            state.gateways.fleet_changed(change.status);
        }
        if change.status
            && let Some((_, address)) = state.fleet.addresses().nth(usize::from(slot.0))
            && let Some(health) = state.fleet.health(slot)
        {
            tracing::info!(endpoint = address, ?health, "health changed");
        }
        drop(state);
        if change.status || change.load {
            self.changed();
        }
        if change.reconnect
            && let Some(reconnect) = self.reconnect.get(usize::from(slot.0))
        {
            reconnect.send_replace(());
        }
    }
}

/// Seconds since the epoch.
fn unix_now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}
