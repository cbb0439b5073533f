//! JSON as rendering needs it: keys keep their order, integers are told from floats, texts are borrowed.

use super::Unknown;
use super::lift::Lifted;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
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
        while let Some(Key(key)) = map.next_key()? {
            if key == NUMBER && fields.is_empty() {
                let written: String = map.next_value()?;
                return number(&written).ok_or_else(|| A::Error::custom("no number"));
            }
            let value = map.next_value()?;
            match fields.iter_mut().find(|(name, _)| *name == key) {
                Some((_, before)) => *before = value,
                None => fields.push((key, value)),
            }
        }
        Ok(Json::Map(fields))
    }
}

/// What Python's `json` makes of a number: an integer unless it has a point or an exponent.
fn number(written: &str) -> Option<Json<'static>> {
    let plain = written.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit());
    if plain { written.parse().ok().map(Json::Int) } else { written.parse().ok().map(Json::Float) }
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
        assert_eq!(Json::parse(r#"{"$serde_json::private::Number":"x"}"#), None);
    }

    #[test]
    fn keys_keep_their_first_place_and_last_value() {
        let read = Json::parse(r#"{"b":1,"a":[true,null],"b":"x"}"#).unwrap();
        let Json::Map(fields) = &read else { panic!() };
        assert_eq!(fields.iter().map(|(key, _)| key.as_ref()).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(read.get("b").and_then(Json::as_str), Some("x"));
    }
}
