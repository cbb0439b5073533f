//! One endpoint's event stream as a state machine without I/O: which messages may be applied, and when what was
//! known must be forgotten.
//!
//! Messages are numbered from 0 by the engine's process. **Invariant:** between two [`Action::Clear`]s the messages
//! of [`Action::Apply`] are consecutive messages of one process. It follows that the index never overcounts: it
//! starts from nothing, and a run without holes misses no removal of what it saw stored. The run need not start at
//! message 0, as a removal of something never seen is ignored.

use std::collections::BTreeMap;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Input<M> {
    /// The subscription was made, for the first time or again.
    Connected,
    /// The connection broke.
    Disconnected,
    /// The engine's process is known to be another one than before.
    Restarted,
    /// A message arrived on the subscription.
    Live(Message<M>),
    /// A message arrived in answer to a replay request.
    Replayed(Message<M>),
    /// The replay is complete.
    ReplayEnded,
    /// The replay was not answered, or there is none to ask.
    ReplayFailed,
}

/// A numbered message.
#[derive(Clone, Debug, PartialEq)]
pub struct Message<M> {
    /// The publisher's count.
    pub sequence: u64,
    /// The publisher's clock, seconds.
    pub timestamp: f64,
    /// What it says.
    pub payload: M,
}

/// What to do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<M> {
    /// Forget all that this endpoint holds.
    Clear(Reason),
    /// Ask for all messages the publisher still has. Any replay under way is void.
    Replay,
    /// Apply this message.
    Apply(Message<M>),
}

/// Why an endpoint's holdings were forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The connection is new.
    Connected,
    /// The connection broke.
    Disconnected,
    /// Messages were lost.
    Gap,
    /// The engine's process is a new one.
    Restarted,
}

/// Live messages kept back while a replay runs; the oldest are dropped beyond this.
const HELD_LIMIT: usize = 4096;
/// Replays asked for in a row before a hole between replay and live messages is taken for good.
const REPLAYS_IN_A_ROW: u32 = 3;

/// The state of one endpoint's stream.
#[derive(Clone, Debug)]
pub struct Stream<M> {
    state: State<M>,
    /// The next message to apply; `None` when any will do.
    next: Option<u64>,
    /// Timestamp of the last message applied.
    last: f64,
    /// Whether the run began later than message 0: blocks stored before that are unknown.
    partial: bool,
}

#[derive(Clone, Debug)]
enum State<M> {
    Disconnected,
    /// Waiting for a replay's end; live messages are held back.
    Replaying {
        held: BTreeMap<u64, Message<M>>,
        attempt: u32,
    },
    Live,
}

impl<M> Default for Stream<M> {
    fn default() -> Self {
        Self { state: State::Disconnected, next: None, last: f64::NEG_INFINITY, partial: false }
    }
}

impl<M> Stream<M> {
    /// Whether the endpoint's holdings are those of a connected, gapless stream.
    #[must_use]
    pub fn in_sync(&self) -> bool {
        matches!(self.state, State::Live)
    }

    /// Whether the endpoint may hold blocks that were stored before the replay's reach, without our knowing.
    #[must_use]
    pub fn partial(&self) -> bool {
        self.partial
    }

    /// Takes one input and says what to do.
    pub fn step(&mut self, input: Input<M>) -> Vec<Action<M>> {
        match input {
            Input::Connected => self.restart(Reason::Connected),
            Input::Restarted if matches!(self.state, State::Disconnected) => Vec::new(),
            Input::Restarted => self.restart(Reason::Restarted),
            Input::Disconnected => {
                let was = std::mem::take(self);
                match was.state {
                    State::Disconnected => Vec::new(),
                    _ => vec![Action::Clear(Reason::Disconnected)],
                }
            }
            Input::Live(message) => self.live(message),
            Input::Replayed(message) => self.replayed(message),
            Input::ReplayEnded | Input::ReplayFailed => self.replay_ended(),
        }
    }

    /// Forgets everything and asks for a replay.
    fn restart(&mut self, reason: Reason) -> Vec<Action<M>> {
        *self = Self { state: State::Replaying { held: BTreeMap::new(), attempt: 1 }, ..Self::default() };
        vec![Action::Clear(reason), Action::Replay]
    }

    fn live(&mut self, message: Message<M>) -> Vec<Action<M>> {
        match &mut self.state {
            State::Disconnected => Vec::new(),
            State::Replaying { held, .. } => {
                held.insert(message.sequence, message);
                if held.len() > HELD_LIMIT {
                    held.pop_first();
                }
                Vec::new()
            }
            State::Live => match self.next {
                Some(next) if message.sequence < next => {
                    // A straggler that the replay had delivered already is older than what was applied; a message of
                    // a new process, whose count began again, is younger.
                    if message.timestamp <= self.last {
                        return Vec::new();
                    }
                    self.restart_with(Reason::Restarted, message)
                }
                Some(next) if message.sequence > next => self.restart_with(Reason::Gap, message),
                _ => vec![self.apply(message)],
            },
        }
    }

    fn restart_with(&mut self, reason: Reason, message: Message<M>) -> Vec<Action<M>> {
        let actions = self.restart(reason);
        if let State::Replaying { held, .. } = &mut self.state {
            held.insert(message.sequence, message);
        }
        actions
    }

    fn replayed(&mut self, message: Message<M>) -> Vec<Action<M>> {
        if !matches!(self.state, State::Replaying { .. }) {
            return Vec::new();
        }
        match self.next {
            Some(next) if message.sequence < next => Vec::new(),
            Some(next) if message.sequence > next => {
                self.next = None;
                vec![Action::Clear(Reason::Gap), self.apply(message)]
            }
            _ => vec![self.apply(message)],
        }
    }

    fn replay_ended(&mut self) -> Vec<Action<M>> {
        let State::Replaying { held, attempt } = std::mem::replace(&mut self.state, State::Live) else {
            return Vec::new();
        };
        let mut actions = Vec::new();
        // What was replayed need not be applied again.
        let mut held: Vec<_> =
            held.into_values().filter(|message| self.next.is_none_or(|next| message.sequence >= next)).collect();
        let gapless = |held: &[Message<M>], next: Option<u64>| {
            let mut expected = next;
            held.iter().all(|message| {
                let fits = expected.is_none_or(|e| e == message.sequence);
                expected = message.sequence.checked_add(1);
                fits
            })
        };
        if !gapless(&held, self.next) {
            if attempt < REPLAYS_IN_A_ROW {
                let held = held.into_iter().map(|message| (message.sequence, message)).collect();
                *self = Self { state: State::Replaying { held, attempt: attempt + 1 }, ..Self::default() };
                return vec![Action::Clear(Reason::Gap), Action::Replay];
            }
            // Only the run that leads up to now can be believed.
            self.next = None;
            actions.push(Action::Clear(Reason::Gap));
            let run = held.iter().rev().zip(held.iter().rev().skip(1));
            let len =
                1 + run.take_while(|(later, earlier)| earlier.sequence.checked_add(1) == Some(later.sequence)).count();
            held.drain(..held.len().saturating_sub(len));
        }
        for message in held {
            actions.push(self.apply(message));
        }
        actions
    }

    fn apply(&mut self, message: Message<M>) -> Action<M> {
        if self.next.is_none() {
            self.partial = message.sequence > 0;
        }
        self.next = message.sequence.checked_add(1);
        self.last = message.timestamp;
        Action::Apply(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn message(process: u32, sequence: u64) -> Message<u32> {
        Message { sequence, timestamp: f64::from(process) * 1e6 + sequence as f64, payload: process }
    }

    fn live(stream: &mut Stream<u32>, process: u32, sequence: u64) -> Vec<Action<u32>> {
        stream.step(Input::Live(message(process, sequence)))
    }

    fn in_sync_after(replayed: impl IntoIterator<Item = u64>) -> Stream<u32> {
        let mut stream = Stream::default();
        stream.step(Input::Connected);
        for sequence in replayed {
            stream.step(Input::Replayed(message(0, sequence)));
        }
        stream.step(Input::ReplayEnded);
        stream
    }

    #[test]
    fn a_new_connection_clears_and_replays() {
        let mut stream = Stream::<u32>::default();
        assert_eq!(stream.step(Input::Connected), [Action::Clear(Reason::Connected), Action::Replay]);
        assert!(!stream.in_sync());
        stream.step(Input::ReplayEnded);
        assert!(stream.in_sync() && !stream.partial());
    }

    #[test]
    fn live_messages_wait_for_the_replay_and_are_not_applied_twice() {
        let mut stream = Stream::default();
        stream.step(Input::Connected);
        assert_eq!(live(&mut stream, 0, 2), []);
        assert_eq!(live(&mut stream, 0, 3), []);
        for sequence in 0..3 {
            let applied = stream.step(Input::Replayed(message(0, sequence)));
            assert_eq!(applied, [Action::Apply(message(0, sequence))]);
        }
        assert_eq!(stream.step(Input::ReplayEnded), [Action::Apply(message(0, 3))]);
        assert_eq!(live(&mut stream, 0, 2), [], "a straggler");
        assert_eq!(live(&mut stream, 0, 4), [Action::Apply(message(0, 4))]);
    }

    #[test]
    fn a_replay_that_begins_late_is_applied_and_marked_partial() {
        let stream = in_sync_after(5..8);
        assert!(stream.in_sync() && stream.partial());
        assert!(!in_sync_after(0..8).partial());
    }

    #[test]
    fn a_gap_clears_replays_and_keeps_the_message_that_showed_it() {
        let mut stream = in_sync_after(0..3);
        assert_eq!(live(&mut stream, 0, 4), [Action::Clear(Reason::Gap), Action::Replay]);
        for sequence in 0..4 {
            stream.step(Input::Replayed(message(0, sequence)));
        }
        assert_eq!(stream.step(Input::ReplayEnded), [Action::Apply(message(0, 4))]);
    }

    #[test]
    fn a_count_that_begins_again_is_a_restart() {
        let mut stream = in_sync_after(0..3);
        assert_eq!(live(&mut stream, 1, 0), [Action::Clear(Reason::Restarted), Action::Replay]);
    }

    #[test]
    fn without_a_replay_the_stream_goes_on_from_what_it_sees() {
        let mut stream = Stream::default();
        stream.step(Input::Connected);
        stream.step(Input::ReplayFailed);
        assert_eq!(live(&mut stream, 0, 70), [Action::Apply(message(0, 70))]);
        live(&mut stream, 0, 72);
        assert_eq!(stream.step(Input::ReplayFailed), [Action::Apply(message(0, 72))]);
        assert!(stream.in_sync());
    }

    #[test]
    fn a_hole_that_replays_do_not_fill_ends_with_the_newest_run() {
        let mut stream = Stream::default();
        stream.step(Input::Connected);
        for sequence in [4, 6, 7] {
            live(&mut stream, 0, sequence);
        }
        for _ in 1..REPLAYS_IN_A_ROW {
            stream.step(Input::Replayed(message(0, 0)));
            assert_eq!(stream.step(Input::ReplayEnded), [Action::Clear(Reason::Gap), Action::Replay]);
        }
        stream.step(Input::Replayed(message(0, 0)));
        assert_eq!(
            stream.step(Input::ReplayEnded),
            [Action::Clear(Reason::Gap), Action::Apply(message(0, 6)), Action::Apply(message(0, 7))]
        );
        assert!(stream.in_sync() && stream.partial());
    }

    #[test]
    fn a_broken_connection_clears_once() {
        let mut stream = in_sync_after(0..3);
        assert_eq!(stream.step(Input::Disconnected), [Action::Clear(Reason::Disconnected)]);
        assert_eq!(stream.step(Input::Disconnected), []);
        assert_eq!(stream.step(Input::Restarted), []);
        assert_eq!(live(&mut stream, 0, 3), []);
    }

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Publish,
        Deliver,
        Lose,
        ServeReplay,
        DeliverReplay,
        FailReplay,
        Break,
        Connect,
        RestartEngine,
        NoticeRestart,
    }

    /// An engine with a bounded replay buffer, two lossy queues, and what the stream made of it.
    struct World {
        stream: Stream<u32>,
        buffer_limit: usize,
        process: u32,
        published: u64,
        buffer: VecDeque<Message<u32>>,
        connected: bool,
        live: VecDeque<Message<u32>>,
        asked: bool,
        replay: VecDeque<Option<Message<u32>>>,
        applied: Vec<Message<u32>>,
    }

    impl World {
        fn new(buffer_limit: usize) -> Self {
            World {
                stream: Stream::default(),
                buffer_limit,
                process: 0,
                published: 0,
                buffer: VecDeque::new(),
                connected: false,
                live: VecDeque::new(),
                asked: false,
                replay: VecDeque::new(),
                applied: Vec::new(),
            }
        }

        fn step(&mut self, input: Input<u32>) {
            for action in self.stream.step(input) {
                match action {
                    Action::Clear(_) => self.applied.clear(),
                    Action::Replay => {
                        self.asked = true;
                        self.replay.clear();
                    }
                    Action::Apply(message) => self.applied.push(message),
                }
            }
            for pair in self.applied.windows(2) {
                assert_eq!(pair[0].payload, pair[1].payload, "two processes in one run");
                assert_eq!(pair[0].sequence + 1, pair[1].sequence, "a hole or a repetition");
            }
        }

        fn disconnect(&mut self) {
            self.connected = false;
            self.asked = false;
            self.live.clear();
            self.replay.clear();
            self.step(Input::Disconnected);
        }

        fn run(&mut self, op: Op) {
            match op {
                Op::Publish => {
                    let message = message(self.process, self.published);
                    self.published += 1;
                    self.buffer.push_back(message.clone());
                    if self.buffer.len() > self.buffer_limit {
                        self.buffer.pop_front();
                    }
                    if self.connected {
                        self.live.push_back(message);
                    }
                }
                Op::Deliver => {
                    if let Some(message) = self.live.pop_front() {
                        self.step(Input::Live(message));
                    }
                }
                Op::Lose => {
                    self.live.pop_front();
                }
                Op::ServeReplay if std::mem::take(&mut self.asked) => {
                    self.replay = self.buffer.iter().cloned().map(Some).chain([None]).collect();
                }
                Op::ServeReplay => {}
                Op::DeliverReplay => match self.replay.pop_front() {
                    Some(Some(message)) => self.step(Input::Replayed(message)),
                    Some(None) => self.step(Input::ReplayEnded),
                    None => {}
                },
                Op::FailReplay if self.asked || !self.replay.is_empty() => {
                    self.asked = false;
                    self.replay.clear();
                    self.step(Input::ReplayFailed);
                }
                Op::FailReplay => {}
                Op::Break => self.disconnect(),
                Op::Connect if !self.connected => {
                    self.connected = true;
                    self.step(Input::Connected);
                }
                Op::Connect => {}
                Op::RestartEngine => {
                    self.disconnect();
                    self.process += 1;
                    self.published = 0;
                    self.buffer.clear();
                }
                Op::NoticeRestart => self.step(Input::Restarted),
            }
        }

        /// One more message, and then everything is delivered.
        fn settle(&mut self) {
            self.run(Op::Connect);
            self.run(Op::Publish);
            while self.asked || !self.live.is_empty() || !self.replay.is_empty() {
                for op in [Op::Deliver, Op::ServeReplay, Op::DeliverReplay] {
                    self.run(op);
                }
            }
        }
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            8 => Just(Op::Publish),
            8 => Just(Op::Deliver),
            1 => Just(Op::Lose),
            3 => Just(Op::ServeReplay),
            8 => Just(Op::DeliverReplay),
            1 => Just(Op::FailReplay),
            1 => Just(Op::Break),
            3 => Just(Op::Connect),
            1 => Just(Op::RestartEngine),
            1 => Just(Op::NoticeRestart),
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_lost_what_is_applied_is_one_gapless_run_of_one_process(
            ops in proptest::collection::vec(op(), 0..200), buffer_limit in 0usize..20,
        ) {
            let mut world = World::new(buffer_limit);
            for op in ops {
                world.run(op);
            }
            world.settle();
            prop_assert!(world.stream.in_sync());
            let newest = world.applied.last().map(|m| (m.payload, m.sequence));
            prop_assert_eq!(newest, Some((world.process, world.published - 1)));
            prop_assert_eq!(world.stream.partial(), world.applied[0].sequence > 0);
        }
    }
}
