//! What indexes are given: engines' frames, and prompts to look up with the answer that is right at the end.

use std::io::BufRead;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::engine::Engine;
use super::text::Text;
use crate::sim::cache::{CacheEvent, Namespace};
use crate::sim::events::{Encoding, encode_batch};

/// Tokens in a block.
pub const BLOCK: usize = 16;
/// Blocks in an event.
const EVENT: usize = 32;
/// Blocks in a prompt.
const PROMPT: usize = 512;
/// Tokens in a block of a Mooncake trace.
const TRACE_BLOCK: usize = 512;

/// One load for an index.
pub struct Work {
    /// As it is called in results.
    pub name: String,
    /// Engines.
    pub workers: u16,
    /// What happens, in order.
    pub steps: Vec<Step>,
    /// What is looked up.
    pub prompts: Vec<Prompt>,
    /// Blocks stored and removed in all.
    pub changes: usize,
    /// Blocks resident at the end, over all engines.
    pub resident: usize,
}

/// One thing that happens.
pub enum Step {
    /// An engine publishes a batch of events.
    Frame(u16, Vec<u8>),
    /// A request arrives: the next prompt is looked up.
    Request,
}

/// A prompt.
pub struct Prompt {
    /// Its tokens, whole blocks.
    pub tokens: Vec<u32>,
    /// What they spell.
    pub bytes: Vec<u8>,
    /// Blocks of it, from the first, that each engine holds at the end, where that is not none.
    pub held: Vec<(u16, usize)>,
}

impl Work {
    /// Prompts of 512 blocks that have nothing in common, each stored by one engine in events of 32 blocks, until this
    /// many blocks are resident. Prompts to look up: stored ones, as many `lookups`, and then as many that
    /// part from a stored one somewhere.
    pub fn prompts(text: &Text, name: &str, blocks: usize, workers: u16, lookups: usize) -> Self {
        let count = blocks.div_ceil(PROMPT);
        let mut random = StdRng::seed_from_u64(count as u64);
        let tokens = |prompt: usize| text.tokens(prompt as u64, PROMPT * BLOCK);
        let hashes: Vec<u64> = (0..count * PROMPT).map(|_| random.random()).collect();
        let hash = |prompt: usize, block: usize| hashes[prompt * PROMPT + block];
        let worker = |prompt: usize| (prompt % usize::from(workers)) as u16;
        let mut steps = Vec::new();
        // Engines prefill at the same time.
        for group in (0..count).collect::<Vec<_>>().chunks(usize::from(workers)) {
            let group: Vec<_> = group.iter().map(|&prompt| (prompt, tokens(prompt))).collect();
            for from in (0..PROMPT).step_by(EVENT) {
                for (prompt, tokens) in &group {
                    let hashes: Vec<u64> = (from..from + EVENT).map(|block| hash(*prompt, block)).collect();
                    let parent = from.checked_sub(1).map(|before| hash(*prompt, before));
                    let tokens = &tokens[from * BLOCK..(from + EVENT) * BLOCK];
                    steps.push(Step::Frame(worker(*prompt), frame(&hashes, parent, tokens)));
                }
            }
        }
        let prompt = |n: usize, held: usize, parted: u64| {
            let mut tokens = tokens(n);
            tokens.truncate(held * BLOCK);
            tokens.extend(text.tokens(u64::MAX - parted, (PROMPT - held) * BLOCK));
            Prompt { bytes: text.bytes(&tokens), tokens, held: vec![(worker(n), held)] }
        };
        let whole: Vec<_> = (0..lookups).map(|_| prompt(random.random_range(0..count), PROMPT, 0)).collect();
        let parting =
            (0..lookups as u64).map(|i| prompt(random.random_range(0..count), random.random_range(1..PROMPT), i));
        let prompts = whole.into_iter().chain(parting).collect();
        let blocks = count * PROMPT;
        Self { name: name.to_owned(), workers, steps, prompts, changes: blocks, resident: blocks }
    }

    /// The first requests of a Mooncake trace, dealt to engines by chance, each of which keeps `capacity` blocks: a
    /// request is looked up, then served, which evicts and stores.
    pub fn mooncake(text: &Text, trace: &Path, requests: usize, workers: u16, capacity: usize) -> Result<Self> {
        let mut random = StdRng::seed_from_u64(42);
        let mut engines: Vec<_> = (0..workers).map(|_| Engine::new(capacity)).collect();
        let (mut steps, mut chains, mut changes) = (Vec::new(), Vec::new(), 0);
        let per_trace_block = TRACE_BLOCK / BLOCK;
        for ids in read_trace(trace, requests)? {
            let worker = random.random_range(0..workers);
            let hashes: Vec<u64> = ids
                .iter()
                .flat_map(|id| (0..per_trace_block as u64).map(move |part| mix(u64::from(*id) << 8 | part)))
                .collect();
            let tokens: Vec<u32> = ids.iter().flat_map(|id| text.tokens(u64::from(*id), TRACE_BLOCK)).collect();
            let mut events = Vec::new();
            engines[usize::from(worker)].serve(&hashes, &tokens, usize::MAX, &mut events);
            changes += events.iter().map(blocks_of).sum::<usize>();
            steps.push(Step::Request);
            if !events.is_empty() {
                steps.push(Step::Frame(worker, encode_batch(Encoding::Map, 1.5, BLOCK, &events)));
            }
            chains.push((hashes, tokens));
        }
        ensure!(!chains.is_empty(), "{} has no requests", trace.display());
        let held = |hashes: &[u64]| {
            let holds = (0..).zip(&engines).map(|(worker, engine)| (worker, engine.holds(hashes)));
            holds.filter(|(_, blocks)| *blocks > 0).collect()
        };
        let prompts = chains
            .into_iter()
            .map(|(hashes, tokens)| Prompt { bytes: text.bytes(&tokens), held: held(&hashes), tokens })
            .collect();
        let resident = engines.iter().map(Engine::held).sum();
        Ok(Self { name: format!("mooncake_{workers}_workers"), workers, steps, prompts, changes, resident })
    }

    /// All frames, in order.
    pub fn frames(&self) -> impl Iterator<Item = (u16, &[u8])> {
        self.steps.iter().filter_map(|step| match step {
            Step::Frame(worker, frame) => Some((*worker, frame.as_slice())),
            Step::Request => None,
        })
    }
}

/// A batch of one event: blocks with these hashes and tokens were stored.
pub fn frame(hashes: &[u64], parent: Option<u64>, tokens: &[u32]) -> Vec<u8> {
    let (hashes, tokens) = (hashes.to_vec(), tokens.to_vec());
    let event = CacheEvent::Stored { hashes, parent, tokens, namespace: Namespace::default(), session: None };
    encode_batch(Encoding::Map, 1.5, BLOCK, &[event])
}

fn blocks_of(event: &CacheEvent) -> usize {
    match event {
        CacheEvent::Stored { hashes, .. } => hashes.len(),
        CacheEvent::Removed(_) => 1,
        CacheEvent::Cleared => 0,
    }
}

/// A bijection that leaves no trace of order.
fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 31)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let n = (n ^ (n >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    n ^ (n >> 32)
}

/// `hash_ids` of the first requests.
fn read_trace(file: &Path, requests: usize) -> Result<Vec<Vec<u32>>> {
    #[derive(serde::Deserialize)]
    struct Request {
        hash_ids: Vec<u32>,
    }
    let open = || format!("cannot read {}", file.display());
    let lines = std::io::BufReader::new(std::fs::File::open(file).with_context(open)?).lines();
    let read = |(n, line): (usize, std::io::Result<String>)| {
        let request: Request =
            serde_json::from_str(&line?).with_context(|| format!("{}:{}: not a request", file.display(), n + 1))?;
        Ok(request.hash_ids)
    };
    lines.enumerate().take(requests).map(read).collect()
}
