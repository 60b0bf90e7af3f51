//! The checked view of a compiled tokenizer: every offset, id and index is judged here, once.

use super::chars::{Classes, Table};
use super::layout::{self, MAX_VOCAB, NONE, RECORD, UNK_MISSING, flag, header, map, model, op, piece, section, stage};
use super::pattern::Patterns;
use super::trie::Trie;
use super::words::{Halves, Words};
use crate::error::{Error, ErrorKind, Result};

/// All tables of a tokenizer, in place.
#[derive(Clone, Copy)]
pub(crate) struct Blob<'a> {
    head: Words<'a>,
    pub vocab: u32,
    pub flags: u32,
    pub model: u32,
    pub unk: u32,
    pub strings: &'a [u8],
    pub token_offsets: Words<'a>,
    pub token_bytes: &'a [u8],
    pub token_flags: &'a [u8],
    pub trie: Trie<'a>,
    pub byte_ids: Words<'a>,
    pub pilots: Halves<'a>,
    pub merges: &'a [[u8; 16]],
    pub scores: &'a [[u8; 8]],
    pub classes: Classes<'a>,
    pub patterns: Patterns<'a>,
    pub normalizer: Words<'a>,
    pub stages: Words<'a>,
    pub maps: &'a [u8],
    pub combining: Option<Table<'a>>,
    pub compositions: Words<'a>,
    pub charsmap: Words<'a>,
    pub charsmap_text: &'a [u8],
    pub graphemes: Option<Table<'a>>,
    pub added: Words<'a>,
    pub added_raw: Trie<'a>,
    pub added_normalized: Trie<'a>,
    pub templates: Words<'a>,
    pub trims: Words<'a>,
    pub overrides: Words<'a>,
}

/// Words of a decode override.
pub(crate) const OVERRIDE: usize = 5;

fn invalid(section: usize) -> Error {
    Error::new(ErrorKind::Invalid, section::NAMES[section])
}

impl<'a> Blob<'a> {
    pub(crate) fn new_checked(bytes: &'a [u8]) -> Result<Self> {
        let table = (header::WORDS + 2 * section::COUNT) * 4;
        if bytes.get(..4) != Some(&layout::MAGIC) {
            return Err(Error::new(ErrorKind::Invalid, "tokenizer magic"));
        }
        let head =
            Words::new(bytes.get(..table).ok_or(
                Error::new(ErrorKind::Truncated, "tokenizer header").values(bytes.len() as u64, table as u64),
            )?);
        let version = head.at(header::VERSION);
        if version != layout::VERSION {
            return Err(Error::new(ErrorKind::TooNew, "tokenizer version")
                .values(u64::from(version), u64::from(layout::VERSION)));
        }
        if head.at(header::LENGTH) as usize != bytes.len() {
            return Err(Error::new(ErrorKind::Truncated, "tokenizer length")
                .values(bytes.len() as u64, u64::from(head.at(header::LENGTH))));
        }
        let part = |i: usize| -> Result<&'a [u8]> {
            let (at, len) = (head.at(header::WORDS + 2 * i) as usize, head.at(header::WORDS + 2 * i + 1) as usize);
            at.checked_add(len)
                .and_then(|end| bytes.get(at..end))
                .ok_or(Error::new(ErrorKind::OutOfBounds, section::NAMES[i]).values(at as u64, bytes.len() as u64))
        };
        let optional = |i: usize, leaf: usize| -> Result<Option<Table<'a>>> {
            let bytes = part(i)?;
            if bytes.is_empty() { Ok(None) } else { Table::new_checked(bytes, leaf, section::NAMES[i]).map(Some) }
        };
        let words = |i: usize, record: usize| -> Result<Words<'a>> {
            let bytes = part(i)?;
            if bytes.len() % (4 * record) != 0 {
                return Err(invalid(i).values(bytes.len() as u64, 4 * record as u64));
            }
            Ok(Words::new(bytes))
        };
        let classes = Classes::new_checked(part(section::CHARS)?, part(section::CLASSES)?)?;
        let this = Self {
            head,
            vocab: head.at(header::VOCAB),
            flags: head.at(header::FLAGS),
            model: head.at(header::MODEL),
            unk: head.at(header::UNK),
            strings: part(section::STRINGS)?,
            token_offsets: words(section::TOKEN_OFFSETS, 1)?,
            token_bytes: part(section::TOKEN_BYTES)?,
            token_flags: part(section::TOKEN_FLAGS)?,
            trie: Trie(words(section::VOCAB_TRIE, 1)?),
            byte_ids: words(section::BYTE_IDS, 1)?,
            pilots: Halves::new(part(section::MERGE_PILOTS)?),
            merges: part(section::MERGES)?.as_chunks().0,
            scores: part(section::SCORES)?.as_chunks().0,
            classes,
            patterns: Patterns::new_checked(part(section::PATTERNS)?, classes)?,
            normalizer: words(section::NORMALIZER, RECORD)?,
            stages: words(section::STAGES, RECORD)?,
            maps: part(section::MAPS)?,
            combining: optional(section::COMBINING, 1)?,
            compositions: words(section::COMPOSITIONS, 3)?,
            charsmap: words(section::CHARSMAP, 1)?,
            charsmap_text: part(section::CHARSMAP_TEXT)?,
            graphemes: optional(section::GRAPHEMES, 1)?,
            added: words(section::ADDED, RECORD)?,
            added_raw: Trie(words(section::ADDED_RAW, 1)?),
            added_normalized: Trie(words(section::ADDED_NORMALIZED, 1)?),
            templates: words(section::TEMPLATES, 2)?,
            trims: words(section::TRIMS, 1)?,
            overrides: words(section::OVERRIDES, OVERRIDE)?,
        };
        this.verify_header()?;
        this.verify_vocabulary()?;
        this.verify_model()?;
        this.verify_pipeline()?;
        Ok(this)
    }

    fn verify_header(&self) -> Result<()> {
        let bad = |what| Err(Error::new(ErrorKind::Invalid, what));
        if self.vocab > MAX_VOCAB {
            return bad("tokenizer vocabulary size");
        }
        if self.flags & !flag::KNOWN != 0 {
            return Err(Error::new(ErrorKind::TooNew, "tokenizer flags").values(u64::from(self.flags), 0));
        }
        if self.model > model::WORD_LEVEL {
            return Err(Error::new(ErrorKind::TooNew, "tokenizer model").values(u64::from(self.model), 0));
        }
        if self.unk >= self.vocab && self.unk != NONE && self.unk != UNK_MISSING {
            return bad("tokenizer unknown id");
        }
        for field in [
            header::PREFIX,
            header::SUFFIX,
            header::SUB_FROM,
            header::SUB_TO,
            header::SUB_EDGE,
            header::GLUE,
            header::CONTINUING,
        ] {
            self.verify_string(self.head.at(field), self.head.at(field + 1), "tokenizer header string")?;
        }
        for field in [header::SPACE_CLASS, header::WORD_CLASS] {
            let class = self.head.at(field);
            if class != NONE && class as usize >= self.classes.count() {
                return bad("tokenizer header class");
            }
        }
        Ok(())
    }

    fn verify_string(&self, at: u32, len: u32, what: &'static str) -> Result<()> {
        match (at as usize).checked_add(len as usize) {
            Some(end) if end <= self.strings.len() => Ok(()),
            _ => Err(Error::new(ErrorKind::OutOfBounds, what).values(u64::from(at), self.strings.len() as u64)),
        }
    }

    fn verify_ids(&self, words: Words<'_>, section: usize) -> Result<()> {
        match words.iter().position(|id| id >= self.vocab && id != NONE) {
            Some(i) => Err(invalid(section).index(i as u64).values(u64::from(words.at(i)), u64::from(self.vocab))),
            None => Ok(()),
        }
    }

    fn verify_vocabulary(&self) -> Result<()> {
        let n = self.vocab as usize;
        if self.token_offsets.len() != n + 1 || self.token_flags.len() != n {
            return Err(invalid(section::TOKEN_OFFSETS).values(self.token_offsets.len() as u64, n as u64 + 1));
        }
        let mut order = true;
        for pair in self.token_offsets.0.windows(2) {
            order &= u32::from_le_bytes(pair[0]) <= u32::from_le_bytes(pair[1]);
        }
        if !order || self.token_offsets.at(n) as usize != self.token_bytes.len() {
            return Err(invalid(section::TOKEN_OFFSETS));
        }
        if self.byte_ids.len() != 0 && self.byte_ids.len() != 256 {
            return Err(invalid(section::BYTE_IDS));
        }
        self.verify_ids(self.byte_ids, section::BYTE_IDS)?;
        for i in 0..self.added.len() / RECORD {
            let [id, _, at, len] = self.added.record(i).unwrap_or_default();
            if id >= self.vocab {
                return Err(invalid(section::ADDED).index(i as u64).values(u64::from(id), u64::from(self.vocab)));
            }
            self.verify_string(at, len, section::NAMES[section::ADDED])?;
        }
        let mut last = None;
        for i in 0..self.overrides.len() / OVERRIDE {
            let [id, a, b, c, d] = self.overrides.record(i).unwrap_or_default();
            if id >= self.vocab || last >= Some(id) {
                return Err(invalid(section::OVERRIDES).index(i as u64));
            }
            last = Some(id);
            self.verify_string(a, b, section::NAMES[section::OVERRIDES])?;
            self.verify_string(c, d, section::NAMES[section::OVERRIDES])?;
        }
        Ok(())
    }

    fn verify_model(&self) -> Result<()> {
        if !self.merges.is_empty() && self.pilots.len() == 0 {
            return Err(invalid(section::MERGE_PILOTS));
        }
        // Empty slots hold NONE in `left` and zeros elsewhere, so that `result` can be judged in all slots at once.
        let mut largest = 0;
        for m in self.merges {
            largest = largest.max(u32::from_le_bytes([m[12], m[13], m[14], m[15]]));
        }
        if !self.merges.is_empty() && largest >= self.vocab {
            return Err(invalid(section::MERGES).values(u64::from(largest), u64::from(self.vocab)));
        }
        if self.model == model::UNIGRAM && self.scores.len() != self.vocab as usize {
            return Err(invalid(section::SCORES).values(self.scores.len() as u64, u64::from(self.vocab)));
        }
        Ok(())
    }

    fn verify_pipeline(&self) -> Result<()> {
        let check = |ok: bool, section: usize, i: usize| {
            if ok { Ok(()) } else { Err(invalid(section).index(i as u64)) }
        };
        for i in 0..self.normalizer.len() / RECORD {
            let [kind, a, b, c] = self.normalizer.record(i).unwrap_or_default();
            let at = section::NORMALIZER;
            match kind & !op::ASCII_SAME {
                op::MAP => drop(self.verify_map(a, b)?),
                op::DECOMPOSE => {
                    self.verify_map(a, b)?;
                    check(self.combining.is_some(), at, i)?;
                }
                op::REPLACE => {
                    check((a as usize) < self.patterns.count(), at, i)?;
                    self.verify_string(b, c, section::NAMES[at])?;
                }
                op::PREPEND => self.verify_string(b, c, section::NAMES[at])?,
                op::STRIP => check((a as usize) < self.classes.count(), at, i)?,
                op::PRECOMPILED => check(self.graphemes.is_some(), at, i)?,
                op::STAND_INS => {}
                _ => return Err(Error::new(ErrorKind::TooNew, section::NAMES[at]).index(i as u64)),
            }
        }
        for i in 0..self.stages.len() / RECORD {
            let [kind, a, b, c] = self.stages.record(i).unwrap_or_default();
            let at = section::STAGES;
            match kind {
                stage::PATTERN => {
                    check((a as usize) < self.patterns.count() && b <= layout::behavior::CONTIGUOUS, at, i)?;
                }
                stage::CLASS => {
                    check((a as usize) < self.classes.count() && b <= layout::behavior::CONTIGUOUS, at, i)?;
                }
                stage::METASPACE => self.verify_string(b, c, section::NAMES[at])?,
                stage::PREFIX_SPACE | stage::BYTES => {}
                _ => return Err(Error::new(ErrorKind::TooNew, section::NAMES[at]).index(i as u64)),
            }
        }
        // The depth of recursion over stages is bounded.
        check(self.stages.len() / RECORD <= 16, section::STAGES, 16)?;
        let (single, pair) = (self.templates.at(0) as usize, self.templates.at(1) as usize);
        if self.templates.len() != 0 {
            let pieces = self.templates.len() / 2 - 1;
            check(single.checked_add(pair) == Some(pieces), section::TEMPLATES, 0)?;
            for i in 1..=pieces {
                let [what, kind] = self.templates.record(i).unwrap_or_default();
                let ok = what < piece::SPECIAL + self.vocab && kind <= 255;
                check(ok && (i > single || what != piece::B), section::TEMPLATES, i)?;
            }
        }
        Ok(())
    }

    fn verify_map(&self, at: u32, len: u32) -> Result<Table<'a>> {
        let what = section::NAMES[section::MAPS];
        let t = Table::new_checked(self.map_bytes(at, len).ok_or(Error::new(ErrorKind::OutOfBounds, what))?, 2, what)?;
        // The last word of the pool ends a replacement, so that reading one never leaves the pool.
        let pool = t.head.len();
        if pool > 0 && t.head.at(pool - 1) & map::LAST == 0 || usize::from(t.halves().max()) > pool {
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        Ok(t)
    }

    fn map_bytes(&self, at: u32, len: u32) -> Option<&'a [u8]> {
        self.maps.get(at as usize..(at as usize).checked_add(len as usize)?)
    }

    /// The character map that a normalizer operation refers to.
    pub(crate) fn map(&self, at: u32, len: u32) -> Option<Table<'a>> {
        Table::read(self.map_bytes(at, len)?, 2)
    }

    /// Word `field` of the header.
    pub(crate) fn header(&self, field: usize) -> u32 {
        self.head.at(field)
    }

    pub(crate) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// The bytes of a string reference.
    pub(crate) fn string(&self, at: u32, len: u32) -> &'a [u8] {
        self.strings.get(at as usize..(at as usize).saturating_add(len as usize)).unwrap_or(&[])
    }

    /// The string that a header field refers to.
    pub(crate) fn header_string(&self, field: usize) -> &'a [u8] {
        self.string(self.head.at(field), self.head.at(field + 1))
    }

    /// Id of a vocabulary entry.
    #[inline]
    pub(crate) fn lookup(&self, bytes: &[u8]) -> Option<u32> {
        self.trie.get(bytes).filter(|id| *id < self.vocab)
    }

    /// Stored bytes of a token.
    pub(crate) fn token(&self, id: u32) -> &'a [u8] {
        let i = id as usize;
        if i >= self.vocab as usize {
            return &[];
        }
        self.token_bytes.get(self.token_offsets.at(i) as usize..self.token_offsets.at(i + 1) as usize).unwrap_or(&[])
    }

    /// Flags of a token, 0 where there is none.
    #[inline]
    pub(crate) fn token_flag(&self, id: u32) -> u8 {
        self.token_flags.get(id as usize).copied().unwrap_or(0)
    }

    /// Rank and result of merging two tokens.
    #[inline]
    pub(crate) fn merge(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let hash = layout::pair_hash(left, right);
        let pilot = self.pilots.at(layout::pair_bucket(hash, self.pilots.len()));
        let m = self.merges.get(layout::pair_slot(hash, pilot, self.merges.len()))?;
        let word = |i: usize| u32::from_le_bytes([m[i], m[i + 1], m[i + 2], m[i + 3]]);
        (word(0) == left && word(4) == right).then(|| (word(8), word(12)))
    }
}
