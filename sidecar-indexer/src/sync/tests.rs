use super::*;
use crate::events::{Attention, Event, Removed, Stored};
use crate::index::Options;
use affinity::Tier;
use affinity::page::PageView;
use affinity::rows::{News, renewed};
use affinity::sync::{Load, read_frames};
use std::collections::BTreeMap;

const COALESCE: Duration = Duration::from_millis(10);

pub(super) fn state(epoch: u32) -> State {
    let stride = Stride::new(8).unwrap();
    let index = Index::new(Options { stride, max_blocks: 1 << 20, tiers: vec![Tier::Gpu] }, epoch);
    let mut state = State::new(index, Models::new([], 0), stride);
    enter(&mut state, 0, 8000);
    state
}

pub(super) fn enter(state: &mut State, slot: u16, port: u16) {
    let config = serde_json::json!({"added_tokens_decoder": {"0": {"content": "x"}, "1": {"content": "y"}}});
    let vocabulary = Arc::new(Vocabulary::from_tiktoken("", &config, false).unwrap());
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    state.enter(Slot(slot), &Wanted::bare(address, "tiny"), &vocabulary, false);
    state.gateways.set_slots(usize::from(slot) + 1);
    state.gateways.fleet_changed(true);
}

fn fleet_in(reply: &[u8]) -> Option<fleet::Fleet> {
    read_frames(reply).find_map(|f| if let Frame::Fleet(page) = f { fleet::Fleet::decode(page) } else { None })
}

/// A gateway that still has pages of a slot's last owner must not read them as the new one's.
#[test]
fn who_gets_a_used_slot_has_no_events_before_the_table_is_had() {
    let (mut state, now) = (state(77), Instant::now());
    state.fleet.set_events(Slot(0), true);
    fill(&mut state, 10);
    let (reply, old) = ask(&mut state, 1, Versions::default(), now);
    assert!(fleet_in(&reply).unwrap().endpoints[0].events);
    state.leave(Slot(0));
    enter(&mut state, 0, 9000);
    state.fleet.set_events(Slot(0), true);
    let seen = |reply: &[u8]| fleet_in(reply).map(|f| (f.endpoints[0].address.clone(), f.endpoints[0].events));
    let (reply, end) = ask(&mut state, 1, old.have, now);
    assert_eq!(seen(&reply), Some(("127.0.0.1:9000".into(), false)));
    let request = Request { gateway: 1, have: end.have, wait_ms: 0, loads: Vec::new() };
    assert_eq!(state.pending(&request, now, COALESCE), Pending::News(now + COALESCE));
    let (reply, end) = ask(&mut state, 1, end.have, now);
    assert_eq!(seen(&reply), Some(("127.0.0.1:9000".into(), true)));
    assert_eq!(fleet_in(&ask(&mut state, 1, end.have, now).0), None, "it is told once");
}

/// Stores a sequence of one block; another number spells other bytes.
pub(super) fn store(state: &mut State, slot: u16, number: u64) {
    let tokens: Vec<u32> = (0..32).map(|bit| (number >> bit & 1) as u32).collect();
    let stored = Stored {
        hashes: &[number],
        parent: None,
        tokens: &tokens,
        block_size: 32,
        tier: Tier::Gpu,
        group: 0,
        attention: Attention::Full,
        adapter: None,
        salt: None,
        readable: 1,
        may_repeat: false,
    };
    state.index.apply(Slot(slot), &Event::Stored(stored));
}

pub(super) fn remove(state: &mut State, slot: u16, number: u64) {
    let removed = Removed { hashes: &[number], tier: Tier::Gpu, group: None };
    state.index.apply(Slot(slot), &Event::Removed(removed));
}

/// Stores `n` sequences.
fn fill(state: &mut State, n: u64) {
    (0..n).for_each(|number| store(state, 0, number));
    state.index.settle();
}

pub(super) fn ask(state: &mut State, gateway: u64, have: Versions, now: Instant) -> (Vec<u8>, End) {
    let request = Request { gateway, have, wait_ms: 0, loads: Vec::new() };
    state.gateways.report(gateway, &[], now);
    let (reply, _) = state.reply(&request, now);
    let Some(Frame::End(end)) = read_frames(&reply).last() else { panic!("no end") };
    (reply, end)
}

#[test]
fn all_pages_arrive_in_replies_of_bounded_size_and_then_no_more() {
    let (mut state, now) = (state(77), Instant::now());
    fill(&mut state, 60_000);
    let (mut have, mut pages, mut replies) = (Versions::default(), BTreeMap::new(), 0);
    loop {
        let (reply, end) = ask(&mut state, 1, have, now);
        assert!(reply.len() < REPLY_BYTES + 1000, "{}", reply.len());
        for frame in read_frames(&reply) {
            if let Frame::Page(page, bytes) = frame {
                assert!(pages.insert(page, PageView::parse(bytes).unwrap().len()).is_none(), "page {page} twice");
            }
        }
        (have, replies) = (end.have, replies + 1);
        let request = Request { gateway: 1, have, wait_ms: 0, loads: Vec::new() };
        if !end.more {
            assert_eq!(state.pending(&request, now, COALESCE), Pending::Nothing);
            break;
        }
        assert_eq!(state.pending(&request, now, COALESCE), Pending::Now);
    }
    assert!(replies > 1);
    assert_eq!(pages.values().sum::<usize>(), state.index.table().len());
}

/// What a gateway keeps.
#[derive(Clone, Default)]
struct Kept {
    have: Versions,
    pages: BTreeMap<u32, Vec<u8>>,
}

impl Kept {
    /// Asks and takes over what comes, as the filter does, but no more than `most` frames. Says what came.
    fn ask(&mut self, state: &mut State, gateway: u64, most: usize) -> Sent {
        let now = Instant::now();
        let request = Request { gateway, have: self.have, wait_ms: 0, loads: Vec::new() };
        state.gateways.report(gateway, &[], now);
        let (reply, sent) = state.reply(&request, now);
        let Some(Frame::End(end)) = read_frames(&reply).last() else { panic!("no end") };
        for frame in read_frames(&reply).take(most) {
            match frame {
                Frame::Page(page, bytes) => self.write(page, News::Whole(bytes)),
                Frame::Rows(page, rows) => {
                    self.write(page, News::Rows { rows, epoch: end.have.epoch, as_of: end.have.table });
                }
                Frame::End(end) => self.have = end.have,
                _ => {}
            }
        }
        sent
    }

    fn write(&mut self, page: u32, news: News<'_>) {
        let new = renewed(self.pages.get(&page).map(Vec::as_slice), news).expect("the page is there for its rows");
        self.pages.extend(new.map(|bytes| (page, bytes.into_owned())));
    }

    fn check(&self, state: &State) {
        same_table(&self.pages, state);
    }
}

/// That pages say what the index says.
pub(super) fn same_table(pages: &BTreeMap<u32, Vec<u8>>, state: &State) {
    for page in 0..1u32 << state.index.table().bits() {
        let now = state.index.page(page);
        let (own, now) = (pages.get(&page).map(|p| PageView::parse(p).unwrap()), PageView::parse(&now).unwrap());
        // Those of another epoch say nothing; of a table to which nothing has happened none is sent.
        let own = own.filter(|own| own.epoch == now.epoch);
        assert_eq!(own.map_or(0, |own| own.len()), now.len(), "page {page}");
        for entry in state.index.entries(page) {
            let said =
                |page: &PageView<'_>| page.get(entry.fingerprint).map(|f| (f.tokens, f.holders().collect::<Vec<_>>()));
            assert_eq!(own.as_ref().and_then(said), said(&now));
        }
    }
}

#[test]
fn gateways_that_lag_or_lose_replies_have_the_same_table() {
    let mut state = state(77);
    enter(&mut state, 1, 8001);
    let (mut gateways, mut sent) = (vec![Kept::default(); 4], [Sent::default(); 4]);
    for step in 0..2_000u64 {
        let number = (step * 7) % 301;
        match step % 5 {
            0..3 => store(&mut state, (step % 2) as u16, number),
            3 => remove(&mut state, (step / 5 % 2) as u16, number * 2 % 301),
            _ => store(&mut state, 1, (step * 3) % 301),
        }
        if step % 701 == 700 {
            state.index.clear(Slot(1));
        }
        state.index.settle();
        for (number, every) in [1, 3, 50, 2].into_iter().enumerate() {
            if step % every != 0 {
                continue;
            }
            // The last one dies half-way through every third reply.
            let most = if number == 3 && step % 3 == 0 { step as usize % 7 } else { usize::MAX };
            let reply = gateways[number].ask(&mut state, number as u64, most);
            let sum = &mut sent[number];
            (sum.pages, sum.rows) = (sum.pages + reply.pages, sum.rows + reply.rows);
            if most == usize::MAX {
                gateways[number].check(&state);
            }
        }
    }
    assert!(sent[0].pages * 5 < sent[0].rows, "mostly rows are sent: {sent:?}");
    assert!(sent[2].pages > 64, "a page of which all changed is sent whole: {sent:?}");
}

#[test]
fn whoever_is_too_far_behind_gets_pages() {
    let mut state = state(77);
    fill(&mut state, 100);
    let mut kept = Kept::default();
    kept.ask(&mut state, 1, usize::MAX);
    assert_eq!(kept.ask(&mut state, 1, usize::MAX), Sent::default());
    fill(&mut state, 60_000);
    let first = kept.ask(&mut state, 1, usize::MAX);
    assert!(first.more && first.rows == 0 && kept.have.pages > kept.have.table, "{first:?}");
    // Rows would reach it now, but over pages that it does not have yet.
    store(&mut state, 0, 1 << 20);
    state.index.settle();
    let mut sent = first;
    while sent.more {
        sent = kept.ask(&mut state, 1, usize::MAX);
        assert_eq!(sent.rows, 0);
    }
    kept.check(&state);
    store(&mut state, 0, 1 << 21);
    state.index.settle();
    let sent = kept.ask(&mut state, 1, usize::MAX);
    assert!(sent.rows > 0 && sent.pages == 0, "{sent:?}");
    kept.check(&state);
    // It lost its table: nothing of it is taken for granted.
    let lost = Kept { have: Versions { table: 0, pages: 0, ..kept.have }, ..Kept::default() };
    kept = lost;
    while kept.ask(&mut state, 1, usize::MAX).more {}
    kept.check(&state);
}

#[test]
fn news_after_a_pause_is_sent_at_once_and_more_of_it_is_collected() {
    let (mut state, start) = (state(77), Instant::now());
    fill(&mut state, 10);
    let (_, end) = ask(&mut state, 1, Versions::default(), start);
    let request = Request { gateway: 1, have: end.have, wait_ms: 0, loads: Vec::new() };
    store(&mut state, 0, 77);
    let (soon, late) = (start + COALESCE / 2, start + 5 * COALESCE);
    assert_eq!(state.pending(&request, soon, COALESCE), Pending::News(start + COALESCE));
    assert_eq!(state.pending(&request, late, COALESCE), Pending::News(start + COALESCE), "which is over");
    let stranger = Request { gateway: 2, ..request };
    assert_eq!(state.pending(&stranger, late, COALESCE), Pending::News(late + COALESCE));
}

#[test]
fn a_change_between_two_parts_of_a_reply_is_not_lost() {
    let (mut state, now) = (state(77), Instant::now());
    fill(&mut state, 60_000);
    let (_, first) = ask(&mut state, 1, Versions::default(), now);
    assert!(first.more);
    // Every page changes, those sent already too.
    state.index.clear(Slot(0));
    let (reply, second) = ask(&mut state, 1, first.have, now);
    assert!(!second.more);
    let emptied =
        read_frames(&reply).filter(|f| matches!(f, Frame::Page(_, b) if PageView::parse(b).unwrap().is_empty()));
    assert_eq!(emptied.count(), 1 << state.index.table().bits());
}

#[test]
fn another_epoch_gets_everything_again() {
    let (mut state, now) = (state(77), Instant::now());
    fill(&mut state, 10);
    let (_, end) = ask(&mut state, 1, Versions::default(), now);
    let other = Versions { epoch: end.have.epoch + 1, ..end.have };
    let (reply, again) = ask(&mut state, 1, other, now);
    let has = |wanted: fn(&Frame<'_>) -> bool| read_frames(&reply).any(|f| wanted(&f));
    assert!(has(|f| matches!(f, Frame::Fleet(_))) && has(|f| matches!(f, Frame::Profiles(_))));
    assert!(has(|f| matches!(f, Frame::Page(_, _))));
    assert_eq!(again.have.epoch, end.have.epoch);
}

#[test]
fn loads_of_others_wait_for_their_turn_and_health_does_not() {
    let (mut state, now) = (state(77), Instant::now());
    ask(&mut state, 2, Versions::default(), now);
    let (_, end) = ask(&mut state, 1, Versions::default(), now);
    let request = Request { gateway: 1, have: end.have, wait_ms: 0, loads: Vec::new() };
    assert_eq!(state.pending(&request, now, COALESCE), Pending::Nothing);
    let load = Load { slot: Slot(0), in_flight: 3, queued_tokens: 100 };
    state.gateways.report(2, &[load], now);
    assert_eq!(state.pending(&request, now, COALESCE), Pending::Loads(now + LOADS_EVERY));
    for _ in 0..3 {
        let change = state.fleet.scraped(Slot(0), None, now);
        state.gateways.fleet_changed(change.status);
    }
    assert_eq!(state.pending(&request, now, COALESCE), Pending::News(now + COALESCE));
    let (reply, _) = ask(&mut state, 1, end.have, now);
    let fleet = fleet_in(&reply).unwrap();
    assert_eq!((fleet.gateways, fleet.endpoints[0].remote_in_flight), (2, 3));
    assert_eq!(fleet.endpoints[0].health, fleet::Health::Down);
}
