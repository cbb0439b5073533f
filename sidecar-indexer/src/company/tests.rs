//! Peers that help, lag, lie and hang, and a real Redis.

use super::*;
use crate::app::{Signals, Who};
use crate::endpoints::Wanted;
use crate::events;
use crate::index::{Index, Options};
use crate::models::Models;
use crate::stream::{Input, Message, Stream};
use crate::sync::State;
use crate::tokens::Vocabulary;
use affinity::{Slot, Stride, Tier};
use axum::Router;
use axum::http::{Method, StatusCode};
use axum::routing::get;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const LIMIT: usize = 10_000;
/// For what takes a moment, or seconds on a busy machine. What hangs here does so for longer.
const PATIENCE: Duration = Duration::from_secs(20);

fn key() -> Key {
    Key { address: "10.0.0.1:8000".parse().unwrap(), rank: Some(3) }
}

fn app() -> Arc<App> {
    let stride = Stride::new(8).unwrap();
    let index = Index::new(Options { stride, max_blocks: 100, tiers: vec![Tier::Gpu] }, 77);
    let app = App::new(State::new(index, Models::new([], 0), stride), Duration::ZERO);
    let config = serde_json::json!({"added_tokens_decoder": {"0": {"content": "x"}}});
    let vocabulary = Arc::new(Vocabulary::from_tiktoken("", &config, false).unwrap());
    app.state().enter(Slot(0), &Wanted::bare(key().address, "tiny"), &vocabulary, false);
    app.enter(Slot(0), Signals::default());
    Arc::new(app)
}

fn offer(next: u64, last: f64) -> Offer {
    let holdings = app().state().index.snapshot(Slot(0)).expect("a slot that is there has holdings, if none");
    Offer { checkpoint: Checkpoint { position: Position { next, last }, partial: false }, holdings }
}

async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    format!("http://{address}")
}

/// A peer that says it has this, and sends that.
async fn peer(last: f64, body: Vec<u8>) -> String {
    let answer = move || async move { ([(POSITION, format!("1 {last}"))], body.clone()) };
    serve(Router::new().route("/v1/snapshot", get(answer))).await
}

async fn ask(peers: &[String]) -> Option<f64> {
    let company = Company::new(app(), peers, None, LIMIT).unwrap();
    Some(company.seek(key()).await?.checkpoint.position.last)
}

#[tokio::test]
async fn the_peer_that_is_furthest_by_the_engines_clock_is_taken() {
    let at = async |next, last| peer(last, offer(next, last).encode(key()).unwrap()).await;
    let none = serve(Router::new().route("/v1/snapshot", get(|| async { StatusCode::NOT_FOUND }))).await;
    let peers = [at(900, 5.0).await, none, at(2, 7.0).await, at(70, 6.0).await];
    assert_eq!(ask(&peers).await, Some(7.0));
}

#[tokio::test]
async fn a_peer_that_is_slow_gone_or_lies_costs_a_bounded_time_and_the_next_is_asked() {
    let mut other_version = offer(1, 9.0).encode(key()).unwrap();
    other_version[0] += 1;
    let other_endpoint = offer(1, 9.5).encode(Key { rank: None, ..key() }).unwrap();
    let hangs = serve(Router::new().route(
        "/v1/snapshot",
        get(|| async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            StatusCode::OK
        }),
    ));
    let peers = [
        peer(8.0, offer(1, 8.0).encode(key()).unwrap()).await,
        peer(9.0, other_version).await,
        peer(9.5, other_endpoint).await,
        peer(9.6, vec![7; LIMIT + 1]).await,
        peer(9.7, Vec::new()).await,
        hangs.await,
        "http://127.0.0.1:1".to_owned(),
        // A label that is too long is refused without a resolver, which might take its time.
        format!("http://{}.invalid:9400", "x".repeat(64)),
    ];
    let start = Instant::now();
    assert_eq!(ask(&peers).await, Some(8.0));
    assert!(start.elapsed() < PATIENCE, "as long as the one that hangs: {:?}", start.elapsed());
}

#[tokio::test]
async fn a_peer_that_failed_is_not_asked_again_for_every_endpoint() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counting = asked.clone();
    let answer = move |method: Method| async move {
        counting.fetch_add(usize::from(method == Method::GET), Ordering::Relaxed);
        ([(POSITION, "1 9.0")], vec![99])
    };
    let peers = [
        serve(Router::new().route("/v1/snapshot", get(answer))).await,
        peer(8.0, offer(1, 8.0).encode(key()).unwrap()).await,
    ];
    let company = Company::new(app(), &peers, None, LIMIT).unwrap();
    for _ in 0..3 {
        assert_eq!(company.seek(key()).await.unwrap().checkpoint.position.last, 8.0);
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_peer_that_has_not_what_is_asked_for_is_asked_again() {
    let has = peer(8.0, offer(1, 8.0).encode(key()).unwrap()).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counting = asked.clone();
    // It has just lost it.
    let answer = move |method: Method| async move {
        counting.fetch_add(usize::from(method == Method::GET), Ordering::Relaxed);
        let status = if method == Method::GET { StatusCode::NOT_FOUND } else { StatusCode::OK };
        (status, [(POSITION, "1 9.0")])
    };
    let peers = [serve(Router::new().route("/v1/snapshot", get(answer))).await, has];
    let company = Company::new(app(), &peers, None, LIMIT).unwrap();
    assert!(company.seek(key()).await.is_some() && company.seek(key()).await.is_some());
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_position_that_is_none_is_refused() {
    for (next, last) in [(0, 1.0), (1, f64::NAN), (1, f64::INFINITY)] {
        let bytes = offer(next, last).encode(key()).unwrap();
        assert!(Offer::decode(&bytes, key()).is_err());
    }
}

/// A Redis of its own, killed when dropped.
struct Redis {
    server: Child,
    url: String,
}

impl Redis {
    fn start() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let spawned = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn();
        let Ok(server) = spawned else {
            assert!(std::env::var_os("CI").is_none(), "redis-server is not installed");
            eprintln!("SKIPPED: redis-server is not installed (Debian: apt-get install redis-server)");
            return None;
        };
        let (mut this, start) = (Self { server, url: format!("redis://127.0.0.1:{port}/1") }, Instant::now());
        loop {
            if this.server.try_wait().unwrap().is_some() {
                // Somebody else took the port meanwhile.
                return Self::start();
            }
            if std::net::TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).is_ok() {
                return Some(this);
            }
            assert!(start.elapsed() < PATIENCE, "redis-server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[tokio::test]
async fn an_older_checkpoint_never_replaces_a_newer_one() {
    let Some(redis) = Redis::start() else { return };
    let store = Store::new(&redis.url, LIMIT).unwrap();
    assert!(store.get(key()).await.unwrap().is_none());
    let put = async |next, last| store.put(key(), last, &offer(next, last).encode(key()).unwrap()).await.unwrap();
    let times = [1_795_157_138.123_456, 1_795_157_138.123_457, 1_795_157_139.5];
    assert!(put(5, times[1]).await);
    assert!(!put(6, times[0]).await, "older by a microsecond");
    assert!(!put(6, times[1]).await, "the same");
    assert!(put(2, times[2]).await, "of a new process, say");
    let kept = store.get(key()).await.unwrap().unwrap().checkpoint.position;
    assert_eq!(kept, Position { next: 2, last: times[2] });
    assert_eq!(store.last(key()).await.unwrap(), Some(times[2]));
    // Many at once: the newest stays.
    let many = (0..50u32).map(|i| put(1, times[2] + f64::from(i * 7 % 50)));
    futures::future::join_all(many).await;
    assert_eq!(store.last(key()).await.unwrap(), Some(times[2] + 49.0));
    let mut connection = store.connection().await.unwrap();
    let expires: i64 = redis::cmd("TTL").arg(store::place(key())).query_async(&mut connection).await.unwrap();
    assert!((86_000..=86_400).contains(&expires), "{expires}");
}

/// The endpoint's stream is in sync, as of 1.5.
fn follows(app: &App, slot: Slot, key: Key) {
    let batch = rmp_serde::to_vec(&(1.5, [0u8; 0])).unwrap();
    let mut stream = Stream::new(true, false);
    stream.step(Input::Connected);
    let payload = events::decode(&batch).ok();
    assert!(payload.is_some());
    let message = Message { sequence: 0, timestamp: 1.5, size: batch.len(), resets: false, payload };
    let mut actions = stream.step(Input::Replayed(message));
    actions.extend(stream.step(Input::ReplayEnded));
    let who = Who { slot, key, name: key.to_string() };
    assert!(app.act(&who, &stream, &actions, None, false));
}

/// Else what an engine said last before it fell silent is never kept.
#[tokio::test]
async fn a_checkpoint_about_as_late_as_ours_that_nobody_renews_is_replaced() {
    let Some(redis) = Redis::start() else { return };
    let (store, app) = (Arc::new(Store::new(&redis.url, LIMIT).unwrap()), app());
    follows(&app, Slot(0), key());
    store.put(key(), 1.499, &offer(1, 1.499).encode(key()).unwrap()).await.unwrap();
    let following = tokio::spawn(store.clone().follow(app.clone(), Duration::from_millis(20)));
    let start = Instant::now();
    while store.last(key()).await.unwrap() != Some(1.5) {
        assert!(start.elapsed() < PATIENCE, "{}", app.metrics.page());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    following.abort();
}

#[tokio::test]
async fn a_key_that_cannot_be_written_does_not_keep_the_others_from_being() {
    let Some(redis) = Redis::start() else { return };
    let (store, app) = (Arc::new(Store::new(&redis.url, LIMIT).unwrap()), app());
    let other = Key { address: "10.0.0.2:8000".parse().unwrap(), rank: None };
    let vocabulary = Vocabulary::from_tiktoken("", &serde_json::json!({"added_tokens_decoder": {}}), false);
    app.state().enter(Slot(1), &Wanted::bare(other.address, "tiny"), &Arc::new(vocabulary.unwrap()), false);
    follows(&app, Slot(0), key());
    follows(&app, Slot(1), other);
    assert_eq!(app.checkpoints().iter().map(|(key, _)| *key).collect::<Vec<_>>(), [key(), other]);
    let mut connection = store.connection().await.unwrap();
    redis::cmd("SET").arg(store::place(key())).arg("no hash").exec_async(&mut connection).await.unwrap();
    let following = tokio::spawn(store.clone().follow(app.clone(), Duration::from_millis(20)));
    let start = Instant::now();
    while store.last(other).await.unwrap().is_none() {
        assert!(start.elapsed() < PATIENCE, "{}", app.metrics.page());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    following.abort();
}

#[tokio::test]
async fn what_the_store_has_that_is_too_large_or_of_another_version_is_refused() {
    let Some(redis) = Redis::start() else { return };
    let store = Store::new(&redis.url, LIMIT).unwrap();
    store.put(key(), 1.0, &vec![0; LIMIT + 1]).await.unwrap();
    assert!(store.get(key()).await.unwrap_err().to_string().contains("above"));
    store.put(key(), 2.0, &[99, 1, 2]).await.unwrap();
    assert!(store.get(key()).await.unwrap_err().to_string().contains("another version"));
}

#[tokio::test]
async fn a_store_that_goes_and_comes_is_used_again() {
    let Some(redis) = Redis::start() else { return };
    let company = {
        let store = Arc::new(Store::new(&redis.url, LIMIT).unwrap());
        Company::new(app(), &[], Some(store), LIMIT).unwrap()
    };
    assert!(company.exists() && company.seek(key()).await.is_none());
    let (url, port) = (redis.url.clone(), redis.url.rsplit([':', '/']).nth(1).unwrap().to_owned());
    drop(redis);
    let start = Instant::now();
    assert!(company.seek(key()).await.is_none());
    assert!(start.elapsed() < PATIENCE);
    assert!(company.app.metrics.page().contains("warmpath_store_failures_total 1"));
    let server = Command::new("redis-server").args(["--port", &port, "--save", ""]).stdout(Stdio::null()).spawn();
    let _redis = Redis { server: server.unwrap(), url };
    let store = company.store.as_ref().unwrap();
    let start = Instant::now();
    while store.put(key(), 3.0, &offer(1, 3.0).encode(key()).unwrap()).await.is_err() {
        assert!(start.elapsed() < PATIENCE, "it is not used again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(company.seek(key()).await.unwrap().checkpoint.position.last, 3.0);
}
