//! JSON as clients write it: with and without spaces, with escapes they need not write.

use std::fmt::Write;

use rand::Rng;
use serde_json::Value;

/// How a body is spelt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Without spaces.
    Compact,
    /// A space behind commas and colons, as Python writes.
    Spaced,
    /// One value a line.
    Pretty,
    /// ASCII only, with surrogate pairs and needless escapes.
    Escaped,
}

impl Style {
    /// Mostly compact.
    pub fn random(rng: &mut impl Rng) -> Self {
        match rng.random_range(0..10) {
            0..5 => Self::Compact,
            5..7 => Self::Spaced,
            7 => Self::Pretty,
            _ => Self::Escaped,
        }
    }

    /// The text of a value. Numbers keep their digits.
    #[must_use]
    pub fn write(self, value: &Value) -> String {
        let mut out = String::new();
        self.value(value, 0, &mut out);
        out
    }

    fn value(self, value: &Value, depth: usize, out: &mut String) {
        match value {
            Value::Array(items) => {
                self.items(['[', ']'], items.iter(), depth, out, |item, out| self.value(item, depth + 1, out));
            }
            Value::Object(fields) => self.items(['{', '}'], fields.iter(), depth, out, |(key, field), out| {
                self.string(key, out);
                out.push(':');
                if self != Self::Compact {
                    out.push(' ');
                }
                self.value(field, depth + 1, out);
            }),
            Value::String(text) => self.string(text, out),
            // serde_json writes a sign before every exponent.
            Value::Number(number) if self == Self::Escaped => out.push_str(&number.to_string().replace("e+", "E")),
            Value::Number(number) if self != Self::Compact => out.push_str(&number.to_string().replace("e+", "e")),
            other => out.push_str(&other.to_string()),
        }
    }

    fn items<T>(
        self,
        [open, close]: [char; 2],
        items: impl ExactSizeIterator<Item = T>,
        depth: usize,
        out: &mut String,
        each: impl Fn(T, &mut String),
    ) {
        let line = |depth: usize, out: &mut String| {
            if self == Self::Pretty {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', 2 * depth));
            }
        };
        out.push(open);
        let empty = items.len() == 0;
        for (number, item) in items.enumerate() {
            if number > 0 {
                out.push(',');
                if matches!(self, Self::Spaced | Self::Escaped) {
                    out.push(' ');
                }
            }
            line(depth + 1, out);
            each(item, out);
        }
        if !empty {
            line(depth, out);
        }
        out.push(close);
    }

    fn string(self, text: &str, out: &mut String) {
        if self != Self::Escaped {
            out.push_str(&Value::from(text).to_string());
            return;
        }
        out.push('"');
        for c in text.chars() {
            match c {
                '"' | '\\' | '/' => out.extend(['\\', c]),
                '\n' => out.push_str("\\n"),
                ' '..='~' => out.push(c),
                _ => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04X}");
                    }
                }
            }
        }
        out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_style_says_the_same_and_numbers_keep_their_digits() {
        let text = r#"{"a":[1.0,1e3,-0,-0.0,12345678901234567890123,1e5,{}],"é/😀\n\u0001":null,"":[]}"#;
        let value: Value = serde_json::from_str(text).unwrap();
        for (style, thousand) in
            [(Style::Compact, "1e+3"), (Style::Spaced, "1e3"), (Style::Pretty, "1e3"), (Style::Escaped, "1E3")]
        {
            let written = style.write(&value);
            assert!(written.contains(thousand) && written.contains("-0,") && written.contains("1.0,"), "{written}");
            let read: Value = serde_json::from_str(&written.replace(['E'], "e")).unwrap();
            assert_eq!(read["a"], serde_json::from_str::<Value>(text).unwrap()["a"], "{style:?}");
        }
        assert!(Style::Escaped.write(&value).is_ascii());
    }
}
