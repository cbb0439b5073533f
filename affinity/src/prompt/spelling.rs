//! What a tokenizer does to a text before it cuts it into tokens: see [`Spelling`].
//!
//! As Hugging Face's `tokenizers` does it, on the text only: what its tokens spell comes out. Where nothing changes, as
//! nearly always, the text is looked through at memory speed and kept.

use super::Unknown;
use super::composition::Composition;
use crate::order::sort_by_key;
use crate::profile::{AddedToken, PrefixSpace, Spelling, SpellingStep};
use affinity_scan::any_place;
use std::borrow::Cow;
use std::cell::Cell;

/// SentencePiece's mark for a space.
const MARK: &str = "\u{2581}";

/// A model's [`Spelling`], made ready.
#[derive(Debug)]
pub struct Speller {
    /// Looked for in the text as it is.
    first: Tokens,
    /// Looked for in pieces that the steps were done to.
    second: Tokens,
    steps: Steps,
    prefix_space: PrefixSpace,
    marks: bool,
    /// All that can happen to a text.
    does: Does,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Nothing,
    /// Composition, and nothing beside it.
    Composes,
    More,
}

impl Speller {
    /// Makes a spelling ready.
    #[must_use]
    pub fn new(spelling: &Spelling) -> Self {
        let steps = Steps::new(&spelling.steps);
        let (second, first): (Vec<_>, Vec<_>) = spelling.added.iter().partition(|token| token.normalized);
        let strips = spelling.added.iter().any(|token| token.lstrip || token.rstrip);
        let pieces_stay = spelling.prefix_space == PrefixSpace::Never && !spelling.marks;
        let does = match spelling.steps.as_slice() {
            [] if pieces_stay && !strips => Does::Nothing,
            [SpellingStep::Nfc] if pieces_stay && !strips => Does::Composes,
            _ => Does::More,
        };
        Self {
            first: Tokens::new(first.into_iter().map(|token| (token.text.clone(), token))),
            second: Tokens::new(second.into_iter().map(|token| (steps.done(&token.text).into_owned(), token))),
            prefix_space: spelling.prefix_space,
            marks: spelling.marks,
            steps,
            does,
        }
    }

    /// Whether the tokens of `text` spell the same, if that can be told at a glance.
    #[must_use]
    pub fn keeps(&self, text: &[u8]) -> bool {
        match self.does {
            Does::Nothing => true,
            Does::Composes => simdutf8::basic::from_utf8(text).is_ok_and(|text| self.steps.compose(text).is_none()),
            Does::More => false,
        }
    }

    /// Whether [`Speller::keeps`] is worth asking.
    #[must_use]
    pub fn may_keep(&self) -> bool {
        self.does != Does::More
    }

    /// The text that the tokens of `text` spell, without what is put around prompts.
    ///
    /// # Errors
    /// When it depends on what counts as a word, and that is not known of a character.
    pub fn spell(&self, text: String) -> Result<String, Unknown> {
        match self.does {
            Does::Nothing => return Ok(text),
            Does::Composes if self.steps.compose(&text).is_none() => return Ok(text),
            Does::Composes | Does::More => {}
        }
        self.spelled(&text).map(|(spelled, _)| spelled)
    }

    /// The same of a text that goes on in a way that is not known: what is spelled however it goes on.
    ///
    /// # Errors
    /// As above.
    pub fn spell_start(&self, text: String) -> Result<String, Unknown> {
        if self.does == Does::Nothing {
            return Ok(text);
        }
        let (mut spelled, sure) = self.spelled(&text)?;
        // No character composes with one before an ASCII one.
        let ascii = || spelled.bytes().rposition(|byte| byte.is_ascii());
        spelled.truncate(if self.does == Does::Composes { ascii().unwrap_or(0) } else { sure });
        Ok(spelled)
    }

    /// The text's spelling, and how much of it stays if the text goes on: it ends with a token.
    fn spelled(&self, text: &str) -> Result<(String, usize), Unknown> {
        let mut out = String::with_capacity(text.len() + 16);
        let (mut sure, decided) = (0, text.len().saturating_sub(self.first.longest()));
        self.first.split(text, |piece, at| match piece {
            Found::Token(token) => {
                out.push_str(token);
                if at + token.len() <= decided {
                    sure = out.len();
                }
                Ok(())
            }
            Found::Text(piece) => {
                let piece = self.steps.done(piece);
                self.second.split(&piece, |part, within| {
                    match part {
                        Found::Token(token) => out.push_str(token),
                        Found::Text(part) => self.put(part, at == 0 && within == 0, &mut out),
                    }
                    Ok(())
                })
            }
        })?;
        Ok((out, sure))
    }

    /// A piece without tokens; `start`: the text begins with it.
    fn put(&self, piece: &str, start: bool, out: &mut String) {
        let wanted = match self.prefix_space {
            PrefixSpace::Never => false,
            PrefixSpace::First => start,
            PrefixSpace::Always => true,
        };
        if wanted && !piece.starts_with(' ') && !(self.marks && piece.starts_with(MARK)) {
            out.push(' ');
        }
        match replaced(piece, MARK, " ") {
            Some(marked) if self.marks => out.push_str(&marked),
            _ => out.push_str(piece),
        }
    }
}

/// What is done to each piece.
#[derive(Debug)]
struct Steps {
    steps: Vec<SpellingStep>,
    /// Only read where a step needs it.
    composition: Option<Composition>,
}

impl Steps {
    fn new(steps: &[SpellingStep]) -> Self {
        let composes = steps.contains(&SpellingStep::Nfc);
        Self { steps: steps.to_vec(), composition: composes.then(Composition::new) }
    }

    /// `None`: it is composed, or nothing composes it.
    fn compose(&self, text: &str) -> Option<String> {
        self.composition.as_ref()?.compose(text)
    }

    /// A piece after the steps.
    fn done<'t>(&self, piece: &'t str) -> Cow<'t, str> {
        let mut piece = Cow::Borrowed(piece);
        for step in &self.steps {
            let changed = match step {
                SpellingStep::Nfc => self.compose(&piece),
                SpellingStep::Prepend(_) if piece.is_empty() => None,
                SpellingStep::Prepend(text) => Some([text.as_str(), &piece].concat()),
                SpellingStep::Replace(from, to) => replaced(&piece, from, to),
            };
            piece = changed.map_or(piece, Cow::Owned);
        }
        piece
    }
}

/// The text with all of `from` replaced; `None` if there is none.
fn replaced(text: &str, from: &str, to: &str) -> Option<String> {
    let begin = *from.as_bytes().first()?;
    let (mut out, mut copied, mut at) = (None, 0, 0);
    while let Some(found) = place(text, begin, at) {
        at = found + 1;
        if text.get(found..).is_some_and(|rest| rest.starts_with(from)) {
            let out = out.get_or_insert_with(|| String::with_capacity(text.len()));
            out.push_str(text.get(copied..found).unwrap_or_default());
            out.push_str(to);
            copied = found + from.len();
            at = copied;
        }
    }
    let mut out: String = out?;
    out.push_str(text.get(copied..).unwrap_or_default());
    Some(out)
}

/// The next place of a byte.
fn place(text: &str, byte: u8, from: usize) -> Option<usize> {
    let found = Cell::new(None);
    any_place(text.as_bytes().get(from..)?, byte, |at| {
        found.set(Some(from + at));
        true
    });
    found.get()
}

/// A part of a text.
enum Found<'a> {
    Text(&'a str),
    /// The text that a token stands for, whatever it swallowed.
    Token(&'a str),
}

/// Texts to look for, of which the leftmost counts, and of those that begin together the longest.
#[derive(Debug)]
struct Tokens {
    /// By their first byte, longest first.
    by_begin: Vec<(u8, Vec<Token>)>,
}

#[derive(Debug)]
struct Token {
    /// What is looked for.
    pattern: String,
    token: AddedToken,
}

impl Tokens {
    fn new<'a>(tokens: impl Iterator<Item = (String, &'a AddedToken)>) -> Self {
        let mut by_begin: Vec<(u8, Vec<Token>)> = Vec::new();
        for (pattern, token) in tokens {
            let Some(begin) = pattern.bytes().next() else { continue };
            let token = Token { pattern, token: token.clone() };
            match by_begin.iter_mut().find(|(b, _)| *b == begin) {
                Some((_, tokens)) => tokens.push(token),
                None => by_begin.push((begin, vec![token])),
            }
        }
        for (_, tokens) in &mut by_begin {
            sort_by_key(tokens, |token| std::cmp::Reverse(token.pattern.len()));
        }
        Self { by_begin }
    }

    /// Bytes of the longest.
    fn longest(&self) -> usize {
        self.by_begin.iter().filter_map(|(_, tokens)| tokens.first()).map(|t| t.pattern.len()).max().unwrap_or(0)
    }

    /// Hands out the parts of a text in order, each with its place; a token's is where its own text begins.
    ///
    /// A token may lie in whitespace that the one before it swallowed, or be refused as it is no word; `tokenizers` then
    /// goes on as below, and may hand out whitespace twice.
    fn split(&self, text: &str, mut part: impl FnMut(Found<'_>, usize) -> Result<(), Unknown>) -> Result<(), Unknown> {
        let mut ahead: Vec<Option<usize>> = self.by_begin.iter().map(|(byte, _)| place(text, *byte, 0)).collect();
        let mut done = 0;
        while let Some((at, found)) = self.next(text, &mut ahead) {
            let token = &found.token;
            let (mut start, mut end) = (at, at + found.pattern.len());
            for ((byte, _), ahead) in self.by_begin.iter().zip(&mut ahead) {
                if ahead.is_some_and(|at| at < end) {
                    *ahead = place(text, *byte, end);
                }
            }
            let (before, behind) = (text.get(..start).unwrap_or_default(), text.get(end..).unwrap_or_default());
            if token.single_word && (is_word(before.chars().next_back())? || is_word(behind.chars().next())?) {
                continue;
            }
            if token.lstrip {
                start = done.max(before.trim_end().len());
            }
            if token.rstrip {
                end += behind.len() - behind.trim_start().len();
            }
            if let Some(text) = text.get(done..start).filter(|text| !text.is_empty()) {
                part(Found::Text(text), done)?;
            }
            part(Found::Token(&token.text), at)?;
            done = end;
        }
        match text.get(done..) {
            Some(rest) if !rest.is_empty() => part(Found::Text(rest), done),
            _ => Ok(()),
        }
    }

    /// The next token and its place. `ahead` holds the next place of each first byte.
    fn next(&self, text: &str, ahead: &mut [Option<usize>]) -> Option<(usize, &Token)> {
        loop {
            let nearest = ahead.iter_mut().zip(&self.by_begin).filter(|(ahead, _)| ahead.is_some());
            let (ahead, (byte, tokens)) = nearest.min_by_key(|(ahead, _)| **ahead)?;
            let at = (*ahead)?;
            let rest = text.as_bytes().get(at..)?;
            if let Some(token) = tokens.iter().find(|token| rest.starts_with(token.pattern.as_bytes())) {
                return Some((at, token));
            }
            *ahead = place(text, *byte, at + 1);
        }
    }
}

/// Whether a character beside a token is one of words. There may be none.
fn is_word(c: Option<char>) -> Result<bool, Unknown> {
    match c {
        None => Ok(false),
        Some(c) if c.is_ascii() => Ok(c.is_ascii_alphanumeric() || c == '_'),
        Some(c) if c.is_alphabetic() => Ok(true),
        Some(c) if c.is_whitespace() => Ok(false),
        // Marks and digits are, punctuation and symbols are not: that takes tables.
        Some(_) => Err(Unknown::Feature("word_token")),
    }
}
