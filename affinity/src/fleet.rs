//! The fleet page: what the indexer tells the filter of endpoints.

use crate::fingerprint::Stride;
use crate::units::Slot;
use crate::wire::{Reader, Write};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

const VERSION: u8 = 3;

/// The fleet page: every endpoint, and the key to the table.
///
/// **Invariant:** endpoint names only come from here, never from a client.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fleet {
    /// Names the indexer's run and table layout; pages of another epoch count as absent. Never 0.
    pub epoch: u32,
    /// The table has `2^table_bits` pages.
    pub table_bits: u8,
    /// Distance between fingerprints.
    pub stride: Stride,
    /// Gateways heard from lately, the reader included. Placements are worth sending only above 1.
    pub gateways: u16,
    /// All endpoints known, in order of slot.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint as the indexer sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// Names the endpoint in pages.
    pub slot: Slot,
    /// `ip:port`, as the routing header and the cluster spell it.
    pub address: String,
    /// Which data-parallel rank behind the address it is, counted there from 0; `None` for an engine without ranks.
    pub rank: Option<u16>,
    /// Whether it may be chosen.
    pub health: Health,
    /// Whether its event stream is connected and in sync. Without one, predicted holders live longer.
    pub events: bool,
    /// Names under which it serves: indices into [`Profiles::models`](crate::profile::Profiles::models).
    pub models: Vec<u16>,
    /// Prefill speed in tokens per second.
    pub prefill_rate: f32,
    /// The engine's own report; `None` when unknown or old. Unknown is never taken for idle, nor for saturated.
    pub reported: Option<Reported>,
    /// Requests in flight from other gateways.
    pub remote_in_flight: u32,
    /// Uncached tokens dispatched by other gateways, not yet answered by a first byte.
    pub remote_queued_tokens: u32,
}

impl Endpoint {
    /// Tells it from all others, ranks included, in every gateway; for people, too.
    #[must_use]
    pub fn name(&self) -> Cow<'_, str> {
        match self.rank {
            Some(rank) => Cow::Owned(format!("{}#{rank}", self.address)),
            None => Cow::Borrowed(&self.address),
        }
    }

    /// The rank that a request for it may name, where ranks below `common` are everywhere ([`Fleet::common_ranks`]).
    /// Only its events show that the engine has the rank at all; without them it chooses for itself.
    #[must_use]
    pub fn nameable_rank(&self, common: u16) -> Option<u16> {
        self.rank.filter(|rank| self.events && *rank < common)
    }
}

/// Whether an endpoint may be chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// May be chosen.
    #[default]
    Up,
    /// Finishes what it has; never chosen.
    Draining,
    /// Does not answer; never chosen.
    Down,
}

/// Load as scraped from an engine's /metrics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reported {
    /// Requests being computed.
    pub running: u32,
    /// Requests waiting for room.
    pub waiting: u32,
    /// Share of KV blocks that running requests refer to, 0 to 1.
    pub kv_usage: f32,
}

impl Fleet {
    /// Ranks below this are there at every address that may be chosen, so that a request for one of them is valid wherever
    /// a retry takes it. An engine answers a rank that it does not have with an error, which no retry mends.
    #[must_use]
    pub fn common_ranks(&self) -> u16 {
        let mut ranks: BTreeMap<&str, BTreeSet<u16>> = BTreeMap::new();
        let up = self.endpoints.iter().filter(|endpoint| endpoint.health == Health::Up);
        let up: BTreeSet<&str> = up.map(|endpoint| endpoint.address.as_str()).collect();
        // An address with one rank up has all its ranks, those that sleep too.
        for endpoint in self.endpoints.iter().filter(|endpoint| up.contains(endpoint.address.as_str())) {
            ranks.entry(&endpoint.address).or_default().extend(endpoint.rank);
        }
        let missing = |ranks: &BTreeSet<u16>| (0..u16::MAX).find(|rank| !ranks.contains(rank)).unwrap_or(u16::MAX);
        ranks.values().map(missing).min().unwrap_or(0)
    }

    /// The bytes of the fleet page.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.u8(VERSION);
        out.u32(self.epoch);
        out.u8(self.table_bits);
        out.u16(self.stride.bytes() as u16);
        out.u16(self.gateways);
        out.list(&self.endpoints, |out, e| {
            out.u16(e.slot.0);
            out.string(&e.address);
            out.option(e.rank, |out, rank| out.u16(rank));
            out.u8(match e.health {
                Health::Up => 0,
                Health::Draining => 1,
                Health::Down => 2,
            });
            out.u8(u8::from(e.events));
            out.list(&e.models, |out, m| out.u16(*m));
            out.f32(e.prefill_rate);
            out.option(e.reported, |out, r| {
                out.u32(r.running);
                out.u32(r.waiting);
                out.f32(r.kv_usage);
            });
            out.u32(e.remote_in_flight);
            out.u32(e.remote_queued_tokens);
        });
        out
    }

    /// `None` if these are not the bytes of a fleet page.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut r = Reader::of_version(bytes, VERSION)?;
        Some(Self {
            epoch: r.u32()?,
            table_bits: r.u8()?,
            stride: Stride::new(u32::from(r.u16()?))?,
            gateways: r.u16()?,
            endpoints: r.list(26, |r| {
                Some(Endpoint {
                    slot: Slot(r.u16()?),
                    address: r.string()?,
                    rank: r.option(Reader::u16)?,
                    health: match r.u8()? {
                        0 => Health::Up,
                        1 => Health::Draining,
                        2 => Health::Down,
                        _ => return None,
                    },
                    events: r.u8()? != 0,
                    models: r.list(2, Reader::u16)?,
                    prefill_rate: r.f32()?,
                    reported: r
                        .option(|r| Some(Reported { running: r.u32()?, waiting: r.u32()?, kv_usage: r.f32()? }))?,
                    remote_in_flight: r.u32()?,
                    remote_queued_tokens: r.u32()?,
                })
            })?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Profiles;
    use proptest::prelude::*;

    fn fleet() -> Fleet {
        let endpoint = Endpoint {
            slot: Slot(3),
            address: "127.0.0.1:8001".into(),
            rank: Some(7),
            health: Health::Draining,
            events: true,
            models: vec![0, 2],
            prefill_rate: 8000.0,
            reported: Some(Reported { running: 3, waiting: 1, kv_usage: 0.5 }),
            remote_in_flight: 7,
            remote_queued_tokens: 4096,
        };
        let bare = Endpoint { rank: None, reported: None, models: vec![], health: Health::Down, ..endpoint.clone() };
        Fleet { epoch: 9, table_bits: 6, stride: Stride::default(), gateways: 2, endpoints: vec![endpoint, bare] }
    }

    #[test]
    fn a_page_survives_the_round_trip() {
        assert_eq!(Fleet::decode(&fleet().encode()), Some(fleet()));
    }

    /// Found by fuzzing: the fewest bytes of an endpoint were taken to be one more.
    #[test]
    fn an_endpoint_with_nothing_to_say_survives_the_round_trip() {
        let mut fleet = fleet();
        fleet.endpoints.remove(0);
        fleet.endpoints[0].address.clear();
        assert_eq!(Fleet::decode(&fleet.encode()), Some(fleet));
    }

    #[test]
    fn ranks_are_common_if_every_address_has_them() {
        let endpoint = |address: &str, rank| Endpoint {
            address: address.into(),
            rank,
            health: Health::Up,
            ..fleet().endpoints[0].clone()
        };
        let common = |endpoints: &[(&str, Option<u16>)]| {
            let endpoints = endpoints.iter().map(|(address, rank)| endpoint(address, *rank)).collect();
            Fleet { endpoints, ..fleet() }.common_ranks()
        };
        assert_eq!(common(&[]), 0);
        assert_eq!(common(&[("a", Some(0)), ("a", Some(1)), ("b", Some(1)), ("b", Some(0))]), 2);
        assert_eq!(common(&[("a", Some(0)), ("a", Some(1)), ("b", Some(0))]), 1);
        assert_eq!(common(&[("a", Some(0)), ("a", Some(1)), ("b", None)]), 0);
        assert_eq!(common(&[("a", Some(0)), ("a", Some(2))]), 1);
        assert_eq!(endpoint("a:1", Some(2)).name(), "a:1#2");

        let down = Endpoint { health: Health::Down, ..endpoint("b", None) };
        let asleep = Endpoint { health: Health::Draining, ..endpoint("a", Some(0)) };
        let endpoints = vec![asleep, endpoint("a", Some(1)), down];
        assert_eq!(
            Fleet { endpoints, ..fleet() }.common_ranks(),
            2,
            "who is down has no say; one rank asleep is there"
        );
    }

    /// An engine with fewer ranks than configured answered 400 to those that it does not have.
    #[test]
    fn a_rank_is_named_only_if_its_events_show_that_it_is_there() {
        let shown = Endpoint { rank: Some(1), events: true, ..fleet().endpoints[0].clone() };
        assert_eq!((shown.nameable_rank(2), shown.nameable_rank(1)), (Some(1), None));
        assert_eq!(Endpoint { events: false, ..shown }.nameable_rank(2), None);
    }

    proptest! {
        #[test]
        fn a_cut_or_changed_page_is_refused_or_read_without_panic(cut in 0usize..200, at in 0usize..200, flip in any::<u8>()) {
            let bytes = fleet().encode();
            let mut bytes = bytes.get(..cut).unwrap_or(&bytes).to_vec();
            if let Some(b) = bytes.get_mut(at) {
                *b ^= flip;
            }
            let _ = (Fleet::decode(&bytes), Profiles::decode(&bytes));
        }
    }
}
