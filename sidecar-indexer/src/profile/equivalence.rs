//! Spelled texts against the `tokenizers` library: what the tokens of a text spell is what its spelling says.

use super::pipeline::spelling;
use crate::tokens::{Vocabulary, byte_char};
use affinity::prompt::spelling::Speller;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::str::FromStr;
use std::sync::LazyLock;
use tokenizers::Tokenizer;

const MARK: &str = "\u{2581}";

/// Tokens that get in each other's way, strip on either side, or look like words and whitespace.
fn added(from: usize) -> Value {
    let token = |(n, (content, flags)): (usize, (&str, &str))| {
        let set = |flag: char| flags.contains(flag);
        json!({"id": from + n, "content": content, "lstrip": set('l'), "rstrip": set('r'), "single_word": set('w'),
            "normalized": set('n'), "special": !set('n')})
    };
    let tokens = [
        ("<s>", ""),
        ("<|user|>", "r"),
        ("<|user|>x", ""),
        ("<|end|>", "lr"),
        ("<l>", "l"),
        ("word", "w"),
        ("nw", "nw"),
        ("<n>", "n"),
        ("<nx", "n"),
        ("  ", "n"),
        ("\n\n", ""),
        ("é<e>", "n"),
        ("e\u{301}", ""),
        ("▁<m>", "n"),
    ];
    tokens.into_iter().enumerate().map(token).collect()
}

struct Model {
    name: &'static str,
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    speller: Speller,
}

fn model(name: &'static str, parts: &Value) -> Model {
    let bytes = |text: fn(u8) -> String| (0..=255u8).map(|b| (text(b), b.into())).collect::<Map<String, Value>>();
    let byte_level = crate::tokens::uses(parts.get("pre_tokenizer"), "ByteLevel");
    let mut vocab = if byte_level { bytes(|b| byte_char(b).to_string()) } else { bytes(|b| format!("<0x{b:02X}>")) };
    let more = if byte_level { ["Ġ", "Ġa", "he", "Ċ", "Ã©"] } else { [MARK, "▁a", "he", "a", "é"] };
    for piece in more {
        let id = vocab.len();
        vocab.entry(piece).or_insert(id.into());
    }
    for letter in ["h", "e"] {
        let id = vocab.len();
        vocab.entry(letter).or_insert(id.into());
    }
    let merges = if byte_level { json!(["Ġ a", "h e", "Ã ©"]) } else { json!(["▁ a", "h e"]) };
    let model = json!({"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": !byte_level});
    let decoder = if byte_level { parts["pre_tokenizer"].clone() } else { json!({"type": "ByteFallback"}) };
    let mut json = json!({"version": "1.0", "added_tokens": added(vocab.len()), "model": model, "decoder": decoder,
        "normalizer": null, "pre_tokenizer": null, "post_processor": null});
    for (part, value) in parts.as_object().unwrap() {
        json[part] = value.clone();
    }
    let spelling = spelling(&json).unwrap_or_else(|why| panic!("{name}: {why}"));
    Model {
        name,
        tokenizer: Tokenizer::from_str(&json.to_string()).unwrap_or_else(|why| panic!("{name}: {why}")),
        vocabulary: Vocabulary::from_tokenizer_json(&json).unwrap(),
        speller: Speller::new(&spelling),
    }
}

static MODELS: LazyLock<Vec<Model>> = LazyLock::new(|| {
    let bytes =
        |space: bool| json!({"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": true});
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let normalizers = |parts: Value| json!({"type": "Sequence", "normalizers": parts});
    let metaspace = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": split});
    let prepend = json!({"type": "Prepend", "prepend": MARK});
    let nfc = json!({"type": "NFC"});
    // Where spaces are marked first, tokens looked for afterwards do not strip; those above do not either.
    vec![
        model("bytes", &json!({"pre_tokenizer": bytes(false)})),
        model("bytes behind a space", &json!({"pre_tokenizer": bytes(true)})),
        model("composed", &json!({"pre_tokenizer": bytes(false), "normalizer": nfc})),
        model(
            "replaced",
            &json!({"pre_tokenizer": bytes(false),
            "normalizer": normalizers(json!([replace("he", "a  "), nfc, {"type": "Prepend", "prepend": "x "}]))}),
        ),
        model("gemma", &json!({"normalizer": replace(" ", MARK)})),
        model("llama 2", &json!({"normalizer": normalizers(json!([prepend, replace(" ", MARK)]))})),
        model("mistral", &json!({"pre_tokenizer": metaspace("first", false)})),
        model("always", &json!({"pre_tokenizer": metaspace("always", true), "normalizer": nfc})),
        model("never", &json!({"pre_tokenizer": metaspace("never", true)})),
    ]
});

fn check(model: &Model, text: &str) -> Result<(), TestCaseError> {
    let ids = model.tokenizer.encode_fast(text, false).unwrap();
    let mut bytes = Vec::new();
    prop_assert!(model.vocabulary.spell(ids.get_ids(), &mut bytes));
    match model.speller.spell(text.to_owned()) {
        Ok(spelled) => {
            prop_assert_eq!(&spelled, std::str::from_utf8(&bytes).unwrap(), "{} {:?}", model.name, text);
            for (cut, _) in text.char_indices() {
                let Ok(start) = model.speller.spell_start(text[..cut].to_owned()) else { continue };
                prop_assert!(spelled.starts_with(&start), "{} {:?}", model.name, text.split_at(cut));
            }
        }
        // Words of other scripts: declined beside tokens that are words only.
        Err(_) => prop_assert!(!text.is_ascii() && (text.contains("word") || text.contains("nw"))),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn tokens_spell_what_is_said(parts in proptest::collection::vec(prop_oneof![
        4 => "(<s>|<\\|user\\|>|x|<\\|end\\|>|<l>|word|nw|<n>|<nx|<m>|é<e>|e\u{301}<e>|▁<m>|<0x41>|<\\|)",
        4 => "([ \t\n\u{a0}\u{2003}\u{3000}\u{85}]|  |\n\n|▁){1,3}",
        3 => "[a-z_,.]{1,5}",
        2 => "(he|a| a|é|e\u{301}|ê\u{323}|o\u{302}\u{323}|\u{323}\u{302}|\u{1100}\u{1161}\u{11a8}|가\u{11a8}|か\u{3099}|\u{344}|\u{212b}|\u{958}){1,3}",
        1 => "(日本語|ไทย|नमस्ते|مرحبا|שָׁלוֹם|👩‍👩‍👧|🇩🇪|\u{0}|\u{7f}|\u{feff}|½|²|٣|'s|\\.){1,2}",
        1 => "\\PC{1,4}",
    ], 0..12)) {
        for model in &*MODELS {
            check(model, &parts.concat())?;
        }
    }
}

#[test]
fn what_pieces_begin_and_end_with_decides() {
    for model in &*MODELS {
        for text in
            ["", " ", "▁", "a", " a", "▁a", "<s>", "<s>a", "<s> a", "a<s>", " <|end|> ", "<n>", "  ", "<|user|>  x"]
        {
            check(model, text).unwrap();
        }
    }
}
