//! Characters: reading them from text, and the flat tables that classify and map them.

use super::layout::{stand_in, table};
use super::words::{Halves, Words};
use crate::error::{Error, ErrorKind, Result};

/// Reads the character at `pos`. Bytes that are not UTF-8 (which only a damaged file can bring about) read as
/// characters of one byte.
#[inline]
pub(crate) fn decode(text: &[u8], pos: usize) -> Option<(u32, usize)> {
    let b = *text.get(pos)?;
    if b < 0x80 {
        return Some((u32::from(b), 1));
    }
    Some(decode_long(text, pos, b))
}

fn decode_long(text: &[u8], pos: usize, b: u8) -> (u32, usize) {
    let tail = |i: usize| text.get(pos + i).filter(|t| **t & 0xc0 == 0x80).map(|t| u32::from(*t & 0x3f));
    let lead = u32::from(b);
    match b {
        0xc2..=0xdf => {
            if let Some(x) = tail(1) {
                return ((lead & 0x1f) << 6 | x, 2);
            }
        }
        0xe0..=0xef => {
            if let (Some(x), Some(y)) = (tail(1), tail(2)) {
                return ((lead & 0xf) << 12 | x << 6 | y, 3);
            }
        }
        0xf0..=0xf4 => {
            if let (Some(x), Some(y), Some(z)) = (tail(1), tail(2), tail(3)) {
                return ((lead & 7) << 18 | x << 12 | y << 6 | z, 4);
            }
        }
        _ => {}
    }
    (lead, 1)
}

/// UTF-8 of a code point (of U+FFFD where it is none) and its length.
#[inline]
pub(crate) fn encode(c: u32) -> ([u8; 4], usize) {
    let mut out = [0; 4];
    let n = char::from_u32(c).unwrap_or(char::REPLACEMENT_CHARACTER).encode_utf8(&mut out).len();
    (out, n)
}

/// Length of a byte's printable stand-in in UTF-8.
#[inline]
pub(crate) fn stand_in_len(byte: u8) -> usize {
    if (0x21..=0x7e).contains(&byte) { 1 } else { 2 }
}

/// Start of the character that ends at `pos`.
#[inline]
pub(crate) fn previous(text: &[u8], pos: usize) -> usize {
    let mut p = pos.saturating_sub(1);
    while p > 0 && pos - p < 4 && text.get(p).is_some_and(|b| b & 0xc0 == 0x80) {
        p -= 1;
    }
    p
}

/// Text as a matcher sees it: UTF-8, or bytes that each stand for a printable character.
#[derive(Clone, Copy)]
pub(crate) struct Text<'t> {
    pub bytes: &'t [u8],
    pub stand_ins: bool,
}

impl Text<'_> {
    /// The character at `pos` and where the next begins.
    #[inline]
    pub(crate) fn next(self, pos: usize) -> Option<(u32, usize)> {
        if self.stand_ins {
            return self.bytes.get(pos).map(|b| (stand_in(*b), pos + 1));
        }
        decode(self.bytes, pos).map(|(c, n)| (c, pos + n))
    }
    /// Start of the character before `pos`.
    #[inline]
    pub(crate) fn previous(self, pos: usize) -> usize {
        if self.stand_ins { pos.saturating_sub(1) } else { previous(self.bytes, pos) }
    }
}

/// A three-stage table over all code points (layout: [`table`]).
#[derive(Clone, Copy)]
pub(crate) struct Table<'a> {
    /// Words before the stages.
    pub head: Words<'a>,
    stage1: Halves<'a>,
    stage2: Halves<'a>,
    stage3: &'a [u8],
}

impl<'a> Table<'a> {
    /// Finds the parts of a table whose leaves take `leaf` bytes.
    pub(crate) fn read(bytes: &'a [u8], leaf: usize) -> Option<Self> {
        let sizes = Halves::new(bytes.get(..table::HEAD)?);
        let (n2, n3) = (usize::from(sizes.at(0)) * table::BLOCK, usize::from(sizes.at(1)) * table::BLOCK);
        let at1 = table::HEAD + usize::from(sizes.at(2)) * 4;
        let at2 = at1 + table::STAGE1 * 2;
        let at3 = at2 + n2 * 2;
        if bytes.len() != at3 + n3 * leaf {
            return None;
        }
        Some(Self {
            head: Words::new(&bytes[table::HEAD..at1]),
            stage1: Halves::new(&bytes[at1..at2]),
            stage2: Halves::new(&bytes[at2..at3]),
            stage3: &bytes[at3..],
        })
    }

    /// The same, and checks that every index of the stages is in range.
    pub(crate) fn new_checked(bytes: &'a [u8], leaf: usize, what: &'static str) -> Result<Self> {
        let bad = Error::new(ErrorKind::Invalid, what);
        let t = Self::read(bytes, leaf).ok_or(bad)?;
        if usize::from(t.stage1.max()) * table::BLOCK >= t.stage2.len()
            || usize::from(t.stage2.max()) * table::BLOCK >= t.stage3.len() / leaf
        {
            return Err(bad);
        }
        Ok(t)
    }

    #[inline]
    fn leaf_index(self, c: u32) -> usize {
        let block = usize::from(self.stage1.at((c >> 12) as usize));
        let leaf = usize::from(self.stage2.at(block * table::BLOCK + ((c >> 6) & 63) as usize));
        leaf * table::BLOCK + (c & 63) as usize
    }
    /// Leaf of a table of bytes.
    #[inline]
    pub(crate) fn byte(self, c: u32) -> u8 {
        self.stage3.get(self.leaf_index(c)).copied().unwrap_or(0)
    }
    /// Leaf of a table of 16-bit values.
    #[inline]
    pub(crate) fn half(self, c: u32) -> u16 {
        Halves::new(self.stage3).at(self.leaf_index(c))
    }
    pub(crate) fn bytes(self) -> &'a [u8] {
        self.stage3
    }
    pub(crate) fn halves(self) -> Halves<'a> {
        Halves::new(self.stage3)
    }
}

/// The kinds of characters that a tokenizer tells apart, and classes as sets of kinds.
#[derive(Clone, Copy)]
pub(crate) struct Classes<'a> {
    table: Option<Table<'a>>,
    sets: &'a [[u8; 8]],
}

impl<'a> Classes<'a> {
    pub(crate) fn new_checked(chars: &'a [u8], sets: &'a [u8]) -> Result<Self> {
        let what = "tokenizer character table";
        let table = if chars.is_empty() { None } else { Some(Table::new_checked(chars, 1, what)?) };
        if let Some(t) = table
            && t.bytes().iter().any(|k| usize::from(*k) >= table::MAX_KINDS)
        {
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let (sets, rest) = sets.as_chunks();
        if !rest.is_empty() {
            return Err(Error::new(ErrorKind::Invalid, "tokenizer classes"));
        }
        Ok(Self { table, sets })
    }
    pub(crate) fn count(self) -> usize {
        self.sets.len()
    }
    /// The kind of a character.
    #[inline]
    pub(crate) fn kind(self, c: u32) -> u8 {
        match self.table {
            Some(t) => t.byte(c),
            None => 0,
        }
    }
    /// The kinds of class `class`, as a bit set.
    #[inline]
    pub(crate) fn set(self, class: usize) -> u64 {
        self.sets.get(class).map_or(0, |s| u64::from_le_bytes(*s))
    }
    /// Whether the character is of the class.
    #[inline]
    pub(crate) fn is(self, c: u32, class: usize) -> bool {
        self.set(class) >> self.kind(c) & 1 != 0
    }
}
