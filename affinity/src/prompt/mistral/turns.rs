//! A conversation's turns, as mistral-common puts them in order: what one role says in a row is one turn.

use super::super::Unknown;
use super::super::conversation::{Content, Conversation, Message, Part, ToolCall};
use super::super::json::{Fields, Json};
use crate::order::sort_by_key;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Between the texts of two messages.
const BETWEEN_MESSAGES: &str = "\n\n";

/// Turns in order, and what is said apart from them.
#[derive(Debug, Default)]
pub(super) struct Turns<'c> {
    pub turns: Vec<Turn<'c>>,
    /// All that system messages say, where they are no turns of their own: before version 7.
    pub system: Option<String>,
}

#[derive(Debug)]
pub(super) enum Turn<'c> {
    System(Vec<Piece<'c>>),
    User(Cow<'c, str>),
    Assistant {
        content: Vec<Piece<'c>>,
        calls: Vec<Call<'c>>,
        /// It is to be gone on with.
        open: bool,
    },
    Tool {
        id: &'c str,
        name: Option<&'c str>,
        content: Cow<'c, str>,
    },
    /// What is not known of a user's turn or another.
    Unknown {
        user: bool,
        why: Unknown,
    },
}

/// What is cut into tokens by itself.
#[derive(Debug)]
pub(super) enum Piece<'c> {
    /// Not empty.
    Text(Cow<'c, str>),
    Thought {
        text: &'c str,
        closed: bool,
    },
}

/// A call of a tool.
#[derive(Debug)]
pub(super) struct Call<'c> {
    pub id: &'c str,
    pub name: &'c str,
    /// An object.
    pub arguments: Json<'c>,
}

#[derive(Clone, Copy, PartialEq)]
enum Role {
    System,
    User,
    Assistant,
    Tool,
}

impl Role {
    fn of(message: &Message<'_>) -> Option<Self> {
        match message.role.as_ref() {
            "system" | "developer" => Some(Role::System),
            "user" => Some(Role::User),
            "assistant" => Some(Role::Assistant),
            "tool" => Some(Role::Tool),
            _ => None,
        }
    }
}

impl<'c> Turns<'c> {
    /// # Errors
    /// When not even the first turns are known.
    pub fn of(conversation: &'c Conversation<'_>, version: u8) -> Result<Self, Unknown> {
        let messages = &conversation.messages;
        if messages.iter().any(|message| Role::of(message).is_none()) {
            return Err(Unknown::Feature("role"));
        }
        let between_parts = if version >= 15 { "" } else { BETWEEN_MESSAGES };
        let mut all = Self::default();
        // Calls that no tool has answered yet.
        let mut called = Vec::new();
        for group in messages.chunk_by(|a, b| Role::of(a) == Role::of(b)) {
            match group.first().and_then(Role::of) {
                Some(Role::System) => all.add_system(group, version, between_parts)?,
                Some(Role::User) => {
                    let said = merged(group, between_parts).and_then(text_of);
                    all.turns.push(said.map_or_else(|why| Turn::Unknown { user: true, why }, Turn::User));
                }
                Some(Role::Assistant) => {
                    called.extend(group.iter().flat_map(|message| &message.tool_calls).map(|call| short(&call.id)));
                    all.add(assistant(group, between_parts));
                }
                _ => {
                    let answers = group.iter().map(|message| tool(message, between_parts));
                    match answers.collect::<Result<Vec<_>, _>>().and_then(|answers| sorted(answers, &called, version)) {
                        Ok(answers) => all.turns.extend(answers),
                        Err(why) => all.add(Err(why)),
                    }
                    called.clear();
                }
            }
        }
        if conversation.continue_final_message {
            match all.turns.last_mut() {
                Some(Turn::Assistant { open, .. }) => *open = true,
                Some(Turn::Unknown { user: false, .. }) => {}
                _ => return Err(Unknown::Feature("continue_final_message")),
            }
        }
        if all.turns.is_empty() || version < 7 && !all.turns.first().is_some_and(Turn::is_user) {
            all.turns.insert(0, Turn::User(Cow::Borrowed("")));
        }
        Ok(all)
    }

    fn add(&mut self, turn: Result<Turn<'c>, Unknown>) {
        self.turns.push(turn.unwrap_or_else(|why| Turn::Unknown { user: false, why }));
    }

    fn add_system(&mut self, group: &'c [Message<'_>], version: u8, between_parts: &str) -> Result<(), Unknown> {
        for message in group {
            let said = merged(std::slice::from_ref(message), between_parts);
            if version >= 7 {
                self.add(said.map(Turn::System));
                continue;
            }
            let said = text_of(said?)?;
            let silent = match &message.content {
                Content::Absent => true,
                Content::Text(text) => text.is_empty(),
                // Parts without text count.
                Content::Parts(parts) => parts.is_empty(),
            };
            match &mut self.system {
                _ if silent => {}
                Some(system) => {
                    system.push_str(BETWEEN_MESSAGES);
                    system.push_str(&said);
                }
                none => *none = Some(said.into_owned()),
            }
        }
        Ok(())
    }
}

impl Turn<'_> {
    pub fn is_user(&self) -> bool {
        matches!(self, Turn::User(_) | Turn::Unknown { user: true, .. })
    }
}

fn assistant<'c>(group: &'c [Message<'_>], between_parts: &str) -> Result<Turn<'c>, Unknown> {
    let calls = group.iter().flat_map(|message| &message.tool_calls).map(Call::of);
    Ok(Turn::Assistant { calls: calls.collect::<Result<_, _>>()?, content: merged(group, between_parts)?, open: false })
}

impl<'c> Call<'c> {
    fn of(call: &'c ToolCall<'_>) -> Result<Self, Unknown> {
        // What is no object is replaced by an empty one.
        let arguments = match Json::loads(&call.arguments)? {
            Some(object @ Json::Map(_)) => object,
            _ => Json::Map(Fields::new()),
        };
        Ok(Self { id: short(&call.id), name: &call.name, arguments })
    }
}

fn tool<'c>(message: &'c Message<'_>, between_parts: &str) -> Result<Turn<'c>, Unknown> {
    Ok(Turn::Tool {
        id: short(message.tool_call_id.as_deref().ok_or(Unknown::Feature("tool_call_id"))?),
        name: message.name.as_deref(),
        content: text_of(merged(std::slice::from_ref(message), between_parts)?)?,
    })
}

/// The answers of tools in the order of their calls, where the version wants them so.
fn sorted<'c>(mut answers: Vec<Turn<'c>>, called: &[&str], version: u8) -> Result<Vec<Turn<'c>>, Unknown> {
    if version < 11 {
        return Ok(answers);
    }
    let mut place = BTreeMap::new();
    place.extend(called.iter().copied().zip(0..));
    // Whole, they may still differ, and not every endpoint cuts them.
    if place.len() < called.len() {
        return Err(Unknown::Feature("tool_call_id"));
    }
    sort_by_key(&mut answers, |answer| match answer {
        Turn::Tool { id, .. } => place.get(id).copied().unwrap_or(usize::MAX),
        _ => usize::MAX,
    });
    Ok(answers)
}

/// What messages in a row say: texts are joined where nothing is between them, empty ones dropped.
fn merged<'c>(messages: &'c [Message<'_>], between_parts: &str) -> Result<Vec<Piece<'c>>, Unknown> {
    let mut pieces = Vec::new();
    for message in messages {
        if message.role == "assistant"
            && let Some(reasoning) = &message.reasoning
        {
            let text = reasoning.as_str().ok_or(Unknown::Feature("reasoning"))?;
            pieces.push(Piece::Thought { text, closed: true });
        }
        let mut join = BETWEEN_MESSAGES;
        let parts = match &message.content {
            Content::Absent => continue,
            Content::Text(text) => {
                add(&mut pieces, text, join);
                continue;
            }
            Content::Parts(parts) => parts,
        };
        for part in parts {
            match part {
                Part::Text { text, .. } => {
                    if add(&mut pieces, text, join) {
                        join = between_parts;
                    }
                }
                // The engine takes thoughts as parts or as reasoning, not both.
                Part::Thought { .. } if message.reasoning.is_some() => return Err(Unknown::Feature("reasoning")),
                Part::Thought { text, closed, .. } => pieces.push(Piece::Thought { text, closed: *closed }),
                Part::Other { .. } => return Err(Unknown::Feature("part_type")),
                Part::Media => return Err(Unknown::Feature("media")),
            }
        }
    }
    Ok(pieces)
}

/// Whether there was something to add.
fn add<'c>(pieces: &mut Vec<Piece<'c>>, text: &'c str, join: &str) -> bool {
    match pieces.last_mut() {
        _ if text.is_empty() => return false,
        Some(Piece::Text(before)) => {
            let before = before.to_mut();
            before.push_str(join);
            before.push_str(text);
        }
        _ => pieces.push(Piece::Text(Cow::Borrowed(text))),
    }
    true
}

/// What was said where only text may be.
fn text_of(mut pieces: Vec<Piece<'_>>) -> Result<Cow<'_, str>, Unknown> {
    match (pieces.pop(), pieces.is_empty()) {
        (None, _) => Ok(Cow::Borrowed("")),
        (Some(Piece::Text(text)), true) => Ok(text),
        _ => Err(Unknown::Feature("thinking")),
    }
}

/// The last nine characters of a call's id: vLLM keeps no more.
fn short(id: &str) -> &str {
    let from = id.char_indices().rev().nth(8).map_or(0, |(at, _)| at);
    id.get(from..).unwrap_or(id)
}
