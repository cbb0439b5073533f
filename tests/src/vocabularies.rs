//! Real vocabularies: what the tokens of generated texts spell, against what profiles say of the texts.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use affinity::profile::Profile;
use affinity::prompt::spelling::Speller;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use warmpath_indexer::config::TokenizerMode;
use warmpath_indexer::profile::{self, Options};
use warmpath_indexer::tokens::Vocabulary;

/// What became of one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The same bytes.
    Exact,
    /// Not known, and why.
    Declined(String),
    /// Other bytes than the tokens': a defect.
    Wrong {
        /// What the filter would say.
        ours: String,
        /// What the tokens spell.
        theirs: String,
    },
}

/// A line of what `tests/conformance/vocabularies.py` writes.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Text { vocabulary: String, text: String, ids: Vec<u32>, completion: Option<Vec<u32>> },
    Vocabulary { vocabulary: String, mode: TokenizerMode, special_tokens: Option<HashMap<String, String>> },
}

/// A vocabulary with its profile.
struct Model {
    vocabulary: Vocabulary,
    profile: Profile,
    speller: Speller,
    /// Why no prompt is known, if none is.
    opaque: Option<String>,
}

impl Model {
    fn read(folder: &Path, mode: TokenizerMode) -> Result<Self> {
        let loaded = profile::load_directory(folder, &Options { tokenizer_mode: mode, ..Options::default() })?;
        let (profile, vocabulary) = (loaded.profile, loaded.vocabulary);
        // The profile as the filter gets it.
        let sent = affinity::profile::Profiles { models: vec![profile] }.encode();
        let sent = affinity::profile::Profiles::decode(&sent).context("the profile does not survive the way")?;
        let profile = sent.models.into_iter().next().context("the profile is gone")?;
        let opaque = (!profile.opaque.is_empty()).then(|| loaded.notes.join("; "));
        Ok(Self { speller: Speller::new(&profile.spelling), vocabulary, profile, opaque })
    }

    fn check(&self, text: &str, ids: &[u32], completion: bool) -> Outcome {
        let mut theirs = Vec::new();
        if !self.vocabulary.spell(ids, &mut theirs) {
            let ours = format!("(a token of {ids:?} is unknown)");
            return Outcome::Wrong { ours, theirs: text.to_owned() };
        }
        if let Some(why) = &self.opaque {
            return Outcome::Declined(why.clone());
        }
        let ours = match self.speller.spell(text.to_owned()) {
            Ok(ours) => ours,
            Err(why) => return Outcome::Declined(why.as_str().to_owned()),
        };
        let (prefix, suffix) = (&self.profile.completion_prefix, &self.profile.completion_suffix);
        let ours = if completion { [prefix, ours.as_str(), suffix].concat() } else { ours };
        if ours.as_bytes() == theirs {
            return Outcome::Exact;
        }
        Outcome::Wrong { ours, theirs: String::from_utf8_lossy(&theirs).into_owned() }
    }
}

/// Checks all that the script wrote to `folder`, and gpt-oss's vocabulary on the same texts. `each` gets the
/// vocabulary's name, the text, and what became of it.
///
/// # Errors
/// When the script's output or a model's folder cannot be read, or `each` fails.
pub fn check(folder: &Path, mut each: impl FnMut(&str, &str, Outcome) -> Result<()>) -> Result<()> {
    const HARMONY: &str = "gpt-oss";
    let path = folder.join("texts.jsonl");
    let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let harmony = tiktoken_rs::bpe_for_tokenizer(tiktoken_rs::tokenizer::Tokenizer::O200kHarmony)?;
    let built_in = Model {
        vocabulary: Vocabulary::built_in("o200k_harmony")?,
        profile: Profile::default(),
        speller: Speller::new(&affinity::profile::Spelling::default()),
        opaque: None,
    };
    let mut model = None;
    for line in BufReader::new(file).lines() {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        match serde_json::from_str(&line).with_context(|| format!("{}: {line:.80}", path.display()))? {
            Line::Vocabulary { vocabulary: name, mode, special_tokens } => {
                let read = Model::read(&folder.join(&name), mode).with_context(|| format!("vocabulary {name}"))?;
                if let Some(theirs) = special_tokens.filter(|_| read.opaque.is_none()) {
                    let ours: HashMap<String, String> = read.profile.special_tokens.iter().cloned().collect();
                    let outcome = if ours == theirs {
                        Outcome::Exact
                    } else {
                        Outcome::Wrong { ours: format!("{ours:?}"), theirs: format!("{theirs:?}") }
                    };
                    each(&name, "(special tokens)", outcome)?;
                }
                model = Some((name, read));
            }
            Line::Text { vocabulary: name, text, ids, completion } => {
                let (_, model) = model.as_ref().filter(|(n, _)| *n == name).context("a text before its vocabulary")?;
                each(&name, &text, model.check(&text, &ids, false))?;
                if let Some(ids) = completion {
                    each(&name, &text, model.check(&text, &ids, true))?;
                }
                if name == "llama3" {
                    let text = text.replace("<|begin_of_text|>", "<|start|>").replace("<|end_of_text|>", "<|end|>");
                    each(HARMONY, &text, built_in.check(&text, &harmony.encode_with_special_tokens(&text), false))?;
                }
            }
        }
    }
    ensure!(model.is_some(), "{} holds nothing", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// For trying changes on what the script wrote to `$WARMPATH_VOCABULARIES`.
    #[test]
    #[ignore = "needs the output of tests/conformance/vocabularies.py"]
    fn tokens_spell_what_profiles_say() {
        let folder = std::env::var("WARMPATH_VOCABULARIES").unwrap();
        let mut counts: BTreeMap<String, [usize; 3]> = BTreeMap::new();
        let mut why: BTreeMap<String, String> = BTreeMap::new();
        check(Path::new(&folder), |name, text, outcome| {
            let count = counts.entry(name.to_owned()).or_default();
            match outcome {
                Outcome::Exact => count[0] += 1,
                Outcome::Declined(reason) => {
                    count[1] += 1;
                    why.insert(name.to_owned(), reason);
                }
                Outcome::Wrong { ours, theirs } => {
                    count[2] += 1;
                    if count[2] < 3 {
                        eprintln!("WRONG {name} {text:?}\n  ours   {ours:?}\n  theirs {theirs:?}");
                    }
                }
            }
            Ok(())
        })
        .unwrap();
        for (name, [exact, declined, wrong]) in &counts {
            let why = why.get(name).map(String::as_str).unwrap_or_default();
            eprintln!("{name:24} exact {exact:6} declined {declined:6} wrong {wrong:6} {why}");
        }
        assert!(counts.values().all(|[_, _, wrong]| *wrong == 0));
    }
}
