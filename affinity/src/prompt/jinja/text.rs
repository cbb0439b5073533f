//! What Python's texts do otherwise than Rust's.

use super::values::newer;
use minijinja::{Error, ErrorKind};

/// What `str.isspace` and `str.strip` take for whitespace: Unicode's, and four separators among the control characters.
pub(crate) fn python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `strip`, `lstrip`, `rstrip`, of these characters or of whitespace.
pub(crate) fn strip<'t>(text: &'t str, chars: Option<&str>, left: bool, right: bool) -> &'t str {
    let cut = |c: char| chars.map_or_else(|| python_space(c), |chars| chars.contains(c));
    let text = if left { text.trim_start_matches(cut) } else { text };
    if right { text.trim_end_matches(cut) } else { text }
}

/// The first word, and what comes behind it.
pub(super) fn word(text: &str) -> (&str, &str) {
    text.find(python_space).and_then(|at| text.split_at_checked(at)).unwrap_or((text, ""))
}

/// `splitlines`.
pub(super) fn split_lines(text: &str, keep_ends: bool) -> impl Iterator<Item = &str> {
    let ends = |c: char| {
        matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let line = rest.find(ends).unwrap_or(rest.len());
        let (body, from) = rest.split_at_checked(line)?;
        let end = if from.starts_with("\r\n") { 2 } else { from.chars().next().map_or(0, char::len_utf8) };
        let whole = rest.get(..line + end)?;
        rest = rest.get(line + end..)?;
        Some(if keep_ends { whole } else { body })
    })
}

/// `upper`, `lower`, `title`, `capitalize`.
///
/// # Errors
/// Titles of characters beyond ASCII take Unicode's tables.
pub(super) fn casing(text: &str, how: &str) -> Result<String, Error> {
    // These have had no other case in older Unicode.
    if text.chars().any(|c| matches!(c, '\u{19b}' | '\u{264}') || newer(c)) {
        return Err(Error::from(ErrorKind::InvalidOperation));
    }
    match how {
        "upper" => Ok(text.to_uppercase()),
        "lower" => Ok(text.to_lowercase()),
        "capitalize" => {
            let mut chars = text.chars();
            match chars.next() {
                None => Ok(String::new()),
                Some(first) if first.is_ascii() || first.is_uppercase() && first.to_lowercase().count() == 1 => {
                    let mut out = String::from(first.to_ascii_uppercase());
                    out.push_str(&chars.as_str().to_lowercase());
                    // A sigma at the end is written otherwise behind a letter than alone.
                    if chars.as_str().contains('Σ') { Err(Error::from(ErrorKind::InvalidOperation)) } else { Ok(out) }
                }
                Some(_) => Err(Error::from(ErrorKind::InvalidOperation)),
            }
        }
        _ if !text.is_ascii() => Err(Error::from(ErrorKind::InvalidOperation)),
        _ => {
            let mut behind_letter = false;
            Ok(text
                .chars()
                .map(|c| {
                    let cased = if behind_letter { c.to_ascii_lowercase() } else { c.to_ascii_uppercase() };
                    behind_letter = c.is_ascii_alphabetic();
                    cased
                })
                .collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_where_python_ends_them() {
        let of = |text, keep| split_lines(text, keep).collect::<Vec<_>>();
        assert_eq!(of("a\r\nb\rc\n\nd\u{2028}", false), ["a", "b", "c", "", "d"]);
        assert_eq!(of("a\r\nb\u{b}", true), ["a\r\n", "b\u{b}"]);
        assert_eq!(of("", false), [""; 0]);
        assert_eq!(of("\n", false), [""]);
    }

    #[test]
    fn pythons_whitespace_is_stripped() {
        assert_eq!(strip("\u{1f}\u{a0} a \u{3000}\n", None, true, true), "a");
        assert_eq!(strip("\u{200b}a", None, true, true), "\u{200b}a");
        assert_eq!(strip("xyax", Some("xy"), true, true), "a");
        assert_eq!(strip(" a ", None, false, true), " a");
    }

    #[test]
    fn titles_begin_behind_every_non_letter() {
        assert_eq!(casing("they're bill's 3rd", "title").unwrap(), "They'Re Bill'S 3Rd");
        assert_eq!(casing("ÀB", "capitalize").unwrap(), "Àb");
        assert!(casing("ß", "capitalize").is_err());
    }
}
