//! An endpoint's event stream over ZeroMQ: subscription, replays, audits, and asking company.

pub mod bind;
mod relay;
mod replay;
mod stranger;
#[cfg(test)]
mod tests;
mod wire;

use crate::app::{App, Who};
use crate::company::{Company, Offer};
use crate::endpoints::Key;
use crate::events::{Batch, DecodeError};
use crate::index::Holdings;
use crate::stream::{Action, Input, Reason, Stream};
use affinity::Slot;
use bind::Dialled;
use futures::FutureExt;
use replay::{Pace, Replay};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use wire::{Subscription, Wire, read};

/// Between attempts to connect, doubling from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A subscription that is silent for so long is audited; again and again at double the distance while nothing happens.
const AUDIT: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// The first audit after a replay: what the engine published between its answer and its reading of our subscription
/// went nowhere (see [`crate::stream`]).
const AUDIT_SOON: Duration = Duration::from_secs(1);

/// Events that cannot be connected to for so long are told of.
const UNREACHED: Duration = Duration::from_secs(10);

/// Where an endpoint's events come from.
pub struct Source {
    /// Names the endpoint in the index.
    pub slot: Slot,
    /// Names it in logs, metrics and company.
    pub key: Key,
    /// Where its messages come from.
    pub events: Events,
    /// Where it replays, if it does.
    pub replay: Option<String>,
}

/// Who connects to whom.
pub enum Events {
    /// The engine listens there.
    Connect(String),
    /// The engine dials in.
    Bound(mpsc::Receiver<Dialled>),
}

/// What is told to an endpoint's stream by others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Grows when the connection should be made anew: its process may be another one, or it may be dead.
    pub remake: u64,
    /// The engine is asleep.
    pub asleep: bool,
}

/// Follows an endpoint's events for ever, through every disconnect and every panic: the library has some for what no
/// engine should send, and one connection must not be the last.
pub async fn follow(app: Arc<App>, company: Arc<Company>, mut source: Source) {
    while let Some(told) = app.told(source.slot) {
        let mut follower = Follower::new(&app, &company, &source, told);
        let following = async {
            match &mut source.events {
                Events::Connect(url) => follower.dial(url).await,
                Events::Bound(calls) => follower.await_calls(calls).await,
            }
        };
        // Nothing of the follower is used after a panic but who it was.
        if AssertUnwindSafe(following).catch_unwind().await.is_ok() {
            return;
        }
        follower.crashed();
        tokio::time::sleep(BACKOFF.1).await;
    }
}

/// Tells of what goes wrong with an endpoint's messages.
#[derive(Clone)]
struct Note {
    app: Arc<App>,
    endpoint: String,
    /// What would be said again and again.
    said: Arc<Said>,
}

/// What has been said of an endpoint.
#[derive(Default)]
struct Said {
    foreign: AtomicBool,
    replay_failed: AtomicBool,
}

impl Note {
    fn unreadable(&self, sequence: u64, error: &DecodeError) {
        tracing::warn!(endpoint = self.endpoint, sequence, %error, "an event message cannot be read");
    }

    /// A message without number or payload.
    fn foreign(&self) {
        self.app.metrics.unreadable(&self.endpoint);
        if !self.said.foreign.swap(true, Relaxed) {
            tracing::warn!(
                endpoint = self.endpoint,
                "its messages have no number and payload: is `events` the port of the engine's KV events?"
            );
        }
    }

    fn unreached(&self, url: &str, error: &anyhow::Error, slot: Slot) {
        let (endpoint, siblings) = (&self.endpoint, self.app.state().fleet.has_live_sibling(slot));
        tracing::warn!(
            endpoint,
            url,
            error = format!("{error:#}"),
            "its events cannot be connected to; only placements predict what it holds"
        );
        if siblings {
            tracing::warn!(
                endpoint,
                "other ranks at this address can: has the engine as many as data_parallel_ranks says?"
            );
        }
    }

    fn replay_failed(&self, url: &str, error: &anyhow::Error) {
        let (endpoint, error) = (&self.endpoint, format!("{error:#}"));
        if self.said.replay_failed.swap(true, Relaxed) {
            tracing::debug!(endpoint, url, error, "replay failed again");
        } else {
            tracing::warn!(endpoint, url, error, "replay failed; it is tried again, silently, until it works");
        }
    }

    fn replayed(&self) {
        self.said.replay_failed.store(false, Relaxed);
    }
}

/// How long nobody could be connected to.
#[derive(Default)]
struct Unreached {
    since: Option<Instant>,
    said: bool,
}

impl Unreached {
    /// Whether it is to be told of: once, and not while an engine starts anew.
    fn is_news(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        now.saturating_duration_since(since) >= UNREACHED && !std::mem::replace(&mut self.said, true)
    }
}

struct Follower {
    app: Arc<App>,
    company: Arc<Company>,
    who: Who,
    note: Note,
    stream: Stream<Batch>,
    told: watch::Receiver<Told>,
    /// Asks for a replay from a number on, after a while.
    ask: Box<dyn Fn(u64, Duration) -> Option<Replay> + Send + Sync>,
    replay: Option<Replay>,
    /// Whether it is an audit.
    auditing: bool,
    seeking: Option<Seeking>,
    pace: Pace,
    audits: Audits,
}

/// Company being asked; dropping it ends it.
struct Seeking(JoinHandle<Option<Offer>>);

impl Drop for Seeking {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Follower {
    fn new(app: &Arc<App>, company: &Arc<Company>, source: &Source, told: watch::Receiver<Told>) -> Self {
        let who = Who { slot: source.slot, key: source.key, name: source.key.to_string() };
        let note = Note { app: app.clone(), endpoint: who.name.clone(), said: Arc::default() };
        let (asking, replay) = (note.clone(), source.replay.clone());
        let ask = move |from, delay| Some(Replay::start(replay.clone()?, asking.clone(), from, delay));
        Self {
            stream: Stream::new(source.replay.is_some(), company.exists()),
            who,
            note,
            told,
            app: app.clone(),
            company: company.clone(),
            ask: Box::new(ask),
            replay: None,
            auditing: false,
            seeking: None,
            pace: Pace::default(),
            audits: Audits::new(),
        }
    }

    /// It panicked: nothing that it knew can be relied upon.
    fn crashed(self) {
        tracing::error!(
            endpoint = self.note.endpoint,
            "following the event stream crashed, as logged before; it is forgotten and begun anew"
        );
        let clear = [Action::Clear(Reason::Crashed)];
        let _ = self.app.act(&self.who, &Stream::new(false, false), &clear, None, false);
    }

    /// Connects, again and again.
    async fn dial(&mut self, url: &str) {
        let mut backoff = BACKOFF.0;
        let mut unreached = Unreached::default();
        loop {
            match Subscription::connect(&self.app, &self.who.name, url).await {
                Ok(mut subscription) => {
                    unreached = Unreached::default();
                    let since = Instant::now();
                    self.listen(&mut subscription).await;
                    if since.elapsed() > BACKOFF.1 {
                        backoff = BACKOFF.0;
                    }
                }
                Err(error) => {
                    tracing::debug!(endpoint = self.note.endpoint, error = format!("{error:#}"), "cannot subscribe");
                    if unreached.is_news(Instant::now()) {
                        self.note.unreached(url, &error, self.who.slot);
                    }
                }
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    /// Waits until the engine dials in, again and again. A new call ends the one before: one engine has one publisher.
    async fn await_calls(&mut self, calls: &mut mpsc::Receiver<Dialled>) {
        let mut next = calls.recv().await;
        while let Some(mut dialled) = next {
            let call = tokio::select! {
                biased;
                call = calls.recv() => Some(call),
                () = self.listen(&mut dialled) => None,
            };
            self.broken();
            // Hung up before the next call is waited for: as long as this one is open the engine makes none.
            drop(dialled);
            next = match call {
                Some(call) => call,
                None => calls.recv().await,
            };
        }
    }

    /// Until the connection breaks or is to be made anew.
    async fn listen(&mut self, wire: &mut impl Wire) {
        tracing::info!(endpoint = self.note.endpoint, "event stream connected");
        let told = *self.told.borrow_and_update();
        // Said each time: what changed while nobody listened, or with the order to listen anew, was not told yet.
        self.step(if told.asleep { Input::Slept } else { Input::Woke }, false);
        self.audits.heard();
        let mut keep = self.step(Input::Connected, false);
        while keep {
            // Replays go first, and end soon: what is live waits at the engine rather than here.
            keep = tokio::select! {
                biased;
                now = changed(&mut self.told) => {
                    let input = if now.asleep { Input::Slept } else { Input::Woke };
                    now.remake == told.remake && self.step(input, false)
                }
                input = next_replayed(&mut self.replay) => self.replayed(input),
                offer = sought(&mut self.seeking) => {
                    self.seeking = None;
                    let (checkpoint, holdings) = offer.map(|offer| (offer.checkpoint, offer.holdings)).unzip();
                    self.take(Input::Offered(checkpoint), holdings, false)
                }
                frames = wire.next() => match frames {
                    Some(frames) => {
                        self.audits.heard();
                        match read(&frames, &self.note) {
                            Some(message) => self.step(Input::Live(message), true),
                            None => { self.note.foreign(); true }
                        }
                    }
                    None => false,
                },
                () = tokio::time::sleep_until(self.audits.due) => {
                    self.audits.done();
                    self.step(Input::Silent, false)
                }
            };
        }
        self.broken();
        tracing::info!(endpoint = self.note.endpoint, "event stream disconnected");
    }

    fn broken(&mut self) {
        (self.replay, self.seeking, self.auditing) = (None, None, false);
        self.step(Input::Disconnected, false);
    }

    fn replayed(&mut self, input: Input<Batch>) -> bool {
        let whole = match input {
            Input::ReplayEnded => true,
            Input::ReplayFailed => false,
            _ => return self.step(input, false),
        };
        self.replay = None;
        let audit = std::mem::take(&mut self.auditing);
        let keep = self.step(input, false);
        if audit {
            self.app.metrics.audited(&self.note.endpoint, whole.then_some(keep));
        } else {
            self.app.metrics.replayed(&self.note.endpoint, whole);
            if self.replay.is_none() {
                // It may be ahead of the subscription: that is waited for as long, too.
                self.audits.joined();
            }
        }
        keep
    }

    fn step(&mut self, input: Input<Batch>, live: bool) -> bool {
        self.take(input, None, live)
    }

    /// Takes an input, with holdings where company has some, and does what it leads to. False if the connection is to be
    /// made anew.
    fn take(&mut self, input: Input<Batch>, offered: Option<Holdings>, live: bool) -> bool {
        let was_in_sync = self.stream.in_sync();
        let mut actions = self.stream.step(input);
        if !self.app.act(&self.who, &self.stream, &actions, offered, live) {
            actions = self.stream.step(Input::NotRestored);
            let _ = self.app.act(&self.who, &self.stream, &actions, None, live);
        }
        if !was_in_sync && self.stream.in_sync() {
            self.audits.joined();
        }
        let mut keep = true;
        for action in &actions {
            match action {
                Action::Replay { from, again } => {
                    self.auditing = was_in_sync && self.stream.in_sync();
                    let delay = if self.auditing { Duration::ZERO } else { self.pace.delay(*again) };
                    self.replay = (self.ask)(*from, delay);
                }
                Action::Seek => {
                    self.replay = None;
                    let (company, key) = (self.company.clone(), self.who.key);
                    self.seeking = Some(Seeking(tokio::spawn(async move { company.seek(key).await })));
                }
                Action::Reconnect => keep = false,
                _ => {}
            }
        }
        keep
    }
}

async fn changed(told: &mut watch::Receiver<Told>) -> Told {
    match told.changed().await {
        Ok(()) => *told.borrow_and_update(),
        Err(_) => std::future::pending().await,
    }
}

/// The replay's next message or its end; waits for ever if there is none.
async fn next_replayed(replay: &mut Option<Replay>) -> Input<Batch> {
    match replay {
        Some(replay) => replay.next().await,
        None => std::future::pending().await,
    }
}

/// What company had; waits for ever if nobody was asked.
async fn sought(seeking: &mut Option<Seeking>) -> Option<Offer> {
    match seeking {
        Some(Seeking(task)) => task.await.ok().flatten(),
        None => std::future::pending().await,
    }
}

/// When a silent subscription is audited next, and how long after that again.
struct Audits {
    due: Instant,
    then: Duration,
}

impl Audits {
    fn new() -> Self {
        Self { due: Instant::now() + AUDIT.0, then: AUDIT.0 * 2 }
    }

    /// Something came: begin anew.
    fn heard(&mut self) {
        *self = Self::new();
    }

    /// The stream has come into sync.
    fn joined(&mut self) {
        *self = Self { due: Instant::now() + AUDIT_SOON, then: AUDIT.0 };
    }

    fn done(&mut self) {
        self.due = Instant::now() + self.then;
        self.then = (self.then * 2).min(AUDIT.1);
    }
}
