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

fn only(batch: &Batch) -> Stored<'_> {
    match list_of(batch)[..] {
        [Event::Stored(stored)] => stored,
        ref other => panic!("expected one stored event, found {other:?}"),
    }
}

fn list_of(batch: &Batch) -> Vec<Event<'_>> {
    batch.events().collect()
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
    let batch = batch_of([array]);
    let stored = only(&batch);
    assert_eq!(stored, only(&batch_of([by_name])));
    assert_eq!((stored.parent, stored.group, stored.attention), (Some(6), 1, Attention::Full));
    assert_eq!((stored.adapter, stored.readable), (Some("ada"), 2));
}

#[test]
fn a_batch_may_be_a_map_too() {
    let batch = map(&[("events", list([list(["AllBlocksCleared".into()])])), ("ts", 2.0.into())]);
    let batch = decode(&encode(&batch)).unwrap();
    assert_eq!((list_of(&batch), batch.timestamp, batch.rank, batch.skipped), (vec![Event::Cleared], 2.0, None, 0));
}

#[test]
fn hashes_are_read_from_negative_numbers_and_from_bytes() {
    let mut long = vec![9u8; 24];
    long.extend_from_slice(&u64::MAX.to_be_bytes());
    let removed = list(["BlockRemoved".into(), list([(-1i64).into(), Value::Binary(long), 3.into()])]);
    let batch = batch_of([removed]);
    let [Event::Removed(removed)] = list_of(&batch)[..] else { panic!("not one removal") };
    assert_eq!(removed.hashes, [u64::MAX, u64::MAX, 3]);
    assert_eq!((removed.tier, removed.group), (Tier::Gpu, None));
}

#[test]
fn media_are_read_whatever_their_case() {
    for (medium, expected) in
        [("gpu", Tier::Gpu), ("cpu", Tier::Cpu), ("CPU_PINNED", Tier::Cpu), ("STORAGE", Tier::Disk)]
    {
        let event = list(["BlockRemoved".into(), list([1.into()]), medium.into()]);
        let batch = batch_of([event]);
        let [Event::Removed(removed)] = list_of(&batch)[..] else { panic!("not one removal") };
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
    assert_eq!((list_of(&batch), batch.skipped), (vec![Event::Cleared], 1));
}

#[test]
fn unknown_kinds_are_skipped_and_the_rest_is_kept() {
    let batch = batch_of([list(["BlockInactive".into(), 1.into()]), 5.into(), list(["AllBlocksCleared".into()])]);
    assert_eq!((list_of(&batch), batch.skipped), (vec![Event::Cleared], 2));
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
    let batch = batch_of([named(&[("extra_keys", keys.clone())])]);
    let stored = only(&batch);
    assert_eq!((stored.salt, stored.readable), (Some("tenant"), 2));
    let batch = batch_of([named(&[("extra_keys", keys), ("parent_block_hash", 1.into())])]);
    let later = only(&batch);
    assert_eq!((later.salt, later.readable), (None, 0));
}

#[test]
fn text_ends_where_an_image_or_embedding_begins() {
    let image = list([list(["a1b2".into(), (-3).into()])]);
    let batch = batch_of([named(&[("extra_keys", list([Value::Nil, image]))])]);
    let stored = only(&batch);
    assert_eq!(stored.readable, 1);
    let embedding = list([Value::Binary(vec![0; 32])]);
    let batch = batch_of([named(&[("extra_keys", list([embedding, Value::Nil]))])]);
    let stored = only(&batch);
    assert_eq!((stored.readable, stored.salt), (0, None));
}

#[test]
fn an_adapter_known_only_by_number_is_not_read() {
    assert_eq!(only(&batch_of([named(&[("lora_id", 3.into())])])).readable, 0);
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
    let batch = batch_of([event]);
    let stored = only(&batch);
    assert_eq!((stored.tokens, stored.salt), (&[1, 2][..], Some("tenant")));
}

#[test]
fn payloads_that_are_no_batch_are_refused() {
    assert_eq!(decode(&[0x92, 0x01]), Err(DecodeError::NotMsgpack));
    assert_eq!(decode(&encode(&"hello".into())), Err(DecodeError::NotABatch));
    assert_eq!(decode(&encode(&list([1.0.into()]))), Err(DecodeError::NotABatch));
}
