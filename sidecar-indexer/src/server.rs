//! Puts the parts together and runs them.

use crate::app::App;
use crate::company::{Company, Store};
use crate::config::Config;
use crate::endpoints::Hub;
use crate::endpoints::dns::{self, Names};
use crate::library::Plan;
use crate::models::Models;
use crate::reconciler::{Others, Reconciler, empty_index};
use crate::subscriber::bind::{self, Switchboard};
use crate::sync::State;
use crate::{http, reload, zone};
use anyhow::{Context, Result};
use axum::serve::ListenerExt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// How often silent gateways are looked for.
const EXPIRE_EVERY: Duration = Duration::from_millis(500);

/// Requests have this long to end when the indexer stops.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// An indexer with its files read, not yet running.
pub struct Server {
    plan: Plan,
    /// The configuration file and what it said, if changes are to be followed.
    file: Option<(PathBuf, String)>,
    /// What keeps prompts from being predicted: `(model, why)`.
    pub notes: Vec<(String, String)>,
}

impl Server {
    /// Reads the models' files. Relative paths start at `base`.
    ///
    /// # Errors
    /// When a model's files are missing or not understood.
    pub fn prepare(config: Config, base: &Path) -> Result<Self> {
        let plan = Plan::new(config, base, None)?;
        let notes = plan.library.notes();
        Ok(Self { plan, file: None, notes })
    }

    /// Reads a configuration file, whose changes are followed later on, and the models' files.
    ///
    /// # Errors
    /// When the configuration or a model's files are missing or not understood.
    pub fn read(path: &Path) -> Result<Self> {
        let (config, text) = Config::read(path)?;
        let this = Self::prepare(config, path.parent().unwrap_or(Path::new("")))?;
        Ok(Self { file: Some((path.to_owned(), text)), ..this })
    }

    /// Serves until `stop` ends. `bound` is told the address.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn run(
        self,
        bound: impl FnOnce(SocketAddr),
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<()> {
        let Self { plan, file, notes } = self;
        let listen = plan.config.listen;
        let listener = TcpListener::bind(listen).await.with_context(|| format!("listen: cannot bind {listen}"))?;
        bound(listener.local_addr()?);
        for (model, note) in &notes {
            tracing::warn!(model, "{note}");
        }
        let models = Models::new(plan.library.profiles(), zone::now());
        let state = State::new(empty_index(&plan.config), models, plan.config.stride());
        let app = Arc::new(App::new(state, plan.config.coalesce()));
        let (limit, every) = (plan.config.snapshot_limit(), plan.config.store_interval());
        let store = plan.config.store.as_deref().map(|url| Store::new(url, limit)).transpose()?.map(Arc::new);
        let company = Arc::new(Company::new(app.clone(), &plan.config.peers, store.clone(), limit)?);
        let board = Arc::new(Switchboard::default());
        let (hub, names, plans) = (Hub::default(), watch::Sender::new(Names::default()), mpsc::channel(1));
        // Dropped at the end, which ends the tasks.
        let mut tasks = JoinSet::new();
        tasks.spawn(dns::follow(hub.clone(), names.subscribe()));
        if let Some((path, text)) = file {
            tasks.spawn(reload::follow(path, text, plan.clone(), app.clone(), plans.0));
        }
        if let Some(url) = &plan.config.bind {
            for rank in 0..=plan.config.dialled_ranks() {
                tasks.spawn(bind::answer(app.clone(), bind::listen(url, rank).await?, board.clone()));
            }
        }
        if let Some(store) = store {
            tasks.spawn(store.follow(app.clone(), every));
        }
        tasks.spawn(Reconciler::new(app.clone(), plan, hub, names, Others { company, board })?.run(plans.1));
        tasks.spawn(expire(app.clone()));
        tasks.spawn(keep_time(app.clone()));
        let stopping = app.clone();
        let stop = async move {
            stop.await;
            stopping.stop();
        };
        let mut stopping = app.stopping();
        // Otherwise the end of a reply may wait for the gateway to acknowledge its beginning, which it does at leisure.
        let listener = listener.tap_io(|connection| {
            let _ = connection.set_nodelay(true);
        });
        let serving = axum::serve(listener, http::router(app)).with_graceful_shutdown(stop);
        tokio::select! {
            served = serving.into_future() => served.context("serving failed"),
            // A request that was only begun would be waited for as long as its client likes.
            () = async {
                let _ = stopping.wait_for(|stopping| *stopping).await;
                tokio::time::sleep(STOP_WITHIN).await;
            } => Ok(()),
        }
    }
}

/// Publishes profiles anew when an engine's clock goes forward or back.
async fn keep_time(app: Arc<App>) {
    // The clock may be set, or the machine suspended.
    const AT_MOST: i64 = 30;
    loop {
        let now = zone::now();
        app.tick(now);
        let next = app.state().models.next_change(now).map_or(AT_MOST, |at| at.saturating_sub(now));
        tokio::time::sleep(Duration::from_secs(next.clamp(1, AT_MOST).unsigned_abs())).await;
    }
}

async fn expire(app: Arc<App>) {
    let mut ticks = tokio::time::interval(EXPIRE_EVERY);
    loop {
        ticks.tick().await;
        if app.state().gateways.expire(Instant::now()) {
            app.changed();
        }
    }
}
