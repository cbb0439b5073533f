//! The tools' section of a developer message: JSON schemas as types of TypeScript, of a kind.

use super::super::Unknown;
use super::super::conversation::Tool;
use super::super::json::{Fields, Json};
use super::literal;

/// How deep schemas may lie in one another; deeper ones are declined.
const DEEPEST: usize = 64;

/// Writes the section.
///
/// # Errors
/// When a schema is too deep, or the engine refuses it.
pub(super) fn section(tools: &[Tool<'_>], out: &mut String) -> Result<(), Unknown> {
    out.push_str("# Tools\n\n## functions\n\nnamespace functions {\n\n");
    for tool in tools {
        for line in tool.description.as_deref().unwrap_or_default().lines() {
            out.extend(["// ", line, "\n"]);
        }
        out.extend(["type ", &tool.name, " = ("]);
        if let Some(parameters) = &tool.parameters {
            out.push_str("_: ");
            Schema { of: parameters, indent: 0, depth: 0 }.write(out)?;
        }
        out.push_str(") => any;\n\n");
    }
    out.push_str("} // namespace functions");
    Ok(())
}

/// A schema where it stands.
#[derive(Clone, Copy)]
struct Schema<'s, 'a> {
    of: &'s Json<'a>,
    /// Spaces before each of its lines.
    indent: usize,
    depth: usize,
}

impl<'s, 'a> Schema<'s, 'a> {
    fn within(self, of: &'s Json<'a>, further: usize) -> Self {
        Self { of, indent: self.indent + further, depth: self.depth + 1 }
    }

    fn write(self, out: &mut String) -> Result<(), Unknown> {
        if self.depth > DEEPEST {
            return Err(Unknown::Feature("deep_schema"));
        }
        if let Some(variants) = list(self.of, "oneOf") {
            for variant in variants {
                out.push('\n');
                self.line(&[" | "], out);
                self.within(variant, 3).write_nullable(out)?;
                self.remarks(text(variant, "description"), variant, Quotes::OrEscapes, out)?;
            }
            return Ok(());
        }
        if let Some(types) = list(self.of, "type") {
            let mut names = types.iter().filter_map(Json::as_str).peekable();
            if names.peek().is_some() {
                join(names.map(|name| if name == "integer" { "number" } else { name }), "", out);
                return Ok(());
            }
        }
        match text(self.of, "type") {
            Some("object") => return self.object(out),
            Some("string") => {
                let mut values = list(self.of, "enum").unwrap_or_default().iter().filter_map(Json::as_str).peekable();
                if values.peek().is_some() {
                    join(values, "\"", out);
                } else {
                    out.push_str("string");
                }
            }
            Some("number" | "integer") => out.push_str("number"),
            Some("boolean") => out.push_str("boolean"),
            Some("array") => match self.of.get("items") {
                Some(items) => {
                    self.within(items, 0).write(out)?;
                    out.push_str("[]");
                }
                None => out.push_str("Array<any>"),
            },
            _ => out.push_str("any"),
        }
        Ok(())
    }

    /// With "null" beside it where it is nullable and does not say so.
    fn write_nullable(self, out: &mut String) -> Result<(), Unknown> {
        let start = out.len();
        self.write(out)?;
        let nullable = matches!(self.of.get("nullable"), Some(Json::Bool(true)));
        if nullable && !out.get(start..).is_some_and(|written| written.contains("null")) {
            out.push_str(" | null");
        }
        Ok(())
    }

    fn object(self, out: &mut String) -> Result<(), Unknown> {
        if let Some(description) = text(self.of, "description") {
            self.line(&["// ", description, "\n"], out);
        }
        out.push_str("{\n");
        let none = Fields::new();
        let properties = match self.of.get("properties") {
            Some(Json::Map(properties)) => properties,
            _ => &none,
        };
        let required = list(self.of, "required").unwrap_or_default();
        for (name, property) in properties {
            let required = required.iter().any(|required| required.as_str() == Some(name));
            self.property(name, if required { "" } else { "?" }, property, out)?;
        }
        self.line(&["}"], out);
        Ok(())
    }

    fn property(self, name: &str, optional: &str, property: &'s Json<'a>, out: &mut String) -> Result<(), Unknown> {
        if let Some(title) = text(property, "title") {
            self.line(&["// ", title, "\n"], out);
            self.line(&["//\n"], out);
        }
        let description = text(property, "description");
        if let (Some(description), None) = (description, property.get("oneOf")) {
            self.line(&["// ", description, "\n"], out);
        }
        if let Some(examples) = list(property, "examples").filter(|examples| !examples.is_empty()) {
            self.line(&["// Examples:\n"], out);
            for example in examples.iter().filter_map(Json::as_str) {
                self.line(&["// - \"", example, "\"\n"], out);
            }
        }
        if let Some(variants) = list(property, "oneOf") {
            return self.choice(name, optional, property, variants, out);
        }
        self.line(&[name, optional, ": "], out);
        self.within(property, 4).write_nullable(out)?;
        out.push(',');
        // One that is no list has been left out above, and the default goes with it.
        if property.get("oneOf").is_none() {
            self.remarks(None, property, Quotes::OrBare, out)?;
        }
        out.push('\n');
        Ok(())
    }

    /// A property that is one of several.
    fn choice(
        self,
        name: &str,
        optional: &str,
        property: &'s Json<'a>,
        variants: &'s [Json<'a>],
        out: &mut String,
    ) -> Result<(), Unknown> {
        let description = text(property, "description");
        let first = variants.first().and_then(|first| text(first, "description"));
        let above = description.filter(|description| first != Some(description));
        if let Some(description) = above {
            self.line(&["// ", description, "\n"], out);
        }
        if let Some(default) = property.get("default") {
            self.line(&["// default: "], out);
            write_default(default, property, Quotes::OrBare, out)?;
            out.push('\n');
        }
        self.line(&[name, optional, ":\n"], out);
        for (number, variant) in variants.iter().enumerate() {
            self.line(&[" | "], out);
            self.within(variant, 3).write_nullable(out)?;
            let own = text(variant, "description").filter(|own| Some(*own) != description);
            let own = own.filter(|_| number > 0 || above.is_none());
            self.remarks(own, variant, Quotes::OrBare, out)?;
            out.push('\n');
        }
        self.line(&[",\n"], out);
        Ok(())
    }

    /// What is said of a type behind it.
    fn remarks(
        self,
        description: Option<&str>,
        schema: &Json<'_>,
        quotes: Quotes,
        out: &mut String,
    ) -> Result<(), Unknown> {
        let default = schema.get("default");
        if description.is_some() || default.is_some() {
            out.push_str(" //");
        }
        if let Some(description) = description {
            out.extend([" ", description]);
        }
        if let Some(default) = default {
            out.push_str(" default: ");
            write_default(default, schema, quotes, out)?;
        }
        Ok(())
    }

    /// Writes from the line's start.
    fn line(self, texts: &[&str], out: &mut String) {
        out.extend((0..self.indent).map(|_| ' '));
        out.extend(texts.iter().copied());
    }
}

/// How a text stands as the default of an enum; elsewhere it has quotes around it, and nothing is escaped.
#[derive(Clone, Copy)]
enum Quotes {
    /// As JSON.
    OrEscapes,
    /// As it is.
    OrBare,
}

fn write_default(default: &Json<'_>, schema: &Json<'_>, quotes: Quotes, out: &mut String) -> Result<(), Unknown> {
    let chosen = list(schema, "enum").is_some_and(|values| !values.is_empty());
    match (default.as_str(), quotes) {
        (Some(text), _) if !chosen => out.extend(["\"", text, "\""]),
        (Some(text), Quotes::OrBare) => out.push_str(text),
        // The engine refuses numbers that it cannot read back.
        _ => literal::write(default, out).ok_or(Unknown::Malformed)?,
    }
    Ok(())
}

fn join<'t>(texts: impl Iterator<Item = &'t str>, quote: &str, out: &mut String) {
    for (number, text) in texts.enumerate() {
        out.extend([if number > 0 { " | " } else { "" }, quote, text, quote]);
    }
}

fn text<'s>(schema: &'s Json<'_>, key: &str) -> Option<&'s str> {
    schema.get(key).and_then(Json::as_str)
}

fn list<'s, 'a>(schema: &'s Json<'a>, key: &str) -> Option<&'s [Json<'a>]> {
    match schema.get(key) {
        Some(Json::List(items)) => Some(items),
        _ => None,
    }
}
