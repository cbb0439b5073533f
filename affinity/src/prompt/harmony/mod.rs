//! Harmony, the format of gpt-oss: what vLLM 0.32 makes of a chat for models of the type `gpt_oss`, in place of their
//! template.
//!
//! Sources: vLLM's `harmony_utils.py`, for what becomes a message, and the package oss-harmony 0.0.11, for how one is
//! spelled. Not reproduced: `VLLM_GPT_OSS_HARMONY_SYSTEM_INSTRUCTIONS`, which puts instructions into the system message;
//! and the package openai-harmony of older engines (vLLM 0.22), which names a tool's recipient before the channel, and
//! writes floats from 1e16 without a plus.
//!
//! `add_generation_prompt`, `continue_final_message`, `chat_template`, its kwargs, documents and names do not matter
//! here: vLLM does not look at them.

mod literal;
mod tools;

use super::Unknown;
use super::conversation::{Content, Conversation, Message, Part, Tool};
use super::json::Json;
use affinity_scan::any_place;
use std::cell::Cell;
use std::collections::BTreeMap;

const START: &str = "<|start|>";
const MESSAGE: &str = "<|message|>";
const CHANNEL: &str = "<|channel|>";
const END: &str = "<|end|>";
const CALL: &str = "<|call|>";

/// Behind `<|`, the names of the vocabulary's special tokens; there are a thousand reserved ones.
const SPECIAL: [&str; 11] = [
    "start|>",
    "message|>",
    "channel|>",
    "end|>",
    "call|>",
    "return|>",
    "constrain|>",
    "startoftext|>",
    "endoftext|>",
    "endofprompt|>",
    "reserved_",
];

/// The text that the tokens of a chat spell. `date` is the engine's, as `YYYY-MM-DD`.
///
/// # Errors
/// When the engine refuses the chat; when texts of it spell special tokens, which the engine encodes as other tokens;
/// when it holds media, or a tool's schema is too deep.
pub(super) fn render(conversation: &Conversation<'_>, date: &str) -> Result<String, Unknown> {
    let effort = match conversation.reasoning_effort.as_deref() {
        None => "medium",
        Some(effort @ ("low" | "medium" | "high")) => effort,
        Some(_) => return Err(Unknown::Malformed),
    };
    let tools = conversation.tools.as_deref().unwrap_or_default();
    let messages = &conversation.messages;
    // The engine drops them, but not the texts that they may have besides.
    let odd = |message: &Message<'_>| message.reasoning.as_ref().is_some_and(|reasoning| reasoning.as_str().is_none());
    if messages.iter().any(odd) {
        return Err(Unknown::Feature("reasoning"));
    }
    if messages.iter().any(|message| !message.content.is_text()) {
        return Err(Unknown::Feature("media"));
    }
    let (instructions, messages) = match messages.split_first() {
        Some((first, rest)) if instructs(first) => (Some(&first.content), rest),
        _ => (None, messages.as_slice()),
    };
    let mut prompt = Prompt { text: String::with_capacity(expected_length(conversation)), special: 0 };
    prompt.system(effort, date, !tools.is_empty());
    if !tools.is_empty() || instructions.is_some_and(|content| texts(content).any(|text| !text.is_empty())) {
        prompt.developer(instructions, tools)?;
    }
    prompt.turns(messages)?;
    prompt.open(&["assistant"]);
    prompt.checked()
}

/// A prompt as far as it is spelled.
struct Prompt {
    text: String,
    /// How many special tokens are in it.
    special: usize,
}

impl Prompt {
    fn system(&mut self, effort: &str, date: &str, with_tools: bool) {
        self.open(&["system"]);
        self.special(MESSAGE);
        self.ordinary(&[
            "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\nCurrent date: ",
            date,
            "\n\nReasoning: ",
            effort,
            "\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message.",
        ]);
        if with_tools {
            self.ordinary(&["\nCalls to these tools must go to the commentary channel: 'functions'."]);
        }
        self.special(END);
    }

    /// A message of instructions and tools. Instructions without any text are none.
    fn developer(&mut self, instructions: Option<&Content<'_>>, tools: &[Tool<'_>]) -> Result<(), Unknown> {
        self.open(&["developer"]);
        self.special(MESSAGE);
        let instructions = instructions.filter(|content| texts(content).next().is_some());
        if let Some(instructions) = instructions {
            self.ordinary(&["# Instructions\n\n"]);
            self.content(instructions);
        }
        if !tools.is_empty() {
            if instructions.is_some() {
                self.ordinary(&["\n\n"]);
            }
            tools::section(tools, &mut self.text)?;
        }
        self.special(END);
        Ok(())
    }

    fn turns(&mut self, messages: &[Message<'_>]) -> Result<(), Unknown> {
        let answered = messages.iter().rposition(|message| message.role == "assistant" && answers(message));
        let calls = messages.iter().flat_map(|message| &message.tool_calls);
        let mut names = BTreeMap::new();
        names.extend(calls.map(|call| (call.id.as_ref(), call.name.as_ref())));
        for (number, message) in messages.iter().enumerate() {
            match message.role.as_ref() {
                "assistant" => {
                    // Of thoughts, the model is shown those since its last answer.
                    let reasoning = message
                        .reasoning
                        .as_ref()
                        .and_then(Json::as_str)
                        .filter(|_| answered.is_none_or(|last| number > last));
                    self.assistant(message, reasoning);
                }
                "tool" => {
                    let id = message.tool_call_id.as_deref();
                    let name = names.get(id.unwrap_or_default()).copied();
                    // An id left out is an empty one to the engine; one that is null is not.
                    if id.is_none() && name.is_some() {
                        return Err(Unknown::Feature("tool_call_id"));
                    }
                    self.open(&["functions.", name.unwrap_or_default()]);
                    self.special(CHANNEL);
                    self.ordinary(&["commentary to=assistant"]);
                    self.body(&message.content, END);
                }
                "system" | "developer" => {
                    if texts(&message.content).next().is_some() {
                        self.developer(Some(&message.content), &[])?;
                    }
                }
                "user" => {
                    self.open(&["user"]);
                    self.body(&message.content, END);
                }
                _ => return Err(Unknown::Malformed),
            }
        }
        Ok(())
    }

    /// What the assistant said, thought and called: a message each.
    fn assistant(&mut self, message: &Message<'_>, reasoning: Option<&str>) {
        let calls = !message.tool_calls.is_empty();
        if calls && texts(&message.content).any(|text| !text.is_empty()) {
            self.open(&["assistant"]);
            self.special(CHANNEL);
            self.ordinary(&["commentary"]);
            self.body(&message.content, END);
        }
        if let Some(reasoning) = reasoning.filter(|text| !text.is_empty()) {
            self.open(&["assistant"]);
            self.special(CHANNEL);
            self.ordinary(&["analysis"]);
            self.special(MESSAGE);
            self.ordinary(&[reasoning]);
            self.special(END);
        }
        for call in &message.tool_calls {
            self.open(&["assistant to=functions.", &call.name]);
            self.special(CHANNEL);
            self.ordinary(&["commentary json"]);
            self.special(MESSAGE);
            self.ordinary(&[&call.arguments]);
            self.special(CALL);
        }
        if answers(message) {
            self.open(&["assistant"]);
            self.special(CHANNEL);
            self.ordinary(&["final"]);
            self.body(&message.content, END);
        }
    }

    /// Begins a message.
    fn open(&mut self, author: &[&str]) {
        self.special(START);
        self.ordinary(author);
    }

    /// Ends a header, and with the content the message.
    fn body(&mut self, content: &Content<'_>, end: &'static str) {
        self.special(MESSAGE);
        self.content(content);
        self.special(end);
    }

    fn content(&mut self, content: &Content<'_>) {
        self.text.extend(texts(content));
    }

    fn special(&mut self, token: &'static str) {
        self.special += 1;
        self.text.push_str(token);
    }

    fn ordinary(&mut self, texts: &[&str]) {
        self.text.extend(texts.iter().copied());
    }

    /// The text, unless it spells more special tokens than it has: the tokens of such text are others.
    fn checked(self) -> Result<String, Unknown> {
        let bytes = self.text.as_bytes();
        let spelled = Cell::new(0);
        any_place(bytes, b'|', |at| {
            let (before, behind) = (bytes.get(..at), bytes.get(at + 1..));
            let opened = before.is_some_and(|before| before.ends_with(b"<"));
            let named = |behind: &[u8]| SPECIAL.iter().any(|name| behind.starts_with(name.as_bytes()));
            if opened && behind.is_some_and(named) {
                spelled.set(spelled.get() + 1);
            }
            false
        });
        if spelled.get() == self.special { Ok(self.text) } else { Err(Unknown::Feature("special_text")) }
    }
}

/// Whether a message that comes first is about the whole chat.
fn instructs(message: &Message<'_>) -> bool {
    matches!(message.role.as_ref(), "system" | "developer")
}

/// Whether a message of the assistant is an answer: it calls no tool, and its first part has text.
fn answers(message: &Message<'_>) -> bool {
    let first = match &message.content {
        Content::Absent => "",
        Content::Text(text) => text,
        Content::Parts(parts) => match parts.first() {
            Some(Part::Text { text, .. }) => text,
            _ => "",
        },
    };
    message.tool_calls.is_empty() && !first.is_empty()
}

/// The texts of a content, which nothing joins. Parts of other types than `text` must not be among them: refusals and
/// thoughts are dropped, and others come and go with what else is in the message.
fn texts<'c>(content: &'c Content<'_>) -> impl Iterator<Item = &'c str> {
    let (text, parts) = match content {
        Content::Absent => (None, [].as_slice()),
        Content::Text(text) => (Some(text.as_ref()), [].as_slice()),
        Content::Parts(parts) => (None, parts.as_slice()),
    };
    text.into_iter().chain(parts.iter().filter_map(|part| match part {
        Part::Text { text, .. } => Some(text.as_ref()),
        Part::Other { .. } | Part::Thought { .. } | Part::Media => None,
    }))
}

/// About how long the prompt will be, tools left out.
fn expected_length(conversation: &Conversation<'_>) -> usize {
    let of = |message: &Message<'_>| {
        let calls = message.tool_calls.iter().map(|call| call.name.len() + call.arguments.len() + 80);
        let reasoning = message.reasoning.as_ref().and_then(Json::as_str).map_or(0, str::len);
        texts(&message.content).map(str::len).sum::<usize>() + calls.sum::<usize>() + reasoning + 80
    };
    512 + conversation.messages.iter().map(of).sum::<usize>()
}

#[cfg(test)]
mod tests;
