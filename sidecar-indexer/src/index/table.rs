//! The table: which fingerprints there are, who holds them, and which pages changed since when.
//!
//! A row takes 16 bytes: a fingerprint, and who holds it. Where one holder does not say it all, it refers to [`Shares`].
//!
//! **Invariants:** a fingerprint has one row, if anybody holds it; rows lie by page, and within it by key; a page whose
//! entries differ from what they were at version `v` has a version above `v`, unless the epoch changed; no two pages
//! share a version but 0, so that "all up to `v`" is a clean cut; every version but those of a growing table is that of one
//! row's change, and the last ones' keys are kept.

use super::changes::Changes;
use super::ordered::{Order, Ordered};
use super::shares::{Share, Shares};
use affinity::page::{MANY, MAX_BITS, PageEntry, PageWriter, granules, holder, page_of};
use affinity::{Fingerprint, Slot, Tier, Tokens};

/// A table starts with `2^START_BITS` pages.
const START_BITS: u8 = 6;
/// The number of pages doubles when they hold more rows than this on average: 2 KiB a page.
const ROWS_PER_PAGE: usize = 256;

/// Rows by page, and the pages' versions.
pub struct Table {
    epoch: u32,
    version: u64,
    rows: Ordered<ByPage>,
    /// What rows refer to, and which of it is free.
    shares: Vec<Shares>,
    free: Vec<u32>,
    /// The table's version when each page last changed; 0 if it never did.
    pages: Vec<u64>,
    changes: Changes,
}

/// Who holds a fingerprint.
#[derive(Clone, Copy)]
struct Row {
    fingerprint: Fingerprint,
    /// Of the only share; or which of [`Table::shares`].
    tokens: u32,
    /// Of the only share, or [`MANY`].
    holder: u16,
    /// How many blocks have that share; 0 in a gap.
    count: u16,
}

/// Rows lie by page, and within it by key.
struct ByPage {
    bits: u8,
}

impl Order for ByPage {
    type Row = Row;
    const GAP: Row = Row { fingerprint: Fingerprint(0), tokens: 0, holder: 0, count: 0 };

    fn is_gap(row: &Row) -> bool {
        row.count == 0
    }

    fn key(&self, row: &Row) -> u64 {
        self.place(row.fingerprint)
    }
}

impl ByPage {
    fn place(&self, fingerprint: Fingerprint) -> u64 {
        let Fingerprint(print) = fingerprint;
        let page = !(u64::MAX >> self.bits);
        print & page | (print & u64::from(u32::MAX)) << (32 - self.bits)
    }

    /// Where a page begins; `None` after the last.
    fn start(&self, page: u32) -> Option<u64> {
        (page >> self.bits == 0).then(|| u64::from(page) << (64 - self.bits))
    }
}

impl Row {
    fn new(fingerprint: Fingerprint, share: Share) -> Self {
        Self { fingerprint, tokens: share.tokens.0, holder: share.holder, count: 1 }
    }

    /// As pages have it.
    fn key(&self) -> u32 {
        self.fingerprint.0 as u32
    }

    /// The only share, with its count.
    fn only(&self) -> Option<(Share, u32)> {
        let share = Share { holder: self.holder, tokens: Tokens(self.tokens) };
        (self.holder != MANY).then_some((share, self.count.into()))
    }
}

impl Table {
    /// An empty table. `epoch` must not be 0 and should be random: it tells this run from earlier ones.
    #[must_use]
    pub fn new(epoch: u32) -> Self {
        Self {
            epoch: epoch.max(1),
            version: 0,
            rows: Ordered::new(ByPage { bits: START_BITS }),
            shares: Vec::new(),
            free: Vec::new(),
            pages: vec![0; 1 << START_BITS],
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
        self.rows.order().bits
    }

    /// The version of the latest change.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many fingerprints there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no fingerprint.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pages that changed after `version`, oldest change first: `(version, page)`. Looks at all pages. After version 0
    /// all pages, even those that never changed: whoever has them all can be sent rows from then on.
    #[must_use]
    pub fn changed_since(&self, version: u64) -> Vec<(u64, u32)> {
        let all = version == 0 && self.version > 0;
        let pages = self.pages.iter().copied().zip(0..);
        let mut changed: Vec<_> = pages.filter(|(changed, _)| all || *changed > version).collect();
        changed.sort_unstable();
        changed
    }

    /// Keys whose rows changed after `version`, sorted: `(page, key)`. `None` if they are not known any more, or if
    /// not even one page was had then: whole pages are due.
    #[must_use]
    pub fn keys_changed_since(&self, version: u64) -> Option<Vec<(u32, u32)>> {
        let changes = self.changes.since(version, self.version).filter(|_| version > 0)?;
        let changes: Vec<_> = changes.collect();
        self.warm(&changes);
        let changes = changes.into_iter();
        let mut keys: Vec<_> = changes.map(|print| (page_of(print, self.bits()), print.0 as u32)).collect();
        keys.sort_unstable();
        keys.dedup();
        Some(keys)
    }

    /// How many rows a page has, on average. To count one's would mean to read it.
    #[must_use]
    pub fn rows_per_page(&self) -> usize {
        self.len() >> self.bits()
    }

    /// Reads ahead of changes to these.
    pub(super) fn warm(&self, fingerprints: &[Fingerprint]) {
        self.rows.warm(fingerprints.iter().map(|print| self.rows.order().place(*print)));
    }

    /// A block that completes `fingerprint` had this share, and now has that.
    pub(super) fn change(&mut self, fingerprint: Fingerprint, was: Option<Share>, is: Option<Share>) {
        if was == is {
            return;
        }
        self.renew(page_of(fingerprint, self.bits()));
        self.changes.note(self.version, fingerprint);
        let (place, same) = (self.rows.order().place(fingerprint), |row: &Row| row.fingerprint == fingerprint);
        let row = match self.rows.find_mut(place, same) {
            Ok(row) => row,
            Err(at) => {
                if let Some(share) = is {
                    self.rows.insert_at(at, Row::new(fingerprint, share));
                }
                return;
            }
        };
        match (row.only(), was, is) {
            (Some((share, 1)), Some(was), Some(is)) if share == was => *row = Row::new(fingerprint, is),
            (Some((share, 1)), Some(was), None) if share == was => drop(self.rows.remove(place, same)),
            (Some((share, _)), Some(was), None) if share == was => row.count -= 1,
            (Some((share, _)), None, Some(is)) if share == is && row.count < u16::MAX => row.count += 1,
            (only, was, is) => {
                let number = match only {
                    None => row.tokens,
                    Some((share, count)) => {
                        let number = self.free.pop().unwrap_or(self.shares.len() as u32);
                        if self.shares.len() <= number as usize {
                            self.shares.push(Shares::default());
                        }
                        if let Some(shares) = self.shares.get_mut(number as usize) {
                            shares.add(share, count);
                        }
                        (row.holder, row.tokens, row.count) = (MANY, number, 1);
                        number
                    }
                };
                let Some(shares) = self.shares.get_mut(number as usize) else { return };
                was.into_iter().for_each(|was| shares.remove(was));
                is.into_iter().for_each(|is| shares.add(is, 1));
                // What fits into the row goes back there.
                let fits = shares.only().and_then(|(share, count)| Some((share, u16::try_from(count).ok()?)));
                if let Some((share, count)) = fits {
                    *row = Row { count, ..Row::new(fingerprint, share) };
                }
                if shares.is_empty() {
                    self.rows.remove(place, same);
                } else if fits.is_none() {
                    return;
                }
                if let Some(shares) = self.shares.get_mut(number as usize) {
                    *shares = Shares::default();
                }
                self.free.push(number);
            }
        }
    }

    fn rows(&self, page: u32) -> impl Iterator<Item = &Row> + Clone {
        let order = self.rows.order();
        // There is nothing in pages beyond the last.
        let nothing = (u64::MAX, Some(u64::MAX));
        let (start, end) = order.start(page).map_or(nothing, |start| (start, order.start(page + 1)));
        self.rows.range(start, end)
    }

    /// Who holds a row's fingerprint, and the tokens.
    fn many(&self, row: &Row, holders: &mut Vec<(Slot, Tier)>) -> Tokens {
        holders.clear();
        match row.only() {
            Some((share, _)) => {
                holders.extend(holder(share.holder));
                share.tokens
            }
            None => {
                let Some(shares) = self.shares.get(row.tokens as usize) else { return Tokens(0) };
                holders.extend(shares.holders());
                shares.tokens()
            }
        }
    }

    /// A page's bytes.
    pub(super) fn page(&self, page: u32) -> Vec<u8> {
        let rows = self.rows(page);
        let mut out = PageWriter::new(self.epoch, self.version, rows.clone().count());
        let (mut rows, mut holders, mut before) = (rows.peekable(), Vec::new(), None);
        while let Some(row) = rows.next() {
            let key = row.key();
            // Two fingerprints with one key: neither can be told from the other, so neither is offered.
            if before.replace(key) != Some(key) && rows.peek().is_none_or(|next| next.key() != key) {
                self.write(&mut out, row, &mut holders);
            }
        }
        out.finish()
    }

    /// What the page says of these keys, which are sorted, as rows to be laid over it.
    pub(super) fn rows_of(&self, page: u32, keys: impl ExactSizeIterator<Item = u32>) -> Vec<u8> {
        let (mut out, mut holders) = (PageWriter::of_rows(keys.len()), Vec::new());
        for key in keys {
            let mut rows = self.rows_with(page, key);
            match (rows.next(), rows.next()) {
                (Some(row), None) if self.write(&mut out, row, &mut holders) => {}
                _ => out.gone(key),
            }
        }
        out.finish()
    }

    fn rows_with(&self, page: u32, key: u32) -> impl Iterator<Item = &Row> {
        let start = self.rows.order().start(page).map(|start| start | u64::from(key) << (32 - self.bits()));
        // There is nothing in pages beyond the last.
        start.into_iter().flat_map(|place| self.rows.of(place))
    }

    /// Writes a row's entry; `holders` is for use here. False if it is left out.
    fn write(&self, out: &mut PageWriter, row: &Row, holders: &mut Vec<(Slot, Tier)>) -> bool {
        match row.only() {
            Some((share, _)) => {
                out.one(row.key(), share.holder, granules(share.tokens));
                true
            }
            None => {
                let tokens = self.many(row, holders);
                out.many(row.key(), holders, granules(tokens))
            }
        }
    }

    /// A page's entries by fingerprint, those included that pages leave out as they share a key.
    pub(super) fn entries(&self, page: u32) -> Vec<PageEntry> {
        let entry = |row: &Row| {
            let mut holders = Vec::new();
            let tokens = self.many(row, &mut holders);
            PageEntry { fingerprint: row.fingerprint, tokens, holders }
        };
        let mut entries: Vec<_> = self.rows(page).map(entry).collect();
        entries.sort_unstable_by_key(|entry| entry.fingerprint);
        entries
    }

    /// Doubles the number of pages while they are too full. Another layout is another epoch: filters start afresh.
    pub(super) fn grow(&mut self) {
        let before = self.bits();
        while self.bits() < MAX_BITS && self.len() > ROWS_PER_PAGE << self.bits() {
            self.split();
        }
        if self.bits() == before {
            return;
        }
        self.pages = vec![0; 1 << self.bits()];
        (0..1 << self.bits()).for_each(|number| self.renew(number));
        self.changes.forget(self.version);
        self.epoch = self.epoch.checked_add(1).unwrap_or(1);
    }

    /// Cuts each page in two. Rows stay sorted within their halves.
    fn split(&mut self) {
        let bits = self.bits() + 1;
        let of = |page: u32| self.rows(page >> 1).filter(move |row| page_of(row.fingerprint, bits) == page).copied();
        self.rows = self.rows.reordered(ByPage { bits }, (0..1 << bits).flat_map(of));
    }

    /// Gives a page a new version.
    fn renew(&mut self, number: u32) {
        self.version += 1;
        if let Some(page) = self.pages.get_mut(number as usize) {
            *page = self.version;
        }
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.rows.bytes()
            + super::allocated::<Shares>(self.shares.capacity())
            + self.shares.iter().map(Shares::bytes).sum::<usize>()
            + super::allocated::<u32>(self.free.capacity())
            + super::allocated::<u64>(self.pages.capacity())
            + self.changes.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use affinity::page::{encode_page, one_holder};

    fn fingerprint(i: u64) -> Fingerprint {
        Fingerprint(i.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn share(slot: u16, tokens: u32) -> Option<Share> {
        Some(Share { holder: one_holder(Slot(slot), Tier::Gpu), tokens: Tokens(tokens) })
    }

    #[test]
    fn changes_are_told_oldest_first_and_only_once_seen() {
        let mut table = Table::new(7);
        assert_eq!(table.changed_since(0), []);
        for i in 0..200 {
            table.change(fingerprint(i), None, share(0, 16));
        }
        let all = table.changed_since(0);
        assert!(all.len() == 64 && all.is_sorted());
        let (half, _) = all[all.len() / 2];
        assert_eq!(table.changed_since(half), all[all.len() / 2 + 1..]);
        assert_eq!(table.changed_since(table.version()), []);
        table.change(fingerprint(3), share(0, 16), share(9, 16));
        assert_eq!(table.changed_since(all[all.len() - 1].0).len(), 1);
        assert_eq!(table.changed_since(0).len(), all.len(), "none is lost, none twice");
    }

    #[test]
    fn keys_that_changed_are_told_by_page_unless_too_much_did() {
        let mut table = Table::new(7);
        for i in 0..200 {
            table.change(fingerprint(i), None, share(0, 16));
        }
        assert_eq!(table.keys_changed_since(0), None, "who has no pages cannot use rows");
        let seen = table.version();
        let mut expected: Vec<_> =
            [3, 5, 300].map(|i| (page_of(fingerprint(i), table.bits()), fingerprint(i).0 as u32)).to_vec();
        expected.sort_unstable();
        for i in [3, 5, 3, 300] {
            table.change(fingerprint(i), None, share(9, 16));
        }
        table.change(fingerprint(5), share(9, 16), None);
        assert_eq!(table.keys_changed_since(seen), Some(expected));
        for i in 1_000..101_000 {
            table.change(fingerprint(i), None, share(0, 16));
        }
        assert_eq!(table.keys_changed_since(seen), None);
        let seen = table.version();
        table.grow();
        assert_eq!(table.keys_changed_since(seen), None, "of another layout");
        assert_eq!(table.keys_changed_since(table.version()), Some(vec![]));
    }

    #[test]
    fn a_row_says_who_holds_any_of_its_blocks_however_many_they_are() {
        let mut table = Table::new(7);
        let print = fingerprint(1);
        let page = page_of(print, table.bits());
        let says = |table: &Table| {
            let entries = table.entries(page);
            assert_eq!(table.page(page), encode_page(table.epoch(), table.version(), &entries));
            let entry = |e: &PageEntry| (e.tokens.0, e.holders.iter().map(|(slot, _)| slot.0).collect::<Vec<_>>());
            entries.iter().map(entry).collect::<Vec<_>>()
        };
        // More blocks than a row can count.
        let many = 70_000;
        (0..many).for_each(|_| table.change(print, None, share(5, 32)));
        assert_eq!((table.len(), says(&table)), (1, vec![(32, vec![5])]));
        table.change(print, None, share(2, 16));
        table.change(print, share(5, 32), share(7, 32));
        assert_eq!(says(&table), [(16, vec![2, 5, 7])]);
        table.change(print, share(2, 16), None);
        assert_eq!(says(&table), [(32, vec![5, 7])]);
        (1..many).for_each(|_| table.change(print, share(5, 32), None));
        assert_eq!((says(&table), table.shares[0].bytes()), (vec![(32, vec![7])], 0));
        table.change(print, share(7, 32), None);
        assert!(table.is_empty() && table.free == [0]);
    }

    #[test]
    fn growing_keeps_every_row_and_changes_the_epoch() {
        let mut table = Table::new(u32::MAX);
        let n = 40_000;
        (0..n).for_each(|i| table.change(fingerprint(i), None, share(0, 16)));
        let seen = table.version();
        table.grow();
        assert_eq!((table.bits(), table.epoch(), table.len()), (8, 1, n as usize));
        let new = table.changed_since(seen);
        assert_eq!(new.len(), 256, "every page is new");
        assert!(
            new.windows(2).all(|pair| pair[0].0 < pair[1].0),
            "pages that share a version get lost between replies"
        );
        let entries: usize = (0..256).map(|page| table.entries(page).len()).sum();
        let belong = |page: u32| table.entries(page).iter().all(|e| page_of(e.fingerprint, 8) == page);
        assert!(entries == n as usize && (0..256).all(belong));
        let fixed = table.changes.bytes();
        let full = table.bytes() - fixed;
        (0..n).for_each(|i| table.change(fingerprint(i), share(0, 16), None));
        let left = table.bytes() - fixed;
        assert!(table.is_empty() && left < full / 10, "{left} of {full}");
        let epoch = table.epoch();
        table.grow();
        assert_eq!(table.epoch(), epoch);
    }

    /// The last page's range has no end.
    #[test]
    fn keys_at_the_ends_of_pages_stay_in_their_pages() {
        let mut table = Table::new(7);
        let prints = |page: u64| [0, u32::MAX].map(|key| Fingerprint(page << 58 | u64::from(key)));
        for page in 0..64 {
            prints(page).into_iter().for_each(|print| table.change(print, None, share(1, 16)));
        }
        for page in 0..64 {
            let entries = table.entries(page);
            assert!(entries.iter().map(|e| e.fingerprint).eq(prints(page.into())), "page {page}");
        }
    }
}
