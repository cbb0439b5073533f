//! Reads a payload into a [`Batch`].

use super::{Attention, Batch, Record, Span, StoredRecord};
use affinity::Tier;
use rmpv::ValueRef;

/// Why a payload is not a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes do not parse.
    #[error("the payload is not msgpack; is this the engine's KV event port?")]
    NotMsgpack,
    /// They parse, but into something else.
    #[error("the payload is msgpack but not a batch of events [timestamp, events, ...]; the engine may be too new")]
    NotABatch,
    /// It is a batch, but which blocks it removes cannot be told.
    #[error(
        "a BlockRemoved event's block_hashes or medium cannot be read; the engine may be too new: leave out its \
         `events` until the indexer knows it"
    )]
    UnreadableRemoval,
}

/// Reads one payload.
///
/// # Errors
/// When the payload as a whole makes no sense, or removes blocks without saying readably which. Other events that
/// make none are counted in [`Batch::skipped`].
pub fn decode(payload: &[u8]) -> Result<Batch, DecodeError> {
    let value = rmpv::decode::read_value_ref(&mut &*payload).map_err(|_| DecodeError::NotMsgpack)?;
    let fields = Fields::of(&value, 0).ok_or(DecodeError::NotABatch)?;
    let timestamp = fields.get(0, "ts").and_then(number).ok_or(DecodeError::NotABatch)?;
    let Some(ValueRef::Array(items)) = fields.get(1, "events") else { return Err(DecodeError::NotABatch) };
    let rank = fields.get(2, "data_parallel_rank").and_then(small);
    let mut batch = Batch { timestamp, rank, ..Batch::default() };
    for item in items {
        match batch.read(item)? {
            Some(record) => batch.records.push(record),
            None => batch.skipped += 1,
        }
    }
    Ok(batch)
}

/// A record written as an array (fields by position) or as a map (fields by name). Nil counts as absent.
enum Fields<'a> {
    Positions(&'a [ValueRef<'a>]),
    Names(&'a [(ValueRef<'a>, ValueRef<'a>)]),
}

/// The position of fields that only exist in maps.
const NAME_ONLY: usize = usize::MAX;

impl<'a> Fields<'a> {
    fn of(value: &'a ValueRef<'a>, skip: usize) -> Option<Self> {
        match value {
            ValueRef::Array(items) => Some(Fields::Positions(items.get(skip..)?)),
            ValueRef::Map(pairs) => Some(Fields::Names(pairs)),
            _ => None,
        }
    }

    fn get(&self, position: usize, name: &str) -> Option<&'a ValueRef<'a>> {
        let found = match self {
            Fields::Positions(items) => items.get(position),
            Fields::Names(pairs) => pairs.iter().find(|(key, _)| text(key) == Some(name)).map(|(_, value)| value),
        };
        found.filter(|value| !matches!(value, ValueRef::Nil))
    }
}

fn tagged<'a>(value: &'a ValueRef<'a>) -> Option<(&'a str, Fields<'a>)> {
    let tag = match value {
        ValueRef::Array(items) => items.first()?,
        ValueRef::Map(_) => Fields::of(value, 0)?.get(NAME_ONLY, "type")?,
        _ => return None,
    };
    Some((text(tag)?, Fields::of(value, 1)?))
}

impl Batch {
    /// An event; `None` for one to skip, of which lists may have been put into the batch's vectors all the same.
    fn read(&mut self, value: &ValueRef<'_>) -> Result<Option<Record>, DecodeError> {
        let Some((tag, fields)) = tagged(value) else { return Ok(None) };
        match tag {
            "BlockStored" => Ok(self.stored(&fields).map(Record::Stored)),
            "BlockRemoved" => self.removed(&fields),
            "AllBlocksCleared" => Ok(Some(Record::Cleared)),
            _ => Ok(None),
        }
    }

    /// `None` for a removal from a tier of an unknown name: what is stored there is not counted as held either.
    fn removed(&mut self, fields: &Fields<'_>) -> Result<Option<Record>, DecodeError> {
        let hashes =
            fields.get(0, "block_hashes").and_then(|list| self.hashes(list)).ok_or(DecodeError::UnreadableRemoval)?;
        let medium = fields.get(1, "medium");
        if medium.is_some_and(|medium| text(medium).is_none()) {
            return Err(DecodeError::UnreadableRemoval);
        }
        let group = fields.get(2, "group_idx").and_then(small);
        Ok(tier(medium).map(|tier| Record::Removed { hashes, tier, group }))
    }

    fn stored(&mut self, fields: &Fields<'_>) -> Option<StoredRecord> {
        let hashes = self.hashes(fields.get(0, "block_hashes")?)?;
        let parent = match fields.get(1, "parent_block_hash") {
            Some(value) => Some(hash(value)?),
            None => None,
        };
        let tokens = match fields.get(2, "token_ids") {
            Some(ValueRef::Array(ids)) => append(&mut self.tokens, ids.iter().map(token))?,
            Some(_) => return None,
            None => Span { start: 0, end: 0 },
        };
        let block_size = small(fields.get(3, "block_size")?)?;
        // Groups with a window leave out blocks without saying which: nothing can be concluded from such an event.
        if tokens.range().len() as u64 != hashes.range().len() as u64 * u64::from(block_size) {
            return None;
        }
        let attention = match fields.get(9, "kv_cache_spec_kind").map(text) {
            None => Attention::Unsaid,
            Some(Some("full_attention" | "mla_attention" | "sink_full_attention")) => Attention::Full,
            Some(_) => Attention::Partial,
        };
        // An adapter known only by its number (before vLLM 0.14) cannot be told from another one.
        let unnamed = fields.get(4, "lora_id").is_some() && fields.get(6, "lora_name").is_none();
        let (mut adapter, mut salt) = (None, None);
        match fields.get(6, "lora_name") {
            // SGLang puts a map of its own here.
            Some(ValueRef::Map(own)) => salt = Fields::Names(own).get(NAME_ONLY, "cache_salt").and_then(text),
            Some(name) => adapter = Some(text(name)?),
            None => {}
        }
        salt = salt.or_else(|| fields.get(NAME_ONLY, "cache_salt").and_then(text));
        let mut readable = if unnamed { 0 } else { hashes.range().len() };
        match fields.get(7, "extra_keys") {
            None => {}
            Some(ValueRef::Array(keys)) if keys.len() == hashes.range().len() => {
                for (i, key) in keys.iter().enumerate() {
                    let starts = i == 0 && parent.is_none();
                    match extra(key, adapter, starts) {
                        Extra::Text => {}
                        Extra::Salt(found) => salt = Some(found),
                        Extra::NotText => {
                            readable = readable.min(i);
                            break;
                        }
                    }
                }
            }
            Some(_) => return None,
        }
        Some(StoredRecord {
            hashes,
            parent,
            tokens,
            block_size,
            tier: tier(fields.get(5, "medium"))?,
            group: fields.get(8, "group_idx").and_then(small).unwrap_or(0),
            attention,
            adapter: adapter.map(|text| self.text(text)),
            salt: salt.map(|text| self.text(text)),
            readable,
        })
    }

    fn hashes(&mut self, value: &ValueRef<'_>) -> Option<Span> {
        match value {
            ValueRef::Array(items) => append(&mut self.hashes, items.iter().map(hash)),
            _ => None,
        }
    }

    fn text(&mut self, text: &str) -> Span {
        let start = self.strings.len();
        self.strings.push_str(text);
        Span { start, end: self.strings.len() }
    }
}

/// Appends a list, if all of it can be read.
fn append<T>(list: &mut Vec<T>, items: impl Iterator<Item = Option<T>>) -> Option<Span> {
    let start = list.len();
    for item in items {
        list.push(item?);
    }
    Some(Span { start, end: list.len() })
}

/// What a block's extra hash keys say of its tokens.
enum Extra<'a> {
    Text,
    Salt(&'a str),
    NotText,
}

/// Extra keys come in the order adapter, images, salt, embeddings; the salt only in the block that starts the
/// sequence. Old engines write an image as a bare string: where that can be taken for a salt it is, and the chain
/// lands in a namespace that nobody asks for.
fn extra<'a>(value: &'a ValueRef<'a>, adapter: Option<&str>, starts: bool) -> Extra<'a> {
    let keys = match value {
        ValueRef::Nil => return Extra::Text,
        ValueRef::Array(keys) => keys.as_slice(),
        _ => return Extra::NotText,
    };
    let keys = match keys.split_first() {
        Some((first, rest)) if adapter.is_some() && text(first) == adapter => rest,
        _ => keys,
    };
    match keys {
        [] => Extra::Text,
        [one] if starts => text(one).map_or(Extra::NotText, Extra::Salt),
        _ => Extra::NotText,
    }
}

/// Where a medium lies; `None` for one whose speed is unknown.
fn tier(medium: Option<&ValueRef<'_>>) -> Option<Tier> {
    let Some(medium) = medium else { return Some(Tier::Gpu) };
    let name = text(medium)?.to_ascii_lowercase();
    match name.as_str() {
        "gpu" => Some(Tier::Gpu),
        _ if name.starts_with("cpu") => Some(Tier::Cpu),
        "storage" | "disk" | "external" => Some(Tier::Disk),
        _ => None,
    }
}

/// A block hash as 64 bits: a number in two's complement, or the last 8 bytes, big-endian.
fn hash(value: &ValueRef<'_>) -> Option<u64> {
    match value {
        ValueRef::Integer(n) => n.as_u64().or_else(|| n.as_i64().map(i64::cast_unsigned)),
        ValueRef::Binary(bytes) => Some(bytes.iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte))),
        _ => None,
    }
}

/// A token id; from engines with speculative heads a pair of which the first is the token.
fn token(value: &ValueRef<'_>) -> Option<u32> {
    match value {
        ValueRef::Array(pair) => small(pair.first()?),
        _ => small(value),
    }
}

fn small(value: &ValueRef<'_>) -> Option<u32> {
    match value {
        ValueRef::Integer(n) => u32::try_from(n.as_u64()?).ok(),
        _ => None,
    }
}

fn number(value: &ValueRef<'_>) -> Option<f64> {
    match value {
        ValueRef::F64(n) => Some(*n),
        ValueRef::F32(n) => Some(f64::from(*n)),
        ValueRef::Integer(n) => n.as_f64(),
        _ => None,
    }
}

fn text<'a>(value: &'a ValueRef<'a>) -> Option<&'a str> {
    match value {
        ValueRef::String(s) => s.as_str(),
        _ => None,
    }
}
