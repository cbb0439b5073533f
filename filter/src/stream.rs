//! One request: held until its endpoint is known, then accounted for until it ends.

use crate::config::Hold;
use crate::decide::{Decision, Explanation};
use crate::host::{self, Buffer, Headers};
use crate::loads::Charge;
use crate::plugin::Plugin;
use affinity::prompt::Api;
use affinity::{Slot, Tokens};
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;
use std::rc::Rc;

/// The header that override_host reads: `ip:port[,ip:port...]`.
pub const ROUTING_HEADER: &str = "x-gateway-destination-endpoint";
/// The header by which vLLM lets a request choose a data-parallel rank.
pub const RANK_HEADER: &str = "x-data-parallel-rank";
/// Filter state that carries the same values where headers cannot be set any more (hold by buffer).
pub const FILTER_STATE: &str = "warmpath.endpoint";
/// As above, for the rank.
pub const RANK_STATE: &str = "warmpath.rank";
/// A request that carries this header is answered with `x-warmpath-*` headers.
const DEBUG_HEADER: &str = "x-warmpath-debug";

/// How far a request has come.
enum Phase {
    /// Not a prompt, or already decided: everything passes.
    Passing,
    /// Waiting for the whole body, which Envoy keeps (hold by pause).
    Paused,
    /// Collecting the body as it passes to the buffer filter (hold by buffer).
    Collecting(Collected),
}

/// Bodies may take this much of a VM's memory while they are collected: beyond, they are placed by what is there.
const COLLECT_AT_MOST: usize = 64 << 20;

/// What has been collected of a body, counted among its VM's; given back when dropped.
struct Collected {
    body: Vec<u8>,
    plugin: Rc<Plugin>,
}

impl Collected {
    fn new(plugin: Rc<Plugin>) -> Self {
        Self { body: Vec::new(), plugin }
    }

    /// Adds the next piece; false if there is no room for it.
    fn add(&mut self, size: usize) -> bool {
        let all = self.plugin.collected.get() + size;
        if all > COLLECT_AT_MOST
            || self.body.len() + size > self.plugin.config.max_body_bytes
            || self.body.try_reserve(size).is_err()
        {
            return false;
        }
        let before = self.body.len();
        self.body.append(&mut host::buffer(Buffer::RequestBody, 0, size).unwrap_or_default());
        self.plugin.collected.set(self.plugin.collected.get() + self.body.len() - before);
        true
    }

    /// What there is, no longer counted.
    fn take(&mut self) -> Vec<u8> {
        self.plugin.collected.set(self.plugin.collected.get().saturating_sub(self.body.len()));
        std::mem::take(&mut self.body)
    }
}

impl Drop for Collected {
    fn drop(&mut self) {
        self.take();
    }
}

/// One HTTP stream.
pub struct Stream {
    id: u32,
    plugin: Rc<Plugin>,
    api: Option<Api>,
    phase: Phase,
    /// Whether the client asked for an explanation.
    explain: bool,
    explanation: Option<Explanation>,
    /// The rank that the request was told to go to.
    rank: Option<u16>,
    /// Released when the stream is dropped.
    charge: Option<Charge>,
    /// Pieces of the answer's body seen so far.
    pieces: u32,
}

impl Stream {
    pub fn new(id: u32, plugin: Rc<Plugin>) -> Self {
        Self {
            id,
            plugin,
            api: None,
            phase: Phase::Passing,
            explain: false,
            explanation: None,
            rank: None,
            charge: None,
            pieces: 0,
        }
    }

    /// Decides with what is known of the body, and lets the request go.
    fn decide(&mut self, body: &[u8], whole: bool) {
        self.phase = Phase::Passing;
        let Some(api) = self.api else { return };
        if let Some(Decision { header, rank, charge, explanation, .. }) = self.plugin.decide(api, body, whole) {
            let tell = |name: &str, state: &str, value: &str| match self.plugin.config.hold {
                Hold::Pause => host::set_header(Headers::Request, name, value),
                Hold::Buffer => host::set_filter_state(state, value),
            };
            if tell(ROUTING_HEADER, FILTER_STATE, &header) {
                self.rank = rank.filter(|rank| tell(RANK_HEADER, RANK_STATE, &rank.to_string()));
                self.charge = Some(charge);
                self.explanation = Some(explanation);
            }
        }
    }

    /// The next piece of the body, or all there is of it.
    fn body(&mut self, size: usize, end: bool) -> Action {
        match &mut self.phase {
            Phase::Passing => Action::Continue,
            Phase::Paused => {
                let limit = self.plugin.config.max_body_bytes;
                if !self.plugin.paused.body_seen(self.id) {
                    self.phase = Phase::Passing;
                    return Action::Continue;
                }
                if !end && size <= limit {
                    return Action::Pause;
                }
                let body = host::buffer(Buffer::RequestBody, 0, size.min(limit)).unwrap_or_default();
                self.decide(&body, size <= limit);
                Action::Continue
            }
            Phase::Collecting(collected) => {
                let whole = size == 0 || collected.add(size);
                if end || !whole {
                    let body = collected.take();
                    self.decide(&body, whole);
                }
                Action::Continue
            }
        }
    }

    /// Moves the charge to the endpoint that answers: a retry may have walked on, or the cluster decided alone.
    fn settle(&mut self) {
        let Some(address) = host::property("upstream\0address").and_then(|a| String::from_utf8(a).ok()) else { return };
        let known = self.plugin.known();
        let charged = self.charge.as_ref().and_then(|charge| known.endpoint(charge.slot()));
        if charged.is_some_and(|endpoint| endpoint.address == address) {
            return;
        }
        let load = |slot| self.plugin.loads.of(slot).in_flight;
        if let Some(slot) = known.at(&address, self.rank, load) {
            self.charge = None;
            self.charge = Some(self.plugin.loads.charge(slot, Tokens(0)));
        }
    }

    fn first_byte(&mut self) {
        if let Some(charge) = &mut self.charge {
            charge.first_byte();
        }
    }

    /// The `x-warmpath-*` response headers.
    fn answer(&self) {
        let set = |name: &str, value: &str| {
            host::set_header(Headers::Response, name, value);
        };
        let Some(e) = &self.explanation else {
            set("x-warmpath-decision", "none");
            return;
        };
        let known = self.plugin.known();
        let address = |slot: Slot| known.endpoint(slot).map_or_else(String::new, |e| e.name().into_owned());
        let chosen = e.choice.slots.first().map(|s| address(*s)).unwrap_or_default();
        set("x-warmpath-decision", e.choice.reason.as_str());
        set("x-warmpath-endpoint", &chosen);
        set("x-warmpath-prompt", e.unknown.map_or("exact", |u| u.as_str()));
        set("x-warmpath-table", if e.table_fresh { "fresh" } else { "stale" });
        set("x-warmpath-prompt-tokens", &e.prompt_tokens.0.to_string());
        set("x-warmpath-hit-tokens", &e.table_tokens.0.to_string());
        let matches: Vec<String> = e.matches.iter().map(|m| format!("{}={}", address(m.slot), m.tokens.0)).collect();
        set("x-warmpath-matches", &matches.join(","));
        if let Some(p) = e.predicted {
            set("x-warmpath-predicted", &format!("{}={}", address(p.slot), p.tokens.0));
        }
    }
}

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, end: bool) -> Action {
        // A client must not steer, neither to a host nor to a rank.
        host::remove_header(Headers::Request, ROUTING_HEADER);
        host::remove_header(Headers::Request, RANK_HEADER);
        if end {
            return Action::Continue;
        }
        self.api = host::header(Headers::Request, ":path").and_then(|path| Api::of_path(&path));
        if self.api.is_none() {
            return Action::Continue;
        }
        self.explain = self.plugin.config.explain && host::header(Headers::Request, DEBUG_HEADER).is_some();
        match self.plugin.config.hold {
            Hold::Pause if self.plugin.paused.allowed() => {
                self.phase = Phase::Paused;
                self.plugin.paused.enter(self.id);
                Action::Pause
            }
            Hold::Pause => Action::Continue,
            Hold::Buffer => {
                self.phase = Phase::Collecting(Collected::new(Rc::clone(&self.plugin)));
                Action::Continue
            }
        }
    }

    fn on_http_request_body(&mut self, size: usize, end: bool) -> Action {
        self.body(size, end)
    }

    fn on_http_request_trailers(&mut self, _: usize) -> Action {
        // Trailers end the body: no call says so otherwise.
        match &mut self.phase {
            Phase::Passing => {}
            Phase::Paused => {
                let body = host::buffer(Buffer::RequestBody, 0, self.plugin.config.max_body_bytes);
                self.decide(&body.unwrap_or_default(), true);
            }
            Phase::Collecting(collected) => {
                let body = collected.take();
                self.decide(&body, true);
            }
        }
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _: usize, end: bool) -> Action {
        if end {
            self.first_byte();
        }
        if self.explain {
            self.answer();
        }
        Action::Continue
    }

    fn on_http_response_body(&mut self, _: usize, end: bool) -> Action {
        // An answer that comes in one piece is over now: whose charge it was no longer matters.
        self.pieces = self.pieces.saturating_add(1);
        if self.pieces == 2 && !end {
            self.settle();
        }
        self.first_byte();
        Action::Continue
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.plugin.paused.leave(self.id);
    }
}
