//! Replays: an engine's past messages, asked for over a DEALER socket.

use super::Note;
use super::relay::{Relay, dial};
use super::wire::{CONNECT_TIMEOUT, options, read};
use crate::events::Batch;
use crate::stream::{Input, Message};
use bytes::Bytes;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

/// A replay that says nothing for this long has failed. Engines answer between two steps, which can take seconds.
const SILENCE: Duration = Duration::from_secs(10);
/// Replays follow each other at this distance at least, doubling, so that a stream that keeps losing messages is no
/// burden to its engine.
const PACE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// Between two parts of one recovery.
const GOES_ON: Duration = Duration::from_millis(10);
/// Messages on their way from the socket to the stream; more wait in the kernel's buffers.
const QUEUE: usize = 64;
/// A message of more bytes waits until none is on its way: a queue full of the largest ones would take gigabytes.
const LARGE: usize = 64 << 10;
/// Marks a replay's end.
const END: u64 = u64::MAX;

/// A replay under way; dropping it ends it.
pub(super) struct Replay {
    messages: mpsc::Receiver<Message<Batch>>,
    task: JoinHandle<bool>,
}

impl Replay {
    /// Asks for all messages from `from` on, after a while.
    pub(super) fn start(url: String, note: Note, from: u64, delay: Duration) -> Self {
        Self::of(|messages| async move {
            tokio::time::sleep(delay).await;
            match ask(&url, &note, from, &messages).await {
                Ok(()) => {
                    note.replayed();
                    true
                }
                Err(error) => {
                    note.replay_failed(&url, &error);
                    false
                }
            }
        })
    }

    /// What this task sends; it says at the end whether that was all.
    pub(super) fn of<F: Future<Output = bool> + Send + 'static>(
        task: impl FnOnce(mpsc::Sender<Message<Batch>>) -> F,
    ) -> Self {
        let (sender, messages) = mpsc::channel(QUEUE);
        Self { messages, task: tokio::spawn(task(sender)) }
    }

    /// The next message, or the end.
    pub(super) async fn next(&mut self) -> Input<Batch> {
        match self.messages.recv().await {
            Some(message) => Input::Replayed(message),
            None => match (&mut self.task).await {
                Ok(true) => Input::ReplayEnded,
                _ => Input::ReplayFailed,
            },
        }
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks for messages and passes them on, until the end was seen or nobody listens.
async fn ask(url: &str, note: &Note, from: u64, messages: &mpsc::Sender<Message<Batch>>) -> anyhow::Result<()> {
    let engine = dial(url, CONNECT_TIMEOUT).await?;
    let mut relay = Relay::start(&note.app, format!("{}, {url}", note.endpoint), engine, None).await?;
    let mut socket = DealerSocket::with_options(options(CONNECT_TIMEOUT));
    socket.connect(&relay.url).await?;
    let mut request = ZmqMessage::from(Bytes::new());
    request.push_back(Bytes::copy_from_slice(&from.to_be_bytes()));
    socket.send(request).await?;
    loop {
        let frames = tokio::select! {
            received = socket.recv() => received?,
            refused = relay.refused() => return Err(refused.into()),
            () = tokio::time::sleep(SILENCE) => anyhow::bail!("no answer for {} s", SILENCE.as_secs()),
        };
        let Some(message) = read(&frames, note) else {
            anyhow::bail!("an answer has no sequence number and payload; is this the engine's replay port?")
        };
        if message.sequence == END {
            return Ok(());
        }
        // A stranger may answer; what was not asked for is not wanted.
        if message.sequence >= from && !pass_on(message, messages).await {
            return Ok(());
        }
    }
}

/// Queues a message; `false` if nobody listens.
async fn pass_on(message: Message<Batch>, messages: &mpsc::Sender<Message<Batch>>) -> bool {
    let places = if message.size > LARGE { messages.max_capacity() } else { 1 };
    let place = messages.reserve_many(places).await.ok().and_then(|mut places| places.next());
    place.map(|place| place.send(message)).is_some()
}

/// How long to wait before the next replay.
#[derive(Default)]
pub(super) struct Pace {
    last: Option<Instant>,
    delay: Duration,
}

impl Pace {
    /// `again`: it goes on with a recovery that makes progress.
    pub(super) fn delay(&mut self, again: bool) -> Duration {
        if again {
            return GOES_ON;
        }
        let calm = self.last.is_none_or(|last| last.elapsed() > PACE.1 * 2);
        self.last = Some(Instant::now());
        self.delay = if calm { Duration::ZERO } else { (self.delay * 2).clamp(PACE.0, PACE.1) };
        self.delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn large_messages_are_queued_one_at_a_time() {
        let of_size = |size| Message { sequence: 0, timestamp: 0.0, size, resets: false, payload: None };
        let (sender, mut queue) = mpsc::channel(3);
        let sending = tokio::spawn(async move {
            for size in [1, 1, LARGE + 1, LARGE + 1, 1] {
                assert!(pass_on(of_size(size), &sender).await);
            }
        });
        let mut seen = Vec::new();
        loop {
            // The sender goes as far as it can.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            let queued = queue.len();
            let Some(message) = queue.recv().await else { break };
            seen.push((queued, message.size));
        }
        sending.await.unwrap();
        assert_eq!(seen, [(2, 1), (1, 1), (1, LARGE + 1), (2, LARGE + 1), (1, 1)]);
        drop(queue);
        let (sender, queue) = mpsc::channel(3);
        drop(queue);
        assert!(!pass_on(of_size(1), &sender).await);
    }

    #[tokio::test(start_paused = true)]
    async fn replays_of_a_troubled_stream_grow_rare_and_a_calm_one_starts_over() {
        let mut pace = Pace::default();
        let ms = |pace: &mut Pace| pace.delay(false).as_millis();
        assert_eq!([ms(&mut pace), ms(&mut pace), ms(&mut pace)], [0, 250, 500]);
        assert_eq!(pace.delay(true), GOES_ON);
        for _ in 0..10 {
            pace.delay(false);
        }
        assert_eq!(ms(&mut pace), 30_000);
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(ms(&mut pace), 0);
    }
}
