//! Times ways of hashing a 30 KB prompt stride by stride, inside the wasm runtime that the filter runs in.
//!
//! Not shipped: `cargo xtask bench hash` builds this module, starts it in Envoy and reads its log. Each result is one
//! line, `hash_bench NAME NANOSECONDS`. It hashes when it is configured, so no request is needed.

use affinity::fingerprint::{Chain, fingerprints};
use affinity::{Fingerprint, Stride, root};
use proxy_wasm::traits::{Context, RootContext};
use std::hash::Hasher;
use std::hint::black_box;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64_with_seed;
use xxhash_rust::xxh64::xxh64;

/// Bytes of the prompt.
const PROMPT: usize = 30 * 1024;
/// Bytes per stride.
const STRIDE: usize = 128;
/// Hashings per timed run: enough to make the host's clock exact.
const REPEATS: u32 = 50;
/// Runs of each way, the ways taking turns. The fastest counts: others were interrupted.
const RUNS: u32 = 60;

mod start {
    use super::Root;
    proxy_wasm::main! {{
        proxy_wasm::set_log_level(proxy_wasm::types::LogLevel::Info);
        proxy_wasm::set_root_context(|_| Box::new(Root));
    }}
}

struct Root;

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        let prompt = prompt();
        if !chain_agrees(&prompt) {
            log::error!("hash_bench: affinity's fingerprints and its Chain differ");
            return false;
        }
        let mut best = WAYS.map(|_| Duration::MAX);
        let mut out = Vec::with_capacity(PROMPT / STRIDE);
        for _ in 0..RUNS {
            for ((_, hash), best) in WAYS.iter().zip(&mut best) {
                let start = Instant::now();
                for _ in 0..REPEATS {
                    out.clear();
                    hash(black_box(&prompt), &mut out);
                    black_box(&out);
                }
                *best = start.elapsed().min(*best);
            }
        }
        for ((name, _), best) in WAYS.iter().zip(best) {
            log::info!("hash_bench {name} {}", best.as_nanos() / u128::from(REPEATS));
        }
        true
    }
}

type Hash = fn(&[u8], &mut Vec<Fingerprint>);

/// Every way yields one 64-bit hash of the prompt's beginning per stride.
const WAYS: [(&str, Hash); 6] = [
    ("affinity", affinity_whole),
    ("affinity_chain", affinity_chain),
    ("xxh64", xxh64_chained),
    ("xxh3", xxh3_chained),
    ("fnv1a_words", fnv1a_words),
    ("fnv1a_bytes", fnv1a_bytes),
];

fn affinity_whole(prompt: &[u8], out: &mut Vec<Fingerprint>) {
    fingerprints(Stride::default(), root("m", None), prompt, out);
}

/// As the indexer does it: bytes come piece by piece.
fn affinity_chain(prompt: &[u8], out: &mut Vec<Fingerprint>) {
    Chain::new(root("m", None)).push(Stride::default(), prompt, |fingerprint| out.push(fingerprint));
}

fn xxh64_chained(prompt: &[u8], out: &mut Vec<Fingerprint>) {
    chained(prompt, out, xxh64);
}

fn xxh3_chained(prompt: &[u8], out: &mut Vec<Fingerprint>) {
    chained(prompt, out, xxh3_64_with_seed);
}

/// FNV-1a over 64-bit words instead of bytes; its state runs through all strides.
fn fnv1a_words(prompt: &[u8], out: &mut Vec<Fingerprint>) {
    chained(prompt, out, |stride, state| {
        let (words, _) = stride.as_chunks::<8>();
        words.iter().fold(state, |h, w| (h ^ u64::from_le_bytes(*w)).wrapping_mul(0x0000_0100_0000_01b3))
    });
}

fn fnv1a_bytes(prompt: &[u8], out: &mut Vec<Fingerprint>) {
    chained(prompt, out, |stride, state| {
        let mut hasher = fnv::FnvHasher::with_key(state);
        hasher.write(stride);
        hasher.finish()
    });
}

#[inline(always)]
fn chained(prompt: &[u8], out: &mut Vec<Fingerprint>, hash: impl Fn(&[u8], u64) -> u64) {
    let mut state = root("m", None).0;
    for stride in prompt.chunks_exact(STRIDE) {
        state = hash(stride, state);
        out.push(Fingerprint(state));
    }
}

/// Bytes without a pattern that a hash could profit from (xorshift64).
fn prompt() -> Vec<u8> {
    let mut x = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    };
    (0..PROMPT / 8).flat_map(|_| next()).collect()
}

/// The two ways that must agree, one of them fed in uneven pieces.
fn chain_agrees(prompt: &[u8]) -> bool {
    let (mut whole, mut pieces) = (Vec::new(), Vec::new());
    affinity_whole(prompt, &mut whole);
    let mut chain = Chain::new(root("m", None));
    for piece in prompt.chunks(61) {
        chain.push(Stride::default(), piece, |fingerprint| pieces.push(fingerprint));
    }
    whole.len() == PROMPT / STRIDE && whole == pieces
}
