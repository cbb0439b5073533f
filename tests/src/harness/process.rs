//! One program, running.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;
use std::{env, fs, thread};

use anyhow::{Context, Result, bail};

use super::{Client, eventually, paths};

/// A running program with a directory of its own. Killed when dropped, and when this process dies in whatever way.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    directory: PathBuf,
}

impl Process {
    /// A new, empty directory for a process called `name`, to write its configuration to before it starts.
    pub(super) fn directory(name: &str) -> Result<PathBuf> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = paths::programs()?.join("harness").join(format!("{}-{count}-{name}", std::process::id()));
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        Ok(directory)
    }

    /// Starts `program` in the repository's root and in a process group of its own; its output goes to `log` in
    /// `directory`, which goes with the process.
    pub(super) fn start(name: &str, program: &Path, args: Vec<OsString>, directory: PathBuf) -> Result<Self> {
        let path = directory.join("log");
        let log = fs::OpenOptions::new().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("cannot write {}", path.display()))?;
        let mut command = dying_with_this_process(program);
        command
            .args(args)
            .current_dir(paths::repository())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let child = spawn(command).with_context(|| format!("{} does not start", program.display()))?;
        Ok(Self { child, name: name.to_owned(), directory })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time that all its threads have used, user and kernel. By the scheduler's own account, to the nanosecond;
    /// threads that have ended are left out.
    ///
    /// # Errors
    /// If it is gone.
    pub fn cpu(&self) -> Result<Duration> {
        let mut total = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.pid())).context("the process is gone")? {
            let path = task?.path().join("schedstat");
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let used = text.split_whitespace().next().and_then(|field| field.parse::<u64>().ok());
            total += used.with_context(|| format!("{} says {text:?}", path.display()))?;
        }
        Ok(Duration::from_nanos(total))
    }

    /// Bytes of memory that it has in use.
    ///
    /// # Errors
    /// If it is gone.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).context("the process is gone")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"));
        Ok(line.context("the process has ended")?.trim().parse::<u64>()? * 1024)
    }

    /// All it has printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.directory.join("log")).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// # Errors
    /// If it has ended, with how and the last of what it printed.
    pub fn ensure_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n");
            bail!("{} has ended ({status}); the last of {}/log:\n{last}", self.name, self.directory.display());
        }
        Ok(())
    }

    /// Waits until `url` answers 200. `what` says so in the error.
    pub(super) async fn serves(&mut self, what: &str, client: &Client, url: &str, patience: Duration) -> Result<()> {
        eventually(what, patience, async || {
            self.ensure_running()?;
            Ok(client.get(url).await.is_ok_and(|reply| reply.status == 200))
        })
        .await
    }

    /// Sends a signal by name: "STOP" freezes it, "CONT" lets it go on, "TERM" asks it to end.
    ///
    /// # Errors
    /// If it has ended already.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let status = Command::new("kill").args(["-s", signal, &self.pid().to_string()]).status()?;
        if !status.success() {
            bail!("cannot send {signal} to {} ({}): has it ended?", self.name, self.pid());
        }
        Ok(())
    }

    /// Ends it at once and waits until it is gone. Nothing happens if it has ended.
    pub fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if !thread::panicking() && env::var_os("WARMPATH_KEEP").is_none() {
            fs::remove_dir_all(&self.directory).ok();
        }
    }
}

/// The command that starts `program` so that the kernel kills it when this process ends without dropping anything, by
/// a time limit or ^C. Where setpriv (util-linux) is missing there is only Drop.
fn dying_with_this_process(program: &Path) -> Command {
    static SETPRIV: LazyLock<bool> = LazyLock::new(|| {
        let args = ["--pdeathsig", "KILL", "true"];
        Command::new("setpriv").args(args).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    });
    if *SETPRIV {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    }
}

/// Spawns from one thread that lives as long as the process: the kernel takes the end of the *thread* that spawned a
/// child for the parent's death, and test threads and runtimes' workers end early.
fn spawn(command: Command) -> io::Result<Child> {
    type Job = (Command, Sender<io::Result<Child>>);
    static SPAWNER: LazyLock<Mutex<Sender<Job>>> = LazyLock::new(|| {
        let (jobs, incoming) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, reply) in incoming {
                reply.send(command.spawn()).ok();
            }
        });
        Mutex::new(jobs)
    });
    let (reply, spawned) = mpsc::channel();
    let sent = SPAWNER.lock().unwrap_or_else(PoisonError::into_inner).send((command, reply));
    sent.map_err(io::Error::other)?;
    spawned.recv().map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(script: &str) -> Process {
        let args = vec!["-c".into(), script.into()];
        Process::start("sh", Path::new("/bin/sh"), args, Process::directory("sh").unwrap()).unwrap()
    }

    #[test]
    fn a_dropped_process_is_gone_with_its_directory() {
        let mut process = start("exec sleep 60");
        process.ensure_running().unwrap();
        let (directory, pid) = (process.directory.clone(), process.pid().to_string());
        drop(process);
        assert!(!directory.exists());
        let alive = Command::new("kill").args(["-s", "0", &pid]).stderr(Stdio::null()).status().unwrap();
        assert!(!alive.success(), "process {pid} is still there");
    }

    #[test]
    fn a_process_that_has_ended_is_reported_with_its_last_words() {
        let mut process = start("echo out of luck >&2; exit 3");
        process.child.wait().unwrap();
        let error = process.ensure_running().unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("out of luck"), "{error}");
    }

    #[test]
    fn a_process_outlives_the_thread_that_started_it() {
        let mut process = thread::spawn(|| start("exec sleep 60")).join().unwrap();
        thread::sleep(Duration::from_millis(100));
        process.ensure_running().unwrap();
    }
}
