//! What is known of the endpoints beside their caches: health, stream, load as they report it.

use crate::endpoints::{Events, Key, Wanted};
use crate::scrape::Scrape;
use affinity::Slot;
use affinity::fleet::{Endpoint, Health, Reported};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// An endpoint whose metrics fail this many times in a row is down.
const FAILURES_TO_DOWN: u32 = 3;
/// Reported load older than this counts as unknown.
const REPORT_LASTS: Duration = Duration::from_secs(3);
/// An engine whose metrics did not come in time for this long is no longer taken for a busy one.
const BUSY_LASTS: Duration = Duration::from_secs(30);
/// A connection that outlived an outage this long may be a dead one that nobody told us of.
const LONG_OUTAGE: Duration = Duration::from_secs(30);

/// The endpoints, by slot.
#[derive(Default)]
pub struct Fleet {
    members: BTreeMap<Slot, Member>,
}

/// One endpoint.
struct Member {
    key: Key,
    name: String,
    model: String,
    prefill_rate: f32,
    /// The table's version when it came: older tables may show what the slot's last owner held.
    since: u64,
    /// Whether it has an event stream, and whether that is in sync.
    streams: bool,
    events: bool,
    /// Scrapes failed in a row, and since when.
    failures: u32,
    failing_since: Option<Instant>,
    /// When its metrics were last read.
    answered: Option<Instant>,
    asleep: bool,
    reported: Option<(Reported, Instant)>,
    /// When the engine's process started, by its own clock.
    started: Option<f64>,
}

/// What changed, and what follows from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Health or stream changed: tell gateways at once.
    pub status: bool,
    /// Load changed: tell them in time.
    pub load: bool,
    /// The event stream may be that of another process, or dead: make it anew.
    pub reconnect: bool,
}

impl Fleet {
    /// An endpoint comes; nothing is known of it yet, and unknown is taken for up. `since`: the table's version.
    pub fn enter(&mut self, slot: Slot, wanted: &Wanted, since: u64) {
        let member = Member {
            key: wanted.key,
            name: wanted.key.to_string(),
            model: wanted.model.clone(),
            prefill_rate: wanted.prefill_rate,
            since,
            streams: wanted.events != Events::None,
            events: false,
            failures: 0,
            failing_since: None,
            answered: None,
            asleep: false,
            reported: None,
            started: None,
        };
        self.members.insert(slot, member);
    }

    /// An endpoint is not there any more.
    pub fn leave(&mut self, slot: Slot) {
        self.members.remove(&slot);
    }

    /// An endpoint stays, with another speed or other metrics. Without metrics nothing is known of it any more.
    pub fn alter(&mut self, slot: Slot, wanted: &Wanted) {
        let Some(member) = self.members.get_mut(&slot) else { return };
        member.prefill_rate = wanted.prefill_rate;
        if wanted.metrics.is_none() {
            (member.failures, member.failing_since) = (0, None);
            (member.asleep, member.reported) = (false, None);
        }
    }

    /// Slots and the names of their endpoints, for logs and metrics.
    pub fn names(&self) -> impl Iterator<Item = (Slot, &str)> {
        self.members.iter().map(|(slot, m)| (*slot, m.name.as_str()))
    }

    /// An endpoint's name.
    #[must_use]
    pub fn name(&self, slot: Slot) -> Option<&str> {
        self.members.get(&slot).map(|m| m.name.as_str())
    }

    /// Whether every event stream is in sync.
    #[must_use]
    pub fn all_in_sync(&self) -> bool {
        self.members.values().all(|m| m.events || !m.streams)
    }

    /// The event stream came into sync or fell out of it.
    pub fn set_events(&mut self, slot: Slot, in_sync: bool) -> Change {
        let Some(member) = self.members.get_mut(&slot) else { return Change::default() };
        let status = member.events != in_sync;
        member.events = in_sync;
        Change { status, ..Change::default() }
    }

    /// The metrics were read, or could not be.
    pub fn scraped(&mut self, slot: Slot, scrape: Option<&Scrape>, now: Instant) -> Change {
        let Some(member) = self.members.get_mut(&slot) else { return Change::default() };
        let (health, load) = (member.health(), member.load(now));
        let mut reconnect = false;
        match scrape {
            None => {
                member.failures = member.failures.saturating_add(1);
                member.failing_since.get_or_insert(now);
            }
            Some(scrape) => {
                let outage = member.failing_since.take().map(|since| now.saturating_duration_since(since));
                reconnect = outage.is_some_and(|outage| outage >= LONG_OUTAGE);
                reconnect |= member.started.is_some() && scrape.started.is_some() && member.started != scrape.started;
                member.started = scrape.started.or(member.started);
                member.failures = 0;
                member.answered = Some(now);
                member.asleep = scrape.asleep;
                member.reported = scrape.reported.map(|reported| (reported, now));
            }
        }
        Change { status: health != member.health(), load: load != member.load(now), reconnect }
    }

    /// Whether an endpoint whose metrics do not come in time is busy rather than gone: its events say that it lives. Not
    /// for long: a process may hang with its connections open.
    #[must_use]
    pub fn is_busy(&self, slot: Slot, now: Instant) -> bool {
        self.members.get(&slot).is_some_and(|member| {
            let answered = member.answered.is_some_and(|at| now.saturating_duration_since(at) < BUSY_LASTS);
            member.events && member.health() != Health::Down && answered
        })
    }

    /// Whether another rank at an endpoint's address has its event stream in sync.
    #[must_use]
    pub fn has_live_sibling(&self, slot: Slot) -> bool {
        let Some(key) = self.members.get(&slot).map(|member| member.key) else { return false };
        self.members.values().any(|other| other.events && other.key.address == key.address && other.key != key)
    }

    /// An endpoint's health.
    #[must_use]
    pub fn health(&self, slot: Slot) -> Option<Health> {
        self.members.get(&slot).map(Member::health)
    }

    /// Whether an endpoint's stream is in sync.
    #[must_use]
    pub fn events(&self, slot: Slot) -> bool {
        self.members.get(&slot).is_some_and(|m| m.events)
    }

    /// The endpoints for the fleet page of a gateway that has the table's version `table`, and whether one of them is
    /// said to have no events only because that version is too old. `number` gives a model's, `remote` requests in flight
    /// and tokens queued from elsewhere.
    pub fn endpoints(
        &self,
        now: Instant,
        table: u64,
        number: impl Fn(&str) -> Option<u16>,
        remote: impl Fn(Slot) -> (u32, u32),
    ) -> (Vec<Endpoint>, bool) {
        let endpoint = |(slot, member): (&Slot, &Member)| {
            let (remote_in_flight, remote_queued_tokens) = remote(*slot);
            Endpoint {
                slot: *slot,
                address: member.key.address.to_string(),
                rank: member.key.rank,
                health: member.health(),
                events: member.events && member.since <= table,
                models: number(&member.model).into_iter().collect(),
                prefill_rate: member.prefill_rate,
                reported: member.load(now),
                remote_in_flight,
                remote_queued_tokens,
            }
        };
        let early = self.members.values().any(|m| m.events && m.since > table);
        (self.members.iter().map(endpoint).collect(), early)
    }
}

impl Member {
    fn health(&self) -> Health {
        match self.failures >= FAILURES_TO_DOWN {
            true => Health::Down,
            // A sleeping engine has given up its memory: it would only queue.
            false if self.asleep => Health::Draining,
            false => Health::Up,
        }
    }

    fn load(&self, now: Instant) -> Option<Reported> {
        let (reported, at) = self.reported?;
        (now.saturating_duration_since(at) <= REPORT_LASTS).then_some(reported)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: Slot = Slot(0);

    fn fleet() -> (Fleet, Instant) {
        let mut fleet = Fleet::default();
        fleet.enter(SLOT, &Wanted::bare("127.0.0.1:8000".parse().unwrap(), "tiny"), 0);
        (fleet, Instant::now())
    }

    fn scrape(started: f64) -> Scrape {
        let reported = Some(Reported { running: 2, waiting: 1, kv_usage: 0.5 });
        Scrape { reported, started: Some(started), asleep: false }
    }

    #[test]
    fn three_failures_in_a_row_are_down_and_one_answer_is_up() {
        let (mut fleet, now) = fleet();
        assert_eq!(fleet.health(SLOT), Some(Health::Up), "unknown is taken for up");
        for status in [false, false, true, false] {
            assert_eq!(fleet.scraped(SLOT, None, now).status, status);
        }
        assert_eq!(fleet.health(SLOT), Some(Health::Down));
        assert!(fleet.scraped(SLOT, Some(&scrape(1.0)), now).status);
        assert_eq!(fleet.health(SLOT), Some(Health::Up));
    }

    #[test]
    fn a_late_answer_is_excused_while_events_come_but_not_for_long() {
        let (mut fleet, now) = fleet();
        fleet.scraped(SLOT, Some(&scrape(1.0)), now);
        assert!(!fleet.is_busy(SLOT, now), "no event says that it lives");
        fleet.set_events(SLOT, true);
        assert!(fleet.is_busy(SLOT, now + Duration::from_secs(20)));
        assert!(!fleet.is_busy(SLOT, now + BUSY_LASTS));
    }

    #[test]
    fn a_rank_knows_whether_another_one_lives() {
        let mut fleet = Fleet::default();
        let bare = Wanted::bare("127.0.0.1:8000".parse().unwrap(), "tiny");
        for rank in 0..2u16 {
            let key = Key { rank: Some(rank), ..bare.key };
            fleet.enter(Slot(rank), &Wanted { key, ..bare.clone() }, 0);
        }
        fleet.set_events(Slot(0), true);
        assert_eq!((fleet.has_live_sibling(Slot(1)), fleet.has_live_sibling(Slot(0))), (true, false));
    }

    #[test]
    fn old_load_is_unknown_rather_than_idle() {
        let (mut fleet, now) = fleet();
        assert!(fleet.scraped(SLOT, Some(&scrape(1.0)), now).load);
        let reported = |fleet: &Fleet, now| fleet.endpoints(now, 0, |_| Some(0), |_| (0, 0)).0[0].reported;
        assert!(reported(&fleet, now).is_some());
        let later = now + REPORT_LASTS + Duration::from_millis(1);
        assert_eq!(reported(&fleet, later), None);
    }

    #[test]
    fn another_process_or_a_long_outage_makes_the_stream_anew() {
        let (mut fleet, now) = fleet();
        assert!(!fleet.scraped(SLOT, Some(&scrape(1.0)), now).reconnect);
        assert!(!fleet.scraped(SLOT, Some(&scrape(1.0)), now).reconnect);
        assert!(fleet.scraped(SLOT, Some(&scrape(2.0)), now).reconnect);
        fleet.scraped(SLOT, None, now);
        assert!(!fleet.scraped(SLOT, Some(&scrape(2.0)), now + Duration::from_secs(1)).reconnect);
        fleet.scraped(SLOT, None, now);
        assert!(fleet.scraped(SLOT, Some(&scrape(2.0)), now + LONG_OUTAGE).reconnect);
    }

    #[test]
    fn a_sleeping_engine_is_not_chosen() {
        let (mut fleet, now) = fleet();
        let asleep = Scrape { asleep: true, ..scrape(1.0) };
        let change = fleet.scraped(SLOT, Some(&asleep), now);
        assert!(change.status);
        assert_eq!(fleet.health(SLOT), Some(Health::Draining));
    }

    #[test]
    fn an_endpoint_whose_metrics_are_no_longer_read_is_taken_for_up() {
        let (mut fleet, now) = fleet();
        for _ in 0..3 {
            fleet.scraped(SLOT, None, now);
        }
        let bare = Wanted::bare("127.0.0.1:8000".parse().unwrap(), "tiny");
        fleet.alter(SLOT, &Wanted { metrics: Some("http://127.0.0.1:1/m".into()), ..bare.clone() });
        assert_eq!(fleet.health(SLOT), Some(Health::Down));
        fleet.alter(SLOT, &bare);
        assert_eq!(fleet.health(SLOT), Some(Health::Up));
    }

    #[test]
    fn a_gateway_with_an_older_table_is_not_told_of_events() {
        let (mut fleet, now) = fleet();
        fleet.enter(Slot(1), &Wanted::bare("127.0.0.1:8001".parse().unwrap(), "tiny"), 7);
        fleet.set_events(SLOT, true);
        fleet.set_events(Slot(1), true);
        let events = |table| {
            let (endpoints, early) = fleet.endpoints(now, table, |_| Some(0), |_| (0, 0));
            (endpoints.iter().map(|e| e.events).collect::<Vec<_>>(), early)
        };
        assert_eq!(events(6), (vec![true, false], true));
        assert_eq!(events(7), (vec![true, true], false));
    }
}
