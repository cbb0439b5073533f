//! What a tokenizer.json's parts do to a text, as far as the tokens' bytes tell.

use super::read::{flag, text};
use affinity::profile::{AddedToken, PrefixSpace, Spelling, SpellingStep};
use anyhow::{Result, bail, ensure};
use serde_json::Value;

/// SentencePiece's mark for a space.
const MARK: &str = "\u{2581}";

/// Reads the spelling of a tokenizer.json, with its added tokens as they are when the engine has loaded it.
///
/// # Errors
/// When it does something to texts that is not reproduced; says what.
pub fn spelling(tokenizer: &Value) -> Result<Spelling> {
    check_model(tokenizer)?;
    let mut spelling = Spelling { added: added(tokenizer), ..Spelling::default() };
    spelling.marks = !byte_level(tokenizer);
    let mut marked = false;
    for part in parts(tokenizer.get("normalizer"), "normalizers") {
        marked |= normalize(part, &mut spelling)?;
    }
    for (number, part) in parts(tokenizer.get("pre_tokenizer"), "pretokenizers").enumerate() {
        pre_tokenize(part, number == 0, &mut spelling)?;
    }
    let strips = |token: &AddedToken| token.lstrip || token.rstrip;
    // With spaces marked, tokens looked for afterwards find no space to swallow.
    ensure!(
        !marked || !spelling.added.iter().any(|t| t.normalized && strips(t)),
        "added tokens swallow whitespace in texts whose spaces are marked before"
    );
    if marked {
        // Both ways of writing a space become one here, so that none is left for later.
        spelling.marks = false;
        spelling.steps.insert(0, SpellingStep::Replace(MARK.to_owned(), " ".to_owned()));
    }
    let prepends = spelling.steps.iter().any(|step| matches!(step, SpellingStep::Prepend(_)));
    ensure!(
        !prepends || spelling.prefix_space == PrefixSpace::Never,
        "both normalizer and pre-tokenizer put something before the text"
    );
    let plain = spelling.steps.is_empty() && spelling.prefix_space == PrefixSpace::Never && !spelling.marks;
    if plain && !spelling.added.iter().any(strips) {
        spelling.added.clear();
    }
    Ok(spelling)
}

/// Whether its alphabet is that of bytes; otherwise it is SentencePiece's.
fn byte_level(tokenizer: &Value) -> bool {
    let uses = |part: &str| crate::tokens::uses(tokenizer.get(part), "ByteLevel");
    uses("pre_tokenizer") || uses("decoder")
}

/// Nothing must get lost between text and tokens.
fn check_model(tokenizer: &Value) -> Result<()> {
    let model = tokenizer.get("model").unwrap_or(&Value::Null);
    let vocab = model.get("vocab").unwrap_or(&Value::Null);
    let empty = |name: &str| text(model, name).is_none_or(str::is_empty);
    ensure!(model.get("dropout").and_then(Value::as_f64).is_none_or(|p| p == 0.0), "it drops merges at random");
    ensure!(
        empty("continuing_subword_prefix") && empty("end_of_word_suffix"),
        "its tokens carry marks of words (continuing_subword_prefix, end_of_word_suffix)"
    );
    let whole = flag(model, "ignore_merges") == Some(true);
    if byte_level(tokenizer) {
        ensure!(
            crate::tokens::uses(tokenizer.get("pre_tokenizer"), "ByteLevel"),
            "its decoder is byte-level and its pre-tokenizer is not"
        );
        // Bytes that text has: the others never occur in UTF-8.
        let mut needed = (0..=0xF4u8).filter(|byte| !matches!(byte, 0xC0 | 0xC1));
        let missing = needed.find(|byte| vocab.get(crate::tokens::byte_char(*byte).to_string()).is_none());
        if let Some(byte) = missing {
            bail!("its vocabulary lacks the byte {byte:#04X}, so texts with it lose it");
        }
    } else {
        ensure!(flag(model, "byte_fallback") == Some(true), "its model has no byte fallback, so texts lose characters");
        ensure!(!whole, "its model takes whole words for tokens, and so byte names for bytes (ignore_merges)");
        if let Some(byte) = (0..=0xFFu8).find(|byte| vocab.get(format!("<0x{byte:02X}>")).is_none()) {
            bail!("its vocabulary lacks the byte token <0x{byte:02X}>, so texts lose characters");
        }
    }
    Ok(())
}

/// Takes one normalizer; true if it marks spaces.
fn normalize(part: &Value, spelling: &mut Spelling) -> Result<bool> {
    match text(part, "type").unwrap_or_default() {
        "NFC" => spelling.steps.push(SpellingStep::Nfc),
        "Prepend" => {
            let text = text(part, "prepend").unwrap_or_default();
            let text = if spelling.marks { text.replace(MARK, " ") } else { text.to_owned() };
            spelling.steps.push(SpellingStep::Prepend(text));
        }
        "Replace" => {
            let Some(from) = part.pointer("/pattern/String").and_then(Value::as_str) else {
                bail!("its normalizer replaces by a regular expression");
            };
            let to = text(part, "content").unwrap_or_default();
            if from == " " && to == MARK && spelling.marks {
                return Ok(true);
            }
            ensure!(!from.is_empty() && !to.is_empty(), "its normalizer deletes text (Replace)");
            ensure!(
                !spelling.marks || ![from, to].iter().any(|t| t.contains([' ', '\u{2581}'])),
                "its normalizer replaces spaces (Replace)"
            );
            spelling.steps.push(SpellingStep::Replace(from.to_owned(), to.to_owned()));
        }
        kind => bail!("its normalizer changes texts ({kind})"),
    }
    Ok(false)
}

fn pre_tokenize(part: &Value, first: bool, spelling: &mut Spelling) -> Result<()> {
    let prefix = match text(part, "type").unwrap_or_default() {
        "ByteLevel" if flag(part, "add_prefix_space") != Some(false) => PrefixSpace::Always,
        "Metaspace" => {
            ensure!(spelling.marks && text(part, "replacement") == Some(MARK), "it marks spaces by another character");
            match (text(part, "prepend_scheme"), flag(part, "add_prefix_space")) {
                (Some("never"), _) | (None, Some(false)) => PrefixSpace::Never,
                (Some("first"), _) => PrefixSpace::First,
                _ => PrefixSpace::Always,
            }
        }
        "Split" | "Punctuation" if text(part, "behavior") == Some("Removed") => {
            bail!("its pre-tokenizer removes text");
        }
        "ByteLevel" | "Split" | "Punctuation" | "Digits" => PrefixSpace::Never,
        kind => bail!("its pre-tokenizer is {kind}, which may remove text"),
    };
    if prefix != PrefixSpace::Never {
        ensure!(first, "its pre-tokenizer puts spaces before words");
        spelling.prefix_space = prefix;
    }
    Ok(())
}

/// The ids that a post-processor puts before and behind a single text.
///
/// # Errors
/// When it does something else.
pub fn around(post_processor: Option<&Value>) -> Result<(Vec<u32>, Vec<u32>)> {
    let ids = |ids: &Value| -> Option<Vec<u32>> {
        ids.as_array()?.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
    };
    let (mut before, mut behind) = (Vec::new(), Vec::new());
    for part in parts(post_processor, "processors") {
        match text(part, "type").unwrap_or_default() {
            "ByteLevel" => {}
            "TemplateProcessing" => {
                let (mut first, mut last, mut texts) = (Vec::new(), Vec::new(), 0);
                for piece in part.get("single").and_then(Value::as_array).into_iter().flatten() {
                    if let Some(name) = piece.pointer("/SpecialToken/id").and_then(Value::as_str) {
                        let found = part.get("special_tokens").and_then(|all| all.get(name)?.get("ids"));
                        let Some(found) = found.and_then(ids) else {
                            bail!("its post-processor puts the token {name:?} around texts and does not say its id");
                        };
                        if texts == 0 { first.extend(found) } else { last.extend(found) }
                    } else {
                        texts += 1;
                    }
                }
                ensure!(texts == 1, "its post-processor has a template without the text, or with several");
                before.splice(0..0, first);
                behind.extend(last);
            }
            kind @ ("BertProcessing" | "RobertaProcessing") => {
                let id = |name: &str| part.get(name)?.get(1)?.as_u64().and_then(|id| u32::try_from(id).ok());
                let (Some(cls), Some(sep)) = (id("cls"), id("sep")) else { bail!("its {kind} lacks cls or sep") };
                before.insert(0, cls);
                behind.push(sep);
            }
            kind => bail!("its post-processor is {kind}"),
        }
    }
    Ok((before, behind))
}

/// The parts of a component in order, those of sequences one by one.
fn parts<'a>(component: Option<&'a Value>, list: &'static str) -> Box<dyn Iterator<Item = &'a Value> + 'a> {
    match component {
        None | Some(Value::Null) => Box::new(std::iter::empty()),
        Some(part) => match part.get(list).and_then(Value::as_array) {
            Some(inner) => Box::new(inner.iter().flat_map(move |part| parts(Some(part), list))),
            None => Box::new(std::iter::once(part)),
        },
    }
}

fn added(tokenizer: &Value) -> Vec<AddedToken> {
    let tokens = tokenizer.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
    let set = |token: &Value, name: &str| flag(token, name) == Some(true);
    tokens
        .filter_map(|token| {
            let text = text(token, "content")?.to_owned();
            let [lstrip, rstrip, single_word, normalized] =
                ["lstrip", "rstrip", "single_word", "normalized"].map(|name| set(token, name));
            Some(AddedToken { text, lstrip, rstrip, single_word, normalized })
        })
        .filter(|token| !token.text.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A tokenizer.json with all bytes and these parts.
    fn bytes(parts: &Value) -> Value {
        let vocab: serde_json::Map<String, Value> =
            (0..=255u8).map(|b| (crate::tokens::byte_char(b).to_string(), b.into())).collect();
        with(
            json!({"model": {"type": "BPE", "vocab": vocab}, "decoder": {"type": "ByteLevel"},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}}),
            parts,
        )
    }

    /// The same for SentencePiece's.
    fn pieces(parts: &Value) -> Value {
        let vocab: serde_json::Map<String, Value> = (0..=255u8).map(|b| (format!("<0x{b:02X}>"), b.into())).collect();
        with(
            json!({"model": {"type": "BPE", "vocab": vocab, "byte_fallback": true},
            "decoder": {"type": "ByteFallback"}}),
            parts,
        )
    }

    fn with(mut tokenizer: Value, parts: &Value) -> Value {
        for (name, part) in parts.as_object().unwrap() {
            tokenizer[name] = part.clone();
        }
        tokenizer
    }

    #[test]
    fn families_are_spelled_as_their_parts_say() {
        let mark = || json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
        let marks = Spelling { marks: true, ..Spelling::default() };
        let replace = SpellingStep::Replace("\u{2581}".into(), " ".into());
        let llama3 = bytes(&json!({"normalizer": null}));
        assert_eq!(spelling(&llama3).unwrap(), Spelling::default());
        let qwen = bytes(&json!({"normalizer": {"type": "NFC"}}));
        assert_eq!(spelling(&qwen).unwrap(), Spelling { steps: vec![SpellingStep::Nfc], ..Spelling::default() });
        let roberta = bytes(&json!({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true}}));
        assert_eq!(spelling(&roberta).unwrap().prefix_space, PrefixSpace::Always);
        let gemma = pieces(&json!({"normalizer": mark()}));
        assert_eq!(spelling(&gemma).unwrap(), Spelling { steps: vec![replace.clone()], ..Spelling::default() });
        let parts = [json!({"type": "Prepend", "prepend": "\u{2581}"}), mark()];
        let llama2 = pieces(&json!({"normalizer": {"type": "Sequence", "normalizers": parts}}));
        let steps = vec![replace, SpellingStep::Prepend(" ".into())];
        assert_eq!(spelling(&llama2).unwrap(), Spelling { steps, ..Spelling::default() });
        let metaspace = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first"});
        let mistral = pieces(&json!({"pre_tokenizer": metaspace}));
        assert_eq!(spelling(&mistral).unwrap(), Spelling { prefix_space: PrefixSpace::First, ..marks });
    }

    #[test]
    fn what_loses_text_is_refused_and_named() {
        let sequence = |parts: Value| json!({"type": "Sequence", "pretokenizers": parts});
        let removed = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "Removed"});
        let spaced = json!([{"type": "Digits"}, {"type": "ByteLevel", "add_prefix_space": true}]);
        let rstrip = json!([{"id": 1, "content": "<a>", "rstrip": true, "normalized": true}]);
        for (tokenizer, why) in [
            (bytes(&json!({"normalizer": {"type": "Lowercase"}})), "Lowercase"),
            (bytes(&json!({"normalizer": {"type": "Replace", "pattern": {"Regex": "a"}, "content": "b"}})), "regular"),
            (bytes(&json!({"pre_tokenizer": sequence(json!([removed, {"type": "ByteLevel"}]))})), "removes"),
            (bytes(&json!({"pre_tokenizer": sequence(spaced)})), "before words"),
            (
                bytes(&json!({"pre_tokenizer": sequence(json!([{"type": "Whitespace"}, {"type": "ByteLevel"}]))})),
                "Whitespace",
            ),
            (bytes(&json!({"model": {"vocab": {}}})), "0x00"),
            (bytes(&json!({"model": {"vocab": {}, "dropout": 0.1}})), "random"),
            (pieces(&json!({"model": {"vocab": {}, "byte_fallback": true}})), "<0x00>"),
            (pieces(&json!({"model": {"vocab": {}}})), "fallback"),
            (
                pieces(&json!({"added_tokens": rstrip,
                    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}})),
                "swallow",
            ),
        ] {
            let found = spelling(&tokenizer).unwrap_err().to_string();
            assert!(found.contains(why), "{found}: {why}");
        }
    }

    #[test]
    fn added_tokens_are_listed_where_they_matter() {
        let tokens = json!([{"id": 1, "content": "<|user|>", "rstrip": true}, {"id": 2, "content": "<s>"}]);
        let phi = spelling(&bytes(&json!({"added_tokens": tokens}))).unwrap();
        let plain = AddedToken { text: "<s>".into(), ..AddedToken::default() };
        assert_eq!(phi.added, [AddedToken { text: "<|user|>".into(), rstrip: true, ..AddedToken::default() }, plain]);
        let llama = spelling(&bytes(&json!({"added_tokens": [{"id": 2, "content": "<s>"}]}))).unwrap();
        assert_eq!(llama.added, []);
    }

    #[test]
    fn post_processors_put_ids_around_texts() {
        // As in Llama 3: a sequence of ByteLevel and the template.
        let llama = json!({"type": "Sequence", "processors": [
            {"type": "ByteLevel"},
            {"type": "TemplateProcessing",
             "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                        {"SpecialToken": {"id": "</s>", "type_id": 0}}],
             "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
                                "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}},
        ]});
        assert_eq!(around(Some(&llama)).unwrap(), (vec![1], vec![2]));
        let roberta = json!({"type": "RobertaProcessing", "cls": ["<s>", 0], "sep": ["</s>", 2]});
        assert_eq!(around(Some(&roberta)).unwrap(), (vec![0], vec![2]));
        assert_eq!(around(Some(&Value::Null)).unwrap(), (vec![], vec![]));
        assert!(around(Some(&json!({"type": "Else"}))).is_err());
    }
}
