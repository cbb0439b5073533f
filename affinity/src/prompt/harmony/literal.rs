//! JSON values as they stand among the tools: written by Python, read and written again by serde_json 1.0.149, of
//! oss-harmony.

use crate::prompt::json::Json;
use crate::prompt::json_text::{python_float, write_text};

/// Writes a value without any space. Recurses as deep as the value is, which its parser bounds.
///
/// `None`: serde_json refuses a number of it, such as Python's `Infinity`.
pub(super) fn write(value: &Json<'_>, out: &mut String) -> Option<()> {
    match value {
        Json::Null => out.push_str("null"),
        Json::Bool(true) => out.push_str("true"),
        Json::Bool(false) => out.push_str("false"),
        Json::Int(value) => {
            let written = value.to_string();
            let fits = i64::try_from(*value).is_ok() || u64::try_from(*value).is_ok();
            out.push_str(&if fits { written } else { float(read(&written)?) });
        }
        Json::Float(value) if value.is_finite() => out.push_str(&float(read(&python_float(*value))?)),
        Json::Float(_) => return None,
        Json::Text(text) => write_text(text, false, out),
        Json::List(items) => {
            out.push('[');
            for (number, item) in items.iter().enumerate() {
                out.push_str(if number > 0 { "," } else { "" });
                write(item, out)?;
            }
            out.push(']');
        }
        Json::Map(fields) => {
            out.push('{');
            for (number, (key, value)) in fields.iter().enumerate() {
                out.push_str(if number > 0 { "," } else { "" });
                write_text(key, false, out);
                out.push(':');
                write(value, out)?;
            }
            out.push('}');
        }
    }
    Some(())
}

/// The float that serde_json reads, which is not always the nearest: it rounds the digits, and then what it makes of
/// them with the exponent. `None`: too large.
fn read(written: &str) -> Option<f64> {
    let (mantissa, exponent) = written.split_once('e').unwrap_or((written, "0"));
    let mut exponent: i32 = exponent.parse().ok()?;
    let (mut significand, mut full, mut fraction) = (0_u64, false, false);
    for byte in mantissa.bytes() {
        fraction |= byte == b'.';
        if !byte.is_ascii_digit() {
            continue;
        }
        let longer = significand.checked_mul(10).and_then(|tens| tens.checked_add(u64::from(byte - b'0')));
        match longer.filter(|_| !full) {
            Some(longer) => {
                significand = longer;
                exponent -= i32::from(fraction);
            }
            // Digits that no longer fit only count. Python writes so many of integers alone.
            None => {
                full = true;
                exponent += 1;
            }
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "this is the first rounding")]
    let mut value = significand as f64;
    while exponent < -308 && value != 0.0 {
        value /= 1e308;
        exponent += 308;
    }
    let power: f64 = format!("1e{}", exponent.unsigned_abs()).parse().ok()?;
    value = if exponent < 0 { value / power } else { value * power };
    value.is_finite().then_some(if mantissa.starts_with('-') { -value } else { value })
}

/// A float as serde_json writes it: Python's digits, but exponents of one digit, and none down to 1e-5.
fn float(value: f64) -> String {
    let written = python_float(value);
    match written.split_once("e-0") {
        Some((mantissa, "5")) => {
            let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |mantissa| ("-", mantissa));
            [sign, "0.0000", &mantissa.replace('.', "")].concat()
        }
        Some((mantissa, exponent)) => [mantissa, "e-", exponent].concat(),
        None => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the engine's tokens spelled for each.
    #[test]
    fn numbers_are_read_inexactly_as_harmony_reads_them() {
        for (number, written) in [
            ("0", "0"),
            ("-0.0", "-0.0"),
            ("1e3", "1000.0"),
            ("1e15", "1000000000000000.0"),
            ("1e16", "1e+16"),
            ("0.0001", "0.0001"),
            ("0.000015", "0.000015"),
            ("-1e-5", "-0.00001"),
            ("1e-6", "1e-6"),
            ("2.5e-10", "2.5e-10"),
            ("9007199254740991.0", "9007199254740990.0"),
            ("18446744073709551615", "18446744073709551615"),
            ("18446744073709551616", "1.8446744073709552e+19"),
            ("-9223372036854775809", "-9.223372036854776e+18"),
            ("12345678901234567890123", "1.2345678901234568e+22"),
            ("5e-324", "5e-324"),
        ] {
            let mut out = String::new();
            assert_eq!(write(&Json::parse(number).unwrap(), &mut out), Some(()));
            assert_eq!(out, written);
        }
        assert_eq!(write(&Json::parse("1e999").unwrap(), &mut String::new()), None);
    }
}
