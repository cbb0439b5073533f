//! Endpoints behind names: every address of a name is one, as with a headless Service of Kubernetes.
//!
//! Names are looked up as every other program on the machine does it, by the system's resolver: search domains, hosts
//! file and caches apply, and nothing has to be configured twice. A resolver of its own would know how long an answer
//! lasts; but the answers of a cluster's DNS last seconds anyway.

use super::{Hub, Provider, Wanted, file};
use crate::config::{Config, Endpoint};
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A name's last answer counts this long while it cannot be looked up. A name without addresses counts as one that
/// cannot be looked up: resolvers do not tell the two apart.
pub const KEEP: Duration = Duration::from_secs(60);
/// A look-up takes at most this long.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the configuration says of names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Names {
    /// Entries with a name.
    entries: Vec<Endpoint>,
    every: Duration,
}

impl Names {
    /// As configured.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let entries = config.endpoints.iter().filter(|endpoint| endpoint.dns.is_some()).cloned().collect();
        Self { entries, every: config.dns_interval() }
    }

    /// Whether there is nothing to look up.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Looks names up again and again, and gives their endpoints.
pub async fn follow(hub: Hub, names: watch::Receiver<Names>) {
    follow_with(hub, names, |name| async move { Ok(tokio::net::lookup_host(name).await?.collect()) }).await;
}

async fn follow_with<L, F>(hub: Hub, mut names: watch::Receiver<Names>, look_up: L)
where
    L: Fn(String) -> F,
    F: Future<Output = std::io::Result<Vec<SocketAddr>>>,
{
    let mut answers = Answers::default();
    loop {
        let now_wanted = names.borrow_and_update().clone();
        let distinct: BTreeSet<&String> = now_wanted.entries.iter().filter_map(|entry| entry.dns.as_ref()).collect();
        let looked_up = join_all(distinct.into_iter().map(async |name| {
            let answer = tokio::time::timeout(PATIENCE, look_up(name.clone())).await;
            (name.clone(), answer.unwrap_or_else(|late| Err(late.into())))
        }));
        answers.update(looked_up.await, Instant::now());
        // Another configuration meanwhile: its list is the one to give.
        if !names.has_changed().unwrap_or(false) {
            hub.give(Provider::Dns, answers.endpoints(&now_wanted.entries));
            let every = if now_wanted.is_empty() { Duration::MAX } else { now_wanted.every };
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                changed = names.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// The names' last answers.
#[derive(Default)]
struct Answers(BTreeMap<String, Answer>);

struct Answer {
    addresses: BTreeSet<SocketAddr>,
    at: Instant,
    failing: bool,
}

impl Answers {
    fn update(&mut self, looked_up: Vec<(String, std::io::Result<Vec<SocketAddr>>)>, now: Instant) {
        let names: BTreeSet<&String> = looked_up.iter().map(|(name, _)| name).collect();
        self.0.retain(|name, _| names.contains(name));
        for (name, addresses) in looked_up {
            let answer = self.0.entry(name.clone()).or_insert_with(|| Answer {
                addresses: BTreeSet::new(),
                at: now,
                failing: false,
            });
            match addresses {
                Ok(addresses) if !addresses.is_empty() => {
                    *answer = Answer { addresses: addresses.into_iter().collect(), at: now, failing: false };
                }
                failed => {
                    let error = failed.err().map_or_else(|| "it has no address".to_owned(), |e| e.to_string());
                    if !std::mem::replace(&mut answer.failing, true) {
                        let endpoints = answer.addresses.len();
                        tracing::warn!(
                            name,
                            error,
                            endpoints,
                            "cannot look the name up; its last answer counts for {KEEP:?}"
                        );
                    }
                    if now.saturating_duration_since(answer.at) >= KEEP && !answer.addresses.is_empty() {
                        tracing::warn!(name, error, "the name's endpoints are given up");
                        answer.addresses.clear();
                    }
                }
            }
        }
    }

    fn endpoints(&self, entries: &[Endpoint]) -> Vec<Wanted> {
        let addresses = |entry: &Endpoint| self.0.get(entry.dns.as_ref()?).map(|answer| answer.addresses.clone());
        let with = |entry| addresses(entry).into_iter().flatten().map(move |address| (entry, address));
        entries.iter().flat_map(with).flat_map(|(entry, address)| file::at(entry, address)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    const CONFIG: &str = "
models: [{name: m, tokenizer: t}]
dns_interval_ms: 1000
endpoints: [{dns: 'vllm.svc:8000', model: m, events: 'tcp://{ip}:5557'}]";

    type Book = Arc<Mutex<Result<Vec<SocketAddr>, ()>>>;

    fn keys(hub: &Hub) -> Vec<String> {
        hub.changes().borrow().lists.get(&Provider::Dns).into_iter().flatten().map(|w| w.key.to_string()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_names_addresses_come_and_go_and_outlast_a_failure() {
        let book: Book =
            Arc::new(Mutex::new(Ok(vec!["10.0.0.2:8000".parse().unwrap(), "10.0.0.1:8000".parse().unwrap()])));
        let hub = Hub::default();
        let (sender, names) = watch::channel(Names::of(&Config::parse(CONFIG).unwrap()));
        let asked = book.clone();
        let task = tokio::spawn(follow_with(hub.clone(), names, move |name| {
            assert_eq!(name, "vllm.svc:8000");
            let answer = asked.lock().unwrap().clone().map_err(|()| std::io::Error::other("SERVFAIL"));
            async move { answer }
        }));
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(keys(&hub), ["10.0.0.1:8000", "10.0.0.2:8000"]);
        *book.lock().unwrap() = Ok(vec!["10.0.0.3:8000".parse().unwrap(), "10.0.0.2:8000".parse().unwrap()]);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(keys(&hub), ["10.0.0.2:8000", "10.0.0.3:8000"]);
        *book.lock().unwrap() = Err(());
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(keys(&hub), ["10.0.0.2:8000", "10.0.0.3:8000"]);
        // Another configuration is followed at once.
        sender.send_replace(Names::default());
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(keys(&hub), [""; 0]);
        task.abort();
    }

    #[test]
    fn a_failing_name_is_given_up_after_a_while() {
        let entries = Names::of(&Config::parse(CONFIG).unwrap()).entries;
        let (mut answers, now) = (Answers::default(), Instant::now());
        let name = || "vllm.svc:8000".to_owned();
        let failed = || vec![(name(), Err(std::io::Error::other("SERVFAIL")))];
        answers.update(failed(), now);
        assert!(answers.endpoints(&entries).is_empty());
        answers.update(vec![(name(), Ok(vec!["10.0.0.1:8000".parse().unwrap()]))], now);
        answers.update(failed(), now + KEEP - Duration::from_millis(1));
        assert_eq!(answers.endpoints(&entries).len(), 1);
        answers.update(vec![(name(), Ok(vec![]))], now + KEEP);
        assert!(answers.endpoints(&entries).is_empty());
    }
}
