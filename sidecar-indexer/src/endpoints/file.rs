//! Endpoints that the configuration names by address.

use super::{Events, Key, Sockets, Wanted};
use crate::config::{self, Config, Endpoint};
use std::net::SocketAddr;

/// All of them, in the configuration's order.
#[must_use]
pub fn list(config: &Config) -> Vec<Wanted> {
    let named = |endpoint: &Endpoint| Some((endpoint.address.as_ref()?.parse().ok()?, endpoint.clone()));
    config.endpoints.iter().filter_map(named).flat_map(|(address, endpoint)| at(&endpoint, address)).collect()
}

/// What an entry of the configuration says of the engine at this address: one endpoint for each data-parallel rank.
#[must_use]
pub fn at(entry: &Endpoint, address: SocketAddr) -> Vec<Wanted> {
    let one = |rank: Option<u16>| {
        // vLLM numbers ranks over all engines of a group, also where each has an API of its own.
        let number = entry.data_parallel_start_rank.saturating_add(rank.unwrap_or(0));
        let events = match &entry.events {
            None => Events::None,
            Some(config::Events::Auto) => Events::Ask,
            Some(config::Events::Bind) => {
                let replay = entry.replay.as_deref().and_then(|url| offset(&here(url, address), number));
                Events::Dials { replay }
            }
            Some(config::Events::Url(url)) => {
                let here = |url: &str| offset(&here(url, address), number);
                match (here(url), entry.replay.as_deref().map(here)) {
                    (Some(events), replay) => Events::At(Sockets { events, replay: replay.flatten() }),
                    (None, _) => Events::None,
                }
            }
        };
        Wanted {
            key: Key { address, rank },
            engine: rank.map(|_| number),
            model: entry.model.clone(),
            events,
            metrics: entry.metrics_url(address),
            prefill_rate: entry.prefill_tokens_per_second,
        }
    };
    match entry.data_parallel_ranks {
        0 | 1 => vec![one(None)],
        ranks => (0..ranks).map(|rank| one(Some(rank))).collect(),
    }
}

/// A URL with the endpoint's own IP in place of `{ip}`.
#[must_use]
pub fn here(url: &str, address: SocketAddr) -> String {
    let ip = match address {
        SocketAddr::V4(v4) => v4.ip().to_string(),
        SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
    };
    url.replace(config::IP, &ip)
}

/// Where rank `rank` is if rank 0 is at `url`: that many ports on, as vLLM's `offset_endpoint_port` has it. `None` if
/// there is no such port.
fn offset(url: &str, rank: u16) -> Option<String> {
    if rank == 0 || !url.starts_with("tcp://") {
        return Some(url.to_owned());
    }
    let (host, port) = url.rsplit_once(':')?;
    Some(format!("{host}:{}", port.parse::<u16>().ok()?.checked_add(rank)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(yaml: &str) -> Endpoint {
        serde_yaml_ng::from_str(&format!("{{model: m, {yaml}}}")).unwrap()
    }

    fn events(wanted: &Wanted) -> (&str, Option<&str>) {
        let Events::At(at) = &wanted.events else { panic!("no events: {wanted:?}") };
        (&at.events, at.replay.as_deref())
    }

    #[test]
    fn each_rank_publishes_one_port_on() {
        let entry = entry(
            "data_parallel_ranks: 2, data_parallel_start_rank: 8, events: 'tcp://{ip}:5557', replay: 'tcp://h:5657'",
        );
        let ranks = at(&entry, "10.0.0.1:8000".parse().unwrap());
        assert_eq!(
            ranks.iter().map(events).collect::<Vec<_>>(),
            [("tcp://10.0.0.1:5565", Some("tcp://h:5665")), ("tcp://10.0.0.1:5566", Some("tcp://h:5666")),]
        );
        let numbers: Vec<_> = ranks.iter().map(|w| (w.key.rank, w.engine, w.key.to_string())).collect();
        assert_eq!(
            numbers,
            [(Some(0), Some(8), "10.0.0.1:8000#0".to_owned()), (Some(1), Some(9), "10.0.0.1:8000#1".to_owned()),]
        );
    }

    #[test]
    fn an_ipv6_address_is_put_in_brackets() {
        let entry = entry("events: 'tcp://{ip}:5557', metrics: 'http://{ip}:9000/m'");
        let ranks = at(&entry, "[fd00::1]:8000".parse().unwrap());
        assert_eq!((ranks[0].key.rank, events(&ranks[0]).0), (None, "tcp://[fd00::1]:5557"));
        assert_eq!(ranks[0].metrics.as_deref(), Some("http://[fd00::1]:9000/m"));
        let plain = at(&self::entry(""), "[fd00::1]:8000".parse().unwrap());
        assert_eq!(plain[0].metrics.as_deref(), Some("http://[fd00::1]:8000/metrics"));
    }
}
