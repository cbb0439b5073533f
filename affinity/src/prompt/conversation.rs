//! What every chat-like API's body becomes, before it is rendered.

use super::Unknown;
use super::json::{Fields, Json};
use std::borrow::Cow;

/// A body of which model and salt are known, and the conversation if it can be.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Envelope<'a> {
    pub model: Option<Cow<'a, str>>,
    pub cache_salt: Option<Cow<'a, str>>,
    pub conversation: Result<Conversation<'a>, Unknown>,
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

/// Fields of parts that one type of part or another knows: templates that take parts are handed none of them but the
/// text.
pub(super) const KNOWN_PART_FIELDS: [&str; 18] = [
    "audio_embeds",
    "audio_url",
    "closed",
    "data",
    "file",
    "image_embeds",
    "image_pil",
    "image_url",
    "input_audio",
    "name",
    "prompt_cache_breakpoint",
    "refusal",
    "text",
    "thinking",
    "type",
    "uuid",
    "video_embeds",
    "video_url",
];

/// Begins a line that Claude Code puts before its system prompt. It differs from request to request, so vLLM drops it.
pub(super) const BILLING_HEADER: &str = "x-anthropic-billing-header";

impl<'a> Conversation<'a> {
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

    /// Drops the [`BILLING_HEADER`] line of system messages that are one text, as vLLM does for every API. To be done
    /// after [merging](Self::merge_systems).
    pub fn drop_billing_headers(&mut self) {
        for message in self.messages.iter_mut().filter(|message| message.role == "system") {
            if let Content::Text(text) = &mut message.content
                && text.starts_with(BILLING_HEADER)
            {
                let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
                message.content =
                    if rest.is_empty() { Content::Absent } else { Content::Text(Cow::Owned(rest.to_owned())) };
            }
        }
    }
}

impl<'a> Message<'a> {
    /// A message that has no more than that.
    pub fn new(role: &'static str, content: Content<'a>) -> Self {
        Message { role: Cow::Borrowed(role), content, ..Message::default() }
    }
}

impl<'a> Content<'a> {
    /// Whether a part of it is not text.
    pub fn has_media(&self) -> bool {
        matches!(self, Content::Parts(parts) if parts.contains(&Part::Media))
    }

    /// As the text that a template gets, of parts joined by newlines. Templates that take text get none of the empty
    /// parts; those that take parts get the contents of tools as text too, with all of them (`keep_empty`).
    ///
    /// # Errors
    /// When it holds media.
    pub fn joined(&self, keep_empty: bool) -> Result<Cow<'a, str>, Unknown> {
        match self {
            Content::Absent => Ok(Cow::Borrowed("")),
            Content::Text(text) => Ok(text.clone()),
            Content::Parts(parts) => {
                let mut texts = Vec::with_capacity(parts.len());
                for part in parts {
                    match part {
                        Part::Text { text, .. } if text.is_empty() && !keep_empty => {}
                        Part::Text { text, .. } => texts.push(text.as_ref()),
                        Part::Media => return Err(Unknown::Feature("media")),
                    }
                }
                Ok(Cow::Owned(texts.join("\n")))
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
