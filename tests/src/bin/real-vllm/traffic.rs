//! Conversations in groups that share their system prompt.

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use warmpath_tests::vllm::MODEL;

/// Conversations that a group has open at any time.
const OPEN: usize = 2;
/// A conversation has at most this many turns, and at least two.
const MOST_TURNS: usize = 6;
/// Words of plain text.
const WORDS: &str = "the a of to and in that it is was for on with as be by not this from but they have had one all \
    there when which more their would about time people water number word first may long day part work place know \
    great year take come find house point world right school still learn plant answer letter between country because \
    different question understand important temperature";
/// What else prompts are made of: code, numbers, line breaks and scripts that take several bytes a character.
const ODDITIES: [&str; 14] = [
    "\n\n",
    "\n    return self._value\n",
    "def f(x):\n\t",
    "{\"key\": [1, 2.5, null]}",
    "3.14159",
    "2024-02-29",
    "--",
    "  ",
    "naïve café",
    "Straße",
    "数据结构",
    "🙂👍🏽",
    "Ελληνικά",
    "don't",
];

/// Makes requests up, from a seed.
pub struct Traffic {
    random: StdRng,
    groups: Vec<Group>,
    answer_tokens: u32,
}

struct Group {
    system: String,
    conversations: Vec<Conversation>,
}

#[derive(Default)]
struct Conversation {
    messages: Vec<Value>,
    turns: usize,
    last_turn: usize,
    /// Tokens of the last turn, prompt and answer.
    tokens: Vec<u64>,
}

/// What an engine answered.
pub struct Answer {
    /// As text.
    pub text: String,
    /// The tokens that the engine read the prompt as.
    pub prompt_tokens: Vec<u64>,
    /// The tokens that it wrote the answer with.
    pub tokens: Vec<u64>,
}

/// A request to send.
pub struct Turn {
    /// Which system prompt, from 0.
    pub group: usize,
    /// Which turn of its conversation, from 0.
    pub turn: usize,
    conversation: usize,
    /// The body of `POST /v1/chat/completions`.
    pub body: Value,
}

impl Traffic {
    /// Traffic of this many groups, asking for answers of up to `answer_tokens`.
    pub fn new(groups: usize, answer_tokens: u32, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let groups = (0..groups).map(|_| {
            let words = random.random_range(80..320);
            Group { system: text(&mut random, words), conversations: Vec::new() }
        });
        let groups = groups.collect();
        Self { random, groups, answer_tokens: answer_tokens.max(1) }
    }

    /// The next request: a turn of any group's conversation, or the first of a new one.
    ///
    /// # Errors
    /// If there are no groups.
    pub fn next(&mut self) -> Result<Turn> {
        let random = &mut self.random;
        let number = random.random_range(0..self.groups.len().max(1));
        let group = self.groups.get_mut(number).context("--groups must be at least 1")?;
        let at = random.random_range(0..OPEN);
        group.conversations.resize_with(OPEN, Conversation::default);
        let conversation = group.conversations.get_mut(at).context("no such conversation")?;
        if conversation.turns >= conversation.last_turn {
            let system = json!({"role": "system", "content": group.system});
            let last_turn = random.random_range(2..=MOST_TURNS);
            *conversation = Conversation { messages: vec![system], last_turn, ..Conversation::default() };
        }
        let words = random.random_range(4..90);
        conversation.messages.push(json!({"role": "user", "content": text(random, words)}));
        let turn = conversation.turns;
        conversation.turns += 1;
        let body = json!({
            "model": MODEL,
            "messages": conversation.messages,
            "max_tokens": random.random_range(1..=self.answer_tokens),
            // Without an end of its own the text is as long as asked for, and with some heat it is different each time.
            "temperature": 0.8,
            "ignore_eos": true,
            "seed": random.random_range(0..u32::MAX),
            "return_token_ids": true,
        });
        Ok(Turn { group: number, turn, conversation: at, body })
    }

    /// Goes on with what the engine answered. Returns how many tokens the prompt shared with the turn before, if there
    /// was one.
    pub fn heard(&mut self, turn: &Turn, answer: Answer) -> Option<usize> {
        let conversation = self.groups.get_mut(turn.group)?.conversations.get_mut(turn.conversation)?;
        conversation.messages.push(json!({"role": "assistant", "content": answer.text}));
        let last = std::mem::replace(&mut conversation.tokens, [&*answer.prompt_tokens, &*answer.tokens].concat());
        (!last.is_empty()).then(|| last.iter().zip(&answer.prompt_tokens).take_while(|(a, b)| a == b).count())
    }
}

fn text(random: &mut StdRng, words: usize) -> String {
    let plain: Vec<&str> = WORDS.split_whitespace().collect();
    let mut text = String::new();
    for _ in 0..words {
        let list: &[&str] = if random.random_bool(0.1) { &ODDITIES } else { &plain };
        text.push_str(list.choose(random).copied().unwrap_or_default());
        text.push(' ');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles(turn: &Turn) -> Vec<&str> {
        turn.body["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect()
    }

    #[test]
    fn conversations_grow_by_the_answer_and_restart_with_the_same_system_prompt() {
        let mut traffic = Traffic::new(3, 50, 5);
        let mut restarts = 0;
        let mut systems = std::collections::HashMap::new();
        for _ in 0..300 {
            let turn = traffic.next().unwrap();
            let mut expected = vec!["system", "user"];
            expected.extend(["assistant", "user"].repeat(turn.turn));
            assert_eq!(roles(&turn), expected);
            assert!(turn.turn < MOST_TURNS);
            restarts += usize::from(turn.turn == 0);
            let system = turn.body["messages"][0].clone();
            assert_eq!(*systems.entry(turn.group).or_insert_with(|| system.clone()), system);
            let answer = Answer { text: "an answer".into(), prompt_tokens: vec![1, 2], tokens: vec![3] };
            assert_eq!(traffic.heard(&turn, answer), (turn.turn > 0).then_some(2));
        }
        assert!(systems.len() == 3 && restarts > 50, "{restarts}");
    }

    #[test]
    fn the_same_seed_makes_the_same_requests() {
        let bodies = |seed| {
            let mut traffic = Traffic::new(8, 50, seed);
            (0..20).map(|_| traffic.next().unwrap().body).collect::<Vec<_>>()
        };
        assert_eq!(bodies(1), bodies(1));
        assert_ne!(bodies(1), bodies(2));
    }
}
