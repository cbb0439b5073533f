//! Looking through long text, many bytes at a time: 16 with WebAssembly's SIMD, which every Envoy's V8 has; 8 elsewhere.
//!
//! A crate of its own, as it is compiled for speed at any size, which `affinity` is not (profile `wasm`): what goes over
//! every byte of a body is here, what goes over its messages is not. Like `affinity`, it knows no host.
//!
//! Words are copied one by one: a copy of a whole block would be a call in WebAssembly.

mod lift;
mod needles;

pub use lift::Lifted;
pub use needles::Needles;

/// Bytes that are copied and looked at together.
const BLOCK: usize = 16;

/// Copies the text of a JSON string, with its short escapes resolved, up to its quote, a `\u` escape, a wrong character,
/// or to less than a block before an end. How many bytes were read, and how many written; behind these, `to` may be
/// overwritten for a block.
///
/// Escapes are resolved here, within the loop: prompts have one every line, and leaving the loop for each took as long
/// as all the copying.
#[cfg_attr(target_arch = "wasm32", target_feature(enable = "simd128"))]
fn copy_text(specials: &Specials, from: &[u8], to: &mut [u8]) -> (usize, usize) {
    let (mut read, mut written) = (0, 0);
    loop {
        let block = from.get(read..).and_then(<[u8]>::first_chunk::<BLOCK>);
        let copy = to.get_mut(written..).and_then(<[u8]>::first_chunk_mut::<BLOCK>);
        let (Some(block), Some(copy)) = (block, copy) else { return (read, written) };
        let words = words(block);
        for (word, copy) in words.iter().zip(copy.as_chunks_mut().0) {
            *copy = word.to_le_bytes();
        }
        let Some(plain) = specials.before(words) else {
            read += BLOCK;
            written += BLOCK;
            continue;
        };
        read += plain;
        written += plain;
        let escape = (from.get(read), from.get(read + 1).and_then(|letter| simple_escape(*letter)));
        let ((Some(b'\\'), Some(byte)), Some(to)) = (escape, to.get_mut(written)) else { return (read, written) };
        *to = byte;
        read += 2;
        written += 1;
    }
}

/// How many bytes come before a quote, a backslash or a control character, or less than a block before the end.
#[cfg_attr(target_arch = "wasm32", target_feature(enable = "simd128"))]
fn plain(specials: &Specials, text: &[u8]) -> usize {
    let blocks = text.as_chunks().0;
    let special = blocks.iter().enumerate().find_map(|(number, block)| Some((number, specials.before(words(block))?)));
    special.map_or(blocks.len() * BLOCK, |(number, before)| number * BLOCK + before)
}

/// What a letter behind a backslash stands for; `u` stands for nothing by itself.
fn simple_escape(letter: u8) -> Option<u8> {
    Some(match letter {
        b'n' => b'\n',
        b'"' | b'\\' | b'/' => letter,
        b't' => b'\t',
        b'r' => b'\r',
        b'b' => 0x08,
        b'f' => 0x0c,
        _ => return None,
    })
}

/// Whether `found` is true of any place of a byte.
pub fn any_place(text: &[u8], byte: u8, found: impl Fn(usize) -> bool) -> bool {
    any_place_of(text, [byte], found)
}

/// The same of some bytes.
#[cfg_attr(target_arch = "wasm32", target_feature(enable = "simd128"))]
fn any_place_of<const N: usize>(text: &[u8], bytes: [u8; N], found: impl Fn(usize) -> bool) -> bool {
    let here = |from: usize, part: &[u8]| (from..).zip(part).any(|(at, byte)| bytes.contains(byte) && found(at));
    let (blocks, last) = text.as_chunks::<BLOCK>();
    let (fours, others) = blocks.as_chunks::<4>();
    for (number, four) in fours.iter().enumerate() {
        if may_hold(four, bytes) && here(number * 4 * BLOCK, four.as_flattened()) {
            return true;
        }
    }
    for (number, block) in (fours.len() * 4..).zip(others) {
        if may_hold(&[*block], bytes) && here(number * BLOCK, block) {
            return true;
        }
    }
    here(text.len() - last.len(), last)
}

/// The highest byte of a text, 0 if it is empty.
#[cfg_attr(target_arch = "wasm32", target_feature(enable = "simd128"))]
#[must_use]
pub fn highest(text: &[u8]) -> u8 {
    text.iter().fold(0, |highest, byte| highest.max(*byte))
}

#[inline(always)]
fn words(block: &[u8; BLOCK]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *block;
    [u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes([i, j, k, l, m, n, o, p])]
}

#[cfg(target_arch = "wasm32")]
use simd::{Specials, may_hold};
#[cfg(not(target_arch = "wasm32"))]
use swar::{Specials, may_hold};

#[cfg(target_arch = "wasm32")]
mod simd {
    use super::{BLOCK, words};
    use core::arch::wasm32::{u8x16_bitmask, u8x16_eq, u8x16_le, u8x16_splat, u64x2, v128, v128_any_true, v128_or};
    use core::hint::black_box;

    /// Quotes, backslashes, control characters. Not constants to the compiler: V8 makes these anew wherever they are
    /// used, once for each block.
    #[derive(Clone, Copy)]
    pub struct Specials {
        quote: v128,
        backslash: v128,
        control: v128,
    }

    impl Specials {
        #[inline(always)]
        pub fn new() -> Self {
            let all = |byte| u8x16_splat(black_box(byte));
            Self { quote: all(b'"'), backslash: all(b'\\'), control: all(0x1f) }
        }

        /// How many bytes come before the first.
        #[inline(always)]
        pub fn before(&self, [low, high]: [u64; 2]) -> Option<usize> {
            let block = u64x2(low, high);
            let ends = v128_or(u8x16_eq(block, self.quote), u8x16_eq(block, self.backslash));
            let special = u8x16_bitmask(v128_or(ends, u8x16_le(block, self.control)));
            (special != 0).then(|| special.trailing_zeros() as usize)
        }
    }

    /// Whether any of the bytes is in these blocks.
    #[inline(always)]
    pub fn may_hold<const M: usize, const N: usize>(blocks: &[[u8; BLOCK]; M], bytes: [u8; N]) -> bool {
        let mut same = u8x16_splat(0);
        for block in blocks {
            let [low, high] = words(block);
            let block = u64x2(low, high);
            for byte in bytes {
                same = v128_or(same, u8x16_eq(block, u8x16_splat(byte)));
            }
        }
        v128_any_true(same)
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod swar {
    use super::{BLOCK, words};

    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;

    /// Quotes, backslashes, control characters.
    #[derive(Clone, Copy)]
    pub struct Specials;

    impl Specials {
        pub fn new() -> Self {
            Self
        }

        /// How many bytes come before the first.
        pub fn before(&self, words: [u64; 2]) -> Option<usize> {
            let [low, high] = words.map(|word| {
                // With its bit 1 flipped, the quote comes right after the control characters. Exact up to the first.
                let quote = (word ^ (ONES * 0x02)).wrapping_sub(ONES * 0x21);
                let backslash = (word ^ (ONES * u64::from(b'\\'))).wrapping_sub(ONES);
                (quote | backslash) & !word & HIGH
            });
            match (low, high) {
                (0, 0) => None,
                (0, high) => Some(8 + high.trailing_zeros() as usize / 8),
                (low, _) => Some(low.trailing_zeros() as usize / 8),
            }
        }
    }

    /// Whether any of the bytes is in these blocks.
    #[inline(always)]
    pub fn may_hold<const M: usize, const N: usize>(blocks: &[[u8; BLOCK]; M], bytes: [u8; N]) -> bool {
        let mut same = 0;
        for word in blocks.iter().flat_map(words) {
            for byte in bytes {
                let differing = word ^ (ONES * u64::from(byte));
                same |= differing.wrapping_sub(ONES) & !differing;
            }
        }
        same & HIGH != 0
    }
}
