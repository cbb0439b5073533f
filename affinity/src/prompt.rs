//! A request's canonical bytes: the text that the engine's tokens will spell.
//!
//! Completions prompts are taken as they are, behind the BOS text where the tokenizer adds one; chat is rendered with
//! the model's own template, set up as transformers sets up Jinja.
//!
//! **Invariant:** what cannot be known exactly is not guessed. A wrong prediction is worse than none, so every field
//! that changes the prompt in a way this module does not reproduce makes the prompt [`Unknown`], with its reason.

use crate::fingerprint::{Fingerprint, root};
use crate::fleet::{Profile, Profiles};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::fmt;

/// The endpoints whose prompts are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// `/v1/completions`: the prompt as it is.
    Completions,
    /// `/v1/chat/completions`: messages through the model's template.
    Chat,
}

impl Api {
    /// By the request's path, whatever prefix a gateway puts before it. `None`: this path has no prompt we know.
    #[must_use]
    pub fn of_path(path: &str) -> Option<Self> {
        let path = path.split_once('?').map_or(path, |(path, _)| path);
        if path.ends_with("/chat/completions") {
            Some(Api::Chat)
        } else if path.ends_with("/completions") {
            Some(Api::Completions)
        } else {
            None
        }
    }
}

/// Why a prompt's bytes are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// The body is not a JSON object of the shape the API asks for. The engine will say so to the client.
    Malformed,
    /// No profile serves a model of this name.
    Model,
    /// The request uses a feature whose effect on the prompt is not reproduced; the word names it.
    Feature(&'static str),
    /// The model's template could not be compiled, or refused these messages.
    Template,
}

impl Unknown {
    /// A word for logs, headers and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Unknown::Malformed => "malformed",
            Unknown::Model => "model",
            Unknown::Feature(name) => name,
            Unknown::Template => "template",
        }
    }
}

/// What a request asks for.
#[derive(Debug)]
pub struct Asked {
    /// Number of its profile; `None` when no profile has that name.
    pub model: Option<u16>,
    /// The canonical bytes, or why they are not known.
    pub prompt: Result<Canonical, Unknown>,
}

/// Canonical bytes and the namespace they live in.
#[derive(Debug, PartialEq, Eq)]
pub struct Canonical {
    /// Seed of the fingerprints: model or adapter, and cache salt.
    pub root: Fingerprint,
    /// The text that the engine's tokens will spell.
    pub text: String,
}

/// Profiles made ready: names resolved, templates compiled. One per VM, built anew when the profiles change.
pub struct Prompts {
    profiles: Profiles,
    /// Holds each model's compiled template under its number.
    templates: Environment<'static>,
}

impl Prompts {
    /// Compiles what can be compiled. Reports the models whose template could not be, by name, with the reason:
    /// their chat prompts are [`Unknown`].
    #[must_use]
    pub fn new(profiles: Profiles) -> (Self, Vec<(String, String)>) {
        let mut templates = environment();
        let mut failed = Vec::new();
        for (number, profile) in profiles.models.iter().enumerate() {
            let Some(source) = &profile.chat_template else { continue };
            if let Some(why) = unsupported(source) {
                failed.push((profile.name.clone(), why.to_owned()));
            } else if let Err(e) = templates.add_template_owned(number.to_string(), source.clone()) {
                failed.push((profile.name.clone(), e.to_string()));
            }
        }
        (Self { profiles, templates }, failed)
    }

    /// How many models there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.profiles.models.len()
    }

    /// Whether there is no model.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.profiles.models.is_empty()
    }

    /// The profile of a model by its number.
    #[must_use]
    pub fn profile(&self, model: u16) -> Option<&Profile> {
        self.profiles.models.get(usize::from(model))
    }

    /// Reads a request's body.
    #[must_use]
    pub fn read(&self, api: Api, body: &[u8]) -> Asked {
        match serde_json::from_slice::<Body<'_>>(body) {
            Err(_) => Asked { model: None, prompt: Err(Unknown::Malformed) },
            Ok(body) => {
                let found = self.find(body.model.as_deref());
                let prompt = match found {
                    None => Err(Unknown::Model),
                    Some((number, name)) => self.spell(api, body, number, name),
                };
                Asked { model: found.map(|(number, _)| number), prompt }
            }
        }
    }

    /// The model's number and its namespace's name. A request that names no model means the only one there is.
    fn find(&self, name: Option<&str>) -> Option<(u16, &str)> {
        let mut models = (0u16..).zip(&self.profiles.models);
        let Some(asked) = name else {
            let (number, only) = models.next()?;
            return models.next().is_none().then_some((number, only.name.as_str()));
        };
        models.find_map(|(number, p)| {
            if p.name == asked || p.aliases.iter().any(|a| a == asked) {
                return Some((number, p.name.as_str()));
            }
            p.adapters.iter().find(|a| *a == asked).map(|adapter| (number, adapter.as_str()))
        })
    }

    fn spell(&self, api: Api, body: Body<'_>, model: u16, namespace: &str) -> Result<Canonical, Unknown> {
        let profile = self.profile(model).ok_or(Unknown::Model)?;
        if profile.opaque {
            return Err(Unknown::Feature("tokenizer"));
        }
        body.unreproduced().map_or(Ok(()), |what| Err(Unknown::Feature(what)))?;
        let root = root(namespace, body.cache_salt.as_deref());
        let text = match api {
            Api::Completions => complete(profile, body)?,
            Api::Chat => self.render(profile, model, body)?,
        };
        if profile.opaque_texts.iter().any(|t| text.contains(t.as_str())) {
            return Err(Unknown::Feature("token_whitespace"));
        }
        Ok(Canonical { root, text })
    }

    fn render(&self, profile: &Profile, model: u16, body: Body<'_>) -> Result<String, Unknown> {
        if body.add_special_tokens == Some(true) {
            return Err(Unknown::Feature("add_special_tokens"));
        }
        let messages = body.messages.ok_or(Unknown::Malformed)?;
        let messages = messages.into_iter().map(Message::into_value).collect::<Result<Vec<Value>, Unknown>>()?;
        let mut number = [0; 5];
        let template = self.templates.get_template(decimal(model, &mut number)).map_err(|_| Unknown::Template)?;
        let special = profile.special_tokens.iter().map(|(name, text)| (Value::from(name), Value::from(text)));
        let given = [
            ("messages", Value::from(messages)),
            // transformers always passes these, as None when the request has none.
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(body.add_generation_prompt.unwrap_or(true))),
        ];
        let context = Value::from_pairs(special.chain(given.map(|(name, value)| (Value::from(name), value))));
        template.render(context).map_err(|_| Unknown::Template)
    }
}

impl fmt::Debug for Prompts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prompts").field("profiles", &self.profiles).finish_non_exhaustive()
    }
}

fn complete(profile: &Profile, body: Body<'_>) -> Result<String, Unknown> {
    let PromptField::Text(text) = body.prompt.ok_or(Unknown::Malformed)? else {
        return Err(Unknown::Feature("token_ids"));
    };
    if profile.completion_prefix.is_empty() || body.add_special_tokens == Some(false) {
        return Ok(text);
    }
    Ok([profile.completion_prefix.as_str(), text.as_str()].concat())
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

/// Jinja as transformers sets it up.
fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    if let Ok(syntax) = syntax {
        env.set_syntax(syntax);
    }
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_function("raise_exception", |why: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, why))
    });
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

/// The fields of a request that its prompt depends on. All others are skipped without being built.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(default, borrow)]
    model: Option<Cow<'a, str>>,
    prompt: Option<PromptField>,
    messages: Option<Vec<Message>>,
    #[serde(default, borrow)]
    cache_salt: Option<Cow<'a, str>>,
    add_generation_prompt: Option<bool>,
    add_special_tokens: Option<bool>,
    continue_final_message: Option<bool>,
    tools: Option<IgnoredAny>,
    documents: Option<IgnoredAny>,
    chat_template: Option<IgnoredAny>,
    chat_template_kwargs: Option<IgnoredAny>,
    reasoning_effort: Option<IgnoredAny>,
    truncate_prompt_tokens: Option<IgnoredAny>,
    prompt_embeds: Option<IgnoredAny>,
    prompt_logprobs: Option<IgnoredAny>,
    suffix: Option<IgnoredAny>,
    kv_transfer_params: Option<IgnoredAny>,
    mm_processor_kwargs: Option<IgnoredAny>,
}

impl Body<'_> {
    /// The first field whose effect on prompt or cache is not reproduced.
    fn unreproduced(&self) -> Option<&'static str> {
        let given = [
            ("tools", self.tools.is_some()),
            ("documents", self.documents.is_some()),
            ("chat_template", self.chat_template.is_some()),
            ("chat_template_kwargs", self.chat_template_kwargs.is_some()),
            ("reasoning_effort", self.reasoning_effort.is_some()),
            ("continue_final_message", self.continue_final_message == Some(true)),
            ("truncate_prompt_tokens", self.truncate_prompt_tokens.is_some()),
            ("prompt_embeds", self.prompt_embeds.is_some()),
            // The engine does not read its cache for these.
            ("prompt_logprobs", self.prompt_logprobs.is_some()),
            ("suffix", self.suffix.is_some()),
            ("kv_transfer_params", self.kv_transfer_params.is_some()),
            ("mm_processor_kwargs", self.mm_processor_kwargs.is_some()),
        ];
        given.iter().find(|(_, given)| *given).map(|(name, _)| *name)
    }
}

#[derive(Deserialize)]
struct Message {
    role: Value,
    #[serde(default)]
    content: Content,
    name: Option<Value>,
    tool_calls: Option<IgnoredAny>,
    reasoning: Option<IgnoredAny>,
    reasoning_content: Option<IgnoredAny>,
}

impl Message {
    /// The message as vLLM hands it to a template that takes text.
    fn into_value(self) -> Result<Value, Unknown> {
        let role = self.role.as_str().ok_or(Unknown::Malformed)?;
        match role {
            // Merged into other messages, or given fields we do not build yet.
            "developer" => return Err(Unknown::Feature("developer")),
            "tool" | "function" => return Err(Unknown::Feature("tool_messages")),
            _ if self.tool_calls.is_some() => return Err(Unknown::Feature("tool_calls")),
            _ if self.reasoning.is_some() || self.reasoning_content.is_some() => {
                return Err(Unknown::Feature("reasoning"));
            }
            _ => {}
        }
        let content = match self.content {
            Content::Text(text) => text,
            Content::Absent => Value::from(""),
            Content::Media => return Err(Unknown::Feature("media")),
        };
        let fields = [("role", Some(self.role)), ("content", Some(content)), ("name", self.name)];
        Ok(Value::from_pairs(fields.into_iter().filter_map(|(k, v)| Some((Value::from(k), v?)))))
    }
}

/// A message's content: text, or text parts joined by newlines.
#[derive(Default)]
enum Content {
    #[default]
    Absent,
    Text(Value),
    /// Holds a part that is not text.
    Media,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text, a list of parts, or null")
            }

            fn visit_str<E>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(Value::from(text)))
            }

            fn visit_unit<E>(self) -> Result<Content, E> {
                Ok(Content::Absent)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Content, A::Error> {
                let (mut texts, mut media) = (Vec::new(), false);
                while let Some(part) = parts.next_element::<Part>()? {
                    match (part.kind.as_str(), part.text) {
                        ("text" | "input_text" | "output_text", Some(text)) => texts.push(text),
                        _ => media = true,
                    }
                }
                Ok(if media { Content::Media } else { Content::Text(Value::from(texts.join("\n"))) })
            }
        }
        from.deserialize_any(Visit)
    }
}

#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// A completions prompt.
enum PromptField {
    Text(String),
    /// Token ids, or several prompts in one call, or something no engine takes.
    Other,
}

impl<'de> Deserialize<'de> for PromptField {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = PromptField;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a prompt")
            }

            fn visit_str<E>(self, text: &str) -> Result<PromptField, E> {
                Ok(PromptField::Text(text.to_owned()))
            }

            fn visit_u64<E>(self, _: u64) -> Result<PromptField, E> {
                Ok(PromptField::Other)
            }

            /// Several prompts go to one engine; the first stands for all.
            fn visit_seq<A: SeqAccess<'de>>(self, mut prompts: A) -> Result<PromptField, A::Error> {
                let first = prompts.next_element::<PromptField>()?.unwrap_or(PromptField::Other);
                while prompts.next_element::<IgnoredAny>()?.is_some() {}
                Ok(first)
            }
        }
        from.deserialize_any(Visit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\n' + \
        message['content'] + '<|im_end|>' + '\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- \
        '<|im_start|>assistant\n' }}{%- endif %}";

    fn prompts() -> Prompts {
        let chat = Profile {
            name: "tiny".into(),
            aliases: vec!["alias".into()],
            adapters: vec!["lora".into()],
            chat_template: Some(CHATML.into()),
            ..Profile::default()
        };
        let bos = Profile { name: "bos".into(), completion_prefix: "<s>".into(), ..Profile::default() };
        let (prompts, failed) = Prompts::new(Profiles { models: vec![chat, bos] });
        assert_eq!(failed, []);
        prompts
    }

    fn chat(body: &str) -> Result<String, Unknown> {
        prompts().read(Api::Chat, body.as_bytes()).prompt.map(|c| c.text)
    }

    #[test]
    fn chat_is_rendered_with_the_models_template() {
        let body = r#"{"model":"tiny","messages":[{"role":"system","content":"a\n\"b\""},
            {"role":"user","content":[{"type":"text","text":"c"},{"type":"text","text":"d"}]},
            {"role":"assistant","content":null}],"temperature":0.5,"x":{"y":[1]}}"#;
        assert_eq!(
            chat(body).unwrap(),
            "<|im_start|>system\na\n\"b\"<|im_end|>\n<|im_start|>user\nc\nd<|im_end|>\n\
             <|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant\n"
        );
        let silent = r#"{"model":"tiny","messages":[{"role":"user","content":"x"}],"add_generation_prompt":false}"#;
        assert_eq!(chat(silent).unwrap(), "<|im_start|>user\nx<|im_end|>\n");
    }

    #[test]
    fn completions_take_the_prompt_as_it_is_behind_the_bos_text() {
        let read = |body: &str| prompts().read(Api::Completions, body.as_bytes()).prompt.map(|c| c.text);
        assert_eq!(read(r#"{"model":"tiny","prompt":" a "}"#).unwrap(), " a ");
        assert_eq!(read(r#"{"model":"bos","prompt":"a"}"#).unwrap(), "<s>a");
        assert_eq!(read(r#"{"model":"bos","prompt":["a","b"]}"#).unwrap(), "<s>a");
        assert_eq!(read(r#"{"model":"bos","prompt":"a","add_special_tokens":false}"#).unwrap(), "a");
        assert_eq!(read(r#"{"model":"tiny","prompt":[1,2]}"#), Err(Unknown::Feature("token_ids")));
        assert_eq!(read(r#"{"model":"tiny","prompt":[[1],[2]]}"#), Err(Unknown::Feature("token_ids")));
        assert_eq!(read(r#"{"model":"tiny"}"#), Err(Unknown::Malformed));
    }

    #[test]
    fn names_adapters_and_salts_choose_the_namespace() {
        let of = |body: &str| {
            let asked = prompts().read(Api::Completions, body.as_bytes());
            (asked.model, asked.prompt.unwrap().root)
        };
        let base = of(r#"{"model":"tiny","prompt":"a"}"#);
        assert_eq!(base, (Some(0), root("tiny", None)));
        assert_eq!(of(r#"{"model":"alias","prompt":"a"}"#), base);
        assert_eq!(of(r#"{"model":"lora","prompt":"a"}"#), (Some(0), root("lora", None)));
        assert_eq!(of(r#"{"model":"tiny","prompt":"a","cache_salt":"s"}"#), (Some(0), root("tiny", Some("s"))));
        let other = prompts().read(Api::Completions, br#"{"model":"else","prompt":"a"}"#);
        assert_eq!((other.model, other.prompt), (None, Err(Unknown::Model)));
    }

    #[test]
    fn what_is_not_reproduced_is_unknown_and_says_why() {
        let with = |field: &str| chat(&format!(r#"{{"model":"tiny","messages":[],{field}}}"#));
        for field in ["tools", "chat_template", "documents", "truncate_prompt_tokens", "prompt_logprobs"] {
            assert_eq!(with(&format!(r#""{field}":[1]"#)), Err(Unknown::Feature(field)));
            assert_eq!(with(&format!(r#""{field}":null"#)).unwrap(), "<|im_start|>assistant\n");
        }
        let message = |m: &str| chat(&format!(r#"{{"model":"tiny","messages":[{m}]}}"#));
        assert_eq!(message(r#"{"role":"tool","content":"x"}"#), Err(Unknown::Feature("tool_messages")));
        assert_eq!(
            message(r#"{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}"#),
            Err(Unknown::Feature("media"))
        );
        for bad in ["", "[]", "{", r#"{"model":5}"#, r#"{"model":"tiny","messages":[{"content":"x"}]}"#, "\u{1f}\u{8b}"]
        {
            assert_eq!(prompts().read(Api::Chat, bad.as_bytes()).prompt, Err(Unknown::Malformed), "{bad}");
        }
    }

    #[test]
    fn templates_that_cannot_be_known_are_reported_and_their_chats_unknown() {
        for (template, why) in [
            ("{{ strftime_now('%d') }}", "date"),
            ("{%- for part in message.content %}{% endfor %}", "content"),
            ("{% if %}", "syntax"),
        ] {
            let profile = Profile { name: "m".into(), chat_template: Some(template.into()), ..Profile::default() };
            let (prompts, failed) = Prompts::new(Profiles { models: vec![profile] });
            assert!(failed.len() == 1 && failed[0].1.contains(why), "{failed:?}");
            let asked = prompts.read(Api::Chat, br#"{"messages":[]}"#);
            assert_eq!((asked.model, asked.prompt), (Some(0), Err(Unknown::Template)));
        }
        let raises = Profile { chat_template: Some("{{ raise_exception('no') }}".into()), ..Profile::default() };
        let (prompts, _) = Prompts::new(Profiles { models: vec![raises] });
        assert_eq!(prompts.read(Api::Chat, br#"{"messages":[]}"#).prompt, Err(Unknown::Template));
    }

    #[test]
    fn tokens_that_swallow_whitespace_make_the_prompt_unknown() {
        let profile = Profile { opaque_texts: vec!["<|user|>".into()], ..Profile::default() };
        let (prompts, _) = Prompts::new(Profiles { models: vec![profile] });
        let read = |body: &str| prompts.read(Api::Completions, body.as_bytes()).prompt.map(|c| c.text);
        assert_eq!(read(r#"{"prompt":"<|user|> x"}"#), Err(Unknown::Feature("token_whitespace")));
        assert_eq!(read(r#"{"prompt":"user x"}"#).unwrap(), "user x");
    }

    #[test]
    fn apis_are_told_by_the_end_of_the_path() {
        assert_eq!(Api::of_path("/v1/chat/completions"), Some(Api::Chat));
        assert_eq!(Api::of_path("/team/v1/completions?x=1"), Some(Api::Completions));
        assert_eq!(Api::of_path("/v1/models"), None);
    }
}
