//! Values as Python would have them, and as Python prints them.
//!
//! **Invariant:** what is printed is what Python prints, or has [`DOUBT`] in it, which makes the prompt unknown. Printing
//! itself cannot fail: minijinja turns values to text where an error would be a panic.

use crate::prompt::json::Json;
use crate::prompt::json_text::python_float;
use minijinja::Value;
use minijinja::value::{DynObject, Enumerator, Object, ObjectRepr, ValueKind};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Stands in printed text for what Python would print there and is not known: a private-use character.
pub(crate) const DOUBT: char = '\u{F8E3}';

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
pub(super) struct List(Vec<Value>);

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
            return Enumerator::Iter(Box::new(std::iter::once(Value::from(DOUBT))));
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

/// `repr` of a text. Which characters Python takes for unprintable takes Unicode's tables to say: beyond the ones that
/// surely are printable, it is in doubt.
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
            '\0'..='\u{a0}' | '\u{ad}' => {
                out.push_str("\\x");
                for shift in [4, 0] {
                    out.extend(char::from_digit(u32::from(c) >> shift & 15, 16));
                }
            }
            c if surely_printable(c) => out.push(c),
            _ => out.push(DOUBT),
        }
    }
    out.push(quote);
}

/// Blocks of which every character is assigned, and no space, mark of format, or surrogate.
fn surely_printable(c: char) -> bool {
    matches!(c,
        '\u{a1}'..='\u{ac}' | '\u{ae}'..='\u{377}' | '\u{391}'..='\u{3a1}' | '\u{3a3}'..='\u{52f}' // Latin, Greek, Cyrillic
        | '\u{5d0}'..='\u{5ea}' | '\u{620}'..='\u{64a}' | '\u{660}'..='\u{66d}' // Hebrew, Arabic
        | '\u{904}'..='\u{939}' | '\u{93c}'..='\u{94d}' | '\u{966}'..='\u{97f}' // Devanagari
        | '\u{e01}'..='\u{e3a}' | '\u{e3f}'..='\u{e5b}' // Thai
        | '\u{1e00}'..='\u{1f15}' | '\u{2010}'..='\u{2027}' | '\u{2030}'..='\u{205e}' // more Latin, punctuation
        | '\u{20a0}'..='\u{20bf}' | '\u{2190}'..='\u{23ff}' | '\u{2500}'..='\u{27bf}' // currencies, arrows, mathematics, symbols
        | '\u{3001}'..='\u{303e}' | '\u{3041}'..='\u{3096}' | '\u{3099}'..='\u{30ff}' // Japanese
        | '\u{4e00}'..='\u{9fef}' | '\u{ac00}'..='\u{d7a3}' // Chinese, Korean
        | '\u{ff01}'..='\u{ffbe}' | '\u{1f300}'..='\u{1f64f}' | '\u{1f680}'..='\u{1f6c5}' | '\u{1f90d}'..='\u{1f93a}' // emoji
    )
}
