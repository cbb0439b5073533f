//! Jinja's filters, as Jinja2 has them. One that is not here makes the prompt unknown where a template asks for it.

use super::methods::replace;
use super::text::{casing, split_lines, strip};
use super::values::{self, Float, Generator, List, Map, python_str};
use crate::order::sort_by;
use crate::prompt::json::{Fields, Json};
use crate::prompt::json_text::{self, Style};
use minijinja::value::{DynObject, Kwargs, Rest, Tuple, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};
use std::borrow::Cow;
use std::collections::BTreeSet;

/// Adds all that are known.
pub(super) fn add(env: &mut Environment<'_>) {
    env.add_filter("trim", |value: Value, chars: Option<Cow<'_, str>>| {
        strip(&python_str(&value), chars.as_deref(), true, true).to_owned()
    });
    env.add_filter("tojson", tojson);
    for name in ["length", "count"] {
        env.add_filter(name, length);
    }
    for name in ["default", "d"] {
        env.add_filter(name, default);
    }
    // Where it matters that its text would not be escaped, the template is refused (`screen`).
    env.add_filter("safe", |value: Value| text(&value));
    env.add_filter("string", |value: Value| text(&value));
    env.add_filter("int", int);
    env.add_filter("float", float);
    env.add_filter("abs", filters::abs);
    for name in ["upper", "lower", "capitalize"] {
        env.add_filter(name, move |value: Value| casing(&python_str(&value), name));
    }
    env.add_filter("title", title);
    env.add_filter("replace", |value: Value, old: Value, new: Value, count: Option<i64>| {
        replace(&python_str(&value), &python_str(&old), &python_str(&new), count)
    });
    env.add_filter("indent", indent);
    env.add_filter("join", join);
    env.add_filter("list", list);
    env.add_filter("first", |value: Value| value.try_iter()?.checked().next().unwrap_or(Ok(Value::UNDEFINED)));
    env.add_filter("last", |value: Value| Ok::<_, Error>(items(&value)?.pop().unwrap_or_default()));
    env.add_filter("reverse", reverse);
    for name in ["min", "max"] {
        env.add_filter(name, move |value: Value| extreme(&value, name == "max"));
    }
    env.add_filter("sort", sort);
    env.add_filter("unique", unique);
    env.add_filter("items", pairs);
    env.add_filter("dictsort", dictsort);
    env.add_filter("map", |state: &mut State<'_, '_>, value: Value, args: Rest<ValueOrKwargs>| {
        lazily(&value.clone(), || filters::map(state, value, args))
    });
    env.add_filter(
        "select",
        |state: &mut State<'_, '_>, value: Value, test: Option<Cow<'_, str>>, args: Rest<ValueOrKwargs>| {
            lazily(&value.clone(), || filters::select(state, value, test, args))
        },
    );
    env.add_filter(
        "reject",
        |state: &mut State<'_, '_>, value: Value, test: Option<Cow<'_, str>>, args: Rest<ValueOrKwargs>| {
            lazily(&value.clone(), || filters::reject(state, value, test, args))
        },
    );
    env.add_filter(
        "selectattr",
        |state: &mut State<'_, '_>,
         value: Value,
         name: Cow<'_, str>,
         test: Option<Cow<'_, str>>,
         args: Rest<ValueOrKwargs>| {
            lazily(&value.clone(), || filters::selectattr(state, value, name, test, args))
        },
    );
    env.add_filter(
        "rejectattr",
        |state: &mut State<'_, '_>,
         value: Value,
         name: Cow<'_, str>,
         test: Option<Cow<'_, str>>,
         args: Rest<ValueOrKwargs>| {
            lazily(&value.clone(), || filters::rejectattr(state, value, name, test, args))
        },
    );
}

/// What ends as Python does with an exception, or as here without an answer.
fn unknown() -> Error {
    Error::from(ErrorKind::InvalidOperation)
}

/// `str(value)`; a text stays the value it is.
fn text(value: &Value) -> Value {
    if value.as_str().is_some() { value.clone() } else { Value::from(python_str(value)) }
}

fn items(value: &Value) -> Result<Vec<Value>, Error> {
    if value.is_none() {
        return Err(unknown());
    }
    value.try_iter()?.checked().collect()
}

/// Of what is false there is nothing to go through, whatever it is.
fn lazily(value: &Value, all: impl FnOnce() -> Result<Vec<Value>, Error>) -> Result<Value, Error> {
    if value.is_true() { all().map(Generator::of) } else { Ok(Generator::of(Vec::new())) }
}

/// `json.dumps`, with the arguments that transformers' filter has, in its order.
fn tojson(
    value: Value,
    ensure_ascii: Option<bool>,
    indent: Option<Value>,
    others: Rest<Value>,
    named: Kwargs,
) -> Result<String, Error> {
    let ensure_ascii = ensure_ascii.or(named.get("ensure_ascii")?).unwrap_or(false);
    let indent: Option<Value> = indent.or(named.get("indent")?).filter(|indent| !indent.is_none());
    let separators: Option<Value> = others.first().cloned().or(named.get("separators")?).filter(|both| !both.is_none());
    let sort_keys: Option<Value> = others.get(1).cloned().or(named.get("sort_keys")?);
    let sort_keys = sort_keys.is_some_and(|flag| flag.is_true());
    named.assert_all_used()?;
    let indent = match indent {
        None => None,
        Some(indent) => Some(match (indent.as_str(), indent.as_i64()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(..=64)) if indent.is_integer() => " ".repeat(indent.as_usize().unwrap_or(0)),
            _ => return Err(unknown()),
        }),
    };
    let mut style = Style { ensure_ascii, indent, sort_keys, ..Style::PLAIN };
    if style.indent.is_some() {
        style.item = ",".into();
    }
    if let Some(both) = separators {
        let [item, key] = items(&both)?.try_into().map_err(|_| unknown())?;
        style.item = item.as_str().ok_or_else(unknown)?.to_owned().into();
        style.key = key.as_str().ok_or_else(unknown)?.to_owned().into();
    }
    let mut out = String::new();
    json_text::write(&json(&value, 0)?, &style, &mut out);
    if style.indent.is_some() && out.len() > json_text::LONGEST { Err(unknown()) } else { Ok(out) }
}

/// Deeper values are refused: they would take the stack with them.
const DEEPEST: usize = 128;

fn json(value: &Value, depth: usize) -> Result<Json<'_>, Error> {
    if depth > DEEPEST {
        return Err(unknown());
    }
    if let Some(text) = value.as_str() {
        return Ok(Json::Text(Cow::Borrowed(text)));
    }
    let owned = |value: &Value| json(value, depth + 1).map(Json::into_owned);
    Ok(match value.kind() {
        ValueKind::None => Json::Null,
        ValueKind::Bool => Json::Bool(value.is_true()),
        ValueKind::Number if value.is_integer() => Json::Int(i128::try_from(value.clone()).map_err(|_| unknown())?),
        ValueKind::Number => Json::Float(f64::try_from(value.clone()).map_err(|_| unknown())?),
        // The usual lists and dicts are read in place.
        ValueKind::Seq => Json::List(match value.downcast_object_ref::<List>() {
            Some(List(items)) => items.iter().map(|item| json(item, depth + 1)).collect::<Result<_, Error>>()?,
            None => value.try_iter()?.map(|item| owned(&item)).collect::<Result<_, Error>>()?,
        }),
        ValueKind::Map => {
            if let Some(Map(fields)) = value.downcast_object_ref::<Map>() {
                let field = |(key, value)| Ok((Cow::Borrowed(key_of(key)?), json(value, depth + 1)?));
                return Ok(Json::Map(
                    fields.iter().map(|(key, value)| field((key, value))).collect::<Result<_, Error>>()?,
                ));
            }
            let fields = value.as_object().and_then(DynObject::try_iter_pairs).ok_or_else(unknown)?;
            let field = |(key, value): (Value, Value)| Ok((Cow::Owned(key_of(&key)?.to_owned()), owned(&value)?));
            Json::Map(fields.map(field).collect::<Result<Fields<'_>, Error>>()?)
        }
        _ => Json::Float(value.downcast_object_ref::<Float>().ok_or_else(unknown)?.0),
    })
}

fn key_of(key: &Value) -> Result<&str, Error> {
    key.as_str().ok_or_else(unknown)
}

fn length(value: Value) -> Result<usize, Error> {
    if value.is_undefined() { Ok(0) } else { value.len().ok_or_else(unknown) }
}

fn default(value: Value, other: Option<Value>, if_false: Option<Value>, named: Kwargs) -> Result<Value, Error> {
    let other = other.or(named.get("default_value")?);
    let if_false = if_false.or(named.get("boolean")?).is_some_and(|flag| flag.is_true());
    named.assert_all_used()?;
    let missing = value.is_undefined() || if_false && !value.is_true();
    Ok(if missing { other.unwrap_or_else(|| Value::from("")) } else { value })
}

/// Digits with a sign, as `int` and `float` take them; what else they take is unknown here.
fn int(value: Value, default: Option<Value>) -> Result<Value, Error> {
    let default = || default.clone().unwrap_or_else(|| Value::from(0));
    if let Some(text) = value.as_str() {
        let text = strip(text, None, true, true);
        return match text.parse::<i64>() {
            Ok(int) => Ok(Value::from(int)),
            // A word is no number in Python either; a point, an underscore, or digits of another script may make one.
            Err(_) if text.chars().all(|c| c.is_ascii_alphabetic() || c == ' ') && !number_word(text) => Ok(default()),
            Err(_) => Err(unknown()),
        };
    }
    match value.kind() {
        ValueKind::Number if value.is_integer() => Ok(value),
        ValueKind::Number => match f64::try_from(value) {
            Ok(float) if float.abs() < 1e15 => Ok(Value::from(float.trunc() as i64)),
            _ => Err(unknown()),
        },
        ValueKind::Bool => Ok(Value::from(i64::from(value.is_true()))),
        ValueKind::Plain => Err(unknown()),
        _ => Ok(default()),
    }
}

fn float(value: Value, default: Option<Value>) -> Result<Value, Error> {
    let default = || default.clone().unwrap_or_else(|| Value::from(0.0));
    if let Some(text) = value.as_str() {
        let text = strip(text, None, true, true);
        let plain = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'+' | b'e' | b'E'));
        return match text.parse::<f64>() {
            Ok(float) if plain => Ok(values::value(&Json::Float(float))),
            _ if text.chars().all(|c| c.is_ascii_alphabetic() || c == ' ') && !number_word(text) => Ok(default()),
            _ => Err(unknown()),
        };
    }
    match value.kind() {
        ValueKind::Number => Ok(values::value(&Json::Float(f64::try_from(value)?))),
        ValueKind::Bool => Ok(Value::from(if value.is_true() { 1.0 } else { 0.0 })),
        ValueKind::Plain => Err(unknown()),
        _ => Ok(default()),
    }
}

fn number_word(text: &str) -> bool {
    ["inf", "infinity", "nan"].iter().any(|word| text.eq_ignore_ascii_case(word))
}

/// Begins words anew behind spaces, hyphens and opening brackets, and at nothing else.
fn title(value: Value) -> Result<String, Error> {
    let text = python_str(&value);
    if !text.is_ascii() {
        return Err(unknown());
    }
    let mut begins = true;
    let cased = text.chars().map(|c| {
        let cased = if begins { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() };
        begins = c == '-' || super::text::python_space(c) || "({[<".contains(c);
        cased
    });
    Ok(cased.collect())
}

fn indent(
    value: Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    named: Kwargs,
) -> Result<String, Error> {
    let width: Option<Value> = width.or(named.get("width")?);
    let first = first.or(named.get("first")?).unwrap_or(false);
    let blank = blank.or(named.get("blank")?).unwrap_or(false);
    named.assert_all_used()?;
    let by = match &width {
        None => "    ".to_owned(),
        Some(width) => match (width.as_str(), width.as_usize()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(width)) if width <= 1024 => " ".repeat(width),
            _ => return Err(unknown()),
        },
    };
    let mut text = value.as_str().ok_or_else(unknown)?.to_owned();
    // As Jinja2 does, so that a newline at the end leaves an empty line.
    text.push('\n');
    let mut out = if first { by.clone() } else { String::new() };
    for (number, line) in split_lines(&text, false).enumerate() {
        if number > 0 {
            out.push('\n');
            if blank || !line.is_empty() {
                out.push_str(&by);
            }
        }
        out.push_str(line);
    }
    Ok(out)
}

fn join(value: Value, between: Option<Value>, attribute: Option<Value>, named: Kwargs) -> Result<String, Error> {
    let between = python_str(&between.or(named.get("d")?).unwrap_or_else(|| Value::from("")));
    let attribute: Option<Value> = attribute.or(named.get("attribute")?).filter(|name| !name.is_none());
    named.assert_all_used()?;
    let mut out = String::new();
    for (number, item) in items(&value)?.into_iter().enumerate() {
        if number > 0 {
            out.push_str(&between);
        }
        let item = match &attribute {
            Some(name) if name.as_str().is_some_and(|name| !name.contains('.')) => item.get_item(name)?,
            Some(_) => return Err(unknown()),
            None => item,
        };
        values::print(&item, &mut out);
    }
    Ok(out)
}

fn list(value: Value) -> Result<Value, Error> {
    if value.kind() == ValueKind::Seq && !value.is_tuple() {
        return Ok(value);
    }
    items(&value).map(values::list)
}

fn reverse(value: Value) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        return Ok(Value::from(text.chars().rev().collect::<String>()));
    }
    let mut all = items(&value)?;
    all.reverse();
    Ok(Generator::of(all))
}

/// Of integers alone: what Jinja2 makes of other values is unknown here.
fn extreme(value: &Value, greatest: bool) -> Result<Value, Error> {
    let int = |item: Value| if item.is_integer() { i64::try_from(item) } else { Err(unknown()) };
    let all = items(value)?.into_iter().map(int).collect::<Result<Vec<i64>, Error>>()?;
    let found = if greatest { all.into_iter().max() } else { all.into_iter().min() };
    Ok(found.map_or(Value::UNDEFINED, Value::from))
}

/// Texts without regard to case; or integers. What Python makes of others is unknown here.
fn sort_key(value: &Value, case_sensitive: bool) -> Result<(String, i128), Error> {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => Ok((if case_sensitive { text.to_owned() } else { text.to_lowercase() }, 0)),
        (None, ValueKind::Number) if value.is_integer() => {
            Ok((String::new(), i128::try_from(value.clone()).map_err(|_| unknown())?))
        }
        _ => Err(unknown()),
    }
}

fn sorted(
    all: Vec<Value>,
    key: impl Fn(&Value) -> Result<Value, Error>,
    case: bool,
    reverse: bool,
) -> Result<Vec<Value>, Error> {
    let keyed = all.into_iter().map(|item| {
        let key = key(&item)?;
        Ok((key.as_str().is_some(), sort_key(&key, case)?, item))
    });
    let mut keyed = keyed.collect::<Result<Vec<_>, Error>>()?;
    if keyed.iter().any(|(text, ..)| *text) && keyed.iter().any(|(text, ..)| !*text) {
        return Err(unknown());
    }
    // Both sorts are stable; Python's is when it is reversed, too.
    sort_by(&mut keyed, |(_, a, _), (_, b, _)| if reverse { b.cmp(a) } else { a.cmp(b) });
    Ok(keyed.into_iter().map(|(.., item)| item).collect())
}

fn sort(value: Value, reverse: Option<bool>, case: Option<bool>, named: Kwargs) -> Result<Value, Error> {
    let reverse = reverse.or(named.get("reverse")?).unwrap_or(false);
    let case = case.or(named.get("case_sensitive")?).unwrap_or(false);
    let attribute: Option<String> = named.get("attribute")?;
    named.assert_all_used()?;
    let key = |item: &Value| match &attribute {
        Some(name) if !name.contains(['.', ',']) => item.get_item(&Value::from(name.as_str())),
        Some(_) => Err(unknown()),
        None => Ok(item.clone()),
    };
    sorted(items(&value)?, key, case, reverse).map(values::list)
}

fn unique(value: Value) -> Result<Value, Error> {
    let mut seen = BTreeSet::new();
    let mut kept = Vec::new();
    for item in items(&value)? {
        if seen.insert((item.as_str().is_some(), sort_key(&item, false)?)) {
            kept.push(item);
        }
    }
    Ok(Generator::of(kept))
}

fn pairs(value: Value) -> Result<Value, Error> {
    if value.is_undefined() {
        return Ok(Generator::of(Vec::new()));
    }
    let pairs = value.as_object().filter(|_| value.kind() == ValueKind::Map).and_then(DynObject::try_iter_pairs);
    let pairs = pairs.ok_or_else(unknown)?;
    Ok(Generator::of(pairs.map(|(key, value)| Value::from(Tuple::from([key, value]))).collect()))
}

fn dictsort(
    value: Value,
    case: Option<bool>,
    by: Option<String>,
    reverse: Option<bool>,
    named: Kwargs,
) -> Result<Value, Error> {
    let case = case.or(named.get("case_sensitive")?).unwrap_or(false);
    let by: Option<String> = by.or(named.get("by")?);
    let reverse = reverse.or(named.get("reverse")?).unwrap_or(false);
    named.assert_all_used()?;
    let place = match by.as_deref() {
        None | Some("key") => 0,
        Some("value") => 1,
        Some(_) => return Err(unknown()),
    };
    let pairs = value.as_object().filter(|_| value.kind() == ValueKind::Map).and_then(DynObject::try_iter_pairs);
    let pairs = pairs.ok_or_else(unknown)?.map(|(key, value)| Value::from(Tuple::from([key, value]))).collect();
    sorted(pairs, |pair| pair.get_item(&Value::from(place)), case, reverse).map(values::list)
}
