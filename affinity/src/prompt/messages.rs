//! `/v1/messages`: Anthropic's API, as vLLM turns it into a chat.

use super::Unknown;
use super::conversation::{Content, Conversation, Envelope, Message, Part, Tool, ToolCall};
use super::json::{Fields, Json, field, take, take_bool, take_list, take_object, take_text};
use super::json_text::{self, Style};
use super::turns::BILLING_HEADER;
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
    no_ids_handed_on(&body)?;
    let mut chat = Conversation {
        kwargs: take_object(&mut body, "chat_template_kwargs")?.unwrap_or_default(),
        reasoning_effort: effort(&mut body)?,
        tools_unused: kind_of(&mut body, "tool_choice")?.is_some_and(|kind| kind == "none"),
        thinking_disabled: kind_of(&mut body, "thinking")?.is_some_and(|kind| kind == "disabled"),
        ..Conversation::default()
    };
    let system = take(&mut body, "system").map_or(Ok(None), leading_system)?;
    chat.messages.extend(system.map(|text| Message::new("system", Content::Text(text))));
    let tools = take_list(&mut body, "tools")?;
    let tools = tools.map(|tools| tools.into_iter().map(tool).collect::<Result<_, _>>()).transpose()?;
    let mut changes = Vec::new();
    for message in take_list(&mut body, "messages")?.ok_or(Unknown::Malformed)? {
        let Json::Map(mut message) = message else { return Err(Unknown::Malformed) };
        let role = take_text(&mut message, "role")?.ok_or(Unknown::Malformed)?;
        let content = take(&mut message, "content").ok_or(Unknown::Malformed)?;
        match role.as_ref() {
            "system" => {
                if let Some(text) = inline_system(content, &mut changes)? {
                    chat.merges_systems |= !chat.messages.is_empty();
                    chat.messages.push(Message::new("system", Content::Text(text)));
                }
            }
            "user" => add_turn(Message::new("user", Content::Absent), content, &mut chat.messages)?,
            "assistant" => add_turn(Message::new("assistant", Content::Absent), content, &mut chat.messages)?,
            _ => return Err(Unknown::Malformed),
        }
    }
    chat.tools = resolve(tools, changes)?;
    Ok(chat)
}

/// Refuses bodies with which a prefill engine hands on its token ids: the engine takes them for the prompt.
pub(super) fn no_ids_handed_on(body: &Fields<'_>) -> Result<(), Unknown> {
    let ids = field(body, "kv_transfer_params").and_then(|params| params.get("prompt_token_ids"));
    ids.is_none_or(Json::is_null).then_some(()).ok_or(Unknown::Feature("token_ids"))
}

/// The effort that stands for [disabled thinking](Conversation::thinking_disabled) with a model, found as engines find it
/// when they are not told: `low` if `none` is refused, or rendered like another.
///
/// # Errors
/// If what is rendered cannot be known.
pub(super) fn disabled_effort(
    render: impl Fn(&Conversation<'_>) -> Result<String, Unknown>,
) -> Result<&'static str, Unknown> {
    let prompt = |effort| {
        let messages = vec![Message::new("user", Content::Text("Hi".into()))];
        match render(&Conversation {
            messages,
            reasoning_effort: Some(Cow::Borrowed(effort)),
            ..Conversation::default()
        }) {
            Err(Unknown::Template | Unknown::Malformed) => Ok(None),
            rendered => rendered.map(Some),
        }
    };
    let Some(none) = prompt("none")? else { return Ok("low") };
    for effort in ["low", "medium", "high", "xhigh", "max"] {
        if prompt(effort)?.as_ref() == Some(&none) {
            return Ok("low");
        }
    }
    Ok("none")
}

/// `output_config.effort`.
fn effort<'a>(body: &mut Fields<'a>) -> Result<Option<Cow<'a, str>>, Unknown> {
    take_object(body, "output_config")?.map_or(Ok(None), |mut config| take_text(&mut config, "effort"))
}

/// The `type` of a field that is an object.
fn kind_of<'a>(body: &mut Fields<'a>, key: &str) -> Result<Option<Cow<'a, str>>, Unknown> {
    take_object(body, key)?.map_or(Ok(None), |mut inner| take_text(&mut inner, "type"))
}

/// The text of the field `system`, if it has any: blocks follow one another without anything between.
fn leading_system(system: Json<'_>) -> Result<Option<Cow<'_, str>>, Unknown> {
    match system {
        Json::Text(text) => Ok(Some(text).filter(|text| !text.is_empty())),
        Json::Null => Ok(None),
        Json::List(blocks) => system_text(blocks, &mut None),
        _ => Err(Unknown::Malformed),
    }
}

/// The text of a system message among the others, if it has any. Changes of the tools are set aside.
fn inline_system<'a>(content: Json<'a>, changes: &mut Vec<Change<'a>>) -> Result<Option<Cow<'a, str>>, Unknown> {
    match content {
        Json::Text(text) => Ok(Some(text).filter(|text| !text.is_empty() && !text.starts_with(BILLING_HEADER))),
        Json::List(blocks) => system_text(blocks, &mut Some(changes)),
        _ => Err(Unknown::Malformed),
    }
}

fn system_text<'a>(
    blocks: Vec<Json<'a>>,
    changes: &mut Option<&mut Vec<Change<'a>>>,
) -> Result<Option<Cow<'a, str>>, Unknown> {
    let mut texts: Vec<Cow<'a, str>> = Vec::new();
    for block in blocks {
        let (kind, mut block) = typed(block)?;
        match (kind.as_ref(), &mut *changes) {
            ("text", _) => texts.extend(
                take_text(&mut block, "text")?.filter(|text| !text.is_empty() && !text.starts_with(BILLING_HEADER)),
            ),
            ("tool_addition" | "tool_removal", Some(changes)) => changes.push(Change::read(&kind, block)?),
            ("tool_addition" | "tool_removal", None) => return Err(Unknown::Malformed),
            _ => {}
        }
    }
    Ok(match texts.len() {
        0 => None,
        1 => texts.pop(),
        _ => Some(Cow::Owned(texts.concat())),
    })
}

/// A block's type and its other fields.
fn typed(block: Json<'_>) -> Result<(Cow<'_, str>, Fields<'_>), Unknown> {
    let Json::Map(mut fields) = block else { return Err(Unknown::Malformed) };
    let kind = take_text(&mut fields, "type")?.ok_or(Unknown::Malformed)?;
    Ok((kind, fields))
}

/// Appends a message of the user or the assistant; before it, the results of tools that are in it.
fn add_turn<'a>(mut message: Message<'a>, content: Json<'a>, out: &mut Vec<Message<'a>>) -> Result<(), Unknown> {
    let blocks = match content {
        Json::Text(text) => {
            message.content = Content::Text(text);
            out.push(message);
            return Ok(());
        }
        Json::List(blocks) => blocks,
        _ => return Err(Unknown::Malformed),
    };
    let user = message.role == "user";
    let mut parts = Vec::new();
    let mut reasoning: Option<Cow<'a, str>> = None;
    for block in blocks {
        let (kind, mut block) = typed(block)?;
        match kind.as_ref() {
            "text" => parts.extend(take_text(&mut block, "text")?.filter(|text| !text.is_empty()).map(text_part)),
            "image" => {
                if take_object(&mut block, "source")?.is_some_and(|source| !source.is_empty()) {
                    parts.push(Part::Media);
                }
            }
            "thinking" => {
                if let Some(more) = take_text(&mut block, "thinking")? {
                    reasoning = Some(match reasoning {
                        Some(before) => before + more,
                        None => more,
                    });
                }
            }
            // Of users it is lost: they have no calls.
            "tool_use" => message.tool_calls.push(tool_call(block)?),
            "tool_result" if user => add_tool_result(block, out)?,
            "tool_result" => parts.push(match take(&mut block, "content") {
                None | Some(Json::Null) => text_part("Tool result: ".into()),
                Some(Json::Text(text)) => text_part(Cow::Borrowed("Tool result: ") + text),
                // As Python prints a list.
                Some(_) => return Err(Unknown::Feature("tool_result_of_assistant")),
            }),
            "redacted_thinking" | "tool_reference" => {}
            _ => return Err(Unknown::Malformed),
        }
    }
    if user {
        message.tool_calls.clear();
        if parts.is_empty() {
            return Ok(());
        }
    } else {
        message.reasoning = reasoning.map(Json::Text);
    }
    message.content = match parts.as_mut_slice() {
        [] => Content::Absent,
        [Part::Text { text, .. }] => Content::Text(std::mem::take(text)),
        _ => Content::Parts(parts),
    };
    out.push(message);
    Ok(())
}

fn text_part(text: Cow<'_, str>) -> Part<'_> {
    Part::Text { text, extra: Fields::new() }
}

fn tool_call(mut block: Fields<'_>) -> Result<ToolCall<'_>, Unknown> {
    // Without one the engine makes one up, from its clock.
    let id = take_text(&mut block, "id")?.filter(|id| !id.is_empty()).ok_or(Unknown::Feature("tool_use_id"))?;
    let input = Json::Map(take_object(&mut block, "input")?.unwrap_or_default());
    // Written as `Infinity`, which is no JSON, but Python reads it.
    if has_infinity(&input) {
        return Err(Unknown::Feature("infinite_number"));
    }
    let mut arguments = String::new();
    json_text::write(&input, &Style { ensure_ascii: true, ..Style::PLAIN }, &mut arguments);
    let name = take_text(&mut block, "name")?.unwrap_or_default();
    Ok(ToolCall { id, name, arguments: Cow::Owned(arguments), ..ToolCall::default() })
}

fn has_infinity(json: &Json<'_>) -> bool {
    match json {
        Json::Float(float) => !float.is_finite(),
        Json::List(items) => items.iter().any(has_infinity),
        Json::Map(fields) => fields.iter().any(|(_, value)| has_infinity(value)),
        _ => false,
    }
}

/// A tool's result is a message of its own, before the user's; images in it are another of the user's.
fn add_tool_result<'a>(mut block: Fields<'a>, out: &mut Vec<Message<'a>>) -> Result<(), Unknown> {
    let id = take_text(&mut block, "tool_use_id")?.unwrap_or_default();
    let (mut texts, mut images) = (Vec::new(), Vec::new());
    match take(&mut block, "content") {
        None | Some(Json::Null) => {}
        Some(Json::Text(text)) => texts.push(text),
        Some(Json::List(items)) => {
            for item in items {
                let Json::Map(mut item) = item else { return Err(Unknown::Malformed) };
                match field(&item, "type").and_then(Json::as_str) {
                    Some("text") => match take(&mut item, "text") {
                        None => texts.push(Cow::Borrowed("")),
                        Some(Json::Text(text)) => texts.push(text),
                        Some(_) => return Err(Unknown::Malformed),
                    },
                    Some("image") if names_an_image(&item)? => images.push(Part::Media),
                    Some("tool_reference") => return Err(Unknown::Feature("tool_reference")),
                    _ => {}
                }
            }
        }
        Some(_) => return Err(Unknown::Malformed),
    }
    let text = if texts.len() == 1 { texts.pop() } else { None }.unwrap_or_else(|| Cow::Owned(texts.join("\n")));
    out.push(Message { tool_call_id: Some(id), ..Message::new("tool", Content::Text(text)) });
    if !images.is_empty() {
        out.push(Message::new("user", Content::Parts(images)));
    }
    Ok(())
}

/// Not if its source is an URL that is empty.
fn names_an_image(item: &Fields<'_>) -> Result<bool, Unknown> {
    match field(item, "source") {
        None => Ok(true),
        Some(source @ Json::Map(_)) => {
            let url = source.get("type").and_then(Json::as_str) == Some("url");
            Ok(!url || source.get("url").is_some_and(|url| url.as_str() != Some("")))
        }
        Some(_) => Err(Unknown::Malformed),
    }
}

/// A tool. A schema that does not say so is of an object.
fn tool(tool: Json<'_>) -> Result<Tool<'_>, Unknown> {
    let Json::Map(mut tool) = tool else { return Err(Unknown::Malformed) };
    let mut schema = take_object(&mut tool, "input_schema")?.ok_or(Unknown::Malformed)?;
    if field(&schema, "type").is_none() {
        schema.push(("type".into(), Json::Text("object".into())));
    }
    Ok(Tool {
        name: take_text(&mut tool, "name")?.ok_or(Unknown::Malformed)?,
        description: take_text(&mut tool, "description")?,
        parameters: Some(Json::Map(schema)),
        strict: take_bool(&mut tool, "strict")?,
        defer_loading: take_bool(&mut tool, "defer_loading")?,
        outer_defer_loading: None,
    })
}

/// What a block of a system message does to the tools.
enum Change<'a> {
    Define(Tool<'a>),
    Add(Cow<'a, str>),
    Remove(Cow<'a, str>),
}

impl<'a> Change<'a> {
    fn read(kind: &str, mut block: Fields<'a>) -> Result<Self, Unknown> {
        let (what, mut fields) = typed(take(&mut block, "tool").ok_or(Unknown::Malformed)?)?;
        match (what.as_ref(), kind) {
            ("tool_definition", "tool_addition") => {
                Ok(Change::Define(tool(take(&mut fields, "definition").ok_or(Unknown::Malformed)?)?))
            }
            ("tool_reference", _) => {
                let name = take_text(&mut fields, "name")?.ok_or(Unknown::Malformed)?;
                Ok(if kind == "tool_addition" { Change::Add(name) } else { Change::Remove(name) })
            }
            _ => Err(Unknown::Malformed),
        }
    }
}

/// The tools in effect at the end of the conversation.
fn resolve<'a>(tools: Option<Vec<Tool<'a>>>, changes: Vec<Change<'a>>) -> Result<Option<Vec<Tool<'a>>>, Unknown> {
    if changes.is_empty() {
        return Ok(tools);
    }
    // With each whether it is in effect. Of two with one name the first lends its place, the second the rest.
    let mut known: Vec<(Tool<'a>, bool)> = Vec::new();
    let define = |known: &mut Vec<_>, tool: Tool<'a>| match named(known, &tool.name) {
        Some(before) => *before = (tool, true),
        None => known.push((tool, true)),
    };
    for tool in tools.unwrap_or_default() {
        define(&mut known, tool);
    }
    for change in changes {
        match change {
            Change::Define(tool) => define(&mut known, tool),
            Change::Add(name) => {
                let (tool, in_effect) = named(&mut known, &name).ok_or(Unknown::Malformed)?;
                tool.defer_loading = None;
                *in_effect = true;
            }
            Change::Remove(name) => named(&mut known, &name).ok_or(Unknown::Malformed)?.1 = false,
        }
    }
    Ok(Some(known.into_iter().filter_map(|(tool, in_effect)| in_effect.then_some(tool)).collect()))
}

fn named<'t, 'a>(tools: &'t mut [(Tool<'a>, bool)], name: &str) -> Option<&'t mut (Tool<'a>, bool)> {
    tools.iter_mut().find(|(tool, _)| tool.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(body: &str) -> Result<Conversation<'_>, Unknown> {
        read(body.as_bytes(), None)?.conversation
    }

    fn message<'a>(role: &'static str, text: &'a str) -> Message<'a> {
        Message::new(role, Content::Text(text.into()))
    }

    #[test]
    fn results_of_tools_come_before_the_message_they_are_in() {
        let body = r#"{"messages":[
            {"role":"assistant","content":[
                {"type":"thinking","thinking":"a"},{"type":"redacted_thinking","data":"x"},{"type":"thinking","thinking":"b"},
                {"type":"text","text":"look"},{"type":"tool_use","id":"1","name":"f","input":{"b":1.0,"a":"é"}}]},
            {"role":"user","content":[
                {"type":"text","text":"one"},
                {"type":"tool_result","tool_use_id":"1","content":[{"type":"text","text":"x"},{"type":"text","text":"y"}]},
                {"type":"text","text":""},
                {"type":"tool_result","tool_use_id":"2","content":[{"type":"image","source":{"type":"base64"}}]},
                {"type":"text","text":"two","cache_control":{"type":"ephemeral"}}]},
            {"role":"user","content":[{"type":"tool_result","tool_use_id":"3"}]}]}"#;
        let call = ToolCall {
            id: "1".into(),
            name: "f".into(),
            arguments: r#"{"b": 1.0, "a": "\u00e9"}"#.into(),
            ..ToolCall::default()
        };
        let result =
            |id: &'static str, text: &'static str| Message { tool_call_id: Some(id.into()), ..message("tool", text) };
        let expected = vec![
            Message {
                reasoning: Some(Json::Text("ab".into())),
                tool_calls: vec![call],
                ..message("assistant", "look")
            },
            result("1", "x\ny"),
            result("2", ""),
            Message::new("user", Content::Parts(vec![Part::Media])),
            Message::new("user", Content::Parts(vec![text_part("one".into()), text_part("two".into())])),
            result("3", ""),
        ];
        assert_eq!(conversation(body).unwrap().messages, expected);
    }

    #[test]
    fn later_system_messages_stay_or_are_merged() {
        let body = r#"{"system":[{"type":"text","text":"x-anthropic-billing-header: 1"},{"type":"text","text":"a"},
            {"type":"text","text":"b"}],"messages":[{"role":"user","content":"hi"},{"role":"system","content":"c"}]}"#;
        let mut chat = conversation(body).unwrap();
        assert_eq!(chat.messages, [message("system", "ab"), message("user", "hi"), message("system", "c")]);
        assert!(chat.merges_systems);
        chat.merge_systems();
        assert_eq!(chat.messages, [message("system", "abc"), message("user", "hi")]);
        let first = conversation(r#"{"messages":[{"role":"system","content":"c"},{"role":"user","content":"hi"}]}"#);
        assert!(!first.unwrap().merges_systems);
    }

    #[test]
    fn blocks_of_system_messages_change_the_tools() {
        let names = |changes: &str| {
            let body = format!(
                r#"{{"tools":[{{"name":"a","input_schema":{{}},"defer_loading":true}},{{"name":"b","input_schema":{{}}}}],
                "messages":[{{"role":"system","content":[{changes}]}}]}}"#
            );
            let tools = conversation(&body)?.tools.unwrap();
            Ok(tools
                .iter()
                .map(|t| format!("{}{}", t.name, if t.defer_loading.is_some() { "?" } else { "" }))
                .collect())
        };
        let (add, remove) = (
            r#"{"type":"tool_addition","tool":{"type":"tool_reference","name":"a"}}"#,
            r#"{"type":"tool_removal","tool":{"type":"tool_reference","name":"a"}}"#,
        );
        let define =
            r#"{"type":"tool_addition","tool":{"type":"tool_definition","definition":{"name":"c","input_schema":{}}}}"#;
        let of = |names: &[&str]| Ok::<Vec<String>, Unknown>(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(names(""), of(&["a?", "b"]));
        assert_eq!(names(add), of(&["a", "b"]));
        assert_eq!(names(remove), of(&["b"]));
        assert_eq!(names(&format!("{remove},{define},{add}")), of(&["a", "b", "c"]));
        assert_eq!(names(&add.replace("\"a\"", "\"z\"")), Err(Unknown::Malformed));
    }

    #[test]
    fn settings_are_read() {
        let body = r#"{"model":"m","cache_salt":"s","messages":[],"tool_choice":{"type":"none"},"tools":[],
            "output_config":{"effort":"high"},"thinking":{"type":"disabled"},"chat_template_kwargs":{"a":1}}"#;
        let envelope = read(body.as_bytes(), None).unwrap();
        assert_eq!((envelope.model.as_deref(), envelope.cache_salt.as_deref()), (Some("m"), Some("s")));
        let expected = Conversation {
            tools: Some(vec![]),
            kwargs: vec![("a".into(), Json::Int(1))],
            reasoning_effort: Some("high".into()),
            tools_unused: true,
            thinking_disabled: true,
            ..Conversation::default()
        };
        assert_eq!(envelope.conversation, Ok(expected));
    }

    #[test]
    fn disabled_thinking_is_the_effort_none_if_templates_tell_it_from_others() {
        let effort = |chat: &Conversation<'_>| chat.reasoning_effort.clone().unwrap().into_owned();
        assert_eq!(disabled_effort(|chat| Ok(effort(chat))), Ok("none"));
        assert_eq!(disabled_effort(|_| Ok("same".to_owned())), Ok("low"));
        let refuses = |chat: &Conversation<'_>| match effort(chat) {
            effort if effort == "none" => Err(Unknown::Template),
            effort => Ok(effort),
        };
        assert_eq!(disabled_effort(refuses), Ok("low"));
        assert_eq!(disabled_effort(|_| Err(Unknown::Feature("date"))), Err(Unknown::Feature("date")));
    }

    #[test]
    fn what_cannot_be_known_says_why() {
        for (role, block, why) in [
            ("assistant", r#"{"type":"tool_use","name":"f","input":{}}"#, Unknown::Feature("tool_use_id")),
            ("assistant", r#"{"type":"tool_use","id":"1","input":{"a":1e999}}"#, Unknown::Feature("infinite_number")),
            ("assistant", r#"{"type":"tool_result","content":[]}"#, Unknown::Feature("tool_result_of_assistant")),
            (
                "user",
                r#"{"type":"tool_result","content":[{"type":"tool_reference"}]}"#,
                Unknown::Feature("tool_reference"),
            ),
            ("user", r#"{"type":"document"}"#, Unknown::Malformed),
            ("tool", r#"{"type":"text","text":"x"}"#, Unknown::Malformed),
        ] {
            let body = format!(r#"{{"messages":[{{"role":"{role}","content":[{block}]}}]}}"#);
            assert_eq!(conversation(&body), Err(why), "{body}");
        }
        assert_eq!(conversation("{}"), Err(Unknown::Malformed));
        assert_eq!(read(b"[]", None), Err(Unknown::Malformed));
    }

    #[test]
    fn lifted_texts_are_borrowed() {
        let body = br#"{"messages":[{"role":"user","content":"a\nb"}]}"#;
        let lifted = Lifted::of(body, Lifted::default()).unwrap();
        let chat = read(body, Some(&lifted)).unwrap().conversation.unwrap();
        assert!(matches!(&chat.messages[0].content, Content::Text(Cow::Borrowed("a\nb"))));
    }
}
