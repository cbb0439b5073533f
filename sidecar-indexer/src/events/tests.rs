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
    for (medium, expected) in [
        ("gpu", Tier::Gpu),
        ("cpu", Tier::Cpu),
        ("CPU_PINNED", Tier::Cpu),
        ("STORAGE", Tier::Disk),
        ("Disk", Tier::Disk),
    ] {
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
fn of_token_pairs_the_first_is_the_token() {
    let pair = |a: u32| list([a.into(), (a + 1).into()]);
    let tokens = list([pair(1), pair(2)]);
    let event = list(["BlockStored".into(), list([7.into()]), Value::Nil, tokens, 2.into()]);
    assert_eq!(only(&batch_of([event])).tokens, [1, 2]);
}

#[test]
fn salts_of_sglang_are_read_from_maps_only() {
    let batch = batch_of([named(&[("cache_salt", "tenant".into())])]);
    assert_eq!(only(&batch).salt, Some("tenant"));
    // In arrays a salted block had the hash of an unsalted one.
    let own = |pairs: &[(&str, Value)]| {
        let tokens = list([1.into(), 2.into()]);
        let hashes = list([(-7i64).into()]);
        list(["BlockStored".into(), hashes, Value::Nil, tokens, 2.into(), Value::Nil, "GPU".into(), map(pairs)])
    };
    let salted = own(&[("cache_salt", "tenant".into()), ("session_id", "s".into())]);
    let batch = batch_of([salted, own(&[("session_id", "s".into())])]);
    assert_eq!((only(&batch).hashes, only(&batch).salt, batch.skipped), (&[u64::MAX - 6][..], None, 1));
}

#[test]
fn what_lies_elsewhere_is_not_held() {
    let hashes = list([7.into()]);
    let removed = |medium: &str, locality: &str| {
        let fields = [("type", "BlockRemoved"), ("medium", medium), ("locality", locality)];
        let mut fields: Vec<_> = fields.map(|(name, value)| (name, Value::from(value))).to_vec();
        fields.push(("block_hashes", hashes.clone()));
        map(&fields)
    };
    for (event, skipped) in [
        (named(&[("locality", "REMOTE".into())]), 1),
        (named(&[("locality", "LOCAL".into())]), 0),
        (removed("STORAGE", "REMOTE"), 1),
        (removed("EXTERNAL", "LOCAL"), 1),
        (removed("STORAGE", "LOCAL"), 0),
        (removed("STORAGE", "elsewhere"), 0),
    ] {
        assert_eq!(batch_of([event.clone()]).skipped, skipped, "{event}");
    }
}

#[test]
fn copies_on_slower_tiers_may_come_without_tokens() {
    let without = |medium: &str, tokens: Value| {
        let hashes = list([7.into()]);
        list(["BlockStored".into(), hashes, Value::Nil, tokens, 16.into(), Value::Nil, medium.into()])
    };
    let batch = batch_of([without("cpu", list([])), without("CPU", Value::Nil), without("GPU", list([]))]);
    assert_eq!((batch.len(), batch.skipped), (2, 1));
    assert!(batch.events().all(|e| matches!(e, Event::Stored(Stored { block_size: 0, tokens: [], .. }))));
}

#[test]
fn images_in_events_of_tensorrt_llm_are_not_text() {
    let image = map(&[("mm_objects", list([]))]);
    for (infos, readable) in [
        (list([Value::Nil, Value::Nil]), 2),
        (list([Value::Nil, image.clone()]), 1),
        (list([image.clone(), Value::Nil]), 0),
        (list([Value::Nil]), 0),
        (image, 0),
        (Value::Nil, 2),
    ] {
        let batch = batch_of([named(&[("block_mm_infos", infos.clone())])]);
        assert_eq!(only(&batch).readable, readable, "{infos}");
    }
}

#[test]
fn only_stores_from_the_start_in_maps_may_repeat_what_is_held() {
    let array = list(["BlockStored".into(), list([7.into()]), Value::Nil, list([1.into()]), 1.into()]);
    for (event, may) in [
        (named(&[]), true),
        (named(&[("parent_block_hash", 6.into())]), false),
        (named(&[("medium", "CPU".into())]), false),
        (array, false),
    ] {
        assert_eq!(only(&batch_of([event.clone()])).may_repeat, may, "{event}");
    }
}

#[test]
fn fields_of_a_map_come_in_any_order() {
    let Value::Map(mut fields) = named(&[("extra_keys", list([list(["salt".into()]), Value::Nil]))]) else { panic!() };
    let expected = batch_of([Value::Map(fields.clone())]);
    for _ in 0..fields.len() {
        fields.rotate_left(1);
        assert_eq!(batch_of([Value::Map(fields.clone())]), expected);
    }
}

#[test]
fn lengths_are_not_believed() {
    // An array of 4 billion hashes, tokens or events in a few bytes.
    let huge = [0xdd, 0xff, 0xff, 0xff, 0xff];
    let before_events = [&[0x92, 0x01][..], &huge].concat();
    let mut before_hashes = encode(&"BlockStored".into());
    before_hashes.splice(..0, [0x92, 0x01, 0x91, 0x92]);
    for start in [before_events, [&before_hashes[..], &huge].concat(), huge.to_vec()] {
        assert_eq!(decode(&start), Err(DecodeError::NotMsgpack));
    }
}

#[test]
fn deep_nesting_costs_no_stack() {
    let mut payload = vec![0x93, 0x01, 0x90];
    payload.extend(std::iter::repeat_n(0x91, 1_000_000));
    assert_eq!(decode(&payload), Err(DecodeError::NotMsgpack));
    payload.push(0xc0);
    assert!(decode(&payload).unwrap().is_empty());
}

#[test]
fn payloads_that_are_no_batch_are_refused() {
    assert_eq!(decode(&[0x92, 0x01]), Err(DecodeError::NotMsgpack));
    assert_eq!(decode(&encode(&"hello".into())), Err(DecodeError::NotABatch));
    assert_eq!(decode(&encode(&list([1.0.into()]))), Err(DecodeError::NotABatch));
}

/// A batch of `n` such events, which lie in `event` as they are written.
fn many(n: u32, event: impl Fn(u32, &mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![0x92, 1, 0xdd];
    out.extend(n.to_be_bytes());
    (0..n).for_each(|i| event(i, &mut out));
    out
}

/// A list of `n` numbers, each of these bytes.
fn numbers(out: &mut Vec<u8>, n: u32, number: &[u8]) {
    out.push(0xdd);
    out.extend(n.to_be_bytes());
    (0..n).for_each(|_| out.extend(number));
}

const HASH: [u8; 9] = [0xcf, 1, 2, 3, 4, 5, 6, 7, 8];

#[test]
fn a_message_made_to_take_memory_is_refused_before_it_takes_it() {
    let too_large = |payload: &[u8]| {
        let Err(DecodeError::TooLarge { bytes, allowed }) = decode(payload) else { return false };
        bytes > allowed && allowed == (32 << 20).max(4 * payload.len())
    };
    let removed = |events, hashes| {
        many(events, |_, out| {
            out.extend(b"\x92\xacBlockRemoved");
            numbers(out, hashes, &[1]);
        })
    };
    assert!(decode(&removed(1, 3 << 20)).is_ok());
    assert!(too_large(&removed(1, 5 << 20)));
    assert!(too_large(&removed(1, 16 << 20)), "of any size");
    assert!(too_large(&removed(2, 3 << 20)), "lists count together");
    assert!(too_large(&many(1 << 20, |_, out| out.extend(b"\x92\xacBlockRemoved\x90"))));
    let nothing = decode(&many(1 << 20, |_, out| out.push(0xc0))).unwrap();
    assert!(nothing.records.capacity() * size_of::<Record>() <= 8 << 20, "what says nothing has no record");
}

#[test]
fn a_step_of_a_million_tokens_in_blocks_of_one_is_read() {
    const N: u32 = 1_000_000;
    for token in [&[5][..], &[0xce, 0, 1, 2, 3]] {
        let at_once = many(1, |_, out| {
            out.extend(b"\x96\xabBlockStored");
            numbers(out, N, &HASH);
            out.push(0xc0);
            numbers(out, N, token);
            out.extend([1, 0xc0]);
        });
        assert_eq!(only(&decode(&at_once).unwrap()).readable, N as usize);
    }
    let one_by_one = many(N, |_, out| {
        out.extend(b"\x96\xabBlockStored\x91");
        out.extend(HASH);
        out.extend(HASH);
        out.extend([0x91, 5, 1, 0xc0]);
    });
    assert_eq!(decode(&one_by_one).unwrap().len(), N as usize);
    for (head, medium) in [(0x93, &b"\xa3GPU"[..]), (0x92, b"")] {
        let removals = many(N, |_, out| {
            out.push(head);
            out.extend(b"\xacBlockRemoved\x91");
            out.extend(HASH);
            out.extend(medium);
        });
        assert_eq!(decode(&removals).unwrap().len(), N as usize);
    }
}
