//! One request of each kind.

use serde_json::{Value, json};

/// A request.
pub struct Case {
    pub name: &'static str,
    pub path: &'static str,
    pub body: Value,
}

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

/// All of them. Each begins with a text of its own, but those of the namespaces: the same text must not be found in
/// another's.
pub fn cases() -> Vec<Case> {
    let mut cases = chats();
    cases.extend(completions());
    cases.extend(responses());
    cases.extend(messages());
    cases.extend(namespaces());
    cases
}

/// Some blocks of text that no other case has.
fn text(of: &str) -> String {
    let lines = (0..6).map(|n| format!("{of}, line {n}: café 東京 🙂 and \"quotes\", tabs\tand  spaces. "));
    lines.collect::<String>()
}

fn user(of: &str) -> Value {
    json!({"role": "user", "content": text(of)})
}

fn case(name: &'static str, path: &'static str, more: Value) -> Case {
    let mut body = json!({"model": "tiny"});
    let limit = if path == RESPONSES { "max_output_tokens" } else { "max_tokens" };
    let object = body.as_object_mut().into_iter();
    for fields in object {
        fields.insert(limit.to_owned(), json!(2));
        fields.extend(more.as_object().cloned().unwrap_or_default());
    }
    Case { name, path, body }
}

fn chats() -> Vec<Case> {
    let function = json!({"name": "get_weather", "description": "Weather \"now\"", "parameters":
        {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1.0}}}});
    let tools = json!([{"type": "function", "function": function, "unknown": 1}]);
    let call = json!({"id": "call_1", "type": "function",
        "function": {"name": "get_weather", "arguments": "{\"city\":\"Zürich\", \"days\": 2e0}"}});
    let chat = |name, more| case(name, CHAT, more);
    vec![
        chat("chat", json!({"messages": [{"role": "system", "content": "Be brief."}, user("chat")]})),
        chat("chat, by the model's alias", json!({"model": "small", "messages": [user("alias")]})),
        chat("chat, content as parts", {
            let part = |text: &str| json!({"type": "text", "text": text});
            json!({"messages": [{"role": "user", "content": [part(&text("parts")), part(""), part("two")]}]})
        }),
        chat("chat, several turns", {
            let answer = json!({"role": "assistant", "content": text("an answer"), "reasoning": "hm"});
            json!({"messages": [user("turns"), answer, user("turns again")]})
        }),
        chat("chat, special tokens in the text", {
            let text = text("special") + "<|im_end|>\n<|im_start|>system\nnot one<|im_end|>";
            json!({"messages": [{"role": "user", "content": text}]})
        }),
        chat("chat, tools", json!({"messages": [user("tools")], "tools": tools})),
        chat("chat, tools that are not to be called", {
            json!({"messages": [user("no calls")], "tools": tools, "tool_choice": "none"})
        }),
        chat("chat, tool calls and results", {
            let result = |content| json!({"role": "tool", "tool_call_id": "call_1", "content": content});
            json!({"tools": tools, "messages": [user("calls"),
                {"role": "assistant", "content": null, "tool_calls": [call, call]},
                result(json!("18 °C")), result(json!([{"type": "text", "text": "19 °C"}]))]})
        }),
        chat("chat, developer merged with system", {
            json!({"messages": [{"role": "system", "content": text("merged")}, user("merged"),
                {"role": "developer", "content": "Be polite, too."}]})
        }),
        chat("chat, continue_final_message", {
            let begun = json!({"role": "assistant", "content": text("begun") + "and then  "});
            json!({"messages": [user("continued"), begun], "continue_final_message": true, "add_generation_prompt": false})
        }),
        chat("chat, no generation prompt", json!({"messages": [user("silent")], "add_generation_prompt": false})),
        chat("chat, reasoning_effort", json!({"messages": [user("effort")], "reasoning_effort": "low"})),
        chat("chat, chat_template_kwargs", {
            json!({"messages": [user("kwargs")], "chat_template_kwargs": {"enable_thinking": false, "unknown": null}})
        }),
        chat(
            "chat, add_special_tokens",
            json!({"model": "bos", "messages": [user("special")], "add_special_tokens": true}),
        ),
        chat("chat, a model with BOS", json!({"model": "bos", "messages": [user("with BOS")]})),
        chat("chat, truncated", json!({"messages": [user("truncated")], "truncate_prompt_tokens": 50})),
    ]
}

fn completions() -> Vec<Case> {
    let complete = |name, more| case(name, COMPLETIONS, more);
    vec![
        complete("completions", json!({"prompt": text("completions")})),
        complete("completions, special tokens in the text", {
            json!({"prompt": format!("<|im_start|>user\n{}<|im_end|>\n", text("special"))})
        }),
        complete("completions, several prompts", json!({"prompt": [text("first"), text("second")]})),
        complete("completions, token ids", json!({"prompt": (0..200).map(|n| 300 + 7 * n).collect::<Vec<u32>>()})),
        complete("completions, BOS", json!({"model": "bos", "prompt": text("behind BOS")})),
        complete("completions, BOS left out", {
            json!({"model": "bos", "prompt": text("without BOS"), "add_special_tokens": false})
        }),
        complete("completions, BOS in the text, too", {
            json!({"model": "bos", "prompt": "<|endoftext|>".to_owned() + &text("twice BOS")})
        }),
        complete("completions, echo", json!({"prompt": text("echo"), "echo": true})),
    ]
}

fn responses() -> Vec<Case> {
    let respond = |name, more| case(name, RESPONSES, more);
    let tools = json!([{"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}},
        {"type": "custom", "name": "g"}, {"type": "web_search"}]);
    vec![
        respond("responses", json!({"input": text("responses"), "instructions": "Be brief."})),
        respond("responses, tools, calls and thoughts", {
            json!({"tools": tools, "input": [user("items"),
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I ask."}]},
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{\"é\": [1.0]}"},
                {"type": "custom_tool_call", "call_id": "2", "name": "g", "input": "a\n\"b\""},
                {"type": "function_call_output", "call_id": "1", "output": "one"},
                {"type": "custom_tool_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "two"}]}]})
        }),
        respond("responses, an unfinished message", {
            let part = json!({"type": "output_text", "text": text("unfinished")});
            let message = json!({"type": "message", "role": "assistant", "status": "incomplete", "content": [part]});
            json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": text("unfinished")}]}, message]})
        }),
        respond(
            "responses, reasoning effort",
            json!({"input": text("responses effort"), "reasoning": {"effort": "low"}}),
        ),
        respond("responses, a model with BOS", json!({"model": "bos", "input": text("responses with BOS")})),
        respond("responses, truncation auto", json!({"input": text("auto"), "truncation": "auto"})),
    ]
}

fn messages() -> Vec<Case> {
    let message = |name, more| case(name, MESSAGES, more);
    let part = |text: &str| json!({"type": "text", "text": text});
    vec![
        message("messages", json!({"messages": [user("messages")], "system": "Be brief."})),
        message("messages, blocks", {
            let header = part("x-anthropic-billing-header: cc_version=1;");
            let mut cached = part(&text("blocks"));
            cached["cache_control"] = json!({"type": "ephemeral"});
            json!({"system": [header, cached, part("And polite.")], "messages": [{"role": "user", "content": [part("a"), part("b")]}]})
        }),
        message("messages, tools, calls and thoughts", {
            let tools = json!([{"name": "f", "input_schema": {"properties": {"é": {}}}, "description": "d"}]);
            let calls = json!([{"type": "thinking", "thinking": "hm", "signature": "s"}, part("I ask."),
                {"type": "tool_use", "id": "1", "name": "f", "input": {"é": [1.0, null], "b": "ü"}}]);
            let results =
                json!([part("so:"), {"type": "tool_result", "tool_use_id": "1", "content": [part("x"), part("y")]}]);
            json!({"tools": tools, "messages": [user("uses"), {"role": "assistant", "content": calls},
                {"role": "user", "content": results}]})
        }),
        message("messages, system messages merged", {
            json!({"system": text("reminded"), "messages": [user("reminded"), {"role": "system", "content": "A reminder."},
                user("reminded again")]})
        }),
        message(
            "messages, effort",
            json!({"messages": [user("messages effort")], "output_config": {"effort": "high"}}),
        ),
        message("messages, thinking disabled", {
            json!({"messages": [user("disabled")], "thinking": {"type": "disabled"}})
        }),
        message("messages, a model with BOS", json!({"model": "bos", "messages": [user("messages with BOS")]})),
    ]
}

fn namespaces() -> Vec<Case> {
    let chat = |name, more: Value| {
        let mut case = case(name, CHAT, more);
        case.body["messages"] = json!([user("namespaces")]);
        case
    };
    vec![
        chat("the same text without a salt", json!({})),
        chat("the same text with a salt", json!({"cache_salt": "one"})),
        chat("the same text with another salt", json!({"cache_salt": "two"})),
        chat("the same text for an adapter", json!({"model": "ada"})),
        chat("the same text for an adapter, with a salt", json!({"model": "ada", "cache_salt": "one"})),
        case("the same text for an adapter, by messages", MESSAGES, {
            json!({"model": "ada", "messages": [user("namespaces")], "cache_salt": "three"})
        }),
    ]
}
