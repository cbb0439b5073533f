//! How an index is timed.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::System;
use super::work::{Prompt, Step, Work};

/// Prompts whose answer is looked at before anything counts.
const CHECKED: usize = 500;

/// A load is taken in anew until so many blocks went by, but at most [`PASSES`] times: one pass of some milliseconds would
/// time page faults and cold caches before anything else.
const MEASURED: usize = 1_500_000;
const PASSES: usize = 10;

/// How fast changes were taken in.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Blocks stored or removed per second that went by.
    pub blocks_per_second: f64,
    /// CPU time of the process per block, all threads.
    pub cpu_us: f64,
}

/// Of single lookups, each timed alone.
#[derive(Clone, Copy, Debug)]
pub struct Percentiles {
    /// Median, in microseconds.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
}

/// One index under one load, once.
#[derive(Clone, Debug)]
pub struct Figures {
    /// From frames.
    pub raw: Option<Rate>,
    /// From events in memory, with tokens.
    pub decoded: Rate,
    /// From events with hashes.
    pub hashed: Option<Rate>,
    /// Prompts that are held as a whole; under a trace, every prompt when it came.
    pub lookup: Percentiles,
    /// Prompts that part from what is held.
    pub parting: Option<Percentiles>,
    /// Hashing a prompt, before it is looked up.
    pub hashing: Percentiles,
    /// Bytes allocated per block that an engine holds.
    pub bytes_per_block: f64,
}

/// Runs a load through an index some times over, each time through a new one. `allocated`: bytes in use now.
pub fn measure<S: System>(work: &Work, allocated: &dyn Fn() -> usize) -> Figures {
    let before = allocated();
    let take = |system: &mut S, worker, frame: &[u8]| {
        let events = system.read(worker, frame);
        let hashed = system.hash(worker, events);
        system.apply(worker, hashed);
    };
    let (raw, mut system) = rate(
        work,
        || S::new(work.workers),
        |system| {
            for (worker, frame) in work.frames() {
                take(system, worker, frame);
            }
            system.finish();
        },
    );
    let bytes_per_block = (allocated() as f64 - before as f64) / work.resident as f64;
    for prompt in work.prompts.iter().step_by(work.prompts.len().div_ceil(CHECKED)) {
        system.check(prompt);
    }
    let (lookup, parting) = if work.steps.iter().any(|step| matches!(step, Step::Request)) {
        drop(system);
        let mut queries = queries(&S::new(work.workers), &work.prompts).into_iter();
        let mut system = S::new(work.workers);
        let mut times = Vec::with_capacity(work.prompts.len());
        for step in &work.steps {
            match step {
                Step::Frame(worker, frame) => take(&mut system, *worker, frame),
                Step::Request => {
                    system.finish();
                    let query = queries.next().expect("there is a prompt for each request");
                    times.push(time(|| system.find(query)));
                }
            }
        }
        (Percentiles::of(times), None)
    } else {
        let (whole, parting) = work.prompts.split_at(work.prompts.len() / 2);
        let (whole, parting) = (queries(&system, whole), queries(&system, parting));
        let mut find =
            |queries: Vec<S::Query>| Percentiles::of(queries.into_iter().map(|q| time(|| system.find(q))).collect());
        let lookup = find(whole);
        (lookup, Some(find(parting)))
    };
    let system = S::new(work.workers);
    let hashing = Percentiles::of(work.prompts.iter().map(|prompt| time(|| system.query(prompt))).collect());
    drop(system);

    let (decoded, _) = rate(
        work,
        || {
            let mut system = S::new(work.workers);
            let batches: Vec<_> = work.frames().map(|(worker, frame)| (worker, system.read(worker, frame))).collect();
            (system, batches)
        },
        |(system, batches)| {
            for (worker, events) in batches.drain(..) {
                let hashed = system.hash(worker, events);
                system.apply(worker, hashed);
            }
            system.finish();
        },
    );
    let hashed = S::TAKES_HASHES.then(|| {
        let fresh = || {
            let mut system = S::new(work.workers);
            let hashed = |(worker, frame)| {
                let events = system.read(worker, frame);
                (worker, system.hash(worker, events))
            };
            let batches: Vec<_> = work.frames().map(hashed).collect();
            (system, batches)
        };
        let run = |(system, batches): &mut (S, Vec<(u16, S::Hashed)>)| {
            for (worker, hashed) in batches.drain(..) {
                system.apply(worker, hashed);
            }
            system.finish();
        };
        rate(work, fresh, run).0
    });
    Figures { raw: S::READS_FRAMES.then_some(raw), decoded, hashed, lookup, parting, hashing, bytes_per_block }
}

fn queries<S: System>(system: &S, prompts: &[Prompt]) -> Vec<S::Query> {
    prompts.iter().map(|prompt| system.query(prompt)).collect()
}

fn time<T>(work: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    std::hint::black_box(work());
    start.elapsed().as_secs_f64() * 1e6
}

/// Times `run`, each time with something fresh; gives the last, too.
fn rate<T>(work: &Work, fresh: impl Fn() -> T, run: impl Fn(&mut T)) -> (Rate, T) {
    let passes = (MEASURED / work.changes).clamp(1, PASSES);
    let (mut seconds, mut cpu, mut last) = (0.0, 0.0, fresh());
    for pass in 0..passes {
        if pass > 0 {
            last = fresh();
        }
        let (start, cpu_before) = (Instant::now(), self::cpu());
        run(&mut last);
        seconds += start.elapsed().as_secs_f64();
        cpu += self::cpu() - cpu_before;
    }
    let changes = (passes * work.changes) as f64;
    (Rate { blocks_per_second: changes / seconds, cpu_us: cpu * 1e6 / changes }, last)
}

/// CPU time that this process has used, in seconds.
pub(super) fn cpu() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

impl Percentiles {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values[((values.len() - 1) as f64 * share) as usize];
        Self { p50_us: at(0.5), p99_us: at(0.99) }
    }

    fn json(self) -> Value {
        json!({"p50_us": self.p50_us, "p99_us": self.p99_us})
    }
}

/// Every figure's median over rounds.
pub trait Median: Sized {
    /// Of at least one.
    fn median(rounds: &[Self]) -> Self;
}

impl Median for f64 {
    fn median(rounds: &[Self]) -> Self {
        let mut sorted = rounds.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }
}

impl<T: Median + Clone> Median for Option<T> {
    fn median(rounds: &[Self]) -> Self {
        let some: Vec<T> = rounds.iter().flatten().cloned().collect();
        (!some.is_empty()).then(|| T::median(&some))
    }
}

impl Median for super::Parts {
    fn median(rounds: &[Self]) -> Self {
        let of = |field: fn(&Self) -> f64| f64::median(&rounds.iter().map(field).collect::<Vec<_>>());
        Self { read: of(|p| p.read), apply: of(|p| p.apply), pages: of(|p| p.pages) }
    }
}

impl Median for Rate {
    fn median(rounds: &[Self]) -> Self {
        let of = |field: fn(&Self) -> f64| f64::median(&rounds.iter().map(field).collect::<Vec<_>>());
        Self { blocks_per_second: of(|r| r.blocks_per_second), cpu_us: of(|r| r.cpu_us) }
    }
}

impl Median for Percentiles {
    fn median(rounds: &[Self]) -> Self {
        let of = |field: fn(&Self) -> f64| f64::median(&rounds.iter().map(field).collect::<Vec<_>>());
        Self { p50_us: of(|p| p.p50_us), p99_us: of(|p| p.p99_us) }
    }
}

impl Median for Figures {
    fn median(rounds: &[Self]) -> Self {
        fn of<T: Median>(rounds: &[Figures], field: impl Fn(&Figures) -> T) -> T {
            T::median(&rounds.iter().map(field).collect::<Vec<_>>())
        }
        Self {
            raw: of(rounds, |f| f.raw),
            decoded: of(rounds, |f| f.decoded),
            hashed: of(rounds, |f| f.hashed),
            lookup: of(rounds, |f| f.lookup),
            parting: of(rounds, |f| f.parting),
            hashing: of(rounds, |f| f.hashing),
            bytes_per_block: of(rounds, |f| f.bytes_per_block),
        }
    }
}

impl Figures {
    /// For other programs.
    pub fn json(&self) -> Value {
        let rate = |rate: Rate| json!({"blocks_per_s": rate.blocks_per_second, "cpu_us_per_block": rate.cpu_us});
        json!({
            "raw": self.raw.map(rate),
            "decoded": rate(self.decoded),
            "hashed": self.hashed.map(rate),
            "lookup": self.lookup.json(),
            "lookup_parting": self.parting.map(Percentiles::json),
            "hash_a_prompt": self.hashing.json(),
            "bytes_per_block": self.bytes_per_block,
        })
    }
}
