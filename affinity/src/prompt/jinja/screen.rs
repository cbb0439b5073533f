//! Refuses templates in which minijinja would do otherwise than Jinja2, as far as their source tells.

use super::divergences::divergence;
use super::walk::{Node, statement};
use minijinja::machinery::ast::{BinOpKind, CallArg, Expr, Slice, Stmt};
use std::collections::BTreeSet;

/// Why a template is refused; `None`: it is not.
pub(in crate::prompt) fn screen(source: &str, tree: &Stmt<'_>) -> Option<&'static str> {
    if odd_escape(source) {
        return Some("the template has an escape in a text that is read otherwise here");
    }
    if let Some(why) = divergence(source, tree) {
        return Some(why);
    }
    let mut safe = Safe::default();
    loop {
        let known = safe.names.len();
        let mut why = None;
        statement(tree, &mut |node| {
            let found = match node {
                Node::Stmt(Stmt::AutoEscape(_)) => Some("the template switches escaping on"),
                Node::Stmt(
                    Stmt::Block(_) | Stmt::Import(_) | Stmt::FromImport(_) | Stmt::Extends(_) | Stmt::Include(_),
                ) => Some("the template asks for others"),
                Node::Stmt(Stmt::Do(_)) => Some("the template has a `do` statement, which engines do not know"),
                Node::Stmt(Stmt::EmitExpr(emit)) => safe.misused(&emit.expr, true),
                Node::Stmt(Stmt::Set(set)) => safe.assigned(&set.target, &set.expr),
                Node::Expr(Expr::Var(name)) if ["lipsum", "cycler", "joiner"].contains(&name.id) => {
                    Some("the template uses a function that is not here")
                }
                Node::Expr(Expr::Slice(slice)) if !ordinary(slice) => Some("the template slices backwards"),
                _ => None,
            };
            why = why.or(found);
        });
        // Names found late may have been used early.
        if why.is_some() || safe.names.len() == known {
            return why;
        }
    }
}

/// Variables that the template compares by order. Python takes a truth value for a number there, minijinja does not.
pub(in crate::prompt) fn ordered(tree: &Stmt<'_>) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    statement(tree, &mut |node| match node {
        Node::Expr(Expr::BinOp(binary))
            if matches!(binary.op, BinOpKind::Lt | BinOpKind::Lte | BinOpKind::Gt | BinOpKind::Gte) =>
        {
            operands(&binary.left, &mut names);
            operands(&binary.right, &mut names);
        }
        // Several in a row.
        Node::Expr(Expr::Compare(compare)) => {
            operands(&compare.expr, &mut names);
            compare.ops.iter().for_each(|op| operands(&op.expr, &mut names));
        }
        _ => {}
    });
    names
}

/// The variables whose values an operand may have.
fn operands(e: &Expr<'_>, names: &mut BTreeSet<String>) {
    match e {
        Expr::Var(variable) => {
            names.insert(variable.id.to_owned());
        }
        // A truth value may lie within.
        Expr::GetAttr(attribute) => operands(&attribute.expr, names),
        Expr::GetItem(item) => operands(&item.expr, names),
        Expr::Filter(filter) if ["default", "d"].contains(&filter.name) => {
            filter.expr.iter().for_each(|of| operands(of, names));
        }
        Expr::IfExpr(choice) => {
            operands(&choice.true_expr, names);
            choice.false_expr.iter().for_each(|other| operands(other, names));
        }
        Expr::BinOp(binary) => {
            operands(&binary.left, names);
            operands(&binary.right, names);
        }
        _ => {}
    }
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

/// Texts marked as safe, which escape what they are added to. It does no harm where they are printed, or joined by `~`.
#[derive(Default)]
struct Safe<'a> {
    /// Variables that may hold one, wherever in the template.
    names: BTreeSet<&'a str>,
}

/// Filters that give a text marked as safe back as it is.
const KEEPING: [&str; 3] = ["safe", "string", "trim"];

impl<'a> Safe<'a> {
    fn assigned(&mut self, target: &Expr<'a>, e: &Expr<'a>) -> Option<&'static str> {
        if self.misused(e, false).is_some()
            && let Expr::Var(variable) = target
        {
            self.names.insert(variable.id);
            return self.misused(e, true);
        }
        self.misused(e, false)
    }

    /// `harmless`: it does not matter here whether a text is marked.
    fn misused(&self, e: &Expr<'a>, harmless: bool) -> Option<&'static str> {
        match e {
            Expr::Var(variable) if !harmless && self.names.contains(variable.id) => {
                Some("the template adds text that is marked as safe")
            }
            Expr::Filter(filter) => {
                if ["escape", "e", "forceescape", "urlize", "xmlattr", "striptags"].contains(&filter.name) {
                    return Some("the template escapes text");
                }
                if filter.name == "safe" && !harmless {
                    return Some("the template adds text that is marked as safe");
                }
                // JSON of a marked text is a plain one.
                let harmless = filter.name == "tojson" || harmless && KEEPING.contains(&filter.name);
                filter.expr.as_ref().and_then(|of| self.misused(of, harmless))
            }
            Expr::BinOp(binary) => {
                let harmless = harmless && matches!(binary.op, BinOpKind::Concat);
                self.misused(&binary.left, harmless).or_else(|| self.misused(&binary.right, harmless))
            }
            Expr::IfExpr(choice) => {
                let other = choice.false_expr.as_ref().and_then(|other| self.misused(other, harmless));
                self.misused(&choice.true_expr, harmless).or(other)
            }
            Expr::Call(call) => call.args.iter().find_map(|argument| match argument {
                CallArg::Pos(e) | CallArg::Kwarg(_, e) | CallArg::PosSplat(e) | CallArg::KwargSplat(e) => {
                    self.misused(e, false)
                }
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;

    #[test]
    fn what_is_compared_by_order_is_known() {
        let names = ordered(
            &tree("{% if a.b | length <= c and d == e %}{{ f[1:] }}{% endif %}{{ 1 < g(h) < x | d(3) }}").unwrap(),
        );
        assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), ["c", "x"]);
    }

    #[test]
    fn what_would_be_read_otherwise_is_refused() {
        let refused = |source: &str| screen(source, &tree(source).unwrap()).is_some();
        for source in [
            r"{{ 'a\/b' }}",
            "{{ messages[:0:-1] }}",
            "{{ messages[::n] }}",
            "{{ 'a'|safe + b }}",
            "{% set x = a|safe %}{{ 'b' + x }}",
            "{% macro f() %}{{ y + '' }}{% endmacro %}{% set x = a|safe if b else c %}{% set y = x %}",
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
            "{% set x = a|safe if x is string else b %}{{ x ~ c }}{{ x }}",
        ] {
            assert!(!refused(source), "{source}");
        }
    }
}
