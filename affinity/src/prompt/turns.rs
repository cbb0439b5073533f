//! Messages as vLLM hands them to a template.

use super::Unknown;
use super::conversation::{Content, Conversation, Message, Part, Tool, ToolCall};
use super::jinja::values::{list, map, record, value};
use super::json::{Fields, Json};
use minijinja::Value;
use std::borrow::Cow;

/// A message and its content, as the template sees it.
#[derive(Clone)]
pub(super) struct Turn<'c, 'a> {
    pub role: &'c str,
    pub content: Seen<'c, 'a>,
    /// What else it has; `None` for one made of several.
    pub message: Option<&'c Message<'a>>,
}

/// A message that is no more than a role and a text, as bytes that need not be UTF-8: engines refuse what is not.
pub(super) struct Said<'c> {
    pub role: &'c str,
    pub content: &'c [u8],
}

impl Said<'_> {
    /// Whether a template sees it as it is. `knows_developers`: its source has the word in quotes.
    pub fn is_seen(&self, knows_developers: bool) -> bool {
        match self.role {
            "developer" => knows_developers,
            "system" => !self.content.starts_with(BILLING_HEADER.as_bytes()),
            _ => true,
        }
    }
}

/// A content.
#[derive(Clone)]
pub(super) enum Seen<'c, 'a> {
    Text(Cow<'c, str>),
    /// Where the template takes parts.
    Parts(Vec<SeenPart<'c, 'a>>),
}

#[derive(Clone)]
pub(super) enum SeenPart<'c, 'a> {
    Text(Cow<'c, str>, &'c Fields<'a>),
    Media,
}

/// Claude Code begins a system prompt with a line that is another one each time; vLLM drops it (since 0.32).
pub(super) const BILLING_HEADER: &str = "x-anthropic-billing-header";

/// The turns of a conversation. `takes_parts`: of the template; `knows_developers`: its source has the word in quotes.
///
/// # Errors
/// When a content that must be text has media in it.
pub(super) fn turns<'c, 'a>(
    conversation: &'c Conversation<'a>,
    takes_parts: bool,
    knows_developers: bool,
) -> Result<Vec<Turn<'c, 'a>>, Unknown> {
    let mut turns = Vec::with_capacity(conversation.messages.len());
    for message in &conversation.messages {
        turns.push(turn(message, takes_parts)?);
    }
    if !knows_developers && turns.iter().any(|turn| turn.role == "developer") {
        for turn in &mut turns {
            if turn.role == "developer" {
                turn.role = "system";
            }
        }
        merge_system(&mut turns);
    }
    Ok(turns)
}

fn turn<'c, 'a>(message: &'c Message<'a>, takes_parts: bool) -> Result<Turn<'c, 'a>, Unknown> {
    let role = message.role.as_ref();
    let seen = |text: &'c str| {
        (role != "system" || !text.starts_with(BILLING_HEADER))
            .then_some(text)
            .or_else(|| text.split_once('\n').map(|(_, rest)| rest).filter(|rest| !rest.is_empty()))
    };
    if let (Content::Text(text), false) = (&message.content, takes_parts) {
        let content = Seen::Text(Cow::Borrowed(seen(text).unwrap_or_default()));
        return Ok(Turn { role, content, message: Some(message) });
    }
    const NONE: &Fields<'static> = &Vec::new();
    let mut parts = Vec::new();
    match &message.content {
        Content::Absent => {}
        Content::Text(text) => parts.extend(seen(text).map(|text| SeenPart::Text(Cow::Borrowed(text), NONE))),
        Content::Parts(all) => {
            for part in all {
                match part {
                    // Whether the line goes depends on more than is known of it.
                    Part::Other { text, .. } if role == "system" && text.starts_with(BILLING_HEADER) => {
                        return Err(Unknown::Feature("billing_header"));
                    }
                    Part::Text { text, extra } | Part::Other { text, extra } | Part::Thought { text, extra, .. } => {
                        parts.extend(seen(text).map(|text| SeenPart::Text(Cow::Borrowed(text), extra)));
                    }
                    Part::Media => parts.push(SeenPart::Media),
                }
            }
        }
    }
    let media = parts.iter().any(|part| matches!(part, SeenPart::Media));
    // Tools' answers are made one text where they are nothing but text.
    let content = if takes_parts && (role != "tool" || media) {
        Seen::Parts(parts)
    } else {
        Seen::Text(joined(parts, takes_parts)?)
    };
    Ok(Turn { role, content, message: Some(message) })
}

/// `keep_empty`: where templates take text, vLLM leaves empty parts out.
fn joined<'c>(mut parts: Vec<SeenPart<'c, '_>>, keep_empty: bool) -> Result<Cow<'c, str>, Unknown> {
    parts.retain(|part| keep_empty || !matches!(part, SeenPart::Text(text, _) if text.is_empty()));
    let texts = parts.into_iter().map(|part| match part {
        SeenPart::Text(text, _) => Ok(text),
        SeenPart::Media => Err(Unknown::Feature("media")),
    });
    let mut texts = texts.collect::<Result<Vec<_>, Unknown>>()?;
    match texts.len() {
        0 => Ok(Cow::Borrowed("")),
        1 => Ok(texts.swap_remove(0)),
        _ => Ok(Cow::Owned(texts.join("\n"))),
    }
}

/// Makes all system messages one, at the beginning, unless there is but one and it is there.
pub(super) fn merge_system(turns: &mut Vec<Turn<'_, '_>>) {
    let mut texts: Vec<String> = Vec::new();
    let mut scattered = false;
    for (place, turn) in turns.iter().enumerate().filter(|(_, turn)| turn.role == "system") {
        scattered |= place > 0 || !texts.is_empty();
        let text = turn.content.text();
        if !text.is_empty() {
            texts.push(text);
        }
    }
    if scattered {
        turns.retain(|turn| turn.role != "system");
        let content = Seen::Text(Cow::Owned(texts.join("\n\n")));
        turns.insert(0, Turn { role: "system", content, message: None });
    }
}

impl Seen<'_, '_> {
    fn text(&self) -> String {
        match self {
            Seen::Text(text) => text.to_string(),
            Seen::Parts(parts) => {
                let texts = parts.iter().filter_map(|part| match part {
                    SeenPart::Text(text, _) => Some(text.as_ref()),
                    SeenPart::Media => None,
                });
                texts.collect::<Vec<_>>().join("\n")
            }
        }
    }

    fn value(&self) -> Value {
        match self {
            Seen::Text(text) => Value::from(text.as_ref()),
            Seen::Parts(parts) => list(parts.iter().map(SeenPart::value).collect()),
        }
    }
}

impl SeenPart<'_, '_> {
    fn value(&self) -> Value {
        match self {
            SeenPart::Text(text, extra) => {
                let mut fields = vec![("type".into(), "text".into()), ("text".into(), Value::from(text.as_ref()))];
                fields.extend(extra.iter().map(|(key, field)| (Value::from(key.as_ref()), value(field))));
                map(fields)
            }
            SeenPart::Media => record([("type", Some("image".into()))]),
        }
    }
}

impl Turn<'_, '_> {
    /// The dict that the template gets.
    ///
    /// # Errors
    /// When a tool call's arguments cannot be told.
    pub fn value(&self) -> Result<Value, Unknown> {
        self.with_content(self.content.value())
    }

    /// The same with another content.
    ///
    /// # Errors
    /// As [`Turn::value`].
    pub fn with_content(&self, content: Value) -> Result<Value, Unknown> {
        let fields = [("role", Some(Value::from(self.role))), ("content", Some(content))];
        let Some(message) = self.message.filter(|message| message.is_more()) else { return Ok(record(fields)) };
        let [role, content] = fields;
        // By the message's own role: a developer's name stays when it becomes a system message, its tools do not.
        let of = |role: &str| message.role == role;
        let calls = message.tool_calls.iter().filter(|_| of("assistant")).map(call);
        let calls = calls.collect::<Result<Vec<_>, Unknown>>()?;
        let text = |text: &Option<Cow<'_, str>>| text.as_deref().map(Value::from);
        let reasoning = message.reasoning.as_ref().map(value).filter(|_| of("assistant"));
        let tools = message.tools.as_ref().map_or(Value::from(()), value);
        Ok(record([
            role,
            content,
            ("tool_calls", (!calls.is_empty()).then(|| list(calls))),
            ("reasoning", reasoning.clone()),
            ("reasoning_content", reasoning),
            ("tool_call_id", text(&message.tool_call_id).filter(|_| of("tool"))),
            ("name", text(&message.name)),
            ("tools", Some(tools).filter(|_| self.role == "developer")),
        ]))
    }
}

impl Message<'_> {
    /// Whether it has more than a role and a content.
    pub fn is_more(&self) -> bool {
        self.role == "developer"
            || self.name.is_some()
            || !self.tool_calls.is_empty()
            || self.tool_call_id.is_some()
            || self.reasoning.is_some()
            || self.tools.is_some()
    }
}

/// Fields in the order of OpenAI's types, by which vLLM reads them; unknown ones behind.
fn call(call: &ToolCall<'_>) -> Result<Value, Unknown> {
    let extra = |fields: &Fields<'_>| {
        fields.iter().map(|(key, field)| (Value::from(key.as_ref()), value(field))).collect::<Vec<_>>()
    };
    let mut function =
        vec![("arguments".into(), value(&call.parsed()?)), ("name".into(), Value::from(call.name.as_ref()))];
    if call.name_first {
        function.reverse();
    }
    function.extend(extra(&call.function_extra));
    let mut fields = vec![
        ("id".into(), Value::from(call.id.as_ref())),
        ("function".into(), map(function)),
        ("type".into(), "function".into()),
    ];
    fields.extend(extra(&call.extra));
    Ok(map(fields))
}

/// The list that the template gets as `messages`.
///
/// # Errors
/// As [`Turn::value`].
pub(super) fn messages(turns: &[Turn<'_, '_>]) -> Result<Value, Unknown> {
    turns.iter().map(Turn::value).collect::<Result<Vec<_>, Unknown>>().map(list)
}

/// A tool as vLLM writes it out again.
pub(super) fn tool(tool: &Tool<'_>) -> Value {
    let text = |text: &Option<Cow<'_, str>>| text.as_deref().map_or(Value::from(()), Value::from);
    let function = record([
        ("name", Some(Value::from(tool.name.as_ref()))),
        ("description", Some(text(&tool.description))),
        ("parameters", Some(tool.parameters.as_ref().map_or(Value::from(()), value))),
        ("strict", tool.strict.map(Value::from)),
        ("defer_loading", tool.defer_loading.or(tool.outer_defer_loading).map(Value::from)),
    ]);
    record([
        ("type", Some("function".into())),
        ("function", Some(function)),
        ("defer_loading", tool.outer_defer_loading.map(Value::from)),
    ])
}

/// Documents, which must be dicts.
///
/// # Errors
/// When they are not: the engine refuses them.
pub(super) fn documents(given: &Json<'_>) -> Result<Value, Unknown> {
    match given {
        Json::List(items) if items.iter().all(|item| matches!(item, Json::Map(_))) => Ok(value(given)),
        _ => Err(Unknown::Malformed),
    }
}
