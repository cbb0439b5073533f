//! One subscription, and how its messages are read.

use super::Note;
use super::relay::{Relay, dial};
use crate::app::App;
use crate::events::{self, Batch, Event};
use crate::stream::Message;
use anyhow::Result;
use futures::StreamExt;
use std::hash::Hasher;
use std::sync::Arc;
use std::time::Duration;
use zeromq::{Socket, SocketEvent, SocketOptions, SocketRecv, SubSocket, ZmqMessage};

/// For an engine to answer, and again for what both say first.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Where live messages come from. One wire carries those of one process.
pub(super) trait Wire: Send {
    /// The next message; `None` once it is broken.
    fn next(&mut self) -> impl Future<Output = Option<ZmqMessage>> + Send;
}

/// A connected subscription: the messages of one connection, as the relay that the library would reconnect to takes one.
///
/// It queues nothing: what is not read waits in the kernel's buffers and then at the engine, which drops what is too
/// much.
pub(super) struct Subscription {
    socket: SubSocket,
    monitor: futures::channel::mpsc::Receiver<SocketEvent>,
    /// Hangs up when dropped.
    _relay: Relay,
}

impl Subscription {
    /// Subscribes to all topics of a publisher. `name`: its endpoint's, for the log.
    pub(super) async fn connect(app: &Arc<App>, name: &str, url: &str) -> Result<Self> {
        let publisher = dial(url, CONNECT_TIMEOUT).await?;
        Self::over(Relay::start(app, format!("{name}, {url}"), publisher, None).await?, CONNECT_TIMEOUT).await
    }

    /// Subscribes to all topics of who is connected already, and has so long to say who it is.
    pub(super) async fn over(relay: Relay, patience: Duration) -> Result<Self> {
        let mut socket = SubSocket::with_options(options(patience));
        let monitor = socket.monitor();
        socket.subscribe("").await?;
        socket.connect(&relay.url).await?;
        Ok(Self { socket, monitor, _relay: relay })
    }
}

impl Wire for Subscription {
    async fn next(&mut self) -> Option<ZmqMessage> {
        loop {
            tokio::select! {
                biased;
                event = self.monitor.next() => {
                    if matches!(event, None | Some(SocketEvent::Disconnected(_) | SocketEvent::Closed)) {
                        return None;
                    }
                }
                received = self.socket.recv() => return received.ok(),
            }
        }
    }
}

/// What all our sockets have in common.
pub(super) fn options(patience: Duration) -> SocketOptions {
    let mut options = SocketOptions::default();
    options.connect_timeout(patience);
    options
}

/// A message from its last two frames, sequence number and payload; `None` if they are not that. Engines differ in
/// what comes before.
pub(super) fn read(frames: &ZmqMessage, note: &Note) -> Option<Message<Batch>> {
    let sequence = frames.get(frames.len().checked_sub(2)?)?;
    let sequence = u64::from_be_bytes(<[u8; 8]>::try_from(sequence.as_ref()).ok()?);
    let bytes = frames.get(frames.len().checked_sub(1)?)?;
    let message = |timestamp, resets, payload| Message { sequence, timestamp, size: bytes.len(), resets, payload };
    // Replays end with an empty payload.
    if bytes.is_empty() {
        return Some(message(0.0, false, None));
    }
    Some(match events::decode(bytes) {
        Ok(batch) => {
            let resets = batch.events().any(|event| matches!(event, Event::Cleared));
            message(batch.timestamp, resets, Some(batch))
        }
        Err(error) => {
            note.unreadable(sequence, &error);
            message(stamp(bytes), false, None)
        }
    })
}

/// Stands for the time of a message that cannot be read: below 0, and hardly ever the same for two of them.
fn stamp(bytes: &[u8]) -> f64 {
    let mut hasher = fnv::FnvHasher::default();
    hasher.write(bytes);
    -1.0 - (hasher.finish() >> 11) as f64
}
