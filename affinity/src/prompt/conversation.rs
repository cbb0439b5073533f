//! What every chat-like API's body becomes, before it is rendered.

use super::Unknown;
use super::json::{Fields, Json};
use std::borrow::Cow;

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
    /// Of assistants.
    pub reasoning: Option<Cow<'a, str>>,
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
    /// An assistant's thinking. Templates get it as text, Mistral's formats do not.
    Thinking { text: Cow<'a, str>, closed: bool, extra: Fields<'a> },
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

impl<'a> Content<'a> {
    /// Whether a part of it is not text.
    pub fn has_media(&self) -> bool {
        matches!(self, Content::Parts(parts) if parts.contains(&Part::Media))
    }

    /// Bytes of its texts.
    pub fn len(&self) -> usize {
        match self {
            Content::Absent => 0,
            Content::Text(text) => text.len(),
            Content::Parts(parts) => parts
                .iter()
                .map(|part| match part {
                    Part::Text { text, .. } | Part::Thinking { text, .. } => text.len(),
                    Part::Media => 0,
                })
                .sum(),
        }
    }

    /// As one text, parts joined as vLLM joins them; an absent one is empty.
    ///
    /// # Errors
    /// When it holds media.
    pub fn joined(&self, separator: &str) -> Result<Cow<'a, str>, Unknown> {
        match self {
            Content::Absent => Ok(Cow::Borrowed("")),
            Content::Text(text) => Ok(text.clone()),
            Content::Parts(parts) => {
                let mut texts = Vec::with_capacity(parts.len());
                for part in parts {
                    match part {
                        Part::Text { text, .. } | Part::Thinking { text, .. } => texts.push(text.as_ref()),
                        Part::Media => return Err(Unknown::Feature("media")),
                    }
                }
                Ok(Cow::Owned(texts.join(separator)))
            }
        }
    }
}

impl ToolCall<'_> {
    /// The arguments as templates get them: an object, empty if they are none.
    pub fn parsed(&self) -> Json<'_> {
        match Json::parse(&self.arguments) {
            Some(object @ Json::Map(_)) => object,
            _ => Json::Map(Fields::new()),
        }
    }
}
