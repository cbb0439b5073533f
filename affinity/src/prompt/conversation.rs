//! What every chat-like API's body becomes, before it is rendered.

use super::Unknown;
use super::json::{Fields, Json, take_text};
use super::turns::Said;
use affinity_scan::Lifted;
use std::borrow::Cow;

/// A body of which model and salt are known, and the conversation if it can be.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Envelope<'a> {
    pub model: Option<Cow<'a, str>>,
    pub cache_salt: Option<Cow<'a, str>>,
    pub conversation: Result<Conversation<'a>, Unknown>,
}

impl<'a> Envelope<'a> {
    /// Reads a body; `convert` makes a conversation of what is left of it. `lifted` is what [`Lifted::of`] made of it.
    ///
    /// # Errors
    /// [`Unknown::Malformed`] if it is no object, or its model is no name.
    pub fn read(
        body: &'a [u8],
        lifted: Option<&'a Lifted>,
        convert: impl FnOnce(Fields<'a>) -> Result<Conversation<'a>, Unknown>,
    ) -> Result<Self, Unknown> {
        let mut body = Json::object(body, lifted)?;
        let model = take_text(&mut body, "model")?;
        let cache_salt = take_text(&mut body, "cache_salt")?;
        Ok(Self { model, cache_salt, conversation: convert(body) })
    }
}

/// A conversation, its tools, and how it is to be rendered.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Conversation<'a> {
    pub messages: Vec<Message<'a>>,
    /// `None`: none were given, or the engine leaves them out.
    pub tools: Option<Vec<Tool<'a>>>,
    pub documents: Option<Json<'a>>,
    /// The request's `chat_template_kwargs`.
    pub kwargs: Fields<'a>,
    pub reasoning_effort: Option<Cow<'a, str>>,
    /// `None`: the engine's default, which is to add one.
    pub add_generation_prompt: Option<bool>,
    /// The last message is to be gone on with.
    pub continue_final_message: bool,
    /// The request's own template.
    pub chat_template: Option<Cow<'a, str>>,
    /// `tool_choice` is `none`: an engine can be told to leave the tools out then.
    pub tools_unused: bool,
    /// The tokenizer puts its special tokens around the rendered text, as around a completions prompt.
    pub add_special_tokens: bool,
    /// Where the model's template refuses system messages behind the first place,
    /// [they are merged](Conversation::merge_systems).
    pub merges_systems: bool,
    /// The client wants no thinking. Takes the place of [`Conversation::reasoning_effort`]: `none`, but `low` where the
    /// model's template refuses `none` or renders it like another effort.
    pub thinking_disabled: bool,
}

/// One message.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Message<'a> {
    pub role: Cow<'a, str>,
    pub content: Content<'a>,
    pub name: Option<Cow<'a, str>>,
    /// Of assistants.
    pub tool_calls: Vec<ToolCall<'a>>,
    /// Of tools.
    pub tool_call_id: Option<Cow<'a, str>>,
    /// Of assistants. Never null; meant to be a text, and handed to templates whatever it is.
    pub reasoning: Option<Json<'a>>,
    /// Of developers.
    pub tools: Option<Json<'a>>,
}

/// A message's content.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Content<'a> {
    /// Null, or not given: an empty list of parts.
    #[default]
    Absent,
    Text(Cow<'a, str>),
    Parts(Vec<Part<'a>>),
}

/// A part of a content.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part<'a> {
    /// Fields that no type of part knows (`cache_control`) are handed to templates that take parts.
    Text { text: Cow<'a, str>, extra: Fields<'a> },
    /// Text of another type than `text`, or without one (a bare string): some renderers do otherwise with it.
    Other { text: Cow<'a, str>, extra: Fields<'a> },
    /// An assistant's thought. Templates get it as text. `closed`: it was not cut off.
    Thought { text: Cow<'a, str>, closed: bool, extra: Fields<'a> },
    /// An image, a sound, a video: the engine puts tokens in its place that are not known here.
    Media,
}

/// A call of a tool by the assistant.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ToolCall<'a> {
    pub id: Cow<'a, str>,
    pub name: Cow<'a, str>,
    /// As the client wrote them; meant to be JSON.
    pub arguments: Cow<'a, str>,
    /// Unknown fields of the call, and of its function.
    pub extra: Fields<'a>,
    pub function_extra: Fields<'a>,
    /// Templates that print the function see its name before its arguments.
    pub name_first: bool,
}

/// A tool, as vLLM's request model keeps it: what else a client sends is dropped.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tool<'a> {
    pub name: Cow<'a, str>,
    pub description: Option<Cow<'a, str>>,
    /// A JSON schema: an object.
    pub parameters: Option<Json<'a>>,
    pub strict: Option<bool>,
    pub defer_loading: Option<bool>,
    /// The same of the tool around the function.
    pub outer_defer_loading: Option<bool>,
}

impl<'a> Message<'a> {
    /// A message that has no more than that.
    pub fn new(role: &'static str, content: Content<'a>) -> Self {
        Message { role: Cow::Borrowed(role), content, ..Message::default() }
    }
}

impl Conversation<'_> {
    /// Makes one system message of all, in the first place, with nothing between their texts.
    pub fn merge_systems(&mut self) {
        let mut texts = Vec::new();
        self.messages.retain_mut(|message| {
            let system = message.role == "system";
            if system && let Content::Text(text) = std::mem::take(&mut message.content) {
                texts.push(text);
            }
            !system
        });
        if !texts.is_empty() {
            self.messages.insert(0, Message::new("system", Content::Text(Cow::Owned(texts.concat()))));
        }
    }

    /// Its messages, where they are no more than roles and texts, and nothing else is asked for.
    pub fn said(&self) -> Option<Vec<Said<'_>>> {
        if !self.is_plain() || self.continue_final_message || self.add_special_tokens || self.chat_template.is_some() {
            return None;
        }
        let mut said = Vec::with_capacity(self.messages.len());
        for Message { role, content, .. } in &self.messages {
            let Content::Text(content) = content else { return None };
            said.push(Said { role, content: content.as_bytes() });
        }
        Some(said)
    }

    /// Whether a generation prompt follows.
    pub fn generation(&self) -> bool {
        self.add_generation_prompt.unwrap_or(true)
    }

    /// Whether nothing but its messages' roles and contents, and whether an answer is to follow, says how it is rendered.
    pub fn is_plain(&self) -> bool {
        self.tools.is_none()
            && self.documents.is_none()
            && self.kwargs.is_empty()
            && self.reasoning_effort.is_none()
            && !self.messages.iter().any(Message::is_more)
    }
}

impl<'a> Content<'a> {
    /// Whether a part of it is not text.
    pub fn has_media(&self) -> bool {
        matches!(self, Content::Parts(parts) if parts.contains(&Part::Media))
    }

    /// Whether it is nothing but text, of no other type than `text`.
    pub fn is_text(&self) -> bool {
        match self {
            Content::Parts(parts) => parts.iter().all(|part| matches!(part, Part::Text { .. })),
            Content::Absent | Content::Text(_) => true,
        }
    }

    /// Its texts alone. Where a template takes no parts, a mark stands before them for the media.
    pub fn without_media(self, mark: char, takes_parts: bool) -> Self {
        match self {
            Content::Parts(parts) if parts.contains(&Part::Media) => {
                let texts = parts.into_iter().filter(|part| *part != Part::Media);
                let text = |text: String| Part::Text { text: text.into(), extra: Fields::new() };
                let marks = (!takes_parts).then(|| text(mark.into()));
                Content::Parts(marks.into_iter().chain(texts).collect())
            }
            other => other,
        }
    }
}

impl ToolCall<'_> {
    /// The arguments as templates get them: an object, empty if they are none.
    ///
    /// # Errors
    /// When Python may read them as JSON and this does not.
    pub fn parsed(&self) -> Result<Json<'_>, Unknown> {
        match Json::loads(&self.arguments)? {
            Some(object @ Json::Map(_)) => Ok(object),
            _ => Ok(Json::Map(Fields::new())),
        }
    }
}
