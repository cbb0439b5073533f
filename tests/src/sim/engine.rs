//! The scheduler in real time: waits as long as a step would compute, then hands out tokens,
//! events and numbers.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::config::Control;
use super::metrics::{Counters, Gauges};
use super::publisher::Publisher;
use super::scheduler::{Job, Limits, Plan, Progress, Scheduler};

/// How far behind its clock an engine may be before it lets time go: the timer's resolution is a
/// millisecond, so that without catching up every step would be too long.
const CATCH_UP: Duration = Duration::from_millis(20);

/// What an engine did, as GET /sim/stats shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// Engine requests so far (one per prompt and choice).
    pub requests: u64,
    /// Requests that got all their tokens.
    pub finished: u64,
    /// Requests whose client went away.
    pub aborted: u64,
    /// Prompt tokens of all scheduled requests.
    pub prompt_tokens: u64,
    /// Prompt tokens of those found in the cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
    /// Running and waiting requests.
    pub in_flight: usize,
    /// Requests that hold blocks.
    pub running: usize,
    /// Requests that wait for blocks or a place.
    pub waiting: usize,
    /// Blocks that can be used in all.
    pub blocks: usize,
    /// Blocks that requests refer to now.
    pub blocks_used: usize,
    /// Blocks whose content can be found.
    pub blocks_cached: usize,
    /// Event batches published so far, which is the next batch's number.
    pub event_batches: u64,
    /// The last requests, oldest first.
    pub log: Vec<LogEntry>,
}

/// One request in the log.
#[derive(Clone, Debug, Serialize)]
pub struct LogEntry {
    /// Counts up from 0 in order of arrival.
    pub id: u64,
    /// Path of the HTTP request.
    pub path: String,
    /// Its `x-*` headers.
    pub headers: BTreeMap<String, String>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of those, found in the cache; none before the request was scheduled.
    pub cached_tokens: Option<usize>,
    /// Tokens generated so far.
    pub completion_tokens: usize,
    /// Time to the first token, in milliseconds.
    pub ttft_ms: Option<f64>,
    /// `length` or `abort` once it ended.
    pub finish_reason: Option<&'static str>,
}

/// Where a request came from, for the log.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// Path of the HTTP request.
    pub path: String,
    /// Headers to remember.
    pub headers: BTreeMap<String, String>,
}

struct Sink {
    choice: usize,
    tokens: mpsc::UnboundedSender<(usize, Progress)>,
    arrived: Instant,
    prompt_tokens: usize,
}

struct State {
    scheduler: Scheduler,
    sinks: HashMap<u64, Sink>,
    counters: Counters,
    requests: u64,
    log: VecDeque<LogEntry>,
}

/// One engine: submit requests, watch them progress. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    state: Arc<Mutex<State>>,
    work: Arc<Notify>,
    control: watch::Sender<Control>,
    publisher: Publisher,
    limits: Limits,
    max_tokens: usize,
    log_requests: usize,
}

impl Engine {
    /// An engine whose loop runs as a task of the current runtime.
    pub fn start(
        limits: Limits,
        max_model_len: usize,
        log_requests: usize,
        control: Control,
        publisher: Publisher,
    ) -> Self {
        let scheduler = Scheduler::new(limits.clone());
        let max_tokens = max_model_len.min(scheduler.capacity());
        let state = State {
            scheduler,
            sinks: HashMap::new(),
            counters: Counters::default(),
            requests: 0,
            log: VecDeque::new(),
        };
        let (control, _) = watch::channel(control);
        let this = Self {
            state: Arc::new(Mutex::new(state)),
            work: Arc::default(),
            control,
            publisher,
            limits,
            max_tokens,
            log_requests,
        };
        tokio::spawn(this.clone().run());
        this
    }

    /// Tokens of prompt and output together that a request may have.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Queues a request whose progress goes to `tokens`, labelled `choice`. It is aborted when the
    /// receiver is gone.
    pub fn submit(&self, job: Job, origin: Origin, choice: usize, tokens: mpsc::UnboundedSender<(usize, Progress)>) {
        let mut state = self.lock();
        let prompt_tokens = job.prompt.len();
        let id = state.scheduler.add(job);
        state.requests += 1;
        state.sinks.insert(id, Sink { choice, tokens, arrived: Instant::now(), prompt_tokens });
        state.log.push_back(LogEntry {
            id,
            path: origin.path,
            headers: origin.headers,
            prompt_tokens,
            cached_tokens: None,
            completion_tokens: 0,
            ttft_ms: None,
            finish_reason: None,
        });
        if state.log.len() > self.log_requests {
            state.log.pop_front();
        }
        drop(state);
        self.work.notify_one();
    }

    /// Drops the cache; refused while a request holds blocks. As in vLLM, the event goes out with
    /// the next step.
    pub fn reset_cache(&self) -> bool {
        self.lock().scheduler.reset_cache()
    }

    /// The current settings.
    pub fn control(&self) -> Control {
        self.control.borrow().clone()
    }

    /// Replaces the settings. The next step keeps to them.
    pub fn set_control(&self, mut control: Control) {
        self.publisher.pause(control.events_paused);
        if control.lose_batches > 0 {
            // An order, not a state: later changes of other fields must not repeat it.
            self.publisher.lose(std::mem::take(&mut control.lose_batches));
        }
        self.control.send_replace(control);
    }

    /// Uses up one of the ordered failures: the status to answer, if there is one.
    pub fn take_failure(&self) -> Option<u16> {
        let mut status = None;
        self.control.send_if_modified(|control| {
            let failing = control.fail_next > 0;
            if failing {
                control.fail_next -= 1;
                status = Some(control.fail_status);
            }
            failing
        });
        status
    }

    /// Waits while the engine is told to hang.
    pub async fn unless_hanging(&self) {
        // The sender lives in self.
        let _ = self.control.subscribe().wait_for(|control| !control.hang).await;
    }

    /// What happened so far.
    pub fn stats(&self) -> Stats {
        let state = self.lock();
        let pool = state.scheduler.pool();
        Stats {
            requests: state.requests,
            finished: state.counters.finished,
            aborted: state.counters.aborted,
            prompt_tokens: state.counters.prefix_queries,
            cached_tokens: state.counters.prefix_hits,
            generation_tokens: state.counters.generation_tokens,
            in_flight: state.sinks.len(),
            running: state.scheduler.running(),
            waiting: state.scheduler.waiting(),
            blocks: pool.usable(),
            blocks_used: pool.usable() - pool.free(),
            blocks_cached: pool.cached(),
            event_batches: self.publisher.sequence(),
            log: state.log.iter().cloned().collect(),
        }
    }

    /// Text of /metrics.
    pub fn metrics(&self, model: &str, rank: usize) -> String {
        let state = self.lock();
        let pool = state.scheduler.pool();
        let gauges = Gauges {
            running: state.scheduler.running(),
            waiting: state.scheduler.waiting(),
            usage: (pool.usable() - pool.free()) as f64 / pool.usable() as f64,
            block_size: self.limits.block_size,
            blocks: self.limits.blocks,
        };
        state.counters.render(model, rank, &gauges)
    }

    async fn run(self) {
        let mut clock = Instant::now();
        loop {
            let plan = {
                let mut state = self.lock();
                state.drop_abandoned();
                state.scheduler.schedule()
            };
            if plan.items.is_empty() {
                self.work.notified().await;
                clock = Instant::now();
                continue;
            }
            let time = step_time(&self.control.borrow(), &plan);
            if time.is_zero() {
                // Lets handlers take requests in and send tokens out between steps.
                tokio::task::yield_now().await;
            } else {
                clock = clock.max(Instant::now() - CATCH_UP) + time;
                tokio::time::sleep_until(clock).await;
            }
            let mut state = self.lock();
            let produced = state.scheduler.complete(&plan);
            let events = state.scheduler.take_events();
            if !events.is_empty() {
                self.publisher.publish(&events);
            }
            for progress in produced {
                state.deliver(progress);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn drop_abandoned(&mut self) {
        let gone: Vec<u64> = self.sinks.iter().filter(|(_, sink)| sink.tokens.is_closed()).map(|(&id, _)| id).collect();
        for id in gone {
            self.sinks.remove(&id);
            self.scheduler.abort(id);
            self.counters.aborted += 1;
            if let Some(entry) = self.entry(id) {
                entry.finish_reason = Some("abort");
            }
        }
    }

    fn deliver(&mut self, progress: Progress) {
        let Some(sink) = self.sinks.get(&progress.id) else { return };
        // A receiver that is gone is noticed before the next step.
        let _ = sink.tokens.send((sink.choice, progress));
        let waited = sink.arrived.elapsed();
        self.counters.generation_tokens += 1;
        if progress.token == 0 {
            self.counters.observe_ttft(waited);
            self.counters.prompt_tokens += sink.prompt_tokens as u64;
            self.counters.prefix_queries += sink.prompt_tokens as u64;
            self.counters.prefix_hits += progress.cached_tokens as u64;
        }
        if progress.finished {
            self.sinks.remove(&progress.id);
            self.counters.finished += 1;
        }
        if let Some(entry) = self.entry(progress.id) {
            entry.completion_tokens = progress.token + 1;
            if progress.token == 0 {
                entry.ttft_ms = Some(waited.as_secs_f64() * 1e3);
                entry.cached_tokens = Some(progress.cached_tokens);
            }
            if progress.finished {
                entry.finish_reason = Some("length");
            }
        }
    }

    fn entry(&mut self, id: u64) -> Option<&mut LogEntry> {
        let first = self.log.front()?.id;
        self.log.get_mut(usize::try_from(id.checked_sub(first)?).ok()?)
    }
}

/// How long the engine would compute: the uncached prompt tokens one after the other, and one
/// decode step if any request is that far.
fn step_time(control: &Control, plan: &Plan) -> Duration {
    let mut seconds = 0.0;
    if plan.prefill_tokens > 0 {
        seconds += control.prefill_overhead_ms / 1e3;
        if control.prefill_tokens_per_second > 0.0 {
            seconds += plan.prefill_tokens as f64 / control.prefill_tokens_per_second;
        }
    }
    if plan.decoding > 0 {
        seconds += control.decode_ms_per_token / 1e3;
    }
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}
