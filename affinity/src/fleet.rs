//! What the indexer tells the filter beside the table: the fleet page and the models' prompt profiles.

use crate::fingerprint::Stride;
use crate::units::Slot;
use crate::wire::{Reader, Write};

const VERSION: u8 = 1;

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
    /// Whether it may be chosen.
    pub health: Health,
    /// Whether its event stream is connected and in sync. Without one, predicted holders live longer.
    pub events: bool,
    /// Names under which it serves: indices into [`Profiles::models`].
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

/// How the models' prompts are made: what the filter needs to spell a request's canonical bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profiles {
    /// Index = the model's number in [`Endpoint::models`].
    pub models: Vec<Profile>,
}

/// How one model's prompt is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// The canonical name: the namespace of the base model's prompts.
    pub name: String,
    /// Other names under which clients ask for the same model.
    pub aliases: Vec<String>,
    /// LoRA adapters it serves: each is a namespace of its own.
    pub adapters: Vec<String>,
    /// The chat template (Jinja); `None` when chat prompts cannot be known.
    pub chat_template: Option<String>,
    /// Special tokens by the names templates use: `bos_token`, `eos_token`, ...
    pub special_tokens: Vec<(String, String)>,
    /// Text the tokenizer puts before a completions prompt: the BOS token where it adds one, else empty.
    pub completion_prefix: String,
    /// Literal texts of added tokens that swallow whitespace or are otherwise normalised: a prompt that holds one
    /// cannot be known yet.
    pub opaque_texts: Vec<String>,
    /// Whether any prompt of this model is unknown (a normaliser or prefix space the filter cannot reproduce).
    pub opaque: bool,
    /// Bytes of prompt per token, roughly: estimates the length of prompts nobody holds.
    pub bytes_per_token: u8,
}

impl Profiles {
    /// The bytes of the profiles page.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.u8(VERSION);
        out.list(&self.models, |out, p| {
            out.string(&p.name);
            out.list(&p.aliases, |out, s| out.string(s));
            out.list(&p.adapters, |out, s| out.string(s));
            out.option(p.chat_template.as_deref(), |out, s| out.string(s));
            out.list(&p.special_tokens, |out, (name, text)| {
                out.string(name);
                out.string(text);
            });
            out.string(&p.completion_prefix);
            out.list(&p.opaque_texts, |out, s| out.string(s));
            out.u8(u8::from(p.opaque));
            out.u8(p.bytes_per_token);
        });
        out
    }

    /// `None` if these are not the bytes of a profiles page.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut r = Reader::of_version(bytes, VERSION)?;
        let models = r.list(19, |r| {
            Some(Profile {
                name: r.string()?,
                aliases: r.list(4, Reader::string)?,
                adapters: r.list(4, Reader::string)?,
                chat_template: r.option(Reader::string)?,
                special_tokens: r.list(8, |r| Some((r.string()?, r.string()?)))?,
                completion_prefix: r.string()?,
                opaque_texts: r.list(4, Reader::string)?,
                opaque: r.u8()? != 0,
                bytes_per_token: r.u8()?,
            })
        })?;
        Some(Self { models })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fleet() -> Fleet {
        let endpoint = Endpoint {
            slot: Slot(3),
            address: "127.0.0.1:8001".into(),
            health: Health::Draining,
            events: true,
            models: vec![0, 2],
            prefill_rate: 8000.0,
            reported: Some(Reported { running: 3, waiting: 1, kv_usage: 0.5 }),
            remote_in_flight: 7,
            remote_queued_tokens: 4096,
        };
        let bare = Endpoint { reported: None, models: vec![], health: Health::Down, ..endpoint.clone() };
        Fleet { epoch: 9, table_bits: 6, stride: Stride::default(), gateways: 2, endpoints: vec![endpoint, bare] }
    }

    fn profiles() -> Profiles {
        let profile = Profile {
            name: "tiny".into(),
            aliases: vec!["t".into()],
            adapters: vec!["lora".into()],
            chat_template: Some("{{ messages }}".into()),
            special_tokens: vec![("bos_token".into(), "<s>".into())],
            completion_prefix: "<s>".into(),
            opaque_texts: vec!["<|user|>".into()],
            opaque: false,
            bytes_per_token: 4,
        };
        Profiles { models: vec![profile, Profile::default()] }
    }

    #[test]
    fn pages_survive_the_round_trip() {
        assert_eq!(Fleet::decode(&fleet().encode()), Some(fleet()));
        assert_eq!(Profiles::decode(&profiles().encode()), Some(profiles()));
    }

    proptest! {
        #[test]
        fn a_cut_or_changed_page_is_refused_or_read_without_panic(cut in 0usize..200, at in 0usize..200, flip in any::<u8>()) {
            for bytes in [fleet().encode(), profiles().encode()] {
                let mut bytes = bytes.get(..cut).unwrap_or(&bytes).to_vec();
                if let Some(b) = bytes.get_mut(at) {
                    *b ^= flip;
                }
                let _ = (Fleet::decode(&bytes), Profiles::decode(&bytes));
            }
        }
    }
}
