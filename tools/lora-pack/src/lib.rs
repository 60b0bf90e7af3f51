//! lora-pack as a library.

pub mod quantize;
