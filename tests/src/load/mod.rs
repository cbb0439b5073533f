//! Load for engines and gateways: a multi-tenant workload, a client that measures, and what the figures could be at
//! best.
//!
//! [`Workload`] says what is asked, [`drive()`] asks it (closed loop) through a [`StreamClient`], [`Figures`] sums up
//! what came back, and [`ideal()`] computes what one engine that never forgets would have made of the same requests. [`prose()`]
//! writes long texts for benches.

mod client;
mod drive;
mod figures;
mod ideal;
mod phrases;
mod prose;
mod workload;

pub use client::{Answer, StreamClient};
pub use drive::{Record, drive};
pub use figures::{Figures, percentile};
pub use ideal::{Ideal, UnboundedCache, ideal};
pub use phrases::Phrases;
pub use prose::prose;
pub use workload::{PREAMBLE_BYTES, SYSTEM_BYTES, Step, Workload, WorkloadOptions};
