//! Tokenizers compiled to flat tables by lora-pack and used in place.
//!
//! [`Tokenizer::new_checked`] judges a blob once (no tables are built, nothing is copied); after that encoding and
//! decoding need no allocator: the caller lends scratch memory and a place for the tokens. Ids, offsets and decoded
//! text equal those of the `tokenizers` library on any input. The order of work is the library's too:
//!
//! ```text
//! text ─ added tokens ─ normalizer ─ added tokens ─ pre-tokenizer stages ─ model ─ template ─► tokens
//!        added.rs       normalize.rs (compose, precompiled)  split.rs       bpe, wordpiece, unigram   encode.rs
//! ids ─► decode.rs ─► text
//! ```
//! Unicode tables are part of the blob, only those that its tokenizer needs (`chars.rs`, `pattern.rs`), so a device
//! in the field follows a new Unicode version, split pattern or normalizer without new firmware.

mod added;
mod blob;
mod bpe;
mod buffer;
mod chars;
mod compose;
mod decode;
mod encode;
#[cfg(feature = "alloc")]
mod encoding;
pub mod layout;
mod normalize;
mod offsets;
mod pattern;
mod precompiled;
mod split;
mod trie;
mod unigram;
mod wordpiece;
mod words;

use core::fmt;

use crate::error::{Error, ErrorKind, Result};
use blob::Blob;
use layout::{RECORD, flag, token};

pub use decode::Decoder;
pub use encode::{EncodeOptions, Input, Token};
#[cfg(feature = "alloc")]
pub use encoding::Encoding;
pub use offsets::CharOffsets;

/// A compiled tokenizer, checked.
#[derive(Clone, Copy)]
pub struct Tokenizer<'a> {
    blob: Blob<'a>,
}

impl<'a> Tokenizer<'a> {
    /// Checks `bytes` and takes them as a tokenizer for a model with `vocab_size` embedding rows.
    ///
    /// # Errors
    /// When any offset, id or index of the blob is out of range, or it has an id without a row.
    pub fn new_checked(bytes: &'a [u8], vocab_size: u32) -> Result<Self> {
        let blob = Blob::new_checked(bytes)?;
        if blob.vocab > vocab_size {
            return Err(Error::new(ErrorKind::Mismatch, "tokenizer vocabulary size")
                .values(u64::from(blob.vocab), u64::from(vocab_size)));
        }
        Ok(Self { blob })
    }

    /// Number of ids: the largest plus one.
    #[must_use]
    pub fn vocab_len(&self) -> u32 {
        self.blob.vocab
    }

    /// Scratch words that suffice to encode a text of `bytes` bytes (the longer one of a pair, the longest of several
    /// words), unless its normalization makes it more than twice as long. Encoding with less may work, and
    /// otherwise ends in [`ErrorKind::TooSmall`].
    #[must_use]
    pub fn scratch_len(&self, bytes: usize) -> usize {
        encode::scratch_len(&self.blob, bytes)
    }

    /// Encodes a text into `out`; returns the number of tokens.
    ///
    /// # Errors
    /// [`ErrorKind::TooSmall`] naming `token buffer` or `tokenizer scratch`; [`ErrorKind::Mismatch`] for unknown text
    /// where the vocabulary has no unknown token.
    pub fn encode_into(
        &self,
        text: &str,
        options: EncodeOptions,
        scratch: &mut [u32],
        out: &mut [Token],
    ) -> Result<usize> {
        encode::encode(&self.blob, Input::Text(text), None, options, scratch, out)
    }

    /// Encodes two texts as a pair; returns the number of tokens.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_into`].
    pub fn encode_pair_into(
        &self,
        first: &str,
        second: &str,
        options: EncodeOptions,
        scratch: &mut [u32],
        out: &mut [Token],
    ) -> Result<usize> {
        encode::encode(&self.blob, Input::Text(first), Some(Input::Text(second)), options, scratch, out)
    }

    /// Encodes one or two inputs, each running text or words.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_into`].
    pub fn encode_input_into(
        &self,
        first: Input<'_>,
        second: Option<Input<'_>>,
        options: EncodeOptions,
        scratch: &mut [u32],
        out: &mut [Token],
    ) -> Result<usize> {
        encode::encode(&self.blob, first, second, options, scratch, out)
    }

    /// A decoder at the start of a text; `skip_special` leaves special tokens out.
    #[must_use]
    pub fn decoder(&self, skip_special: bool) -> Decoder<'a> {
        Decoder::new(self.blob, skip_special)
    }

    /// The bytes of a token: the text's own bytes in a byte-level vocabulary, else its spelling in the vocabulary.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> Option<&'a [u8]> {
        self.has(id).then(|| self.blob.token(id))
    }

    /// A token as the vocabulary spells it.
    #[must_use]
    pub fn token_text(&self, id: u32) -> Option<TokenText<'a>> {
        let stand_ins = self.blob.has(flag::RAW) && self.blob.token_flag(id) & token::LITERAL == 0;
        self.has(id).then(|| TokenText { bytes: self.blob.token(id), stand_ins })
    }

    /// The id of a token, given as the vocabulary spells it.
    #[must_use]
    pub fn id_of(&self, text: &str) -> Option<u32> {
        let blob = &self.blob;
        for i in 0..blob.added.len() / RECORD {
            let [id, _, at, len] = blob.added.record(i)?;
            if blob.string(at, len) == text.as_bytes() {
                return Some(id);
            }
        }
        (0..blob.vocab)
            .find(|id| blob.token_flag(*id) & token::ADDED == 0 && self.token_text(*id).is_some_and(|t| t == *text))
    }

    /// Whether decoding skips the id along with the special tokens.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.blob.token_flag(id) & token::SPECIAL != 0
    }

    fn has(&self, id: u32) -> bool {
        self.blob.token_flag(id) & token::PRESENT != 0
    }
}

/// A token's spelling; print it, or compare it with a string.
#[derive(Clone, Copy)]
pub struct TokenText<'a> {
    bytes: &'a [u8],
    stand_ins: bool,
}

impl TokenText<'_> {
    fn chars(&self) -> impl Iterator<Item = char> {
        let text = chars::Text { bytes: self.bytes, stand_ins: self.stand_ins };
        let mut at = 0;
        core::iter::from_fn(move || {
            let (c, next) = text.next(at)?;
            at = next;
            Some(char::from_u32(c).unwrap_or(char::REPLACEMENT_CHARACTER))
        })
    }
}

impl PartialEq<str> for TokenText<'_> {
    fn eq(&self, other: &str) -> bool {
        if !self.stand_ins { self.bytes == other.as_bytes() } else { self.chars().eq(other.chars()) }
    }
}

impl fmt::Display for TokenText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.chars().try_for_each(|c| fmt::Write::write_char(f, c))
    }
}

impl fmt::Debug for TokenText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}
