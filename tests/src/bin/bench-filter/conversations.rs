//! The requests: chats of a given size, alike in their system message and different behind it.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

/// Messages behind the system message: turns of user and assistant, the user's last.
const TURNS: usize = 9;
/// The system message's share of all text.
const SYSTEM_SHARE: f64 = 0.2;
/// What a body is at most shorter than asked for, in bytes.
const SLACK: usize = 40;

const WORDS: &[&str] = &[
    "the",
    "a",
    "value",
    "return",
    "cache",
    "prefix",
    "token",
    "request",
    "because",
    "which",
    "block",
    "engine",
    "answer",
    "question",
    "however",
    "between",
    "system",
    "model",
    "first",
    "second",
    "should",
    "would",
    "number",
    "function",
    "result",
    "example",
    "memory",
    "server",
    "client",
    "table",
    "window",
    "simple",
    "another",
    "quickly",
    "naïve",
    "café",
    "“quoted”",
];

/// The body of a chat completion of about `bytes` bytes. Equal numbers give equal bodies.
pub fn body(model: &str, number: u64, bytes: usize) -> Value {
    let mut text = bytes;
    // JSON's own bytes and escapes come on top of the text: approach the size from above.
    loop {
        let body = with_text(model, number, text);
        let over = body.to_string().len().saturating_sub(bytes);
        if over == 0 {
            return body;
        }
        text = text.saturating_sub(over.max(SLACK));
    }
}

fn with_text(model: &str, number: u64, bytes: usize) -> Value {
    let system = prose(&mut StdRng::seed_from_u64(u64::MAX), (bytes as f64 * SYSTEM_SHARE) as usize);
    let mut random = StdRng::seed_from_u64(number);
    let mut messages = vec![json!({"role": "system", "content": system})];
    for turn in 0..TURNS {
        let role = if turn % 2 == 0 { "user" } else { "assistant" };
        let size = bytes as f64 * (1.0 - SYSTEM_SHARE) / TURNS as f64;
        messages.push(json!({"role": role, "content": prose(&mut random, size as usize)}));
    }
    json!({"model": model, "messages": messages, "temperature": 0.7, "max_tokens": 1})
}

/// Sentences, lists and code: text with the line breaks, quotes and accents that JSON and hashing must get through.
fn prose(random: &mut StdRng, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 100);
    let words = |random: &mut StdRng, count: usize| {
        (0..count).map(|_| *WORDS.choose(random).unwrap()).collect::<Vec<_>>().join(" ")
    };
    while text.len() < bytes {
        match random.random_range(0..8) {
            0 => {
                let (name, value) = (words(random, 1), words(random, 4));
                text.push_str(&format!("\n```python\ndef f(x):\n    return {{\"{name}\": \"{value}\"}}\n```\n"));
            }
            1 => text.push_str(&format!("\n\n- {}", words(random, 9))),
            _ => {
                let length = random.random_range(6..18);
                text.push_str(&words(random, length));
                text.push_str(". ");
            }
        }
    }
    let end = (0..=bytes).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    text.truncate(end);
    text
}
