//! Keeps what runs the same as what is wanted: endpoints that come are followed, endpoints that go are forgotten.
//!
//! Per endpoint there is a task for its event stream; per address, however many ranks are behind it, one each for
//! metrics, the list of models and the self-test; and one for an address that is asked for its event sources.
//!
//! **Invariant:** when an endpoint leaves, its tasks have ended before what it held is forgotten, so nothing can be
//! added to a slot after that; and it is forgotten before the next endpoint enters the slot. An endpoint that leaves
//! is gone from the next fleet page: no request is sent there any more, and those that run end by themselves.

use crate::app::{App, Signals};
use crate::company::Company;
use crate::config::Config;
use crate::endpoints::dns::Names;
use crate::endpoints::{Events, Hub, Known, Provider, Seated, Sockets, file, gather, sources};
use crate::index::{Index, Options};
use crate::library::Plan;
use crate::roster::{Changes, Roster};
use crate::selftest::engine::{self, Subject};
use crate::subscriber::bind::Switchboard;
use crate::subscriber::{self, Source};
use crate::{scrape, served, zone};
use affinity::{Slot, Tier};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// An engine that is busy accepts a connection at once; one that does not is not there ([`scrape`]).
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// An empty index as configured, of an epoch of its own.
#[must_use]
pub fn empty_index(config: &Config) -> Index {
    let options = Options {
        stride: config.stride(),
        max_blocks: config.max_blocks,
        tiers: config.tiers.iter().map(|t| Tier::from(*t)).collect(),
    };
    // Random enough to tell one run from another.
    Index::new(options, RandomState::new().hash_one("epoch") as u32)
}

/// What runs, and what is known of what should.
pub struct Reconciler {
    app: Arc<App>,
    plan: Plan,
    hub: Hub,
    names: watch::Sender<Names>,
    others: Others,
    roster: Roster,
    streams: BTreeMap<Slot, JoinHandle<()>>,
    engines: BTreeMap<SocketAddr, Engine>,
    asking: BTreeMap<SocketAddr, JoinHandle<()>>,
    /// By address: tells that an engine may be another one than before.
    restarts: BTreeMap<SocketAddr, watch::Sender<()>>,
    client: reqwest::Client,
    /// What was said already.
    notes: BTreeSet<String>,
    left_out: usize,
}

/// What streams need beside the engines.
pub struct Others {
    /// Who may know more.
    pub company: Arc<Company>,
    /// Who dials in.
    pub board: Arc<Switchboard>,
}

/// What runs for an address.
struct Engine {
    of: Address,
    tasks: Vec<JoinHandle<()>>,
}

/// What the tasks of an address are about.
#[derive(Clone, Debug, PartialEq)]
struct Address {
    model: String,
    metrics: Option<String>,
    every: Duration,
    /// Slots, and what the metrics call them.
    ranks: Vec<(Slot, Option<u16>)>,
}

impl Reconciler {
    /// Nothing runs yet. `names` is told which names are to be looked up.
    ///
    /// # Errors
    /// If no HTTP client can be made.
    pub fn new(
        app: Arc<App>,
        plan: Plan,
        hub: Hub,
        names: watch::Sender<Names>,
        others: Others,
    ) -> reqwest::Result<Self> {
        // One for all, so that connections are used again.
        let client = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_WITHIN).build()?;
        let this = Self {
            app,
            plan,
            hub,
            names,
            others,
            roster: Roster::default(),
            streams: BTreeMap::new(),
            engines: BTreeMap::new(),
            asking: BTreeMap::new(),
            restarts: BTreeMap::new(),
            client,
            notes: BTreeSet::new(),
            left_out: 0,
        };
        this.publish();
        Ok(this)
    }

    /// Follows what is known and what is configured, for ever.
    pub async fn run(mut self, mut plans: mpsc::Receiver<Plan>) {
        let mut changes = self.hub.changes();
        loop {
            let known = changes.borrow_and_update().clone();
            self.reconcile(&known).await;
            // Somebody who was left out gets the first slot that has rested.
            let rested = if self.left_out > 0 { self.roster.next_rested() } else { None };
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                Some(plan) = plans.recv() => self.adopt(plan).await,
                () = sleep_until(rested) => {}
            }
        }
    }

    /// Tells the providers of the configuration.
    fn publish(&self) {
        let (file, names) = (file::list(&self.plan.config), Names::of(&self.plan.config));
        let known = self.hub.changes().borrow().lists.get(&Provider::Dns).cloned();
        if *self.names.borrow() != names
            && let Some(mut dns) = known
        {
            // What moves from a name to an address would be named by both until names have been looked up again.
            dns.retain(|old| !file.iter().any(|new| new.key.address == old.key.address));
            self.hub.give(Provider::Dns, dns);
        }
        self.hub.give(Provider::File, file);
        self.names.send_if_modified(|before| std::mem::replace(before, names.clone()) != names);
    }

    /// Takes over another configuration.
    async fn adopt(&mut self, plan: Plan) {
        let before = std::mem::replace(&mut self.plan, plan);
        let (old, new) = (&before.config, self.plan.config.clone());
        if old.listen != new.listen {
            let (now, wanted) = (old.listen, new.listen);
            tracing::warn!(%now, %wanted, "listen: another address takes effect when the indexer is started anew");
        }
        let links = |config: &Config| {
            (config.peers.clone(), config.store.clone(), config.store_interval_ms, config.bind.clone())
        };
        if links(old) != links(&new) || old.dialled_ranks() < new.dialled_ranks() {
            tracing::warn!(
                "peers, store, store_interval_ms and bind: changes take effect when the indexer is started anew"
            );
        }
        self.app.set_coalesce(new.coalesce());
        let shape = |config: &Config| (config.stride_bytes, config.max_blocks, config.tiers.clone());
        let rebuild = shape(old) != shape(&new);
        let reread = self.plan.library.reread(&before.library);
        let void = |model: &str| rebuild || reread.contains(model);
        let again: Vec<Seated> = self
            .roster
            .seated()
            .filter(|(_, wanted)| void(&wanted.model))
            .map(|(slot, wanted)| Seated { slot, wanted: wanted.clone() })
            .collect();
        self.end(&again).await;
        {
            let mut state = self.app.state();
            if rebuild {
                tracing::warn!("stride_bytes, max_blocks or tiers have changed: the index is built anew from replays");
                state.replace_index(empty_index(&new), new.stride());
            }
            if state.models.replace(self.plan.library.profiles(), zone::now()) {
                // Numbers of models are in the fleet page.
                state.gateways.fleet_changed(true);
            }
        }
        self.start(&again);
        for restarted in self.restarts.values() {
            // Profiles may have changed: they are tested.
            restarted.send_replace(());
        }
        self.app.changed();
        self.publish();
    }

    async fn reconcile(&mut self, known: &Known) {
        let gathered = gather(known, &self.plan.library.names());
        for note in gathered.notes.difference(&self.notes) {
            tracing::warn!("{note}");
        }
        self.notes = gathered.notes;
        self.ask(&gathered.ask).await;

        let Changes { left, came, altered, left_out } = self.roster.update(&gathered.endpoints, Instant::now());
        self.end(&left).await;
        self.start(&came);
        {
            let mut state = self.app.state();
            for Seated { slot, wanted } in &altered {
                state.fleet.alter(*slot, wanted);
            }
            state.gateways.set_slots(self.roster.slots());
            if !(left.is_empty() && came.is_empty() && altered.is_empty()) {
                state.gateways.fleet_changed(true);
            }
        }
        self.follow_engines().await;
        if left_out.len() != std::mem::replace(&mut self.left_out, left_out.len()) && !left_out.is_empty() {
            let (count, first) = (left_out.len(), left_out.first().map(ToString::to_string));
            tracing::error!(
                count,
                first,
                "there are more endpoints than slots ({}): these get no requests by Warmpath; slots of endpoints that left \
                 are given out again after {:?}",
                Slot::LIMIT,
                crate::roster::REST
            );
        }
        self.app.metrics.endpoints(self.roster.seated().count(), self.left_out);
        self.app.changed();
        let names = !Names::of(&self.plan.config).is_empty();
        if known.lists.contains_key(&Provider::File) && (!names || known.lists.contains_key(&Provider::Dns)) {
            self.app.complete();
        }
    }

    /// Ends what runs for endpoints, then forgets them.
    async fn end(&mut self, left: &[Seated]) {
        let mut tasks = Vec::new();
        for Seated { slot, wanted } in left {
            tasks.extend(self.streams.remove(slot));
            tasks.extend(self.engines.remove(&wanted.key.address).into_iter().flat_map(|engine| engine.tasks));
        }
        end(tasks).await;
        for Seated { slot, wanted } in left {
            self.app.leave(*slot);
            let name = wanted.key.to_string();
            self.app.metrics.forget(&name);
            tracing::info!(endpoint = name, "endpoint left");
        }
    }

    /// Lets endpoints in and starts their streams.
    fn start(&mut self, came: &[Seated]) {
        for Seated { slot, wanted } in came {
            // The list has only endpoints of models that are there.
            let Some(book) = self.plan.library.get(&wanted.model) else { continue };
            let (slot, address) = (*slot, wanted.key.to_string());
            {
                let mut state = self.app.state();
                state.enter(slot, wanted, &book.vocabulary, book.profile.token_ids);
            }
            let restarted = self.restarts.entry(wanted.key.address).or_default().clone();
            self.app.enter(slot, Signals { restarted, ..Signals::default() });
            tracing::info!(endpoint = address, slot = slot.0, model = wanted.model, "endpoint joined");
            let (events, replay) = match &wanted.events {
                Events::None | Events::Ask => continue,
                Events::At(Sockets { events, replay }) => (subscriber::Events::Connect(events.clone()), replay),
                Events::Dials { replay } => {
                    let calls = self.others.board.expect(wanted.key.address, wanted.engine);
                    (subscriber::Events::Bound(calls), replay)
                }
            };
            let source = Source { slot, key: wanted.key, events, replay: replay.clone() };
            let stream = subscriber::follow(self.app.clone(), self.others.company.clone(), source);
            self.streams.insert(slot, tokio::spawn(stream));
        }
    }

    /// Starts and ends what runs once for each address.
    async fn follow_engines(&mut self) {
        let mut wanted: BTreeMap<SocketAddr, Address> = BTreeMap::new();
        for (slot, endpoint) in self.roster.seated() {
            let address = wanted.entry(endpoint.key.address).or_insert_with(|| Address {
                model: endpoint.model.clone(),
                metrics: endpoint.metrics.clone(),
                every: self.plan.config.scrape_interval(),
                ranks: Vec::new(),
            });
            address.ranks.push((slot, endpoint.engine));
        }
        let void: Vec<SocketAddr> =
            self.engines.iter().filter(|(at, e)| wanted.get(at) != Some(&e.of)).map(|(at, _)| *at).collect();
        for address in void {
            let Some(engine) = self.engines.remove(&address) else { continue };
            end(engine.tasks).await;
            let first = |of: &Address| of.ranks.first().map(|(slot, _)| *slot);
            let before = first(&engine.of);
            if let Some(slot) = before.filter(|_| wanted.get(&address).and_then(first) != before) {
                // Another rank speaks for the engine now.
                self.app.state().models.leave(slot);
            }
        }
        let asking = &self.asking;
        self.restarts.retain(|address, _| wanted.contains_key(address) || asking.contains_key(address));
        for (address, of) in wanted {
            if !self.engines.contains_key(&address) {
                let tasks = self.follow_engine(address, &of);
                self.engines.insert(address, Engine { of, tasks });
            }
        }
    }

    fn follow_engine(&self, address: SocketAddr, of: &Address) -> Vec<JoinHandle<()>> {
        let mut tasks = Vec::new();
        // What an engine says of its models holds for all its ranks: the first one stands for them.
        let Some((slot, _)) = of.ranks.first().copied() else { return tasks };
        let Some(book) = self.plan.library.get(&of.model) else { return tasks };
        let ranks = of.ranks.iter().map(|(slot, _)| *slot).collect();
        self.app.state().models.add(slot, &of.model, ranks);
        let (app, client) = (self.app.clone(), self.client.clone());
        let address = address.to_string();
        tasks.push(tokio::spawn(served::follow(app, client, slot, address.clone(), of.model.clone())));
        if let Some(url) = of.metrics.clone() {
            let (app, client) = (self.app.clone(), self.client.clone());
            tasks.push(tokio::spawn(scrape::follow(app, client, of.ranks.clone(), url, of.every)));
        }
        if book.model.self_test {
            let subject = Subject { slot, address, vocabulary: book.vocabulary.clone() };
            tasks.push(tokio::spawn(engine::follow(self.app.clone(), subject)));
        }
        tasks
    }

    /// Asks exactly these engines for their event sources.
    async fn ask(&mut self, engines: &BTreeSet<SocketAddr>) {
        let void: Vec<SocketAddr> = self.asking.keys().filter(|address| !engines.contains(address)).copied().collect();
        for address in void {
            end(self.asking.remove(&address)).await;
            self.hub.told(address, None);
        }
        for address in engines {
            let restarted = self.restarts.entry(*address).or_default().subscribe();
            let (hub, client) = (self.hub.clone(), self.client.clone());
            self.asking
                .entry(*address)
                .or_insert_with(|| tokio::spawn(sources::follow(hub, client, *address, restarted)));
        }
    }
}

impl Drop for Reconciler {
    fn drop(&mut self) {
        let engines = self.engines.values().flat_map(|engine| &engine.tasks);
        for task in self.streams.values().chain(self.asking.values()).chain(engines) {
            task.abort();
        }
    }
}

/// Ends tasks: they are over when this returns.
async fn end(tasks: impl IntoIterator<Item = JoinHandle<()>>) {
    let tasks: Vec<_> = tasks.into_iter().collect();
    tasks.iter().for_each(JoinHandle::abort);
    for task in tasks {
        let _ = task.await;
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
