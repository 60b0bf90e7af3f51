//! `inspect`: what a file holds, for people and as JSON.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use lora_runtime::Model;
use lora_runtime::format::{EntryKind, File, FileKind, TensorKind, TensorRecord};
use lora_runtime::program::Op;
use lora_runtime::weights::WeightFormat;
use serde_json::{Value, json};

use super::{hex, human, map, other_files};
use crate::cli::InspectArgs;

/// Runs the verb.
///
/// # Errors
/// The file is not sound.
pub fn run(args: &InspectArgs) -> Result<()> {
    let bytes = map(&args.file)?;
    match other_files::kind(&bytes) {
        Some(FileKind::Adapter) => return other_files::inspect_adapter(&args.file, &bytes, args.json),
        Some(FileKind::Bundle) => eprintln!("note: a bundle; its base is shown, `lora-pack list` names its adapters"),
        _ => {}
    }
    let model = Model::open(&bytes).with_context(|| format!("{} is not sound", args.file.display()))?;
    if args.json {
        print_json(&model)
    } else {
        print_text(&model, args)
    }
    Ok(())
}

fn format_name(t: &TensorRecord) -> &'static str {
    if t.kind == TensorKind::Vector as u16 {
        "vector"
    } else {
        WeightFormat::from_u16(t.format).map_or("?", WeightFormat::name)
    }
}

fn entry_name(kind: u32) -> &'static str {
    if kind == EntryKind::Decode as u32 { "decode" } else { "encode" }
}

/// Per format: tensors, weights, bytes.
fn formats(file: &File<'_>) -> BTreeMap<&'static str, (u64, u64, u64)> {
    let mut out: BTreeMap<_, (u64, u64, u64)> = BTreeMap::new();
    for t in file.tensors {
        let f = out.entry(format_name(t)).or_default();
        *f = (f.0 + 1, f.1 + u64::from(t.rows) * u64::from(t.cols), f.2 + t.len);
    }
    out
}

fn print_json(model: &Model<'_>) {
    let f = &model.file;
    let info = f.info;
    let meta: BTreeMap<&str, &str> = f.meta.iter().map(|m| (f.str(m.key), f.str(m.value))).collect();
    let tensors: Vec<Value> = f
        .tensors
        .iter()
        .map(|t| json!({"name": f.str(t.name), "format": format_name(t), "rows": t.rows, "cols": t.cols, "bytes": t.len}))
        .collect();
    let formats: BTreeMap<_, _> = formats(f)
        .into_iter()
        .map(|(name, (n, weights, bytes))| {
            (name, json!({"tensors": n, "weights": weights, "bytes": bytes, "bits_per_weight": bytes as f64 * 8.0 / weights as f64}))
        })
        .collect();
    let entries: Vec<Value> = f
        .entries
        .iter()
        .map(|e| {
            let outputs: Vec<Value> =
                model.outputs(e).iter().map(|o| json!({"name": f.str(o.name), "width": o.width})).collect();
            json!({"name": entry_name(e.kind), "ops": e.op_count, "max_positions": e.max_positions, "outputs": outputs})
        })
        .collect();
    let labels: Vec<&str> = f.labels.iter().map(|l| f.str(*l)).collect();
    let slots: Vec<&str> = f.slots.iter().map(|s| f.str(s.module)).collect();
    println!(
        "{}",
        json!({
            "kind": "model", "version": f.header.version, "bytes": f.bytes.len(), "hash": hex(&f.header.hash),
            "fingerprint": hex(&f.header.fingerprint), "architecture": f.str(info.architecture),
            "task": model.task().name(), "vocab": info.vocab, "hidden": info.hidden,
            "max_positions": info.max_positions, "labels": labels, "eos": model.eos(),
            "per_token_bytes": info.per_token, "per_output_bytes": info.per_output,
            "tokenizer_bytes": f.tokenizer.len(), "chat_template": !f.str(info.chat_template).is_empty(),
            "metadata": meta, "formats": formats, "entries": entries, "tensors": tensors, "slots": slots,
        })
    );
}

fn print_text(model: &Model<'_>, args: &InspectArgs) {
    let f = &model.file;
    let info = f.info;
    println!("{}: {} model for {}", args.file.display(), f.str(info.architecture), model.task().name());
    println!(
        "  file         {}  format {}  hash {}",
        human(f.bytes.len() as u64),
        f.header.version,
        hex(&f.header.hash[..8])
    );
    println!("  base         fingerprint {}", hex(&f.header.fingerprint[..8]));
    println!("  sizes        vocab {}  hidden {}  positions {}", info.vocab, info.hidden, info.max_positions);
    println!(
        "  memory       {} per token of a step, {} per output row (see `plan`)",
        human(info.per_token.into()),
        human(info.per_output.into())
    );
    if !f.labels.is_empty() {
        let labels: Vec<&str> = f.labels.iter().map(|l| f.str(*l)).collect();
        println!("  labels       {}", labels.join(", "));
    }
    println!("  tokenizer    {}", if f.tokenizer.is_empty() { "none".into() } else { human(f.tokenizer.len() as u64) });
    println!("  chat         {}", if f.str(info.chat_template).is_empty() { "no template" } else { "template" });
    println!("  weights");
    for (name, (n, weights, bytes)) in formats(f) {
        println!(
            "    {name:<8} {n:>5} tensors  {weights:>12} values  {:>10}  {:>6.3} bits each",
            human(bytes),
            bytes as f64 * 8.0 / weights as f64
        );
    }
    for e in f.entries {
        let outputs: Vec<String> =
            model.outputs(e).iter().map(|o| format!("{} [{}]", f.str(o.name), o.width)).collect();
        println!("  entry        {}: {} ops → {}", entry_name(e.kind), e.op_count, outputs.join(", "));
    }
    println!("  slots        {} places for adapters", f.slots.len());
    for m in f.meta {
        println!("  {:<12} {}", f.str(m.key), f.str(m.value).replace('\n', " "));
    }
    if args.tensors {
        println!("tensors");
        for (i, t) in f.tensors.iter().enumerate() {
            println!(
                "  {i:>5} {:<56} {:>7} {:>7} × {:<6} {:>10}",
                f.str(t.name),
                format_name(t),
                t.rows,
                t.cols,
                human(t.len)
            );
        }
    }
    if args.ops {
        for e in f.entries {
            println!("{} program", entry_name(e.kind));
            for i in e.op_start..e.op_start + e.op_count {
                if let Ok(op) = Op::parse(&f.ops[i as usize]) {
                    println!("  {i:>5} {op:?}");
                }
            }
        }
    }
}
