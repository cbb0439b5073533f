//! Of what kind an expression's value is, and whether what it does with contents is on the list.

use super::Kind::{Content, Loop, Message, Messages, Mixed, Namespace, Plain, Split};
use super::{FIXED, Judge, Judged, Kind, MARK, OF_DAYS};
use minijinja::machinery::ast::{BinOpKind, Call, CallArg, CallType, CompareOpKind, Expr, UnaryOpKind};
use minijinja::value::ValueKind;

/// Tests that only look at the kind of a value.
const OF_KIND: [&str; 13] = [
    "defined",
    "undefined",
    "none",
    "string",
    "mapping",
    "iterable",
    "sequence",
    "number",
    "integer",
    "float",
    "boolean",
    "true",
    "false",
];

impl<'a> Judge<'a> {
    /// An expression of which only the truth matters. A content's core is never empty, so that is known of every kind.
    pub(super) fn condition(&mut self, expression: &Expr<'a>) -> Judged<()> {
        match self.value(expression)? {
            Namespace | Loop => Err("it asks for the truth of something odd"),
            _ => Ok(()),
        }
    }

    fn plain(&mut self, expression: &Expr<'a>) -> Judged<()> {
        match self.value(expression)? {
            Plain => Ok(()),
            _ => Err("it computes with contents"),
        }
    }

    fn plain_arguments(&mut self, arguments: &[CallArg<'a>]) -> Judged<()> {
        arguments.iter().try_for_each(|argument| match argument {
            CallArg::Pos(e) | CallArg::Kwarg(_, e) | CallArg::PosSplat(e) | CallArg::KwargSplat(e) => self.plain(e),
        })
    }

    pub(super) fn value(&mut self, expression: &Expr<'a>) -> Judged {
        match expression {
            Expr::Const(c) if c.value.as_str().is_some_and(|text| text.contains(MARK)) => Err("it prints marks itself"),
            Expr::Const(_) => Ok(Plain),
            Expr::Var(name) if self.macros.contains_key(name.id) => Err("it hands a macro around"),
            Expr::Var(name) => Ok(self.names.get(name.id).copied().unwrap_or(Plain)),
            Expr::GetAttr(attribute) => {
                let of = self.value(&attribute.expr)?;
                self.attribute(of, attribute.name)
            }
            Expr::GetItem(item) => {
                let of = self.value(&item.expr)?;
                self.plain(&item.subscript_expr)?;
                match (of, literal(&item.subscript_expr)) {
                    (_, Some(name)) => self.attribute(of, name),
                    (Plain, None) => Ok(Plain),
                    (Messages, None) => Ok(Message),
                    (Split, None) => Ok(Content),
                    _ => Err("it takes contents apart"),
                }
            }
            Expr::Slice(slice) => {
                let bounds = [&slice.start, &slice.stop, &slice.step];
                bounds.into_iter().flatten().try_for_each(|bound| self.plain(bound))?;
                match self.value(&slice.expr)? {
                    kind @ (Plain | Messages) => Ok(kind),
                    _ => Err("it slices contents"),
                }
            }
            Expr::UnaryOp(unary) => match unary.op {
                UnaryOpKind::Not => self.condition(&unary.expr).map(|()| Plain),
                UnaryOpKind::Neg => self.plain(&unary.expr).map(|()| Plain),
            },
            Expr::BinOp(binary) => self.operator(binary.op, &binary.left, &binary.right),
            Expr::Compare(compare) => {
                let mut left = &compare.expr;
                for next in &compare.ops {
                    match next.op {
                        CompareOpKind::Eq | CompareOpKind::Ne => self.equal(left, &next.expr)?,
                        CompareOpKind::In | CompareOpKind::NotIn => self.within(left, &next.expr)?,
                        _ => [left, &next.expr].into_iter().try_for_each(|side| self.plain(side))?,
                    }
                    left = &next.expr;
                }
                Ok(Plain)
            }
            Expr::IfExpr(choice) => {
                self.condition(&choice.test_expr)?;
                let then = self.value(&choice.true_expr)?;
                choice.false_expr.as_ref().map_or(Ok(Plain), |e| self.value(e))?.join(then)
            }
            Expr::Filter(filter) => {
                let of = filter.expr.as_ref().ok_or("it filters a block").and_then(|e| self.value(e))?;
                self.filter(of, filter.name, &filter.args)
            }
            Expr::Test(test) => match self.value(&test.expr)? {
                Plain => self.plain_arguments(&test.args).map(|()| Plain),
                Namespace | Loop => Err("it tests something odd"),
                _ if OF_KIND.contains(&test.name) && test.args.is_empty() => Ok(Plain),
                _ => Err("it tests contents in a way that is not followed"),
            },
            Expr::Call(call) => self.call(call),
            Expr::List(list) => list.items.iter().try_for_each(|e| self.plain(e)).map(|()| Plain),
            Expr::Tuple(tuple) => tuple.items.iter().try_for_each(|e| self.plain(e)).map(|()| Plain),
            Expr::Map(map) => map.keys.iter().chain(&map.values).try_for_each(|e| self.plain(e)).map(|()| Plain),
        }
    }

    fn attribute(&self, of: Kind, name: &str) -> Judged {
        match of {
            // Text has no attributes: not to be defined is known of it, too.
            Plain | Content | Mixed => Ok(Plain),
            Message if name == "content" => Ok(Content),
            Message => Ok(Plain),
            Namespace => Ok(self.attributes.get(name).copied().unwrap_or(Plain)),
            Loop if name == "previtem" || name == "nextitem" => Ok(Message),
            Loop => Ok(Plain),
            Split | Messages => Err("it looks for an attribute of a list"),
        }
    }

    fn operator(&mut self, op: BinOpKind, left: &Expr<'a>, right: &Expr<'a>) -> Judged {
        match op {
            BinOpKind::Eq | BinOpKind::Ne => self.equal(left, right).map(|()| Plain),
            BinOpKind::In => self.within(left, right).map(|()| Plain),
            BinOpKind::ScAnd | BinOpKind::ScOr => {
                self.condition(left)?;
                self.value(left)?.join(self.value(right)?)
            }
            BinOpKind::Add | BinOpKind::Concat => match (self.value(left)?, self.value(right)?) {
                (Plain, Plain) => Ok(Plain),
                (a, b) if a.is_text() && b.is_text() => Ok(Mixed),
                _ => Err("it adds messages"),
            },
            _ => [left, right].into_iter().try_for_each(|side| self.plain(side)).map(|()| Plain),
        }
    }

    fn equal(&mut self, left: &Expr<'a>, right: &Expr<'a>) -> Judged<()> {
        match (self.value(left)?, self.value(right)?) {
            (Plain, Plain) => Ok(()),
            (text, Plain) if text.is_text() => self.equal_to(text, right),
            (Plain, text) if text.is_text() => self.equal_to(text, left),
            _ => Err("it compares contents with something that is not followed"),
        }
    }

    fn equal_to(&mut self, text: Kind, other: &Expr<'a>) -> Judged<()> {
        let Expr::Const(constant) = other else { return Err("it compares contents with no literal") };
        match (constant.value.as_str(), text) {
            (Some(""), _) => Ok(()),
            // What equals the literal has it within.
            (Some(literal), Content) => self.needle(literal),
            (None, _) if matches!(constant.value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number) => {
                Ok(())
            }
            _ => Err("it compares mixed text"),
        }
    }

    fn within(&mut self, needle: &Expr<'a>, of: &Expr<'a>) -> Judged<()> {
        let kind = self.value(of)?;
        self.plain(needle)?;
        match (kind, literal(needle)) {
            // Which keys a message has is known.
            (Plain | Message, _) => Ok(()),
            (Content, Some("")) => Ok(()),
            (Content, Some(literal)) => self.needle(literal),
            _ => Err("it looks for something in contents that is no literal"),
        }
    }

    fn needle(&mut self, literal: &str) -> Judged<()> {
        if literal.is_empty() {
            return Err("it looks for nothing");
        }
        self.found.needles.insert(literal.to_owned());
        Ok(())
    }

    /// The first argument must be a literal: a needle.
    fn needle_argument(&mut self, arguments: &[CallArg<'a>]) -> Judged<()> {
        self.plain_arguments(arguments)?;
        match arguments.first() {
            Some(CallArg::Pos(e)) => literal(e).ok_or("it looks for no literal").and_then(|l| self.needle(l)),
            _ => Err("it looks for no literal"),
        }
    }

    /// Cutting from the ends stops at a content's core, if only whitespace is cut.
    fn trim(&mut self, of: Kind, arguments: &[CallArg<'a>]) -> Judged {
        let space = |e: &Expr<'a>| literal(e).is_some_and(|chars| chars.chars().all(char::is_whitespace));
        match arguments {
            [] => {}
            [CallArg::Pos(e)] if space(e) => {}
            _ => return Err("it cuts more than whitespace from contents"),
        }
        self.found.trims = true;
        Ok(of)
    }

    fn default_to(&mut self, of: Kind, arguments: &[CallArg<'a>]) -> Judged {
        match arguments {
            [] => Ok(of),
            [CallArg::Pos(other), rest @ ..] => {
                let other = self.value(other)?;
                self.plain_arguments(rest)?;
                of.join(other)
            }
            _ => Err("it gives a default in a way that is not followed"),
        }
    }

    fn filter(&mut self, of: Kind, name: &str, arguments: &[CallArg<'a>]) -> Judged {
        match (of, name) {
            (Plain | Content | Mixed | Message | Messages, "default" | "d") => self.default_to(of, arguments),
            (Plain, _) => self.plain_arguments(arguments).map(|()| Plain),
            (Content | Mixed, "trim") => self.trim(of, arguments),
            (Content | Mixed, "string") | (Messages, "list" | "reverse") if arguments.is_empty() => Ok(of),
            (Content, "replace" | "split") => self.identity(name, arguments),
            (Split | Messages, "length" | "count") if arguments.is_empty() => Ok(Plain),
            (Split, "first" | "last") if arguments.is_empty() => Ok(Content),
            (Messages, "first" | "last") if arguments.is_empty() => Ok(Message),
            (Messages, "selectattr" | "rejectattr") => match arguments.first() {
                Some(CallArg::Pos(e)) if literal(e) == Some("role") => {
                    self.plain_arguments(arguments).map(|()| Messages)
                }
                _ => Err("it selects messages by their content"),
            },
            (Messages, "map") => match arguments {
                [CallArg::Kwarg("attribute", e)] if literal(e) == Some("role") => Ok(Plain),
                _ => Err("it maps messages"),
            },
            _ => Err("it filters contents in a way that is not followed"),
        }
    }

    /// What leaves a content as it is, or alone in a list, when the needle is not in it.
    fn identity(&mut self, name: &str, arguments: &[CallArg<'a>]) -> Judged {
        self.needle_argument(arguments)?;
        Ok(if name == "split" { Split } else { Content })
    }

    pub(super) fn call(&mut self, call: &Call<'a>) -> Judged {
        match call.identify_call() {
            CallType::Function(name) => self.function(name, &call.args),
            CallType::Method(of, name) => {
                let of = self.value(of)?;
                self.method(of, name, &call.args)
            }
            _ => Err("it calls something that is not followed"),
        }
    }

    fn function(&mut self, name: &'a str, arguments: &[CallArg<'a>]) -> Judged {
        if let Some(called) = self.macros.get(name).cloned() {
            let mut parameters = called.parameters.iter();
            for argument in arguments {
                let (parameter, value) = match argument {
                    CallArg::Pos(value) => (parameters.next(), value),
                    CallArg::Kwarg(name, value) => (called.parameters.iter().find(|p| *p == name), value),
                    _ => return Err("it unpacks a macro's arguments"),
                };
                let kind = self.value(value)?;
                self.bind(parameter.ok_or("it calls a macro with too many arguments")?, kind)?;
            }
            return Ok(called.prints);
        }
        match name {
            "namespace" => {
                for argument in arguments {
                    let CallArg::Kwarg(name, value) = argument else { return Err("it fills a namespace from a map") };
                    let kind = self.value(value)?;
                    let known = self.attributes.get(name).copied();
                    let joined = known.unwrap_or(Plain).join(kind)?;
                    self.changed |= known != Some(joined);
                    self.attributes.insert(name, joined);
                }
                Ok(Namespace)
            }
            // Fails, whatever it says.
            "raise_exception" => match arguments {
                [CallArg::Pos(why)] if self.value(why)?.is_text() => Ok(Plain),
                _ => Err("it raises something odd"),
            },
            "strftime_now" => match arguments {
                [CallArg::Pos(e)] => {
                    let codes = literal(e).ok_or("it prints the time in a computed format")?.split('%').skip(1);
                    if !codes
                        .flat_map(|code| code.trim_start_matches('-').chars().next())
                        .all(|code| OF_DAYS.contains(code))
                    {
                        return Err("it prints the time of day");
                    }
                    self.found.dated = true;
                    Ok(Plain)
                }
                _ => Err("it prints the time in a computed format"),
            },
            name if FIXED.contains(&name) || self.names.get(name).is_some_and(|kind| *kind != Plain) => {
                Err("it calls something that is not followed")
            }
            _ => self.plain_arguments(arguments).map(|()| Plain),
        }
    }

    fn method(&mut self, of: Kind, name: &'a str, arguments: &[CallArg<'a>]) -> Judged {
        match (of, name) {
            (Plain, _) | (Loop, "cycle" | "changed") => self.plain_arguments(arguments).map(|()| Plain),
            (Content | Mixed, "strip" | "lstrip" | "rstrip") => self.trim(of, arguments),
            (Content, "startswith" | "endswith") => {
                self.plain_arguments(arguments)?;
                match arguments {
                    [CallArg::Pos(e)] if literal(e) == Some("") => Ok(Plain),
                    _ => self.needle_argument(arguments).map(|()| Plain),
                }
            }
            (Content, "find" | "rfind" | "count") => self.needle_argument(arguments).map(|()| Plain),
            (Content, "replace" | "split") => self.identity(name, arguments),
            (Message, "get") => match arguments {
                [CallArg::Pos(key), default @ ..] => {
                    let field = literal(key).ok_or("it looks up a message's field by no literal")?;
                    let kind = self.attribute(Message, field)?;
                    self.default_to(kind, default)
                }
                _ => Err("it looks up a message's field by no literal"),
            },
            _ => Err("it calls a method of contents that is not followed"),
        }
    }
}

fn literal<'e>(expression: &'e Expr<'_>) -> Option<&'e str> {
    match expression {
        Expr::Const(constant) => constant.value.as_str(),
        _ => None,
    }
}
