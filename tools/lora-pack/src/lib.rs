//! lora-pack as a library.
