//! Predicted holders: where prompts were just sent, until events confirm it or time refutes it.
//!
//! A placement is remembered at a prompt's *marks*: strides 4, 8, 12, ... 32, then four to the octave (40, 48, 56,
//! 64, 80, ...). A longer prompt with the same beginning finds at least four fifths of it, in a handful of probes, at
//! the price of some 26 small writes for a new 30 KB prompt and none for one that its endpoint already holds.
//!
//! Each mark has one fixed place by its fingerprint, so memory is bounded and nothing needs deleting; a later
//! placement of the same mark, or a collision, simply replaces it.

use crate::fingerprint::Fingerprint;
use crate::units::{Slot, Tokens};
use crate::wire::{Reader, Write};

/// How many places there are for marks.
pub const PLACES: u32 = 1 << 14;

/// Enough for 2^26 strides: no prompt has more.
const MOST_MARKS: u32 = 92;

/// A mark as it lies in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The prefix that was sent.
    pub fingerprint: Fingerprint,
    /// Where it was sent.
    pub slot: Slot,
    /// Tokens up to here, estimated.
    pub tokens: Tokens,
    /// When it ends, in milliseconds of the host's clock.
    pub expires_ms: u64,
}

/// How much of a prompt an endpoint will soon hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// The predicted holder.
    pub slot: Slot,
    /// The deepest mark found.
    pub stride: u32,
    /// Tokens up to there, estimated.
    pub tokens: Tokens,
}

/// The strides at which a prompt of `strides` strides is marked, ascending.
pub fn marks(strides: u32) -> impl Iterator<Item = u32> {
    (1..=MOST_MARKS).map(mark).take_while(move |m| *m <= strides)
}

/// The i-th mark, from 1: multiples of 4 up to 32, then four to the octave.
fn mark(i: u32) -> u32 {
    match i {
        0..=8 => 4 * i,
        _ => {
            let (octave, quarter) = ((i - 9) / 4, (i - 9) % 4);
            // 32 x 2^octave x (1 + (quarter + 1) / 4)
            (8 << octave) * (5 + quarter)
        }
    }
}

/// The place of a mark, below [`PLACES`].
#[must_use]
pub fn place_of(fingerprint: Fingerprint) -> u32 {
    (fingerprint.0 >> 13) as u32 % PLACES
}

/// The bytes of a mark.
#[must_use]
pub fn encode_mark(mark: &Mark) -> Vec<u8> {
    let mut out = Vec::with_capacity(22);
    out.u64(mark.fingerprint.0);
    out.u16(mark.slot.0);
    out.u32(mark.tokens.0);
    out.u64(mark.expires_ms);
    out
}

/// The mark in a place; `None` if these are not the bytes of one.
#[must_use]
pub fn decode_mark(bytes: &[u8]) -> Option<Mark> {
    let mut r = Reader(bytes);
    Some(Mark {
        fingerprint: Fingerprint(r.u64()?),
        slot: Slot(r.u16()?),
        tokens: Tokens(r.u32()?),
        expires_ms: r.u64()?,
    })
}

/// The deepest live mark of a prompt that lies deeper than `beyond`, by bisection over its marks.
pub fn predict(
    prefixes: &[Fingerprint],
    beyond: u32,
    now_ms: u64,
    mut read: impl FnMut(u32) -> Option<Vec<u8>>,
) -> Option<Prediction> {
    let ruler: Vec<u32> = marks(prefixes.len() as u32).filter(|m| *m > beyond).collect();
    let (mut low, mut high, mut best) = (0, ruler.len(), None);
    while low < high {
        let middle = low + (high - low) / 2;
        let stride = *ruler.get(middle)?;
        let fingerprint = *prefixes.get(stride as usize - 1)?;
        let mark = read(place_of(fingerprint)).as_deref().and_then(decode_mark);
        match mark.filter(|m| m.fingerprint == fingerprint && m.expires_ms > now_ms) {
            Some(m) => {
                best = Some(Prediction { slot: m.slot, stride, tokens: m.tokens });
                low = middle + 1;
            }
            None => high = middle,
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn marks_start_dense_and_then_come_four_to_the_octave() {
        assert_eq!(marks(130).collect::<Vec<_>>(), [4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128]);
        assert_eq!(marks(234).count(), 19);
        assert_eq!(marks(3).count(), 0);
        assert_eq!(marks(u32::MAX).last(), Some(1 << 26));
    }

    fn prefixes(n: u64) -> Vec<Fingerprint> {
        (1..=n).map(|i| Fingerprint(i.wrapping_mul(0x9E37_79B9_7F4A_7C15))).collect()
    }

    fn put(places: &mut HashMap<u32, Vec<u8>>, prefixes: &[Fingerprint], slot: u16, expires_ms: u64) {
        for m in marks(prefixes.len() as u32) {
            let fingerprint = prefixes[m as usize - 1];
            let mark = Mark { fingerprint, slot: Slot(slot), tokens: Tokens(m * 32), expires_ms };
            places.insert(place_of(fingerprint), encode_mark(&mark));
        }
    }

    proptest! {
        #[test]
        fn a_longer_prompt_finds_four_fifths_of_what_was_sent(sent in 4u64..4000, more in 0u64..500) {
            let prefixes = prefixes(sent + more);
            let mut places = HashMap::new();
            put(&mut places, &prefixes[..sent as usize], 5, 1000);
            let found = predict(&prefixes, 0, 999, |p| places.get(&p).cloned());
            // Two marks of one prompt may share a place; then the earlier one is lost and the match is shorter.
            let distinct: std::collections::HashSet<_> =
                marks(sent as u32).map(|m| place_of(prefixes[m as usize - 1])).collect();
            if distinct.len() == marks(sent as u32).count() {
                let found = found.unwrap();
                prop_assert_eq!(found.slot, Slot(5));
                prop_assert!(u64::from(found.stride) <= sent);
                prop_assert!(u64::from(found.stride) * 5 >= sent * 4 || u64::from(found.stride) + 4 > sent);
            }
        }
    }

    #[test]
    fn an_expired_mark_or_one_of_another_prompt_predicts_nothing() {
        let prefixes = prefixes(64);
        let mut places = HashMap::new();
        put(&mut places, &prefixes, 1, 1000);
        assert!(predict(&prefixes, 0, 1000, |p| places.get(&p).cloned()).is_none());
        let other: Vec<_> = prefixes.iter().map(|f| Fingerprint(f.0 ^ 1)).collect();
        assert!(predict(&other, 0, 0, |p| places.get(&p).cloned()).is_none());
        assert!(predict(&prefixes, 64, 0, |p| places.get(&p).cloned()).is_none());
    }
}
