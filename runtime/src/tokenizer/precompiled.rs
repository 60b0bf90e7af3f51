//! SentencePiece precompiled character maps.

use super::blob::Blob;
use super::buffer::Pass;
use crate::error::Result;

pub(crate) fn precompiled(_blob: &Blob<'_>, _pass: Pass<'_>) -> Result<()> {
    todo!()
}
