//! lora-pack as a library.

pub mod compile;
pub mod merge;
pub mod quantize;
pub mod source;
