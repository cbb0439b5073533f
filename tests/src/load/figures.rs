//! Summing up.

use std::time::Duration;

use serde::Serialize;

use super::Record;

/// What a run of a workload came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Requests sent.
    pub requests: usize,
    /// Of those, without a whole answer. The other figures leave them out.
    pub failed: usize,
    /// Prompt tokens, as the engines count them.
    pub prompt_tokens: u64,
    /// Of those, served from cache, as the engines report it.
    pub cached_tokens: u64,
    /// `cached_tokens / prompt_tokens`.
    pub cached_share: f64,
    /// Median time to the first token, in seconds.
    pub ttft_p50_s: f64,
    /// 90th percentile, in seconds.
    pub ttft_p90_s: f64,
    /// 99th percentile, in seconds.
    pub ttft_p99_s: f64,
    /// Whole answers per second.
    pub requests_per_s: f64,
}

impl Figures {
    /// Sums up what happened within `time`.
    #[must_use]
    pub fn new(records: &[Record], time: Duration) -> Self {
        let answers: Vec<_> = records.iter().filter_map(|record| record.answer.as_ref().ok()).collect();
        let prompt_tokens: u64 = answers.iter().map(|answer| answer.prompt_tokens).sum();
        let cached_tokens = answers.iter().map(|answer| answer.cached_tokens).sum();
        let mut ttft: Vec<f64> = answers.iter().map(|answer| answer.ttft.as_secs_f64()).collect();
        ttft.sort_by(f64::total_cmp);
        Self {
            requests: records.len(),
            failed: records.len() - answers.len(),
            prompt_tokens,
            cached_tokens,
            cached_share: share(cached_tokens, prompt_tokens),
            ttft_p50_s: percentile(&ttft, 50.0),
            ttft_p90_s: percentile(&ttft, 90.0),
            ttft_p99_s: percentile(&ttft, 99.0),
            requests_per_s: answers.len() as f64 / time.as_secs_f64(),
        }
    }
}

/// `part / whole`; 0 of nothing.
pub(super) fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// The smallest of the ascending values that at least `percent` of them do not exceed; 0 if there are none.
#[must_use]
pub fn percentile(ascending: &[f64], percent: f64) -> f64 {
    let rank = (percent / 100.0 * ascending.len() as f64).ceil() as usize;
    ascending.get(rank.max(1) - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;
    use crate::load::Answer;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!([50.0, 90.0, 99.0, 100.0].map(|p| percentile(&hundred, p)), [50.0, 90.0, 99.0, 100.0]);
        assert_eq!(percentile(&[1.0, 2.0, 3.0], 50.0), 2.0);
        assert_eq!(percentile(&[1.0, 2.0, 3.0], 99.0), 3.0);
        assert_eq!(percentile(&[], 50.0), 0.0);
    }

    #[test]
    fn failed_requests_count_as_such_and_nowhere_else() {
        let answer = |cached_tokens, millis| Answer {
            ttft: Duration::from_millis(millis),
            total: Duration::from_secs(1),
            text: String::new(),
            prompt_tokens: 100,
            cached_tokens,
            completion_tokens: 1,
        };
        let record = |answer| Record { messages: Vec::new(), answer };
        let records = [record(Ok(answer(20, 10))), record(Err(anyhow!("no"))), record(Ok(answer(80, 30)))];
        let figures = Figures::new(&records, Duration::from_secs(4));
        assert_eq!((figures.requests, figures.failed), (3, 1));
        assert_eq!((figures.cached_share, figures.requests_per_s), (0.5, 0.5));
        assert_eq!((figures.ttft_p50_s, figures.ttft_p99_s), (0.01, 0.03));
    }
}
