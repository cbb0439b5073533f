//! The tiny model with special tokens that templates print, and what its token ids spell.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use warmpath_indexer::tokens::{Vocabulary, read_json};
use warmpath_tests::conformance::SPECIAL_TOKENS;
use warmpath_tests::vllm::Install;

/// A model directory with [`SPECIAL_TOKENS`].
pub struct Model {
    /// Where it is.
    pub directory: PathBuf,
    vocabulary: Vocabulary,
}

impl Model {
    /// Writes the directory; weights are linked to the tiny model's.
    ///
    /// # Errors
    /// If the tiny model is not as `make_model.py` makes it, or this one cannot be written.
    pub fn write(install: &Install, cache: &Path) -> Result<Self> {
        let directory = cache.join("model");
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        for entry in fs::read_dir(&install.model).with_context(|| format!("read {}", install.model.display()))? {
            let entry = entry?;
            let link = directory.join(entry.file_name());
            fs::remove_file(&link).ok();
            symlink(entry.path(), &link).with_context(|| format!("cannot link {}", link.display()))?;
        }
        let mut tokenizer = read_json(&install.model.join("tokenizer.json"))?;
        let mut config = read_json(&install.model.join("tokenizer_config.json"))?;
        let first = tokenizer["model"]["vocab"].as_object().context("the tiny tokenizer has no vocabulary")?.len();
        for (id, (name, text)) in (first..).zip(SPECIAL_TOKENS) {
            let added = tokenizer["added_tokens"].as_array_mut().context("the tiny tokenizer has no added tokens")?;
            added.push(json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}));
            config[name] = text.into();
        }
        replace(&directory.join("tokenizer.json"), &tokenizer)?;
        replace(&directory.join("tokenizer_config.json"), &config)?;
        Ok(Self { vocabulary: Vocabulary::from_tokenizer_json(&tokenizer)?, directory })
    }

    /// The text that tokens spell.
    ///
    /// # Errors
    /// If one of them spells nothing, or they are not UTF-8 together.
    pub fn text(&self, tokens: &[u32]) -> Result<String> {
        let mut bytes = Vec::new();
        if !self.vocabulary.spell(tokens, &mut bytes) {
            bail!("vLLM sent a token that the tiny vocabulary lacks");
        }
        String::from_utf8(bytes).context("vLLM's tokens spell no UTF-8")
    }
}

fn replace(path: &Path, json: &Value) -> Result<()> {
    // It may be a link to the tiny model's own.
    fs::remove_file(path).ok();
    fs::write(path, json.to_string()).with_context(|| format!("cannot write {}", path.display()))
}
