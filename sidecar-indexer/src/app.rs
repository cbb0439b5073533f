//! The running indexer: the one shared state, and what wakes whom when it changes.

use crate::company::{Name, Offer};
use crate::events::Batch;
use crate::holdings::Holdings;
use crate::models::Listed;
use crate::observe::Metrics;
use crate::scrape::Scrape;
use crate::stream::{Action, Checkpoint, Reason, Stream};
use crate::subscriber::Told;
use crate::sync::State;
use affinity::Slot;
use affinity::fleet::Health;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;

/// Streams that have not come into sync by then do not keep the indexer from being ready.
const READY_AFTER: Duration = Duration::from_secs(15);

/// An endpoint's holdings that are not in the index.
#[derive(Debug, Default)]
pub struct Aside {
    /// Put aside, to be proved.
    kept: Option<Holdings>,
    /// Offered by company.
    pub offered: Option<Holdings>,
}

/// State shared by all tasks.
pub struct App {
    state: Mutex<State>,
    /// What the index holds is as of here, by endpoint. Taken only with `state` locked.
    checkpoints: Mutex<BTreeMap<Slot, (Name, Checkpoint)>>,
    changes: watch::Sender<()>,
    stopping: watch::Sender<bool>,
    /// Per endpoint, by slot: what its stream should know.
    told: Vec<watch::Sender<Told>>,
    /// Per endpoint, by slot: told when its engine should be tested.
    retest: Vec<watch::Sender<()>>,
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
        let told = state.fleet.addresses().map(|_| watch::Sender::default()).collect();
        let retest = state.fleet.addresses().map(|_| watch::Sender::new(())).collect();
        Self {
            state: Mutex::new(state),
            checkpoints: Mutex::default(),
            changes: watch::Sender::new(()),
            stopping: watch::Sender::new(false),
            told,
            retest,
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

    /// What this endpoint's stream should know.
    pub fn told(&self, slot: Slot) -> Option<watch::Receiver<Told>> {
        self.told.get(usize::from(slot.0)).map(watch::Sender::subscribe)
    }

    /// Told when this endpoint's engine should be tested: it may be another one than before.
    pub fn retests(&self, slot: Slot) -> Option<watch::Receiver<()>> {
        self.retest.get(usize::from(slot.0)).map(watch::Sender::subscribe)
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

    /// Does what an endpoint's stream says. Replays and the like are the caller's to ask for. `live`: the messages are
    /// fresh. False if what was to be put back cannot be.
    #[must_use]
    pub fn act(
        &self,
        slot: Slot,
        name: &Name,
        stream: &Stream<Batch>,
        actions: &[Action<Batch>],
        aside: &mut Aside,
        live: bool,
    ) -> bool {
        let endpoint = &name.to_string();
        let (mut well, mut state) = (true, self.state());
        for action in actions {
            match action {
                Action::Replay { .. } | Action::Seek | Action::Reconnect => {}
                Action::Suspend(reason) => {
                    aside.kept = state.index.snapshot(slot);
                    state.index.clear(slot);
                    self.metrics.suspended(endpoint, *reason);
                    tracing::info!(endpoint, ?reason, "holdings put aside until they are proved");
                }
                Action::Adopt => aside.kept = aside.offered.take(),
                Action::Restore => {
                    let restored = match aside.kept.take() {
                        Some(kept) => state.index.restore(slot, &kept).map_err(anyhow::Error::from),
                        None => Err(anyhow::anyhow!("there is nothing to restore")),
                    };
                    well = restored.is_ok();
                    match restored {
                        Ok(()) => tracing::info!(endpoint, "holdings proved"),
                        Err(error) => tracing::warn!(endpoint, error = format!("{error:#}"), "holdings are of no use"),
                    }
                    self.metrics.proved(endpoint, well);
                }
                Action::Clear(reason) => {
                    state.index.clear(slot);
                    if aside.kept.take().is_some() {
                        self.metrics.proved(endpoint, false);
                    }
                    self.metrics.cleared(endpoint, *reason);
                    if *reason == Reason::Unreadable {
                        self.metrics.unreadable(endpoint);
                    }
                    // Disconnects are logged where they are seen.
                    if *reason != Reason::Disconnected {
                        tracing::warn!(endpoint, ?reason, "holdings forgotten");
                    }
                }
                Action::Apply(message) => {
                    let Some(batch) = &message.payload else { continue };
                    for event in batch.events() {
                        state.index.apply(slot, &event);
                    }
                    let lag = live.then(|| unix_now() - batch.timestamp);
                    self.metrics.applied(endpoint, batch, lag);
                }
            }
        }
        state.index.settle();
        match stream.checkpoint().filter(|_| well) {
            Some(checkpoint) => drop(self.places().insert(slot, (name.clone(), checkpoint))),
            None => drop(self.places().remove(&slot)),
        }
        self.metrics.stream(endpoint, stream);
        let status = state.fleet.set_events(slot, stream.in_sync()).status;
        if status {
            state.gateways.fleet_changed(true);
        }
        drop(state);
        if status || !actions.is_empty() {
            self.changed();
        }
        well
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<Slot, (Name, Checkpoint)>> {
        self.checkpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The endpoints of which something can be proved, and the engines' times of it.
    pub fn checkpoints(&self) -> Vec<(Name, f64)> {
        self.places().values().map(|(name, checkpoint)| (name.clone(), checkpoint.position.last)).collect()
    }

    /// What the index holds of an endpoint, and as of where, for others.
    pub fn snapshot(&self, name: &Name) -> Option<Offer> {
        let state = self.state();
        let (slot, checkpoint) =
            self.places().iter().find_map(|(slot, (of, at))| (of == name).then_some((*slot, *at)))?;
        Some(Offer { checkpoint, holdings: state.index.snapshot(slot)? })
    }

    /// The clock went on: time zones change their offsets.
    pub fn tick(&self, now: i64) {
        if self.state().models.tick(now) {
            self.changed();
        }
    }

    /// An endpoint said what it serves. Says whether that is the model that it should serve.
    pub fn heard(&self, slot: Slot, listed: Listed) -> bool {
        let (changed, right) = self.state().models.heard(slot, listed);
        if changed {
            self.changed();
        }
        right
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
        if let Some(told) = self.told.get(usize::from(slot.0)) {
            told.send_if_modified(|told| {
                let before = *told;
                told.asleep = scrape.map_or(told.asleep, |scrape| scrape.asleep);
                told.remake += u64::from(change.reconnect);
                // One that sleeps is said to sleep again and again: it may have been awake in between.
                *told != before || told.asleep
            });
        }
        let up = change.status && state.fleet.health(slot) == Some(Health::Up);
        drop(state);
        if change.status || change.load {
            self.changed();
        }
        if (up || change.reconnect)
            && let Some(retest) = self.retest.get(usize::from(slot.0))
        {
            retest.send_replace(());
        }
    }
}

/// Seconds since the epoch.
fn unix_now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::events;
    use crate::fleet::Fleet;
    use crate::index::{Index, Options};
    use crate::models::Models;
    use crate::stream::{Input, Message};
    use crate::tokens::Vocabulary;
    use affinity::{Stride, Tier};
    use rmpv::Value;
    use std::sync::Arc;

    const CONFIG: &str = "
models: [{name: tiny, tokenizer: tok}]
endpoints: [{address: '127.0.0.1:8000', model: tiny}]";

    fn app() -> App {
        let stride = Stride::new(8).unwrap();
        let mut index = Index::new(Options { stride, max_blocks: 100, tiers: vec![Tier::Gpu] }, 77);
        let config = serde_json::json!({"added_tokens_decoder": {"0": {"content": "x"}}});
        index.add(Slot(0), "tiny", &Arc::new(Vocabulary::from_tiktoken("", &config, false).unwrap()), false);
        let fleet = Fleet::new(&Config::parse(CONFIG).unwrap());
        App::new(State::new(index, fleet, Models::new([], 0), stride), vec![Slot(0)], Duration::ZERO)
    }

    /// Applies a message with one event; says how many blocks the endpoint holds then.
    fn blocks_after(app: &App, event: Vec<Value>) -> usize {
        let batch = Value::Array(vec![1.5.into(), Value::Array(vec![Value::Array(event)])]);
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &batch).unwrap();
        let (mut stream, mut aside) = (Stream::new(false, false), Aside::default());
        stream.step(Input::Connected);
        let payload = events::decode(&bytes).ok();
        let message = Message { sequence: 0, timestamp: 1.5, size: bytes.len(), resets: false, payload };
        let actions = stream.step(Input::Live(message));
        let name = Name { address: "127.0.0.1:8000".into(), rank: None };
        assert!(app.act(Slot(0), &name, &stream, &actions, &mut aside, true));
        app.state().index.stats().blocks
    }

    #[test]
    fn a_removal_that_cannot_be_read_leaves_no_holdings() {
        let app = app();
        let tokens = Value::Array(vec![0.into(); 8]);
        let hashes = |hash: Value| Value::Array(vec![hash]);
        let stored = vec!["BlockStored".into(), hashes(7.into()), Value::Nil, tokens, 8.into()];
        assert_eq!(blocks_after(&app, stored), 1);
        assert_eq!(blocks_after(&app, vec!["BlockInactive".into(), hashes("7".into())]), 1, "a tag that is unknown");
        assert_eq!(blocks_after(&app, vec!["BlockRemoved".into(), hashes("7".into())]), 0);
    }
}
