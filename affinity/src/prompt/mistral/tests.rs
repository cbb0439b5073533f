//! Against what a real vLLM made of the same requests: `tests/conformance/mistral.py` writes the lines.

use super::super::json::Json;
use super::super::json_text::{self, Style};
use super::super::{Api, Prompts, Unknown};
use crate::profile::{MistralFormat, Profile, Profiles, Renderer};
use std::collections::BTreeMap;

const CHAT: &str = "/v1/chat/completions";

/// How the answers of a vocabulary compare.
#[derive(Debug, Default)]
struct Count {
    exact: usize,
    /// By the reason.
    declined: BTreeMap<&'static str, usize>,
    refused: usize,
    wrong: usize,
}

fn compare(lines: &str) -> BTreeMap<String, Count> {
    let mut counts = BTreeMap::<String, Count>::new();
    for line in lines.lines() {
        let line = Json::parse(line).unwrap();
        let text = |key: &str| line.get(key).and_then(Json::as_str);
        let path = text("path").unwrap();
        if path == "/v1/completions" {
            continue;
        }
        let count = counts.entry(format!("{path} {}", text("vocabulary").unwrap())).or_default();
        let written = |key: &str| {
            let mut out = String::new();
            json_text::write(line.get(key).unwrap(), &Style::PLAIN, &mut out);
            out
        };
        let ours = read(path, format(line.get("format").unwrap()), &written("defaults"), &written("request"));
        match (ours, text("text")) {
            (_, None) => count.refused += 1,
            (Err(why), _) => *count.declined.entry(why.as_str()).or_default() += 1,
            (Ok((ours, None)), Some(theirs)) if ours == theirs => count.exact += 1,
            (Ok((ours, Some(why))), Some(theirs)) if theirs.starts_with(&ours) => {
                *count.declined.entry(why.as_str()).or_default() += 1;
            }
            (Ok(ours), Some(theirs)) => {
                count.wrong += 1;
                if count.wrong <= 3 {
                    println!("ours   {ours:?}\ntheirs {theirs:?}\n");
                }
            }
        }
    }
    counts
}

/// A chat's text, and why it ends where it does if not all is known.
fn read(path: &str, format: MistralFormat, defaults: &str, body: &str) -> Result<(String, Option<Unknown>), Unknown> {
    let renderer = Renderer::Mistral(format);
    // What is put around and looked for in completions prompts does not concern chats.
    let profile = Profile {
        name: "m".into(),
        renderer,
        default_kwargs: defaults.into(),
        completion_prefix: "<s>".into(),
        ..Profile::default()
    };
    let (prompts, _) = Prompts::new(Profiles { models: vec![profile] });
    let read = prompts.read(Api::of_path(path).unwrap(), body.as_bytes(), 0).prompt?;
    Ok((String::from_utf8(read.bytes).unwrap(), read.cut))
}

fn format(json: &Json<'_>) -> MistralFormat {
    let is = |key: &str| json.get(key) == Some(&Json::Bool(true));
    let (Some(Json::Int(version)), Some(Json::List(efforts))) = (json.get("version"), json.get("efforts")) else {
        panic!()
    };
    let efforts = efforts.iter().filter_map(Json::as_str).map(str::to_owned).collect();
    MistralFormat { version: *version as u8, tekken: is("tekken"), thinks: is("thinks"), efforts }
}

fn rendered(version: u8, tekken: bool, request: &str) -> Result<(String, Option<Unknown>), Unknown> {
    read(CHAT, MistralFormat { version, tekken, ..MistralFormat::default() }, "", request)
}

#[test]
fn what_stands_before_media_or_control_texts_is_known() {
    let request = |question: &str| {
        format!(
            r#"{{"messages": [{{"role": "system", "content": "s"}}, {{"role": "user", "content": "a"}},
                {{"role": "assistant", "content": "b "}}, {{"role": "user", "content": {question}}},
                {{"role": "assistant", "content": "c"}}, {{"role": "user", "content": "d"}}],
                "tools": [{{"type": "function", "function": {{"name": "f"}}}}]}}"#
        )
    };
    let tools = r#"[{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]"#;
    let image = r#"[{"type": "text", "text": "e"}, {"type": "image_url", "image_url": {"url": "x"}}]"#;
    for (question, why) in [(image, "media"), (r#""x [INST] y""#, "special_text")] {
        let of = |version, tekken| rendered(version, tekken, &request(question)).unwrap();
        let why = Some(Unknown::Feature(why));
        assert_eq!(of(3, false), ("<s>[INST] a[/INST] b</s>[INST]".into(), why));
        assert_eq!(of(7, true), ("<s>[SYSTEM_PROMPT]s[/SYSTEM_PROMPT][INST]a[/INST]b</s>[INST]".into(), why));
        let first = format!("<s>[SYSTEM_PROMPT]s[/SYSTEM_PROMPT][AVAILABLE_TOOLS]{tools}[/AVAILABLE_TOOLS][INST]a");
        assert_eq!(of(13, true), (first + "[/INST]b</s>[INST]", why));
    }
    let first = rendered(1, false, &request(image)).unwrap();
    assert_eq!(first, ("<s> [INST] s\n\na [/INST] b </s>".into(), Some(Unknown::Feature("media"))));
    // The first version's [INST] is a text as any other.
    assert_eq!(rendered(1, false, &request(r#""[INST]""#)).unwrap().1, None);
}

#[test]
fn spaces_are_where_sentencepiece_puts_them() {
    let of = |content: &str| {
        let request = format!(r#"{{"messages": [{{"role": "user", "content": "{content}"}}]}}"#);
        (rendered(7, false, &request).unwrap().0, rendered(7, true, &request).unwrap().0)
    };
    for (content, pieces, tekken) in [
        ("", "<s>[INST][/INST]", "<s>[INST][/INST]"),
        (" ", "<s>[INST]  [/INST]", "<s>[INST] [/INST]"),
        ("a ", "<s>[INST] a [/INST]", "<s>[INST]a [/INST]"),
        ("\u{2581}a\u{2581}", "<s>[INST]  a [/INST]", "<s>[INST]\u{2581}a\u{2581}[/INST]"),
    ] {
        assert_eq!(of(content), (pieces.into(), tekken.into()));
    }
}

#[test]
fn formats_that_are_not_known_are_reported() {
    let of = |version, tekken, defaults: &str| {
        let renderer = Renderer::Mistral(MistralFormat { version, tekken, ..MistralFormat::default() });
        let profile = Profile { name: "m".into(), renderer, default_kwargs: defaults.into(), ..Profile::default() };
        let (prompts, failed) = Prompts::new(Profiles { models: vec![profile] });
        let read = prompts.read(Api::Chat, br#"{"messages": [{"role": "user", "content": "a"}]}"#, 0).prompt;
        assert_eq!(read.err(), Some(Unknown::Template));
        failed
    };
    for (version, tekken) in [(0, true), (4, false), (11, false), (13, false), (16, true)] {
        assert!(of(version, tekken, "")[0].1.contains(&format!("format {version}")));
    }
    assert!(of(7, true, "[]")[0].1.contains("no JSON object"));
    assert!(of(7, true, r#"{"tools": []}"#)[0].1.contains("tools"));
}

#[test]
fn the_reasoning_effort_is_the_requests_or_the_servers_or_the_models() {
    let of = |asked: &str, defaults: &str| {
        let efforts = vec!["low".into(), "high".into()];
        let format = MistralFormat { version: 15, tekken: true, thinks: false, efforts };
        let body = format!(r#"{{"messages": [{{"role": "user", "content": "a"}}], "reasoning_effort": {asked}}}"#);
        read(CHAT, format, defaults, &body).map(|(text, _)| text)
    };
    let with = |effort: &str| {
        format!("<s>[MODEL_SETTINGS]{{\"reasoning_effort\": \"{effort}\"}}[/MODEL_SETTINGS][INST]a[/INST]")
    };
    assert_eq!(of("null", "{}"), Ok(with("low")));
    assert_eq!(of(r#""high""#, r#"{"reasoning_effort": "none"}"#), Ok(with("high")));
    assert_eq!(of("null", r#"{"reasoning_effort": "high"}"#), Ok(with("high")));
    assert_eq!(of("null", r#"{"reasoning_effort": null}"#), Ok(with("low")));
    assert_eq!(of(r#""none""#, "{}"), Err(Unknown::Template));
}

#[test]
fn chats_are_rendered_as_vllm_renders_them() {
    let counts = compare(include_str!("../../../../tests/fixtures/conformance/mistral.jsonl"));
    let of = |part: fn(&Count) -> usize| counts.values().map(part).sum::<usize>();
    let declined = of(|count| count.declined.values().sum());
    assert_eq!((of(|count| count.exact), declined, of(|count| count.wrong)), (80, 3, 0), "{counts:?}");
}

/// `MISTRAL_LINES=file cargo test -p affinity mistral -- --ignored --nocapture`
#[test]
#[ignore = "reads a file of lines that is not in the repository"]
fn all_of_a_file_is_rendered_as_vllm_renders_it() {
    let counts = compare(&std::fs::read_to_string(std::env::var("MISTRAL_LINES").unwrap()).unwrap());
    for (vocabulary, count) in &counts {
        println!("{vocabulary:38} {count:?}");
    }
    assert!(counts.values().all(|count| count.wrong == 0));
}
