//! Refuses templates in which minijinja would do otherwise than Jinja2, as far as their source tells.

use super::walk::{Node, statement};
use minijinja::machinery::ast::{BinOpKind, Expr, Slice, Stmt};

/// Why a template is refused; `None`: it is not.
pub(in crate::prompt) fn screen(source: &str, tree: &Stmt<'_>) -> Option<&'static str> {
    if odd_escape(source) {
        return Some("the template has an escape in a text that is read otherwise here");
    }
    let mut why = None;
    statement(tree, &mut |node| {
        let found = match node {
            Node::Stmt(Stmt::AutoEscape(_)) => Some("the template switches escaping on"),
            Node::Stmt(
                Stmt::Block(_) | Stmt::Import(_) | Stmt::FromImport(_) | Stmt::Extends(_) | Stmt::Include(_),
            ) => Some("the template asks for others"),
            Node::Stmt(Stmt::Do(_)) => Some("the template has a `do` statement, which engines do not know"),
            Node::Stmt(Stmt::EmitExpr(emit)) => marks_safe(&emit.expr, true),
            Node::Stmt(Stmt::Set(set)) => marks_safe(&set.expr, false),
            Node::Expr(Expr::Slice(slice)) if !ordinary(slice) => Some("the template slices backwards"),
            _ => None,
        };
        why = why.or(found);
    });
    why
}

/// Python keeps the backslash of `\/`, and knows escapes that minijinja does not.
fn odd_escape(source: &str) -> bool {
    let mut chars = source.chars();
    while let Some(c) = chars.next() {
        if c == '\\' && chars.next().is_some_and(|escaped| "/avNU\n".contains(escaped)) {
            return true;
        }
    }
    false
}

/// Forwards, or all of it backwards.
fn ordinary(slice: &Slice<'_>) -> bool {
    match &slice.step {
        None => true,
        Some(step) => match step.as_const().and_then(|step| step.as_i64()) {
            Some(1..) => true,
            Some(-1) => slice.start.is_none() && slice.stop.is_none(),
            _ => false,
        },
    }
}

/// A text marked as safe escapes what it is added to. It does no harm where it is printed, or joined by `~`.
fn marks_safe(e: &Expr<'_>, harmless: bool) -> Option<&'static str> {
    match e {
        Expr::Filter(filter) => {
            if ["escape", "e", "forceescape", "urlize", "xmlattr", "striptags"].contains(&filter.name) {
                return Some("the template escapes text");
            }
            let safe = filter.name == "safe";
            if safe && !harmless {
                return Some("the template adds text that is marked as safe");
            }
            filter.expr.as_ref().and_then(|of| marks_safe(of, safe))
        }
        Expr::BinOp(binary) => {
            let harmless = harmless && matches!(binary.op, BinOpKind::Concat);
            marks_safe(&binary.left, harmless).or_else(|| marks_safe(&binary.right, harmless))
        }
        Expr::IfExpr(choice) => {
            let other = choice.false_expr.as_ref().and_then(|other| marks_safe(other, harmless));
            marks_safe(&choice.true_expr, harmless).or(other)
        }
        Expr::Call(call) => call.args.iter().find_map(|argument| match argument {
            minijinja::machinery::ast::CallArg::Pos(e) | minijinja::machinery::ast::CallArg::Kwarg(_, e) => {
                marks_safe(e, false)
            }
            _ => None,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;

    #[test]
    fn what_would_be_read_otherwise_is_refused() {
        let refused = |source: &str| screen(source, &tree(source).unwrap()).is_some();
        for source in [
            r"{{ 'a\/b' }}",
            "{{ messages[:0:-1] }}",
            "{{ messages[::n] }}",
            "{{ 'a'|safe + b }}",
            "{% set x = a|safe %}",
            "{{ a|e }}",
            "{{ f(a|safe) }}",
        ] {
            assert!(refused(source), "{source}");
        }
        for source in [
            r"{{ 'a\n\\' }}",
            "{{ messages[::-1] }}",
            "{{ messages[1::2] }}",
            "{{ 'a' ~ (b|tojson|safe) ~ c }}",
            "{{ a|safe }}",
        ] {
            assert!(!refused(source), "{source}");
        }
    }
}
