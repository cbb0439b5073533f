//! The gateways that keep in sync: the loads they report, and what of these the others should know.

use affinity::Slot;
use affinity::sync::Load;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// A gateway not heard from for this long is gone, and its load with it.
const LASTS: Duration = Duration::from_secs(3);
/// Gateways beyond this many are served, but their loads are not taken in.
const MOST: usize = 1024;
/// Relayed placements are of no use for longer than predicted holders live.
const RELAYED_FOR: Duration = Duration::from_secs(5);
/// Placements kept to be relayed, in bytes.
const RELAY_BYTES: usize = 4 << 20;

/// All gateways.
pub struct Gateways {
    /// Slots from here on name no endpoint.
    slots: usize,
    known: BTreeMap<u64, Gateway>,
    /// Grows with every change of what any gateway sees of the fleet.
    version: u64,
    /// The version at which health, streams or gateways last changed: what nobody should wait for.
    urgent: u64,
    relay: VecDeque<Relayed>,
    relayed: u64,
    relay_bytes: usize,
}

struct Gateway {
    heard: Instant,
    /// Requests held open for it: it is there even if it says nothing.
    held: u32,
    loads: BTreeMap<Slot, (u32, u32)>,
    /// Version of the fleet page as this gateway would see it.
    view: u64,
    /// When it was last sent a reply, and whether more was to come.
    answered: Option<Instant>,
    more: bool,
}

struct Relayed {
    number: u64,
    from: u64,
    at: Instant,
    body: Vec<u8>,
}

impl Gateways {
    /// No gateways yet, of a fleet with so many slots.
    #[must_use]
    pub fn new(slots: usize) -> Self {
        Self {
            slots,
            known: BTreeMap::new(),
            version: 0,
            urgent: 0,
            relay: VecDeque::new(),
            relayed: 0,
            relay_bytes: 0,
        }
    }

    /// The fleet has so many slots now.
    pub fn set_slots(&mut self, slots: usize) {
        self.slots = slots;
    }

    /// How many gateways are there.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// A gateway asks, and tells its loads. True if others see another fleet now.
    pub fn report(&mut self, id: u64, loads: &[Load], now: Instant) -> bool {
        // Anybody may ask: loads of slots that name no endpoint would be kept for nothing.
        let loads = loads.iter().filter(|l| usize::from(l.slot.0) < self.slots);
        let loads: BTreeMap<Slot, (u32, u32)> =
            loads.map(|l| (l.slot, (l.in_flight, l.queued_tokens))).filter(|(_, l)| *l != (0, 0)).collect();
        if let Some(gateway) = self.known.get_mut(&id) {
            gateway.heard = now;
            if gateway.loads == loads {
                return false;
            }
            gateway.loads = loads;
            self.changed_for_all_but(Some(id));
            return self.known.len() > 1;
        }
        if self.known.len() >= MOST {
            return false;
        }
        let gateway = Gateway { heard: now, held: 0, loads, view: 0, answered: None, more: false };
        self.known.insert(id, gateway);
        self.urgent();
        true
    }

    /// Forgets gateways not heard from lately. True if any was.
    pub fn expire(&mut self, now: Instant) -> bool {
        let before = self.known.len();
        self.known.retain(|_, g| g.held > 0 || now.saturating_duration_since(g.heard) <= LASTS);
        while self.relay.front().is_some_and(|r| now.saturating_duration_since(r.at) > RELAYED_FOR) {
            self.drop_oldest_placements();
        }
        let gone = self.known.len() < before;
        if gone {
            self.urgent();
        }
        gone
    }

    /// Something of the fleet changed that every gateway should know: now, if it bears on who may be chosen.
    pub fn fleet_changed(&mut self, urgent: bool) {
        if urgent { self.urgent() } else { self.changed_for_all_but(None) }
    }

    /// A request is held open for the gateway, or no longer.
    pub fn hold(&mut self, id: u64, held: bool, now: Instant) {
        if let Some(gateway) = self.known.get_mut(&id) {
            gateway.heard = now;
            gateway.held = if held { gateway.held.saturating_add(1) } else { gateway.held.saturating_sub(1) };
        }
    }

    /// A reply is on its way.
    pub fn answered(&mut self, id: u64, more: bool, now: Instant) {
        if let Some(gateway) = self.known.get_mut(&id) {
            (gateway.answered, gateway.more) = (Some(now), more);
        }
    }

    /// Version of the fleet page as a gateway sees it, never 0.
    #[must_use]
    pub fn view(&self, id: u64) -> u64 {
        self.known.get(&id).map_or(self.version, |g| g.view).max(1)
    }

    /// The version at which something changed that nobody should wait for.
    #[must_use]
    pub fn urgent_version(&self) -> u64 {
        self.urgent.max(1)
    }

    /// When the gateway was last answered.
    #[must_use]
    pub fn last_answer(&self, id: u64) -> Option<Instant> {
        self.known.get(&id)?.answered
    }

    /// Whether the gateway's last reply said that more was to come.
    #[must_use]
    pub fn expects_more(&self, id: u64) -> bool {
        self.known.get(&id).is_some_and(|g| g.more)
    }

    /// Requests in flight and tokens queued on an endpoint from all gateways but one.
    #[must_use]
    pub fn remote(&self, but: u64, slot: Slot) -> (u32, u32) {
        let others = self.known.iter().filter(|(id, _)| **id != but);
        let loads = others.filter_map(|(_, g)| g.loads.get(&slot));
        loads.fold((0, 0), |sum, load| (sum.0.saturating_add(load.0), sum.1.saturating_add(load.1)))
    }

    /// Takes placements to relay; `body` as the gateway sent it.
    pub fn relay(&mut self, from: u64, body: Vec<u8>, now: Instant) {
        self.relayed += 1;
        self.relay_bytes += body.len();
        self.relay.push_back(Relayed { number: self.relayed, from, at: now, body });
        while self.relay_bytes > RELAY_BYTES {
            self.drop_oldest_placements();
        }
    }

    /// Number of the last placements taken.
    #[must_use]
    pub fn relayed(&self) -> u64 {
        self.relayed
    }

    /// Placements after `number` that came from other gateways.
    pub fn placements_for(&self, id: u64, number: u64) -> impl Iterator<Item = &[u8]> {
        self.relay.iter().filter(move |r| r.number > number && r.from != id).map(|r| r.body.as_slice())
    }

    fn urgent(&mut self) {
        self.changed_for_all_but(None);
        self.urgent = self.version;
    }

    fn changed_for_all_but(&mut self, but: Option<u64>) {
        self.version += 1;
        for (_, gateway) in self.known.iter_mut().filter(|(id, _)| Some(**id) != but) {
            gateway.view = self.version;
        }
    }

    fn drop_oldest_placements(&mut self) {
        if let Some(dropped) = self.relay.pop_front() {
            self.relay_bytes -= dropped.body.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(slot: u16, in_flight: u32) -> Load {
        Load { slot: Slot(slot), in_flight, queued_tokens: 10 * in_flight }
    }

    #[test]
    fn a_gateway_sees_the_sum_of_the_others() {
        let (mut gateways, now) = (Gateways::new(2), Instant::now());
        gateways.report(1, &[load(0, 5), load(1, 1)], now);
        gateways.report(2, &[load(0, 2)], now);
        gateways.report(3, &[load(0, 3)], now);
        assert_eq!(gateways.remote(1, Slot(0)), (5, 50));
        assert_eq!(gateways.remote(2, Slot(0)), (8, 80));
        assert_eq!(gateways.remote(1, Slot(1)), (0, 0));
        gateways.report(2, &[], now);
        assert_eq!(gateways.remote(1, Slot(0)), (3, 30));
    }

    #[test]
    fn a_gateways_own_load_is_no_news_to_itself() {
        let (mut gateways, now) = (Gateways::new(2), Instant::now());
        gateways.report(1, &[], now);
        gateways.report(2, &[], now);
        let (first, second) = (gateways.view(1), gateways.view(2));
        assert!(gateways.report(1, &[load(0, 1)], now));
        assert_eq!(gateways.view(1), first);
        assert!(gateways.view(2) > second);
        assert!(!gateways.report(1, &[load(0, 1)], now), "the same again is no news to anybody");
    }

    #[test]
    fn loads_of_slots_that_are_no_endpoints_are_not_kept() {
        let (mut gateways, now) = (Gateways::new(2), Instant::now());
        gateways.report(1, &[load(1, 1), load(2, 5), load(u16::MAX, 5)], now);
        assert_eq!(gateways.known[&1].loads.len(), 1);
        gateways.report(1, &[load(1, 1), load(3, 5)], now);
        assert_eq!(gateways.known[&1].loads.len(), 1);
        assert_eq!((gateways.remote(9, Slot(1)), gateways.remote(9, Slot(2))), ((1, 10), (0, 0)));
    }

    #[test]
    fn a_silent_gateway_is_forgotten_with_its_load_unless_a_request_is_held_for_it() {
        let (mut gateways, now) = (Gateways::new(2), Instant::now());
        gateways.report(1, &[load(0, 1)], now);
        gateways.report(2, &[load(0, 1)], now);
        gateways.hold(1, true, now);
        let later = now + LASTS + Duration::from_millis(1);
        let before = gateways.urgent_version();
        assert!(gateways.expire(later));
        assert_eq!((gateways.len(), gateways.remote(9, Slot(0))), (1, (1, 10)));
        assert!(gateways.urgent_version() > before);
        gateways.hold(1, false, later);
        assert!(!gateways.expire(later));
        assert!(gateways.expire(later + LASTS + Duration::from_millis(1)) && gateways.is_empty());
    }

    #[test]
    fn placements_go_to_the_others_once_and_for_a_while() {
        let (mut gateways, now) = (Gateways::new(2), Instant::now());
        gateways.relay(1, b"a".to_vec(), now);
        gateways.relay(2, b"b".to_vec(), now);
        let seen: Vec<_> = gateways.placements_for(1, 0).collect();
        assert_eq!(seen, [b"b"]);
        assert_eq!(gateways.placements_for(1, gateways.relayed()).count(), 0);
        gateways.expire(now + RELAYED_FOR + Duration::from_millis(1));
        assert_eq!(gateways.placements_for(3, 0).count(), 0);
    }

    #[test]
    fn placements_to_relay_are_bounded() {
        let (mut gateways, now) = (Gateways::new(2), Instant::now());
        for _ in 0..100 {
            gateways.relay(1, vec![0; RELAY_BYTES / 10], now);
        }
        assert_eq!(gateways.placements_for(2, 0).count(), 10);
    }
}
