//! `verify`: content hash, structure and program of a file.

use anyhow::{Context, Result};
use lora_runtime::Model;
use lora_runtime::format::hash::verify_hash;
use serde_json::json;

use super::{hex, human, map};
use crate::cli::VerifyArgs;

/// Runs the verb.
///
/// # Errors
/// The file is not sound; the message names what is wrong.
pub fn run(args: &VerifyArgs) -> Result<()> {
    let bytes = map(&args.file)?;
    let name = args.file.display();
    let model = Model::open(&bytes).with_context(|| format!("{name} is not sound"))?;
    verify_hash(&model.file).with_context(|| format!("{name} was changed after packing"))?;
    let f = &model.file;
    if args.json {
        println!(
            "{}",
            json!({"ok": true, "file": name.to_string(), "bytes": bytes.len(), "hash": hex(&f.header.hash),
                   "tensors": f.tensors.len(), "ops": f.ops.len(), "buffers": f.buffers.len()})
        );
    } else {
        println!("{name}: sound. {}, hash {}", human(bytes.len() as u64), hex(&f.header.hash));
        println!(
            "  {} tensors, {} ops, {} buffers: all offsets, shapes and operands check out",
            f.tensors.len(),
            f.ops.len(),
            f.buffers.len()
        );
    }
    Ok(())
}
