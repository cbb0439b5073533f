//! What a gateway is sent: the reply to its sync request, and when it is worth sending.

use crate::endpoints::Wanted;
use crate::fleet::Fleet;
use crate::gateways::Gateways;
use crate::index::Index;
use crate::models::Models;
use crate::tokens::Vocabulary;
use affinity::fleet;
use affinity::sync::{End, Frame, Request, Versions, write_frame};
use affinity::{Slot, Stride};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A reply is ended with more to come once it is this long: gateways write it to shared data in one go.
const REPLY_BYTES: usize = 900 << 10;
/// Loads alone are sent this often at most.
const LOADS_EVERY: Duration = Duration::from_millis(100);

/// All that gateways are told of.
pub struct State {
    /// Who holds what.
    pub index: Index,
    /// Who is there.
    pub fleet: Fleet,
    /// Who asks.
    pub gateways: Gateways,
    /// How prompts are made.
    pub models: Models,
    stride: Stride,
}

/// Whether a gateway should be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// It has everything.
    Nothing,
    /// Only loads changed: answer at this time.
    At(Instant),
    /// There is news: answer when no more is to be expected in a moment.
    News,
    /// It has nothing yet, or was told that there is more: answer at once.
    Now,
}

/// A reply's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Pages of the table.
    pub pages: usize,
    /// Whether there are more of them.
    pub more: bool,
}

impl State {
    /// The state before anything happened.
    #[must_use]
    pub fn new(index: Index, models: Models, stride: Stride) -> Self {
        Self { index, fleet: Fleet::default(), gateways: Gateways::new(0), models, stride }
    }

    /// Starts with an empty index of another epoch, which voids all that gateways have of the table.
    pub fn replace_index(&mut self, index: Index, stride: Stride) {
        (self.index, self.stride) = (index, stride);
        self.gateways.fleet_changed(true);
    }

    /// An endpoint comes into a slot that holds nothing.
    pub fn enter(&mut self, slot: Slot, wanted: &Wanted, vocabulary: &Arc<Vocabulary>, ids: bool) {
        self.index.add(slot, &wanted.model, vocabulary, ids);
        self.index.settle();
        self.fleet.enter(slot, wanted, self.index.table().version());
    }

    /// An endpoint is not there any more: nothing of it is kept.
    pub fn leave(&mut self, slot: Slot) {
        self.index.retire(slot);
        self.index.settle();
        self.fleet.leave(slot);
        self.models.leave(slot);
    }

    /// Whether this gateway should be answered.
    #[must_use]
    pub fn pending(&self, request: &Request, now: Instant) -> Pending {
        let (id, have) = (request.gateway, self.have(request));
        let table = self.index.table();
        if have.epoch == 0 || (self.gateways.expects_more(id) && table.version() > have.table) {
            return Pending::Now;
        }
        if table.version() > have.table
            || have.profiles != self.models.version()
            || self.gateways.urgent_version() > have.fleet
            || self.gateways.placements_for(id, have.placements).next().is_some()
        {
            return Pending::News;
        }
        if self.gateways.view(id) > have.fleet {
            return Pending::At(self.gateways.last_answer(id).map_or(now, |at| at + LOADS_EVERY));
        }
        Pending::Nothing
    }

    /// Writes the reply: what the gateway does not have yet.
    pub fn reply(&mut self, request: &Request, now: Instant) -> (Vec<u8>, Sent) {
        let (id, have) = (request.gateway, self.have(request));
        let table = self.index.table();
        let mut out = Vec::new();
        let mut view = self.gateways.view(id);
        if view > have.fleet {
            let remote = |slot| self.gateways.remote(id, slot);
            let (endpoints, early) = self.fleet.endpoints(now, have.table, |model| self.models.number(model), remote);
            let page = fleet::Fleet {
                epoch: table.epoch(),
                table_bits: table.bits(),
                stride: self.stride,
                gateways: u16::try_from(self.gateways.len()).unwrap_or(u16::MAX).max(1),
                endpoints,
            };
            write_frame(&mut out, &Frame::Fleet(&page.encode()));
            if early {
                // Not all there is to say: the rest follows when the gateway has the table that goes with it.
                view = have.fleet;
            }
        }
        if have.profiles != self.models.version() {
            write_frame(&mut out, &Frame::Profiles(self.models.page()));
        }
        for placements in self.gateways.placements_for(id, have.placements) {
            write_frame(&mut out, &Frame::Placements(placements));
        }
        let mut sent = Sent::default();
        // What changed last before the table's newest version comes last; all of it sent, that version is had.
        let (mut version, mut newest) = (have.table, table.version());
        for (changed, page) in table.changed_since(have.table) {
            let bytes = self.index.page(page);
            if sent.pages > 0 && out.len() + bytes.len() > REPLY_BYTES {
                (sent.more, newest) = (true, version);
                break;
            }
            write_frame(&mut out, &Frame::Page(page, &bytes));
            version = changed;
            sent.pages += 1;
        }
        let have = Versions {
            epoch: table.epoch(),
            table: newest,
            fleet: view,
            profiles: self.models.version(),
            placements: self.gateways.relayed(),
        };
        write_frame(&mut out, &Frame::End(End { have, more: sent.more }));
        self.gateways.answered(id, sent.more, now);
        (out, sent)
    }

    /// What the gateway has of this epoch; nothing, if it speaks of another.
    fn have(&self, request: &Request) -> Versions {
        if request.have.epoch == self.index.table().epoch() { request.have } else { Versions::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Attention, Event, Stored};
    use crate::index::Options;
    use affinity::Tier;
    use affinity::page::PageView;
    use affinity::sync::{Load, read_frames};
    use std::collections::BTreeMap;

    fn state() -> State {
        let stride = Stride::new(8).unwrap();
        let index = Index::new(Options { stride, max_blocks: 1 << 20, tiers: vec![Tier::Gpu] }, 77);
        let mut state = State::new(index, Models::new([], 0), stride);
        enter(&mut state, 0, 8000);
        state
    }

    fn enter(state: &mut State, slot: u16, port: u16) {
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
        let (mut state, now) = (state(), Instant::now());
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
        assert_eq!(state.pending(&request, now), Pending::News);
        let (reply, end) = ask(&mut state, 1, end.have, now);
        assert_eq!(seen(&reply), Some(("127.0.0.1:9000".into(), true)));
        assert_eq!(fleet_in(&ask(&mut state, 1, end.have, now).0), None, "it is told once");
    }

    /// Stores `n` sequences of one block, which spell `n` different bytes.
    fn fill(state: &mut State, n: u64) {
        for i in 0..n {
            let tokens: Vec<u32> = (0..32).map(|bit| (i >> bit & 1) as u32).collect();
            let stored = Stored {
                hashes: &[i],
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
            state.index.apply(Slot(0), &Event::Stored(stored));
        }
        state.index.settle();
    }

    fn ask(state: &mut State, gateway: u64, have: Versions, now: Instant) -> (Vec<u8>, End) {
        let request = Request { gateway, have, wait_ms: 0, loads: Vec::new() };
        state.gateways.report(gateway, &[], now);
        let (reply, _) = state.reply(&request, now);
        let Some(Frame::End(end)) = read_frames(&reply).last() else { panic!("no end") };
        (reply, end)
    }

    #[test]
    fn all_pages_arrive_in_replies_of_bounded_size_and_then_no_more() {
        let (mut state, now) = (state(), Instant::now());
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
                assert_eq!(state.pending(&request, now), Pending::Nothing);
                break;
            }
            assert_eq!(state.pending(&request, now), Pending::Now);
        }
        assert!(replies > 1);
        assert_eq!(pages.values().sum::<usize>(), state.index.table().len());
    }

    #[test]
    fn a_change_between_two_parts_of_a_reply_is_not_lost() {
        let (mut state, now) = (state(), Instant::now());
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
        let (mut state, now) = (state(), Instant::now());
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
        let (mut state, now) = (state(), Instant::now());
        ask(&mut state, 2, Versions::default(), now);
        let (_, end) = ask(&mut state, 1, Versions::default(), now);
        let request = Request { gateway: 1, have: end.have, wait_ms: 0, loads: Vec::new() };
        assert_eq!(state.pending(&request, now), Pending::Nothing);
        let load = Load { slot: Slot(0), in_flight: 3, queued_tokens: 100 };
        state.gateways.report(2, &[load], now);
        assert_eq!(state.pending(&request, now), Pending::At(now + LOADS_EVERY));
        for _ in 0..3 {
            let change = state.fleet.scraped(Slot(0), None, now);
            state.gateways.fleet_changed(change.status);
        }
        assert_eq!(state.pending(&request, now), Pending::News);
        let (reply, _) = ask(&mut state, 1, end.have, now);
        let fleet = fleet_in(&reply).unwrap();
        assert_eq!((fleet.gateways, fleet.endpoints[0].remote_in_flight), (2, 3));
        assert_eq!(fleet.endpoints[0].health, fleet::Health::Down);
    }
}
