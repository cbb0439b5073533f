//! The reader against `rmpv`'s.

use super::msgpack::{Malformed, Reader, Value};
use proptest::prelude::*;
use rmpv::Value as Tree;

/// The next value, whole.
fn tree(reader: &mut Reader<'_>) -> Result<Tree, Malformed> {
    Ok(match reader.value()? {
        Value::Nil => Tree::Nil,
        // What these say, nobody asks.
        Value::Bool => Tree::Boolean(true),
        Value::Extension => Tree::Ext(0, Vec::new()),
        Value::Unsigned(n) => n.into(),
        Value::Negative(n) => n.into(),
        Value::Float(n) => n.into(),
        Value::Text(text) => text.unwrap_or("not UTF-8").into(),
        Value::Bytes(bytes) => bytes.into(),
        Value::List(n) => Tree::Array((0..n).map(|_| tree(reader)).collect::<Result<_, _>>()?),
        Value::Map(n) => {
            let pair = |reader: &mut Reader<'_>| Ok((tree(reader)?, tree(reader)?));
            Tree::Map((0..n).map(|_| pair(reader)).collect::<Result<_, _>>()?)
        }
    })
}

fn reduced(value: Tree) -> Tree {
    match value {
        Tree::Boolean(_) => Tree::Boolean(true),
        Tree::Ext(..) => Tree::Ext(0, Vec::new()),
        Tree::F32(n) => f64::from(n).into(),
        Tree::String(text) if text.as_str().is_none() => "not UTF-8".into(),
        Tree::Array(items) => Tree::Array(items.into_iter().map(reduced).collect()),
        Tree::Map(pairs) => Tree::Map(pairs.into_iter().map(|(k, v)| (reduced(k), reduced(v))).collect()),
        other => other,
    }
}

/// Bytes that are likely to be MessagePack.
fn likely() -> impl Strategy<Value = Vec<u8>> {
    let head = prop_oneof![Just(0xc1u8), 0x80..=0x84u8, 0x90..=0x94u8, 0xa0..=0xa4u8, 0xc0..=0xdfu8, any::<u8>()];
    let part = prop_oneof![head.prop_map(|byte| vec![byte]), prop::collection::vec(0..4u8, 0..10)];
    prop::collection::vec(part, 1..30).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn bytes_are_read_as_rmpv_reads_them(bytes in likely()) {
        let mut rest = &bytes[..];
        let expected = rmpv::decode::read_value(&mut rest).ok().map(reduced);
        let mut reader = Reader::new(&bytes);
        let found = tree(&mut reader).ok();
        // NaNs equal nothing, themselves included; 0xc1 is no value, whatever rmpv makes of it.
        if !bytes.contains(&0xc1) {
            prop_assert_eq!(format!("{found:?}"), format!("{expected:?}"));
        }
        let mut skipping = Reader::new(&bytes);
        prop_assert_eq!(skipping.skip().is_ok(), found.is_some());
        if found.is_some() {
            prop_assert_eq!(skipping.left(), reader.left());
            prop_assert!(bytes.contains(&0xc1) || reader.left() == rest.len());
        }
    }
}
