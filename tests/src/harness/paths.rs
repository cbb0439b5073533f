//! Where the checkout, the sibling programs, Envoy and the module are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The root of the checkout that this was built from.
#[must_use]
pub fn repository() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// Where cargo put the running program's siblings: `target/debug` or `target/release`.
pub(super) fn programs() -> Result<PathBuf> {
    let executable = env::current_exe().context("cannot tell which program this is")?;
    // Test executables lie one deeper, in `deps`.
    let mut parents = executable.ancestors().skip(1).filter(|dir| !dir.ends_with("deps"));
    Ok(parents.next().context("this program lies in no directory")?.to_owned())
}

/// A program of this workspace, built with the same profile as the running one.
///
/// # Errors
/// If it has not been built; the error says how to.
pub fn program(package: &str, name: &str) -> Result<PathBuf> {
    let path = programs()?.join(name);
    if !path.is_file() {
        let release = if path.parent().is_some_and(|dir| dir.ends_with("release")) { " --release" } else { "" };
        bail!(
            "{} is not there: `cargo xtask test` and `cargo xtask demo` build it, and so does \
             `cargo build{release} --package {package} --bin {name}`",
            path.display()
        );
    }
    Ok(path)
}

/// The Envoy to run: `$ENVOY_BIN`, or else the PATH's, or one that `cargo xtask envoy` has fetched.
///
/// # Errors
/// If there is none; the error says how to get one.
pub fn envoy_binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("ENVOY_BIN").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("$ENVOY_BIN names {}, which is no file: unset it, or set it to Envoy's executable", path.display());
        }
        return Ok(path);
    }
    let on_path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&on_path).map(|dir| dir.join("envoy"));
    let mut fetched = Vec::new();
    if let Ok(versions) = repository().join("target/envoy").read_dir() {
        fetched.extend(versions.flatten().map(|version| version.path().join("envoy/_bin/envoy")));
    }
    // The newest last in the alphabet, as long as minor versions have two digits.
    fetched.sort();
    on_path
        .chain(fetched.into_iter().rev())
        .find(|path| path.is_file())
        .context("no Envoy found: run `cargo xtask envoy` once, which fetches one, or set ENVOY_BIN to an executable")
}

/// The filter's module: `$WARMPATH_WASM`, or else where `cargo xtask build` puts it.
///
/// # Errors
/// If it has not been built; the error says how to.
pub fn module() -> Result<PathBuf> {
    let built = repository().join("target/wasm32-wasip1/wasm/warmpath_filter.wasm");
    let named = env::var_os("WARMPATH_WASM").filter(|path| !path.is_empty());
    let path = named.map_or(built, PathBuf::from);
    if !path.is_file() {
        bail!("no module at {}: build it with `cargo xtask build`, or set WARMPATH_WASM", path.display());
    }
    Ok(path)
}
