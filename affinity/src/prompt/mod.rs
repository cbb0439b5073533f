//! A request's canonical bytes: the text that the engine's tokens will spell.
//!
//! Completions prompts are taken as they are, behind the BOS text where the tokenizer adds one; chat is rendered with
//! the model's own template, set up as transformers sets up Jinja. What a template prints around contents that it only
//! copies is remembered (`skeleton`), and so rendered once per shape of conversation.
//!
//! **Invariant:** what cannot be known exactly is not guessed. A wrong prediction is worse than none, so every field
//! that changes the prompt in a way this module does not reproduce makes the prompt [`Unknown`], with its reason.

mod body;
mod conversation;
mod copying;
#[cfg(test)]
mod equivalence;
mod json;
mod json_text;
mod lift;
mod needles;
mod scan;
mod skeleton;
pub mod spelling;
mod templates;

use crate::fingerprint::{Fingerprint, root};
use crate::fleet::{Profile, Profiles};
use body::{Body, Turn};
use lift::Lifted;
use needles::Needles;
use std::fmt;
use templates::Templates;

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
    /// The model's template could not be compiled, refused these messages, or uses what chat templates do not.
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
    /// Bytes of the last message's content: the engine has probably seen all before it.
    pub last: usize,
}

/// Profiles made ready: names resolved, templates compiled. One per VM, built anew when the profiles change.
pub struct Prompts {
    profiles: Profiles,
    templates: Templates,
    /// Each model's opaque texts.
    opaque: Vec<Needles>,
}

impl Prompts {
    /// Compiles what can be compiled. Reports the models whose template could not be, by name, with the reason:
    /// their chat prompts are [`Unknown`].
    #[must_use]
    pub fn new(profiles: Profiles) -> (Self, Vec<(String, String)>) {
        let (templates, failed) = Templates::new(&profiles);
        let opaque = |profile: &Profile| Needles::new(profile.spelling.added.iter().map(|token| token.text.as_str()));
        let opaque = profiles.models.iter().map(opaque).collect();
        (Self { profiles, templates, opaque }, failed)
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
        let lifted = Lifted::of(body);
        let parsed = Body::read(body, lifted.as_ref());
        match parsed {
            Err(why) => self.unread(body, why),
            Ok(body) => {
                let found = self.find(body.model.as_deref());
                let prompt = match found {
                    None => Err(Unknown::Model),
                    Some((number, name)) => self.spell(api, body, lifted.as_ref(), number, name),
                };
                Asked { model: found.map(|(number, _)| number), prompt }
            }
        }
    }

    /// What can be said of a request whose body is not understood, or not whole: at most its model.
    #[must_use]
    pub fn unread(&self, body: &[u8], why: Unknown) -> Asked {
        let model = model_name(body).and_then(|name| self.find(Some(name)));
        Asked { model: model.map(|(number, _)| number), prompt: Err(why) }
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

    fn spell<'a>(
        &self,
        api: Api,
        body: Body<'a>,
        lifted: Option<&'a Lifted>,
        model: u16,
        namespace: &str,
    ) -> Result<Canonical, Unknown> {
        let profile = self.profile(model).ok_or(Unknown::Model)?;
        if !profile.opaque.is_empty() {
            return Err(Unknown::Feature("tokenizer"));
        }
        body.unreproduced().map_or(Ok(()), |what| Err(Unknown::Feature(what)))?;
        let root = root(namespace, body.cache_salt.as_deref());
        let (text, last) = match api {
            Api::Completions => (complete(profile, body, lifted)?, 0),
            Api::Chat => self.render(profile, model, body, lifted)?,
        };
        if self.opaque.get(usize::from(model)).is_some_and(|opaque| opaque.any_in(&text)) {
            return Err(Unknown::Feature("token_whitespace"));
        }
        Ok(Canonical { root, text, last })
    }

    fn render<'a>(
        &self,
        profile: &Profile,
        model: u16,
        body: Body<'a>,
        lifted: Option<&'a Lifted>,
    ) -> Result<(String, usize), Unknown> {
        if body.add_special_tokens == Some(true) {
            return Err(Unknown::Feature("add_special_tokens"));
        }
        let messages = body.messages.ok_or(Unknown::Malformed)?;
        let turns = messages
            .into_iter()
            .map(|message| message.into_turn(lifted))
            .collect::<Result<Vec<Turn<'_>>, Unknown>>()?;
        let last = turns.last().map_or(0, |turn| turn.content.len());
        let text = self.templates.render(model, profile, &turns, body.add_generation_prompt.unwrap_or(true))?;
        Ok((text, last))
    }
}

impl fmt::Debug for Prompts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prompts").field("profiles", &self.profiles).finish_non_exhaustive()
    }
}

/// The value of the first `"model"` key near either end of a body, whatever the rest is. Within a text the quotes would
/// be escaped, so what is found is a key; one of an inner object is possible, and would be most unusual.
fn model_name(body: &[u8]) -> Option<&str> {
    const NEAR: usize = 64 * 1024;
    const KEY: &[u8] = b"\"model\"";
    let head = body.get(..NEAR).unwrap_or(body);
    let tail = body.get(body.len().saturating_sub(NEAR)..)?;
    [head, tail].into_iter().find_map(|part| {
        let at = part.windows(KEY.len()).position(|window| window == KEY)?;
        let value = part.get(at + KEY.len()..)?.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
        let name = value.strip_prefix(b"\"")?.split(|byte| *byte == b'"').next()?;
        std::str::from_utf8(name).ok().filter(|name| !name.contains('\\'))
    })
}

fn complete<'a>(profile: &Profile, body: Body<'a>, lifted: Option<&'a Lifted>) -> Result<String, Unknown> {
    let prompt = body.prompt.ok_or(Unknown::Malformed)?;
    let text = prompt.into_text(lifted)?;
    if profile.completion_prefix.is_empty() || body.add_special_tokens == Some(false) {
        return Ok(text.into_owned());
    }
    Ok([profile.completion_prefix.as_str(), text.as_ref()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{AddedToken, Renderer, Spelling, Template};

    const CHATML: &str = "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\n' + \
        message['content'] + '<|im_end|>' + '\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- \
        '<|im_start|>assistant\n' }}{%- endif %}";

    fn jinja(source: &str) -> Renderer {
        Renderer::Jinja(vec![Template { name: "default".into(), source: source.into(), takes_parts: false }])
    }

    fn prompts() -> Prompts {
        let chat = Profile {
            name: "tiny".into(),
            aliases: vec!["alias".into()],
            adapters: vec!["lora".into()],
            renderer: jinja(CHATML),
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
    fn the_model_is_known_of_bodies_that_are_not_understood() {
        for (body, model) in [
            (r#"{"model":"bos","messages":[{"role":"user","content":["hi"]}]}"#, Some(1)),
            (r#"{"messages":[{"content":"\"model\":\"tiny\""}], "model" : "bos", "messages":"#, Some(1)),
            (r#"{"model":"alias","messages":5}"#, Some(0)),
            (r#"{"model":5,"messages":5}"#, None),
            (r#"{"model":"else","messages":5}"#, None),
            (r#"{"model":"bo"#, None),
            ("", None),
        ] {
            let asked = prompts().read(Api::Chat, body.as_bytes());
            assert_eq!((asked.model, asked.prompt), (model, Err(Unknown::Malformed)), "{body}");
        }
        let long = format!(r#"{{"messages":[{{"content":"{}"}}],"model":"bos"}}"#, "x".repeat(200_000));
        assert_eq!(prompts().unread(long.as_bytes(), Unknown::Feature("body_too_long")).model, Some(1));
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
            let profile = Profile { name: "m".into(), renderer: jinja(template), ..Profile::default() };
            let (prompts, failed) = Prompts::new(Profiles { models: vec![profile] });
            assert!(failed.len() == 1 && failed[0].1.contains(why), "{failed:?}");
            let asked = prompts.read(Api::Chat, br#"{"messages":[]}"#);
            assert_eq!((asked.model, asked.prompt), (Some(0), Err(Unknown::Template)));
        }
        let raises = Profile { renderer: jinja("{{ raise_exception('no') }}"), ..Profile::default() };
        let (prompts, _) = Prompts::new(Profiles { models: vec![raises] });
        assert_eq!(prompts.read(Api::Chat, br#"{"messages":[]}"#).prompt, Err(Unknown::Template));
    }

    #[test]
    fn a_template_that_would_loop_for_ever_is_cut_off() {
        let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        let profile = Profile { renderer: jinja(endless), ..Profile::default() };
        let (prompts, _) = Prompts::new(Profiles { models: vec![profile] });
        assert_eq!(prompts.read(Api::Chat, br#"{"messages":[]}"#).prompt, Err(Unknown::Template));
    }

    #[test]
    fn tokens_that_swallow_whitespace_make_the_prompt_unknown() {
        let added = vec![AddedToken { text: "<|user|>".into(), rstrip: true, ..AddedToken::default() }];
        let profile = Profile { spelling: Spelling { added, ..Spelling::default() }, ..Profile::default() };
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
