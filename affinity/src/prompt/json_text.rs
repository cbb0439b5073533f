//! JSON as text, as Python's `json` writes and reads it.

use super::json::Json;
use crate::order::sort_by;
use std::borrow::Cow;
use std::fmt::Write;

/// The arguments of `json.dumps` that change its text.
#[derive(Clone, Debug)]
pub(super) struct Style {
    /// All but printable ASCII becomes `\u` escapes; beyond the first plane, two of them.
    pub ensure_ascii: bool,
    /// Between items. Python's default is `", "`, but `","` where there is an [indent](Style::indent).
    pub item: Cow<'static, str>,
    /// Between a key and its value. Python's default is `": "`.
    pub key: Cow<'static, str>,
    /// Each item is on a line of its own, behind this once per level.
    pub indent: Option<String>,
    /// Keys come in the order of their code points.
    pub sort_keys: bool,
}

impl Style {
    /// `json.dumps(value, ensure_ascii=False)`.
    pub const PLAIN: Style = Style {
        ensure_ascii: false,
        item: Cow::Borrowed(", "),
        key: Cow::Borrowed(": "),
        indent: None,
        sort_keys: false,
    };
}

/// Appends the text of a value.
pub(super) fn write(json: &Json<'_>, style: &Style, out: &mut String) {
    write_within(json, style, 0, out);
}

/// Longest text written with indents, in bytes: they can make a value two hundred times as long. What is longer is cut,
/// and to be refused by who asked for it.
pub(super) const LONGEST: usize = 4 << 20;

/// `level`: how many lists and objects the value is in.
fn write_within(json: &Json<'_>, style: &Style, level: usize, out: &mut String) {
    if style.indent.is_some() && out.len() > LONGEST {
        return;
    }
    match json {
        Json::Null => out.push_str("null"),
        Json::Bool(true) => out.push_str("true"),
        Json::Bool(false) => out.push_str("false"),
        // Writing to a string does not fail.
        Json::Int(int) => write!(out, "{int}").unwrap_or_default(),
        Json::Float(float) => out.push_str(&match *float {
            f64::INFINITY => "Infinity".into(),
            f64::NEG_INFINITY => "-Infinity".into(),
            float if float.is_nan() => "NaN".into(),
            float => python_float(float),
        }),
        Json::Text(text) => write_text(text, style.ensure_ascii, out),
        Json::List(items) => {
            out.push('[');
            for (number, item) in items.iter().enumerate() {
                begin_item(number == 0, style, level, out);
                write_within(item, style, level + 1, out);
            }
            end_items(items.is_empty(), style, level, out);
            out.push(']');
        }
        Json::Map(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            if style.sort_keys {
                // UTF-8 sorts as its code points do.
                sort_by(&mut fields, |(a, _), (b, _)| a.cmp(b));
            }
            out.push('{');
            for (number, (key, value)) in fields.iter().enumerate() {
                begin_item(number == 0, style, level, out);
                write_text(key, style.ensure_ascii, out);
                out.push_str(&style.key);
                write_within(value, style, level + 1, out);
            }
            end_items(fields.is_empty(), style, level, out);
            out.push('}');
        }
    }
}

fn begin_item(first: bool, style: &Style, level: usize, out: &mut String) {
    if !first {
        out.push_str(&style.item);
    }
    break_line(style, level + 1, out);
}

fn end_items(none: bool, style: &Style, level: usize, out: &mut String) {
    if !none {
        break_line(style, level, out);
    }
}

fn break_line(style: &Style, level: usize, out: &mut String) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        out.extend(std::iter::repeat_n(indent.as_str(), level));
    }
}

/// Appends a string literal.
pub(super) fn write_text(text: &str, ensure_ascii: bool, out: &mut String) {
    out.push('"');
    let mut rest = text;
    while let Some(at) = rest.bytes().position(|byte| special(byte, ensure_ascii)) {
        let (plain, from) = rest.split_at(at);
        out.push_str(plain);
        let mut chars = from.chars();
        if let Some(c) = chars.next() {
            escape(c, out);
        }
        rest = chars.as_str();
    }
    out.push_str(rest);
    out.push('"');
}

/// Only the first byte of a character is asked for: within one, all have the same answer.
fn special(byte: u8, ensure_ascii: bool) -> bool {
    byte < b' ' || byte == b'"' || byte == b'\\' || ensure_ascii && byte >= 0x7f
}

fn escape(c: char, out: &mut String) {
    let short = match c {
        '"' | '\\' => c,
        '\n' => 'n',
        '\r' => 'r',
        '\t' => 't',
        '\u{8}' => 'b',
        '\u{c}' => 'f',
        _ => {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str("\\u");
                for shift in [12, 8, 4, 0] {
                    out.extend(char::from_digit(u32::from(*unit) >> shift & 15, 16));
                }
            }
            return;
        }
    };
    out.push('\\');
    out.push(short);
}

/// Python's `repr` of a float: the fewest digits that read as the same number, with an exponent below 1e-4 and from 1e16.
pub(super) fn python_float(float: f64) -> String {
    if float.is_nan() {
        return "nan".into();
    }
    if float.is_infinite() {
        return if float > 0.0 { "inf".into() } else { "-inf".into() };
    }
    // As in `-1.25e-7`. Where two such texts are equally near, Rust takes the greater one and Python the even one, which
    // is what Rust writes when asked for as many digits.
    let shortest = format!("{float:e}");
    let digits = shortest.bytes().take_while(|byte| *byte != b'e').filter(u8::is_ascii_digit).count();
    let rounded = format!("{float:.*e}", digits.saturating_sub(1));
    let scientific = if rounded.parse() == Ok(float) { rounded } else { shortest };
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.unsigned_abs());
    }
    let mut out = String::from(if float.is_sign_negative() { "-" } else { "" });
    let mut digits = digits.chars().filter(char::is_ascii_digit);
    if exponent < 0 {
        out.push_str("0.");
        out.extend((exponent..-1).map(|_| '0'));
        out.extend(digits);
        return out;
    }
    out.extend((0..=exponent).map(|_| digits.next().unwrap_or('0')));
    out.push('.');
    out.push(digits.next().unwrap_or('0'));
    out.extend(digits);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dumped(json: &str, style: &Style) -> String {
        let mut out = String::new();
        write(&Json::parse(json).unwrap(), style, &mut out);
        out
    }

    #[test]
    fn floats_are_written_as_python_writes_them() {
        // `repr` of CPython 3.11.
        for (float, written) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (100.0, "100.0"),
            (1e15, "1000000000000000.0"),
            (9_999_999_999_999_998.0, "9999999999999998.0"),
            (1e16, "1e+16"),
            (-1.5e16, "-1.5e+16"),
            (1.234_567_890_123_456_8e17, "1.2345678901234568e+17"),
            (1e100, "1e+100"),
            (0.0001, "0.0001"),
            (0.000_123, "0.000123"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (-2.5e-300, "-2.5e-300"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::MIN_POSITIVE, "2.2250738585072014e-308"),
            (0.1 + 0.2, "0.30000000000000004"),
            (9_007_199_254_740_993.0, "9007199254740992.0"),
            (1_223_383_794_756_801.0 + 0.25, "1223383794756801.2"),
            (2_f64.powi(-44), "5.684341886080802e-14"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(python_float(float), written);
        }
    }

    #[test]
    fn numbers_beyond_floats_are_written_as_python_writes_them() {
        let written = dumped("[1e400,-1e400,1E3,-0,-0.0,170141183460469231731687303715884105727]", &Style::PLAIN);
        assert_eq!(written, "[Infinity, -Infinity, 1000.0, 0, -0.0, 170141183460469231731687303715884105727]");
        let mut nan = String::new();
        write(&Json::Float(f64::NAN), &Style::PLAIN, &mut nan);
        assert_eq!(nan, "NaN");
    }

    #[test]
    fn texts_are_escaped_as_python_escapes_them() {
        let json = r#""\"\\\/\b\f\n\r\t\u0000\u001f\u007f é\u2028\uffff😀""#;
        assert_eq!(dumped(json, &Style::PLAIN), "\"\\\"\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f\u{7f} é\u{2028}\u{ffff}😀\"");
        let ascii = Style { ensure_ascii: true, ..Style::PLAIN };
        assert_eq!(dumped(json, &ascii), r#""\"\\/\b\f\n\r\t\u0000\u001f\u007f \u00e9\u2028\uffff\ud83d\ude00""#);
    }

    #[test]
    fn lists_and_objects_take_separators_indents_and_order() {
        let json = r#"{"b":[1,{"x":null}],"a":{},"é":[],"aa":[true,false],"😀":"","\uffff":2}"#;
        assert_eq!(
            dumped(json, &Style::PLAIN),
            "{\"b\": [1, {\"x\": null}], \"a\": {}, \"é\": [], \"aa\": [true, false], \"😀\": \"\", \"\u{ffff}\": 2}"
        );
        let tight = Style { item: ",".into(), key: ":".into(), sort_keys: true, ..Style::PLAIN };
        assert_eq!(
            dumped(json, &tight),
            "{\"a\":{},\"aa\":[true,false],\"b\":[1,{\"x\":null}],\"é\":[],\"\u{ffff}\":2,\"😀\":\"\"}"
        );
        let lines = Style { item: ",".into(), indent: Some("  ".into()), ..Style::PLAIN };
        assert_eq!(
            dumped(r#"{"b":[1,{"x":null}],"a":{},"c":[]}"#, &lines),
            "{\n  \"b\": [\n    1,\n    {\n      \"x\": null\n    }\n  ],\n  \"a\": {},\n  \"c\": []\n}"
        );
        // Python breaks lines at an empty indent, too.
        let flat = Style { item: ",".into(), indent: Some(String::new()), ..Style::PLAIN };
        assert_eq!(dumped("[1,[2]]", &flat), "[\n1,\n[\n2\n]\n]");
    }

    proptest! {
        #[test]
        fn what_is_written_reads_as_the_same(text in ".*", ascii in any::<bool>(), float in any::<f64>()) {
            let style = Style { ensure_ascii: ascii, ..Style::PLAIN };
            let mut out = String::new();
            write(&Json::Text(text.as_str().into()), &style, &mut out);
            prop_assert!(!ascii || out.is_ascii());
            prop_assert_eq!(Json::parse(&out), Some(Json::Text(text.into())));
            prop_assume!(float.is_finite());
            let written = python_float(float);
            prop_assert_eq!(Json::parse(&written), Some(Json::Float(float)));
        }
    }
}
