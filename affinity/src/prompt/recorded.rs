//! Holds conversations against what vLLM was recorded to make of the same bodies: `tests/conformance/apis.py`.

use super::conversation::{Content, Conversation, Envelope, Message, Part, Tool};
use super::json::{Fields, Json, field};
use super::json_text::{self, Style};
use super::lift::Lifted;
use super::{Unknown, messages, responses};

/// One line of the recording.
struct Recorded<'a> {
    path: &'a str,
    setting: &'a str,
    request: String,
    /// `None`: vLLM refused it.
    text: Option<&'a str>,
}

impl<'a> Recorded<'a> {
    fn of(line: &'a Json<'a>) -> Self {
        let mut request = String::new();
        json_text::write(line.get("request").unwrap(), &Style::PLAIN, &mut request);
        let text = |key| line.get(key).and_then(Json::as_str);
        Self { path: text("path").unwrap(), setting: text("setting").unwrap(), request, text: text("text") }
    }

    fn rendered(&self) -> Result<String, Unknown> {
        let lifted = Lifted::of(self.request.as_bytes());
        let read = match self.path {
            "/v1/responses" => responses::read,
            _ => messages::read,
        };
        let Envelope { model, conversation, .. } = read(self.request.as_bytes(), lifted.as_ref())?;
        assert_eq!(model.as_deref(), Some("tiny"));
        let mut chat = conversation?;
        if chat.merges_systems && self.setting == "system first" {
            chat.merge_systems();
        }
        chat.drop_billing_headers();
        if !chat.continue_final_message {
            return Ok(print(&chat, self.setting == "parts"));
        }
        const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG";
        let last = &mut chat.messages.last_mut().unwrap().content;
        match last {
            Content::Text(text) => text.to_mut().push_str(TAG),
            Content::Parts(parts) => match parts.last_mut() {
                Some(Part::Text { text, .. }) => text.to_mut().push_str(TAG),
                _ => return Err(Unknown::Template),
            },
            Content::Absent => *last = Content::Text(TAG.into()),
        }
        let printed = print(&chat, self.setting == "parts");
        Ok(printed[..printed.rfind(TAG).unwrap()].to_owned())
    }
}

/// As the template of the recording prints it.
fn print(chat: &Conversation<'_>, parts: bool) -> String {
    let mut out = String::new();
    let mut line = |before: &str, json: &Json<'_>| {
        out.push_str(before);
        json_text::write(json, &Style::PLAIN, &mut out);
        out.push('\n');
    };
    for message in &chat.messages {
        line("", &Json::Map(message_fields(message, parts)));
    }
    let tools = chat.tools.as_ref().map(|tools| Json::List(tools.iter().map(tool_json).collect()));
    line("", &tools.unwrap_or(Json::Null));
    let effort = if chat.thinking_disabled { Some("none") } else { chat.reasoning_effort.as_deref() };
    let kwarg = |key| field(&chat.kwargs, key).filter(|value| !value.is_null());
    let effort = effort.or(kwarg("reasoning_effort").and_then(Json::as_str));
    let of_request = chat.thinking_disabled || chat.reasoning_effort.is_some();
    let thinking = of_request.then(|| Json::Bool(effort != Some("none")));
    let thinking = kwarg("enable_thinking").cloned().or(thinking);
    let flavour = kwarg("flavour").cloned();
    if let Some(effort) = effort {
        out.push_str(&format!("effort {effort}\n"));
    }
    for (name, value) in [("thinking ", thinking), ("flavour ", flavour)] {
        if let Some(value) = value {
            out.push_str(name);
            json_text::write(&value, &Style::PLAIN, &mut out);
            out.push('\n');
        }
    }
    if chat.add_generation_prompt != Some(false) {
        out.push_str("<|im_start|>assistant\n");
    }
    out
}

fn text(text: &str) -> Json<'_> {
    Json::Text(text.into())
}

fn message_fields<'a>(message: &'a Message<'a>, parts: bool) -> Fields<'a> {
    let content = if parts && message.role != "tool" {
        Json::List(match &message.content {
            Content::Absent => Vec::new(),
            Content::Text(whole) => vec![part_json(whole, &[])],
            Content::Parts(parts) => parts
                .iter()
                .map(|part| match part {
                    Part::Text { text, extra } => part_json(text, extra),
                    Part::Media => panic!("media in the recording"),
                })
                .collect(),
        })
    } else {
        Json::Text(message.content.joined(parts).unwrap())
    };
    let mut fields = vec![("role".into(), text(&message.role)), ("content".into(), content)];
    let mut add = |key: &'static str, value: Json<'a>| fields.push((key.into(), value));
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| {
            let mut function = vec![("name".into(), text(&call.name)), ("arguments".into(), call.parsed())];
            if !call.name_first {
                function.reverse();
            }
            let function = ("function".into(), Json::Map(function));
            Json::Map(vec![("id".into(), text(&call.id)), function, ("type".into(), text("function"))])
        });
        add("tool_calls", Json::List(calls.collect()));
    }
    if let Some(reasoning) = &message.reasoning {
        add("reasoning", text(reasoning));
        add("reasoning_content", text(reasoning));
    }
    if let Some(id) = &message.tool_call_id {
        add("tool_call_id", text(id));
    }
    if let Some(name) = &message.name {
        add("name", text(name));
    }
    if message.role == "developer" {
        add("tools", message.tools.clone().unwrap_or(Json::Null));
    }
    fields
}

fn part_json<'a>(whole: &'a str, extra: &[(std::borrow::Cow<'a, str>, Json<'a>)]) -> Json<'a> {
    let mut fields = vec![("type".into(), text("text")), ("text".into(), text(whole))];
    fields.extend(extra.iter().cloned());
    Json::Map(fields)
}

fn tool_json<'a>(tool: &'a Tool<'a>) -> Json<'a> {
    let mut function = vec![
        ("name".into(), text(&tool.name)),
        ("description".into(), tool.description.as_deref().map_or(Json::Null, text)),
        ("parameters".into(), tool.parameters.clone().unwrap_or(Json::Null)),
    ];
    function.extend(tool.strict.map(|strict| ("strict".into(), Json::Bool(strict))));
    function.extend(tool.defer_loading.map(|defer| ("defer_loading".into(), Json::Bool(defer))));
    Json::Map(vec![("type".into(), text("function")), ("function".into(), Json::Map(function))])
}

#[test]
fn conversations_are_what_vllm_makes_of_the_same_bodies() {
    let recording = include_str!("../../../tests/fixtures/apis.jsonl");
    let (mut exact, mut declined, mut refused) = (0, 0, 0);
    for line in recording.lines() {
        let line = Json::parse(line).unwrap();
        let recorded = Recorded::of(&line);
        match (recorded.rendered(), recorded.text) {
            (Ok(ours), Some(theirs)) => {
                assert_eq!(ours, theirs, "{} {}", recorded.setting, recorded.request);
                exact += 1;
            }
            (Err(_), Some(_)) => declined += 1,
            (_, None) => refused += 1,
        }
    }
    assert_eq!((exact, declined, refused), (248, 25, 27));
}
