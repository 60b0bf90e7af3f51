//! Test buffers that end at a page which faults when touched, so that a read beyond the end does not go unnoticed
//! (address sanitizers do not see inside inline assembly).

use std::io::Write;
use std::vec::Vec;

use memmap2::{Mmap, MmapOptions};

const PAGE: usize = 65536; // a multiple of every page size in use

/// A read-only copy of some bytes at the end of accessible memory.
pub(super) struct Guarded {
    map: Mmap,
    start: usize,
    len: usize,
}

impl Guarded {
    /// Copies `bytes` to the last address but `tail`.
    pub(super) fn new(bytes: &[u8], tail: usize) -> Self {
        let whole = (bytes.len() + tail).next_multiple_of(PAGE);
        let start = whole - tail - bytes.len();
        let mut content = Vec::with_capacity(whole);
        content.resize(start, 0xcc);
        content.extend_from_slice(bytes);
        content.resize(whole, 0xcc);
        let mut file = tempfile::tempfile().expect("temporary file");
        file.write_all(&content).expect("temporary file");
        // SAFETY: nobody else has the file. The map is longer than it: pages beyond its end raise a signal.
        let map = unsafe { MmapOptions::new().len(whole + PAGE).map(&file) }.expect("map");
        Self { map, start, len: bytes.len() }
    }
    /// The copy.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map[self.start..self.start + self.len]
    }
}
