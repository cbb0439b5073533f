//! MessagePack, read in place: what a value is, and how to get past one.
//!
//! **Invariants:** no length is believed before as many bytes are there, so that nothing is allocated for values that
//! cannot follow; nesting costs no stack, because what is not read is counted past.

/// Bytes that are not MessagePack, or end too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

type Result<T> = std::result::Result<T, Malformed>;

/// What comes next, taken off the input. Of lists and maps only the head is: their values follow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    Nil,
    Bool,
    /// A number of at least 0.
    Unsigned(u64),
    /// A number below 0.
    Negative(i64),
    Float(f64),
    /// A string; `None` if it is not UTF-8.
    Text(Option<&'a str>),
    Bytes(&'a [u8]),
    /// A list of so many values.
    List(usize),
    /// A map of so many keys and values.
    Map(usize),
    Extension,
}

/// A place in a message.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes that were not read yet.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// The next value.
    pub fn value(&mut self) -> Result<Value<'a>> {
        Ok(match self.byte()? {
            n @ 0..=0x7f => Value::Unsigned(n.into()),
            head @ 0x80..=0x8f => self.map((head & 0x0f).into())?,
            head @ 0x90..=0x9f => self.list((head & 0x0f).into())?,
            head @ 0xa0..=0xbf => self.text((head & 0x1f).into())?,
            0xc0 => Value::Nil,
            0xc1 => return Err(Malformed),
            0xc2 | 0xc3 => Value::Bool,
            head @ 0xc4..=0xc6 => {
                let length = self.length(head - 0xc4)?;
                Value::Bytes(self.bytes(length)?)
            }
            head @ 0xc7..=0xc9 => {
                let length = self.length(head - 0xc7)?;
                self.extension(length)?
            }
            0xca => Value::Float(f32::from_be_bytes(self.array()?).into()),
            0xcb => Value::Float(f64::from_be_bytes(self.array()?)),
            0xcc => Value::Unsigned(self.byte()?.into()),
            0xcd => Value::Unsigned(u16::from_be_bytes(self.array()?).into()),
            0xce => Value::Unsigned(u32::from_be_bytes(self.array()?).into()),
            0xcf => Value::Unsigned(u64::from_be_bytes(self.array()?)),
            0xd0 => signed(i8::from_be_bytes(self.array()?).into()),
            0xd1 => signed(i16::from_be_bytes(self.array()?).into()),
            0xd2 => signed(i32::from_be_bytes(self.array()?).into()),
            0xd3 => signed(i64::from_be_bytes(self.array()?)),
            head @ 0xd4..=0xd8 => self.extension(1 << (head - 0xd4))?,
            head @ 0xd9..=0xdb => {
                let length = self.length(head - 0xd9)?;
                self.text(length)?
            }
            head @ 0xdc..=0xdd => {
                let length = self.length(head - 0xdc + 1)?;
                self.list(length)?
            }
            head @ 0xde..=0xdf => {
                let length = self.length(head - 0xde + 1)?;
                self.map(length)?
            }
            head @ 0xe0.. => Value::Negative(head.cast_signed().into()),
        })
    }

    /// Takes in the numbers that come next, up to the first value that is none, or not of this kind; says how many they
    /// were. Lists of such are most of a message, and this is many times as fast as value by value.
    pub fn numbers<T: TryFrom<u64>>(&mut self, places: &mut [T]) -> usize {
        // In a register: a field would be written, and waited for, with each number.
        let mut rest = self.rest;
        let mut taken = 0;
        for place in places {
            let Some((number, behind)) = unsigned(rest) else { break };
            let Ok(number) = T::try_from(number) else { break };
            *place = number;
            rest = behind;
            taken += 1;
        }
        self.rest = rest;
        taken
    }

    /// Goes past the nils that come next, at most so many; says how many they were.
    pub fn nils(&mut self, most: usize) -> usize {
        let nils = self.rest.iter().take(most).take_while(|byte| **byte == 0xc0).count();
        self.rest = self.rest.get(nils..).unwrap_or_default();
        nils
    }

    /// Goes past the next value, whole.
    pub fn skip(&mut self) -> Result<()> {
        self.skip_all(1)
    }

    /// Goes past so many values.
    pub fn skip_all(&mut self, values: usize) -> Result<()> {
        // Many lists say nothing of each block.
        let mut left = values - self.nils(values);
        while left > 0 {
            let inside = match self.value()? {
                Value::List(n) => n,
                Value::Map(n) => 2 * n,
                _ => 0,
            };
            // Each took a byte of the message at least, so the sum cannot overflow.
            left = left - 1 + inside;
        }
        Ok(())
    }

    /// Goes past what is inside a value whose head was read.
    pub fn skip_inside(&mut self, value: Value<'_>) -> Result<()> {
        match value {
            Value::List(n) => self.skip_all(n),
            Value::Map(n) => self.skip_all(2 * n),
            _ => Ok(()),
        }
    }

    #[inline]
    fn byte(&mut self) -> Result<u8> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(Malformed)?;
        self.rest = rest;
        Ok(*array)
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(Malformed)?;
        self.rest = rest;
        Ok(bytes)
    }

    /// A length of 1, 2 or 4 bytes.
    fn length(&mut self, size: u8) -> Result<usize> {
        Ok(match size {
            0 => self.byte()?.into(),
            1 => u16::from_be_bytes(self.array()?).into(),
            _ => usize::try_from(u32::from_be_bytes(self.array()?)).map_err(|_| Malformed)?,
        })
    }

    fn text(&mut self, length: usize) -> Result<Value<'a>> {
        Ok(Value::Text(std::str::from_utf8(self.bytes(length)?).ok()))
    }

    fn extension(&mut self, length: usize) -> Result<Value<'a>> {
        self.byte()?;
        self.bytes(length)?;
        Ok(Value::Extension)
    }

    fn list(&self, length: usize) -> Result<Value<'a>> {
        if length > self.rest.len() { Err(Malformed) } else { Ok(Value::List(length)) }
    }

    fn map(&self, length: usize) -> Result<Value<'a>> {
        if length > self.rest.len() / 2 { Err(Malformed) } else { Ok(Value::Map(length)) }
    }
}

/// A number from 0 on, and what follows it.
#[inline]
fn unsigned(bytes: &[u8]) -> Option<(u64, &[u8])> {
    Some(match *bytes {
        [0xcd, a, b, ref rest @ ..] => (u16::from_be_bytes([a, b]).into(), rest),
        [0xce, a, b, c, d, ref rest @ ..] => (u32::from_be_bytes([a, b, c, d]).into(), rest),
        [0xcf, a, b, c, d, e, f, g, h, ref rest @ ..] => (u64::from_be_bytes([a, b, c, d, e, f, g, h]), rest),
        [0xcc, a, ref rest @ ..] => (a.into(), rest),
        [a @ 0..=0x7f, ref rest @ ..] => (a.into(), rest),
        _ => return None,
    })
}

fn signed<'a>(n: i64) -> Value<'a> {
    u64::try_from(n).map_or(Value::Negative(n), Value::Unsigned)
}
