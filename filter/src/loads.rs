//! Loads, counted in Envoy's gauges: process-wide atomics, so every worker sees what every other has in flight.
//!
//! **Invariant (RAII):** what a [`Charge`] adds it takes back exactly once, when it is dropped, however the stream ends.
//! A gauge is never set, only added to, so workers never overwrite one another.

use crate::host::{Metric, MetricKind, metric};
use affinity::placement::Load;
use affinity::{Slot, Tokens};
use std::cell::RefCell;
use std::rc::Rc;

/// One endpoint's gauges, or the fleet's sums.
#[derive(Clone, Copy, Debug)]
struct Gauges {
    in_flight: Metric,
    queued_tokens: Metric,
    recent_tokens: Metric,
}

impl Gauges {
    fn define(prefix: &str) -> Option<Self> {
        let gauge = |name: &str| metric(MetricKind::Gauge, &format!("{prefix}.{name}"));
        Some(Self {
            in_flight: gauge("in_flight")?,
            queued_tokens: gauge("queued_tokens")?,
            recent_tokens: gauge("recent_tokens")?,
        })
    }

    fn read(&self) -> Load {
        Load {
            in_flight: self.in_flight.get(),
            queued_tokens: self.queued_tokens.get(),
            recent_tokens: self.recent_tokens.get(),
        }
    }
}

/// This gateway's loads.
#[derive(Debug)]
pub struct Loads {
    prefix: String,
    fleet: Gauges,
    /// By slot; defined when first asked for.
    slots: RefCell<Vec<Option<Gauges>>>,
}

impl Loads {
    /// `None` if the host defines no metrics.
    pub fn new(fleet: &str) -> Option<Rc<Self>> {
        let prefix = format!("warmpath.{fleet}");
        let sums = Gauges::define(&format!("{prefix}.fleet"))?;
        Some(Rc::new(Self { prefix, fleet: sums, slots: RefCell::default() }))
    }

    fn gauges(&self, slot: Slot) -> Option<Gauges> {
        let mut slots = self.slots.borrow_mut();
        let at = usize::from(slot.0);
        if at >= usize::from(Slot::LIMIT) {
            return None;
        }
        if slots.len() <= at {
            slots.resize(at + 1, None);
        }
        let known = slots.get_mut(at)?;
        if known.is_none() {
            *known = Gauges::define(&format!("{}.endpoint.{}", self.prefix, slot.0));
        }
        *known
    }

    /// Defines an endpoint's gauges, so that they fade and are reported whichever VM used them.
    pub fn know(&self, slot: Slot) {
        self.gauges(slot);
    }

    /// One endpoint's load from this gateway, all workers together.
    pub fn of(&self, slot: Slot) -> Load {
        self.gauges(slot).map(|g| g.read()).unwrap_or_default()
    }

    /// Requests in flight on all endpoints.
    pub fn fleet_in_flight(&self) -> u64 {
        self.fleet.in_flight.get()
    }

    /// The sum over all endpoints.
    pub fn fleet(&self) -> Load {
        self.fleet.read()
    }

    /// Charges a request to an endpoint: one in flight, and `tokens` to prefill until the first byte.
    pub fn charge(self: &Rc<Self>, slot: Slot, tokens: Tokens) -> Charge {
        let tokens = i64::from(tokens.0);
        let gauges = self.gauges(slot);
        for g in gauges.iter().chain([&self.fleet]) {
            g.in_flight.add(1);
            g.queued_tokens.add(tokens);
            g.recent_tokens.add(tokens);
        }
        Charge { loads: Rc::clone(self), slot, gauges, queued: tokens }
    }

    /// Lets recent tokens fade, by a 64th: called once a second, they halve in 44 s.
    pub fn fade(&self) {
        for g in self.slots.borrow().iter().flatten() {
            let faded = g.recent_tokens.get().div_ceil(64) as i64;
            g.recent_tokens.add(-faded);
            self.fleet.recent_tokens.add(-faded);
        }
    }
}

/// A request's share of an endpoint's load, given back when dropped.
#[derive(Debug)]
pub struct Charge {
    loads: Rc<Loads>,
    slot: Slot,
    gauges: Option<Gauges>,
    queued: i64,
}

impl Charge {
    /// Where the request was sent.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// The first byte came: nothing is left to prefill.
    pub fn first_byte(&mut self) {
        let queued = std::mem::take(&mut self.queued);
        if queued != 0 {
            for g in self.gauges.iter().chain([&self.loads.fleet]) {
                g.queued_tokens.add(-queued);
            }
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.first_byte();
        for g in self.gauges.iter().chain([&self.loads.fleet]) {
            g.in_flight.add(-1);
        }
    }
}
