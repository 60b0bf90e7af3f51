//! Mapping a model file into memory (feature `std`).
#![expect(unsafe_code, reason = "mapping a file is unsafe because another process could change it")]

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

/// A file mapped read-only. Page-aligned, so [`crate::Model::open`] takes it as it is; pages are read when touched
/// and can be dropped by the system at any time.
pub struct Mapping {
    map: memmap2::Mmap,
}

impl Mapping {
    /// Maps `path`.
    ///
    /// The file must not be changed while it is mapped: models are replaced by renaming a new file over the old name
    /// (as lora-pack does), never by writing into it.
    ///
    /// # Errors
    /// The operating system's error, also for an empty file or a folder.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the mapping is read-only and private to this value; that nobody truncates the file is the documented
        // condition of use, the same that every program that maps its data has.
        let map = unsafe { memmap2::Mmap::map(&file) }?;
        #[cfg(target_os = "linux")]
        {
            // Advice only: larger pages and read-ahead where the system offers them.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self { map })
    }
}

impl Deref for Mapping {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map
    }
}
