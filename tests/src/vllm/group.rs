//! A program with children of its own.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// A program in a process group of its own. When dropped it is asked to end, and then the whole group is killed.
pub struct Group {
    child: Child,
}

impl Group {
    /// Starts it.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(mut command: Command) -> Result<Self> {
        let child = command.process_group(0).spawn();
        Ok(Self { child: child.with_context(|| format!("{} does not start", command.get_program().display()))? })
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// If the system will not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Kills all of it, at once.
    pub fn kill(&mut self) {
        self.signal("KILL", &format!("-{}", self.child.id()));
        self.child.wait().ok();
    }

    fn signal(&self, signal: &str, target: &str) {
        let mut kill = Command::new("kill");
        kill.args(["-s", signal, "--", target]).stderr(Stdio::null()).status().ok();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let leader = self.child.id().to_string();
        let running = |child: &mut Child| matches!(child.try_wait(), Ok(None));
        if running(&mut self.child) {
            self.signal("TERM", &leader);
        }
        for _ in 0..100 {
            if !running(&mut self.child) {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_group_takes_its_grandchildren_along() {
        let file = std::env::temp_dir().join(format!("warmpath-group-{}", std::process::id()));
        let script = format!("sleep 60 & echo $! > {}; wait", file.display());
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script]);
        let group = Group::start(command).unwrap();
        let grandchild = loop {
            match std::fs::read_to_string(&file) {
                Ok(pid) if pid.ends_with('\n') => break pid.trim().to_owned(),
                _ => thread::sleep(Duration::from_millis(10)),
            }
        };
        drop(group);
        std::fs::remove_file(&file).unwrap();
        // A killed process that init has not reaped yet is a zombie.
        let gone = || {
            let state = std::fs::read_to_string(format!("/proc/{grandchild}/stat")).unwrap_or_default();
            state.is_empty() || state.contains(") Z ")
        };
        assert!((0..100).any(|_| gone() || {
            thread::sleep(Duration::from_millis(20));
            false
        }));
    }
}
