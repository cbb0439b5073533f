//! Chat templates, set up and rendered as transformers does it.

use super::copying::copying;
use super::skeleton::{MARK, Skeletons};
use super::{Turn, Unknown};
use crate::fleet::{Profile, Profiles, Template};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, filters, functions, tests};
use std::cell::RefCell;

/// Compiled templates and their skeletons.
pub(super) struct Templates {
    /// Holds each model's compiled template under its number.
    compiled: Environment<'static>,
    /// By the model's number.
    skeletons: Vec<RefCell<Skeletons>>,
}

impl Templates {
    /// Compiles what can be compiled. Reports the models whose template could not be, by name, with the reason.
    pub fn new(profiles: &Profiles) -> (Self, Vec<(String, String)>) {
        let mut compiled = environment();
        let (mut failed, mut skeletons) = (Vec::new(), Vec::new());
        for (number, profile) in profiles.models.iter().enumerate() {
            let mut copies = None;
            if let Some(Template { source, .. }) = profile.template(false) {
                if let Some(why) = unsupported(source) {
                    failed.push((profile.name.clone(), why.to_owned()));
                } else if let Err(e) = compiled.add_template_owned(number.to_string(), source.clone()) {
                    failed.push((profile.name.clone(), e.to_string()));
                } else {
                    // A token that looks like a mark would be taken for one.
                    let marked = profile.special_tokens.iter().any(|(_, text)| text.contains(MARK));
                    copies = syntax().filter(|_| !marked).and_then(|syntax| copying(source, syntax).ok());
                }
            }
            skeletons.push(RefCell::new(Skeletons::new(copies)));
        }
        (Self { compiled, skeletons }, failed)
    }

    /// The prompt that a model's template makes of messages.
    pub fn render(
        &self,
        model: u16,
        profile: &Profile,
        turns: &[Turn<'_>],
        generation: bool,
    ) -> Result<String, Unknown> {
        let mut number = [0; 5];
        let template = self.compiled.get_template(decimal(model, &mut number)).map_err(|_| Unknown::Template)?;
        let render = |contents: &[&str]| print(&template, profile, turns, contents, generation);
        // A VM has one thread and rendering does not come back here, so the cell is free; were it not, the template
        // would still say it right.
        match self.skeletons.get(usize::from(model)).map(RefCell::try_borrow_mut) {
            Some(Ok(mut skeletons)) => skeletons.spell(turns, generation, render),
            _ => render(&turns.iter().map(|turn| turn.content.as_ref()).collect::<Vec<_>>()),
        }
    }

    /// To compare with: every prompt is rendered in full.
    #[cfg(test)]
    pub fn without_skeletons(mut self) -> Self {
        self.skeletons.clear();
        self
    }

    #[cfg(test)]
    pub fn skeletons(&self, model: usize) -> (usize, bool) {
        self.skeletons[model].borrow().state()
    }
}

/// Has a template print messages with these contents.
fn print(
    template: &minijinja::Template<'_, '_>,
    profile: &Profile,
    turns: &[Turn<'_>],
    contents: &[&str],
    generation: bool,
) -> Result<String, Unknown> {
    let message = |(turn, content): (&Turn<'_>, &&str)| {
        let content = Value::from(*content);
        let fields = [
            ("role", Some(Value::from(turn.role.as_ref()))),
            ("content", Some(content)),
            ("name", turn.name.as_deref().map(Value::from)),
        ];
        Value::from_pairs(fields.into_iter().filter_map(|(k, v)| Some((Value::from(k), v?))))
    };
    let messages: Vec<Value> = turns.iter().zip(contents).map(message).collect();
    let special = profile.special_tokens.iter().map(|(name, text)| (Value::from(name), Value::from(text)));
    let given = [
        ("messages", Value::from(messages)),
        // transformers always passes these, as None when the request has none.
        ("tools", Value::from(())),
        ("documents", Value::from(())),
        ("add_generation_prompt", Value::from(generation)),
    ];
    let context = Value::from_pairs(special.chain(given.map(|(name, value)| (Value::from(name), value))));
    template.render(context).map_err(|_| Unknown::Template)
}

/// Writes a number without allocating: templates are looked up on every request.
fn decimal(mut n: u16, buffer: &mut [u8; 5]) -> &str {
    let mut start = buffer.len();
    for (at, digit) in buffer.iter_mut().enumerate().rev() {
        *digit = b'0' + (n % 10) as u8;
        start = at;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    buffer.get(start..).and_then(|digits| std::str::from_utf8(digits).ok()).unwrap_or("")
}

fn syntax() -> Option<SyntaxConfig> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().ok()
}

/// Instructions that a rendering may take, so that no template can hang a worker: 512 messages take some 50,000.
const FUEL: u64 = 2_000_000;

/// Jinja as transformers sets it up, with what chat templates use of it: each filter and test makes the module larger.
/// A template that asks for another one fails to render, and its prompts are [`Unknown::Template`].
fn environment() -> Environment<'static> {
    let mut env = Environment::empty();
    env.set_fuel(Some(FUEL));
    if let Some(syntax) = syntax() {
        env.set_syntax(syntax);
    }
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_function("raise_exception", |why: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, why))
    });
    env.add_function("namespace", functions::namespace);
    env.add_function("range", functions::range);
    env.add_function("dict", functions::dict);

    env.add_filter("trim", filters::trim);
    env.add_filter("tojson", filters::tojson);
    for name in ["length", "count"] {
        env.add_filter(name, filters::length);
    }
    for name in ["default", "d"] {
        env.add_filter(name, filters::default);
    }
    for name in ["escape", "e"] {
        env.add_filter(name, filters::escape);
    }
    env.add_filter("safe", filters::safe);
    env.add_filter("string", filters::string);
    env.add_filter("bool", filters::bool);
    env.add_filter("int", filters::int);
    env.add_filter("float", filters::float);
    env.add_filter("abs", filters::abs);
    env.add_filter("round", filters::round);
    env.add_filter("sum", filters::sum);
    env.add_filter("min", filters::min);
    env.add_filter("max", filters::max);
    env.add_filter("upper", filters::upper);
    env.add_filter("lower", filters::lower);
    env.add_filter("title", filters::title);
    env.add_filter("capitalize", filters::capitalize);
    env.add_filter("replace", filters::replace);
    env.add_filter("indent", filters::indent);
    env.add_filter("split", filters::split);
    env.add_filter("join", filters::join);
    env.add_filter("list", filters::list);
    env.add_filter("first", filters::first);
    env.add_filter("last", filters::last);
    env.add_filter("reverse", filters::reverse);
    env.add_filter("sort", filters::sort);
    env.add_filter("unique", filters::unique);
    env.add_filter("items", filters::items);
    env.add_filter("dictsort", filters::dictsort);
    env.add_filter("map", filters::map);
    env.add_filter("select", filters::select);
    env.add_filter("reject", filters::reject);
    env.add_filter("selectattr", filters::selectattr);
    env.add_filter("rejectattr", filters::rejectattr);

    env.add_test("defined", tests::is_defined);
    env.add_test("undefined", tests::is_undefined);
    env.add_test("none", tests::is_none);
    env.add_test("true", tests::is_true);
    env.add_test("false", tests::is_false);
    env.add_test("boolean", tests::is_boolean);
    env.add_test("number", tests::is_number);
    for name in ["integer", "int"] {
        env.add_test(name, tests::is_integer);
    }
    env.add_test("float", tests::is_float);
    env.add_test("odd", tests::is_odd);
    env.add_test("even", tests::is_even);
    env.add_test("divisibleby", tests::is_divisibleby);
    env.add_test("string", tests::is_string);
    env.add_test("lower", tests::is_lower);
    env.add_test("upper", tests::is_upper);
    env.add_test("startingwith", tests::is_startingwith);
    env.add_test("endingwith", tests::is_endingwith);
    env.add_test("mapping", tests::is_mapping);
    env.add_test("sequence", tests::is_sequence);
    env.add_test("iterable", tests::is_iterable);
    env.add_test("sameas", tests::is_sameas);
    env.add_test("in", tests::is_in);
    for name in ["eq", "equalto", "=="] {
        env.add_test(name, tests::is_eq);
    }
    for name in ["ne", "!="] {
        env.add_test(name, tests::is_ne);
    }
    for name in ["lt", "lessthan", "<"] {
        env.add_test(name, tests::is_lt);
    }
    for name in ["le", "<="] {
        env.add_test(name, tests::is_le);
    }
    for name in ["gt", "greaterthan", ">"] {
        env.add_test(name, tests::is_gt);
    }
    for name in ["ge", ">="] {
        env.add_test(name, tests::is_ge);
    }
    env
}

/// Why a template's output cannot be known, as far as its source tells.
fn unsupported(source: &str) -> Option<&'static str> {
    if source.contains("strftime_now") {
        return Some("the template prints the date, and the filter does not know the engine's clock");
    }
    let mut tags = source.split("{%").skip(1).filter_map(|tag| tag.split_once("%}")).map(|(tag, _)| tag);
    // Then vLLM hands the template lists of parts instead of text ("openai" content format).
    let parts = tags.any(|tag| {
        let tag = tag.trim_start_matches(['-', '+']).trim_start();
        tag.starts_with("for ") && tag.split_once(" in ").is_some_and(|(_, over)| over.contains("content"))
    });
    parts.then_some("the template iterates over a message's content, which is not reproduced yet")
}
