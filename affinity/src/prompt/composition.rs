//! Unicode's canonical composition (NFC), by the tables of `tokenizers`: those of Unicode 9.
//!
//! The crate that `tokenizers` uses would add 145 KB to the module; the same facts take 20 KB here. `composition.bin` is
//! made of that crate by a test below, which also compares the two.

use crate::order::sort_by_key;
use std::iter::once;

/// Three lists of 24-bit numbers, little end first, each with its length before it: characters and their combining
/// class; composites with the two characters they are made of; characters that are never composed to, each with one
/// character of its decomposition, in order.
const TABLES: &[u8] = include_bytes!("composition.bin");

/// Characters from here on may be changed.
const FROM: char = '\u{300}';
/// Their first byte.
const FROM_BYTE: u8 = 0xCC;

/// Hangul is computed.
mod hangul {
    pub const SYLLABLES: u32 = 0xAC00;
    pub const LEADS: u32 = 0x1100;
    pub const VOWELS: u32 = 0x1161;
    pub const TAILS: u32 = 0x11A7;
    pub const LEAD_COUNT: u32 = 19;
    pub const VOWEL_COUNT: u32 = 21;
    pub const TAIL_COUNT: u32 = 28;
    pub const COUNT: u32 = LEAD_COUNT * VOWEL_COUNT * TAIL_COUNT;
}

/// The tables, made ready. All are sorted by their first characters.
#[derive(Debug, Default)]
pub(super) struct Composition {
    classes: Vec<(u32, u8)>,
    /// First, second, composite.
    pairs: Vec<(u32, u32, u32)>,
    /// Composite, first, second.
    composites: Vec<(u32, u32, u32)>,
    /// A character, and one of those that it stands for.
    others: Vec<(u32, u32)>,
    /// Those that a text may not be composed because of, by what they are.
    suspects: Vec<(u32, Suspect)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Suspect {
    /// Stays where it is unless one of a higher class is before it.
    Mark(u8),
    /// May compose with what is before it, or stands for others.
    Changes,
}

impl Composition {
    /// Reads the tables.
    pub fn new() -> Self {
        let mut this = Self::default();
        let mut numbers = TABLES.as_chunks::<3>().0.iter().map(|[a, b, c]| u32::from_le_bytes([*a, *b, *c, 0]));
        let mut next = || numbers.next().unwrap_or_default();
        for _ in 0..next() {
            this.classes.push((next(), u8::try_from(next()).unwrap_or_default()));
        }
        for _ in 0..next() {
            let (composite, first, second) = (next(), next(), next());
            this.composites.push((composite, first, second));
            this.pairs.push((first, second, composite));
        }
        for _ in 0..next() {
            this.others.push((next(), next()));
        }
        sort_by_key(&mut this.pairs, |pair| *pair);
        let changes = this.pairs.iter().map(|(_, second, _)| *second).chain(this.others.iter().map(|(c, _)| *c));
        let marks = this.classes.iter().map(|(c, class)| (*c, Suspect::Mark(*class)));
        this.suspects = changes.map(|c| (c, Suspect::Changes)).chain(marks).collect();
        // What changes comes first where a character is both.
        sort_by_key(&mut this.suspects, |(c, suspect)| (*c, *suspect != Suspect::Changes));
        this.suspects.dedup_by_key(|(c, _)| *c);
        this
    }

    /// The text composed; `None`: it is already.
    pub fn compose(&self, text: &str) -> Option<String> {
        if affinity_scan::highest(text.as_bytes()) < FROM_BYTE || self.is_composed(text) {
            return None;
        }
        let (mut out, mut run) = (String::with_capacity(text.len()), Vec::new());
        for c in text.chars() {
            self.decompose(c.into(), &mut run);
            // A starter that nothing before composes with ends what is before it.
            let Some(last) = run.last().copied().filter(|(_, class)| *class == 0) else { continue };
            let ends = run.len() > 1 && !self.is_second(last.0);
            if ends && let Some(last) = run.pop() {
                self.finish(&mut run, &mut out);
                run.push(last);
            }
        }
        self.finish(&mut run, &mut out);
        Some(out)
    }

    /// False where it may not be.
    fn is_composed(&self, text: &str) -> bool {
        let mut before = 0;
        for c in text.chars() {
            let class = match self.suspect(c) {
                None => 0,
                Some(Suspect::Changes) => return false,
                Some(Suspect::Mark(class)) => class,
            };
            if class != 0 && class < before {
                return false;
            }
            before = class;
        }
        true
    }

    fn suspect(&self, c: char) -> Option<Suspect> {
        let plain = matches!(c, '\0'..FROM | '\u{2010}'..='\u{2027}' | '\u{3001}'..='\u{3029}' | '\u{3041}'..='\u{3096}'
            | '\u{30A0}'..='\u{30FF}' | '\u{4E00}'..='\u{9FFF}' | '\u{AC00}'..='\u{D7A3}' | '\u{FF01}'..='\u{FFEF}');
        if plain {
            return None;
        }
        let code = u32::from(c);
        if is_hangul_part(code) {
            return Some(Suspect::Changes);
        }
        let at = self.suspects.binary_search_by_key(&code, |(c, _)| *c).ok()?;
        self.suspects.get(at).map(|(_, suspect)| *suspect)
    }

    fn is_second(&self, code: u32) -> bool {
        is_hangul_part(code) || char::from_u32(code).and_then(|c| self.suspect(c)) == Some(Suspect::Changes)
    }

    /// Appends what a character stands for in the end, each with its combining class.
    fn decompose(&self, code: u32, out: &mut Vec<(u32, u8)>) {
        use hangul::{COUNT, LEADS, SYLLABLES, TAIL_COUNT, TAILS, VOWEL_COUNT, VOWELS};
        if let Some(syllable) = code.checked_sub(SYLLABLES).filter(|syllable| *syllable < COUNT) {
            let (rest, tail) = (syllable / TAIL_COUNT, syllable % TAIL_COUNT);
            let parts = once(LEADS + rest / VOWEL_COUNT).chain(once(VOWELS + rest % VOWEL_COUNT));
            out.extend(parts.chain((tail > 0).then_some(TAILS + tail)).map(|part| (part, 0)));
            return;
        }
        if let Ok(at) = self.composites.binary_search_by_key(&code, |(c, ..)| *c) {
            if let Some((_, first, second)) = self.composites.get(at) {
                self.decompose(*first, out);
                self.decompose(*second, out);
            }
            return;
        }
        let from = self.others.partition_point(|(c, _)| *c < code);
        let parts = self.others.iter().skip(from).take_while(|(c, _)| *c == code);
        let before = out.len();
        out.extend(parts.map(|(_, part)| (*part, self.class(*part))));
        if out.len() == before {
            out.push((code, self.class(code)));
        }
    }

    fn class(&self, code: u32) -> u8 {
        let at = self.classes.binary_search_by_key(&code, |(c, _)| *c).ok();
        at.and_then(|at| self.classes.get(at)).map_or(0, |(_, class)| *class)
    }

    /// Orders and composes a decomposed run, and appends it.
    fn finish(&self, run: &mut Vec<(u32, u8)>, out: &mut String) {
        for marks in run.chunk_by_mut(|(_, a), (_, b)| (*a == 0) == (*b == 0)) {
            if marks.first().is_some_and(|(_, class)| *class != 0) {
                let mut sorted = marks.to_vec();
                sort_by_key(&mut sorted, |(_, class)| *class);
                marks.copy_from_slice(&sorted);
            }
        }
        let mut composed: Vec<(u32, u8)> = Vec::with_capacity(run.len());
        // Where the last starter is.
        let mut starter = None;
        for (code, class) in run.drain(..) {
            let before = starter.and_then(|at: usize| composed.get(at)).copied();
            // Nothing between it and the starter may be of the same class or a higher one, nor be a starter itself.
            let between = composed.last().filter(|_| starter.is_some_and(|at| at + 1 < composed.len()));
            let free = between.is_none_or(|(_, last)| *last < class);
            let both = before.filter(|_| free).and_then(|(first, _)| self.pair(first, code));
            match (both, starter.and_then(|at| composed.get_mut(at))) {
                (Some(both), Some(place)) => place.0 = both,
                _ => {
                    if class == 0 {
                        starter = Some(composed.len());
                    }
                    composed.push((code, class));
                }
            }
        }
        out.extend(composed.iter().filter_map(|(code, _)| char::from_u32(*code)));
    }

    fn pair(&self, first: u32, second: u32) -> Option<u32> {
        use hangul::{COUNT, LEAD_COUNT, LEADS, SYLLABLES, TAIL_COUNT, TAILS, VOWEL_COUNT, VOWELS};
        let below = |code: u32, from: u32, count: u32| code.checked_sub(from).filter(|n| *n < count);
        if let (Some(lead), Some(vowel)) = (below(first, LEADS, LEAD_COUNT), below(second, VOWELS, VOWEL_COUNT)) {
            return Some(SYLLABLES + (lead * VOWEL_COUNT + vowel) * TAIL_COUNT);
        }
        if let (Some(syllable), Some(tail)) = (below(first, SYLLABLES, COUNT), below(second, TAILS, TAIL_COUNT))
            && syllable % TAIL_COUNT == 0
            && tail > 0
        {
            return Some(first + tail);
        }
        let at = self.pairs.binary_search_by_key(&(first, second), |(a, b, _)| (*a, *b)).ok()?;
        self.pairs.get(at).map(|(.., both)| *both)
    }
}

/// A vowel or tail of a syllable that is written in parts.
fn is_hangul_part(code: u32) -> bool {
    use hangul::{TAIL_COUNT, TAILS, VOWEL_COUNT, VOWELS};
    (VOWELS..VOWELS + VOWEL_COUNT).contains(&code) || (TAILS..TAILS + TAIL_COUNT).contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::sync::LazyLock;
    use unicode_normalization_alignments::UnicodeNormalization;
    use unicode_normalization_alignments::char::{canonical_combining_class, compose, decompose_canonical};

    static COMPOSITION: LazyLock<Composition> = LazyLock::new(Composition::new);

    fn theirs(text: &str) -> String {
        text.nfc().map(|(c, _)| c).collect()
    }

    fn ours(text: &str) -> String {
        COMPOSITION.compose(text).unwrap_or_else(|| text.to_owned())
    }

    /// The tables as the crate has them.
    fn tables() -> Vec<u8> {
        let (mut classes, mut composites, mut others) = (Vec::new(), BTreeMap::new(), Vec::new());
        for c in '\0'..=char::MAX {
            let class = canonical_combining_class(c);
            if class != 0 {
                classes.extend([u32::from(c), class.into()]);
            }
            let mut parts = Vec::new();
            decompose_canonical(c, |part| parts.push(part));
            if ('\u{AC00}'..='\u{D7A3}').contains(&c) || parts == [c] {
                continue;
            }
            let (last, first) = parts.split_last().unwrap();
            let first = theirs(&first.iter().collect::<String>());
            let mut first = first.chars();
            match (first.next(), first.next()) {
                (Some(first), None) if compose(first, *last) == Some(c) => {
                    composites.insert(u32::from(c), [first, *last].map(u32::from));
                }
                _ => others.extend(parts.iter().flat_map(|part| [u32::from(c), u32::from(*part)])),
            }
        }
        let length = |count: usize| u32::try_from(count).unwrap();
        let composed = composites.iter().flat_map(|(both, [first, second])| [*both, *first, *second]);
        let numbers: Vec<u32> = once(length(classes.len() / 2))
            .chain(classes.iter().copied())
            .chain(once(length(composites.len())))
            .chain(composed)
            .chain(once(length(others.len() / 2)))
            .chain(others.iter().copied())
            .collect();
        numbers.iter().flat_map(|n| n.to_le_bytes()[..3].to_vec()).collect()
    }

    #[test]
    fn the_tables_are_the_crates() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/prompt/composition.bin");
        if std::env::var_os("WARMPATH_WRITE_TABLES").is_some() {
            std::fs::write(path, tables()).unwrap();
        }
        assert!(tables() == std::fs::read(path).unwrap(), "set WARMPATH_WRITE_TABLES to write them");
    }

    #[test]
    fn every_character_and_every_pair_of_the_tables_composes_as_in_the_crate() {
        for c in '\0'..=char::MAX {
            let text = c.to_string();
            assert_eq!(ours(&text), theirs(&text), "{c:?}");
        }
        let char = |code: &u32| char::from_u32(*code).unwrap();
        let mut seconds: Vec<char> = COMPOSITION.suspects.iter().map(|(c, _)| char(c)).collect();
        seconds.extend(['\u{1161}', '\u{11A7}', '\u{11A8}', '\u{11C2}', '\u{11C3}', '\u{1176}']);
        let firsts: Vec<char> = COMPOSITION.pairs.iter().map(|(first, ..)| char(first)).collect();
        let more = ['\u{1100}', '\u{1112}', '\u{AC00}', '\u{AC01}', '\u{D7A3}', 'a', '中'];
        for first in firsts.into_iter().chain(more).step_by(3) {
            for second in &seconds {
                let text = [first, *second].iter().collect::<String>();
                assert_eq!(ours(&text), theirs(&text), "{text:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1500))]

        #[test]
        fn texts_compose_as_in_the_crate(parts in proptest::collection::vec(prop_oneof![
            3 => "[a-zA-Z ]", 2 => "\\PC",
            4 => "[\u{300}-\u{34f}\u{5b0}-\u{5c7}\u{64b}-\u{655}\u{93c}\u{9be}\u{9c7}\u{bbe}\u{bc6}-\u{bc8}\u{d3e}\u{e38}\u{f71}-\u{f80}\u{3099}\u{309a}]",
            2 => "[\u{1100}-\u{1112}\u{1161}-\u{1175}\u{11a7}-\u{11c2}가각]", 2 => "[À-ÿḀ-ỹⓐか-ヿਲ਼שּׁ\u{958}\u{f900}\u{2126}\u{212b}\u{1d160}\u{344}]",
        ], 0..20)) {
            let text = parts.concat();
            prop_assert_eq!(ours(&text), theirs(&text), "{:?}", text);
        }
    }
}
