//! Where endpoints come from.
//!
//! A provider ([`mod@file`], [`dns`], one for Kubernetes some day) gives, again and again, the whole list of endpoints it
//! knows now: [`Hub::give`]. A new one needs a file here and a name in [`Provider`]. [`gather`] makes one list of
//! theirs, in which [`sources`] fills in what engines say of themselves; [`crate::reconciler`] follows that list.
//!
//! **Invariants** of what [`gather`] gives: an address comes from one provider, a rank at an address is there once, and
//! no two endpoints share a socket of events, for then one's cache would be taken for the other's.

pub mod dns;
pub mod file;
pub mod sources;

use affinity::Slot;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use tokio::sync::watch;

/// Who gives endpoints; in order of precedence where two give the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Provider {
    /// Addresses in the configuration.
    File,
    /// Names in the configuration.
    Dns,
}

/// An endpoint that a provider wants followed.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Where and which rank.
    pub key: Key,
    /// What the engine's metrics call this rank (`engine="3"`); `None`: the page is about one engine.
    pub engine: Option<u16>,
    /// Name of the model it serves.
    pub model: String,
    /// Its KV events.
    pub events: Events,
    /// URL of its metrics.
    pub metrics: Option<String>,
    /// Prefill speed in tokens per second.
    pub prefill_rate: f32,
}

/// What tells endpoints apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Of the HTTP API.
    pub address: SocketAddr,
    /// Data-parallel rank, as the header `x-data-parallel-rank` counts: from 0 at each address.
    pub rank: Option<u16>,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rank {
            Some(rank) => write!(f, "{}#{rank}", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

/// Where KV events come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Events {
    /// Nowhere: only placements predict what the endpoint holds.
    None,
    /// These sockets.
    At(Sockets),
    /// The engine dials in.
    Dials {
        /// Where it replays, if it does.
        replay: Option<String>,
    },
    /// As the engine says ([`sources`]). Not in what [`gather`] gives.
    Ask,
}

/// An engine's ZeroMQ sockets, to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sockets {
    /// Where it publishes.
    pub events: String,
    /// Where it replays, if it does.
    pub replay: Option<String>,
}

impl Wanted {
    /// An endpoint with an address and a model, and nothing else.
    #[must_use]
    pub fn bare(address: SocketAddr, model: &str) -> Self {
        Self {
            key: Key { address, rank: None },
            engine: None,
            model: model.to_owned(),
            events: Events::None,
            metrics: None,
            prefill_rate: crate::config::DEFAULT_RATE,
        }
    }

    /// Whether what is known of `other`'s cache says nothing about this one's.
    #[must_use]
    pub fn is_another(&self, other: &Self) -> bool {
        (self.key, &self.model, &self.events) != (other.key, &other.model, &other.events)
    }
}

/// What is known of endpoints now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// Every provider's list. A provider without one has not answered yet.
    pub lists: BTreeMap<Provider, Vec<Wanted>>,
    /// What engines say of their event sources.
    pub sources: BTreeMap<SocketAddr, sources::Sources>,
}

/// Where providers put their lists and [`sources`] its answers, and where the reconciler finds them.
#[derive(Clone, Default)]
pub struct Hub(watch::Sender<Known>);

impl Hub {
    /// Told of every change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Known> {
        self.0.subscribe()
    }

    /// All that a provider knows, in place of what it gave before.
    pub fn give(&self, provider: Provider, list: Vec<Wanted>) {
        self.0.send_if_modified(|known| {
            let changed = known.lists.get(&provider) != Some(&list);
            known.lists.insert(provider, list);
            changed
        });
    }

    /// What an engine says; `None`: nobody asks it any more.
    pub fn told(&self, address: SocketAddr, sources: Option<sources::Sources>) {
        self.0.send_if_modified(|known| {
            let changed = known.sources.get(&address) != sources.as_ref();
            match sources {
                Some(sources) => drop(known.sources.insert(address, sources)),
                None => drop(known.sources.remove(&address)),
            }
            changed
        });
    }
}

/// All providers' endpoints as one list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gathered {
    /// The endpoints, providers in order of precedence.
    pub endpoints: Vec<Wanted>,
    /// Engines to be asked for their event sources.
    pub ask: BTreeSet<SocketAddr>,
    /// What was left out, and why, for people.
    pub notes: BTreeSet<String>,
}

/// Makes one list of what is known; see the module's invariants. Only endpoints of these models are taken.
#[must_use]
pub fn gather(known: &Known, models: &BTreeSet<&str>) -> Gathered {
    let mut all = Gathered::default();
    let (mut owners, mut keys, mut sockets) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    for (provider, wanted) in known.lists.iter().flat_map(|(p, list)| list.iter().map(move |w| (p, w))) {
        let address = wanted.key.address;
        if !models.contains(wanted.model.as_str()) {
            all.notes.insert(format!("{address} is left out: its model {:?} is not among the models", wanted.model));
            continue;
        }
        if *owners.entry(address).or_insert(provider) != provider {
            all.notes.insert(format!("{address} is named twice, by {:?} too: that is passed over", provider));
            continue;
        }
        let expanded = match &wanted.events {
            Events::Ask => {
                all.ask.insert(address);
                sources::expand(wanted, known.sources.get(&address))
            }
            Events::None | Events::At(_) | Events::Dials { .. } => vec![wanted.clone()],
        };
        for mut endpoint in expanded {
            if !keys.insert(endpoint.key) {
                all.notes.insert(format!("{} is named twice", endpoint.key));
                continue;
            }
            if let Events::At(at) = &endpoint.events {
                let urls: Vec<_> = std::iter::once(&at.events).chain(&at.replay).map(|url| spelling(url)).collect();
                if urls.iter().any(|url| sockets.contains(url)) {
                    let (key, events) = (endpoint.key, &at.events);
                    all.notes.insert(format!("the events of {key} are not read: {events} is another endpoint's, too"));
                    endpoint.events = Events::None;
                } else {
                    sockets.extend(urls);
                }
            }
            all.endpoints.push(endpoint);
        }
    }
    all
}

/// A socket's address spelled in one way, so that port 08001 is no other than 8001.
#[must_use]
pub fn spelling(url: &str) -> String {
    url.parse().map_or_else(|_| url.to_owned(), |socket: zeromq::Endpoint| socket.to_string())
}

/// An endpoint's place in the fleet.
#[derive(Clone, Debug, PartialEq)]
pub struct Seated {
    /// Its slot.
    pub slot: Slot,
    /// What is wanted of it.
    pub wanted: Wanted,
}

#[cfg(test)]
mod tests;
