//! A request's canonical bytes: the text that the engine's tokens will spell.
//!
//! Completions prompts are taken as they are, behind the BOS text where the tokenizer adds one; chat is rendered with
//! the model's own template, set up as transformers sets up Jinja. What a template prints around contents that it only
//! copies is remembered (`skeleton`), and so rendered once per shape of conversation.
//!
//! **Invariant:** what cannot be known exactly is not guessed. A wrong prediction is worse than none, so every field
//! that changes the prompt in a way this module does not reproduce makes the prompt [`Unknown`], with its reason.

mod body;
mod composition;
mod conversation;
mod copying;
#[cfg(test)]
mod equivalence;
mod harmony;
mod jinja;
mod json;
mod json_text;
mod messages;
mod mistral;
#[cfg(test)]
mod recorded;
mod responses;
mod skeleton;
pub mod spelling;
mod templates;
#[cfg(test)]
mod tests;
mod turns;

use crate::fingerprint::{Fingerprint, root};
use crate::profile::{Profile, Profiles, Renderer, SELF_TEST};
use crate::units::Slot;
use affinity_scan::Lifted;
use body::{Asked as Prompt, Body};
use conversation::{Conversation, Envelope};
pub use jinja::takes_parts;
use jinja::time::LocalTime;
use mistral::Mistral;
use spelling::Speller;
use std::borrow::Cow;
use std::cell::{Cell, OnceCell};
use std::fmt;
use templates::Templates;
use turns::Said;

/// The endpoints whose prompts are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// `/v1/completions`: the prompt as it is.
    Completions,
    /// `/v1/chat/completions`: messages through the model's template.
    Chat,
    /// `/v1/embeddings`: a text, or messages.
    Embeddings,
    /// `/v1/responses`: items that become messages.
    Responses,
    /// `/v1/messages`: Anthropic's messages, likewise.
    Messages,
}

impl Api {
    /// By the request's path, whatever prefix a gateway puts before it. `None`: this path has no prompt we know.
    #[must_use]
    pub fn of_path(path: &str) -> Option<Self> {
        let path = path.split_once('?').map_or(path, |(path, _)| path);
        let known = [
            ("/chat/completions", Api::Chat),
            ("/completions", Api::Completions),
            ("/embeddings", Api::Embeddings),
            ("/responses", Api::Responses),
            ("/messages", Api::Messages),
        ];
        known.into_iter().find_map(|(end, api)| path.ends_with(end).then_some(api))
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
    /// The model's template could not be compiled, refused these messages, or does what is not reproduced.
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
    /// The endpoints that serve the name asked for, where not all of the model do.
    pub only: Option<Vec<Slot>>,
    /// The canonical bytes, or why they are not known.
    pub prompt: Result<Canonical, Unknown>,
}

impl Asked {
    fn of(found: Option<Found<'_>>, prompt: Result<Canonical, Unknown>) -> Self {
        let only = found.as_ref().and_then(|found| found.only).map(<[Slot]>::to_vec);
        Self { model: found.map(|found| found.model), only, prompt }
    }
}

/// What a name stands for.
#[derive(Clone, Copy)]
struct Found<'a> {
    /// Number of the model's profile.
    model: u16,
    /// Name of its namespace.
    namespace: &'a str,
    only: Option<&'a [Slot]>,
}

/// Canonical bytes and the namespace they live in.
#[derive(Debug, PartialEq, Eq)]
pub struct Canonical {
    /// Seed of the fingerprints: model or adapter, and cache salt.
    pub root: Fingerprint,
    /// What the engine's tokens will spell; of a prompt given as token ids, the ids, 4 bytes each, little end first.
    pub bytes: Vec<u8>,
    /// Bytes of the last message's content: the engine has probably seen all before it.
    pub last: usize,
    /// Why more follows that is not known, if so.
    pub cut: Option<Unknown>,
}

/// A rendered chat.
struct Rendered {
    text: String,
    /// As in [`Canonical`].
    last: usize,
    cut: Option<Unknown>,
}

impl Rendered {
    fn whole(text: String) -> Self {
        Self { text, last: 0, cut: None }
    }
}

/// Profiles made ready: names resolved, templates compiled. One per VM, built anew when the profiles change.
pub struct Prompts {
    profiles: Profiles,
    templates: Templates,
    /// Of models with Mistral's own formats.
    mistral: Vec<Option<Mistral>>,
    /// What effort stands for no thinking, by model; found out when it is first asked for.
    disabled_efforts: Vec<OnceCell<&'static str>>,
    /// What each model's tokenizer does to texts.
    spellers: Vec<Speller>,
    /// Of the request before, for its room.
    spare: Cell<Lifted>,
}

/// Room for texts that is kept between requests, in bytes.
const MAX_SPARE: usize = 4 * 1024 * 1024;

impl Prompts {
    /// Compiles what can be compiled. Reports the models whose template could not be, by name, with the reason:
    /// their chat prompts are [`Unknown`].
    #[must_use]
    pub fn new(profiles: Profiles) -> (Self, Vec<(String, String)>) {
        let (templates, mut failed) = Templates::new(&profiles);
        let mistral = profiles.models.iter().map(|profile| match &profile.renderer {
            Renderer::Mistral(format) => Mistral::new(format, &profile.default_kwargs)
                .map_err(|why| failed.push((profile.name.clone(), why)))
                .ok(),
            _ => None,
        });
        let mistral = mistral.collect();
        let spellers = profiles.models.iter().map(|profile| Speller::new(&profile.spelling)).collect();
        let disabled_efforts = profiles.models.iter().map(|_| OnceCell::new()).collect();
        (Self { profiles, templates, mistral, disabled_efforts, spellers, spare: Cell::default() }, failed)
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

    /// Reads a request's body. `now`: seconds since 1970, UTC; templates may print the date.
    #[must_use]
    pub fn read(&self, api: Api, body: &[u8], now: i64) -> Asked {
        let lifted = Lifted::of(body, self.spare.take());
        let asked = self.read_lifted(api, body, lifted.as_ref(), now);
        if let Some(spare) = lifted.filter(|lifted| lifted.room() <= MAX_SPARE) {
            self.spare.set(spare);
        }
        asked
    }

    fn read_lifted(&self, api: Api, body: &[u8], lifted: Option<&Lifted>, now: i64) -> Asked {
        match api {
            Api::Responses => return self.converse(api, body, responses::read(body, lifted), now),
            Api::Messages => return self.converse(api, body, messages::read(body, lifted), now),
            Api::Completions | Api::Chat | Api::Embeddings => {}
        }
        match Body::read(body, lifted) {
            Err(why) => self.unread(body, why),
            Ok(body) => {
                let found = self.find(body.model.as_deref());
                let prompt = match found {
                    None => Err(Unknown::Model),
                    Some(found) => self.spell(api, body, lifted, found.model, found.namespace, now),
                };
                Asked::of(found, prompt)
            }
        }
    }

    /// What can be said of a request whose body is not understood, or not whole: at most its model.
    #[must_use]
    pub fn unread(&self, body: &[u8], why: Unknown) -> Asked {
        let model = model_name(body).and_then(|name| self.find(Some(name)));
        Asked::of(model, Err(why))
    }

    /// A request that names no model means the only one there is.
    fn find(&self, name: Option<&str>) -> Option<Found<'_>> {
        let mut models = (0u16..).zip(&self.profiles.models);
        let Some(asked) = name else {
            let (model, only) = models.next()?;
            return models.next().is_none().then_some(Found { model, namespace: &only.name, only: None });
        };
        models.find_map(|(model, p)| {
            let namespace = if p.name == asked || p.aliases.iter().any(|a| a == asked) {
                &p.name
            } else {
                p.adapters.iter().find(|a| *a == asked)?
            };
            let only = p.partial.iter().find(|partial| partial.name == asked).map(|partial| partial.slots.as_slice());
            Some(Found { model, namespace, only })
        })
    }

    fn spell<'a>(
        &self,
        api: Api,
        body: Body<'a>,
        lifted: Option<&'a Lifted>,
        model: u16,
        namespace: &str,
        now: i64,
    ) -> Result<Canonical, Unknown> {
        let profile = self.profile(model).ok_or(Unknown::Model)?;
        let salt = body.cache_salt.clone();
        let root = root(namespace, salt.as_deref());
        let said = if api == Api::Chat { body.said(lifted) } else { None };
        if let Some(known) = said.and_then(|said| self.recall(profile, model, root, &said, body.generation(), now)) {
            return Ok(known);
        }
        let chat = api == Api::Chat || api == Api::Embeddings && body.is_chat();
        let handed_on = if api == Api::Chat { body.handed_on()? } else { None };
        if let Some(ids) = handed_on {
            return by_ids(profile, namespace, salt.as_deref(), &ids);
        }
        // Completions ask for the tokens around a prompt unless told otherwise, chats do not.
        let add_special = body.add_special_tokens.unwrap_or(!chat);
        let rendered = if chat {
            let mut conversation = body.conversation(lifted, profile.exclude_unused_tools)?;
            if api == Api::Embeddings {
                conversation.add_generation_prompt.get_or_insert(false);
                // Requests for embeddings have none of these.
                (conversation.tools, conversation.documents, conversation.reasoning_effort) = (None, None, None);
            }
            self.render(profile, model, &conversation, now)?
        } else {
            match body.prompt(lifted, api == Api::Embeddings)? {
                Prompt::Ids(ids) => return by_ids(profile, namespace, salt.as_deref(), &ids),
                Prompt::Text(text) => {
                    if let Some(Some(mistral)) = self.mistral.get(usize::from(model)) {
                        mistral.plain(&text)?;
                    }
                    self.spelled(model, Rendered::whole(text.into_owned()))?
                }
            }
        };
        self.canonical(profile, root, rendered, chat, add_special)
    }

    /// The prompt of most chats: put together from memory, without looking at a text more than is needed.
    fn recall(
        &self,
        profile: &Profile,
        model: u16,
        root: Fingerprint,
        said: &[Said<'_>],
        generation: bool,
        now: i64,
    ) -> Option<Canonical> {
        let speller = self.spellers.get(usize::from(model));
        if !profile.opaque.is_empty()
            || !matches!(profile.renderer, Renderer::Jinja(_))
            || speller.is_some_and(|speller| !speller.may_keep())
        {
            return None;
        }
        let now = LocalTime(now.saturating_add(profile.utc_offset.into()));
        let bytes = self.templates.recall(model, said, generation, now)?;
        let last = said.last().map_or(0, |said| said.content.len());
        let kept = speller.is_none_or(|speller| speller.keeps(&bytes));
        kept.then_some(Canonical { root, bytes, last, cut: None })
    }

    /// A body that has become a conversation.
    fn converse(&self, api: Api, body: &[u8], envelope: Result<Envelope<'_>, Unknown>, now: i64) -> Asked {
        let Envelope { model, cache_salt, conversation } = match envelope {
            Err(why) => return self.unread(body, why),
            Ok(envelope) => envelope,
        };
        let found = self.find(model.as_deref());
        let prompt = found.ok_or(Unknown::Model).and_then(|Found { model, namespace, .. }| {
            let profile = self.profile(model).ok_or(Unknown::Model)?;
            let mut chat = conversation?;
            self.adapt(api, profile, model, &mut chat, now)?;
            let root = root(namespace, cache_salt.as_deref());
            let said = chat.said();
            if let Some(known) = said.and_then(|said| self.recall(profile, model, root, &said, chat.generation(), now))
            {
                return Ok(known);
            }
            let rendered = self.render(profile, model, &chat, now)?;
            self.canonical(profile, root, rendered, true, chat.add_special_tokens)
        });
        Asked::of(found, prompt)
    }

    /// Does to a conversation what depends on the model.
    fn adapt(
        &self,
        api: Api,
        profile: &Profile,
        model: u16,
        chat: &mut Conversation<'_>,
        now: i64,
    ) -> Result<(), Unknown> {
        let jinja = matches!(profile.renderer, Renderer::Jinja(_));
        if api == Api::Responses && matches!(profile.renderer, Renderer::Harmony) {
            // Harmony has items become messages in another way.
            return Err(Unknown::Feature("responses"));
        }
        if chat.tools_unused && profile.exclude_unused_tools {
            chat.tools = None;
        }
        // Harmony's own template cannot be tried without a clock, and Mistral's tokenizer has none.
        if chat.merges_systems && (!jinja || self.templates.refuses_later_systems(model, profile)?) {
            chat.merge_systems();
        }
        if chat.thinking_disabled {
            let render = |chat: &Conversation<'_>| self.render(profile, model, chat, now).map(|rendered| rendered.text);
            let known = self.disabled_efforts.get(usize::from(model));
            let effort = match known.and_then(OnceCell::get) {
                Some(effort) => effort,
                None => {
                    let found = messages::disabled_effort(render)?;
                    known.map_or(found, |known| known.get_or_init(|| found))
                }
            };
            chat.reasoning_effort = Some(Cow::Borrowed(effort));
        }
        Ok(())
    }

    fn canonical(
        &self,
        profile: &Profile,
        root: Fingerprint,
        rendered: Rendered,
        chat: bool,
        add_special: bool,
    ) -> Result<Canonical, Unknown> {
        match profile.opaque.as_str() {
            "" => {}
            SELF_TEST => return Err(Unknown::Feature(SELF_TEST)),
            _ => return Err(Unknown::Feature("tokenizer")),
        }
        let Rendered { mut text, last, cut } = rendered;
        if chat && matches!(profile.renderer, Renderer::Mistral(_)) {
            // Its tokens are known one by one: nothing looks for special tokens in it, or puts some around it.
            return Ok(Canonical { root, bytes: text.into_bytes(), last, cut });
        }
        if add_special && !profile.completion_prefix.is_empty() {
            text.insert_str(0, &profile.completion_prefix);
        }
        if add_special && cut.is_none() {
            text.push_str(&profile.completion_suffix);
        }
        Ok(Canonical { root, bytes: text.into_bytes(), last, cut })
    }

    fn render(
        &self,
        profile: &Profile,
        model: u16,
        conversation: &Conversation<'_>,
        now: i64,
    ) -> Result<Rendered, Unknown> {
        let now = LocalTime(now.saturating_add(profile.utc_offset.into()));
        match profile.renderer {
            Renderer::None | Renderer::Jinja(_) => {
                self.spelled(model, self.templates.render(model, profile, conversation, now)?)
            }
            Renderer::Harmony => {
                let date = now.date().ok_or(Unknown::Feature("date"))?;
                harmony::render(conversation, &date).map(Rendered::whole)
            }
            Renderer::Mistral(_) => {
                let mistral = self.mistral.get(usize::from(model)).and_then(Option::as_ref);
                mistral.ok_or(Unknown::Template)?.render(conversation)
            }
        }
    }
}

impl Prompts {
    /// Does to a text what the model's tokenizer does. The other renderers' texts are made of tokens.
    fn spelled(&self, model: u16, rendered: Rendered) -> Result<Rendered, Unknown> {
        let Some(speller) = self.spellers.get(usize::from(model)) else { return Ok(rendered) };
        let Rendered { text, last, cut } = rendered;
        let text = if cut.is_none() { speller.spell(text)? } else { speller.spell_start(text)? };
        Ok(Rendered { text, last, cut })
    }
}

/// Prompts given as token ids have a namespace of their own, if the indexer keeps one.
fn by_ids(profile: &Profile, namespace: &str, salt: Option<&str>, ids: &[u32]) -> Result<Canonical, Unknown> {
    if !profile.token_ids {
        return Err(Unknown::Feature("token_ids"));
    }
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    Ok(Canonical { root: root(&ids_namespace(namespace), salt), bytes, last: 0, cut: None })
}

/// The namespace of a model's (or adapter's) prompts that are given as token ids.
#[must_use]
pub fn ids_namespace(name: &str) -> Cow<'static, str> {
    // No model has such a name.
    Cow::Owned(["\0ids ", name].concat())
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
