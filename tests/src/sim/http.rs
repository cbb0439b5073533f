//! The HTTP side of an engine.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body as HttpBody;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::unbounded_channel;

use super::cache::Namespace;
use super::engine::{Engine, Origin};
use super::openai::{Api, Body, Input, Refusal, Reply, Usage};
use super::ranks::{self, Rank};
use super::scheduler::{Job, Progress};
use super::tokenizer::{Generation, Tokenizer};

/// What the handlers share.
pub struct App {
    /// The engine behind the API; rank 0 of several.
    pub engine: Engine,
    /// All data-parallel ranks.
    pub ranks: Vec<Rank>,
    /// Where they publish, as vLLM tells it.
    pub sources: Value,
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
    /// Name of the model.
    pub model: String,
    /// Names of its adapters.
    pub loras: Vec<String>,
    /// Fixes generated text.
    pub seed: u64,
    /// Requests so far: names replies, and sets sampled texts apart.
    pub served: AtomicU64,
}

type Shared = State<Arc<App>>;

/// All routes. `port` goes into the `x-engine` header of every reply; without `scale_out`, those that tell a prompt's
/// tokens refuse to.
pub fn router(app: App, port: u16, scale_out: bool) -> Router {
    let name = HeaderValue::from(port);
    let (completions_render, chat_render) = match scale_out {
        true => (post(render_completions), post(render_chat)),
        false => (post(render_disabled), post(render_disabled)),
    };
    Router::new()
        .route("/v1/completions/render", completions_render)
        .route("/v1/chat/completions/render", chat_render)
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/models", get(models))
        .route("/health", get(health).post(health))
        .route("/ping", get(health).post(health))
        .route("/version", get(async || Json(json!({"version": "0.32.0"}))))
        .route("/metrics", get(metrics))
        .route("/kv_event_sources", get(async |State(app): Shared| Json(app.sources.clone())))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/reset_prefix_cache", post(reset))
        .route("/sim/stats", get(stats))
        .route("/sim/stats/{rank}", get(stats_of_rank))
        .route("/sim/config", get(control).post(set_control))
        .fallback(async || (StatusCode::NOT_FOUND, Json(json!({"detail": "Not Found"}))))
        .method_not_allowed_fallback(async || {
            (StatusCode::METHOD_NOT_ALLOWED, Json(json!({"detail": "Method Not Allowed"})))
        })
        // vLLM sets no limit; long contexts are megabytes of JSON.
        .layer(DefaultBodyLimit::disable())
        .layer(axum::middleware::map_response(move |mut response: Response| {
            response.headers_mut().insert("x-engine", name.clone());
            std::future::ready(response)
        }))
        .with_state(Arc::new(app))
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.body())).into_response()
    }
}

async fn completions(State(app): Shared, headers: HeaderMap, body: Bytes) -> Response {
    serve(&app, Api::Completions, &headers, &body).await.unwrap_or_else(Refusal::into_response)
}

async fn chat(State(app): Shared, headers: HeaderMap, body: Bytes) -> Response {
    serve(&app, Api::Chat, &headers, &body).await.unwrap_or_else(Refusal::into_response)
}

async fn models(State(app): Shared) -> Json<Value> {
    let created = unix_seconds();
    let cards = std::iter::once((&app.model, Value::Null))
        .chain(app.loras.iter().map(|name| (name, json!(app.model))))
        .map(|(id, parent)| {
            json!({
                "id": id, "object": "model", "created": created, "owned_by": "vllm", "root": id,
                "parent": parent, "max_model_len": app.engine.max_tokens(),
            })
        });
    Json(json!({"object": "list", "data": cards.collect::<Vec<_>>()}))
}

async fn health(State(app): Shared) -> StatusCode {
    if app.engine.control().healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

async fn metrics(State(app): Shared) -> impl IntoResponse {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    let pages = app.ranks.iter().enumerate().map(|(number, rank)| rank.engine.metrics(&app.model, number));
    (kind, pages.collect::<String>())
}

async fn reset(State(app): Shared) -> Json<Value> {
    // Every one, also after one that refuses.
    let refused = app.ranks.iter().filter(|rank| !rank.engine.reset_cache()).count();
    let all = refused == 0;
    Json(json!({"success": all}))
}

async fn stats(State(app): Shared) -> Response {
    Json(app.engine.stats()).into_response()
}

async fn stats_of_rank(State(app): Shared, Path(rank): Path<usize>) -> Response {
    app.ranks
        .get(rank)
        .map_or_else(|| StatusCode::NOT_FOUND.into_response(), |r| Json(r.engine.stats()).into_response())
}

async fn control(State(app): Shared) -> Response {
    Json(app.engine.control()).into_response()
}

async fn set_control(State(app): Shared, body: Bytes) -> Response {
    let changed = serde_json::from_slice(&body)
        .map_err(anyhow::Error::from)
        .and_then(|changes| app.engine.control().changed(&changes));
    match changed {
        Ok(changed) => {
            for rank in &app.ranks {
                rank.engine.set_control(changed.clone());
            }
            Json(app.engine.control()).into_response()
        }
        Err(error) => Refusal::bad(format!("{error:#}")).into_response(),
    }
}

async fn tokenize(State(app): Shared, body: Bytes) -> Response {
    let tokens = Body::read(&body).and_then(|body| {
        app.namespace(&body)?;
        let input = body.inputs(None)?.into_iter().next();
        app.tokens(input.ok_or_else(|| Refusal::bad("prompt: at least one prompt is needed"))?)
    });
    match tokens {
        Ok(tokens) => {
            let max_model_len = app.engine.max_tokens();
            Json(json!({"count": tokens.len(), "max_model_len": max_model_len, "tokens": tokens, "token_strs": null}))
                .into_response()
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn render_disabled() -> Refusal {
    let message = "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them.";
    Refusal { status: 403, message: message.into() }
}

async fn render_completions(State(app): Shared, body: Bytes) -> Response {
    let rendered = app.rendered(Api::Completions, &body);
    rendered.map_or_else(Refusal::into_response, |prompts| Json(prompts).into_response())
}

async fn render_chat(State(app): Shared, body: Bytes) -> Response {
    let rendered = app.rendered(Api::Chat, &body).map(|mut prompts| prompts.swap_remove(0));
    rendered.map_or_else(Refusal::into_response, |prompt| Json(prompt).into_response())
}

#[derive(Deserialize)]
struct Tokens {
    tokens: Vec<u32>,
}

async fn detokenize(State(app): Shared, body: Bytes) -> Response {
    let prompt = serde_json::from_slice::<Tokens>(&body)
        .map_err(anyhow::Error::from)
        .and_then(|body| app.tokenizer.decode(&body.tokens));
    match prompt {
        Ok(prompt) => Json(json!({"prompt": prompt})).into_response(),
        Err(error) => Refusal::bad(format!("{error:#}")).into_response(),
    }
}

impl App {
    /// The model asked for decides which cache namespace a request has.
    fn namespace(&self, body: &Body) -> Result<Namespace, Refusal> {
        let salt = body.cache_salt.clone();
        if salt.as_deref() == Some("") {
            return Err(Refusal::bad("Parameter 'cache_salt' must be a non-empty string if provided."));
        }
        let name = body.model.as_ref().filter(|&name| *name != self.model);
        let Some(name) = name else { return Ok(Namespace { lora: None, salt }) };
        let place = self
            .loras
            .iter()
            .position(|lora| lora == name)
            .ok_or_else(|| Refusal { status: 404, message: format!("The model `{name}` does not exist.") })?;
        Ok(Namespace { lora: Some((place as u32 + 1, name.clone())), salt })
    }

    fn tokens(&self, input: Input) -> Result<Vec<u32>, Refusal> {
        let tokens = match input {
            Input::Tokens(tokens) => Ok(tokens),
            Input::Text { text, special } => self.tokenizer.encode(&text, special),
            Input::Chat { messages, variables, special } => {
                self.tokenizer.render(messages, variables).and_then(|text| self.tokenizer.encode(&text, special))
            }
        };
        let tokens = tokens.map_err(|error| Refusal::bad(format!("{error:#}")))?;
        if tokens.is_empty() {
            return Err(Refusal::bad("The decoder prompt cannot be empty"));
        }
        Ok(tokens)
    }

    /// What an engine would compute for a request: at least one prompt.
    fn rendered(&self, api: Api, body: &[u8]) -> Result<Vec<Value>, Refusal> {
        let body = Body::read(body)?;
        let model = body.model.clone().unwrap_or_else(|| self.model.clone());
        let salt = self.namespace(&body)?.salt;
        let prompts = body.inputs(Some(api))?.into_iter().map(|input| {
            let tokens = self.tokens(input)?;
            Ok(json!({"token_ids": tokens, "features": null, "model": model, "stream": false, "cache_salt": salt}))
        });
        prompts.collect()
    }

    fn generate(
        &self,
        prompt: &[u32],
        choice: usize,
        request: Option<u64>,
        count: usize,
    ) -> Result<Generation, Refusal> {
        let mut hasher = DefaultHasher::new();
        (self.seed, prompt, choice, request).hash(&mut hasher);
        self.tokenizer
            .generate(hasher.finish(), count)
            .map_err(|error| Refusal { status: 500, message: format!("{error:#}") })
    }
}

/// Everything a reply still needs once its requests are with the engine.
struct Pending {
    reply: Reply,
    texts: Vec<Generation>,
    usage: Usage,
    open: usize,
    tokens: UnboundedReceiver<(usize, Progress)>,
    /// Choices per prompt, of which only one counts the prompt's cached tokens.
    per_prompt: usize,
}

impl Pending {
    async fn next(&mut self) -> Option<(usize, Progress)> {
        if self.open == 0 {
            return None;
        }
        let (choice, progress) = self.tokens.recv().await?;
        self.usage.completion += 1;
        if progress.token == 0 && choice % self.per_prompt == 0 {
            self.usage.cached += progress.cached_tokens;
        }
        self.open -= usize::from(progress.finished);
        Some((choice, progress))
    }
}

async fn serve(app: &App, api: Api, headers: &HeaderMap, body: &[u8]) -> Result<Response, Refusal> {
    if let Some(status) = app.engine.take_failure() {
        return Err(Refusal { status, message: "failing on request of /sim/config".into() });
    }
    app.engine.unless_hanging().await;
    let (rank, engine) = ranks::choose(&app.ranks, headers)?;
    let body = Body::read(body)?;
    let namespace = app.namespace(&body)?;
    let (per_prompt, max_tokens) = (body.choices()?, body.max_tokens()?);
    let (streamed, include_usage) = (body.stream(), body.include_usage());
    let model = body.model.clone().unwrap_or_else(|| app.model.clone());
    let (greedy, session) = (body.greedy(), body.session_id.clone());
    let number = app.served.fetch_add(1, Ordering::Relaxed);
    let prompts: Vec<Vec<u32>> =
        body.inputs(Some(api))?.into_iter().map(|input| app.tokens(input)).collect::<Result<_, _>>()?;
    let limit = app.engine.max_tokens();
    if let Some(long) = prompts.iter().find(|prompt| prompt.len() + max_tokens > limit) {
        return Err(Refusal::bad(format!(
            "This model's maximum context length is {limit} tokens. However, your request has {} input tokens and asks for {max_tokens} more. Please reduce the length of the input or of the output.",
            long.len()
        )));
    }
    let (path, kind) = match api {
        Api::Completions => ("/v1/completions", "cmpl"),
        Api::Chat => ("/v1/chat/completions", "chatcmpl"),
    };
    let origin = Origin { path: path.into(), headers: own_headers(headers) };
    let usage = Usage { prompt: prompts.iter().map(Vec::len).sum(), ..Usage::default() };
    let (sender, tokens) = unbounded_channel();
    let mut texts = Vec::new();
    for prompt in prompts {
        for choice in 0..per_prompt {
            let text = app.generate(&prompt, choice, (!greedy).then_some(number), max_tokens)?;
            let job = Job {
                prompt: prompt.clone(),
                output: text.tokens.clone(),
                namespace: namespace.clone(),
                session: session.clone(),
            };
            engine.submit(job, origin.clone(), texts.len(), sender.clone());
            texts.push(text);
        }
    }
    let id = format!("{kind}-{:016x}", app.seed.rotate_left(32) ^ number);
    let reply = Reply { api, id, created: unix_seconds(), model };
    let open = texts.len();
    let pending = Pending { reply, texts, usage, open, tokens, per_prompt };
    let mut response = if streamed { stream_reply(pending, include_usage) } else { whole_reply(pending).await? };
    response.headers_mut().insert("x-engine-rank", HeaderValue::from(rank));
    Ok(response)
}

async fn whole_reply(mut pending: Pending) -> Result<Response, Refusal> {
    while pending.next().await.is_some() {}
    if pending.open > 0 {
        return Err(Refusal { status: 500, message: "the engine went down".into() });
    }
    let texts: Vec<String> = pending.texts.iter().map(|text| text.pieces.concat()).collect();
    Ok(Json(pending.reply.whole(&texts, pending.usage)).into_response())
}

/// The headers go out at once, as vLLM's do; the first chunk comes with the first token.
fn stream_reply(pending: Pending, include_usage: bool) -> Response {
    let chunks = stream::unfold(Some(pending), move |pending| async move {
        let mut pending = pending?;
        let mut text = String::new();
        if let Some((choice, progress)) = pending.next().await {
            if progress.token == 0 && pending.reply.api == Api::Chat {
                event(&mut text, &pending.reply.role(choice));
            }
            let piece = pending.texts.get(choice).and_then(|made| made.pieces.get(progress.token));
            let piece = piece.map_or("", String::as_str);
            event(&mut text, &pending.reply.token(choice, piece, progress.finished));
            return Some((Ok::<_, Infallible>(text), Some(pending)));
        }
        if include_usage {
            event(&mut text, &pending.reply.usage(pending.usage));
        }
        text.push_str("data: [DONE]\n\n");
        Some((Ok(text), None))
    });
    let kind = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")];
    (kind, HttpBody::from_stream(chunks)).into_response()
}

fn event(text: &mut String, chunk: &Value) {
    text.push_str("data: ");
    text.push_str(&chunk.to_string());
    text.push_str("\n\n");
}

fn own_headers(headers: &HeaderMap) -> BTreeMap<String, String> {
    headers
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("x-"))
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
