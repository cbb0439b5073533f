//! The commands `prompt` and `profile` as people run them: exit status, standard output, standard error.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const TURN: &str = "<|im_start|>user\nhi ü<|im_end|>\n<|im_start|>assistant\n";

struct Ran {
    code: i32,
    out: Vec<u8>,
    log: String,
}

impl Ran {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }
}

fn run(arguments: &[&str], input: &str) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warmpath-indexer"));
    command
        .args(arguments)
        .env("TZ", "Asia/Kolkata")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that ends before it reads has said why.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Ran { code: output.status.code().unwrap(), out: output.stdout, log: String::from_utf8(output.stderr).unwrap() }
}

fn tiny() -> String {
    format!("{}/../tests/fixtures/tokenizer", env!("CARGO_MANIFEST_DIR"))
}

/// The test model with another template.
fn with_template(name: &str, template: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(Path::new(&tiny()).join(file), folder.join(file)).unwrap();
    }
    fs::write(folder.join("chat_template.jinja"), template).unwrap();
    folder
}

fn prompt(folder: &Path, more: &[&str], body: &Value) -> Ran {
    let folder = folder.to_str().unwrap();
    run(&[&["prompt", "--model-dir", folder], more].concat(), &body.to_string())
}

fn user(content: impl Into<Value>) -> Value {
    json!({"model": "whatever", "messages": [{"role": "user", "content": content.into()}]})
}

#[test]
fn an_exact_prompt_is_written_and_nothing_else() {
    let ran = prompt(Path::new(&tiny()), &[], &user("hi ü"));
    assert_eq!((ran.code, ran.text(), ran.log.as_str()), (0, TURN, "exact: 55 bytes\n"));
    let ran = prompt(Path::new(&tiny()), &["--endpoint-path", "/v1/completions"], &json!({"prompt": "a\n"}));
    assert_eq!((ran.code, ran.text()), (0, "a\n"));
    // A part of the folder will do.
    let ran = prompt(&Path::new(&tiny()).join("tokenizer.json"), &[], &user("hi ü"));
    assert_eq!((ran.code, ran.text()), (0, TURN));
}

#[test]
fn of_a_prompt_known_in_part_the_known_part_is_written() {
    let image = json!({"type": "image_url", "image_url": {"url": "http://example.com/x.png"}});
    let ran = prompt(Path::new(&tiny()), &[], &user(vec![json!({"type": "text", "text": "a"}), image]));
    assert_eq!((ran.code, ran.text()), (3, "<|im_start|>user\n"));
    assert!(ran.log.starts_with("declined: media: ") && ran.log.contains("17 bytes"), "{}", ran.log);
}

#[test]
fn what_is_not_known_is_declined_with_the_reason() {
    let refuses = with_template("refuses", "{{ raise_exception('no') }}");
    let broken = with_template("broken", "{% if %}");
    let tiny = PathBuf::from(tiny());
    let chat = "/v1/chat/completions";
    for (folder, path, body, word) in [
        (&tiny, "/v1/completions", json!({"prompt": [1, 2]}), "token_ids"),
        (&tiny, chat, json!({"messages": [], "chat_template": "x"}), "chat_template"),
        (&tiny, chat, json!({"messages": "hello"}), "malformed"),
        (&tiny, chat, json!({"prompt": "hello"}), "malformed"),
        (&refuses, chat, user("hi"), "template"),
        (&broken, chat, user("hi"), "template"),
    ] {
        let ran = prompt(folder, &["--endpoint-path", path], &body);
        assert_eq!((ran.code, ran.text()), (3, ""), "{body}");
        assert!(ran.log.contains(&format!("declined: {word}: ")), "{body}: {}", ran.log);
    }
    let note = prompt(&broken, &[], &user("hi")).log;
    assert!(note.starts_with("note: no chat prompt can be predicted"), "{note}");
    // What engines' JSON reader takes and ours does not is no bad input.
    let lone = run(
        &["prompt", "--model-dir", tiny.to_str().unwrap()],
        r#"{"messages": [{"role": "user", "content": "\ud800"}]}"#,
    );
    assert_eq!(lone.code, 3, "{}", lone.log);
}

#[test]
fn bad_input_says_what_is_wrong() {
    let tiny = tiny();
    let body = user("hi").to_string();
    for (arguments, input, expected) in [
        (vec!["--model-dir", &tiny], "nope", "not JSON"),
        (vec!["--model-dir", &tiny], "", "standard input is empty"),
        (vec!["--model-dir", &tiny], "[]", "not a JSON object"),
        (vec!["--model-dir", "/nowhere"], &body, "/nowhere"),
        (vec!["--model-dir", &tiny, "--endpoint-path", "/v1/models"], &body, "/v1/completions"),
        (vec!["--model-dir", &tiny, "--time-zone", "Mars"], &body, "Europe/Berlin"),
        (vec!["--model-dir", &tiny, "--now", "noon"], &body, "2026-11-20T12:00:00Z"),
        (vec!["--model-dir", &tiny, "--chat-template", "/nowhere"], &body, "/nowhere"),
        (vec!["--model-dir", &tiny, "--default-chat-template-kwargs", "5"], &body, "JSON object"),
        (vec!["--model-dir", "tiktoken:none"], &body, "o200k_harmony"),
        (vec![], &body, "--model-dir"),
    ] {
        let ran = run(&[vec!["prompt"], arguments.clone()].concat(), input);
        assert_eq!((ran.code, ran.text()), (1, ""), "{arguments:?}");
        assert!(ran.log.contains(expected), "{arguments:?}: {}", ran.log);
    }
}

#[test]
fn the_engines_options_count() {
    let folder = with_template("options", "{{ strftime_now('%d %B %H') }} {{ mood }} {{ messages[0].content }}");
    let of = |more: &[&str], body: &Value| {
        let ran = prompt(&folder, &[&["--now", "2026-07-01T22:10:00Z"], more].concat(), body);
        assert_eq!(ran.code, 0, "{}", ran.log);
        ran.text().to_owned()
    };
    assert_eq!(of(&["--time-zone", "UTC"], &user("x")), "01 July 22  x");
    assert_eq!(of(&["--time-zone", "Europe/Berlin"], &user("x")), "02 July 00  x");
    assert_eq!(of(&["--time-zone", "-03:00"], &user("x")), "01 July 19  x");
    assert_eq!(of(&[], &user("x")), "02 July 03  x", "the machine's own zone");
    let kwargs = ["--time-zone", "UTC", "--default-chat-template-kwargs", r#"{"mood": "glad"}"#];
    assert_eq!(of(&kwargs, &user("x")), "01 July 22 glad x");
    let parts = ["--time-zone", "UTC", "--content-format", "openai"];
    assert_eq!(of(&parts, &user("x")), "01 July 22  [{'type': 'text', 'text': 'x'}]");

    let tiny = PathBuf::from(tiny());
    let template = folder.join("chat_template.jinja");
    let ran =
        prompt(&tiny, &["--chat-template", template.to_str().unwrap(), "--now", "0", "--time-zone", "UTC"], &user("x"));
    assert_eq!((ran.code, ran.text()), (3, ""), "hours are not sure on the hour: {}", ran.log);
    let own = json!({"messages": [{"role": "user", "content": "x"}], "chat_template": "own {{ messages[0].content }}"});
    assert_eq!(prompt(&tiny, &["--trust-request-chat-template"], &own).text(), "own x");
    let ids = json!({"prompt": [1, 258]});
    let ran = prompt(&tiny, &["--token-ids", "--endpoint-path", "/v1/completions"], &ids);
    assert_eq!((ran.code, ran.out), (0, vec![1, 0, 0, 0, 2, 1, 0, 0]));
}

#[test]
fn a_profile_is_shown_with_its_self_test() {
    let ran = run(&["profile", &tiny()], "");
    assert_eq!(ran.code, 0, "{}", ran.log);
    for expected in ["4096 tokens, byte-level BPE", "default: content format string, compiles", "eos_token", "passed: "]
    {
        assert!(ran.text().contains(expected), "{expected}: {}", ran.text());
    }
    let broken = with_template("broken-profile", "{% if %}");
    let ran = run(&["profile", broken.to_str().unwrap(), "--json"], "");
    let page: Value = serde_json::from_slice(&ran.out).unwrap();
    assert_eq!((ran.code, &page["self_test"]["result"]), (1, &json!("passed")));
    assert_eq!(page["templates"][0]["compiles"], json!(false));
    assert!(page["templates"][0]["why_not"].is_string(), "{page}");
    let ran = run(&["profile", "/nowhere"], "");
    assert_eq!((ran.code, ran.text()), (1, ""));
    assert!(ran.log.contains("/nowhere"), "{}", ran.log);
}

#[test]
fn help_lists_the_reasons() {
    let ran = run(&["prompt", "--help"], "");
    assert!(ran.code == 0 && ran.text().contains("previous_response_id"), "{}", ran.text());
}
