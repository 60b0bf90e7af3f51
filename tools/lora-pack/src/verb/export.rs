//! `export`: merged weights for other tools.

use anyhow::{Result, bail};
use serde_json::json;

use super::merge::{adapter_spec, applied, labels, merge_options, note_line, open_base};
use crate::cli::ExportArgs;
use crate::merge::export::gguf::{Encoding, Options};
use crate::merge::{Merged, export};
use crate::source::Dtype;

/// Runs the verb.
///
/// # Errors
/// Anything refused, named; no output is left then.
pub fn run(args: &ExportArgs) -> Result<()> {
    let base = open_base(&args.base, &args.basis)?;
    let adapters = args.adapters.iter().map(|a| adapter_spec(a)).collect::<Result<Vec<_>>>()?;
    let merged = Merged::new(&base, &adapters, &merge_options(&args.combine, &args.basis, args.force)?)?;
    for note in merged.notes() {
        eprintln!("{}", note_line(note));
    }
    if args.to == "gguf" {
        return gguf(args, &merged);
    }
    if args.encoding.is_some() {
        bail!("--type belongs to --to gguf; --dtype is safetensors' own");
    }
    if args.no_tokenizer {
        bail!("--no-tokenizer belongs to --to gguf; a safetensors folder gets the tokenizer files that the base has");
    }
    let dtype = Dtype::from_name(&args.dtype.to_uppercase()).filter(|_| args.dtype != "base");
    let labels = args.labels.as_deref().map(labels).transpose()?;
    export::safetensors(&merged, &args.out, dtype, labels.as_deref())?;
    let (used, total) = applied(&merged);
    if args.json {
        let out = json!({
            "out": args.out, "adapter_tensors_applied": used, "adapter_tensors": total,
            "changed": merged.changed().len(), "tensors": merged.names().count(), "notes": merged.notes(),
        });
        println!("{out}");
    } else {
        println!("{}: {} tensors", args.out.display(), merged.names().count());
        if total > 0 {
            println!("  {used} of {total} adapter tensors applied, {} base tensors changed", merged.changed().len());
        }
    }
    Ok(())
}

fn gguf(args: &ExportArgs, merged: &Merged<'_>) -> Result<()> {
    let encoding = args.encoding.unwrap_or(Encoding::Type(Dtype::F16));
    if encoding == Encoding::Keep && !merged.base().tensors().iter().any(|t| t.dtype.is_block()) {
        bail!("--type keep: the base is no quantized GGUF file");
    }
    let written = export::gguf::write(
        merged,
        &args.out,
        encoding,
        &Options { force: args.force, no_tokenizer: args.no_tokenizer },
    )?;
    for note in &written.notes {
        eprintln!("{}", note_line(note));
    }
    let (used, total) = applied(merged);
    if args.json {
        let notes: Vec<_> = merged.notes().iter().chain(&written.notes).collect();
        let out = json!({
            "out": written.path, "file_bytes": written.bytes, "adapter_tensors_applied": used, "adapter_tensors": total,
            "changed": merged.changed().len(), "tensors": written.tensors, "notes": notes,
        });
        println!("{out}");
    } else {
        println!("{}: {} tensors, {}", written.path.display(), written.tensors, super::human(written.bytes));
        if total > 0 {
            println!("  {used} of {total} adapter tensors applied, {} base tensors changed", merged.changed().len());
        }
    }
    Ok(())
}
