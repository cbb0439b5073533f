//! Where vLLM and the model are, and how they get there.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::group::Group;
use super::replica::is_model;
use crate::harness::repository;
use anyhow::{Context, Result, bail};

/// The release that is tested with unless another is asked for.
pub const VERSION: &str = "0.32.0";

/// An installed vLLM and a model for it.
pub struct Install {
    /// Everything lies in here, logs too.
    pub directory: PathBuf,
    /// Its Python environment.
    pub venv: PathBuf,
    /// The model's files.
    pub model: PathBuf,
}

impl Install {
    /// Where this version is or will be: `$WARMPATH_VLLM_VENV` and `$WARMPATH_VLLM_MODEL` if set, or else below
    /// `$WARMPATH_VLLM_DIR`, or else below `~/.cache/warmpath/real-vllm`.
    ///
    /// # Errors
    /// If there is no home directory either.
    pub fn locate(version: &str) -> Result<Self> {
        let named = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let directory = match named("WARMPATH_VLLM_DIR") {
            Some(directory) => directory,
            None => named("HOME")
                .context("$HOME is not set: set WARMPATH_VLLM_DIR to where vLLM may be installed")?
                .join(".cache/warmpath/real-vllm"),
        };
        let venv = named("WARMPATH_VLLM_VENV").unwrap_or_else(|| directory.join(format!("venv-{version}")));
        let model = named("WARMPATH_VLLM_MODEL").unwrap_or_else(|| directory.join("model"));
        Ok(Self { directory, venv, model })
    }

    /// Installs what is missing. What it downloads, and how far it is, appears on the terminal.
    ///
    /// # Errors
    /// If that fails; what is there by then stays, and the next run goes on from there.
    pub async fn complete(&self, version: &str) -> Result<()> {
        // setup.sh writes this mark last.
        let marked = self.venv.join("warmpath-complete").is_file() || env::var_os("WARMPATH_VLLM_VENV").is_some();
        if marked && is_model(&self.model) {
            return Ok(());
        }
        let mut setup = Command::new(script("setup.sh"));
        setup.arg(version).arg(&self.venv).arg(&self.model);
        let mut setup = Group::start(setup)?;
        loop {
            match setup.ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!(
                    "tests/real-vllm/setup.sh has ended ({status}), what it said is above; the next run goes on from there"
                ),
                None => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }
}

/// The path of a file of `tests/real-vllm/`.
#[must_use]
pub fn script(name: &str) -> PathBuf {
    Path::new(repository()).join("tests/real-vllm").join(name)
}
