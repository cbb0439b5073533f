//! Whole streams of events, through decoder and index, against the naive count of `residency`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod dialects;
mod generated;
mod recorded;
