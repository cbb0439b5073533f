//! KV events as engines publish them.
//!
//! A message's payload is one msgpack batch. Engines of different versions write it differently (arrays or maps,
//! hashes as signed or unsigned numbers or bytes, fields added over time), so it is read by structure and never by
//! version: what is unknown is skipped, what is inconsistent is skipped and counted. Not so removals: what was
//! removed would stay counted as held, so one that cannot be read makes the whole batch unreadable.

use affinity::Tier;
use rmpv::ValueRef;

/// One engine step's events.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// When the engine published it, seconds since the epoch by the engine's clock.
    pub timestamp: f64,
    /// In the order in which they happened.
    pub events: Vec<Event>,
    /// Events left out because they were of an unknown kind or inconsistent.
    pub skipped: u32,
}

/// A change of what an engine's cache holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Blocks were stored.
    Stored(Stored),
    /// One copy of each of these blocks was dropped.
    Removed(Removed),
    /// Every block was dropped.
    Cleared,
}

/// Consecutive blocks of one sequence that were stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The blocks, in order of the sequence.
    pub hashes: Vec<u64>,
    /// The block before the first one; `None` at the sequence's start.
    pub parent: Option<u64>,
    /// Their tokens: `block_size` for each hash. Empty in a placeholder.
    pub tokens: Vec<u32>,
    /// Tokens per block; 0 in a placeholder, which only says that known blocks are now on `tier` too.
    pub block_size: u32,
    /// Where they were stored.
    pub tier: Tier,
    /// The cache group, for engines with several kinds of attention.
    pub group: u32,
    /// What the engine says of the group's attention.
    pub attention: Attention,
    /// The LoRA adapter, if any.
    pub adapter: Option<String>,
    /// The cache salt, if any; only known when `parent` is `None`.
    pub salt: Option<String>,
    /// How many of the blocks, from the first, consist of text: images and embeddings have made-up token ids.
    pub readable: usize,
}

/// Blocks of which one copy was dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The blocks.
    pub hashes: Vec<u64>,
    /// Where they were dropped.
    pub tier: Tier,
    /// The cache group; `None` from engines that know of one only.
    pub group: Option<u32>,
}

/// Whether a cache group keeps every block of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// It does: a hit is a contiguous chain from the sequence's start.
    Full,
    /// It does not (sliding window, Mamba): its blocks say little about a prefix.
    Partial,
    /// The engine is too old to say.
    Unsaid,
}

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
    let mut batch = Batch { timestamp, ..Batch::default() };
    for item in items {
        match event(item)? {
            Some(event) => batch.events.push(event),
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

/// An event; `None` for one to skip.
fn event(value: &ValueRef<'_>) -> Result<Option<Event>, DecodeError> {
    let Some((tag, fields)) = tagged(value) else { return Ok(None) };
    match tag {
        "BlockStored" => Ok(stored(&fields).map(Event::Stored)),
        "BlockRemoved" => Ok(removed(&fields)?.map(Event::Removed)),
        "AllBlocksCleared" => Ok(Some(Event::Cleared)),
        _ => Ok(None),
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

/// `None` for a removal from a tier of an unknown name: what is stored there is not counted as held either.
fn removed(fields: &Fields<'_>) -> Result<Option<Removed>, DecodeError> {
    let hashes = fields.get(0, "block_hashes").and_then(hashes).ok_or(DecodeError::UnreadableRemoval)?;
    let medium = fields.get(1, "medium");
    if medium.is_some_and(|medium| text(medium).is_none()) {
        return Err(DecodeError::UnreadableRemoval);
    }
    let group = fields.get(2, "group_idx").and_then(small);
    Ok(tier(medium).map(|tier| Removed { hashes, tier, group }))
}

fn stored(fields: &Fields<'_>) -> Option<Stored> {
    let hashes = hashes(fields.get(0, "block_hashes")?)?;
    let parent = match fields.get(1, "parent_block_hash") {
        Some(value) => Some(hash(value)?),
        None => None,
    };
    let tokens = match fields.get(2, "token_ids") {
        Some(ValueRef::Array(ids)) => ids.iter().map(token).collect::<Option<Vec<u32>>>()?,
        Some(_) => return None,
        None => Vec::new(),
    };
    let block_size = small(fields.get(3, "block_size")?)?;
    // Groups with a window leave out blocks without saying which: nothing can be concluded from such an event.
    if tokens.len() as u64 != hashes.len() as u64 * u64::from(block_size) {
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
    let mut readable = if unnamed { 0 } else { hashes.len() };
    match fields.get(7, "extra_keys") {
        None => {}
        Some(ValueRef::Array(keys)) if keys.len() == hashes.len() => {
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
    Some(Stored {
        hashes,
        parent,
        tokens,
        block_size,
        tier: tier(fields.get(5, "medium"))?,
        group: fields.get(8, "group_idx").and_then(small).unwrap_or(0),
        attention,
        adapter: adapter.map(str::to_owned),
        salt: salt.map(str::to_owned),
        readable,
    })
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

fn hashes(value: &ValueRef<'_>) -> Option<Vec<u64>> {
    match value {
        ValueRef::Array(items) => items.iter().map(hash).collect(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use rmpv::Value;

    fn encode(value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        rmpv::encode::write_value(&mut out, value).unwrap();
        out
    }

    fn list(items: impl IntoIterator<Item = Value>) -> Value {
        Value::Array(items.into_iter().collect())
    }

    fn map(pairs: &[(&str, Value)]) -> Value {
        Value::Map(pairs.iter().map(|(k, v)| (Value::from(*k), v.clone())).collect())
    }

    fn batch_of(events: impl IntoIterator<Item = Value>) -> Batch {
        decode(&encode(&list([1.5.into(), list(events), 0.into()]))).unwrap()
    }

    fn only(events: Batch) -> Stored {
        match events.events.as_slice() {
            [Event::Stored(s)] => s.clone(),
            other => panic!("expected one stored event, found {other:?}"),
        }
    }

    fn named(extra: &[(&str, Value)]) -> Value {
        let mut pairs = vec![
            ("type", Value::from("BlockStored")),
            ("block_hashes", list([7.into(), 8.into()])),
            ("token_ids", list([1.into(), 2.into(), 3.into(), 4.into()])),
            ("block_size", 2.into()),
            ("medium", "GPU".into()),
        ];
        pairs.extend(extra.iter().cloned());
        map(&pairs)
    }

    #[test]
    fn arrays_and_maps_mean_the_same() {
        let array = list([
            "BlockStored".into(),
            list([7.into(), 8.into()]),
            6.into(),
            list([1.into(), 2.into(), 3.into(), 4.into()]),
            2.into(),
            Value::Nil,
            "GPU".into(),
            "ada".into(),
            list([list(["ada".into()]), list(["ada".into()])]),
            1.into(),
            "mla_attention".into(),
            Value::Nil,
            "a field of the future".into(),
        ]);
        let by_name = named(&[
            ("parent_block_hash", 6.into()),
            ("lora_name", "ada".into()),
            ("extra_keys", list([list(["ada".into()]), list(["ada".into()])])),
            ("group_idx", 1.into()),
            ("kv_cache_spec_kind", "mla_attention".into()),
            ("a field of the future", 1.into()),
        ]);
        let stored = only(batch_of([array]));
        assert_eq!(stored, only(batch_of([by_name])));
        assert_eq!((stored.parent, stored.group, stored.attention), (Some(6), 1, Attention::Full));
        assert_eq!((stored.adapter.as_deref(), stored.readable), (Some("ada"), 2));
    }

    #[test]
    fn a_batch_may_be_a_map_too() {
        let batch = map(&[("events", list([list(["AllBlocksCleared".into()])])), ("ts", 2.0.into())]);
        let batch = decode(&encode(&batch)).unwrap();
        assert_eq!(batch, Batch { timestamp: 2.0, events: vec![Event::Cleared], skipped: 0 });
    }

    #[test]
    fn hashes_are_read_from_negative_numbers_and_from_bytes() {
        let mut long = vec![9u8; 24];
        long.extend_from_slice(&u64::MAX.to_be_bytes());
        let removed = list(["BlockRemoved".into(), list([(-1i64).into(), Value::Binary(long), 3.into()])]);
        let [Event::Removed(removed)] = &batch_of([removed]).events[..] else { panic!("not one removal") };
        assert_eq!(removed.hashes, [u64::MAX, u64::MAX, 3]);
        assert_eq!((removed.tier, removed.group), (Tier::Gpu, None));
    }

    #[test]
    fn media_are_read_whatever_their_case() {
        for (medium, expected) in
            [("gpu", Tier::Gpu), ("cpu", Tier::Cpu), ("CPU_PINNED", Tier::Cpu), ("STORAGE", Tier::Disk)]
        {
            let event = list(["BlockRemoved".into(), list([1.into()]), medium.into()]);
            let [Event::Removed(removed)] = &batch_of([event]).events[..] else { panic!("not one removal") };
            assert_eq!(removed.tier, expected, "{medium}");
        }
    }

    #[test]
    fn an_event_with_fewer_hashes_than_its_tokens_need_is_skipped() {
        let mut event = named(&[]);
        if let Value::Map(pairs) = &mut event {
            pairs[1].1 = list([7.into()]);
        }
        let batch = batch_of([event, list(["AllBlocksCleared".into()])]);
        assert_eq!((batch.events, batch.skipped), (vec![Event::Cleared], 1));
    }

    #[test]
    fn unknown_kinds_are_skipped_and_the_rest_is_kept() {
        let batch = batch_of([list(["BlockInactive".into(), 1.into()]), 5.into(), list(["AllBlocksCleared".into()])]);
        assert_eq!((batch.events, batch.skipped), (vec![Event::Cleared], 2));
    }

    #[test]
    fn a_removal_that_cannot_be_read_makes_the_batch_unreadable() {
        let of = |hashes: Value, medium: Value| list(["BlockRemoved".into(), hashes, medium]);
        for (event, expected) in [
            (of(list([1.into(), "a5".into()]), "GPU".into()), Err(DecodeError::UnreadableRemoval)),
            (of(Value::Nil, "GPU".into()), Err(DecodeError::UnreadableRemoval)),
            (of(list([1.into()]), 7.into()), Err(DecodeError::UnreadableRemoval)),
            (map(&[("type", "BlockRemoved".into())]), Err(DecodeError::UnreadableRemoval)),
            // Nothing is ever counted as held on it.
            (of(list([1.into()]), "TAPE".into()), Ok(1)),
        ] {
            let batch = list([1.5.into(), list([event.clone(), list(["AllBlocksCleared".into()])])]);
            assert_eq!(decode(&encode(&batch)).map(|batch| batch.skipped), expected, "{event}");
        }
    }

    #[test]
    fn a_salt_is_read_from_the_first_block_only() {
        let keys = list([list(["tenant".into()]), Value::Nil]);
        let stored = only(batch_of([named(&[("extra_keys", keys.clone())])]));
        assert_eq!((stored.salt.as_deref(), stored.readable), (Some("tenant"), 2));
        let later = only(batch_of([named(&[("extra_keys", keys), ("parent_block_hash", 1.into())])]));
        assert_eq!((later.salt, later.readable), (None, 0));
    }

    #[test]
    fn text_ends_where_an_image_or_embedding_begins() {
        let image = list([list(["a1b2".into(), (-3).into()])]);
        let stored = only(batch_of([named(&[("extra_keys", list([Value::Nil, image]))])]));
        assert_eq!(stored.readable, 1);
        let embedding = list([Value::Binary(vec![0; 32])]);
        let stored = only(batch_of([named(&[("extra_keys", list([embedding, Value::Nil]))])]));
        assert_eq!((stored.readable, stored.salt), (0, None));
    }

    #[test]
    fn an_adapter_known_only_by_number_is_not_read() {
        assert_eq!(only(batch_of([named(&[("lora_id", 3.into())])])).readable, 0);
    }

    #[test]
    fn sglang_salts_and_token_pairs_are_read() {
        let pair = |a: u32| list([a.into(), (a + 1).into()]);
        let own = map(&[("cache_salt", "tenant".into())]);
        let event = list([
            "BlockStored".into(),
            list([(-7i64).into()]),
            Value::Nil,
            list([pair(1), pair(2)]),
            2.into(),
            Value::Nil,
            "GPU".into(),
            own,
        ]);
        let stored = only(batch_of([event]));
        assert_eq!((stored.tokens, stored.salt.as_deref()), (vec![1, 2], Some("tenant")));
    }

    #[test]
    fn payloads_that_are_no_batch_are_refused() {
        assert_eq!(decode(&[0x92, 0x01]), Err(DecodeError::NotMsgpack));
        assert_eq!(decode(&encode(&"hello".into())), Err(DecodeError::NotABatch));
        assert_eq!(decode(&encode(&list([1.0.into()]))), Err(DecodeError::NotABatch));
    }
}
