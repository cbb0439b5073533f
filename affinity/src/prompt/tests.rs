//! Bodies to prompts, through small templates.

use super::*;
use crate::profile::{AddedToken, PrefixSpace, Renderer, Spelling, Template};

const NOW: i64 = 1_700_000_000;
const ONE: &str = r#"{"messages":[{"role":"user","content":"x"}]}"#;
const CHATML: &str = "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\n' + \
    message['content'] + '<|im_end|>' + '\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- \
    '<|im_start|>assistant\n' }}{%- endif %}";

fn jinja(source: &str) -> Renderer {
    Renderer::Jinja(vec![Template { name: "default".into(), source: source.into(), takes_parts: false }])
}

fn prompts() -> Prompts {
    let chat = Profile {
        name: "tiny".into(),
        aliases: vec!["alias".into()],
        adapters: vec!["lora".into()],
        renderer: jinja(CHATML),
        ..Profile::default()
    };
    let bos = Profile { name: "bos".into(), completion_prefix: "<s>".into(), ..Profile::default() };
    let (prompts, failed) = Prompts::new(Profiles { models: vec![chat, bos] });
    assert_eq!(failed, []);
    prompts
}

fn chat(body: &str) -> Result<String, Unknown> {
    prompts().read(Api::Chat, body.as_bytes(), NOW).prompt.map(|c| String::from_utf8(c.bytes).unwrap())
}

#[test]
fn chat_is_rendered_with_the_models_template() {
    let body = r#"{"model":"tiny","messages":[{"role":"system","content":"a\n\"b\""},
        {"role":"user","content":[{"type":"text","text":"c"},{"type":"text","text":"d"}]},
        {"role":"assistant","content":null}],"temperature":0.5,"x":{"y":[1]}}"#;
    assert_eq!(
        chat(body).unwrap(),
        "<|im_start|>system\na\n\"b\"<|im_end|>\n<|im_start|>user\nc\nd<|im_end|>\n\
         <|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant\n"
    );
    let silent = r#"{"model":"tiny","messages":[{"role":"user","content":"x"}],"add_generation_prompt":false}"#;
    assert_eq!(chat(silent).unwrap(), "<|im_start|>user\nx<|im_end|>\n");
}

#[test]
fn completions_take_the_prompt_as_it_is_behind_the_bos_text() {
    let read = |body: &str| {
        prompts().read(Api::Completions, body.as_bytes(), NOW).prompt.map(|c| String::from_utf8(c.bytes).unwrap())
    };
    assert_eq!(read(r#"{"model":"tiny","prompt":" a "}"#).unwrap(), " a ");
    assert_eq!(read(r#"{"model":"bos","prompt":"a"}"#).unwrap(), "<s>a");
    assert_eq!(read(r#"{"model":"bos","prompt":["a","b"]}"#).unwrap(), "<s>a");
    assert_eq!(read(r#"{"model":"bos","prompt":"a","add_special_tokens":false}"#).unwrap(), "a");
    assert_eq!(read(r#"{"model":"tiny","prompt":[1,2]}"#), Err(Unknown::Feature("token_ids")));
    assert_eq!(read(r#"{"model":"tiny","prompt":[[1],[2]]}"#), Err(Unknown::Feature("token_ids")));
    assert_eq!(read(r#"{"model":"tiny"}"#), Err(Unknown::Malformed));
}

#[test]
fn names_adapters_and_salts_choose_the_namespace() {
    let of = |body: &str| {
        let asked = prompts().read(Api::Completions, body.as_bytes(), NOW);
        (asked.model, asked.prompt.unwrap().root)
    };
    let base = of(r#"{"model":"tiny","prompt":"a"}"#);
    assert_eq!(base, (Some(0), root("tiny", None)));
    assert_eq!(of(r#"{"model":"alias","prompt":"a"}"#), base);
    assert_eq!(of(r#"{"model":"lora","prompt":"a"}"#), (Some(0), root("lora", None)));
    assert_eq!(of(r#"{"model":"tiny","prompt":"a","cache_salt":"s"}"#), (Some(0), root("tiny", Some("s"))));
    let other = prompts().read(Api::Completions, br#"{"model":"else","prompt":"a"}"#, NOW);
    assert_eq!((other.model, other.prompt), (None, Err(Unknown::Model)));
}

#[test]
fn the_model_is_known_of_bodies_that_are_not_understood() {
    for (body, model) in [
        (r#"{"model":"bos","messages":[{"role":"user","content":["hi",5]}]}"#, Some(1)),
        (r#"{"messages":[{"content":"\"model\":\"tiny\""}], "model" : "bos", "messages":"#, Some(1)),
        (r#"{"model":"alias","messages":5}"#, Some(0)),
        (r#"{"model":5,"messages":5}"#, None),
        (r#"{"model":"else","messages":5}"#, None),
        (r#"{"model":"bo"#, None),
        ("", None),
    ] {
        let asked = prompts().read(Api::Chat, body.as_bytes(), NOW);
        assert_eq!((asked.model, asked.prompt), (model, Err(Unknown::Malformed)), "{body}");
    }
    let long = format!(r#"{{"messages":[{{"content":"{}"}}],"model":"bos"}}"#, "x".repeat(200_000));
    assert_eq!(prompts().unread(long.as_bytes(), Unknown::Feature("body_too_long")).model, Some(1));
}

#[test]
fn what_is_not_reproduced_is_unknown_and_says_why() {
    let with =
        |field: &str| chat(&format!(r#"{{"model":"tiny","messages":[{{"role":"user","content":"x"}}],{field}}}"#));
    for field in ["suffix", "mm_processor_kwargs", "prompt_embeds", "truncate_prompt_tokens", "prompt_logprobs"] {
        assert_eq!(with(&format!(r#""{field}":[1]"#)), Err(Unknown::Feature(field)));
        assert_eq!(
            with(&format!(r#""{field}":null"#)).unwrap(),
            "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
        );
    }
    assert_eq!(with(r#""chat_template":"x""#), Err(Unknown::Feature("chat_template")));
    assert_eq!(with(r#""chat_template_kwargs":{"tools":[1]}"#), Err(Unknown::Feature("chat_template_kwargs")));
    for refused in [r#""tools":[]"#, r#""tools":[1]"#, r#""documents":[1]"#, r#""continue_final_message":true"#] {
        assert_eq!(with(refused), Err(Unknown::Malformed), "{refused}");
    }
    for bad in ["", "[]", "{", r#"{"model":5}"#, r#"{"model":"tiny","messages":[{"content":"x"}]}"#, "\u{1f}\u{8b}"] {
        assert_eq!(prompts().read(Api::Chat, bad.as_bytes(), NOW).prompt, Err(Unknown::Malformed), "{bad}");
    }
}

#[test]
fn templates_that_cannot_be_known_are_reported_and_their_chats_unknown() {
    for (template, why) in [("{{ messages[:0:-1] }}", "slices"), ("{% if %}", "parsed")] {
        let profile = Profile { name: "m".into(), renderer: jinja(template), ..Profile::default() };
        let (prompts, failed) = Prompts::new(Profiles { models: vec![profile] });
        assert!(failed.len() == 1 && failed[0].1.contains(why), "{failed:?}");
        let asked = prompts.read(Api::Chat, ONE.as_bytes(), NOW);
        assert_eq!((asked.model, asked.prompt), (Some(0), Err(Unknown::Template)));
    }
    let raises = Profile { renderer: jinja("{{ raise_exception('no') }}"), ..Profile::default() };
    let (prompts, _) = Prompts::new(Profiles { models: vec![raises] });
    assert_eq!(prompts.read(Api::Chat, ONE.as_bytes(), NOW).prompt, Err(Unknown::Template));
}

#[test]
fn what_comes_before_an_image_is_known() {
    let image = r#"{"type":"image_url","image_url":{"url":"x"}}"#;
    let body = format!(
        r#"{{"model":"tiny","messages":[{{"role":"system","content":"s"}},{{"role":"user","content":[
        {{"type":"text","text":"before"}},{image},{{"type":"text","text":"behind"}}]}}]}}"#
    );
    let read = |prompts: Prompts| {
        let known = prompts.read(Api::Chat, body.as_bytes(), NOW).prompt.unwrap();
        assert_eq!(known.cut, Some(Unknown::Feature("media")));
        String::from_utf8(known.bytes).unwrap()
    };
    // Text comes behind the image, as it takes its place at the beginning.
    assert_eq!(read(prompts()), "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n");
    let parts = "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{% if p.type == 'image' %}<image>\
        {% else %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}";
    let templates = vec![Template { name: "default".into(), source: parts.into(), takes_parts: true }];
    let profile = Profile { name: "tiny".into(), renderer: Renderer::Jinja(templates), ..Profile::default() };
    assert_eq!(read(Prompts::new(Profiles { models: vec![profile] }).0), "[system]s[user]before");
}

#[test]
fn a_template_that_would_loop_for_ever_is_cut_off() {
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let profile = Profile { renderer: jinja(endless), ..Profile::default() };
    let (prompts, _) = Prompts::new(Profiles { models: vec![profile] });
    assert_eq!(prompts.read(Api::Chat, ONE.as_bytes(), NOW).prompt, Err(Unknown::Template));
}

#[test]
fn texts_are_spelled_before_the_prefix_is_put_there() {
    let added = vec![AddedToken { text: "<|user|>".into(), rstrip: true, ..AddedToken::default() }];
    let spelling = Spelling { added, prefix_space: PrefixSpace::First, ..Spelling::default() };
    let profile = Profile { spelling, completion_prefix: "<s>".into(), ..Profile::default() };
    let (prompts, _) = Prompts::new(Profiles { models: vec![profile] });
    let read = |body: &str| {
        prompts.read(Api::Completions, body.as_bytes(), NOW).prompt.map(|c| String::from_utf8(c.bytes).unwrap())
    };
    assert_eq!(read(r#"{"prompt":"<|user|> x"}"#).unwrap(), "<s><|user|>x");
    assert_eq!(read(r#"{"prompt":"user x"}"#).unwrap(), "<s> user x");
}

#[test]
fn apis_are_told_by_the_end_of_the_path() {
    assert_eq!(Api::of_path("/v1/chat/completions"), Some(Api::Chat));
    assert_eq!(Api::of_path("/team/v1/completions?x=1"), Some(Api::Completions));
    assert_eq!(Api::of_path("/v1/responses"), Some(Api::Responses));
    assert_eq!(Api::of_path("/v1/messages?beta=true"), Some(Api::Messages));
    assert_eq!(Api::of_path("/v1/messages/count_tokens"), None);
    assert_eq!(Api::of_path("/v1/models"), None);
}

/// The prompt of a body for a model of one template.
fn with(template: &str, api: Api, body: &str) -> Result<String, Unknown> {
    let profile = Profile {
        name: "m".into(),
        renderer: jinja(template),
        completion_prefix: "<s>".into(),
        exclude_unused_tools: true,
        ..Profile::default()
    };
    let (prompts, failed) = Prompts::new(Profiles { models: vec![profile] });
    assert_eq!(failed, []);
    prompts.read(api, body.as_bytes(), NOW).prompt.map(|c| String::from_utf8(c.bytes).unwrap())
}

#[test]
fn later_system_messages_are_merged_where_the_template_refuses_them() {
    let body = r#"{"system":"a","messages":[{"role":"user","content":"b"},{"role":"system","content":"c"}]}"#;
    let print = "{% for m in messages %}{{ m.role[0] + m.content }} {% endfor %}";
    let of = |before: &str| with(&[before, print].concat(), Api::Messages, body);
    assert_eq!(of("").unwrap(), "sa ub sc ");
    let refuses =
        "{% for m in messages[1:] %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{% endfor %}";
    assert_eq!(of(refuses).unwrap(), "sac ub ");
    // The engine tries it without what transformers adds to Jinja, and without variables.
    for absent in ["{{ strftime_now('') }}", "{{ bos_token + '' }}", "{% generation %}{% endgeneration %}"] {
        let guarded = format!("{{% if strange %}}{absent}{{% endif %}}");
        assert_eq!(of(&guarded).unwrap() == "sac ub ", absent.contains("generation"), "{absent}");
    }
}

#[test]
fn thinking_is_disabled_as_far_as_the_template_can() {
    let of = |template: &str| {
        with(template, Api::Messages, r#"{"messages":[{"role":"user","content":"x"}],"thinking":{"type":"disabled"}}"#)
    };
    assert_eq!(of("{{ reasoning_effort }} {{ enable_thinking }}").unwrap(), "none False");
    assert_eq!(of("{{ 'low' if reasoning_effort == 'low' else 'high' }}").unwrap(), "low");
    let refuses = "{% if reasoning_effort == 'none' %}{{ raise_exception('no') }}{% endif %}{{ reasoning_effort }}";
    assert_eq!(of(refuses).unwrap(), "low");
}

#[test]
fn only_responses_get_the_tokens_around_a_prompt() {
    let print =
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools | length if tools is not none else 'none' }}";
    let of = |api, body: &str| with(print, api, body).unwrap();
    assert_eq!(of(Api::Responses, r#"{"input":"a","instructions":"b"}"#), "<s>banone");
    assert_eq!(of(Api::Messages, r#"{"messages":[{"role":"user","content":"a"}]}"#), "anone");
    let tool = r#""tools":[{"type":"function","name":"f"}]"#;
    assert_eq!(of(Api::Responses, &format!(r#"{{"input":"a",{tool}}}"#)), "<s>a1");
    assert_eq!(of(Api::Responses, &format!(r#"{{"input":"a",{tool},"tool_choice":"none"}}"#)), "<s>anone");
}
