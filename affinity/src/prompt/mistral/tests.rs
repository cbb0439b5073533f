//! Against what a real vLLM made of the same requests: `tests/conformance/mistral.py` writes the lines.

use super::super::Unknown;
use super::super::conversation::{Content, Conversation, Message, Part, Tool, ToolCall};
use super::super::json::{Fields, Json};
use super::Mistral;
use crate::fleet::MistralFormat;
use std::borrow::Cow;
use std::collections::BTreeMap;

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
        if line.get("path").and_then(Json::as_str) != Some("/v1/chat/completions") {
            continue;
        }
        let count = counts.entry(text(&line, "vocabulary").unwrap().into_owned()).or_default();
        let Some(Json::Map(defaults)) = line.get("defaults") else { panic!() };
        let chat = conversation(line.get("request").unwrap());
        let ours = chat.and_then(|chat| Mistral::new(&format(line.get("format").unwrap())).render(&chat, defaults));
        match (ours, line.get("text").and_then(Json::as_str)) {
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

fn format(json: &Json<'_>) -> MistralFormat {
    let is = |key: &str| json.get(key) == Some(&Json::Bool(true));
    let (Some(Json::Int(version)), Some(Json::List(efforts))) = (json.get("version"), json.get("efforts")) else {
        panic!()
    };
    let efforts = efforts.iter().filter_map(Json::as_str).map(str::to_owned).collect();
    MistralFormat { version: *version as u8, tekken: is("tekken"), thinks: is("thinks"), efforts }
}

fn text<'j>(json: &'j Json<'_>, key: &str) -> Option<Cow<'j, str>> {
    json.get(key).and_then(Json::as_str).map(Cow::Borrowed)
}

fn list<'j, 'a>(json: &'j Json<'a>, key: &str) -> &'j [Json<'a>] {
    match json.get(key) {
        Some(Json::List(items)) => items,
        _ => &[],
    }
}

/// The conversation of a chat request, as far as these tests need one.
fn conversation<'j>(request: &'j Json<'_>) -> Result<Conversation<'j>, Unknown> {
    let is = |key: &str| request.get(key).map(|value| *value == Json::Bool(true));
    Ok(Conversation {
        messages: list(request, "messages").iter().map(message).collect::<Result<_, _>>()?,
        tools: request.get("tools").map(|_| list(request, "tools").iter().map(tool).collect()),
        reasoning_effort: text(request, "reasoning_effort"),
        add_generation_prompt: is("add_generation_prompt"),
        continue_final_message: is("continue_final_message").unwrap_or_default(),
        ..Conversation::default()
    })
}

fn message<'j>(json: &'j Json<'_>) -> Result<Message<'j>, Unknown> {
    let content = match json.get("content") {
        Some(Json::Text(text)) => Content::Text(Cow::Borrowed(text)),
        Some(Json::List(parts)) => {
            Content::Parts(parts.iter().map(part).collect::<Option<_>>().ok_or(Unknown::Malformed)?)
        }
        _ => Content::Absent,
    };
    let call = |call: &'j Json<'_>| {
        let function = call.get("function")?;
        let (id, name, arguments) = (text(call, "id")?, text(function, "name")?, text(function, "arguments")?);
        Some(ToolCall { id, name, arguments, ..ToolCall::default() })
    };
    Ok(Message {
        role: text(json, "role").unwrap_or_default(),
        content,
        name: text(json, "name"),
        tool_calls: list(json, "tool_calls").iter().map(call).collect::<Option<_>>().ok_or(Unknown::Malformed)?,
        tool_call_id: text(json, "tool_call_id"),
        reasoning: text(json, "reasoning").or(text(json, "reasoning_content")),
        tools: None,
    })
}

fn part<'j>(json: &'j Json<'_>) -> Option<Part<'j>> {
    let extra = Fields::new();
    match json.get("type")?.as_str()? {
        "text" => Some(Part::Text { text: text(json, "text")?, extra }),
        "thinking" => {
            let closed = json.get("closed") != Some(&Json::Bool(false));
            Some(Part::Thinking { text: text(json, "thinking")?, closed, extra })
        }
        "image_url" => Some(Part::Media),
        _ => None,
    }
}

fn tool<'j>(json: &'j Json<'_>) -> Tool<'j> {
    let function = json.get("function").unwrap();
    let parameters = function.get("parameters").filter(|parameters| !parameters.is_null());
    Tool {
        name: text(function, "name").unwrap_or_default(),
        description: text(function, "description"),
        parameters: parameters.cloned(),
        ..Tool::default()
    }
}

fn rendered(version: u8, tekken: bool, request: &str) -> Result<(String, Option<Unknown>), Unknown> {
    let format = MistralFormat { version, tekken, ..MistralFormat::default() };
    Mistral::new(&format).render(&conversation(&Json::parse(request).unwrap()).unwrap(), &Fields::new())
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
fn formats_and_efforts_that_are_not_known_are_declined() {
    let plain = r#"{"messages": [{"role": "user", "content": "a"}]}"#;
    for (version, tekken) in [(0, true), (4, false), (11, false), (13, false), (16, true)] {
        assert_eq!(rendered(version, tekken, plain), Err(Unknown::Feature("mistral_version")));
    }
    let format = MistralFormat { version: 15, tekken: true, efforts: vec!["low".into(), "high".into()], thinks: false };
    let of = |effort: Option<&'static str>, defaults: &str| {
        let request = Json::parse(plain).unwrap();
        let chat = Conversation { reasoning_effort: effort.map(Cow::Borrowed), ..conversation(&request).unwrap() };
        let Some(Json::Map(defaults)) = Json::parse(defaults) else { panic!() };
        Mistral::new(&format).render(&chat, &defaults).map(|(text, _)| text)
    };
    let with = |effort: &str| {
        format!("<s>[MODEL_SETTINGS]{{\"reasoning_effort\": \"{effort}\"}}[/MODEL_SETTINGS][INST]a[/INST]")
    };
    assert_eq!(of(None, "{}"), Ok(with("low")));
    assert_eq!(of(Some("high"), r#"{"reasoning_effort": "none"}"#), Ok(with("high")));
    assert_eq!(of(None, r#"{"reasoning_effort": "high"}"#), Ok(with("high")));
    assert_eq!(of(None, r#"{"reasoning_effort": null}"#), Ok(with("low")));
    assert_eq!(of(Some("none"), "{}"), Err(Unknown::Feature("reasoning_effort")));
    assert_eq!(of(None, r#"{"tools": []}"#), Err(Unknown::Feature("chat_template_kwargs")));
}

#[test]
fn chats_are_rendered_as_vllm_renders_them() {
    let counts = compare(include_str!("../../../../tests/fixtures/conformance/mistral.jsonl"));
    let of = |part: fn(&Count) -> usize| counts.values().map(part).sum::<usize>();
    assert_eq!(of(|count| count.wrong), 0, "{counts:?}");
    assert!(counts.len() >= 12 && counts.values().all(|count| count.exact > 0), "{counts:?}");
}

/// `MISTRAL_LINES=file cargo test -p affinity mistral -- --ignored --nocapture`
#[test]
#[ignore = "reads a file of lines that is not in the repository"]
fn all_of_a_file_is_rendered_as_vllm_renders_it() {
    let counts = compare(&std::fs::read_to_string(std::env::var("MISTRAL_LINES").unwrap()).unwrap());
    for (vocabulary, count) in &counts {
        println!("{vocabulary:18} {count:?}");
    }
    assert!(counts.values().all(|count| count.wrong == 0));
}
