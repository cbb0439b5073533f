//! What Warmpath is tested with: a simulated engine and, beside it, harnesses and benches.
//!
//! Nothing in here ships. A test that meets the impossible stops at once, so the lints that keep
//! panics out of the product are lifted.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic is a failed test"
)]

pub mod check;
pub mod conformance;
pub mod harness;
pub mod index_bench;
pub mod load;
pub mod residency;
pub mod sim;
pub mod vllm;
pub mod vocabularies;
