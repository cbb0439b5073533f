use super::*;
use crate::prompt::conversation::ToolCall;
use crate::prompt::json::{Fields, Json};
use std::borrow::Cow;
use std::env::var;
use std::fs::read_to_string;

/// Made by `tests/conformance/harmony.py --requests 20`.
const GOLDEN: &str = include_str!("../../../../tests/fixtures/conformance/harmony.jsonl");

#[test]
fn chats_are_spelled_as_vllm_spells_them() {
    let counts = Counts::of(GOLDEN);
    // Declined are two with text that looks special, and two with parts that are no text.
    assert!(counts.wrong == 0 && counts.declined <= 4 && counts.exact > 50, "{counts:?}");
}

/// The same for a file of the script's: `HARMONY_VECTORS=FILE cargo test -p affinity harmony -- --ignored --nocapture`.
#[test]
#[ignore = "needs a file that tests/conformance/harmony.py writes"]
fn chats_of_a_file_are_spelled_as_vllm_spells_them() {
    let counts = Counts::of(&read_to_string(var("HARMONY_VECTORS").unwrap()).unwrap());
    println!("{counts:?}");
    assert_eq!(counts.wrong, 0);
}

#[test]
fn schemas_too_deep_are_declined() {
    let nested = |depth: usize| {
        let schema = format!("{}{{}}{}", r#"{"type":"array","items":"#.repeat(depth), "}".repeat(depth));
        let request = format!(r#"{{"messages":[],"tools":[{{"function":{{"name":"f","parameters":{schema}}}}}]}}"#);
        render(&conversation(&Json::parse(&request).unwrap()), "2026-08-01").map(|text| text.contains("any[]"))
    };
    assert_eq!(nested(64), Ok(true));
    assert_eq!(nested(65), Err(Unknown::Feature("deep_schema")));
}

/// How chats were rendered.
#[derive(Debug, Default)]
struct Counts {
    exact: usize,
    declined: usize,
    wrong: usize,
    /// By the engine: what is made of them does not matter.
    refused: usize,
}

impl Counts {
    /// Prints what is declined or wrong.
    fn of(lines: &str) -> Self {
        let mut counts = Self::default();
        for line in lines.lines() {
            let line = Json::parse(line).unwrap();
            let request = line.get("request").unwrap();
            let rendered = render(&conversation(request), &string(line.get("date")).unwrap());
            // The same bytes would stand for other tokens.
            let ordinary = line.get("ordinary").is_some();
            match (rendered, line.get("text").and_then(Json::as_str)) {
                (_, None) => counts.refused += 1,
                (Err(why), Some(_)) => {
                    println!("declined: {why:?}: {request:?}\n");
                    counts.declined += 1;
                }
                (Ok(ours), Some(theirs)) if ours == theirs && !ordinary => counts.exact += 1,
                (Ok(ours), Some(theirs)) => {
                    println!("wrong: {ours:?}\nright: {theirs:?}\n");
                    counts.wrong += 1;
                }
            }
        }
        counts
    }
}

/// What the body of a chat becomes, as far as Harmony looks at it.
fn conversation<'a>(request: &Json<'a>) -> Conversation<'a> {
    let list = |value: Option<&Json<'a>>| match value {
        Some(Json::List(items)) => Some(items.clone()),
        _ => None,
    };
    let call = |call: Json<'a>| {
        let function = call.get("function").unwrap();
        ToolCall {
            id: string(call.get("id")).unwrap(),
            name: string(function.get("name")).unwrap(),
            arguments: string(function.get("arguments")).unwrap(),
            ..ToolCall::default()
        }
    };
    let message = |message: Json<'a>| Message {
        role: string(message.get("role")).unwrap(),
        content: content(message.get("content")),
        tool_calls: list(message.get("tool_calls")).unwrap_or_default().into_iter().map(call).collect(),
        tool_call_id: string(message.get("tool_call_id")),
        reasoning: string(message.get("reasoning")).or(string(message.get("reasoning_content"))).map(Json::Text),
        ..Message::default()
    };
    let tool = |tool: Json<'a>| {
        let function = tool.get("function").unwrap();
        Tool {
            name: string(function.get("name")).unwrap(),
            description: string(function.get("description")),
            parameters: function.get("parameters").filter(|parameters| !parameters.is_null()).cloned(),
            ..Tool::default()
        }
    };
    Conversation {
        messages: list(request.get("messages")).unwrap().into_iter().map(message).collect(),
        tools: list(request.get("tools")).map(|tools| tools.into_iter().map(tool).collect()),
        reasoning_effort: string(request.get("reasoning_effort")),
        ..Conversation::default()
    }
}

fn content<'a>(content: Option<&Json<'a>>) -> Content<'a> {
    let part = |part: &Json<'a>| match (part.get("type").and_then(Json::as_str), string(part.get("text"))) {
        (Some("text"), Some(text)) => Part::Text { text, extra: Fields::new() },
        _ => Part::Media,
    };
    match content {
        Some(Json::List(parts)) => Content::Parts(parts.iter().map(part).collect()),
        other => string(other).map_or(Content::Absent, Content::Text),
    }
}

fn string<'a>(value: Option<&Json<'a>>) -> Option<Cow<'a, str>> {
    match value {
        Some(Json::Text(text)) => Some(text.clone()),
        _ => None,
    }
}
