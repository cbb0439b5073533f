//! The affinity table's pages: one form for sync and for shared data.
//!
//! The table maps `fp_k` to the endpoints that hold **every** block covering bytes `[0, kS)`, and how many tokens
//! those blocks are. It is cut into `2^bits` pages by the fingerprint's top bits. An entry takes 8 bytes:
//!
//! ```text
//! header   version u8 | 0 u8 | entries u16 | epoch u32 | as of u64
//! keys     u32 x n      low half of the fingerprint, ascending
//! values   (u16, u16) x n   holders, tokens in units of GRANULE
//! sets     u16 count, u16 x count ...
//! ```
//! `holders` is one holder (tier in bits 13-14, slot in bits 0-12) or, with bit 15 set, the place of a set behind the
//! values, counted in u16. Equal sets are written once. *As of* is a version of the indexer's table: the page has all changes
//! up to it.
//!
//! **Invariant:** a page may undercount, never overcount. Tokens are rounded down; entries whose keys collide are
//! both left out; what does not fit is left out. A key is 32 bits beside the page's own bits, so a probe of a page of 256
//! entries for a prompt that is not there answers wrongly once in 2^24.

use crate::fingerprint::Fingerprint;
use crate::units::{Slot, Tier, Tokens};
use crate::wire::{Reader, Write};

/// Tokens are stored in units of this many, rounded down: the common block size.
pub const GRANULE: u32 = 16;
const VERSION: u8 = 2;
pub(crate) const HEADER: usize = 16;
pub(crate) const SET: u16 = 1 << 15;
/// An entry's `holders` where there is none: of no tier.
pub(crate) const NOBODY: u16 = 3 << 13;
/// Pages are cut by at most this many bits: 65,536 pages.
pub const MAX_BITS: u8 = 16;

/// One entry of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageEntry {
    /// `fp_k`.
    pub fingerprint: Fingerprint,
    /// Tokens of the blocks that end at or before byte `kS`.
    pub tokens: Tokens,
    /// Who holds every block up to there. Slots are distinct.
    pub holders: Vec<(Slot, Tier)>,
}

/// The page in which a fingerprint belongs, in a table of `2^bits` pages.
#[must_use]
pub fn page_of(fingerprint: Fingerprint, bits: u8) -> u32 {
    match bits {
        0 => 0,
        _ => (fingerprint.0 >> (64 - u32::from(bits.min(MAX_BITS)))) as u32,
    }
}

/// Tokens as an entry has them: in units of [`GRANULE`], rounded down.
#[must_use]
pub fn granules(tokens: Tokens) -> u16 {
    u16::try_from(tokens.0 / GRANULE).unwrap_or(u16::MAX)
}

/// An entry's `holders` where there is but one: less than [`MANY`].
#[must_use]
pub fn one_holder(slot: Slot, tier: Tier) -> u16 {
    tier.code() << 13 | slot_of(slot.0)
}

/// What [`one_holder`] was made of; `None` for other words.
#[must_use]
pub fn holder(word: u16) -> Option<(Slot, Tier)> {
    Some((Slot(slot_of(word)), Tier::from_code(word >> 13)?))
}

/// The slot in a [`one_holder`], whatever its tier: what sets are sorted by.
#[must_use]
pub fn slot_of(word: u16) -> u16 {
    word & (Slot::LIMIT - 1)
}

/// No [`one_holder`] is as high as this.
pub const MANY: u16 = SET;

/// Writes a page, or rows ([`crate::rows`]), entry by entry, in ascending order of keys. The caller leaves out keys that
/// several fingerprints share.
pub struct PageWriter {
    /// Epoch and what it is as of, of a page.
    page: Option<(u32, u64)>,
    entries: Vec<([u8; 4], [u8; 4])>,
    sets: SetWriter,
}

impl PageWriter {
    /// A page of up to `entries` entries. `epoch` names the indexer's run and table layout: a page of another epoch counts
    /// as absent.
    #[must_use]
    pub fn new(epoch: u32, as_of: u64, entries: usize) -> Self {
        Self { page: Some((epoch, as_of)), entries: Vec::with_capacity(entries), sets: SetWriter::default() }
    }

    /// Rows of a page: up to `entries` of its keys.
    #[must_use]
    pub fn of_rows(entries: usize) -> Self {
        Self { page: None, entries: Vec::with_capacity(entries), sets: SetWriter::default() }
    }

    /// Writes an entry with a single holder, from [`one_holder`].
    #[inline]
    pub fn one(&mut self, key: u32, holder: u16, granules: u16) {
        self.entries.push((key.to_le_bytes(), joined(holder, granules)));
    }

    /// Writes an entry with any number of holders. False if it is left out: there is none, or no room for so many.
    pub fn many(&mut self, key: u32, holders: &[(Slot, Tier)], granules: u16) -> bool {
        let holders = self.sets.reference(holders);
        if let Some(holders) = holders {
            self.one(key, holders, granules);
        }
        holders.is_some()
    }

    /// Of rows: there is no such entry any more.
    pub fn gone(&mut self, key: u32) {
        self.one(key, NOBODY, 0);
    }

    /// Its bytes.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        // What does not fit is left out.
        let count = u16::try_from(self.entries.len()).unwrap_or(u16::MAX);
        let entries = self.entries.get(..usize::from(count)).unwrap_or_default();
        let mut out = Vec::with_capacity(HEADER + entries.len() * 8 + self.sets.words.len() * 2);
        match self.page {
            Some((epoch, as_of)) => header(&mut out, count, epoch, as_of),
            None => out.u16(count),
        }
        column(&mut out, entries, |(key, _)| *key);
        column(&mut out, entries, |(_, value)| *value);
        out.extend_from_slice(self.sets.words.as_flattened());
        out
    }
}

/// One column of all entries, in one go: most of a page's bytes.
fn column(out: &mut Vec<u8>, entries: &[([u8; 4], [u8; 4])], cell: impl Fn(&([u8; 4], [u8; 4])) -> [u8; 4]) {
    let start = out.len();
    out.resize(start + entries.len() * 4, 0);
    let (cells, _) = out.get_mut(start..).unwrap_or_default().as_chunks_mut::<4>();
    for (to, entry) in cells.iter_mut().zip(entries) {
        *to = cell(entry);
    }
}

/// What a page begins with: [`HEADER`] bytes.
pub(crate) fn header(out: &mut Vec<u8>, entries: u16, epoch: u32, as_of: u64) {
    out.u8(VERSION);
    out.u8(0);
    out.u16(entries);
    out.u32(epoch);
    out.u64(as_of);
}

/// A value's holders and granules.
pub(crate) fn split([h0, h1, g0, g1]: [u8; 4]) -> (u16, u16) {
    (u16::from_le_bytes([h0, h1]), u16::from_le_bytes([g0, g1]))
}

pub(crate) fn joined(holder: u16, granules: u16) -> [u8; 4] {
    let ([h0, h1], [g0, g1]) = (holder.to_le_bytes(), granules.to_le_bytes());
    [h0, h1, g0, g1]
}

/// The set that `holder` refers to, with its count.
pub(crate) fn set_at(sets: &[[u8; 2]], holder: u16) -> Option<&[[u8; 2]]> {
    first_set(sets.get(usize::from(holder & !SET)..)?)
}

pub(crate) fn first_set(sets: &[[u8; 2]]) -> Option<&[[u8; 2]]> {
    let count = u16::from_le_bytes(*sets.first()?);
    sets.get(..=usize::from(count))
}

/// Writes a page of these entries, in any order.
#[must_use]
pub fn encode_page(epoch: u32, as_of: u64, entries: &[PageEntry]) -> Vec<u8> {
    let mut sorted: Vec<&PageEntry> = entries.iter().filter(|e| !e.holders.is_empty()).collect();
    sorted.sort_unstable_by_key(|e| e.fingerprint.0 as u32);
    let mut page = PageWriter::new(epoch, as_of, sorted.len());
    // Two fingerprints with one key: neither can be told from the other, so neither is offered.
    for run in sorted.chunk_by(|a, b| a.fingerprint.0 as u32 == b.fingerprint.0 as u32) {
        if let [one] = run {
            page.many(one.fingerprint.0 as u32, &one.holders, granules(one.tokens));
        }
    }
    page.finish()
}

/// Collects the distinct holder sets of a page.
#[derive(Default)]
struct SetWriter {
    words: Vec<[u8; 2]>,
    known: std::collections::HashMap<Vec<u16>, u16>,
}

impl SetWriter {
    /// The `holders` word of an entry; `None` if the set cannot be written (then the entry is left out).
    fn reference(&mut self, holders: &[(Slot, Tier)]) -> Option<u16> {
        let mut set: Vec<u16> = holders
            .iter()
            .filter(|(slot, _)| slot.0 < Slot::LIMIT)
            .map(|(slot, tier)| one_holder(*slot, *tier))
            .collect();
        set.sort_unstable_by_key(|word| slot_of(*word));
        match set.as_slice() {
            [] => None,
            [one] => Some(*one),
            _ => {
                if let Some(at) = self.known.get(&set) {
                    return Some(SET | at);
                }
                let at = u16::try_from(self.words.len()).ok().filter(|at| *at < SET)?;
                self.words.push(u16::try_from(set.len()).ok()?.to_le_bytes());
                self.words.extend(set.iter().map(|word| word.to_le_bytes()));
                self.known.insert(set, at);
                Some(SET | at)
            }
        }
    }
}

/// A page as it lies in shared data: nothing is parsed until an entry is asked for.
#[derive(Clone, Copy)]
pub struct PageView<'a> {
    pub(crate) keys: &'a [[u8; 4]],
    pub(crate) values: &'a [[u8; 4]],
    pub(crate) sets: &'a [[u8; 2]],
    /// The table's epoch when the page was written.
    pub epoch: u32,
    /// The version of the table up to which it has all changes.
    pub as_of: u64,
}

/// What a page says of one fingerprint.
#[derive(Clone, Copy)]
pub struct Found<'a> {
    /// Tokens of the blocks that end at or before the stride's end, rounded down to [`GRANULE`].
    pub tokens: Tokens,
    holders: Holders<'a>,
}

#[derive(Clone, Copy)]
enum Holders<'a> {
    One(u16),
    Set(&'a [[u8; 2]]),
}

impl<'a> PageView<'a> {
    /// `None` if these are not the bytes of a page.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut r = Reader::of_version(bytes, VERSION)?;
        let (_, entries, epoch, as_of) = (r.u8()?, r.u16()?, r.u32()?, r.u64()?);
        Self::entries(r, entries, epoch, as_of)
    }

    /// The same of rows.
    pub(crate) fn parse_rows(bytes: &'a [u8]) -> Option<Self> {
        let mut r = Reader(bytes);
        let entries = r.u16()?;
        Self::entries(r, entries, 0, 0)
    }

    fn entries(mut r: Reader<'a>, entries: u16, epoch: u32, as_of: u64) -> Option<Self> {
        let size = usize::from(entries) * 4;
        let keys = r.take(size)?.as_chunks::<4>().0;
        let values = r.take(size)?.as_chunks::<4>().0;
        Some(Self { keys, values, sets: r.0.as_chunks::<2>().0, epoch, as_of })
    }

    /// How many entries the page has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether the page has no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Where a key is. Keys are spread evenly: it lies near its share of the page, mostly on the same cache line.
    fn place(&self, key: u32) -> Option<usize> {
        const NEAR: usize = 16;
        let of = |k: &[u8; 4]| u32::from_le_bytes(*k);
        let guess = ((self.keys.len() as u64 * u64::from(key)) >> 32) as usize;
        let from = guess.saturating_sub(NEAR);
        let near = self.keys.get(from..self.keys.len().min(guess + NEAR)).unwrap_or_default();
        if let (Some(first), Some(last)) = (near.first(), near.last())
            && (of(first)..=of(last)).contains(&key)
        {
            return near.binary_search_by_key(&key, of).ok().map(|at| from + at);
        }
        self.keys.binary_search_by_key(&key, of).ok()
    }

    /// The entry of a fingerprint, which must belong to this page.
    #[must_use]
    pub fn get(&self, fingerprint: Fingerprint) -> Option<Found<'a>> {
        let at = self.place(fingerprint.0 as u32)?;
        let (holders, granules) = split(*self.values.get(at)?);
        let holders = if holders == NOBODY {
            // Rows had a set that there was no room for.
            return None;
        } else if holders & SET == 0 {
            Holders::One(holders)
        } else {
            Holders::Set(set_at(self.sets, holders)?.get(1..)?)
        };
        Some(Found { tokens: Tokens(u32::from(granules) * GRANULE), holders })
    }
}

impl Found<'_> {
    /// Who holds every block up to this stride.
    pub fn holders(&self) -> impl Iterator<Item = (Slot, Tier)> {
        let mut words = Vec::new();
        self.write_words(&mut words);
        words.into_iter().filter_map(holder)
    }

    /// Appends the same as words for [`holder`], by slot.
    pub fn write_words(&self, out: &mut Vec<u16>) {
        match self.holders {
            Holders::One(word) => out.push(word),
            Holders::Set(words) => out.extend(words.iter().map(|word| u16::from_le_bytes(*word))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn entries() -> impl Strategy<Value = Vec<PageEntry>> {
        let holder = (0u16..40, prop_oneof![Just(Tier::Gpu), Just(Tier::Cpu), Just(Tier::Disk)]);
        let holders = proptest::collection::btree_map(holder.clone().prop_map(|h| h.0), holder.prop_map(|h| h.1), 1..6);
        proptest::collection::btree_map(any::<u64>(), (0u32..2_000_000, holders), 0..300).prop_map(|m| {
            m.into_iter()
                .map(|(fp, (tokens, holders))| PageEntry {
                    fingerprint: Fingerprint(fp),
                    tokens: Tokens(tokens),
                    holders: holders.into_iter().map(|(s, t)| (Slot(s), t)).collect(),
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn what_was_written_is_found_and_nothing_else(entries in entries(), others in proptest::collection::vec(any::<u64>(), 50)) {
            let bytes = encode_page(7, 9, &entries);
            let page = PageView::parse(&bytes).unwrap();
            prop_assert_eq!((page.epoch, page.as_of), (7, 9));
            let mut by_key: HashMap<u32, usize> = HashMap::new();
            for e in &entries {
                *by_key.entry(e.fingerprint.0 as u32).or_default() += 1;
            }
            for e in &entries {
                let found = page.get(e.fingerprint);
                if by_key[&(e.fingerprint.0 as u32)] > 1 {
                    prop_assert!(found.is_none());
                    continue;
                }
                let found = found.unwrap();
                let stored = found.tokens.0;
                prop_assert!(stored <= e.tokens.0);
                prop_assert!(stored == u32::from(u16::MAX) * GRANULE || e.tokens.0 - stored < GRANULE);
                prop_assert_eq!(found.holders().collect::<Vec<_>>(), e.holders.clone());
            }
            for other in others {
                prop_assert!(page.get(Fingerprint(other)).is_none() || by_key.contains_key(&(other as u32)));
            }
        }

        #[test]
        fn any_bytes_are_refused_or_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), fp in any::<u64>()) {
            if let Some(page) = PageView::parse(&bytes) && let Some(found) = page.get(Fingerprint(fp)) {
                let _ = found.holders().count();
            }
        }
    }

    #[test]
    fn an_entry_with_one_holder_takes_eight_bytes() {
        let entries: Vec<_> = (0..1000u64)
            .map(|i| PageEntry {
                fingerprint: Fingerprint(i * 0x9E37_79B9),
                tokens: Tokens(64),
                holders: vec![(Slot(3), Tier::Gpu)],
            })
            .collect();
        assert_eq!(encode_page(1, 1, &entries).len(), HEADER + 8 * 1000);
    }

    #[test]
    fn pages_split_the_fingerprints_by_their_top_bits() {
        assert_eq!(page_of(Fingerprint(u64::MAX), 0), 0);
        assert_eq!(page_of(Fingerprint(u64::MAX), 6), 63);
        assert_eq!(page_of(Fingerprint(1 << 63), 1), 1);
    }
}
