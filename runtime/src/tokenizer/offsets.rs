//! Offsets in characters.

use super::chars::previous;

/// Turns byte offsets of a text into character offsets; cheap for offsets that come roughly in order.
pub struct CharOffsets<'t> {
    text: &'t [u8],
    byte: usize,
    chars: u32,
}

impl<'t> CharOffsets<'t> {
    /// For offsets into `text`.
    #[must_use]
    pub fn new(text: &'t str) -> Self {
        Self { text: text.as_bytes(), byte: 0, chars: 0 }
    }

    /// Characters before byte `offset`.
    pub fn at(&mut self, offset: u32) -> u32 {
        let offset = (offset as usize).min(self.text.len());
        while self.byte > offset {
            self.byte = previous(self.text, self.byte);
            self.chars -= 1;
        }
        let passed = &self.text[self.byte..offset];
        self.chars += passed.iter().filter(|b| **b & 0xc0 != 0x80).count() as u32;
        self.byte = offset;
        self.chars
    }
}
