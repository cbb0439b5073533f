//! Reads a payload straight into a [`Batch`]'s vectors.
//!
//! An event is gone through once: lists of hashes and tokens go to the batch as they come, other fields are kept until
//! all are there, because a map's keys come in any order.

use super::extra::{self, Text};
use super::msgpack::{Malformed, Reader, Value};
use super::{Attention, Batch, Record, Span, StoredRecord};
use affinity::Tier;

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
    /// It is made of so many small parts that it would take far more memory than an engine's.
    #[error(
        "what it says takes {bytes} bytes of memory; {allowed} are allowed for a message of this size: the lists in it \
         are longer than any engine's"
    )]
    TooLarge {
        /// What would be taken, as far as it was read.
        bytes: usize,
        /// What may be.
        allowed: usize,
    },
}

/// Bytes that a batch may take whatever the size of its message: a million small tokens and their hashes need 12 MB.
const ROOM: usize = 32 << 20;
/// How many times a message's size a batch may take, if that is more. Of what engines send, removals without a medium
/// grow most: 24 bytes become a record and a hash, 80 bytes.
const GROWTH: usize = 4;
/// An event that says anything has as many bytes: its name alone does.
const EVENT: usize = 15;

impl From<Malformed> for DecodeError {
    fn from(_: Malformed) -> Self {
        Self::NotMsgpack
    }
}

/// Reads one payload.
///
/// # Errors
/// When the payload as a whole makes no sense, removes blocks without saying readably which, or would take more than
/// 32 MiB of memory and more than four times its size. Other events that make none are counted in [`Batch::skipped`].
pub fn decode(payload: &[u8]) -> Result<Batch, DecodeError> {
    let mut reader = Reader::new(payload);
    let allowed = payload.len().saturating_mul(GROWTH).max(ROOM);
    let mut batch = Batch::default();
    let (mut timestamp, mut events) = (None, false);
    let (fields, named) = match reader.value()? {
        Value::List(n) => (n, false),
        Value::Map(n) => (n, true),
        _ => return Err(DecodeError::NotABatch),
    };
    for position in 0..fields {
        let field = if named { batch_field(reader.value()?, &mut reader)? } else { position };
        match field {
            0 => timestamp = number(&mut reader)?,
            1 => {
                let Value::List(n) = reader.value()? else { return Err(DecodeError::NotABatch) };
                events = true;
                let records = n.min(reader.left() / EVENT);
                batch.take(records * size_of::<Record>(), allowed)?;
                batch.records.reserve(records);
                for _ in 0..n {
                    batch.read(&mut reader, allowed)?;
                }
            }
            2 => batch.rank = known(small(&mut reader)?),
            _ => reader.skip()?,
        }
    }
    batch.timestamp = timestamp.filter(|_| events).ok_or(DecodeError::NotABatch)?;
    Ok(batch)
}

/// The position that a batch's field has in arrays.
fn batch_field(key: Value<'_>, reader: &mut Reader<'_>) -> Result<usize, Malformed> {
    reader.skip_inside(key)?;
    Ok(match key {
        Value::Text(Some("ts")) => 0,
        Value::Text(Some("events")) => 1,
        Value::Text(Some("data_parallel_rank" | "attn_dp_rank")) => 2,
        _ => usize::MAX,
    })
}

/// A field that may be missing, which nil counts as, or be of a kind that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Field<T> {
    #[default]
    Absent,
    Unreadable,
    Is(T),
}

/// What is known of an event.
#[derive(Default)]
struct Fields<'a> {
    tag: Field<&'a str>,
    hashes: Field<Span>,
    parent: Field<u64>,
    tokens: Field<Span>,
    block_size: Field<u32>,
    lora_id: bool,
    medium: Field<&'a str>,
    adapter: Field<&'a str>,
    salt: Field<&'a str>,
    /// Their lists are looked at when the number of blocks is known.
    extra_keys: Option<Reader<'a>>,
    images: Option<Reader<'a>>,
    group: Field<u32>,
    kind: Field<&'a str>,
    locality: Field<&'a str>,
    /// The event is a map: vLLM since 0.24, SGLang since September 2026, TensorRT-LLM.
    named: bool,
    /// SGLang's own map of namespaces in an event that is an array.
    own: bool,
    /// Bytes that the batch may take.
    allowed: usize,
}

/// Fields by name; in arrays they come in these orders.
const STORED: [&str; 11] = [
    "type",
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
];
const REMOVED: [&str; 4] = ["type", "block_hashes", "medium", "group_idx"];

impl Batch {
    /// Reads an event; one that says nothing is counted and leaves nothing behind.
    fn read(&mut self, reader: &mut Reader<'_>, allowed: usize) -> Result<(), DecodeError> {
        let (hashes, tokens) = (self.hashes.len(), self.tokens.len());
        let fields = self.fields(reader, allowed)?;
        let record = match fields.tag {
            Field::Is("BlockStored") => self.stored(&fields)?.map(Record::Stored),
            Field::Is("BlockRemoved") => removed(&fields)?,
            Field::Is("AllBlocksCleared") => Some(Record::Cleared),
            _ => None,
        };
        match record {
            Some(record) => self.records.push(record),
            None => {
                self.skipped += 1;
                self.hashes.truncate(hashes);
                self.tokens.truncate(tokens);
            }
        }
        Ok(())
    }

    /// Before so many more bytes are kept. Texts are not asked for: they are no longer than in the message.
    fn take(&self, more: usize, allowed: usize) -> Result<(), DecodeError> {
        let kept = self.records.len() * size_of::<Record>() + size_of_val(&*self.hashes) + size_of_val(&*self.tokens);
        let bytes = kept.saturating_add(more);
        if bytes > allowed { Err(DecodeError::TooLarge { bytes, allowed }) } else { Ok(()) }
    }

    /// Before a list of values of so many bytes each is read.
    fn take_list(&self, reader: &Reader<'_>, size: usize, allowed: usize) -> Result<(), DecodeError> {
        match { *reader }.value()? {
            Value::List(n) => self.take(n.saturating_mul(size), allowed),
            _ => Ok(()),
        }
    }

    fn fields<'a>(&mut self, reader: &mut Reader<'a>, allowed: usize) -> Result<Fields<'a>, DecodeError> {
        let mut fields = Fields { allowed, ..Fields::default() };
        match reader.value()? {
            Value::Map(n) => {
                fields.named = true;
                for _ in 0..n {
                    let key = reader.value()?;
                    reader.skip_inside(key)?;
                    let name = if let Value::Text(Some(name)) = key { name } else { "" };
                    self.field(&mut fields, name, reader)?;
                }
            }
            Value::List(n) => {
                let mut names: &[&str] = &["type"];
                for position in 0..n {
                    self.field(&mut fields, names.get(position).copied().unwrap_or_default(), reader)?;
                    if position == 0 {
                        names = match fields.tag {
                            Field::Is("BlockStored") => &STORED,
                            Field::Is("BlockRemoved") => &REMOVED,
                            _ => &[],
                        };
                    }
                }
            }
            other => reader.skip_inside(other)?,
        }
        Ok(fields)
    }

    fn field<'a>(&mut self, fields: &mut Fields<'a>, name: &str, reader: &mut Reader<'a>) -> Result<(), DecodeError> {
        match name {
            "type" => fields.tag = text(reader)?,
            "block_hashes" => {
                self.take_list(reader, size_of::<u64>(), fields.allowed)?;
                fields.hashes = list(&mut self.hashes, reader, hash)?;
            }
            "parent_block_hash" => fields.parent = hash(reader)?,
            "token_ids" => {
                self.take_list(reader, size_of::<u32>(), fields.allowed)?;
                fields.tokens = list(&mut self.tokens, reader, token)?;
            }
            "block_size" => fields.block_size = small(reader)?,
            "lora_id" => {
                let value = reader.value()?;
                reader.skip_inside(value)?;
                fields.lora_id = value != Value::Nil;
            }
            "medium" => fields.medium = text(reader)?,
            "lora_name" => match reader.value()? {
                Value::Map(n) => {
                    fields.own = true;
                    for _ in 0..n {
                        match reader.value()? {
                            Value::Text(Some("cache_salt")) => fields.salt = text(reader)?,
                            Value::Text(Some("lora_name")) => fields.adapter = text(reader)?,
                            key => {
                                reader.skip_inside(key)?;
                                reader.skip()?;
                            }
                        }
                    }
                }
                value => fields.adapter = as_text(value, reader)?,
            },
            "cache_salt" => fields.salt = text(reader)?,
            "extra_keys" => fields.extra_keys = Some(later(reader)?),
            "block_mm_infos" => fields.images = Some(later(reader)?),
            "group_idx" => fields.group = small(reader)?,
            "kv_cache_spec_kind" => fields.kind = text(reader)?,
            "locality" => fields.locality = text(reader)?,
            _ => reader.skip()?,
        }
        Ok(())
    }

    fn stored(&mut self, fields: &Fields<'_>) -> Result<Option<StoredRecord>, Malformed> {
        let (Field::Is(hashes), Field::Is(block_size)) = (fields.hashes, fields.block_size) else { return Ok(None) };
        let Some(tier) = tier(fields.medium).filter(|_| fields.locality != Field::Is("REMOTE")) else {
            return Ok(None);
        };
        let parent = match fields.parent {
            Field::Is(parent) => Some(parent),
            Field::Absent => None,
            Field::Unreadable => return Ok(None),
        };
        let tokens = match fields.tokens {
            Field::Is(tokens) => tokens,
            Field::Absent => Span::new(0, 0),
            Field::Unreadable => return Ok(None),
        };
        // Copies on slower tiers may come without tokens. Their blocks may be known from the GPU.
        let placeholder = tokens.len() == 0 && hashes.len() > 0 && tier != Tier::Gpu;
        let block_size = if placeholder { 0 } else { block_size };
        // Groups with a window leave out blocks without saying which: nothing can be concluded from such an event.
        if tokens.len() as u64 != hashes.len() as u64 * u64::from(block_size) {
            return Ok(None);
        }
        // While SGLang wrote arrays, salted blocks had the hashes of unsalted ones: which of them goes when one is
        // removed cannot be told.
        if fields.own && fields.salt != Field::Absent {
            return Ok(None);
        }
        let adapter = match fields.adapter {
            Field::Is(name) => Some(name),
            Field::Absent => None,
            Field::Unreadable => return Ok(None),
        };
        // An adapter known only by its number (before vLLM 0.14) cannot be told from another one. Nor can a salt of
        // another kind than text.
        let nameless = fields.lora_id && adapter.is_none() || fields.salt == Field::Unreadable;
        let mut text = Text { blocks: if nameless { 0 } else { hashes.len() }, salt: known(fields.salt) };
        if let Some(mut keys) = fields.extra_keys
            && !extra::read_keys(&mut keys, hashes.len(), adapter, parent.is_none(), &mut text)?
        {
            return Ok(None);
        }
        if let Some(mut images) = fields.images {
            extra::read_images(&mut images, hashes.len(), &mut text)?;
        }
        let attention = match fields.kind {
            Field::Absent => Attention::Unsaid,
            Field::Is("full_attention" | "mla_attention" | "sink_full_attention") => Attention::Full,
            Field::Is(_) | Field::Unreadable => Attention::Partial,
        };
        Ok(Some(StoredRecord {
            hashes,
            parent,
            tokens,
            block_size,
            tier,
            group: known(fields.group).unwrap_or(0),
            attention,
            adapter: adapter.map(|adapter| self.text(adapter)),
            salt: text.salt.map(|salt| self.text(salt)),
            readable: u32::try_from(text.blocks).unwrap_or(u32::MAX),
            may_repeat: fields.named && parent.is_none() && tier == Tier::Gpu,
        }))
    }

    fn text(&mut self, text: &str) -> Span {
        let start = self.strings.len();
        self.strings.push_str(text);
        Span::new(start, self.strings.len())
    }
}

/// `None` for a removal from where what is stored is not counted as held either.
fn removed(fields: &Fields<'_>) -> Result<Option<Record>, DecodeError> {
    let (Field::Is(hashes), Field::Is(_) | Field::Absent) = (fields.hashes, fields.medium) else {
        return Err(DecodeError::UnreadableRemoval);
    };
    let tier = tier(fields.medium).filter(|_| fields.locality != Field::Is("REMOTE"));
    Ok(tier.map(|tier| Record::Removed { hashes, tier, group: known(fields.group) }))
}

/// Where a medium lies; `None` for one whose speed is unknown, or that is not the engine's own.
fn tier(medium: Field<&str>) -> Option<Tier> {
    let name = match medium {
        Field::Absent => return Some(Tier::Gpu),
        Field::Is(name) => name,
        Field::Unreadable => return None,
    };
    let begins = |with: &str| name.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with));
    match name.len() {
        3 if begins("gpu") => Some(Tier::Gpu),
        _ if begins("cpu") => Some(Tier::Cpu),
        7 if begins("storage") => Some(Tier::Disk),
        4 if begins("disk") => Some(Tier::Disk),
        _ => None,
    }
}

fn known<T>(field: Field<T>) -> Option<T> {
    if let Field::Is(value) = field { Some(value) } else { None }
}

/// Appends a list to `out`. One that cannot be read leaves values there; its event is left out or refused.
fn list<'a, T: Default + Clone + TryFrom<u64>>(
    out: &mut Vec<T>,
    reader: &mut Reader<'a>,
    item: impl Fn(&mut Reader<'a>) -> Result<Field<T>, Malformed>,
) -> Result<Field<Span>, Malformed> {
    let n = match reader.value()? {
        Value::List(n) => n,
        Value::Nil => return Ok(Field::Absent),
        other => {
            reader.skip_inside(other)?;
            return Ok(Field::Unreadable);
        }
    };
    let start = out.len();
    // No more than there are bytes: the reader saw to it.
    out.resize(start + n, T::default());
    let mut places = out.get_mut(start..).unwrap_or_default();
    loop {
        let taken = reader.numbers(places);
        let Some([place, behind @ ..]) = places.get_mut(taken..) else { break };
        let Field::Is(item) = item(reader)? else {
            reader.skip_all(behind.len())?;
            return Ok(Field::Unreadable);
        };
        *place = item;
        places = behind;
    }
    Ok(Field::Is(Span::new(start, out.len())))
}

/// A block hash as 64 bits: a number in two's complement, or the last 8 bytes, big-endian.
fn hash(reader: &mut Reader<'_>) -> Result<Field<u64>, Malformed> {
    Ok(match reader.value()? {
        Value::Unsigned(n) => Field::Is(n),
        Value::Negative(n) => Field::Is(n.cast_unsigned()),
        Value::Bytes(bytes) => Field::Is(bytes.iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte))),
        Value::Nil => Field::Absent,
        other => {
            reader.skip_inside(other)?;
            Field::Unreadable
        }
    })
}

/// A token id; from engines with speculative heads a pair of which the first is the token.
fn token(reader: &mut Reader<'_>) -> Result<Field<u32>, Malformed> {
    match reader.value()? {
        Value::List(n @ 1..) => {
            let first = small(reader)?;
            reader.skip_all(n - 1)?;
            Ok(first)
        }
        value => as_small(value, reader),
    }
}

#[inline]
fn small(reader: &mut Reader<'_>) -> Result<Field<u32>, Malformed> {
    let value = reader.value()?;
    as_small(value, reader)
}

#[inline]
fn as_small(value: Value<'_>, reader: &mut Reader<'_>) -> Result<Field<u32>, Malformed> {
    Ok(match value {
        Value::Unsigned(n) => u32::try_from(n).map_or(Field::Unreadable, Field::Is),
        Value::Nil => Field::Absent,
        other => {
            reader.skip_inside(other)?;
            Field::Unreadable
        }
    })
}

fn text<'a>(reader: &mut Reader<'a>) -> Result<Field<&'a str>, Malformed> {
    let value = reader.value()?;
    as_text(value, reader)
}

fn as_text<'a>(value: Value<'a>, reader: &mut Reader<'a>) -> Result<Field<&'a str>, Malformed> {
    Ok(match value {
        Value::Text(Some(text)) => Field::Is(text),
        Value::Nil => Field::Absent,
        other => {
            reader.skip_inside(other)?;
            Field::Unreadable
        }
    })
}

fn number(reader: &mut Reader<'_>) -> Result<Option<f64>, Malformed> {
    Ok(match reader.value()? {
        Value::Float(n) => Some(n),
        Value::Unsigned(n) => Some(n as f64),
        Value::Negative(n) => Some(n as f64),
        other => {
            reader.skip_inside(other)?;
            None
        }
    })
}

/// Where a value begins, gone past.
fn later<'a>(reader: &mut Reader<'a>) -> Result<Reader<'a>, Malformed> {
    let here = *reader;
    reader.skip()?;
    Ok(here)
}
