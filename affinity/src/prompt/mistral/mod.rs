//! Mistral's own formats, as `mistral-common` writes them.
//!
//! Its tokens are not cut from a text: control tokens are put between pieces that are cut by themselves. What is
//! rendered here is the text that those tokens spell, control tokens as their literal texts.
//!
//! **Invariant:** a control token's text is never a user's: prompts whose users write one are unknown, since they would
//! share their bytes, and not their tokens, with others.

#[cfg(test)]
mod tests;
mod turns;

use super::conversation::{Content, Conversation, Message, Part, Tool};
use super::json::{Fields, Json, field};
use super::json_text::{self, Style};
use super::{Rendered, Unknown};
use crate::profile::MistralFormat;
use affinity_scan::Needles;
use turns::{Call, Piece, Turn, Turns};

/// All texts of control tokens that prompts or answers may hold.
const CONTROLS: [&str; 33] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
    "[ARGS]",
    "[CALL_ID]",
    "[AUDIO]",
    "[BEGIN_AUDIO]",
    "[TRANSCRIBE]",
    "[THINK]",
    "[/THINK]",
    "[STREAMING_PAD]",
    "[STREAMING_WORD]",
    "[NEXT_AUDIO_TEXT]",
    "[REPEAT_AUDIO_TEXT]",
    "[MODEL_SETTINGS]",
    "[/MODEL_SETTINGS]",
];

/// Template arguments that do more than reach the tokenizer.
const RESERVED: [&str; 5] = ["tools", "tokenize", "padding", "truncation", "max_length"];

/// The renderer of one model's format.
#[derive(Debug)]
pub(super) struct Mistral {
    format: MistralFormat,
    /// The reasoning effort of requests that ask for none.
    effort: Option<String>,
    controls: Needles,
}

impl Mistral {
    /// `defaults`: the engine's default template arguments, a JSON object or empty.
    ///
    /// # Errors
    /// When none of its prompts can be known: says why.
    pub fn new(format: &MistralFormat, defaults: &str) -> Result<Self, String> {
        let MistralFormat { version, tekken, .. } = *format;
        if !matches!((version, tekken), (1 | 2 | 3 | 7, _) | (11 | 13 | 15, true)) {
            let kind = if tekken { "tekken" } else { "SentencePiece" };
            return Err(format!("Mistral's format {version} with a {kind} vocabulary is not known"));
        }
        let defaults = if defaults.is_empty() { "{}" } else { defaults };
        let Some(Json::Map(defaults)) = Json::parse(defaults) else {
            return Err("the default template arguments are no JSON object".to_owned());
        };
        if let Some(name) = RESERVED.iter().find(|name| field(&defaults, name).is_some()) {
            return Err(format!("the default template arguments have {name:?}"));
        }
        // The first version has no others.
        let controls = if version == 1 { &["<unk>", "<s>", "</s>"] } else { CONTROLS.as_slice() };
        Ok(Self {
            format: format.clone(),
            effort: given(&defaults)
                .and_then(Json::as_str)
                .or(format.efforts.first().map(String::as_str))
                .map(str::to_owned),
            controls: Needles::new(controls.iter().copied()),
        })
    }

    /// A completions prompt, in which the tokenizer finds no control tokens.
    ///
    /// # Errors
    /// When it has the text of one: the same bytes would stand for other tokens.
    pub fn plain(&self, text: &str) -> Result<(), Unknown> {
        if self.controls.any_in(text.as_bytes()) { Err(Unknown::Feature("special_text")) } else { Ok(()) }
    }

    /// The text that a chat's tokens spell.
    ///
    /// # Errors
    /// When nothing can be known of it, or the engine would refuse it.
    pub fn render(&self, chat: &Conversation<'_>) -> Result<Rendered, Unknown> {
        let version = self.format.version;
        if chat.chat_template.is_some() {
            return Err(Unknown::Feature("chat_template"));
        }
        if RESERVED.iter().any(|name| field(&chat.kwargs, name).is_some()) {
            return Err(Unknown::Feature("chat_template_kwargs"));
        }
        let effort = self.effort(chat)?;
        let Turns { turns, system } = Turns::of(chat, version)?;
        let first_user = turns.iter().position(Turn::is_user).unwrap_or(0);
        let last_user = turns.iter().rposition(Turn::is_user).unwrap_or(0);
        let before = Before {
            system: system.unwrap_or_default(),
            system_at: if version == 1 { first_user } else { last_user },
            tools: chat.tools.as_deref().unwrap_or_default(),
            effort,
            tools_at: if version >= 13 { first_user } else { last_user },
        };
        let text = String::with_capacity(chat.messages.iter().map(|message| length(message) + 64).sum::<usize>() + 64);
        let mut out = Out { format: &self.format, controls: &self.controls, text, known: 0 };
        out.control("<s>");
        for (at, turn) in turns.iter().enumerate() {
            out.known = out.text.len();
            if let Err(why) = out.turn(turn, at, last_user, &before) {
                out.text.truncate(out.known);
                return Ok(Rendered { text: out.text, last: 0, cut: Some(why) });
            }
        }
        Ok(Rendered { text: out.text, last: chat.messages.last().map_or(0, length), cut: None })
    }

    /// The reasoning effort to print, if any.
    fn effort<'c>(&'c self, chat: &'c Conversation<'_>) -> Result<Option<&'c str>, Unknown> {
        if self.format.efforts.is_empty() {
            return Ok(None);
        }
        let asked = match (&chat.reasoning_effort, given(&chat.kwargs)) {
            (Some(effort), _) => Some(effort.as_ref()),
            (None, Some(effort)) => effort.as_str(),
            (None, None) => self.effort.as_deref(),
        };
        match asked.filter(|asked| self.format.efforts.iter().any(|known| known == asked)) {
            None => Err(Unknown::Template),
            known => Ok(known),
        }
    }
}

/// The reasoning effort among template arguments.
fn given<'f, 'a>(arguments: &'f Fields<'a>) -> Option<&'f Json<'a>> {
    // vLLM passes on neither nulls nor "auto".
    field(arguments, "reasoning_effort").filter(|effort| !effort.is_null() && effort.as_str() != Some("auto"))
}

/// What is said before a user's turn, and at which.
struct Before<'c> {
    system: String,
    system_at: usize,
    tools: &'c [Tool<'c>],
    effort: Option<&'c str>,
    tools_at: usize,
}

impl Before<'_> {
    /// What the system says in the turn at this place, and what is then between that and the turn's own words.
    fn system(&self, at: usize) -> [&str; 2] {
        if at == self.system_at && !self.system.is_empty() { [&self.system, "\n\n"] } else { [""; 2] }
    }
}

/// A prompt in the making.
struct Out<'m> {
    format: &'m MistralFormat,
    controls: &'m Needles,
    text: String,
    /// What is known whatever follows.
    known: usize,
}

impl Out<'_> {
    /// `last_user`: the last turn of a user's.
    fn turn(&mut self, turn: &Turn<'_>, at: usize, last_user: usize, before: &Before<'_>) -> Result<(), Unknown> {
        let version = self.format.version;
        match turn {
            Turn::System(said) => {
                self.control("[SYSTEM_PROMPT]");
                self.pieces(said)?;
                self.control("[/SYSTEM_PROMPT]");
            }
            Turn::User(said) if version == 1 => {
                let [system, between] = before.system(at);
                self.text(&["[INST] ", system, between, said, " [/INST]"])?;
            }
            Turn::User(said) => {
                self.question(at, before)?;
                let [system, between] = before.system(at);
                self.text(&[system, between, said])?;
                self.control("[/INST]");
            }
            Turn::Unknown { user: true, why } if version > 1 => {
                self.question(at, before)?;
                return Err(*why);
            }
            Turn::Assistant { content, calls, open } => {
                match version {
                    1 if !calls.is_empty() => return Err(Unknown::Feature("tool_calls")),
                    2 | 3 if !calls.is_empty() && !content.is_empty() => return Err(Unknown::Feature("tool_calls")),
                    // The second version forgets calls made before the last question.
                    2 if !calls.is_empty() && at < last_user => return Ok(()),
                    _ => {}
                }
                self.answer(content)?;
                self.calls(calls)?;
                if !open {
                    self.control("</s>");
                }
            }
            Turn::Tool { .. } if version == 1 => return Err(Unknown::Feature("tool_messages")),
            Turn::Tool { .. } if version == 2 && at < last_user => {}
            Turn::Tool { id, name, content } => self.result(id, *name, content)?,
            Turn::Unknown { why, .. } => return Err(*why),
        }
        Ok(())
    }

    /// What stands before what a user says.
    fn question(&mut self, at: usize, before: &Before<'_>) -> Result<(), Unknown> {
        if at == before.tools_at {
            self.tools(before.tools)?;
            self.settings(before.effort)?;
        }
        self.control("[INST]");
        self.known = self.text.len();
        Ok(())
    }

    fn control(&mut self, token: &str) {
        self.text.push_str(token);
    }

    /// Begins what is cut into tokens by itself; to be given to [`Out::end`] when it is written.
    fn begin(&mut self) -> usize {
        let from = self.text.len();
        if !self.format.tekken {
            // SentencePiece puts a space before whatever it is given.
            self.text.push(' ');
        }
        from
    }

    fn end(&mut self, from: usize) -> Result<(), Unknown> {
        let written = self.text.get(from..).unwrap_or_default();
        if self.controls.any_in(written.as_bytes()) {
            return Err(Unknown::Feature("special_text"));
        }
        if !self.format.tekken {
            if written == " " {
                // But of nothing it makes nothing. A space of the user's is a second one.
                self.text.truncate(from);
            } else if written.contains(BLANK) {
                let written = written.replace(BLANK, " ");
                self.text.truncate(from);
                self.text.push_str(&written);
            }
        }
        Ok(())
    }

    fn text(&mut self, parts: &[&str]) -> Result<(), Unknown> {
        let from = self.begin();
        self.text.extend(parts.iter().copied());
        self.end(from)
    }

    fn pieces(&mut self, pieces: &[Piece<'_>]) -> Result<(), Unknown> {
        let mut open = false;
        for piece in pieces {
            match piece {
                // The bytes would not tell where one ends and the other begins.
                Piece::Text(_) if open => return Err(Unknown::Feature("thinking")),
                Piece::Text(text) => self.text(&[text])?,
                Piece::Thought { .. } if self.format.version < 13 || !self.format.thinks => {
                    return Err(Unknown::Feature("thinking"));
                }
                Piece::Thought { text, closed } => {
                    self.control("[THINK]");
                    self.text(&[text])?;
                    if *closed {
                        self.control("[/THINK]");
                    }
                    open = !closed;
                }
            }
        }
        Ok(())
    }

    /// What an assistant said: without the spaces at its end, unless there are thoughts in it.
    fn answer(&mut self, content: &[Piece<'_>]) -> Result<(), Unknown> {
        match content {
            [Piece::Text(text)] if self.format.version > 1 => self.text(&[text.trim_end_matches(' ')]),
            content => self.pieces(content),
        }
    }

    fn tools(&mut self, tools: &[Tool<'_>]) -> Result<(), Unknown> {
        if tools.is_empty() {
            return Ok(());
        }
        self.control("[AVAILABLE_TOOLS]");
        let from = self.begin();
        let mut before = "[";
        for tool in tools {
            self.text.push_str(before);
            before = ", ";
            self.text.push_str(r#"{"type": "function", "function": {"name": "#);
            json_text::write_text(&tool.name, false, &mut self.text);
            self.text.push_str(r#", "description": "#);
            json_text::write_text(tool.description.as_deref().unwrap_or_default(), false, &mut self.text);
            self.text.push_str(r#", "parameters": "#);
            match &tool.parameters {
                Some(parameters) => json_text::write(parameters, &Style::PLAIN, &mut self.text),
                None => self.text.push_str("{}"),
            }
            self.text.push_str("}}");
        }
        self.text.push(']');
        self.end(from)?;
        self.control("[/AVAILABLE_TOOLS]");
        Ok(())
    }

    fn settings(&mut self, effort: Option<&str>) -> Result<(), Unknown> {
        let Some(effort) = effort else { return Ok(()) };
        self.control("[MODEL_SETTINGS]");
        self.text(&[r#"{"reasoning_effort": ""#, effort, r#""}"#])?;
        self.control("[/MODEL_SETTINGS]");
        Ok(())
    }

    fn calls(&mut self, calls: &[Call<'_>]) -> Result<(), Unknown> {
        if self.format.version >= 11 {
            return calls.iter().try_for_each(|call| self.call(call));
        }
        if calls.is_empty() {
            return Ok(());
        }
        self.control("[TOOL_CALLS]");
        let from = self.begin();
        let mut before = "[";
        for call in calls {
            self.text.push_str(before);
            before = ", ";
            self.text.push_str(r#"{"name": "#);
            json_text::write_text(call.name, false, &mut self.text);
            self.text.push_str(r#", "arguments": "#);
            json_text::write(&call.arguments, &Style::PLAIN, &mut self.text);
            if self.format.version > 2 && !call.id.is_empty() && call.id != "null" {
                self.text.push_str(r#", "id": "#);
                json_text::write_text(call.id, false, &mut self.text);
            }
            self.text.push('}');
        }
        self.text.push(']');
        self.end(from)
    }

    /// From version 11 on.
    fn call(&mut self, call: &Call<'_>) -> Result<(), Unknown> {
        self.control("[TOOL_CALLS]");
        self.text(&[call.name])?;
        if self.format.version == 11 {
            self.control("[CALL_ID]");
            self.text(&[call.id])?;
        }
        self.control("[ARGS]");
        let from = self.begin();
        json_text::write(&call.arguments, &Style::PLAIN, &mut self.text);
        self.end(from)
    }

    /// A tool's answer.
    fn result(&mut self, id: &str, name: Option<&str>, content: &str) -> Result<(), Unknown> {
        self.control("[TOOL_RESULTS]");
        match self.format.version {
            2 | 3 => {
                let content = match Json::loads(content)? {
                    _ if content.is_empty() => Json::Map(Fields::new()),
                    Some(json) => json,
                    None => Json::Text(content.into()),
                };
                let from = self.begin();
                if self.format.version == 2 {
                    self.text.push_str(r#"[{"name": "#);
                    match name {
                        Some(name) => json_text::write_text(name, false, &mut self.text),
                        None => self.text.push_str("null"),
                    }
                    self.text.push_str(r#", "content": "#);
                    json_text::write(&content, &Style::PLAIN, &mut self.text);
                    self.text.push_str("}]");
                } else {
                    self.text.push_str(r#"{"content": "#);
                    json_text::write(&content, &Style::PLAIN, &mut self.text);
                    self.text.push_str(r#", "call_id": "#);
                    json_text::write_text(id, false, &mut self.text);
                    self.text.push('}');
                }
                self.end(from)?;
            }
            7 | 11 => {
                self.text(&[id])?;
                self.control("[TOOL_CONTENT]");
                self.text(&[content])?;
            }
            _ => self.text(&[content])?,
        }
        self.control("[/TOOL_RESULTS]");
        Ok(())
    }
}

/// SentencePiece's sign for a space: written by a user, it is one.
const BLANK: char = '\u{2581}';

/// Bytes of a message's content.
fn length(message: &Message<'_>) -> usize {
    match &message.content {
        Content::Absent => 0,
        Content::Text(text) => text.len(),
        Content::Parts(parts) => parts
            .iter()
            .map(|part| match part {
                Part::Text { text, .. } | Part::Other { text, .. } | Part::Thought { text, .. } => text.len(),
                Part::Media => 0,
            })
            .sum(),
    }
}
