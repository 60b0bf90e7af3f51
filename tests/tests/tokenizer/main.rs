//! Tokenizers: recorded expectations, the `tokenizers` library as a judge, damaged blobs, refused files.

mod recorded;

use std::path::Path;

use lora_pack::compile::tokenizer::{Compiled, compile_tokenizer};

/// Compiles a file for a model with as many rows as it needs.
fn compile(path: &Path) -> Compiled {
    let json = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    compile_tokenizer(&json, 1 << 20).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
