//! What is known of the endpoints beside their caches: health, stream, load as they report it.

use crate::config::Config;
use crate::scrape::Scrape;
use affinity::Slot;
use affinity::fleet::{Endpoint, Health, Reported};
use std::time::{Duration, Instant};

/// An endpoint whose metrics fail this many times in a row is down.
const FAILURES_TO_DOWN: u32 = 3;
/// Reported load older than this counts as unknown.
const REPORT_LASTS: Duration = Duration::from_secs(3);
/// A connection that outlived an outage this long may be a dead one that nobody told us of.
const LONG_OUTAGE: Duration = Duration::from_secs(30);

/// The endpoints, by slot.
pub struct Fleet {
    members: Vec<Member>,
}

/// One endpoint.
struct Member {
    address: String,
    model: u16,
    prefill_rate: f32,
    events: bool,
    /// Scrapes failed in a row, and since when.
    failures: u32,
    failing_since: Option<Instant>,
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
    /// The fleet as configured; nothing is known of it yet, and unknown is taken for up.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let member = |endpoint: &crate::config::Endpoint| Member {
            address: endpoint.address.clone(),
            // The configuration was checked: the model is there, and there are few.
            model: config.models.iter().position(|m| m.name == endpoint.model).unwrap_or(0) as u16,
            prefill_rate: endpoint.prefill_tokens_per_second,
            events: false,
            failures: 0,
            failing_since: None,
            asleep: false,
            reported: None,
            started: None,
        };
        Self { members: config.endpoints.iter().map(member).collect() }
    }

    /// Slots and addresses.
    pub fn addresses(&self) -> impl Iterator<Item = (Slot, &str)> {
        (0u16..).map(Slot).zip(self.members.iter().map(|m| m.address.as_str()))
    }

    /// The event stream came into sync or fell out of it.
    pub fn set_events(&mut self, slot: Slot, in_sync: bool) -> Change {
        let Some(member) = self.members.get_mut(usize::from(slot.0)) else { return Change::default() };
        let status = member.events != in_sync;
        member.events = in_sync;
        Change { status, ..Change::default() }
    }

    /// The metrics were read, or could not be.
    pub fn scraped(&mut self, slot: Slot, scrape: Option<&Scrape>, now: Instant) -> Change {
        let Some(member) = self.members.get_mut(usize::from(slot.0)) else { return Change::default() };
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
                member.asleep = scrape.asleep;
                member.reported = scrape.reported.map(|reported| (reported, now));
            }
        }
        Change { status: health != member.health(), load: load != member.load(now), reconnect }
    }

    /// An endpoint's health.
    #[must_use]
    pub fn health(&self, slot: Slot) -> Option<Health> {
        self.members.get(usize::from(slot.0)).map(Member::health)
    }

    /// Whether an endpoint's stream is in sync.
    #[must_use]
    pub fn events(&self, slot: Slot) -> bool {
        self.members.get(usize::from(slot.0)).is_some_and(|m| m.events)
    }

    /// The endpoints for the fleet page. `remote` gives requests in flight and tokens queued from elsewhere.
    pub fn endpoints(&self, now: Instant, remote: impl Fn(Slot) -> (u32, u32)) -> Vec<Endpoint> {
        let endpoint = |(slot, member): (Slot, &Member)| {
            let (remote_in_flight, remote_queued_tokens) = remote(slot);
            Endpoint {
                slot,
                address: member.address.clone(),
                health: member.health(),
                events: member.events,
                models: vec![member.model],
                prefill_rate: member.prefill_rate,
                reported: member.load(now),
                remote_in_flight,
                remote_queued_tokens,
            }
        };
        (0u16..).map(Slot).zip(&self.members).map(endpoint).collect()
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
        let config = "
models: [{name: tiny, tokenizer: tok}]
endpoints: [{address: '127.0.0.1:8000', model: tiny}]";
        (Fleet::new(&Config::parse(config).unwrap()), Instant::now())
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
    fn old_load_is_unknown_rather_than_idle() {
        let (mut fleet, now) = fleet();
        assert!(fleet.scraped(SLOT, Some(&scrape(1.0)), now).load);
        assert!(fleet.endpoints(now, |_| (0, 0))[0].reported.is_some());
        let later = now + REPORT_LASTS + Duration::from_millis(1);
        assert_eq!(fleet.endpoints(later, |_| (0, 0))[0].reported, None);
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
        assert!(fleet.scraped(SLOT, Some(&Scrape { asleep: true, ..scrape(1.0) }), now).status);
        assert_eq!(fleet.health(SLOT), Some(Health::Draining));
    }
}
