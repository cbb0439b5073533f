//! From matches and loads to an endpoint.
//!
//! Every term is in seconds, so there is no weight between unlike units:
//!
//! ```text
//! hit(e)  = tokens of the prompt that e holds or will soon hold, times the tier's credit
//! U(e)    = prompt - hit(e)                            tokens e must still prefill
//! cost(e) = (Q(e) + U(e)) / prefill_rate(e)            Q: uncached tokens dispatched, no first byte yet
//!         + PER_REQUEST x in_flight(e)                 decode steps shared with requests in flight
//!         + KV_PRESSURE x k / (1 - k)                  k: share of KV blocks in use, as the engine reports it
//!         + SPREAD x max(0, R(e) - mean R) / prefill_rate(e)    R: uncached tokens sent lately
//! ```
//! The common core of Mooncake (FAST'25, algorithm 1), Dynamo's selector and llm-d's token-load scorer; the `k/(1-k)`
//! term is SMG's. A hit can never be worth more than the prefill it saves, so affinity fades exactly when a queue
//! outgrows the saving. R stands for cache space: it keeps new prefixes spread when nothing is in flight at all.
//!
//! A prompt of which nobody holds much ([`WARM`]) would follow the smallest match, such as a preamble that all prompts
//! share, to one place. It goes by bounded load instead: of the endpoints that have no more than their share, the one
//! that holds most, and among equals the first by rendezvous hashing, so that many gateways send a burst of one new
//! prefix to the same place without telling one another.
//!
//! **Invariant:** only endpoints passed in are ever chosen; the caller leaves out those that are down, draining, or do
//! not serve the model. Cost: the shortlist, never the whole fleet, has its load read.

use crate::fingerprint::Fingerprint;
use crate::order::{sort_by, sort_by_key};
use crate::units::{Slot, Tokens};
use std::cmp::Reverse;

/// Seconds that one more request in flight adds.
pub const PER_REQUEST: f64 = 0.01;
/// Seconds that KV pressure adds at half full.
pub const KV_PRESSURE: f64 = 0.15;
/// How much of an uneven share of recent prefill counts as cost.
pub const SPREAD: f64 = 0.02;
/// A prompt is warm when somebody holds at least this share of it.
pub const WARM: f64 = 0.25;
/// A prompt that is not warm skips an endpoint with more requests in flight than this many times the mean, and one.
pub const BOUND_IN_FLIGHT: f64 = 2.0;
/// It skips one with more tokens queued, or sent lately, than this many times the mean.
pub const BOUND_TOKENS: f64 = 1.1;
/// Up to this many endpoints are weighed all together; in larger fleets holders and a few others are.
pub const SHORTLIST: usize = 8;
/// How many endpoints a choice names: the first, and those that retries walk to.
pub const NAMED: usize = 3;

/// An endpoint that may be chosen.
#[derive(Clone, Debug)]
pub struct Engine {
    /// Its name in matches.
    pub slot: Slot,
    /// Hash of its address ([`engine_seed`]): the same in every gateway, whatever its slot.
    pub seed: u64,
    /// Prefill speed in tokens per second, above 0.
    pub prefill_rate: f64,
    /// Share of KV blocks in use, 0 to 1, as the engine reports it; `None` when not known or old.
    pub kv_usage: Option<f64>,
}

/// An endpoint's load, all gateways together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Requests dispatched and not ended.
    pub in_flight: u64,
    /// Uncached tokens dispatched and not yet answered by a first byte (Q).
    pub queued_tokens: u64,
    /// Uncached tokens dispatched lately (R), decaying.
    pub recent_tokens: u64,
}

/// What an endpoint holds of the prompt.
#[derive(Clone, Copy, Debug)]
pub struct Hit {
    /// The holder.
    pub slot: Slot,
    /// Tokens it holds or will soon hold.
    pub tokens: Tokens,
    /// What share of the prefill a hit there saves ([`crate::Tier::credit`]).
    pub credit: f64,
    /// Whether it is a placement not yet confirmed.
    pub predicted: bool,
}

/// The prompt to place.
#[derive(Clone, Copy, Debug)]
pub struct Prompt {
    /// Its length, estimated where not known.
    pub tokens: Tokens,
    /// What cold prompts are spread by: equal for prompts that will share a prefix.
    pub key: Fingerprint,
}

/// Why an endpoint was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It holds the most, or as much as any.
    DeepestHolder,
    /// It will soon hold the most: a prompt with this prefix was just sent there.
    PredictedHolder,
    /// Somebody holds more, but load decided otherwise.
    Load,
    /// Nobody holds any of it: rendezvous hashing, with bounded load.
    Cold,
}

impl Reason {
    /// A word for logs, headers and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::DeepestHolder => "holder",
            Reason::PredictedHolder => "predicted",
            Reason::Load => "load",
            Reason::Cold => "cold",
        }
    }
}

/// The outcome: where to send the prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The endpoint, and behind it those that retries walk to. At most [`NAMED`], distinct.
    pub slots: Vec<Slot>,
    /// Why the first one.
    pub reason: Reason,
    /// Tokens that the first one holds or will soon hold.
    pub hit: Tokens,
    /// Tokens that the deepest holder holds.
    pub best_hit: Tokens,
}

/// The seed of an endpoint's address for rendezvous hashing.
#[must_use]
pub fn engine_seed(address: &str) -> u64 {
    crate::fingerprint::root(address, None).0
}

/// One weighed candidate.
struct Weighed {
    slot: Slot,
    hit: Option<Hit>,
    cost: f64,
    load: Load,
    /// Place in rendezvous order: lower comes first.
    rank: u64,
    within_bounds: bool,
}

/// Chooses an endpoint, or `None` when there is none to choose from.
///
/// `load` reads one endpoint's load; `fleet` is the sum over all engines; `chance` breaks ties that load does not.
pub fn place(
    engines: &[Engine],
    prompt: Prompt,
    hits: &[Hit],
    fleet: Load,
    chance: u64,
    mut load: impl FnMut(Slot) -> Load,
) -> Option<Choice> {
    let count = engines.len() as f64;
    let best_hit = hits.iter().map(|h| h.tokens).max().unwrap_or_default();
    let warm = hits.iter().any(|h| f64::from(h.tokens.0) * h.credit >= WARM * f64::from(prompt.tokens.0));

    let mut weighed: Vec<Weighed> = shortlist(engines, prompt, hits, chance)
        .into_iter()
        .map(|(engine, rank)| {
            let hit = hits.iter().filter(|h| h.slot == engine.slot).max_by_key(|h| h.tokens).copied();
            let saved = hit.map_or(0.0, |h| f64::from(h.tokens.0) * h.credit);
            let missing = (f64::from(prompt.tokens.0) - saved).max(0.0);
            let l = load(engine.slot);
            let (recent, mean_recent) = (l.recent_tokens as f64, fleet.recent_tokens as f64 / count);
            let pressure = engine.kv_usage.map_or(0.0, |k| k.clamp(0.0, 0.99) / (1.0 - k.clamp(0.0, 0.99)));
            let tokens = l.queued_tokens as f64 + missing + SPREAD * (recent - mean_recent).max(0.0);
            let within_bounds = l.in_flight as f64 <= BOUND_IN_FLIGHT * (fleet.in_flight as f64 / count) + 1.0
                && l.queued_tokens as f64 <= BOUND_TOKENS * (fleet.queued_tokens as f64 / count)
                && recent <= BOUND_TOKENS * mean_recent + missing;
            Weighed {
                slot: engine.slot,
                hit,
                cost: tokens / engine.prefill_rate + PER_REQUEST * l.in_flight as f64 + KV_PRESSURE * pressure,
                load: l,
                rank,
                within_bounds,
            }
        })
        .collect();

    // Ties are common when nothing is in flight: the endpoint used least of late goes first, then chance decides.
    sort_by(&mut weighed, |a, b| {
        let chance = |w: &Weighed| w.rank.wrapping_mul(chance | 1);
        a.cost
            .total_cmp(&b.cost)
            .then(a.load.recent_tokens.cmp(&b.load.recent_tokens))
            .then_with(|| chance(a).cmp(&chance(b)))
    });
    if !warm {
        let held = |w: &Weighed| w.hit.map(|h| h.tokens);
        sort_by_key(
            &mut weighed,
            |w| {
                if w.within_bounds { (0, Reverse(held(w)), w.rank) } else { (1, Reverse(None), 0) }
            },
        );
    }
    let first = weighed.first()?;
    let hit = first.hit.map(|h| h.tokens).unwrap_or_default();
    let reason = match first.hit {
        _ if best_hit == Tokens(0) => Reason::Cold,
        Some(h) if hit == best_hit && h.predicted => Reason::PredictedHolder,
        Some(_) if hit == best_hit => Reason::DeepestHolder,
        _ => Reason::Load,
    };
    let slots = weighed.iter().map(|w| w.slot).take(NAMED).collect();
    Some(Choice { slots, reason, hit, best_hit })
}

/// The engines to weigh, with their place in rendezvous order: all of a small fleet; else the deepest holders, the
/// first two by rendezvous, and two by chance so that load always has a way out.
fn shortlist<'a>(engines: &'a [Engine], prompt: Prompt, hits: &[Hit], chance: u64) -> Vec<(&'a Engine, u64)> {
    let rank = |e: &Engine| mix(prompt.key.0 ^ e.seed);
    let mut all: Vec<(&Engine, u64)> = engines.iter().map(|e| (e, rank(e))).collect();
    if all.len() <= SHORTLIST {
        return all;
    }
    all.sort_by_cached_key(|(e, rank)| {
        let held = hits.iter().filter(|h| h.slot == e.slot).map(|h| h.tokens).max();
        (Reverse(held), *rank)
    });
    let holders = all.iter().filter(|(e, _)| hits.iter().any(|h| h.slot == e.slot)).count();
    let mut rest = all.split_off(holders);
    all.truncate(SHORTLIST - 4);
    let mut others = rest.split_off(rest.len().min(SHORTLIST - all.len() - 2));
    all.append(&mut rest);
    for pick in [chance, mix(chance)] {
        if !others.is_empty() {
            all.push(others.swap_remove(pick as usize % others.len()));
        }
    }
    all
}

/// Spreads the bits of a 64-bit number (the finaliser of MurmurHash3).
const fn mix(h: u64) -> u64 {
    let h = (h ^ (h >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    let h = (h ^ (h >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    h ^ (h >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn engines(n: u16) -> Vec<Engine> {
        let engine = |slot| Engine {
            slot: Slot(slot),
            seed: engine_seed(&format!("10.0.0.{slot}:8000")),
            prefill_rate: 8000.0,
            kv_usage: None,
        };
        (0..n).map(engine).collect()
    }

    fn prompt(tokens: u32, key: u64) -> Prompt {
        Prompt { tokens: Tokens(tokens), key: Fingerprint(mix(key)) }
    }

    fn holds(slot: u16, tokens: u32) -> Hit {
        Hit { slot: Slot(slot), tokens: Tokens(tokens), credit: 1.0, predicted: false }
    }

    fn sum(loads: &HashMap<Slot, Load>) -> Load {
        loads.values().fold(Load::default(), |a, b| Load {
            in_flight: a.in_flight + b.in_flight,
            queued_tokens: a.queued_tokens + b.queued_tokens,
            recent_tokens: a.recent_tokens + b.recent_tokens,
        })
    }

    fn choose(engines: &[Engine], prompt: Prompt, hits: &[Hit], loads: &HashMap<Slot, Load>, chance: u64) -> Choice {
        let read = |slot| loads.get(&slot).copied().unwrap_or_default();
        place(engines, prompt, hits, sum(loads), chance, read).unwrap()
    }

    #[test]
    fn an_idle_fleet_sends_a_prompt_to_its_deepest_holder() {
        let hits = [holds(1, 2000), holds(2, 7000), holds(3, 4000)];
        let choice = choose(&engines(4), prompt(8000, 1), &hits, &HashMap::new(), 7);
        assert_eq!(choice.slots, [Slot(2), Slot(3), Slot(1)]);
        assert_eq!((choice.reason, choice.hit), (Reason::DeepestHolder, Tokens(7000)));
    }

    #[test]
    fn a_queue_longer_than_the_saving_sends_it_elsewhere_and_a_shorter_one_does_not() {
        let queue = |tokens| HashMap::from([(Slot(2), Load { queued_tokens: tokens, ..Load::default() })]);
        let hits = [holds(2, 6000)];
        let stays = choose(&engines(4), prompt(8000, 1), &hits, &queue(5900), 7);
        assert_eq!((stays.slots.first(), stays.reason), (Some(&Slot(2)), Reason::DeepestHolder));
        let leaves = choose(&engines(4), prompt(8000, 1), &hits, &queue(6100), 7);
        assert_ne!(leaves.slots.first(), Some(&Slot(2)));
        assert_eq!((leaves.reason, leaves.hit, leaves.best_hit), (Reason::Load, Tokens(0), Tokens(6000)));
    }

    #[test]
    fn a_slow_tier_and_a_full_kv_cache_weigh_against_a_holder() {
        let on_disk = Hit { credit: 0.25, ..holds(1, 8000) };
        let choice = choose(&engines(4), prompt(8000, 1), &[on_disk, holds(2, 4000)], &HashMap::new(), 7);
        assert_eq!(choice.slots.first(), Some(&Slot(2)));
        let mut full = engines(4);
        full[2].kv_usage = Some(0.97);
        let choice = choose(&full, prompt(8000, 1), &[holds(2, 4000), holds(1, 3900)], &HashMap::new(), 7);
        assert_eq!(choice.slots.first(), Some(&Slot(1)));
    }

    #[test]
    fn a_cold_burst_of_one_prefix_goes_to_one_place_in_every_gateway_and_other_prefixes_elsewhere() {
        let engines = engines(40);
        let mut counts: HashMap<Slot, u32> = HashMap::new();
        for key in 0..2000 {
            let first = choose(&engines, prompt(8000, key), &[], &HashMap::new(), 1).slots[0];
            for chance in 2..5 {
                // Another gateway numbers its slots differently and rolls other dice.
                let mut other = engines.clone();
                other.reverse();
                assert_eq!(choose(&other, prompt(8000, key), &[], &HashMap::new(), chance).slots[0], first);
            }
            *counts.entry(first).or_default() += 1;
        }
        assert!(counts.len() == 40 && counts.values().all(|n| (15..100).contains(n)), "{counts:?}");
    }

    #[test]
    fn an_endpoint_that_leaves_moves_only_its_own_cold_prefixes() {
        let (all, mut fewer) = (engines(8), engines(8));
        fewer.remove(3);
        for key in 0..500 {
            let before = choose(&all, prompt(800, key), &[], &HashMap::new(), 1).slots[0];
            let after = choose(&fewer, prompt(800, key), &[], &HashMap::new(), 1).slots[0];
            assert!(before == after || before == Slot(3));
        }
    }

    /// Paced traffic whose in-flight count is 0 at every choice once sent 448 of 448 requests to one worker.
    #[test]
    fn cold_prompts_spread_evenly_even_when_nothing_is_ever_in_flight() {
        let engines = engines(4);
        let mut loads: HashMap<Slot, Load> = HashMap::new();
        for key in 0..32 {
            let first = choose(&engines, prompt(8000, key), &[], &loads, key).slots[0];
            loads.entry(first).or_default().recent_tokens += 8000;
        }
        let most = loads.values().map(|l| l.recent_tokens).max().unwrap() / 8000;
        assert!(loads.len() == 4 && most <= 12, "{loads:?}");
    }

    /// All tenants share a preamble: following it would send all to the first endpoint that got one.
    #[test]
    fn a_small_match_draws_prompts_only_while_its_holder_has_no_more_than_its_share() {
        let engines = engines(4);
        let mut loads: HashMap<Slot, Load> = HashMap::new();
        let mut hits = Vec::new();
        for key in 0..40 {
            let choice = choose(&engines, prompt(8000, key), &hits, &loads, key);
            let first = choice.slots[0];
            let reason = match (hits.is_empty(), choice.hit.0 > 0) {
                (true, _) => Reason::Cold,
                (false, true) => Reason::DeepestHolder,
                (false, false) => Reason::Load,
            };
            assert_eq!(choice.reason, reason);
            loads.entry(first).or_default().recent_tokens += 8000 - u64::from(choice.hit.0);
            if !hits.iter().any(|h: &Hit| h.slot == first) {
                hits.push(holds(first.0, 1000));
            }
        }
        let recent: Vec<u64> = loads.values().map(|l| l.recent_tokens / 7000).collect();
        assert!(recent.len() == 4 && recent.iter().all(|n| (7..=13).contains(n)), "{recent:?}");
    }

    #[test]
    fn a_burst_of_cold_prompts_queues_behind_one_another_only_when_all_are_busy() {
        let engines = engines(4);
        let mut loads: HashMap<Slot, Load> = HashMap::new();
        for key in 0..4 {
            let first = choose(&engines, prompt(8000, key), &[], &loads, key).slots[0];
            let load = loads.entry(first).or_default();
            assert_eq!(load.queued_tokens, 0, "prompt {key} waits although an endpoint is idle");
            *load = Load { in_flight: 1, queued_tokens: 8000, recent_tokens: 8000 };
        }
    }

    #[test]
    fn equal_costs_go_to_the_least_recently_used_and_then_to_chance() {
        let engines = engines(3);
        let hits = [holds(0, 8000), holds(1, 8000), holds(2, 8000)];
        let used = HashMap::from([(Slot(0), Load { recent_tokens: 1, ..Load::default() })]);
        let firsts: std::collections::HashSet<Slot> =
            (0..64).map(|chance| choose(&engines, prompt(8000, 1), &hits, &used, mix(chance)).slots[0]).collect();
        assert_eq!(firsts, [Slot(1), Slot(2)].into());
    }

    proptest! {
        #[test]
        fn a_choice_names_distinct_known_engines_and_in_small_fleets_a_warm_one_has_the_least_cost(
            n in 1u16..30,
            tokens in 1u32..100_000,
            hits in proptest::collection::vec((0u16..40, 0u32..100_000, any::<bool>()), 0..10),
            loads in proptest::collection::hash_map(0u16..40, (0u64..50, 0u64..200_000, 0u64..1_000_000), 0..40),
            chance in any::<u64>(),
        ) {
            let engines = engines(n);
            let hits: Vec<Hit> = hits.iter().map(|(s, t, predicted)| Hit { predicted: *predicted, ..holds(*s, (*t).min(tokens)) }).collect();
            let loads: HashMap<Slot, Load> = loads.into_iter()
                .map(|(s, (in_flight, queued_tokens, recent_tokens))| (Slot(s), Load { in_flight, queued_tokens, recent_tokens })).collect();
            let read = |slot| loads.get(&slot).copied().unwrap_or_default();
            let choice = choose(&engines, prompt(tokens, 5), &hits, &loads, chance);
            let mut seen = choice.slots.clone();
            seen.sort();
            seen.dedup();
            prop_assert_eq!(seen.len(), choice.slots.len());
            prop_assert_eq!(choice.slots.len(), usize::from(n).min(NAMED));
            prop_assert!(choice.slots.iter().all(|s| s.0 < n));
            let warm = hits.iter().any(|h| f64::from(h.tokens.0) >= WARM * f64::from(tokens));
            if usize::from(n) <= SHORTLIST && warm && hits.iter().all(|h| h.slot.0 < n) {
                let mean = sum(&loads).recent_tokens as f64 / f64::from(n);
                let cost = |slot: Slot| {
                    let held = hits.iter().filter(|h| h.slot == slot).map(|h| h.tokens.0).max().unwrap_or(0);
                    let l = read(slot);
                    let work = l.queued_tokens as f64 + f64::from(tokens - held) + SPREAD * (l.recent_tokens as f64 - mean).max(0.0);
                    work / 8000.0 + PER_REQUEST * l.in_flight as f64
                };
                let least = (0..n).map(|s| cost(Slot(s))).fold(f64::MAX, f64::min);
                prop_assert!((cost(choice.slots[0]) - least).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn no_engine_no_choice() {
        assert_eq!(place(&[], prompt(1, 1), &[], Load::default(), 0, |_| Load::default()), None);
    }
}
