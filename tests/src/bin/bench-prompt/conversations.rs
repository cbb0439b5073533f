//! The chats: their bodies, and the prompts that these must become, put together by hand.
//!
//! A gateway sees again: the ways in which its tenants talk (how many messages, by whom), their system prompts and
//! their tools. All else that is said in a chat is new.

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use serde_json::{Value, json};
use std::io::{self, Write};
use warmpath_tests::load::prose;

use crate::measure::{Case, Chat};

/// What a chat template makes of them: tests/fixtures/bench/chat_template.jinja.
pub const TEMPLATE: &str = include_str!("../../../fixtures/bench/chat_template.jinja");
/// Tenants of a gateway, each with a way of talking.
const TENANTS: u64 = 3;
/// Messages behind the system message, by tenant.
const MESSAGES: [usize; TENANTS as usize] = [3, 9, 15];
/// Calls of tools, by tenant.
const CALLS: [usize; TENANTS as usize] = [2, 4, 7];
/// Chats asked before: some of each tenant.
const BEFORE: u64 = 2 * TENANTS;
/// The system message's share of all text.
const SYSTEM_SHARE: f64 = 0.2;
/// What a body is at most shorter than asked for, in bytes.
const SLACK: usize = 40;
const TOOLS: usize = 20;

/// What there is in a chat beside texts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Texts,
    /// Texts, of which some end with a line break.
    LineBreaks,
    /// 20 tools, in no chat before.
    NewTools,
    /// 20 tools, the tenant's.
    KnownTools,
    /// Calls of these, and their results.
    Calls,
}

/// Chats with bodies of about `bytes` bytes, of which `count` are timed. Equal arguments give equal chats.
pub fn case(kind: Kind, bytes: usize, count: u64) -> Result<Case> {
    let chats = |from, to| (from..to).map(|number| chat(kind, number, bytes)).collect::<Result<Vec<_>>>();
    Ok(Case { template: TEMPLATE.to_owned(), before: chats(0, BEFORE)?, timed: chats(BEFORE, BEFORE + count)? })
}

fn chat(kind: Kind, number: u64, bytes: usize) -> Result<Chat> {
    let mut texts = bytes;
    // Tools, JSON's own bytes and escapes come on top of the texts: approach the size from above.
    loop {
        let conversation = Conversation::new(kind, number, texts)?;
        let body = conversation.body().to_string();
        let over = body.len().saturating_sub(bytes);
        if over == 0 {
            return Ok(Chat { body, prompt: conversation.prompt()? });
        }
        texts = texts.checked_sub(over.max(SLACK)).context("no room for texts")?;
    }
}

struct Conversation {
    system: String,
    messages: Vec<Message>,
    tools: Vec<Value>,
}

#[derive(Default)]
struct Message {
    role: &'static str,
    content: String,
    /// Name and arguments.
    call: Option<(String, Value)>,
}

impl Conversation {
    /// `bytes`: of all texts together.
    fn new(kind: Kind, number: u64, bytes: usize) -> Result<Self> {
        let tenant = number % TENANTS;
        // The tenant's for those that all its chats have in common, so that no seed is used twice.
        let (mut of_tenant, mut random) = (StdRng::seed_from_u64(u64::MAX - tenant), StdRng::seed_from_u64(number));
        let system = text(&mut of_tenant, (bytes as f64 * SYSTEM_SHARE) as usize);
        let tools = match kind {
            Kind::Texts | Kind::LineBreaks => Vec::new(),
            Kind::NewTools => tools(&mut random),
            Kind::KnownTools | Kind::Calls => tools(&mut of_tenant),
        };
        let roles = roles(kind, tenant as usize);
        let weights: Vec<f64> = roles.iter().map(|_| random.random_range(0.5..1.5)).collect();
        let part = bytes as f64 * (1.0 - SYSTEM_SHARE) / weights.iter().sum::<f64>();
        let turns = roles.into_iter().zip(weights);
        let messages = turns.map(|((role, calls), weight)| {
            let size = (part * weight) as usize;
            if !calls {
                let mut content = text(&mut random, size);
                if kind == Kind::LineBreaks && random.random_ratio(1, 4) {
                    content.push('\n');
                }
                return Ok(Message { role, content, call: None });
            }
            // Of what a call says, most is in its arguments.
            let tool = tools.choose(&mut random).and_then(|tool| tool["function"]["name"].as_str());
            let arguments = json!({
                "path": format!("src/{}.rs", random.random::<u32>()),
                "lines": [random.random_range(1..500), random.random_range(500..900)],
                "text": text(&mut random, size),
                "options": {"overwrite": true, "backup": null, "certainty": 0.75},
            });
            let content = if tenant == 0 { text(&mut random, size / 4) } else { String::new() };
            Ok(Message { role, content, call: Some((tool.context("a call without tools")?.to_owned(), arguments)) })
        });
        Ok(Self { system, messages: messages.collect::<Result<_>>()?, tools })
    }

    fn body(&self) -> Value {
        let mut messages = vec![json!({"role": "system", "content": self.system})];
        for (number, Message { role, content, call }) in self.messages.iter().enumerate() {
            let id = |number: usize| format!("call_{number}");
            messages.push(match call {
                Some((name, arguments)) => {
                    let function = json!({"name": name, "arguments": arguments.to_string()});
                    let calls = json!([{"id": id(number), "type": "function", "function": function}]);
                    json!({"role": role, "content": content, "tool_calls": calls})
                }
                None if *role == "tool" => {
                    json!({"role": role, "tool_call_id": id(number.saturating_sub(1)), "content": content})
                }
                None => json!({"role": role, "content": content}),
            });
        }
        let mut body = json!({"model": "bench", "messages": messages, "temperature": 0.7, "max_tokens": 256});
        if !self.tools.is_empty() {
            body["tools"] = json!(self.tools);
        }
        body
    }

    /// What the template prints.
    fn prompt(&self) -> Result<String> {
        let mut text = format!("<|im_start|>system\n{}", self.system);
        if !self.tools.is_empty() {
            text += "\n\n# Tools\n\nYou can call one or more functions to help with what the user asks.\n\nThe functions \
                     you can call are described within <tools></tools>, one JSON object per line:\n<tools>";
            for tool in &self.tools {
                text += "\n";
                text += &python_json(tool)?;
            }
            text += "\n</tools>\n\nFor each call, write a JSON object with the function's name and its arguments within \
                     <tool_call></tool_call>:\n<tool_call>\n{\"name\": <name-of-the-function>, \"arguments\": \
                     <arguments-as-a-json-object>}\n</tool_call>";
        }
        text += "<|im_end|>\n";
        for Message { role, content, call } in &self.messages {
            text += &match call {
                // No two of these follow one another.
                None if *role == "tool" => {
                    format!("<|im_start|>user\n<tool_response>\n{content}\n</tool_response><|im_end|>\n")
                }
                None => format!("<|im_start|>{role}\n{content}<|im_end|>\n"),
                Some((name, arguments)) => {
                    let line = if content.is_empty() { "" } else { "\n" };
                    let arguments = python_json(arguments)?;
                    format!(
                        "<|im_start|>{role}\n{content}{line}<tool_call>\n{{\"name\": \"{name}\", \"arguments\": \
                         {arguments}}}\n</tool_call><|im_end|>\n"
                    )
                }
            };
        }
        Ok(text + "<|im_start|>assistant\n")
    }
}

/// Who speaks in turn, and whether by calling a tool.
fn roles(kind: Kind, tenant: usize) -> Vec<(&'static str, bool)> {
    if kind == Kind::Calls {
        let mut roles = vec![("user", false), ("assistant", false), ("user", false)];
        roles.extend([("assistant", true), ("tool", false)].repeat(CALLS[tenant]));
        return roles;
    }
    (0..MESSAGES[tenant]).map(|turn| (if turn % 2 == 0 { "user" } else { "assistant" }, false)).collect()
}

/// What is said: without whitespace around it.
fn text(random: &mut StdRng, bytes: usize) -> String {
    prose(random, bytes).trim().to_owned()
}

/// About 15 KB of JSON.
fn tools(random: &mut StdRng) -> Vec<Value> {
    let tool = |number: usize| {
        let (own, size) = (random.random::<u16>(), random.random_range(150..250));
        let parameters = json!({
            "type": "object",
            "properties": {
                "path": {"type": "string", "description": text(random, 60)},
                "lines": {"type": "array", "items": {"type": "integer", "minimum": 1}, "maxItems": 2},
                "text": {"type": ["string", "null"], "description": text(random, 60), "default": null},
                "mode": {"type": "string", "enum": ["read", "append", "größer", "<b>&'quoted'</b>"], "default": "read"},
                "options": {"type": "object", "properties": {"certainty": {"type": "number", "maximum": 1.0}}},
            },
            "required": ["path", "text"],
            "additionalProperties": false,
        });
        let description = text(random, size);
        let function =
            json!({"name": format!("tool_{own}_{number}"), "description": description, "parameters": parameters});
        json!({"type": "function", "function": function})
    };
    (0..TOOLS).map(tool).collect()
}

/// As Python's `json.dumps(value, ensure_ascii=False)` writes it.
fn python_json(value: &Value) -> Result<String> {
    let mut bytes = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut bytes, Spaced))?;
    Ok(String::from_utf8(bytes)?)
}

/// A space behind commas and colons.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}
