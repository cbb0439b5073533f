//! Checkpoints kept in Redis or Valkey, for fleets whose indexers have no stable peers. Nothing here is waited for by
//! anything else: without the store, streams begin as they would alone.

use super::Offer;
use crate::app::App;
use crate::endpoints::Key;
use crate::stream::Position;
use anyhow::{Context, Result};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, Script, ServerErrorKind};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// For any answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Checkpoints that nobody has renewed for so long are forgotten.
const LASTS: Duration = Duration::from_secs(24 * 3600);

/// A later checkpoint replaces an earlier one, by the engine's clock, in one step.
const PUT: &str = "
local last = redis.call('HGET', KEYS[1], 'last')
if last and tonumber(last) >= tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'last', ARGV[1], 'snapshot', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1";

/// The store.
pub struct Store {
    client: Client,
    connection: Mutex<Option<MultiplexedConnection>>,
    put: Script,
    /// Most bytes of a snapshot, written or read.
    limit: usize,
}

impl Store {
    /// The store at this URL; nothing is connected yet.
    ///
    /// # Errors
    /// When it is no URL of a Redis.
    pub fn new(url: &str, limit: usize) -> Result<Self> {
        let client = Client::open(url).with_context(|| format!("store: {url:?} is not redis://HOST:PORT[/DB]"))?;
        Ok(Self { client, connection: Mutex::default(), put: Script::new(PUT), limit })
    }

    pub(super) async fn connection(&self) -> Result<MultiplexedConnection> {
        let mut connection = self.connection.lock().await;
        if let Some(connection) = &*connection {
            return Ok(connection.clone());
        }
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENCE)).set_response_timeout(Some(PATIENCE));
        let new = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        Ok(connection.insert(new).clone())
    }

    /// A connection that failed is not used again.
    async fn checked<T>(&self, result: redis::RedisResult<T>) -> Result<T> {
        if result.as_ref().is_err_and(|error| !is_of_the_key(error)) {
            *self.connection.lock().await = None;
        }
        Ok(result?)
    }

    /// An endpoint's checkpoint.
    ///
    /// # Errors
    /// When the store does not answer, or what it has is of no use.
    pub async fn get(&self, key: Key) -> Result<Option<Offer>> {
        let mut connection = self.connection().await?;
        let len = redis::cmd("HSTRLEN").arg(place(key)).arg("snapshot").query_async(&mut connection).await;
        let len: usize = self.checked(len).await?;
        if len == 0 {
            return Ok(None);
        }
        anyhow::ensure!(len <= self.limit, "its snapshot is above {} bytes", self.limit);
        let snapshot = redis::cmd("HGET").arg(place(key)).arg("snapshot").query_async(&mut connection).await;
        let snapshot: Option<Vec<u8>> = self.checked(snapshot).await?;
        match snapshot {
            Some(snapshot) => Offer::read(snapshot, key).await.map(Some),
            None => Ok(None),
        }
    }

    /// The engine's time of the checkpoint that is there.
    pub(super) async fn last(&self, key: Key) -> Result<Option<f64>> {
        let mut connection = self.connection().await?;
        let last = redis::cmd("HGET").arg(place(key)).arg("last").query_async(&mut connection).await;
        self.checked(last).await
    }

    /// Keeps a checkpoint, unless a later one is there. Says whether it was kept.
    pub(super) async fn put(&self, key: Key, last: f64, snapshot: &[u8]) -> Result<bool> {
        let mut connection = self.connection().await?;
        let mut put = self.put.key(place(key));
        put.arg(last).arg(snapshot).arg(LASTS.as_millis() as u64);
        let kept = put.invoke_async(&mut connection).await;
        self.checked(kept).await
    }

    /// Keeps all streams' checkpoints, again and again, as far as they have changed.
    pub async fn follow(self: Arc<Self>, app: Arc<App>, every: Duration) {
        let mut written: BTreeMap<Key, f64> = BTreeMap::new();
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut well = true;
        loop {
            ticks.tick().await;
            let checkpoints = app.checkpoints();
            written.retain(|key, _| checkpoints.iter().any(|(known, _)| known == key));
            // The first one. A key that fails is passed over; without a connection all of them would.
            let mut failed: Option<anyhow::Error> = None;
            let mut up = true;
            for (key, last) in checkpoints {
                let before = written.get(&key).copied();
                if before.is_some_and(|written| written >= last) {
                    continue;
                }
                match self.keep(&app, key, last, before, every).await {
                    Ok(kept) => {
                        written.insert(key, kept);
                    }
                    Err(error) => {
                        app.metrics.store_failed();
                        failed.get_or_insert(error.context(format!("the checkpoint of {key}")));
                        up = self.connection.lock().await.is_some();
                    }
                }
                if !up {
                    break;
                }
            }
            match &failed {
                None if !well => tracing::info!("the store takes all checkpoints again"),
                Some(error) if well => {
                    tracing::warn!(error = format!("{error:#}"), "the store fails; all else goes on without it");
                }
                _ => {}
            }
            well = failed.is_none();
            app.metrics.store_up(up);
        }
    }

    /// Keeps one, unless one about as late has come since the last look, which found this one: others write the same
    /// streams, and one of us is enough. Gives the time of what is there then.
    async fn keep(&self, app: &Arc<App>, key: Key, last: f64, found: Option<f64>, every: Duration) -> Result<f64> {
        if let Some(there) = self.last(key).await?
            && found.is_none_or(|found| found < there)
            && there + every.as_secs_f64() / 2.0 > last
        {
            return Ok(there);
        }
        let Some((Position { last, .. }, snapshot)) = Offer::written(app.clone(), key).await? else { return Ok(last) };
        if snapshot.len() > self.limit {
            tracing::warn!(endpoint = %key, bytes = snapshot.len(), "a snapshot is too large for the store");
            return Ok(last);
        }
        if self.put(key, last, &snapshot).await? {
            app.metrics.stored(snapshot.len());
        }
        Ok(last)
    }
}

/// Whether only this key is amiss, and the connection as good as before: it is of another type, say.
fn is_of_the_key(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Extension | ErrorKind::UnexpectedReturnType | ErrorKind::Server(ServerErrorKind::ResponseError)
    )
}

pub(super) fn place(key: Key) -> String {
    format!("warmpath:{}:stream:{key}", super::FORMAT)
}
