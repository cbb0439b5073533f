//! Continuous batching over the paged cache, as vLLM v1 schedules it, without clock or I/O.
//!
//! A step is [`Scheduler::schedule`] (what runs, which blocks it takes, what enters the cache),
//! then the time the engine would compute, then [`Scheduler::complete`] (one new token for each
//! request whose tokens are all computed).

use std::collections::{HashMap, VecDeque};

use super::cache::{BlockId, BlockPool, CacheEvent, Namespace, extend_hashes};

/// Sizes of one engine.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Tokens per block.
    pub block_size: usize,
    /// Blocks in the pool, with the null block.
    pub blocks: usize,
    /// Requests that may run at once.
    pub max_running: usize,
    /// Tokens computed per step at most, over all requests.
    pub step_tokens: usize,
    /// See [`BlockPool::new`].
    pub unhashed_first: bool,
    /// Stands in for the parent of first blocks.
    pub hash_seed: u64,
}

/// A request as handed to the scheduler. What it will generate is known beforehand.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// Prompt tokens; at least one.
    pub prompt: Vec<u32>,
    /// Tokens to generate; at least one.
    pub output: Vec<u32>,
    /// Adapter and salt.
    pub namespace: Namespace,
    /// Named in the events of its blocks.
    pub session: Option<String>,
}

/// What one step computes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Request and number of tokens computed for it.
    pub items: Vec<(u64, usize)>,
    /// Prompt tokens among them.
    pub prefill_tokens: usize,
    /// Requests that compute the token they generated last.
    pub decoding: usize,
}

/// A request got its next token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The request.
    pub id: u64,
    /// Which of its output tokens this is, from 0.
    pub token: usize,
    /// Prompt tokens found in the cache when it was first scheduled.
    pub cached_tokens: usize,
    /// Whether it was the last.
    pub finished: bool,
}

#[derive(Debug)]
struct Request {
    job: Job,
    /// Prompt and what was generated so far.
    tokens: Vec<u32>,
    hashes: Vec<u64>,
    blocks: Vec<BlockId>,
    /// Leading blocks that are in the cache under their hash.
    stored: usize,
    computed: usize,
    cached_tokens: Option<usize>,
}

/// The scheduler of one engine.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    requests: HashMap<u64, Request>,
    running: Vec<u64>,
    waiting: VecDeque<u64>,
    events: Vec<CacheEvent>,
    next_id: u64,
}

impl Scheduler {
    /// An idle engine with an empty cache.
    pub fn new(limits: Limits) -> Self {
        Self {
            pool: BlockPool::new(limits.blocks, limits.unhashed_first),
            limits,
            requests: HashMap::new(),
            running: Vec::new(),
            waiting: VecDeque::new(),
            events: Vec::new(),
            next_id: 0,
        }
    }

    /// Longest prompt and output, in tokens, that fits an otherwise empty pool.
    pub fn capacity(&self) -> usize {
        self.pool.usable() * self.limits.block_size
    }

    /// Queues a request and names it. The caller has checked it against [`Self::capacity`].
    pub fn add(&mut self, job: Job) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let tokens = job.prompt.clone();
        let request = Request {
            job,
            tokens,
            hashes: Vec::new(),
            blocks: Vec::new(),
            stored: 0,
            computed: 0,
            cached_tokens: None,
        };
        self.requests.insert(id, request);
        self.waiting.push_back(id);
        id
    }

    /// Forgets a request and frees its blocks. An id that is gone already is ignored.
    pub fn abort(&mut self, id: u64) {
        if let Some(request) = self.requests.remove(&id) {
            self.pool.release(&request.blocks);
            self.running.retain(|&other| other != id);
            self.waiting.retain(|&other| other != id);
        }
    }

    /// Chooses what the next step computes. Running requests go first; waiting ones join in order
    /// of arrival while tokens, places and blocks last.
    pub fn schedule(&mut self) -> Plan {
        let mut plan = Plan::default();
        let mut budget = self.limits.step_tokens;
        let mut preempted = false;
        let mut at = 0;
        while at < self.running.len() && budget > 0 {
            let id = self.running[at];
            let Some(request) = self.requests.get(&id) else { break };
            let count = (request.tokens.len() - request.computed).min(budget);
            if self.advance(id, count) {
                budget -= count;
                self.note(&mut plan, id, count);
                at += 1;
            } else {
                preempted = true;
                // The youngest gives way, possibly the request itself.
                if let Some(victim) = self.running.pop() {
                    self.preempt(victim);
                }
            }
        }
        while !preempted && budget > 0 && self.running.len() < self.limits.max_running {
            let Some(&id) = self.waiting.front() else { break };
            let Some(count) = self.admit(id, budget) else { break };
            self.waiting.pop_front();
            self.running.push(id);
            budget -= count;
            self.note(&mut plan, id, count);
        }
        plan
    }

    /// Ends the step: returns every token that was generated, in the order of the plan.
    pub fn complete(&mut self, plan: &Plan) -> Vec<Progress> {
        let mut produced = Vec::new();
        for &(id, count) in &plan.items {
            // Aborted while the step ran.
            let Some(request) = self.requests.get_mut(&id) else { continue };
            request.computed += count;
            if request.computed < request.tokens.len() {
                continue;
            }
            let token = request.tokens.len() - request.job.prompt.len();
            let Some(&next) = request.job.output.get(token) else { continue };
            request.tokens.push(next);
            let finished = token + 1 == request.job.output.len();
            let cached_tokens = request.cached_tokens.unwrap_or(0);
            produced.push(Progress { id, token, cached_tokens, finished });
            if finished {
                self.abort(id);
            }
        }
        produced
    }

    /// Drops the whole cache; refused while a request holds blocks.
    pub fn reset_cache(&mut self) -> bool {
        self.pool.reset(&mut self.events)
    }

    /// What changed in the cache since the last call. vLLM asks once per step, so an idle engine
    /// keeps its events.
    pub fn take_events(&mut self) -> Vec<CacheEvent> {
        std::mem::take(&mut self.events)
    }

    /// Requests that hold blocks.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Requests that wait for a place or for blocks.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The block pool, to be looked at.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    fn note(&self, plan: &mut Plan, id: u64, count: usize) {
        plan.items.push((id, count));
        if let Some(request) = self.requests.get(&id) {
            let prompt = request.job.prompt.len().saturating_sub(request.computed).min(count);
            plan.prefill_tokens += prompt;
            plan.decoding += usize::from(prompt == 0);
        }
    }

    /// First scheduling: looks the prompt up in the cache, then takes blocks for what is missing.
    /// None if the blocks for the whole sequence are not there.
    fn admit(&mut self, id: u64, budget: usize) -> Option<usize> {
        let size = self.limits.block_size;
        let request = self.requests.get_mut(&id)?;
        let namespace = &request.job.namespace;
        extend_hashes(&mut request.hashes, self.limits.hash_seed, namespace, size, &request.tokens);
        // The last token is always computed: its logits are what the request is for.
        let limit = (request.tokens.len() - 1) / size;
        let hits = self.pool.find(&request.hashes[..limit]);
        let fresh = request.tokens.len().div_ceil(size) - hits.len();
        if !self.pool.can_allocate(fresh, &hits) {
            return None;
        }
        self.pool.touch(&hits);
        request.stored = hits.len();
        request.computed = hits.len() * size;
        request.cached_tokens.get_or_insert(request.computed);
        request.blocks = hits;
        let count = (request.tokens.len() - request.computed).min(budget);
        self.advance(id, count).then_some(count)
    }

    /// Takes the blocks that the next `count` tokens need and announces those they fill. False,
    /// with nothing changed, if there are too few.
    fn advance(&mut self, id: u64, count: usize) -> bool {
        let size = self.limits.block_size;
        let Some(request) = self.requests.get_mut(&id) else { return false };
        let end = request.computed + count;
        let missing = end.div_ceil(size).saturating_sub(request.blocks.len());
        let Some(fresh) = self.pool.allocate(missing, &mut self.events) else { return false };
        request.blocks.extend(fresh);
        let full = end / size;
        if full > request.stored {
            let namespace = &request.job.namespace;
            let seed = self.limits.hash_seed;
            extend_hashes(&mut request.hashes, seed, namespace, size, &request.tokens);
            let span = request.stored..full;
            for at in span.clone() {
                self.pool.store(request.blocks[at], request.hashes[at]);
            }
            self.events.push(CacheEvent::Stored {
                hashes: request.hashes[span.clone()].to_vec(),
                parent: span.start.checked_sub(1).map(|at| request.hashes[at]),
                tokens: request.tokens[span.start * size..span.end * size].to_vec(),
                namespace: request.job.namespace.clone(),
                session: request.job.session.clone(),
            });
            request.stored = full;
        }
        true
    }

    /// Takes all blocks from a request, which begins anew, with what it generated, before all others.
    fn preempt(&mut self, id: u64) {
        if let Some(request) = self.requests.get_mut(&id) {
            self.pool.release(&std::mem::take(&mut request.blocks));
            self.waiting.push_front(id);
        }
    }
}
