//! The indexer asks the engines themselves: what they serve, and which tokens they make of a prompt.

use super::{chat, engine, post};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use warmpath_tests::harness::{Indexer, Reply, Stack, StackOptions, eventually};
use warmpath_tests::sim::fixture_tokenizer;

const PATIENCE: Duration = Duration::from_secs(20);
const DEBUG: [(&str, &str); 1] = [("x-warmpath-debug", "1")];

/// How many endpoints have this result.
async fn results(indexer: &Indexer, result: &str) -> anyhow::Result<u64> {
    let page = indexer.metrics().await?;
    let name = format!("warmpath_indexer_profile_selftest{{model=\"tiny\",result=\"{result}\"}} ");
    Ok(page.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or(0))
}

async fn until(stack: &Stack, result: &str, endpoints: u64) {
    let what = format!("{endpoints} self-tests are {result}");
    eventually(&what, PATIENCE, async || Ok(results(&stack.indexer, result).await? == endpoints)).await.unwrap();
}

/// Asks until the filter says this of the prompt.
async fn until_prompt_is(stack: &Stack, body: &Value, expected: &str) -> Reply {
    let mut last = None;
    eventually(&format!("prompts are {expected}"), PATIENCE, async || {
        let reply = post(stack, body, &DEBUG).await;
        let is = reply.header("x-warmpath-prompt") == Some(expected);
        last = Some(reply);
        Ok(is)
    })
    .await
    .unwrap();
    last.unwrap()
}

/// A copy of the test model's folder, with a template that says something else.
fn other_template(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixture_tokenizer().join(file), folder.join(file)).unwrap();
    }
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}";
    fs::write(folder.join("chat_template.jinja"), template).unwrap();
    folder
}

#[tokio::test]
async fn engines_with_another_template_switch_the_profile_off_until_all_have_the_right_one() {
    let folder = other_template("other-template");
    let flags = ["--scale-out", "--tokenizer", folder.to_str().unwrap()].map(str::to_owned).to_vec();
    let mut stack = Stack::start(StackOptions { engine_flags: flags, ..StackOptions::default() }).await.unwrap();
    until(&stack, "failed", 2).await;
    let body = chat("A system prompt.", "A question?", 1);
    let reply = until_prompt_is(&stack, &body, "self_test").await;
    engine(&reply);
    // Placed all the same, by its load.
    assert_eq!(reply.header("x-warmpath-hit-tokens"), Some("0"), "{reply:?}");
    let log = stack.indexer.process.log();
    for expected in ["self-test failed", "a chat of one message", "from byte 16 on", "user: What is the weather"] {
        assert!(log.contains(expected), "{expected}: {log}");
    }

    fs::remove_file(folder.join("chat_template.jinja")).unwrap();
    stack.engines[0].restart().await.unwrap();
    until(&stack, "passed", 1).await;
    assert_eq!(results(&stack.indexer, "failed").await.unwrap(), 1);
    until_prompt_is(&stack, &body, "self_test").await;
    stack.engines[1].restart().await.unwrap();
    until(&stack, "passed", 2).await;
    until_prompt_is(&stack, &body, "exact").await;
}

#[tokio::test]
async fn engines_without_render_are_tested_by_tokenize_and_name_their_adapters() {
    let engine_flags = ["--lora", "ada"].map(str::to_owned).to_vec();
    let stack = Stack::start(StackOptions { engine_flags, ..StackOptions::default() }).await.unwrap();
    until(&stack, "passed", 2).await;
    let mut body = chat("A system prompt.", "A question?", 1);
    body["model"] = json!("ada");
    engine(&until_prompt_is(&stack, &body, "exact").await);
    body["model"] = json!("eva");
    let reply = post(&stack, &body, &DEBUG).await;
    assert_eq!((reply.status, reply.header("x-warmpath-prompt")), (404, Some("model")), "{reply:?}");
}

#[tokio::test]
async fn the_self_test_can_be_switched_off() {
    let folder = other_template("another-template");
    let engine_flags = ["--tokenizer", folder.to_str().unwrap()].map(str::to_owned).to_vec();
    let model = json!({"name": "tiny", "tokenizer": fixture_tokenizer(), "self_test": false});
    let indexer = json!({"models": [model]});
    let stack = Stack::start(StackOptions { engine_flags, indexer, ..StackOptions::default() }).await.unwrap();
    until_prompt_is(&stack, &chat("A system prompt.", "A question?", 1), "exact").await;
    assert_eq!(results(&stack.indexer, "untested").await.unwrap(), 2);
}
