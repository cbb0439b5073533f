//! The bodies of `/v1/chat/completions`, `/v1/completions` and `/v1/embeddings`, as vLLM's request models read them.

use super::Unknown;
use super::conversation::{Content, Conversation, Message, Part, Tool, ToolCall};
use super::json::{Fields, Json, take, take_bool, take_object, take_text};
use super::turns::Said;
use affinity_scan::Lifted;
use serde::de::{Error, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::fmt;

/// The fields of a request that its prompt depends on. All others are skipped without being built.
#[derive(Deserialize)]
pub(super) struct Body<'a> {
    #[serde(default, borrow)]
    pub model: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    pub cache_salt: Option<Cow<'a, str>>,
    #[serde(borrow)]
    prompt: Option<Prompt<'a>>,
    #[serde(borrow)]
    input: Option<Prompt<'a>>,
    #[serde(borrow)]
    messages: Option<Vec<Raw<'a>>>,
    #[serde(default, borrow)]
    tools: Option<Json<'a>>,
    #[serde(default, borrow)]
    tool_choice: Option<Json<'a>>,
    #[serde(default, borrow)]
    documents: Option<Json<'a>>,
    #[serde(default, borrow)]
    chat_template: Option<Json<'a>>,
    #[serde(default, borrow)]
    chat_template_kwargs: Option<Json<'a>>,
    #[serde(default, borrow)]
    reasoning_effort: Option<Json<'a>>,
    #[serde(default, borrow)]
    kv_transfer_params: Option<Json<'a>>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    pub add_special_tokens: Option<bool>,
    truncate_prompt_tokens: Option<IgnoredAny>,
    prompt_embeds: Option<IgnoredAny>,
    prompt_logprobs: Option<IgnoredAny>,
    suffix: Option<IgnoredAny>,
    mm_processor_kwargs: Option<IgnoredAny>,
}

/// A message as it stands in a body: small, as most have no more than a role and a content.
#[derive(Deserialize)]
#[serde(from = "RawFields<'a>", bound = "'de: 'a")]
struct Raw<'a> {
    role: Cow<'a, str>,
    content: RawContent<'a>,
    /// The others, if any is given.
    rest: Option<Box<RawFields<'a>>>,
}

/// All of a message's fields.
#[derive(Deserialize)]
struct RawFields<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(default, borrow)]
    content: RawContent<'a>,
    #[serde(default, borrow)]
    name: Option<Json<'a>>,
    #[serde(default, borrow)]
    tool_calls: Option<Json<'a>>,
    #[serde(default, borrow)]
    tool_call_id: Option<Json<'a>>,
    #[serde(default, borrow)]
    reasoning: Option<Json<'a>>,
    #[serde(default, borrow)]
    reasoning_content: Option<Json<'a>>,
    #[serde(default, borrow)]
    tools: Option<Json<'a>>,
    /// A marker that DeepSeek V4's template reads.
    task: Option<IgnoredAny>,
}

impl<'a> From<RawFields<'a>> for Raw<'a> {
    fn from(mut all: RawFields<'a>) -> Self {
        let (role, content) = (std::mem::take(&mut all.role), std::mem::take(&mut all.content));
        let json = [&all.name, &all.tool_calls, &all.tool_call_id, &all.reasoning, &all.reasoning_content, &all.tools];
        let more = all.task.is_some() || json.iter().any(|field| field.is_some());
        Self { role, content, rest: more.then(|| Box::new(all)) }
    }
}

/// What a completions request asks for.
#[derive(Debug, PartialEq)]
pub(super) enum Asked<'a> {
    Text(Cow<'a, str>),
    Ids(Vec<u32>),
}

impl<'a> Body<'a> {
    /// `lifted` is what [`Lifted::of`] made of `body`.
    pub fn read(body: &'a [u8], lifted: Option<&'a Lifted>) -> Result<Self, Unknown> {
        serde_json::from_slice(lifted.map_or(body, |lifted| &lifted.body)).map_err(|_| Unknown::Malformed)
    }

    /// The first field whose effect on prompt or cache is not reproduced.
    fn unreproduced(&self) -> Result<(), Unknown> {
        let given = [
            ("truncate_prompt_tokens", self.truncate_prompt_tokens.is_some()),
            ("prompt_embeds", self.prompt_embeds.is_some()),
            // The engine does not read its cache for these.
            ("prompt_logprobs", self.prompt_logprobs.is_some()),
            ("suffix", self.suffix.is_some()),
            ("mm_processor_kwargs", self.mm_processor_kwargs.is_some()),
        ];
        given.iter().find(|(_, given)| *given).map_or(Ok(()), |(name, _)| Err(Unknown::Feature(name)))
    }

    /// The prompt of a completions request, or the input of an embeddings request.
    pub fn prompt(self, lifted: Option<&'a Lifted>, embeddings: bool) -> Result<Asked<'a>, Unknown> {
        self.unreproduced()?;
        let given = if embeddings { self.input } else { self.prompt };
        match given.ok_or(Unknown::Malformed)? {
            Prompt::Text(text) => Ok(Asked::Text(resolved(text, lifted)?)),
            Prompt::Ids(ids) => Ok(Asked::Ids(ids)),
            Prompt::Other => Err(Unknown::Malformed),
        }
    }

    /// Token ids that a prefill engine hands on: the engine takes them for the prompt.
    pub fn handed_on(&self) -> Result<Option<Vec<u32>>, Unknown> {
        match self.kv_transfer_params.as_ref().and_then(|params| params.get("prompt_token_ids")) {
            None | Some(Json::Null) => Ok(None),
            Some(Json::List(ids)) => {
                let id = |id: &Json<'_>| match id {
                    Json::Int(id) => u32::try_from(*id).ok(),
                    _ => None,
                };
                ids.iter().map(id).collect::<Option<Vec<u32>>>().ok_or(Unknown::Malformed).map(Some)
            }
            Some(_) => Err(Unknown::Malformed),
        }
    }

    /// Whether it has messages: embeddings requests may.
    pub fn is_chat(&self) -> bool {
        self.messages.is_some()
    }

    /// The messages of a chat request that is nothing but messages, each no more than a role and a text.
    pub fn said<'s>(&'s self, lifted: Option<&'s Lifted>) -> Option<Vec<Said<'s>>> {
        let more = [
            &self.tools,
            &self.documents,
            &self.chat_template,
            &self.chat_template_kwargs,
            &self.reasoning_effort,
            &self.kv_transfer_params,
        ];
        if self.unreproduced().is_err()
            || self.continue_final_message == Some(true)
            || self.add_special_tokens == Some(true)
            || more.iter().any(|field| field.is_some())
        {
            return None;
        }
        let said = |message: &'s Raw<'_>| match (&message.content, &message.rest) {
            (RawContent::Text(text), None) => {
                let content = lifted.map_or(text.as_bytes(), |lifted| lifted.bytes(text));
                Some(Said { role: &message.role, content })
            }
            _ => None,
        };
        self.messages.as_ref()?.iter().map(said).collect()
    }

    /// Whether a generation prompt is to follow, as chat requests say it.
    pub fn generation(&self) -> bool {
        self.add_generation_prompt.unwrap_or(true)
    }

    /// A chat request. `exclude_unused`: the engine leaves tools out that must not be called.
    pub fn conversation(self, lifted: Option<&'a Lifted>, exclude_unused: bool) -> Result<Conversation<'a>, Unknown> {
        self.unreproduced()?;
        let given = self.messages.ok_or(Unknown::Malformed)?;
        let json = |json: Option<Json<'a>>| match json {
            None | Some(Json::Null) => Ok(None),
            Some(json) => json.resolved(lifted).map(Some).ok_or(Unknown::Malformed),
        };
        let text = |given: Option<Json<'a>>| match json(given)? {
            None => Ok(None),
            Some(Json::Text(text)) => Ok(Some(text)),
            Some(_) => Err(Unknown::Malformed),
        };
        let kwargs = match json(self.chat_template_kwargs)? {
            None => Fields::new(),
            Some(Json::Map(fields)) => fields,
            Some(_) => return Err(Unknown::Malformed),
        };
        let unused = exclude_unused && self.tool_choice.as_ref().and_then(Json::as_str) == Some("none");
        let tools = json(self.tools)?.map(tools).transpose()?.filter(|_| !unused);
        let mut messages = Vec::with_capacity(given.len());
        for message in given {
            messages.push(message.read(lifted)?);
        }
        Ok(Conversation {
            messages,
            tools,
            documents: json(self.documents)?,
            kwargs,
            reasoning_effort: text(self.reasoning_effort)?,
            add_generation_prompt: self.add_generation_prompt,
            continue_final_message: self.continue_final_message == Some(true),
            chat_template: text(self.chat_template)?.filter(|template| !template.is_empty()),
            ..Conversation::default()
        })
    }
}

/// Tools as chat requests give them; an empty list is refused.
fn tools(given: Json<'_>) -> Result<Vec<Tool<'_>>, Unknown> {
    match given {
        Json::List(items) if !items.is_empty() => items.into_iter().map(tool).collect(),
        _ => Err(Unknown::Malformed),
    }
}

/// What vLLM's request model refuses is malformed.
fn tool(given: Json<'_>) -> Result<Tool<'_>, Unknown> {
    let Json::Map(mut fields) = given else { return Err(Unknown::Malformed) };
    if take(&mut fields, "type").is_some_and(|kind| kind.as_str() != Some("function")) {
        return Err(Unknown::Malformed);
    }
    let mut function = take_object(&mut fields, "function")?.ok_or(Unknown::Malformed)?;
    Ok(Tool {
        name: take_text(&mut function, "name")?.ok_or(Unknown::Malformed)?,
        description: take_text(&mut function, "description")?,
        parameters: take_object(&mut function, "parameters")?.map(Json::Map),
        strict: take_bool(&mut function, "strict")?,
        defer_loading: take_bool(&mut function, "defer_loading")?,
        outer_defer_loading: take_bool(&mut fields, "defer_loading")?,
    })
}

impl<'a> Raw<'a> {
    fn read(self, lifted: Option<&'a Lifted>) -> Result<Message<'a>, Unknown> {
        if self.rest.as_ref().is_some_and(|rest| rest.task.is_some()) {
            return Err(Unknown::Feature("message_task"));
        }
        let content = match self.content {
            RawContent::Absent => Content::Absent,
            RawContent::Text(text) => Content::Text(resolved(text, lifted)?),
            RawContent::Parts(parts) => {
                let mut read = Vec::with_capacity(parts.len());
                for item in parts {
                    read.extend(part(item.resolved(lifted).ok_or(Unknown::Malformed)?).ok_or(Unknown::Malformed)?);
                }
                Content::Parts(read)
            }
        };
        let Some(rest) = self.rest else {
            return Ok(Message { role: self.role, content, ..Message::default() });
        };
        // What a role has no use for is not looked at.
        let of = |role: &str, given: Option<Json<'a>>| given.filter(|json| self.role == role && !json.is_null());
        let tool_calls = match of("assistant", rest.tool_calls) {
            None => Vec::new(),
            Some(Json::List(calls)) => {
                let call = |call: Json<'a>| call.resolved(lifted).ok_or(Unknown::Malformed).and_then(tool_call);
                calls.into_iter().map(call).collect::<Result<_, _>>()?
            }
            Some(_) => return Err(Unknown::Malformed),
        };
        let reasoning = of("assistant", rest.reasoning).or(of("assistant", rest.reasoning_content));
        let tools = of("developer", rest.tools);
        let tool_call_id = match rest.tool_call_id.filter(|_| self.role == "tool") {
            None => None,
            Some(Json::Text(id)) => Some(id),
            Some(_) => return Err(Unknown::Malformed),
        };
        Ok(Message {
            content,
            // The engine drops what is no text.
            name: match rest.name {
                Some(Json::Text(name)) => Some(name),
                _ => None,
            },
            tool_calls,
            tool_call_id,
            reasoning: match reasoning {
                None => None,
                Some(reasoning) => Some(reasoning.resolved(lifted).ok_or(Unknown::Malformed)?),
            },
            tools: match tools {
                None => None,
                Some(tools) => Some(tools.resolved(lifted).ok_or(Unknown::Malformed)?),
            },
            role: self.role,
        })
    }
}

/// Fields of parts that some type of part has: they are not handed to templates.
const KNOWN: [&str; 18] = [
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

/// A part; `Some(None)` for one that the engine skips, `None` for one that it refuses.
pub(super) fn part(given: Json<'_>) -> Option<Option<Part<'_>>> {
    let mut fields = match given {
        Json::Text(text) => return Some(Some(Part::Other { text, extra: Fields::new() })),
        Json::Map(fields) => fields,
        _ => return None,
    };
    let marked = take(&mut fields, "uuid").is_some_and(|uuid| !uuid.is_null());
    let kind = take_text(&mut fields, "type").ok()?;
    let key = match kind.as_deref() {
        Some("text" | "input_text" | "output_text") if !marked => "text",
        Some("refusal") if !marked => "refusal",
        Some("thinking") if !marked => "thinking",
        Some(
            "image_url" | "input_image" | "image_embeds" | "image_pil" | "audio_url" | "input_audio" | "audio_embeds",
        )
        | Some("video_url" | "video_embeds" | "prompt_embeds" | "tool_reference") => return Some(Some(Part::Media)),
        Some(_) => return None,
        None => {
            let media = |(name, _): &(Cow<'_, str>, Json<'_>)| name.starts_with(['i', 'a', 'v']) && name.contains('_');
            return fields.iter().any(media).then_some(Some(Part::Media));
        }
    };
    match take_text(&mut fields, key).ok()? {
        None if key == "thinking" => None,
        None => Some(None),
        Some(text) => {
            let closed = take(&mut fields, "closed");
            fields.retain(|(name, _)| !KNOWN.contains(&name.as_ref()));
            let extra = fields;
            Some(Some(match kind.as_deref() {
                Some("text") => Part::Text { text, extra },
                Some("thinking") => {
                    let closed = match closed {
                        None => true,
                        Some(Json::Bool(closed)) => closed,
                        Some(_) => return None,
                    };
                    Part::Thought { text, closed, extra }
                }
                _ => Part::Other { text, extra },
            }))
        }
    }
}

/// What vLLM's request model refuses is malformed.
fn tool_call(given: Json<'_>) -> Result<ToolCall<'_>, Unknown> {
    let Json::Map(mut fields) = given else { return Err(Unknown::Malformed) };
    if take(&mut fields, "type").as_ref().and_then(Json::as_str) != Some("function") {
        return Err(Unknown::Malformed);
    }
    let id = take_text(&mut fields, "id")?.ok_or(Unknown::Malformed)?;
    let mut function = take_object(&mut fields, "function")?.ok_or(Unknown::Malformed)?;
    let name = take_text(&mut function, "name")?.ok_or(Unknown::Malformed)?;
    let arguments = take_text(&mut function, "arguments")?.ok_or(Unknown::Malformed)?;
    Ok(ToolCall { id, name, arguments, extra: fields, function_extra: function, name_first: false })
}

/// A text whose place in the body may have been taken by a name for it.
pub(super) fn resolved<'a>(text: Cow<'a, str>, lifted: Option<&'a Lifted>) -> Result<Cow<'a, str>, Unknown> {
    match lifted {
        Some(lifted) => lifted.text(text).ok_or(Unknown::Malformed),
        None => Ok(text),
    }
}

/// A message's content. Its texts may have been [lifted](Lifted).
#[derive(Default)]
enum RawContent<'a> {
    #[default]
    Absent,
    Text(Cow<'a, str>),
    Parts(Vec<Json<'a>>),
}

impl<'de: 'a, 'a> Deserialize<'de> for RawContent<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match Json::deserialize(from)? {
            Json::Null => Ok(RawContent::Absent),
            Json::Text(text) => Ok(RawContent::Text(text)),
            Json::List(parts) => Ok(RawContent::Parts(parts)),
            _ => Err(D::Error::custom("a content is text, a list of parts, or null")),
        }
    }
}

/// A completions prompt.
enum Prompt<'a> {
    /// May have been [lifted](Lifted).
    Text(Cow<'a, str>),
    Ids(Vec<u32>),
    /// Something no engine takes.
    Other,
}

impl<'de: 'a, 'a> Deserialize<'de> for Prompt<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(VisitPrompt)
    }
}

struct VisitPrompt;

impl<'de> Visitor<'de> for VisitPrompt {
    type Value = Prompt<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a prompt")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Prompt<'de>, E> {
        Ok(Prompt::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Prompt<'de>, E> {
        Ok(Prompt::Text(Cow::Owned(text.to_owned())))
    }

    /// Several prompts go to one engine; the first stands for all.
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Prompt<'de>, A::Error> {
        let mut first = match items.next_element::<Item<'de>>()? {
            None => return Ok(Prompt::Other),
            Some(Item::Id(id)) => Prompt::Ids(vec![id]),
            Some(Item::Prompt(prompt)) => {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(prompt);
            }
        };
        if let Prompt::Ids(ids) = &mut first {
            while let Some(id) = items.next_element()? {
                ids.push(id);
            }
        }
        Ok(first)
    }
}

/// An item of a list that is a prompt, or prompts.
enum Item<'a> {
    Id(u32),
    Prompt(Prompt<'a>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Item<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(VisitItem)
    }
}

struct VisitItem;

impl<'de> Visitor<'de> for VisitItem {
    type Value = Item<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a token id, or a prompt")
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<Item<'de>, E> {
        u32::try_from(id).map(Item::Id).map_err(E::custom)
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Item<'de>, E> {
        VisitPrompt.visit_borrowed_str(text).map(Item::Prompt)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Item<'de>, E> {
        VisitPrompt.visit_str(text).map(Item::Prompt)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Item<'de>, A::Error> {
        VisitPrompt.visit_seq(items).map(Item::Prompt)
    }
}
