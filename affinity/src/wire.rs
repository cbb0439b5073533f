//! Little-endian reading and writing, shared by the codecs of this crate. Reading never panics.

/// A cursor that returns `None` when the bytes run out.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    /// What comes after the version that every message begins with; `None` if it is another one.
    pub(crate) fn of_version(bytes: &'a [u8], version: u8) -> Option<Self> {
        let mut reader = Self(bytes);
        (reader.u8()? == version).then_some(reader)
    }

    pub(crate) fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn f32(&mut self) -> Option<f32> {
        self.array().map(f32::from_le_bytes)
    }

    /// A string of at most 2^32 bytes.
    pub(crate) fn string(&mut self) -> Option<String> {
        let n = self.u32()? as usize;
        String::from_utf8(self.take(n)?.to_vec()).ok()
    }

    pub(crate) fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.u8()? {
            0 => Some(None),
            1 => Some(Some(read(self)?)),
            _ => None,
        }
    }

    /// A list with a 32-bit count. `least` is the fewest bytes an item can take: a count that cannot fit is refused
    /// before anything is allocated for it.
    pub(crate) fn list<T>(&mut self, least: usize, mut read: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let n = self.u32()? as usize;
        if n.checked_mul(least.max(1))? > self.0.len() {
            return None;
        }
        (0..n).map(|_| read(self)).collect()
    }
}

/// Appends values; the mirror of [`Reader`].
pub(crate) trait Write {
    fn u8(&mut self, v: u8);
    fn u16(&mut self, v: u16);
    fn u32(&mut self, v: u32);
    fn u64(&mut self, v: u64);
    fn f32(&mut self, v: f32);
    fn string(&mut self, v: &str);
    fn option<T>(&mut self, v: Option<T>, write: impl FnOnce(&mut Self, T));
    fn list<T>(&mut self, v: &[T], write: impl FnMut(&mut Self, &T));
}

impl Write for Vec<u8> {
    fn u8(&mut self, v: u8) {
        self.push(v);
    }

    fn u16(&mut self, v: u16) {
        self.extend_from_slice(&v.to_le_bytes());
    }

    fn u32(&mut self, v: u32) {
        self.extend_from_slice(&v.to_le_bytes());
    }

    fn u64(&mut self, v: u64) {
        self.extend_from_slice(&v.to_le_bytes());
    }

    fn f32(&mut self, v: f32) {
        self.extend_from_slice(&v.to_le_bytes());
    }

    fn string(&mut self, v: &str) {
        // Strings here are names, addresses and templates; one of 4 GiB cannot be built.
        self.u32(u32::try_from(v.len()).unwrap_or(0));
        if u32::try_from(v.len()).is_ok() {
            self.extend_from_slice(v.as_bytes());
        }
    }

    fn option<T>(&mut self, v: Option<T>, write: impl FnOnce(&mut Self, T)) {
        match v {
            None => self.u8(0),
            Some(v) => {
                self.u8(1);
                write(self, v);
            }
        }
    }

    fn list<T>(&mut self, v: &[T], mut write: impl FnMut(&mut Self, &T)) {
        let v = v.get(..u32::MAX as usize).unwrap_or(v);
        self.u32(v.len() as u32);
        for item in v {
            write(self, item);
        }
    }
}
