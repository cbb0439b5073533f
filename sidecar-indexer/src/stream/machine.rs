//! The states and their transitions.

mod bridge;

use super::held::Held;
use super::{Action, Checkpoint, Input, Message, Position, REPLAYS_IN_A_ROW, Reason};

/// The state of one endpoint's stream.
#[derive(Clone, Debug)]
pub struct Stream<M> {
    state: State<M>,
    /// Whether the engine replays past messages.
    replays: bool,
    /// Whether there is anybody to ask for a checkpoint.
    company: bool,
    /// What the index holds is as of here; `None` when it holds nothing and any message will do.
    position: Option<Position>,
    /// What is put aside is as of here.
    kept: Option<Checkpoint>,
    /// See [`Self::partial`].
    partial: bool,
    /// The engine's cache is empty, whatever its messages say until one says so, too.
    asleep: bool,
    /// It has woken since; that counts once the messages of before are through.
    woke: bool,
    /// Company was asked since the stream was last in sync.
    sought: bool,
    /// The last live message of this connection: those of one process only grow.
    heard: Option<u64>,
    /// Whether a message of this connection was met in a replay of what the index holds: all are of one process.
    matched: bool,
    /// The last message that an audit found and the subscription has yet to deliver.
    owed: Option<u64>,
}

/// Nothing was published yet.
const START: Position = Position { next: 0, last: f64::NEG_INFINITY };

#[derive(Clone, Debug)]
enum State<M> {
    Disconnected,
    /// Waiting for what company has.
    Seeking(Held<M>),
    /// Waiting for a replay's end.
    Replaying {
        held: Held<M>,
        expect: Expect,
        attempt: u32,
        progress: bool,
    },
    /// In sync. A replay under way is an audit.
    Live {
        audit: Option<Expect>,
    },
}

/// What a replay must begin with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Expect {
    /// With the proof of what is put aside.
    Kept,
    /// With the message before this position, which what is in the index had reached.
    Run(Position),
    /// With anything, or it has begun as it should.
    Any,
    /// With nothing more: it began after what had come live, and that must come up to this message.
    Overtook(Position),
}

type Actions<M> = Vec<Action<M>>;

impl<M> Stream<M> {
    /// A stream that is not connected yet. `replays`: its engine replays past messages; `company`: others may have
    /// checkpoints of it.
    #[must_use]
    pub fn new(replays: bool, company: bool) -> Self {
        Self {
            state: State::Disconnected,
            replays,
            // Without a replay nothing that company has could be proved.
            company: company && replays,
            position: None,
            kept: None,
            partial: false,
            asleep: false,
            woke: false,
            sought: false,
            heard: None,
            matched: false,
            owed: None,
        }
    }

    /// Whether the endpoint's holdings are those of a connected, gapless stream.
    #[must_use]
    pub fn in_sync(&self) -> bool {
        matches!(self.state, State::Live { .. })
    }

    /// Whether the endpoint may hold blocks without our knowing: those stored before the first message known, or in
    /// one that could not be read.
    #[must_use]
    pub fn partial(&self) -> bool {
        self.partial
    }

    /// What the index holds is as of here, if it can be proved to anybody.
    #[must_use]
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        let position = self.position.filter(Position::provable)?;
        Some(Checkpoint { position, partial: self.partial })
    }

    /// The words for the states.
    pub const STATES: [&str; 5] = ["disconnected", "seeking", "proving", "replaying", "live"];

    /// The state, in a word of [`Self::STATES`].
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self.state {
            State::Disconnected => "disconnected",
            State::Seeking(_) => "seeking",
            State::Replaying { expect: Expect::Kept, .. } => "proving",
            State::Replaying { .. } => "replaying",
            State::Live { .. } => "live",
        }
    }

    /// Takes one input and says what to do.
    pub fn step(&mut self, input: Input<M>) -> Actions<M> {
        match input {
            Input::Connected => self.connected(),
            Input::Disconnected => {
                self.state = State::Disconnected;
                self.put_aside(Reason::Disconnected)
            }
            Input::Live(message) => self.live(message),
            Input::Replayed(message) => self.replayed(message),
            Input::ReplayEnded => self.replay_over(true),
            Input::ReplayFailed => self.replay_over(false),
            Input::Offered(offer) => self.offered(offer),
            Input::NotRestored => self.not_restored(),
            Input::Silent => self.silent(),
            Input::Slept => self.slept(),
            Input::Woke => {
                self.woke = self.asleep;
                if self.in_sync() {
                    self.wake();
                }
                Vec::new()
            }
        }
    }

    fn slept(&mut self) -> Actions<M> {
        self.woke = false;
        if std::mem::replace(&mut self.asleep, true) {
            return Vec::new();
        }
        // The position stays: what comes follows it. What is put aside was stored before.
        self.partial = true;
        self.kept = None;
        vec![Action::Clear(Reason::Slept)]
    }

    /// What comes now is of after the sleep.
    fn wake(&mut self) {
        if std::mem::take(&mut self.woke) {
            self.asleep = false;
        }
    }

    fn connected(&mut self) -> Actions<M> {
        let mut actions = match self.state {
            State::Disconnected => Vec::new(),
            _ => self.put_aside(Reason::Disconnected),
        };
        (self.heard, self.owed, self.matched) = (None, None, false);
        actions.extend(match self.kept {
            None => self.seek(Held::default()),
            Some(_) => self.replay(Held::default(), 1),
        });
        actions
    }

    /// Asks company for what is not known here, once; then a replay.
    fn seek(&mut self, held: Held<M>) -> Actions<M> {
        if !self.company || std::mem::replace(&mut self.sought, true) {
            return self.replay(held, 1);
        }
        self.state = State::Seeking(held);
        vec![Action::Seek]
    }

    /// Puts what the index holds aside, if it can be proved later; forgets it otherwise.
    fn put_aside(&mut self, reason: Reason) -> Actions<M> {
        let Some(position) = self.position.take().filter(|position| *position != START) else { return Vec::new() };
        let checkpoint = Checkpoint { position, partial: self.partial };
        self.partial = false;
        if self.replays && position.provable() {
            self.kept = Some(checkpoint);
            vec![Action::Suspend(reason)]
        } else {
            self.forget(reason)
        }
    }

    fn forget(&mut self, reason: Reason) -> Actions<M> {
        (self.position, self.kept, self.partial, self.matched) = (None, None, false, false);
        vec![Action::Clear(reason)]
    }

    /// Asks for a replay from where we are: from what the index holds, from what is put aside, or from the start.
    fn replay(&mut self, held: Held<M>, attempt: u32) -> Actions<M> {
        if !self.replays {
            return self.go_live(held);
        }
        let mut actions = Vec::new();
        if self.position == Some(START) {
            self.position = None;
        } else if self.position.is_some_and(|position| !position.provable()) {
            actions = self.forget(Reason::Unproved);
        }
        let (expect, from) = match (self.kept, self.position) {
            (Some(kept), _) => (Expect::Kept, kept.position.before()),
            (None, Some(position)) => (Expect::Run(position), position.before()),
            (None, None) => (Expect::Any, 0),
        };
        let again = attempt == 1 && matches!(expect, Expect::Run(_));
        self.state = State::Replaying { held, expect, attempt, progress: false };
        actions.push(Action::Replay { from, again });
        actions
    }

    /// In sync, with these messages.
    fn go_live(&mut self, held: Held<M>) -> Actions<M> {
        self.state = State::Live { audit: None };
        self.sought = false;
        let actions = held.into_messages().flat_map(|message| self.apply(message)).collect();
        self.wake();
        actions
    }

    fn offered(&mut self, offer: Option<Checkpoint>) -> Actions<M> {
        let State::Seeking(held) = &mut self.state else { return Vec::new() };
        let held = std::mem::take(held);
        // Others may not have noticed that the engine sleeps.
        self.kept = offer.filter(|offer| offer.position.provable() && !self.asleep);
        let mut actions: Actions<M> = self.kept.iter().map(|_| Action::Adopt).collect();
        actions.extend(self.replay(held, 1));
        actions
    }

    fn live(&mut self, message: Message<M>) -> Actions<M> {
        // One process counts up. In connections of one process each nothing else comes; if it does, it is not one.
        let back = self.heard.is_some_and(|heard| message.sequence <= heard);
        self.heard = Some(message.sequence);
        match &mut self.state {
            State::Disconnected => Vec::new(),
            // What is known may be of the process before: no bridge leads from it to what comes now.
            State::Replaying { .. } if back => self.interrupted(Reason::Restarted, message),
            State::Seeking(held) | State::Replaying { held, .. } => {
                if back {
                    *held = Held::default();
                }
                held.put(message);
                self.came_up()
            }
            State::Live { .. } => match self.position {
                _ if back => self.interrupted(Reason::Restarted, message),
                Some(position) if message.sequence < position.next => {
                    // Replayed already, unless it is of another process.
                    let met = position.proved_by(&message);
                    self.matched |= met;
                    let older = message.timestamp <= position.last && message.sequence < position.before();
                    if met || older { Vec::new() } else { self.interrupted(Reason::Restarted, message) }
                }
                Some(position) if message.sequence > position.next => self.interrupted(Reason::Gap, message),
                // It fits; but so may one of a process that is gone, read late from a connection that is dead.
                Some(position) if self.replays && !self.matched && position.provable() => {
                    let mut held = Held::default();
                    held.put(message);
                    self.replay(held, 1)
                }
                _ => {
                    // It is silent no more, and what an audit was to begin with may be gone before it is answered.
                    self.state = State::Live { audit: None };
                    self.apply(message)
                }
            },
        }
    }

    /// What is known must be proved before it counts again, and this message comes after it, or is of another process.
    fn interrupted(&mut self, reason: Reason, message: Message<M>) -> Actions<M> {
        let mut actions = self.put_aside(reason);
        let mut held = Held::default();
        held.put(message);
        self.owed = None;
        actions.extend(self.replay(held, 1));
        actions
    }

    fn replayed(&mut self, message: Message<M>) -> Actions<M> {
        if let State::Replaying { held, .. } = &self.state
            && let Some(met) = held.get(message.sequence)
        {
            if met.timestamp.to_bits() != message.timestamp.to_bits() {
                // Subscription and replay are of two processes.
                return self.anew(Reason::Restarted);
            }
            self.matched = true;
        }
        let mut actions = self.bridge(&message);
        let (live, expect) = match &self.state {
            State::Replaying { expect, .. } => (false, *expect),
            State::Live { audit: Some(expect) } => (true, *expect),
            _ => return actions,
        };
        actions.extend(match expect {
            Expect::Any => self.replayed_next(message),
            Expect::Overtook(_) => Vec::new(),
            Expect::Kept => match self.kept {
                Some(kept) if kept.position.proved_by(&message) => {
                    self.met();
                    self.kept = None;
                    (self.position, self.partial) = (Some(kept.position), kept.partial);
                    vec![Action::Restore]
                }
                Some(kept) if message.sequence > kept.position.before() => self.unreachable(message),
                _ => self.other_process(),
            },
            Expect::Run(position) if position.proved_by(&message) => {
                self.met();
                Vec::new()
            }
            // The subscription may be a dead one that nobody told us of.
            Expect::Run(_) if live => self.anew(Reason::Restarted),
            Expect::Run(position) if message.sequence > position.before() => self.unreachable(message),
            Expect::Run(_) => self.other_process(),
        });
        actions
    }

    /// The replay has begun as it should.
    fn met(&mut self) {
        match &mut self.state {
            State::Replaying { expect, .. } | State::Live { audit: Some(expect) } => *expect = Expect::Any,
            _ => {}
        }
    }

    fn not_restored(&mut self) -> Actions<M> {
        let mut actions = self.forget(Reason::Unproved);
        if let State::Replaying { held, .. } = &mut self.state {
            let held = std::mem::take(held);
            actions.extend(self.replay(held, 1));
        }
        actions
    }

    /// The replay begins after what was known: removals in between were missed.
    fn unreachable(&mut self, message: Message<M>) -> Actions<M> {
        let mut actions = self.forget(Reason::Unreachable);
        if let State::Replaying { held, .. } = &mut self.state
            && self.company
            && !self.sought
        {
            // Others may not have lost the stream.
            let held = std::mem::take(held);
            actions.extend(self.seek(held));
            return actions;
        }
        self.met();
        actions.extend(self.replayed(message));
        actions
    }

    /// What was known is of another process: all of this one is wanted.
    fn other_process(&mut self) -> Actions<M> {
        let mut actions = self.forget(Reason::Restarted);
        if let State::Replaying { held, .. } = &mut self.state {
            let held = std::mem::take(held);
            actions.extend(self.replay(held, 1));
        }
        actions
    }

    /// What is known is not of the process that answers.
    fn anew(&mut self, reason: Reason) -> Actions<M> {
        let mut actions = self.forget(reason);
        actions.extend(self.reconnect(reason));
        actions
    }

    /// Makes the connection anew, and proves what is known.
    fn reconnect(&mut self, reason: Reason) -> Actions<M> {
        let mut actions = self.put_aside(reason);
        self.state = State::Disconnected;
        actions.push(Action::Reconnect);
        actions
    }

    fn replayed_next(&mut self, message: Message<M>) -> Actions<M> {
        let sequence = message.sequence;
        if let Some(position) = self.position {
            if sequence < position.next {
                let same = sequence != position.before() || position.proved_by(&message);
                return if same { Vec::new() } else { self.anew(Reason::Restarted) };
            }
            if sequence > position.next {
                // The answer itself lost messages on its way; what it brought is of use.
                return match &mut self.state {
                    State::Replaying { held, attempt, progress, .. } => {
                        let (held, attempt, progress) = (std::mem::take(held), *attempt, *progress);
                        self.replay_more(held, attempt, progress)
                    }
                    _ => self.reconnect(Reason::Gap),
                };
            }
        }
        match &mut self.state {
            State::Replaying { progress, .. } => *progress = true,
            _ => self.owed = Some(sequence),
        }
        self.apply(message)
    }

    /// Asks again, from where the last replay ended, unless that does not help.
    fn replay_more(&mut self, mut held: Held<M>, attempt: u32, progress: bool) -> Actions<M> {
        let attempt = if progress { 1 } else { attempt + 1 };
        if attempt <= REPLAYS_IN_A_ROW {
            return self.replay(held, attempt);
        }
        let mut actions = Vec::new();
        if self.kept.is_some() {
            actions = self.forget(Reason::Unproved);
        }
        if !self.joined(&held) {
            if self.position.is_some() {
                actions.extend(self.forget(Reason::Gap));
            }
            held.keep_newest_run();
        }
        // There is no better to be had.
        self.matched = true;
        actions.extend(self.go_live(held));
        actions
    }

    /// Whether what was held back goes on where the replay ended, without a hole and by the same process.
    fn joined(&self, held: &Held<M>) -> bool {
        let replayed = self.position.is_some_and(|position| position.provable());
        held.follows(self.position) && (self.matched || !replayed || held.first().is_none())
    }

    fn replay_over(&mut self, whole: bool) -> Actions<M> {
        let (mut held, expect, attempt, progress) = match &mut self.state {
            State::Live { audit } => {
                let unmet = audit.take().is_some_and(|expect| expect != Expect::Any);
                // An engine that is too busy to answer says nothing about itself.
                return if unmet && whole { self.anew(Reason::Restarted) } else { Vec::new() };
            }
            State::Replaying { expect: Expect::Overtook(_), .. } => return Vec::new(),
            State::Replaying { held, expect, attempt, progress } => {
                (std::mem::take(held), *expect, *attempt, *progress)
            }
            _ => return Vec::new(),
        };
        if expect != Expect::Any && whole {
            // It does not have what was known.
            let mut actions = self.forget(Reason::Restarted);
            actions.extend(self.replay(held, 1));
            return actions;
        }
        if let Some(position) = self.position {
            // What was replayed need not be applied again.
            held.drop_before(position.next);
        }
        if whole && self.position.is_none() {
            // There was nothing before: the first message will be the first.
            self.position = Some(START);
        }
        // A replay that broke off has done enough if it met what came live.
        let enough = whole || (self.position.is_some() && held.first().is_some());
        if expect != Expect::Any || !enough || !self.joined(&held) {
            return self.replay_more(held, attempt, progress);
        }
        self.go_live(held)
    }

    fn silent(&mut self) -> Actions<M> {
        if matches!(self.state, State::Replaying { expect: Expect::Overtook(_), .. }) {
            return self.left_behind();
        }
        if !self.replays || !matches!(self.state, State::Live { audit: None }) {
            return Vec::new();
        }
        if self.owed.take().is_some_and(|owed| self.heard.is_none_or(|heard| heard < owed)) {
            // The subscription is dead, or the last message was lost on its way; nobody can tell which.
            return self.reconnect(Reason::Silent);
        }
        let (expect, from) = match self.position {
            Some(position) if position.provable() => (Expect::Run(position), position.before()),
            _ => (Expect::Any, 0),
        };
        self.state = State::Live { audit: Some(expect) };
        vec![Action::Replay { from, again: false }]
    }

    fn apply(&mut self, message: Message<M>) -> Actions<M> {
        if self.position.is_none() {
            self.partial = message.sequence > 0;
        }
        self.position = Some(Position::after(&message));
        if message.payload.is_none() {
            // It may have held removals of anything; what is stored later can be believed. A replay would hold it again.
            self.partial = true;
            return vec![Action::Clear(Reason::Unreadable)];
        }
        if self.asleep {
            if !message.resets {
                self.partial = true;
                return Vec::new();
            }
            (self.asleep, self.woke) = (false, false);
        }
        vec![Action::Apply(message)]
    }
}
