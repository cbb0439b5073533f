//! An engine's own report of its load, from its Prometheus metrics.

use crate::answer;
use crate::app::App;
use affinity::Slot;
use affinity::fleet::Reported;
use fnv::FnvBuildHasher;
use reqwest::Client;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is read of a scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scrape {
    /// The load, if the engine reports all of it.
    pub reported: Option<Reported>,
    /// When the engine's process started, seconds since the epoch by its own clock.
    pub started: Option<f64>,
    /// Whether the engine was put to sleep.
    pub asleep: bool,
}

/// Longest metrics page read; engines' are some tens of KiB.
const LIMIT: usize = 4 << 20;

/// For a page. An engine in a long step may not answer for more than a second.
const PATIENCE: Duration = Duration::from_secs(5);

/// What engines call a number, in order of preference: vLLM (KV use was renamed in 0.9.2; both names are there up to
/// 0.11), SGLang, TensorRT-LLM's `trtllm-serve`.
const RUNNING: [&str; 3] = ["vllm:num_requests_running", "sglang:num_running_reqs", "trtllm_num_requests_running"];
const WAITING: [&str; 3] = ["vllm:num_requests_waiting", "sglang:num_queue_reqs", "trtllm_num_requests_waiting"];
const USAGE: [&str; 4] =
    ["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage", "trtllm_kv_cache_utilization"];

/// Whether vLLM's engine was put to sleep.
const SLEEP: &str = "vllm:engine_sleep_state";
/// When the process started.
const STARTED: &str = "process_start_time_seconds";

/// Of a Prometheus text page the samples that matter: name, labels and value.
pub struct Page<'a>(Vec<(&'a str, &'a str, f64)>);

impl<'a> Page<'a> {
    /// Reads a page.
    #[must_use]
    pub fn new(text: &'a str) -> Self {
        let lists: [&[&str]; 4] = [&RUNNING, &WAITING, &USAGE, &[SLEEP, STARTED]];
        Self(samples(text).filter(|(name, ..)| lists.iter().any(|names| names.contains(name))).collect())
    }

    /// What it says of an engine: of several behind one page (data-parallel ranks) the one named `engine` counts; without
    /// a name they are added up, and of their KV use the highest counts.
    #[must_use]
    pub fn of(&self, engine: Option<u16>) -> Scrape {
        let ours = |labels: &str| {
            let rank = label(labels, "engine").or_else(|| label(labels, "dp_rank"));
            // SGLang's tensor- and pipeline-parallel ranks each may tell of the same requests.
            let first = |name| label(labels, name).is_none_or(|rank| rank == "0");
            engine.is_none_or(|engine| rank.is_some_and(|rank| rank.parse() == Ok(engine)))
                && first("tp_rank")
                && first("pp_rank")
        };
        let values = |name: &'static str| {
            let of = self.0.iter().filter(move |(n, labels, value)| *n == name && value.is_finite() && ours(labels));
            of.map(|(_, _, value)| *value)
        };
        let sum = |names: &[&'static str]| names.iter().find_map(|name| values(name).reduce(|a, b| a + b));
        let count = |value: f64| value.clamp(0.0, f64::from(u32::MAX)) as u32;
        let usage = USAGE.iter().find_map(|name| values(name).reduce(f64::max));
        let reported = sum(&RUNNING).zip(sum(&WAITING)).zip(usage).map(|((running, waiting), usage)| Reported {
            running: count(running),
            waiting: count(waiting),
            kv_usage: usage.clamp(0.0, 1.0) as f32,
        });
        let states = self.0.iter().filter(|(name, labels, _)| {
            *name == SLEEP && label(labels, "sleep_state") == Some("awake") && ours(labels)
        });
        let awake = states.map(|(_, _, value)| *value).reduce(f64::max);
        let started = self.0.iter().find(|(name, _, value)| *name == STARTED && value.is_finite());
        Scrape { reported, started: started.map(|(_, _, value)| *value), asleep: awake == Some(0.0) }
    }
}

/// A label's value, if it has nothing escaped in it.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let mut from = labels;
    loop {
        let at = from.find(name)?;
        let (before, rest) = from.split_at_checked(at)?;
        let rest = rest.get(name.len()..)?;
        match rest.strip_prefix("=\"") {
            Some(value) if before.is_empty() || before.ends_with(',') => return value.split('"').next(),
            _ => from = rest,
        }
    }
}

/// Name, labels and value of each sample. Label values may hold spaces and braces, and names a colon.
fn samples(page: &str) -> impl Iterator<Item = (&str, &str, f64)> {
    page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let end = line.find(['{', ' '])?;
        let (name, rest) = line.split_at_checked(end)?;
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once('}')?,
            None => ("", rest),
        };
        Some((name, labels, rest.split_ascii_whitespace().next()?.parse().ok()?))
    })
}

/// Reads an engine's metrics again and again, for all its ranks: their slots, and what the page calls them.
pub async fn follow(app: Arc<App>, client: Client, ranks: Vec<(Slot, Option<u16>)>, url: String, every: Duration) {
    // Not all engines at once: each at a time of its own within the interval.
    let phase = FnvBuildHasher::default().hash_one(&url) % u64::try_from(every.as_millis()).unwrap_or(u64::MAX).max(1);
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + Duration::from_millis(phase), every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // An engine that answers slower than it is asked is asked less often, never twice at a time.
    let patience = every.max(PATIENCE);
    let mut said = None;
    loop {
        ticks.tick().await;
        let page = read(&client, &url, patience).await;
        let failure = page.as_ref().err().map(Failure::of);
        if let (Err(error), Some(failure)) = (&page, failure) {
            tracing::debug!(url, %error, "metrics cannot be read");
            if said != Some(failure) {
                failure.say(&url, error);
            }
        }
        said = failure;
        let page = page.as_ref().ok().map(|page| Page::new(page));
        for (slot, engine) in &ranks {
            let scrape = match failure {
                // Its load becomes unknown, but it is not down.
                Some(Failure::Ours) => continue,
                Some(Failure::Late) if app.state().fleet.is_busy(*slot, Instant::now()) => continue,
                Some(Failure::NoMetrics) => Some(Scrape::default()),
                Some(Failure::Late | Failure::Gone) | None => page.as_ref().map(|page| page.of(*engine)),
            };
            app.scraped(*slot, scrape.as_ref(), Instant::now());
        }
    }
}

/// Why metrics could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// Nobody answers, or something between us and the engine says that it does not.
    Gone,
    /// Somebody is there but has not answered in time.
    Late,
    /// Somebody answers who serves none.
    NoMetrics,
    /// We cannot ask.
    Ours,
}

impl Failure {
    fn of(error: &anyhow::Error) -> Self {
        let http = error.downcast_ref::<reqwest::Error>();
        // ENFILE and EMFILE.
        let short = |error: &std::io::Error| matches!(error.raw_os_error(), Some(23 | 24));
        if error.chain().any(|cause| cause.downcast_ref().is_some_and(short)) {
            Self::Ours
        } else if http.is_some_and(|error| error.is_timeout() && !error.is_connect()) {
            Self::Late
        } else if http.and_then(reqwest::Error::status).is_some_and(|status| status.is_client_error()) {
            Self::NoMetrics
        } else {
            Self::Gone
        }
    }

    fn say(self, url: &str, error: &anyhow::Error) {
        match self {
            Self::Gone | Self::Late => {}
            Self::NoMetrics => tracing::warn!(
                url,
                %error,
                "it serves no metrics: its load is unknown. Have it serve them (SGLang: --enable-metrics), or say \
                 `metrics: none`"
            ),
            Self::Ours => tracing::warn!(
                url,
                error = format!("{error:#}"),
                "metrics cannot be asked for: this process is short of file descriptors (`ulimit -n`)"
            ),
        }
    }
}

async fn read(client: &Client, url: &str, patience: Duration) -> anyhow::Result<String> {
    let response = client.get(url).timeout(patience).send().await?.error_for_status()?;
    Ok(String::from_utf8_lossy(&answer::body(response, LIMIT).await?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(page: &str, engine: Option<u16>) -> Scrape {
        Page::new(page).of(engine)
    }

    #[tokio::test]
    async fn who_answers_without_metrics_is_not_gone_and_our_own_need_is_nobodys_failure() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/metrics", listener.local_addr().unwrap());
        let server =
            axum::Router::new().route("/busy", axum::routing::get(|| async { axum::http::StatusCode::BAD_GATEWAY }));
        let serving = tokio::spawn(async move { axum::serve(listener, server).await });
        let client = Client::new();
        let failure = async |url: &str| Failure::of(&read(&client, url, PATIENCE).await.unwrap_err());
        assert_eq!(failure(&url).await, Failure::NoMetrics);
        assert_eq!(failure(&url.replace("metrics", "busy")).await, Failure::Gone);
        serving.abort();
        let _ = serving.await;
        assert_eq!(failure(&url).await, Failure::Gone);
        let short = anyhow::Error::new(std::io::Error::from_raw_os_error(24)).context("cannot connect");
        assert_eq!(Failure::of(&short), Failure::Ours);
    }

    #[test]
    fn a_page_of_todays_engine_is_read() {
        let page = r#"
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
process_start_time_seconds 1.79515702434e+09
vllm:num_requests_running{engine="0",model_name="a {b} c"} 3.0
vllm:num_requests_running{engine="1",model_name="a {b} c"} 4.0
vllm:num_requests_waiting{engine="0"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.5 1795157071000
vllm:engine_sleep_state{engine="0",sleep_state="awake"} 1.0
"#;
        let expected = Reported { running: 7, waiting: 2, kv_usage: 0.5 };
        let started = Some(1.795_157_024_34e9);
        assert_eq!(parse(page, None), Scrape { reported: Some(expected), started, asleep: false });
        let zero = Reported { running: 3, waiting: 2, kv_usage: 0.25 };
        assert_eq!(parse(page, Some(0)), Scrape { reported: Some(zero), started, asleep: false });
        assert_eq!(parse(page, Some(1)).reported, None, "nothing is said of what waits there");
        assert_eq!(parse(page, Some(2)), Scrape { reported: None, started, asleep: false });
    }

    #[test]
    fn ranks_sleep_one_by_one() {
        let state =
            |engine, awake| format!("vllm:engine_sleep_state{{engine=\"{engine}\",sleep_state=\"awake\"}} {awake}\n");
        let page = state(0, 1) + &state(1, 0);
        assert_eq!([Some(0), Some(1), None].map(|engine| parse(&page, engine).asleep), [false, true, false]);
    }

    #[test]
    fn other_engines_names_are_read() {
        let sglang = r#"
sglang:num_running_reqs{dp_rank="0",engine_type="unified",model_name="m",tp_rank="0"} 2.0
sglang:num_running_reqs{dp_rank="0",engine_type="unified",model_name="m",tp_rank="1"} 2.0
sglang:num_running_reqs{dp_rank="1",engine_type="unified",model_name="m",tp_rank="0"} 5.0
sglang:num_queue_reqs{dp_rank="0",engine_type="unified",model_name="m",tp_rank="0"} 1.0
sglang:num_queue_reqs{dp_rank="1",engine_type="unified",model_name="m",tp_rank="0"} 0.0
sglang:token_usage{dp_rank="0",engine_type="unified",model_name="m",tp_rank="0"} 0.5
sglang:token_usage{dp_rank="1",engine_type="unified",model_name="m",tp_rank="0"} 0.25
"#;
        assert_eq!(parse(sglang, None).reported, Some(Reported { running: 7, waiting: 1, kv_usage: 0.5 }));
        assert_eq!(parse(sglang, Some(1)).reported, Some(Reported { running: 5, waiting: 0, kv_usage: 0.25 }));
        let trtllm = "trtllm_num_requests_running{model_name=\"m\"} 1\ntrtllm_num_requests_waiting{model_name=\"m\"} 2\n\
                      trtllm_kv_cache_utilization{model_name=\"m\"} 0.75\n";
        assert_eq!(parse(trtllm, None).reported, Some(Reported { running: 1, waiting: 2, kv_usage: 0.75 }));
    }

    #[test]
    fn labels_are_told_apart() {
        let labels = r#"engine_type="unified",model_name="engine=",engine="12""#;
        assert_eq!((label(labels, "engine"), label(labels, "type")), (Some("12"), None));
    }

    #[test]
    fn old_names_are_read_too() {
        let page = "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\nvllm:gpu_cache_usage_perc 0.75\n";
        assert_eq!(parse(page, None).reported, Some(Reported { running: 1, waiting: 0, kv_usage: 0.75 }));
    }

    #[test]
    fn load_that_is_not_wholly_reported_is_unknown() {
        assert_eq!(parse("vllm:num_requests_running 1\n", None).reported, None);
        assert_eq!(
            parse("vllm:num_requests_running NaN\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0\n", None)
                .reported,
            None
        );
        assert_eq!(parse("", None), Scrape::default());
    }

    #[tokio::test]
    async fn who_does_not_answer_is_late_and_who_refuses_is_not() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/metrics", silent.local_addr().unwrap());
        let client = Client::builder().no_proxy().build().unwrap();
        let late = read(&client, &url, Duration::from_millis(500)).await.unwrap_err();
        assert_eq!(Failure::of(&late), Failure::Late);
        drop(silent);
        let gone = read(&client, &url, Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(Failure::of(&gone), Failure::Gone);
    }

    #[test]
    fn a_sleeping_engine_is_seen() {
        let page = "vllm:engine_sleep_state{sleep_state=\"awake\"} 0.0\nvllm:engine_sleep_state{sleep_state=\"weights_offloaded\"} 1.0\n";
        assert!(parse(page, None).asleep);
    }
}
