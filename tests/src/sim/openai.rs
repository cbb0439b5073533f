//! The OpenAI API's requests and replies, as vLLM reads and writes them.

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Why a request was refused, in vLLM's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// What is wrong and what would be right.
    pub message: String,
}

impl Refusal {
    /// 400 with a message.
    pub fn bad(message: impl Into<String>) -> Self {
        Self { status: 400, message: message.into() }
    }

    /// The body that goes with the status.
    pub fn body(&self) -> Value {
        let kind = match self.status {
            403 => "PermissionDeniedError",
            404 => "NotFoundError",
            503 => "ServiceUnavailableError",
            500.. => "InternalServerError",
            _ => "BadRequestError",
        };
        let param = if self.status == 404 { json!("model") } else { Value::Null };
        json!({"error": {"message": self.message, "type": kind, "param": param, "code": self.status}})
    }
}

/// Which of the two APIs was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// POST /v1/completions.
    Completions,
    /// POST /v1/chat/completions.
    Chat,
}

/// The body of a completion or chat completion. Fields that change nothing here are ignored.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Body {
    /// Served model or adapter; the model if absent.
    pub model: Option<String>,
    prompt: Option<Prompt>,
    messages: Option<Vec<Map<String, Value>>>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    n: Option<u16>,
    #[serde(default)]
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    /// Separates the caches of tenants.
    pub cache_salt: Option<String>,
    /// Named in events.
    pub session_id: Option<String>,
    temperature: Option<f64>,
    tools: Option<Value>,
    documents: Option<Value>,
    add_generation_prompt: Option<bool>,
    add_special_tokens: Option<bool>,
    chat_template_kwargs: Option<Map<String, Value>>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    ManyTokens(Vec<Vec<u32>>),
}

/// One prompt, before it is tokenised.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Text; `special`: the tokenizer adds BOS and the like.
    Text {
        /// The prompt.
        text: String,
        /// Whether special tokens are added.
        special: bool,
    },
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
    /// A conversation for the chat template.
    Chat {
        /// Messages with contents as plain strings.
        messages: Value,
        /// Further variables of the template.
        variables: Map<String, Value>,
        /// Whether special tokens are added to the rendered text.
        special: bool,
    },
}

impl Body {
    /// Reads a body. What is not JSON of the right shape is refused as 400.
    pub fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        serde_json::from_slice(bytes).map_err(|error| Refusal::bad(format!("the body is not a valid request: {error}")))
    }

    /// Whether the reply is streamed.
    pub fn stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// Whether a streamed reply ends with a usage chunk.
    pub fn include_usage(&self) -> bool {
        self.stream_options.unwrap_or_default().include_usage.unwrap_or(false)
    }

    /// Whether equal prompts give equal texts.
    pub fn greedy(&self) -> bool {
        self.temperature == Some(0.0)
    }

    /// Choices per prompt.
    pub fn choices(&self) -> Result<usize, Refusal> {
        match self.n {
            Some(0) => Err(Refusal::bad("n must be at least 1, got 0.")),
            n => Ok(n.map_or(1, usize::from)),
        }
    }

    /// Tokens to generate for each choice.
    pub fn max_tokens(&self) -> Result<usize, Refusal> {
        let tokens = self.max_completion_tokens.or(self.max_tokens).unwrap_or(16);
        usize::try_from(tokens)
            .ok()
            .filter(|&tokens| tokens > 0)
            .ok_or_else(|| Refusal::bad(format!("max_tokens must be at least 1, got {tokens}.")))
    }

    /// The prompts. `by_content`: look for messages or prompt whichever is there (for /tokenize).
    pub fn inputs(self, api: Option<Api>) -> Result<Vec<Input>, Refusal> {
        let chat = match api {
            Some(api) => api == Api::Chat,
            None => self.messages.is_some(),
        };
        if chat {
            let Some(messages) = self.messages else {
                return Err(Refusal::bad("messages: field required"));
            };
            if messages.is_empty() {
                return Err(Refusal::bad("messages: at least one message is needed"));
            }
            let messages = messages.into_iter().map(plain).collect::<Result<_, _>>()?;
            let mut variables = Map::new();
            variables.insert("add_generation_prompt".into(), self.add_generation_prompt.unwrap_or(true).into());
            variables.extend(self.tools.map(|tools| ("tools".into(), tools)));
            variables.extend(self.documents.map(|documents| ("documents".into(), documents)));
            variables.extend(self.chat_template_kwargs.unwrap_or_default());
            let special = self.add_special_tokens.unwrap_or(false);
            return Ok(vec![Input::Chat { messages: Value::Array(messages), variables, special }]);
        }
        let special = self.add_special_tokens.unwrap_or(true);
        let inputs: Vec<Input> = match self.prompt {
            None => return Err(Refusal::bad("prompt: field required")),
            Some(Prompt::Text(text)) => vec![Input::Text { text, special }],
            Some(Prompt::Texts(texts)) => texts.into_iter().map(|text| Input::Text { text, special }).collect(),
            Some(Prompt::Tokens(tokens)) => vec![Input::Tokens(tokens)],
            Some(Prompt::ManyTokens(prompts)) => prompts.into_iter().map(Input::Tokens).collect(),
        };
        if inputs.is_empty() {
            return Err(Refusal::bad("prompt: at least one prompt is needed"));
        }
        Ok(inputs)
    }
}

/// A message as templates with string contents get it: text parts joined by newlines, no content
/// as the empty string.
fn plain(mut message: Map<String, Value>) -> Result<Value, Refusal> {
    if !message.get("role").is_some_and(Value::is_string) {
        return Err(Refusal::bad("messages: every message needs a role"));
    }
    let content = match message.get("content") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts: Result<Vec<&str>, Refusal> = parts.iter().map(part).collect();
            texts?.join("\n")
        }
        Some(_) => {
            return Err(Refusal::bad("messages: content must be a string, a list of parts, or null"));
        }
    };
    message.insert("content".into(), content.into());
    Ok(Value::Object(message))
}

fn part(part: &Value) -> Result<&str, Refusal> {
    let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
    let key = match kind {
        "text" | "input_text" | "output_text" => "text",
        "refusal" | "thinking" => kind,
        _ => return Err(Refusal::bad(format!("At most 0 {kind} part(s) may be provided in one prompt."))),
    };
    match part {
        Value::String(text) => Ok(text),
        part => part
            .get(key)
            .and_then(Value::as_str)
            .ok_or_else(|| Refusal::bad(format!("messages: a {kind} part needs a string in {key}"))),
    }
}

/// Token counts of one HTTP request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of all its prompts.
    pub prompt: usize,
    /// Tokens generated, over all choices.
    pub completion: usize,
    /// Prompt tokens found in the cache.
    pub cached: usize,
}

impl Usage {
    fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "total_tokens": self.prompt + self.completion,
            "completion_tokens": self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }
}

/// Writes the replies to one request.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The API that was called.
    pub api: Api,
    /// `id` of the reply.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// Model or adapter, as requested.
    pub model: String,
}

impl Reply {
    fn envelope(&self, chunk: bool, choices: Value) -> Value {
        let object = match (self.api, chunk) {
            (Api::Completions, _) => "text_completion",
            (Api::Chat, false) => "chat.completion",
            (Api::Chat, true) => "chat.completion.chunk",
        };
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    /// The whole reply, with the text of each choice.
    pub fn whole(&self, texts: &[String], usage: Usage) -> Value {
        let choices = texts.iter().enumerate().map(|(index, text)| match self.api {
            Api::Completions => json!({
                "index": index, "text": text, "logprobs": null,
                "finish_reason": "length", "stop_reason": null, "prompt_logprobs": null,
            }),
            Api::Chat => json!({
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": null, "reasoning": null},
                "logprobs": null, "finish_reason": "length", "stop_reason": null,
            }),
        });
        let mut reply = self.envelope(false, choices.collect());
        reply["usage"] = usage.json();
        reply
    }

    /// The chunk that opens a choice of a streamed chat, at its first token.
    pub fn role(&self, choice: usize) -> Value {
        let delta = json!({"role": "assistant", "content": ""});
        let choice = json!({"index": choice, "delta": delta, "logprobs": null, "finish_reason": null});
        self.envelope(true, json!([choice]))
    }

    /// The chunk of one token.
    pub fn token(&self, choice: usize, text: &str, finished: bool) -> Value {
        let reason = if finished { json!("length") } else { Value::Null };
        let choice = match self.api {
            Api::Completions => json!({
                "index": choice, "text": text, "logprobs": null,
                "finish_reason": reason, "stop_reason": null,
            }),
            Api::Chat => json!({
                "index": choice, "delta": {"content": text}, "logprobs": null, "finish_reason": reason,
            }),
        };
        self.envelope(true, json!([choice]))
    }

    /// The chunk after the last token, for those who asked for it.
    pub fn usage(&self, usage: Usage) -> Value {
        let mut chunk = self.envelope(true, json!([]));
        chunk["usage"] = usage.json();
        chunk
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(body: &str) -> Result<Value, Refusal> {
        match Body::read(body.as_bytes())?.inputs(Some(Api::Chat))?.remove(0) {
            Input::Chat { messages, .. } => Ok(messages),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn text_parts_are_joined_by_newlines_and_null_content_is_empty() {
        let got = messages(
            r#"{"messages":[
                {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
                {"role":"assistant","content":null},
                {"role":"user","content":"c"}]}"#,
        )
        .unwrap();
        assert_eq!(got[0]["content"], "a\nb");
        assert_eq!(got[1]["content"], "");
        assert_eq!(got[2]["content"], "c");
    }

    #[test]
    fn what_a_text_model_cannot_read_is_refused_as_400() {
        for body in [
            r#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]}"#,
            r#"{"messages":[{"content":"no role"}]}"#,
            r#"{"messages":[]}"#,
            r#"{"messages":"hello"}"#,
            r#"{}"#,
            r#"{"messages":["#,
            "\u{1f}\u{8b}\u{8}",
        ] {
            assert_eq!(messages(body).unwrap_err().status, 400, "{body}");
        }
    }

    #[test]
    fn every_form_of_prompt_is_read() {
        let inputs = |prompt: &str| {
            Body::read(format!(r#"{{"prompt":{prompt}}}"#).as_bytes()).unwrap().inputs(Some(Api::Completions))
        };
        let text = |text: &str| Input::Text { text: text.into(), special: true };
        assert_eq!(inputs(r#""a""#).unwrap(), [text("a")]);
        assert_eq!(inputs(r#"["a","b"]"#).unwrap(), [text("a"), text("b")]);
        assert_eq!(inputs("[1,2]").unwrap(), [Input::Tokens(vec![1, 2])]);
        assert_eq!(inputs("[[1],[2]]").unwrap(), [Input::Tokens(vec![1]), Input::Tokens(vec![2])]);
        assert!(inputs("[]").is_err());
    }
}
