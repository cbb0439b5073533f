//! Golden vectors of `cargo xtask conformance --write-golden`: requests whose prompts a real vLLM has rendered.

use serde_json::Value;
use warmpath_tests::conformance::{Ours, Renders};

#[test]
fn templates_print_what_they_print_in_vllm() {
    let (mut template, mut renders) = (String::new(), None);
    let (mut exact, mut wrong) = (0, Vec::new());
    for line in include_str!("../fixtures/conformance/templates.jsonl").lines().skip(1) {
        let line: Value = serde_json::from_str(line).unwrap();
        if let Some(source) = line["source"].as_str() {
            template = line["template"].as_str().unwrap().to_owned();
            renders = Some(Renders::jinja(source));
            continue;
        }
        let (renders, body) = (renders.as_ref().unwrap(), line["body"].as_str().unwrap());
        // The second time from what is remembered of the first.
        for _ in 0..2 {
            match renders.read(body, line["now"].as_i64().unwrap()) {
                Ours::Text(text) if line["text"] == text => exact += 1,
                Ours::Declined(why) if line["declined"] == why => {}
                ours => wrong.push(format!("{template}: {body}\n  ours   {ours:?}\n  theirs {}", line["text"])),
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), wrong.len() + exact, wrong.join("\n"));
    assert!(exact > 0);
}
