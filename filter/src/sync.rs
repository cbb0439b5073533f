//! The sync loop: one VM at a time keeps a request open to the indexer and writes what comes back to shared data.
//!
//! Envoy runs workers + 1 VMs, all ticking. A lease in shared data (owner, expiry), taken by compare-and-swap, makes
//! one of them the poller; when it stops renewing, another takes over. Everything the poller knows (versions, gateway
//! name) lies in shared data too, so a successor goes on where it stopped.
//!
//! Where a lease moves while a request is under way or a reply is applied, two VMs write: [`affinity::shared`] keeps what
//! they claim true.

use crate::decide::remember;
use crate::host::{self, Buffer, Headers, Metric, MetricKind};
use crate::plugin::Plugin;
use affinity::shared::{Applied, Had, Place, Shared, apply, had};
use affinity::sync::{Load, Placement, Request, decode_placements, encode_placements};
use std::borrow::Cow;
use std::time::Duration;

/// Every VM ticks this often.
pub const TICK: Duration = Duration::from_millis(100);
/// A lease lasts this long without renewal.
const LEASE_MS: u64 = 2_000;
/// How long the indexer may hold a request when it has no news.
const WAIT_MS: u16 = 1_000;
/// The same where other gateways want to know our loads.
const WAIT_SHARED_MS: u16 = 100;
const TIMEOUT: Duration = Duration::from_secs(5);
/// Answers that may be followed by the next question at once, per second; an indexer that coalesces its news for a
/// millisecond stays below. Beyond, and whenever the indexer turns out to be another one, questions keep a distance.
const PROMPT_PER_SECOND: u32 = 1_100;
const DISTANCE_MS: u64 = 1_000;
/// After failures, wait this long before asking again, doubling up to the second.
const BACKOFF_MS: (u64, u64) = (100, 2_000);

/// This VM's part in the loop.
pub struct Sync {
    /// Names this VM in the lease.
    me: u64,
    asking: Option<Asking>,
    not_before_ms: u64,
    backoff_ms: u64,
    /// Questions asked at once since `faded_ms`.
    prompt: u32,
    faded_ms: u64,
    ok: Option<Metric>,
    failed: Option<Metric>,
}

/// The request in flight.
struct Asking {
    token: u32,
    since_ms: u64,
    /// What it says that this gateway has.
    had: Had,
}

impl Sync {
    pub fn new(me: u64, fleet: &str) -> Self {
        let counter = |name: &str| host::metric(MetricKind::Counter, &format!("warmpath.{fleet}.sync.{name}"));
        let (ok, failed) = (counter("ok"), counter("failed"));
        Self { me, asking: None, not_before_ms: 0, backoff_ms: BACKOFF_MS.0, prompt: 0, faded_ms: 0, ok, failed }
    }

    /// Keeps or takes the lease, and asks if nothing is being asked.
    pub fn tick(&mut self, plugin: &Plugin) {
        let now = host::now_ms();
        self.send_placements(plugin);
        if !self.lead(plugin, now) {
            return;
        }
        if now.saturating_sub(self.faded_ms) >= 1_000 {
            self.faded_ms = now;
            self.prompt = 0;
            plugin.loads.fade();
        }
        // A callout that was lost with its cluster never answers: it counts as failed after twice its timeout.
        if self.asking.as_ref().is_some_and(|a| now.saturating_sub(a.since_ms) > 2 * TIMEOUT.as_millis() as u64) {
            self.asking = None;
        }
        if self.asking.is_none() && now >= self.not_before_ms {
            self.ask(plugin, now);
        }
    }

    /// The answer to a callout of this VM. Placements are not waited for.
    pub fn answered(&mut self, plugin: &Plugin, token: u32, headers: usize, size: usize) {
        let Some(Asking { had, .. }) = self.asking.take_if(|asking| asking.token == token) else { return };
        let now = host::now_ms();
        // Without headers the call was reset half-way; Envoy makes up a status when it could not connect.
        let status = (headers > 0).then(|| host::header(Headers::Callout, ":status")).flatten();
        if status.as_deref() != Some("200") {
            let status = status.unwrap_or_else(|| "reset".into());
            self.fail(plugin, now, &format!("it does not answer ({status})"));
            return;
        }
        let body = host::buffer(Buffer::CalloutBody, 0, size).unwrap_or_default();
        let applied = apply(&Kept { plugin, now }, &body, had);
        if applied == Applied::Nonsense {
            self.fail(plugin, now, "it answers with something that is no sync reply");
            return;
        }
        plugin.news.heard_ms.set(now);
        self.backoff_ms = BACKOFF_MS.0;
        if let Some(ok) = self.ok {
            ok.add(1);
        }
        if let Applied::Taken { end, whole } = applied {
            if !whole {
                plugin.count("sync", "lost");
            }
            // Two indexers behind one cluster would hand each other's gateways the whole table over and over; so would
            // one whose pages cannot be written. A table that grew has the next epoch.
            let (was, is) = (had.versions.epoch, end.have.epoch);
            let other = was != 0 && was != is && was.checked_add(1) != Some(is);
            if other || !whole {
                self.not_before_ms = now + DISTANCE_MS;
            }
        }
        self.prompt += 1;
        if self.prompt > PROMPT_PER_SECOND {
            self.not_before_ms = now + TICK.as_millis() as u64;
        }
        if now >= self.not_before_ms && self.lead(plugin, now) {
            self.ask(plugin, now);
        }
    }

    fn ask(&mut self, plugin: &Plugin, now: u64) {
        let shared = plugin.known().fleet.as_ref().is_some_and(|f| f.gateways > 1);
        let had = had(&Kept { plugin, now });
        let request = Request {
            gateway: gateway(plugin),
            have: had.versions,
            wait_ms: if shared { WAIT_SHARED_MS } else { WAIT_MS },
            loads: loads(plugin),
        };
        match host::post(&plugin.config.indexer_cluster, "/v1/sync", &request.encode(), TIMEOUT) {
            Some(token) => self.asking = Some(Asking { token, since_ms: now, had }),
            None => self.fail(plugin, now, "Envoy has no such cluster (yet)"),
        }
    }

    fn fail(&mut self, plugin: &Plugin, now: u64, why: &str) {
        if self.backoff_ms == BACKOFF_MS.0 {
            let cluster = &plugin.config.indexer_cluster;
            log::warn!("warmpath: no sync with the indexer (cluster `{cluster}`): {why}; requests go on without it");
        }
        self.not_before_ms = now + self.backoff_ms;
        self.backoff_ms = (self.backoff_ms * 2).min(BACKOFF_MS.1);
        if let Some(failed) = self.failed {
            failed.add(1);
        }
    }

    /// Whether this VM holds the lease, taking or renewing it where that is due.
    fn lead(&self, plugin: &Plugin, now: u64) -> bool {
        let key = &plugin.keys.lease;
        let Some((lease, cas)) = host::shared(key) else {
            // A missing key cannot be swapped safely: write a lapsed lease, and compete for that at the next tick.
            host::set_shared(key, &lease_bytes(0, 0), None);
            return false;
        };
        let (owner, expires) = read_lease(&lease).unwrap_or((0, 0));
        let mine = owner == self.me;
        if mine && expires > now + LEASE_MS / 2 {
            return true;
        }
        // A lease from far in the future comes from a clock that was set back.
        let lapsed = expires <= now || expires > now + 2 * LEASE_MS;
        (mine || lapsed) && host::set_shared(key, &lease_bytes(self.me, now + LEASE_MS), Some(cas))
    }

    /// Every VM sends its own placements, when there are other gateways to tell.
    fn send_placements(&self, plugin: &Plugin) {
        let placements: Vec<Placement> = plugin.outbox.take();
        if !placements.is_empty() {
            let body = encode_placements(gateway(plugin), &placements);
            host::post(&plugin.config.indexer_cluster, "/v1/placements", &body, TIMEOUT);
        }
    }
}

/// Envoy's shared data.
struct Kept<'a> {
    plugin: &'a Plugin,
    now: u64,
}

impl Kept<'_> {
    fn key(&self, place: Place) -> Cow<'_, str> {
        let keys = &self.plugin.keys;
        match place {
            Place::Versions => Cow::Borrowed(&keys.versions),
            Place::Fleet => Cow::Borrowed(&keys.fleet),
            Place::Profiles => Cow::Borrowed(&keys.profiles),
            Place::Page(number) => Cow::Owned(keys.page(number)),
        }
    }
}

impl Shared for Kept<'_> {
    fn read(&self, place: Place) -> Option<(Vec<u8>, u32)> {
        host::shared(&self.key(place))
    }

    fn swap(&self, place: Place, bytes: &[u8], number: Option<u32>) -> bool {
        let swapped = host::set_shared(&self.key(place), bytes, Some(number.unwrap_or(host::ABSENT)));
        match place {
            Place::Fleet if swapped => self.plugin.news.fleet.add(1),
            Place::Profiles if swapped => self.plugin.news.profiles.add(1),
            _ => {}
        }
        swapped
    }

    fn write(&self, place: Place, bytes: &[u8]) {
        host::set_shared(&self.key(place), bytes, None);
    }

    fn placements(&self, bytes: &[u8]) {
        let expires_ms = self.now + self.plugin.config.predicted_ttl_ms;
        for placement in decode_placements(bytes).map(|(_, p)| p).unwrap_or_default() {
            remember(&self.plugin.keys, placement.slot, &placement.marks, expires_ms);
        }
    }
}

/// This gateway's loads on every endpoint that has any.
fn loads(plugin: &Plugin) -> Vec<Load> {
    let known = plugin.known();
    let endpoints = known.fleet.iter().flat_map(|f| &f.endpoints);
    let load = |slot| {
        let load = plugin.loads.of(slot);
        Load {
            slot,
            in_flight: load.in_flight as u32,
            queued_tokens: load.queued_tokens.min(u64::from(u32::MAX)) as u32,
        }
    };
    endpoints.map(|e| load(e.slot)).filter(|l| l.in_flight > 0 || l.queued_tokens > 0).collect()
}

/// This gateway's name: random, made once and kept in shared data.
fn gateway(plugin: &Plugin) -> u64 {
    let read = |bytes: &[u8]| bytes.first_chunk().map(|b| u64::from_le_bytes(*b));
    if let Some(name) = host::read_shared(&plugin.keys.gateway).and_then(|b| read(&b)) {
        return name;
    }
    let name = plugin.random();
    host::set_shared(&plugin.keys.gateway, &name.to_le_bytes(), None);
    name
}

fn lease_bytes(owner: u64, expires_ms: u64) -> Vec<u8> {
    [owner.to_le_bytes(), expires_ms.to_le_bytes()].concat()
}

fn read_lease(bytes: &[u8]) -> Option<(u64, u64)> {
    let (owner, expires) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*owner), u64::from_le_bytes(*expires.first_chunk()?)))
}
