//! Which blocks are text: what events say of each block beside its tokens.

use super::msgpack::{Malformed, Reader, Value};

/// What is known of an event's blocks as texts.
pub struct Text<'a> {
    /// So many of them, from the first, are text.
    pub blocks: usize,
    /// The cache salt, if any.
    pub salt: Option<&'a str>,
}

/// Reads `extra_keys`: per block a list, nil for an empty one. `false` if it does not fit the blocks.
///
/// Keys come in the order adapter, images, salt, embeddings; the salt only in the block that starts the sequence.
/// Old engines write an image as a bare string: where that can be taken for a salt it is, and the chain lands in a
/// namespace that nobody asks for.
pub fn read_keys<'a>(
    reader: &mut Reader<'a>,
    blocks: usize,
    adapter: Option<&str>,
    from_start: bool,
    text: &mut Text<'a>,
) -> Result<bool, Malformed> {
    match reader.value()? {
        Value::Nil => return Ok(true),
        Value::List(n) if n == blocks => {}
        _ => return Ok(false),
    }
    for block in reader.nils(blocks)..blocks {
        let mut keys = match reader.value()? {
            Value::Nil => continue,
            Value::List(n) => n,
            _ => {
                text.blocks = text.blocks.min(block);
                return Ok(true);
            }
        };
        let mut key = next(reader, &mut keys)?;
        if adapter.is_some() && key == Some(Value::Text(adapter)) {
            key = next(reader, &mut keys)?;
        }
        match key {
            None => {}
            Some(Value::Text(Some(salt))) if keys == 0 && from_start && block == 0 => text.salt = Some(salt),
            Some(_) => {
                text.blocks = text.blocks.min(block);
                return Ok(true);
            }
        }
    }
    Ok(true)
}

/// The next of a block's keys, if there is one.
fn next<'a>(reader: &mut Reader<'a>, left: &mut usize) -> Result<Option<Value<'a>>, Malformed> {
    let Some(fewer) = left.checked_sub(1) else { return Ok(None) };
    *left = fewer;
    reader.value().map(Some)
}

/// Reads `block_mm_infos`, with which TensorRT-LLM's events come through Dynamo: per block nil, or its images.
pub fn read_images(reader: &mut Reader<'_>, blocks: usize, text: &mut Text<'_>) -> Result<(), Malformed> {
    let listed = match reader.value()? {
        Value::Nil => return Ok(()),
        Value::List(n) if n == blocks => n,
        // Not a list of the blocks: any of them may be an image.
        _ => 0,
    };
    text.blocks = text.blocks.min(reader.nils(listed));
    Ok(())
}
