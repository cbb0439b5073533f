//! Which templates do nothing with a message's content but copy it.
//!
//! A template's abstract syntax is followed once, and every value in it judged by how it may depend on contents. What
//! may be done to contents is on a list; a template that does anything else is not copying, and is rendered in full
//! for every request. When in doubt, it is not copying.
//!
//! Names are judged without regard to scope or order: a variable is all that any variable of its name is ever set to.

mod values;

use super::skeleton::MARK;
use minijinja::machinery::ast::{Expr, ForLoop, Macro, Stmt};
use std::collections::{BTreeMap, BTreeSet};

/// What a copying template does depends on roles, on the number of messages, and on this of their contents.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Copying {
    /// Literals that the template looks for in contents, compares them with, or splits them at. The skeleton only
    /// holds for contents that have none of these in them. None is empty.
    pub needles: BTreeSet<String>,
    /// Whether whitespace is cut from the ends of contents.
    pub trims: bool,
    /// Whether the date is printed; never the time of day.
    pub dated: bool,
}

/// Finds out whether a template only copies contents; the error says what else it does.
pub(super) fn copying(tree: &Stmt<'_>) -> Result<Copying, &'static str> {
    let Stmt::Template(template) = tree else { return Err("it is no template") };
    let mut judge = Judge::default();
    judge.names.extend([("messages", Messages), ("loop", Loop)]);
    // Kinds only ever move up a lattice of height 3, so this ends; the bound is for the proof's sake.
    for _ in 0..ROUNDS {
        judge.changed = false;
        judge.statements(&template.children)?;
        if !judge.changed {
            return Ok(judge.found);
        }
    }
    Err("it is too entangled")
}

const ROUNDS: usize = 64;
/// Names that the analysis gives a meaning: a template that redefines one is not followed.
const FIXED: [&str; 6] = ["namespace", "raise_exception", "loop", "self", "super", "caller"];
/// `strftime` codes that depend on the day alone.
const OF_DAYS: &str = "YmdyjBbAa";

/// How a value may depend on contents. Whatever is right to do with a kind is right with a `Plain` value, too: where
/// several values meet under one name, the least plain kind is theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Not at all.
    Plain,
    /// It is one message's content, but for whitespace at its ends.
    Content,
    /// Contents and plain text in a row.
    Mixed,
    /// A list whose only element is a content: a content split at a needle that is not in it.
    Split,
    /// A message: its role is plain, its content a content, it has nothing else.
    Message,
    /// A list of messages.
    Messages,
    /// Holds values of the kinds in `Judge::attributes`.
    Namespace,
    /// The `loop` variable.
    Loop,
}

use Kind::{Content, Loop, Message, Messages, Mixed, Namespace, Plain};

impl Kind {
    fn join(self, other: Kind) -> Judged {
        match (self, other) {
            (a, b) if a == b => Ok(a),
            (Plain, kind) | (kind, Plain) => Ok(kind),
            (Content, Mixed) | (Mixed, Content) => Ok(Mixed),
            _ => Err("a name stands for values of several kinds"),
        }
    }

    fn is_text(self) -> bool {
        matches!(self, Plain | Content | Mixed)
    }
}

type Judged<T = Kind> = Result<T, &'static str>;

#[derive(Default)]
struct Judge<'a> {
    found: Copying,
    names: BTreeMap<&'a str, Kind>,
    /// Of all namespaces together.
    attributes: BTreeMap<&'a str, Kind>,
    macros: BTreeMap<&'a str, Called<'a>>,
    /// Whether what is being captured has contents in it.
    printed: bool,
    /// Whether this round has learned something.
    changed: bool,
}

#[derive(Clone)]
struct Called<'a> {
    parameters: Vec<&'a str>,
    prints: Kind,
}

impl<'a> Judge<'a> {
    fn statements(&mut self, statements: &[Stmt<'a>]) -> Judged<()> {
        statements.iter().try_for_each(|s| self.statement(s))
    }

    fn statement(&mut self, statement: &Stmt<'a>) -> Judged<()> {
        match statement {
            Stmt::EmitRaw(raw) if raw.raw.contains(MARK) => Err("it prints marks itself"),
            Stmt::EmitRaw(_) | Stmt::Continue(_) | Stmt::Break(_) => Ok(()),
            Stmt::EmitExpr(emit) => match self.value(&emit.expr)? {
                Plain => Ok(()),
                Content | Mixed => {
                    self.printed = true;
                    Ok(())
                }
                _ => Err("it prints messages as a whole"),
            },
            Stmt::IfCond(condition) => {
                self.condition(&condition.expr)?;
                self.statements(&condition.true_body)?;
                self.statements(&condition.false_body)
            }
            Stmt::ForLoop(looped) => self.for_loop(looped),
            Stmt::Set(set) => {
                let kind = self.value(&set.expr)?;
                self.assign(&set.target, kind)
            }
            Stmt::SetBlock(block) if block.filter.is_none() => {
                let kind = self.captured(&block.body)?;
                self.assign(&block.target, kind)
            }
            Stmt::WithBlock(with) => {
                for (target, value) in &with.assignments {
                    let kind = self.value(value)?;
                    self.assign(target, kind)?;
                }
                self.statements(&with.body)
            }
            Stmt::Macro(declared) => self.declare(declared),
            Stmt::Do(done) => self.call(&done.call).map(|_| ()),
            _ => Err("it has a statement that is not followed"),
        }
    }

    fn for_loop(&mut self, looped: &ForLoop<'a>) -> Judged<()> {
        if looped.recursive {
            return Err("it loops recursively");
        }
        let item = match self.value(&looped.iter)? {
            Plain => Plain,
            Messages => Message,
            _ => return Err("it iterates over contents"),
        };
        self.assign(&looped.target, item)?;
        looped.filter_expr.iter().try_for_each(|filter| self.condition(filter))?;
        self.statements(&looped.body)?;
        self.statements(&looped.else_body)
    }

    fn declare(&mut self, declared: &Macro<'a>) -> Judged<()> {
        let mut parameters = Vec::new();
        for parameter in &declared.args {
            let Expr::Var(name) = parameter else { return Err("a macro unpacks its arguments") };
            self.bind(name.id, Plain)?;
            parameters.push(name.id);
        }
        let with_default = parameters.len().saturating_sub(declared.defaults.len());
        for (name, default) in parameters.iter().skip(with_default).zip(&declared.defaults) {
            let kind = self.value(default)?;
            self.bind(name, kind)?;
        }
        if self.names.contains_key(declared.name) || FIXED.contains(&declared.name) {
            return Err("a macro's name is used otherwise");
        }
        // Known before its body is followed: it may call itself.
        let before = self.macros.get(declared.name).cloned();
        if before.as_ref().is_some_and(|m| m.parameters != parameters) {
            return Err("a macro is declared twice");
        }
        let known = before.as_ref().map_or(Plain, |m| m.prints);
        self.changed |= before.is_none();
        self.macros.insert(declared.name, Called { parameters: parameters.clone(), prints: known });
        let prints = self.captured(&declared.body)?.join(known)?;
        self.changed |= prints != known;
        self.macros.insert(declared.name, Called { parameters, prints });
        Ok(())
    }

    /// The kind of the text that these statements print.
    fn captured(&mut self, body: &[Stmt<'a>]) -> Judged {
        let outside = std::mem::take(&mut self.printed);
        self.statements(body)?;
        let inside = std::mem::replace(&mut self.printed, outside);
        Ok(if inside { Mixed } else { Plain })
    }

    fn assign(&mut self, target: &Expr<'a>, kind: Kind) -> Judged<()> {
        match target {
            Expr::Var(name) => self.bind(name.id, kind),
            Expr::List(list) if kind == Plain => list.items.iter().try_for_each(|item| self.assign(item, Plain)),
            Expr::Tuple(tuple) if kind == Plain => tuple.items.iter().try_for_each(|item| self.assign(item, Plain)),
            Expr::GetAttr(attribute) => match self.value(&attribute.expr)? {
                Namespace => {
                    let known = self.attributes.get(attribute.name).copied();
                    let joined = known.unwrap_or(Plain).join(kind)?;
                    self.changed |= known != Some(joined);
                    self.attributes.insert(attribute.name, joined);
                    Ok(())
                }
                Plain if kind == Plain => Ok(()),
                _ => Err("it sets an attribute to contents"),
            },
            _ => Err("it unpacks contents"),
        }
    }

    fn bind(&mut self, name: &'a str, kind: Kind) -> Judged<()> {
        if FIXED.contains(&name) || self.macros.contains_key(name) {
            return Err("it redefines a name");
        }
        let known = self.names.get(name).copied();
        let joined = known.unwrap_or(Plain).join(kind)?;
        self.changed |= known != Some(joined);
        self.names.insert(name, joined);
        Ok(())
    }
}
