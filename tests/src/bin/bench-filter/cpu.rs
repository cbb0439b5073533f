//! Which core a process runs on.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// One core for what is measured, and the others for all else.
pub struct Cores {
    proxy: String,
    others: String,
}

impl Cores {
    /// Of the cores that this process may use, the last and the rest. An error if there is only one.
    pub fn split() -> Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let mut cores = expand(list.context("/proc/self/status names no cores")?.trim())?;
        let proxy = cores.pop().context("no core")?;
        if cores.is_empty() {
            bail!("only one core: the load would be measured with the proxy; this bench needs two");
        }
        let others: Vec<String> = cores.iter().map(ToString::to_string).collect();
        Ok(Self { proxy: proxy.to_string(), others: others.join(",") })
    }

    /// Keeps a process, this one or one it starts later inherits from, off the proxy's core.
    pub fn keep_off(&self, pid: u32) -> Result<()> {
        pin(pid, &self.others)
    }

    /// Gives a process the proxy's core and no other.
    pub fn give(&self, pid: u32) -> Result<()> {
        pin(pid, &self.proxy)
    }
}

/// Pins all threads of a process. taskset is in util-linux, as setpriv is.
fn pin(pid: u32, cores: &str) -> Result<()> {
    let mut command = Command::new("taskset");
    command.args(["--all-tasks", "--cpu-list", "--pid", cores, &pid.to_string()]).stdout(Stdio::null());
    let status = command.status().context("taskset does not start: install util-linux")?;
    if !status.success() {
        bail!("taskset cannot pin process {pid} to cores {cores}");
    }
    Ok(())
}

/// `0-2,5` to 0, 1, 2, 5.
fn expand(list: &str) -> Result<Vec<u32>> {
    let mut cores = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<u32>().with_context(|| format!("cores {list:?} are no list"));
        cores.extend(number(first)?..=number(last)?);
    }
    Ok(cores)
}
