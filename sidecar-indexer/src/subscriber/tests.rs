//! Timing against a paused clock, and bind mode against real sockets.

use super::*;
use crate::app::Signals;
use crate::endpoints::Wanted;
use crate::index::{Index, Options};
use crate::models::Models;
use crate::stream::Message;
use crate::sync::State;
use crate::tokens::Vocabulary;
use affinity::{Stride, Tier};
use bind::Switchboard;
use bytes::Bytes;
use rmpv::Value;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use zeromq::ZmqMessage;

const SLOT: Slot = Slot(0);

fn app(address: SocketAddr) -> Arc<App> {
    let stride = Stride::new(8).unwrap();
    let index = Index::new(Options { stride, max_blocks: 100, tiers: vec![Tier::Gpu] }, 77);
    let app = App::new(State::new(index, Models::new([], 0), stride), Duration::ZERO);
    let config = serde_json::json!({"added_tokens_decoder": {"0": {"content": "x"}}});
    let vocabulary = Arc::new(Vocabulary::from_tiktoken("", &config, false).unwrap());
    let wanted = Wanted { events: crate::endpoints::Events::Dials { replay: None }, ..Wanted::bare(address, "tiny") };
    app.state().enter(SLOT, &wanted, &vocabulary, false);
    app.enter(SLOT, Signals::default());
    Arc::new(app)
}

/// A message that stores one block.
fn frames(topic: &str, sequence: u64, rank: u32) -> ZmqMessage {
    let stored = vec![
        "BlockStored".into(),
        Value::Array(vec![(sequence + 7).into()]),
        Value::Nil,
        Value::Array(vec![0.into(); 8 * (sequence as usize + 1)]),
        (8 * (sequence + 1)).into(),
    ];
    let time = 1e9 + sequence as f64;
    let batch = Value::Array(vec![time.into(), Value::Array(vec![Value::Array(stored)]), rank.into()]);
    let mut payload = Vec::new();
    rmpv::encode::write_value(&mut payload, &batch).unwrap();
    let mut message = ZmqMessage::from(topic.to_owned());
    message.push_back(Bytes::copy_from_slice(&sequence.to_be_bytes()));
    message.push_back(payload.into());
    message
}

impl Wire for mpsc::Receiver<ZmqMessage> {
    async fn next(&mut self) -> Option<ZmqMessage> {
        self.recv().await
    }
}

/// A follower whose replays are answered with nothing older than asked for: these messages, if they are wanted.
fn follower(history: Arc<Mutex<Vec<ZmqMessage>>>) -> (Follower, mpsc::UnboundedReceiver<(u64, Instant)>) {
    let address: SocketAddr = "10.0.0.1:8000".parse().unwrap();
    let app = app(address);
    let key = Key { address, rank: None };
    let company = Arc::new(Company::new(app.clone(), &[], None, 0).unwrap());
    let events = Events::Connect(String::new());
    let source = Source { slot: SLOT, key, events, replay: Some(String::new()) };
    let mut follower = Follower::new(&app, &company, &source, app.told(SLOT).unwrap());
    let (asked, requests) = mpsc::unbounded_channel();
    let noting = follower.note.clone();
    follower.ask = Box::new(move |from, delay| {
        let (asked, history, note) = (asked.clone(), history.lock().unwrap().clone(), noting.clone());
        Some(Replay::of(move |messages| async move {
            tokio::time::sleep(delay).await;
            asked.send((from, Instant::now())).unwrap();
            for message in history.iter().filter_map(|frames| read(frames, &note)) {
                if message.sequence >= from {
                    messages.send(message).await.unwrap();
                }
            }
            true
        }))
    });
    (follower, requests)
}

#[tokio::test(start_paused = true)]
async fn a_silent_subscription_is_audited_ever_more_rarely_and_a_message_starts_that_over() {
    let history = Arc::new(Mutex::new(vec![frames("", 0, 0)]));
    let (mut follower, mut requests) = follower(history.clone());
    let (live, mut wire) = mpsc::channel(8);
    let listening = tokio::spawn(async move { follower.listen(&mut wire).await });
    let start = Instant::now();
    assert_eq!(requests.recv().await.unwrap(), (0, start));
    let mut last = start;
    let mut wait = async || {
        let (from, at) = requests.recv().await.unwrap();
        let after = at - std::mem::replace(&mut last, at);
        (from, after.as_secs_f64().round() as u64)
    };
    for seconds in [1, 5, 10, 20, 40, 60, 60] {
        assert_eq!(wait().await, (0, seconds), "from the message known last");
    }
    history.lock().unwrap().push(frames("", 1, 0));
    live.send(frames("", 1, 0)).await.unwrap();
    assert_eq!(wait().await, (0, 0), "the first live message is looked up");
    assert_eq!(wait().await, (1, 1));
    history.lock().unwrap().push(frames("", 2, 0));
    live.send(frames("", 2, 0)).await.unwrap();
    assert_eq!(wait().await, (2, 5));
    assert_eq!(wait().await, (2, 10));
    drop(live);
    listening.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_replay_ahead_of_a_subscription_that_falls_silent_is_asked_for_again_soon() {
    let history = Arc::new(Mutex::new(vec![frames("", 5, 0)]));
    let (mut follower, mut requests) = follower(history);
    let (live, mut wire) = mpsc::channel(8);
    for sequence in 0..2 {
        live.send(frames("", sequence, 0)).await.unwrap();
    }
    let (app, start) = (follower.app.clone(), Instant::now());
    let listening = tokio::spawn(async move { follower.listen(&mut wire).await });
    assert_eq!(requests.recv().await.unwrap(), (0, start));
    assert_eq!(app.state().index.stats().blocks, 0, "what lies between may yet come");
    assert_eq!((requests.recv().await.unwrap().0, start.elapsed().as_secs()), (0, 1));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(app.state().index.stats().blocks, 1, "it counts as it is");
    drop(live);
    listening.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_subscription_that_misses_what_audits_find_is_made_anew() {
    let history = Arc::new(Mutex::new(vec![frames("", 0, 0)]));
    let (mut follower, mut requests) = follower(history.clone());
    let (_live, mut wire) = mpsc::channel(8);
    let (app, start) = (follower.app.clone(), Instant::now());
    let listening = tokio::spawn(async move {
        follower.listen(&mut wire).await;
        follower
    });
    requests.recv().await.unwrap();
    history.lock().unwrap().push(frames("", 1, 0));
    requests.recv().await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(app.state().index.stats().blocks, 2, "the audit found it");
    assert_eq!(start.elapsed().as_secs(), 1, "the subscription may just not have been read");
    let follower = listening.await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 6, "a second silence");
    assert!(!follower.stream.in_sync());
    assert_eq!(app.state().index.stats().blocks, 0, "until it is proved");
}

#[tokio::test(start_paused = true)]
async fn a_sleep_that_metrics_show_empties_the_endpoint() {
    let (mut follower, mut requests) = follower(Arc::new(Mutex::new(vec![frames("", 0, 0)])));
    let (_live, mut wire) = mpsc::channel(8);
    let (app, told) = (follower.app.clone(), watch::Sender::new(Told::default()));
    follower.told = told.subscribe();
    let listening = tokio::spawn(async move { follower.listen(&mut wire).await });
    requests.recv().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(app.state().index.stats().blocks, 1);
    told.send_replace(Told { asleep: true, remake: 0 });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(app.state().index.stats().blocks, 0);
    told.send_replace(Told { asleep: false, remake: 1 });
    listening.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_engine_restarted_in_its_sleep_is_heard_again() {
    let history = Arc::new(Mutex::new(vec![frames("", 0, 0)]));
    let (mut follower, mut requests) = follower(history.clone());
    let (_live, mut wire) = mpsc::channel(8);
    let (app, told) = (follower.app.clone(), watch::Sender::new(Told::default()));
    follower.told = told.subscribe();
    let listening = tokio::spawn(async move {
        follower.listen(&mut wire).await;
        follower
    });
    requests.recv().await.unwrap();
    told.send_replace(Told { asleep: true, remake: 0 });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(app.state().index.stats().blocks, 0);
    // Its metrics say both at once: another process, and awake.
    told.send_replace(Told { asleep: false, remake: 1 });
    let mut follower = listening.await.unwrap();
    history.lock().unwrap().clear();
    let (live, mut wire) = mpsc::channel(8);
    let listening = tokio::spawn(async move { follower.listen(&mut wire).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    for sequence in 0..3 {
        let message = frames("", sequence, 0);
        history.lock().unwrap().push(message.clone());
        live.send(message).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(app.state().index.stats().blocks, 3);
    drop(live);
    listening.await.unwrap();
}

#[test]
fn events_that_cannot_be_connected_to_are_told_of_once_and_not_at_once() {
    let (mut unreached, start) = (Unreached::default(), Instant::now());
    let news = [0, 9, 10, 11, 600].map(|seconds| unreached.is_news(start + Duration::from_secs(seconds)));
    assert_eq!(news, [false, false, true, false, false]);
}

#[test]
fn replies_are_read_in_both_forms_and_both_ends_are_known() {
    let (follower, _) = {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _in = runtime.enter();
        follower(Arc::default())
    };
    let with_topic = frames("kv@x@y", 5, 0);
    let mut without = ZmqMessage::from(Bytes::new());
    without.push_back(with_topic.get(1).unwrap().clone());
    without.push_back(with_topic.get(2).unwrap().clone());
    let mut with = with_topic;
    with.push_front(Bytes::new());
    let read = |message: &ZmqMessage| -> Message<Batch> { read(message, &follower.note).unwrap() };
    assert_eq!(read(&with), read(&without));
    assert_eq!(read(&with).sequence, 5);
    for before in [1, 2] {
        let mut end = ZmqMessage::from(Bytes::new());
        (1..before).for_each(|_| end.push_back(Bytes::new()));
        end.push_back(Bytes::copy_from_slice(&[0xFF; 8]));
        end.push_back(Bytes::new());
        assert_eq!(read(&end).sequence, u64::MAX);
    }
    let garbled = |text: &'static str| {
        let mut message = ZmqMessage::from(Bytes::copy_from_slice(&3u64.to_be_bytes()));
        message.push_back(Bytes::from(text));
        read(&message)
    };
    let (one, other) = (garbled("no msgpack"), garbled("nor this"));
    assert!(one.payload.is_none() && one.timestamp < 0.0 && one.timestamp.to_bits() != other.timestamp.to_bits());
}

/// For what takes a moment, or seconds on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Until it is so, or patience has run out.
async fn so(what: impl Fn() -> bool) -> bool {
    let start = std::time::Instant::now();
    while !what() && start.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    what()
}

/// Until that many blocks are held, or patience has run out.
async fn held(app: &App, blocks: usize) -> bool {
    so(|| app.state().index.stats().blocks == blocks).await
}

/// An engine's publisher. It is no socket of the library's: what that sends before it knows of the subscription goes
/// nowhere, and it does not say when it does.
async fn publisher(at: SocketAddr) -> TcpStream {
    let mut call = TcpStream::connect(at).await.unwrap();
    greet(&mut call).await;
    call
}

const ENGINE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 8000);

/// Answers calls at an address.
async fn bound() -> (Arc<App>, Arc<Switchboard>, SocketAddr, JoinHandle<()>) {
    let (app, board) = (app(ENGINE), Arc::new(Switchboard::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let answering = tokio::spawn(bind::answer(app.clone(), listener, board.clone()));
    (app, board, at, answering)
}

/// Follows the engine of this rank once it calls.
fn awaited(app: &Arc<App>, board: &Switchboard, rank: Option<u16>) -> JoinHandle<()> {
    let events = Events::Bound(board.expect(ENGINE, rank));
    let source = Source { slot: SLOT, key: Key { address: ENGINE, rank: None }, events, replay: None };
    let company = Arc::new(Company::new(app.clone(), &[], None, 0).unwrap());
    tokio::spawn(follow(app.clone(), company, source))
}

#[tokio::test]
async fn engines_that_dial_in_are_told_apart_by_topic_and_rank_and_forgotten_when_they_hang_up() {
    let (app, board, at, answering) = bound().await;
    let following = awaited(&app, &board, Some(0));

    let (mut stranger, mut other_rank) = (publisher(at).await, publisher(at).await);
    send(&mut stranger, &frames("kv@10.9.9.9:1@tiny", 0, 0)).await;
    send(&mut other_rank, &frames("kv@10.0.0.1:8000@tiny", 0, 1)).await;
    let mut engine = publisher(at).await;
    send(&mut engine, &frames("kv@10.0.0.1:8000@tiny", 0, 0)).await;
    send(&mut engine, &frames("kv@10.9.9.9:1@tiny", 0, 0)).await;
    send(&mut engine, &frames("kv@10.0.0.1:8000@tiny", 1, 0)).await;
    assert!(held(&app, 2).await, "{}", app.state().index.stats().blocks);
    // One message of each stranger's: its call is over then.
    assert!(so(|| app.metrics.page().contains("warmpath_bind_unknown_topics_total 2")).await, "{}", app.metrics.page());

    // Another process under the same topic, while the first is still there; its count has passed the first one's.
    let mut next = publisher(at).await;
    send(&mut next, &frames("kv@10.0.0.1@tiny", 2, 0)).await;
    assert!(held(&app, 1).await, "what the first one held is not the second one's");
    drop(next);
    assert!(held(&app, 0).await, "it hung up");
    let mut again = publisher(at).await;
    send(&mut again, &frames("kv@10.0.0.1:8000@tiny", 0, 0)).await;
    assert!(held(&app, 1).await);
    answering.abort();
    following.abort();
}

/// As far as an engine's publisher goes before its first message.
async fn greet(call: &mut TcpStream) {
    greet_as(call, "PUB").await;
}

/// As a socket of this type.
async fn greet_as(call: &mut TcpStream, kind: &str) {
    let mut greeting = vec![0xFF, 0, 0, 0, 0, 0, 0, 0, 0, 0x7F, 3, 0];
    greeting.extend(b"NULL");
    greeting.resize(64, 0);
    call.write_all(&greeting).await.unwrap();
    let ready = [b"\x05READY\x0bSocket-Type\x00\x00\x00", &[kind.len() as u8][..], kind.as_bytes()].concat();
    call.write_all(&[4, ready.len() as u8]).await.unwrap();
    call.write_all(&ready).await.unwrap();
}

/// A message on its way.
async fn send(call: &mut TcpStream, message: &ZmqMessage) {
    for (at, frame) in message.iter().enumerate() {
        let more = u8::from(at + 1 < message.len());
        call.write_all(&[2 | more]).await.unwrap();
        call.write_all(&(frame.len() as u64).to_be_bytes()).await.unwrap();
        call.write_all(frame).await.unwrap();
    }
}

/// Until the other side hangs up, or patience has run out.
async fn hung_up(call: &mut TcpStream) -> bool {
    let end = async { while call.read(&mut [0; 100]).await.is_ok_and(|read| read > 0) {} };
    tokio::time::timeout(PATIENCE, end).await.is_ok()
}

/// An endpoint's stream that connects to a listener.
async fn followed() -> (Arc<App>, TcpListener, JoinHandle<()>) {
    let address: SocketAddr = "10.0.0.1:8000".parse().unwrap();
    let app = app(address);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap());
    let source = Source { slot: SLOT, key: Key { address, rank: None }, events: Events::Connect(url), replay: None };
    let company = Arc::new(Company::new(app.clone(), &[], None, 0).unwrap());
    let following = tokio::spawn(follow(app.clone(), company, source));
    (app, listener, following)
}

/// The next connection, which is greeted.
async fn called(listener: &TcpListener) -> TcpStream {
    let (mut call, _) = listener.accept().await.unwrap();
    greet(&mut call).await;
    call
}

#[tokio::test]
async fn a_command_that_the_library_panics_at_does_not_end_an_endpoints_stream() {
    let (app, listener, following) = followed().await;
    let mut call = called(&listener).await;
    send(&mut call, &frames("", 0, 0)).await;
    assert!(held(&app, 1).await);
    // A command without a name.
    call.write_all(&[4, 0]).await.unwrap();
    assert!(held(&app, 0).await, "what was held is forgotten");
    let mut call = called(&listener).await;
    send(&mut call, &frames("", 0, 0)).await;
    assert!(held(&app, 1).await, "it is followed again");
    let page = app.metrics.page();
    assert!(page.contains(r#"stream_clears_total{endpoint="10.0.0.1:8000",reason="crashed"} 1"#), "{page}");
    following.abort();
}

/// A frame's header that claims 2^46 bytes.
const HUGE: [u8; 9] = [2, 0, 0, 0x40, 0, 0, 0, 0, 0];

#[tokio::test]
async fn an_engine_that_announces_too_much_is_hung_up_on_and_connected_to_again() {
    let (app, listener, following) = followed().await;
    let mut call = called(&listener).await;
    send(&mut call, &frames("", 0, 0)).await;
    assert!(held(&app, 1).await);
    call.write_all(&HUGE).await.unwrap();
    assert!(hung_up(&mut call).await);
    assert!(held(&app, 0).await, "what was held is forgotten");
    let mut call = called(&listener).await;
    // Many frames that are small each.
    let frame = [&[3, 0, 0, 0, 0, 1, 0, 0, 0][..], &vec![0; 1 << 24]].concat();
    let flood = async { while call.write_all(&frame).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, flood).await.unwrap();
    let mut call = called(&listener).await;
    send(&mut call, &frames("", 0, 0)).await;
    assert!(held(&app, 1).await, "it is followed again");
    let page = app.metrics.page();
    assert!(page.contains("warmpath_event_peers_refused_total 2") && !page.contains("crashed"), "{page}");
    following.abort();
}

#[tokio::test]
async fn a_replay_that_announces_too_much_has_failed() {
    let (follower, _) = follower(Arc::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap());
    let mut replay = Replay::start(url, follower.note.clone(), 0, Duration::ZERO);
    let (mut call, _) = listener.accept().await.unwrap();
    greet_as(&mut call, "ROUTER").await;
    send(&mut call, &frames("", 0, 0)).await;
    assert!(matches!(replay.next().await, Input::Replayed(_)));
    call.write_all(&HUGE).await.unwrap();
    let start = Instant::now();
    assert_eq!(replay.next().await, Input::ReplayFailed);
    assert!(start.elapsed() < Duration::from_secs(5), "not by silence");
}

#[tokio::test]
async fn callers_that_announce_too_much_are_hung_up_on() {
    let (app, _board, at, answering) = bound().await;
    let mut call = publisher(at).await;
    call.write_all(&HUGE).await.unwrap();
    assert!(hung_up(&mut call).await);
    assert!(app.metrics.page().contains("warmpath_event_peers_refused_total 1"));
    answering.abort();
}

#[tokio::test]
async fn an_engine_is_heard_whose_first_message_is_small_and_the_next_large_but_not_the_other_way_round() {
    let (app, board, at, answering) = bound().await;
    let following = awaited(&app, &board, Some(0));
    // With a field of the future.
    let large = |sequence| {
        let (message, mut padded) =
            (frames("kv@10.0.0.1:8000@tiny", sequence, 0), ZmqMessage::from("kv@10.0.0.1:8000@tiny"));
        let mut payload = message.get(2).unwrap().to_vec();
        payload[0] += 1;
        payload.extend([0xc6, 0, 0x80, 0, 0]);
        payload.resize(payload.len() + (8 << 20), 0);
        padded.push_back(message.get(1).unwrap().clone());
        padded.push_back(payload.into());
        padded
    };
    let mut call = publisher(at).await;
    let header = [&[2][..], &(8u64 << 20).to_be_bytes()].concat();
    call.write_all(&header).await.unwrap();
    assert!(hung_up(&mut call).await);
    let mut call = publisher(at).await;
    send(&mut call, &frames("kv@10.0.0.1:8000@tiny", 0, 0)).await;
    send(&mut call, &large(1)).await;
    assert!(held(&app, 2).await, "{}", app.state().index.stats().blocks);
    assert!(app.metrics.page().contains("warmpath_event_peers_refused_total 1"));
    answering.abort();
    following.abort();
}

#[tokio::test(start_paused = true)]
async fn callers_that_do_not_say_who_they_are_are_hung_up_on() {
    let (_app, _board, at, answering) = bound().await;
    let mut call = TcpStream::connect(at).await.unwrap();
    let end = async { while call.read(&mut [0; 100]).await.is_ok_and(|read| read > 0) {} };
    tokio::time::timeout(Duration::from_secs(60), end).await.unwrap();
    answering.abort();
}

#[tokio::test]
async fn a_call_that_is_to_be_made_anew_is_hung_up() {
    let (app, board, at, answering) = bound().await;
    let signals = Signals::default();
    app.enter(SLOT, signals.clone());
    let following = awaited(&app, &board, None);
    let mut call = publisher(at).await;
    // One of a group of engines counts its only rank over all of them.
    send(&mut call, &frames("kv@10.0.0.1:8000@tiny", 0, 8)).await;
    assert!(held(&app, 1).await);
    signals.told.send_replace(Told { asleep: false, remake: 1 });
    assert!(hung_up(&mut call).await, "the engine would never dial again");
    answering.abort();
    following.abort();
}

/// Seconds until the kernel asks who is there of a connection that is silent, by its own tables; `None`: it never will.
#[cfg(target_os = "linux")]
fn asks_within(ours: SocketAddr, theirs: SocketAddr) -> Option<u64> {
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let connection = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        (port(&fields[1]) == Some(ours.port()) && port(&fields[2]) == Some(theirs.port())).then(|| fields[5].clone())
    };
    // The kernel's list may lack one for a moment, while others come and go.
    let timer = table.lines().skip(1).find_map(connection)?;
    // In hundredths of a second. Delayed acknowledgements have this kind, too, but are due within one.
    let due = timer.strip_prefix("02:").map(|when| u64::from_str_radix(when, 16).unwrap() / 100);
    due.filter(|seconds| *seconds > 1)
}

/// Else a machine that is lost keeps its blocks in the index for ever: it says no goodbye.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn connections_that_are_silent_are_asked_whether_somebody_is_there() {
    let (_app, _board, at, answering) = bound().await;
    let call = publisher(at).await;
    let engine = call.local_addr().unwrap();
    assert!(so(|| asks_within(at, engine).is_some_and(|seconds| seconds <= 15)).await, "one that dialled in");
    answering.abort();
    let (_app, listener, following) = followed().await;
    let (_call, indexer) = listener.accept().await.unwrap();
    let at = listener.local_addr().unwrap();
    assert!(so(|| asks_within(indexer, at).is_some_and(|seconds| seconds <= 15)).await, "one that was dialled");
    following.abort();
}
