//! A simulated vLLM engine: real HTTP, real tokenizer, real paged cache, real KV events, and
//! waiting instead of computing.
//!
//! Each engine has a thread with a runtime of its own, so that it takes one core at most and stops
//! as a whole, connections included, like a process that is killed.

pub mod cache;
mod config;
pub mod engine;
pub mod events;
mod http;
mod metrics;
mod openai;
pub mod publisher;
mod ranks;
pub mod scheduler;
pub mod tokenizer;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

pub use config::{Config, Control};
pub use engine::{LogEntry, Stats};
pub use events::Encoding;

use engine::Engine;
use publisher::{Format, Publisher};
use ranks::Rank;
use scheduler::Limits;
use tokenizer::Tokenizer;

/// The tokenizer of the test model, which the recordings of real engines were made with.
pub fn fixture_tokenizer() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/tokenizer"))
}

/// A running engine. Dropping it cuts every connection and frees the ports.
pub struct Handle {
    http: SocketAddr,
    events: SocketAddr,
    replay: SocketAddr,
    engine: Engine,
    stop: Option<oneshot::Sender<Duration>>,
    thread: Option<JoinHandle<()>>,
}

struct Started {
    http: SocketAddr,
    events: SocketAddr,
    replay: SocketAddr,
    engine: Engine,
}

/// Starts an engine and returns when all its ports are bound. Errors say which part of the
/// configuration does not work.
pub fn start(config: Config) -> Result<Handle> {
    let tokenizer = Tokenizer::load(&config.tokenizer)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the engine's runtime")?;
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("engine-sim".into())
        .spawn(move || {
            runtime.block_on(async move {
                match build(config, tokenizer).await {
                    Ok((started, serve)) => {
                        // The starter waits for this.
                        let _ = ready.send(Ok(started));
                        serve(stopped).await;
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                    }
                }
            });
            runtime.shutdown_background();
        })
        .context("start the engine's thread")?;
    let Started { http, events, replay, engine } =
        is_ready.recv().context("the engine's thread ended before it was ready")??;
    Ok(Handle { http, events, replay, engine, stop: Some(stop), thread: Some(thread) })
}

async fn build(
    config: Config,
    tokenizer: Tokenizer,
) -> Result<(Started, impl AsyncFnOnce(oneshot::Receiver<Duration>))> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, config.port))
        .await
        .with_context(|| format!("bind HTTP to port {}; choose another --port", config.port))?;
    let http = listener.local_addr()?;
    let topic = config.topic.clone().unwrap_or_else(|| format!("kv@127.0.0.1:{}@{}", http.port(), config.model));
    let format = Format {
        topic: topic.clone(),
        encoding: config.encoding,
        block_size: config.block_size as usize,
        buffer: config.buffer_steps as usize,
    };
    let seed = config.seed.unwrap_or_else(rand::random);
    let limits = Limits {
        block_size: config.block_size as usize,
        blocks: config.blocks as usize,
        max_running: config.max_num_seqs as usize,
        step_tokens: config.max_num_batched_tokens as usize,
        // Came to vLLM together with the map encoding.
        unhashed_first: config.encoding == Encoding::Map,
        hash_seed: seed,
    };
    let control = Control::new(&config);
    let max_model_len = config.max_model_len as usize;
    let mut ranks = Vec::new();
    for number in 0..config.data_parallel_size {
        let ports = if number == 0 { (config.events_port, config.replay_port) } else { (0, 0) };
        let (publisher, events, replay) = Publisher::bind(format.clone(), ports.0, ports.1).await?;
        let limits = Limits { hash_seed: seed.wrapping_add(u64::from(number)), ..limits.clone() };
        let engine = Engine::start(limits, max_model_len, config.log_requests, control.clone(), publisher);
        ranks.push(Rank { engine, events, replay });
    }
    let Rank { engine, events, replay } = ranks.first().context("--data-parallel-size is 0")?.clone();
    let app = http::App {
        engine: engine.clone(),
        sources: ranks::sources(&ranks, &topic, config.buffer_steps),
        ranks,
        tokenizer,
        model: config.model,
        loras: config.loras,
        seed,
        served: AtomicU64::new(0),
    };
    let router = http::router(app, http.port(), config.scale_out);
    let serve = async move |stopped: oneshot::Receiver<Duration>| {
        let (drain, draining) = oneshot::channel::<()>();
        // As uvicorn's: without it every streamed token waits for the client's acknowledgement.
        let listener = listener.tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
        let server = axum::serve(listener, router).with_graceful_shutdown(async {
            let _ = draining.await;
        });
        let mut server = tokio::spawn(server.into_future());
        // A handle that was dropped asks for nothing: stop at once.
        let grace = stopped.await.unwrap_or_default();
        let _ = drain.send(());
        let _ = tokio::time::timeout(grace, &mut server).await;
    };
    Ok((Started { http, events, replay, engine }, serve))
}

impl Handle {
    /// Address of the HTTP API.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Base of the HTTP API's URLs, without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// ZeroMQ endpoint of the live events.
    pub fn events(&self) -> String {
        format!("tcp://{}", self.events)
    }

    /// ZeroMQ endpoint of the replay socket.
    pub fn replay(&self) -> String {
        format!("tcp://{}", self.replay)
    }

    /// What GET /sim/stats says.
    pub fn stats(&self) -> Stats {
        self.engine.stats()
    }

    /// Changes settings as POST /sim/config does.
    pub fn control(&self, change: impl FnOnce(&mut Control)) {
        let mut control = self.engine.control();
        change(&mut control);
        self.engine.set_control(control);
    }

    /// Takes no new requests, waits up to `grace` for those in progress, and stops.
    pub fn stop(mut self, grace: Duration) {
        self.end(grace);
    }

    fn end(&mut self, grace: Duration) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(grace);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

/// The program: serves until SIGTERM or SIGINT. Prints its addresses when it is ready.
pub fn run(config: Config) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let grace = config.stop_grace();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before the addresses are out: whoever reads them may stop us at once.
    let (mut terminate, mut interrupt) = {
        let _guard = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    let handle = start(config)?;
    println!(
        "{}",
        serde_json::json!({
            "http": handle.http.to_string(),
            "events": handle.events.to_string(),
            "replay": handle.replay.to_string(),
        })
    );
    runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    handle.stop(grace);
    Ok(())
}
