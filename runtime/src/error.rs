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
        // Not `write!` with `{}`, which would bring in padding and 64-bit division, three kilobytes of a firmware.
        for text in [kind, ": ", self.what] {
            f.write_str(text)?;
        }
        let mut number = |before: &str, value| {
            f.write_str(before)?;
            f.write_str(decimal(value, &mut [0; 20]))
        };
        if self.index != u64::MAX {
            number(" #", self.index)?;
        }
        if self.found != 0 || self.expected != 0 {
            number(" (found ", self.found)?;
            number(", expected ", self.expected)?;
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl core::error::Error for Error {}

/// The decimal digits of `value`, at the end of `buffer`: for programs that `write!` is too large for.
pub fn decimal(value: u64, buffer: &mut [u8; 20]) -> &str {
    // By parts of 16 bits, which 32-bit processors divide in hardware.
    let mut parts = [48, 32, 16, 0].map(|shift| (value >> shift) as u32 & 0xffff);
    let mut first = buffer.len();
    for (i, place) in buffer.iter_mut().enumerate().rev() {
        let mut rest = 0;
        for part in &mut parts {
            let whole = rest << 16 | *part;
            (*part, rest) = (whole / 10, whole % 10);
        }
        *place = b'0' + rest as u8;
        first = i;
        if parts == [0; 4] {
            break;
        }
    }
    core::str::from_utf8(buffer.get(first..).unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn numbers_are_written_as_the_standard_library_writes_them() {
        let powers = (0..64).map(|bit| 1_u64 << bit).chain((0..20).map(|digits| 10_u64.pow(digits)));
        for value in powers.flat_map(|v| [v - 1, v, v + 1]).chain([u64::MAX]) {
            assert_eq!(decimal(value, &mut [0; 20]), value.to_string());
        }
    }

    #[test]
    fn errors_say_what_where_and_how_much() {
        let error = Error::new(ErrorKind::OutOfBounds, "tensor.offset");
        assert_eq!(error.to_string(), "out of bounds: tensor.offset");
        assert_eq!(error.index(0).to_string(), "out of bounds: tensor.offset #0");
        let all = error.index(7).values(u64::MAX, 1 << 32);
        assert_eq!(
            all.to_string(),
            "out of bounds: tensor.offset #7 (found 18446744073709551615, expected 4294967296)"
        );
    }
}
