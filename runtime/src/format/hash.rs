//! The content hash: SHA-256 over the file with the header's hash field zeroed.

use sha2::{Digest, Sha256};

use super::record::Header;
use super::view::File;
use crate::error::{Error, ErrorKind, Result};

/// Computes the content hash of a file whose first bytes are its header.
#[must_use]
pub fn content_hash(bytes: &[u8]) -> [u8; 32] {
    const START: usize = core::mem::offset_of!(Header, hash);
    let mut h = Sha256::new();
    h.update(&bytes[..START.min(bytes.len())]);
    h.update([0_u8; 32]);
    h.update(bytes.get(START + 32..).unwrap_or(&[]));
    h.finalize().into()
}

/// Checks the content hash.
///
/// # Errors
/// [`ErrorKind::Hash`] when it differs.
pub fn verify_hash(file: &File<'_>) -> Result<()> {
    if content_hash(file.bytes) == file.header.hash { Ok(()) } else { Err(Error::new(ErrorKind::Hash, "header.hash")) }
}
