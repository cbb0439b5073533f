//! Whether vLLM hands a template contents as lists of parts.
//!
//! It looks for a loop over a message's content, following names through assignments and macros but not through scopes
//! (`_detect_content_format` in its `renderers/hf.py`). This is the same search, so that it finds and misses the same.

use super::walk::{Node, statement};
use super::{prepared, tree};
use minijinja::machinery::ast::{Call, CallArg, Expr, ForLoop, Macro, Stmt};
use std::collections::BTreeSet;

/// vLLM's content format of a chat template: true for `openai`, false for `string`, as for one that cannot be parsed.
#[must_use]
pub fn takes_parts(source: &str) -> bool {
    let source = prepared(source);
    tree(&source).ok().and_then(|tree| loops_over_content(&tree)).unwrap_or(false)
}

#[derive(Default)]
struct Found<'t, 'a> {
    /// Targets and values.
    assignments: Vec<(&'t Expr<'a>, &'t Expr<'a>)>,
    loops: Vec<&'t ForLoop<'a>>,
    macros: Vec<&'t Macro<'a>>,
    calls: Vec<&'t Call<'a>>,
}

fn collect<'t, 'a>(root: &'t Stmt<'a>) -> Found<'t, 'a> {
    let mut found = Found::default();
    statement(root, &mut |node| match node {
        Node::Stmt(Stmt::Set(set)) => found.assignments.push((&set.target, &set.expr)),
        Node::Stmt(Stmt::ForLoop(looped)) => found.loops.push(looped),
        Node::Stmt(Stmt::Macro(declared)) => found.macros.push(declared),
        Node::Call(call) => found.calls.push(call),
        Node::Stmt(_) | Node::Expr(_) => {}
    });
    found
}

/// `None` where vLLM's search ends in a failed assertion: a name was expected.
fn loops_over_content(root: &Stmt<'_>) -> Option<bool> {
    let found = collect(root);
    let lists = names_of_messages(&found)?;
    let mut messages = Vec::new();
    for looped in &found.loops {
        if lists.iter().any(|list| is_access(&looped.iter, list, None)) {
            messages.push(name(&looped.target)?);
        }
    }
    let is_content = |e: &Expr<'_>| messages.iter().any(|message| is_access(e, message, Some("content")));

    // By loop, the parameters of its macro that contents are handed to.
    let mut within: Vec<(*const ForLoop<'_>, BTreeSet<&str>)> = Vec::new();
    for declared in &found.macros {
        let mut parameters = BTreeSet::new();
        for call in found.calls.iter().filter(|call| name(&call.expr) == Some(declared.name)) {
            for (place, argument) in call.args.iter().enumerate() {
                match argument {
                    CallArg::Pos(value) if is_content(value) => {
                        parameters.extend(declared.args.get(place).and_then(name));
                    }
                    CallArg::Kwarg(parameter, value) if is_content(value) => {
                        parameters.extend(declared.args.iter().filter_map(name).filter(|p| p == parameter));
                    }
                    _ => {}
                }
            }
        }
        for inner in &declared.body {
            within.extend(collect(inner).loops.into_iter().map(|l| (std::ptr::from_ref(l), parameters.clone())));
        }
    }

    for looped in &found.loops {
        let iterated = name(&looped.iter);
        // A loop within nested macros belongs to the last one found.
        let macros = within.iter().rev().filter(|(l, _)| std::ptr::eq(*l, *looped));
        let parameters =
            macros.clone().find(|(_, parameters)| !parameters.is_empty()).map(|(_, parameters)| parameters);
        let in_macro = macros.count() > 0;
        if is_content(&looped.iter)
            || iterated.is_some_and(|name| parameters.is_some_and(|p| p.contains(name)))
            || !in_macro && iterated == Some("content")
        {
            name(&looped.target)?;
            return Some(true);
        }
    }
    Some(false)
}

/// `messages`, and every name that is set to it or to a part of it.
fn names_of_messages<'a>(found: &Found<'_, 'a>) -> Option<Vec<&'a str>> {
    let mut names = vec!["messages"];
    let mut next = 0;
    while let Some(related) = names.get(next).copied() {
        for (target, value) in &found.assignments {
            if is_access(value, related, None) {
                let set = name(target)?;
                if !names.contains(&set) {
                    names.push(set);
                }
            }
        }
        next += 1;
    }
    Some(names)
}

fn name<'a>(e: &Expr<'a>) -> Option<&'a str> {
    match e {
        Expr::Var(variable) => Some(variable.id),
        _ => None,
    }
}

/// The variable itself or, with a key, that attribute of it; or a filter, a test, or a slice of this.
fn is_access(e: &Expr<'_>, variable: &str, key: Option<&str>) -> bool {
    match e {
        Expr::Filter(filter) => filter.expr.as_ref().is_some_and(|of| is_access(of, variable, key)),
        Expr::Test(test) => is_access(&test.expr, variable, key),
        Expr::Slice(slice) => is_access(&slice.expr, variable, key),
        _ => match key {
            None => name(e) == Some(variable),
            Some(key) => match e {
                Expr::GetAttr(attribute) => attribute.name == key && name(&attribute.expr) == Some(variable),
                Expr::GetItem(item) => {
                    let constant = match &item.subscript_expr {
                        Expr::Const(constant) => constant.value.as_str(),
                        _ => None,
                    };
                    constant == Some(key) && name(&item.expr) == Some(variable)
                }
                _ => false,
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::takes_parts;

    #[test]
    fn loops_over_contents_are_found_where_vllm_finds_them() {
        for (source, parts) in [
            ("{% for m in messages %}{{ m.content }}{% endfor %}", false),
            ("{% for m in messages %}{% for p in m.content %}{% endfor %}{% endfor %}", true),
            ("{% for m in messages %}{% for p in m['content'] | list %}{% endfor %}{% endfor %}", true),
            ("{% set l = messages[1:] %}{% for m in l %}{% for p in m.content %}{% endfor %}{% endfor %}", true),
            ("{% for m in messages %}{% set c = m.content %}{% for p in c %}{% endfor %}{% endfor %}", false),
            (
                "{% for m in messages %}{% set content = m.content %}{% for p in content %}{% endfor %}{% endfor %}",
                true,
            ),
            (
                "{% macro f(x) %}{% for p in x %}{% endfor %}{% endmacro %}{% for m in messages %}{{ f(m.content) }}{% endfor %}",
                true,
            ),
            (
                "{% macro f(content) %}{% for p in content %}{% endfor %}{% endmacro %}{% for m in messages %}{{ m }}{% endfor %}",
                false,
            ),
            ("{% set ns.x = messages %}{% for m in messages %}{% for p in m.content %}{% endfor %}{% endfor %}", false),
            ("{% for a, b in messages %}{% endfor %}{% for p in content %}{% endfor %}", false),
            ("{% if %}", false),
        ] {
            assert_eq!(takes_parts(source), parts, "{source}");
        }
    }
}
