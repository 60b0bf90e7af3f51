//! The `.lpk` file: records, the checked view, the content hash.
//!
//! `docs/format.md` describes the bytes for readers in other languages.

pub mod bundle;
#[cfg(feature = "hash")]
pub mod hash;
pub mod record;
pub mod view;

pub use bundle::Bundle;
pub use record::*;
pub use view::{File, Tensor, Thin};
