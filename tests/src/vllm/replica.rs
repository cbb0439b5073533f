//! A real vLLM on the CPU.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::group::Group;
use super::install::{Install, script};
use crate::harness::{Client, free_port, free_ports};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// The model's name, as `serve.sh` gives it.
pub const MODEL: &str = "tiny";

/// A vLLM that runs. Stopped when dropped.
pub struct Replica {
    /// Where it serves the OpenAI API and its metrics.
    pub address: SocketAddr,
    /// Where each of its data-parallel ranks publishes its KV events, and replays them.
    sockets: Vec<(String, String)>,
    directory: PathBuf,
    launch: Launch,
    model: PathBuf,
    group: Group,
    log: PathBuf,
}

/// How its process is started, as often as needed.
struct Launch {
    program: PathBuf,
    args: Vec<OsString>,
    environment: Vec<(String, String)>,
}

/// How a replica is started.
#[derive(Clone, Debug)]
pub struct ReplicaOptions<'a> {
    /// Tells it from others: each has hashes of its own, as replicas of a fleet do.
    pub number: usize,
    /// Tokens in a cache block.
    pub block_size: u64,
    /// Cache blocks it has.
    pub blocks: u64,
    /// The model's files.
    pub model: &'a Path,
    /// More options of `vllm serve`.
    pub more: &'a [&'a str],
    /// More environment variables.
    pub environment: &'a [(&'a str, &'a str)],
    /// Batches of events that it can replay.
    pub buffer_steps: u32,
    /// Data-parallel ranks, each with a cache of its own.
    pub ranks: u16,
}

impl<'a> ReplicaOptions<'a> {
    /// A replica like any other.
    #[must_use]
    pub fn new(install: &'a Install) -> Self {
        Self {
            number: 0,
            block_size: 32,
            blocks: 256,
            model: &install.model,
            more: &[],
            environment: &[],
            buffer_steps: 10_000,
            ranks: 1,
        }
    }
}

/// What an engine has counted since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Prompt tokens looked up in the cache.
    pub queried: u64,
    /// Of these, found there.
    pub hit: u64,
}

impl Replica {
    /// Starts one.
    ///
    /// # Errors
    /// If it cannot be started. Whether it serves is known after [`Self::ready`].
    pub fn start(install: &Install, options: ReplicaOptions<'_>) -> Result<Self> {
        let ReplicaOptions { number, block_size, blocks, model, more, environment, buffer_steps, ranks } = options;
        let address = free_port()?;
        // Not below the installation: these paths may have 107 characters.
        let directory = env::temp_dir().join(format!("warmpath-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        // vLLM has ranks count up the ports of TCP addresses, and refuses others.
        let (bound, sockets) = if ranks == 1 {
            let paths = ["events", "replay"].map(|name| format!("ipc://{}", directory.join(name).display()));
            let [events, replay] = paths.clone();
            (paths, vec![(events, replay)])
        } else {
            let ports = free_ports(ranks.saturating_mul(2))?;
            let (events, replay) = (ports, ports.saturating_add(ranks));
            let of = |rank: u16| {
                let at = |port: u16| format!("tcp://127.0.0.1:{}", port.saturating_add(rank));
                (at(events), at(replay))
            };
            ([events, replay].map(|port| format!("tcp://*:{port}")), (0..ranks).map(of).collect())
        };
        let logs = install.directory.join("logs");
        fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        let log = logs.join(format!("replica-{number}.log"));
        let [events, replay] = bound;
        let mut args: Vec<OsString> = vec![install.venv.clone().into(), model.into()];
        let (port, block_size, blocks) = (address.port().to_string(), block_size.to_string(), blocks.to_string());
        let given = [port, events, replay, block_size, blocks, buffer_steps.to_string()];
        args.extend(given.into_iter().map(OsString::from));
        if ranks > 1 {
            args.extend(["--data-parallel-size".into(), ranks.to_string().into()]);
        }
        args.extend(more.iter().map(OsString::from));
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        // What no replica shares with another, and no prediction may rest on.
        let seed = ("PYTHONHASHSEED".to_owned(), (1000 + number).to_string());
        let environment = environment.iter().map(own).chain([seed]).collect();
        let launch = Launch { program: script("serve.sh"), args, environment };
        let group = launch.start(&log)?;
        Ok(Self { address, sockets, directory, launch, model: model.to_owned(), group, log })
    }

    /// Kills it, at once and without a word.
    pub fn kill(&mut self) {
        self.group.kill();
    }

    /// Starts it again, at the same addresses, after [`Self::kill`]; its blocks' hashes come from this seed.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_again(&mut self, hash_seed: u32) -> Result<()> {
        for (name, value) in &mut self.launch.environment {
            if name == "PYTHONHASHSEED" {
                *value = hash_seed.to_string();
            }
        }
        self.group = self.launch.start(&self.log)?;
        Ok(())
    }

    /// Where it publishes its KV events.
    pub fn publishers(&self) -> impl Iterator<Item = &str> {
        self.sockets.iter().map(|(events, _)| events.as_str())
    }

    /// Its model's files.
    #[must_use]
    pub fn model(&self) -> &Path {
        &self.model
    }

    /// Waits until it serves.
    ///
    /// # Errors
    /// If it ends, or does not within five minutes; with the last of its log.
    pub async fn ready(&mut self, client: &Client) -> Result<()> {
        let url = self.url("/health");
        for _ in 0..600 {
            if let Some(status) = self.group.ended()? {
                bail!("vLLM has ended ({status}), the last of {}:\n{}", self.log.display(), self.last_words());
            }
            if client.get(&url).await.is_ok_and(|reply| reply.status == 200) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        bail!("vLLM does not serve after five minutes, the last of {}:\n{}", self.log.display(), self.last_words())
    }

    fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(25)..).unwrap_or_default().join("\n")
    }

    /// The URL of a path on it.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Its entry in the indexer's configuration.
    #[must_use]
    pub fn endpoint(&self) -> Value {
        let (events, replay) = self.sockets.first().cloned().unwrap_or_default();
        let mut entry = json!({"address": self.address, "model": MODEL, "events": events, "replay": replay});
        if self.sockets.len() > 1
            && let Some(entry) = entry.as_object_mut()
        {
            entry.insert("data_parallel_ranks".into(), json!(self.sockets.len()));
        }
        entry
    }

    /// What it has counted, by its own metrics.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn counters(&self, client: &Client) -> Result<Counters> {
        Ok(Counters::read(&client.get(&self.url("/metrics")).await?.body))
    }
}

impl Launch {
    fn start(&self, log: &Path) -> Result<Group> {
        let output = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = std::process::Command::new(&self.program);
        command.args(&self.args).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(output.try_clone()?).stderr(output);
        Group::start(command)
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.directory).ok();
    }
}

impl Counters {
    fn read(metrics: &str) -> Self {
        let total = |name: &str| {
            let samples = metrics.lines().filter(|line| {
                line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
            });
            let values = samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
            values.sum::<f64>() as u64
        };
        Self { queried: total("vllm:prefix_cache_queries_total"), hit: total("vllm:prefix_cache_hits_total") }
    }
}

/// The files a model for vLLM has.
pub(super) fn is_model(directory: &Path) -> bool {
    ["config.json", "model.safetensors", "tokenizer.json"].iter().all(|name| directory.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_over_engines_and_not_taken_from_namesakes() {
        let metrics = "# HELP vllm:prefix_cache_queries_total x\n\
            vllm:prefix_cache_queries_total{engine=\"0\"} 1102.0\n\
            vllm:prefix_cache_queries_total{engine=\"1\"} 8.0\n\
            vllm:prefix_cache_queries_created{engine=\"0\"} 1.7e+09\n\
            vllm:prefix_cache_hits_total{engine=\"0\"} 64.0\n\
            vllm:prefix_cache_hits_total_of_another{engine=\"0\"} 5.0\n";
        assert_eq!(Counters::read(metrics), Counters { queried: 1110, hit: 64 });
    }
}
