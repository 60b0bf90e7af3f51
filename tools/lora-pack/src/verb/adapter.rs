//! `adapter`: one PEFT adapter as a file for unmerged mode.

use anyhow::Result;
use serde_json::json;

use super::merge::{adapter_spec, basis_options, labels, note_line, open_base};
use super::{hex, human};
use crate::adapter::pack_adapter;
use crate::cli::AdapterArgs;
use crate::merge::MergeOptions;
use crate::pack::PackOptions;

/// Runs the verb.
///
/// # Errors
/// The adapter does not fit the base, or has no unmerged form.
pub fn run(args: &AdapterArgs) -> Result<()> {
    let base = open_base(&args.base, &args.basis)?;
    let spec = adapter_spec(&args.adapter)?;
    let merge = MergeOptions { force: args.pack.force, ..basis_options(&args.basis)? };
    let options = PackOptions {
        labels: args.pack.labels.as_deref().map(labels).transpose()?,
        task: args.pack.task,
        no_tokenizer: args.pack.no_tokenizer,
        ..PackOptions::new(args.quant)
    };
    let report = pack_adapter(&base, &spec, &merge, &options, &args.pack.out)?;
    for note in &report.notes {
        eprintln!("{}", note_line(note));
    }
    let ((slots, all), (applied, tensors)) = (report.slots, report.applied);
    if args.pack.json {
        println!(
            "{}",
            json!({
                "out": args.pack.out, "file_bytes": report.file_bytes, "hash": hex(&report.hash), "task": report.task,
                "quant": args.quant.name(), "slots_changed": slots, "slots": all, "head": report.head,
                "adapter_tensors_applied": applied, "adapter_tensors": tensors, "notes": report.notes,
            })
        );
        return Ok(());
    }
    println!("{}: adapter for {}, {}", args.pack.out.display(), report.task, human(report.file_bytes));
    println!("  {applied} of {tensors} adapter tensors applied at {slots} of the base's {all} slots");
    if report.head {
        println!("  brings its own head");
    }
    Ok(())
}
