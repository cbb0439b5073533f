//! Real vLLM on the CPU: where it is installed, how it is started, and that nothing of it is left over.

mod group;
mod install;
mod replica;

pub use group::Group;
pub use install::{Install, VERSION, script};
pub use replica::{Counters, MODEL, Replica, ReplicaOptions};
