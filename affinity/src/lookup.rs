//! From a prompt's fingerprints to every endpoint's deepest match.
//!
//! A holder of stride k holds all strides before it, so the deepest match can be found by bisection, in about
//! `log2(strides)` page reads. Mostly it takes fewer: a conversation is held up to about where its last message
//! begins, or as a whole, so these two places are looked at first. Where others than the deepest holder may be chosen,
//! one more read, at a quarter, shows whoever holds enough to matter; each of these takes a few reads to settle.
//! The number of probes is bounded; when it runs out, a holder's match is the deepest one seen (undercounted).

use crate::fingerprint::Fingerprint;
use crate::page::{Found, PageView, holder, page_of, slot_of};
use crate::units::{Slot, Tier, Tokens};
use std::ops::Range;

/// Where the table is: what the fleet page says of it.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Pages of another epoch count as absent.
    pub epoch: u32,
    /// The table has `2^bits` pages.
    pub bits: u8,
}

/// How much of the prompt an endpoint holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// The holder.
    pub slot: Slot,
    /// The slowest tier among what was seen.
    pub tier: Tier,
    /// Number of the deepest stride held, from 1.
    pub stride: u32,
    /// Tokens of the blocks that end at or before that stride's end.
    pub tokens: Tokens,
}

/// A likely end is off by a stride or two: a block's rest is not held, and templates put something between messages.
/// What is further off may be anywhere.
const NEAR: [u32; 2] = [1, 2];

/// Page reads a lookup may make: 12 find the deepest holder of a 400 KB prompt, the rest place the others.
pub const PROBES: u32 = 32;

struct Probe {
    stride: u32,
    tokens: Tokens,
    /// Which of [`Probes::words`] say who holds it: none when the table has no such stride.
    holders: Range<usize>,
}

/// The probes made so far.
struct Probes<'a, R> {
    prefixes: &'a [Fingerprint],
    layout: Layout,
    read: R,
    /// By stride.
    made: Vec<Probe>,
    /// Holders as pages have them; each probe's by slot.
    words: Vec<u16>,
}

impl<R> Probes<'_, R> {
    fn holders(&self, probe: &Probe) -> &[u16] {
        self.words.get(probe.holders.clone()).unwrap_or_default()
    }

    fn holds(&self, probe: &Probe, slot: u16) -> bool {
        self.holders(probe).binary_search_by_key(&slot, |word| slot_of(*word)).is_ok()
    }

    /// Keeps who holds a stride, and says where.
    fn keep(&mut self, found: Found<'_>) -> Range<usize> {
        let first = self.words.len();
        found.write_words(&mut self.words);
        let holders = first..self.words.len();
        // A prefix that many share is often held by the same ones at every stride.
        let same = |known: &&Range<usize>| self.words.get((*known).clone()) == self.words.get(holders.clone());
        let Some(known) = self.made.iter().map(|p| &p.holders).find(same).cloned() else { return holders };
        self.words.truncate(first);
        known
    }

    /// Everybody that was met, by slot, with the deepest stride that shows it.
    fn matches(&self) -> Vec<Match> {
        let (mut matches, mut before): (Vec<Match>, _) = (Vec::new(), 0..0);
        for p in self.made.iter().rev() {
            if p.holders == std::mem::replace(&mut before, p.holders.clone()) {
                continue;
            }
            for (slot, tier) in self.holders(p).iter().filter_map(|word| holder(*word)) {
                match matches.binary_search_by_key(&slot, |m| m.slot) {
                    Err(at) => matches.insert(at, Match { slot, tier, stride: p.stride, tokens: p.tokens }),
                    Ok(at) => {
                        if let Some(m) = matches.get_mut(at) {
                            m.tier = m.tier.max(tier);
                        }
                    }
                }
            }
        }
        matches
    }
}

impl<R: FnMut(u32) -> Option<P>, P: AsRef<[u8]>> Probes<'_, R> {
    /// Whether anybody holds this stride; `None` when no more probes may be made.
    fn held(&mut self, stride: u32) -> Option<bool> {
        let place = match self.made.binary_search_by_key(&stride, |p| p.stride) {
            Ok(known) => return self.made.get(known).map(|p| !p.holders.is_empty()),
            Err(place) => place,
        };
        if self.made.len() as u32 >= PROBES {
            return None;
        }
        let fingerprint = *self.prefixes.get(stride.checked_sub(1)? as usize)?;
        let bytes = (self.read)(page_of(fingerprint, self.layout.bits));
        let page = bytes
            .as_ref()
            .and_then(|bytes| PageView::parse(bytes.as_ref()))
            .filter(|page| page.epoch == self.layout.epoch);
        let found = page.and_then(|page| page.get(fingerprint));
        let holders = found.map_or(0..0, |found| self.keep(found));
        let held = !holders.is_empty();
        self.made.insert(place, Probe { stride, tokens: found.map_or(Tokens(0), |f| f.tokens), holders });
        Some(held)
    }

    /// Finds the deepest stride that anybody holds; `None` when probes ran out before.
    fn deepest(&mut self, likely: u32) -> Option<()> {
        let all = self.prefixes.len() as u32;
        let likely = likely.clamp(1, all);
        // Somebody holds `low` (0: nothing); nobody holds `high`.
        let (mut low, mut high) = (0, likely);
        let up = self.held(likely)?;
        if up {
            (low, high) = if self.held(all)? { (all, all + 1) } else { (likely, all) };
        }
        for step in NEAR {
            let next = if up { low + step } else { high.saturating_sub(step) };
            if next <= low || next >= high {
                break;
            }
            let held = self.held(next)?;
            if held {
                low = next;
            } else {
                high = next;
            }
            if held != up {
                break;
            }
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.held(middle)? { low = middle } else { high = middle }
        }
        Some(())
    }
}

/// The deepest match, and others that were met on the way, undercounted; with `others`, of every endpoint that holds a
/// quarter or more, and each as deep as it is.
///
/// `prefixes[k-1]` is `fp_k`; `likely` is the stride at which the deepest match probably ends (any number is right, a
/// good one is quicker); `read` gives a page's bytes by number, borrowed or not.
pub fn lookup<P: AsRef<[u8]>>(
    prefixes: &[Fingerprint],
    layout: Layout,
    likely: u32,
    others: bool,
    read: impl FnMut(u32) -> Option<P>,
) -> Vec<Match> {
    if prefixes.is_empty() {
        return Vec::new();
    }
    let (made, words) = (Vec::with_capacity(PROBES as usize), Vec::with_capacity(2 * PROBES as usize));
    let mut probes = Probes { prefixes, layout, read, made, words };
    if probes.deepest(likely).is_some() && others {
        probes.held((prefixes.len() as u32 / 4).max(1));
        settle(&mut probes);
    }
    probes.matches()
}

/// Whoever was seen anywhere stops somewhere between the deepest probe that shows it and the next that does not.
fn settle<R: FnMut(u32) -> Option<P>, P: AsRef<[u8]>>(probes: &mut Probes<'_, R>) {
    let all = probes.prefixes.len() as u32;
    for Match { slot, .. } in probes.matches() {
        loop {
            let beyond = probes.made.iter().rposition(|p| probes.holds(p, slot.0)).map_or(0, |deepest| deepest + 1);
            let stride = |at: usize| probes.made.get(at).map(|p| p.stride);
            let low = beyond.checked_sub(1).and_then(stride).unwrap_or(0);
            let high = stride(beyond).unwrap_or(all + 1);
            if high - low <= 1 || probes.held(low + (high - low) / 2).is_none() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::{PageEntry, encode_page};
    use proptest::prelude::*;

    const LAYOUT: Layout = Layout { epoch: 3, bits: 2 };

    fn pages(prefixes: &[Fingerprint], depth: &[u32], epoch: u32) -> Vec<Vec<u8>> {
        let mut cut = vec![Vec::new(); 4];
        for (i, fp) in prefixes.iter().enumerate() {
            let holders = (0u16..).zip(depth).filter(|(_, d)| i < **d as usize);
            let holders: Vec<_> = holders.map(|(slot, _)| (Slot(slot), Tier::Gpu)).collect();
            let tokens = Tokens(32 * (i as u32 + 1));
            cut[page_of(*fp, 2) as usize].push(PageEntry { fingerprint: *fp, tokens, holders });
        }
        cut.iter().map(|entries| encode_page(epoch, 1, entries)).collect()
    }

    fn prefixes(n: usize) -> Vec<Fingerprint> {
        let mut out = Vec::new();
        let bytes: Vec<u8> = (0..n * 8).map(|i| (i / 8) as u8 ^ (i / 2048) as u8).collect();
        crate::fingerprints(crate::Stride::new(8).unwrap(), crate::root("m", None), &bytes, &mut out);
        out
    }

    proptest! {
        /// The naive model: each holder's depth as it was put in.
        #[test]
        fn every_holder_found_has_its_true_depth_and_the_deepest_is_always_found(
            n in 1usize..500, depth in proptest::collection::vec(0u32..500, 0..4), likely in 0u32..600, others: bool
        ) {
            let prefixes = prefixes(n);
            let depth: Vec<u32> = depth.iter().map(|d| d % (n as u32 + 1)).collect();
            let pages = pages(&prefixes, &depth, 3);
            let mut reads = 0;
            let found = lookup(&prefixes, LAYOUT, likely, others, |page| { reads += 1; pages.get(page as usize) });
            prop_assert!(reads <= PROBES);
            let best = depth.iter().max().copied().unwrap_or(0);
            for m in &found {
                let own = depth[usize::from(m.slot.0)];
                prop_assert!(m.stride == own || m.stride < own && own < best && !others);
                prop_assert_eq!(m.tokens, Tokens(32 * m.stride));
            }
            prop_assert!(found.is_sorted_by(|a, b| a.slot < b.slot));
            prop_assert_eq!(found.iter().map(|m| m.stride).max().unwrap_or(0), best);
            for (slot, d) in depth.iter().enumerate() {
                let met = found.iter().any(|m| usize::from(m.slot.0) == slot);
                prop_assert!(met || !others || *d < (n as u32 / 4).max(1), "{slot} holds {d} of {n}");
            }
        }

        #[test]
        fn many_holders_are_undercounted_never_overcounted(depth in proptest::collection::vec(0u32..400, 40)) {
            let prefixes = prefixes(400);
            let pages = pages(&prefixes, &depth, 3);
            for m in lookup(&prefixes, LAYOUT, 200, true, |page| pages.get(page as usize)) {
                prop_assert!(m.stride <= depth[usize::from(m.slot.0)]);
            }
        }
    }

    #[test]
    fn pages_of_another_epoch_and_missing_pages_hold_nothing() {
        let prefixes = prefixes(50);
        let pages = pages(&prefixes, &[50], 4);
        assert!(lookup(&prefixes, LAYOUT, 50, true, |page| pages.get(page as usize)).is_empty());
        assert!(lookup(&prefixes, LAYOUT, 50, true, |_| None::<&[u8]>).is_empty());
        assert!(lookup(&[], LAYOUT, 0, true, |_| None::<&[u8]>).is_empty());
    }

    #[test]
    fn a_30_kb_conversation_takes_4_reads_a_repeated_one_3_and_after_a_wrong_guess_12() {
        let prefixes = prefixes(234);
        let reads = |depth: u32, likely: u32| {
            let pages = pages(&prefixes, &[depth, depth], 3);
            let mut reads = 0;
            lookup(&prefixes, LAYOUT, likely, true, |page| {
                reads += 1;
                pages.get(page as usize)
            });
            reads
        };
        assert_eq!((reads(200, 200), reads(234, 200), reads(20, 200)), (4, 3, 12));
    }
}
