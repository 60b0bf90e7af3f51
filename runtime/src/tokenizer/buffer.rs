//! Text under normalization, in the caller's scratch memory, with the place in the original text of every byte.
//!
//! The content always ends at the end of the memory (or shortly before). A pass reads it from there and writes its
//! result from the front; where the writer would overtake the reader the scratch is too small, which the caller
//! answers with more. Every byte carries the start of the one original character that it comes from: no step of the
//! pipeline ever maps a character to more than one.

use super::chars::{decode, encode};
use crate::error::{Error, ErrorKind, Result};

/// The error for scratch memory that does not suffice.
pub(crate) const SCRATCH: Error = Error::new(ErrorKind::TooSmall, "tokenizer scratch");

/// Text and origins; the content is `lo..hi`.
pub(crate) struct Buffer<'s> {
    pub text: &'s mut [u8],
    pub origin: &'s mut [u32],
    pub lo: usize,
    pub hi: usize,
}

impl Buffer<'_> {
    /// Takes `original[from..to]` as content.
    pub(crate) fn load(&mut self, original: &[u8], from: usize, to: usize) -> Result<()> {
        let n = to - from;
        self.hi = self.text.len();
        self.lo = self.hi.checked_sub(n).ok_or(SCRATCH)?;
        self.text[self.lo..].copy_from_slice(&original[from..to]);
        let mut start = from;
        for (i, &b) in original[from..to].iter().enumerate() {
            if b & 0xc0 != 0x80 {
                start = from + i;
            }
            self.origin[self.lo + i] = start as u32;
        }
        Ok(())
    }

    pub(crate) fn content(&self) -> &[u8] {
        &self.text[self.lo..self.hi]
    }

    /// Puts `bytes` in front of the piece that begins at `lo`, with the origin of its first character; returns the new
    /// beginning. What lay there belongs to pieces that are done.
    pub(crate) fn prepend(&mut self, lo: usize, bytes: &[u8]) -> Result<usize> {
        let at = lo.checked_sub(bytes.len()).ok_or(SCRATCH)?;
        self.text[at..lo].copy_from_slice(bytes);
        let origin = self.origin[lo];
        self.origin[at..lo].fill(origin);
        Ok(at)
    }

    /// Starts a pass over the content.
    pub(crate) fn pass(&mut self) -> Pass<'_> {
        let (read, end) = (self.lo, self.hi);
        Pass {
            text: self.text,
            origin: self.origin,
            read,
            end,
            taken: read,
            last: 0,
            write: 0,
            lo: &mut self.lo,
            hi: &mut self.hi,
        }
    }
}

/// One pass of rewriting. `read` runs over the old content; `taken` follows it and hands out origins.
pub(crate) struct Pass<'p> {
    pub text: &'p mut [u8],
    pub origin: &'p mut [u32],
    pub read: usize,
    pub end: usize,
    taken: usize,
    last: u32,
    pub write: usize,
    lo: &'p mut usize,
    hi: &'p mut usize,
}

impl Pass<'_> {
    /// The next character of the old content.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<u32> {
        let (c, n) = decode(&self.text[..self.end], self.read)?;
        self.read += n;
        Some(c)
    }

    /// Takes the origin of the next old character.
    #[inline]
    pub(crate) fn take(&mut self) -> u32 {
        if let Some((_, n)) = decode(&self.text[..self.end], self.taken) {
            self.last = self.origin[self.taken];
            self.taken += n;
        }
        self.last
    }

    /// Origin for a character with a `change` as the reference library counts them: 1 for an additional character (it
    /// shares the origin of the one before), 0 for one that replaces an old one, `-n` if `n` old ones vanish after it.
    #[inline]
    pub(crate) fn origin_for(&mut self, change: i32) -> u32 {
        if change > 0 {
            return self.last;
        }
        let origin = self.take();
        for _ in change..0 {
            self.take();
        }
        origin
    }

    /// Writes bytes with one origin.
    #[inline]
    pub(crate) fn put_bytes(&mut self, bytes: &[u8], origin: u32) -> Result<()> {
        let end = self.write + bytes.len();
        if end > self.read.min(self.taken) {
            return Err(SCRATCH);
        }
        self.text[self.write..end].copy_from_slice(bytes);
        self.origin[self.write..end].fill(origin);
        self.write = end;
        Ok(())
    }

    /// Writes a character with a change.
    #[inline]
    pub(crate) fn put(&mut self, c: u32, change: i32) -> Result<()> {
        let origin = self.origin_for(change);
        let (bytes, n) = encode(c);
        self.put_bytes(&bytes[..n], origin)
    }

    /// Writes bytes as the characters that replace what was taken last.
    pub(crate) fn insert(&mut self, bytes: &[u8]) -> Result<()> {
        let origin = self.last;
        self.put_bytes(bytes, origin)
    }

    /// Ends the pass: the result becomes the content.
    pub(crate) fn finish(self) {
        let at = self.text.len() - self.write;
        self.text.copy_within(..self.write, at);
        self.origin.copy_within(..self.write, at);
        *self.lo = at;
        *self.hi = self.text.len();
    }
}
