//! Holdings put back: whole, damaged, too large, and in slices with everything else in between.

use super::holder::Keeper;
use super::tests::{ENDPOINTS, Model, Op, STRIDE, all_entries, new_index, op, residency, run, sequence, small_index};
use super::tests::{stored, through_msgpack, vocabulary};
use super::{Holdings, Index, Options, RestoreError};
use crate::events::{Event, Stored};
use affinity::{Slot, Stride, Tier};
use proptest::prelude::*;

impl Index {
    /// Makes an endpoint hold what the snapshot says, and nothing else.
    pub(super) fn restore(&mut self, slot: Slot, holdings: Holdings) -> Result<(), RestoreError> {
        self.clear(slot);
        if !self.put_aside(slot, holdings) {
            return Err(RestoreError::TooLarge);
        }
        self.restore_aside(slot)?;
        while self.restore_more(slot, 3)? {
            self.check();
        }
        Ok(())
    }
}

/// An index in which the first endpoint's holdings, as they are after `ops`, are about to be put back.
fn restoring(ops: &[Op], max_blocks: usize) -> (Index, Model) {
    let (mut index, mut model) = (new_index(100_000), Model::default());
    ops.iter().for_each(|op| run(op, &mut index, &mut model));
    let mut other = new_index(max_blocks);
    if other.put_aside(Slot(0), through_msgpack(&index.snapshot(Slot(0)).unwrap())) {
        let _ = other.restore_aside(Slot(0));
    }
    model.blocks[1..].iter_mut().for_each(|blocks| blocks.clear());
    (other, model)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    /// Others store, remove, clear and are put back between the slices.
    #[test]
    fn what_is_put_back_in_slices_is_what_was_held(
        ops in proptest::collection::vec(op(), 1..40),
        others in proptest::collection::vec(op(), 0..40),
        slice in 1usize..6,
    ) {
        let (mut index, mut model) = restoring(&ops, 100_000);
        let mut others = others.iter().filter(|op| op.endpoint() != 0);
        let mut more = true;
        while more {
            more = index.restore_more(Slot(0), slice).unwrap();
            index.check();
            if let Some(op) = others.next() {
                run(op, &mut index, &mut model);
                index.check();
            }
        }
        prop_assert_eq!(all_entries(&index), model.entries());
        prop_assert_eq!(residency(&index, 0), model.residency(0));
        prop_assert_eq!(index.stats().aside, 0);
        prop_assert_eq!(index.restore_more(Slot(0), slice), Err(RestoreError::Dropped), "it is done");
    }

    /// Others do what they do between the slices.
    #[test]
    fn what_is_forgotten_in_slices_goes_and_nothing_else(
        ops in proptest::collection::vec(op(), 1..60),
        others in proptest::collection::vec(op(), 0..30),
        slice in 1usize..6,
    ) {
        let (mut index, mut model) = (new_index(100_000), Model::default());
        ops.iter().for_each(|op| run(op, &mut index, &mut model));
        let mut others = others.iter().filter(|op| op.endpoint() != 0);
        let (mut rest, mut held) = (index.shedding(Slot(0)), index.held(Slot(0)));
        while index.shed(&mut rest, slice) {
            index.check();
            let now = index.held(Slot(0));
            // Runs that the endpoint only passes through take a turn, too.
            prop_assert!(now <= held);
            held = now;
            if let Some(op) = others.next() {
                run(op, &mut index, &mut model);
            }
        }
        let outside: usize = index.kept(Keeper::new(Slot(0), false)).map_or(0, |e| e.unmatchable.len() + e.orphans.len());
        prop_assert_eq!(index.held(Slot(0)), outside);
        model.blocks[0].clear();
        prop_assert_eq!(all_entries(&index), model.entries());
        index.clear(Slot(0));
        index.check();
        prop_assert_eq!(index.held(Slot(0)), 0);
    }

    /// Where there is little room, blocks are forgotten in between, but nothing is invented, and the bound holds.
    #[test]
    fn what_is_put_back_into_little_room_stays_within_it(
        ops in proptest::collection::vec(op(), 1..40),
        others in proptest::collection::vec(op(), 0..60),
        max_blocks in 1usize..40,
    ) {
        let (mut index, mut model) = restoring(&ops, max_blocks);
        for op in others.iter().filter(|op| op.endpoint() != 0) {
            let _ = index.restore_more(Slot(0), 1);
            index.check();
            run(op, &mut index, &mut model);
            index.check();
            prop_assert!(index.stats().blocks + index.stats().aside <= max_blocks, "{:?}", index.stats());
            for endpoint in 0..ENDPOINTS.len() {
                let held = model.residency(endpoint);
                for (hash, copies) in residency(&index, endpoint) {
                    prop_assert!(held.get(&hash).is_some_and(|n| copies <= *n));
                }
            }
        }
    }

    /// What else is done to the endpoint ends it, and leaves nothing behind.
    #[test]
    fn what_is_done_to_an_endpoint_ends_its_being_put_back(
        ops in proptest::collection::vec(op(), 5..40), slices in 0usize..9, end in 0..4
    ) {
        let (mut index, _) = restoring(&ops, 100_000);
        let begun = (0..slices).all(|_| index.restore_more(Slot(0), 1).unwrap());
        prop_assume!(begun);
        let expected = match end {
            0 => {
                index.apply(Slot(0), &Event::Stored(sequence(&[7], None)));
                1
            }
            1 => {
                index.retire(Slot(0));
                0
            }
            2 => {
                index.clear(Slot(0));
                0
            }
            _ => {
                prop_assert_eq!(index.restore_aside(Slot(0)), Err(RestoreError::Dropped));
                0
            }
        };
        index.check();
        prop_assert_eq!((index.stats().blocks, index.stats().nodes, index.stats().aside), (expected, expected, 0));
        prop_assert_eq!(index.restore_more(Slot(0), 1), Err(RestoreError::Dropped));
    }

    /// Whatever is changed in a snapshot: it is refused, or put back in good order.
    #[test]
    fn a_damaged_snapshot_breaks_nothing(
        ops in proptest::collection::vec(op(), 1..25),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        max_blocks in prop_oneof![Just(100_000usize), 1usize..40],
    ) {
        let (mut index, mut model) = (new_index(100_000), Model::default());
        ops.iter().for_each(|op| run(op, &mut index, &mut model));
        let mut other = new_index(max_blocks);
        for endpoint in 0..ENDPOINTS.len() {
            let slot = Slot(endpoint as u16);
            let mut bytes = rmp_serde::to_vec(&index.snapshot(slot).unwrap()).unwrap();
            for (at, byte) in &damage {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            let Ok(holdings) = rmp_serde::from_slice::<Holdings>(&bytes) else { continue };
            let outcome = other.restore(slot, holdings);
            other.check();
            prop_assert!(other.stats().blocks <= max_blocks);
            prop_assert!(outcome.is_ok() || other.resident(slot).next().is_none());
            // And it can be worked with.
            ops.iter().for_each(|op| run(op, &mut other, &mut Model::default()));
            other.check();
        }
    }
}

#[test]
fn a_snapshot_of_other_settings_or_too_large_is_refused() {
    let slot = Slot(0);
    let mut index = small_index(100);
    index.apply(slot, &Event::Stored(sequence(&[0, 1, 2, 3], None)));
    let holdings = index.snapshot(slot).unwrap();
    assert_eq!((holdings.len(), index.snapshot(Slot(1))), (4, None));
    let mut ids = small_index(100);
    ids.add(slot, "m", &vocabulary(), true);
    assert_eq!(ids.restore(slot, holdings.clone()), Err(RestoreError::Settings));
    let mut named = small_index(100);
    named.add(slot, "n", &vocabulary(), false);
    assert_eq!(named.restore(slot, holdings.clone()), Err(RestoreError::Settings));
    assert_eq!(named.restore(Slot(7), holdings.clone()), Err(RestoreError::NoEndpoint));
    let options = Options { stride: Stride::new(STRIDE).unwrap(), max_blocks: 100, tiers: vec![Tier::Gpu, Tier::Cpu] };
    let mut tiered = Index::new(options, 1);
    tiered.add(slot, "m", &vocabulary(), false);
    assert_eq!(tiered.restore(slot, holdings.clone()), Err(RestoreError::Settings));
    assert_eq!(small_index(100).restore(slot, tiered.snapshot(slot).unwrap()), Err(RestoreError::Settings));
    let mut small = small_index(3);
    small.apply(slot, &Event::Stored(sequence(&[9], None)));
    assert_eq!(small.restore(slot, holdings.clone()), Err(RestoreError::TooLarge));
    assert_eq!(small.stats().blocks, 0, "a snapshot that is refused leaves nothing");
    let mut full = small_index(6);
    full.add(Slot(1), "m", &vocabulary(), false);
    full.apply(Slot(1), &Event::Stored(sequence(&[5, 6, 7, 8, 9], None)));
    assert_eq!(full.restore(slot, holdings.clone()), Ok(()), "what is colder makes room");
    full.check();
    assert_eq!(full.stats().blocks, 4);
}

#[test]
fn a_snapshot_of_blocks_that_could_never_be_removed_is_refused() {
    let slot = Slot(0);
    let mut index = small_index(100);
    index.apply(slot, &Event::Stored(Stored { tokens: &[1; 4], block_size: 4, ..stored(&[7], Tier::Gpu) }));
    let mut holdings = serde_json::to_value(index.snapshot(slot).unwrap()).unwrap();
    let masks = holdings.pointer_mut("/parts/0/runs/0/masks").unwrap();
    assert_eq!(*masks, serde_json::json!([1, 0, 0]));
    // This index knows nothing of disks, and passes over what is removed there.
    *masks = serde_json::json!([0, 0, 1]);
    let error = serde_json::from_value::<Holdings>(holdings.clone()).unwrap_err();
    assert_eq!(error.to_string(), "the snapshot is not consistent");
    holdings["version"] = 1.into();
    let error = serde_json::from_value::<Holdings>(holdings).unwrap_err();
    assert_eq!(error.to_string(), "the snapshot is of another version of the indexer");
}
