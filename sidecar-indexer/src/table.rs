//! The table's pages: which fingerprints there are, and what changed since when.
//!
//! A row names the tree nodes that its entry is made of; the entry itself (holders, tokens) is read from the nodes
//! when a page is written. So nothing is kept twice, and a change costs a version number.
//!
//! **Invariants:** rows of a page are sorted by fingerprint and belong to it; a row has at least one source; a page
//! whose entries differ from what they were at version `v` has a version above `v`, unless the epoch changed; no two
//! pages share a version but 0, so that "all up to `v`" is a clean cut.

use crate::tree::NodeId;
use affinity::Fingerprint;
use affinity::page::{MAX_BITS, page_of};

/// A table starts with `2^START_BITS` pages.
const START_BITS: u8 = 6;
/// The number of pages doubles when they hold more rows than this on average: 2 KiB a page.
const ROWS_PER_PAGE: usize = 256;

/// Pages of rows, with versions.
pub struct Table {
    epoch: u32,
    bits: u8,
    version: u64,
    rows: usize,
    pages: Vec<Page>,
}

#[derive(Default)]
struct Page {
    rows: Vec<Row>,
    /// The table's version when this page last changed.
    version: u64,
}

/// One fingerprint, and the nodes that complete it and have a holder.
pub(crate) struct Row {
    pub(crate) fingerprint: Fingerprint,
    sources: Sources,
}

/// Nearly always one: two nodes spell the same bytes only where one text was tokenised in two ways.
enum Sources {
    One(NodeId),
    Many(Vec<NodeId>),
}

impl Row {
    pub(crate) fn sources(&self) -> &[NodeId] {
        match &self.sources {
            Sources::One(one) => std::slice::from_ref(one),
            Sources::Many(many) => many,
        }
    }
}

impl Table {
    /// An empty table. `epoch` must not be 0 and should be random: it tells this run from earlier ones.
    #[must_use]
    pub fn new(epoch: u32) -> Self {
        Self { epoch: epoch.max(1), bits: START_BITS, version: 0, rows: 0, pages: empty_pages(START_BITS) }
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
        self.rows
    }

    /// Whether there is no fingerprint.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Pages that changed after `version`, oldest change first: `(version, page)`.
    #[must_use]
    pub fn changed_since(&self, version: u64) -> Vec<(u64, u32)> {
        let changed = (0u32..).zip(&self.pages).filter(|(_, page)| page.version > version);
        let mut changed: Vec<_> = changed.map(|(number, page)| (page.version, number)).collect();
        changed.sort_unstable();
        changed
    }

    /// The rows of a page, by fingerprint.
    pub(crate) fn rows(&self, page: u32) -> &[Row] {
        self.pages.get(page as usize).map_or(&[], |page| &page.rows)
    }

    /// `source`, which completes `fingerprint`, has its first holder.
    pub(crate) fn link(&mut self, fingerprint: Fingerprint, source: NodeId) {
        let Some(page) = self.page_mut(fingerprint) else { return };
        match page.rows.binary_search_by_key(&fingerprint, |row| row.fingerprint) {
            Err(at) => {
                page.rows.insert(at, Row { fingerprint, sources: Sources::One(source) });
                self.rows += 1;
            }
            Ok(at) => {
                if let Some(row) = page.rows.get_mut(at)
                    && !row.sources().contains(&source)
                {
                    let mut sources = row.sources().to_vec();
                    sources.push(source);
                    row.sources = Sources::Many(sources);
                }
            }
        }
    }

    /// `source` has no holder any more.
    pub(crate) fn unlink(&mut self, fingerprint: Fingerprint, source: NodeId) {
        let Some(page) = self.page_mut(fingerprint) else { return };
        let Ok(at) = page.rows.binary_search_by_key(&fingerprint, |row| row.fingerprint) else { return };
        let Some(row) = page.rows.get_mut(at) else { return };
        let mut sources = row.sources().to_vec();
        sources.retain(|s| *s != source);
        match sources.as_slice() {
            [] => {
                page.rows.remove(at);
                self.rows -= 1;
            }
            [one] => row.sources = Sources::One(*one),
            _ => row.sources = Sources::Many(sources),
        }
    }

    /// The holders of one of the row's sources changed.
    pub(crate) fn touch(&mut self, fingerprint: Fingerprint) {
        self.page_mut(fingerprint);
    }

    /// Doubles the number of pages while they are too full. Another layout is another epoch: filters start afresh.
    pub fn grow(&mut self) {
        let mut bits = self.bits;
        while bits < MAX_BITS && self.rows > ROWS_PER_PAGE << bits {
            bits += 1;
        }
        if bits == self.bits {
            return;
        }
        let mut pages = empty_pages(bits);
        // Sorted rows of ascending pages are sorted within their new pages too: pages are cut by the top bits.
        for row in std::mem::take(&mut self.pages).into_iter().flat_map(|page| page.rows) {
            if let Some(page) = pages.get_mut(page_of(row.fingerprint, bits) as usize) {
                page.rows.push(row);
            }
        }
        for page in &mut pages {
            self.version += 1;
            page.version = self.version;
        }
        self.pages = pages;
        self.bits = bits;
        self.epoch = self.epoch.checked_add(1).unwrap_or(1);
    }

    /// The page of a fingerprint, for a change.
    fn page_mut(&mut self, fingerprint: Fingerprint) -> Option<&mut Page> {
        let page = self.pages.get_mut(page_of(fingerprint, self.bits) as usize)?;
        self.version += 1;
        page.version = self.version;
        Some(page)
    }
}

fn empty_pages(bits: u8) -> Vec<Page> {
    std::iter::repeat_with(Page::default).take(1 << bits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(i: u64) -> Fingerprint {
        Fingerprint(i.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    #[test]
    fn changes_are_told_oldest_first_and_only_once_seen() {
        let mut table = Table::new(7);
        for i in 0..200 {
            table.link(fingerprint(i), NodeId::for_test(1));
        }
        let all = table.changed_since(0);
        assert!(all.len() > 32 && all.is_sorted());
        let (half, _) = all[all.len() / 2];
        assert_eq!(table.changed_since(half), all[all.len() / 2 + 1..]);
        assert_eq!(table.changed_since(table.version()), []);
        table.touch(fingerprint(3));
        assert_eq!(table.changed_since(all[all.len() - 1].0).len(), 1);
    }

    #[test]
    fn a_row_lives_as_long_as_one_of_its_sources() {
        let mut table = Table::new(7);
        let (a, b) = (NodeId::for_test(1), NodeId::for_test(2));
        let page = page_of(fingerprint(1), table.bits());
        table.link(fingerprint(1), a);
        table.link(fingerprint(1), b);
        table.link(fingerprint(1), b);
        assert_eq!((table.len(), table.rows(page)[0].sources()), (1, [a, b].as_slice()));
        table.unlink(fingerprint(1), a);
        assert_eq!(table.rows(page)[0].sources(), [b]);
        table.unlink(fingerprint(1), b);
        assert!(table.is_empty() && table.rows(page).is_empty());
    }

    #[test]
    fn growing_keeps_every_row_findable_and_changes_the_epoch() {
        let mut table = Table::new(u32::MAX);
        let n = 40_000;
        for i in 0..n {
            table.link(fingerprint(i), NodeId::for_test(1));
        }
        let seen = table.version();
        table.grow();
        assert_eq!((table.bits(), table.epoch(), table.len()), (8, 1, n as usize));
        let new = table.changed_since(seen);
        assert_eq!(new.len(), 256, "every page is new");
        assert!(
            new.windows(2).all(|pair| pair[0].0 < pair[1].0),
            "pages that share a version get lost between replies"
        );
        for i in 0..n {
            table.unlink(fingerprint(i), NodeId::for_test(1));
        }
        assert!(table.is_empty());
        let epoch = table.epoch();
        table.grow();
        assert_eq!(table.epoch(), epoch);
    }
}
