//! One endpoint's event stream as a state machine without I/O or clock: which messages may be applied, and when what
//! was known must be put aside, taken back or forgotten.
//!
//! Messages are numbered from 0 by the engine's process. What the index holds of the endpoint is always *as of* a
//! [`Position`]: the message that comes next, and the engine's timestamp of the one before it.
//!
//! ```text
//!                      Connected, nothing kept                     Connected, something kept
//!   Disconnected ──────────────► Seeking ── Offered ─────┐   ┌──────────────────────────────
//!     ▲                        (ask company)             ▼   ▼
//!     │ Disconnected, from                            Replaying ◄───── gap, or doubt ──────┐
//!     │ anywhere: suspend                         (live messages held back)                │
//!     │                                                  │ replay ended, held ones follow  │
//!     └─────────────────────────── Reconnect ──────── Live ────────────────────────────────┘
//!                                              (audit when silent)
//! ```
//!
//! **A checkpoint** is a position with the holdings as of then: what was suspended at a gap or disconnect, or what
//! another indexer offers. It is *proved* by a replay from `next - 1` whose first message has that number and exactly
//! that timestamp: two processes do not number the same moment alike. Proved, it is restored and what follows is
//! applied; anything else (history gone, another timestamp, nothing replayed) discards it. So a reconnect, a gap, a
//! restarted indexer and a new one are one mechanism.
//!
//! **A bridge.** A replay may begin after what is known: the engine keeps few messages, or publishes many before it
//! answers. What came live then lies between, if it follows what is known without a hole and reaches a message that the
//! replay has, too: the same number and exactly the same timestamp. That one makes subscription and replay those of one
//! process; and what is known is of it as well, as it came after the subscription was made and before the replay: an
//! engine's address goes from one process to the next, and never back. A replay that is ahead of the subscription waits
//! for it, until what comes live has a hole, or nothing came for as long as it takes to be audited.
//!
//! **The subscription's beginning.** [`Input::Connected`] says that the subscription was sent. A publisher reads it when
//! it gets to it, and what it sends before goes nowhere. Published before the replay was answered, that is replayed. What
//! lies between the answer and the reading is missed until the next message shows the gap, or else until the first
//! audit, soon after the stream came into sync: so long the index is as of before, as if the messages were late.
//!
//! **Invariants**
//! 1. Between a [`Action::Clear`] or [`Action::Suspend`] and the next one, the messages of [`Action::Apply`] are
//!    consecutive messages of one process, and if they follow an [`Action::Restore`], they follow its position.
//! 2. Holdings that are suspended or offered are never in the index: [`Action::Restore`] comes after their proof.
//! 3. It follows that the index never overcounts: it starts from nothing or from a truth, and a run without holes
//!    misses no removal. The run need not start at message 0, as removals of what was never seen stored are ignored.
//! 4. Memory is bounded: live messages are held back up to [`HELD_MESSAGES`] and [`HELD_BYTES`]. What is dropped
//!    beyond makes a hole, which another replay fills.
//! 5. In `Live`, what is known of the connection can be wrong only until it was silent and audited, if the engine
//!    replays. One that does not is believed until its connection breaks or its metrics show another process.

mod held;
mod machine;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

pub use machine::Stream;

/// Live messages held back while a replay runs, at most; the oldest are dropped beyond this.
pub const HELD_MESSAGES: usize = 4096;
/// Bytes of them, as they came, at most.
pub const HELD_BYTES: usize = 8 << 20;
/// Replays asked for in a row without progress before the stream goes on with what comes.
pub const REPLAYS_IN_A_ROW: u32 = 3;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Input<M> {
    /// The subscription was made, for the first time or again: messages come from one process.
    Connected,
    /// The connection broke.
    Disconnected,
    /// A message arrived on the subscription.
    Live(Message<M>),
    /// A message arrived in answer to a replay request.
    Replayed(Message<M>),
    /// The replay is complete.
    ReplayEnded,
    /// The replay was not answered, or not to its end.
    ReplayFailed,
    /// What company has, in answer to [`Action::Seek`].
    Offered(Option<Checkpoint>),
    /// What was to be put back was not accepted.
    NotRestored,
    /// No live message came for a while.
    Silent,
    /// The engine was put to sleep, which empties its cache; it announces that when it has woken.
    Slept,
    /// It is awake.
    Woke,
}

/// A numbered message.
#[derive(Clone, Debug, PartialEq)]
pub struct Message<M> {
    /// The publisher's count.
    pub sequence: u64,
    /// The publisher's clock, seconds. If the message cannot be read: a number below 0 made of its bytes.
    pub timestamp: f64,
    /// Its bytes.
    pub size: usize,
    /// Whether it says that the whole cache was emptied.
    pub resets: bool,
    /// What it says; `None` if it cannot be read.
    pub payload: Option<M>,
}

/// A place in a stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Position {
    /// The number of the message that comes next.
    pub next: u64,
    /// The timestamp of the message before it.
    pub last: f64,
}

impl Position {
    /// The place after a message.
    fn after<M>(message: &Message<M>) -> Self {
        Self { next: message.sequence.saturating_add(1), last: message.timestamp }
    }

    /// Whether a replay can prove it: there is a message before it, and its time is one.
    #[must_use]
    pub fn provable(&self) -> bool {
        self.next > 0 && self.last.is_finite() && self.last != 0.0
    }

    /// The number of the message before it.
    fn before(&self) -> u64 {
        self.next.saturating_sub(1)
    }

    /// Whether this message is the one before it.
    fn proved_by<M>(&self, message: &Message<M>) -> bool {
        self.provable() && message.sequence == self.before() && message.timestamp.to_bits() == self.last.to_bits()
    }
}

/// What is said of holdings that were put aside, here or elsewhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Checkpoint {
    /// They are as of here.
    pub position: Position,
    /// See [`Stream::partial`].
    pub partial: bool,
}

/// What to do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<M> {
    /// Put this endpoint's holdings aside and take them out of the index. What was put aside before is dropped.
    Suspend(Reason),
    /// Keep the holdings that company offered as those put aside.
    Adopt,
    /// What was put aside is proved: put it back.
    Restore,
    /// Forget all that this endpoint holds, in the index and put aside.
    Clear(Reason),
    /// Ask company for a checkpoint.
    Seek,
    /// Ask for all messages from this number on. Any replay under way is void.
    Replay {
        /// The first message wanted.
        from: u64,
        /// It goes on with a recovery that has made progress: no need to be slow about it.
        again: bool,
    },
    /// Apply this message. It can be read.
    Apply(Message<M>),
    /// Make the connection anew.
    Reconnect,
}

/// Why an endpoint's holdings were put aside or forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The connection broke.
    Disconnected,
    /// Messages were lost.
    Gap,
    /// The engine's process is a new one, or may be.
    Restarted,
    /// The engine's history does not reach back to what was known.
    Unreachable,
    /// The engine did not replay, so that nothing could be proved.
    Unproved,
    /// The engine sleeps.
    Slept,
    /// A message cannot be read: it may have held removals.
    Unreadable,
    /// The subscription says nothing of messages that the engine has published.
    Silent,
    /// What follows the stream has crashed, and begins anew.
    Crashed,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Disconnected,
        Self::Gap,
        Self::Restarted,
        Self::Unreachable,
        Self::Unproved,
        Self::Slept,
        Self::Unreadable,
        Self::Silent,
        Self::Crashed,
    ];

    /// In a word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Reason::Disconnected => "disconnected",
            Reason::Gap => "gap",
            Reason::Restarted => "restarted",
            Reason::Unreachable => "unreachable",
            Reason::Unproved => "unproved",
            Reason::Slept => "slept",
            Reason::Unreadable => "unreadable",
            Reason::Silent => "silent",
            Reason::Crashed => "crashed",
        }
    }
}
