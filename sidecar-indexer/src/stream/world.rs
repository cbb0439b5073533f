//! Generated lives: an engine with a cache, a network that loses, breaks and lies, and what the stream makes of it.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

/// Blocks and how many copies of each.
type Cache = BTreeMap<u8, u32>;

#[derive(Clone, Debug, PartialEq)]
enum Change {
    Stored(u8),
    Removed(u8),
    Cleared,
}

fn change(cache: &mut Cache, change: &Change) {
    match change {
        Change::Stored(block) => *cache.entry(*block).or_default() += 1,
        Change::Removed(block) => {
            if let Some(copies) = cache.get_mut(block) {
                *copies -= 1;
            }
            cache.retain(|_, copies| *copies > 0);
        }
        Change::Cleared => cache.clear(),
    }
}

fn within(part: &Cache, whole: &Cache) -> bool {
    part.iter().all(|(block, copies)| whole.get(block).is_some_and(|all| copies <= all))
}

/// What a message says, and which one it is.
#[derive(Clone, Debug, PartialEq)]
struct Content {
    changes: Vec<Change>,
    of: Of,
}

/// A process and a message's number.
type Of = (usize, u64);
type Sent = Message<Content>;

#[derive(Clone, Debug)]
enum Op {
    Store(u8),
    Evict(u8),
    Reset,
    Garble(u8),
    Deliver,
    Lose,
    ServeReplay,
    DeliverReplay,
    LoseReplayed,
    FailReplay,
    Break,
    GoHalfOpen,
    Connect,
    Restart { clock: i8, masked: bool, noticed: bool },
    Silent,
    Sleep,
    NoticeSleep,
    Wake,
    NoticeWake,
    Remember,
    AnswerNothing,
    AnswerRemembered(u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => (0u8..12).prop_map(Op::Store),
        6 => any::<u8>().prop_map(Op::Evict),
        1 => Just(Op::Reset),
        1 => (0u8..12).prop_map(Op::Garble),
        12 => Just(Op::Deliver),
        1 => Just(Op::Lose),
        5 => Just(Op::ServeReplay),
        14 => Just(Op::DeliverReplay),
        1 => Just(Op::LoseReplayed),
        1 => Just(Op::FailReplay),
        1 => Just(Op::Break),
        1 => Just(Op::GoHalfOpen),
        4 => Just(Op::Connect),
        1 => (-20i8..20, any::<bool>(), any::<bool>())
            .prop_map(|(clock, masked, noticed)| Op::Restart { clock, masked, noticed }),
        2 => Just(Op::Silent),
        1 => Just(Op::Sleep),
        1 => Just(Op::NoticeSleep),
        2 => Just(Op::Wake),
        2 => Just(Op::NoticeWake),
        2 => Just(Op::Remember),
        2 => Just(Op::AnswerNothing),
        3 => any::<u8>().prop_map(Op::AnswerRemembered),
    ]
}

struct Engine {
    cache: Cache,
    published: u64,
    clock: f64,
    buffer: VecDeque<Sent>,
    /// Emptied, but it has not said so yet.
    emptied: bool,
    asleep: bool,
}

/// Holdings put aside or remembered, with the message that they are as of.
type Aside = (Cache, Option<Of>);

struct World {
    stream: Stream<Content>,
    buffer_limit: usize,
    process: usize,
    engine: Engine,
    /// After each message of each process: what it held.
    truth: BTreeMap<Of, Cache>,
    connected: bool,
    half_open: bool,
    live: VecDeque<Sent>,
    asked: Option<u64>,
    replay: VecDeque<Option<Sent>>,
    seeking: bool,
    remembered: Vec<(Checkpoint, Aside)>,
    offered: Option<Aside>,
    /// The index: what it holds, as of which message, and what was put aside.
    index: Cache,
    as_of: Option<Of>,
    aside: Option<Aside>,
    told_asleep: bool,
}

impl World {
    fn new(buffer_limit: usize, replays: bool, company: bool) -> Self {
        World {
            stream: Stream::new(replays, company),
            buffer_limit,
            process: 0,
            engine: Engine::started(1e9),
            truth: BTreeMap::new(),
            connected: false,
            half_open: false,
            live: VecDeque::new(),
            asked: None,
            replay: VecDeque::new(),
            seeking: false,
            remembered: Vec::new(),
            offered: None,
            index: Cache::new(),
            as_of: None,
            aside: None,
            told_asleep: false,
        }
    }

    fn step(&mut self, input: Input<Content>) {
        let mut reconnect = false;
        for action in self.stream.step(input) {
            match action {
                Action::Suspend(_) => {
                    self.aside = Some((std::mem::take(&mut self.index), self.as_of.take()));
                }
                Action::Adopt => self.aside = Some(self.offered.take().expect("an offer")),
                Action::Restore => {
                    assert!(self.index.is_empty());
                    (self.index, self.as_of) = self.aside.take().expect("something put aside");
                }
                Action::Clear(_) => {
                    self.index.clear();
                    (self.as_of, self.aside) = (None, None);
                }
                Action::Seek => {
                    self.seeking = true;
                    self.asked = None;
                    self.replay.clear();
                }
                Action::Replay { from, .. } => {
                    self.asked = Some(from);
                    self.replay.clear();
                }
                Action::Apply(message) => {
                    let content = message.payload.expect("readable");
                    if let Some((process, sequence)) = self.as_of {
                        assert_eq!((process, sequence + 1), content.of, "a hole, a repetition or another process");
                    }
                    self.as_of = Some(content.of);
                    if message.resets {
                        // Published when it had woken; whoever sees the engine asleep again says so again.
                        self.told_asleep = false;
                    }
                    content.changes.iter().for_each(|c| change(&mut self.index, c));
                }
                Action::Reconnect => reconnect = true,
            }
        }
        if reconnect {
            self.disconnect();
        }
        match self.as_of {
            Some(of) => assert!(within(&self.index, &self.truth[&of]), "overcount as of {of:?}"),
            None => assert!(self.index.is_empty(), "holdings of unknown time"),
        }
        if self.told_asleep && self.engine.emptied {
            assert!(self.index.is_empty(), "holdings of a sleeping engine");
        }
    }

    fn disconnect(&mut self) {
        (self.connected, self.half_open, self.seeking) = (false, false, false);
        self.asked = None;
        self.live.clear();
        self.replay.clear();
        self.step(Input::Disconnected);
    }

    fn publish(&mut self, changes: Vec<Change>, readable: bool) {
        let engine = &mut self.engine;
        let mut all = Vec::new();
        if std::mem::take(&mut engine.emptied) {
            // The delayed clear goes first.
            all.push(Change::Cleared);
        }
        all.extend(changes);
        let of = (self.process, engine.published);
        engine.clock += 1.0;
        // A process's times are its own, to the last bit.
        let timestamp = engine.clock + self.process as f64 * 1e-4;
        let resets = readable && all.contains(&Change::Cleared);
        engine.published += 1;
        self.truth.insert(of, engine.cache.clone());
        let message = Message {
            sequence: of.1,
            timestamp: if readable { timestamp } else { -timestamp },
            size: 10,
            resets,
            payload: readable.then_some(Content { changes: all, of }),
        };
        engine.buffer.push_back(message.clone());
        if engine.buffer.len() > self.buffer_limit {
            engine.buffer.pop_front();
        }
        if self.connected && !self.half_open {
            self.live.push_back(message);
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Store(_) | Op::Evict(_) | Op::Garble(_) if self.engine.asleep => {}
            Op::Store(block) | Op::Garble(block) => {
                change(&mut self.engine.cache, &Change::Stored(block));
                self.publish(vec![Change::Stored(block)], !matches!(op, Op::Garble(_)));
            }
            Op::Evict(which) => {
                let cached: Vec<u8> = self.engine.cache.keys().copied().collect();
                if !cached.is_empty() {
                    let removed = Change::Removed(cached[usize::from(which) % cached.len()]);
                    change(&mut self.engine.cache, &removed);
                    self.publish(vec![removed], true);
                }
            }
            Op::Reset if !self.engine.asleep => {
                self.engine.cache.clear();
                self.engine.emptied = true;
            }
            Op::Deliver => {
                if let Some(message) = self.live.pop_front() {
                    self.step(Input::Live(message));
                }
            }
            Op::Lose => {
                self.live.pop_front();
            }
            Op::ServeReplay => {
                if let Some(from) = self.asked.take() {
                    let kept = self.engine.buffer.iter().filter(|m| m.sequence >= from).cloned();
                    self.replay = kept.map(Some).chain([None]).collect();
                }
            }
            Op::DeliverReplay => match self.replay.pop_front() {
                Some(Some(message)) => self.step(Input::Replayed(message)),
                Some(None) => self.step(Input::ReplayEnded),
                None => {}
            },
            Op::LoseReplayed => {
                if matches!(self.replay.front(), Some(Some(_))) {
                    self.replay.pop_front();
                }
            }
            Op::FailReplay if self.asked.is_some() || !self.replay.is_empty() => {
                self.asked = None;
                self.replay.clear();
                self.step(Input::ReplayFailed);
            }
            Op::Break => self.disconnect(),
            Op::GoHalfOpen => self.half_open = true,
            Op::Connect if !self.connected => {
                (self.connected, self.half_open) = (true, false);
                self.step(Input::Connected);
            }
            Op::Restart { clock, masked, noticed } => {
                let published = self.engine.published;
                let clock = self.engine.clock + f64::from(clock);
                self.process += 1;
                self.engine = Engine::started(clock);
                if noticed {
                    self.disconnect();
                } else {
                    // The host died: nothing says that the connection is gone.
                    self.half_open = true;
                }
                // Only metrics tell a sleep, and those of a new process say that it is awake.
                self.run(Op::NoticeWake);
                if masked {
                    for block in 0..published + 2 {
                        self.run(Op::Store((block % 7) as u8));
                    }
                }
            }
            Op::Silent if self.live.is_empty() => self.step(Input::Silent),
            Op::Sleep if !self.engine.asleep => {
                self.run(Op::Reset);
                self.engine.asleep = true;
            }
            Op::NoticeSleep if self.engine.asleep => {
                self.told_asleep = true;
                self.step(Input::Slept);
            }
            Op::Wake => (self.engine.asleep, self.told_asleep) = (false, false),
            Op::NoticeWake if !self.engine.asleep => {
                self.told_asleep = false;
                self.step(Input::Woke);
            }
            Op::Remember => {
                if let Some(checkpoint) = self.stream.checkpoint() {
                    self.remembered.push((checkpoint, (self.index.clone(), self.as_of)));
                }
            }
            Op::AnswerNothing if std::mem::take(&mut self.seeking) => self.step(Input::Offered(None)),
            Op::AnswerRemembered(which) if self.seeking && !self.remembered.is_empty() => {
                self.seeking = false;
                let (checkpoint, aside) = self.remembered[usize::from(which) % self.remembered.len()].clone();
                self.offered = Some(aside);
                self.step(Input::Offered(Some(checkpoint)));
            }
            _ => {}
        }
    }

    /// Everything is delivered, and the silent times pass.
    fn settle(&mut self) {
        self.run(Op::Wake);
        self.run(Op::NoticeWake);
        self.quieten();
        self.run(Op::Store(0));
        self.quieten();
    }

    fn quieten(&mut self) {
        for _ in 0..6 {
            self.run(Op::Connect);
            while self.seeking || self.asked.is_some() || !self.live.is_empty() || !self.replay.is_empty() {
                for op in [Op::Deliver, Op::AnswerNothing, Op::ServeReplay, Op::DeliverReplay] {
                    self.run(op);
                }
            }
            self.run(Op::Silent);
        }
        while self.asked.is_some() || !self.replay.is_empty() {
            self.run(Op::ServeReplay);
            self.run(Op::DeliverReplay);
        }
    }
}

impl Engine {
    fn started(clock: f64) -> Self {
        Self { cache: Cache::new(), published: 0, clock, buffer: VecDeque::new(), emptied: false, asleep: false }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn whatever_happens_nothing_is_overcounted_and_in_the_end_all_is_known(
        ops in proptest::collection::vec(op(), 0..250),
        buffer_limit in prop_oneof![Just(0usize), 1usize..6, Just(10_000)],
        company in any::<bool>(),
    ) {
        let mut world = World::new(buffer_limit, true, company);
        ops.into_iter().for_each(|op| world.run(op));
        world.settle();
        prop_assert!(world.stream.in_sync());
        if buffer_limit > 0 {
            prop_assert_eq!(world.as_of, Some((world.process, world.engine.published - 1)));
        }
        if !world.stream.partial() && world.as_of.is_some() {
            prop_assert_eq!(&world.index, &world.engine.cache);
        }
    }

    #[test]
    fn without_replays_nothing_is_overcounted_either(ops in proptest::collection::vec(op(), 0..250)) {
        // A dead connection goes unnoticed there, and a dead process with it: what is held is as of its last message.
        let mut world = World::new(0, false, true);
        ops.into_iter().for_each(|op| world.run(op));
        prop_assert!(world.stream.in_sync() == world.connected);
    }

    #[test]
    fn nothing_lost_beyond_the_buffer_means_nothing_unknown(ops in proptest::collection::vec(op(), 0..250)) {
        let sane = |op: &Op| !matches!(op, Op::Garble(_) | Op::Sleep | Op::FailReplay | Op::LoseReplayed);
        let mut world = World::new(10_000, true, true);
        ops.into_iter().filter(sane).for_each(|op| world.run(op));
        world.settle();
        prop_assert!(!world.stream.partial());
        prop_assert_eq!(&world.index, &world.engine.cache);
    }

    #[test]
    fn a_subscription_that_has_all_needs_no_more_of_the_buffer_than_a_message(
        ops in proptest::collection::vec(op(), 0..250),
        buffer_limit in 1usize..6,
        company in any::<bool>(),
    ) {
        use Op::*;
        let sane = |op: &Op| {
            matches!(op, Store(_) | Evict(_) | Reset | Deliver | ServeReplay | DeliverReplay | AnswerNothing)
        };
        let mut world = World::new(buffer_limit, true, company);
        [Connect, AnswerNothing, ServeReplay, DeliverReplay].into_iter().for_each(|op| world.run(op));
        ops.into_iter().filter(sane).for_each(|op| world.run(op));
        world.settle();
        prop_assert!(!world.stream.partial());
        prop_assert_eq!(&world.index, &world.engine.cache);
    }
}
