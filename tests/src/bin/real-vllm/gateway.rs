//! Envoy with the filter, and the indexer.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use warmpath_tests::harness::{Envoy, EnvoyConfig, EnvoyOptions, Indexer, eventually};

/// What stands before the engines.
pub struct Gateway {
    pub envoy: Envoy,
    pub indexer: Indexer,
}

impl Gateway {
    /// Starts both, and waits until the filter knows the fleet and how prompts are made.
    ///
    /// # Errors
    /// If one of them does not start.
    pub async fn start(indexer: Value, engines: &[SocketAddr]) -> Result<Self> {
        let indexer = Indexer::start(indexer).await?;
        let mut config = EnvoyConfig::shipped("warmpath.yaml")?;
        config.set_endpoints("engines", engines)?;
        config.set_endpoints("warmpath_indexer", &[indexer.address])?;
        let mut envoy = Envoy::start(EnvoyOptions::new(config)).await?;
        eventually("the filter has a fleet and prompt profiles", Duration::from_secs(30), async || {
            envoy.process.ensure_running()?;
            let stats = envoy.stats("wasmcustom.warmpath.default.sync.").await?;
            let heard = |name: &str| stats.iter().any(|(stat, value)| stat.ends_with(name) && *value > 0);
            Ok(heard(".fleet_news") && heard(".profiles_news"))
        })
        .await?;
        Ok(Self { envoy, indexer })
    }
}
