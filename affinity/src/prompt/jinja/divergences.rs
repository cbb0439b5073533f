//! Scopes, macros and Jinja's own objects, where minijinja has them otherwise than Jinja2. A template that could tell
//! is refused.

use super::walk::{Node, statement};
use minijinja::machinery::ast::{CallArg, Expr, Stmt};
use std::collections::{BTreeMap, BTreeSet};

/// Methods of Python's texts and lists. A template that looks at one without calling it finds it there; no key of a dict
/// is likely to have such a name.
const METHODS: [&str; 14] = [
    "upper",
    "lower",
    "strip",
    "lstrip",
    "rstrip",
    "startswith",
    "endswith",
    "splitlines",
    "capitalize",
    "append",
    "casefold",
    "removeprefix",
    "removesuffix",
    "isdigit",
];

/// What a template does with names, counted.
#[derive(Default)]
struct Uses<'a> {
    variables: BTreeMap<&'a str, usize>,
    /// Variables that are called.
    called: BTreeMap<&'a str, usize>,
    /// Variables of which an attribute or item is asked for, and targets of assignments.
    bases: BTreeMap<&'a str, usize>,
    methods: BTreeMap<&'a str, usize>,
    called_methods: BTreeMap<&'a str, usize>,
    macros: BTreeSet<&'a str>,
    namespaces: BTreeSet<&'a str>,
    why: Option<&'static str>,
}

/// Why a template is refused; `None`: it is not.
pub(super) fn divergence(source: &str, tree: &Stmt<'_>) -> Option<&'static str> {
    if source.split("{%").skip(1).any(|tag| tag.trim_start_matches(['-', '+', ' ', '\n', '\t']).starts_with("raw")) {
        return Some("the template has a raw block, whose line ends are cut otherwise");
    }
    let mut uses = Uses::default();
    statement(tree, &mut |node| uses.note(&node));
    uses.why.or_else(|| uses.odd())
}

fn count<'a>(of: &mut BTreeMap<&'a str, usize>, name: &'a str) {
    *of.entry(name).or_default() += 1;
}

impl<'a> Uses<'a> {
    fn note(&mut self, node: &Node<'_, 'a>) {
        match node {
            Node::Expr(Expr::Var(variable)) => {
                count(&mut self.variables, variable.id);
                if ["varargs", "kwargs"].contains(&variable.id) {
                    self.refuse("the template takes a macro's further arguments");
                }
            }
            Node::Expr(Expr::GetAttr(attribute)) => {
                self.base(&attribute.expr);
                if METHODS.contains(&attribute.name) {
                    count(&mut self.methods, attribute.name);
                }
            }
            Node::Expr(Expr::GetItem(item)) => self.base(&item.expr),
            Node::Call(call) => {
                match &call.expr {
                    Expr::Var(variable) => count(&mut self.called, variable.id),
                    Expr::GetAttr(attribute) => count(&mut self.called_methods, attribute.name),
                    _ => {}
                }
                // What is handed to a macro is looked at there.
                for argument in &call.args {
                    if let CallArg::Pos(e) | CallArg::Kwarg(_, e) = argument {
                        self.base(e);
                    }
                }
            }
            Node::Stmt(Stmt::Set(set)) => {
                self.base(&set.target);
                if let (Expr::Var(target), Expr::Call(call)) = (&set.target, &set.expr)
                    && matches!(&call.expr, Expr::Var(function) if function.id == "namespace")
                {
                    self.namespaces.insert(target.id);
                }
            }
            Node::Stmt(Stmt::Template(template)) => self.scope(&template.children),
            Node::Stmt(Stmt::ForLoop(looped)) => {
                self.scope(&looped.body);
                self.scope(&looped.else_body);
            }
            Node::Stmt(Stmt::WithBlock(with)) => {
                self.scope(&with.body);
                let mut targets = BTreeSet::new();
                targets.extend(with.assignments.iter().filter_map(|(target, _)| name(target)));
                if with.assignments.iter().any(|(_, value)| mentions(value, &targets)) {
                    self.refuse("the template's with block uses what it sets");
                }
            }
            Node::Stmt(Stmt::Macro(declared)) => {
                self.scope(&declared.body);
                declared.args.iter().for_each(|parameter| self.base(parameter));
                self.macros.insert(declared.name);
                let mut parameters = BTreeSet::new();
                parameters.extend(declared.args.iter().filter_map(name));
                if declared.defaults.iter().any(|default| mentions(default, &parameters)) {
                    self.refuse("a macro's default uses another of its parameters");
                }
            }
            _ => {}
        }
    }

    /// Variables that a captured or filtered block sets live on in the scope around it, which they do not in Jinja2.
    fn scope(&mut self, body: &[Stmt<'a>]) {
        let mut blocks = Vec::new();
        captured(body, &mut blocks);
        for block in blocks {
            let mut set = BTreeSet::new();
            assigned(block, &mut set);
            if set.iter().any(|name| occurrences(body, name) > occurrences(block, name)) {
                self.refuse("the template sets a variable within a block that is captured, and uses it beside it");
            }
        }
    }

    fn refuse(&mut self, why: &'static str) {
        self.why.get_or_insert(why);
    }

    fn base(&mut self, e: &Expr<'a>) {
        if let Expr::Var(variable) = e {
            count(&mut self.bases, variable.id);
        }
    }

    /// Objects that are looked at as a whole.
    fn odd(&self) -> Option<&'static str> {
        let of = |counts: &BTreeMap<&str, usize>, name: &str| counts.get(name).copied().unwrap_or(0);
        if self.macros.iter().any(|name| of(&self.variables, name) > of(&self.called, name)) {
            return Some("the template looks at a macro without calling it");
        }
        let whole = |name: &&str| of(&self.variables, name) > of(&self.bases, name) + of(&self.called, name);
        if self.namespaces.iter().any(whole) || whole(&"loop") || whole(&"self") {
            return Some("the template looks at a namespace or a loop as a whole");
        }
        let uncalled = |name: &&str| of(&self.methods, name) > of(&self.called_methods, name);
        METHODS.iter().any(uncalled).then_some("the template looks at a method without calling it")
    }
}

fn name<'a>(e: &Expr<'a>) -> Option<&'a str> {
    match e {
        Expr::Var(variable) => Some(variable.id),
        _ => None,
    }
}

/// Whether an expression has one of these variables in it.
fn mentions<'t, 'a>(e: &'t Expr<'a>, names: &BTreeSet<&str>) -> bool {
    let mut found = false;
    super::walk::expression(e, &mut |node: Node<'t, 'a>| {
        if let Node::Expr(Expr::Var(variable)) = node {
            found |= names.contains(variable.id);
        }
    });
    found
}

/// Blocks of a scope that are captured or filtered.
fn captured<'t, 'a>(body: &'t [Stmt<'a>], blocks: &mut Vec<&'t [Stmt<'a>]>) {
    for statement in body {
        match statement {
            Stmt::SetBlock(block) => blocks.push(&block.body),
            Stmt::FilterBlock(block) => blocks.push(&block.body),
            Stmt::IfCond(condition) => {
                captured(&condition.true_body, blocks);
                captured(&condition.false_body, blocks);
            }
            _ => {}
        }
    }
}

/// The variables that statements set in their own scope.
fn assigned<'a>(body: &[Stmt<'a>], set: &mut BTreeSet<&'a str>) {
    for statement in body {
        match statement {
            Stmt::Set(assignment) => match &assignment.target {
                Expr::Tuple(several) => set.extend(several.items.iter().filter_map(name)),
                Expr::List(several) => set.extend(several.items.iter().filter_map(name)),
                target => set.extend(name(target)),
            },
            Stmt::SetBlock(block) => set.extend(name(&block.target)),
            Stmt::IfCond(condition) => {
                assigned(&condition.true_body, set);
                assigned(&condition.false_body, set);
            }
            _ => {}
        }
    }
}

/// How often a variable comes up.
fn occurrences(body: &[Stmt<'_>], name: &str) -> usize {
    let mut found = 0;
    for inner in body {
        statement(inner, &mut |node| {
            found += usize::from(matches!(node, Node::Expr(Expr::Var(variable)) if variable.id == name));
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;

    /// Each gives one thing in Jinja2 3.1 and another in minijinja 3.0.
    #[test]
    fn what_would_give_another_text_is_refused() {
        let refused = |source: &str| divergence(source, &tree(source).unwrap());
        for source in [
            "{% set x=5 %}{% set y %}{% set x=6 %}{{x}}{% endset %}{{x}}{{y}}",
            "{% set x=5 %}{% filter upper %}{% if x %}{% set x=6 %}{% endif %}{% endfilter %}{{x}}",
            "{% with a=1, b=a %}[{{ b }}]{% endwith %}",
            "{% macro f(a, b=a ~ '!') %}{{ a }}-{{ b }}{% endmacro %}{{ f(1) }}",
            "{% macro f(x) %}{% endmacro %}{{ f }}",
            "{% macro f(x) %}{% endmacro %}{{ f.arguments }}",
            "{% macro f(x) %}{{ varargs is defined }}{% endmacro %}",
            "{% set ns=namespace() %}{{ 'T' if ns else 'F' }}",
            "{% for m in messages %}{{ loop|length }}{% endfor %}",
            "{% if messages[0].content.strip is defined %}y{% endif %}",
            "{%- raw -%}\n a\n{% endraw %}\nb",
        ] {
            assert!(refused(source).is_some(), "{source}");
        }
        for source in [
            "{% set ns=namespace(a=1) %}{% set ns.a=ns.a+1 %}{{ ns['a'] }}",
            "{% set y %}{% set x=1 %}{{ x }}{% endset %}{{ y }}",
            "{% macro f(s) %}{{ s.a }}{% endmacro %}{% set ns=namespace(a=1) %}{{ f(ns) }}",
            "{% set y %}{% for m in messages %}{% set x=m.content.strip() %}{{ x }}{% endfor %}{% endset %}{{ y }}",
            "{% macro f(a, b=1) %}{{ a ~ b }}{% endmacro %}{{ f(2) }}{% for x in y recursive %}{{ loop(x) ~ loop.index }}{% endfor %}",
        ] {
            assert_eq!(refused(source), None, "{source}");
        }
    }
}
