//! Python's methods of texts, dicts and lists that chat templates call.

use super::text::{casing, python_space, split_lines, strip, word};
use super::values::{self, DOUBT, python_str};
use minijinja::value::{DynObject, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// Calls a method; an unknown one is an error, as in Python.
pub(super) fn call(_: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        return of_text(text, method, args);
    }
    match value.kind() {
        ValueKind::Map => of_dict(value, method, args),
        ValueKind::Seq => of_list(value, method, args),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn of_text(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    Ok(match method {
        "upper" | "lower" | "title" | "capitalize" => {
            let () = from_args(args)?;
            Value::from(casing(text, method)?)
        }
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Value::from(strip(text, chars, method != "rstrip", method != "lstrip"))
        }
        "startswith" | "endswith" => {
            let (affix,): (&Value,) = from_args(args)?;
            let has = |affix: &Value| {
                let affix = affix.as_str().ok_or_else(unknown)?;
                Ok::<_, Error>(if method == "startswith" { text.starts_with(affix) } else { text.ends_with(affix) })
            };
            if affix.is_tuple() {
                let mut any = false;
                for affix in affix.try_iter()? {
                    any |= has(&affix)?;
                }
                Value::from(any)
            } else {
                Value::from(has(affix)?)
            }
        }
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            Value::from(replace(text, old, new, count))
        }
        "removeprefix" | "removesuffix" => {
            let (affix,): (&str,) = from_args(args)?;
            let rest = if method == "removeprefix" { text.strip_prefix(affix) } else { text.strip_suffix(affix) };
            Value::from(rest.unwrap_or(text))
        }
        "split" | "rsplit" => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
            split(text, separator, most, method == "rsplit")?
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            if separator.is_empty() {
                return Err(unknown());
            }
            let found = if method == "partition" { text.split_once(separator) } else { text.rsplit_once(separator) };
            let three = match found {
                Some((before, after)) => [before, separator, after],
                None if method == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            Value::from(Tuple::from(three.map(Value::from)))
        }
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(args)?;
            values::list(split_lines(text, keep.unwrap_or(false)).map(Value::from).collect())
        }
        "join" => {
            let (parts,): (&Value,) = from_args(args)?;
            let mut joined = String::new();
            for (number, part) in parts.try_iter()?.enumerate() {
                if number > 0 {
                    joined.push_str(text);
                }
                // Python joins nothing but texts.
                joined.push_str(part.as_str().ok_or_else(unknown)?);
            }
            Value::from(joined)
        }
        "count" => {
            let (what,): (&str,) = from_args(args)?;
            Value::from(if what.is_empty() { text.chars().count() + 1 } else { text.matches(what).count() })
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (what,): (&str,) = from_args(args)?;
            let at = if method.starts_with('r') { text.rfind(what) } else { text.find(what) };
            match at.and_then(|at| text.get(..at)) {
                Some(before) => Value::from(before.chars().count()),
                None if method.ends_with("find") => Value::from(-1),
                None => return Err(unknown()),
            }
        }
        "format" => Value::from(format(text, args)?),
        "isspace" => {
            let () = from_args(args)?;
            Value::from(!text.is_empty() && text.chars().all(python_space))
        }
        "isascii" => {
            let () = from_args(args)?;
            Value::from(text.is_ascii())
        }
        // Beyond ASCII, these take Unicode's tables.
        _ if !text.is_ascii() => return Err(Error::from(ErrorKind::UnknownMethod)),
        "isdigit" | "isdecimal" | "isnumeric" => {
            let () = from_args(args)?;
            Value::from(!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
        }
        "isalpha" => {
            let () = from_args(args)?;
            Value::from(!text.is_empty() && text.bytes().all(|b| b.is_ascii_alphabetic()))
        }
        "isalnum" => {
            let () = from_args(args)?;
            Value::from(!text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric()))
        }
        "isupper" | "islower" => {
            let () = from_args(args)?;
            let (upper, lower) =
                (text.bytes().any(|b| b.is_ascii_uppercase()), text.bytes().any(|b| b.is_ascii_lowercase()));
            Value::from(if method == "isupper" { upper && !lower } else { lower && !upper })
        }
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

/// What ends as Python does with an exception.
fn unknown() -> Error {
    Error::from(ErrorKind::InvalidOperation)
}

/// `text.replace(old, new, count)`.
pub(super) fn replace(text: &str, old: &str, new: &str, count: Option<i64>) -> String {
    match count.map(usize::try_from) {
        None | Some(Err(_)) => text.replace(old, new),
        Some(Ok(count)) => text.replacen(old, new, count),
    }
}

fn split(text: &str, separator: Option<&str>, most: Option<i64>, from_end: bool) -> Result<Value, Error> {
    let most = most.and_then(|most| usize::try_from(most).ok());
    let mut parts: Vec<&str> = Vec::new();
    match (separator, most) {
        (Some(""), _) => return Err(unknown()),
        (Some(separator), None) => parts.extend(text.split(separator)),
        (Some(separator), Some(most)) if from_end => {
            parts.extend(text.rsplitn(most.saturating_add(1), separator));
            parts.reverse();
        }
        (Some(separator), Some(most)) => parts.extend(text.splitn(most.saturating_add(1), separator)),
        (None, None) => parts.extend(text.split(python_space).filter(|part| !part.is_empty())),
        (None, Some(_)) if from_end => return Err(unknown()),
        (None, Some(most)) => {
            let mut rest = strip(text, None, true, false);
            while !rest.is_empty() {
                let (part, behind) = if parts.len() < most { word(rest) } else { (rest, "") };
                parts.push(part);
                rest = strip(behind, None, true, false);
            }
        }
    }
    Ok(values::list(parts.into_iter().map(Value::from).collect()))
}

/// `text.format(...)` with nothing but `{}` and `{0}` in it.
fn format(text: &str, args: &[Value]) -> Result<String, Error> {
    let mut out = String::new();
    let mut next = 0;
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        if let Some(behind) = from.strip_prefix("{{") {
            out.push('{');
            rest = behind;
        } else if let Some(behind) = from.strip_prefix("}}") {
            out.push('}');
            rest = behind;
        } else {
            let (field, behind) = from.strip_prefix('{').and_then(|from| from.split_once('}')).ok_or_else(unknown)?;
            let number = if field.is_empty() { next } else { field.parse().map_err(|_| unknown())? };
            next += 1;
            let value = args.get(number).filter(|value| !value.is_kwargs()).ok_or_else(unknown)?;
            out.push_str(&python_str(value));
            rest = behind;
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn of_dict(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let pairs = || value.as_object().and_then(DynObject::try_iter_pairs).ok_or_else(unknown);
    Ok(match method {
        "get" => {
            let (key, default): (&Value, Option<Value>) = from_args(args)?;
            let found = value.as_object().and_then(|object| object.get_value(key));
            found.unwrap_or_else(|| default.unwrap_or(Value::from(())))
        }
        "items" => {
            let () = from_args(args)?;
            View::of(pairs()?.map(|(key, value)| Value::from(Tuple::from([key, value]))).collect())
        }
        "keys" => {
            let () = from_args(args)?;
            View::of(pairs()?.map(|(key, _)| key).collect())
        }
        "values" => {
            let () = from_args(args)?;
            View::of(pairs()?.map(|(_, value)| value).collect())
        }
        "copy" => {
            let () = from_args(args)?;
            values::map(pairs()?.collect())
        }
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

fn of_list(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (what,): (&Value,) = from_args(args)?;
    let mut items = value.try_iter()?;
    Ok(match method {
        "count" => Value::from(items.filter(|item| item == what).count()),
        "index" => Value::from(items.position(|item| item == *what).ok_or_else(unknown)?),
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

/// A view of a dict: gone through as often as one likes, false if empty, never indexed.
#[derive(Debug)]
pub(super) struct View(Vec<Value>);

impl View {
    /// A view of these.
    pub fn of(items: Vec<Value>) -> Value {
        Value::from_object(View(items))
    }
}

impl minijinja::value::Object for View {
    fn repr(self: &std::sync::Arc<Self>) -> minijinja::value::ObjectRepr {
        minijinja::value::ObjectRepr::Iterable
    }

    fn enumerate(self: &std::sync::Arc<Self>) -> minijinja::value::Enumerator {
        minijinja::value::Enumerator::Values(self.0.clone())
    }

    fn render(self: &std::sync::Arc<Self>, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{DOUBT}")
    }
}
