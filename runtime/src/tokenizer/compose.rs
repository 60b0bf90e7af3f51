//! Canonical decomposition, ordering and composition.

use super::blob::Blob;
use super::buffer::Pass;
use crate::error::Result;

pub(crate) fn decompose(_blob: &Blob<'_>, _pass: Pass<'_>, _map: (u32, u32), _compose: bool) -> Result<()> {
    todo!()
}
