//! Jinja's tests (`is defined`), as Jinja2 has them.

use super::values::Float;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Value, tests};

/// Adds all that are known.
pub(super) fn add(env: &mut Environment<'_>) {
    env.add_test("defined", tests::is_defined);
    env.add_test("undefined", tests::is_undefined);
    env.add_test("none", |value: &Value| value.is_none());
    env.add_test("true", |value: &Value| value.kind() == ValueKind::Bool && value.is_true());
    env.add_test("false", |value: &Value| value.kind() == ValueKind::Bool && !value.is_true());
    env.add_test("boolean", |value: &Value| value.kind() == ValueKind::Bool);
    // Python's bool is a number, too.
    env.add_test("number", |value: &Value| {
        matches!(value.kind(), ValueKind::Number | ValueKind::Bool) || value.downcast_object_ref::<Float>().is_some()
    });
    env.add_test("integer", |value: &Value| value.kind() == ValueKind::Number && value.is_integer());
    env.add_test("float", |value: &Value| {
        value.kind() == ValueKind::Number && !value.is_integer() || value.downcast_object_ref::<Float>().is_some()
    });
    env.add_test("string", |value: &Value| value.as_str().is_some());
    env.add_test("mapping", |value: &Value| value.kind() == ValueKind::Map);
    // What has a length and can be indexed, texts and dicts and what is undefined among it.
    env.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined)
            || value.kind() == ValueKind::Iterable && value.len().is_some()
    });
    env.add_test("iterable", |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined | ValueKind::Iterable
        )
    });
    env.add_test("odd", tests::is_odd);
    env.add_test("even", tests::is_even);
    env.add_test("divisibleby", tests::is_divisibleby);
    env.add_test("in", tests::is_in);
    // Of these only the identity is sure.
    env.add_test("sameas", |value: &Value, other: &Value| match (value.kind(), other.kind()) {
        (ValueKind::Bool | ValueKind::None, _) | (_, ValueKind::Bool | ValueKind::None) => {
            Ok(value.kind() == other.kind() && value == other)
        }
        _ => Err(Error::from(ErrorKind::InvalidOperation)),
    });
    for name in ["eq", "equalto", "=="] {
        env.add_test(name, tests::is_eq);
    }
    for name in ["ne", "!="] {
        env.add_test(name, tests::is_ne);
    }
    for name in ["lt", "lessthan", "<"] {
        env.add_test(name, tests::is_lt);
    }
    for name in ["le", "<="] {
        env.add_test(name, tests::is_le);
    }
    for name in ["gt", "greaterthan", ">"] {
        env.add_test(name, tests::is_gt);
    }
    for name in ["ge", ">="] {
        env.add_test(name, tests::is_ge);
    }
}
