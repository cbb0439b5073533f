//! The tokens that transformers (5.19) adds to a tokenizer when it loads one, and the special tokens that it hands to
//! templates: out of tokenizer.json, tokenizer_config.json, special_tokens_map.json and added_tokens.json.

use super::classes::Class;
use super::read::{Texts, flag, text};
use crate::tokens::{Kind, Piece, SentencePiece};
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Names that special tokens have in every tokenizer.
const STANDARD: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A token as the files describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    /// By default, what is not special.
    normalized: Option<bool>,
    special: bool,
}

impl Token {
    fn special(content: &str) -> Self {
        let content = content.to_owned();
        Self { content, single_word: false, lstrip: false, rstrip: false, normalized: None, special: true }
    }

    /// From an object of the files, or from text.
    fn read(value: &Value) -> Option<Self> {
        if let Some(content) = value.as_str() {
            return Some(Self::special(content));
        }
        let set = |name| flag(value, name) == Some(true);
        Some(Self {
            content: text(value, "content")?.to_owned(),
            single_word: set("single_word"),
            lstrip: set("lstrip"),
            rstrip: set("rstrip"),
            normalized: flag(value, "normalized"),
            special: set("special"),
        })
    }

    fn json(&self, id: u64) -> Value {
        json!({
            "id": id, "content": self.content, "single_word": self.single_word, "lstrip": self.lstrip,
            "rstrip": self.rstrip, "normalized": self.normalized.unwrap_or(!self.special), "special": self.special,
        })
    }
}

/// What the files name.
pub struct Named {
    /// Special tokens by name; `None` where a file sets one to null.
    named: BTreeMap<String, Option<Token>>,
    /// Special tokens without names.
    extra: Vec<Token>,
    /// Added tokens by id, where the files beside tokenizer.json list them.
    listed: BTreeMap<u64, Token>,
}

impl Named {
    /// Reads the files of a model; `tokenizer` is its tokenizer.json.
    ///
    /// # Errors
    /// When a file is not of the shape that transformers takes.
    pub fn read(class: Class, tokenizer: &Value, files: &Texts) -> Result<Self> {
        let defaults =
            class.special_tokens().iter().map(|(name, token)| (name.to_string(), Some(Token::special(token))));
        let mut this = Self { named: defaults.collect(), extra: Vec::new(), listed: BTreeMap::new() };
        if let Some(pad) = tokenizer.pointer("/padding/pad_token").and_then(Value::as_str) {
            this.named.entry("pad_token".to_owned()).or_insert_with(|| Some(Token::special(pad)));
        }
        let config = &files.config;
        for (name, value) in config.as_object().into_iter().flatten() {
            this.name(name, value);
        }
        // The former name counts where the present one says nothing.
        let [former, present] = ["additional_special_tokens", "extra_special_tokens"].map(|name| config.get(name));
        let said = present.filter(|p| p.as_array().is_some_and(|l| !l.is_empty()) || p.is_object());
        match said.or(former) {
            Some(Value::Array(tokens)) => this.extra.extend(tokens.iter().filter_map(Token::read)),
            Some(Value::Object(tokens)) => {
                let tokens = tokens.iter().filter_map(|(name, token)| Some((name.clone(), Some(Token::read(token)?))));
                this.named.extend(tokens);
            }
            _ => {}
        }
        match config.get("added_tokens_decoder") {
            Some(listed) => {
                for (id, token) in listed.as_object().into_iter().flatten() {
                    let wrong = || format!("tokenizer_config.json: added_tokens_decoder: {id:?} is not a token");
                    let token = Token::read(token).with_context(wrong)?;
                    this.listed.insert(id.parse().with_context(wrong)?, token);
                }
            }
            None => this.read_former_files(tokenizer, files)?,
        }
        // A token that is listed has the flags that it is listed with.
        let listed: Vec<&Token> = this.listed.values().collect();
        let as_listed = |token: &Token| listed.iter().rev().find(|l| l.content == token.content).map(|l| (*l).clone());
        for (name, token) in &mut this.named {
            if let Some(token) = token.as_mut().filter(|_| STANDARD.contains(&name.as_str())) {
                *token = as_listed(token).unwrap_or_else(|| token.clone());
            }
        }
        Ok(this)
    }

    /// Files of before `added_tokens_decoder`.
    fn read_former_files(&mut self, tokenizer: &Value, files: &Texts) -> Result<()> {
        for (name, value) in files.special_tokens_map.as_object().into_iter().flatten() {
            match value {
                Value::Array(tokens) if name == "additional_special_tokens" && self.extra.is_empty() => {
                    self.extra.extend(tokens.iter().filter_map(Token::read).map(|t| Token { special: true, ..t }));
                }
                Value::Array(tokens) if name == "extra_special_tokens" => {
                    for token in tokens.iter().filter_map(Token::read).map(|t| Token { special: true, ..t }) {
                        if !self.extra.contains(&token) {
                            self.extra.push(token);
                        }
                    }
                }
                Value::Object(_) | Value::String(_) if name.ends_with("_token") => {
                    self.named.insert(name.clone(), Token::read(value).map(|token| Token { special: true, ..token }));
                }
                _ => {}
            }
        }
        for (content, id) in files.added_tokens.as_object().into_iter().flatten() {
            let id =
                id.as_u64().with_context(|| format!("added_tokens.json: the id of {content:?} is not a number"))?;
            let standard = STANDARD.iter().filter_map(|name| self.named.get(*name)?.as_ref());
            let special = standard.chain(&self.extra).any(|token| token.content == *content);
            let token = Token { special, normalized: Some(!special), ..Token::special(content) };
            self.listed.insert(id, token);
        }
        for token in tokenizer.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
            let id = token.get("id").and_then(Value::as_u64).context("an added token has no id")?;
            self.listed.insert(id, Token::read(token).context("an added token has no content")?);
        }
        Ok(())
    }

    /// Takes a field of tokenizer_config.json if it names a special token.
    fn name(&mut self, name: &str, value: &Value) {
        let standard = STANDARD.contains(&name);
        match value {
            Value::Null if standard => {
                self.named.insert(name.to_owned(), None);
            }
            Value::String(_) | Value::Object(_) if name.ends_with("_token") => {
                if let Some(token) = Token::read(value) {
                    self.named.insert(name.to_owned(), Some(token));
                }
            }
            _ => {}
        }
    }

    /// SentencePiece's control and user-defined tokens, which are extra ones where the files name none.
    pub fn add_pieces(&mut self, model: &SentencePiece) {
        if self.extra.is_empty() {
            let pieces = model.pieces.iter().filter(|piece| matches!(piece.kind, Kind::Control | Kind::UserDefined));
            let token = |piece: &Piece| Token {
                special: piece.kind == Kind::Control,
                normalized: Some(false),
                ..Token::special(&piece.text)
            };
            self.extra.extend(pieces.map(token));
        }
    }

    /// Whether any of them swallows whitespace.
    pub fn strips(&self) -> bool {
        let mut all = self.listed.values().chain(self.named.values().flatten()).chain(&self.extra);
        all.any(|token| token.lstrip || token.rstrip)
    }

    /// What templates are handed: text by name.
    pub fn for_templates(&self) -> Vec<(String, String)> {
        let named = self.named.iter();
        named.filter_map(|(name, token)| Some((name.clone(), token.as_ref()?.content.clone()))).collect()
    }

    /// Puts the tokens that the tokenizer ends up with into `tokenizer`, a tokenizer.json.
    pub fn add_to(&self, class: Class, tokenizer: &mut Map<String, Value>) {
        let own = tokenizer.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
        let own: Vec<Token> = own.filter_map(Token::read).collect();
        let known = |token: &str| tokenizer.get("model")?.get("vocab")?.get(token)?.as_u64();
        let size = tokenizer.get("model").and_then(|m| m.get("vocab")).and_then(Value::as_object).map_or(0, Map::len);
        let mut added = Added { by_id: BTreeMap::new(), ids: BTreeMap::new(), size: size as u64 };
        added.add(&own, known);

        let names: Vec<&str> = self.named.values().flatten().map(|token| token.content.as_str()).collect();
        let mut more: Vec<Token> = self.listed.values().cloned().collect();
        for token in self.named.values().flatten().chain(&self.extra) {
            if !added.ids.contains_key(&token.content) && !more.iter().any(|other| other.content == token.content) {
                more.push(token.clone());
            }
        }
        for token in &mut more {
            token.special |= names.contains(&token.content.as_str());
        }
        added.add(&more, known);
        let special = self.named.values().flatten().chain(&self.extra);
        match class {
            Class::Qwen2 => {
                let plain: Vec<Token> = special.map(|token| Token::special(&token.content)).collect();
                added.add(&plain, known);
            }
            Class::Cohere => {
                let all: Vec<Token> = special.map(|token| Token { special: true, ..token.clone() }).collect();
                added.add(&all, known);
            }
            _ => {}
        }
        let all: Vec<Value> = added.by_id.iter().map(|(id, token)| token.json(*id)).collect();
        tokenizer.insert("added_tokens".to_owned(), all.into());
    }
}

/// As the library keeps added tokens: the last description of an id counts.
struct Added {
    by_id: BTreeMap<u64, Token>,
    ids: BTreeMap<String, u64>,
    /// Tokens in the vocabulary.
    size: u64,
}

impl Added {
    fn add(&mut self, tokens: &[Token], known: impl Fn(&str) -> Option<u64>) {
        let mut next = self.by_id.keys().next_back().map_or(self.size, |highest| self.size.max(highest + 1));
        for token in tokens.iter().filter(|token| !token.content.is_empty()) {
            let id = self.ids.get(&token.content).copied().or_else(|| known(&token.content)).unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            self.ids.insert(token.content.clone(), id);
            self.by_id.insert(id, token.clone());
        }
    }
}
