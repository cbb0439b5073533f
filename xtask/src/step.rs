//! Running one command after the other, and saying so.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Prints a line on standard error: standard output belongs to results.
pub fn say(line: impl AsRef<str>) {
    eprintln!("==> {}", line.as_ref());
}

/// Runs the command to its end. Where it fails the error names it and says `what_to_do`.
pub fn run(command: &mut Command, what_to_do: &str) -> Result<()> {
    let shown = shown(command);
    say(&shown);
    let status = command.status().with_context(|| format!("`{shown}` does not start"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status}): {what_to_do}");
    }
    Ok(())
}

/// Becomes the command, so that signals and the exit status are its own. Returns only if it does not start.
pub fn replace_self(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    say(&shown);
    Err(command.exec()).with_context(|| format!("`{shown}` does not start"))
}

/// What the command prints on standard output; an error if it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command.output().with_context(|| format!("`{shown}` does not start"))?;
    if !output.status.success() {
        bail!("`{shown}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn shown(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    // `/path/to/toolchain/bin/cargo` reads better as `cargo`.
    let mut line = program.rsplit('/').next().unwrap_or(&program).to_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}
