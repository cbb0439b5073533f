//! The Warmpath indexer: listens to engines' KV events and turns them into the affinity table that filters read.
//!
//! Events flow through pure parts: [`stream`] decides which messages count, [`events`] reads them, [`index`] keeps
//! what each endpoint holds, [`tree`] shares contents between endpoints, [`table`] cuts the result into pages.

pub mod events;
pub mod index;
pub mod stream;
pub mod table;
pub mod tokens;
pub mod tree;
