//! The one place that maps files into memory.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::SourceError;

/// A regular file, mapped read-only. The mapping is private to this process and the file must not be changed while
/// it is open; this is the usual contract of every tool that maps weights.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    map: Option<Mmap>,
}

impl MappedFile {
    /// Maps `path`, which must be a regular file: a pipe or a device would block or never end.
    #[expect(unsafe_code, reason = "mapping a file is unsafe; nothing else in this crate is")]
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let meta = std::fs::metadata(path).map_err(|e| SourceError::io(path, e))?;
        if !meta.is_file() {
            return Err(SourceError::file(path, "is not a regular file"));
        }
        let file = File::open(path).map_err(|e| SourceError::io(path, e))?;
        let map = if meta.len() == 0 {
            None
        } else {
            // SAFETY: the mapping is read-only and dropped with this value. That nobody truncates or rewrites the
            // file meanwhile cannot be proved from here; it is the documented condition of use, and breaking it
            // gives a bus error or changed numbers in this offline tool, never a write.
            Some(unsafe { Mmap::map(&file) }.map_err(|e| SourceError::io(path, e))?)
        };
        Ok(Self { path: path.to_owned(), map })
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }

    /// Gives the memory of pages that were read back to the system; reading them again fetches them anew. Without this
    /// a model's whole size would count as memory in use by the time its last tensor is read.
    #[expect(unsafe_code, reason = "the advice is unsafe for mappings that are written to")]
    pub fn release(&self) {
        #[cfg(unix)]
        if let Some(map) = &self.map {
            // SAFETY: the mapping is read-only and backed by the file, so dropped pages come back unchanged. It is advice
            // only: a refusal changes nothing.
            let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
