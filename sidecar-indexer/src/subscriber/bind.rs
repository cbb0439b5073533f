//! Bind mode: engines dial in, and the topic of their messages says who they are.
//!
//! The library says of a bound socket neither who sent a message nor who is gone, and both count: a stream is that of
//! one process. So every call that comes in is passed on ([`super::relay`]) to a subscription of its own, whose messages
//! are those of one process and whose end is that process's, or its connection's. What a disconnect means is then the
//! same as where we connect.

use super::relay::{Relay, keep};
use super::stranger::{LARGE, Stranger};
use super::wire::{Subscription, Wire};
use crate::app::App;
use crate::events;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use zeromq::ZmqMessage;

/// Calls at a time; more wait in the listener's queue.
const CALLS: usize = 4096;
/// Unknown topics that are logged; more are counted only.
const LOGGED: usize = 64;
/// For a caller to say that it is a publisher. When it will have something to publish nobody can tell.
const PATIENCE: Duration = Duration::from_secs(10);

/// A call of a known endpoint.
pub struct Dialled {
    subscription: Subscription,
    /// What it began with.
    first: Option<ZmqMessage>,
    topic: Bytes,
    _place: OwnedSemaphorePermit,
}

impl Wire for Dialled {
    async fn next(&mut self) -> Option<ZmqMessage> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            let message = self.subscription.next().await?;
            // One process has one topic; what comes under another is not for this endpoint.
            if message.get(0) == Some(&self.topic) {
                return Some(message);
            }
        }
    }
}

/// Where calls are passed on to.
#[derive(Default)]
pub struct Switchboard {
    lines: Mutex<Vec<Line>>,
    unknown: Mutex<BTreeSet<Bytes>>,
}

struct Line {
    address: SocketAddr,
    /// The rank as the engine's batches say it; `None`: it has one only, whichever that is among other engines'.
    rank: Option<u16>,
    calls: mpsc::Sender<Dialled>,
}

impl Switchboard {
    /// The calls of the endpoint at this address, from now on.
    pub fn expect(&self, address: SocketAddr, rank: Option<u16>) -> mpsc::Receiver<Dialled> {
        let (calls, received) = mpsc::channel(1);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.retain(|line| !line.calls.is_closed());
        lines.push(Line { address, rank, calls });
        received
    }

    /// Who sends under this topic, `kv@ADDRESS@MODEL`. Data-parallel ranks of one engine share it, and say in their
    /// batches who they are.
    fn line(&self, topic: &[u8], rank: Option<u32>) -> Option<mpsc::Sender<Dialled>> {
        let topic = std::str::from_utf8(topic).ok()?;
        let address = topic.strip_prefix("kv@")?.split('@').next()?;
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        // One of a group of engines that each have one rank counts it over the group.
        let alone = |line: &Line| {
            let others = |other: &&Line| other.address == line.address && !other.calls.is_closed();
            lines.iter().filter(others).count() == 1
        };
        let ours = |line: &&Line| match line.rank {
            _ if line.calls.is_closed() => false,
            Some(ours) => rank == Some(u32::from(ours)),
            None => rank.is_none_or(|rank| rank == 0) || alone(line),
        };
        let exact = || Some(lines.iter().filter(ours).find(|line| Ok(line.address) == address.parse())?.calls.clone());
        // Without a port an address will do if it is that of one endpoint only.
        let by_host = || {
            let mut at_host = lines.iter().filter(ours).filter(|line| Ok(line.address.ip()) == address.parse());
            let only = at_host.next().filter(|_| at_host.next().is_none())?;
            Some(only.calls.clone())
        };
        exact().or_else(by_host)
    }

    /// Notes a topic that names no endpoint. Says whether it should be logged.
    fn is_news(&self, topic: &Bytes) -> bool {
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        // Copied: the topic is a part of a buffer that may be large.
        unknown.len() < LOGGED && topic.len() <= 256 && unknown.insert(Bytes::copy_from_slice(topic))
    }
}

/// Binds an address such as `tcp://*:5557`, as an engine's configuration spells it.
///
/// # Errors
/// When it cannot be bound.
pub async fn listen(url: &str, rank: u16) -> anyhow::Result<TcpListener> {
    let address = address(url).and_then(|address| {
        let port = address.port().checked_add(rank)?;
        Some(SocketAddr::new(address.ip(), port))
    });
    let address = address.ok_or_else(|| anyhow::anyhow!("bind: {url:?} is not tcp://IP:PORT or tcp://*:PORT"))?;
    TcpListener::bind(address).await.map_err(|error| anyhow::anyhow!("bind: cannot listen on {address}: {error}"))
}

/// The address that such a URL names.
pub(crate) fn address(url: &str) -> Option<SocketAddr> {
    let rest = url.strip_prefix("tcp://")?;
    match rest.strip_prefix("*:") {
        Some(port) => Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port.parse().ok()?))),
        None => rest.parse().ok(),
    }
}

/// Answers calls for ever.
pub async fn answer(app: Arc<App>, listener: TcpListener, board: Arc<Switchboard>) {
    let (places, large) = (Arc::new(Semaphore::new(CALLS)), Arc::new(Semaphore::new(LARGE)));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((caller, from)) => {
                let (app, board, large) = (app.clone(), board.clone(), large.clone());
                tokio::spawn(async move {
                    if let Err(error) = connect(&app, &board, caller, from, place, large).await {
                        tracing::debug!(%from, %error, "a call failed");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a call");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Passes a call on to whom it is for.
async fn connect(
    app: &Arc<App>,
    board: &Switchboard,
    caller: TcpStream,
    from: SocketAddr,
    place: OwnedSemaphorePermit,
    large: Arc<Semaphore>,
) -> anyhow::Result<()> {
    keep(&caller)?;
    let (known, told) = oneshot::channel();
    let relay = Relay::start(app, from.to_string(), caller, Some(Stranger::new(told, large))).await?;
    let mut subscription = Subscription::over(relay, PATIENCE).await?;
    let Some(first) = subscription.next().await else { return Ok(()) };
    let topic = first.get(0).cloned().unwrap_or_default();
    let rank = first.get(first.len().saturating_sub(1)).and_then(|payload| events::decode(payload).ok()?.rank);
    match board.line(&topic, rank) {
        Some(line) => {
            // The relay is gone if the caller is, as the line will find.
            let _ = known.send(());
            let _ = line.send(Dialled { subscription, first: Some(first), topic, _place: place }).await;
        }
        None => {
            app.metrics.unknown_topic();
            if board.is_news(&topic) {
                let topic = String::from_utf8_lossy(&topic);
                tracing::warn!(%from, %topic, ?rank, "an engine dials in under a topic that names no endpoint");
            }
        }
    }
    Ok(())
}
