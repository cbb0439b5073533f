//! The simulated engine's scheduler and cache against a naive model that knows only the events.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

use std::collections::HashMap;

use proptest::prelude::*;
use warmpath_tests::sim::cache::{CacheEvent, Namespace, extend_hashes};
use warmpath_tests::sim::scheduler::{Job, Limits, Scheduler};

const BLOCK: usize = 4;
const SEED: u64 = 9;

#[derive(Clone, Debug)]
enum Step {
    /// Prompts share prefixes: `shared` tokens of one of two texts, then `own` tokens of their own.
    Add {
        text: bool,
        shared: usize,
        own: usize,
        output: usize,
        salted: bool,
    },
    Run,
    Abort(usize),
    Reset,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let add = (any::<bool>(), 0..20usize, 1..6usize, 1..12usize, prop::bool::weighted(0.2))
        .prop_map(|(text, shared, own, output, salted)| Step::Add { text, shared, own, output, salted });
    let step = prop_oneof![
        3 => add,
        9 => Just(Step::Run),
        1 => any::<prop::sample::Index>().prop_map(|which| Step::Abort(which.index(1000))),
        1 => Just(Step::Reset),
    ];
    prop::collection::vec(step, 1..120)
}

/// What a reader of the events knows: how many physical blocks carry each hash.
#[derive(Default)]
struct Reader(HashMap<u64, usize>);

impl Reader {
    fn read(&mut self, events: Vec<CacheEvent>) -> Result<(), TestCaseError> {
        for event in events {
            match event {
                CacheEvent::Stored { hashes, parent, tokens, namespace, .. } => {
                    prop_assert_eq!(hashes.len() * BLOCK, tokens.len());
                    // Anyone can compute the chain from what the event carries.
                    if parent.is_none() {
                        let mut chain = Vec::new();
                        extend_hashes(&mut chain, SEED, &namespace, BLOCK, &tokens);
                        prop_assert_eq!(&chain, &hashes);
                    }
                    for hash in hashes {
                        *self.0.entry(hash).or_default() += 1;
                    }
                }
                CacheEvent::Removed(hash) => {
                    let count = self.0.get_mut(&hash);
                    prop_assert!(count.is_some(), "removed what was never stored");
                    let count = count.unwrap();
                    *count -= 1;
                    if *count == 0 {
                        self.0.remove(&hash);
                    }
                }
                CacheEvent::Cleared => self.0.clear(),
            }
        }
        Ok(())
    }

    /// The longest run of resident blocks from the start of a prompt, with its last token left over.
    fn hit(&self, job: &Job) -> usize {
        let mut hashes = Vec::new();
        extend_hashes(&mut hashes, SEED, &job.namespace, BLOCK, &job.prompt);
        let blocks = hashes.iter().take_while(|hash| self.0.contains_key(hash)).count();
        blocks.min((job.prompt.len() - 1) / BLOCK) * BLOCK
    }
}

fn job(step: &Step, number: u32) -> Option<Job> {
    let Step::Add { text, shared, own, output, salted } = *step else { return None };
    let base = if text { 100 } else { 200 };
    let shared = (0..shared as u32).map(|at| base + at);
    let own = (0..own as u32).map(|at| 1000 + number * 10 + at);
    // Two outputs only, so that equal continuations occur.
    let output = (0..output as u32).map(|at| 500 + at + 50 * (number % 2)).collect();
    let salt = salted.then(|| "tenant".to_owned());
    Some(Job { prompt: shared.chain(own).collect(), output, namespace: Namespace { lora: None, salt }, session: None })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn events_tell_exactly_what_the_pool_holds(
        steps in steps(),
        blocks in 12..40usize,
        step_tokens in prop::sample::select(vec![3usize, 8, 1000]),
        unhashed_first: bool,
    ) {
        let limits = Limits { block_size: BLOCK, blocks, max_running: 4, step_tokens, unhashed_first, hash_seed: SEED };
        let mut scheduler = Scheduler::new(limits);
        let mut reader = Reader::default();
        let mut jobs: HashMap<u64, Job> = HashMap::new();
        let mut ids = Vec::new();
        let mut numbers = 0..;
        for step in &steps {
            match step {
                Step::Add { .. } => {
                    let job = job(step, numbers.next().unwrap()).unwrap();
                    prop_assert!(job.prompt.len() + job.output.len() <= scheduler.capacity());
                    let id = scheduler.add(job.clone());
                    jobs.insert(id, job);
                    ids.push(id);
                }
                Step::Run => {
                    let plan = scheduler.schedule();
                    scheduler.complete(&plan);
                    reader.read(scheduler.take_events())?;
                }
                Step::Abort(which) => {
                    if !ids.is_empty() {
                        scheduler.abort(ids[which % ids.len()]);
                    }
                }
                Step::Reset => {
                    let idle = scheduler.running() == 0;
                    prop_assert_eq!(scheduler.reset_cache(), idle, "only an engine without running requests resets");
                    reader.read(scheduler.take_events())?;
                }
            }
            prop_assert_eq!(&reader.0, &scheduler.pool().residency());
            prop_assert!(scheduler.pool().cached() <= scheduler.pool().usable());
        }
        // Everything ends, whatever was preempted, and gives all its blocks back.
        for _ in 0..20_000 {
            let plan = scheduler.schedule();
            if plan.items.is_empty() {
                break;
            }
            scheduler.complete(&plan);
        }
        prop_assert_eq!(scheduler.running() + scheduler.waiting(), 0);
        prop_assert_eq!(scheduler.pool().free(), scheduler.pool().usable());
    }

    #[test]
    fn a_prompt_hits_the_longest_resident_prefix(steps in steps(), blocks in 12..40usize) {
        let limits = Limits { block_size: BLOCK, blocks, max_running: 1, step_tokens: 1000, unhashed_first: true, hash_seed: SEED };
        let mut scheduler = Scheduler::new(limits);
        let mut reader = Reader::default();
        for (number, step) in (0..).zip(&steps) {
            let Some(job) = job(step, number) else { continue };
            // One after the other: what a request finds is what the events so far left resident.
            let expected = reader.hit(&job);
            let wanted = job.output.len();
            scheduler.add(job);
            let mut tokens = 0;
            loop {
                let plan = scheduler.schedule();
                if plan.items.is_empty() {
                    break;
                }
                for progress in scheduler.complete(&plan) {
                    prop_assert_eq!(progress.cached_tokens, expected);
                    tokens += 1;
                }
            }
            prop_assert_eq!(tokens, wanted);
            reader.read(scheduler.take_events())?;
        }
    }
}

#[test]
fn a_prompt_of_whole_blocks_still_computes_its_last_one() {
    let mut scheduler = Scheduler::new(Limits {
        block_size: BLOCK,
        blocks: 16,
        max_running: 4,
        step_tokens: 1000,
        unhashed_first: true,
        hash_seed: SEED,
    });
    let mut hit = |length: u32| {
        scheduler.add(Job { prompt: (0..length).collect(), output: vec![77], ..Job::default() });
        let plan = scheduler.schedule();
        scheduler.complete(&plan)[0].cached_tokens
    };
    assert_eq!(hit(12), 0);
    assert_eq!(hit(12), 8);
    assert_eq!(hit(13), 12);
}

#[test]
fn the_youngest_request_gives_way_when_outputs_outgrow_the_pool() {
    let mut scheduler = Scheduler::new(Limits {
        block_size: BLOCK,
        blocks: 8,
        max_running: 4,
        step_tokens: 1000,
        unhashed_first: true,
        hash_seed: SEED,
    });
    let job = |base: u32| Job { prompt: vec![base; 4], output: (base..base + 20).collect(), ..Job::default() };
    let (old, young) = (scheduler.add(job(100)), scheduler.add(job(200)));
    let mut order = Vec::new();
    let mut gave_way = false;
    loop {
        let plan = scheduler.schedule();
        if plan.items.is_empty() {
            break;
        }
        gave_way |= scheduler.running() == 1 && !order.is_empty() && scheduler.waiting() == 1;
        order.extend(scheduler.complete(&plan).into_iter().map(|progress| (progress.id, progress.token)));
    }
    assert!(gave_way, "together they need 12 of 7 blocks");
    for id in [old, young] {
        let tokens: Vec<usize> = order.iter().filter(|(other, _)| *other == id).map(|(_, token)| *token).collect();
        assert_eq!(tokens, (0..20).collect::<Vec<_>>(), "every token once and in order");
    }
    let end = |id: u64| order.iter().position(|&(other, token)| other == id && token == 19);
    assert!(end(old) < end(young));
}
