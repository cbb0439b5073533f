//! Chats through the model's Jinja templates.

use super::conversation::Conversation;
use super::copying::copying;
use super::jinja::text::{python_space, strip};
use super::jinja::time::LocalTime;
use super::jinja::values::{DOUBT, list, record, value};
use super::jinja::{CLOCK, environment, ordered, prepared, screen, takes_parts, tree};
use super::json::{Json, field};
use super::skeleton::{MARK, Skeletons};
use super::turns::{Said, Seen, SeenPart, Turn, documents, messages, tool, turns};
use super::{Rendered, Unknown};
use crate::profile::{Profile, Profiles, Renderer, Template};
use affinity_scan::any_place;
use minijinja::value::ValueKind;
use minijinja::{Environment, ErrorKind, Value};
use std::borrow::Cow;
use std::cell::{OnceCell, RefCell};
use std::collections::BTreeSet;

/// Compiled templates and their skeletons.
pub(super) struct Templates {
    /// Holds each template under its number.
    compiled: Environment<'static>,
    templates: Vec<Known>,
    /// Of each model, by its number: the numbers of its templates.
    models: Vec<Choice>,
}

/// A template that could be compiled.
struct Known {
    number: String,
    source: String,
    takes_parts: bool,
    knows_developers: bool,
    /// Variables that must not be truth values.
    ordered: BTreeSet<String>,
    skeletons: RefCell<Skeletons>,
}

#[derive(Default)]
struct Choice {
    plain: Option<usize>,
    with_tools: Option<usize>,
    /// The engine's default template arguments.
    defaults: Vec<(String, Value)>,
    special_tokens: Vec<(Value, Value)>,
    /// Once it has been asked; `None`: it is not sure.
    refuses_later_systems: OnceCell<Option<bool>>,
}

/// Arguments that do more in the engine than reach the template, or that it refuses.
const RESERVED: [&str; 11] = [
    "conversation",
    "messages",
    "tools",
    "chat_template",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
];

/// Arguments that the engine takes for itself, in place of what a request or its configuration says.
const TAKEN: [&str; 4] = ["add_generation_prompt", "continue_final_message", "documents", "return_dict"];

impl Templates {
    /// Compiles what can be compiled. Reports the models whose template could not be, by name, with the reason.
    pub fn new(profiles: &Profiles) -> (Self, Vec<(String, String)>) {
        let mut this = Self { compiled: environment(), templates: Vec::new(), models: Vec::new() };
        let mut failed = Vec::new();
        for profile in &profiles.models {
            let choice = this.choose(profile).unwrap_or_else(|why| {
                failed.push((profile.name.clone(), why));
                Choice::default()
            });
            this.models.push(choice);
        }
        (this, failed)
    }

    fn choose(&mut self, profile: &Profile) -> Result<Choice, String> {
        let special = profile.special_tokens.iter();
        let mut choice = Choice {
            special_tokens: special.clone().map(|(name, text)| (Value::from(name), Value::from(text))).collect(),
            ..Choice::default()
        };
        if !profile.default_kwargs.is_empty() {
            let Some(Json::Map(fields)) = Json::parse(&profile.default_kwargs) else {
                return Err("the default template arguments are no JSON object".to_owned());
            };
            if let Some((name, _)) = fields.iter().find(|(name, _)| RESERVED.contains(&name.as_ref())) {
                return Err(format!("{name} cannot be among the default template arguments"));
            }
            let fields = fields.iter().filter(|(name, _)| !TAKEN.contains(&name.as_ref()));
            choice.defaults = fields.map(|(name, given)| (name.to_string(), value(given))).collect();
        }
        // A token that looks like a mark would be taken for one.
        let marked = special.clone().any(|(_, text)| text.contains(MARK));
        let mut add = |template: Option<&Template>| template.map(|template| self.add(template, marked)).transpose();
        choice.plain = add(profile.template(false))?;
        choice.with_tools = match (profile.template(false), profile.template(true)) {
            (Some(plain), Some(other)) if plain.name == other.name => choice.plain,
            (_, other) => add(other)?,
        };
        Ok(choice)
    }

    fn add(&mut self, template: &Template, marked: bool) -> Result<usize, String> {
        let number = self.templates.len();
        let source = prepared(&template.source);
        let (copies, ordered) = {
            let tree = tree(&source).map_err(|e| format!("the template {:?} cannot be parsed: {e}", template.name))?;
            if let Some(why) = screen(&source, &tree) {
                return Err(why.to_owned());
            }
            let followed = !marked && !template.takes_parts;
            (followed.then(|| copying(&tree).ok()).flatten(), ordered(&tree))
        };
        self.compiled.add_template_owned(number.to_string(), source.clone()).map_err(|e| e.to_string())?;
        self.templates.push(Known {
            number: number.to_string(),
            knows_developers: source.contains("\"developer\"") || source.contains("'developer'"),
            takes_parts: template.takes_parts,
            ordered,
            source,
            skeletons: RefCell::new(Skeletons::new(copies)),
        });
        Ok(number)
    }

    /// Whether a model's templates refuse system messages that are not the first, as vLLM finds out: bare, without what
    /// transformers adds to Jinja.
    ///
    /// # Errors
    /// If that is not sure.
    pub fn refuses_later_systems(&self, model: u16, profile: &Profile) -> Result<bool, Unknown> {
        let choice = self.models.get(usize::from(model)).ok_or(Unknown::Template)?;
        let refuses = choice.refuses_later_systems.get_or_init(|| {
            let tried =
                [profile.template(false), profile.template(true)].map(|given| given.and_then(refuses_later_systems));
            match tried {
                [Some(plain), Some(with_tools)] => Some(plain || with_tools),
                _ => None,
            }
        });
        refuses.ok_or(Unknown::Feature("system_messages"))
    }

    /// The prompt that a model's template makes of these messages, if that is known without asking the template.
    pub fn recall(&self, model: u16, said: &[Said<'_>], generation: bool, now: LocalTime) -> Option<Vec<u8>> {
        let choice = self.models.get(usize::from(model))?;
        let known = choice.plain.and_then(|number| self.templates.get(number))?;
        let seen = !said.is_empty() && said.iter().all(|said| said.is_seen(known.knows_developers));
        known.skeletons.try_borrow_mut().ok().filter(|_| seen)?.recall(said, generation, now)
    }

    /// The prompt that a model's template makes of a conversation.
    pub fn render(
        &self,
        model: u16,
        profile: &Profile,
        conversation: &Conversation<'_>,
        now: LocalTime,
    ) -> Result<Rendered, Unknown> {
        let choice = self.models.get(usize::from(model)).ok_or(Unknown::Template)?;
        if let Some(source) = &conversation.chat_template {
            return self.render_given(source, profile, choice, conversation, now);
        }
        if !matches!(profile.renderer, Renderer::Jinja(_)) {
            return Err(Unknown::Template);
        }
        let chosen = if conversation.tools.is_some() { choice.with_tools } else { choice.plain };
        let known = chosen.and_then(|number| self.templates.get(number)).ok_or(Unknown::Template)?;
        known.render(&self.compiled, choice, conversation, now)
    }

    /// With a template out of the request, which engines only do where they are told to trust it.
    fn render_given(
        &self,
        source: &str,
        profile: &Profile,
        choice: &Choice,
        conversation: &Conversation<'_>,
        now: LocalTime,
    ) -> Result<Rendered, Unknown> {
        if !profile.trust_request_template {
            return Err(Unknown::Feature("chat_template"));
        }
        let template = Template { name: String::new(), source: source.to_owned(), takes_parts: takes_parts(source) };
        let mut scratch = Self { compiled: environment(), templates: Vec::new(), models: Vec::new() };
        let number = scratch.add(&template, true).map_err(|_| Unknown::Template)?;
        let known = scratch.templates.get(number).ok_or(Unknown::Template)?;
        known.render(&scratch.compiled, choice, conversation, now)
    }

    /// To compare with: every prompt is rendered in full.
    #[cfg(test)]
    pub fn without_skeletons(self) -> Self {
        for template in &self.templates {
            *template.skeletons.borrow_mut() = Skeletons::new(None);
        }
        self
    }

    #[cfg(test)]
    pub fn skeletons(&self, model: usize) -> (usize, bool) {
        let number = self.models[model].plain.unwrap();
        self.templates[number].skeletons.borrow().state()
    }
}

impl Known {
    fn render(
        &self,
        compiled: &Environment<'_>,
        choice: &Choice,
        conversation: &Conversation<'_>,
        now: LocalTime,
    ) -> Result<Rendered, Unknown> {
        // Most prompts are put together from memory, without any of these.
        let variables = OnceCell::new();
        let print = |messages: Value| {
            let mut all = variables.get_or_init(|| self.variables(choice, conversation, now)).clone()?;
            all.push(("messages".into(), messages));
            let template = compiled.get_template(&self.number).map_err(|_| Unknown::Template)?;
            let text = template.render(Value::from_pairs(all)).map_err(|_| Unknown::Template)?;
            if may_doubt(&text) { Err(Unknown::Template) } else { Ok(text) }
        };
        if conversation.messages.iter().any(|message| message.content.has_media()) {
            return self.until_media(conversation, print);
        }
        let turns = turns(conversation, self.takes_parts, self.knows_developers)?;
        if turns.is_empty() {
            // Engines refuse it.
            return Err(Unknown::Malformed);
        }
        if conversation.continue_final_message {
            return self.continued(conversation, turns, print).map(Rendered::whole);
        }
        let last = turns.last().map_or(0, |turn| match &turn.content {
            Seen::Text(text) => text.len(),
            Seen::Parts(_) => 0,
        });
        let in_full = || print(messages(&turns)?);
        // A VM has one thread and rendering does not come back here, so the cell is free; were it not, the template
        // would still say it right.
        let text = match self.skeletons.try_borrow_mut() {
            Ok(mut skeletons) if conversation.is_plain() => {
                skeletons.spell(&turns, conversation.generation(), now, in_full, |contents| {
                    let turn = |(turn, content): (&Turn<'_, '_>, &&str)| turn.with_content(Value::from(*content));
                    print(list(turns.iter().zip(contents).map(turn).collect::<Result<_, Unknown>>()?))
                })?
            }
            _ => in_full()?,
        };
        Ok(Rendered { text, last, cut: None })
    }

    /// All variables but the messages.
    fn variables(
        &self,
        choice: &Choice,
        conversation: &Conversation<'_>,
        now: LocalTime,
    ) -> Result<Vec<(Value, Value)>, Unknown> {
        let given = &conversation.kwargs;
        if RESERVED.iter().any(|name| field(given, name).is_some()) {
            return Err(Unknown::Feature("chat_template_kwargs"));
        }
        // The engine passes on neither nulls nor "auto".
        let passed = |value: &Json<'_>| !value.is_null() && value.as_str() != Some("auto");
        let mut all = choice.special_tokens.clone();
        all.extend(choice.defaults.iter().map(|(name, given)| (Value::from(name.as_str()), given.clone())));
        let given = given.iter().filter(|(name, given)| passed(given) && !TAKEN.contains(&name.as_ref()));
        all.extend(given.map(|(name, given)| (Value::from(name.as_ref()), value(given))));
        if let Some(effort) = conversation.reasoning_effort.as_deref().filter(|effort| *effort != "auto") {
            all.push(("reasoning_effort".into(), Value::from(effort)));
            if field(&conversation.kwargs, "enable_thinking").is_none() {
                all.push(("enable_thinking".into(), Value::from(effort != "none")));
            }
        }
        // transformers always passes these, as None when the request has none.
        let tools = conversation.tools.as_ref().map_or(Value::from(()), |tools| list(tools.iter().map(tool).collect()));
        all.push(("tools".into(), tools));
        let given = conversation.documents.as_ref().or_else(|| field(&conversation.kwargs, "documents"));
        let given = given.filter(|documents| !documents.is_null());
        all.push(("documents".into(), given.map_or(Ok(Value::from(())), documents)?));
        all.push(("add_generation_prompt".into(), Value::from(conversation.add_generation_prompt.unwrap_or(true))));
        let ordered = |name: &Value| name.as_str().is_some_and(|name| self.ordered.contains(name));
        if all.iter().any(|(name, value)| ordered(name) && compares_otherwise(value, 0)) {
            return Err(Unknown::Template);
        }
        all.push((CLOCK.into(), Value::from(now.0)));
        Ok(all)
    }

    /// The last message's content left open, as transformers does it: behind it goes a tag, and the prompt ends there.
    fn continued(
        &self,
        conversation: &Conversation<'_>,
        mut turns: Vec<Turn<'_, '_>>,
        print: impl Fn(Value) -> Result<String, Unknown>,
    ) -> Result<String, Unknown> {
        const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";
        let refused = Unknown::Malformed;
        if conversation.add_generation_prompt.unwrap_or(true) || !self.source.contains("content") {
            return Err(refused);
        }
        let content = match turns.last_mut().map(|turn| &mut turn.content) {
            Some(Seen::Text(text)) => text,
            Some(Seen::Parts(parts)) => {
                let texts = parts.iter_mut().rev().find_map(|part| match part {
                    SeenPart::Text(text, _) => Some(text),
                    SeenPart::Media => None,
                });
                texts.ok_or(refused)?
            }
            None => return Err(refused),
        };
        let before = content.clone();
        *content = Cow::Owned([content.as_ref(), TAG].concat());
        let mut text = print(messages(&turns)?)?;
        let bare = TAG.trim_end();
        let at = text.rfind(bare).ok_or(refused)?;
        if !text.contains(strip(&before, None, true, true)) {
            return Err(refused);
        }
        let spaced = text.get(at..).is_some_and(|rest| rest.starts_with(TAG));
        text.truncate(at);
        if !spaced {
            // Whitespace behind the content was trimmed, and so is all that was before the tag.
            text.truncate(text.trim_end_matches(python_space).len());
        }
        Ok(text)
    }

    /// The prompt up to the first image or the like: what two renderings have in common that differ from where its
    /// tokens come. A template that takes parts says where that is; in text they come before the whole content.
    fn until_media(
        &self,
        conversation: &Conversation<'_>,
        print: impl Fn(Value) -> Result<String, Unknown>,
    ) -> Result<Rendered, Unknown> {
        let why = Unknown::Feature("media");
        if conversation.continue_final_message {
            return Err(why);
        }
        let with = |mark: char| {
            let mut variant = conversation.clone();
            for message in &mut variant.messages {
                message.content = std::mem::take(&mut message.content).without_media(mark, self.takes_parts);
            }
            print(messages(&turns(&variant, self.takes_parts, self.knows_developers)?)?)
        };
        let one = with(MARK[0])?;
        let other = if self.takes_parts {
            print(messages(&turns(conversation, true, self.knows_developers)?)?)?
        } else {
            with(MARK[1])?
        };
        let common = one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        let end = (0..=common).rev().find(|end| one.is_char_boundary(*end)).unwrap_or(0);
        Ok(Rendered { text: one.get(..end).unwrap_or("").to_owned(), last: 0, cut: Some(why) })
    }
}

/// `None`: it is not sure.
fn refuses_later_systems(template: &Template) -> Option<bool> {
    let mut env = environment();
    for added in ["raise_exception", "strftime_now"] {
        env.remove_global(added);
    }
    let message = |role: &'static str| record([("role", Some(role.into())), ("content", Some("t".into()))]);
    let messages = list(["system", "user", "system", "user"].map(message).to_vec());
    let variables = [("messages", messages), ("add_generation_prompt", Value::from(false))];
    match env.render_str(&template.source, Value::from_pairs(variables)) {
        Ok(text) => (!may_doubt(&text)).then_some(false),
        // What is not known there either, and what Jinja2 does with nothing that is undefined; a `generation` block, too.
        // Another error might be ours alone.
        Err(e) => {
            let undefined = e.detail().is_some_and(|detail| detail.contains("undefined"));
            let kinds = [ErrorKind::UnknownFunction, ErrorKind::UndefinedError, ErrorKind::SyntaxError];
            (undefined || kinds.contains(&e.kind())).then_some(true)
        }
    }
}

/// Whether a value is a truth value or an odd float, which Python compares by order as numbers, or has one in it.
fn compares_otherwise(value: &Value, depth: usize) -> bool {
    match value.kind() {
        ValueKind::Bool | ValueKind::Plain => true,
        ValueKind::Seq | ValueKind::Map if depth > 8 => true,
        ValueKind::Seq => value.try_iter().is_ok_and(|mut all| all.any(|item| compares_otherwise(&item, depth + 1))),
        ValueKind::Map => value
            .as_object()
            .and_then(|map| map.try_iter_pairs())
            .is_some_and(|mut all| all.any(|(_, field)| compares_otherwise(&field, depth + 1))),
        _ => false,
    }
}

/// Whether something may have been printed that is not what Python prints.
fn may_doubt(text: &str) -> bool {
    let mut bytes = [0; 4];
    let doubt = DOUBT.encode_utf8(&mut bytes).as_bytes();
    any_place(text.as_bytes(), 0xEF, |at| text.as_bytes().get(at..).is_some_and(|rest| rest.starts_with(doubt)))
}
