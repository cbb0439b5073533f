//! Tools, and calls of them.

use rand::Rng;
use rand::seq::IndexedRandom;
use serde_json::{Map, Value, json};

use super::Generator;

impl Generator<'_> {
    /// The tools a request offers; their names are kept for calls.
    pub fn offered_tools(&mut self) -> Value {
        (0..self.pick(&[1, 1, 1, 2, 3])).map(|number| self.tool(number)).collect()
    }

    /// One tool.
    pub fn tool(&mut self, number: usize) -> Value {
        const NAMES: &[&str] = &[
            "get_weather",
            "search",
            "python",
            "brave_search",
            "code_interpreter",
            "a.b-c",
            "計算",
            "get_current_time",
        ];
        let mut name = self.pick(NAMES).to_owned();
        if self.tools.contains(&name) {
            name.push_str(&number.to_string());
        }
        self.tools.push(name.clone());
        let mut function = Map::from_iter([("name".to_owned(), Value::from(name))]);
        match self.rng.random_range(0..20) {
            0 => {}
            1 => drop(function.insert("description".to_owned(), Value::Null)),
            _ => drop(function.insert("description".to_owned(), self.text().into())),
        }
        match self.rng.random_range(0..20) {
            0 => {}
            1 => drop(function.insert("parameters".to_owned(), Value::Null)),
            _ => drop(function.insert("parameters".to_owned(), self.parameters())),
        }
        if self.rng.random_bool(0.12) {
            function.insert("strict".to_owned(), self.rng.random_bool(0.7).into());
        }
        if self.rng.random_bool(0.05) {
            function.insert("return".to_owned(), self.parameters());
        }
        let function = self.shuffled(function);
        let mut tool = Map::from_iter([("type".to_owned(), "function".into()), ("function".to_owned(), function)]);
        if self.rng.random_bool(0.03) {
            tool.remove("type");
        }
        if self.rng.random_bool(0.03) {
            tool.insert("defer_loading".to_owned(), self.rng.random_bool(0.5).into());
        }
        if self.rng.random_bool(0.05) {
            let (key, value) = (self.word(), self.value(1));
            tool.insert(key, value);
        }
        self.shuffled(tool)
    }

    /// The name of a tool that is there, or of one that is not.
    pub fn called_name(&mut self) -> String {
        match self.tools.choose(&mut self.rng).cloned().filter(|_| self.rng.random_bool(0.9)) {
            Some(name) => name,
            None => self.pick(&["get_weather", "python", "unknown_tool", "関数"]).to_owned(),
        }
    }

    /// Ids as various engines and clients make them.
    pub fn call_id(&mut self, name: &str, number: usize) -> String {
        // Mistral's templates take no others.
        let strict = self.hints.mentions("length 9") && self.rng.random_bool(0.98);
        match if strict { 0 } else { self.rng.random_range(0..8) } {
            0..4 => (0..9).map(|_| char::from(self.rng.sample(rand::distr::Alphanumeric))).collect(),
            4..6 => format!("call_{number}"),
            6 => format!("functions.{name}:{number}"),
            _ => format!("chatcmpl-tool-{:032x}", self.rng.random::<u128>()),
        }
    }

    /// One call.
    pub fn call(&mut self, id: &str, name: &str, number: usize) -> Value {
        let arguments = self.arguments();
        let mut function = Map::from_iter([("name".to_owned(), name.into()), ("arguments".to_owned(), arguments)]);
        if self.rng.random_bool(0.1) {
            let arguments = function.remove("arguments").unwrap_or_default();
            let name = function.remove("name").unwrap_or_default();
            function.insert("arguments".to_owned(), arguments);
            function.insert("name".to_owned(), name);
        }
        let mut call = json!({"id": id, "type": "function", "function": function});
        if self.rng.random_bool(0.05) {
            call["index"] = number.into();
        }
        match call {
            Value::Object(call) => self.shuffled(call),
            other => other,
        }
    }

    /// Mostly the text of a JSON object.
    fn arguments(&mut self) -> Value {
        const ODD: &[&str] = &[
            "",
            "{}",
            "{",
            "null",
            "[]",
            "[1]",
            "\"text\"",
            "42",
            "not json",
            "{\"a\": 1,}",
            "{'a': 1}",
            " {\"a\": 1} ",
            "{\"a\": NaN}",
            "{\"a\": -Infinity, \"b\": 1, \"a\": 2}",
        ];
        match self.rng.random_range(0..40) {
            0..4 => self.pick(ODD).into(),
            // No engine takes an object where a text should be.
            4 if self.rng.random_bool(0.2) => Value::Object(self.object(1)),
            5..7 => json!({"code": "print(1)\n", "n": 1.0}).to_string().into(),
            _ => {
                let style = crate::body::Style::random(&mut self.rng);
                style.write(&Value::Object(self.object(3))).into()
            }
        }
    }
}
