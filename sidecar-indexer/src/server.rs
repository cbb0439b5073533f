//! Puts the parts together and runs them.

use crate::app::App;
use crate::config::Config;
use crate::fleet::Fleet;
use crate::index::{Index, Options};
use crate::sync::State;
use crate::{http, profile, scrape, subscriber};
use affinity::fleet::Profiles;
use affinity::prompt::Prompts;
use affinity::{Slot, Tier};
use anyhow::{Context, Result};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// How often silent gateways are looked for.
const EXPIRE_EVERY: Duration = Duration::from_millis(500);

/// An indexer with its files read, not yet running.
pub struct Server {
    config: Config,
    state: State,
    /// What keeps prompts from being predicted: `(model, why)`.
    pub notes: Vec<(String, String)>,
}

impl Server {
    /// Reads the models' files. Relative paths start at `base`.
    ///
    /// # Errors
    /// When a model's files are missing or not understood.
    pub fn prepare(config: Config, base: &Path) -> Result<Self> {
        let (mut notes, mut models) = (Vec::new(), Vec::new());
        for model in &config.models {
            let loaded = profile::load(model, base)?;
            notes.extend(loaded.notes.into_iter().map(|note| (model.name.clone(), note)));
            models.push((loaded.profile, Arc::new(loaded.vocabulary)));
        }
        let profiles = Profiles { models: models.iter().map(|(profile, _)| profile.clone()).collect() };
        let (_, failed) = Prompts::new(profiles.clone());
        notes.extend(failed.into_iter().map(|(model, why)| (model, format!("no chat prompt can be predicted: {why}"))));
        let options = Options {
            stride: config.stride(),
            max_blocks: config.max_blocks,
            tiers: config.tiers.iter().map(|t| Tier::from(*t)).collect(),
        };
        // Random enough to tell one run from another.
        let mut index = Index::new(options, RandomState::new().hash_one("epoch") as u32);
        for (slot, endpoint) in (0u16..).map(Slot).zip(&config.endpoints) {
            if let Some((profile, vocabulary)) = models.iter().find(|(profile, _)| profile.name == endpoint.model) {
                index.add(slot, &profile.name, vocabulary, profile.token_ids);
            }
        }
        let state = State::new(index, Fleet::new(&config), &profiles, config.stride());
        Ok(Self { config, state, notes })
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
        let config = self.config;
        let listen = config.listen;
        let listener = TcpListener::bind(listen).await.with_context(|| format!("listen: cannot bind {listen}"))?;
        bound(listener.local_addr()?);
        for (model, note) in &self.notes {
            tracing::warn!(model, "{note}");
        }
        let endpoints: Vec<_> = (0u16..).map(Slot).zip(&config.endpoints).collect();
        let streams = endpoints.iter().filter(|(_, e)| e.events.is_some()).map(|(slot, _)| *slot).collect();
        let app = Arc::new(App::new(self.state, streams, config.coalesce()));
        // Dropped at the end, which ends the tasks.
        let mut tasks = JoinSet::new();
        for (slot, endpoint) in endpoints {
            if let Some(events) = endpoint.events.clone() {
                let (address, replay) = (endpoint.address.clone(), endpoint.replay.clone());
                tasks.spawn(subscriber::follow(app.clone(), subscriber::Source { slot, address, events, replay }));
            }
            if let Some(url) = endpoint.metrics_url() {
                tasks.spawn(scrape::follow(app.clone(), slot, url, config.scrape_interval()));
            }
        }
        tasks.spawn(expire(app.clone()));
        let stopping = app.clone();
        let stop = async move {
            stop.await;
            stopping.stop();
        };
        axum::serve(listener, http::router(app)).with_graceful_shutdown(stop).await.context("serving failed")
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
