//! From a request to its endpoint: the fallback ladder.
//!
//! 1. The table says who holds the prompt's prefix: placement weighs that against load.
//! 2. Placements just made say who will soon hold it (also all there is when no events come), and a table gone stale who
//!    held it.
//! 3. Nobody is known to hold much, or the prompt is not known: rendezvous hashing, with bounded load.
//! 4. No fleet is known, or no endpoint of it is up: no header is set and the cluster's own load balancer decides.
//!
//! **Invariant:** every rung ends in a decision or in `None`; nothing here fails a request.

use crate::config::Config;
use crate::host;
use crate::loads::{Charge, Loads};
use crate::view::{Keys, Known};
use affinity::fingerprint::fingerprints;
use affinity::lookup::{Match, lookup};
use affinity::placement::{Choice, Engine, Hit, Load, Prompt, SHORTLIST, place};
use affinity::predicted::{Mark, Prediction, encode_mark, marks, place_of, predict};
use affinity::prompt::{Api, Asked, Unknown};
use affinity::sync::Placement;
use affinity::{Fingerprint, Slot, Tokens, root};
use std::borrow::Cow;
use std::rc::Rc;

/// How far beyond the known part of a prompt the spreading key lies, in strides: past the end of a block that the
/// table cannot show yet.
const KEY_BEYOND: usize = 8;
/// From the end of a prefill to its place in the table, generously.
const EVENT_LAG_MS: u64 = 500;
/// Prompt bytes per token until a match tells better: English.
const BYTES_PER_TOKEN: f64 = 4.0;

/// A decision and what it rests on.
pub struct Decision {
    /// The value of the routing header: the endpoint, and those that retries walk to.
    pub header: String,
    /// Which data-parallel rank there is meant.
    pub rank: Option<u16>,
    /// The request's share of the endpoint's load.
    pub charge: Charge,
    /// What the filter would send to other gateways.
    pub placement: Option<Placement>,
    pub explanation: Explanation,
}

/// Why, in numbers: for counters and for the `x-warmpath-*` response headers.
pub struct Explanation {
    pub choice: Choice,
    /// Whether the table could be used.
    pub table_fresh: bool,
    /// Why the prompt's bytes are not known, if so.
    pub unknown: Option<Unknown>,
    /// Estimated where nobody holds it.
    pub prompt_tokens: Tokens,
    /// Tokens that the table says the chosen endpoint holds.
    pub table_tokens: Tokens,
    /// Every holder's match, by the table.
    pub matches: Vec<Match>,
    pub predicted: Option<Prediction>,
}

/// Everything a decision reads.
pub struct Inputs<'a> {
    pub config: &'a Config,
    pub keys: &'a Keys,
    pub known: &'a Known,
    pub loads: &'a Rc<Loads>,
    pub now_ms: u64,
    pub heard_ms: u64,
    pub chance: u64,
}

/// Chooses an endpoint for a body; `None`: the cluster's own load balancer decides. A body that is not `whole` is not
/// read: its beginning only says where bodies that begin alike went.
pub fn decide(inputs: &Inputs<'_>, api: Api, body: &[u8], whole: bool) -> Option<Decision> {
    let Inputs { config, keys, known, loads, now_ms, .. } = *inputs;
    let fleet = known.fleet.as_ref()?;
    let prompts = known.prompts.as_ref()?;
    let asked = if whole {
        prompts.read(api, body, (now_ms / 1000) as i64)
    } else {
        prompts.unread(body, Unknown::Feature("body_too_long"))
    };
    // Not every endpoint would know what to do with it, and which do cannot be told.
    if asked.model.is_none() && prompts.len() > 1 {
        return None;
    }
    let mut engines = Cow::Borrowed(known.engines(asked.model));
    if let Some(only) = &asked.only {
        // Elsewhere the engine would not know the name.
        engines.to_mut().retain(|engine| only.contains(&engine.slot));
    }
    let engines: &[Engine] = &engines;
    if engines.is_empty() {
        return None;
    }

    let mut prefixes = Vec::new();
    let (in_table, unknown, length, last) = match &asked.prompt {
        // Of one that is known up to an image, what is known counts, if it is enough to tell it from others.
        Ok(prompt) if prompt.cut.is_none() || prompt.bytes.len() >= fleet.stride.bytes() => {
            fingerprints(fleet.stride, prompt.root, &prompt.bytes, &mut prefixes);
            (true, prompt.cut, prompt.bytes.len(), prompt.last)
        }
        // The raw body stands in for the prompt, in a namespace of its own: enough to send what begins alike to
        // the same place, and no table entry can ever match it.
        other => {
            fingerprints(fleet.stride, root("\0raw body", None), body, &mut prefixes);
            let why = other.as_ref().map_or_else(|why| Some(*why), |prompt| prompt.cut);
            (false, why, body.len(), 0)
        }
    };

    // A table that has gone stale is still the best hint there is; but what it says is predicted, no longer known.
    let silent_ms = now_ms.saturating_sub(inputs.heard_ms);
    let table_fresh = silent_ms <= config.stale_after_ms;
    let mut matches = match known.layout() {
        Some(layout) if in_table && silent_ms <= config.stale_after_ms.max(config.approximate_ttl_ms) => {
            let likely = length.saturating_sub(last) / fleet.stride.bytes();
            // On an idle fleet the deepest holder it will be, whoever else holds some.
            let busy = loads.fleet_in_flight() >= 2 * engines.len() as u64;
            lookup(&prefixes, layout, likely as u32, busy, |page| host::read_shared(&keys.page(page)))
        }
        _ => Vec::new(),
    };
    // Holders that cannot be chosen must not stand in the way of others; and while an endpoint's events are being
    // replayed, the table may show blocks that a later event removes.
    let selectable = |slot| engines.iter().any(|e| e.slot == slot);
    matches.retain(|m| selectable(m.slot) && known.endpoint(m.slot).is_some_and(|e| e.events));

    let deepest = matches.iter().max_by_key(|m| m.stride);
    let per_token = deepest
        .filter(|m| m.tokens.0 > 0)
        .map_or(BYTES_PER_TOKEN, |m| f64::from(m.stride) * fleet.stride.bytes() as f64 / f64::from(m.tokens.0));
    let tokens_of = |bytes: usize| Tokens((bytes as f64 / per_token) as u32);
    let depth = deepest.map_or(0, |m| m.stride);
    let predicted =
        predict(&prefixes, depth, now_ms, |place| host::read_shared(&keys.place(place))).filter(|p| selectable(p.slot));

    let from_table = matches.iter().map(|m| Hit {
        slot: m.slot,
        tokens: m.tokens,
        credit: m.tier.credit(),
        predicted: !table_fresh,
    });
    let from_placements =
        predicted.iter().map(|p| Hit { slot: p.slot, tokens: p.tokens, credit: 1.0, predicted: true });
    let hits: Vec<Hit> = from_table.chain(from_placements).collect();

    // What placements just made share counts as known, too: it is where prompts differ that they are spread by.
    let known_strides = predicted.map_or(depth, |p| p.stride.max(depth));
    let beyond = (known_strides as usize + KEY_BEYOND).min(prefixes.len());
    let key = beyond.checked_sub(1).and_then(|k| prefixes.get(k)).copied().unwrap_or_else(|| short_key(&asked, body));
    let prompt = Prompt { tokens: tokens_of(length).max(Tokens(1)), key };
    let mut read = Read { known, loads, seen: Vec::with_capacity(SHORTLIST) };
    let fleet_load = read.sum(engines);
    let choice = place(engines, prompt, &hits, fleet_load, inputs.chance, |slot| read.of(slot))?;

    let slot = *choice.slots.first()?;
    let mut hosts: Vec<&str> = Vec::with_capacity(choice.slots.len());
    for endpoint in choice.slots.iter().filter_map(|s| known.endpoint(*s)) {
        // Ranks share their host, and a retry should not go to the same one again.
        if !hosts.contains(&endpoint.address.as_str()) {
            hosts.push(&endpoint.address);
        }
    }
    let header = hosts.join(",");
    // A retry carries the same rank to another host. Where not every host has it, the engine chooses for itself.
    let rank = known.endpoint(slot).and_then(|e| e.nameable_rank(known.common_ranks));
    let missing = Tokens(prompt.tokens.0.saturating_sub(choice.hit.0));
    let queued = read.of(slot).queued_tokens;
    let charge = loads.charge(slot, missing);

    let held = matches.iter().filter(|m| m.slot == slot && table_fresh).map(|m| m.stride);
    let held = held.chain(predicted.iter().filter(|p| p.slot == slot).map(|p| p.stride)).max().unwrap_or(0);
    let ttl = match known.endpoint(slot) {
        // Events will confirm it once it is prefilled; what they have not said by then was never cached, or is gone.
        Some(e) if e.events && table_fresh && unknown.is_none() => {
            let tokens = queued as f64 + f64::from(missing.0);
            let prefill_ms = 1000.0 * tokens / f64::from(e.prefill_rate).max(1.0);
            config.predicted_ttl_ms.min(EVENT_LAG_MS + (2.0 * prefill_ms) as u64)
        }
        _ => config.approximate_ttl_ms,
    };
    let mut new_marks: Vec<(Fingerprint, Tokens)> = Vec::new();
    for stride in marks(prefixes.len() as u32).filter(|m| *m > held) {
        let Some(fingerprint) = prefixes.get(stride as usize - 1).copied() else { continue };
        new_marks.push((fingerprint, tokens_of(stride as usize * fleet.stride.bytes())));
    }
    remember(keys, slot, &new_marks, now_ms + ttl);
    let placement = (fleet.gateways > 1 && !new_marks.is_empty()).then_some(Placement { slot, marks: new_marks });

    let held = matches.iter().filter(|m| m.slot == slot && table_fresh).map(|m| m.tokens);
    let table_tokens = held.max().unwrap_or_default();
    let explanation =
        Explanation { choice, table_fresh, unknown, prompt_tokens: prompt.tokens, table_tokens, matches, predicted };
    Some(Decision { header, rank, charge, placement, explanation })
}

/// Loads, all gateways together, each read once.
struct Read<'a> {
    known: &'a Known,
    loads: &'a Loads,
    seen: Vec<(Slot, Load)>,
}

impl Read<'_> {
    fn of(&mut self, slot: Slot) -> Load {
        if let Some((_, load)) = self.seen.iter().find(|(seen, _)| *seen == slot) {
            return *load;
        }
        let load = add(self.loads.of(slot), self.remote(slot));
        self.seen.push((slot, load));
        load
    }

    fn remote(&self, slot: Slot) -> Load {
        self.known.endpoint(slot).map_or_else(Load::default, |e| Load {
            in_flight: u64::from(e.remote_in_flight),
            queued_tokens: u64::from(e.remote_queued_tokens),
            recent_tokens: 0,
        })
    }

    /// The sum over all engines. A large fleet is not read one by one: there it is this gateway's own sums, which other
    /// models share, and what the others report.
    fn sum(&mut self, engines: &[Engine]) -> Load {
        if engines.len() <= SHORTLIST {
            return engines.iter().map(|e| self.of(e.slot)).fold(Load::default(), add);
        }
        engines.iter().map(|e| self.remote(e.slot)).fold(self.loads.fleet(), add)
    }
}

fn add(a: Load, b: Load) -> Load {
    Load {
        in_flight: a.in_flight + b.in_flight,
        queued_tokens: a.queued_tokens + b.queued_tokens,
        recent_tokens: a.recent_tokens + b.recent_tokens,
    }
}

/// Writes a placement's marks to their places.
pub fn remember(keys: &Keys, slot: Slot, marks: &[(Fingerprint, Tokens)], expires_ms: u64) {
    for (fingerprint, tokens) in marks {
        let mark = Mark { fingerprint: *fingerprint, slot, tokens: *tokens, expires_ms };
        host::set_shared(&keys.place(place_of(*fingerprint)), &encode_mark(&mark), None);
    }
}

/// The spreading key of a prompt shorter than one stride: all of it.
fn short_key(asked: &Asked, body: &[u8]) -> Fingerprint {
    match &asked.prompt {
        Ok(prompt) if prompt.cut.is_none() => root(&String::from_utf8_lossy(&prompt.bytes), Some("short")),
        _ => root(&String::from_utf8_lossy(body), Some("short")),
    }
}
