//! Where an engine's data-parallel ranks publish, by its own word: vLLM's `GET /kv_event_sources`.
//!
//! It answers with the event publisher's configuration of each rank, by the rank's number in its group; ports are
//! those in use, rank offsets included, hosts as given to the engine: `tcp://*:5557`. `{}`: no rank publishes.

use super::{Events, Hub, Key, Sockets, Wanted, file};
use crate::answer;
use crate::config::IP;
use anyhow::{Context, Result, ensure};
use reqwest::StatusCode;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::watch;

/// How often an engine is asked: ranks come and go while it runs (elastic expert parallelism).
const EVERY: Duration = Duration::from_secs(30);
/// How soon one that does not answer is asked again.
const RETRY: Duration = Duration::from_secs(5);
/// An answer takes at most this long, and is at most this long.
const PATIENCE: Duration = Duration::from_secs(5);
const LIMIT: usize = 1 << 20;
/// More ranks than any engine has.
const MOST_RANKS: usize = 1024;

/// An engine's ranks by their numbers, in order, and where each publishes.
pub type Sources = BTreeMap<u16, Option<Sockets>>;

/// A rank's publisher, as vLLM's `KVEventsConfig`; what else is in it does not matter.
#[derive(Deserialize)]
struct Publisher {
    #[serde(default)]
    enable_kv_cache_events: bool,
    #[serde(default)]
    publisher: Option<String>,
    #[serde(default)]
    endpoint: Option<String>,
    #[serde(default)]
    replay_endpoint: Option<String>,
}

/// Reads an answer.
///
/// # Errors
/// Says what is wrong with it.
pub fn read(answer: &[u8], address: SocketAddr) -> Result<Sources> {
    let ranks: BTreeMap<u16, Publisher> = serde_json::from_slice(answer).context("this is no list of event sources")?;
    ensure!(ranks.len() <= MOST_RANKS, "{} ranks are more than {MOST_RANKS}", ranks.len());
    let sockets = |publisher: &Publisher| {
        if !publisher.enable_kv_cache_events || publisher.publisher.as_deref() != Some("zmq") {
            return None;
        }
        let events = reachable(publisher.endpoint.as_deref()?, address)?;
        let replay = publisher.replay_endpoint.as_deref().and_then(|url| reachable(url, address));
        Some(Sockets { events, replay })
    };
    Ok(ranks.iter().map(|(rank, publisher)| (*rank, sockets(publisher))).collect())
}

/// Where to connect to reach a socket that the engine binds: any address of its host is the endpoint's own. `None`: the
/// engine does not bind it, or no other host can reach it.
fn reachable(url: &str, address: SocketAddr) -> Option<String> {
    let (host, port) = url.strip_prefix("tcp://")?.rsplit_once(':')?;
    let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
    let everywhere = matches!(host, "*" | "0.0.0.0" | "::" | "[::]");
    let host = if everywhere { file::here(IP, address) } else { host.to_owned() };
    Some(format!("tcp://{host}:{port}"))
}

/// The endpoints of an engine that was asked, or was not yet.
#[must_use]
pub fn expand(wanted: &Wanted, sources: Option<&Sources>) -> Vec<Wanted> {
    let ranks = sources.map_or(0, BTreeMap::len);
    let events = |sockets: &Option<Sockets>| sockets.clone().map_or(Events::None, Events::At);
    match sources {
        Some(sources) if ranks > 0 => {
            let rank = |(at, (engine, sockets)): (u16, (&u16, &Option<Sockets>))| Wanted {
                // The header counts the ranks behind one address, whatever their numbers in the group.
                key: Key { rank: (ranks > 1).then_some(at), ..wanted.key },
                engine: (ranks > 1).then_some(*engine),
                events: events(sockets),
                ..wanted.clone()
            };
            (0u16..).zip(sources).map(rank).collect()
        }
        _ => vec![Wanted { events: Events::None, ..wanted.clone() }],
    }
}

/// Asks an engine again and again, and at once when it was `restarted`.
pub async fn follow(hub: Hub, client: reqwest::Client, address: SocketAddr, mut restarted: watch::Receiver<()>) {
    let url = format!("http://{address}/kv_event_sources");
    let mut said = None;
    loop {
        let (wait, saying) = match ask(&client, &url, address).await {
            Ok(Some(sources)) => {
                let publishing = sources.values().flatten().count();
                let saying = match publishing {
                    0 => "the engine publishes no KV events (--kv-events-config), so only placements predict what it holds"
                        .to_owned(),
                    _ => format!("the engine says where it publishes: {publishing} of {} ranks", sources.len()),
                };
                hub.told(address, Some(sources));
                (EVERY, saying)
            }
            Ok(None) => {
                hub.told(address, Some(Sources::new()));
                let saying = "the engine cannot say where it publishes: it has no /kv_event_sources. Give `events` and \
                              `replay` in the configuration; until then only placements predict what it holds";
                (EVERY, saying.to_owned())
            }
            // What it said last counts: it may be starting anew.
            Err(error) => {
                tracing::debug!(url, error = format!("{error:#}"), "the engine does not say where it publishes");
                (RETRY, String::new())
            }
        };
        if !saying.is_empty() && said.as_ref() != Some(&saying) {
            tracing::info!(endpoint = %address, "{saying}");
            said = Some(saying);
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = restarted.changed() => if changed.is_err() { return },
        }
    }
}

/// `None`: the engine is too old to know the question.
async fn ask(client: &reqwest::Client, url: &str, address: SocketAddr) -> Result<Option<Sources>> {
    let response = client.get(url).timeout(PATIENCE).send().await?;
    if response.status() == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    read(&answer::body(response.error_for_status()?, LIMIT).await?, address).map(Some)
}

#[cfg(test)]
mod tests;
