//! A hash table that keeps its rows sorted: a list with gaps.
//!
//! A row lies at its share of the list, or as little behind as rows before it require: finding one is mostly one miss of
//! the cache, putting one in moves a few neighbours, growing is one pass, and rows of one range lie together.
//! Keys must be spread evenly.
//!
//! **Invariants:** rows ascend by key; none lies before its home; there is no gap from a row's home up to it.

/// What rows are sorted by.
pub(super) trait Order {
    type Row: Copy;
    /// Marks a place as empty.
    const GAP: Self::Row;

    fn is_gap(row: &Self::Row) -> bool;

    /// Any number of rows may share a key.
    fn key(&self, row: &Self::Row) -> u64;
}

pub(super) struct Ordered<O: Order> {
    order: O,
    slots: Vec<O::Row>,
    /// How many homes there are; what overflows the last ones lies behind them.
    room: usize,
    len: usize,
}

/// At most so many rows in a hundred homes: then some three are looked at for one, and ten moved for a new one.
const FULLEST: usize = 80;
/// Below this the list is made smaller.
const EMPTIEST: usize = 40;

impl<O: Order> Ordered<O> {
    pub(super) fn new(order: O) -> Self {
        Self { order, slots: Vec::new(), room: 0, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn order(&self) -> &O {
        &self.order
    }

    fn home(&self, key: u64) -> usize {
        ((u128::from(key) * self.room as u128) >> 64) as usize
    }

    /// The row of this key for which `is` is true, or where it would lie.
    fn search(&self, key: u64, mut is: impl FnMut(&O::Row) -> bool) -> Result<usize, usize> {
        let home = self.home(key);
        let mut at = home;
        for row in self.slots.get(home..).unwrap_or_default() {
            if O::is_gap(row) {
                break;
            }
            let own = self.order.key(row);
            if own > key {
                break;
            }
            if own == key && is(row) {
                return Ok(at);
            }
            at += 1;
        }
        Err(at)
    }

    pub(super) fn find(&self, key: u64, is: impl FnMut(&O::Row) -> bool) -> Option<&O::Row> {
        self.search(key, is).ok().and_then(|at| self.slots.get(at))
    }

    /// The row of this key for which `is` is true, whose key must stay as it is; or where to [`Ordered::insert_at`] it.
    pub(super) fn find_mut(&mut self, key: u64, is: impl FnMut(&O::Row) -> bool) -> Result<&mut O::Row, usize> {
        let at = self.search(key, is)?;
        self.slots.get_mut(at).ok_or(at)
    }

    /// Reads the homes of these keys all at once: one by one they would be waited for.
    pub(super) fn warm(&self, keys: impl Iterator<Item = u64>) {
        let there = |key| self.slots.get(self.home(key)).is_some_and(O::is_gap);
        std::hint::black_box(keys.filter(|key| there(*key)).count());
    }

    /// Puts in one more row.
    pub(super) fn insert(&mut self, row: O::Row) {
        let (Ok(at) | Err(at)) = self.search(self.order.key(&row), |_| false);
        self.insert_at(at, row);
    }

    /// Puts in one more row, whose place was just looked for.
    pub(super) fn insert_at(&mut self, at: usize, row: O::Row) {
        if (self.len + 1) * 100 > self.room * FULLEST {
            // By half: less would be copied more often, more would lie empty.
            self.rebuild(self.room + self.room / 2 + 16);
            return self.insert(row);
        }
        self.len += 1;
        let gap = self.slots.get(at..).unwrap_or_default().iter().position(O::is_gap);
        if let Some(gap) = gap
            && let Some([place, moved @ ..]) = self.slots.get_mut(at..=at + gap)
        {
            // Row by row: there are few.
            moved.iter_mut().fold(std::mem::replace(place, row), |before, next| std::mem::replace(next, before));
        } else {
            // Behind the last home there are only rows of the last ones.
            self.slots.resize(self.slots.len().max(at), O::GAP);
            self.slots.insert(at, row);
        }
    }

    /// Takes out the row of this key for which `is` is true.
    pub(super) fn remove(&mut self, key: u64, is: impl FnMut(&O::Row) -> bool) -> Option<O::Row> {
        let at = self.search(key, is).ok()?;
        let stays = |(i, row): (usize, &O::Row)| O::is_gap(row) || self.home(self.order.key(row)) == at + 1 + i;
        let behind = self.slots.get(at + 1..).unwrap_or_default();
        let moved = behind.iter().enumerate().position(stays).unwrap_or(behind.len());
        let row = moved_left(self.slots.get_mut(at..=at + moved)?, O::GAP);
        self.len -= 1;
        if self.len * 100 < self.room * EMPTIEST {
            self.rebuild(self.len + self.len.div_ceil(2));
        }
        Some(row)
    }

    /// Rows whose keys lie in this range, in order; without `end`, up to the last.
    pub(super) fn range(&self, start: u64, end: Option<u64>) -> impl Iterator<Item = &O::Row> + Clone {
        let (first, last) = (self.edge(start), end.map_or(self.slots.len(), |end| self.edge(end)));
        self.slots.get(first..last).unwrap_or_default().iter().filter(|row| !O::is_gap(row))
    }

    /// Rows of this key.
    pub(super) fn of(&self, key: u64) -> impl Iterator<Item = &O::Row> {
        let rows = self.slots.get(self.edge(key)..).unwrap_or_default();
        rows.iter().take_while(move |row| !O::is_gap(row) && self.order.key(row) == key)
    }

    /// Where rows of this key and above begin.
    fn edge(&self, key: u64) -> usize {
        let home = self.home(key);
        let rows = self.slots.get(home..).unwrap_or_default();
        let above = rows.iter().position(|row| O::is_gap(row) || self.order.key(row) >= key);
        home + above.unwrap_or(rows.len())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &O::Row> {
        self.slots.iter().filter(|row| !O::is_gap(row))
    }

    fn rebuild(&mut self, room: usize) {
        let old = std::mem::take(&mut self.slots);
        self.fill(room, old.into_iter().filter(|row| !O::is_gap(row)));
    }

    /// A list of the same size in another order. `rows` gives all rows, in that order.
    pub(super) fn reordered(&self, order: O, rows: impl Iterator<Item = O::Row>) -> Self {
        let mut new = Self { len: self.len, ..Self::new(order) };
        new.fill(self.room, rows);
        new
    }

    fn fill(&mut self, room: usize, rows: impl Iterator<Item = O::Row>) {
        self.room = room;
        // Some rows of the last homes lie behind them.
        let mut slots = Vec::with_capacity(room + room / 64 + room.min(8));
        for row in rows {
            let home = self.home(self.order.key(&row));
            if slots.len() < home {
                slots.resize(home, O::GAP);
            }
            slots.push(row);
        }
        slots.resize(slots.len().max(room), O::GAP);
        self.slots = slots;
    }

    pub(super) fn bytes(&self) -> usize {
        super::allocated::<O::Row>(self.slots.capacity())
    }
}

/// Moves all one place to the left, and gives what was first.
fn moved_left<T: Copy>(rows: &mut [T], last: T) -> T {
    rows.iter_mut().rev().fold(last, |behind, row| std::mem::replace(row, behind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    struct Plain;

    impl Order for Plain {
        type Row = (u64, u32);
        const GAP: (u64, u32) = (0, 0);

        fn is_gap(row: &(u64, u32)) -> bool {
            row.1 == 0
        }

        fn key(&self, row: &(u64, u32)) -> u64 {
            row.0
        }
    }

    impl Ordered<Plain> {
        fn check(&self) {
            assert_eq!(self.iter().count(), self.len);
            assert!(self.iter().is_sorted_by_key(|row| row.0));
            assert!(self.slots.len() >= self.room && self.len * 100 <= self.room * FULLEST);
            for (at, row) in self.slots.iter().enumerate().filter(|(_, row)| !Plain::is_gap(row)) {
                let home = self.home(row.0);
                assert!(home <= at && self.slots[home..at].iter().all(|row| !Plain::is_gap(row)));
            }
        }
    }

    proptest! {
        /// Keys crowd at both ends, and some are shared.
        #[test]
        fn it_holds_what_a_sorted_set_holds(
            ops in proptest::collection::vec((any::<bool>(), 0u64..40, 1u32..4, 0u8..4), 0..400)
        ) {
            let (mut list, mut set) = (Ordered::new(Plain), BTreeSet::new());
            for (put, key, n, crowd) in ops {
                let key = match crowd {
                    0 => key,
                    1 => u64::MAX - key,
                    2 => 1 << 63 | key >> 3,
                    _ => key << 58,
                };
                let same = |row: &(u64, u32)| row.1 == n;
                prop_assert_eq!(list.find(key, same).is_some(), set.contains(&(key, n)));
                if put && set.insert((key, n)) {
                    list.insert((key, n));
                } else if !put {
                    prop_assert_eq!(list.remove(key, same).is_some(), set.remove(&(key, n)));
                }
                list.check();
                let sorted = |rows: &mut dyn Iterator<Item = &(u64, u32)>| rows.copied().collect::<BTreeSet<_>>();
                prop_assert_eq!(sorted(&mut list.range(key, None)), set.range((key, 0)..).copied().collect());
                let upto = set.range((key, 0)..(key.saturating_add(99), 0)).copied().collect();
                prop_assert_eq!(sorted(&mut list.range(key, Some(key.saturating_add(99)))), upto);
            }
            prop_assert_eq!(list.iter().copied().collect::<BTreeSet<_>>(), set);
        }
    }

    #[test]
    fn what_is_not_needed_is_given_back() {
        let mut list = Ordered::new(Plain);
        let key = |i: u64| i.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (0..10_000).for_each(|i| list.insert((key(i), 1)));
        assert!(list.bytes() <= 10_000 * size_of::<(u64, u32)>() * 2);
        assert!((0..10_000).all(|i| list.remove(key(i), |_| true).is_some()));
        assert_eq!((list.len(), list.bytes()), (0, 0));
    }
}
