//! JSON as rendering needs it: keys keep their order, integers are told from floats, texts are borrowed.

use super::Unknown;
use affinity_scan::Lifted;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json<'a> {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Cow<'a, str>),
    List(Vec<Json<'a>>),
    /// In the order of the keys' first appearance; a key that comes again replaces the value, as in Python.
    Map(Fields<'a>),
}

/// The fields of an object.
pub(super) type Fields<'a> = Vec<(Cow<'a, str>, Json<'a>)>;

impl<'a> Json<'a> {
    /// Reads JSON text. `None`: it is none, or an integer in it is beyond 128 bits.
    pub fn parse(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Reads JSON text as Python's `json.loads`, which also takes `NaN` and `Infinity`. `None`: it is none.
    ///
    /// # Errors
    /// When Python may read it as JSON and this does not.
    pub fn loads(text: &'a str) -> Result<Option<Self>, Unknown> {
        if let Some(json) = Self::parse(text) {
            return Ok(Some(json));
        }
        let forged = text.contains('\u{F8E5}') || text.contains("\\uf8e5") || text.contains("\\uF8E5");
        if !forged
            && ["NaN", "Infinity"].iter().any(|word| text.contains(word))
            && let Some(json) = Json::parse(&without_words(text))
        {
            return Ok(Some(json.with_nan()));
        }
        // Halves of surrogate pairs, integers beyond 128 bits, and nesting beyond our parser's are no error there.
        let halves = text.contains("\\ud") || text.contains("\\uD");
        let digits = text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 38);
        let deep = text.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count() > 100;
        if halves || digits || deep || forged { Err(Unknown::Feature("python_json")) } else { Ok(None) }
    }

    /// The same value, borrowing nothing.
    pub fn into_owned(self) -> Json<'static> {
        self.owned(|text| Json::Text(Cow::Owned(text)))
    }

    /// The same value with not-a-number where its place was kept.
    fn with_nan(self) -> Json<'static> {
        self.owned(|text| if text == NOT_A_NUMBER { Json::Float(f64::NAN) } else { Json::Text(Cow::Owned(text)) })
    }

    /// The same value, borrowing nothing; `text` says what becomes of its texts.
    fn owned(self, text: fn(String) -> Json<'static>) -> Json<'static> {
        match self {
            Json::Null => Json::Null,
            Json::Bool(value) => Json::Bool(value),
            Json::Int(value) => Json::Int(value),
            Json::Float(value) => Json::Float(value),
            Json::Text(own) => text(own.into_owned()),
            Json::List(items) => Json::List(items.into_iter().map(|item| item.owned(text)).collect()),
            Json::Map(fields) => Json::Map(
                fields.into_iter().map(|(key, value)| (Cow::Owned(key.into_owned()), value.owned(text))).collect(),
            ),
        }
    }

    /// The value of an object's field.
    pub fn get(&self, key: &str) -> Option<&Json<'a>> {
        match self {
            Json::Map(fields) => field(fields, key),
            _ => None,
        }
    }

    /// Reads a body that is an object, and puts the texts back that were [lifted](Lifted) out of it.
    ///
    /// # Errors
    /// [`Unknown::Malformed`] if it is none.
    pub fn object(body: &'a [u8], lifted: Option<&'a Lifted>) -> Result<Fields<'a>, Unknown> {
        let text = simdutf8::basic::from_utf8(lifted.map_or(body, |lifted| &lifted.body)).ok();
        match text.and_then(Json::parse).and_then(|json| json.resolved(lifted)) {
            Some(Json::Map(fields)) => Ok(fields),
            _ => Err(Unknown::Malformed),
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn is_null(&self) -> bool {
        matches!(self, Json::Null)
    }

    /// Puts the texts back that were [lifted](Lifted) out of it. `None`: one of them is no UTF-8.
    pub fn resolved(self, lifted: Option<&'a Lifted>) -> Option<Self> {
        let Some(texts) = lifted else { return Some(self) };
        Some(match self {
            Json::Text(text) => Json::Text(texts.text(text)?),
            Json::List(items) => {
                Json::List(items.into_iter().map(|item| item.resolved(lifted)).collect::<Option<_>>()?)
            }
            Json::Map(fields) => Json::Map(
                fields.into_iter().map(|(key, value)| Some((key, value.resolved(lifted)?))).collect::<Option<_>>()?,
            ),
            other => other,
        })
    }
}

/// The value of a field.
pub(super) fn field<'f, 'a>(fields: &'f Fields<'a>, key: &str) -> Option<&'f Json<'a>> {
    fields.iter().find(|(name, _)| name == key).map(|(_, value)| value)
}

/// Takes a field out.
pub(super) fn take<'a>(fields: &mut Fields<'a>, key: &str) -> Option<Json<'a>> {
    let at = fields.iter().position(|(name, _)| name == key)?;
    Some(fields.remove(at).1)
}

/// Takes a field out that is text, absent or null.
pub(super) fn take_text<'a>(fields: &mut Fields<'a>, key: &str) -> Result<Option<Cow<'a, str>>, Unknown> {
    match take(fields, key) {
        Some(Json::Text(text)) => Ok(Some(text)),
        None | Some(Json::Null) => Ok(None),
        Some(_) => Err(Unknown::Malformed),
    }
}

/// Takes a field out that is a list, absent or null.
pub(super) fn take_list<'a>(fields: &mut Fields<'a>, key: &str) -> Result<Option<Vec<Json<'a>>>, Unknown> {
    match take(fields, key) {
        Some(Json::List(items)) => Ok(Some(items)),
        None | Some(Json::Null) => Ok(None),
        Some(_) => Err(Unknown::Malformed),
    }
}

/// Takes a field out that is an object, absent or null.
pub(super) fn take_object<'a>(fields: &mut Fields<'a>, key: &str) -> Result<Option<Fields<'a>>, Unknown> {
    match take(fields, key) {
        Some(Json::Map(inner)) => Ok(Some(inner)),
        None | Some(Json::Null) => Ok(None),
        Some(_) => Err(Unknown::Malformed),
    }
}

/// Takes a field out that is a boolean, absent or null. What pydantic would make one of (`"yes"`, `1`) is refused.
pub(super) fn take_bool(fields: &mut Fields<'_>, key: &str) -> Result<Option<bool>, Unknown> {
    match take(fields, key) {
        Some(Json::Bool(value)) => Ok(Some(value)),
        None | Some(Json::Null) => Ok(None),
        Some(_) => Err(Unknown::Malformed),
    }
}

/// Fields of an object that are looked through one by one while it is read.
const FEW: usize = 16;
/// Most fields of an object.
const MOST: usize = 1024;

/// Under this key serde_json hands over a number as it was written, where it is not a plain integer (its feature
/// `arbitrary_precision`).
const NUMBER: &str = "$serde_json::private::Number";

impl<'de: 'a, 'a> Deserialize<'de> for Json<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Visit)
    }
}

struct Visit;

impl<'de> Visitor<'de> for Visit {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json<'de>, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json<'de>, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json<'de>, E> {
        Ok(Json::Int(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json<'de>, E> {
        Ok(Json::Int(value.into()))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json<'de>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json<'de>, A::Error> {
        let mut fields = Fields::new();
        let mut places: BTreeMap<Cow<'de, str>, usize> = BTreeMap::new();
        while let Some(Key(key)) = map.next_key()? {
            if key == NUMBER && fields.is_empty() {
                let Written(written) = map.next_value()?;
                return number(&written).ok_or_else(|| A::Error::custom("no number"));
            }
            let value = map.next_value()?;
            let before = if fields.len() < FEW {
                fields.iter().position(|(name, _)| *name == key)
            } else {
                if places.is_empty() {
                    places.extend(fields.iter().map(|(name, _)| name.clone()).zip(0..));
                }
                places.get(&key).copied()
            };
            if let Some((_, before)) = before.and_then(|place| fields.get_mut(place)) {
                *before = value;
                continue;
            }
            // What renders it looks for keys one by one.
            if fields.len() == MOST {
                return Err(A::Error::custom("an object with too many keys"));
            }
            if !places.is_empty() {
                places.insert(key.clone(), fields.len());
            }
            fields.push((key, value));
        }
        Ok(Json::Map(fields))
    }
}

/// Keeps the place of a `NaN`. A text that is the same would be taken for it: none is.
const NOT_A_NUMBER: &str = "\u{F8E5}NaN";

/// JSON text with what JSON does not know spelt otherwise, outside of its strings.
fn without_words(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        if next == '"' {
            let mut escaped = false;
            let end = rest.char_indices().skip(1).find(|(_, c)| {
                let ends = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                ends
            });
            let (string, behind) =
                rest.split_at_checked(end.map_or(rest.len(), |(at, _)| at + 1)).unwrap_or((rest, ""));
            out.push_str(string);
            rest = behind;
        } else if let Some(behind) = rest.strip_prefix("NaN").filter(|_| begins(&out, "[,:")) {
            out.extend(['"'].into_iter().chain(NOT_A_NUMBER.chars()).chain(['"']));
            rest = behind;
        } else if let Some(behind) = rest.strip_prefix("Infinity").filter(|_| begins(&out, "[,:-")) {
            out.push_str("1e999");
            rest = behind;
        } else {
            out.push(next);
            rest = rest.get(next.len_utf8()..).unwrap_or("");
        }
    }
    out
}

/// Whether a value may begin behind this text.
fn begins(before: &str, signs: &str) -> bool {
    before.ends_with('-') && signs.contains('-')
        || before.trim_end().chars().next_back().is_none_or(|last| last != '-' && signs.contains(last))
}

/// What Python's `json` makes of a number: an integer unless it has a point or an exponent.
fn number(written: &str) -> Option<Json<'static>> {
    let plain = written.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit());
    if plain { written.parse().ok().map(Json::Int) } else { written.parse().ok().map(Json::Float) }
}

/// A number as serde_json hands it over. An object of a client that looks like one is refused: its texts come otherwise.
struct Written(String);

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_string(VisitWritten)
    }
}

struct VisitWritten;

impl Visitor<'_> for VisitWritten {
    type Value = Written;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Written, E> {
        Err(E::custom("no number"))
    }

    fn visit_string<E>(self, written: String) -> Result<Written, E> {
        Ok(Written(written))
    }
}

/// Serde borrows no map key by itself, and serde_json's key of numbers is no newtype's.
struct Key<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(VisitKey)
    }
}

struct VisitKey;

impl<'de> Visitor<'de> for VisitKey {
    type Value = Key<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Key<'de>, E> {
        Ok(Key(Cow::Borrowed(key)))
    }

    fn visit_str<E>(self, key: &str) -> Result<Key<'de>, E> {
        Ok(Key(Cow::Owned(key.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_what_python_makes_of_them() {
        for (written, read) in [
            ("0", Json::Int(0)),
            ("-0", Json::Int(0)),
            ("12345678901234567890123", Json::Int(12_345_678_901_234_567_890_123)),
            ("1.0", Json::Float(1.0)),
            ("1e3", Json::Float(1000.0)),
            ("1E999", Json::Float(f64::INFINITY)),
        ] {
            assert_eq!(Json::parse(written), Some(read), "{written}");
        }
        let beyond = "9".repeat(50);
        assert_eq!(Json::parse(&beyond), None);
        for forged in [r#"{"$serde_json::private::Number":"5"}"#, r#"{"$serde_json::private::Number":"\u0035"}"#] {
            assert_eq!(Json::parse(forged), None, "{forged}");
        }
    }

    #[test]
    fn what_python_takes_for_json_is_read_or_left_undecided() {
        let read = Json::loads(r#"{"a":[NaN,-Infinity,"NaN\"",1]}"#).unwrap().unwrap();
        let Some(Json::List(items)) = read.get("a") else { panic!() };
        assert!(matches!(items[0], Json::Float(nan) if nan.is_nan()));
        assert_eq!(items[1..], [Json::Float(f64::NEG_INFINITY), Json::Text("NaN\"".into()), Json::Int(1)]);
        for none in ["", "{", "NaNN", "1Infinity", "[1 NaN]", "- Infinity", "-NaN", "{'a':1}", "nan", "\"a\tb\""] {
            assert_eq!(Json::loads(none), Ok(None), "{none}");
        }
        for undecided in [r#"{"a":"\ud800"}"#.to_owned(), "9".repeat(60), "[".repeat(200)] {
            assert_eq!(Json::loads(&undecided), Err(Unknown::Feature("python_json")), "{undecided}");
        }
    }

    #[test]
    fn objects_of_very_many_keys_are_refused_at_once() {
        let object =
            |keys: usize| format!("{{{}}}", (0..keys).map(|n| format!("\"{n}\":0")).collect::<Vec<_>>().join(","));
        assert!(Json::parse(&object(MOST)).is_some());
        assert!(Json::parse(&object(200_000)).is_none());
        let twice = object(100).replace('}', ",\"7\":1,\"99\":2}");
        let Some(Json::Map(fields)) = Json::parse(&twice) else { panic!() };
        assert_eq!((fields.len(), &fields[7].1, &fields[99].1), (100, &Json::Int(1), &Json::Int(2)));
    }

    #[test]
    fn keys_keep_their_first_place_and_last_value() {
        let read = Json::parse(r#"{"b":1,"a":[true,null],"b":"x"}"#).unwrap();
        let Json::Map(fields) = &read else { panic!() };
        assert_eq!(fields.iter().map(|(key, _)| key.as_ref()).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(read.get("b").and_then(Json::as_str), Some("x"));
    }
}
