//! Text to tokens and back, with the model's own tokenizer and chat template.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;

/// What generated text is made of. ASCII, so that text cut at any token is valid UTF-8.
const WORDS: &[&str] = &[
    "the", "a", "value", "return", "cache", "prefix", "token", "request", "because", "which", "block", "engine",
    "answer", "question", "however", "between", "system", "model", "first", "second", "should", "would", "number",
    "function", "result", "example", "memory", "server", "client", "table", "window", "simple", "another", "quickly",
    "order", "parallel", "stream", "pressure", "balance", "warm", "cold", "path",
];

/// A tokenizer directory as engines load it: `tokenizer.json`, `tokenizer_config.json` and, where
/// the template is not in the latter, `chat_template.jinja`.
pub struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    template: Option<String>,
    special: serde_json::Map<String, Value>,
    environment: Environment<'static>,
    /// Contents of the added tokens, longest first, where text may be encoded piece by piece.
    borders: Vec<String>,
    known: Mutex<Known>,
}

/// Encodings of text between added tokens. Conversations repeat all but their last messages, and
/// encoding is most of what a simulated request costs.
#[derive(Default)]
struct Known {
    tokens: usize,
    pieces: HashMap<Box<str>, Vec<u32>>,
}

/// Tokens kept in [`Known`]; beyond, it starts anew.
const KNOWN_TOKENS: usize = 4 << 20;

/// Text that an engine will generate, with what each token adds to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// The text that becomes readable with each token; may be empty within a character.
    pub pieces: Vec<String>,
}

impl Tokenizer {
    /// Reads a tokenizer directory. Errors name the file that is missing or wrong.
    pub fn load(directory: &Path) -> Result<Self> {
        let file = directory.join("tokenizer.json");
        let tokenizer = tokenizers::Tokenizer::from_file(&file)
            .map_err(|error| anyhow!("tokenizer {}: {error}; pass a directory with tokenizer.json", file.display()))?;
        let file = directory.join("tokenizer_config.json");
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let config: Value = serde_json::from_str(&text).with_context(|| format!("parse {}", file.display()))?;
        let beside = directory.join("chat_template.jinja");
        let template = match std::fs::read_to_string(&beside) {
            Ok(text) => Some(text),
            Err(_) => config["chat_template"].as_str().map(str::to_owned),
        };
        let special = config
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, _)| key.ends_with("_token"))
            .filter_map(|(key, value)| {
                let text = value.as_str().or_else(|| value["content"].as_str())?;
                Some((key.clone(), Value::from(text)))
            })
            .collect();
        let mut environment = Environment::new();
        // As transformers sets Jinja up.
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        let mut this = Self { tokenizer, template, special, environment, borders: Vec::new(), known: Mutex::default() };
        this.borders = this.find_borders()?;
        Ok(this)
    }

    /// The added tokens, if the tokenizer treats the text on each side of them separately. Some do
    /// not: they strip spaces beside added tokens, or put one at the start of a text.
    fn find_borders(&self) -> Result<Vec<String>> {
        let added = self.tokenizer.get_added_tokens_decoder();
        let mut borders: Vec<String> = added.into_values().map(|token| token.content).collect();
        borders.retain(|content| !content.is_empty());
        borders.sort_by_key(|content| std::cmp::Reverse(content.len()));
        for border in &borders {
            let probe = format!("word {border}word{border}  {border}\n{border} word e\u{301}");
            let pieces = split(&probe, &borders).map(|piece| self.encode_whole(piece, false));
            if pieces.collect::<Result<Vec<_>>>()?.concat() != self.encode_whole(&probe, false)? {
                return Ok(Vec::new());
            }
        }
        Ok(borders)
    }

    /// Token ids of a text. `special`: add what the post-processor adds, such as BOS.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        if special || self.borders.is_empty() {
            return self.encode_whole(text, special);
        }
        let mut known = self.known.lock().unwrap();
        let mut tokens = Vec::new();
        for piece in split(text, &self.borders) {
            if let Some(found) = known.pieces.get(piece) {
                tokens.extend_from_slice(found);
                continue;
            }
            let encoded = self.encode_whole(piece, false)?;
            tokens.extend_from_slice(&encoded);
            if known.tokens > KNOWN_TOKENS {
                *known = Known::default();
            }
            known.tokens += encoded.len();
            known.pieces.insert(piece.into(), encoded);
        }
        Ok(tokens)
    }

    fn encode_whole(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, special).map_err(|error| anyhow!("tokenise: {error}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of token ids, special tokens included.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens, false).map_err(|error| anyhow!("decode: {error}"))
    }

    /// The prompt that a conversation becomes. `variables` are the template's further inputs
    /// (`tools`, `add_generation_prompt`, `chat_template_kwargs`).
    pub fn render(&self, messages: Value, variables: serde_json::Map<String, Value>) -> Result<String> {
        let template = self
            .template
            .as_deref()
            .context("the tokenizer has no chat template; put chat_template in tokenizer_config.json")?;
        let mut context = self.special.clone();
        context.extend(variables);
        context.insert("messages".into(), messages);
        self.environment
            .render_str(template, minijinja::Value::from(Serde(&context)))
            .context("render the chat template")
    }

    /// Exactly `count` tokens of plain words, the same for the same `seed`.
    pub fn generate(&self, seed: u64, count: usize) -> Result<Generation> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut text = String::new();
        let mut tokens = Vec::new();
        while tokens.len() < count {
            // A word is a token or more; encoding anew keeps the text's own tokenisation.
            for _ in tokens.len()..count {
                if !text.is_empty() {
                    text.push_str(if random.random_ratio(1, 12) { ". " } else { " " });
                }
                text.push_str(WORDS[random.random_range(0..WORDS.len())]);
            }
            tokens = self.encode_whole(&text, false)?;
        }
        tokens.truncate(count);
        let mut stream = self.tokenizer.decode_stream(false);
        let mut pieces = Vec::with_capacity(count);
        for &token in &tokens {
            let piece = stream.step(token).map_err(|error| anyhow!("decode: {error}"))?;
            pieces.push(piece.unwrap_or_default());
        }
        Ok(Generation { tokens, pieces })
    }
}

/// Cuts a text before every occurrence of a border, the longest where several begin.
fn split<'a>(text: &'a str, borders: &'a [String]) -> impl Iterator<Item = &'a str> {
    // One look at each character, however many borders there are.
    let mut openers: Vec<char> = borders.iter().filter_map(|border| border.chars().next()).collect();
    openers.sort_unstable();
    openers.dedup();
    let length = move |text: &str| borders.iter().find(|border| text.starts_with(border.as_str())).map(String::len);
    let mut rest = text;
    std::iter::from_fn(move || {
        let after = rest.get(length(rest).unwrap_or(0)..)?;
        let next = after.match_indices(openers.as_slice()).find(|&(at, _)| length(&after[at..]).is_some());
        let piece = rest.len() - after.len() + next.map_or(after.len(), |(at, _)| at);
        let (piece, remaining) = rest.split_at(piece);
        rest = remaining;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        Tokenizer::load(&super::super::fixture_tokenizer()).unwrap()
    }

    #[test]
    fn recorded_conversations_tokenise_to_the_recorded_number_of_tokens() {
        let path = format!("{}/fixtures/vllm-events/block32.http.jsonl", env!("CARGO_MANIFEST_DIR"));
        let mut compared = 0;
        for line in std::fs::read_to_string(path).unwrap().lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            if record["path"] != "/v1/chat/completions" {
                continue;
            }
            let mut variables = serde_json::Map::new();
            variables.insert("add_generation_prompt".into(), true.into());
            let text = tokenizer().render(record["body"]["messages"].clone(), variables).unwrap();
            let tokens = tokenizer().encode(&text, false).unwrap();
            assert_eq!(tokens.len() as u64, record["resp"]["usage"]["prompt_tokens"], "{text}");
            compared += 1;
        }
        assert!(compared > 5, "only {compared} recorded conversations");
    }

    #[test]
    fn generated_pieces_spell_the_generated_tokens() {
        let tokenizer = tokenizer();
        let made = tokenizer.generate(7, 50).unwrap();
        assert_eq!(made.tokens.len(), 50);
        assert_eq!(made.pieces.concat(), tokenizer.decode(&made.tokens).unwrap());
        assert_eq!(made, tokenizer.generate(7, 50).unwrap());
        assert_ne!(made, tokenizer.generate(8, 50).unwrap());
    }

    #[test]
    fn text_encoded_piece_by_piece_has_the_tokens_of_the_whole() {
        let tokenizer = tokenizer();
        assert_eq!(tokenizer.borders.len(), 3, "the test model's added tokens are borders");
        for text in [
            "",
            "plain",
            "<|im_start|>",
            "a <|im_start|> b<|im_end|>\n<|im_start|><|im_start|>c",
            "<|im_start|>user\n<|im_<|im_end|>| <|endoftext|>東京 🙂",
        ] {
            for _ in 0..2 {
                assert_eq!(
                    tokenizer.encode(text, false).unwrap(),
                    tokenizer.encode_whole(text, false).unwrap(),
                    "{text}"
                );
            }
        }
    }
}
