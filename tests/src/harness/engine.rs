//! A running engine simulator.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Client, Process, free_port, paths};

/// The model's name that simulators serve unless told another.
pub const MODEL: &str = "tiny";

/// A simulated engine that serves. Stopped when dropped.
#[derive(Debug)]
pub struct Engine {
    /// Its process.
    pub process: Process,
    /// Where it serves the OpenAI API and its metrics.
    pub address: SocketAddr,
    /// Where it publishes KV events.
    pub events: SocketAddr,
    /// Where it answers requests for past KV events.
    pub replay: SocketAddr,
    flags: Vec<OsString>,
    client: Client,
}

impl Engine {
    /// Starts a simulator on free ports and waits until it serves. `flags` are more of its own, such as
    /// `["--block-size", "32"]`.
    ///
    /// # Errors
    /// If the simulator is not built or ends.
    pub async fn start(flags: &[&str]) -> Result<Self> {
        let (address, events, replay) = (free_port()?, free_port()?, free_port()?);
        let mut all: Vec<OsString> = Vec::new();
        for (flag, at) in [("--port", address), ("--events-port", events), ("--replay-port", replay)] {
            all.extend([flag.into(), at.port().to_string().into()]);
        }
        if !flags.contains(&"--model") {
            all.extend(["--model".into(), MODEL.into()]);
        }
        all.extend(flags.iter().map(Into::into));
        let process = Self::spawn(&all)?;
        let mut engine = Self { process, address, events, replay, flags: all, client: Client::new()? };
        engine.ready().await?;
        Ok(engine)
    }

    /// Kills it, unless it is dead already, and starts it anew, empty, on the same ports.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill();
        self.process = Self::spawn(&self.flags)?;
        self.ready().await
    }

    fn spawn(flags: &[OsString]) -> Result<Process> {
        let program = paths::program("warmpath-tests", "warmpath-engine-sim")?;
        Process::start("engine", &program, flags.to_vec(), Process::directory("engine")?)
    }

    async fn ready(&mut self) -> Result<()> {
        let (client, url) = (self.client.clone(), self.url("/health"));
        self.process.serves("the engine simulator serves", &client, &url, Duration::from_secs(20)).await
    }

    /// The URL of a path on it.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What it has counted: the JSON of `GET /sim/stats`.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn stats(&self) -> Result<Value> {
        self.client.get(&self.url("/sim/stats")).await?.json()
    }

    /// Changes how it behaves from now on: `POST /sim/config`, e.g. `{"fail_next": 1}`.
    ///
    /// # Errors
    /// If it refuses.
    pub async fn configure(&self, change: &Value) -> Result<()> {
        let reply = self.client.post(&self.url("/sim/config"), &[], change).await.context("the engine is gone")?;
        if reply.status != 200 {
            bail!("the engine simulator refuses {change}: {} {}", reply.status, reply.body);
        }
        Ok(())
    }
}
