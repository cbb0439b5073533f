//! The requests: chats of a given size, alike in their system message and different behind it.

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use warmpath_tests::load::prose;

/// Messages behind the system message: turns of user and assistant, the user's last.
const TURNS: usize = 9;
/// The system message's share of all text.
const SYSTEM_SHARE: f64 = 0.2;
/// What a body is at most shorter than asked for, in bytes.
const SLACK: usize = 40;

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
