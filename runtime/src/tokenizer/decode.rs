//! Decoding: ids to text, piece by piece, in constant memory.

use core::fmt;

use super::blob::{Blob, OVERRIDE};
use super::chars::decode;
use super::layout::{flag, header, stood_for, token};

/// Bytes of a run of `<0x..>` tokens that are kept back.
const RUN: usize = 256;

/// Turns a stream of ids into text, as soon as each piece of it is known. The pieces joined (with
/// [`Decoder::finish`]'s) are what the reference library decodes from the whole list.
///
/// Text stays back while it may still change: an incomplete UTF-8 sequence, a run of `<0x..>` tokens (one invalid byte
/// turns all of its bytes into U+FFFD), the last token where it decodes differently from the others. A valid run longer
/// than 256 bytes is written before its end is seen.
#[derive(Clone)]
pub struct Decoder<'a> {
    blob: Blob<'a>,
    skip_special: bool,
    first: bool,
    held: Option<u32>,
    /// Characters that may still be stripped from the start of the text.
    strip: u32,
    /// Bytes of an incomplete UTF-8 sequence.
    partial: [u8; 4],
    partial_len: usize,
    run: [u8; RUN],
    run_len: usize,
    /// The run is known not to be UTF-8.
    run_bad: bool,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(blob: Blob<'a>, skip_special: bool) -> Self {
        Self {
            strip: blob.header(header::STRIP_COUNT),
            blob,
            skip_special,
            first: true,
            held: None,
            partial: [0; 4],
            partial_len: 0,
            run: [0; RUN],
            run_len: 0,
            run_bad: false,
        }
    }

    /// Takes the next id and writes what is now certain. Ids without a token write nothing.
    pub fn push(&mut self, id: u32, out: &mut impl fmt::Write) -> fmt::Result {
        let flags = self.blob.token_flag(id);
        if flags & token::PRESENT == 0 || (self.skip_special && flags & token::SPECIAL != 0) {
            return Ok(());
        }
        if self.blob.has(flag::DECODE_HOLD) {
            return match self.held.replace(id) {
                Some(before) => self.token(before, false, out),
                None => Ok(()),
            };
        }
        let edge = core::mem::replace(&mut self.first, false);
        self.token(id, edge, out)
    }

    /// Writes what was kept back and starts over.
    pub fn finish(&mut self, out: &mut impl fmt::Write) -> fmt::Result {
        if let Some(id) = self.held.take() {
            self.token(id, true, out)?;
        }
        self.end_run(out)?;
        if self.partial_len > 0 {
            self.text("\u{fffd}", out)?;
        }
        *self = Self::new(self.blob, self.skip_special);
        Ok(())
    }

    fn token(&mut self, id: u32, edge: bool, out: &mut impl fmt::Write) -> fmt::Result {
        let blob = self.blob;
        let (flags, stored) = (blob.token_flag(id), blob.token(id));
        if blob.has(flag::DECODE_FALLBACK) && flags & token::BYTE != 0 {
            return self.run_byte(stored, out);
        }
        self.end_run(out)?;
        if flags & token::OVERRIDE != 0 {
            return self.bytes(overridden(&blob, id, edge), out);
        }
        if blob.has(flag::DECODE_STAND_INS) {
            return self.stand_ins(stored, out);
        }
        if blob.has(flag::DECODE_BYTES) {
            return self.bytes(stored, out);
        }
        let mut rest = stored;
        if !edge {
            let continuing = blob.header_string(header::CONTINUING);
            match stored.strip_prefix(continuing) {
                Some(tail) if !continuing.is_empty() => rest = tail,
                _ => self.bytes(blob.header_string(header::GLUE), out)?,
            }
        }
        let from = blob.header_string(header::SUB_FROM);
        let to = blob.header_string(if edge { header::SUB_EDGE } else { header::SUB_TO });
        while !from.is_empty()
            && let Some(at) = rest.windows(from.len()).position(|w| w == from)
        {
            self.bytes(&rest[..at], out)?;
            self.bytes(to, out)?;
            rest = &rest[at + from.len()..];
        }
        self.bytes(rest, out)
    }

    /// A token of printable stand-ins; one with any other character is literal text.
    fn stand_ins(&mut self, stored: &[u8], out: &mut impl fmt::Write) -> fmt::Result {
        let next = |at: usize| decode(stored, at).and_then(|(c, n)| Some((stood_for(c)?, at + n)));
        let mut at = 0;
        while let Some((_, end)) = next(at) {
            at = end;
        }
        if at < stored.len() {
            return self.bytes(stored, out);
        }
        at = 0;
        while let Some((byte, end)) = next(at) {
            self.bytes(&[byte], out)?;
            at = end;
        }
        Ok(())
    }

    fn run_byte(&mut self, stored: &[u8], out: &mut impl fmt::Write) -> fmt::Result {
        let digit = |i: usize| stored.get(i).and_then(|b| char::from(*b).to_digit(16)).unwrap_or(0);
        if self.run_bad {
            return self.text("\u{fffd}", out);
        }
        if self.run_len == RUN {
            // Too long to wait for its end: what is complete goes out.
            let run = self.run;
            let valid = run.utf8_chunks().next().map_or("", |c| c.valid());
            self.text(valid, out)?;
            self.run.copy_within(valid.len().., 0);
            self.run_len -= valid.len();
        }
        self.run[self.run_len] = (digit(3) << 4 | digit(4)) as u8;
        self.run_len += 1;
        if let Err(e) = core::str::from_utf8(&self.run[..self.run_len])
            && e.error_len().is_some()
        {
            self.run_bad = true;
            for _ in 0..self.run_len {
                self.text("\u{fffd}", out)?;
            }
        }
        Ok(())
    }

    /// Ends a run of byte tokens: text if it is UTF-8, else a replacement character for every byte.
    fn end_run(&mut self, out: &mut impl fmt::Write) -> fmt::Result {
        if self.run_len == 0 {
            return Ok(());
        }
        let (run, len) = (self.run, core::mem::take(&mut self.run_len));
        if core::mem::take(&mut self.run_bad) {
            return Ok(());
        }
        match core::str::from_utf8(&run[..len]) {
            Ok(text) => self.text(text, out),
            Err(_) => (0..len).try_for_each(|_| self.text("\u{fffd}", out)),
        }
    }

    /// Bytes that may begin or end inside a character; what cannot become UTF-8 turns into U+FFFD.
    fn bytes(&mut self, mut bytes: &[u8], out: &mut impl fmt::Write) -> fmt::Result {
        while self.partial_len > 0 && !bytes.is_empty() {
            let mut joined = self.partial;
            joined[self.partial_len] = bytes[0];
            match core::str::from_utf8(&joined[..=self.partial_len]) {
                Ok(text) => {
                    self.partial_len = 0;
                    bytes = &bytes[1..];
                    self.text(text, out)?;
                }
                Err(e) if e.error_len().is_none() => {
                    self.partial = joined;
                    self.partial_len += 1;
                    bytes = &bytes[1..];
                }
                Err(_) => {
                    self.partial_len = 0;
                    self.text("\u{fffd}", out)?;
                }
            }
        }
        for chunk in bytes.utf8_chunks() {
            self.text(chunk.valid(), out)?;
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            let at_end = invalid.as_ptr_range().end == bytes.as_ptr_range().end;
            if at_end && core::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none()) {
                self.partial[..invalid.len()].copy_from_slice(invalid);
                self.partial_len = invalid.len();
            } else {
                self.text("\u{fffd}", out)?;
            }
        }
        Ok(())
    }

    /// Writes text, less what is stripped from the start.
    fn text(&mut self, mut text: &str, out: &mut impl fmt::Write) -> fmt::Result {
        while self.strip > 0
            && let Some(c) = text.chars().next()
        {
            if u32::from(c) == self.blob.header(header::STRIP_CHAR) {
                self.strip -= 1;
                text = &text[c.len_utf8()..];
            } else {
                self.strip = 0;
            }
        }
        if text.is_empty() { Ok(()) } else { out.write_str(text) }
    }
}

/// The decoded form of a token that no rule covers.
fn overridden<'a>(blob: &Blob<'a>, id: u32, edge: bool) -> &'a [u8] {
    let (mut lo, mut hi) = (0, blob.overrides.len() / OVERRIDE);
    while lo < hi {
        let middle = lo.midpoint(hi);
        let [at, a, b, c, d] = blob.overrides.record(middle).unwrap_or_default();
        if at == id {
            return if edge { blob.string(a, b) } else { blob.string(c, d) };
        }
        if at < id { lo = middle + 1 } else { hi = middle }
    }
    &[]
}
