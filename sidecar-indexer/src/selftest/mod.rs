//! Whether what is spelled here is what the tokenizer, or an engine, makes of the same prompt.

pub mod engine;
pub mod spelling;

use std::fmt;

/// Bytes shown on each side of the first difference.
const AROUND: usize = 32;

/// Where two spellings of a prompt part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The first byte that differs.
    pub at: usize,
    /// What the tokens spell around there.
    pub theirs: String,
    /// What was spelled here.
    pub ours: String,
}

impl Difference {
    /// `None` if the two are equal.
    #[must_use]
    pub fn between(theirs: &[u8], ours: &[u8]) -> Option<Self> {
        if theirs == ours {
            return None;
        }
        let at = theirs.iter().zip(ours).take_while(|(a, b)| a == b).count();
        let around = |text: &[u8]| {
            let range = at.saturating_sub(AROUND)..text.len().min(at + AROUND);
            String::from_utf8_lossy(text.get(range).unwrap_or_default()).into_owned()
        };
        Some(Self { at, theirs: around(theirs), ours: around(ours) })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, theirs, ours } = self;
        write!(f, "from byte {at} on, its tokens spell {theirs:?} where {ours:?} is expected")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_shown_on_both_sides() {
        assert_eq!(Difference::between(b"same", b"same"), None);
        let long = "x".repeat(100);
        let found = Difference::between(format!("{long}a tail").as_bytes(), long.as_bytes()).unwrap();
        let before = "x".repeat(AROUND);
        assert_eq!(found, Difference { at: 100, theirs: format!("{before}a tail"), ours: before });
        assert!(found.to_string().contains("from byte 100"));
    }
}
