//! Each case of a stream's life.

use super::*;

fn at(process: u32, sequence: u64) -> f64 {
    1e6 + f64::from(process) * 1e6 + sequence as f64
}

pub(super) fn message(process: u32, sequence: u64) -> Message<u32> {
    Message { sequence, timestamp: at(process, sequence), size: 100, resets: false, payload: Some(process) }
}

fn position(process: u32, next: u64) -> Position {
    Position { next, last: at(process, next - 1) }
}

pub(super) fn live(stream: &mut Stream<u32>, process: u32, sequence: u64) -> Vec<Action<u32>> {
    stream.step(Input::Live(message(process, sequence)))
}

pub(super) fn replayed(
    stream: &mut Stream<u32>,
    process: u32,
    sequences: impl IntoIterator<Item = u64>,
) -> Vec<Action<u32>> {
    sequences.into_iter().flat_map(|sequence| stream.step(Input::Replayed(message(process, sequence)))).collect()
}

pub(super) fn applied(process: u32, sequences: impl IntoIterator<Item = u64>) -> Vec<Action<u32>> {
    sequences.into_iter().map(|sequence| Action::Apply(message(process, sequence))).collect()
}

pub(super) fn replay(from: u64) -> Action<u32> {
    Action::Replay { from, again: false }
}

fn go_on(from: u64) -> Action<u32> {
    Action::Replay { from, again: true }
}

/// A stream that was replayed these messages, and heard the last of them on the subscription, too.
pub(super) fn in_sync_after(sequences: impl IntoIterator<Item = u64>) -> Stream<u32> {
    let mut stream = Stream::new(true, false);
    stream.step(Input::Connected);
    let sequences: Vec<u64> = sequences.into_iter().collect();
    if let Some(last) = sequences.last() {
        live(&mut stream, 0, *last);
    }
    replayed(&mut stream, 0, sequences);
    stream.step(Input::ReplayEnded);
    assert!(stream.in_sync());
    stream
}

fn with_company() -> Stream<u32> {
    let mut stream = Stream::new(true, true);
    assert_eq!(stream.step(Input::Connected), [Action::Seek]);
    stream
}

fn offer(process: u32, next: u64) -> Input<u32> {
    Input::Offered(Some(Checkpoint { position: position(process, next), partial: false }))
}

#[test]
fn start_replays_from_the_beginning() {
    let mut stream = Stream::<u32>::new(true, false);
    assert_eq!(stream.step(Input::Connected), [replay(0)]);
    assert!(!stream.in_sync());
    stream.step(Input::ReplayEnded);
    assert!(stream.in_sync() && !stream.partial());
    assert_eq!(stream.checkpoint(), None, "nothing is known");
}

#[test]
fn live_messages_wait_for_the_replay_and_are_not_applied_twice() {
    let mut stream = Stream::new(true, false);
    stream.step(Input::Connected);
    assert_eq!(live(&mut stream, 0, 2), []);
    assert_eq!(live(&mut stream, 0, 3), []);
    assert_eq!(replayed(&mut stream, 0, 0..3), applied(0, 0..3));
    assert_eq!(stream.step(Input::ReplayEnded), applied(0, [3]));
    assert_eq!(live(&mut stream, 0, 4), applied(0, [4]));
    assert_eq!(stream.checkpoint(), Some(Checkpoint { position: position(0, 5), partial: false }));
}

#[test]
fn stragglers_of_the_subscription_are_not_applied_twice() {
    let mut stream = Stream::new(true, false);
    stream.step(Input::Connected);
    replayed(&mut stream, 0, 0..5);
    stream.step(Input::ReplayEnded);
    assert_eq!(live(&mut stream, 0, 3), []);
    assert_eq!(live(&mut stream, 0, 4), []);
    assert_eq!(live(&mut stream, 0, 5), applied(0, [5]));
}

#[test]
fn the_first_live_message_counts_once_a_replay_shows_that_it_is_of_the_same_process() {
    let mut stream = Stream::new(true, false);
    stream.step(Input::Connected);
    replayed(&mut stream, 0, 0..5);
    stream.step(Input::ReplayEnded);
    assert_eq!(live(&mut stream, 0, 5), [go_on(4)]);
    assert_eq!(replayed(&mut stream, 0, 4..6), applied(0, [5]));
    assert_eq!(stream.step(Input::ReplayEnded), []);
    assert_eq!(live(&mut stream, 0, 6), applied(0, [6]));
}

#[test]
fn a_late_join_that_the_replay_does_not_reach_is_partial() {
    let stream = in_sync_after(5..8);
    assert!(stream.partial() && stream.checkpoint().unwrap().partial);
    assert!(!in_sync_after(0..8).partial());
}

#[test]
fn a_gap_suspends_proves_and_restores_without_loss() {
    let mut stream = in_sync_after(0..3);
    assert_eq!(live(&mut stream, 0, 5), [Action::Suspend(Reason::Gap), replay(2)]);
    assert_eq!((stream.state(), stream.checkpoint()), ("proving", None), "nothing counts meanwhile");
    assert_eq!(replayed(&mut stream, 0, [2]), [Action::Restore]);
    live(&mut stream, 0, 6);
    assert_eq!(replayed(&mut stream, 0, [3, 4, 5]), applied(0, 3..6));
    assert_eq!(stream.step(Input::ReplayEnded), applied(0, [6]));
    assert!(stream.in_sync() && !stream.partial());
}

#[test]
fn a_gap_whose_proof_has_another_timestamp_is_a_restart() {
    let mut stream = in_sync_after(0..3);
    assert_eq!(live(&mut stream, 1, 5), [Action::Suspend(Reason::Gap), replay(2)]);
    assert_eq!(replayed(&mut stream, 1, [2]), [Action::Clear(Reason::Restarted), replay(0)]);
    assert_eq!(replayed(&mut stream, 1, 0..6), applied(1, 0..6));
    assert_eq!(stream.step(Input::ReplayEnded), []);
    assert!(stream.in_sync() && !stream.partial());
}

#[test]
fn a_replay_that_no_longer_reaches_back_clears_and_goes_on_from_what_there_is() {
    let mut stream = in_sync_after(0..3);
    live(&mut stream, 0, 9);
    let mut expected = vec![Action::Clear(Reason::Unreachable)];
    expected.extend(applied(0, 7..10));
    assert_eq!(replayed(&mut stream, 0, 7..10), expected);
    assert_eq!(stream.step(Input::ReplayEnded), []);
    assert!(stream.in_sync() && stream.partial());
}

#[test]
fn a_smaller_number_with_a_later_time_is_a_restart() {
    let mut stream = in_sync_after(0..3);
    assert_eq!(live(&mut stream, 1, 0), [Action::Suspend(Reason::Restarted), replay(2)]);
    assert_eq!(stream.step(Input::ReplayEnded), [Action::Clear(Reason::Restarted), replay(0)]);
    assert_eq!(replayed(&mut stream, 1, [0]), applied(1, [0]));
    assert_eq!(stream.step(Input::ReplayEnded), []);
    assert!(stream.in_sync() && !stream.partial());
}

#[test]
fn a_count_that_goes_back_is_a_restart_whatever_the_clock_says() {
    let mut stream = in_sync_after(0..3);
    live(&mut stream, 0, 3);
    let earlier = Message { timestamp: 5.0, ..message(1, 2) };
    assert_eq!(stream.step(Input::Live(earlier)), [Action::Suspend(Reason::Restarted), replay(3)]);
}

#[test]
fn a_restart_masked_by_a_number_that_has_passed_is_seen_at_the_reconnect() {
    let mut stream = in_sync_after(0..3);
    assert_eq!(stream.step(Input::Disconnected), [Action::Suspend(Reason::Disconnected)]);
    assert_eq!(stream.step(Input::Connected), [replay(2)]);
    // The new process has counted on to where the old one was.
    assert_eq!(live(&mut stream, 1, 3), []);
    assert_eq!(replayed(&mut stream, 1, [2]), [Action::Clear(Reason::Restarted), replay(0)]);
    assert_eq!(replayed(&mut stream, 1, 0..4), applied(1, 0..4));
    assert_eq!(stream.step(Input::ReplayEnded), []);
    assert!(stream.in_sync());
}

#[test]
fn a_reconnect_with_nothing_lost_restores_all() {
    let mut stream = in_sync_after(0..3);
    stream.step(Input::Disconnected);
    assert_eq!(stream.step(Input::Disconnected), [], "once");
    assert_eq!(live(&mut stream, 0, 3), [], "of a connection that is gone");
    stream.step(Input::Connected);
    assert_eq!(replayed(&mut stream, 0, [2]), [Action::Restore]);
    assert_eq!(stream.step(Input::ReplayEnded), []);
    assert!(stream.in_sync() && !stream.partial());
    assert_eq!(live(&mut stream, 0, 3), [go_on(2)]);
    assert_eq!(replayed(&mut stream, 0, [2, 3]), applied(0, [3]));
}

#[test]
fn what_is_put_aside_outlives_connections_that_break_before_its_proof() {
    let mut stream = in_sync_after(0..3);
    for _ in 0..3 {
        stream.step(Input::Disconnected);
        assert_eq!(stream.step(Input::Connected), [replay(2)]);
    }
    assert_eq!(replayed(&mut stream, 0, [2]), [Action::Restore]);
}

#[test]
fn a_broken_connection_while_replaying_suspends_what_was_replayed() {
    let mut stream = Stream::new(true, false);
    stream.step(Input::Connected);
    replayed(&mut stream, 0, 0..4);
    assert_eq!(stream.step(Input::Disconnected), [Action::Suspend(Reason::Disconnected)]);
    assert_eq!(stream.step(Input::Connected), [replay(3)]);
}

#[test]
fn without_replays_a_gap_or_a_broken_connection_clears_and_the_stream_goes_on() {
    let mut stream = Stream::new(false, true);
    assert_eq!(stream.step(Input::Connected), []);
    assert!(stream.in_sync());
    assert_eq!(live(&mut stream, 0, 70), applied(0, [70]));
    assert!(stream.partial());
    assert_eq!(live(&mut stream, 0, 72), [Action::Clear(Reason::Gap), Action::Apply(message(0, 72))]);
    assert_eq!(stream.step(Input::Silent), [], "nobody could be asked");
    assert_eq!(stream.step(Input::Disconnected), [Action::Clear(Reason::Disconnected)]);
}

#[test]
fn a_replay_that_breaks_off_is_asked_for_again_from_where_it_was() {
    let mut stream = Stream::new(true, false);
    stream.step(Input::Connected);
    replayed(&mut stream, 0, 0..4);
    assert_eq!(stream.step(Input::ReplayFailed), [go_on(3)]);
    assert_eq!(replayed(&mut stream, 0, 3..6), applied(0, 4..6));
    assert_eq!(stream.step(Input::ReplayEnded), []);
    assert!(stream.in_sync() && !stream.partial());
}

#[test]
fn a_replay_that_broke_off_after_it_met_the_live_messages_is_enough() {
    let mut stream = Stream::new(true, false);
    stream.step(Input::Connected);
    live(&mut stream, 0, 3);
    live(&mut stream, 0, 4);
    replayed(&mut stream, 0, 0..4);
    assert_eq!(stream.step(Input::ReplayFailed), applied(0, [4]));
    assert!(stream.in_sync());
}

#[test]
fn a_replay_that_lost_messages_on_its_way_is_asked_for_again_from_the_hole() {
    let mut stream = Stream::new(true, false);
    stream.step(Input::Connected);
    assert_eq!(replayed(&mut stream, 0, [0, 1, 4]), [applied(0, 0..2), vec![go_on(1)]].concat());
    assert_eq!(replayed(&mut stream, 0, 1..5), applied(0, 2..5));
}

#[test]
fn an_engine_that_never_replays_is_believed_from_what_comes_in_the_end() {
    let mut stream = in_sync_after(0..3);
    stream.step(Input::Disconnected);
    stream.step(Input::Connected);
    live(&mut stream, 0, 4);
    for _ in 1..REPLAYS_IN_A_ROW {
        assert_eq!(stream.step(Input::ReplayFailed), [replay(2)]);
    }
    assert_eq!(stream.step(Input::ReplayFailed), [Action::Clear(Reason::Unproved), Action::Apply(message(0, 4))]);
    assert!(stream.in_sync() && stream.partial());
}

#[test]
fn a_hole_that_replays_do_not_fill_ends_with_the_newest_run() {
    let mut stream = Stream::new(true, false);
    stream.step(Input::Connected);
    for sequence in [4, 6, 7] {
        live(&mut stream, 0, sequence);
    }
    replayed(&mut stream, 0, [0]);
    assert_eq!(stream.step(Input::ReplayEnded), [go_on(0)]);
    for _ in 1..REPLAYS_IN_A_ROW {
        replayed(&mut stream, 0, [0]);
        assert_eq!(stream.step(Input::ReplayEnded), [replay(0)]);
    }
    replayed(&mut stream, 0, [0]);
    assert_eq!(stream.step(Input::ReplayEnded), [vec![Action::Clear(Reason::Gap)], applied(0, 6..8)].concat());
    assert!(stream.in_sync() && stream.partial());
}

#[test]
fn the_first_message_lost_is_a_gap() {
    let mut stream = in_sync_after([]);
    assert_eq!(live(&mut stream, 0, 1), [replay(0)]);
    assert_eq!(replayed(&mut stream, 0, 0..2), applied(0, 0..2));
    stream.step(Input::ReplayEnded);
    assert!(stream.in_sync() && !stream.partial());
}

#[test]
fn a_late_or_repeated_replay_changes_nothing() {
    let mut stream = in_sync_after(0..3);
    assert_eq!(replayed(&mut stream, 0, 0..9), []);
    assert_eq!(stream.step(Input::ReplayEnded), []);
    assert_eq!(stream.step(Input::ReplayFailed), []);
    live(&mut stream, 0, 5);
    assert_eq!(replayed(&mut stream, 0, [2, 2, 3, 3]), [Action::Restore, Action::Apply(message(0, 3))]);
}

#[test]
fn a_replay_of_another_process_than_the_subscriptions_makes_the_connection_anew() {
    let expected = [Action::Clear(Reason::Restarted), Action::Reconnect];
    let mut overlapping = Stream::new(true, false);
    overlapping.step(Input::Connected);
    live(&mut overlapping, 0, 1);
    assert_eq!(replayed(&mut overlapping, 1, [0]), applied(1, [0]));
    assert_eq!(replayed(&mut overlapping, 1, [1]), expected);
    assert_eq!(live(&mut overlapping, 0, 2), []);
    // The dead process's last message would fit.
    for before_the_end in [true, false] {
        let mut fitting = Stream::new(true, false);
        fitting.step(Input::Connected);
        if before_the_end {
            live(&mut fitting, 0, 2);
        }
        replayed(&mut fitting, 1, 0..2);
        let mut actions = fitting.step(Input::ReplayEnded);
        if !before_the_end {
            actions = live(&mut fitting, 0, 2);
        }
        assert_eq!(actions, [go_on(1)]);
        assert_eq!(replayed(&mut fitting, 1, 1..3), expected);
        assert_eq!(fitting.step(Input::Disconnected), []);
        assert_eq!(fitting.step(Input::Connected), [replay(0)]);
    }
}

#[test]
fn a_slow_consumer_holds_a_bounded_number_back_and_another_replay_fills_the_hole() {
    let mut stream = Stream::new(true, false);
    stream.step(Input::Connected);
    let last = HELD_MESSAGES as u64 + 99;
    for sequence in 0..=last {
        assert_eq!(live(&mut stream, 0, sequence), []);
    }
    assert_eq!(replayed(&mut stream, 0, 0..50), applied(0, 0..50));
    assert_eq!(stream.step(Input::ReplayEnded), [go_on(49)], "the first hundred were dropped");
    assert_eq!(replayed(&mut stream, 0, 49..120), applied(0, 50..120));
    assert_eq!(stream.step(Input::ReplayEnded), applied(0, 120..=last));
    assert!(stream.in_sync() && !stream.partial());
}

#[test]
fn large_messages_are_held_back_by_their_bytes() {
    let mut stream = Stream::new(true, false);
    stream.step(Input::Connected);
    let large = |sequence| Message { size: HELD_BYTES / 2, ..message(0, sequence) };
    for sequence in 0..5 {
        stream.step(Input::Live(large(sequence)));
    }
    replayed(&mut stream, 0, 0..4);
    assert_eq!(stream.step(Input::ReplayEnded), [Action::Apply(large(4))]);
    assert!(stream.in_sync());
}

#[test]
fn a_sleeping_engine_holds_nothing_until_it_says_that_it_was_emptied() {
    let mut stream = in_sync_after(0..3);
    assert_eq!(stream.step(Input::Slept), [Action::Clear(Reason::Slept)]);
    assert_eq!(stream.step(Input::Slept), [], "once");
    assert_eq!(live(&mut stream, 0, 3), [], "published before it slept");
    assert_eq!(stream.checkpoint().unwrap(), Checkpoint { position: position(0, 4), partial: true });
    let clears = Message { resets: true, ..message(0, 4) };
    assert_eq!(stream.step(Input::Live(clears.clone())), [Action::Apply(clears)], "the delayed clear");
    assert_eq!(live(&mut stream, 0, 5), applied(0, [5]));
}

#[test]
fn an_engine_that_woke_without_a_word_counts_from_then_on() {
    let mut stream = in_sync_after(0..3);
    stream.step(Input::Slept);
    stream.step(Input::Woke);
    assert_eq!(live(&mut stream, 0, 3), applied(0, [3]));
}

#[test]
fn what_was_put_aside_before_a_sleep_does_not_come_back() {
    let mut stream = in_sync_after(0..3);
    stream.step(Input::Disconnected);
    assert_eq!(stream.step(Input::Slept), [Action::Clear(Reason::Slept)]);
    assert_eq!(stream.step(Input::Connected), [replay(0)]);
    stream.step(Input::Woke);
    live(&mut stream, 0, 2);
    assert_eq!(replayed(&mut stream, 0, 0..3), [], "of before the sleep");
    assert_eq!(stream.step(Input::ReplayEnded), []);
    assert_eq!(live(&mut stream, 0, 3), applied(0, [3]));
    assert!(stream.partial());
}

#[test]
fn what_others_offer_of_a_sleeping_engine_is_not_taken() {
    let mut stream = Stream::new(true, true);
    stream.step(Input::Slept);
    stream.step(Input::Connected);
    assert_eq!(stream.step(offer(0, 3)), [replay(0)]);
}

#[test]
fn an_unreadable_message_clears_and_the_stream_goes_on_without_a_replay() {
    let mut stream = in_sync_after(0..3);
    let unreadable = Message { payload: None, timestamp: -77.0, ..message(0, 3) };
    assert_eq!(stream.step(Input::Live(unreadable)), [Action::Clear(Reason::Unreadable)]);
    assert!(stream.in_sync() && stream.partial());
    assert_eq!(live(&mut stream, 0, 4), applied(0, [4]));
    assert!(stream.checkpoint().is_some_and(|checkpoint| checkpoint.partial));
}

#[test]
fn an_audit_of_an_engine_with_nothing_new_does_nothing() {
    let mut stream = in_sync_after(0..3);
    assert_eq!(stream.step(Input::Silent), [replay(2)]);
    assert!(stream.in_sync());
    assert_eq!(stream.step(Input::Silent), [], "one at a time");
    assert_eq!(replayed(&mut stream, 0, [2]), []);
    assert_eq!(stream.step(Input::ReplayEnded), []);
    assert_eq!(stream.step(Input::Silent), [replay(2)]);
    assert_eq!(stream.step(Input::ReplayFailed), [], "too busy to answer");
    assert!(stream.in_sync());
}

#[test]
fn an_audit_finds_the_lost_tail_and_a_subscription_that_stays_silent_is_made_anew() {
    let mut stream = in_sync_after(0..3);
    stream.step(Input::Silent);
    assert_eq!(replayed(&mut stream, 0, 2..5), applied(0, 3..5));
    stream.step(Input::ReplayEnded);
    assert_eq!(stream.step(Input::Silent), [Action::Suspend(Reason::Silent), Action::Reconnect]);
    assert_eq!(stream.step(Input::Disconnected), []);
    assert_eq!(stream.step(Input::Connected), [replay(4)]);
}

#[test]
fn an_audit_that_was_only_faster_than_the_subscription_is_no_reason_to_reconnect() {
    let mut stream = in_sync_after(0..3);
    stream.step(Input::Silent);
    assert_eq!(replayed(&mut stream, 0, 2..5), applied(0, 3..5));
    assert_eq!(live(&mut stream, 0, 3), []);
    assert_eq!(live(&mut stream, 0, 4), []);
    stream.step(Input::ReplayEnded);
    assert_eq!(live(&mut stream, 0, 5), applied(0, [5]));
    assert_eq!(stream.step(Input::Silent), [replay(5)]);
}

#[test]
fn an_audit_answered_by_another_process_clears_and_makes_the_connection_anew() {
    for answer in [vec![2u64], vec![9], vec![]] {
        let mut stream = in_sync_after(0..3);
        stream.step(Input::Silent);
        let mut actions = replayed(&mut stream, 1, answer);
        actions.extend(stream.step(Input::ReplayEnded));
        assert_eq!(actions, [Action::Clear(Reason::Restarted), Action::Reconnect]);
        assert!(!stream.in_sync());
    }
}

#[test]
fn a_gap_during_an_audit_is_a_gap() {
    let mut stream = in_sync_after(0..3);
    stream.step(Input::Silent);
    assert_eq!(live(&mut stream, 0, 4), [Action::Suspend(Reason::Gap), replay(2)]);
}

#[test]
fn messages_published_in_one_moment_are_of_one_process() {
    let at_once = |sequence| Message { timestamp: 5.0, ..message(0, sequence) };
    let mut stream = Stream::new(true, false);
    stream.step(Input::Connected);
    (0..4).for_each(|sequence| drop(stream.step(Input::Replayed(at_once(sequence)))));
    stream.step(Input::ReplayEnded);
    for known in [1, 3] {
        assert_eq!(stream.step(Input::Live(at_once(known))), [], "it was replayed");
    }
    assert_eq!(stream.step(Input::Live(at_once(4))), [Action::Apply(at_once(4))]);
}

#[test]
fn an_audit_answered_after_live_messages_that_left_the_buffer_since_says_nothing() {
    let mut stream = in_sync_after(0..3);
    stream.step(Input::Silent);
    assert_eq!((3..9).flat_map(|sequence| live(&mut stream, 0, sequence)).collect::<Vec<_>>(), applied(0, 3..9));
    assert_eq!(replayed(&mut stream, 0, 7..9), []);
    assert_eq!(stream.step(Input::ReplayEnded), []);
    assert_eq!(stream.step(Input::Silent), [replay(8)], "the next one does");
}

#[test]
fn what_company_offers_is_proved_and_restored() {
    let mut stream = with_company();
    assert_eq!(live(&mut stream, 0, 7), []);
    assert_eq!(stream.step(offer(0, 5)), [Action::Adopt, replay(4)]);
    assert_eq!(replayed(&mut stream, 0, [4]), [Action::Restore]);
    assert_eq!(replayed(&mut stream, 0, 5..8), applied(0, 5..8));
    assert_eq!(stream.step(Input::ReplayEnded), []);
    assert!(stream.in_sync() && !stream.partial());
}

#[test]
fn what_company_offers_of_another_process_is_forgotten() {
    let mut stream = with_company();
    stream.step(offer(0, 5));
    assert_eq!(replayed(&mut stream, 1, [4]), [Action::Clear(Reason::Restarted), replay(0)]);
    assert_eq!(stream.step(offer(0, 5)), [], "late");
}

#[test]
fn without_an_offer_a_stream_begins_as_it_would_alone() {
    let nothing = Checkpoint { position: Position { next: 0, last: 1.0 }, partial: false };
    let timeless = Checkpoint { position: Position { next: 3, last: f64::NAN }, partial: false };
    for offer in [None, Some(nothing), Some(timeless)] {
        assert_eq!(with_company().step(Input::Offered(offer)), [replay(0)]);
    }
}

#[test]
fn company_is_asked_again_where_the_history_no_longer_reaches() {
    let mut stream = with_company();
    stream.step(Input::Offered(None));
    replayed(&mut stream, 0, 0..3);
    stream.step(Input::ReplayEnded);
    stream.step(Input::Disconnected);
    assert_eq!(stream.step(Input::Connected), [replay(2)]);
    assert_eq!(replayed(&mut stream, 0, [50]), [Action::Clear(Reason::Unreachable), Action::Seek]);
    assert_eq!(stream.step(offer(0, 60)), [Action::Adopt, replay(59)]);
    assert_eq!(replayed(&mut stream, 0, [59]), [Action::Restore]);
}

#[test]
fn what_company_offers_and_the_index_refuses_is_replayed_instead() {
    let mut stream = with_company();
    stream.step(offer(0, 5));
    assert_eq!(replayed(&mut stream, 0, [4]), [Action::Restore]);
    assert_eq!(stream.step(Input::NotRestored), [Action::Clear(Reason::Unproved), replay(0)]);
    assert_eq!(replayed(&mut stream, 0, 0..2), applied(0, 0..2));
}
