//! The running indexer: the one shared state, and what wakes whom when it changes.

use crate::company::Offer;
use crate::endpoints::Key;
use crate::events::{Batch, Event};
use crate::index::{Holdings, RestoreError};
use crate::models::Listed;
use crate::observe::Metrics;
use crate::scrape::Scrape;
use crate::stream::{Action, Checkpoint, Reason, Stream};
use crate::subscriber::Told;
use crate::sync::State;
use affinity::Slot;
use affinity::fleet::Health;
use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::watch;
use tokio::task::block_in_place;

/// Streams that have not come into sync by then do not keep the indexer from being ready.
const READY_AFTER: Duration = Duration::from_secs(15);
/// Blocks that are put back or forgotten in one go, some milliseconds of work; then others get at the state.
const SLICE: usize = 1 << 13;

/// An endpoint, as its stream names it.
pub struct Who {
    /// In the index.
    pub slot: Slot,
    /// Among indexers.
    pub key: Key,
    /// The same, for logs and metrics.
    pub name: String,
}

/// Where an endpoint's stream is.
pub struct Place {
    /// The endpoint.
    pub key: Key,
    /// See [`Stream::state`].
    pub state: &'static str,
    /// See [`Stream::partial`].
    pub partial: bool,
    /// See [`Stream::checkpoint`].
    pub checkpoint: Option<Checkpoint>,
}

/// State shared by all tasks.
pub struct App {
    state: Mutex<State>,
    /// Where streams are. What the index holds is as of there: taken only with `state` locked.
    places: Mutex<BTreeMap<Slot, Place>>,
    changes: watch::Sender<()>,
    stopping: watch::Sender<bool>,
    signals: Mutex<BTreeMap<Slot, Signals>>,
    /// The indexer's own metrics.
    pub metrics: Metrics,
    coalesce_ms: AtomicU64,
    started: Instant,
    /// Whether all endpoints that are wanted were known once.
    complete: AtomicBool,
}

/// What an endpoint's tasks are told.
#[derive(Clone, Default)]
pub struct Signals {
    /// What its stream should know.
    pub told: watch::Sender<Told>,
    /// Its engine may be another one than before, and should be asked and tested again.
    pub restarted: watch::Sender<()>,
}

impl App {
    /// Takes the state; nobody is in the fleet yet.
    #[must_use]
    pub fn new(state: State, coalesce: Duration) -> Self {
        let this = Self {
            state: Mutex::new(state),
            places: Mutex::default(),
            changes: watch::Sender::new(()),
            stopping: watch::Sender::new(false),
            signals: Mutex::default(),
            metrics: Metrics::default(),
            coalesce_ms: AtomicU64::new(0),
            started: Instant::now(),
            complete: AtomicBool::new(false),
        };
        this.set_coalesce(coalesce);
        this
    }

    /// Least time between two messages of news to a gateway.
    pub fn coalesce(&self) -> Duration {
        Duration::from_millis(self.coalesce_ms.load(Ordering::Relaxed))
    }

    /// So it is from now on.
    pub fn set_coalesce(&self, coalesce: Duration) {
        let ms = u64::try_from(coalesce.as_millis()).unwrap_or(u64::MAX);
        self.coalesce_ms.store(ms, Ordering::Relaxed);
    }

    /// The state. Never held across an await.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Told of every change of the state.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Tells of a change.
    pub fn changed(&self) {
        self.changes.send_replace(());
    }

    /// An endpoint's tasks are about to start.
    pub fn enter(&self, slot: Slot, signals: Signals) {
        self.signals.lock().insert(slot, signals);
    }

    /// An endpoint is not there any more, and its tasks have ended: nothing of it is kept.
    pub fn leave(&self, slot: Slot) {
        self.signals.lock().remove(&slot);
        let mut state = self.state();
        self.places().remove(&slot);
        self.shed(&mut state, slot);
        state.leave(slot);
    }

    fn signals(&self, slot: Slot) -> Option<Signals> {
        self.signals.lock().get(&slot).cloned()
    }

    /// What this endpoint's stream should know.
    pub fn told(&self, slot: Slot) -> Option<watch::Receiver<Told>> {
        self.signals(slot).map(|signals| signals.told.subscribe())
    }

    /// Told when this endpoint's engine should be tested: it may be another one than before.
    pub fn retests(&self, slot: Slot) -> Option<watch::Receiver<()>> {
        self.signals(slot).map(|signals| signals.restarted.subscribe())
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
        self.complete.load(Ordering::Relaxed) && self.state().fleet.all_in_sync()
    }

    /// All endpoints that are wanted are known.
    pub fn complete(&self) {
        self.complete.store(true, Ordering::Relaxed);
    }

    /// Does what an endpoint's stream says. Replays and the like are the caller's to ask for. `offered`: by company, if it
    /// was asked. `live`: the messages are fresh. False if what was to be put back cannot be.
    #[must_use]
    pub fn act(
        &self,
        who: &Who,
        stream: &Stream<Batch>,
        actions: &[Action<Batch>],
        mut offered: Option<Holdings>,
        live: bool,
    ) -> bool {
        let (slot, endpoint) = (who.slot, who.name.as_str());
        let (mut well, mut state) = (true, self.state());
        for action in actions {
            match action {
                Action::Replay { .. } | Action::Seek | Action::Reconnect => {}
                Action::Suspend(reason) => {
                    if state.index.held(slot) > SLICE {
                        self.hide(&mut state, slot);
                    }
                    if let Some(holdings) = state.index.snapshot(slot) {
                        self.shed(&mut state, slot);
                        state.index.clear(slot);
                        state.index.put_aside(slot, holdings);
                    }
                    self.metrics.suspended(endpoint, *reason);
                    tracing::info!(endpoint, ?reason, "holdings put aside until they are proved");
                }
                Action::Adopt => {
                    if let Some(offered) = offered.take() {
                        in_place(|| {
                            while state.index.make_way(&offered, SLICE) {
                                MutexGuard::bump(&mut state);
                            }
                        });
                        state.index.put_aside(slot, offered);
                    }
                }
                Action::Restore => {
                    // Meanwhile the place is that of a stream that has nothing to prove: no part is taken for the whole.
                    let restored = in_place(|| {
                        state.index.restore_aside(slot)?;
                        while state.index.restore_more(slot, SLICE)? {
                            state.index.settle();
                            MutexGuard::bump(&mut state);
                        }
                        Ok::<_, RestoreError>(())
                    });
                    well = restored.is_ok();
                    match restored {
                        Ok(()) => tracing::info!(endpoint, "holdings proved"),
                        Err(error) => tracing::warn!(endpoint, %error, "holdings are of no use"),
                    }
                    self.metrics.proved(endpoint, well);
                }
                Action::Clear(reason) => {
                    self.shed(&mut state, slot);
                    state.index.clear(slot);
                    if state.index.forget_aside(slot) {
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
                        if matches!(event, Event::Cleared) {
                            self.shed(&mut state, slot);
                        }
                        state.index.apply(slot, &event);
                    }
                    let lag = live.then(|| unix_now() - batch.timestamp);
                    self.metrics.applied(endpoint, batch, lag);
                }
            }
        }
        state.index.settle();
        let checkpoint = stream.checkpoint().filter(|_| well);
        let place = Place { key: who.key, state: stream.state(), partial: stream.partial(), checkpoint };
        self.places().insert(slot, place);
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

    /// Forgets most of what an endpoint holds, if that takes long: what is left is quickly cleared.
    fn shed(&self, state: &mut MutexGuard<'_, State>, slot: Slot) {
        if state.index.held(slot) <= SLICE {
            return;
        }
        self.hide(state, slot);
        in_place(|| {
            let mut rest = state.index.shedding(slot);
            while state.index.shed(&mut rest, SLICE) {
                MutexGuard::bump(state);
            }
        });
    }

    /// Much of what an endpoint holds is about to be forgotten. That takes a while, and the pages take longer to reach the
    /// gateways; that its events do not count, they hear at once. Nor is a part of it taken for the whole.
    fn hide(&self, state: &mut MutexGuard<'_, State>, slot: Slot) {
        if let Some(place) = self.places().get_mut(&slot) {
            place.checkpoint = None;
        }
        if state.fleet.set_events(slot, false).status {
            state.gateways.fleet_changed(true);
            self.changed();
            MutexGuard::bump(state);
        }
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<Slot, Place>> {
        self.places.lock()
    }

    /// The endpoints of which something can be proved, and the engines' times of it.
    pub fn checkpoints(&self) -> Vec<(Key, f64)> {
        let _state = self.state();
        self.places().values().filter_map(|place| Some((place.key, place.checkpoint?.position.last))).collect()
    }

    /// As of where an endpoint is known, if it can be proved.
    pub fn checkpoint(&self, key: Key) -> Option<Checkpoint> {
        let _state = self.state();
        self.places().values().find(|place| place.key == key)?.checkpoint
    }

    /// What the index holds of an endpoint, and as of where, for others.
    pub fn snapshot(&self, key: Key) -> Option<Offer> {
        let state = self.state();
        let (slot, checkpoint) = {
            let places = self.places();
            let (slot, place) = places.iter().find(|(_, place)| place.key == key)?;
            (*slot, place.checkpoint?)
        };
        Some(Offer { checkpoint, holdings: state.index.snapshot(slot)? })
    }

    /// Brings the metrics up to date.
    pub fn look(&self) {
        let state = self.state();
        self.metrics.look(&state);
        for place in self.places().values() {
            self.metrics.place(place);
        }
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
            && let (Some(endpoint), Some(health)) = (state.fleet.name(slot), state.fleet.health(slot))
        {
            tracing::info!(endpoint, ?health, "health changed");
        }
        let up = change.status && state.fleet.health(slot) == Some(Health::Up);
        drop(state);
        if change.status || change.load {
            self.changed();
        }
        let Some(signals) = self.signals(slot) else { return };
        if up || change.reconnect {
            signals.restarted.send_replace(());
        }
        signals.told.send_if_modified(|told| {
            let before = *told;
            told.asleep = scrape.map_or(told.asleep, |scrape| scrape.asleep);
            told.remake += u64::from(change.reconnect);
            // One that sleeps is said to sleep again and again: it may have been awake in between.
            *told != before || told.asleep
        });
    }
}

/// Does what takes long without keeping the runtime's other tasks from this thread.
fn in_place<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(work),
        // Of tests: there is no other thread to hand them to.
        _ => work(),
    }
}

/// Seconds since the epoch.
fn unix_now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints::Wanted;
    use crate::events::{self, Attention, Stored};
    use crate::index::{Index, Options};
    use crate::models::Models;
    use crate::stream::{Input, Message, Position};
    use crate::tokens::Vocabulary;
    use affinity::{Stride, Tier};
    use rmpv::Value;
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};
    use std::sync::Arc;

    const KEY: Key = Key { address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000), rank: None };

    fn who() -> Who {
        Who { slot: Slot(0), key: KEY, name: KEY.to_string() }
    }

    fn app(max_blocks: usize) -> App {
        let stride = Stride::new(8).unwrap();
        let index = Index::new(Options { stride, max_blocks, tiers: vec![Tier::Gpu] }, 77);
        let config = serde_json::json!({"added_tokens_decoder": {"0": {"content": "x"}, "1": {"content": "y"}}});
        let mut state = State::new(index, Models::new([], 0), stride);
        let vocabulary = Arc::new(Vocabulary::from_tiktoken("", &config, false).unwrap());
        state.enter(Slot(0), &Wanted::bare(KEY.address, "tiny"), &vocabulary, false);
        App::new(state, Duration::ZERO)
    }

    /// Applies a message with one event; says how many blocks the endpoint holds then.
    fn blocks_after(app: &App, event: Vec<Value>) -> usize {
        let batch = Value::Array(vec![1.5.into(), Value::Array(vec![Value::Array(event)])]);
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &batch).unwrap();
        let mut stream = Stream::new(false, false);
        stream.step(Input::Connected);
        let payload = events::decode(&bytes).ok();
        let message = Message { sequence: 0, timestamp: 1.5, size: bytes.len(), resets: false, payload };
        let actions = stream.step(Input::Live(message));
        assert!(app.act(&who(), &stream, &actions, None, true));
        app.state().index.stats().blocks
    }

    #[test]
    fn a_removal_that_cannot_be_read_leaves_no_holdings() {
        let app = app(100);
        let tokens = Value::Array(vec![0.into(); 8]);
        let hashes = |hash: Value| Value::Array(vec![hash]);
        let stored = vec!["BlockStored".into(), hashes(7.into()), Value::Nil, tokens, 8.into()];
        assert_eq!(blocks_after(&app, stored), 1);
        assert_eq!(blocks_after(&app, vec!["BlockInactive".into(), hashes("7".into())]), 1, "a tag that is unknown");
        assert_eq!(blocks_after(&app, vec!["BlockRemoved".into(), hashes("7".into())]), 0);
    }

    /// Stores so many blocks, no two alike.
    fn store(app: &App, blocks: u64) {
        for first in (0..blocks).step_by(64) {
            let hashes: Vec<u64> = (first..first + 64).collect();
            let token = |block: u64, bit: u64| (block >> bit & 1) as u32;
            let tokens: Vec<u32> = hashes.iter().flat_map(|hash| (0..20).map(|bit| token(*hash, bit))).collect();
            let event = Stored {
                readable: hashes.len(),
                hashes: &hashes,
                parent: None,
                tokens: &tokens,
                block_size: 20,
                tier: Tier::Gpu,
                group: 0,
                attention: Attention::Full,
                adapter: None,
                salt: None,
                may_repeat: false,
            };
            app.state().index.apply(Slot(0), &Event::Stored(event));
        }
        app.state().index.settle();
    }

    /// How many of the blocks there are others see while this is done, each number once.
    fn seen_during(app: &App, action: Action<Batch>) -> Vec<usize> {
        let position = Position { next: 5, last: 1.5 };
        let checkpoint = matches!(action, Action::Suspend(_) | Action::Clear(_) | Action::Apply(_))
            .then_some(Checkpoint { position, partial: false });
        app.places().insert(Slot(0), Place { key: KEY, state: "live", partial: false, checkpoint });
        app.state().fleet.set_events(Slot(0), checkpoint.is_some());
        let (all, done) = (20 * SLICE, AtomicBool::new(false));
        let mut seen = std::thread::scope(|scope| {
            let others = scope.spawn(|| {
                let mut seen = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    let state = app.state();
                    let blocks = state.index.stats().blocks;
                    let part = blocks > 0 && blocks < all;
                    assert!(!part || !state.fleet.events(Slot(0)), "gateways are to believe nothing of it");
                    drop(state);
                    assert!(!part || app.checkpoint(KEY).is_none(), "a part is not taken for the whole");
                    seen.push(blocks);
                }
                seen
            });
            assert!(app.act(&who(), &Stream::new(true, false), &[action], None, false));
            done.store(true, Ordering::Relaxed);
            others.join().unwrap()
        });
        seen.retain(|blocks| (1..all).contains(blocks));
        seen.dedup();
        seen
    }

    /// What is put aside and put back, cleared, or cleared by the engine: nobody waits until all of it is done.
    #[test]
    fn others_get_at_the_state_while_much_changes() {
        let (app, blocks) = (app(1 << 20), 20 * SLICE);
        let aside = || {
            let stats = app.state().index.stats();
            (stats.blocks, stats.aside)
        };
        store(&app, blocks as u64);
        assert!(seen_during(&app, Action::Suspend(Reason::Gap)).len() > 10);
        assert_eq!(aside(), (0, blocks));
        assert!(seen_during(&app, Action::Restore).len() > 10);
        assert_eq!(aside(), (blocks, 0));
        assert!(seen_during(&app, Action::Clear(Reason::Slept)).len() > 10);
        assert_eq!(aside(), (0, 0));
        store(&app, blocks as u64);
        let cleared = Value::Array(vec![1.5.into(), Value::Array(vec![Value::Array(vec!["AllBlocksCleared".into()])])]);
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &cleared).unwrap();
        let payload = events::decode(&bytes).ok();
        let message = Message { sequence: 0, timestamp: 1.5, size: bytes.len(), resets: true, payload };
        assert!(seen_during(&app, Action::Apply(message)).len() > 10);
        assert_eq!(aside(), (0, 0));
        store(&app, blocks as u64);
        app.leave(Slot(0));
        assert_eq!(aside(), (0, 0));
    }
}
