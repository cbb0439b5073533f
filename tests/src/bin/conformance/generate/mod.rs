//! Requests to `/v1/chat/completions`, made by chance, and led into a template's branches by what its source mentions.
//!
//! Most are such as clients send; some are odd, and engines refuse some of those. A request depends on seed, template
//! and number only.

mod conversation;
mod request;
mod texts;
mod tools;
mod values;

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;

use crate::body::Style;
use crate::hints::Hints;

/// Makes one request.
pub struct Generator<'h> {
    rng: StdRng,
    hints: &'h Hints,
    /// Names of the tools this request offers.
    tools: Vec<String>,
}

/// The body of request `number` to a model with this template.
#[must_use]
pub fn request(hints: &Hints, template: &str, seed: u64, number: usize) -> String {
    let mut generator =
        Generator { rng: StdRng::seed_from_u64(mixed(seed, template, number)), hints, tools: Vec::new() };
    let body = Value::Object(generator.body());
    Style::random(&mut generator.rng).write(&body)
}

/// FNV-1a over all three.
fn mixed(seed: u64, template: &str, number: usize) -> u64 {
    let bytes = seed.to_le_bytes().into_iter().chain(template.bytes()).chain(number.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_json_repeatable_and_different() {
        let hints = Hints::of("name", "{{ messages[0].content }}{% if thinking %}x{% endif %}");
        let bodies: Vec<String> = (0..300).map(|number| request(&hints, "t", 1, number)).collect();
        for body in &bodies {
            let body: Value = serde_json::from_str(body).unwrap();
            assert!(body["messages"].as_array().is_some_and(|messages| !messages.is_empty()));
        }
        assert_eq!(bodies[7], request(&hints, "t", 1, 7));
        assert_ne!(bodies[7], request(&hints, "t", 2, 7));
        assert_ne!(bodies[7], request(&hints, "u", 1, 7));
        let with = |what: &str| bodies.iter().filter(|body| body.contains(what)).count();
        for what in
            ["tool_calls", "reasoning", "continue_final_message", "thinking", "developer", "documents", "strict"]
        {
            assert!(with(what) > 2, "{what} in {} of 300", with(what));
        }
    }
}
