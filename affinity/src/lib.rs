//! The pure core of Warmpath: canonical prompt bytes in, endpoint out.
//!
//! Used by the filter, the indexer and the engine simulator alike, so that all three agree on every byte.
//! **Invariant:** no I/O, no clock, no randomness, no host. What depends on time or chance takes it as an argument.
//!
//! Read in this order: [`prompt`] (a request's canonical bytes), [`fingerprint`] (bytes to fingerprints), [`page`] and [`lookup`] (the affinity table),
//! [`predicted`] (placements not yet confirmed), [`placement`] (loads and matches to an endpoint),
//! [`fleet`], [`profile`] and [`sync`] (what travels between indexer and filter), [`shared`] (where the filter keeps it).

pub mod fingerprint;
pub mod fleet;
pub mod lookup;
mod order;
pub mod page;
pub mod placement;
pub mod predicted;
pub mod profile;
pub mod prompt;
pub mod rows;
pub mod shared;
pub mod sync;
pub mod units;
mod wire;

pub use fingerprint::{Chain, Fingerprint, Stride, fingerprints, root};
pub use units::{Bytes, Slot, Tier, Tokens};
