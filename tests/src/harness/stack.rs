//! Engines, indexer and Envoy together.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Client, Engine, Envoy, EnvoyConfig, EnvoyOptions, Indexer, MODEL, Reply, eventually};

/// What to start.
#[derive(Clone, Debug)]
pub struct StackOptions {
    /// How many engines.
    pub engines: usize,
    /// More flags for each engine.
    pub engine_flags: Vec<String>,
    /// More keys for the indexer's configuration, put over those of [`Indexer::config`].
    pub indexer: Value,
    /// Which file of `envoy/`.
    pub envoy: &'static str,
    /// More options for the filter's configuration.
    pub filter: Value,
    /// Envoy's number of worker threads.
    pub concurrency: u32,
}

impl Default for StackOptions {
    /// Two engines, hold by pause, one worker.
    fn default() -> Self {
        Self {
            engines: 2,
            engine_flags: Vec::new(),
            indexer: json!({}),
            envoy: "warmpath.yaml",
            filter: json!({}),
            concurrency: 1,
        }
    }
}

/// All of it, running and connected. Stopped when dropped.
#[derive(Debug)]
pub struct Stack {
    /// The gateway.
    pub envoy: Envoy,
    /// The indexer. Runs with the baseline too, where nobody asks it.
    pub indexer: Indexer,
    /// The engines.
    pub engines: Vec<Engine>,
    /// For requests to any of them.
    pub client: Client,
    /// What the names of the filter's metrics start with.
    filter_stats: String,
}

impl Stack {
    /// Starts engines, indexer and Envoy, and waits until the filter knows the engines.
    ///
    /// # Errors
    /// If one of them is not there, or does not become ready; with its log.
    pub async fn start(options: StackOptions) -> Result<Self> {
        let flags: Vec<&str> = options.engine_flags.iter().map(String::as_str).collect();
        let mut engines = Vec::new();
        for _ in 0..options.engines {
            engines.push(Engine::start(&flags).await?);
        }
        let mut indexer = Indexer::config(&engines);
        if let (Some(config), Some(more)) = (indexer.as_object_mut(), options.indexer.as_object()) {
            config.extend(more.clone());
        }
        let indexer = Indexer::start(indexer).await?;

        let mut config = EnvoyConfig::shipped(options.envoy)?;
        let addresses: Vec<SocketAddr> = engines.iter().map(|engine| engine.address).collect();
        config.set_endpoints("engines", &addresses)?;
        let warm = config.http_filter("warmpath").is_ok();
        if warm {
            config.set_endpoints("warmpath_indexer", &[indexer.address])?;
            for (option, value) in options.filter.as_object().into_iter().flatten() {
                config.set_filter_option(option, value.clone())?;
            }
        }
        let concurrency = options.concurrency;
        let envoy = Envoy::start(EnvoyOptions { concurrency, ..EnvoyOptions::new(config) }).await?;
        let fleet = options.filter.get("fleet").and_then(Value::as_str).unwrap_or("default");
        let filter_stats = format!("wasmcustom.warmpath.{fleet}.");
        let mut stack = Self { envoy, indexer, engines, client: Client::new()?, filter_stats };
        if warm {
            stack.fleet_known().await?;
        }
        Ok(stack)
    }

    /// Parts that were started one by one, with the shipped fleet name.
    ///
    /// # Errors
    /// If no client can be built.
    pub fn assemble(envoy: Envoy, indexer: Indexer, engines: Vec<Engine>) -> Result<Self> {
        Ok(Self {
            envoy,
            indexer,
            engines,
            client: Client::new()?,
            filter_stats: "wasmcustom.warmpath.default.".into(),
        })
    }

    /// Waits until the filter has the fleet and the prompt profiles from the indexer.
    ///
    /// # Errors
    /// If Envoy ends, or the filter has not within 20 s.
    pub async fn fleet_known(&mut self) -> Result<()> {
        let (envoy, prefix) = (&mut self.envoy, &self.filter_stats);
        eventually("the filter has a fleet and profiles", Duration::from_secs(20), async || {
            envoy.process.ensure_running()?;
            let news = envoy.stats(&format!("{prefix}sync.")).await?;
            let heard = |name: &str| news.get(&format!("{prefix}sync.{name}")).is_some_and(|value| *value > 0);
            Ok(heard("fleet_news") && heard("profiles_news"))
        })
        .await
    }

    /// One of the filter's counters or gauges, by the name after the fleet's, such as "sync.ok"; 0 if it does not
    /// exist (yet).
    ///
    /// # Errors
    /// If Envoy's admin page does not answer.
    pub async fn filter_stat(&self, name: &str) -> Result<u64> {
        self.envoy.stat(&format!("{}{name}", self.filter_stats)).await
    }

    /// Sends one user message as a chat completion through Envoy.
    ///
    /// # Errors
    /// If no whole response came back.
    pub async fn chat(&self, message: &str, max_tokens: u32, headers: &[(&str, &str)]) -> Result<Reply> {
        let messages = json!([{"role": "user", "content": message}]);
        let body = json!({"model": MODEL, "messages": messages, "max_tokens": max_tokens});
        self.client.post(&self.envoy.url("/v1/chat/completions"), headers, &body).await
    }
}
