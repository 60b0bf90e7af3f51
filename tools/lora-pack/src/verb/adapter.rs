//! `adapter`: one PEFT adapter as a file for unmerged mode.

use anyhow::{Result, anyhow};
use serde_json::json;

use super::merge::{adapter_spec, labels, note_line};
use super::{hex, human};
use crate::adapter::pack_adapter;
use crate::cli::AdapterArgs;
use crate::merge::{InitBase, MergeOptions};
use crate::pack::PackOptions;
use crate::source::{BaseModel, hub};

/// Runs the verb.
///
/// # Errors
/// The adapter does not fit the base, or has no unmerged form.
pub fn run(args: &AdapterArgs) -> Result<()> {
    let base = BaseModel::open(&hub::locate(&args.base, args.base_revision.as_deref())?)?;
    let spec = adapter_spec(&args.adapter)?;
    let init_base = args.init_base.as_deref().map_or(Ok(InitBase::default()), str::parse);
    let init_base = init_base.map_err(|known| anyhow!("--init-base: expected {known}"))?;
    let merge = MergeOptions {
        init_base,
        force: args.force,
        base_revision: args.base_revision.clone(),
        ..MergeOptions::default()
    };
    let options = PackOptions {
        labels: args.labels.as_deref().map(labels).transpose()?,
        task: args.task,
        no_tokenizer: args.no_tokenizer,
        ..PackOptions::new(args.quant)
    };
    let report = pack_adapter(&base, &spec, &merge, &options, &args.out)?;
    for note in &report.notes {
        eprintln!("{}", note_line(note));
    }
    let ((slots, all), (applied, tensors)) = (report.slots, report.applied);
    if args.json {
        println!(
            "{}",
            json!({
                "out": args.out, "file_bytes": report.file_bytes, "hash": hex(&report.hash), "task": report.task,
                "quant": args.quant.name(), "slots_changed": slots, "slots": all, "head": report.head,
                "adapter_tensors_applied": applied, "adapter_tensors": tensors, "notes": report.notes,
            })
        );
        return Ok(());
    }
    println!("{}: adapter for {}, {}", args.out.display(), report.task, human(report.file_bytes));
    println!("  {applied} of {tensors} adapter tensors applied at {slots} of the base's {all} slots");
    if report.head {
        println!("  brings its own head");
    }
    Ok(())
}
