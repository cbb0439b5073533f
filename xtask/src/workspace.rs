//! The checkout: where things are, and building them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::step;

/// What the filter is built for.
pub const WASM_TARGET: &str = "wasm32-wasip1";

/// Largest module accepted, in bytes. Envoy compiles it on its main thread at start-up, about 2 s per MB.
const MODULE_LIMIT: u64 = 1_500_000;

/// The checkout this program was built from.
pub struct Workspace {
    root: PathBuf,
    /// Cargo's target directory.
    pub target: PathBuf,
    cargo: OsString,
}

impl Workspace {
    /// Finds the workspace's root beside this package.
    pub fn locate() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask lies in no workspace: run it as `cargo xtask` from a checkout")?
            .to_owned();
        let target = match env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty()) {
            Some(dir) => env::current_dir()?.join(dir),
            None => root.join("target"),
        };
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        Ok(Self { root, target, cargo })
    }

    /// A path in the checkout.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// A cargo command in the workspace's root.
    pub fn cargo(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(&self.root).args(args);
        command
    }

    /// Builds the filter; returns the module's path.
    pub fn build_module(&self) -> Result<PathBuf> {
        self.require_wasm_target()?;
        step::run(
            &mut self.cargo(&["build", "--package", "warmpath-filter", "--target", WASM_TARGET, "--profile", "wasm"]),
            "the compiler's errors are above",
        )?;
        let module = self.target.join(WASM_TARGET).join("wasm").join("warmpath_filter.wasm");
        let size = fs::metadata(&module).with_context(|| format!("no module at {}", module.display()))?.len();
        step::say(format!("module: {} ({size} bytes)", module.display()));
        if size >= MODULE_LIMIT {
            bail!(
                "{} has {size} bytes, the limit is {MODULE_LIMIT}: Envoy compiles all of it before it starts to serve. \
                 Look for what grew, e.g. with `cargo tree -p warmpath-filter -e normal`",
                module.display()
            );
        }
        Ok(module)
    }

    /// Builds a module of `filter/examples` that a bench runs; returns its path.
    pub fn build_example(&self, name: &str) -> Result<PathBuf> {
        self.require_wasm_target()?;
        let args = ["build", "--package", "warmpath-filter", "--example", name, "--target", WASM_TARGET];
        step::run(self.cargo(&args).args(["--profile", "wasm"]), "the compiler's errors are above")?;
        Ok(self.target.join(WASM_TARGET).join("wasm/examples").join(format!("{name}.wasm")))
    }

    /// Builds every native program, so that they lie side by side: tests and demos start each other's siblings.
    pub fn build_programs(&self, release: bool) -> Result<()> {
        let mut cargo = self.cargo(&["build", "--workspace", "--bins"]);
        if release {
            cargo.arg("--release");
        }
        step::run(&mut cargo, "the compiler's errors are above")
    }

    /// Builds one program, optimised, that starts none of its siblings.
    pub fn build_program(&self, package: &str, name: &str) -> Result<()> {
        let args = ["build", "--release", "--package", package, "--bin", name];
        step::run(&mut self.cargo(&args), "the compiler's errors are above")
    }

    /// Builds a package that is no member of the workspace, optimised; returns its program's path.
    pub fn build_apart(&self, directory: &str, program: &str) -> Result<PathBuf> {
        step::run(&mut self.apart(&["build", "--release"], directory), "the compiler's errors are above")?;
        self.program(program)
    }

    /// Checks that a package that is no member of the workspace still compiles, with the versions that it has locked.
    pub fn check_apart(&self, directory: &str) -> Result<()> {
        let what_to_do =
            "the compiler's errors are above; a lock file is brought up to date by the same without --locked";
        step::run(&mut self.apart(&["check", "--quiet"], directory), what_to_do)
    }

    fn apart(&self, args: &[&str], directory: &str) -> Command {
        let mut cargo = self.cargo(args);
        cargo.args(["--locked", "--manifest-path"]).arg(self.root.join(directory).join("Cargo.toml"));
        cargo.arg("--target-dir").arg(&self.target);
        cargo
    }

    /// The path of an optimised program that has been built.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.target.join("release").join(name);
        if !path.is_file() {
            bail!("{} was not built: does the tests package still have a program `{name}`?", path.display());
        }
        Ok(path)
    }

    /// Adds the wasm target to the toolchain where it is missing.
    pub fn require_wasm_target(&self) -> Result<()> {
        let mut rustc = Command::new("rustc");
        rustc.current_dir(&self.root).args(["--print", "target-libdir", "--target", WASM_TARGET]);
        if Path::new(step::output(&mut rustc)?.trim()).is_dir() {
            return Ok(());
        }
        let what_to_do = format!(
            "Rust's standard library for {WASM_TARGET} is missing. With rustup: `rustup target add {WASM_TARGET}`; \
             without it, install your distribution's package for that target (e.g. libstd-rust-dev-wasm32)"
        );
        let mut rustup = Command::new("rustup");
        rustup.current_dir(&self.root).args(["target", "add", WASM_TARGET]);
        step::run(&mut rustup, &what_to_do).with_context(|| what_to_do.clone())
    }
}
