//! Encoding: added tokens, normalizer, pre-tokenizer stages, model, post-processing, in the order of the
//! reference library, each as one step over caller-supplied memory.

use super::added::Finder;
use super::blob::Blob;
use super::bpe::{self, NO_UNKNOWN, bpe};
use super::buffer::{Buffer, SCRATCH};
use super::chars::{Text, decode, previous};
use super::layout::{self, NONE, RECORD, flag, header, model, op, piece, scheme, stage, token};
use super::normalize::normalize;
use super::split::Pieces;
use super::unigram::{self, unigram};
use super::wordpiece::word_piece;
use crate::error::{Error, ErrorKind, Result};

/// One token of an encoded text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Where its text begins in the original text, in bytes. (0, 0) for tokens that the post-processor adds.
    pub start: u32,
    /// Where its text ends.
    pub end: u32,
    /// Number of the word it belongs to (of the given word, for text given in words); [`Token::NO_WORD`] for tokens that
    /// the post-processor adds.
    pub word: u32,
    /// Which text it is from, 0 or 1; [`Token::NO_SEQUENCE`] for tokens that the post-processor adds.
    pub sequence: u8,
    /// Token type id (segment id).
    pub type_id: u8,
    /// Added by the post-processor.
    pub special: bool,
}

impl Token {
    /// Marks a token that belongs to no word.
    pub const NO_WORD: u32 = u32::MAX;
    /// Marks a token that is from no text.
    pub const NO_SEQUENCE: u8 = u8::MAX;
}

/// How to encode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Lets the post-processor add its special tokens.
    pub add_special: bool,
    /// Recognizes special tokens that are spelled out in the text. Without it they are ordinary text, which is
    /// what text from strangers should be.
    pub parse_special: bool,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self { add_special: true, parse_special: true }
    }
}

/// A text to encode: in one piece, or already split into words.
#[derive(Clone, Copy, Debug)]
pub enum Input<'t> {
    /// Running text.
    Text(&'t str),
    /// Words, encoded one by one; offsets count from the start of each word.
    Words(&'t [&'t str]),
}

impl<'t> From<&'t str> for Input<'t> {
    fn from(text: &'t str) -> Self {
        Self::Text(text)
    }
}

impl<'t> From<&'t [&'t str]> for Input<'t> {
    fn from(words: &'t [&'t str]) -> Self {
        Self::Words(words)
    }
}

/// Words of scratch per byte of buffered text that the model may need.
fn model_words(model: u32) -> usize {
    match model {
        model::BPE => bpe::WORDS_PER_SYMBOL,
        model::UNIGRAM => unigram::WORDS_PER_BYTE,
        _ => 0,
    }
}

/// The scratch words that suffice for a text of `bytes` bytes, unless its normalization makes it much longer.
pub(crate) fn scratch_len(blob: &Blob<'_>, bytes: usize) -> usize {
    let model = model_words(blob.model) * (bytes + 16);
    if !blob.has(flag::BUFFERED) {
        return model;
    }
    // Twice the text: the result of a pass, and what it still reads. Metaspace triples spaces.
    let text = 2 * bytes + 64;
    model * text / (bytes + 16) + text + text / 4 + 1
}

/// The text being worked on: the original, or its normalized copy.
struct Work<'s> {
    original: &'s [u8],
    /// The current text is the original itself, not the buffer.
    direct: bool,
    buffer: Buffer<'s>,
}

impl Work<'_> {
    fn current(&self) -> &[u8] {
        if self.direct { self.original } else { self.buffer.text }
    }

    /// The stretch of the original that `lo..hi` of the current text comes from: whole characters.
    fn origin(&self, lo: usize, hi: usize) -> (usize, usize) {
        let (mut start, mut last) = (lo, hi.saturating_sub(1).max(lo));
        if !self.direct {
            let origin = |i: usize| self.buffer.origin.get(i).map_or(0, |o| *o as usize);
            (start, last) = (origin(start), origin(last));
        } else if self.original.get(start).is_some_and(|b| b & 0xc0 == 0x80) {
            start = previous(self.original, start + 1);
        }
        if self.original.get(last).is_some_and(|b| b & 0xc0 == 0x80) {
            last = previous(self.original, last + 1);
        }
        (start, last + decode(self.original, last).map_or(0, |(_, n)| n))
    }
}

/// Where tokens go.
struct Sink<'a, 's> {
    blob: &'s Blob<'a>,
    out: &'s mut [Token],
    count: usize,
    /// Tokens of this sequence begin here.
    base: usize,
    sequence: u8,
    type_id: u8,
    word: u32,
    /// Text is given in words: `word` is the caller's.
    given_words: bool,
}

impl Sink<'_, '_> {
    fn push(&mut self, token: Token) -> Result<()> {
        *self.out.get_mut(self.count).ok_or(Error::new(ErrorKind::TooSmall, "token buffer"))? = token;
        self.count += 1;
        Ok(())
    }

    fn next_word(&mut self) {
        if !self.given_words {
            self.word += 1;
        }
    }

    /// A token of the model: its own text says how much white space it has at its edges.
    fn emit(&mut self, work: &Work<'_>, id: u32, lo: usize, hi: usize) -> Result<()> {
        let spaces = if self.blob.trims.len() == 0 { (0, 0) } else { token_spaces(self.blob, id) };
        self.place(work, id, lo, hi, spaces)
    }

    fn place(&mut self, work: &Work<'_>, id: u32, lo: usize, hi: usize, spaces: (usize, usize)) -> Result<()> {
        let (mut start, mut end) = work.origin(lo, hi);
        for i in 0..self.blob.trims.len() {
            // A single leading space at the start may be one that the pre-tokenizer inserted.
            let first = self.count == self.base || start == 0;
            let leading = if first && self.blob.trims.at(i) != 0 && spaces.0 == 1 { 0 } else { spaces.0 };
            for _ in 0..leading {
                if start < end {
                    start += decode(work.original, start).map_or(1, |(_, n)| n);
                }
            }
            let mut trimmed = end;
            let mut enough = true;
            for _ in 0..spaces.1 {
                enough &= trimmed > 0;
                trimmed = previous(work.original, trimmed);
            }
            if enough {
                end = trimmed.max(start);
            }
        }
        let (sequence, type_id, word) = (self.sequence, self.type_id, self.word);
        self.push(Token { id, start: start as u32, end: end as u32, word, sequence, type_id, special: false })
    }
}

/// White space at the start and end of a token's text as the vocabulary spells it, in characters.
fn token_spaces(blob: &Blob<'_>, id: u32) -> (usize, usize) {
    let bytes = blob.token(id);
    if blob.has(flag::RAW) && blob.token_flag(id) & token::LITERAL == 0 {
        let leading = bytes.iter().take_while(|b| **b == b' ').count();
        let trailing = bytes.iter().rev().take_while(|b| **b == b' ').count();
        return (leading, trailing);
    }
    edge_spaces(blob, bytes)
}

/// White space (and the stand-in of the space) at the start and end of a text, in characters.
fn edge_spaces(blob: &Blob<'_>, text: &[u8]) -> (usize, usize) {
    let class = blob.header(header::SPACE_CLASS);
    let space = |at: usize| {
        decode(text, at)
            .is_some_and(|(c, _)| c == layout::stand_in(b' ') || (class != NONE && blob.classes.is(c, class as usize)))
    };
    let (mut leading, mut at) = (0, 0);
    while at < text.len() && space(at) {
        at += decode(text, at).map_or(1, |(_, n)| n);
        leading += 1;
    }
    let (mut trailing, mut at) = (0, text.len());
    while at > 0 && space(previous(text, at)) {
        at = previous(text, at);
        trailing += 1;
    }
    (leading, trailing)
}

struct Encoder<'a, 's> {
    blob: &'s Blob<'a>,
    work: Work<'s>,
    sink: Sink<'a, 's>,
    scratch: &'s mut [u32],
    options: EncodeOptions,
}

/// Encodes one or two texts; the number of tokens written.
pub(crate) fn encode(
    blob: &Blob<'_>,
    first: Input<'_>,
    second: Option<Input<'_>>,
    options: EncodeOptions,
    scratch: &mut [u32],
    out: &mut [Token],
) -> Result<usize> {
    let per_byte = 4 * model_words(blob.model);
    let capacity = if blob.has(flag::BUFFERED) { scratch.len() * 4 / (5 + per_byte) / 4 * 4 } else { 0 };
    let (origin, rest) = scratch.split_at_mut(capacity);
    let (text, scratch) = rest.split_at_mut(capacity / 4);
    let buffer = Buffer { text: bytemuck::cast_slice_mut(text), origin, lo: 0, hi: 0 };
    let mut encoder = Encoder {
        blob,
        work: Work { original: &[], direct: true, buffer },
        sink: Sink { blob, out, count: 0, base: 0, sequence: 0, type_id: 0, word: 0, given_words: false },
        scratch,
        options,
    };
    let (single, pair) = (blob.templates.at(0) as usize, blob.templates.at(1) as usize);
    let pieces = if second.is_some() { 1 + single..1 + single + pair } else { 1..1 + single };
    for i in pieces {
        let [what, type_id] = blob.templates.record(i).unwrap_or_default();
        match (what, second) {
            (piece::A, _) => encoder.sequence(first, 0, type_id as u8)?,
            (piece::B, Some(second)) => encoder.sequence(second, 1, type_id as u8)?,
            (piece::B, None) => {}
            _ if options.add_special => encoder.sink.push(Token {
                id: what - piece::SPECIAL,
                word: Token::NO_WORD,
                sequence: Token::NO_SEQUENCE,
                type_id: type_id as u8,
                special: true,
                ..Token::default()
            })?,
            _ => {}
        }
    }
    Ok(encoder.sink.count)
}

impl<'s> Encoder<'_, 's> {
    fn sequence<'t: 's>(&mut self, input: Input<'t>, sequence: u8, type_id: u8) -> Result<()> {
        let sink = &mut self.sink;
        (sink.sequence, sink.type_id, sink.base, sink.word) = (sequence, type_id, sink.count, 0);
        match input {
            Input::Text(text) => {
                sink.given_words = false;
                self.text(text)
            }
            Input::Words(words) => {
                sink.given_words = true;
                for (i, word) in words.iter().enumerate() {
                    self.sink.word = i as u32;
                    self.text(word)?;
                }
                Ok(())
            }
        }
    }

    fn text<'t: 's>(&mut self, text: &'t str) -> Result<()> {
        if text.len() >= NONE as usize {
            return Err(Error::new(ErrorKind::Capacity, "text length").values(text.len() as u64, u64::from(NONE)));
        }
        self.work.original = text.as_bytes();
        let mut finder = Finder::new(0, text.len(), false, self.options.parse_special);
        while let Some(found) = finder.next(self.blob, self.work.original) {
            match found.id {
                Some(id) => {
                    self.work.direct = true;
                    self.added(id, found.lo, found.hi)?;
                }
                None => self.segment(found.lo, found.hi)?,
            }
        }
        Ok(())
    }

    /// A stretch of the original text without added tokens that match as they are.
    fn segment(&mut self, lo: usize, hi: usize) -> Result<()> {
        let (blob, work) = (self.blob, &mut self.work);
        work.direct = !blob.has(flag::BUFFERED)
            || (!blob.has(flag::REWRITES) && same_in_ascii(blob) && work.original[lo..hi].is_ascii());
        let (lo, hi) = if work.direct {
            (lo, hi)
        } else {
            work.buffer.load(work.original, lo, hi)?;
            normalize(blob, &mut work.buffer)?;
            (work.buffer.lo, work.buffer.hi)
        };
        let mut finder = Finder::new(lo, hi, true, self.options.parse_special);
        while let Some(found) = finder.next(blob, self.work.current()) {
            match found.id {
                Some(id) => self.added(id, found.lo, found.hi)?,
                None => self.stage(0, found.lo, found.hi, false)?,
            }
        }
        Ok(())
    }

    fn added(&mut self, id: u32, lo: usize, hi: usize) -> Result<()> {
        let spaces = if self.blob.trims.len() == 0 {
            (0, 0)
        } else {
            edge_spaces(self.blob, self.work.current().get(lo..hi).unwrap_or(&[]))
        };
        self.sink.place(&self.work, id, lo, hi, spaces)?;
        self.sink.next_word();
        Ok(())
    }

    /// Applies pre-tokenizer stage `k` to a piece, and the following ones to what comes out.
    fn stage(&mut self, k: usize, lo: usize, hi: usize, stand_ins: bool) -> Result<()> {
        if lo >= hi {
            return Ok(());
        }
        let Some(record) = self.blob.stages.record::<RECORD>(k) else { return self.model(lo, hi, stand_ins) };
        match record[0] {
            stage::PATTERN | stage::CLASS => {
                let mut pieces = Pieces::new(record, lo, hi);
                while let Some((a, b)) = pieces.next(self.blob, Text { bytes: &self.work.current()[..hi], stand_ins }) {
                    self.stage(k + 1, a, b, stand_ins)?;
                }
                Ok(())
            }
            stage::METASPACE => {
                let lo = self.metaspace(record, lo, hi)?;
                self.stage(k + 1, lo, hi, stand_ins)
            }
            stage::PREFIX_SPACE => {
                let (direct, buffer) = (self.work.direct, &mut self.work.buffer);
                let lo = if direct || buffer.text[lo] == b' ' { lo } else { buffer.prepend(lo, b" ")? };
                self.stage(k + 1, lo, hi, stand_ins)
            }
            _ => self.stage(k + 1, lo, hi, true),
        }
    }

    /// Puts the replacement for every space, and in front; returns where the piece now begins. It grows to the left, over
    /// pieces that are done.
    fn metaspace(&mut self, record: [u32; RECORD], lo: usize, hi: usize) -> Result<usize> {
        let replacement = self.blob.string(record[2], record[3]);
        if self.work.direct || replacement.is_empty() {
            return Ok(lo);
        }
        let Buffer { text, origin, .. } = &mut self.work.buffer;
        let at_start = origin[lo] == 0;
        let spaces = text[lo..hi].iter().filter(|b| **b == b' ').count();
        let start = lo.checked_sub(spaces * (replacement.len() - 1)).ok_or(SCRATCH)?;
        let mut write = start;
        for read in lo..hi {
            let (byte, from) = (text[read], origin[read]);
            let bytes = if byte == b' ' { replacement } else { core::slice::from_ref(&byte) };
            text[write..write + bytes.len()].copy_from_slice(bytes);
            origin[write..write + bytes.len()].fill(from);
            write += bytes.len();
        }
        let wanted = record[1] == scheme::ALWAYS || (record[1] == scheme::FIRST && at_start);
        if wanted && !text[start..hi].starts_with(replacement) {
            return self.work.buffer.prepend(start, replacement);
        }
        Ok(start)
    }

    fn model(&mut self, lo: usize, hi: usize, stand_ins: bool) -> Result<()> {
        let (blob, work, sink) = (self.blob, &self.work, &mut self.sink);
        let text = &work.current()[lo..hi];
        match blob.model {
            model::BPE => bpe(blob, text, stand_ins, self.scratch, |id, a, b| sink.emit(work, id, lo + a, lo + b))?,
            model::UNIGRAM => unigram(blob, text, self.scratch, |id, a, b| sink.emit(work, id, lo + a, lo + b))?,
            _ => {
                let before = sink.count;
                let whole = if blob.model == model::WORD_PIECE {
                    let mut at = lo;
                    let mut result = Ok(());
                    let known = word_piece(blob, text, |id, end| {
                        if result.is_ok() {
                            result = sink.emit(work, id, at, lo + end);
                        }
                        at = lo + end;
                    });
                    result?;
                    if known { None } else { Some(blob.unk) }
                } else {
                    Some(blob.lookup(text).unwrap_or(blob.unk))
                };
                if let Some(id) = whole {
                    if id >= blob.vocab {
                        return Err(NO_UNKNOWN);
                    }
                    sink.count = before;
                    sink.emit(work, id, lo, hi)?;
                }
            }
        }
        sink.next_word();
        Ok(())
    }
}

/// Whether the normalizer leaves ASCII text as it is.
fn same_in_ascii(blob: &Blob<'_>) -> bool {
    let ops = blob.normalizer;
    (0..ops.len() / RECORD).all(|i| ops.at(i * RECORD) & op::ASCII_SAME != 0)
}
