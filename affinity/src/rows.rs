//! Rows: what changed of a page, and how a gateway brings its pages up to date.
//!
//! Rows are written as a page's entries are ([`crate::page`]), without its header but the count. They are states, not
//! operations: what the table says of these keys now, or that it says nothing more.
//!
//! **Invariant:** a page in shared data never goes back within an epoch: it is replaced only by what is as of a later
//! version, and only if nobody else wrote it in between. So whoever applies a reply, however late and beside whomever,
//! leaves pages that have all of that reply, or more; and every version ever claimed by [`crate::sync::Versions`] stays true.

use crate::page::{HEADER, NOBODY, PageView, SET, first_set, header, joined, set_at, split};
use std::borrow::Cow;

/// News of one page.
#[derive(Clone, Copy, Debug)]
pub enum News<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// What changed since a version that the gateway has.
    Rows {
        /// As [`crate::page::PageWriter::of_rows`] wrote them.
        rows: &'a [u8],
        /// The table's epoch.
        epoch: u32,
        /// Its version.
        as_of: u64,
    },
}

impl News<'_> {
    fn epoch(self) -> Option<u32> {
        match self {
            Self::Whole(bytes) => PageView::parse(bytes).map(|page| page.epoch),
            Self::Rows { epoch, .. } => Some(epoch),
        }
    }
}

/// Rows cannot be laid over a page that is not there, of another epoch or not readable, nor if they are not readable
/// themselves. Only whole pages help then, and the version that they were to bring must not be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

/// What to write in place of the page that is there; nothing, if it is as new.
///
/// # Errors
/// If there are rows, but not their page.
pub fn renewed<'a>(there: Option<&[u8]>, news: News<'a>) -> Result<Option<Cow<'a, [u8]>>, Lost> {
    let page = there.and_then(PageView::parse);
    match news {
        News::Whole(bytes) => {
            let new = PageView::parse(bytes).ok_or(Lost)?;
            let newer = page.is_some_and(|page| page.epoch == new.epoch && page.as_of >= new.as_of);
            Ok((!newer).then_some(Cow::Borrowed(bytes)))
        }
        News::Rows { rows, epoch, as_of } => {
            let page = page.filter(|page| page.epoch == epoch).ok_or(Lost)?;
            if page.as_of >= as_of {
                return Ok(None);
            }
            merge(&page, rows, as_of).map(|merged| Some(Cow::Owned(merged))).ok_or(Lost)
        }
    }
}

/// How often a page is tried that somebody else writes at the same time.
const TRIES: usize = 4;

/// Brings a page in shared data up to date. False if it is [`Lost`], or cannot be written.
///
/// `there` is the page, with a number, as it was when the news was found to count; `read` gives it as it is now; `write`
/// writes it if it still has that number, or if there is none with `None`. Where another page came there meanwhile, it is
/// written over only if both are of one epoch: of two, it cannot be told which is the later.
pub fn update(
    news: News<'_>,
    mut there: Option<(Vec<u8>, u32)>,
    mut read: impl FnMut() -> Option<(Vec<u8>, u32)>,
    mut write: impl FnMut(&[u8], Option<u32>) -> bool,
) -> bool {
    for _ in 0..TRIES {
        let (page, number) = there.as_ref().map(|(page, number)| (page.as_slice(), *number)).unzip();
        match renewed(page, news) {
            Err(Lost) => return false,
            Ok(None) => return true,
            Ok(Some(page)) if write(&page, number) => return true,
            Ok(Some(_)) => {}
        }
        there = read();
        let epoch = there.as_ref().and_then(|(page, _)| PageView::parse(page)).map(|page| page.epoch);
        if epoch.is_none() || epoch != news.epoch() {
            return false;
        }
    }
    false
}

/// The page that `page` is once these rows are laid over it. `None` if they are no rows.
#[must_use]
pub fn merge(page: &PageView<'_>, rows: &[u8], as_of: u64) -> Option<Vec<u8>> {
    let rows = PageView::parse_rows(rows)?;
    let most = page.len() + rows.len();
    let mut out = Vec::with_capacity(HEADER + most * 8 + (page.sets.len() + rows.sets.len()) * 2);
    header(&mut out, 0, page.epoch, as_of);
    let mut values: Vec<[u8; 4]> = Vec::with_capacity(most);
    // Values of rows that refer to sets; filled in when those of the page are there.
    let mut many = Vec::new();
    let (mut from, mut last) = (0, None);
    for (bytes, value) in rows.keys.iter().zip(rows.values) {
        let key = u32::from_le_bytes(*bytes);
        if last.is_some_and(|last| last >= key) {
            return None;
        }
        last = Some(key);
        let rest = page.keys.get(from..)?;
        let before = rest.partition_point(|k| u32::from_le_bytes(*k) < key);
        out.extend_from_slice(rest.get(..before)?.as_flattened());
        values.extend_from_slice(page.values.get(from..from + before)?);
        from += before + usize::from(rest.get(before).is_some_and(|k| k == bytes));
        let (holder, granules) = split(*value);
        if holder == NOBODY {
            continue;
        }
        out.extend_from_slice(bytes);
        if holder & SET == 0 {
            values.push(*value);
        } else {
            many.push((values.len(), holder));
            values.push(joined(NOBODY, granules));
        }
    }
    out.extend_from_slice(page.keys.get(from..)?.as_flattened());
    values.extend_from_slice(page.values.get(from..)?);
    let count = u16::try_from(values.len()).ok()?;
    out.get_mut(2..4)?.copy_from_slice(&count.to_le_bytes());
    let mut sets = Sets::default();
    if !page.sets.is_empty() {
        sets.carry(page.sets, &mut values);
    }
    for (at, holder) in many {
        let value = values.get_mut(at)?;
        *value = joined(sets.add(rows.sets, holder), split(*value).1);
    }
    out.extend_from_slice(values.as_flattened());
    out.extend_from_slice(sets.words.as_flattened());
    Some(out)
}

/// The sets of a merged page, each written once.
#[derive(Default)]
struct Sets {
    words: Vec<[u8; 2]>,
}

impl Sets {
    /// Takes over from the page's sets those that its values still refer to, and changes these to where they are now.
    fn carry(&mut self, sets: &[[u8; 2]], values: &mut [[u8; 4]]) {
        const NOT_YET: u16 = 0;
        let mut moved = vec![NOT_YET; sets.len()];
        for value in values {
            let (holder, granules) = split(*value);
            if holder & SET == 0 {
                continue;
            }
            let holder = match moved.get_mut(usize::from(holder & !SET)) {
                Some(known) if *known != NOT_YET => *known,
                Some(place) => {
                    *place = set_at(sets, holder).map_or(NOBODY, |set| self.push(set));
                    *place
                }
                None => NOBODY,
            };
            *value = joined(holder, granules);
        }
    }

    /// Where the rows' set is now, which may be there already.
    fn add(&mut self, sets: &[[u8; 2]], holder: u16) -> u16 {
        let Some(set) = set_at(sets, holder) else { return NOBODY };
        let mut at = 0;
        while let Some(known) = self.words.get(at..).and_then(first_set) {
            if known == set {
                return u16::try_from(at).map_or(NOBODY, |at| SET | at);
            }
            at += known.len();
        }
        self.push(set)
    }

    /// A set that there is no room for is nobody: an undercount.
    /// ([`PageView::get`] says that there is no entry.)
    fn push(&mut self, set: &[[u8; 2]]) -> u16 {
        let Some(at) = u16::try_from(self.words.len()).ok().filter(|at| *at < SET) else { return NOBODY };
        self.words.extend_from_slice(set);
        SET | at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::{PageEntry, PageWriter, encode_page, granules};
    use crate::{Fingerprint, Slot, Tier, Tokens};
    use proptest::prelude::*;
    use std::cell::RefCell;
    use std::collections::{BTreeMap, BTreeSet};

    type Entries = BTreeMap<u64, (u32, Vec<(Slot, Tier)>)>;

    /// Few keys, so that the same ones change, and fingerprints that share one.
    fn entries() -> impl Strategy<Value = Entries> {
        let tier = prop_oneof![Just(Tier::Gpu), Just(Tier::Cpu), Just(Tier::Disk)];
        let holders = proptest::collection::btree_map(0u16..5, tier, 0..4);
        let holders = holders.prop_map(|h| h.into_iter().map(|(slot, tier)| (Slot(slot), tier)).collect());
        let print = (0u64..4, 0u64..150).prop_map(|(high, key)| (high / 3) << 32 | (key * 0x9E37_79B9) & 0xFFFF_FFFF);
        proptest::collection::btree_map(print, (0u32..1000, holders), 0..150)
    }

    fn page(entries: &Entries, as_of: u64) -> Vec<u8> {
        let entry = |(print, (tokens, holders)): (&u64, &(u32, Vec<_>))| PageEntry {
            fingerprint: Fingerprint(*print),
            tokens: Tokens(*tokens),
            holders: holders.clone(),
        };
        encode_page(7, as_of, &entries.iter().map(entry).collect::<Vec<_>>())
    }

    /// The rows of these keys.
    fn rows(entries: &Entries, keys: &BTreeSet<u32>) -> Vec<u8> {
        let mut out = PageWriter::of_rows(keys.len());
        for key in keys {
            let mut same = entries.iter().filter(|(print, (_, holders))| **print as u32 == *key && !holders.is_empty());
            match (same.next(), same.next()) {
                (Some((_, (tokens, holders))), None) => assert!(out.many(*key, holders, granules(Tokens(*tokens)))),
                _ => out.gone(*key),
            }
        }
        out.finish()
    }

    fn said(page: &[u8], key: u32) -> Option<(u32, Vec<(Slot, Tier)>)> {
        let found = PageView::parse(page)?.get(Fingerprint(u64::from(key)))?;
        Some((found.tokens.0, found.holders().collect()))
    }

    fn keys(entries: &Entries) -> impl Iterator<Item = u32> {
        entries.keys().map(|print| *print as u32)
    }

    proptest! {
        #[test]
        fn a_page_with_rows_laid_over_it_is_the_new_page(before in entries(), after in entries(), more in 0usize..50) {
            let (old, new) = (page(&before, 3), page(&after, 5));
            let all: BTreeSet<u32> = keys(&before).chain(keys(&after)).collect();
            let changed = all.iter().filter(|key| said(&old, **key) != said(&new, **key)).copied();
            let rows = rows(&after, &changed.chain(all.iter().copied().take(more)).collect());
            let merged = merge(&PageView::parse(&old).unwrap(), &rows, 5).unwrap();
            prop_assert_eq!(merged.len(), new.len(), "as short as if written anew");
            for key in &all {
                prop_assert_eq!(said(&merged, *key), said(&new, *key));
            }
            let merged = PageView::parse(&merged).unwrap();
            prop_assert_eq!((merged.epoch, merged.as_of), (7, 5));
            // Rows are states: once more, they change nothing.
            prop_assert_eq!(merge(&merged, &rows, 5).unwrap().len(), new.len());
        }

        #[test]
        fn any_bytes_are_refused_or_merged_without_panic(
            there in proptest::collection::vec(any::<u8>(), 0..400),
            rows in proptest::collection::vec(any::<u8>(), 0..400),
            entries in entries(),
        ) {
            for page in [&there, &page(&entries, 1)] {
                let Some(page) = PageView::parse(page) else { continue };
                if let Some(merged) = merge(&page, &rows, 2) {
                    prop_assert!(PageView::parse(&merged).is_some());
                }
            }
        }
    }

    proptest! {
        // Few of the interleavings hurt whoever does not guard against them.
        #![proptest_config(ProptestConfig::with_cases(1500))]

        /// Replies are applied late, twice, in any order and within one another: between any read and write.
        #[test]
        fn what_is_claimed_is_there_however_writers_interleave(deeds in proptest::collection::vec(any::<u32>(), 1..120)) {
            let world = RefCell::new(World { deeds, ..World::default() });
            loop {
                let Some(deed) = world.borrow_mut().deeds.pop() else { break };
                match deed % 4 {
                    0 => world.borrow_mut().change(u64::from(deed / 4)),
                    1 => {
                        let reply = world.borrow().reply(deed % 8 == 1);
                        world.borrow_mut().replies.push(reply);
                    }
                    _ => apply_one(&world),
                }
                world.borrow().check()?;
            }
        }
    }

    const PAGES: u32 = 2;

    /// The version it brings, and pages: which, whether it is whole, and the bytes.
    type Reply = (usize, Vec<(u32, bool, Vec<u8>)>);

    /// An indexer's table with its history, shared data, and replies that are not applied yet.
    #[derive(Default)]
    struct World {
        deeds: Vec<u32>,
        /// By version; before the first there is nothing.
        states: Vec<Entries>,
        shared: BTreeMap<u32, (Vec<u8>, u32)>,
        writes: u32,
        claim: usize,
        replies: Vec<Reply>,
    }

    impl World {
        fn state(&self, version: usize) -> Entries {
            version.checked_sub(1).map(|at| self.states[at].clone()).unwrap_or_default()
        }

        fn change(&mut self, what: u64) {
            let mut state = self.state(self.states.len());
            let holders = (0..what / 8 % 4).map(|slot| (Slot(slot as u16), Tier::Gpu)).collect();
            state.insert(what % 8, (what as u32 / 32 % 4 * 16, holders));
            self.states.push(state);
        }

        /// To whoever has what is claimed now.
        fn reply(&self, whole: bool) -> Reply {
            let now = self.states.len();
            let (before, after) = (self.state(self.claim), self.state(now));
            let frame = |number: u32| {
                let of: Entries = after.clone().into_iter().filter(|(p, _)| *p as u32 % PAGES == number).collect();
                if whole || self.claim == 0 {
                    return (number, true, page(&of, now as u64));
                }
                let changed = (self.claim..now).flat_map(|at| self.states[at].keys().copied());
                let changed = changed.map(|print| print as u32).filter(|key| key % PAGES == number);
                assert!(before.len() <= after.len());
                (number, false, rows(&of, &changed.collect()))
            };
            (now, (0..PAGES).map(frame).collect())
        }

        /// Nothing is said that was not so at the version claimed, or later.
        fn check(&self) -> Result<(), TestCaseError> {
            for key in (0..8).filter(|_| self.claim > 0) {
                let there = self.shared.get(&(key % PAGES)).and_then(|(page, _)| said(page, key));
                let so = (self.claim..=self.states.len()).any(|at| said(&page(&self.state(at), 0), key) == there);
                prop_assert!(so, "{key} at {} of {}: {there:?}", self.claim, self.states.len());
            }
            Ok(())
        }
    }

    fn apply_one(world: &RefCell<World>) {
        let Some(number) = world.borrow_mut().deeds.pop() else { return };
        let (now, frames) = {
            let mut world = world.borrow_mut();
            let Some(at) = (number as usize).checked_rem(world.replies.len()) else { return };
            if number % 3 == 0 { world.replies[at].clone() } else { world.replies.remove(at) }
        };
        let mut well = true;
        for (number, whole, bytes) in &frames {
            let news = match whole {
                true => News::Whole(bytes),
                false => News::Rows { rows: bytes, epoch: 7, as_of: now as u64 },
            };
            let write = |bytes: &[u8], number_read: Option<u32>| {
                if world.borrow().deeds.len().is_multiple_of(3) {
                    apply_one(world);
                }
                let mut world = world.borrow_mut();
                if world.shared.get(number).map(|(_, number)| *number) != number_read {
                    return false;
                }
                world.writes += 1;
                let written = (bytes.to_vec(), world.writes);
                world.shared.insert(*number, written);
                true
            };
            let read = || world.borrow().shared.get(number).cloned();
            well &= update(news, read(), read, write);
        }
        // Some die before they claim anything: what others claimed must hold all the same.
        if number % 5 > 1 {
            world.borrow_mut().claim = if well { now } else { 0 };
        }
    }

    #[test]
    fn rows_need_their_page() {
        let (old, rows) = (page(&Entries::new(), 3), rows(&Entries::new(), &BTreeSet::from([1])));
        let apply = |there: Option<&[u8]>, rows: &[u8], epoch, writable| {
            let mut written = 0;
            let read = || there.map(|there| (there.to_vec(), 1));
            let well = update(News::Rows { rows, epoch, as_of: 5 }, read(), read, |_, _| {
                written += 1;
                writable
            });
            (well, written)
        };
        assert_eq!(apply(Some(&old), &rows, 7, true), (true, 1));
        assert_eq!(apply(None, &rows, 7, true), (false, 0), "no page");
        assert_eq!(apply(Some(&old[1..]), &rows, 7, true), (false, 0), "not a page");
        assert_eq!(apply(Some(&old), &rows, 8, true), (false, 0), "of another epoch");
        assert_eq!(apply(Some(&old), &rows[1..], 7, true), (false, 0), "no rows");
        assert_eq!(apply(Some(&old), &rows, 7, false), (false, TRIES), "never written");
        assert_eq!(apply(Some(&page(&Entries::new(), 5)), &rows, 7, true), (true, 0), "there already");
        let unsorted = [[2, 0].as_slice(), &[9, 0, 0, 0, 8, 0, 0, 0], &[0; 8]].concat();
        assert_eq!(apply(Some(&old), &unsorted, 7, true), (false, 0));
    }

    #[test]
    fn a_set_that_finds_no_room_is_left_out() {
        let mut old = Entries::new();
        for print in 0..4000u64 {
            let holders = (0..8).map(|bit| (Slot((print as u16 >> bit & 1) * 8 + bit), Tier::Gpu));
            old.insert(print, (16, holders.chain([(Slot(100 + print as u16), Tier::Gpu)]).collect()));
        }
        let old = page(&old, 1);
        let new = Entries::from([(5000, (32, vec![(Slot(1), Tier::Gpu), (Slot(7000), Tier::Gpu)]))]);
        let merged = merge(&PageView::parse(&old).unwrap(), &rows(&new, &BTreeSet::from([5000])), 2).unwrap();
        assert_eq!(said(&merged, 5000), None);
        assert_eq!(said(&merged, 8), said(&old, 8));
    }

    #[test]
    fn a_set_without_room_hides_only_its_own_stride() {
        use crate::lookup::{Layout, lookup};
        let entry = |fingerprint, slots: std::ops::Range<u16>| PageEntry {
            fingerprint: Fingerprint(fingerprint),
            tokens: Tokens(64),
            holders: slots.map(|slot| (Slot(slot), Tier::Gpu)).collect(),
        };
        // More words than sets can have, and a stride that one slot holds alone.
        let mut entries: Vec<_> = (0..299).map(|i| entry(1000 + u64::from(i), i..i + 120)).collect();
        entries.push(entry(1, 5..6));
        let page = encode_page(1, 1, &entries);
        let mut rows = PageWriter::of_rows(1);
        rows.many(2, &[(Slot(5), Tier::Gpu), (Slot(4000), Tier::Gpu)], 8);
        let merged = merge(&PageView::parse(&page).unwrap(), &rows.finish(), 2).unwrap();
        let prefixes = [Fingerprint(1), Fingerprint(2)];
        for page in [page, merged] {
            let found = lookup(&prefixes, Layout { epoch: 1, bits: 0 }, 2, false, |_| Some(page.clone()));
            assert_eq!(found.len(), 1);
        }
    }
}
