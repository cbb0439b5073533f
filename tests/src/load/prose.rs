//! Texts as they are found in chats.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// Sentences, lists and code: text with the line breaks, quotes and accents that JSON and hashing must get through.
#[must_use]
pub fn prose(random: &mut StdRng, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 100);
    let words = |random: &mut StdRng, count: usize| {
        (0..count).map(|_| WORDS.choose(random).copied().unwrap_or_default()).collect::<Vec<_>>().join(" ")
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
