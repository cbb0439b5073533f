//! A model's files: its vocabulary for the index, and the profile that filters spell its prompts by.
//!
//! What counts is what the engine ends up with, not what a file says: vLLM loads tokenizers through transformers, whose
//! classes set some of them up anew (`classes`), add tokens (`added`) and choose templates (`templates`). The result is
//! a tokenizer.json as the engine would write it, of which `pipeline` reads what happens to a text.

mod added;
mod classes;
#[cfg(test)]
mod equivalence;
mod pipeline;
mod read;
mod templates;

use crate::canonical::Encoder;
use crate::config::{Bos, Model, TokenizerMode};
use crate::tokens::{Kind, Piece, SentencePiece, Tekken, Vocabulary, read_json, version};
use added::Named;
use affinity::profile::{MistralFormat, PrefixSpace, Profile, Renderer, Spelling, SpellingStep};
use anyhow::{Context, Result, anyhow, bail, ensure};
use classes::Class;
use read::{Texts, flag, text};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A prompt of unknown tokens is taken to have this many bytes for each: the usual for English.
const BYTES_PER_TOKEN: u8 = 4;

/// What was read of a model.
pub struct Loaded {
    /// Its tokens.
    pub vocabulary: Vocabulary,
    /// How its prompts are made.
    pub profile: Profile,
    /// What keeps prompts from being predicted, for whoever set the model up.
    pub notes: Vec<String>,
}

/// What the engine is told about a model beside its folder.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A file with a chat template to be used instead of the model's own.
    pub chat_template: Option<PathBuf>,
    /// Whether completions prompts begin with a BOS token.
    pub bos: Bos,
    /// Whose tokenizer it runs.
    pub tokenizer_mode: TokenizerMode,
    /// It runs the model's own code.
    pub trust_remote_code: bool,
}

/// Reads a model's files; relative paths start at `base`.
///
/// # Errors
/// When a file is missing or not understood; names the file.
pub fn load(model: &Model, base: &Path) -> Result<Loaded> {
    let options = Options {
        chat_template: model.chat_template.as_ref().map(|path| base.join(path)),
        bos: model.bos,
        tokenizer_mode: model.tokenizer_mode,
        trust_remote_code: model.trust_remote_code,
    };
    let loaded = match model.tokenizer.strip_prefix("tiktoken:") {
        Some(name) => built_in(name, &options),
        None => load_directory(&base.join(&model.tokenizer), &options),
    };
    let mut loaded = loaded.with_context(|| format!("model {:?}: tokenizer", model.name))?;
    loaded.profile.name.clone_from(&model.name);
    loaded.profile.aliases.clone_from(&model.aliases);
    loaded.profile.adapters.clone_from(&model.loras);
    Ok(loaded)
}

/// Where a file lies. The parent of a bare name is no path that can be read.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Reads a model's folder, or one vocabulary file and what lies beside it. The profile has no name yet.
///
/// # Errors
/// When a file is missing or not understood; names the file.
pub fn load_directory(path: &Path, options: &Options) -> Result<Loaded> {
    ensure!(path.exists(), "{} is not there", path.display());
    let directory = if path.is_dir() { path } else { folder_of(path) };
    let mut files = Texts::read(directory)?;
    let mut notes = Vec::new();
    let (file, mistral) = choose(path, &files, options, &mut notes)?;
    if mistral {
        // transformers is not asked, so neither its templates nor its special tokens count.
        files = Texts::default();
    }
    let unusable = || format!("{} is not usable", file.display());
    let source = if mistral { read_mistral(&file) } else { read_hugging_face(&file, &files, options) };
    let source = source.with_context(unusable)?;
    source.finish(&files, options, notes)
}

fn built_in(name: &str, options: &Options) -> Result<Loaded> {
    let mut source = Source::new(Vocabulary::built_in(name)?);
    let mut files = Texts::default();
    if name == "o200k_harmony" {
        files.model = serde_json::json!({"model_type": "gpt_oss"});
    }
    source.tokens.push(("eos_token".to_owned(), "<|endoftext|>".to_owned()));
    source.finish(&files, options, Vec::new())
}

/// The vocabulary's file, and whether mistral-common reads it.
fn choose(path: &Path, files: &Texts, options: &Options, notes: &mut Vec<String>) -> Result<(PathBuf, bool)> {
    let mistral = |name: &str| name == "tekken.json" || name.starts_with("tokenizer.model.v");
    if !path.is_dir() {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        return Ok((path.to_owned(), mistral(name) && options.tokenizer_mode != TokenizerMode::Hf));
    }
    let has = |name: &str| files.names.iter().any(|file| file == name);
    // tekken.json comes first, else the newest version.
    let mistrals = || files.names.iter().filter(|name| mistral(name));
    let mistrals = mistrals().find(|name| *name == "tekken.json").or_else(|| mistrals().next_back());
    let end = |name: &&String, end: &str| Path::new(name).extension().is_some_and(|e| e == end);
    let consolidated = |name: &&String| name.starts_with("consolidated") && end(name, "safetensors");
    let takes_mistral = match options.tokenizer_mode {
        TokenizerMode::Hf => false,
        TokenizerMode::Mistral => true,
        TokenizerMode::Auto if files.names.iter().any(|name| consolidated(&name)) => mistrals.is_some(),
        TokenizerMode::Auto => {
            let other = has("tokenizer.json") || has("tokenizer.model");
            let weights = files.names.iter().any(|name| end(&name, "safetensors") || end(&name, "bin"));
            if mistrals.is_some() && other && !weights {
                notes.push(
                    "no prompt can be predicted: without the weights one cannot tell whether vLLM takes mistral-common \
                     for this model; set tokenizer_mode to hf or mistral"
                        .to_owned(),
                );
            }
            mistrals.is_some() && !other
        }
    };
    if takes_mistral {
        let name = mistrals.map(String::as_str).or_else(|| has("tokenizer.model").then_some("tokenizer.model"));
        let name = name.with_context(|| {
            format!("{} has neither tekken.json nor tokenizer.model.v*, as mistral-common needs", path.display())
        })?;
        return Ok((path.join(name), true));
    }
    let json = text(&files.config, "tokenizer_file").filter(|name| has(name)).unwrap_or("tokenizer.json");
    if has(json) {
        return Ok((path.join(json), false));
    }
    let mut tiktoken = files.names.iter().filter(|name| end(name, "tiktoken") || *name == "tiktoken.model");
    match (tiktoken.next(), tiktoken.next()) {
        (Some(only), None) => Ok((path.join(only), false)),
        (None, _) if has("tokenizer.model") => Ok((path.join("tokenizer.model"), false)),
        (None, _) => {
            bail!("{} has neither tokenizer.json nor tekken.json, tokenizer.model or a *.tiktoken file", path.display())
        }
        (Some(_), Some(_)) => bail!("{} has several *.tiktoken files; name the one", path.display()),
    }
}

/// A vocabulary and what was found out about its use.
struct Source {
    vocabulary: Vocabulary,
    spelling: Result<Spelling>,
    /// Special tokens by the names that templates use.
    tokens: Vec<(String, String)>,
    /// Ids put around a completions prompt.
    around: (Vec<u32>, Vec<u32>),
    renderer: Option<Renderer>,
}

impl Source {
    fn new(vocabulary: Vocabulary) -> Self {
        let (tokens, around) = (Vec::new(), (Vec::new(), Vec::new()));
        Self { vocabulary, spelling: Ok(Spelling::default()), tokens, around, renderer: None }
    }

    fn finish(self, files: &Texts, options: &Options, mut notes: Vec<String>) -> Result<Loaded> {
        let mut opaque = if notes.is_empty() { String::new() } else { "tokenizer".to_owned() };
        let mut hide = |why: String, notes: &mut Vec<String>| {
            notes.push(format!("no prompt can be predicted: {why}"));
            "tokenizer".clone_into(&mut opaque);
        };
        let spelling = self.spelling.unwrap_or_else(|why| {
            hide(format!("{why:#}"), &mut notes);
            Spelling::default()
        });
        if flag(&files.sentence, "do_lower_case") == Some(true) {
            hide("its texts are put in lower case (sentence_bert_config.json)".to_owned(), &mut notes);
        }
        let spell = |ids: &[u32]| {
            let mut bytes = Vec::new();
            let known = self.vocabulary.spell(ids, &mut bytes);
            String::from_utf8(bytes).ok().filter(|_| known)
        };
        let (prefix, suffix) = match (spell(&self.around.0), spell(&self.around.1)) {
            (Some(prefix), Some(suffix)) => (prefix, suffix),
            _ => {
                hide("the tokens that it puts around prompts are not in its vocabulary".to_owned(), &mut notes);
                (String::new(), String::new())
            }
        };
        let bos = self.tokens.iter().find(|(name, _)| name == "bos_token").map(|(_, text)| text.clone());
        let prefix = match options.bos {
            Bos::Never => String::new(),
            Bos::Always => bos.context("bos is always, but the tokenizer's files name no bos_token")?,
            Bos::Auto => prefix,
        };
        let renderer = match self.renderer {
            Some(renderer) => renderer,
            None => templates::renderer(files, options.chat_template.as_deref(), &mut notes)?,
        };
        let profile = Profile {
            renderer,
            special_tokens: self.tokens,
            completion_prefix: prefix,
            completion_suffix: suffix,
            spelling,
            opaque,
            bytes_per_token: BYTES_PER_TOKEN,
            ..Profile::default()
        };
        Ok(Loaded { vocabulary: self.vocabulary, profile, notes })
    }
}

/// mistral-common's files. It finds no special tokens in texts.
fn read_mistral(file: &Path) -> Result<Source> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (mut source, format) = if name.ends_with(".json") {
        let tekken = Tekken::read(&bytes)?;
        (Source::new(tekken.vocabulary()?), tekken.format()?)
    } else {
        let model = SentencePiece::read(&bytes)?;
        let version = name.strip_prefix("tokenizer.model.").map_or(Ok(1), version)?;
        let format = MistralFormat { version, tekken: false, thinks: false, efforts: Vec::new() };
        (Source { spelling: sentencepiece(&model), ..Source::new(model.vocabulary()?) }, format)
    };
    source.around.0.push(1);
    source.renderer = Some(Renderer::Mistral(format));
    source.tokens = [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(n, t)| (n.to_owned(), t.to_owned())).into();
    Ok(source)
}

/// What SentencePiece itself does to a text.
fn sentencepiece(model: &SentencePiece) -> Result<Spelling> {
    ensure!(!model.changes_characters, "its normalizer changes texts (a table of characters)");
    ensure!(!model.squeezes_spaces, "its normalizer removes spaces");
    ensure!(model.escapes_spaces, "it does not mark spaces");
    // Cut out of texts first, but that tells in no byte unless spaces are in them.
    let spaced = |piece: &Piece| piece.kind == Kind::UserDefined && piece.text.contains([' ', '\u{2581}']);
    ensure!(!model.pieces.iter().any(spaced), "it has tokens with spaces that are cut out first");
    let steps = if model.dummy_prefix { vec![SpellingStep::Prepend(" ".to_owned())] } else { Vec::new() };
    Ok(Spelling { added: Vec::new(), steps, prefix_space: PrefixSpace::Never, marks: true })
}

/// Everything that transformers loads.
fn read_hugging_face(file: &Path, files: &Texts, options: &Options) -> Result<Source> {
    let class = Class::of(&files.model, &files.config, options.trust_remote_code);
    if file.extension().is_some_and(|e| e == "json") {
        return from_tokenizer_json(read_json(file)?, class, files);
    }
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match SentencePiece::read(&bytes) {
        // Llama 3 and its kin have a tiktoken file of this name.
        Ok(model) if name.ends_with(".model") => from_sentencepiece(&model, class, files),
        _ => from_tiktoken(&bytes, name == "qwen.tiktoken", class, files),
    }
}

fn from_tokenizer_json(mut json: Value, class: Result<Class>, files: &Texts) -> Result<Source> {
    let known = class.as_ref().map_or(Class::File, |class| *class);
    let named = Named::read(known, &json, files)?;
    let tokenizer = json.as_object_mut().context("it is not a JSON object")?;
    known.rebuild(tokenizer, &files.config);
    named.add_to(known, tokenizer);
    let vocabulary = Vocabulary::from_tokenizer_json(&json)?.with_encoder(Encoder::from_tokenizer_json(&json)?);
    let around = pipeline::around(json.get("post_processor"));
    let spelling = class.and_then(|_| {
        ensure!(flag(&files.config, "split_special_tokens") != Some(true), "it splits special tokens");
        ensure!(flag(&files.config, "fix_mistral_regex") != Some(true), "its words are changed (fix_mistral_regex)");
        around.as_ref().map_err(|why| anyhow!("{why:#}"))?;
        pipeline::spelling(&json)
    });
    Ok(Source {
        spelling,
        tokens: named.for_templates(),
        around: around.unwrap_or_default(),
        ..Source::new(vocabulary)
    })
}

/// Where there is no tokenizer.json, transformers makes one of tokenizer.model.
fn from_sentencepiece(model: &SentencePiece, class: Result<Class>, files: &Texts) -> Result<Source> {
    let known = class.as_ref().map_or(Class::File, |class| *class);
    let mut json = model.tokenizer_json();
    let mut named = Named::read(known, &Value::Null, files)?;
    named.add_pieces(model);
    let tokenizer = json.as_object_mut().context("it is not a JSON object")?;
    known.rebuild(tokenizer, &files.config);
    named.add_to(known, tokenizer);
    // The model's own table tells the kinds of tokens; only those added are new.
    let vocabulary = model.vocabulary()?.with_added(&json)?;
    let spelling = class.and_then(|class| {
        ensure!(class != Class::File, "transformers reads its tokenizer.model by a class that is not reproduced");
        pipeline::spelling(&json)
    });
    let tokens = named.for_templates();
    let around = around_by_flags(&vocabulary, &tokens, &files.config);
    Ok(Source { spelling, tokens, around, ..Source::new(vocabulary) })
}

/// Read by transformers, or by the code of models known to do it alike.
fn from_tiktoken(bytes: &[u8], qwen: bool, class: Result<Class>, files: &Texts) -> Result<Source> {
    let lines = std::str::from_utf8(bytes).context("it is neither a SentencePiece model nor lines of text")?;
    let vocabulary = Vocabulary::from_tiktoken(lines, &files.config, qwen)?;
    let known = class.as_ref().map_or(Class::File, |class| *class);
    let named = Named::read(known, &Value::Null, files)?;
    let code = files.config.pointer("/auto_map/AutoTokenizer/0").and_then(Value::as_str).unwrap_or_default();
    let alike = qwen || code.ends_with(".TikTokenTokenizer");
    let spelling = class.or_else(|why| if alike { Ok(Class::File) } else { Err(why) }).and_then(|class| {
        ensure!(class == Class::File, "transformers reads it by a class that is not reproduced");
        ensure!(!named.strips(), "added tokens swallow whitespace");
        // Qwen's own code composes texts before anything else.
        let steps = if qwen { vec![SpellingStep::Nfc] } else { Vec::new() };
        Ok(Spelling { steps, ..Spelling::default() })
    });
    let tokens = named.for_templates();
    let around = around_by_flags(&vocabulary, &tokens, &files.config);
    Ok(Source { spelling, tokens, around, ..Source::new(vocabulary) })
}

/// Without a tokenizer.json, two settings say what is put around a prompt.
fn around_by_flags(vocabulary: &Vocabulary, tokens: &[(String, String)], config: &Value) -> (Vec<u32>, Vec<u32>) {
    let id = |setting: &str, name: &str| {
        let wanted = flag(config, setting) == Some(true);
        let token = tokens.iter().find(|(n, _)| wanted && n == name);
        // One that is not there makes the prompt unknown.
        token.map(|(_, text)| vocabulary.id(text.as_bytes()).unwrap_or(u32::MAX)).into_iter().collect()
    };
    (id("add_bos_token", "bos_token"), id("add_eos_token", "eos_token"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(model: &str) -> Result<Loaded> {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
        let model: Model = serde_yaml_ng::from_str(model).unwrap();
        load(&model, &base)
    }

    #[test]
    fn a_folder_gives_vocabulary_template_and_special_tokens() {
        let loaded = fixture("{name: tiny, tokenizer: tokenizer, aliases: [t], loras: [ada]}").unwrap();
        assert_eq!(loaded.notes, [""; 0]);
        assert_eq!(loaded.vocabulary.get(4094), Some(b"<|im_start|>".as_slice()));
        let profile = loaded.profile;
        assert!(profile.template(false).unwrap().source.contains("<|im_start|>"));
        assert!(profile.special_tokens.contains(&("eos_token".into(), "<|im_end|>".into())));
        assert_eq!((profile.completion_prefix.as_str(), profile.opaque.as_str()), ("", ""));
        assert_eq!((profile.aliases, profile.adapters), (vec!["t".to_owned()], vec!["ada".to_owned()]));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = format!("{:#}", fixture("{name: tiny, tokenizer: nowhere}").err().unwrap());
        assert!(error.contains("tiny") && error.contains("nowhere"), "{error}");
        let error = format!("{:#}", fixture("{name: tiny, tokenizer: vllm-events}").err().unwrap());
        assert!(error.contains("neither tokenizer.json nor"), "{error}");
    }

    #[test]
    fn always_a_bos_needs_one_to_be_known() {
        let error = format!("{:#}", fixture("{name: tiny, tokenizer: tokenizer, bos: always}").err().unwrap());
        assert!(error.contains("bos_token"), "{error}");
    }

    #[test]
    fn built_in_vocabularies_know_the_chats_of_gpt_oss_only() {
        let loaded = fixture("{name: oss, tokenizer: 'tiktoken:o200k_harmony'}").unwrap();
        assert_eq!((loaded.profile.renderer, loaded.notes), (Renderer::Harmony, vec![]));
        let loaded = fixture("{name: gpt, tokenizer: 'tiktoken:cl100k_base'}").unwrap();
        assert_eq!(loaded.profile.renderer, Renderer::None);
        assert!(loaded.notes[0].contains("chat"));
    }
}
