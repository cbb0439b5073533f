//! What the words mean that say why a prompt is not known. Filters' headers and metrics show the words alone.

use affinity::prompt::Unknown;

/// Every word, and a sentence for it.
pub const REASONS: &[(&str, &str)] = &[
    // Of the request as a whole.
    ("malformed", "the body is not of the shape that this endpoint takes; the engine would refuse it"),
    ("model", "no model, alias or adapter of this name is known"),
    ("body_too_long", "the body is longer than the filter reads (max_body_bytes in its configuration)"),
    // Of the model.
    (
        "tokenizer",
        "the model's tokenizer changes texts in a way that is not reproduced; `warmpath-indexer profile` says how",
    ),
    (
        "self_test",
        "the model's prompts were found to differ from what an engine, or its tokenizer, makes of them; the log says where",
    ),
    (
        "template",
        "the model has no chat template, or it cannot be compiled, refuses these messages or does what is not reproduced",
    ),
    ("date", "the chat template prints a time that the engine's clock may or may not show by then"),
    ("mistral_version", "this version of Mistral's format is not reproduced"),
    ("responses", "the engine makes other prompts of /v1/responses for this kind of model"),
    ("token_whitespace", "the text holds a special token that changes the text beside it"),
    ("word_token", "the text holds a special token that counts only as a word of its own, which cannot be told here"),
    ("special_text", "a text spells a special token, which the engine encodes as ordinary text here"),
    // Of what the request asks for.
    ("token_ids", "the prompt is given as token ids, and the model's token_ids option is off"),
    ("chat_template", "the request brings its own chat template, which gateways do not render"),
    ("chat_template_kwargs", "an argument for the chat template does more in the engine than reach the template"),
    ("add_special_tokens", "whether special tokens are added around this chat is not reproduced"),
    ("continue_final_message", "the last message cannot be gone on with in this format"),
    ("reasoning_effort", "this reasoning effort has an effect that is not reproduced"),
    ("truncate_prompt_tokens", "the engine cuts the prompt to a number of tokens"),
    ("truncation", "the engine may cut the prompt to fit"),
    ("prompt_embeds", "the prompt holds embeddings, which have no text"),
    ("prompt_logprobs", "the engine does not use its cache where log-probabilities of the prompt are asked for"),
    ("suffix", "the engine refuses suffixes"),
    ("mm_processor_kwargs", "arguments for the processor of images and the like may change the prompt"),
    // Of its messages.
    (
        "media",
        "images, sound, video and the like become tokens that cannot be known; the prompt is known up to the first",
    ),
    ("message_task", "a message is marked with a task, which only some engines read"),
    ("part_type", "a part of a content is of a type that this format treats in its own way"),
    ("role", "a message's role is not known in this format"),
    ("developer", "developer messages are not reproduced here"),
    ("system_messages", "whether system messages in the middle are moved to the front cannot be told"),
    ("thinking", "thinking in this place is not reproduced in this format"),
    ("reasoning", "reasoning in this place is not reproduced in this format"),
    ("billing_header", "a billing header in this place is dropped by some engines only"),
    // Of its tools.
    ("tool_calls", "calls of tools are not reproduced in this format"),
    ("tool_messages", "results of tools are not reproduced in this format"),
    ("tool_call_id", "a result of a tool lacks the id of its call, or ids are ambiguous"),
    ("deep_schema", "a tool's schema is nested too deeply"),
    ("infinite_number", "a number is too large for JSON libraries to agree on"),
    ("python_json", "Python reads a piece of JSON here that JSON does not allow"),
    // Of /v1/responses and /v1/messages.
    ("previous_response_id", "earlier turns lie in one engine's memory"),
    ("previous_input_messages", "earlier turns are given in an internal form"),
    ("prompt", "stored prompts are not supported by engines"),
    ("item", "an item is of a type that is not reproduced"),
    ("task", "an item is marked with a task, which only some engines read"),
    ("call_id", "an output of a function lacks the id of its call"),
    ("encrypted_content", "reasoning is encrypted"),
    ("tool_use_id", "a use of a tool lacks its id, and the engine makes one up"),
    ("tool_result_of_assistant", "a result of a tool in an assistant's message is printed as Python prints lists"),
    ("tool_reference", "references to tools are not reproduced"),
];

/// A sentence that says why a prompt is not known.
#[must_use]
pub fn sentence(why: Unknown) -> &'static str {
    let known = REASONS.iter().find(|(word, _)| *word == why.as_str());
    known.map_or("the request uses something whose effect on the prompt is not reproduced", |(_, sentence)| sentence)
}

/// All words with their sentences, for people.
#[must_use]
pub fn table() -> String {
    REASONS.iter().map(|(word, sentence)| format!("  {word}\n          {sentence}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    fn sources(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
    }

    #[test]
    fn every_word_of_the_core_has_its_sentence() {
        let prompt = Path::new(env!("CARGO_MANIFEST_DIR")).join("../affinity/src/prompt");
        let mut words = BTreeSet::from(["malformed".to_owned(), "model".to_owned(), "template".to_owned()]);
        let code = |path: &&PathBuf| path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs");
        for path in sources(&prompt).iter().filter(code) {
            let source = std::fs::read_to_string(path).unwrap();
            for after in source.split("Feature(\"").skip(1) {
                words.extend(after.split_once('"').map(|(word, _)| word.to_owned()));
            }
        }
        assert!(words.len() > 10, "{words:?}");
        let known: BTreeSet<String> = REASONS.iter().map(|(word, _)| (*word).to_owned()).collect();
        assert_eq!(known.len(), REASONS.len(), "a word is there twice");
        let missing: Vec<&String> = words.difference(&known).collect();
        assert!(missing.is_empty(), "add sentences for {missing:?} to REASONS");
    }
}
