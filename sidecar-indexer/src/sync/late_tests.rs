//! Two VMs of one gateway write its shared data by turns, at once, late and half-way, by the filter's own code.

use super::tests::{ask, enter, remove, same_table, state, store};
use super::*;
use affinity::page::{PageView, page_of};
use affinity::shared::{Applied, Had, Place, Shared, apply, had};
use affinity::sync::Load;
use affinity::{fingerprints, root};
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// The gateway, and another whose load it is told.
const GATEWAY: u64 = 1;
const OTHER: u64 = 2;
/// Sequences that take the table to its next layout; twice there and gone, they are more changes than are kept.
const MANY: std::ops::Range<u64> = 1_000..7_000;
/// Sequences that are stored one by one, and some of the many.
const WATCHED: [u64; 11] = [0, 1, 2, 3, 4, 5, 6, 7, 1_000, 3_333, 6_999];
/// Short replies, so that a table takes several.
const REPLY: usize = 20 << 10;

/// Who holds what is watched, by bits of slots.
type Held = [u8; WATCHED.len()];

/// With what it was asked for.
type Reply = (Had, Vec<u8>);

/// The indexer, the gateway's shared data, and what is under way in between.
struct World {
    state: RefCell<State>,
    shared: RefCell<BTreeMap<Place, (Vec<u8>, u32)>>,
    writes: Cell<u32>,
    /// What each VM was answered and has not taken over yet.
    replies: [RefCell<Option<Reply>>; 2],
    /// What is still to be done.
    deeds: RefCell<Vec<u32>>,
    /// What the table said by epoch and version, kept naively.
    history: RefCell<Vec<(u32, u64, Held)>>,
    load: Cell<u32>,
    /// What load the fleet page told at this version in this epoch, at least.
    told: RefCell<BTreeMap<(u32, u64), u32>>,
    wrong: RefCell<Vec<String>>,
}

impl World {
    fn new(deeds: Vec<u32>) -> Self {
        let world = Self {
            state: RefCell::new(state(77)),
            shared: RefCell::default(),
            writes: Cell::new(0),
            replies: Default::default(),
            deeds: RefCell::new(deeds),
            history: RefCell::default(),
            load: Cell::new(0),
            told: RefCell::default(),
            wrong: RefCell::default(),
        };
        world.start(77);
        world
    }

    /// An indexer that knows nothing yet.
    fn start(&self, epoch: u32) {
        let mut fresh = state(epoch);
        enter(&mut fresh, 1, 8001);
        fresh.reply_bytes = REPLY;
        self.state.replace(fresh);
        self.note([0; WATCHED.len()]);
        self.report();
    }

    fn note(&self, held: Held) {
        let state = self.state.borrow();
        let (epoch, version) = (state.index.table().epoch(), state.index.table().version());
        let mut history = self.history.borrow_mut();
        if history.last().is_none_or(|(last, ..)| *last != epoch) {
            // A gateway that has nothing yet claims version 0.
            history.push((epoch, 0, [0; WATCHED.len()]));
        }
        history.push((epoch, version, held));
    }

    fn change(&self, slot: u16, numbers: impl Iterator<Item = u64>, stored: bool) {
        let mut held = self.history.borrow().last().unwrap().2;
        let mut state = self.state.borrow_mut();
        for number in numbers {
            let watched = WATCHED.iter().position(|watched| *watched == number);
            let bits = watched.map_or(0, |at| held[at]);
            // Else a second copy would have to go, too.
            if watched.is_some() && (bits >> slot & 1 == 1) == stored {
                continue;
            }
            if stored {
                store(&mut state, slot, number)
            } else {
                remove(&mut state, slot, number)
            }
            watched.into_iter().for_each(|at| held[at] ^= 1 << slot);
        }
        state.index.settle();
        drop(state);
        self.note(held);
    }

    fn clear(&self, slot: u16) {
        self.state.borrow_mut().index.clear(Slot(slot));
        let held = self.history.borrow().last().unwrap().2;
        self.note(held.map(|bits| bits & !(1 << slot)));
    }

    fn report(&self) {
        self.load.set(self.load.get() + 1);
        let load = Load { slot: Slot(0), in_flight: self.load.get(), queued_tokens: 0 };
        self.state.borrow_mut().gateways.report(OTHER, &[load], Instant::now());
    }

    fn ask(&self, vm: usize) {
        let had = had(&Vm::of(self, vm));
        let (reply, end) = ask(&mut self.state.borrow_mut(), GATEWAY, had.versions, Instant::now());
        self.told.borrow_mut().entry((end.have.epoch, end.have.fleet)).or_insert(self.load.get());
        self.replies[vm].replace(Some((had, reply)));
    }

    fn take(&self, vm: &Vm<'_>) -> Option<Applied> {
        let (had, reply) = self.replies[vm.number].take()?;
        Some(apply(vm, &reply, had))
    }

    fn act(&self, deed: u32) {
        let (what, which) = (deed % 16, deed / 16);
        let (slot, vm) = ((which % 2) as u16, which as usize % 2);
        match what {
            0..3 => self.change(slot, [u64::from(which / 2 % 8)].into_iter(), true),
            3 => self.change(slot, [u64::from(which / 2 % 8)].into_iter(), false),
            4 => self.report(),
            5 => match which / 2 % 16 {
                0 => self.start(1_000 * self.writes.get() + 1),
                1 => self.change(slot, MANY, true),
                2 => (0..2).for_each(|_| {
                    self.change(slot, MANY, true);
                    self.clear(slot);
                }),
                3..6 => self.clear(slot),
                _ => drop(self.replies[vm].take()),
            },
            6..11 => self.ask(vm),
            // It may die on the way.
            _ => {
                let lives_for = if which / 2 % 8 == 0 { which as usize / 16 % 64 } else { usize::MAX };
                self.take(&Vm { lives_for: Cell::new(lives_for), disturbed: true, ..Vm::of(self, vm) });
            }
        }
    }

    /// Nothing is said that was not so at the version that is claimed, or later.
    fn check(&self) -> Result<(), TestCaseError> {
        prop_assert_eq!(&*self.wrong.borrow(), &Vec::<String>::new());
        let (vm, state) = (Vm::of(self, 0), self.state.borrow());
        let (claim, table) = (had(&vm).versions, state.index.table());
        // A claim of an epoch that is over brings everything anew.
        if claim.epoch != table.epoch() {
            return Ok(());
        }
        let page = vm.read(Place::Fleet).and_then(|(page, _)| fleet::Fleet::decode(&page)).unwrap();
        prop_assert_eq!((page.epoch, page.table_bits), (claim.epoch, table.bits()));
        let told = self.told.borrow()[&(claim.epoch, claim.fleet)];
        prop_assert!(page.endpoints[0].remote_in_flight >= told, "{} of {}", page.endpoints[0].remote_in_flight, told);
        let history = self.history.borrow();
        let since = || history.iter().filter(|(e, v, _)| *e == claim.epoch && *v >= claim.table);
        for (at, number) in WATCHED.into_iter().enumerate() {
            let said = self.said(number, &page);
            prop_assert!(since().any(|(.., held)| held[at] == said), "{number} at {claim:?}: {said:b}");
        }
        Ok(())
    }

    /// Who holds a sequence, by what is in shared data.
    fn said(&self, number: u64, fleet: &fleet::Fleet) -> u8 {
        let text: Vec<u8> = (0..32).map(|bit| if number >> bit & 1 == 0 { b'x' } else { b'y' }).collect();
        let mut prints = Vec::new();
        fingerprints(fleet.stride, root("tiny", None), &text, &mut prints);
        let print = *prints.last().unwrap();
        let there = Vm::of(self, 0).read(Place::Page(page_of(print, fleet.table_bits)));
        let page = there.as_ref().and_then(|(page, _)| PageView::parse(page)).filter(|page| page.epoch == fleet.epoch);
        let found = page.and_then(|page| page.get(print));
        found.map_or(0, |found| found.holders().map(|(slot, _)| 1 << slot.0).sum())
    }

    /// Both ask until there is no more; some replies are late.
    fn catch_up(&self) -> Result<(), TestCaseError> {
        for round in 0..400 {
            let vm = Vm::of(self, round % 2);
            let applied = self.take(&vm);
            self.check()?;
            if let Some(Applied::Taken { end, whole: true }) = applied
                && !end.more
                && end.have.table == self.state.borrow().index.table().version()
                && end.have.epoch == self.state.borrow().index.table().epoch()
            {
                let pages = self.shared.borrow();
                let pages = pages.iter().filter_map(|(place, (bytes, _))| match place {
                    Place::Page(number) => Some((*number, bytes.clone())),
                    _ => None,
                });
                same_table(&pages.collect(), &self.state.borrow());
                let (fleet, held) = (vm.read(Place::Fleet).unwrap().0, self.history.borrow().last().unwrap().2);
                let fleet = fleet::Fleet::decode(&fleet).unwrap();
                prop_assert_eq!(WATCHED.map(|number| self.said(number, &fleet)), held);
                return Ok(());
            }
            self.ask(round % 2);
            if round % 3 == 0 {
                self.ask((round + 1) % 2);
            }
        }
        Err(TestCaseError::fail("never up to date"))
    }
}

/// One of the VMs as it reads and writes.
struct Vm<'a> {
    world: &'a World,
    number: usize,
    /// Writes until it dies.
    lives_for: Cell<usize>,
    /// The other one does things in between.
    disturbed: bool,
}

impl<'a> Vm<'a> {
    fn of(world: &'a World, number: usize) -> Self {
        Self { world, number, lives_for: Cell::new(usize::MAX), disturbed: false }
    }

    fn put(&self, place: Place, bytes: &[u8]) {
        let world = self.world;
        world.writes.set(world.writes.get() + 1);
        let old = world.shared.borrow_mut().insert(place, (bytes.to_vec(), world.writes.get()));
        let (Place::Page(_), Some((old, _))) = (place, old) else { return };
        let (old, new) = (PageView::parse(&old).unwrap(), PageView::parse(bytes).unwrap());
        if old.epoch == new.epoch && old.as_of >= new.as_of {
            world.wrong.borrow_mut().push(format!("{place:?} went back from {} to {}", old.as_of, new.as_of));
        }
    }

    /// Whether it may write; before that, the other one may have.
    fn alive(&self) -> bool {
        let deed = if self.disturbed { self.world.deeds.borrow_mut().pop() } else { None };
        let other = Vm::of(self.world, 1 - self.number);
        match deed.map(|deed| deed % 4) {
            Some(0) => {
                self.world.take(&other);
            }
            Some(1) => self.world.ask(other.number),
            _ => {}
        }
        let left = self.lives_for.get();
        self.lives_for.set(left.saturating_sub(1));
        left > 0
    }
}

impl Shared for Vm<'_> {
    fn read(&self, place: Place) -> Option<(Vec<u8>, u32)> {
        self.world.shared.borrow().get(&place).cloned()
    }

    /// As Envoy does it: what is missing is always written.
    fn swap(&self, place: Place, bytes: &[u8], number: Option<u32>) -> bool {
        let alive = self.alive();
        let there = self.read(place).map(|(_, number)| number);
        let swaps = alive && (there.is_none() || there == number);
        if swaps {
            self.put(place, bytes);
        }
        swaps
    }

    fn write(&self, place: Place, bytes: &[u8]) {
        if self.alive() {
            self.put(place, bytes);
        }
    }

    fn placements(&self, _: &[u8]) {}
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_a_gateway_claims_is_so_however_its_vms_lag_and_interleave(
        deeds in proptest::collection::vec(any::<u32>(), 1..200),
    ) {
        let world = World::new(deeds);
        loop {
            let Some(deed) = world.deeds.borrow_mut().pop() else { break };
            world.act(deed);
            world.check()?;
        }
        world.catch_up()?;
    }
}

/// Else the test above would not try what it says.
#[test]
fn many_sequences_change_the_layout_and_fill_the_list_of_changes() {
    let world = World::new(Vec::new());
    world.change(0, MANY, true);
    let version = world.state.borrow().index.table().version();
    assert_eq!(world.state.borrow().index.table().epoch(), 78);
    assert!(world.state.borrow().index.table().keys_changed_since(version).is_some());
    (0..2).for_each(|_| {
        world.change(1, MANY, true);
        world.clear(1);
    });
    assert_eq!(world.state.borrow().index.table().keys_changed_since(version), None);
    world.ask(0);
    let (_, reply) = world.replies[0].borrow().clone().unwrap();
    assert!(affinity::sync::read_end(&reply).unwrap().more, "a table takes several replies");
}
