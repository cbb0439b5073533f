//! Asking peers over HTTP.

use super::Offer;
use crate::answer::{self, TooLarge};
use crate::endpoints::Key;
use anyhow::{Context, Error, Result};
use futures::future::join_all;
use reqwest::{Client, Url};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// The header that says where a snapshot is: `NEXT LAST`.
pub const POSITION: &str = "x-warmpath-position";
/// For peers to say what they have.
const ANSWER: Duration = Duration::from_secs(1);
/// For one of them to send it.
const BODY: Duration = Duration::from_secs(5);
/// A peer whose snapshot is of no use is not asked for so long, whatever the endpoint.
const ASIDE: Duration = Duration::from_secs(60);
/// Snapshots received at a time, over all endpoints.
const AT_ONCE: usize = 4;
/// Addresses asked, over all names.
const MOST: usize = 16;

pub struct Peers {
    client: Client,
    urls: Vec<Url>,
    /// Most bytes of a snapshot.
    limit: usize,
    turns: Semaphore,
    /// Peers that failed, and when.
    failed: Mutex<BTreeMap<Url, Instant>>,
}

impl Peers {
    pub fn new(urls: &[String], limit: usize) -> Result<Self> {
        let client = Client::builder().connect_timeout(ANSWER).no_proxy().build()?;
        let parse = |url: &String| Url::parse(url).with_context(|| format!("peers: {url:?} is no URL"));
        let urls = urls.iter().map(parse).collect::<Result<_>>()?;
        Ok(Self { client, urls, limit, turns: Semaphore::new(AT_ONCE), failed: Mutex::default() })
    }

    /// The snapshot of the peer that is furthest. We ourselves may be among them: then we say that we have none.
    pub async fn ask(&self, key: Key) -> Option<Offer> {
        let urls = timeout(ANSWER, join_all(self.urls.iter().map(addresses))).await.ok()?;
        let mut urls: Vec<Url> = urls.into_iter().flatten().collect();
        urls.sort();
        urls.dedup();
        urls.retain(|peer| !self.is_aside(peer));
        urls.truncate(MOST);
        // Those that do not answer are not put aside: that costs one second for all together, and may be our own load.
        let places = urls.into_iter().map(|peer| async move {
            let (last, from) = timeout(ANSWER, self.place(&peer, key)).await.ok()?.ok()??;
            Some((last, from, peer))
        });
        let mut places: Vec<(f64, Url, Url)> = join_all(places).await.into_iter().flatten().collect();
        // By the engine's clock: numbers of two processes cannot be compared.
        places.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (_, from, peer) in places {
            let _turn = self.turns.acquire().await.ok()?;
            // Others may have met it while this one waited.
            if self.is_aside(&peer) {
                continue;
            }
            let offer = async { Offer::read(self.body(&from).await?, key).await };
            match timeout(BODY, offer).await.map_err(Error::from).and_then(|offer| offer) {
                Ok(offer) => return Some(offer),
                Err(error) => {
                    tracing::info!(%from, error = format!("{error:#}"), "a peer's snapshot is of no use");
                    if is_of_the_peer(&error) {
                        self.put_aside(peer);
                    }
                }
            }
        }
        None
    }

    fn is_aside(&self, peer: &Url) -> bool {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, at| at.elapsed() < ASIDE);
        failed.contains_key(peer)
    }

    fn put_aside(&self, peer: Url) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).insert(peer, Instant::now());
    }

    /// How far a peer is, and where its snapshot is; `None` if it has none.
    async fn place(&self, peer: &Url, key: Key) -> Result<Option<(f64, Url)>> {
        let mut url = peer.join("/v1/snapshot")?;
        url.query_pairs_mut().append_pair("endpoint", &key.address.to_string());
        if let Some(rank) = key.rank {
            url.query_pairs_mut().append_pair("rank", &rank.to_string());
        }
        let answer = self.client.head(url.clone()).send().await?.error_for_status()?;
        let place = answer.headers().get(POSITION).and_then(|value| value.to_str().ok());
        Ok(place.and_then(|place| Some((place.split(' ').nth(1)?.parse().ok()?, url))))
    }

    async fn body(&self, url: &Url) -> Result<Vec<u8>> {
        answer::body(self.client.get(url.clone()).send().await?.error_for_status()?, self.limit).await
    }
}

/// Whether a peer that fails so may be expected to fail for other endpoints, too.
fn is_of_the_peer(error: &Error) -> bool {
    let answered = error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_status);
    !answered && !error.is::<TooLarge>()
}

/// A URL for each address behind it.
async fn addresses(url: &Url) -> Vec<Url> {
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else { return Vec::new() };
    let Ok(addresses) = tokio::net::lookup_host((host.trim_matches(['[', ']']), port)).await else { return Vec::new() };
    let at = |ip| {
        let mut url = url.clone();
        url.set_ip_host(ip).is_ok().then_some(url)
    };
    addresses.filter_map(|address| at(address.ip())).collect()
}
