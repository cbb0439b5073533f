//! A running indexer.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Client, Engine, MODEL, Process, free_port, paths};
use crate::sim::fixture_tokenizer;

/// An indexer that serves. Stopped when dropped.
#[derive(Debug)]
pub struct Indexer {
    /// Its process.
    pub process: Process,
    /// Where it serves gateways and its metrics.
    pub address: SocketAddr,
    config: Value,
    file: PathBuf,
    client: Client,
}

impl Indexer {
    /// The configuration for these engines, all serving [`MODEL`], to start from and to change.
    #[must_use]
    pub fn config(engines: &[Engine]) -> Value {
        let endpoints: Vec<Value> = engines
            .iter()
            .map(|engine| {
                json!({
                    "address": engine.address,
                    "model": MODEL,
                    "events": format!("tcp://{}", engine.events),
                    "replay": format!("tcp://{}", engine.replay),
                })
            })
            .collect();
        json!({"models": [{"name": MODEL, "tokenizer": fixture_tokenizer()}], "endpoints": endpoints})
    }

    /// Starts an indexer with this configuration, on a free port, and waits until it is ready.
    ///
    /// # Errors
    /// If the indexer is not built, or refuses the configuration; with its log.
    pub async fn start(mut config: Value) -> Result<Self> {
        let address = free_port()?;
        if let Some(config) = config.as_object_mut() {
            config.insert("listen".into(), json!(address));
        }
        let (process, file) = Self::spawn(&config)?;
        let mut indexer = Self { process, address, config, file, client: Client::new()? };
        indexer.ready().await?;
        Ok(indexer)
    }

    /// Kills it, unless it is dead already, and starts it anew with the same configuration on the same port.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill();
        (self.process, self.file) = Self::spawn(&self.config)?;
        self.ready().await
    }

    /// Replaces keys of its configuration in its file while it runs, as an editor would.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn reconfigure(&mut self, change: &Value) -> Result<()> {
        if let (Some(config), Some(change)) = (self.config.as_object_mut(), change.as_object()) {
            config.extend(change.clone());
        }
        self.rewrite(&self.config.to_string())
    }

    /// Replaces the text of its configuration file, whole at once.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn rewrite(&self, text: &str) -> Result<()> {
        let new = self.file.with_extension("new");
        fs::write(&new, text)?;
        Ok(fs::rename(new, &self.file)?)
    }

    /// The configuration that it was last given.
    #[must_use]
    pub fn configured(&self) -> &Value {
        &self.config
    }

    fn spawn(config: &Value) -> Result<(Process, PathBuf)> {
        let program = paths::program("warmpath-indexer", "warmpath-indexer")?;
        let directory = Process::directory("indexer")?;
        let path: PathBuf = directory.join("indexer.yaml");
        // JSON is YAML, too. Numbers that keep how they were written have no other serialisation.
        fs::write(&path, config.to_string())?;
        let arguments = vec!["run".into(), "--config".into(), path.clone().into()];
        Ok((Process::start("indexer", &program, arguments, directory)?, path))
    }

    async fn ready(&mut self) -> Result<()> {
        let (client, url) = (self.client.clone(), self.url("/readyz"));
        self.process.serves("the indexer is ready", &client, &url, Duration::from_secs(30)).await
    }

    /// The URL of a path on it.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Its metrics, as Prometheus would scrape them.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn metrics(&self) -> Result<String> {
        Ok(self.client.get(&self.url("/metrics")).await?.body)
    }
}
