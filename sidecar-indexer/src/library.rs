//! The models of a configuration with their files read.

use crate::config::{Config, Model};
use crate::models;
use crate::profile::Loaded;
use crate::tokens::Vocabulary;
use crate::zone::Zone;
use affinity::profile::{Profile, Profiles};
use affinity::prompt::Prompts;
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// A configuration and its models: all that is needed to run.
#[derive(Clone)]
pub struct Plan {
    /// The configuration.
    pub config: Config,
    /// Its models, in its order.
    pub library: Library,
}

impl Plan {
    /// Reads the models' files; relative paths start at `base`. Models that are configured as they were `before` are not
    /// read again.
    ///
    /// # Errors
    /// When a model's files are missing or not understood.
    pub fn new(config: Config, base: &Path, before: Option<&Plan>) -> Result<Self> {
        let known = |model: &Model| before?.library.0.iter().find(|book| book.model == *model).cloned();
        let book = |model: &Model| known(model).map_or_else(|| Book::read(model, base).map(Arc::new), Ok);
        let library = Library(config.models.iter().map(book).collect::<Result<_>>()?);
        Ok(Self { config, library })
    }
}

/// Models with their files read.
#[derive(Clone, Default)]
pub struct Library(Vec<Arc<Book>>);

/// One of them.
pub struct Book {
    /// As configured.
    pub model: Model,
    /// How its prompts are made.
    pub profile: Profile,
    /// Its tokens.
    pub vocabulary: Arc<Vocabulary>,
    notes: Vec<String>,
}

impl Book {
    fn read(model: &Model, base: &Path) -> Result<Self> {
        let Loaded { profile, vocabulary, notes } = models::load_tested(model, base)?;
        Ok(Self { model: model.clone(), profile, vocabulary: Arc::new(vocabulary), notes })
    }

    /// Whether blocks mean the same here as there: their tokens spell the same, and they are kept for the same prompts.
    fn reads_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.vocabulary, &other.vocabulary)
            || (&self.model.tokenizer, self.model.tokenizer_mode, self.model.token_ids)
                == (&other.model.tokenizer, other.model.tokenizer_mode, other.model.token_ids)
    }
}

impl Library {
    /// A model, by its name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Book>> {
        self.0.iter().find(|book| book.profile.name == name)
    }

    /// The models' names.
    #[must_use]
    pub fn names(&self) -> BTreeSet<&str> {
        self.0.iter().map(|book| book.profile.name.as_str()).collect()
    }

    /// The profiles, each with its engines' time zone.
    pub fn profiles(&self) -> impl Iterator<Item = (Profile, Zone)> {
        self.0.iter().map(|book| (book.profile.clone(), book.model.time_zone.clone()))
    }

    /// What keeps prompts from being predicted: `(model, why)`.
    #[must_use]
    pub fn notes(&self) -> Vec<(String, String)> {
        let name = |book: &Arc<Book>| book.profile.name.clone();
        let mut notes: Vec<_> =
            self.0.iter().flat_map(|book| book.notes.iter().map(|note| (name(book), note.clone()))).collect();
        let models = self.0.iter().map(|book| book.profile.clone()).collect();
        let (_, failed) = Prompts::new(Profiles { models });
        notes.extend(failed.into_iter().map(|(model, why)| (model, format!("no chat prompt can be predicted: {why}"))));
        notes
    }

    /// Models whose blocks have to be read anew if this takes the place of `before`.
    #[must_use]
    pub fn reread(&self, before: &Self) -> BTreeSet<String> {
        let changed = |book: &&Arc<Book>| before.get(&book.profile.name).is_some_and(|old| !book.reads_as(old));
        self.0.iter().filter(changed).map(|book| book.profile.name.clone()).collect()
    }
}
