//! How engines write their events, and what of each can be read back.

use affinity::Tier;
use rmpv::Value;
use warmpath_indexer::events::{Attention, Event, Removed, Stored};

/// A change of an engine's cache, with all there is to say of it.
#[derive(Clone, Debug)]
pub enum Change {
    Stored(Blocks),
    Removed {
        hashes: Vec<u64>,
        tier: Tier,
        group: u32,
    },
    Cleared,
    /// Stored where it is no holding of this engine, or of a kind that is not known.
    Elsewhere(Vec<u64>),
}

#[derive(Clone, Debug)]
pub struct Blocks {
    pub hashes: Vec<u64>,
    pub parent: Option<u64>,
    pub tokens: Vec<u32>,
    pub block_size: u32,
    pub tier: Tier,
    pub group: u32,
    pub window: bool,
    pub adapter: Option<String>,
    pub salt: Option<String>,
    /// Per block.
    pub images: Vec<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// vLLM 0.9: arrays, signed hashes, one tier, adapters by number.
    Vllm9,
    /// 0.14: tiers, and adapters by name.
    Vllm14,
    /// 0.22: extra keys and cache groups.
    Vllm22,
    /// The same with hashes as bytes.
    Vllm22Bytes,
    /// From 0.24 on: maps.
    Vllm32,
    /// The same with hashes as bytes, and the batch a map too.
    Vllm32Bytes,
    /// Arrays, signed hashes, pages of one token.
    SglangArrays,
    /// The same of pairs of tokens.
    SglangPairs,
    /// Maps, with salts in a field of their own.
    SglangMaps,
    /// TensorRT-LLM's own publisher.
    TensorRt,
    /// TensorRT-LLM's events as Dynamo publishes them.
    TensorRtDynamo,
}

use Dialect::*;

impl Dialect {
    pub const ALL: [Self; 11] = [
        Vllm9,
        Vllm14,
        Vllm22,
        Vllm22Bytes,
        Vllm32,
        Vllm32Bytes,
        SglangArrays,
        SglangPairs,
        SglangMaps,
        TensorRt,
        TensorRtDynamo,
    ];

    pub fn vllm(self) -> bool {
        matches!(self, Vllm9 | Vllm14 | Vllm22 | Vllm22Bytes | Vllm32 | Vllm32Bytes)
    }

    pub fn maps(self) -> bool {
        matches!(self, Vllm32 | Vllm32Bytes | SglangMaps | TensorRt | TensorRtDynamo)
    }

    /// Whether extra keys are written, and with them images, salts and embeddings; and cache groups.
    pub fn extra_keys(self) -> bool {
        matches!(self, Vllm22 | Vllm22Bytes | Vllm32 | Vllm32Bytes)
    }

    pub fn salts(self) -> bool {
        self.extra_keys() || self == SglangMaps
    }

    pub fn images(self) -> bool {
        self.extra_keys() || self == TensorRtDynamo
    }

    pub fn adapters(self) -> bool {
        matches!(self, Vllm9 | Vllm14 | SglangMaps | TensorRtDynamo) || self.extra_keys()
    }

    pub fn tiers(self) -> bool {
        !matches!(self, Vllm9 | TensorRt | TensorRtDynamo)
    }

    fn hash(self, hash: u64) -> Value {
        match self {
            Vllm22Bytes | Vllm32Bytes => Value::Binary([&[0xab; 24][..], &hash.to_be_bytes()].concat()),
            Vllm14 | Vllm22 | Vllm32 => hash.into(),
            _ => hash.cast_signed().into(),
        }
    }

    fn medium(self, tier: Tier) -> Value {
        let sglang = matches!(self, SglangArrays | SglangPairs | SglangMaps);
        match tier {
            Tier::Gpu => "GPU",
            Tier::Cpu if sglang => "CPU_PINNED",
            Tier::Cpu if self == Vllm14 => "cpu",
            Tier::Cpu => "CPU",
            Tier::Disk if sglang => "DISK",
            Tier::Disk => "STORAGE",
        }
        .into()
    }

    /// One message.
    pub fn batch(self, timestamp: f64, rank: u32, changes: &[Change]) -> Vec<u8> {
        let events = changes.iter().map(|change| self.event(change)).collect();
        let fields = [("events", Value::Array(events)), ("ts", timestamp.into()), ("data_parallel_rank", rank.into())];
        let batch = match (self, fields) {
            (Vllm32Bytes, fields) => map(fields),
            (_, [(_, events), (_, ts), (_, rank)]) => Value::Array(vec![ts, events, rank]),
        };
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &batch).unwrap();
        bytes
    }

    fn event(self, change: &Change) -> Value {
        let hashes = |hashes: &[u64]| hashes.iter().map(|hash| self.hash(*hash)).collect::<Value>();
        let (tag, fields) = match change {
            Change::Stored(blocks) => ("BlockStored", self.stored(blocks)),
            Change::Removed { hashes: removed, tier, group } => {
                let mut fields = vec![("block_hashes", hashes(removed))];
                if self.tiers() || self == TensorRt {
                    fields.push(("medium", self.medium(*tier)));
                }
                if self.extra_keys() {
                    fields.push(("group_idx", (*group).into()));
                }
                ("BlockRemoved", fields)
            }
            Change::Cleared => ("AllBlocksCleared", Vec::new()),
            Change::Elsewhere(all) if self.maps() => (
                "BlockStored",
                vec![
                    ("block_hashes", hashes(all)),
                    ("token_ids", all.iter().map(|_| Value::from(1)).collect()),
                    ("block_size", 1.into()),
                    ("locality", "REMOTE".into()),
                ],
            ),
            Change::Elsewhere(all) => ("BlockSeen", vec![("block_hashes", hashes(all))]),
        };
        if self.maps() {
            // Order says nothing: the tag comes last.
            map(fields.into_iter().filter(|(_, value)| !value.is_nil()).chain([("type", tag.into())]))
        } else {
            [tag.into()].into_iter().chain(fields.into_iter().map(|(_, value)| value)).collect()
        }
    }

    fn stored(self, blocks: &Blocks) -> Vec<(&'static str, Value)> {
        let tokens = blocks.tokens.iter().map(|token| match self {
            SglangPairs => vec![Value::from(*token), Value::from(token + 1)].into_iter().collect(),
            _ => Value::from(*token),
        });
        let name = || blocks.adapter.as_deref().map_or(Value::Nil, Value::from);
        let mut fields = vec![
            ("block_hashes", blocks.hashes.iter().map(|hash| self.hash(*hash)).collect()),
            ("parent_block_hash", blocks.parent.map_or(Value::Nil, |hash| self.hash(hash))),
            ("token_ids", tokens.collect()),
            ("block_size", blocks.block_size.into()),
        ];
        let number = if self.vllm() { blocks.adapter.as_ref().map_or(Value::Nil, |_| 3.into()) } else { Value::Nil };
        if self != TensorRtDynamo {
            fields.push(("lora_id", number));
        }
        if self.tiers() || self == TensorRt {
            fields.push(("medium", self.medium(blocks.tier)));
        }
        match self {
            Vllm14 | TensorRtDynamo => fields.push(("lora_name", name())),
            SglangMaps => {
                fields.push(("lora_name", name()));
                fields.push(("cache_salt", blocks.salt.as_deref().map_or(Value::Nil, Value::from)));
            }
            _ if self.extra_keys() => {
                let kind = if blocks.window { "sliding_window" } else { "full_attention" };
                fields.push(("lora_name", name()));
                fields.push(("extra_keys", extra_keys(blocks)));
                fields.push(("group_idx", blocks.group.into()));
                fields.push(("kv_cache_spec_kind", kind.into()));
            }
            _ => {}
        }
        if self == TensorRtDynamo {
            let info = |image: &bool| if *image { map([("mm_objects", Value::Array(Vec::new()))]) } else { Value::Nil };
            fields.push(("block_mm_infos", blocks.images.iter().map(info).collect()));
        }
        fields
    }

    /// Holds an event as read against what was written.
    pub fn check(self, change: &Change, event: &Event<'_>) {
        match (change, event) {
            (Change::Stored(blocks), Event::Stored(stored)) => {
                let known = blocks.adapter.is_none() || self.adapters() && self != Vllm9;
                let adapter = blocks.adapter.as_deref().filter(|_| known);
                let text = blocks.images.iter().position(|image| *image).unwrap_or(blocks.hashes.len());
                let attention = match (self.extra_keys(), blocks.window) {
                    (false, _) => Attention::Unsaid,
                    (true, true) => Attention::Partial,
                    (true, false) => Attention::Full,
                };
                let expected = Stored {
                    hashes: &blocks.hashes,
                    parent: blocks.parent,
                    tokens: &blocks.tokens,
                    block_size: blocks.block_size,
                    tier: blocks.tier,
                    group: blocks.group,
                    attention,
                    adapter,
                    salt: blocks.salt.as_deref().filter(|_| blocks.parent.is_none() || self == SglangMaps),
                    readable: if known { text } else { 0 },
                    may_repeat: self.maps() && blocks.parent.is_none() && blocks.tier == Tier::Gpu,
                };
                assert_eq!(*stored, expected, "{self:?}");
            }
            (Change::Removed { hashes, tier, group }, Event::Removed(removed)) => {
                let group = self.extra_keys().then_some(*group);
                assert_eq!(*removed, Removed { hashes, tier: *tier, group }, "{self:?}");
            }
            (Change::Cleared, Event::Cleared) => {}
            (change, event) => panic!("{self:?}: {change:?} was read as {event:?}"),
        }
    }
}

fn extra_keys(blocks: &Blocks) -> Value {
    let of_block = |(i, image): (usize, &bool)| {
        let mut keys: Vec<Value> = blocks.adapter.iter().map(|name| name.as_str().into()).collect();
        if *image {
            keys.push(Value::Array(vec!["a1b2".into(), (-2).into()]));
        }
        if i == 0 && blocks.parent.is_none() {
            keys.extend(blocks.salt.as_deref().map(Value::from));
        }
        if keys.is_empty() { Value::Nil } else { Value::Array(keys) }
    };
    blocks.images.iter().enumerate().map(of_block).collect()
}

fn map<'a>(fields: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    Value::Map(fields.into_iter().map(|(name, value)| (name.into(), value)).collect())
}
