//! Bounded reads of a header: nothing is allocated for bytes that are not there.

use std::io::Read;

use super::error::{Malformed, Problem};

/// Reads numbers and strings, and knows how many bytes are left.
pub(super) struct HeaderReader<R> {
    inner: R,
    position: u64,
    /// The file's size.
    size: u64,
    /// Where reading stops: the file's size, or the most that is read of a header.
    end: u64,
    scratch: Vec<u8>,
}

impl<R: Read> HeaderReader<R> {
    pub(super) fn new(inner: R, size: u64, limit: u64) -> Self {
        Self {
            inner,
            position: 0,
            size,
            end: size.min(limit),
            scratch: Vec::new(),
        }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Fails unless `count` things of at least `size` bytes each could still follow.
    pub(super) fn expect(
        &self,
        what: &'static str,
        count: u64,
        size: u64,
    ) -> Result<(), Malformed> {
        let needed = u128::from(count) * u128::from(size);
        if needed <= u128::from(self.end - self.position) {
            return Ok(());
        }
        let left = self.size - self.position;
        let problem = if needed > u128::from(left) {
            Problem::Truncated { what, needed, left }
        } else {
            Problem::HeaderTooLong { limit: self.end }
        };
        Err(Malformed::at(self.position, problem))
    }

    /// The next `len` bytes, which the caller copies before the next read.
    pub(super) fn bytes(&mut self, what: &'static str, len: u64) -> Result<&[u8], Malformed> {
        self.expect(what, len, 1)?;
        self.scratch.resize(len as usize, 0);
        if let Err(error) = self.inner.read_exact(&mut self.scratch) {
            return Err(Malformed::at(self.position, Problem::Io(error)));
        }
        self.position += len;
        Ok(&self.scratch)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(what, N as u64)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A string behind its 64-bit length, appended to `text`.
    pub(super) fn string_onto(
        &mut self,
        what: &'static str,
        text: &mut String,
    ) -> Result<(), Malformed> {
        let len = self.u64(what)?;
        let start = self.position;
        let bytes = self.bytes(what, len)?;
        match std::str::from_utf8(bytes) {
            Ok(string) => text.push_str(string),
            Err(error) => {
                return Err(Malformed::at(
                    start + error.valid_up_to() as u64,
                    Problem::NotUtf8 { what },
                ));
            }
        }
        Ok(())
    }

    pub(super) fn string(&mut self, what: &'static str) -> Result<String, Malformed> {
        let mut text = String::new();
        self.string_onto(what, &mut text)?;
        Ok(text)
    }

    /// A string that is a name: not empty, and at most `limit` bytes.
    pub(super) fn name(&mut self, what: &'static str, limit: u64) -> Result<String, Malformed> {
        let start = self.position;
        let name = self.string(what)?;
        let len = name.len() as u64;
        if len == 0 || len > limit {
            return Err(Malformed::at(start, Problem::NameLength { len, limit }));
        }
        Ok(name)
    }
}
