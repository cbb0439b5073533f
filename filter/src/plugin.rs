//! What all streams of one plugin configuration share within a VM.

use crate::config::Config;
use crate::decide::{Decision, Inputs, decide};
use crate::host::{self, Metric, MetricKind};
use crate::loads::Loads;
use crate::view::{Keys, Known, News, View};
use affinity::prompt::Api;
use affinity::sync::Placement;
use std::cell::{Cell, Ref, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::rc::Rc;

/// Placements kept for other gateways between two ticks; more are dropped.
const OUTBOX: usize = 1024;

/// One plugin configuration in one VM.
pub struct Plugin {
    pub config: Config,
    pub keys: Keys,
    pub loads: Rc<Loads>,
    pub news: News,
    /// Placements to tell other gateways of, at the next tick.
    pub outbox: RefCell<Vec<Placement>>,
    pub paused: Paused,
    /// Bytes of bodies being collected, over all streams of this VM.
    pub collected: Cell<usize>,
    view: View,
    counters: RefCell<HashMap<&'static str, Option<Metric>>>,
    chance: Cell<u64>,
}

impl Plugin {
    /// `None` if the host defines no metrics.
    pub fn new(config: Config) -> Option<Rc<Self>> {
        let (keys, loads, news) = (Keys::new(&config.fleet), Loads::new(&config.fleet)?, News::define(&config.fleet)?);
        Some(Rc::new(Self {
            config,
            keys,
            loads,
            news,
            outbox: RefCell::default(),
            paused: Paused::default(),
            collected: Cell::new(0),
            view: View::new(),
            counters: RefCell::default(),
            chance: Cell::new(RandomState::new().build_hasher().finish() | 1),
        }))
    }

    /// What is known of the fleet now.
    pub fn known(&self) -> Ref<'_, Known> {
        self.view.now(&self.keys, self.news, &self.loads)
    }

    /// A random number (xorshift64*), for ties and names.
    pub fn random(&self) -> u64 {
        let mut x = self.chance.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.chance.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Decides for a request and counts why.
    pub fn decide(&self, api: Api, body: &[u8], whole: bool) -> Option<Decision> {
        let known = self.known();
        let inputs = Inputs {
            config: &self.config,
            keys: &self.keys,
            known: &known,
            loads: &self.loads,
            now_ms: host::now_ms(),
            heard_ms: self.news.heard_ms.get(),
            chance: self.random(),
        };
        let Some(mut decision) = decide(&inputs, api, body, whole) else {
            self.count("decisions", "none");
            return None;
        };
        self.count("decisions", decision.explanation.choice.reason.as_str());
        if let Some(unknown) = decision.explanation.unknown {
            self.count("unknown", unknown.as_str());
        }
        if !decision.explanation.table_fresh {
            self.count("table", "stale");
        }
        if let Some(placement) = decision.placement.take() {
            let mut outbox = self.outbox.borrow_mut();
            if outbox.len() < OUTBOX {
                outbox.push(placement);
            }
        }
        Some(decision)
    }

    /// Adds one to `warmpath.<fleet>.<family>.<name>`. Names are few and fixed, and no two families share one.
    pub fn count(&self, family: &str, name: &'static str) {
        let define = || host::metric(MetricKind::Counter, &format!("warmpath.{}.{family}.{name}", self.config.fleet));
        if let Some(counter) = self.counters.borrow_mut().entry(name).or_insert_with(define) {
            counter.add(1);
        }
    }
}

/// Guards against a host that pauses a request for good.
///
/// Without `allow_on_headers_stop_iteration` Envoy never shows the body of a request paused at its headers. Until a body
/// has been seen once, paused requests are watched, and let go after a second. A body that was there all along shows
/// at once when its request is let go: that tells such a host from a slow client. After three of these pausing ends,
/// for a while.
#[derive(Default)]
pub struct Paused {
    proven: Cell<bool>,
    /// No pausing before then.
    given_up_until: Cell<u64>,
    evidence: Cell<u32>,
    /// Paused streams, since when.
    since: RefCell<HashMap<u32, u64>>,
    /// Streams that were let go, when.
    rescued: RefCell<HashMap<u32, u64>>,
}

/// A paused request without its body is let go after this long, while the host is unproven.
const RESCUE_AFTER_MS: u64 = 1_000;
/// A body that shows this soon after its request was let go had been there.
const AT_ONCE_MS: u64 = 20;
const ENOUGH_EVIDENCE: u32 = 3;
/// Then pausing ends for this long, before it is tried again.
const GIVE_UP_FOR_MS: u64 = 60_000;

impl Paused {
    /// Whether requests may be paused at their headers.
    pub fn allowed(&self) -> bool {
        self.proven.get() || self.given_up_until.get() == 0 || host::now_ms() >= self.given_up_until.get()
    }

    /// A stream was paused at its headers.
    pub fn enter(&self, stream: u32) {
        if !self.proven.get() {
            self.since.borrow_mut().insert(stream, host::now_ms());
        }
    }

    /// A stream that was paused shows its body. False if it has been let go before: its headers have left.
    pub fn body_seen(&self, stream: u32) -> bool {
        if self.proven.get() {
            return !self.rescued.borrow().contains_key(&stream);
        }
        if let Some(at) = self.rescued.borrow_mut().remove(&stream) {
            if host::now_ms().saturating_sub(at) <= AT_ONCE_MS {
                self.evidence.set(self.evidence.get() + 1);
            }
            if self.evidence.get() == ENOUGH_EVIDENCE {
                self.evidence.set(0);
                self.given_up_until.set(host::now_ms() + GIVE_UP_FOR_MS);
                log::error!(
                    "warmpath: Envoy does not show the bodies of paused requests. Set `allow_on_headers_stop_iteration: \
                     true` in the PluginConfig (Envoy 1.35 or later), or use `\"hold\": \"buffer\"`. Until then requests \
                     go on unrouted."
                );
            }
            return false;
        }
        if self.since.borrow_mut().remove(&stream).is_some() {
            self.proven.set(true);
            self.since.borrow_mut().clear();
        }
        true
    }

    /// A stream ended.
    pub fn leave(&self, stream: u32) {
        if !self.proven.get() {
            self.since.borrow_mut().remove(&stream);
        }
        if !self.rescued.borrow().is_empty() {
            self.rescued.borrow_mut().remove(&stream);
        }
    }

    /// Lets go of requests that have been paused too long. `here` is the root context.
    pub fn tick(&self, here: u32) {
        if self.proven.get() {
            return;
        }
        let now = host::now_ms();
        let overdue: Vec<u32> = {
            let since = self.since.borrow();
            since.iter().filter(|(_, at)| now.saturating_sub(**at) >= RESCUE_AFTER_MS).map(|(id, _)| *id).collect()
        };
        for stream in overdue {
            self.since.borrow_mut().remove(&stream);
            self.rescued.borrow_mut().insert(stream, now);
            host::resume_request(stream, here);
        }
    }
}
