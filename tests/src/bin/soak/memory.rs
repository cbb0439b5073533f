//! Whether memory grows.

use std::time::Duration;

/// Beside blocks: the program, the vocabulary, sockets and messages on their way.
const BASE: u64 = 300 << 20;
/// Per block that the configuration allows; twice what the index needs, for the allocator's sake.
const PER_BLOCK: u64 = 128;
/// How much more the last third may mostly need than the second, in bytes and as a share.
const SLACK: u64 = 16 << 20;
const GROWTH: f64 = 1.05;

/// Samples of a process's memory.
#[derive(Default)]
pub struct Memory {
    samples: Vec<(Duration, u64)>,
}

impl Memory {
    pub fn look(&mut self, at: Duration, bytes: u64) {
        self.samples.push((at, bytes));
    }

    pub fn last(&self) -> u64 {
        self.samples.last().map_or(0, |(_, bytes)| *bytes)
    }

    /// Each third's samples, sorted by size: what is held back while an engine's replay is under way makes peaks that come
    /// by chance, and what leaks stays.
    fn thirds(&self) -> [Vec<u64>; 3] {
        let end = self.samples.last().map_or(Duration::ZERO, |(at, _)| *at);
        [0, 1, 2].map(|third: u32| {
            let of = self.samples.iter().filter(|(at, _)| (end * third / 3..=end * (third + 1) / 3).contains(at));
            let mut bytes: Vec<_> = of.map(|(_, bytes)| *bytes).collect();
            bytes.sort_unstable();
            bytes
        })
    }

    pub fn summary(&self) -> String {
        let said = |bytes: &[u64]| {
            let megabytes = |bytes: u64| bytes as f64 / 1e6;
            format!("{:.0} ({:.0})", megabytes(median(bytes)), megabytes(highest(bytes)))
        };
        let thirds = self.thirds().map(|bytes| said(&bytes));
        format!("memory of the indexer, median (highest) of each third of the time: {} MB", thirds.join(", "))
    }

    /// What is wrong with it, for an index that may hold this many blocks.
    pub fn complaint(&self, blocks: usize) -> Option<String> {
        let thirds = self.thirds();
        let most = BASE + PER_BLOCK * blocks as u64;
        if let Some(bytes) = thirds.iter().map(|bytes| highest(bytes)).find(|bytes| *bytes > most) {
            return Some(format!("the indexer uses {bytes} bytes, more than {most}"));
        }
        let [_, second, third] = thirds.map(|bytes| median(&bytes));
        let flat = (second as f64 * GROWTH) as u64 + SLACK;
        (third > flat).then(|| format!("memory grows: from {second} bytes in the second third to {third} in the last"))
    }
}

fn median(sorted: &[u64]) -> u64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

fn highest(sorted: &[u64]) -> u64 {
    sorted.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(samples: impl IntoIterator<Item = u64>) -> Option<String> {
        let mut memory = Memory::default();
        for (second, megabytes) in (0..).zip(samples) {
            memory.look(Duration::from_secs(second), megabytes << 20);
        }
        memory.complaint(1_000_000)
    }

    #[test]
    fn growth_is_complained_of_once_caches_are_full_and_bounds_always() {
        assert_eq!(after((0..90).map(|i| 100 + i.min(30))), None);
        assert_eq!(after((0..90).map(|i| if i == 80 { 200 } else { 100 })), None, "a peak");
        assert!(after((0..90).map(|i| 100 + 2 * i)).unwrap().contains("grows"));
        assert!(after((0..90).map(|_| 500)).unwrap().contains("more than"));
    }
}
