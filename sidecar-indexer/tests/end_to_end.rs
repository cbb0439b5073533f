//! The running indexer against an engine's sockets: subscription, replay, restart, long poll.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use affinity::fleet::Fleet;
use affinity::page::{PageView, page_of};
use affinity::rows::{News, renewed};
use affinity::sync::{End, Frame, Load, Placement, Request, Versions, encode_placements, read_frames};
use affinity::{Fingerprint, Slot, Tokens, fingerprints, root};
use bytes::Bytes;
use rmpv::Value;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use warmpath_indexer::config::Config;
use warmpath_indexer::server::Server;
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

const BLOCK: usize = 4;
const PATIENCE: Duration = Duration::from_secs(20);

/// An engine's two sockets, and what it has published.
struct Engine {
    publisher: PubSocket,
    events: String,
    replay: String,
    log: Log,
    replays: JoinHandle<()>,
}

/// What was published, or should have been.
type Log = Arc<Mutex<Vec<Bytes>>>;

fn message(frames: Vec<Bytes>) -> ZmqMessage {
    frames.try_into().unwrap()
}

fn stored(hashes: &[u64], parent: Option<u64>, tokens: &[u32]) -> Value {
    let list = |items: Vec<Value>| Value::Array(items);
    list(vec![
        "BlockStored".into(),
        list(hashes.iter().map(|h| (*h).into()).collect()),
        parent.map_or(Value::Nil, Value::from),
        list(tokens.iter().map(|t| (*t).into()).collect()),
        (BLOCK as u64).into(),
        Value::Nil,
        "GPU".into(),
    ])
}

fn removed(hash: u64) -> Value {
    Value::Array(vec!["BlockRemoved".into(), Value::Array(vec![hash.into()]), "GPU".into()])
}

impl Engine {
    /// Binds where an earlier one was, or anywhere, and answers replay requests.
    async fn start(at: Option<(String, String)>) -> Self {
        let (events, replay) = at.unwrap_or(("tcp://127.0.0.1:0".into(), "tcp://127.0.0.1:0".into()));
        let (mut publisher, mut router) = (PubSocket::new(), RouterSocket::new());
        let events = publisher.bind(&events).await.unwrap().to_string();
        let replay = router.bind(&replay).await.unwrap().to_string();
        let log = Log::default();
        let replays = tokio::spawn(serve_replays(router, log.clone()));
        Self { publisher, events, replay, log, replays }
    }

    /// Publishes a batch, or only remembers it, as if the network had lost it.
    async fn publish(&mut self, event: Value, lost: bool) {
        let sequence = self.log.lock().unwrap().len() as u64;
        // By which processes are told apart.
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        let batch = Value::Array(vec![time.into(), Value::Array(vec![event]), 0.into()]);
        let mut payload = Vec::new();
        rmpv::encode::write_value(&mut payload, &batch).unwrap();
        let payload = Bytes::from(payload);
        self.log.lock().unwrap().push(payload.clone());
        if !lost {
            let sequence = Bytes::copy_from_slice(&sequence.to_be_bytes());
            self.publisher.send(message(vec![Bytes::from_static(b"kv@x"), sequence, payload])).await.unwrap();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.replays.abort();
    }
}

/// Answers replay requests in the older form, without topic.
async fn serve_replays(mut router: RouterSocket, log: Log) {
    while let Ok(request) = router.recv().await {
        let frames = request.into_vec();
        assert_eq!((frames.len(), frames[1].len()), (3, 0));
        let from = u64::from_be_bytes(frames[2].as_ref().try_into().unwrap());
        let log = log.lock().unwrap().clone();
        let wanted = (0u64..).zip(log).skip_while(|(sequence, _)| *sequence < from);
        for (sequence, payload) in wanted.chain([(u64::MAX, Bytes::new())]) {
            let sequence = Bytes::copy_from_slice(&sequence.to_be_bytes());
            router.send(message(vec![frames[0].clone(), Bytes::new(), sequence, payload])).await.unwrap();
        }
    }
}

/// A running indexer.
struct Indexer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Indexer {
    async fn start(engine: &Engine) -> Self {
        let config = format!(
            "
listen: 127.0.0.1:0
stride_bytes: 8
models: [{{name: tiny, tokenizer: tokenizer}}]
endpoints: [{{address: '127.0.0.1:1', model: tiny, metrics: none, events: '{}', replay: '{}'}}]",
            engine.events, engine.replay
        );
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
        let server = Server::prepare(Config::parse(&config).unwrap(), &fixtures).unwrap();
        let (bound, address) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let stop = async move { drop(stopped.await) };
            server.run(|address| bound.send(address).unwrap(), stop).await.unwrap();
        });
        Self { address: address.await.unwrap(), stop: Some(stop), task }
    }

    async fn post(&self, path: &str, body: Vec<u8>) -> Vec<u8> {
        let url = format!("http://{}{path}", self.address);
        let response = reqwest::Client::new().post(url).body(body).send().await.unwrap();
        assert!(response.status().is_success(), "{}", response.status());
        response.bytes().await.unwrap().to_vec()
    }

    async fn stop(mut self) {
        drop(self.stop.take());
        tokio::time::timeout(PATIENCE, &mut self.task).await.expect("the indexer does not stop").unwrap();
    }
}

/// A gateway's copy of what it was sent.
struct Gateway {
    id: u64,
    have: Versions,
    loads: Vec<Load>,
    pages: HashMap<u32, Vec<u8>>,
    fleet: Option<Fleet>,
    placements: Vec<Vec<u8>>,
}

impl Gateway {
    fn new(id: u64) -> Self {
        Self { id, have: Versions::default(), loads: vec![], pages: HashMap::new(), fleet: None, placements: vec![] }
    }

    async fn sync(&mut self, indexer: &Indexer, wait_ms: u16) {
        let request = Request { gateway: self.id, have: self.have, wait_ms, loads: self.loads.clone() };
        let reply = indexer.post("/v1/sync", request.encode()).await;
        let Some(Frame::End(End { have, .. })) = read_frames(&reply).last() else { panic!("a reply was cut off") };
        for frame in read_frames(&reply) {
            match frame {
                Frame::Page(page, bytes) => self.write(page, News::Whole(bytes)),
                Frame::Rows(page, rows) => {
                    self.write(page, News::Rows { rows, epoch: have.epoch, as_of: have.table });
                }
                Frame::Fleet(bytes) => self.fleet = Some(Fleet::decode(bytes).unwrap()),
                Frame::Profiles(_) => {}
                Frame::Placements(bytes) => self.placements.push(bytes.to_vec()),
                Frame::End(end) => self.have = end.have,
            }
        }
    }

    fn write(&mut self, page: u32, news: News<'_>) {
        let new = renewed(self.pages.get(&page).map(Vec::as_slice), news).expect("the page is there for its rows");
        self.pages.extend(new.map(|bytes| (page, bytes.into_owned())));
    }

    /// Tokens that slot 0 holds of a text.
    fn held(&self, text: &[u8]) -> u32 {
        let fleet = self.fleet.as_ref().unwrap();
        let mut prints = Vec::new();
        fingerprints(fleet.stride, root("tiny", None), text, &mut prints);
        let find = |fingerprint: &Fingerprint| {
            let page = PageView::parse(self.pages.get(&page_of(*fingerprint, fleet.table_bits))?)?;
            assert_eq!(page.epoch, fleet.epoch);
            let found = page.get(*fingerprint)?;
            found.holders().any(|(slot, _)| slot == Slot(0)).then_some(found.tokens.0)
        };
        prints.iter().map_while(find).last().unwrap_or(0)
    }

    async fn until(&mut self, indexer: &Indexer, what: &str, done: impl Fn(&Self) -> bool) {
        let since = Instant::now();
        loop {
            self.sync(indexer, 200).await;
            if done(self) {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "never saw: {what}");
        }
    }

    fn live(&self) -> bool {
        self.fleet.as_ref().is_some_and(|f| f.endpoints[0].events)
    }
}

/// 16 blocks and what they spell: enough that tokens, counted in units of 16, do not round to nothing.
fn prompt() -> (Vec<u64>, Vec<u32>, Vec<u8>) {
    let tokens: Vec<u32> = (0..16 * BLOCK as u32).map(|i| 300 + i % 50).collect();
    let json = warmpath_indexer::tokens::read_json(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tokenizer/tokenizer.json"),
    );
    let vocabulary = warmpath_indexer::tokens::Vocabulary::from_tokenizer_json(&json.unwrap()).unwrap();
    let mut bytes = Vec::new();
    assert!(vocabulary.spell(&tokens, &mut bytes));
    ((1..=16).collect(), tokens, bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn past_events_are_replayed_live_ones_follow_and_a_gap_is_replayed() {
    let (hashes, tokens, text) = prompt();
    let mut engine = Engine::start(None).await;
    engine.publish(stored(&hashes[..8], None, &tokens[..8 * BLOCK]), false).await;
    let indexer = Indexer::start(&engine).await;
    let mut gateway = Gateway::new(1);
    gateway.until(&indexer, "the replayed blocks", |g| g.live() && g.held(&text) > 0).await;
    let half = gateway.held(&text);
    engine.publish(stored(&hashes[8..], Some(8), &tokens[8 * BLOCK..]), false).await;
    gateway.until(&indexer, "the live blocks", |g| g.held(&text) > half).await;
    let whole = gateway.held(&text);
    // Of two removals the first gets lost.
    engine.publish(removed(9), true).await;
    engine.publish(removed(16), false).await;
    gateway.until(&indexer, "the lost removal", |g| g.live() && g.held(&text) == half).await;
    assert!(whole > half);
    indexer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_engine_is_forgotten_and_learnt_anew() {
    let (hashes, tokens, text) = prompt();
    let mut engine = Engine::start(None).await;
    engine.publish(stored(&hashes, None, &tokens), false).await;
    let indexer = Indexer::start(&engine).await;
    let mut gateway = Gateway::new(1);
    gateway.until(&indexer, "the first engine's blocks", |g| g.held(&text) > 32).await;
    let at = (engine.events.clone(), engine.replay.clone());
    drop(engine);
    gateway.until(&indexer, "that the stream is gone", |g| !g.live() && g.held(&text) == 0).await;
    let mut engine = Engine::start(Some(at)).await;
    engine.publish(stored(&hashes[..8], None, &tokens[..8 * BLOCK]), false).await;
    gateway.until(&indexer, "the second engine's blocks", |g| g.live() && (16..=32).contains(&g.held(&text))).await;
    indexer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_held_until_there_is_news_or_its_time_is_up() {
    let (hashes, tokens, text) = prompt();
    let mut engine = Engine::start(None).await;
    let indexer = Indexer::start(&engine).await;
    let mut gateway = Gateway::new(1);
    gateway.until(&indexer, "the stream", Gateway::live).await;
    // A reply before that tells of how the stream came to be live.
    let start = Instant::now();
    loop {
        let since = Instant::now();
        gateway.sync(&indexer, 300).await;
        if since.elapsed() >= Duration::from_millis(300) {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "a request is never held, though nothing is new");
    }
    let (held, published) = tokio::join!(
        async {
            let since = Instant::now();
            gateway.sync(&indexer, 60_000).await;
            since.elapsed()
        },
        async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            engine.publish(stored(&hashes, None, &tokens), false).await;
        }
    );
    let () = published;
    assert!(held < PATIENCE, "held for {held:?} despite news");
    assert!(gateway.held(&text) > 0);
    indexer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_learn_of_each_others_loads_and_placements() {
    let engine = Engine::start(None).await;
    let indexer = Indexer::start(&engine).await;
    let (mut a, mut b) = (Gateway::new(1), Gateway::new(2));
    a.loads = vec![Load { slot: Slot(0), in_flight: 3, queued_tokens: 700 }];
    let told = |g: &Gateway| {
        let fleet = g.fleet.as_ref()?;
        let endpoint = &fleet.endpoints[0];
        Some((fleet.gateways, endpoint.remote_in_flight, endpoint.remote_queued_tokens))
    };
    let start = Instant::now();
    while told(&b) != Some((2, 3, 700)) {
        assert!(start.elapsed() < PATIENCE, "{:?}", told(&b));
        // Each time: a gateway that says nothing for a while is forgotten.
        a.sync(&indexer, 0).await;
        b.sync(&indexer, 200).await;
    }
    let placement = Placement { slot: Slot(0), marks: vec![(Fingerprint(9), Tokens(64))] };
    let body = encode_placements(1, &[placement]);
    indexer.post("/v1/placements", body.clone()).await;
    b.until(&indexer, "the placement", |g| g.placements == [body.clone()]).await;
    a.sync(&indexer, 0).await;
    assert!(a.placements.is_empty(), "no gateway is told its own placements");
    assert_eq!(a.fleet.as_ref().unwrap().endpoints[0].remote_in_flight, 0);
    indexer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_no_requests_are_refused() {
    let engine = Engine::start(None).await;
    let indexer = Indexer::start(&engine).await;
    for path in ["/v1/sync", "/v1/placements"] {
        let url = format!("http://{}{path}", indexer.address);
        let response = reqwest::Client::new().post(url).body("hello").send().await.unwrap();
        assert_eq!(response.status(), 400, "{path}");
    }
    let metrics = reqwest::get(format!("http://{}/metrics", indexer.address)).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("warmpath_table_entries 0") && metrics.contains("# EOF"), "{metrics}");
    indexer.stop().await;
}
