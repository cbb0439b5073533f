//! Puts the parts together and runs them.

use crate::app::App;
use crate::company::{Company, Name, Store};
use crate::config::Config;
use crate::fleet::Fleet;
use crate::index::{Index, Options};
use crate::models::{self, Models};
use crate::profile::Loaded;
use crate::selftest::engine::{self, Subject};
use crate::subscriber::bind::{self, Switchboard};
use crate::subscriber::{self, Events, Source};
use crate::sync::State;
use crate::{http, scrape, served, zone};
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
    /// Engines to be tested.
    subjects: Vec<Subject>,
    /// What keeps prompts from being predicted: `(model, why)`.
    pub notes: Vec<(String, String)>,
}

impl Server {
    /// Reads the models' files. Relative paths start at `base`.
    ///
    /// # Errors
    /// When a model's files are missing or not understood.
    pub fn prepare(config: Config, base: &Path) -> Result<Self> {
        let (mut notes, mut loaded) = (Vec::new(), Vec::new());
        for model in &config.models {
            let Loaded { profile, vocabulary, notes: more } = models::load_tested(model, base)?;
            notes.extend(more.into_iter().map(|note| (model.name.clone(), note)));
            loaded.push((profile, Arc::new(vocabulary)));
        }
        let zones = config.models.iter().map(|model| model.time_zone.clone());
        let profiles = loaded.iter().map(|(profile, _)| profile.clone());
        let mut models = Models::new(profiles.zip(zones), zone::now());
        let (_, failed) = Prompts::new(models.profiles());
        notes.extend(failed.into_iter().map(|(model, why)| (model, format!("no chat prompt can be predicted: {why}"))));
        let options = Options {
            stride: config.stride(),
            max_blocks: config.max_blocks,
            tiers: config.tiers.iter().map(|t| Tier::from(*t)).collect(),
        };
        // Random enough to tell one run from another.
        let mut index = Index::new(options, RandomState::new().hash_one("epoch") as u32);
        let mut subjects = Vec::new();
        for (slot, endpoint) in (0u16..).map(Slot).zip(&config.endpoints) {
            let model = config.models.iter().zip(&loaded).find(|(model, _)| model.name == endpoint.model);
            let Some((model, (profile, vocabulary))) = model else { continue };
            index.add(slot, &profile.name, vocabulary, profile.token_ids);
            models.add(slot, &profile.name);
            if model.self_test {
                subjects.push(Subject { slot, address: endpoint.address.clone(), vocabulary: vocabulary.clone() });
            }
        }
        let state = State::new(index, Fleet::new(&config), models, config.stride());
        Ok(Self { config, state, subjects, notes })
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
        // A block takes half of it; what is more is a lie.
        let limit = config.max_blocks.saturating_mul(64).saturating_add(16 << 20);
        let store = config.store.as_deref().map(|url| Store::new(url, limit)).transpose()?.map(Arc::new);
        let company = Arc::new(Company::new(app.clone(), &config.peers, store.clone(), limit)?);
        let board = Arc::new(Switchboard::default());
        // Dropped at the end, which ends the tasks.
        let mut tasks = JoinSet::new();
        for (slot, endpoint) in endpoints {
            if let Some(url) = endpoint.events.clone() {
                let name = Name { address: endpoint.address.clone(), rank: None };
                let events = match endpoint.dials_in() {
                    true => Events::Bound(board.expect(name.clone())),
                    false => Events::Connect { url, topic: String::new() },
                };
                let source = Source { slot, name, events, replay: endpoint.replay.clone() };
                tasks.spawn(subscriber::follow(app.clone(), company.clone(), source));
            }
            let (address, model) = (endpoint.address.clone(), endpoint.model.clone());
            tasks.spawn(served::follow(app.clone(), slot, address, model));
            if let Some(url) = endpoint.metrics_url() {
                tasks.spawn(scrape::follow(app.clone(), slot, url, config.scrape_interval()));
            }
        }
        for subject in self.subjects {
            tasks.spawn(engine::follow(app.clone(), subject));
        }
        if let Some(bind) = &config.bind {
            tasks.spawn(bind::answer(app.clone(), bind::listen(bind, 0).await?, board));
        }
        if let Some(store) = store {
            tasks.spawn(store.follow(app.clone(), config.store_interval()));
        }
        tasks.spawn(expire(app.clone()));
        tasks.spawn(keep_time(app.clone()));
        let stopping = app.clone();
        let stop = async move {
            stop.await;
            stopping.stop();
        };
        axum::serve(listener, http::router(app)).with_graceful_shutdown(stop).await.context("serving failed")
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
