//! Where a replay begins after what is known, because the engine keeps few messages or answers late: what came live may
//! lie between. See the module `stream` for why that is proof enough.

use super::{Actions, Expect, Held, State, Stream};
use crate::stream::{Message, Position, Reason};

impl<M> Stream<M> {
    /// Applies what lies between what is known and this replayed message. If that has yet to come, it is waited for.
    pub(super) fn bridge(&mut self, message: &Message<M>) -> Actions<M> {
        let State::Replaying { held, expect, .. } = &mut self.state else { return Vec::new() };
        let begins_late = match expect {
            Expect::Run(position) => message.sequence > position.before(),
            Expect::Any => self.position.is_none(),
            Expect::Kept | Expect::Overtook(_) => false,
        };
        let Some(last) = held.last().filter(|_| begins_late && held.follows(self.position)) else { return Vec::new() };
        let meeting = Position::after(message);
        if !meeting.provable() {
            return Vec::new();
        }
        if message.sequence <= last.sequence {
            *expect = Expect::Any;
            let between = held.take_before(message.sequence);
            return between.into_iter().flat_map(|message| self.apply(message)).collect();
        }
        *expect = Expect::Overtook(meeting);
        Vec::new()
    }

    /// Something came live: a replay that was ahead of it may be no more.
    pub(super) fn came_up(&mut self) -> Actions<M> {
        let State::Replaying { held, expect: Expect::Overtook(meeting), .. } = &mut self.state else {
            return Vec::new();
        };
        // It came, and was too much to be held back.
        let passed = self.heard >= Some(meeting.before()) && held.get(meeting.before()).is_none();
        if passed || !held.follows(self.position) {
            return self.left_behind();
        }
        match held.get(meeting.before()).map(|message| meeting.proved_by(message)) {
            None => Vec::new(),
            Some(false) => self.anew(Reason::Restarted),
            Some(true) => {
                let held = std::mem::take(held);
                self.matched = true;
                self.go_live(held)
            }
        }
    }

    /// What was to come live does not: a replay counts as it is.
    pub(super) fn left_behind(&mut self) -> Actions<M> {
        let mut actions = match self.position {
            Some(_) => self.forget(Reason::Unreachable),
            None => Vec::new(),
        };
        actions.extend(self.seek(Held::default()));
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::tests::{applied, in_sync_after, live, message, replay, replayed};
    use crate::stream::{Action, HELD_BYTES, Input};

    /// One that heard so many messages from the first on, while the replay that the second one led to was not answered.
    fn heard(until: u64) -> Stream<u32> {
        let mut stream = in_sync_after([]);
        assert_eq!(live(&mut stream, 0, 0), applied(0, [0]));
        assert_eq!(live(&mut stream, 0, 1), [Action::Replay { from: 0, again: true }]);
        for sequence in 2..until {
            assert_eq!(live(&mut stream, 0, sequence), []);
        }
        stream
    }

    fn knows_all(mut stream: Stream<u32>, next: u64) {
        assert!(stream.in_sync() && !stream.partial());
        assert_eq!(live(&mut stream, 0, next), applied(0, [next]), "without another replay");
    }

    #[test]
    fn a_replay_that_begins_within_what_came_live_costs_nothing() {
        let mut stream = heard(9);
        assert_eq!(replayed(&mut stream, 0, [5]), applied(0, 1..6));
        assert_eq!(replayed(&mut stream, 0, [6, 7, 8, 9]), applied(0, 6..10));
        assert_eq!(stream.step(Input::ReplayEnded), []);
        assert_eq!(live(&mut stream, 0, 9), []);
        knows_all(stream, 10);
    }

    #[test]
    fn the_first_replay_may_be_late_too() {
        let mut stream = Stream::new(true, false);
        stream.step(Input::Connected);
        for sequence in 0..4 {
            live(&mut stream, 0, sequence);
        }
        assert_eq!(replayed(&mut stream, 0, [2, 3]), applied(0, 0..4));
        assert_eq!(stream.step(Input::ReplayEnded), []);
        knows_all(stream, 4);
    }

    #[test]
    fn a_replay_that_overtook_what_comes_live_is_waited_for() {
        let mut stream = heard(4);
        assert_eq!(replayed(&mut stream, 0, [6, 7]), []);
        assert_eq!(stream.step(Input::ReplayEnded), []);
        assert_eq!(live(&mut stream, 0, 4), []);
        assert_eq!(live(&mut stream, 0, 5), []);
        assert_eq!(live(&mut stream, 0, 6), applied(0, 1..7));
        knows_all(stream, 7);
    }

    #[test]
    fn a_replay_that_overtook_what_never_comes_counts_as_it_is() {
        let begins_anew = [Action::Clear(Reason::Unreachable), replay(0)];
        let mut hole = heard(4);
        replayed(&mut hole, 0, [6, 7]);
        assert_eq!(live(&mut hole, 0, 5), begins_anew);
        let mut silence = heard(4);
        replayed(&mut silence, 0, [6, 7]);
        assert_eq!(silence.step(Input::Silent), begins_anew);
        for mut stream in [hole, silence] {
            assert_eq!(replayed(&mut stream, 0, [6, 7]), applied(0, 6..8));
            stream.step(Input::ReplayEnded);
            assert!(stream.in_sync() && stream.partial());
        }
    }

    #[test]
    fn a_replay_of_another_process_is_no_bridge() {
        let anew = [Action::Clear(Reason::Restarted), Action::Reconnect];
        assert_eq!(replayed(&mut heard(4), 1, [2]), anew);
        let mut overtaken = heard(4);
        assert_eq!(replayed(&mut overtaken, 1, [4]), []);
        assert_eq!(live(&mut overtaken, 0, 4), anew);
        let timeless = Message { timestamp: 0.0, ..message(0, 6) };
        assert_ne!(heard(4).step(Input::Replayed(timeless)), [], "it could not be recognised");
    }

    #[test]
    fn messages_without_a_time_are_no_bridge() {
        let timeless = |process, sequence| Message { timestamp: 0.0, ..message(process, sequence) };
        let mut stream = Stream::new(true, false);
        stream.step(Input::Connected);
        for sequence in 0..4 {
            stream.step(Input::Live(timeless(0, sequence)));
        }
        assert_eq!(
            stream.step(Input::Replayed(timeless(1, 2))),
            [Action::Apply(timeless(1, 2))],
            "of its process only"
        );
    }

    #[test]
    fn a_subscription_that_counts_back_within_a_replay_is_not_bridged_to_what_was_before() {
        let mut stream = heard(4);
        assert_eq!(live(&mut stream, 1, 1), [Action::Suspend(Reason::Restarted), replay(0)]);
        // What was heard before is not known to be of this process.
        let actions = replayed(&mut stream, 1, [1, 2]);
        assert_eq!(actions.first(), Some(&Action::Clear(Reason::Unreachable)), "{actions:?}");
    }

    #[test]
    fn a_message_too_large_to_be_held_back_is_not_waited_for() {
        let mut stream = Stream::new(true, false);
        stream.step(Input::Connected);
        for sequence in 5..8 {
            live(&mut stream, 0, sequence);
        }
        assert_eq!(replayed(&mut stream, 0, [8, 9]), []);
        assert_eq!(stream.step(Input::ReplayEnded), []);
        let large = Message { size: HELD_BYTES + 1, ..message(0, 8) };
        assert_eq!(stream.step(Input::Live(large)), [replay(0)]);
    }
}
