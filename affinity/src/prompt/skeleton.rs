//! Renderings remembered without their contents: what a template prints around messages that it only copies.
//!
//! A [`copying`](super::copying) template prints the same around contents of equal shape, whatever they say. The first
//! rendering of a shape is done twice, once with marks in place of contents, and what is found between the marks
//! serves every later request of that shape.
//!
//! **Invariant:** a skeleton is used only if, filled with the contents of the request that made it, it gave what the
//! template gave. If it ever does not, no skeleton of that template is used again.

use super::Unknown;
use super::copying::Copying;
use super::jinja::text::strip;
use super::jinja::time::LocalTime;
use super::jinja::values::DOUBT_TEXT;
use super::turns::{Said, Seen, Turn};
use affinity_scan::Needles;
use std::collections::{BTreeMap, VecDeque};

/// Longer conversations are rendered in full, so that shapes stay small.
const MAX_MESSAGES: usize = 512;
/// Longer roles, or longer whitespace at an end that is cut, likewise.
const MAX_WORD: usize = 32;
/// Shapes and their skeletons per template; beyond either, all are forgotten.
const MAX_SHAPES: usize = 256;
const MAX_BYTES: usize = 512 * 1024;
/// How many shapes seen once are kept in mind.
const SEEN_ONCE: usize = 512;
/// Begin and end a mark: private-use characters, no whitespace.
pub(super) const MARK: [char; 2] = ['\u{F8E0}', '\u{F8E1}'];

/// The skeletons of one template.
pub(super) struct Skeletons {
    /// `None`: the template does more than copy.
    rules: Option<Rules>,
    shapes: BTreeMap<Vec<u8>, Known>,
    bytes: usize,
    /// The shape being looked up; kept for its room.
    shape: Vec<u8>,
    /// Hashes of the last shapes seen once: most are never seen again, and learning one takes a rendering more. In order
    /// and not each in a place of its hash, where two that share one would push each other out for ever.
    once: VecDeque<u64>,
}

struct Rules {
    needles: Needles,
    trims: bool,
    dated: bool,
}

/// What is known of a shape.
enum Known {
    Text(Skeleton),
    /// The template refuses such messages.
    Refused,
    /// To be rendered in full: marks cannot stand for these contents.
    Opaque,
}

/// Text and numbers of messages, in turns.
#[derive(Debug, Default, PartialEq, Eq)]
struct Skeleton {
    text: String,
    /// Where in `text` a content comes, and whose.
    slots: Vec<(usize, usize)>,
}

impl Skeletons {
    /// For a template that copies, or for one that does not.
    pub fn new(copying: Option<Copying>) -> Self {
        let rules = copying.map(|c| Rules {
            // What has the mark of doubt in it is refused in full, and must not be taken from memory.
            needles: Needles::new(c.needles.iter().map(String::as_str).chain([DOUBT_TEXT])),
            trims: c.trims,
            dated: c.dated,
        });
        Self { rules, shapes: BTreeMap::new(), bytes: 0, shape: Vec::new(), once: VecDeque::new() }
    }

    /// The prompt of these turns. `in_full` has the template print them, `render` with other contents in place of theirs.
    pub fn spell(
        &mut self,
        turns: &[Turn<'_, '_>],
        generation: bool,
        now: LocalTime,
        in_full: impl Fn() -> Result<String, Unknown>,
        render: impl Fn(&[&str]) -> Result<String, Unknown>,
    ) -> Result<String, Unknown> {
        let mut said = Vec::with_capacity(turns.len());
        for turn in turns {
            let Seen::Text(text) = &turn.content else { return in_full() };
            said.push(Said { role: turn.role, content: text.as_bytes() });
        }
        let Some(contents) = self.look(&said, generation, now) else { return in_full() };
        match self.shapes.get(&self.shape) {
            Some(Known::Text(skeleton)) => {
                let filled = skeleton.fill(&contents);
                simdutf8::basic::from_utf8(&filled).map(str::to_owned).map_err(|_| Unknown::Malformed)
            }
            Some(Known::Refused) => Err(Unknown::Template),
            Some(Known::Opaque) => in_full(),
            None => {
                let rendered = in_full();
                if !self.seen_before() {
                    return rendered;
                }
                self.learn(&contents, &rendered, render);
                rendered
            }
        }
    }

    /// The prompt of these messages, if their shape is known. What the contents say is not looked at but for what the
    /// template looks for, so they need not be UTF-8.
    pub fn recall(&mut self, said: &[Said<'_>], generation: bool, now: LocalTime) -> Option<Vec<u8>> {
        let contents = self.look(said, generation, now)?;
        match self.shapes.get(&self.shape)? {
            Known::Text(skeleton) => Some(skeleton.fill(&contents)),
            Known::Refused | Known::Opaque => None,
        }
    }

    /// Writes down the shape of these messages. `None`: they have none that could be known.
    fn look<'c>(&mut self, said: &[Said<'c>], generation: bool, now: LocalTime) -> Option<Vec<Parts<'c>>> {
        let rules = self.rules.as_ref()?;
        let contents = said.iter().map(|said| rules.parts(said.content)).collect::<Option<Vec<_>>>()?;
        rules.shape(said, &contents, generation, now, &mut self.shape).then_some(contents)
    }

    /// Whether the shape was seen lately; if not, it has been now.
    fn seen_before(&mut self) -> bool {
        let hash = self.shape.chunks(8).fold(self.shape.len() as u64, |hash, chunk| {
            let word = chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            (hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
        });
        if let Some(at) = self.once.iter().position(|once| *once == hash) {
            self.once.remove(at);
            return true;
        }
        if self.once.len() == SEEN_ONCE {
            self.once.pop_front();
        }
        self.once.push_back(hash);
        false
    }

    fn learn(
        &mut self,
        contents: &[Parts<'_>],
        rendered: &Result<String, Unknown>,
        render: impl Fn(&[&str]) -> Result<String, Unknown>,
    ) {
        let Some(rules) = &self.rules else { return };
        let marked: Option<Vec<String>> = contents.iter().enumerate().map(|(n, parts)| parts.marked(n)).collect();
        let Some(marked) = marked else { return };
        let marked: Vec<&str> = marked.iter().map(String::as_str).collect();
        let known = if marked.iter().any(|m| rules.needles.any_in(m.as_bytes())) {
            Known::Opaque
        } else {
            match (render(&marked), rendered) {
                (Ok(print), Ok(text)) => match Skeleton::of(&print, contents.len()) {
                    None => Known::Opaque,
                    Some(skeleton) => {
                        if skeleton.fill(contents) != text.as_bytes() {
                            return self.distrust();
                        }
                        Known::Text(skeleton)
                    }
                },
                (Err(_), Err(_)) => Known::Refused,
                _ => return self.distrust(),
            }
        };
        let size = self.shape.len() + known.bytes();
        if self.shapes.len() >= MAX_SHAPES || self.bytes + size > MAX_BYTES {
            self.shapes.clear();
            self.bytes = 0;
        }
        self.bytes += size;
        self.shapes.insert(self.shape.clone(), known);
    }

    /// The template was taken for copying and is not.
    fn distrust(&mut self) {
        *self = Self::new(None);
    }

    /// How many shapes are known, and whether the template is still trusted to copy.
    #[cfg(test)]
    pub fn state(&self) -> (usize, bool) {
        let texts = self.shapes.values().filter(|known| !matches!(known, Known::Opaque));
        (texts.count(), self.rules.is_some())
    }
}

impl Known {
    fn bytes(&self) -> usize {
        match self {
            Known::Text(skeleton) => skeleton.text.len() + size_of_val(skeleton.slots.as_slice()),
            Known::Refused | Known::Opaque => 0,
        }
    }
}

impl Rules {
    /// Writes all of a conversation that the template's doings depend on. False: it depends on more.
    fn shape(
        &self,
        said: &[Said<'_>],
        contents: &[Parts<'_>],
        generation: bool,
        now: LocalTime,
        shape: &mut Vec<u8>,
    ) -> bool {
        shape.clear();
        if self.dated {
            // Around midnight the date is not sure, and what has it is not remembered.
            if now.date().is_none() {
                return false;
            }
            shape.extend_from_slice(&now.day().to_le_bytes());
        }
        shape.push(u8::from(generation));
        if said.len() > MAX_MESSAGES {
            return false;
        }
        for (said, parts) in said.iter().zip(contents) {
            let words = [said.role, parts.lead, parts.trail];
            if words.iter().any(|word| word.len() > MAX_WORD)
                || self.needles.any_in(parts.whole)
                || said.role.contains(MARK)
            {
                return false;
            }
            let [role, lead, trail] = words.map(|word| word.len() as u8);
            shape.extend_from_slice(&[role, lead, trail, u8::from(parts.core.is_empty())]);
            for word in words.into_iter().filter(|word| !word.is_empty()) {
                shape.extend_from_slice(word.as_bytes());
            }
        }
        true
    }

    /// `None`: whitespace at an end must be told, and it is no UTF-8.
    fn parts<'c>(&self, content: &'c [u8]) -> Option<Parts<'c>> {
        let visible = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_graphic);
        if !self.trims || visible(content.first()) && visible(content.last()) {
            return Some(Parts { whole: content, lead: "", core: content, trail: "" });
        }
        let content = simdutf8::basic::from_utf8(content).ok()?;
        let rest = strip(content, None, true, false);
        let core = strip(rest, None, false, true);
        let (lead, trail) = (content.len() - rest.len(), core.len());
        let (lead, trail) = (content.get(..lead).unwrap_or(""), rest.get(trail..).unwrap_or(""));
        Some(Parts { whole: content.as_bytes(), lead, core: core.as_bytes(), trail })
    }
}

/// A content: what is copied of it, and the whitespace around that, which may be cut.
struct Parts<'c> {
    whole: &'c [u8],
    lead: &'c str,
    core: &'c [u8],
    trail: &'c str,
}

impl Parts<'_> {
    /// A content of the same shape with a mark for its core. `None`: it has no core, and is no UTF-8.
    fn marked(&self, number: usize) -> Option<String> {
        let Self { whole, lead, core, trail } = self;
        if core.is_empty() {
            return String::from_utf8(whole.to_vec()).ok();
        }
        Some(format!("{lead}{}{number}{}{trail}", MARK[0], MARK[1]))
    }
}

impl Skeleton {
    /// Takes the marks out of what was printed with them. `None`: there is something like a mark that is none.
    fn of(print: &str, messages: usize) -> Option<Self> {
        let mut pieces = print.split(MARK[0]);
        let mut skeleton = Self { text: pieces.next()?.to_owned(), slots: Vec::new() };
        for piece in pieces {
            let (number, text) = piece.split_once(MARK[1])?;
            let number = number.parse().ok().filter(|n| *n < messages)?;
            skeleton.slots.push((skeleton.text.len(), number));
            skeleton.text.push_str(text);
        }
        (!skeleton.text.contains(MARK)).then_some(skeleton)
    }

    fn fill(&self, contents: &[Parts<'_>]) -> Vec<u8> {
        let core = |number: usize| contents.get(number).map_or(&[][..], |parts| parts.core);
        let length = self.slots.iter().map(|(_, number)| core(*number).len()).sum::<usize>();
        let mut filled = Vec::with_capacity(self.text.len() + length);
        let mut from = 0;
        for (to, number) in &self.slots {
            filled.extend_from_slice(self.text.get(from..*to).unwrap_or("").as_bytes());
            filled.extend_from_slice(core(*number));
            from = *to;
        }
        filled.extend_from_slice(self.text.get(from..).unwrap_or("").as_bytes());
        filled
    }
}
