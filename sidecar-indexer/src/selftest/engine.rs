//! An engine against what is spelled for it: the bytes of the tokens that it makes of a few requests are their
//! canonical bytes.
//!
//! Engines tell their tokens by `/v1/.../render` (vLLM with `--enable-scale-out`), or else by `/tokenize`, which is the
//! same for all but the chats of gpt-oss. One request at a time, some six in ten minutes.

use super::Difference;
use crate::answer::{self, TooLarge};
use crate::app::App;
use crate::models::Verdict;
use crate::tokens::Vocabulary;
use crate::zone;
use affinity::Slot;
use affinity::profile::{Profile, Profiles, Renderer};
use affinity::prompt::{Api, Prompts};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How often an engine is tested.
const EVERY: Duration = Duration::from_mins(10);
/// How soon one that could not be reached is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// How soon one that differed is tried again.
const AGAIN: Duration = Duration::from_secs(30);
/// How long an answer is waited for: a busy engine's front end may be slow.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer read.
const LIMIT: usize = 4 << 20;

/// A request that both sides are asked about.
#[derive(Clone, Debug)]
pub struct Probe {
    /// What it is, for the log.
    pub name: &'static str,
    /// Where it would be sent.
    pub api: Api,
    /// Names no model: an engine serves one, under whatever name.
    pub body: Value,
}

/// The requests for a model.
#[must_use]
pub fn probes(profile: &Profile) -> Vec<Probe> {
    const TEXT: &str = "  Größe, 東京 and\tشكرا 🙂 e\u{301}:\n\n\n1,234.5 \u{a0}";
    let tools = json!([{"type": "function", "function": {
        "name": "weather",
        "description": "Tells the weather <today> & \"tomorrow\".",
        "parameters": {"type": "object", "required": ["city"], "properties": {
            "city": {"type": "string", "description": "Größe, 東京"},
            "days": {"type": "integer", "minimum": 1, "default": 2.0}}},
    }}]);
    let user = json!({"role": "user", "content": "What is the weather in Zürich?"});
    let asked = json!({"role": "assistant", "content": "", "tool_calls": [{"id": "call00001", "type": "function",
        "function": {"name": "weather", "arguments": "{\"city\": \"Zürich\", \"days\": 1}"}}]});
    let told = json!({"role": "tool", "tool_call_id": "call00001", "content": "{\"sky\": \"clear\"}"});
    let turns = json!([
        {"role": "system", "content": "You are brief."}, {"role": "user", "content": TEXT},
        {"role": "assistant", "content": "Yes:\n\n- one\n- two"}, {"role": "user", "content": "And then?"}]);
    let chat = |name, body| Probe { name, api: Api::Chat, body };
    let completion = |name, prompt: &str| Probe { name, api: Api::Completions, body: json!({"prompt": prompt}) };
    let mut all = vec![
        chat("a chat of one message", json!({"messages": [user]})),
        chat("a chat of several turns", json!({"messages": turns})),
        chat("a chat with tools", json!({"messages": [user], "tools": tools})),
        chat("a chat with a tool's result", json!({"messages": [user, asked, told], "tools": tools})),
        completion("a completion", TEXT),
    ];
    let special: String = profile.special_tokens.iter().map(|(_, token)| format!(" {token} \n{token}")).collect();
    if !special.is_empty() {
        all.push(completion("a completion with special tokens", &format!("one{special}two")));
    }
    all
}

/// What keeps an engine from being tested.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Untested {
    /// It does not answer.
    Unreachable(String),
    /// It does not tell its tokens for this request.
    Refused(String),
}

impl fmt::Display for Untested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Untested::Unreachable(why) => write!(f, "it cannot be asked: {why}"),
            Untested::Refused(why) => write!(f, "it does not tell its tokens: {why}"),
        }
    }
}

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ended {
    /// This many requests were compared.
    Passed(usize),
    /// A request, and what is wrong with it.
    Failed(&'static str, String),
    /// Nothing was compared.
    Untested(Untested),
}

/// The engine to be tested.
pub struct Subject {
    /// Its slot.
    pub slot: Slot,
    /// Its address.
    pub address: String,
    /// The tokens of its model.
    pub vocabulary: Arc<Vocabulary>,
}

/// Tests an engine at once, whenever it comes up, and now and then.
pub async fn follow(app: Arc<App>, subject: Subject) {
    let Ok(client) = Client::builder().timeout(PATIENCE).no_proxy().build() else { return };
    let Some(mut up) = app.retests(subject.slot) else { return };
    let mut before = None;
    loop {
        up.mark_unchanged();
        let Some(profile) = app.state().models.profile_of(subject.slot).cloned() else { return };
        let ended = test(&client, &subject, profile).await;
        if before.as_ref() != Some(&ended) {
            report(&app, &subject, &ended);
        }
        let wait = match ended {
            Ended::Untested(Untested::Unreachable(_)) => RETRY,
            Ended::Failed(..) => AGAIN,
            Ended::Untested(Untested::Refused(_)) | Ended::Passed(_) => EVERY,
        };
        before = Some(ended);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = up.changed() => if changed.is_err() { return },
        }
    }
}

fn report(app: &App, subject: &Subject, ended: &Ended) {
    let Subject { slot, address, .. } = subject;
    let verdict = match ended {
        Ended::Passed(_) => Verdict::Passed,
        Ended::Failed(..) => Verdict::Failed,
        Ended::Untested(_) => Verdict::Untested,
    };
    let model = {
        let mut state = app.state();
        // One that is gone must not keep a model switched off; it is tested when it comes back.
        let gone = matches!(ended, Ended::Untested(Untested::Unreachable(_)));
        let changed = if gone { state.models.gone(*slot) } else { state.models.tested(*slot, verdict) };
        let model = state.models.profile_of(*slot).map(|profile| profile.name.clone()).unwrap_or_default();
        drop(state);
        if changed {
            app.changed();
        }
        model
    };
    match ended {
        Ended::Passed(compared) => {
            tracing::info!(model, endpoint = address, compared, "self-test passed: what could be compared is the same");
        }
        Ended::Failed(probe, difference) => tracing::error!(
            model,
            endpoint = address,
            request = probe,
            "self-test failed, so no prompt of this model is predicted until it passes: {difference}; see that the \
             model's options in the configuration (tokenizer, chat_template, time_zone, ...) are those of the engine"
        ),
        Ended::Untested(why) => tracing::info!(model, endpoint = address, "self-test not possible: {why}"),
    }
}

async fn test(client: &Client, subject: &Subject, profile: Profile) -> Ended {
    let harmony = profile.renderer == Renderer::Harmony;
    let mut compared = 0;
    let mut untested = Untested::Refused("no request could be compared".to_owned());
    for probe in probes(&profile) {
        // What is declined here is predicted of no prompt either.
        let Some(expected) = spelled(&profile, &probe) else { continue };
        let ids = match ask(client, &subject.address, &probe, harmony).await {
            Ok(ids) => ids,
            Err(Untested::Unreachable(why)) => return Ended::Untested(Untested::Unreachable(why)),
            Err(refused) => {
                untested = refused;
                continue;
            }
        };
        // The date may have changed meanwhile.
        if spelled(&profile, &probe).as_ref() != Some(&expected) {
            continue;
        }
        let mut theirs = Vec::new();
        if let Some(unknown) = ids.iter().find(|id| subject.vocabulary.get(**id).is_none()) {
            return Ended::Failed(probe.name, format!("its token {unknown} is not in the vocabulary"));
        }
        let _ = subject.vocabulary.spell(&ids, &mut theirs);
        if let Some(difference) = Difference::between(&theirs, &expected) {
            return Ended::Failed(probe.name, difference.to_string());
        }
        compared += 1;
    }
    if compared > 0 { Ended::Passed(compared) } else { Ended::Untested(untested) }
}

/// A request's canonical bytes, if they are known.
fn spelled(profile: &Profile, probe: &Probe) -> Option<Vec<u8>> {
    let (prompts, _) = Prompts::new(Profiles { models: vec![profile.clone()] });
    let read = prompts.read(probe.api, probe.body.to_string().as_bytes(), zone::now()).prompt.ok()?;
    read.cut.is_none().then_some(read.bytes)
}

/// The engine's tokens of a request.
async fn ask(client: &Client, address: &str, probe: &Probe, harmony: bool) -> Result<Vec<u32>, Untested> {
    let chat = probe.api == Api::Chat;
    let render = if chat { "/v1/chat/completions/render" } else { "/v1/completions/render" };
    if let Some(answer) = post(client, address, render, &probe.body).await? {
        let first = answer.get(0).unwrap_or(&answer);
        return ids(first.get("token_ids")).ok_or_else(|| Untested::Refused(format!("{render} answers otherwise")));
    }
    if harmony && chat {
        return Err(Untested::Refused("only /render would, with --enable-scale-out".to_owned()));
    }
    match post(client, address, "/tokenize", &probe.body).await? {
        Some(answer) => {
            ids(answer.get("tokens")).ok_or_else(|| Untested::Refused("/tokenize answers otherwise".to_owned()))
        }
        None => Err(Untested::Refused("it has neither /render nor /tokenize".to_owned())),
    }
}

/// An answer; `None` where there is no such path, or it is switched off.
async fn post(client: &Client, address: &str, path: &str, body: &Value) -> Result<Option<Value>, Untested> {
    let failed = |error: reqwest::Error| Untested::Unreachable(format!("{path}: {error}"));
    let response = client.post(format!("http://{address}{path}")).json(body).send().await.map_err(failed)?;
    let status = response.status();
    // 403 is vLLM's answer without `--enable-scale-out`.
    const ABSENT: [StatusCode; 4] =
        [StatusCode::FORBIDDEN, StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED, StatusCode::NOT_IMPLEMENTED];
    if ABSENT.contains(&status) {
        return Ok(None);
    }
    if !status.is_success() {
        return Err(Untested::Refused(format!("{path} answers {status}")));
    }
    let text = answer::body(response, LIMIT).await.map_err(|error| match error.is::<TooLarge>() {
        true => Untested::Refused(format!("{path}: {error}")),
        false => Untested::Unreachable(format!("{path}: {error}")),
    })?;
    serde_json::from_slice(&text).map(Some).map_err(|_| Untested::Refused(format!("{path} answers no JSON")))
}

fn ids(list: Option<&Value>) -> Option<Vec<u32>> {
    list?.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canonical::Encoder;
    use crate::config::Model;
    use crate::profile;
    use axum::http::Uri;
    use axum::{Json, Router};
    use std::path::Path;
    use tokio::net::TcpListener;

    /// An engine that answers as told: path and body to status and answer.
    async fn engine(answer: impl Fn(&str, &Value) -> (u16, Value) + Clone + Send + Sync + 'static) -> String {
        let handler = move |uri: Uri, Json(body): Json<Value>| {
            let (status, answer) = answer(uri.path(), &body);
            async move { (StatusCode::from_u16(status).unwrap(), Json(answer)) }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(handler)).await });
        address
    }

    fn load(tokenizer: &str) -> (Profile, Arc<Vocabulary>) {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
        let model: Model = serde_yaml_ng::from_str(&format!("{{name: tiny, tokenizer: '{tokenizer}'}}")).unwrap();
        let loaded = profile::load(&model, &base).unwrap();
        (loaded.profile, Arc::new(loaded.vocabulary))
    }

    /// The tokens of a request as an engine with this profile makes them.
    fn tokens(profile: &Profile, vocabulary: &Vocabulary, body: &Value) -> Vec<u32> {
        let api = if body.get("messages").is_some() { Api::Chat } else { Api::Completions };
        let text = spelled(profile, &Probe { name: "", api, body: body.clone() }).unwrap();
        let text = String::from_utf8(text).unwrap();
        match vocabulary.encoder().unwrap() {
            Encoder::HuggingFace(tokenizer) => tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec(),
            Encoder::Tiktoken(bpe) => bpe.encode_with_special_tokens(&text),
        }
    }

    async fn test_at(address: String, profile: &Profile, vocabulary: &Arc<Vocabulary>) -> Ended {
        let subject = Subject { slot: Slot(0), address, vocabulary: vocabulary.clone() };
        test(&Client::new(), &subject, profile.clone()).await
    }

    #[tokio::test]
    async fn an_engine_that_agrees_passes_by_either_way() {
        let (profile, vocabulary) = load("tokenizer");
        let all = probes(&profile).len();
        for way in ["render", "tokenize"] {
            let (p, v) = (profile.clone(), vocabulary.clone());
            let address = engine(move |path, body| match path {
                _ if !path.ends_with(way) => (403, json!({"error": {"type": "PermissionDeniedError"}})),
                "/v1/completions/render" => (200, json!([{"token_ids": tokens(&p, &v, body)}])),
                "/v1/chat/completions/render" => (200, json!({"token_ids": tokens(&p, &v, body)})),
                _ => (200, json!({"tokens": tokens(&p, &v, body)})),
            });
            assert_eq!(test_at(address.await, &profile, &vocabulary).await, Ended::Passed(all), "{way}");
        }
    }

    #[tokio::test]
    async fn an_engine_that_differs_fails_with_the_request_and_the_place() {
        let (profile, vocabulary) = load("tokenizer");
        let other = Profile { renderer: Renderer::Jinja(Vec::new()), ..profile.clone() };
        let v = vocabulary.clone();
        let address = engine(move |_, body| match body.get("messages") {
            Some(_) => (200, json!({"tokens": [4094, 4095]})),
            None => (200, json!({"tokens": tokens(&other, &v, body)})),
        });
        // `/render` answers without token_ids here, which is no answer.
        let ended = test_at(address.await, &profile, &vocabulary).await;
        assert!(matches!(&ended, Ended::Untested(Untested::Refused(why)) if why.contains("render")), "{ended:?}");

        let address = engine(move |path, body| match (path, body.get("messages")) {
            ("/tokenize", Some(_)) => (200, json!({"tokens": [4094, 4095]})),
            _ => (404, json!({})),
        });
        let Ended::Failed(request, why) = test_at(address.await, &profile, &vocabulary).await else {
            panic!("it did not fail")
        };
        assert_eq!(request, "a chat of one message");
        assert!(why.contains("from byte 12 on") && why.contains("<|im_end|>"), "{why}");

        let address = engine(|path, _| (if path == "/tokenize" { 200 } else { 404 }, json!({"tokens": [70_000]})));
        let ended = test_at(address.await, &profile, &vocabulary).await;
        assert!(matches!(&ended, Ended::Failed(_, why) if why.contains("70000")), "{ended:?}");
    }

    #[tokio::test]
    async fn engines_that_do_not_tell_are_not_tested() {
        let (profile, vocabulary) = load("tokenizer");
        for (status, expected) in [(404, "neither"), (400, "400"), (500, "500"), (401, "401")] {
            let ended = test_at(engine(move |_, _| (status, json!({}))).await, &profile, &vocabulary).await;
            assert!(matches!(&ended, Ended::Untested(Untested::Refused(why)) if why.contains(expected)), "{ended:?}");
        }
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        let ended = test_at(closed, &profile, &vocabulary).await;
        assert!(matches!(ended, Ended::Untested(Untested::Unreachable(_))), "{ended:?}");
    }

    #[tokio::test]
    async fn one_request_that_is_refused_leaves_the_others() {
        let (profile, vocabulary) = load("tokenizer");
        let all = probes(&profile).len();
        let (p, v) = (profile.clone(), vocabulary.clone());
        let address = engine(move |path, body| match path {
            "/tokenize" if body.get("tools").is_some() => (400, json!({"error": "no tools here"})),
            "/tokenize" => (200, json!({"tokens": tokens(&p, &v, body)})),
            _ => (404, json!({})),
        });
        assert_eq!(test_at(address.await, &profile, &vocabulary).await, Ended::Passed(all - 2));
    }

    #[tokio::test]
    async fn tokenize_is_not_asked_about_the_chats_of_gpt_oss() {
        let (profile, vocabulary) = load("tiktoken:o200k_harmony");
        let (p, v) = (profile.clone(), vocabulary.clone());
        let address = engine(move |path, body| match (path, body.get("messages")) {
            ("/tokenize", None) => (200, json!({"tokens": tokens(&p, &v, body)})),
            ("/tokenize", Some(_)) => (200, json!({"tokens": [1, 2, 3]})),
            _ => (404, json!({})),
        });
        assert_eq!(test_at(address.await, &profile, &vocabulary).await, Ended::Passed(2));
    }
}
