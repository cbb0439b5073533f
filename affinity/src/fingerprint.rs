//! Fingerprints of byte prefixes at a fixed stride.
//!
//! `fp_0` is the namespace ([`root`]); `fp_k = chain(fp_{k-1}, content(bytes[(k-1)S..kS]))`. Equal fingerprints
//! therefore mean equal namespace and equal bytes up to `kS`, but for a chance of about 2^-64.
//!
//! The content hash is a chain of 8-byte words within one stride and starts afresh at each stride. That buys two
//! things at once: strides are independent, so [`fingerprints`] runs four of them side by side and hides the
//! multiplier's latency; and the state in the middle of a stride is two words ([`Chain`], 32 bytes), so the indexer
//! can keep one per cached block. A wide hash (XXH64, XXH3) is as fast but its mid-stride state is 100 bytes and more.
//!
//! Deliberately absent: a secret key. A client can construct collisions, and wins a slower route for itself.

use crate::units::Bytes;

/// A chained hash of a byte prefix within a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub u64);

/// How many bytes lie between two fingerprints: a multiple of 8, from 8 to 4096.
///
/// About half a block is a good choice: `block size x 4 bytes / 2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stride(u16);

impl Stride {
    /// `None` unless `bytes` is a multiple of 8 from 8 to 4096.
    #[must_use]
    pub const fn new(bytes: u32) -> Option<Self> {
        if bytes >= 8 && bytes <= 4096 && bytes.is_multiple_of(8) { Some(Self(bytes as u16)) } else { None }
    }

    /// The stride in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }

    /// How many strides are complete within `len` bytes.
    #[must_use]
    pub fn complete(self, len: Bytes) -> u32 {
        len.0 / u32::from(self.0)
    }
}

impl Default for Stride {
    /// 128 bytes, about 32 tokens of English: half a block of 64 tokens, two blocks of 16.
    fn default() -> Self {
        Self(128)
    }
}

/// Odd constants with well-spread bits: the golden ratio, and two primes of the XXH64 family.
const WORD: u64 = 0x9E37_79B9_7F4A_7C15;
const STEP: u64 = 0xC2B2_AE3D_27D4_EB4F;
const LAST: u64 = 0x1656_67B1_9E37_79F9;

/// Mixes one word into a content hash. A bijection of `h` for every `w` and of `w` for every `h`.
#[inline(always)]
const fn word(h: u64, w: u64) -> u64 {
    mix(h ^ w)
}

#[inline(always)]
const fn mix(h: u64) -> u64 {
    let h = h.wrapping_mul(WORD);
    h ^ (h >> 32)
}

/// Links a stride's content hash to the prefix before it.
#[inline(always)]
const fn link(prefix: u64, content: u64) -> u64 {
    let h = (prefix.rotate_left(29) ^ content).wrapping_mul(STEP);
    let h = (h ^ (h >> 29)).wrapping_mul(LAST);
    h ^ (h >> 32)
}

/// The namespace of a prompt: the model or LoRA adapter that answers, and the cache salt if there is one.
/// Prompts of different namespaces never share a fingerprint, as their KV is never shared either.
#[must_use]
pub fn root(model: &str, salt: Option<&str>) -> Fingerprint {
    let mut h = content(model.as_bytes(), model.len() as u64);
    if let Some(salt) = salt {
        h = link(h, content(salt.as_bytes(), !(salt.len() as u64)));
    }
    Fingerprint(link(h, LAST))
}

/// Content hash of a short string, seeded; the last word is padded with zeros.
fn content(bytes: &[u8], seed: u64) -> u64 {
    bytes.chunks(8).fold(word(LAST, seed), |h, chunk| word(h, load(chunk)))
}

/// Up to 8 bytes, little-endian, padded with zeros.
#[inline(always)]
fn load(chunk: &[u8]) -> u64 {
    if let Ok(full) = <[u8; 8]>::try_from(chunk) {
        return u64::from_le_bytes(full);
    }
    let (mut w, mut bits, mut rest) = (0, 0, chunk);
    if let Some((four, behind)) = rest.split_first_chunk() {
        (w, bits, rest) = (u64::from(u32::from_le_bytes(*four)), 32, behind);
    }
    if let Some((two, behind)) = rest.split_first_chunk() {
        (w, bits, rest) = (w | u64::from(u16::from_le_bytes(*two)) << bits, bits + 16, behind);
    }
    rest.first().map_or(w, |one| w | u64::from(*one) << bits)
}

#[inline(always)]
fn stride_content(stride: &[u8]) -> u64 {
    let (words, _) = stride.as_chunks::<8>();
    words.iter().fold(0, |h, w| word(h, u64::from_le_bytes(*w)))
}

/// Appends the fingerprints of all complete strides of `bytes` to `out`: the first one appended is `fp_1`.
pub fn fingerprints(stride: Stride, root: Fingerprint, bytes: &[u8], out: &mut Vec<Fingerprint>) {
    let size = stride.bytes();
    out.reserve(bytes.len() / size);
    let mut prefix = root.0;
    let mut step = |c: u64| {
        prefix = link(prefix, c);
        out.push(Fingerprint(prefix));
    };
    // Four strides side by side: their word chains do not depend on one another.
    let mut fours = bytes.chunks_exact(4 * size);
    for four in &mut fours {
        let (ab, cd) = four.split_at(2 * size);
        let ((a, b), (c, d)) = (ab.split_at(size), cd.split_at(size));
        let words =
            a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0).zip(c.as_chunks::<8>().0).zip(d.as_chunks::<8>().0);
        let mut h = (0, 0, 0, 0);
        for (((a, b), c), d) in words {
            h.0 = word(h.0, u64::from_le_bytes(*a));
            h.1 = word(h.1, u64::from_le_bytes(*b));
            h.2 = word(h.2, u64::from_le_bytes(*c));
            h.3 = word(h.3, u64::from_le_bytes(*d));
        }
        step(h.0);
        step(h.1);
        step(h.2);
        step(h.3);
    }
    for one in fours.remainder().chunks_exact(size) {
        step(stride_content(one));
    }
}

/// The running state of a prefix whose bytes arrive piece by piece: what the indexer keeps per block.
///
/// For every way of cutting bytes into pieces, the fingerprints that [`Chain::push`] reports equal those of
/// [`fingerprints`] over the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Fingerprint of the last complete stride, or the root.
    prefix: u64,
    /// Content hash of the open stride's complete words, with the open word's bytes XORed in: the hash of a word begins
    /// with that XOR, so they need no place of their own.
    content: u64,
    len: u64,
}

impl Chain {
    /// The state before the first byte of a namespace.
    #[must_use]
    pub const fn new(root: Fingerprint) -> Self {
        Self { prefix: root.0, content: 0, len: 0 }
    }

    /// The state that [`Chain::prefix`], [`Chain::content`] and [`Chain::len`] were read from.
    #[must_use]
    pub const fn from_parts(prefix: Fingerprint, content: u64, len: u64) -> Self {
        Self { prefix: prefix.0, content, len }
    }

    /// Fingerprint of the last complete stride; the root before the first.
    #[must_use]
    pub const fn prefix(&self) -> Fingerprint {
        Fingerprint(self.prefix)
    }

    /// What the open stride's bytes add to the state.
    #[must_use]
    pub const fn content(&self) -> u64 {
        self.content
    }

    /// How many bytes have been pushed.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether no byte has been pushed yet.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends `bytes` and reports the fingerprint of each stride they complete, in order.
    pub fn push(&mut self, stride: Stride, bytes: &[u8], mut complete: impl FnMut(Fingerprint)) {
        let (size, open) = (stride.bytes(), (self.len % 8) as usize);
        let mut left = size - (self.len % size as u64) as usize;
        self.len += bytes.len() as u64;
        let mut content = self.content;
        let mut rest = bytes;
        if open > 0 {
            let (head, behind) = bytes.split_at(bytes.len().min(8 - open));
            content ^= load(head) << (8 * open);
            rest = behind;
            if open + head.len() == 8 {
                content = mix(content);
            }
            left -= head.len();
        }
        loop {
            let (now, behind) = rest.split_at(rest.len().min(left));
            let (words, tail) = now.as_chunks::<8>();
            content = words.iter().fold(content, |h, w| word(h, u64::from_le_bytes(*w)));
            content ^= load(tail);
            if now.len() < left {
                break;
            }
            self.prefix = link(self.prefix, std::mem::take(&mut content));
            complete(Fingerprint(self.prefix));
            (rest, left) = (behind, size);
        }
        self.content = content;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, word for word, with nothing run side by side.
    fn naive(stride: usize, root: Fingerprint, bytes: &[u8]) -> Vec<Fingerprint> {
        let mut fp = root.0;
        bytes
            .chunks_exact(stride)
            .map(|s| {
                let c = s.chunks(8).fold(0, |h, w| word(h, u64::from_le_bytes(w.try_into().unwrap())));
                fp = link(fp, c);
                Fingerprint(fp)
            })
            .collect()
    }

    proptest! {
        #[test]
        fn whole_pieces_and_definition_agree(
            bytes in proptest::collection::vec(any::<u8>(), 0..3000),
            words in 1u32..40,
            cuts in proptest::collection::vec(0usize..200, 0..60),
        ) {
            let stride = Stride::new(words * 8).unwrap();
            let root = root("m", None);
            let mut whole = Vec::new();
            fingerprints(stride, root, &bytes, &mut whole);
            prop_assert_eq!(&whole, &naive(stride.bytes(), root, &bytes));
            let (mut chain, mut pieces, mut rest) = (Chain::new(root), Vec::new(), bytes.as_slice());
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                chain.push(stride, now, |fp| pieces.push(fp));
                rest = later;
            }
            chain.push(stride, rest, |fp| pieces.push(fp));
            prop_assert_eq!(chain.len(), bytes.len() as u64);
            prop_assert_eq!(whole, pieces);
        }

        #[test]
        fn one_changed_byte_changes_every_later_fingerprint_and_no_earlier_one(
            bytes in proptest::collection::vec(any::<u8>(), 128..1024), at in any::<prop::sample::Index>(), flip in 1u8..,
        ) {
            let (stride, root) = (Stride::new(64).unwrap(), root("m", None));
            let (mut a, mut b) = (Vec::new(), Vec::new());
            fingerprints(stride, root, &bytes, &mut a);
            let at = at.index(bytes.len());
            let mut other = bytes;
            other[at] ^= flip;
            fingerprints(stride, root, &other, &mut b);
            for (k, (a, b)) in a.iter().zip(&b).enumerate() {
                prop_assert_eq!(a == b, k < at / 64);
            }
        }
    }

    #[test]
    fn namespaces_do_not_meet() {
        let all = [
            root("a", None),
            root("b", None),
            root("a", Some("")),
            root("a", Some("b")),
            root("ab", None),
            root("a\0", None),
            root("", None),
        ];
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn no_collision_among_a_million_near_equal_strides() {
        let (stride, root) = (Stride::default(), root("m", None));
        let mut seen = std::collections::HashSet::new();
        let (mut bytes, mut out) = ([b' '; 128], Vec::new());
        for i in 0u32..1_000_000 {
            // Differences in two neighbouring words, where a weak chain would cancel.
            bytes[..4].copy_from_slice(&i.to_le_bytes());
            bytes[8..12].copy_from_slice(&i.reverse_bits().to_le_bytes());
            out.clear();
            fingerprints(stride, root, &bytes, &mut out);
            assert!(seen.insert(out[0]));
        }
        // Pages are cut by the top bits and keyed by the low 32: both halves must be spread.
        let low: std::collections::HashSet<u32> = seen.iter().map(|f| f.0 as u32).collect();
        assert!(low.len() > 999_700, "low halves collide: {}", low.len());
    }

    #[test]
    fn golden_values_pin_the_format() {
        let mut out = Vec::new();
        fingerprints(Stride::default(), root("tiny", Some("salt")), &[b'x'; 256], &mut out);
        assert_eq!(out, [Fingerprint(GOLDEN[0]), Fingerprint(GOLDEN[1])]);
    }

    /// Printed once; a change means that indexer and filter of different versions no longer agree.
    const GOLDEN: [u64; 2] = [11640383270175638538, 9569415904860549636];
}
