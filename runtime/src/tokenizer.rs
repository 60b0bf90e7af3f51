//! Tokenizers compiled to flat tables by lora-pack and used in place.
