//! What could be had at best.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use super::figures::share;
use super::{Answer, Record};
use crate::sim::tokenizer::Tokenizer;

/// The cache of one engine that never forgets: a naive model, which compares tokens and hashes nothing away.
#[derive(Debug)]
pub struct UnboundedCache {
    block_size: usize,
    /// The block that follows another (0: at the start) with these tokens.
    blocks: HashMap<(usize, Vec<u32>), usize>,
}

impl UnboundedCache {
    /// An empty cache of blocks of this many tokens.
    #[must_use]
    pub fn new(block_size: usize) -> Self {
        Self { block_size, blocks: HashMap::new() }
    }

    /// Serves one request from beginning to end: says how many of the prompt's tokens were cached, and then keeps every
    /// full block of prompt and answer.
    ///
    /// Engines compute the prompt's last token in any case, and never the KV of the last token they generate.
    pub fn serve(&mut self, prompt: &[u32], answer: &[u32]) -> usize {
        let usable = prompt.len().saturating_sub(1) / self.block_size;
        let mut sequence = prompt.to_vec();
        sequence.extend(answer.split_last().map_or(&[][..], |(_, computed)| computed));
        let (mut at, mut cached, mut unbroken) = (0, 0, true);
        for (index, block) in sequence.chunks_exact(self.block_size).enumerate() {
            let fresh = self.blocks.len() + 1;
            at = *self.blocks.entry((at, block.to_vec())).or_insert(fresh);
            unbroken &= at != fresh;
            cached += usize::from(unbroken && index < usable);
        }
        cached * self.block_size
    }
}

/// What an engine with an [`UnboundedCache`] would have served from it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ideal {
    /// Prompt tokens.
    pub prompt_tokens: u64,
    /// Of those, served from cache.
    pub cached_tokens: u64,
    /// `cached_tokens / prompt_tokens`.
    pub cached_share: f64,
}

/// Serves these chats again, in the order they were sent, one after the other, on one engine with an
/// [`UnboundedCache`]. Requests that failed are left out.
///
/// # Errors
/// If a prompt does not tokenise to the number of tokens that its engine counted: the model would be of something else.
pub fn ideal(records: &[Record], tokenizer: &Tokenizer, block_size: usize) -> Result<Ideal> {
    let mut cache = UnboundedCache::new(block_size);
    let (mut prompt_tokens, mut cached_tokens) = (0, 0);
    for record in records {
        let Ok(answer) = &record.answer else { continue };
        let (prompt, generated) = tokens(record, answer, tokenizer)?;
        prompt_tokens += prompt.len() as u64;
        cached_tokens += cache.serve(&prompt, &generated) as u64;
    }
    Ok(Ideal { prompt_tokens, cached_tokens, cached_share: share(cached_tokens, prompt_tokens) })
}

fn tokens(record: &Record, answer: &Answer, tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<u32>)> {
    let variables = [("add_generation_prompt".to_owned(), Value::from(true))].into_iter().collect();
    let text = tokenizer.render(Value::from(record.messages.clone()), variables)?;
    let prompt = tokenizer.encode(&text, false).context("the prompt does not tokenise")?;
    ensure!(
        prompt.len() as u64 == answer.prompt_tokens,
        "a prompt has {} tokens here and {} in the engine: do both use the same tokenizer?",
        prompt.len(),
        answer.prompt_tokens
    );
    Ok((prompt, tokenizer.encode(&answer.text, false)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{StreamClient, Workload, WorkloadOptions, drive};
    use crate::sim::{self, Config, fixture_tokenizer};

    #[test]
    fn a_prompt_is_cached_up_to_its_first_new_block_and_never_to_its_last_token() {
        let mut cache = UnboundedCache::new(4);
        let prompt: Vec<u32> = (0..12).collect();
        assert_eq!(cache.serve(&prompt, &[]), 0);
        assert_eq!(cache.serve(&prompt, &[]), 8);
        let mut other = prompt.clone();
        other[5] = 99;
        assert_eq!(cache.serve(&other, &[]), 4);
        assert_eq!(cache.serve(&prompt[4..], &[]), 0, "a block counts only behind the same blocks");
    }

    #[test]
    fn answers_are_cached_but_for_their_last_token() {
        let mut cache = UnboundedCache::new(4);
        cache.serve(&[1, 2, 3, 4, 5, 6], &[7, 8, 9, 10, 11, 12]);
        let next: Vec<u32> = (1..=20).collect();
        assert_eq!(cache.serve(&next, &[]), 8);
    }

    /// Holds the model to the engine: with one request at a time and room for everything the two must agree.
    #[tokio::test]
    async fn the_ideal_is_what_one_large_engine_reports_for_one_request_at_a_time() {
        let engine = sim::start(Config { blocks: 100_000, ..Config::instant() }).unwrap();
        let workload = Workload::new(WorkloadOptions { tenants: 4, users_per_tenant: 2, requests: 60, seed: 5 });
        let client = StreamClient::new().unwrap();
        let (records, _) = drive(&client, &engine.url(), "tiny", &workload, 1, |_| ()).await.unwrap();
        let ideal = ideal(&records, &Tokenizer::load(&fixture_tokenizer()).unwrap(), 16).unwrap();
        let stats = engine.stats();
        assert_eq!(ideal.prompt_tokens, stats.prompt_tokens);
        // An answer is cut at a token, and its last word may be spelt by other tokens when it comes back.
        let difference = ideal.cached_tokens.abs_diff(stats.cached_tokens);
        assert!(difference <= 16 * 6, "{} in the model, {} in the engine", ideal.cached_tokens, stats.cached_tokens);
        assert!(stats.cached_tokens > stats.prompt_tokens / 2);
    }
}
