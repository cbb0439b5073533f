//! The models of a configuration with their files read.

use crate::config::{Config, Model};
use crate::models;
use crate::profile::Loaded;
use crate::tokens::Vocabulary;
use crate::zone::Zone;
use affinity::profile::{Profile, Profiles};
use affinity::prompt::Prompts;
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// A configuration and its models: all that is needed to run.
#[derive(Clone)]
pub struct Plan {
    /// The configuration.
    pub config: Config,
    /// Its models, in its order.
    pub library: Library,
}

impl Plan {
    /// Reads the models' files; relative paths start at `base`. Models that are configured as they were `before`, and whose
    /// files have not changed since, are not read again.
    ///
    /// # Errors
    /// When a model's files are missing or not understood.
    pub fn new(config: Config, base: &Path, before: Option<&Plan>) -> Result<Self> {
        let book = |model: &Model| {
            // Before the files are read: what changes meanwhile is found at the next look.
            let files = Files::of(model, base);
            let as_before = |book: &&Arc<Book>| book.model == *model && book.files == files;
            match before.and_then(|plan| plan.library.0.iter().find(as_before)) {
                Some(book) => Ok(book.clone()),
                None => Book::read(model, base, files).map(Arc::new),
            }
        };
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
    files: Files,
}

/// What tells whether a model's files are those that were read: by path, when each was written and how long it is.
#[derive(Debug, PartialEq, Eq)]
struct Files {
    tokenizer: BTreeMap<PathBuf, (Option<SystemTime>, u64)>,
    /// Which change how prompts are made, but not what blocks mean.
    templates: BTreeMap<PathBuf, (Option<SystemTime>, u64)>,
}

/// Whether a file in a model's folder may be one of those that are read.
fn is_read(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    [".json", ".jinja", ".tiktoken"].iter().any(|end| name.ends_with(end)) || name.contains(".model")
}

impl Files {
    /// As they are now. What is not there has no entry: reading it says what is wrong.
    fn of(model: &Model, base: &Path) -> Self {
        let mut paths = Vec::new();
        if !model.tokenizer.starts_with("tiktoken:") {
            let path = base.join(&model.tokenizer);
            let folder = if path.is_dir() { path.as_path() } else { crate::profile::folder_of(&path) };
            let inside = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
            paths.extend(inside(folder));
            paths.extend(inside(&folder.join("additional_chat_templates")));
            // The configuration may lie there too, or logs.
            paths.retain(|path| is_read(path));
            paths.push(path);
        }
        let stamp = |path: PathBuf| {
            let metadata = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file)?;
            Some((path, (metadata.modified().ok(), metadata.len())))
        };
        let is_template = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "jinja");
        let (mut templates, tokenizer): (BTreeMap<_, _>, BTreeMap<_, _>) =
            paths.into_iter().filter_map(stamp).partition(|(path, _)| is_template(path));
        templates.extend(model.chat_template.as_ref().and_then(|file| stamp(base.join(file))));
        Self { tokenizer, templates }
    }
}

impl Book {
    fn read(model: &Model, base: &Path, files: Files) -> Result<Self> {
        let Loaded { profile, vocabulary, notes } = models::load_tested(model, base)?;
        Ok(Self { model: model.clone(), profile, vocabulary: Arc::new(vocabulary), notes, files })
    }

    /// Whether blocks mean the same here as there: their tokens spell the same, and they are kept for the same prompts.
    fn reads_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.vocabulary, &other.vocabulary)
            || (&self.model.tokenizer, self.model.tokenizer_mode, self.model.token_ids, &self.files.tokenizer)
                == (&other.model.tokenizer, other.model.tokenizer_mode, other.model.token_ids, &other.files.tokenizer)
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
