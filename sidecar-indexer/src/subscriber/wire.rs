//! One subscription, and how its messages are read.

use super::Note;
use crate::events::{self, Batch, Event};
use crate::stream::Message;
use futures::StreamExt;
use std::hash::Hasher;
use std::time::Duration;
use zeromq::{Socket, SocketEvent, SocketOptions, SocketRecv, SubSocket, ZmqMessage};

/// The library retries refused connections slowly; a short limit leaves the retrying to us.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Where live messages come from. One wire carries those of one process.
pub(super) trait Wire: Send {
    /// The next message; `None` once it is broken.
    fn next(&mut self) -> impl Future<Output = Option<ZmqMessage>> + Send;
}

/// A connected subscription. The library reconnects by itself, silently: dropped when its monitor reports a
/// disconnect, messages of two connections never mix, as after a disconnect the library waits 100 ms before it
/// connects again, and the monitor is looked at before any message.
///
/// It queues nothing: what is not read waits in the kernel's buffers and then at the engine, which drops what is too
/// much.
pub(super) struct Subscription {
    socket: SubSocket,
    monitor: futures::channel::mpsc::Receiver<SocketEvent>,
}

impl Subscription {
    /// Subscribes to all topics.
    pub(super) async fn connect(url: &str) -> zeromq::ZmqResult<Self> {
        let mut socket = SubSocket::with_options(options());
        let monitor = socket.monitor();
        socket.subscribe("").await?;
        socket.connect(url).await?;
        Ok(Self { socket, monitor })
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
pub(super) fn options() -> SocketOptions {
    let mut options = SocketOptions::default();
    options.connect_timeout(CONNECT_TIMEOUT);
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
