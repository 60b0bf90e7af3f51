//! Assembling the blob.

use std::collections::HashMap;

use lora_runtime::tokenizer::layout::{self, header, section};

/// A blob in the making.
#[derive(Clone)]
pub(super) struct Writer {
    header: [u32; header::WORDS],
    sections: Vec<Vec<u8>>,
    strings: HashMap<Vec<u8>, u32>,
}

impl Writer {
    pub(super) fn new() -> Self {
        let mut header = [0; header::WORDS];
        header[header::MAGIC] = u32::from_le_bytes(layout::MAGIC);
        header[header::VERSION] = layout::VERSION;
        header[header::SPACE_CLASS] = layout::NONE;
        header[header::WORD_CLASS] = layout::NONE;
        Self { header, sections: vec![Vec::new(); section::COUNT], strings: HashMap::new() }
    }

    /// Sets word `field` of the header.
    pub(super) fn set(&mut self, field: usize, value: u32) {
        self.header[field] = value;
    }

    /// Sets bits of the header's flags.
    pub(super) fn flag(&mut self, bits: u32) {
        self.header[header::FLAGS] |= bits;
    }

    pub(super) fn has(&self, bits: u32) -> bool {
        self.header[header::FLAGS] & bits != 0
    }

    /// A reference to a string, stored once.
    pub(super) fn string(&mut self, bytes: &[u8]) -> [u32; 2] {
        let pool = &mut self.sections[section::STRINGS];
        let at = *self.strings.entry(bytes.to_vec()).or_insert_with(|| {
            pool.extend_from_slice(bytes);
            (pool.len() - bytes.len()) as u32
        });
        [at, bytes.len() as u32]
    }

    /// Sets a string reference of the header.
    pub(super) fn set_string(&mut self, field: usize, text: &str) {
        let [at, len] = self.string(text.as_bytes());
        self.header[field] = at;
        self.header[field + 1] = len;
    }

    pub(super) fn section(&mut self, section: usize) -> &mut Vec<u8> {
        &mut self.sections[section]
    }

    pub(super) fn words(&mut self, section: usize, words: &[u32]) {
        self.sections[section].extend(words.iter().flat_map(|w| w.to_le_bytes()));
    }

    /// The finished blob, or `None` if it would be too large.
    pub(super) fn finish(&self) -> Option<Vec<u8>> {
        let mut at = (header::WORDS + 2 * section::COUNT) * 4;
        let mut table = Vec::new();
        for section in &self.sections {
            table.push(u32::try_from(at).ok()?);
            table.push(section.len() as u32);
            // Sections begin at multiples of 8, for the sake of whoever looks at the bytes.
            at += section.len().next_multiple_of(8);
        }
        let mut header = self.header;
        header[header::LENGTH] = u32::try_from(at).ok()?;
        let mut out: Vec<u8> = header.iter().chain(&table).flat_map(|w| w.to_le_bytes()).collect();
        for section in &self.sections {
            out.extend_from_slice(section);
            out.resize(out.len().next_multiple_of(8), 0);
        }
        Some(out)
    }
}
