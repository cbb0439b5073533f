//! Holds prompts against what vLLM was recorded to make of the same bodies: `tests/conformance/apis.py`.

use super::json::Json;
use super::json_text::{self, Style};
use super::{Api, Prompts};
use crate::profile::{Profile, Profiles, Renderer, Template};

const TEMPLATE: &str = include_str!("../../../tests/conformance/apis.jinja");
const RECORDING: &str = include_str!("../../../tests/fixtures/conformance/apis.jsonl");
/// As in `apis.py`.
const SYSTEM_FIRST: &str = "\
{%- for message in messages[1:] %}
    {%- if message.role == 'system' %}{{ raise_exception('system messages come first') }}{% endif %}
{%- endfor %}
";

/// A model for each setting of the recording.
fn prompts() -> Prompts {
    let model = |setting: &str| {
        let before = if setting == "system first" { SYSTEM_FIRST } else { "" };
        let source = before.to_owned() + TEMPLATE;
        let template = Template { name: "default".into(), source, takes_parts: setting == "parts" };
        Profile { name: setting.into(), renderer: Renderer::Jinja(vec![template]), ..Profile::default() }
    };
    let (prompts, failed) = Prompts::new(Profiles { models: ["text", "parts", "system first"].map(model).to_vec() });
    assert_eq!(failed, []);
    prompts
}

#[test]
fn prompts_are_what_vllm_makes_of_the_same_bodies() {
    let prompts = prompts();
    let (mut exact, mut declined, mut refused) = (0, 0, 0);
    for line in RECORDING.lines() {
        let line = Json::parse(line).unwrap();
        let text = |key| line.get(key).and_then(Json::as_str);
        let Some(Json::Map(mut request)) = line.get("request").cloned() else { panic!("no request") };
        let setting = text("setting").unwrap();
        request.iter_mut().find(|(key, _)| key == "model").unwrap().1 = Json::Text(setting.into());
        let mut body = String::new();
        json_text::write(&Json::Map(request), &Style::PLAIN, &mut body);
        let read = prompts.read(Api::of_path(text("path").unwrap()).unwrap(), body.as_bytes(), 0);
        match (read.prompt, text("text")) {
            (Ok(ours), Some(theirs)) => {
                assert_eq!(String::from_utf8(ours.bytes).unwrap(), theirs, "{setting} {body}");
                exact += 1;
            }
            (Err(_), Some(_)) => declined += 1,
            (_, None) => refused += 1,
        }
    }
    assert_eq!((exact, declined, refused), (249, 24, 27));
}
