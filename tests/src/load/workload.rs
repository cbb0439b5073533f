//! What is asked: tenants with a system prompt each, users with conversations that grow.

use std::ops::RangeInclusive;
use std::sync::Arc;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// All system prompts begin with the same text of this many bytes, so that its hash tells no tenant from another.
pub const PREAMBLE_BYTES: usize = 512;
/// Length of a tenant's system prompt in bytes, with the preamble.
pub const SYSTEM_BYTES: RangeInclusive<usize> = 4 * 1024..=8 * 1024;
/// Length of a user's message in bytes.
const MESSAGE_BYTES: RangeInclusive<usize> = 80..=320;
/// Turns of a conversation; then its user begins another.
const TURNS: RangeInclusive<usize> = 3..=7;
/// Tokens of an answer.
const ANSWER_TOKENS: RangeInclusive<u32> = 16..=40;

/// Sizes of a workload.
#[derive(Clone, Copy, Debug)]
pub struct WorkloadOptions {
    /// Tenants; each has a system prompt of its own.
    pub tenants: usize,
    /// Users of each tenant; each has one conversation at a time.
    pub users_per_tenant: usize,
    /// Requests in all.
    pub requests: usize,
    /// Equal seeds and sizes give equal workloads.
    pub seed: u64,
}

/// One request: the next message of one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Who asks, from 0.
    pub user: usize,
    /// The system prompt, where this is the first message of a new conversation.
    pub opens: Option<Arc<str>>,
    /// What is asked.
    pub message: String,
    /// Tokens to answer with.
    pub max_tokens: u32,
}

/// A list of requests. In each round every user asks once, in an order drawn anew: people read an answer before they
/// ask again, so that no one asks often while others are silent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The requests, in the order in which they become due.
    pub steps: Vec<Step>,
    /// How many users there are: no more than this many requests can be in flight.
    pub users: usize,
}

impl Workload {
    /// Draws a workload.
    #[must_use]
    pub fn new(options: WorkloadOptions) -> Self {
        let mut random = StdRng::seed_from_u64(options.seed);
        let preamble = text(&mut random, PREAMBLE_BYTES);
        let systems: Vec<Arc<str>> = (0..options.tenants)
            .map(|_| {
                let own = random.random_range(SYSTEM_BYTES) - PREAMBLE_BYTES;
                Arc::from(format!("{preamble}{}", text(&mut random, own)))
            })
            .collect();
        let users = options.tenants * options.users_per_tenant;
        let mut turns_left = vec![0; users];
        let mut round: Vec<usize> = Vec::new();
        let steps = (0..options.requests)
            .map(|_| {
                if round.is_empty() {
                    round.extend(0..users);
                    round.shuffle(&mut random);
                }
                let user = round.pop().unwrap_or_default();
                let opens = (turns_left[user] == 0).then(|| {
                    turns_left[user] = random.random_range(TURNS);
                    systems[user / options.users_per_tenant].clone()
                });
                turns_left[user] -= 1;
                let length = random.random_range(MESSAGE_BYTES);
                let message = text(&mut random, length);
                Step { user, opens, message, max_tokens: random.random_range(ANSWER_TOKENS) }
            })
            .collect();
        Self { steps, users }
    }
}

/// Exactly `bytes` bytes of sentences.
fn text(random: &mut StdRng, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 32);
    while text.len() < bytes {
        let words = random.random_range(5..14);
        for at in 0..words {
            let word = WORDS.choose(random).copied().unwrap_or_default();
            let (first, rest) = word.split_at(1);
            if at == 0 {
                text.push_str(&first.to_uppercase());
                text.push_str(rest);
            } else {
                text.push(' ');
                text.push_str(word);
            }
        }
        text.push_str(if random.random_ratio(1, 5) { ".\n" } else { ". " });
    }
    text.truncate(bytes);
    text
}

/// ASCII, so that text can be cut at any byte.
const WORDS: [&str; 96] = [
    "account",
    "address",
    "after",
    "agent",
    "always",
    "amount",
    "answer",
    "approve",
    "article",
    "ask",
    "before",
    "billing",
    "business",
    "call",
    "cancel",
    "careful",
    "case",
    "change",
    "check",
    "city",
    "claim",
    "clear",
    "client",
    "collect",
    "company",
    "confirm",
    "contract",
    "country",
    "customer",
    "date",
    "decide",
    "delivery",
    "department",
    "describe",
    "detail",
    "document",
    "email",
    "employee",
    "error",
    "every",
    "example",
    "explain",
    "field",
    "find",
    "form",
    "give",
    "goods",
    "help",
    "history",
    "invoice",
    "item",
    "keep",
    "language",
    "late",
    "letter",
    "limit",
    "list",
    "manager",
    "market",
    "matter",
    "message",
    "month",
    "name",
    "never",
    "note",
    "number",
    "offer",
    "office",
    "order",
    "other",
    "page",
    "payment",
    "person",
    "phone",
    "plan",
    "policy",
    "polite",
    "price",
    "product",
    "question",
    "reason",
    "receive",
    "record",
    "refund",
    "reply",
    "report",
    "return",
    "rule",
    "send",
    "service",
    "short",
    "status",
    "support",
    "ticket",
    "without",
    "write",
];

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    const OPTIONS: WorkloadOptions = WorkloadOptions { tenants: 20, users_per_tenant: 3, requests: 600, seed: 7 };

    #[test]
    fn a_seed_fixes_the_workload_and_another_seed_gives_another() {
        assert_eq!(Workload::new(OPTIONS), Workload::new(OPTIONS));
        assert_ne!(Workload::new(OPTIONS), Workload::new(WorkloadOptions { seed: 8, ..OPTIONS }));
    }

    #[test]
    fn system_prompts_differ_by_tenant_and_only_after_the_shared_preamble() {
        let workload = Workload::new(OPTIONS);
        let mut of_tenant: HashMap<usize, HashSet<Arc<str>>> = HashMap::new();
        for step in &workload.steps {
            of_tenant.entry(step.user / OPTIONS.users_per_tenant).or_default().extend(step.opens.clone());
        }
        assert!(of_tenant.values().all(|systems| systems.len() == 1));
        let systems: HashSet<Arc<str>> = of_tenant.into_values().flatten().collect();
        assert_eq!(systems.len(), OPTIONS.tenants);
        assert!(systems.iter().all(|system| SYSTEM_BYTES.contains(&system.len())));
        let starts = |bytes: usize| systems.iter().map(|system| &system[..bytes]).collect::<HashSet<_>>().len();
        assert_eq!((starts(PREAMBLE_BYTES), starts(PREAMBLE_BYTES + 64)), (1, OPTIONS.tenants));
    }

    #[test]
    fn every_user_asks_once_a_round_and_every_conversation_has_its_number_of_turns() {
        let workload = Workload::new(OPTIONS);
        assert_eq!((workload.steps.len(), workload.users), (600, 60));
        let rounds: Vec<Vec<usize>> =
            workload.steps.chunks(60).map(|round| round.iter().map(|step| step.user).collect()).collect();
        assert!(rounds.iter().all(|round| round.iter().collect::<HashSet<_>>().len() == 60));
        assert_ne!(rounds[0], rounds[1]);
        let mut turns: HashMap<usize, usize> = HashMap::new();
        for step in &workload.steps {
            let so_far = turns.entry(step.user).or_default();
            if step.opens.is_some() {
                assert!(*so_far == 0 || TURNS.contains(so_far), "{so_far} turns");
                *so_far = 0;
            }
            assert!(*so_far > 0 || step.opens.is_some());
            *so_far += 1;
        }
    }
}
