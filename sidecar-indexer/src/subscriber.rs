//! ZeroMQ: an endpoint's event subscription and its replay.
//!
//! The library reconnects by itself, silently. Here every connection gets a socket of its own, dropped when the
//! library's monitor reports a disconnect, so that messages of two connections never mix: after a disconnect the
//! library waits 100 ms before it connects again, and the monitor is looked at before any message.

use crate::app::{App, Payload};
use crate::events;
use crate::stream::{Action, Input, Message, Stream};
use affinity::Slot;
use bytes::Bytes;
use futures::StreamExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use zeromq::{DealerSocket, Socket, SocketEvent, SocketOptions, SocketRecv, SocketSend, SubSocket, ZmqMessage};

/// The library retries refused connections slowly; a short limit leaves the retrying to us.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Between attempts to connect, doubling from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A replay that says nothing for this long has failed. Engines answer between two steps, which can take seconds.
const REPLAY_SILENCE: Duration = Duration::from_secs(10);
/// Replays follow each other at this distance at least, doubling, so that a stream that keeps losing messages is no
/// burden to its engine.
const REPLAY_PACE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// Marks a replay's end.
const END: u64 = u64::MAX;

/// Where an endpoint's events come from.
#[derive(Clone, Debug)]
pub struct Source {
    /// Names the endpoint in the index.
    pub slot: Slot,
    /// Names it in logs and metrics.
    pub address: String,
    /// Where it publishes.
    pub events: String,
    /// Where it replays, if it does.
    pub replay: Option<String>,
}

/// Follows an endpoint's events for ever, through every disconnect.
pub async fn follow(app: Arc<App>, source: Source) {
    let mut follower = Follower { app, source, stream: Stream::default(), replay: None, pace: Pace::default() };
    let mut backoff = BACKOFF.0;
    loop {
        match connect(&follower.source.events).await {
            Ok((socket, monitor)) => {
                let since = Instant::now();
                tracing::info!(endpoint = follower.source.address, "event stream connected");
                follower.listen(socket, monitor).await;
                tracing::info!(endpoint = follower.source.address, "event stream disconnected");
                if since.elapsed() > BACKOFF.1 {
                    backoff = BACKOFF.0;
                }
            }
            Err(error) => tracing::debug!(endpoint = follower.source.address, %error, "cannot subscribe"),
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

type Monitor = futures::channel::mpsc::Receiver<SocketEvent>;

async fn connect(url: &str) -> zeromq::ZmqResult<(SubSocket, Monitor)> {
    let mut socket = SubSocket::with_options(options());
    let monitor = socket.monitor();
    socket.subscribe("").await?;
    socket.connect(url).await?;
    Ok((socket, monitor))
}

fn options() -> SocketOptions {
    let mut options = SocketOptions::default();
    options.connect_timeout(CONNECT_TIMEOUT);
    options
}

struct Follower {
    app: Arc<App>,
    source: Source,
    stream: Stream<Payload>,
    replay: Option<Replay>,
    pace: Pace,
}

/// A replay under way; dropping it ends it.
struct Replay {
    messages: mpsc::Receiver<Message<Payload>>,
    task: JoinHandle<bool>,
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Follower {
    /// Until the connection breaks or is to be made anew.
    async fn listen(&mut self, mut socket: SubSocket, mut monitor: Monitor) {
        let Some(mut reconnect) = self.app.reconnects(self.source.slot) else { return };
        self.step(Input::Connected, false);
        loop {
            tokio::select! {
                biased;
                event = monitor.next() => {
                    if matches!(event, None | Some(SocketEvent::Disconnected(_) | SocketEvent::Closed)) {
                        break;
                    }
                }
                _ = changed(&mut reconnect) => break,
                received = socket.recv() => match received {
                    Ok(frames) => match read(&frames) {
                        Some(message) => self.step(Input::Live(message), true),
                        None => self.app.metrics.unreadable(&self.source.address),
                    },
                    Err(_) => break,
                },
                input = next_replayed(&mut self.replay) => {
                    if matches!(input, Input::ReplayEnded | Input::ReplayFailed) {
                        self.replay = None;
                        self.app.metrics.replayed(&self.source.address, input == Input::ReplayEnded);
                    }
                    self.step(input, false);
                }
            }
        }
        self.replay = None;
        self.step(Input::Disconnected, false);
    }

    fn step(&mut self, input: Input<Payload>, live: bool) {
        let mut actions = self.stream.step(input);
        self.app.act(self.source.slot, &self.source.address, &self.stream, &actions, live);
        if !actions.contains(&Action::Replay) {
            return;
        }
        match &self.source.replay {
            Some(url) => {
                let (sender, messages) = mpsc::channel(64);
                let task = tokio::spawn(replay(url.clone(), self.pace.delay(), sender));
                self.replay = Some(Replay { messages, task });
            }
            None => {
                actions = self.stream.step(Input::ReplayFailed);
                // It may ask for another one: without a source of replays that fails until it gives up.
                while actions.contains(&Action::Replay) {
                    self.app.act(self.source.slot, &self.source.address, &self.stream, &actions, false);
                    actions = self.stream.step(Input::ReplayFailed);
                }
                self.app.act(self.source.slot, &self.source.address, &self.stream, &actions, live);
            }
        }
    }
}

async fn changed(watch: &mut watch::Receiver<()>) {
    if watch.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The replay's next message or its end; waits for ever if there is none.
async fn next_replayed(replay: &mut Option<Replay>) -> Input<Payload> {
    let Some(replay) = replay else { return std::future::pending().await };
    match replay.messages.recv().await {
        Some(message) => Input::Replayed(message),
        None => match (&mut replay.task).await {
            Ok(true) => Input::ReplayEnded,
            _ => Input::ReplayFailed,
        },
    }
}

/// Asks for all past messages and passes them on; true when the end was seen.
async fn replay(url: String, delay: Duration, messages: mpsc::Sender<Message<Payload>>) -> bool {
    tokio::time::sleep(delay).await;
    match try_replay(&url, &messages).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(url, error = format!("{error:#}"), "replay failed; going on with what comes");
            false
        }
    }
}

async fn try_replay(url: &str, messages: &mpsc::Sender<Message<Payload>>) -> anyhow::Result<()> {
    let mut socket = DealerSocket::with_options(options());
    socket.connect(url).await?;
    let mut request = ZmqMessage::from(Bytes::new());
    request.push_back(Bytes::copy_from_slice(&0u64.to_be_bytes()));
    socket.send(request).await?;
    loop {
        let frames = tokio::time::timeout(REPLAY_SILENCE, socket.recv()).await??;
        // Engines differ in what comes before the last two frames.
        let Some(message) = read(&frames) else { anyhow::bail!("an answer has no sequence number and payload") };
        if message.sequence == END {
            return Ok(());
        }
        if messages.send(message).await.is_err() {
            return Ok(());
        }
    }
}

/// A message from its last two frames, sequence number and payload; `None` if they are not that.
fn read(frames: &ZmqMessage) -> Option<Message<Payload>> {
    let sequence = frames.get(frames.len().checked_sub(2)?)?;
    let sequence = u64::from_be_bytes(<[u8; 8]>::try_from(sequence.as_ref()).ok()?);
    let payload = events::decode(frames.get(frames.len().checked_sub(1)?)?);
    // Without a time of its own a message counts as old: then it is never taken for a new process's.
    let timestamp = payload.as_ref().map_or(0.0, |batch| batch.timestamp);
    Some(Message { sequence, timestamp, payload })
}

/// How long to wait before the next replay.
#[derive(Default)]
struct Pace {
    last: Option<Instant>,
    delay: Duration,
}

impl Pace {
    fn delay(&mut self) -> Duration {
        let calm = self.last.is_none_or(|last| last.elapsed() > REPLAY_PACE.1 * 2);
        self.last = Some(Instant::now());
        self.delay = if calm { Duration::ZERO } else { (self.delay * 2).clamp(REPLAY_PACE.0, REPLAY_PACE.1) };
        self.delay
    }
}
