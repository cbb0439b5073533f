//! How programs end that check something.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

/// Runs a check, which may complain, and prints its complaints. Whatever it has started is stopped by being dropped,
/// also when the program is interrupted.
pub fn conclude(check: impl Future<Output = Result<Vec<String>>>) -> ExitCode {
    let ended =
        Runtime::new().context("cannot start a runtime").and_then(|runtime| runtime.block_on(unless_stopped(check)));
    match ended {
        Ok(complaints) if complaints.is_empty() => ExitCode::SUCCESS,
        Ok(complaints) => {
            for complaint in complaints {
                eprintln!("not as it should be: {complaint}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn unless_stopped(check: impl Future<Output = Result<Vec<String>>>) -> Result<Vec<String>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        result = check => result,
        _ = interrupt.recv() => bail!("interrupted; everything that was started is stopped"),
        _ = terminate.recv() => bail!("told to end; everything that was started is stopped"),
    }
}
