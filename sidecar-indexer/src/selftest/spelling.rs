//! A model's tokenizer against what is spelled for it: the bytes of the tokens of a text are its canonical bytes.

use super::Difference;
use crate::canonical::Encoder;
use crate::tokens::Vocabulary;
use affinity::profile::{Profile, Profiles, Renderer};
use affinity::prompt::{Api, Prompts};
use serde_json::json;
use std::collections::BTreeSet;

/// Texts of many scripts, of code and of whitespace.
const TEXTS: [&str; 12] = [
    "",
    "The quick brown fox jumps over the lazy dog.",
    "  leading, trailing and \t\n\n  inner   whitespace \u{a0}\u{3000} ",
    "Größe, naïve façade, Łódź, São Paulo, İstanbul, ﬁne ½ Å \u{212b}",
    "combining: e\u{301} o\u{308} \u{1112}\u{1161}\u{11ab} q\u{307}\u{323}",
    "東京は日本の首都です。你好，世界！한국어 문장.",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם. مرحبا بالعالم",
    "नमस्ते दुनिया, สวัสดีชาวโลก, வணக்கம் உலகம்",
    "emoji 🙂👩‍👩‍👧🏳️‍🌈🇩🇪 and \u{feff}marks\u{200b}\u{200d}",
    "fn main() {\n\tlet x = 0x1F_u8; // 1234567890.25\r\n}\n\n\n",
    "control \u{1}\u{7f}\u{85} ▁ Ġ ␀ <0x0A> </s> [INST] <think>",
    "don't we'll I'M 10000000 ---- ==== ........ https://example.com/a?b=c&d=%20",
];

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is nothing to compare with; says why.
    Untested(&'static str),
    /// This many texts were compared, and these differ. Some may have been declined.
    Tested {
        /// How many were compared.
        compared: usize,
        /// How many were declined.
        declined: usize,
        /// Texts that differ, and where.
        differ: Vec<(String, Difference)>,
    },
}

/// Encodes texts, with the model's special tokens in and around them, and compares.
#[must_use]
pub fn test(profile: &Profile, vocabulary: &Vocabulary) -> Outcome {
    let Some(encoder) = vocabulary.encoder() else {
        return Outcome::Untested("there is no encoder for this kind of vocabulary");
    };
    if !profile.opaque.is_empty() {
        return Outcome::Untested("no prompt of this model is predicted");
    }
    // Special tokens are then ordinary text, which this encoder cannot be told.
    let special = if matches!(profile.renderer, Renderer::Mistral(_)) { BTreeSet::new() } else { special(profile) };
    let mut texts: Vec<String> = TEXTS.map(str::to_owned).to_vec();
    for (token, text) in special.iter().zip(TEXTS.iter().cycle().skip(1)) {
        texts.push(format!("{token}{text}{token}"));
        texts.push(format!("{text} \n{token} \t {token}\n\n{text}"));
    }
    let (prompts, _) = Prompts::new(Profiles { models: vec![profile.clone()] });
    let (mut compared, mut declined, mut differ) = (0, 0, Vec::new());
    for text in texts {
        for around in [false, true] {
            let Some(ids) = ids(encoder, &text, around) else { continue };
            let body = json!({"prompt": text, "add_special_tokens": around}).to_string();
            let ours = match prompts.read(Api::Completions, body.as_bytes(), 0).prompt {
                Ok(canonical) if canonical.cut.is_none() => canonical.bytes,
                _ => {
                    declined += 1;
                    continue;
                }
            };
            compared += 1;
            let mut theirs = Vec::new();
            if !vocabulary.spell(&ids, &mut theirs) {
                theirs = b"tokens that are not in the vocabulary".to_vec();
            }
            differ.extend(Difference::between(&theirs, &ours).map(|difference| (text.clone(), difference)));
        }
    }
    Outcome::Tested { compared, declined, differ }
}

/// A text's tokens; `around`: with those that the tokenizer puts around it. `None`: the encoder does not know these.
fn ids(encoder: &Encoder, text: &str, around: bool) -> Option<Vec<u32>> {
    match encoder {
        Encoder::HuggingFace(tokenizer) => Some(tokenizer.encode_fast(text, around).ok()?.get_ids().to_vec()),
        Encoder::Tiktoken(bpe) => (!around).then(|| bpe.encode_with_special_tokens(text)),
    }
}

/// Some of the model's special tokens: those with names, and those that change what is around them.
fn special(profile: &Profile) -> BTreeSet<&str> {
    const MOST: usize = 64;
    let named = profile.special_tokens.iter().map(|(_, text)| text.as_str());
    let added = profile.spelling.added.iter();
    let eager =
        added.clone().filter(|t| t.lstrip || t.rstrip || t.single_word || t.normalized).map(|t| t.text.as_str());
    named.chain(eager).chain(added.map(|t| t.text.as_str())).filter(|text| !text.is_empty()).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Model;
    use crate::profile;
    use affinity::profile::SpellingStep;
    use std::path::Path;

    fn tiny() -> profile::Loaded {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
        let model: Model = serde_yaml_ng::from_str("{name: tiny, tokenizer: tokenizer}").unwrap();
        profile::load(&model, &base).unwrap()
    }

    #[test]
    fn a_profile_of_its_own_files_passes() {
        let loaded = tiny();
        match test(&loaded.profile, &loaded.vocabulary) {
            Outcome::Tested { compared, declined: 0, differ } if compared >= 24 => assert_eq!(differ, []),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_profile_that_spells_otherwise_fails_with_the_text() {
        let mut loaded = tiny();
        loaded.profile.spelling.steps.push(SpellingStep::Prepend(" ".into()));
        let Outcome::Tested { differ, .. } = test(&loaded.profile, &loaded.vocabulary) else { panic!("untested") };
        let (text, difference) = &differ[0];
        assert_eq!((text.as_str(), difference.at), (TEXTS[1], 0));
        assert!(difference.ours.starts_with(" The") && difference.theirs.starts_with("The"), "{difference}");
    }

    #[test]
    fn special_tokens_are_tried_too() {
        let mut loaded = tiny();
        loaded.profile.spelling.added.push(affinity::profile::AddedToken {
            text: "<|im_end|>".into(),
            rstrip: true,
            ..Default::default()
        });
        let Outcome::Tested { differ, .. } = test(&loaded.profile, &loaded.vocabulary) else { panic!("untested") };
        assert!(!differ.is_empty() && differ.iter().all(|(text, _)| text.contains("<|im_end|>")), "{differ:?}");
    }
}
