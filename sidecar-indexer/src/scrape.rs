//! An engine's own report of its load, from its Prometheus metrics.

use crate::app::App;
use affinity::Slot;
use affinity::fleet::Reported;
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

/// Reads the metrics that matter from a Prometheus text page. Several engines behind one page (data-parallel ranks)
/// are added up; of their KV use the highest counts.
#[must_use]
pub fn parse(page: &str) -> Scrape {
    let sum = |names: &[&str]| values(page, names).reduce(|a, b| a + b);
    let count = |value: f64| value.clamp(0.0, f64::from(u32::MAX)) as u32;
    let running = sum(&["vllm:num_requests_running"]);
    let waiting = sum(&["vllm:num_requests_waiting"]);
    // Renamed in vLLM 0.9.2; both are there up to 0.11.
    let usage = ["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"]
        .iter()
        .find_map(|name| values(page, &[name]).reduce(f64::max));
    let reported = running.zip(waiting).zip(usage).map(|((running, waiting), usage)| Reported {
        running: count(running),
        waiting: count(waiting),
        kv_usage: usage.clamp(0.0, 1.0) as f32,
    });
    let awake = samples(page)
        .filter(|(name, labels, _)| *name == "vllm:engine_sleep_state" && labels.contains("sleep_state=\"awake\""))
        .map(|(_, _, value)| value)
        .reduce(f64::max);
    Scrape { reported, started: values(page, &["process_start_time_seconds"]).next(), asleep: awake == Some(0.0) }
}

fn values<'a>(page: &'a str, names: &'a [&'a str]) -> impl Iterator<Item = f64> + 'a {
    samples(page).filter(|(name, _, _)| names.contains(name)).map(|(_, _, value)| value).filter(|v| v.is_finite())
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

/// Reads an endpoint's metrics again and again.
pub async fn follow(app: Arc<App>, slot: Slot, url: String, every: Duration) {
    // An engine that answers slower than it is asked is asked less often, never twice at a time.
    let client = reqwest::Client::builder().timeout(every.max(Duration::from_secs(1))).no_proxy().build();
    let Ok(client) = client else { return };
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let scrape = match read(&client, &url).await {
            Ok(page) => Some(parse(&page)),
            Err(error) => {
                tracing::debug!(url, %error, "metrics cannot be read");
                None
            }
        };
        app.scraped(slot, scrape.as_ref(), Instant::now());
    }
}

async fn read(client: &reqwest::Client, url: &str) -> anyhow::Result<String> {
    let mut response = client.get(url).send().await?.error_for_status()?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        anyhow::ensure!(body.len() + chunk.len() <= LIMIT, "the page is above {LIMIT} bytes");
        body.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(parse(page), Scrape { reported: Some(expected), started, asleep: false });
    }

    #[test]
    fn old_names_are_read_too() {
        let page = "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\nvllm:gpu_cache_usage_perc 0.75\n";
        assert_eq!(parse(page).reported, Some(Reported { running: 1, waiting: 0, kv_usage: 0.75 }));
    }

    #[test]
    fn load_that_is_not_wholly_reported_is_unknown() {
        assert_eq!(parse("vllm:num_requests_running 1\n").reported, None);
        assert_eq!(
            parse("vllm:num_requests_running NaN\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0\n").reported,
            None
        );
        assert_eq!(parse(""), Scrape::default());
    }

    #[test]
    fn a_sleeping_engine_is_seen() {
        let page = "vllm:engine_sleep_state{sleep_state=\"awake\"} 0.0\nvllm:engine_sleep_state{sleep_state=\"weights_offloaded\"} 1.0\n";
        assert!(parse(page).asleep);
    }
}
