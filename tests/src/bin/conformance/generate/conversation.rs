//! Messages.

use rand::Rng;
use rand::seq::IndexedRandom;
use serde_json::{Map, Value, json};

use super::Generator;

/// What a conversation is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// User and assistant in turns.
    Plain,
    /// With calls of tools and their results.
    Tools,
    /// The last message is the assistant's, to be continued.
    Continued,
    /// Roles in any order.
    Odd,
}

impl Generator<'_> {
    /// A conversation's messages.
    pub fn messages(&mut self, shape: Shape) -> Vec<Value> {
        let mut messages = Vec::new();
        let (first, second) = if self.hints.mentions("System role not supported") { (0.05, 0.0) } else { (0.5, 0.02) };
        if self.rng.random_bool(first) {
            messages.push(self.system());
        }
        if self.rng.random_bool(second) {
            messages.push(self.system());
        }
        match shape {
            Shape::Plain => {
                for _ in 0..self.pick(&[0, 0, 0, 0, 1, 1, 1, 2, 3, 12]) {
                    messages.push(self.user());
                    messages.push(self.assistant());
                }
                messages.push(self.user());
            }
            Shape::Tools => {
                for _ in 0..self.pick(&[1, 1, 1, 2]) {
                    messages.push(self.user());
                    for _ in 0..self.pick(&[1, 1, 1, 2]) {
                        self.calls_and_results(&mut messages);
                    }
                    if self.rng.random_bool(0.5) {
                        messages.push(self.assistant());
                    }
                }
                if messages.last().is_some_and(|last| last["role"] == "assistant") || self.rng.random_bool(0.2) {
                    messages.push(self.user());
                }
            }
            Shape::Continued => {
                for _ in 0..self.pick(&[0, 0, 1]) {
                    messages.push(self.user());
                    messages.push(self.assistant());
                }
                if self.rng.random_bool(0.15) {
                    messages.push(self.user());
                    self.calls_and_results(&mut messages);
                } else {
                    messages.push(self.user());
                }
                messages.push(self.assistant());
            }
            Shape::Odd => {
                for _ in 0..self.rng.random_range(1..6) {
                    match self.rng.random_range(0..10) {
                        0..3 => messages.push(self.user()),
                        3..6 => messages.push(self.assistant()),
                        6 => messages.push(self.system()),
                        7 => {
                            let id = self.call_id("f", 0);
                            messages.push(self.result(&id, "f"));
                        }
                        8 => self.calls_and_results(&mut messages),
                        _ => messages.push(self.stranger()),
                    }
                }
            }
        }
        messages
    }

    fn system(&mut self) -> Value {
        let role = if self.rng.random_bool(0.12) { "developer" } else { "system" };
        let content = self.content();
        let mut message = message(role, content);
        if role == "developer" && self.rng.random_bool(0.2) {
            let tool = self.tool(0);
            message.insert("tools".to_owned(), json!([tool]));
        }
        self.dressed(message)
    }

    fn user(&mut self) -> Value {
        let content = self.content();
        let user = message("user", content);
        self.dressed(user)
    }

    /// A role of the template's own, or one that nobody knows.
    fn stranger(&mut self) -> Value {
        const ROLES: &[&str] = &["function", "developer", "ipython", "observation", "context", "documents", "critic"];
        let literal = self.literal().filter(|_| self.rng.random_bool(0.5));
        let role = literal.unwrap_or_else(|| self.pick(ROLES).to_owned());
        let content = self.content();
        let stranger = message(&role, content);
        self.dressed(stranger)
    }

    /// Without calls.
    fn assistant(&mut self) -> Value {
        let content = if self.rng.random_bool(0.06) { Value::Null } else { self.content() };
        let mut assistant = message("assistant", content);
        self.reason(&mut assistant);
        if self.rng.random_bool(0.04) {
            assistant.insert("tool_calls".to_owned(), self.pick_value(&[json!([]), Value::Null]));
        }
        if self.rng.random_bool(0.06) {
            // As clients send answers back: with all that was in them.
            for name in ["refusal", "annotations", "audio", "function_call", "reasoning", "tool_calls"] {
                assistant.entry(name).or_insert(Value::Null);
            }
        }
        self.dressed(assistant)
    }

    /// An assistant's message with calls of tools, and mostly what came of them.
    fn calls_and_results(&mut self, messages: &mut Vec<Value>) {
        let count = self.pick(&[1, 1, 1, 2, 3]);
        let calls: Vec<(String, String)> = (0..count)
            .map(|number| {
                let name = self.called_name();
                (self.call_id(&name, number), name)
            })
            .collect();
        let mut assistant = match self.rng.random_range(0..10) {
            0..4 => message("assistant", Value::Null),
            4..6 => message("assistant", "".into()),
            6..9 => {
                let content = self.content();
                message("assistant", content)
            }
            _ => Map::from_iter([("role".to_owned(), "assistant".into())]),
        };
        self.reason(&mut assistant);
        let calls_of_tools = calls.iter().enumerate().map(|(number, (id, name))| self.call(id, name, number));
        let calls_of_tools: Value = calls_of_tools.collect();
        assistant.insert("tool_calls".to_owned(), calls_of_tools);
        messages.push(self.dressed(assistant));
        if self.rng.random_bool(0.05) {
            return;
        }
        let mut order: Vec<usize> = (0..calls.len()).collect();
        if self.rng.random_bool(0.1) {
            order.reverse();
        }
        for number in order {
            let (id, name) = &calls[number];
            messages.push(self.result(id, name));
        }
    }

    fn result(&mut self, id: &str, name: &str) -> Value {
        let content = match self.rng.random_range(0..10) {
            0..4 => Value::Object(self.object(2)).to_string().into(),
            4 => serde_json::to_string_pretty(&self.value(2)).unwrap_or_default().into(),
            _ => self.content(),
        };
        let mut result = message("tool", content);
        if self.rng.random_bool(0.93) {
            result.insert("tool_call_id".to_owned(), id.into());
        }
        if self.rng.random_bool(0.4) {
            result.insert("name".to_owned(), name.into());
        }
        self.dressed(result)
    }

    fn reason(&mut self, assistant: &mut Map<String, Value>) {
        let likely = if self.hints.mentions("reasoning") || self.hints.mentions("think") { 0.5 } else { 0.1 };
        if self.rng.random_bool(likely) {
            let key = self.pick(&["reasoning_content", "reasoning_content", "reasoning"]);
            let reasoning = if self.rng.random_bool(0.05) { Value::Null } else { self.text().into() };
            assistant.insert(key.to_owned(), reasoning);
        }
        if self.rng.random_bool(0.03) {
            assistant.insert("reasoning".to_owned(), self.text().into());
        }
    }

    /// Text, or a list of texts.
    fn content(&mut self) -> Value {
        if self.rng.random_bool(0.8) {
            return self.text().into();
        }
        let count = self.pick(&[1, 1, 2, 2, 3, 0]);
        (0..count).map(|_| self.part()).collect()
    }

    fn part(&mut self) -> Value {
        if self.rng.random_bool(0.02) {
            return self.text().into();
        }
        let kind = if self.rng.random_bool(0.95) {
            "text"
        } else {
            self.pick(&["input_text", "output_text", "refusal", "thinking", "image_url"])
        };
        let text = self.text();
        let mut part = match kind {
            "refusal" | "thinking" => json!({"type": kind, kind: text}),
            "image_url" => json!({"type": kind, kind: {"url": "data:image/png;base64,AAAA"}}),
            _ => json!({"type": kind, "text": text}),
        };
        if self.rng.random_bool(0.15) {
            part["cache_control"] = json!({"type": "ephemeral"});
        }
        if self.rng.random_bool(0.05) {
            let key = self.word();
            part[key] = self.value(1);
        }
        part
    }

    /// A name sometimes, and keys that the template asks for.
    fn dressed(&mut self, mut message: Map<String, Value>) -> Value {
        if self.rng.random_bool(0.06) {
            let name = self.pick(&["alice", "Bob Smith", "ユーザー", "", "f"]);
            message.entry("name").or_insert_with(|| name.into());
        }
        if self.rng.random_bool(0.06) {
            let key = self.hints.keys.choose(&mut self.rng).cloned().unwrap_or_default();
            let value = match key.as_str() {
                // Their types are given.
                "tool_calls" | "tools" => Value::Null,
                "name" | "reasoning" | "reasoning_content" | "tool_call_id" | "task" => self.text().into(),
                _ if self.rng.random_bool(0.5) => true.into(),
                _ => self.value(1),
            };
            message.entry(key).or_insert(value);
        }
        self.shuffled(message)
    }

    fn pick_value(&mut self, from: &[Value]) -> Value {
        from.choose(&mut self.rng).cloned().unwrap_or_default()
    }
}

fn message(role: &str, content: Value) -> Map<String, Value> {
    Map::from_iter([("role".to_owned(), role.into()), ("content".to_owned(), content)])
}
