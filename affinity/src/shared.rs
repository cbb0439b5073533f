//! How a gateway takes over replies to its syncs: what is written to shared data, by compare-and-swap.
//!
//! **Invariants:** a reply is applied in order and its versions are written last, so whoever dies half-way leaves a state
//! from which the same reply can be asked for and applied again. A reply counts only while the versions that it was asked
//! with are the ones there: a late one is dropped. Where two VMs apply replies at once, pages are only brought forward
//! within their epoch ([`crate::rows`]), and nothing is written over what the other has claimed by then. Whoever finds at
//! the end that the versions were written meanwhile claims nothing, and everything comes again. Rows that cannot be laid
//! over their page claim nothing of the table: it comes again as whole pages.
//!
//! Deliberately absent: a lock. A VM that writes an older fleet page over one that another wrote and is about to claim, and
//! dies before it finds that out, leaves it there until the fleet changes next.

use crate::rows::{News, update};
use crate::sync::{End, Frame, Versions, read_end, read_frames};

/// Something that a gateway keeps in shared data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// [`Versions`]: what all the rest is as of.
    Versions,
    /// The fleet page.
    Fleet,
    /// The profiles page.
    Profiles,
    /// The table's page of this number.
    Page(u32),
}

/// Shared data, which other VMs read and write at the same time.
pub trait Shared {
    /// What is there, and the number that it got when it was written.
    fn read(&self, place: Place) -> Option<(Vec<u8>, u32)>;
    /// Writes if what is there still has that number, or, with `None`, if there is nothing.
    fn swap(&self, place: Place, bytes: &[u8], number: Option<u32>) -> bool;
    /// Writes.
    fn write(&self, place: Place, bytes: &[u8]);
    /// Takes placements of other gateways ([`Frame::Placements`]).
    fn placements(&self, bytes: &[u8]);
}

/// What a gateway has, and the number that this has in shared data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Had {
    /// What it has; nothing, if nothing is there.
    pub versions: Versions,
    /// `None`: nothing is there.
    pub number: Option<u32>,
}

/// What became of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It was cut off or makes no sense. Nothing was written.
    Nonsense,
    /// Somebody applied another reply since it was asked for. Nothing was written: ask again.
    Late,
    /// It ended with this.
    Taken {
        /// What it says at its end.
        end: End,
        /// Whether all of it could be written, and is claimed.
        whole: bool,
    },
}

/// What this gateway has.
pub fn had(shared: &impl Shared) -> Had {
    let there = shared.read(Place::Versions);
    there.map_or_else(Had::default, |(bytes, number)| Had {
        versions: Versions::decode(&bytes).unwrap_or_default(),
        number: Some(number),
    })
}

/// Where a frame belongs that is written to one place.
fn place_of(frame: Frame<'_>) -> Option<Place> {
    match frame {
        Frame::Page(number, _) | Frame::Rows(number, _) => Some(Place::Page(number)),
        Frame::Fleet(_) => Some(Place::Fleet),
        Frame::Profiles(_) => Some(Place::Profiles),
        Frame::Placements(_) | Frame::End(_) => None,
    }
}

/// Writes a reply to shared data, to a request with what was [`had`] then.
pub fn apply(shared: &impl Shared, body: &[u8], asked: Had) -> Applied {
    let Some(end) = read_end(body) else { return Applied::Nonsense };
    // Of an earlier epoch, it would write over pages that are claimed; and undo it where somebody claimed nothing.
    if had(shared).number != asked.number {
        return Applied::Late;
    }
    let (epoch, as_of) = (end.have.epoch, end.have.table);
    let mut have = end.have;
    for frame in read_frames(body) {
        // In this order: what is claimed from here on is not written over.
        let there = place_of(frame).and_then(|place| shared.read(place));
        if had(shared).number != asked.number {
            break;
        }
        let number = there.as_ref().map(|(_, number)| *number);
        match frame {
            Frame::Page(at, bytes) | Frame::Rows(at, bytes) => {
                let whole = matches!(frame, Frame::Page(..));
                let news = if whole { News::Whole(bytes) } else { News::Rows { rows: bytes, epoch, as_of } };
                let place = Place::Page(at);
                if !update(news, there, || shared.read(place), |bytes, number| shared.swap(place, bytes, number)) {
                    (have.table, have.pages) = (0, 0);
                }
            }
            Frame::Fleet(bytes) if !shared.swap(Place::Fleet, bytes, number) => have.fleet = 0,
            Frame::Profiles(bytes) if !shared.swap(Place::Profiles, bytes, number) => have.profiles = 0,
            Frame::Placements(bytes) => shared.placements(bytes),
            Frame::Fleet(_) | Frame::Profiles(_) | Frame::End(_) => {}
        }
    }
    let mut whole = have == end.have;
    if !shared.swap(Place::Versions, &have.encode(), asked.number) {
        // Another VM wrote a reply meanwhile: which of the two a place is from cannot be told.
        shared.write(Place::Versions, &Versions::default().encode());
        whole = false;
    }
    Applied::Taken { end, whole }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::{PageView, encode_page};
    use crate::sync::write_frame;
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;

    #[derive(Default)]
    struct Kept {
        there: RefCell<BTreeMap<Place, (Vec<u8>, u32)>>,
        writes: Cell<u32>,
        /// Pages that were read (false) or written.
        done: RefCell<Vec<(Place, bool)>>,
    }

    impl Shared for Kept {
        fn read(&self, place: Place) -> Option<(Vec<u8>, u32)> {
            self.done.borrow_mut().push((place, false));
            self.there.borrow().get(&place).cloned()
        }

        fn swap(&self, place: Place, bytes: &[u8], number: Option<u32>) -> bool {
            let same = self.there.borrow().get(&place).map(|(_, number)| *number) == number;
            if same {
                self.write(place, bytes);
            }
            same
        }

        fn write(&self, place: Place, bytes: &[u8]) {
            self.done.borrow_mut().push((place, true));
            self.writes.set(self.writes.get() + 1);
            self.there.borrow_mut().insert(place, (bytes.to_vec(), self.writes.get()));
        }

        fn placements(&self, _: &[u8]) {}
    }

    fn reply(epoch: u32, table: u64) -> Vec<u8> {
        let mut out = Vec::new();
        write_frame(&mut out, &Frame::Page(0, &encode_page(epoch, table, &[])));
        write_frame(&mut out, &Frame::End(End { have: Versions { epoch, table, ..Versions::default() }, more: false }));
        out
    }

    /// A reply may name tens of thousands of pages, and a VM never gives memory back.
    #[test]
    fn one_page_is_held_at_a_time() {
        let kept = Kept::default();
        let mut out = Vec::new();
        (0..3).for_each(|page| write_frame(&mut out, &Frame::Page(page, &encode_page(8, 5, &[]))));
        write_frame(&mut out, &Frame::End(End { have: Versions { epoch: 8, ..Versions::default() }, more: false }));
        assert!(matches!(apply(&kept, &out, had(&kept)), Applied::Taken { whole: true, .. }));
        let of_pages = |(place, _): &(Place, bool)| matches!(place, Place::Page(_));
        let done: Vec<_> = kept.done.borrow().iter().copied().filter(of_pages).collect();
        assert_eq!(done, [0, 1, 2].map(|page| [(Place::Page(page), false), (Place::Page(page), true)]).concat());
    }

    /// A VM stalls, another takes its lease and goes on with a table that grew; then the first one's reply is read.
    #[test]
    fn a_reply_that_was_overtaken_is_dropped() {
        let kept = Kept::default();
        let asked = had(&kept);
        assert!(matches!(apply(&kept, &reply(8, 5), asked), Applied::Taken { whole: true, .. }));
        let now = had(&kept);
        assert_eq!((now.versions.epoch, now.versions.table), (8, 5));
        assert_eq!(apply(&kept, &reply(7, 4), asked), Applied::Late);
        assert_eq!(had(&kept), now);
        assert_eq!(PageView::parse(&kept.read(Place::Page(0)).unwrap().0).unwrap().epoch, 8);
        assert!(matches!(apply(&kept, &reply(8, 6), now), Applied::Taken { whole: true, .. }));
        let cut = reply(8, 7);
        assert_eq!(apply(&kept, &cut[..cut.len() - 1], had(&kept)), Applied::Nonsense);
    }
}
