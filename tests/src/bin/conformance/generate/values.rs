//! JSON values of any shape, and JSON schemas.

use rand::Rng;
use serde_json::{Map, Value, json};

use super::Generator;

/// Numbers as people and programs write them; what Python's `json` makes of them is not always what was written.
const NUMBERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "42",
    "1.0",
    "1.50",
    "0.1",
    "-0",
    "-0.0",
    "1e3",
    "1E5",
    "1e-7",
    "1.5e+10",
    "1e15",
    "1e16",
    "1e22",
    "123456789.125",
    "1e100",
    "5e-324",
    "0.1000000000000000055511151231257827",
    "3.141592653589793238462643",
    "2147483648",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551616",
    "-9223372036854775809",
    "123456789012345678901234567890",
    "100000000000000000000.0",
    "0.00001",
    "0.0001",
];

/// A number as it is written.
pub fn number(written: &str) -> Value {
    serde_json::from_str(written).unwrap_or(Value::Null)
}

impl Generator<'_> {
    /// Any value, at most `depth` deep.
    pub fn value(&mut self, depth: usize) -> Value {
        match self.rng.random_range(0..if depth == 0 { 14 } else { 20 }) {
            0 => Value::Null,
            1 => true.into(),
            2 => false.into(),
            3..7 => number(self.pick(NUMBERS)),
            7..14 => self.text().into(),
            14..17 => {
                let length = self.rng.random_range(0..4);
                (0..length).map(|_| self.value(depth - 1)).collect()
            }
            _ => Value::Object(self.object(depth - 1)),
        }
    }

    /// An object of at most five fields, each at most `depth` deep.
    pub fn object(&mut self, depth: usize) -> Map<String, Value> {
        let length = self.rng.random_range(0..5);
        (0..length).map(|_| (self.key(), self.value(depth))).collect()
    }

    fn key(&mut self) -> String {
        const KEYS: &[&str] =
            &["items", "keys", "values", "get", "b", "a", "Z", "", "with space", "ü", "<&>'\"", "0", "type", "name"];
        if self.rng.random_bool(0.6) { self.word() } else { self.pick(KEYS).to_owned() }
    }

    /// The schema of a tool's parameters.
    pub fn parameters(&mut self) -> Value {
        match self.rng.random_range(0..12) {
            0 => json!({}),
            1 => json!({"type": "object", "properties": {}}),
            2 => json!({"type": "object", "properties": {}, "required": []}),
            _ => self.object_schema(3),
        }
    }

    fn object_schema(&mut self, depth: usize) -> Value {
        let names: Vec<String> = (0..self.rng.random_range(1..4)).map(|_| self.word()).collect();
        let properties: Map<String, Value> = names.iter().map(|name| (name.clone(), self.schema(depth - 1))).collect();
        let mut schema = Map::new();
        schema.insert("type".to_owned(), "object".into());
        schema.insert("properties".to_owned(), properties.into());
        if self.rng.random_bool(0.7) {
            let mut required: Vec<&String> = names.iter().filter(|_| self.rng.random_bool(0.5)).collect();
            required.dedup();
            schema.insert("required".to_owned(), json!(required));
        }
        if self.rng.random_bool(0.2) {
            schema.insert("additionalProperties".to_owned(), self.rng.random_bool(0.3).into());
        }
        if self.rng.random_bool(0.1) {
            schema.insert("$defs".to_owned(), json!({"T": {"type": "string", "enum": ["a", "b"]}}));
        }
        self.garnish(&mut schema);
        self.shuffled(schema)
    }

    fn schema(&mut self, depth: usize) -> Value {
        let kind = self.rng.random_range(0..if depth == 0 { 12 } else { 18 });
        let schema = match kind {
            0..4 => json!({"type": "string"}),
            4 => json!({"type": "integer", "minimum": number(self.pick(NUMBERS)), "maximum": 10}),
            5 => json!({"type": "number", "multipleOf": number(self.pick(NUMBERS))}),
            6 => json!({"type": "boolean"}),
            7 => json!({"type": "string", "enum": self.list(3)}),
            8 => json!({"type": ["string", "null"]}),
            9 => json!({"type": "string", "nullable": true, "format": "date-time", "minLength": 1}),
            10 => self.vague_schema(),
            11 => json!({"const": self.value(1)}),
            12 => json!({"type": "array", "items": self.schema(depth - 1)}),
            13 => json!({"type": "array", "items": self.schema(depth - 1), "minItems": 1, "maxItems": 3}),
            14 => json!({"anyOf": [self.schema(depth - 1), {"type": "null"}]}),
            15 => json!({"oneOf": [self.schema(depth - 1), self.schema(depth - 1)]}),
            _ => self.object_schema(depth),
        };
        let mut fields = match schema {
            Value::Object(fields) => fields,
            vague => return vague,
        };
        self.garnish(&mut fields);
        self.shuffled(fields)
    }

    /// One that says little.
    fn vague_schema(&mut self) -> Value {
        match self.rng.random_range(0..6) {
            // A schema may be a truth value; what else stands here is none.
            0 => true.into(),
            1 => self.value(1),
            2 => json!({}),
            3 => json!({"$ref": "#/$defs/T"}),
            4 => json!({"type": "object"}),
            _ => json!({"type": "array"}),
        }
    }

    /// Descriptions, titles, defaults.
    fn garnish(&mut self, schema: &mut Map<String, Value>) {
        // Cohere's first templates take no parameter without.
        if self.rng.random_bool(if self.hints.is_for_tools { 0.97 } else { 0.5 }) {
            schema.insert("description".to_owned(), self.text().into());
        }
        if self.rng.random_bool(0.15) {
            schema.insert("default".to_owned(), self.value(2));
        }
        if self.rng.random_bool(0.1) {
            schema.insert("title".to_owned(), self.word().into());
        }
        if self.rng.random_bool(0.05) {
            schema.insert("examples".to_owned(), self.list(2));
        }
    }

    fn list(&mut self, most: usize) -> Value {
        let length = self.rng.random_range(0..=most);
        (0..length).map(|_| self.value(1)).collect()
    }

    /// Some clients write keys in other orders than the usual.
    pub fn shuffled(&mut self, fields: Map<String, Value>) -> Value {
        use rand::seq::SliceRandom;
        if !self.rng.random_bool(0.15) {
            return fields.into();
        }
        let mut fields: Vec<(String, Value)> = fields.into_iter().collect();
        fields.shuffle(&mut self.rng);
        fields.into_iter().collect::<Map<_, _>>().into()
    }
}
