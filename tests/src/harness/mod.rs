//! Real programs for tests, demos and benches: Envoy, the indexer and engine simulators as processes of their own,
//! on free ports of 127.0.0.1, with their configuration and log in one directory each, and gone when dropped.
//!
//! ```no_run
//! use warmpath_tests::harness::{Stack, StackOptions};
//! # async fn example() -> anyhow::Result<()> {
//! let stack = Stack::start(StackOptions { engines: 3, ..StackOptions::default() }).await?;
//! let reply = stack.chat("a prompt", 16, &[("x-warmpath-debug", "1")]).await?;
//! assert_eq!(reply.status, 200);
//! println!("{} answered after {} syncs", reply.header("x-engine").unwrap_or("?"), stack.filter_stat("sync.ok").await?);
//! # Ok(())
//! # }
//! ```
//!
//! Envoy runs the files of `envoy/`, with addresses replaced and nothing else, so what is tested is what is shipped.
//! `$ENVOY_BIN` and `$WARMPATH_WASM` say which Envoy and which module; `cargo xtask test` sets both. Directories of
//! processes are kept when a test panics, and always if `$WARMPATH_KEEP` is set: `target/<profile>/harness/`.

mod engine;
mod envoy;
mod envoy_config;
mod gateway;
mod http;
mod indexer;
mod paths;
mod ports;
mod process;
mod stack;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

pub use engine::{Engine, MODEL};
pub use envoy::{Envoy, EnvoyOptions};
pub use envoy_config::EnvoyConfig;
pub use gateway::Gateway;
pub use http::{Client, Reply};
pub use indexer::Indexer;
pub use paths::{envoy_binary, module, program, repository};
pub use ports::{free_port, free_ports};
pub use process::Process;
pub use stack::{Stack, StackOptions};

/// How often something awaited is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Asks until the answer is yes. An error that names `what` after `patience`.
pub async fn eventually(what: &str, patience: Duration, mut is_so: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    loop {
        if is_so().await? {
            return Ok(());
        }
        if start.elapsed() > patience {
            bail!("still not so after {patience:?}: {what}");
        }
        tokio::time::sleep(POLL).await;
    }
}
