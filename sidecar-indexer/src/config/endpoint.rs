//! The section about engines.

use super::Field;
use anyhow::{Result, bail, ensure};
use serde::Deserialize;
use std::net::SocketAddr;
use zeromq::Endpoint as Socket;

/// Stands for an endpoint's own IP in its URLs.
pub const IP: &str = "{ip}";

/// Prefill speed of an engine of which it is not known, in tokens per second.
pub const DEFAULT_RATE: f32 = 8000.0;

section! {
    /// One engine, or all engines behind a name.
    Endpoint {
        /// `ip:port` of its HTTP API, as the gateway's cluster spells it.
        #[serde(default)]
        address: Option<String> = "10.0.0.11:8000",
        /// In place of an address: `name:port`. Every address that the name has is an endpoint, as behind a headless
        /// Service. While it cannot be looked up its last answer counts, for 60 seconds.
        #[serde(default)]
        dns: Option<String> = "null",
        /// Which of the models above it serves.
        model: String = "llama-3.1-8b",
        /// Its KV events, as `--kv-events-config` sets them up: a URL, in which `{ip}` stands for the endpoint's own IP;
        /// or `auto` to ask the engine, ranks included (vLLM's /kv_event_sources; 0.32 has it); or `bind`: it dials in.
        /// Leave out for an engine without events: then only placements predict what it holds.
        #[serde(default)]
        events: Option<Events> = "tcp://{ip}:5557",
        /// Its replay of past events, likewise. Without one the indexer knows only what was cached since it connected,
        /// forgets it when a message is lost or the connection breaks, and may not notice that a machine has died.
        #[serde(default)]
        replay: Option<String> = "tcp://{ip}:5657",
        /// Data-parallel ranks behind this address, each with a cache of its own. `events` and `replay` are those of rank
        /// 0, rank R's are R ports on. Requests carry the rank that they are for in the header `x-data-parallel-rank` while
        /// its events are connected.
        #[serde(default = "one")]
        data_parallel_ranks: u16 = "1",
        /// The engine's --data-parallel-start-rank: the number of the first rank behind this address in its group.
        #[serde(default)]
        data_parallel_start_rank: u16 = "0",
        /// Its metrics: auto (`http://ADDRESS/metrics`), none, or a URL, also with `{ip}`. An endpoint whose metrics do
        /// not answer three times in a row counts as down; an answer that is only late, over 5 seconds, does not count
        /// against one whose events come, for half a minute.
        #[serde(default)]
        metrics: Metrics = "auto",
        /// How fast it prefills, in tokens per second; measure it with one long prompt on an idle engine.
        #[serde(default = "default_rate")]
        prefill_tokens_per_second: f32 = "8000",
    }
}

/// Where an engine's events are.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum Events {
    /// Where the engine says.
    Auto,
    /// It dials in.
    Bind,
    /// There.
    Url(String),
}

impl From<String> for Events {
    fn from(text: String) -> Self {
        match text.as_str() {
            "auto" => Events::Auto,
            "bind" => Events::Bind,
            _ => Events::Url(text),
        }
    }
}

/// Where an engine's metrics are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum Metrics {
    /// At `/metrics` of its address.
    #[default]
    Auto,
    /// Nowhere: load and health are unknown.
    None,
    /// There.
    Url(String),
}

impl From<String> for Metrics {
    fn from(text: String) -> Self {
        match text.as_str() {
            "auto" => Metrics::Auto,
            "none" => Metrics::None,
            _ => Metrics::Url(text),
        }
    }
}

fn default_rate() -> f32 {
    DEFAULT_RATE
}

fn one() -> u16 {
    1
}

impl Endpoint {
    /// The URL of its metrics, if it has any.
    #[must_use]
    pub fn metrics_url(&self, address: SocketAddr) -> Option<String> {
        match &self.metrics {
            Metrics::Auto => Some(format!("http://{address}/metrics")),
            Metrics::None => None,
            Metrics::Url(url) => Some(crate::endpoints::file::here(url, address)),
        }
    }

    /// Everything about one entry that needs no other.
    pub(super) fn check(&self) -> Result<()> {
        match (&self.address, &self.dns) {
            (Some(address), None) => check_address(address)?,
            (None, Some(name)) => check_name(name)?,
            _ => bail!("address: give either an address (ip:port) or a name (dns: name:port)"),
        }
        let ranks = self.data_parallel_ranks;
        ensure!(ranks > 0, "data_parallel_ranks: 0 would be no engine at all");
        let auto = self.events == Some(Events::Auto);
        ensure!(
            !auto || self.replay.is_none(),
            "replay: the engine says itself where it is (events: auto); leave it out"
        );
        ensure!(
            !auto || (ranks == 1 && self.data_parallel_start_rank == 0),
            "data_parallel_ranks: the engine says itself which it has (events: auto); leave it out"
        );
        let events = match &self.events {
            Some(Events::Url(url)) => Some(url),
            Some(Events::Auto | Events::Bind) | None => None,
        };
        for (option, url) in [("events", events), ("replay", self.replay.as_ref())] {
            if let Some(url) = url {
                self.check_socket(option, url)?;
            }
        }
        ensure!(self.replay.is_none() || self.events.is_some(), "replay: is of no use without events");
        if let Metrics::Url(url) = &self.metrics {
            let parsed = reqwest::Url::parse(&url.replace(IP, "10.0.0.1"));
            let usable = parsed.is_ok_and(|url| url.scheme() == "http" && url.has_host());
            ensure!(usable, "metrics: {url:?} is not auto, none or a URL as in http://HOST:PORT/metrics");
            self.check_own("metrics", url)?;
        }
        let rate = self.prefill_tokens_per_second;
        ensure!(rate.is_finite() && rate > 0.0, "prefill_tokens_per_second: {rate} is not above 0");
        Ok(())
    }

    fn check_socket(&self, option: &str, url: &str) -> Result<()> {
        ensure!(!url.contains('*'), "{option}: {url:?} is where the engine binds; give the address to connect to");
        let usable = match url.replace(IP, "10.0.0.1").parse() {
            Ok(Socket::Tcp(_, port)) => {
                let last = port.checked_add(self.data_parallel_start_rank);
                let last = last.and_then(|port| port.checked_add(self.data_parallel_ranks - 1));
                ensure!(last.is_some(), "{option}: {url:?} leaves no ports for {} ranks", self.data_parallel_ranks);
                port != 0
            }
            Ok(_) => {
                ensure!(
                    self.data_parallel_ranks == 1,
                    "{option}: {url:?} has no port, so ranks cannot differ in theirs"
                );
                true
            }
            Err(_) => false,
        };
        ensure!(usable, "{option}: {url:?} cannot be connected to; write tcp://HOST:PORT or ipc://PATH");
        self.check_own(option, url)
    }

    /// Engines behind one name each need a URL of their own.
    fn check_own(&self, option: &str, url: &str) -> Result<()> {
        ensure!(
            self.dns.is_none() || url.contains(IP),
            "{option}: {url:?} would be the same for every address of the name; write {IP} for the address's own IP"
        );
        Ok(())
    }
}

fn check_address(address: &str) -> Result<()> {
    let Ok(parsed) = address.parse::<SocketAddr>() else {
        bail!(
            "address: {address:?} is not ip:port; the gateway matches hosts by address. For all addresses of a name \
             write `dns: {address}` instead"
        );
    };
    ensure!(parsed.port() != 0, "address: {address:?} has port 0; give the port of the engine's HTTP API");
    let canonical = parsed.to_string();
    ensure!(*address == canonical, "address: {address:?} is not as the gateway spells it: write {canonical:?}");
    Ok(())
}

fn check_name(name: &str) -> Result<()> {
    let parts = name.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>()));
    let usable = matches!(parts, Some((host, Ok(1..))) if !host.is_empty() && !host.contains(['/', ':', ' ']));
    ensure!(usable, "dns: {name:?} is not name:port, as in vllm.default.svc:8000");
    Ok(())
}
