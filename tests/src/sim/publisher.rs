//! The ZeroMQ side of an engine: a PUB socket for live batches, a ROUTER socket for replays.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use zeromq::{Endpoint, Host, PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use super::cache::CacheEvent;
use super::events::{Encoding, encode_batch};

const END_OF_REPLAY: u64 = u64::MAX;

/// How batches are written and kept.
#[derive(Clone, Debug)]
pub struct Format {
    /// First frame of every live batch.
    pub topic: String,
    /// Encoding of the events and form of the replay replies.
    pub encoding: Encoding,
    /// `block_size` in the events.
    pub block_size: usize,
    /// Batches kept for replay.
    pub buffer: usize,
}

#[derive(Default)]
struct Sent {
    next: u64,
    buffer: VecDeque<(u64, Bytes)>,
    /// Batches still to be lost on the way: numbered and kept for replay, never sent live.
    lose: u64,
}

/// Numbers, keeps and sends batches. Cheap to clone; its ports are free again once the last clone is dropped.
#[derive(Clone)]
pub struct Publisher {
    format: Arc<Format>,
    sent: Arc<Mutex<Sent>>,
    live: mpsc::UnboundedSender<ZmqMessage>,
    paused: watch::Sender<bool>,
    _tasks: Arc<JoinSet<()>>,
}

impl Publisher {
    /// Binds both sockets on 127.0.0.1 (port 0 picks a free one) and serves them from tasks of the
    /// current runtime. Returns the addresses of events and replay.
    pub async fn bind(format: Format, events_port: u16, replay_port: u16) -> Result<(Self, SocketAddr, SocketAddr)> {
        let mut publish = PubSocket::new();
        let events = address(publish.bind(&format!("tcp://127.0.0.1:{events_port}")).await)
            .with_context(|| format!("bind the event socket to port {events_port}; choose another --events-port"))?;
        let mut router = RouterSocket::new();
        let replay = address(router.bind(&format!("tcp://127.0.0.1:{replay_port}")).await)
            .with_context(|| format!("bind the replay socket to port {replay_port}; choose another --replay-port"))?;
        let (live, queue) = mpsc::unbounded_channel();
        let (paused, _) = watch::channel(false);
        let (format, sent) = (Arc::new(format), Arc::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(send_live(publish, queue, paused.subscribe()));
        tasks.spawn(serve_replays(router, Arc::clone(&format), Arc::clone(&sent), paused.subscribe()));
        Ok((Self { format, sent, live, paused, _tasks: Arc::new(tasks) }, events, replay))
    }

    /// Publishes one batch. Its number and its place in the replay buffer are settled on return.
    pub fn publish(&self, events: &[CacheEvent]) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let payload = Bytes::from(encode_batch(self.format.encoding, now, self.format.block_size, events));
        let mut sent = self.sent.lock().unwrap();
        let number = sent.next;
        sent.next += 1;
        sent.buffer.push_back((number, payload.clone()));
        if sent.buffer.len() > self.format.buffer {
            sent.buffer.pop_front();
        }
        if sent.lose > 0 {
            sent.lose -= 1;
            return;
        }
        let mut message = ZmqMessage::from(Bytes::from(self.format.topic.clone()));
        message.push_back(number_frame(number));
        message.push_back(payload);
        // Fails only while the engine goes down.
        let _ = self.live.send(message);
    }

    /// Batches numbered so far.
    pub fn sequence(&self) -> u64 {
        self.sent.lock().unwrap().next
    }

    /// Keeps live batches back, in order, until told otherwise, and answers to replay requests: vLLM does both in one
    /// thread.
    pub fn pause(&self, paused: bool) {
        self.paused.send_replace(paused);
    }

    /// Loses the next `batches` live batches; replays still have them.
    pub fn lose(&self, batches: u64) {
        self.sent.lock().unwrap().lose = batches;
    }
}

fn number_frame(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

fn address(bound: zeromq::ZmqResult<Endpoint>) -> Result<SocketAddr> {
    match bound? {
        Endpoint::Tcp(Host::Ipv4(ip), port) => Ok((ip, port).into()),
        Endpoint::Tcp(_, port) => Ok((Ipv4Addr::LOCALHOST, port).into()),
        other => anyhow::bail!("bound to {other}, expected TCP"),
    }
}

async fn send_live(
    mut socket: PubSocket,
    mut queue: mpsc::UnboundedReceiver<ZmqMessage>,
    mut paused: watch::Receiver<bool>,
) {
    while let Some(message) = queue.recv().await {
        if paused.wait_for(|paused| !paused).await.is_err() {
            return;
        }
        // A subscriber that went away is no reason to stop.
        let _ = socket.send(message).await;
    }
}

async fn serve_replays(
    mut socket: RouterSocket,
    format: Arc<Format>,
    sent: Arc<Mutex<Sent>>,
    mut paused: watch::Receiver<bool>,
) {
    while let Ok(request) = socket.recv().await {
        if paused.wait_for(|paused| !paused).await.is_err() {
            return;
        }
        let frames = request.into_vec();
        // Exactly identity, delimiter, first number wanted; vLLM ignores all else.
        let [identity, delimiter, start] = frames.as_slice() else { continue };
        let Ok(start) = <[u8; 8]>::try_from(start.as_ref()).map(u64::from_be_bytes) else { continue };
        let kept: Vec<_> = {
            let sent = sent.lock().unwrap();
            sent.buffer.iter().filter(|(number, _)| *number >= start).cloned().collect()
        };
        let topic = Bytes::from(format.topic.clone());
        let kept = kept.into_iter().map(|(number, payload)| (topic.clone(), number, payload));
        let end = (Bytes::new(), END_OF_REPLAY, Bytes::new());
        for (topic, number, payload) in kept.chain([end]) {
            let mut message = ZmqMessage::from(identity.clone());
            message.push_back(delimiter.clone());
            if format.encoding == Encoding::Map {
                message.push_back(topic);
            }
            message.push_back(number_frame(number));
            message.push_back(payload);
            if socket.send(message).await.is_err() {
                break;
            }
        }
    }
}
