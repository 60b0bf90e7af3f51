//! The `.lpk` file: records, the checked view, the content hash.
//!
//! `docs/format.md` describes the bytes for readers in other languages.

#[cfg(feature = "hash")]
pub mod hash;
pub mod record;
pub mod view;

pub use record::*;
pub use view::{File, Tensor};
