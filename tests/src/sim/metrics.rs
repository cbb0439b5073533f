//! `/metrics` with vLLM's names and labels.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const TTFT_BOUNDS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];

/// Counters since the engine started.
#[derive(Clone, Debug)]
pub struct Counters {
    started: f64,
    /// Tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Tokens found there.
    pub prefix_hits: u64,
    /// Prompt tokens of requests that got their first token.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
    /// Requests that generated all their tokens.
    pub finished: u64,
    /// Requests whose client went away.
    pub aborted: u64,
    ttft_buckets: [u64; TTFT_BOUNDS.len()],
    ttft_count: u64,
    ttft_sum: f64,
}

impl Default for Counters {
    fn default() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            started: now.as_secs_f64(),
            prefix_queries: 0,
            prefix_hits: 0,
            prompt_tokens: 0,
            generation_tokens: 0,
            finished: 0,
            aborted: 0,
            ttft_buckets: [0; TTFT_BOUNDS.len()],
            ttft_count: 0,
            ttft_sum: 0.0,
        }
    }
}

/// What an engine shows of itself beside its counters.
#[derive(Clone, Debug)]
pub struct Gauges {
    /// Requests that hold blocks.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Referenced share of the pool, 0 to 1.
    pub usage: f64,
    /// Tokens per block.
    pub block_size: usize,
    /// Blocks in the pool, with the null block.
    pub blocks: usize,
}

impl Counters {
    /// A request got its first token after `wait`.
    pub fn observe_ttft(&mut self, wait: Duration) {
        let seconds = wait.as_secs_f64();
        self.ttft_count += 1;
        self.ttft_sum += seconds;
        for (bound, bucket) in TTFT_BOUNDS.iter().zip(&mut self.ttft_buckets) {
            *bucket += u64::from(seconds <= *bound);
        }
    }

    /// The exposition text for one engine, or one data-parallel rank, that serves `model`.
    pub fn render(&self, model: &str, rank: usize, gauges: &Gauges) -> String {
        let mut text = String::new();
        let labels = format!("engine=\"{rank}\",model_name=\"{model}\"");
        head(
            &mut text,
            "process_start_time_seconds",
            "gauge",
            "Start time of the process since unix epoch in seconds.",
        );
        line(&mut text, "process_start_time_seconds", "", self.started);
        for (name, kind, help, value) in [
            ("num_requests_running", "gauge", "Number of requests in model execution batches.", gauges.running as f64),
            ("num_requests_waiting", "gauge", "Number of requests waiting to be processed.", gauges.waiting as f64),
            ("kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", gauges.usage),
            (
                "prefix_cache_queries_total",
                "counter",
                "Prefix cache queries, in terms of number of queried tokens.",
                self.prefix_queries as f64,
            ),
            (
                "prefix_cache_hits_total",
                "counter",
                "Prefix cache hits, in terms of number of cached tokens.",
                self.prefix_hits as f64,
            ),
            ("prompt_tokens_total", "counter", "Number of prefill tokens processed.", self.prompt_tokens as f64),
            (
                "generation_tokens_total",
                "counter",
                "Number of generation tokens processed.",
                self.generation_tokens as f64,
            ),
        ] {
            let name = format!("vllm:{name}");
            head(&mut text, &name, kind, help);
            line(&mut text, &name, &labels, value);
        }
        let name = "vllm:request_success_total";
        head(&mut text, name, "counter", "Count of successfully processed requests.");
        for (reason, value) in [("stop", 0), ("length", self.finished), ("abort", self.aborted), ("error", 0)] {
            let labels = format!("engine=\"{rank}\",finished_reason=\"{reason}\",model_name=\"{model}\"");
            line(&mut text, name, &labels, value as f64);
        }
        let name = "vllm:time_to_first_token_seconds";
        head(&mut text, name, "histogram", "Histogram of time to first token in seconds.");
        let bounds = TTFT_BOUNDS.iter().map(|bound| format!("{bound:?}"));
        let counts = self.ttft_buckets.iter().copied();
        for (bound, count) in bounds.zip(counts).chain([("+Inf".to_owned(), self.ttft_count)]) {
            let labels = format!("engine=\"{rank}\",le=\"{bound}\",model_name=\"{model}\"");
            line(&mut text, &format!("{name}_bucket"), &labels, count as f64);
        }
        line(&mut text, &format!("{name}_count"), &labels, self.ttft_count as f64);
        line(&mut text, &format!("{name}_sum"), &labels, self.ttft_sum);
        let name = "vllm:cache_config_info";
        head(&mut text, name, "gauge", "Information of the LLMEngine CacheConfig");
        let labels = format!(
            "block_size=\"{}\",cache_dtype=\"auto\",enable_prefix_caching=\"True\",engine=\"{rank}\",kv_cache_size_tokens=\"{}\",num_gpu_blocks=\"{}\",prefix_caching_hash_algo=\"sha256\"",
            gauges.block_size,
            gauges.block_size * gauges.blocks,
            gauges.blocks,
        );
        line(&mut text, name, &labels, 1.0);
        text
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    // A String takes every write.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(text: &mut String, name: &str, labels: &str, value: f64) {
    let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    let _ = writeln!(text, "{name}{labels} {value:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_of_the_first_token_histogram_are_cumulative() {
        let mut counters = Counters::default();
        counters.observe_ttft(Duration::from_millis(15));
        counters.observe_ttft(Duration::from_secs(3000));
        let gauges = Gauges { running: 1, waiting: 2, usage: 0.5, block_size: 16, blocks: 64 };
        let text = counters.render("tiny", 0, &gauges);
        let value = |bound: &str| {
            let wanted =
                format!("vllm:time_to_first_token_seconds_bucket{{engine=\"0\",le=\"{bound}\",model_name=\"tiny\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&wanted)).map(str::to_owned).unwrap()
        };
        assert_eq!(value("0.01"), "0.0");
        assert_eq!(value("0.02"), "1.0");
        assert_eq!(value("2560.0"), "1.0");
        assert_eq!(value("+Inf"), "2.0");
        assert!(text.contains("vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"tiny\"} 0.5\n"), "{text}");
        assert!(text.contains("block_size=\"16\""), "{text}");
    }
}
