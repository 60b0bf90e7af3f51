//! The one error type of the runtime: what was wrong, where, what was found and what was expected.
//!
//! It is `Copy` and holds no heap data, so it exists on bare metal too. `what` names the field,
//! tensor table, op operand or argument; `index` is the record's number where there are several.

use core::fmt;

/// Result with the runtime's [`Error`].
pub type Result<T> = core::result::Result<T, Error>;

/// The class of an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The bytes are not an `.lpk` file at all.
    NotLpk,
    /// The file's format version or a required feature is newer than this runtime.
    TooNew,
    /// The file ends before something it describes.
    Truncated,
    /// An offset, length or index points outside what it refers to.
    OutOfBounds,
    /// Data is not aligned as the kernels need it.
    Misaligned,
    /// A field has a value that the format does not allow.
    Invalid,
    /// The content hash differs.
    Hash,
    /// The caller's arena or output buffer is too small.
    TooSmall,
    /// A token id, sequence length or batch is beyond what the model or session was planned for.
    Capacity,
    /// The request does not fit this model (wrong task, missing entry point, …).
    Mismatch,
    /// Not available in this build or on this CPU.
    Unsupported,
    /// The operating system refused (file, mapping, thread).
    Io,
}

/// A typed error with its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// Class.
    pub kind: ErrorKind,
    /// Field, table or argument, in the words of the format document.
    pub what: &'static str,
    /// Record number, where the table has several; `u64::MAX` when it does not apply.
    pub index: u64,
    /// Value found (a length, an offset, an operand …).
    pub found: u64,
    /// Value, bound or alignment expected.
    pub expected: u64,
}

impl Error {
    /// A new error of `kind` about `what`.
    #[must_use]
    #[cold]
    pub const fn new(kind: ErrorKind, what: &'static str) -> Self {
        Self { kind, what, index: u64::MAX, found: 0, expected: 0 }
    }
    /// Names the record.
    #[must_use]
    pub const fn index(mut self, index: u64) -> Self {
        self.index = index;
        self
    }
    /// Adds what was found and what was expected.
    #[must_use]
    pub const fn values(mut self, found: u64, expected: u64) -> Self {
        self.found = found;
        self.expected = expected;
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ErrorKind::NotLpk => "not an .lpk file",
            ErrorKind::TooNew => "needs a newer runtime",
            ErrorKind::Truncated => "file is truncated",
            ErrorKind::OutOfBounds => "out of bounds",
            ErrorKind::Misaligned => "misaligned",
            ErrorKind::Invalid => "invalid value",
            ErrorKind::Hash => "content hash differs",
            ErrorKind::TooSmall => "buffer too small",
            ErrorKind::Capacity => "over capacity",
            ErrorKind::Mismatch => "does not fit this model",
            ErrorKind::Unsupported => "not supported here",
            ErrorKind::Io => "input/output error",
        };
        // Not `{}`, which would bring in padding, a kilobyte and a half of a firmware.
        for text in [kind, ": ", self.what] {
            f.write_str(text)?;
        }
        if self.index != u64::MAX {
            write!(f, " #{}", self.index)?;
        }
        if self.found != 0 || self.expected != 0 {
            write!(f, " (found {}, expected {})", self.found, self.expected)?;
        }
        Ok(())
    }
}

impl core::error::Error for Error {}
