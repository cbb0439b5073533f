//! A request's body, as far as its prompt depends on it.

use super::Unknown;
use super::lift::Lifted;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::fmt;

/// The fields of a request that its prompt depends on. All others are skipped without being built.
#[derive(Deserialize)]
pub(super) struct Body<'a> {
    #[serde(default, borrow)]
    pub model: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub prompt: Option<PromptField<'a>>,
    #[serde(borrow)]
    pub messages: Option<Vec<Message<'a>>>,
    #[serde(default, borrow)]
    pub cache_salt: Option<Cow<'a, str>>,
    pub add_generation_prompt: Option<bool>,
    pub add_special_tokens: Option<bool>,
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

impl<'a> Body<'a> {
    /// `lifted` is what [`Lifted::of`] made of `body`.
    pub fn read(body: &'a [u8], lifted: Option<&'a Lifted>) -> Result<Self, Unknown> {
        serde_json::from_slice(lifted.map_or(body, |lifted| &lifted.body)).map_err(|_| Unknown::Malformed)
    }

    /// The first field whose effect on prompt or cache is not reproduced.
    pub fn unreproduced(&self) -> Option<&'static str> {
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
pub(super) struct Message<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(default, borrow)]
    content: Content<'a>,
    #[serde(borrow)]
    name: Option<Borrowable<'a>>,
    tool_calls: Option<IgnoredAny>,
    reasoning: Option<IgnoredAny>,
    reasoning_content: Option<IgnoredAny>,
}

/// A message as vLLM hands it to a template that takes text.
pub(super) struct Turn<'a> {
    pub role: Cow<'a, str>,
    pub content: Cow<'a, str>,
    pub name: Option<Cow<'a, str>>,
}

impl<'a> Message<'a> {
    pub fn into_turn(self, lifted: Option<&'a Lifted>) -> Result<Turn<'a>, Unknown> {
        match self.role.as_ref() {
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
            Content::Text(text) => resolved(text, lifted)?,
            Content::Parts(parts) => {
                let parts = parts.into_iter().map(|part| resolved(part, lifted));
                Cow::Owned(parts.collect::<Result<Vec<_>, _>>()?.join("\n"))
            }
            Content::Absent => Cow::Borrowed(""),
            Content::Media => return Err(Unknown::Feature("media")),
        };
        Ok(Turn { role: self.role, content, name: self.name.map(|Borrowable(name)| name) })
    }
}

fn resolved<'a>(text: Cow<'a, str>, lifted: Option<&'a Lifted>) -> Result<Cow<'a, str>, Unknown> {
    match lifted {
        Some(lifted) => lifted.text(text).ok_or(Unknown::Malformed),
        None => Ok(text),
    }
}

/// A message's content. Its texts may have been [lifted](Lifted).
#[derive(Default)]
enum Content<'a> {
    #[default]
    Absent,
    Text(Cow<'a, str>),
    /// To be joined by newlines.
    Parts(Vec<Cow<'a, str>>),
    /// Holds a part that is not text.
    Media,
}

impl<'de: 'a, 'a> Deserialize<'de> for Content<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Content<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text, a list of parts, or null")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Content<'de>, E> {
                Ok(Content::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Content<'de>, E> {
                Ok(Content::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_unit<E>(self) -> Result<Content<'de>, E> {
                Ok(Content::Absent)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Content<'de>, A::Error> {
                let (mut texts, mut media) = (Vec::new(), false);
                while let Some(part) = parts.next_element::<Part<'de>>()? {
                    match (part.kind.as_ref(), part.text) {
                        ("text" | "input_text" | "output_text", Some(Borrowable(text))) => texts.push(text),
                        _ => media = true,
                    }
                }
                Ok(if media { Content::Media } else { Content::Parts(texts) })
            }
        }
        from.deserialize_any(Visit)
    }
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    text: Option<Borrowable<'a>>,
}

/// Serde borrows no optional text by itself.
#[derive(Deserialize)]
struct Borrowable<'a>(#[serde(borrow)] Cow<'a, str>);

/// A completions prompt.
pub(super) enum PromptField<'a> {
    /// May have been [lifted](Lifted).
    Text(Cow<'a, str>),
    /// Token ids, or several prompts in one call, or something no engine takes.
    Other,
}

impl<'de: 'a, 'a> Deserialize<'de> for PromptField<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = PromptField<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a prompt")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<PromptField<'de>, E> {
                Ok(PromptField::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<PromptField<'de>, E> {
                Ok(PromptField::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_u64<E>(self, _: u64) -> Result<PromptField<'de>, E> {
                Ok(PromptField::Other)
            }

            /// Several prompts go to one engine; the first stands for all.
            fn visit_seq<A: SeqAccess<'de>>(self, mut prompts: A) -> Result<PromptField<'de>, A::Error> {
                let first = prompts.next_element::<PromptField<'de>>()?.unwrap_or(PromptField::Other);
                while prompts.next_element::<IgnoredAny>()?.is_some() {}
                Ok(first)
            }
        }
        from.deserialize_any(Visit)
    }
}

impl<'a> PromptField<'a> {
    pub fn into_text(self, lifted: Option<&'a Lifted>) -> Result<Cow<'a, str>, Unknown> {
        match self {
            PromptField::Text(text) => resolved(text, lifted),
            PromptField::Other => Err(Unknown::Feature("token_ids")),
        }
    }
}
