//! A running Envoy.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Client, EnvoyConfig, Process, eventually, paths};

/// How to start an Envoy.
#[derive(Clone, Debug)]
pub struct EnvoyOptions {
    /// What it runs.
    pub config: EnvoyConfig,
    /// Its number of worker threads.
    pub concurrency: u32,
    /// What it logs: an Envoy level for all, such as "warn".
    pub log_level: &'static str,
}

impl EnvoyOptions {
    /// One worker, which logs what is informative.
    #[must_use]
    pub fn new(config: EnvoyConfig) -> Self {
        Self { config, concurrency: 1, log_level: "info" }
    }
}

/// An Envoy that serves. Stopped when dropped.
#[derive(Debug)]
pub struct Envoy {
    /// Its process.
    pub process: Process,
    /// Where its first listener accepts connections.
    pub address: SocketAddr,
    /// Where its admin pages are.
    pub admin: SocketAddr,
    client: Client,
}

impl Envoy {
    /// Starts an Envoy and waits until it serves.
    ///
    /// # Errors
    /// If there is no Envoy, or it refuses the configuration; with its log.
    pub async fn start(options: EnvoyOptions) -> Result<Self> {
        let program = paths::envoy_binary()?;
        let directory = Process::directory("envoy")?;
        let (config, admin_path) = (directory.join("envoy.json"), directory.join("admin-address"));
        fs::write(&config, options.config.to_string())?;
        let args: Vec<OsString> = vec![
            "--config-path".into(),
            config.into(),
            "--admin-address-path".into(),
            admin_path.clone().into(),
            "--concurrency".into(),
            options.concurrency.to_string().into(),
            "--log-level".into(),
            options.log_level.into(),
            // Any number of Envoys side by side, and nothing left in shared memory by one that is killed.
            "--disable-hot-restart".into(),
        ];
        let mut process = Process::start("envoy", &program, args, directory)?;
        let client = Client::new()?;
        let mut admin = None;
        // Compiling the module takes seconds where the machine is busy.
        eventually("Envoy serves", Duration::from_secs(60), async || {
            process.ensure_running()?;
            admin = fs::read_to_string(&admin_path).ok().and_then(|address| address.trim().parse::<SocketAddr>().ok());
            let Some(admin) = admin else { return Ok(false) };
            Ok(client.get(&format!("http://{admin}/ready")).await.is_ok_and(|reply| reply.status == 200))
        })
        .await?;
        let admin = admin.context("Envoy serves without an admin address")?;
        let listeners = client.get(&format!("http://{admin}/listeners?format=json")).await?.json()?;
        let socket = listeners.pointer("/listener_statuses/0/local_address/socket_address");
        let port = socket.and_then(|socket| socket.get("port_value")).and_then(Value::as_u64);
        let port = port.and_then(|port| u16::try_from(port).ok()).context("Envoy has no listener")?;
        Ok(Self { process, address: SocketAddr::new(admin.ip(), port), admin, client })
    }

    /// Lets Envoy say whether it would run this configuration, without serving.
    ///
    /// # Errors
    /// If it would not, with what it says.
    pub fn validate(config: &EnvoyConfig) -> Result<()> {
        let mut envoy = Command::new(paths::envoy_binary()?);
        let directory = Process::directory("envoy-validate")?;
        let path = directory.join("envoy.json");
        fs::write(&path, config.to_string())?;
        envoy.args(["--mode", "validate", "--disable-hot-restart", "--log-level", "warn", "--config-path"]).arg(&path);
        let output = envoy.current_dir(paths::repository()).output()?;
        if !output.status.success() {
            bail!("Envoy refuses {}:\n{}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
        }
        fs::remove_dir_all(directory)?;
        Ok(())
    }

    /// The URL of a path on its first listener.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// One counter or gauge; 0 if it does not exist (yet).
    ///
    /// # Errors
    /// If the admin page does not answer.
    pub async fn stat(&self, name: &str) -> Result<u64> {
        Ok(self.stats(name).await?.remove(name).unwrap_or(0))
    }

    /// All counters and gauges whose name starts with `prefix`. The filter's own start with "wasmcustom.".
    ///
    /// # Errors
    /// If the admin page does not answer.
    pub async fn stats(&self, prefix: &str) -> Result<BTreeMap<String, u64>> {
        let reply =
            self.client.get(&format!("http://{}/stats?filter=^{}", self.admin, prefix.replace('.', "\\."))).await?;
        // Lines are `name: value`; histograms and texts have values that are no numbers.
        let lines = reply.body.lines().filter_map(|line| line.rsplit_once(": "));
        Ok(lines.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect())
    }
}
