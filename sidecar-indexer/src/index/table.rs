//! The table's pages: which fingerprints there are, who holds them, and what changed since when.
//!
//! A row is a fingerprint's key and a block that completes it, with its page entry ready to be written; only where
//! several endpoints hold it are they read from the block's run. 12 bytes.
//!
//! **Invariants:** rows of a page are sorted by key and belong to it; a row's block has a rooted holder; a page whose
//! entries differ from what they were at version `v` has a version above `v`, unless the epoch changed; no two pages
//! share a version but 0, so that "all up to `v`" is a clean cut; pages that ever changed form a list by version; every
//! version but those of a growing table is that of one row's change, and the last ones' keys are kept.

use super::changes::Changes;
use super::runs::BlockId;
use affinity::Fingerprint;
use affinity::page::{MAX_BITS, page_of};

/// A table starts with `2^START_BITS` pages.
const START_BITS: u8 = 6;
/// The number of pages doubles when they hold more rows than this on average: 2 KiB a page.
const ROWS_PER_PAGE: usize = 256;
/// No page: the ends of the list.
const NO_PAGE: u32 = u32::MAX;

/// Pages of rows, with versions.
pub struct Table {
    epoch: u32,
    bits: u8,
    version: u64,
    /// Distinct keys within their pages. Where blocks differ only after a stride's end they complete the same one.
    keys: usize,
    pages: Vec<Page>,
    newest: u32,
    changes: Changes,
}

struct Page {
    rows: Vec<Row>,
    /// The table's version when this page last changed; 0 if it never did.
    version: u64,
    newer: u32,
    older: u32,
}

/// A fingerprint of a block that has a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// The fingerprint's lower half.
    pub(super) key: u32,
    pub(super) block: BlockId,
    /// The only holder, as pages have it, or [`affinity::page::MANY`].
    pub(super) holder: u16,
    pub(super) granules: u16,
}

impl Table {
    /// An empty table. `epoch` must not be 0 and should be random: it tells this run from earlier ones.
    #[must_use]
    pub fn new(epoch: u32) -> Self {
        let pages = empty_pages(START_BITS);
        Self {
            epoch: epoch.max(1),
            bits: START_BITS,
            version: 0,
            keys: 0,
            pages,
            newest: NO_PAGE,
            changes: Changes::new(),
        }
    }

    /// Names the run and the number of pages.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// There are `2^bits` pages.
    #[must_use]
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// The version of the latest change.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many fingerprints there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys
    }

    /// Whether there is no fingerprint.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys == 0
    }

    /// Pages that changed after `version`, oldest change first: `(version, page)`. Costs what changed. After version 0
    /// all pages, even those that never changed: whoever has them all can be sent rows from then on.
    #[must_use]
    pub fn changed_since(&self, version: u64) -> Vec<(u64, u32)> {
        let mut next = self.newest;
        let mut changed: Vec<_> = std::iter::from_fn(|| {
            let (number, page) = (next, self.pages.get(next as usize)?);
            next = page.older;
            (page.version > version).then_some((page.version, number))
        })
        .collect();
        if version == 0 && self.version > 0 {
            changed
                .extend((0u32..).zip(&self.pages).filter(|(_, page)| page.version == 0).map(|(number, _)| (0, number)));
        }
        changed.reverse();
        changed
    }

    /// Keys whose rows changed after `version`, sorted: `(page, key)`. `None` if they are not known any more, or if
    /// not even one page was had then: whole pages are due.
    #[must_use]
    pub fn keys_changed_since(&self, version: u64) -> Option<Vec<(u32, u32)>> {
        let changes = self.changes.since(version, self.version).filter(|_| version > 0)?;
        let mut keys: Vec<_> = changes.map(|print| (page_of(print, self.bits), print.0 as u32)).collect();
        keys.sort_unstable();
        keys.dedup();
        Some(keys)
    }

    /// How many rows a page has: no fewer than it has entries.
    #[must_use]
    pub fn rows_in(&self, page: u32) -> usize {
        self.rows(page).len()
    }

    /// The rows of a page, by key.
    pub(super) fn rows(&self, page: u32) -> &[Row] {
        self.pages.get(page as usize).map_or(&[], |page| &page.rows)
    }

    /// The rows of a key in a page.
    pub(super) fn rows_of(&self, page: u32, key: u32) -> &[Row] {
        let rows = self.rows(page);
        let from = rows.partition_point(|row| row.key < key);
        let same = rows.get(from..).unwrap_or_default().iter().take_while(|row| row.key == key).count();
        rows.get(from..from + same).unwrap_or_default()
    }

    /// The holders of a block that completes `fingerprint` changed: this is its row now.
    pub(super) fn set(&mut self, fingerprint: Fingerprint, row: Row) {
        let number = self.touch(fingerprint);
        let Some(page) = self.pages.get_mut(number as usize) else { return };
        let at = page.at(&row);
        match page.rows.get_mut(at).filter(|r| r.is(&row)) {
            Some(there) => *there = row,
            None => {
                if page.rows.len() == page.rows.capacity() {
                    page.rows.reserve_exact(page.rows.len() / 8 + 4);
                }
                self.keys += usize::from(!page.has(at, row.key));
                page.rows.insert(at, row);
            }
        }
    }

    /// A block that completes `fingerprint` has no holder any more.
    pub(super) fn unset(&mut self, fingerprint: Fingerprint, block: BlockId) {
        let row = Row { key: fingerprint.0 as u32, block, holder: 0, granules: 0 };
        let number = self.touch(fingerprint);
        let Some(page) = self.pages.get_mut(number as usize) else { return };
        let at = page.at(&row);
        if page.rows.get(at).is_some_and(|r| r.is(&row)) {
            page.rows.remove(at);
            self.keys -= usize::from(!page.has(at, row.key));
            if page.rows.len() * 2 + 16 < page.rows.capacity() {
                page.rows.shrink_to(page.rows.len() + page.rows.len() / 8);
            }
        }
    }

    /// Doubles the number of pages while they are too full. Another layout is another epoch: filters start afresh.
    /// `fingerprint` tells that of a row.
    pub(super) fn grow(&mut self, fingerprint: impl Fn(&Row) -> Option<Fingerprint>) {
        let mut bits = self.bits;
        while bits < MAX_BITS && self.keys > ROWS_PER_PAGE << bits {
            bits += 1;
        }
        if bits == self.bits {
            return;
        }
        let mut pages = empty_pages(bits);
        let mut keys = 0;
        // Pages are cut by the top bits: rows sorted within their page stay so within their new ones.
        for old in std::mem::take(&mut self.pages) {
            for row in old.rows {
                let number = fingerprint(&row).map_or(NO_PAGE, |fingerprint| page_of(fingerprint, bits));
                let Some(page) = pages.get_mut(number as usize) else { continue };
                if page.rows.len() == page.rows.capacity() {
                    page.rows.reserve_exact(page.rows.len() / 8 + 16);
                }
                keys += usize::from(!page.has(page.rows.len(), row.key));
                page.rows.push(row);
            }
        }
        (self.pages, self.keys, self.bits, self.newest) = (pages, keys, bits, NO_PAGE);
        (0..1 << bits).for_each(|number| self.renew(number));
        self.changes.forget(self.version);
        self.epoch = self.epoch.checked_add(1).unwrap_or(1);
    }

    /// The page of a fingerprint, which is about to change.
    fn touch(&mut self, fingerprint: Fingerprint) -> u32 {
        let number = page_of(fingerprint, self.bits);
        self.renew(number);
        self.changes.note(self.version, fingerprint);
        number
    }

    /// Gives a page a new version.
    fn renew(&mut self, number: u32) {
        self.version += 1;
        let (version, newest) = (self.version, self.newest);
        let Some(page) = self.pages.get_mut(number as usize) else { return };
        page.version = version;
        if newest == number {
            return;
        }
        let (newer, older) = (std::mem::replace(&mut page.newer, NO_PAGE), std::mem::replace(&mut page.older, newest));
        if let Some(newer) = self.pages.get_mut(newer as usize) {
            newer.older = older;
        }
        if let Some(older) = self.pages.get_mut(older as usize) {
            older.newer = newer;
        }
        if let Some(newest) = self.pages.get_mut(newest as usize) {
            newest.newer = number;
        }
        self.newest = number;
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        let rows: usize = self.pages.iter().map(|page| super::allocated::<Row>(page.rows.capacity())).sum();
        rows + super::allocated::<Page>(self.pages.capacity()) + self.changes.bytes()
    }
}

impl Page {
    /// Where a row is or would be. Keys are spread evenly: it lies near its share of the page, mostly on the same few
    /// cache lines.
    fn at(&self, row: &Row) -> usize {
        const NEAR: usize = 16;
        let before = |r: &Row| (r.key, r.block) < (row.key, row.block);
        let guess = ((self.rows.len() as u64 * u64::from(row.key)) >> 32) as usize;
        let (from, to) = (guess.saturating_sub(NEAR), guess + NEAR);
        let starts = from == 0 || self.rows.get(from - 1).is_some_and(before);
        let ends = self.rows.get(to).is_none_or(|r| !before(r));
        match self.rows.get(from..to.min(self.rows.len())) {
            Some(near) if starts && ends => from + near.partition_point(before),
            _ => self.rows.partition_point(before),
        }
    }

    /// Whether a row of this key lies on either side of this place, where all of that key are or would be.
    fn has(&self, at: usize, key: u32) -> bool {
        let is = |at: usize| self.rows.get(at).is_some_and(|r| r.key == key);
        is(at) || at.checked_sub(1).is_some_and(is)
    }
}

impl Row {
    /// Whether both are of the same fingerprint and block.
    fn is(&self, other: &Self) -> bool {
        (self.key, self.block) == (other.key, other.block)
    }
}

fn empty_pages(bits: u8) -> Vec<Page> {
    let empty = || Page { rows: Vec::new(), version: 0, newer: NO_PAGE, older: NO_PAGE };
    std::iter::repeat_with(empty).take(1 << bits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn fingerprint(i: u64) -> Fingerprint {
        Fingerprint(i.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn set(table: &mut Table, i: u64, block: u32, holder: u16) {
        let row = Row { key: fingerprint(i).0 as u32, block: BlockId::new(block, 0), holder, granules: 1 };
        table.set(fingerprint(i), row);
    }

    #[test]
    fn changes_are_told_oldest_first_and_only_once_seen() {
        let mut table = Table::new(7);
        assert_eq!(table.changed_since(0), []);
        for i in 0..200 {
            set(&mut table, i, 1, 0);
        }
        let all = table.changed_since(0);
        assert!(all.len() == 64 && all.is_sorted());
        let (half, _) = all[all.len() / 2];
        assert_eq!(table.changed_since(half), all[all.len() / 2 + 1..]);
        assert_eq!(table.changed_since(table.version()), []);
        set(&mut table, 3, 1, 9);
        assert_eq!(table.changed_since(all[all.len() - 1].0).len(), 1);
        assert_eq!(table.changed_since(0).len(), all.len(), "none is lost, none twice");
    }

    #[test]
    fn keys_that_changed_are_told_by_page_unless_too_much_did() {
        let mut table = Table::new(7);
        for i in 0..200 {
            set(&mut table, i, 1, 0);
        }
        assert_eq!(table.keys_changed_since(0), None, "who has no pages cannot use rows");
        let seen = table.version();
        let mut expected: Vec<_> =
            [3, 5, 300].map(|i| (page_of(fingerprint(i), table.bits()), fingerprint(i).0 as u32)).to_vec();
        expected.sort_unstable();
        for i in [3, 5, 3, 300] {
            set(&mut table, i, 2, 9);
        }
        table.unset(fingerprint(5), BlockId::new(2, 0));
        assert_eq!(table.keys_changed_since(seen), Some(expected));
        for i in 0..100_000 {
            set(&mut table, i, 1, 0);
        }
        assert_eq!(table.keys_changed_since(seen), None);
        let seen = table.version();
        table.grow(|_| Some(Fingerprint(0)));
        assert_eq!(table.keys_changed_since(seen), None, "of another layout");
        assert_eq!(table.keys_changed_since(table.version()), Some(vec![]));
    }

    #[test]
    fn a_fingerprint_has_a_row_for_each_of_its_blocks() {
        let mut table = Table::new(7);
        let page = page_of(fingerprint(1), table.bits());
        let rows = |table: &Table| table.rows(page).iter().map(|r| (r.block.run(), r.holder)).collect::<Vec<_>>();
        set(&mut table, 1, 2, 5);
        set(&mut table, 1, 1, 6);
        set(&mut table, 1, 2, 7);
        assert_eq!((table.len(), rows(&table)), (1, vec![(1, 6), (2, 7)]));
        table.unset(fingerprint(1), BlockId::new(1, 0));
        table.unset(fingerprint(1), BlockId::new(1, 0));
        assert_eq!((table.len(), rows(&table)), (1, vec![(2, 7)]));
        table.unset(fingerprint(1), BlockId::new(2, 0));
        assert!(table.is_empty());
    }

    #[test]
    fn growing_keeps_every_row_findable_and_changes_the_epoch() {
        let mut table = Table::new(u32::MAX);
        let n = 40_000;
        let by_key: HashMap<u32, u64> = (0..n).map(|i| (fingerprint(i).0 as u32, i)).collect();
        for i in 0..n {
            set(&mut table, i, 1, 0);
        }
        let seen = table.version();
        table.grow(|row| Some(fingerprint(by_key[&row.key])));
        assert_eq!((table.bits(), table.epoch(), table.len()), (8, 1, n as usize));
        let new = table.changed_since(seen);
        assert_eq!(new.len(), 256, "every page is new");
        assert!(
            new.windows(2).all(|pair| pair[0].0 < pair[1].0),
            "pages that share a version get lost between replies"
        );
        let fixed = table.changes.bytes();
        let full = table.bytes() - fixed;
        for i in 0..n {
            table.unset(fingerprint(i), BlockId::new(1, 0));
        }
        let left = table.bytes() - fixed;
        assert!(table.is_empty() && left < full / 10, "{left} of {full}");
        let epoch = table.epoch();
        table.grow(|_| None);
        assert_eq!(table.epoch(), epoch);
    }
}
