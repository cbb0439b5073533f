//! What a template's source gives away: names and texts that lead into its branches.

use std::collections::BTreeSet;

use minijinja::{Environment, ErrorKind};

/// Names and texts in a template's source, each list sorted and without repetition.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// Variables it reads and does not set: what `chat_template_kwargs` may hold.
    pub variables: Vec<String>,
    /// Of these, the ones that it adds to texts without asking whether they are there.
    pub needed: Vec<String>,
    /// Keys it asks of messages and other objects.
    pub keys: Vec<String>,
    /// String literals of some length: roles, modes, markers.
    pub literals: Vec<String>,
    /// The variant of a model's templates that serves requests with tools.
    pub is_for_tools: bool,
    source: String,
}

/// Names that every template has; requests give them in ways of their own.
const GIVEN: &[&str] = &[
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "raise_exception",
    "strftime_now",
    "namespace",
    "range",
    "dict",
    "joiner",
    "cycler",
    "loop",
    "true",
    "false",
    "none",
    "True",
    "False",
    "None",
    "not",
    "and",
    "or",
    "in",
    "is",
    "if",
    "else",
    "elif",
    "endif",
    "for",
    "endfor",
    "set",
    "endset",
    "macro",
    "endmacro",
    "generation",
    "endgeneration",
    "defined",
    "string",
    "mapping",
    "iterable",
    "break",
    "continue",
];

impl Hints {
    /// Reads a template's name and source.
    #[must_use]
    pub fn of(name: &str, source: &str) -> Self {
        let Scan { names, keys, literals } = Scan::of(source);
        let mut variables = undeclared(source).unwrap_or_else(|| names.clone());
        variables.retain(|name| !GIVEN.contains(&name.as_str()));
        let asked = |name: &String| source.contains(&format!("{name} is ")) || source.contains(&format!("if {name} "));
        let added = |name: &String| source.contains(&format!("+ {name} ")) && !asked(name);
        let needed = variables.iter().filter(|name| added(name)).cloned().collect();
        let list = |set: BTreeSet<String>| set.into_iter().collect();
        Self {
            variables: list(variables),
            needed,
            keys: list(keys),
            literals: list(literals),
            is_for_tools: name.contains("tool_use"),
            source: source.to_owned(),
        }
    }

    /// Whether the source has this text somewhere.
    #[must_use]
    pub fn mentions(&self, text: &str) -> bool {
        self.source.contains(text)
    }
}

/// Variables that are read and not set, if minijinja understands the template.
fn undeclared(source: &str) -> Option<BTreeSet<String>> {
    let environment = Environment::new();
    match environment.template_from_str(source) {
        Ok(template) => Some(template.undeclared_variables(false).into_iter().collect()),
        Err(error) => {
            debug_assert!(error.kind() != ErrorKind::OutOfFuel);
            None
        }
    }
}

#[derive(Default)]
struct Scan {
    names: BTreeSet<String>,
    keys: BTreeSet<String>,
    literals: BTreeSet<String>,
}

impl Scan {
    /// Walks over what stands between `{{` and `}}`, and `{%` and `%}`.
    fn of(source: &str) -> Self {
        let mut scan = Self::default();
        let mut rest = source;
        while let Some(open) = rest.find("{%").into_iter().chain(rest.find("{{")).min() {
            rest = &rest[open + 2..];
            rest = scan.expression(rest);
        }
        scan
    }

    /// Reads up to the end of one tag; returns what lies behind.
    fn expression<'a>(&mut self, mut rest: &'a str) -> &'a str {
        // What stood before: `.` makes a name a key, `[` and `get(` a text.
        let (mut before, mut called) = (' ', String::new());
        while let Some(c) = rest.chars().next() {
            if rest.starts_with("%}") || rest.starts_with("}}") {
                return &rest[2..];
            }
            if c == '\'' || c == '"' {
                let Some(end) = rest[1..].find(c) else { return "" };
                let text = rest[1..=end].replace("\\n", "\n");
                if before == '[' || (before == '(' && called == "get") {
                    self.keys.insert(text.clone());
                }
                if (1..=40).contains(&text.len()) && !text.contains('\\') {
                    self.literals.insert(text);
                }
                rest = &rest[end + 2..];
                before = c;
            } else if c.is_ascii_alphabetic() || c == '_' {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                let name = &rest[..end];
                rest = &rest[end..];
                name.clone_into(&mut called);
                if before == '.' && !rest.starts_with('(') {
                    self.keys.insert(name.to_owned());
                } else if before != '.' && before != '|' && !rest.starts_with('(') {
                    self.names.insert(name.to_owned());
                }
                before = 'a';
            } else {
                if !c.is_whitespace() {
                    before = c;
                }
                rest = &rest[c.len_utf8()..];
            }
        }
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keys_and_texts_are_found() {
        let hints = Hints::of(
            "name",
            "{%- if thinking is defined and mode is defined and mode == 'fast' %}{{ messages[0]['role'] + message.content }}{% endif %}\
             {% set x = 1 %}{{ x }}{{ m.get('weight') + mode + unit }} text 'not this'",
        );
        assert_eq!(hints.variables, ["m", "message", "mode", "thinking", "unit"]);
        assert_eq!(hints.needed, ["unit"]);
        assert_eq!(hints.keys, ["content", "role", "weight"]);
        assert_eq!(hints.literals, ["fast", "role", "weight"]);
        assert!(hints.mentions("fast") && !hints.mentions("slow"));
    }
}
