//! Goes through a template's syntax tree.

use minijinja::machinery::ast::{Call, CallArg, Expr, Macro, Stmt};

/// A node of a syntax tree.
pub(super) enum Node<'t, 'a> {
    Stmt(&'t Stmt<'a>),
    Expr(&'t Expr<'a>),
    Call(&'t Call<'a>),
}

/// Visits a statement and all within, parents first, in the order of the source.
pub(super) fn statement<'t, 'a>(node: &'t Stmt<'a>, visit: &mut dyn FnMut(Node<'t, 'a>)) {
    visit(Node::Stmt(node));
    match node {
        Stmt::Template(template) => statements(&template.children, visit),
        Stmt::EmitExpr(emit) => expression(&emit.expr, visit),
        Stmt::ForLoop(looped) => {
            expression(&looped.target, visit);
            expression(&looped.iter, visit);
            statements(&looped.body, visit);
            statements(&looped.else_body, visit);
            looped.filter_expr.iter().for_each(|filter| expression(filter, visit));
        }
        Stmt::IfCond(condition) => {
            expression(&condition.expr, visit);
            statements(&condition.true_body, visit);
            statements(&condition.false_body, visit);
        }
        Stmt::WithBlock(with) => {
            for (target, value) in &with.assignments {
                expression(target, visit);
                expression(value, visit);
            }
            statements(&with.body, visit);
        }
        Stmt::Set(set) => {
            expression(&set.target, visit);
            expression(&set.expr, visit);
        }
        Stmt::SetBlock(block) => {
            expression(&block.target, visit);
            block.filter.iter().for_each(|filter| expression(filter, visit));
            statements(&block.body, visit);
        }
        Stmt::AutoEscape(block) => {
            expression(&block.enabled, visit);
            statements(&block.body, visit);
        }
        Stmt::FilterBlock(block) => {
            expression(&block.filter, visit);
            statements(&block.body, visit);
        }
        Stmt::Macro(declared) => declaration(declared, visit),
        Stmt::CallBlock(block) => {
            call(&block.call, visit);
            declaration(&block.macro_decl, visit);
        }
        Stmt::Do(done) => call(&done.call, visit),
        // Templates that look for others are refused.
        Stmt::Block(_) | Stmt::Import(_) | Stmt::FromImport(_) | Stmt::Extends(_) | Stmt::Include(_) => {}
        Stmt::EmitRaw(_) | Stmt::Continue(_) | Stmt::Break(_) => {}
    }
}

fn statements<'t, 'a>(nodes: &'t [Stmt<'a>], visit: &mut dyn FnMut(Node<'t, 'a>)) {
    nodes.iter().for_each(|node| statement(node, visit));
}

fn declaration<'t, 'a>(declared: &'t Macro<'a>, visit: &mut dyn FnMut(Node<'t, 'a>)) {
    declared.args.iter().chain(&declared.defaults).for_each(|node| expression(node, visit));
    statements(&declared.body, visit);
}

fn call<'t, 'a>(node: &'t Call<'a>, visit: &mut dyn FnMut(Node<'t, 'a>)) {
    visit(Node::Call(node));
    expression(&node.expr, visit);
    arguments(&node.args, visit);
}

fn arguments<'t, 'a>(nodes: &'t [CallArg<'a>], visit: &mut dyn FnMut(Node<'t, 'a>)) {
    for node in nodes {
        match node {
            CallArg::Pos(e) | CallArg::Kwarg(_, e) | CallArg::PosSplat(e) | CallArg::KwargSplat(e) => {
                expression(e, visit);
            }
        }
    }
}

/// Visits an expression and all within.
pub(super) fn expression<'t, 'a>(node: &'t Expr<'a>, visit: &mut dyn FnMut(Node<'t, 'a>)) {
    visit(Node::Expr(node));
    match node {
        Expr::Var(_) | Expr::Const(_) => {}
        Expr::Slice(slice) => {
            expression(&slice.expr, visit);
            [&slice.start, &slice.stop, &slice.step].into_iter().flatten().for_each(|bound| expression(bound, visit));
        }
        Expr::UnaryOp(unary) => expression(&unary.expr, visit),
        Expr::BinOp(binary) => {
            expression(&binary.left, visit);
            expression(&binary.right, visit);
        }
        Expr::Compare(compare) => {
            expression(&compare.expr, visit);
            compare.ops.iter().for_each(|op| expression(&op.expr, visit));
        }
        Expr::IfExpr(choice) => {
            expression(&choice.test_expr, visit);
            expression(&choice.true_expr, visit);
            choice.false_expr.iter().for_each(|other| expression(other, visit));
        }
        Expr::Filter(filter) => {
            filter.expr.iter().for_each(|of| expression(of, visit));
            arguments(&filter.args, visit);
        }
        Expr::Test(test) => {
            expression(&test.expr, visit);
            arguments(&test.args, visit);
        }
        Expr::GetAttr(attribute) => expression(&attribute.expr, visit),
        Expr::GetItem(item) => {
            expression(&item.expr, visit);
            expression(&item.subscript_expr, visit);
        }
        Expr::Call(node) => call(node, visit),
        Expr::List(list) => list.items.iter().for_each(|item| expression(item, visit)),
        Expr::Tuple(tuple) => tuple.items.iter().for_each(|item| expression(item, visit)),
        Expr::Map(map) => map.keys.iter().chain(&map.values).for_each(|item| expression(item, visit)),
    }
}
