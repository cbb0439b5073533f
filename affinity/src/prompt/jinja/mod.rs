//! Jinja as transformers sets it up, on minijinja.
//!
//! **Invariant:** a template gives what Jinja2 gives, or an error. minijinja is close to Jinja2, and where it is not, either
//! the values (`values`), filters, tests and methods here make up for it, or the template is refused (`screen`).

mod checks;
mod content_format;
mod divergences;
mod filters;
mod methods;
mod screen;
pub(super) mod text;
pub(super) mod time;
pub(super) mod values;
mod walk;

pub use content_format::takes_parts;
pub(super) use screen::{ordered, screen};

use minijinja::machinery::ast::Stmt;
use minijinja::machinery::parse;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, State, Value, functions};
use std::borrow::Cow;
use time::LocalTime;

/// Instructions that a rendering may take, so that no template can hang a worker: 512 messages take some 50,000.
const FUEL: u64 = 500_000;

/// The engine's clock, among the variables of a rendering. No template can name it.
pub(super) const CLOCK: &str = "\u{F8E4}clock";

/// An environment without templates.
pub(super) fn environment() -> Environment<'static> {
    let mut env = Environment::empty();
    env.set_fuel(Some(FUEL));
    if let Ok(syntax) = syntax() {
        env.set_syntax(syntax);
    }
    env.set_unknown_method_callback(methods::call);
    env.set_formatter(|out, _, value| {
        match value.as_str() {
            Some(text) => out.write_str(text)?,
            None => out.write_str(&values::python_str(value))?,
        }
        Ok(())
    });
    env.add_function("raise_exception", |_: Value| -> Result<Value, Error> {
        Err(Error::from(ErrorKind::InvalidOperation))
    });
    env.add_function("namespace", functions::namespace);
    env.add_function("range", functions::range);
    env.add_function("dict", functions::dict);
    env.add_function("strftime_now", |state: &mut State<'_, '_>, format: Cow<'_, str>| {
        let clock = state.lookup(CLOCK).and_then(|clock| clock.as_i64());
        clock.and_then(|now| LocalTime(now).format(&format)).ok_or_else(|| Error::from(ErrorKind::InvalidOperation))
    });
    filters::add(&mut env);
    checks::add(&mut env);
    env
}

fn syntax() -> Result<SyntaxConfig, Error> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}

/// A template's source as it is compiled here. Jinja2 reads every line's end as `\n`; and its `generation` blocks, which
/// mark what the assistant wrote, print their body and have a scope of their own.
pub(super) fn prepared(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some((before, from)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        let sign = from.len() - from.trim_start_matches(['-', '+']).len();
        let (sign, behind) = from.split_at_checked(sign.min(1)).unwrap_or(("", from));
        let word = behind.trim_start();
        let becomes = [("endgeneration", "endwith"), ("generation", "with")].into_iter().find_map(|(tag, becomes)| {
            let end = word.strip_prefix(tag)?;
            end.trim_start().starts_with(['-', '+', '%']).then_some((becomes, end))
        });
        out.push_str(sign);
        rest = behind;
        if let Some((becomes, end)) = becomes {
            out.push(' ');
            out.push_str(becomes);
            rest = end;
        }
    }
    out.push_str(rest);
    out
}

/// A template's syntax tree, of a source that is [`prepared`].
///
/// # Errors
/// When it cannot be parsed.
pub(super) fn tree(source: &str) -> Result<Stmt<'_>, Error> {
    parse(source, "", syntax()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_blocks_become_scopes_and_nothing_else_does() {
        assert_eq!(prepared("a{%- generation -%}b{%endgeneration%}"), "a{%- with -%}b{% endwith%}");
        assert_eq!(
            prepared("{% set generation = 1 %}\r\n{{ generation }}"),
            "{% set generation = 1 %}\n{{ generation }}"
        );
        assert_eq!(prepared("{% if generation %}{% generations %}"), "{% if generation %}{% generations %}");
    }
}
