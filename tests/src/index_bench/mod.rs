//! Loads for indexes of KV blocks, our own index under them, and how any index is timed. `cargo xtask bench index` adds
//! the others, which lie in a package of their own: `tests/bench-index`.

pub mod engine;
mod measure;
mod ours;
pub mod text;
pub mod work;

pub use measure::{Figures, Median, Percentiles, Rate, measure};
pub use ours::{Ours, Parts, parts};

use warmpath_indexer::events::Batch;
use work::Prompt;

/// An index under test. Frames go in either as they are, or read, or with hashes made of their tokens.
pub trait System {
    /// As it is called in results.
    const NAME: &'static str;
    /// Whether it has a reader of frames.
    const READS_FRAMES: bool;
    /// Whether its hashes can be made beforehand.
    const TAKES_HASHES: bool;
    /// A frame's events, with tokens.
    type Events;
    /// A frame's events, with hashes instead of tokens.
    type Hashed;
    /// A prompt, as it is looked up.
    type Query;

    /// An empty index for engines `0..workers`.
    fn new(workers: u16) -> Self;
    /// Reads a frame.
    fn read(&mut self, worker: u16, frame: &[u8]) -> Self::Events;
    /// Turns tokens into hashes.
    fn hash(&mut self, worker: u16, events: Self::Events) -> Self::Hashed;
    /// Takes a frame's events in.
    fn apply(&mut self, worker: u16, hashed: Self::Hashed);
    /// Everything that was taken in can be found afterwards.
    fn finish(&mut self) {}
    /// Hashes a prompt.
    fn query(&self, prompt: &Prompt) -> Self::Query;
    /// Looks a prompt up; says how deep the deepest match is, in its own units.
    fn find(&mut self, query: Self::Query) -> u32;
    /// Panics unless a lookup gives what this prompt says.
    fn check(&mut self, prompt: &Prompt);
}

/// Reads a frame that must be right.
fn decode(frame: &[u8]) -> Batch {
    let batch = warmpath_indexer::events::decode(frame).expect("the frame is one of ours");
    assert_eq!(batch.skipped, 0);
    batch
}
