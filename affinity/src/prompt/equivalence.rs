//! Skeletons against the templates themselves: whatever the messages say, both must spell the same.

use super::spelling::Speller;
use super::templates::Templates;
use super::{Api, Asked, Prompts, Unknown};
use crate::profile::{AddedToken, Profile, Profiles, Renderer, Spelling, SpellingStep, Template};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::cell::Cell;

const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + \
    '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const QWEN: &str = include_str!("../../../tests/fixtures/bench/chat_template.jinja");
const LLAMA3: &str = "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = \
    '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}\
    {% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";
const MISTRAL: &str = "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}\
    {%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}{{- bos_token }}\
    {%- for message in loop_messages %}{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
    {{- raise_exception('roles must alternate, ' + message['content']) }}{%- endif %}{%- if message['role'] == 'user' %}\
    {%- if loop.last and system_message is defined %}{{- '[INST] ' + system_message + '\n\n' + message['content'] + \
    '[/INST]' }}{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}\
    {%- elif message['role'] == 'assistant' %}{{- ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}";
const GEMMA: &str = "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set first_user_prefix = \
    messages[0]['content'] + '\n\n' -%}{%- set loop_messages = messages[1:] -%}{%- else -%}{%- set first_user_prefix \
    = '' -%}{%- set loop_messages = messages -%}{%- endif -%}{%- for message in loop_messages -%}{%- if \
    (message['role'] == 'assistant') -%}{%- set role = 'model' -%}{%- else -%}{%- set role = message['role'] -%}\
    {%- endif -%}{{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else '') }}\
    {%- if message['content'] is string -%}{{ message['content'] | trim }}{%- endif -%}{{ '<end_of_turn>\n' }}\
    {%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}";
/// Macros, captures, namespaces that carry contents, and every use of contents that is on the list.
const MANIFOLD: &str = "{%- macro turn(role, text='none') -%}<{{ role }}>{% if text %}{{ text.strip() ~ '!' }}{% endif \
    %}{%- endmacro -%}{%- set ns = namespace(last='', seen=0) -%}{%- for m in messages | rejectattr('role', 'equalto', \
    'odd') -%}{%- set body -%}[{{ m.get('content', 'x') | default('y') }}]{%- endset -%}{%- set ns.seen = ns.seen + 1 \
    -%}{{ turn(m.role, text=m.content) }}{{ m.name }}{{ body | trim }}{{ turn(text=ns.last, role='was') }}{%- set ns.last = \
    m.content -%}{%- if m.content == 'yes' or 'mag' in m.content or m.content.endswith('?') -%}*{%- elif not m.content \
    -%}-{%- endif -%}{{ m.content.replace('&', 'and').split('##')[-1].lstrip('\n') }}{{ m.content.count('<|') }}\
    {%- if loop.previtem is defined and loop.previtem.content -%}^{%- endif -%}{%- endfor -%}{{ ns.seen }}\
    {{ (ns.last + '.') | trim if ns.last else 'nothing' }}";
const COPYING: [&str; 6] = [CHATML, QWEN, LLAMA3, MISTRAL, GEMMA, MANIFOLD];

/// Each does one thing more with contents than to copy them.
const MORE: [&str; 22] = [
    "{% for m in messages %}{{ m.content | length }}{% endfor %}",
    "{% for m in messages %}{{ m.content[:5] }}{% endfor %}",
    "{% for m in messages %}{{ m.content[0] }}{% endfor %}",
    "{% for m in messages %}{{ m['con' + 'tent'] | upper }}{% endfor %}",
    "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    "{% for m in messages %}{{ m.content.title() }}{% endfor %}",
    "{% for m in messages %}{{ m.content | tojson }}{% endfor %}",
    "{% for m in messages %}{{ m.content.strip('x') }}{% endfor %}",
    "{% for m in messages %}{{ m.content | replace(m.role, '') }}{% endfor %}",
    "{% for m in messages %}{{ m.content.split() | join('-') }}{% endfor %}",
    "{% for m in messages %}{% if m.content > 'text' %}>{% endif %}{% endfor %}",
    "{% for m in messages %}{% if m.content == messages[0].content %}={% endif %}{% endfor %}",
    "{% for m in messages %}{% if m.content in ['text', 'x'] %}={% endif %}{% endfor %}",
    "{% for m in messages %}{% if 'xx' in m.content + 'x' %}={% endif %}{% endfor %}",
    "{% for m in messages %}{{ '%s' | format(m.content) }}{% endfor %}",
    "{% for m in messages %}{% for c in m.values() %}{{ c | upper }}{% endfor %}{% endfor %}",
    "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t + m.content %}{% endfor %}{{ ns.t | length }}",
    "{% macro f(x) %}{{ x | length }}{% endmacro %}{% for m in messages %}{{ f(m.content) }}{% endfor %}",
    "{% macro f(x) %}{{ x }}{% endmacro %}{% for m in messages %}{{ f(m.content) | length }}{% endfor %}",
    "{% for m in messages %}{% set x %}{{ m.content }}{% endset %}{{ x | reverse }}{% endfor %}",
    "{{ messages | map(attribute='content') | join(',') | upper }}",
    "{{ messages | tojson }}",
];

fn prompts(template: &str, skeletons: bool) -> Prompts {
    let profile = Profile {
        renderer: Renderer::Jinja(vec![Template {
            name: "default".into(),
            source: template.into(),
            takes_parts: false,
        }]),
        special_tokens: vec![("bos_token".into(), "<s>".into()), ("eos_token".into(), "</s>".into())],
        ..Profile::default()
    };
    let profiles = Profiles { models: vec![profile] };
    let (templates, failed) = Templates::new(&profiles);
    assert_eq!(failed, [], "{template}");
    Prompts {
        profiles,
        templates: if skeletons { templates } else { templates.without_skeletons() },
        mistral: Vec::new(),
        disabled_efforts: Vec::new(),
        spellers: Vec::new(),
        spare: Cell::default(),
    }
}

/// Contents that come close to what templates look for, to what skeletons are made of, and to nothing.
fn content() -> impl Strategy<Value = String> {
    let words = [
        "text",
        "a",
        "x",
        "yes",
        "?",
        " ",
        "\n",
        "\t",
        "\u{a0}",
        "</think>",
        "<think>",
        "</thi",
        "nk>",
        "<tool_response>",
        "</tool_response>",
        "##",
        "#",
        "&",
        "mag",
        "<|im_end|>",
        "<|",
        "</s>",
        "{{ messages }}",
        "{% if %}",
        "naïve “é” 🙂",
        "\u{F8E0}0\u{F8E1}",
        "\u{F8E0}",
        "1\u{F8E1}",
        "\u{F8E3}",
    ];
    prop_oneof![
        3 => Just(String::new()),
        9 => prop::sample::select(vec!["Hello, world", "two\n\nlines", "{\"a\": 1}", "ünï", "\u{F8E0}1\u{F8E1}"]).prop_map(String::from),
        6 => prop::collection::vec(prop::sample::select(words.to_vec()), 0..5).prop_map(|words| words.concat()),
        1 => any::<String>(),
    ]
}

fn message() -> impl Strategy<Value = Value> {
    let role = prop_oneof![8 => Just("user"), 8 => Just("assistant"), 3 => Just("system"), 1 => Just("odd"), 1 => Just("\u{F8E0}0\u{F8E1}")];
    (role, content(), 0..20).prop_map(|(role, content, extra)| match extra {
        0 => json!({"role": role, "content": content, "name": "Ann"}),
        1 => json!({"role": role, "content": [{"type": "text", "text": content}, {"type": "text", "text": "end"}]}),
        2 => json!({"role": role}),
        _ => json!({"role": role, "content": content}),
    })
}

fn conversations() -> impl Strategy<Value = Vec<Value>> {
    let conversation = (prop::collection::vec(message(), 0..5), any::<bool>());
    let body = conversation
        .prop_map(|(messages, generation)| json!({"messages": messages, "add_generation_prompt": generation}));
    // In Mistral's template only these are not refused.
    let alternating = prop::collection::vec(content(), 1..5).prop_map(|contents| {
        let turn = |(n, content)| json!({"role": if n % 2 == 0 { "user" } else { "assistant" }, "content": content});
        json!({"messages": contents.into_iter().enumerate().map(turn).collect::<Vec<_>>()})
    });
    prop::collection::vec(prop_oneof![body, alternating], 1..40)
}

fn prompt(prompts: &Prompts, body: &Value) -> Asked {
    prompts.read(Api::Chat, body.to_string().as_bytes(), 1_700_000_000)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_prompt_is_what_the_template_prints_whatever_was_asked_before(bodies in conversations()) {
        for template in COPYING.iter().chain(&MORE) {
            let (quick, full) = (prompts(template, true), prompts(template, false));
            for body in bodies.iter().chain(&bodies) {
                prop_assert_eq!(prompt(&quick, body).prompt, prompt(&full, body).prompt, "{}\n{}", template, body);
            }
            prop_assert_eq!(quick.templates.skeletons(0).1, COPYING.contains(template), "{}", template);
        }
    }
}

#[test]
fn conversations_of_one_shape_share_a_skeleton() {
    for template in COPYING {
        let prompts = prompts(template, true);
        for n in 0..10 {
            let text = "word ".repeat(n + 1);
            let body = json!({"messages": [{"role": "user", "content": format!("{n} {text}.")}]});
            assert!(
                prompt(&prompts, &body).prompt.unwrap().bytes.windows(text.len()).any(|part| part == text.as_bytes()),
                "{template}"
            );
        }
        assert_eq!(prompts.templates.skeletons(0), (1, true), "{template}");
    }
}

#[test]
fn skeletons_are_forgotten_before_they_fill_the_memory() {
    let prompts = prompts(CHATML, true);
    for n in 0..2000 {
        let body = json!({"messages": [{"role": format!("role {n}"), "content": "x"}]});
        for _ in 0..2 {
            assert!(prompt(&prompts, &body).prompt.is_ok());
        }
        assert!((1..=256).contains(&prompts.templates.skeletons(0).0));
    }
}

#[test]
fn shapes_that_come_in_turns_are_all_remembered() {
    let prompts = prompts(CHATML, true);
    for _ in 0..2 {
        for n in 0..200 {
            let body = json!({"messages": [{"role": format!("role {n}"), "content": "x"}]});
            assert!(prompt(&prompts, &body).prompt.is_ok());
        }
    }
    assert_eq!(prompts.templates.skeletons(0), (200, true));
}

/// A chat of a shape that is known.
fn recalled(prompts: &Prompts, role: &str, content: &[u8]) -> Result<Vec<u8>, Unknown> {
    let body = |content: &[u8]| {
        let start = format!("{{\"messages\":[{{\"role\":\"{role}\",\"content\":\"");
        [start.as_bytes(), content, b"\"}]}"].concat()
    };
    for _ in 0..3 {
        assert!(prompts.read(Api::Chat, &body(b"plain"), 0).prompt.is_ok());
    }
    prompts.read(Api::Chat, &body(content), 0).prompt.map(|known| known.bytes)
}

#[test]
fn what_is_done_to_a_content_is_done_in_a_known_shape_too() {
    let system = |text: &str| Ok(format!("<|im_start|>system\n{text}<|im_end|>\n<|im_start|>assistant\n").into_bytes());
    let plain = prompts(CHATML, true);
    assert_eq!(recalled(&plain, "system", b"x-anthropic-billing-header: 1\\nrest"), system("rest"));
    assert_eq!(recalled(&plain, "developer", b"plain"), system("plain"));
    let spelled = |spelling: Spelling| {
        let mut prompts = prompts(CHATML, true);
        prompts.spellers = vec![Speller::new(&spelling)];
        prompts
    };
    let composing = spelled(Spelling { steps: vec![SpellingStep::Nfc], ..Spelling::default() });
    assert_eq!(recalled(&composing, "system", "e\u{301}".as_bytes()), system("\u{e9}"));
    let end = AddedToken { text: "plain".into(), rstrip: true, ..AddedToken::default() };
    let stripping = spelled(Spelling { added: vec![end], ..Spelling::default() });
    assert_eq!(recalled(&stripping, "system", b"plain  x"), system("plainx"));
}

#[test]
fn bytes_that_are_no_text_go_where_the_rest_goes_or_nowhere() {
    // An engine refuses them, so it does not matter; they must not be in the way.
    let wrong = recalled(&prompts(CHATML, true), "user", b"a\xffb").unwrap();
    assert!(wrong.windows(3).any(|part| part == b"a\xffb"));
    for template in [LLAMA3, GEMMA] {
        assert_eq!(recalled(&prompts(template, true), "user", b"a\xff"), Err(Unknown::Malformed));
    }
    assert_eq!(
        prompts(CHATML, true).read(Api::Chat, b"{\"messages\":[{\"role\":\"a\",\"content\":\"\xff\"}]}", 0).prompt,
        Err(Unknown::Malformed)
    );
}
