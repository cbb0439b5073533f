//! Values as Python would have them, and as Python prints them.
//!
//! **Invariant:** what is printed is what Python prints, or has [`DOUBT`] in it, which makes the prompt unknown. Printing
//! itself cannot fail: minijinja turns values to text where an error would be a panic.

use crate::prompt::json::Json;
use crate::prompt::json_text::python_float;
use minijinja::value::{DynObject, Enumerator, Object, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Stands in printed text for what Python would print there and is not known: a private-use character.
pub(crate) const DOUBT: char = '\u{F8E3}';
/// The same as text.
pub(crate) const DOUBT_TEXT: &str = "\u{F8E3}";

/// What a template gets for a JSON value.
pub(crate) fn value(json: &Json<'_>) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Int(value) => i64::try_from(*value).map_or_else(|_| Value::from(*value), Value::from),
        // minijinja writes others as Python does.
        Json::Float(value) if (1e-4..1e16).contains(&value.abs()) || *value == 0.0 => Value::from(*value),
        Json::Float(value) => Value::from_object(Float(*value)),
        Json::Text(text) => Value::from(text.as_ref()),
        Json::List(items) => list(items.iter().map(value).collect()),
        Json::Map(fields) => map(fields.iter().map(|(key, field)| (Value::from(key.as_ref()), value(field))).collect()),
    }
}

/// A Python list.
pub(crate) fn list(items: Vec<Value>) -> Value {
    Value::from_object(List(items))
}

/// A Python dict.
pub(crate) fn map(fields: Vec<(Value, Value)>) -> Value {
    Value::from_object(Map(fields))
}

/// A dict of which a template reads the fields named.
pub(crate) fn record<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    map(fields.into_iter().filter_map(|(name, value)| Some((Value::from(name), value?))).collect())
}

/// A Python dict: keys in order.
#[derive(Debug)]
pub(super) struct Map(pub Vec<(Value, Value)>);

/// Attributes of Python's dicts: `x.items` is the method, whatever keys there are; `x['items']` is the key's value.
const METHODS: [&str; 11] =
    ["items", "keys", "values", "get", "pop", "copy", "update", "clear", "setdefault", "popitem", "fromkeys"];

impl Object for Map {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        if METHODS.contains(&key) {
            return Some(Value::from_object(Method));
        }
        self.0.iter().find(|(name, _)| name.as_str() == Some(key)).map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.iter().map(|(key, _)| key.clone()).collect())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.0.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        Pairs(&self.0).print(&mut out);
        f.write_str(&out)
    }
}

/// A Python list.
#[derive(Debug)]
pub(super) struct List(pub Vec<Value>);

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        items('[', self.0.iter().cloned(), ']', &mut out);
        f.write_str(&out)
    }
}

/// A float that minijinja prints otherwise than Python: very large, very small, or none at all.
#[derive(Debug)]
pub(super) struct Float(pub f64);

impl Object for Float {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&python_float(self.0))
    }
}

/// A method that is not called: true, and a text with an address in it.
#[derive(Debug)]
struct Method;

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{DOUBT}")
    }
}

/// What Python's generators are: true even if empty, and gone once they have been gone through.
#[derive(Debug)]
pub(super) struct Generator {
    items: Vec<Value>,
    used: AtomicBool,
}

impl Generator {
    /// A generator of these.
    pub fn of(items: Vec<Value>) -> Value {
        Value::from_object(Generator { items, used: AtomicBool::new(false) })
    }
}

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        if self.used.swap(true, Ordering::Relaxed) {
            // Python's is empty then; whether ours has been looked at once more than Python's is not sure.
            let unsure = Value::from(Error::from(ErrorKind::InvalidOperation));
            return Enumerator::Iter(Box::new(std::iter::once(unsure)));
        }
        Enumerator::Iter(Box::new(self.items.clone().into_iter()))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        None
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{DOUBT}")
    }
}

/// `str(value)`.
pub(super) fn python_str(value: &Value) -> String {
    let mut out = String::new();
    print(value, &mut out);
    out
}

/// Appends `str(value)`.
pub(super) fn print(value: &Value, out: &mut String) {
    match value.as_str() {
        Some(text) => out.push_str(text),
        None if value.is_undefined() => {}
        None => print_repr(value, out),
    }
}

/// Appends `repr(value)`.
fn print_repr(value: &Value, out: &mut String) {
    if let Some(text) = value.as_str() {
        return print_text(text, out);
    }
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => match value.as_i64() {
            Some(int) if value.is_integer() => out.push_str(&int.to_string()),
            _ if value.is_integer() => out.push_str(&value.to_string()),
            _ => out.push_str(&f64::try_from(value.clone()).map_or_else(|_| DOUBT.to_string(), python_float)),
        },
        ValueKind::Seq => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            match value.try_iter() {
                // A tuple of one has a comma behind it.
                Ok(all) if !(value.is_tuple() && value.len() == Some(1)) => items(open, all, close, out),
                _ => out.push(DOUBT),
            }
        }
        ValueKind::Map => match value.as_object().and_then(DynObject::try_iter_pairs) {
            Some(pairs) => Pairs(&pairs.collect::<Vec<_>>()).print(out),
            None => out.push(DOUBT),
        },
        _ => match value.downcast_object_ref::<Float>() {
            Some(Float(float)) => out.push_str(&python_float(*float)),
            None => out.push(DOUBT),
        },
    }
}

fn items(open: char, items: impl Iterator<Item = Value>, close: char, out: &mut String) {
    out.push(open);
    for (number, item) in items.enumerate() {
        if number > 0 {
            out.push_str(", ");
        }
        print_repr(&item, out);
    }
    out.push(close);
}

struct Pairs<'p>(&'p [(Value, Value)]);

impl Pairs<'_> {
    fn print(&self, out: &mut String) {
        out.push('{');
        for (number, (key, value)) in self.0.iter().enumerate() {
            if number > 0 {
                out.push_str(", ");
            }
            print_repr(key, out);
            out.push_str(": ");
            print_repr(value, out);
        }
        out.push('}');
    }
}

/// `repr` of a text.
fn print_text(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            ' '..='~' => out.push(c),
            c if newer(c) => out.push(DOUBT),
            c if printable(c) => out.push(c),
            c => {
                let (letter, digits) = match u32::from(c) {
                    0..0x100 => ('x', 2),
                    0x100..0x1_0000 => ('u', 4),
                    _ => ('U', 8),
                };
                out.push('\\');
                out.push(letter);
                for digit in (0..digits).rev() {
                    out.extend(char::from_digit(u32::from(c) >> (4 * digit) & 15, 16));
                }
            }
        }
    }
    out.push(quote);
}

/// `str.isprintable`: Rust tells the same categories apart, but for a text's first character.
fn printable(c: char) -> bool {
    let mut buffer = [b'a'; 5];
    let length = buffer.get_mut(1..).map_or(0, |rest| c.encode_utf8(rest).len());
    let text = buffer.get(..=length).and_then(|bytes| std::str::from_utf8(bytes).ok());
    text.is_some_and(|text| text.escape_debug().count() == 2)
}

/// Whether a character may be newer than Unicode 14, which is Python 3.11's: other Pythons print it otherwise. Compared
/// with that Python character by character; beyond the basic plane only well-known blocks count as old.
pub(super) fn newer(c: char) -> bool {
    match c {
        ..'\u{10000}' => matches!(c,
            '\u{88f}' | '\u{897}' | '\u{c5c}' | '\u{cdc}' | '\u{cf3}' | '\u{ece}' | '\u{1acf}'..='\u{1aeb}'
            | '\u{1b4e}'..='\u{1b4f}' | '\u{1b7f}' | '\u{1c89}'..='\u{1c8a}' | '\u{20c1}' | '\u{2427}'..='\u{2429}' | '\u{2b96}'
            | '\u{2ffc}'..='\u{2fff}' | '\u{31e4}'..='\u{31e5}' | '\u{31ef}' | '\u{a7cb}'..='\u{a7dc}' | '\u{a7f1}'
            | '\u{fbc3}'..='\u{fbd2}' | '\u{fd90}'..='\u{fd91}' | '\u{fdc8}'..='\u{fdce}'),
        _ => !matches!(c,
            '\u{10000}'..='\u{105bf}' | '\u{1d000}'..='\u{1d241}' | '\u{1d400}'..='\u{1d7ff}' | '\u{1f000}'..='\u{1f6d7}'
            | '\u{1f6dd}'..='\u{1f773}' | '\u{1f780}'..='\u{1f7d8}' | '\u{1f7e0}'..='\u{1f8b1}' | '\u{1f900}'..='\u{1fa53}'
            | '\u{1fa60}'..='\u{1fa74}' | '\u{1fa78}'..='\u{1fa86}' | '\u{1fa90}'..='\u{1faac}' | '\u{20000}'..='\u{2b738}'
            | '\u{2b740}'..='\u{2cea1}' | '\u{2ceb0}'..='\u{2ebe0}' | '\u{30000}'..='\u{3134a}' | '\u{e0000}'..='\u{10ffff}'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_within_others_are_written_as_python_writes_them() {
        // repr(...) of Python 3.11, 3.12 and 3.13 alike.
        for (text, expected) in [
            ("it's", "\"it's\""),
            ("it's \"it\"", "'it\\'s \"it\"'"),
            ("a\\\n\t\u{0}\u{7f}\u{a0}\u{ad}", "'a\\\\\\n\\t\\x00\\x7f\\xa0\\xad'"),
            ("e\u{301}\u{301} \u{200d}\u{2028}\u{feff}\u{e000}", "'e\u{301}\u{301} \\u200d\\u2028\\ufeff\\ue000'"),
            ("日本🙂\u{10ffff}\u{e0001}", "'日本🙂\\U0010ffff\\U000e0001'"),
            ("\u{301}", "'\u{301}'"),
        ] {
            let mut out = String::new();
            print_text(text, &mut out);
            assert_eq!(out, expected);
        }
        assert_eq!(python_str(&list(vec!["\u{1fae9}".into()])), format!("['{DOUBT}']"));
    }

    #[test]
    fn values_within_others_are_written_as_python_writes_them() {
        let json =
            Json::parse(r#"{"a":[1,-0.0,1e16,1.5e-7,true,null,"x",[],{}],"b":12345678901234567890123}"#).unwrap();
        assert_eq!(
            python_str(&value(&json)),
            "{'a': [1, -0.0, 1e+16, 1.5e-07, True, None, 'x', [], {}], 'b': 12345678901234567890123}"
        );
        // The same where minijinja writes it.
        assert_eq!(value(&json).to_string(), python_str(&value(&json)));
    }
}
