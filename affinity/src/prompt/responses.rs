//! `/v1/responses`: OpenAI's API, as vLLM turns it into a chat.

use super::Unknown;
use super::body::part;
use super::conversation::{Content, Conversation, Envelope, Message, Tool, ToolCall};
use super::json::{Fields, Json, field, take, take_bool, take_list, take_object, take_text};
use super::json_text::{self, Style};
use super::messages::no_ids_handed_on;
use affinity_scan::Lifted;
use std::borrow::Cow;

/// Reads a body. `lifted` is what [`Lifted::of`] made of it.
///
/// # Errors
/// [`Unknown::Malformed`] if it is no object, or its model is no name.
pub(super) fn read<'a>(body: &'a [u8], lifted: Option<&'a Lifted>) -> Result<Envelope<'a>, Unknown> {
    Envelope::read(body, lifted, convert)
}

fn convert(mut body: Fields<'_>) -> Result<Conversation<'_>, Unknown> {
    // Earlier turns lie in the memory of one engine; templates of OpenAI's are not supported there.
    for what in ["previous_response_id", "previous_input_messages", "prompt"] {
        if field(&body, what).is_some_and(|given| !given.is_null()) {
            return Err(Unknown::Feature(what));
        }
    }
    no_ids_handed_on(&body)?;
    // Null means the same as "auto".
    if take(&mut body, "truncation").is_some_and(|given| given.as_str() != Some("disabled")) {
        return Err(Unknown::Feature("truncation"));
    }
    let mut chat = Conversation {
        kwargs: take_object(&mut body, "chat_template_kwargs")?.unwrap_or_default(),
        reasoning_effort: match take_object(&mut body, "reasoning")? {
            Some(mut reasoning) => take_text(&mut reasoning, "effort")?,
            None => None,
        },
        tools: tools(take(&mut body, "tools"))?,
        tools_unused: field(&body, "tool_choice").and_then(Json::as_str) == Some("none"),
        // Unlike chat, by default.
        add_special_tokens: true,
        ..Conversation::default()
    };
    if let Some(text) = take_text(&mut body, "instructions")?.filter(|text| !text.is_empty()) {
        chat.messages.push(Message::new("system", Content::Text(text)));
    }
    // Only items are merged with what is before them, and the instructions are no assistant's.
    match take(&mut body, "input") {
        Some(Json::Text(text)) => chat.messages.push(Message::new("user", Content::Text(text))),
        Some(Json::List(items)) => {
            let mut unfinished = false;
            for item in items {
                unfinished = add_item(item, &mut chat.messages)?;
            }
            if unfinished {
                chat.continue_final_message = true;
                chat.add_generation_prompt = Some(false);
            }
        }
        _ => return Err(Unknown::Malformed),
    }
    Ok(chat)
}

/// Appends an item, or merges it with the assistant's message before it. Whether its status is to be gone on with, if
/// it is the last.
fn add_item<'a>(item: Json<'a>, out: &mut Vec<Message<'a>>) -> Result<bool, Unknown> {
    let Json::Map(mut item) = item else { return Err(Unknown::Malformed) };
    let kind = match take(&mut item, "type") {
        None => None,
        Some(Json::Text(kind)) => Some(kind),
        Some(_) => return Err(Unknown::Malformed),
    };
    let unfinished = matches!(field(&item, "status").and_then(Json::as_str), Some("in_progress" | "incomplete"));
    match kind.as_deref() {
        None | Some("message") => add_message(item, kind.is_some(), unfinished, out),
        Some("reasoning") => {
            let text = reasoning(item)?;
            match assistant_before(out).filter(|message| message.reasoning.is_none()) {
                Some(before) => before.reasoning = Some(Json::Text(text)),
                None => out
                    .push(Message { reasoning: Some(Json::Text(text)), ..Message::new("assistant", Content::Absent) }),
            }
            Ok(unfinished)
        }
        Some(kind @ ("function_call" | "custom_tool_call")) => {
            let call = tool_call(kind, item)?;
            match assistant_before(out) {
                Some(before) => before.tool_calls.push(call),
                None => out.push(Message { tool_calls: vec![call], ..Message::new("assistant", Content::Absent) }),
            }
            Ok(false)
        }
        Some("function_call_output" | "custom_tool_call_output") => {
            let content = match take(&mut item, "output") {
                Some(Json::Text(text)) => Content::Text(text),
                Some(Json::List(parts)) => input_parts(parts)?,
                _ => return Err(Unknown::Malformed),
            };
            // An absent one is there all the same, and null.
            let id = take_text(&mut item, "call_id")?.ok_or(Unknown::Feature("call_id"))?;
            out.push(Message { tool_call_id: Some(id), ..Message::new("tool", content) });
            Ok(false)
        }
        // Engines refuse most others.
        Some(_) => Err(Unknown::Feature("item")),
    }
}

/// The message before, if it is the assistant's.
fn assistant_before<'m, 'a>(messages: &'m mut [Message<'a>]) -> Option<&'m mut Message<'a>> {
    messages.last_mut().filter(|message| message.role == "assistant")
}

/// `declared`: it says that it is a message.
fn add_message<'a>(
    mut item: Fields<'a>,
    declared: bool,
    unfinished: bool,
    out: &mut Vec<Message<'a>>,
) -> Result<bool, Unknown> {
    let role = take_text(&mut item, "role")?.ok_or(Unknown::Malformed)?;
    // One with an id that does not say what it is passes for a reference, which may hold anything.
    let referred = !declared && matches!(field(&item, "id"), Some(Json::Text(_)));
    // One that holds all that an output does passes for one, whose content is a list; a text is one of characters.
    let output = declared && ["id", "status"].iter().all(|key| field(&item, key).is_some());
    let mut content = match take(&mut item, "content") {
        Some(Json::Text(_)) if output && role == "assistant" => return Err(Unknown::Feature("item")),
        Some(Json::Text(text)) => Content::Text(text),
        Some(Json::List(parts)) if role == "assistant" => assistant_content(parts, declared, referred)?,
        Some(Json::List(parts)) => input_parts(parts)?,
        _ => return Err(Unknown::Malformed),
    };
    match role.as_ref() {
        "assistant" => {
            if let Content::Text(text) = &mut content {
                let text = std::mem::take(text);
                match assistant_before(out).filter(|message| message.content == Content::Absent) {
                    Some(before) => before.content = Content::Text(text),
                    None => out.push(Message::new("assistant", Content::Text(text))),
                }
                return Ok(unfinished);
            }
        }
        "user" | "system" | "developer" => {}
        _ => return Err(Unknown::Malformed),
    }
    // What else the item holds goes with it, as far as chats know it.
    for what in ["task", "tool_calls", "reasoning"] {
        if field(&item, what).is_some_and(|given| !given.is_null()) {
            return Err(Unknown::Feature(what));
        }
    }
    let name = match take(&mut item, "name") {
        Some(Json::Text(name)) => Some(name),
        _ => None,
    };
    let tools = take(&mut item, "tools").filter(|tools| role == "developer" && !tools.is_null());
    out.push(Message { role, content, name, tools, ..Message::default() });
    Ok(unfinished)
}

/// Of the assistant's parts the first is the text. Engines tell two kinds of lists: of outputs, only in items that are
/// declared to be messages or have an id, and of inputs.
fn assistant_content<'a>(parts: Vec<Json<'a>>, declared: bool, referred: bool) -> Result<Content<'a>, Unknown> {
    let all = |allowed: &[&str]| {
        parts.iter().all(|part| part.get("type").and_then(Json::as_str).is_some_and(|kind| allowed.contains(&kind)))
    };
    let outputs = (declared || referred) && all(&["output_text", "refusal"]);
    if !outputs && !all(&["input_text", "input_image"]) {
        return Err(Unknown::Malformed);
    }
    match parts.into_iter().next() {
        None if declared => Err(Unknown::Malformed),
        None => Ok(Content::Parts(Vec::new())),
        Some(Json::Map(mut first)) => match take(&mut first, "text") {
            Some(Json::Text(text)) => Ok(Content::Text(text)),
            _ => Err(Unknown::Feature("media")),
        },
        Some(_) => Err(Unknown::Malformed),
    }
}

/// Parts of a content that is no assistant's.
fn input_parts(parts: Vec<Json<'_>>) -> Result<Content<'_>, Unknown> {
    let mut read = Vec::with_capacity(parts.len());
    for item in parts {
        if !matches!(item.get("type").and_then(Json::as_str), Some("input_text" | "input_image")) {
            return Err(Unknown::Malformed);
        }
        read.push(part(item).flatten().ok_or(Unknown::Malformed)?);
    }
    Ok(Content::Parts(read))
}

/// The first text of a reasoning item, or else of its summary.
fn reasoning(mut item: Fields<'_>) -> Result<Cow<'_, str>, Unknown> {
    if take_text(&mut item, "encrypted_content")?.is_some_and(|content| !content.is_empty()) {
        return Err(Unknown::Feature("encrypted_content"));
    }
    let summary = take_list(&mut item, "summary")?.ok_or(Unknown::Malformed)?;
    let content = take_list(&mut item, "content")?.unwrap_or_default();
    match content.into_iter().chain(summary).next() {
        None => Ok(Cow::Borrowed("")),
        Some(Json::Map(mut first)) => take_text(&mut first, "text")?.ok_or(Unknown::Malformed),
        Some(_) => Err(Unknown::Malformed),
    }
}

fn tool_call<'a>(kind: &str, mut item: Fields<'a>) -> Result<ToolCall<'a>, Unknown> {
    let mut required = |key| take_text(&mut item, key)?.ok_or(Unknown::Malformed);
    let (id, name) = (required("call_id")?, required("name")?);
    let (name, arguments) = if kind == "custom_tool_call" {
        // The tool is shown to the model as a function of one text.
        let input = Json::Map(vec![("input".into(), Json::Text(required("input")?))]);
        let mut arguments = String::new();
        json_text::write(&input, &Style::PLAIN, &mut arguments);
        (name, Cow::Owned(arguments))
    } else {
        let arguments = required("arguments")?;
        (in_namespace(take_text(&mut item, "namespace")?.as_deref().unwrap_or_default(), name), arguments)
    };
    Ok(ToolCall { id, name, arguments, name_first: true, ..ToolCall::default() })
}

fn in_namespace<'a>(namespace: &str, name: Cow<'a, str>) -> Cow<'a, str> {
    if namespace.is_empty() { name } else { Cow::Owned([namespace, "__", name.as_ref()].concat()) }
}

/// The tools that the model is shown: functions, custom tools as functions of one text, and those within namespaces.
/// A list of others only is a list without tools, not none.
fn tools(given: Option<Json<'_>>) -> Result<Option<Vec<Tool<'_>>>, Unknown> {
    let given = match given {
        None => return Ok(None),
        Some(Json::List(given)) if given.is_empty() => return Ok(None),
        Some(Json::List(given)) => given,
        Some(_) => return Err(Unknown::Malformed),
    };
    let mut shown = Vec::new();
    for tool in given {
        let Json::Map(mut tool) = tool else { return Err(Unknown::Malformed) };
        match take_text(&mut tool, "type")?.as_deref() {
            Some("function") => shown.push(function("", tool)?),
            Some("custom") => shown.push(custom(tool)?),
            Some("namespace") => {
                let namespace = take_text(&mut tool, "name")?.ok_or(Unknown::Malformed)?;
                for inner in take_list(&mut tool, "tools")?.ok_or(Unknown::Malformed)? {
                    let Json::Map(mut inner) = inner else { return Err(Unknown::Malformed) };
                    if take_text(&mut inner, "type")?.as_deref() == Some("function") {
                        shown.push(function(&namespace, inner)?);
                    }
                }
            }
            Some(_) => {}
            None => return Err(Unknown::Malformed),
        }
    }
    Ok(Some(shown))
}

fn function<'a>(namespace: &str, mut tool: Fields<'a>) -> Result<Tool<'a>, Unknown> {
    Ok(Tool {
        name: in_namespace(namespace, take_text(&mut tool, "name")?.ok_or(Unknown::Malformed)?),
        description: take_text(&mut tool, "description")?,
        parameters: take_object(&mut tool, "parameters")?.map(Json::Map),
        strict: take_bool(&mut tool, "strict")?,
        defer_loading: take_bool(&mut tool, "defer_loading")?,
        outer_defer_loading: None,
    })
}

fn custom(mut tool: Fields<'_>) -> Result<Tool<'_>, Unknown> {
    const PARAMETERS: &str = r#"{"type": "object", "properties": {"input": {"type": "string",
        "description": "The freeform text payload for this tool."}}, "required": ["input"],
        "additionalProperties": false}"#;
    Ok(Tool {
        name: take_text(&mut tool, "name")?.ok_or(Unknown::Malformed)?,
        description: take_text(&mut tool, "description")?,
        parameters: Json::parse(PARAMETERS),
        ..Tool::default()
    })
}

#[cfg(test)]
mod tests {
    use super::super::conversation::Part;
    use super::*;

    fn conversation(body: &str) -> Result<Conversation<'_>, Unknown> {
        read(body.as_bytes(), None)?.conversation
    }

    fn assistant<'a>(text: &'a str) -> Message<'a> {
        Message::new("assistant", Content::Text(text.into()))
    }

    fn user<'a>(text: &'a str) -> Message<'a> {
        Message::new("user", Content::Text(text.into()))
    }

    #[test]
    fn instructions_come_first_and_a_text_is_the_users() {
        let body =
            r#"{"model":"m","cache_salt":"s","instructions":"be brief","input":"hi","reasoning":{"effort":"low"}}"#;
        let envelope = read(body.as_bytes(), None).unwrap();
        assert_eq!((envelope.model.as_deref(), envelope.cache_salt.as_deref()), (Some("m"), Some("s")));
        let expected = Conversation {
            messages: vec![Message::new("system", Content::Text("be brief".into())), user("hi")],
            reasoning_effort: Some("low".into()),
            add_special_tokens: true,
            ..Conversation::default()
        };
        assert_eq!(envelope.conversation, Ok(expected));
    }

    #[test]
    fn what_the_assistant_thought_said_and_called_is_one_message() {
        let body = r#"{"input":[
            {"role":"user","content":"hi"},
            {"type":"reasoning","id":"r","summary":[],"content":[{"type":"reasoning_text","text":"hm"}]},
            {"type":"message","role":"assistant","content":[{"type":"output_text","text":"let me see"}]},
            {"type":"function_call","call_id":"1","name":"f","arguments":"{}","namespace":"n"},
            {"type":"custom_tool_call","call_id":"2","name":"g","input":"a\"\né"},
            {"type":"function_call_output","call_id":"1","output":"one"},
            {"type":"custom_tool_call_output","call_id":"2","output":[{"type":"input_text","text":"two","x":1}]},
            {"role":"assistant","content":"so"},
            {"role":"assistant","content":"there"}]}"#;
        let call = |id: &'static str, name: &'static str, arguments: &'static str| ToolCall {
            id: id.into(),
            name: name.into(),
            arguments: arguments.into(),
            name_first: true,
            ..ToolCall::default()
        };
        let result =
            |id: &'static str, content| Message { tool_call_id: Some(id.into()), ..Message::new("tool", content) };
        let part = Part::Other { text: "two".into(), extra: vec![("x".into(), Json::Int(1))] };
        let expected = vec![
            user("hi"),
            Message {
                reasoning: Some(Json::Text("hm".into())),
                tool_calls: vec![call("1", "n__f", "{}"), call("2", "g", r#"{"input": "a\"\né"}"#)],
                ..assistant("let me see")
            },
            result("1", Content::Text("one".into())),
            result("2", Content::Parts(vec![part])),
            assistant("so"),
            assistant("there"),
        ];
        assert_eq!(conversation(body).unwrap().messages, expected);
    }

    #[test]
    fn an_unfinished_last_item_is_gone_on_with() {
        let unfinished = |items: &str| {
            let body = format!(r#"{{"input":[{items}]}}"#);
            let chat = conversation(&body).unwrap();
            (chat.continue_final_message, chat.add_generation_prompt)
        };
        let part = r#"{"type":"message","role":"assistant","status":"incomplete","content":[{"type":"output_text","text":"a"}]}"#;
        assert_eq!(unfinished(part), (true, Some(false)));
        assert_eq!(unfinished(&format!(r#"{part},{{"role":"user","content":"b"}}"#)), (false, None));
        let call = r#"{"type":"function_call","status":"in_progress","call_id":"1","name":"f","arguments":""}"#;
        assert_eq!(unfinished(call), (false, None));
    }

    #[test]
    fn the_model_is_shown_functions_only() {
        let tools = |tools: &str| {
            let body = format!(r#"{{"input":"x","tools":{tools}}}"#);
            conversation(&body).unwrap().tools.map(|tools| tools.iter().map(|t| t.name.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(tools("[]"), None);
        assert_eq!(tools(r#"[{"type":"web_search"}]"#), Some(vec![]));
        let all = r#"[{"type":"custom","name":"c"},{"type":"function","name":"f"},
            {"type":"namespace","name":"n","tools":[{"type":"function","name":"g"},{"type":"custom","name":"h"}]}]"#;
        assert_eq!(tools(all), Some(vec!["c".to_owned(), "f".to_owned(), "n__g".to_owned()]));
    }

    #[test]
    fn what_cannot_be_known_says_why() {
        for (body, why) in [
            (r#"{"input":"x","previous_response_id":"r"}"#, Unknown::Feature("previous_response_id")),
            (r#"{"input":"x","truncation":null}"#, Unknown::Feature("truncation")),
            (r#"{"input":"x","truncation":"auto"}"#, Unknown::Feature("truncation")),
            (r#"{"input":[{"type":"item_reference","id":"x"}]}"#, Unknown::Feature("item")),
            (r#"{"input":[{"type":"additional_tools","role":"developer","tools":[]}]}"#, Unknown::Feature("item")),
            (r#"{"input":[{"type":"function_call_output","output":"x"}]}"#, Unknown::Feature("call_id")),
            (r#"{"input":[{"role":"user","content":[{"type":"text","text":"x"}]}]}"#, Unknown::Malformed),
            (r#"{"input":[{"role":"tool","content":"x"}]}"#, Unknown::Malformed),
            (r#"{"input":5}"#, Unknown::Malformed),
        ] {
            assert_eq!(conversation(body), Err(why), "{body}");
        }
        let image = conversation(r#"{"input":[{"role":"user","content":[{"type":"input_image","image_url":"u"}]}]}"#);
        assert!(image.unwrap().messages[0].content.has_media());
        assert_eq!(read(br#"{"model":5}"#, None), Err(Unknown::Malformed));
    }
}
