//! Everything in a body beside its messages.

use rand::Rng;
use rand::seq::IndexedRandom;
use serde_json::{Map, Value, json};

use super::Generator;
use super::conversation::Shape;
use super::values::number;

/// Names that templates of several families know; more come from the template itself.
const KNOWN_KWARGS: &[&str] =
    &["enable_thinking", "thinking", "thinking_mode", "reasoning_effort", "date_string", "builtin_tools", "custom"];

impl Generator<'_> {
    /// A whole body.
    pub fn body(&mut self) -> Map<String, Value> {
        let shape = self.shape();
        let mut body = Map::from_iter([("model".to_owned(), "tiny".into())]);
        let likely = match shape {
            // The template of a pair that serves requests with tools.
            _ if self.hints.is_for_tools => 0.97,
            Shape::Tools => 0.85,
            _ => 0.2,
        };
        let tools = self.rng.random_bool(likely);
        let tools = tools.then(|| self.offered_tools());
        body.insert("messages".to_owned(), self.messages(shape).into());
        if let Some(tools) = tools {
            body.insert("tools".to_owned(), tools);
            self.choose_tool(&mut body);
        }
        if shape == Shape::Continued && self.rng.random_bool(0.9) {
            body.insert("continue_final_message".to_owned(), true.into());
            if self.rng.random_bool(0.97) {
                body.insert("add_generation_prompt".to_owned(), false.into());
            }
        } else if self.rng.random_bool(0.15) {
            body.insert("add_generation_prompt".to_owned(), self.rng.random_bool(0.2).into());
        }
        self.add_kwargs(&mut body);
        let likely = if self.hints.mentions("reasoning_effort") { 0.35 } else { 0.12 };
        if self.rng.random_bool(likely) {
            let effort = self.pick(&["none", "minimal", "low", "medium", "high", "high", "xhigh", "max"]);
            body.insert("reasoning_effort".to_owned(), effort.into());
        }
        if self.rng.random_bool(if self.hints.mentions("documents") { 0.4 } else { 0.05 }) {
            body.insert("documents".to_owned(), self.documents());
        }
        self.add_others(&mut body);
        match self.shuffled(body) {
            Value::Object(body) => body,
            _ => Map::new(),
        }
    }

    fn shape(&mut self) -> Shape {
        // Gemma 2 and its like know user and assistant only, in turns.
        let simple = self.hints.mentions("must alternate") && !self.hints.mentions("tool");
        match self.rng.random_range(if simple { 72 } else { 0 }..if simple { 175 } else { 100 }) {
            38..75 => Shape::Tools,
            75..88 => Shape::Continued,
            88..100 => Shape::Odd,
            _ => Shape::Plain,
        }
    }

    fn choose_tool(&mut self, body: &mut Map<String, Value>) {
        let choice = match self.rng.random_range(0..20) {
            0..2 => "auto".into(),
            2..4 => "none".into(),
            4 => "required".into(),
            5 => json!({"type": "function", "function": {"name": self.tools.first()}}),
            6 if self.rng.random_bool(0.2) => Value::Null,
            _ => return,
        };
        body.insert("tool_choice".to_owned(), choice);
    }

    fn add_kwargs(&mut self, body: &mut Map<String, Value>) {
        if !self.hints.needed.is_empty() && self.rng.random_bool(0.9) {
            let kwargs: Map<String, Value> =
                self.hints.needed.iter().map(|name| (name.clone(), self.text().into())).collect();
            body.insert("chat_template_kwargs".to_owned(), kwargs.into());
            return;
        }
        if !self.rng.random_bool(if self.hints.variables.is_empty() { 0.2 } else { 0.5 }) {
            return;
        }
        let kwargs: Map<String, Value> =
            (0..self.pick(&[0, 1, 1, 2, 3])).map(|_| (self.kwarg_name(), self.kwarg())).collect();
        body.insert("chat_template_kwargs".to_owned(), kwargs.into());
    }

    fn kwarg_name(&mut self) -> String {
        let own = self.hints.variables.choose(&mut self.rng).cloned().filter(|_| self.rng.random_bool(0.75));
        own.unwrap_or_else(|| self.pick(KNOWN_KWARGS).to_owned())
    }

    fn kwarg(&mut self) -> Value {
        match self.rng.random_range(0..20) {
            0..5 => true.into(),
            5..10 => false.into(),
            10 => Value::Null,
            11..14 => {
                self.pick(&["low", "high", "on", "off", "enabled", "disabled", "chat", "thinking", "auto", ""]).into()
            }
            14..16 => self.literal().unwrap_or_default().into(),
            16..18 => number(self.pick(&["0", "1", "-1", "1.0", "0.5", "-3", "512", "1e3", "100000"])),
            18 => self.text().into(),
            _ => self.value(2),
        }
    }

    fn documents(&mut self) -> Value {
        let mut document = |number: usize| {
            let mut document = json!({"title": self.text(), "text": self.text()});
            if self.rng.random_bool(0.3) {
                document["doc_id"] = number.to_string().into();
            }
            if self.rng.random_bool(0.1) {
                document = json!({"contents": self.text(), "snippet": ""});
            }
            document
        };
        let documents: Vec<Value> = (0..3).map(&mut document).collect();
        let count = self.pick(&[0, 1, 2, 3]);
        documents.into_iter().take(count).collect()
    }

    /// What changes the answer, not the prompt.
    fn add_others(&mut self, body: &mut Map<String, Value>) {
        for (name, value) in [
            ("n", json!(2)),
            ("temperature", number("0.70")),
            ("top_p", json!(1)),
            ("max_tokens", json!(16)),
            ("max_completion_tokens", json!(16)),
            ("stream", json!(true)),
            ("seed", json!(7)),
            ("stop", json!(["\n\n"])),
            ("user", json!("someone")),
            ("logprobs", json!(true)),
            ("parallel_tool_calls", json!(true)),
            ("cache_salt", json!("sälz")),
            ("metadata", json!({"messages": [], "tools": 1})),
            ("priority", json!(0)),
            ("add_special_tokens", json!(false)),
            ("echo", json!(true)),
        ] {
            if self.rng.random_bool(0.06) {
                body.insert(name.to_owned(), value);
            }
        }
        if self.rng.random_bool(0.04) {
            // Some clients write all they know.
            for name in
                ["tools", "tool_choice", "documents", "chat_template_kwargs", "reasoning_effort", "stop", "user"]
            {
                body.entry(name).or_insert(Value::Null);
            }
        }
    }
}
