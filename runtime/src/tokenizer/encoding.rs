//! Encoding and decoding with the allocator's help.

use std::prelude::v1::*;

use super::buffer::Buffer;
use super::normalize::normalize;
use super::{CharOffsets, EncodeOptions, Input, Token, Tokenizer};
use crate::error::{ErrorKind, Result};

/// An encoded text (or pair), column by column.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoding {
    /// The tokens with everything known about them.
    pub tokens: Vec<Token>,
}

impl Encoding {
    /// Ids.
    #[must_use]
    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|t| t.id).collect()
    }
    /// Token type ids.
    #[must_use]
    pub fn type_ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|t| u32::from(t.type_id)).collect()
    }
    /// 1 for tokens that the post-processor added.
    #[must_use]
    pub fn special_mask(&self) -> Vec<u32> {
        self.tokens.iter().map(|t| u32::from(t.special)).collect()
    }
    /// Which text each token is from.
    #[must_use]
    pub fn sequence_ids(&self) -> Vec<Option<u8>> {
        self.tokens.iter().map(|t| (t.sequence != Token::NO_SEQUENCE).then_some(t.sequence)).collect()
    }
    /// Which word of its text each token belongs to.
    #[must_use]
    pub fn word_ids(&self) -> Vec<Option<u32>> {
        self.tokens.iter().map(|t| (t.word != Token::NO_WORD).then_some(t.word)).collect()
    }
    /// Offsets in bytes of the text that each token is from.
    #[must_use]
    pub fn byte_offsets(&self) -> Vec<(u32, u32)> {
        self.tokens.iter().map(|t| (t.start, t.end)).collect()
    }
    /// Offsets in characters of the text that each token is from (of its word, for text given in words).
    #[must_use]
    pub fn char_offsets(&self, first: Input<'_>, second: Option<Input<'_>>) -> Vec<(u32, u32)> {
        let mut source = (u8::MAX, u32::MAX);
        let mut offsets = CharOffsets::new("");
        let convert = |t: &Token| {
            let input = match t.sequence {
                0 => first,
                1 => second.unwrap_or(first),
                _ => return (0, 0),
            };
            let word = if let Input::Words(_) = input { t.word } else { 0 };
            if source != (t.sequence, word) {
                source = (t.sequence, word);
                offsets = CharOffsets::new(match input {
                    Input::Text(text) => text,
                    Input::Words(words) => words.get(word as usize).copied().unwrap_or(""),
                });
            }
            (offsets.at(t.start), offsets.at(t.end))
        };
        self.tokens.iter().map(convert).collect()
    }
}

impl Tokenizer<'_> {
    /// Encodes a text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_into`], except that memory is found.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Encoding> {
        self.encode_input(text.into(), None, options)
    }

    /// Encodes two texts as a pair.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_pair(&self, first: &str, second: &str, options: EncodeOptions) -> Result<Encoding> {
        self.encode_input(first.into(), Some(second.into()), options)
    }

    /// Encodes one or two inputs, each running text or words.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_input(
        &self,
        first: Input<'_>,
        second: Option<Input<'_>>,
        options: EncodeOptions,
    ) -> Result<Encoding> {
        let (longest, total) = [Some(first), second].into_iter().flatten().fold((0, 0), |(longest, total), input| {
            let lens: &[&str] = match &input {
                Input::Text(text) => &[text],
                Input::Words(words) => words,
            };
            lens.iter().fold((longest, total), |(l, t), s| (l.max(s.len()), t + s.len()))
        });
        let mut scratch = vec![0; self.scratch_len(longest)];
        let mut out = vec![Token::default(); total / 2 + 64];
        loop {
            match self.encode_input_into(first, second, options, &mut scratch, &mut out) {
                Ok(n) => {
                    out.truncate(n);
                    return Ok(Encoding { tokens: out });
                }
                // Normalization lengthens a text at most by a factor that is known to the packer, so this ends.
                Err(e) if e.kind == ErrorKind::TooSmall && e.what == "token buffer" => {
                    out.resize(2 * out.len(), Token::default());
                }
                Err(e) if e.kind == ErrorKind::TooSmall && scratch.len() < 4096 * (longest + 64) => {
                    scratch.resize(2 * scratch.len() + 1024, 0);
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// A text after the normalizer.
    ///
    /// # Errors
    /// When the text is longer than 4 GiB.
    pub fn normalize(&self, text: &str) -> Result<String> {
        let mut room = 2 * text.len() + 64;
        loop {
            let (mut origin, mut bytes) = (vec![0; room], vec![0; room]);
            let mut buffer = Buffer { text: &mut bytes, origin: &mut origin, lo: 0, hi: 0 };
            buffer.load(text.as_bytes(), 0, text.len())?;
            match normalize(&self.blob, &mut buffer) {
                Ok(()) => return Ok(String::from_utf8_lossy(buffer.content()).into_owned()),
                Err(e) if e.kind == ErrorKind::TooSmall && room < 4096 * (text.len() + 64) => room *= 2,
                Err(e) => return Err(e),
            }
        }
    }

    /// Decodes a whole list of ids.
    #[must_use]
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut decoder = self.decoder(skip_special);
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = ids.iter().try_for_each(|id| decoder.push(*id, &mut text)).and_then(|()| decoder.finish(&mut text));
        text
    }
}
