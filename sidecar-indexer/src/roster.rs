//! Which endpoint has which slot.
//!
//! **Invariants.** An endpoint keeps its slot while it stays. A slot that became free rests for [`REST`] before anybody
//! gets it, the endpoint that had it included, because gateways know endpoints by slot: a predicted holder that still
//! names the slot has ended by then (by default after 2 minutes at most), and so have most requests that were in flight
//! to the old endpoint. One that runs longer than that is counted as load of the new endpoint until it ends, and its
//! charge is taken back whole: the new one looks busier than it is, never idler. The *table* does not rely on the rest:
//! an endpoint is shown as one with events only to gateways whose table is newer than its arrival
//! ([`crate::sync::State::reply`]), and before its arrival the slot's holdings were forgotten.

use crate::endpoints::{Key, Seated, Wanted};
use affinity::Slot;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a slot stays empty before it is given to another endpoint.
pub const REST: Duration = Duration::from_secs(600);

/// The slots and who has them.
#[derive(Debug)]
pub struct Roster {
    seats: Vec<Seat>,
    most: u16,
}

#[derive(Debug)]
enum Seat {
    Taken(Wanted),
    /// Free since then.
    Resting(Instant),
}

/// What an update changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Endpoints that are not there any more. What was known of them is void.
    pub left: Vec<Seated>,
    /// Endpoints to be followed from now on. One that is in both lists serves another model or has other event sockets
    /// than before.
    pub came: Vec<Seated>,
    /// Endpoints that stay, with another speed or other metrics.
    pub altered: Vec<Seated>,
    /// Endpoints for which there was no slot.
    pub left_out: Vec<Key>,
}

impl Default for Roster {
    fn default() -> Self {
        Self::new(Slot::LIMIT)
    }
}

impl Roster {
    /// Nobody yet, and slots for so many.
    #[must_use]
    pub fn new(most: u16) -> Self {
        Self { seats: Vec::new(), most }
    }

    /// Slots are below this.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.seats.len()
    }

    /// Everybody, by slot.
    pub fn seated(&self) -> impl Iterator<Item = (Slot, &Wanted)> {
        (0u16..).map(Slot).zip(&self.seats).filter_map(|(slot, seat)| match seat {
            Seat::Taken(wanted) => Some((slot, wanted)),
            Seat::Resting(_) => None,
        })
    }

    /// Takes over the list of endpoints as it is now. Of several entries with one key the first counts.
    pub fn update(&mut self, endpoints: &[Wanted], now: Instant) -> Changes {
        let mut wanted: BTreeMap<Key, &Wanted> = BTreeMap::new();
        for endpoint in endpoints {
            wanted.entry(endpoint.key).or_insert(endpoint);
        }
        let mut changes = Changes::default();
        for (slot, seat) in (0u16..).map(Slot).zip(&mut self.seats) {
            let Seat::Taken(before) = seat else { continue };
            let seated = |wanted: &Wanted| Seated { slot, wanted: wanted.clone() };
            let Some(after) = wanted.remove(&before.key) else {
                changes.left.push(seated(before));
                *seat = Seat::Resting(now);
                continue;
            };
            if after.is_another(before) {
                changes.left.push(seated(before));
                changes.came.push(seated(after));
            } else if after != before {
                changes.altered.push(seated(after));
            }
            before.clone_from(after);
        }
        // In the order of the list: who comes first is served first when slots run out.
        for endpoint in endpoints {
            let Some(endpoint) = wanted.remove(&endpoint.key) else { continue };
            match self.seat(endpoint, now) {
                Some(slot) => changes.came.push(Seated { slot, wanted: endpoint.clone() }),
                None => changes.left_out.push(endpoint.key),
            }
        }
        changes
    }

    /// Gives an endpoint the lowest slot that is free and rested: low slots keep the gateways' lists short.
    fn seat(&mut self, wanted: &Wanted, now: Instant) -> Option<Slot> {
        let rested =
            |seat: &Seat| matches!(seat, Seat::Resting(since) if now.saturating_duration_since(*since) >= REST);
        let at = self.seats.iter().position(rested).unwrap_or(self.seats.len());
        let slot = u16::try_from(at).ok().filter(|slot| *slot < self.most).map(Slot)?;
        let seat = Seat::Taken(wanted.clone());
        match self.seats.get_mut(at) {
            Some(free) => *free = seat,
            None => self.seats.push(seat),
        }
        Some(slot)
    }

    /// When a slot will have rested for somebody who was left out.
    #[must_use]
    pub fn next_rested(&self) -> Option<Instant> {
        let resting = self.seats.iter().filter_map(|seat| match seat {
            Seat::Resting(since) => Some(*since + REST),
            Seat::Taken(_) => None,
        });
        resting.min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::SocketAddr;

    const MOST: u16 = 6;

    fn wanted(port: u16, version: u8) -> Wanted {
        let endpoint = Wanted::bare(SocketAddr::from(([10, 0, 0, 1], port)), if version == 1 { "b" } else { "a" });
        Wanted { prefill_rate: if version == 2 { 1.0 } else { 2.0 }, ..endpoint }
    }

    #[test]
    fn an_endpoint_that_returns_begins_in_another_slot_until_its_own_has_rested() {
        let (mut roster, start) = (Roster::new(8), Instant::now());
        let slots = |changes: &[Seated]| changes.iter().map(|s| s.slot.0).collect::<Vec<_>>();
        assert_eq!(slots(&roster.update(&[wanted(1, 0), wanted(2, 0)], start).came), [0, 1]);
        assert_eq!(slots(&roster.update(&[wanted(2, 0)], start).left), [0]);
        assert_eq!(slots(&roster.update(&[wanted(1, 0), wanted(2, 0)], start).came), [2]);
        assert_eq!(roster.next_rested(), Some(start + REST));
        let rested = start + REST;
        assert_eq!(slots(&roster.update(&[wanted(1, 0), wanted(2, 0), wanted(3, 0)], rested).came), [0]);
    }

    #[test]
    fn another_model_is_a_new_start_in_the_same_slot_and_another_speed_is_none() {
        let (mut roster, now) = (Roster::new(8), Instant::now());
        roster.update(&[wanted(1, 0)], now);
        let changes = roster.update(&[wanted(1, 2)], now);
        assert_eq!((changes.left.len(), changes.came.len(), changes.altered.len()), (0, 0, 1));
        let changes = roster.update(&[wanted(1, 1)], now);
        assert_eq!((changes.left[0].slot, changes.came[0].slot), (Slot(0), Slot(0)));
        assert_eq!(roster.update(&[wanted(1, 1)], now), Changes::default());
    }

    proptest! {
        /// Against a naive model: who is there, in which slot, and when that slot was last left.
        #[test]
        fn slots_are_stable_unshared_and_rested(
            steps in prop::collection::vec((prop::collection::vec((0u16..9, 0u8..3), 0..10), 0u64..900), 1..30),
        ) {
            let (mut roster, mut now) = (Roster::new(MOST), Instant::now());
            let mut here: BTreeMap<Key, (Slot, Wanted)> = BTreeMap::new();
            let mut freed: BTreeMap<Slot, Instant> = BTreeMap::new();
            for (set, seconds) in steps {
                now += Duration::from_secs(seconds);
                let list: Vec<Wanted> = set.iter().map(|(port, version)| wanted(*port, *version)).collect();
                let mut first: BTreeMap<Key, Wanted> = BTreeMap::new();
                for endpoint in &list {
                    first.entry(endpoint.key).or_insert_with(|| endpoint.clone());
                }
                let changes = roster.update(&list, now);
                for Seated { slot, wanted } in &changes.left {
                    prop_assert_eq!(here.remove(&wanted.key), Some((*slot, wanted.clone())));
                    if !first.contains_key(&wanted.key) {
                        freed.insert(*slot, now);
                    }
                }
                for Seated { slot, wanted } in &changes.came {
                    prop_assert_eq!(first.get(&wanted.key), Some(wanted));
                    prop_assert!(slot.0 < MOST && here.values().all(|(taken, _)| taken != slot));
                    let restarted = changes.left.iter().any(|l| l.slot == *slot && l.wanted.key == wanted.key);
                    prop_assert!(restarted || freed.get(slot).is_none_or(|since| now - *since >= REST));
                    prop_assert!(here.insert(wanted.key, (*slot, wanted.clone())).is_none());
                }
                for Seated { slot, wanted } in &changes.altered {
                    let (before, was) = here.insert(wanted.key, (*slot, wanted.clone())).unwrap();
                    prop_assert!(before == *slot && !wanted.is_another(&was));
                }
                // Everybody wanted is there as wanted, or was left out because every slot is taken or resting.
                for (key, endpoint) in &first {
                    match here.get(key) {
                        Some((_, have)) => prop_assert_eq!(have, endpoint),
                        None => {
                            prop_assert!(changes.left_out.contains(key));
                            let busy = (0..MOST).map(Slot).filter(|slot| {
                                here.values().any(|(taken, _)| taken == slot)
                                    || freed.get(slot).is_some_and(|since| now - *since < REST)
                            });
                            prop_assert_eq!(busy.count(), usize::from(MOST));
                        }
                    }
                }
                prop_assert!(here.keys().all(|key| first.contains_key(key)));
                let seated: BTreeMap<Key, (Slot, Wanted)> =
                    roster.seated().map(|(slot, w)| (w.key, (slot, w.clone()))).collect();
                prop_assert_eq!(&seated, &here);
            }
        }
    }
}
