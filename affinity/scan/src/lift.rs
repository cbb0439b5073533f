//! Takes the long texts out of a JSON body before it is parsed.
//!
//! Nearly all of a chat is the text of its messages. Found, unescaped and checked in one pass of their own, many
//! bytes at a time, they cost half of what they do in a general parser, and the little that is left is parsed as ever: each
//! text has been replaced by a string that names it. One string takes the place of another, so whether the body is
//! JSON of the right shape does not change. A body with anything unusual in it is left as it is.

use super::{BLOCK, Specials, copy_text, plain, simple_escape};
use std::borrow::Cow;

/// Begins the strings that name texts. No string of the body itself does: such a body is left as it is.
const TAG: char = '\u{F8E2}';
/// The same, as it may stand in a body; escaped, it begins with `\u`.
const TAG_FORMS: [&[u8]; 2] = ["\u{F8E2}".as_bytes(), br"\u"];
/// The fields whose texts are taken out.
const FIELDS: [&[u8]; 3] = [b"content", b"text", b"prompt"];

/// A body without its texts, and the texts.
#[derive(Debug, Default)]
pub struct Lifted {
    /// JSON, with names in place of the texts.
    pub body: Vec<u8>,
    /// As they stood in the body: not yet known to be UTF-8. What lies behind the last is left from other bodies.
    texts: Vec<u8>,
    /// Where each text ends in `texts`.
    ends: Vec<usize>,
}

impl Lifted {
    /// `None`: the body is to be parsed as it is. `spare` is one that is not needed any more, for its room: as large as a
    /// body, it would have to be asked for and filled with zeros each time.
    #[must_use]
    pub fn of(body: &[u8], spare: Self) -> Option<Self> {
        let Self { body: mut rest, texts: mut room, mut ends } = spare;
        rest.clear();
        ends.clear();
        if room.len() < body.len() + BLOCK {
            room = vec![0; body.len() + BLOCK];
        }
        let mut reader = Reader { body, at: 0, texts: room, end: 0, specials: Specials::new() };
        let mut copied = 0;
        // Of the string before, if there was only a colon since.
        let mut field: &[u8] = b"";
        let mut colon = false;
        while let Some(byte) = body.get(reader.at).copied() {
            reader.at += 1;
            match byte {
                b'"' if colon && FIELDS.contains(&field) => {
                    rest.extend_from_slice(body.get(copied..reader.at)?);
                    name(ends.len(), &mut rest)?;
                    reader.unescape()?;
                    ends.push(reader.end);
                    copied = reader.at;
                    reader.at += 1;
                    (field, colon) = (b"", false);
                }
                b'"' => {
                    field = reader.skip()?;
                    if TAG_FORMS.iter().any(|form| field.starts_with(form)) {
                        return None;
                    }
                    colon = false;
                }
                b':' => colon = true,
                b' ' | b'\n' | b'\r' | b'\t' => {}
                _ => (field, colon) = (b"", false),
            }
        }
        rest.extend_from_slice(body.get(copied..)?);
        Some(Self { body: rest, texts: reader.texts, ends })
    }

    /// Bytes of its room.
    #[must_use]
    pub fn room(&self) -> usize {
        self.body.capacity() + self.texts.capacity()
    }

    /// The text that a parsed string names, or is; `None` if it is no UTF-8.
    #[must_use]
    pub fn text<'a>(&'a self, string: Cow<'a, str>) -> Option<Cow<'a, str>> {
        match self.named(&string) {
            Some(text) => simdutf8::basic::from_utf8(text).ok().map(Cow::Borrowed),
            None => Some(string),
        }
    }

    /// The same without a look whether it is UTF-8.
    #[must_use]
    pub fn bytes<'a>(&'a self, string: &'a str) -> &'a [u8] {
        self.named(string).unwrap_or(string.as_bytes())
    }

    fn named(&self, string: &str) -> Option<&[u8]> {
        let number = usize::from_str_radix(string.strip_prefix(TAG)?, 16).ok()?;
        let start = number.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())?;
        self.texts.get(start..*self.ends.get(number)?)
    }
}

/// Appends the name of a text, without the formatting machinery, as every message has one. `None`: there are too many.
fn name(number: usize, out: &mut Vec<u8>) -> Option<()> {
    let number = u16::try_from(number).ok()?;
    out.extend_from_slice(TAG.encode_utf8(&mut [0; 4]).as_bytes());
    out.extend(
        [12, 8, 4, 0].iter().filter_map(|shift| char::from_digit(u32::from(number) >> shift & 15, 16)).map(|c| c as u8),
    );
    Some(())
}

struct Reader<'b> {
    body: &'b [u8],
    at: usize,
    /// Never shorter than what has been read and a block: no escape is shorter than what it stands for.
    texts: Vec<u8>,
    end: usize,
    specials: Specials,
}

impl<'b> Reader<'b> {
    /// Steps behind a string, of which the quote has been read. Its raw bytes.
    fn skip(&mut self) -> Option<&'b [u8]> {
        let from = self.at;
        loop {
            self.at += plain(&self.specials, self.body.get(self.at..)?);
            let byte = *self.body.get(self.at)?;
            self.at += 1;
            match byte {
                b'"' => return self.body.get(from..self.at - 1),
                b'\\' => self.at += 1,
                _ => {}
            }
        }
    }

    /// Appends a string, of which the quote has been read, to the texts, and stops at its other quote.
    fn unescape(&mut self) -> Option<()> {
        loop {
            let (read, written) = copy_text(&self.specials, self.body.get(self.at..)?, self.texts.get_mut(self.end..)?);
            self.at += read;
            self.end += written;
            match *self.body.get(self.at)? {
                b'"' => return Some(()),
                b'\\' if self.body.get(self.at + 1) == Some(&b'u') => self.unicode()?,
                b'\\' => {
                    let byte = simple_escape(*self.body.get(self.at + 1)?)?;
                    *self.texts.get_mut(self.end)? = byte;
                    self.end += 1;
                    self.at += 2;
                }
                ..0x20 => return None,
                plain => {
                    *self.texts.get_mut(self.end)? = plain;
                    self.end += 1;
                    self.at += 1;
                }
            }
        }
    }

    /// `\u` and four digits, or two of these that are one character's surrogates.
    fn unicode(&mut self) -> Option<()> {
        let first = self.four_digits()?;
        let code = match first {
            0xD800..0xDC00 => {
                let second = self.four_digits().filter(|second| (0xDC00..0xE000).contains(second))?;
                0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00)
            }
            _ => first,
        };
        let mut bytes = [0; 4];
        let bytes = char::from_u32(code)?.encode_utf8(&mut bytes).as_bytes();
        self.texts.get_mut(self.end..)?.get_mut(..bytes.len())?.copy_from_slice(bytes);
        self.end += bytes.len();
        Some(())
    }

    fn four_digits(&mut self) -> Option<u32> {
        let digits = self.body.get(self.at..)?.strip_prefix(br"\u")?.first_chunk::<4>()?;
        self.at += 6;
        digits.iter().try_fold(0, |code, digit| Some(code * 16 + char::from(*digit).to_digit(16)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    /// What the body says once its texts are back in their places.
    fn put_back(lifted: &Lifted) -> Option<Value> {
        fn walk(value: &mut Value, lifted: &Lifted) -> Option<()> {
            match value {
                Value::String(s) => *s = lifted.text(Cow::Borrowed(s))?.into_owned(),
                Value::Array(items) => items.iter_mut().try_for_each(|item| walk(item, lifted))?,
                Value::Object(fields) => fields.values_mut().try_for_each(|field| walk(field, lifted))?,
                _ => {}
            }
            Some(())
        }
        let mut value = serde_json::from_slice(&lifted.body).ok()?;
        walk(&mut value, lifted)?;
        Some(value)
    }

    /// Pieces of JSON, and of what is nearly JSON.
    fn body() -> impl Strategy<Value = Vec<u8>> {
        let pieces: Vec<&[u8]> = vec![
            br#"{"content":""#,
            br#"{"text" : ""#,
            br#"{"role":""#,
            b"\"",
            b"\"}",
            b"\",\"content\":\"",
            b"}",
            b"[",
            b"]",
            b",",
            b":",
            br"\n",
            br#"\""#,
            br"\\",
            br"\/",
            br"\u00e9",
            br"\ud83d\ude42",
            br"\ud83d",
            br"\ude42",
            br"\uF8E20",
            br"\x",
            b"\\",
            "\u{F8E2}0".as_bytes(),
            "é🙂".as_bytes(),
            b"\xff",
            b"\x01",
            b"plain text of some length",
            b" ",
            b"7",
            b"null",
        ];
        prop::collection::vec(prop::sample::select(pieces), 0..12).prop_map(|pieces| pieces.concat())
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf =
            prop_oneof![any::<String>().prop_map(Value::from), any::<i32>().prop_map(Value::from), Just(Value::Null)];
        leaf.prop_recursive(4, 32, 5, |inner| {
            let key = prop_oneof![
                Just("content".to_owned()),
                Just("text".to_owned()),
                Just("prompt".to_owned()),
                any::<String>()
            ];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((key, inner), 0..5)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_body_says_the_same_without_its_texts_or_is_left_alone(bodies in prop::collection::vec(body(), 1..4)) {
            let mut spare = Lifted::default();
            for body in bodies {
                let Some(lifted) = Lifted::of(&body, std::mem::take(&mut spare)) else { continue };
                prop_assert_eq!(put_back(&lifted), serde_json::from_slice(&body).ok(), "{}", body.escape_ascii());
                spare = lifted;
            }
        }

        #[test]
        fn texts_come_out_as_a_json_parser_reads_them(value in any_json(), pretty in any::<bool>()) {
            let body = if pretty { format!("{value:#}") } else { value.to_string() };
            if let Some(lifted) = Lifted::of(body.as_bytes(), Lifted::default()) {
                prop_assert_eq!(put_back(&lifted), Some(value));
            } else {
                prop_assert!(body.contains(TAG) || body.contains("\"\\u"), "{}", body);
            }
        }
    }

    #[test]
    fn a_body_that_names_texts_itself_is_left_alone() {
        for forged in ["\u{F8E2}0", r"\uF8E20", r"\uf8e20"] {
            let body = format!(r#"{{"text":"a","c\u006fntent":"{forged}"}}"#);
            assert!(Lifted::of(body.as_bytes(), Lifted::default()).is_none(), "{body}");
            // Where texts are taken out anyway, it is a text like any other.
            let body = format!(r#"{{"text":"a","content":"{forged}"}}"#);
            let lifted = Lifted::of(body.as_bytes(), Lifted::default()).unwrap();
            assert_eq!(put_back(&lifted), serde_json::from_str(&body).ok(), "{body}");
        }
    }

    #[test]
    fn long_texts_are_taken_out() {
        let body =
            format!(r#"{{"messages":[{{"role":"user","content":"{}\n\u00e9\ud83d\ude42"}}]}}"#, "word ".repeat(9));
        let lifted = Lifted::of(body.as_bytes(), Lifted::default()).unwrap();
        assert_eq!(lifted.texts[..lifted.ends[0]], *format!("{}\né🙂", "word ".repeat(9)).as_bytes());
        assert_eq!(lifted.body, "{\"messages\":[{\"role\":\"user\",\"content\":\"\u{F8E2}0000\"}]}".as_bytes());
    }
}
