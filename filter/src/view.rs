//! What this VM knows of the fleet: shared data, decoded once per version.
//!
//! Shared data is written by whichever VM holds the sync lease; all others notice a new version through a gauge, which
//! costs 50 ns to read, and decode it on their next request.

use crate::host::{self, Metric, MetricKind};
use crate::loads::Loads;
use affinity::Slot;
use affinity::fleet::{Endpoint, Fleet, Health};
use affinity::lookup::Layout;
use affinity::placement::{Engine, engine_seed};
use affinity::profile::Profiles;
use affinity::prompt::Prompts;
use std::cell::{Ref, RefCell};

/// Names of everything a fleet keeps in shared data. Fixed keys: shared data cannot be deleted.
#[derive(Debug)]
pub struct Keys {
    pub fleet: String,
    pub profiles: String,
    pub versions: String,
    pub lease: String,
    pub gateway: String,
    page: String,
    place: String,
}

impl Keys {
    pub fn new(fleet: &str) -> Self {
        let key = |name: &str| format!("warmpath/{fleet}/{name}");
        Self {
            fleet: key("fleet"),
            profiles: key("profiles"),
            versions: key("versions"),
            lease: key("lease"),
            gateway: key("gateway"),
            page: key("page/"),
            place: key("place/"),
        }
    }

    /// The key of a page of the table.
    pub fn page(&self, number: u32) -> String {
        numbered(&self.page, number)
    }

    /// The key of a place for a predicted mark.
    pub fn place(&self, number: u32) -> String {
        numbered(&self.place, number)
    }
}

/// `prefix` and four hexadecimal digits: without the formatting machinery, as this runs some ten times a request.
fn numbered(prefix: &str, number: u32) -> String {
    let mut key = String::with_capacity(prefix.len() + 4);
    key.push_str(prefix);
    for shift in [12, 8, 4, 0] {
        key.push(char::from_digit(number >> shift & 15, 16).unwrap_or('0'));
    }
    key
}

/// Gauges by which VMs tell one another of news.
#[derive(Clone, Copy, Debug)]
pub struct News {
    /// Changes whenever the fleet page was written.
    pub fleet: Metric,
    /// Changes whenever the profiles page was written.
    pub profiles: Metric,
    /// When the indexer was last heard, in milliseconds.
    pub heard_ms: Metric,
}

impl News {
    pub fn define(fleet: &str) -> Option<Self> {
        let gauge = |name: &str| host::metric(MetricKind::Gauge, &format!("warmpath.{fleet}.sync.{name}"));
        Some(Self { fleet: gauge("fleet_news")?, profiles: gauge("profiles_news")?, heard_ms: gauge("heard_ms")? })
    }
}

/// The fleet, made ready for placement.
#[derive(Default)]
pub struct Known {
    /// Where the table is; `None` before the first sync.
    pub fleet: Option<Fleet>,
    /// Endpoints that may be chosen, by model; the last list holds those that serve any.
    pub engines: Vec<Vec<Engine>>,
    /// Ranks below this may be named in a request ([`Fleet::common_ranks`]).
    pub common_ranks: u16,
    /// Prompt profiles; `None` before the first sync.
    pub prompts: Option<Prompts>,
    seen_fleet: u64,
    seen_profiles: u64,
}

impl Known {
    /// Where to find the table's pages.
    pub fn layout(&self) -> Option<Layout> {
        self.fleet.as_ref().map(|f| Layout { epoch: f.epoch, bits: f.table_bits })
    }

    /// The endpoint of a slot.
    pub fn endpoint(&self, slot: Slot) -> Option<&Endpoint> {
        let endpoints = &self.fleet.as_ref()?.endpoints;
        endpoints.binary_search_by_key(&slot, |e| e.slot).ok().and_then(|at| endpoints.get(at))
    }

    /// The endpoint that serves a request at an address: the rank that the request names, or one of those there are, of
    /// which the engine takes the one with the least to do.
    pub fn at(&self, address: &str, rank: Option<u16>, load: impl Fn(Slot) -> u64) -> Option<Slot> {
        let here = || self.fleet.iter().flat_map(|f| &f.endpoints).filter(|e| e.address == address);
        let named = rank.and_then(|rank| here().find(|e| e.rank == Some(rank)));
        named.or_else(|| here().min_by_key(|e| load(e.slot))).map(|e| e.slot)
    }

    /// Endpoints that may be chosen for a model; for an unknown model, all that serve any.
    pub fn engines(&self, model: Option<u16>) -> &[Engine] {
        let by_model = model.and_then(|m| self.engines.get(usize::from(m)));
        by_model.or(self.engines.last()).map_or(&[], Vec::as_slice)
    }
}

/// The view of one plugin configuration in one VM.
pub struct View {
    known: RefCell<Known>,
}

impl View {
    pub fn new() -> Self {
        Self { known: RefCell::default() }
    }

    /// What is known now; decodes what changed since the last call.
    pub fn now(&self, keys: &Keys, news: News, loads: &Loads) -> Ref<'_, Known> {
        let (fleet, profiles) = (news.fleet.get(), news.profiles.get());
        let stale = {
            let known = self.known.borrow();
            (known.seen_fleet != fleet, known.seen_profiles != profiles)
        };
        if stale.0 || stale.1 {
            let mut known = self.known.borrow_mut();
            if stale.1 {
                known.seen_profiles = profiles;
                known.prompts = read_prompts(keys).or(known.prompts.take());
            }
            known.seen_fleet = fleet;
            if let Some(page) = host::read_shared(&keys.fleet).and_then(|bytes| Fleet::decode(&bytes)) {
                let models = known.prompts.as_ref().map_or(0, |p| p.len());
                known.engines = engines_by_model(&page, models);
                known.common_ranks = page.common_ranks();
                for endpoint in &page.endpoints {
                    loads.know(endpoint.slot);
                }
                known.fleet = Some(page);
            }
        }
        self.known.borrow()
    }
}

fn read_prompts(keys: &Keys) -> Option<Prompts> {
    let (prompts, failed) = Prompts::new(Profiles::decode(&host::read_shared(&keys.profiles)?)?);
    for (model, why) in failed {
        log::warn!("warmpath: chat prompts of model `{model}` cannot be known, they are placed by load: {why}");
    }
    Some(prompts)
}

fn engines_by_model(fleet: &Fleet, models: usize) -> Vec<Vec<Engine>> {
    let engine = |e: &Endpoint| Engine {
        slot: e.slot,
        seed: engine_seed(&e.name()),
        prefill_rate: f64::from(e.prefill_rate).max(1.0),
        kv_usage: e.reported.map(|r| f64::from(r.kv_usage)),
    };
    let up = || fleet.endpoints.iter().filter(|e| e.health == Health::Up);
    let serving = |m: usize| up().filter(move |e| e.models.iter().any(|n| usize::from(*n) == m)).map(engine).collect();
    let mut lists: Vec<Vec<Engine>> = (0..models).map(serving).collect();
    lists.push(up().map(engine).collect());
    lists
}
