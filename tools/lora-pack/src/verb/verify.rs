//! `verify`: content hash, structure and program of a file; with a base, how close its numbers are to the float model's.

use std::path::Path;

use anyhow::{Context, Result, bail};
use lora_runtime::Model;
use lora_runtime::format::FileKind;
use lora_runtime::format::hash::verify_hash;
use serde_json::{Value, json};

use super::merge::{adapter_spec, distance_line, merge_options, open_base};
use super::{hex, human, map, other_files};
use crate::cli::VerifyArgs;
use crate::verify::{Numbers, Reference, measure};

/// Runs the verb.
///
/// # Errors
/// The file is not sound, or a number is beyond a bar; the message names what is wrong.
pub fn run(args: &VerifyArgs) -> Result<()> {
    let bytes = map(&args.file)?;
    match other_files::kind(&bytes) {
        Some(FileKind::Adapter) => return other_files::verify_adapter(&args.file, &bytes, args.json),
        Some(FileKind::Bundle) => return other_files::verify_bundle(&args.file, &bytes, args.json),
        _ => {}
    }
    let name = args.file.display();
    let model = Model::open(&bytes).with_context(|| format!("{name} is not sound"))?;
    verify_hash(&model.file).with_context(|| format!("{name} was changed after packing"))?;
    let f = &model.file;
    let numbers = match &args.base {
        Some(base) => Some(numbers(args, base, model)?),
        None => None,
    };
    let broken = numbers.as_ref().map_or_else(Vec::new, |n| broken_bars(args, n));
    if args.json {
        let mut out = json!({"ok": broken.is_empty(), "file": name.to_string(), "bytes": bytes.len(),
                             "hash": hex(&f.header.hash), "tensors": f.tensors.len(), "ops": f.ops.len(),
                             "buffers": f.buffers.len()});
        if let (Some(n), Value::Object(out)) = (&numbers, &mut out) {
            out.insert("numbers".into(), numbers_json(n));
            out.insert("verdict".into(), n.verdict().into());
        }
        println!("{out}");
    } else {
        println!("{name}: sound. {}, hash {}", human(bytes.len() as u64), hex(&f.header.hash));
        println!(
            "  {} tensors, {} ops, {} buffers: all offsets, shapes and operands check out",
            f.tensors.len(),
            f.ops.len(),
            f.buffers.len()
        );
        if let Some(n) = &numbers {
            print_numbers(n);
        }
    }
    if broken.is_empty() { Ok(()) } else { bail!("{name}: {}", broken.join("; ")) }
}

fn numbers(args: &VerifyArgs, base: &Path, packed: Model<'_>) -> Result<Numbers> {
    let adapters = args.adapters.iter().map(|a| adapter_spec(a)).collect::<Result<Vec<_>>>()?;
    let base = open_base(base, &args.basis)?;
    let reference = Reference {
        base: &base,
        adapters: &adapters,
        merge: &merge_options(&args.combine, &args.basis, false)?,
        text: args.text.as_deref(),
        tokens: args.tokens,
        kv: args.kv,
    };
    measure(packed, &reference)
}

/// What is beyond the user's bars. Written so that NaN is.
fn broken_bars(args: &VerifyArgs, n: &Numbers) -> Vec<String> {
    let mut out = Vec::new();
    let mut bar = |what: &str, found: Option<f64>, least: Option<f64>, most: Option<f64>| {
        let Some(bar) = least.or(most) else { return };
        match found {
            None => out.push(format!("{what} cannot be measured for this model")),
            Some(v) if least.is_some_and(|l| v >= l) || most.is_some_and(|m| v <= m) => {}
            Some(v) => out.push(format!("{what} {v:.5} is beyond the bar of {bar}")),
        }
    };
    bar("KL", n.distance.mean_kl(), None, args.max_kl);
    bar("top-1 agreement", Some(n.distance.top1()), args.min_top1, None);
    bar("functional retention", n.retention, args.min_retention, None);
    bar("projection", n.weights.projection, args.min_projection, None);
    out
}

fn numbers_json(n: &Numbers) -> Value {
    let mut out = n.distance.json();
    if let Value::Object(out) = &mut out {
        out.insert("tokens".into(), n.tokens.into());
        out.insert("kl_to_base".into(), json!(n.kl_to_base));
        out.insert("retention".into(), json!(n.retention));
        out.insert("projection".into(), json!(n.weights.projection));
        out.insert("change".into(), json!(n.weights.change));
        out.insert("modules".into(), json!(n.weights.modules));
    }
    out
}

fn print_numbers(n: &Numbers) {
    println!("  outputs    {} (on {} tokens)", distance_line(&n.distance), n.tokens);
    if let (Some(kl), Some(retention)) = (n.kl_to_base, n.retention) {
        println!("  adapter    KL to the base without it {kl:.4}: functional retention {retention:.4}");
    }
    if let (Some(projection), Some(change)) = (n.weights.projection, n.weights.change) {
        println!("  change     {projection:.4} of the adapter's change is in the weights (it is {change:.2e} of them)");
    }
    let mut modules: Vec<_> = n.weights.modules.iter().collect();
    modules.sort_by(|a, b| b.error.total_cmp(&a.error));
    for m in modules.iter().take(3) {
        println!("  weights    {}: {} error {:.4}", m.module, m.format, m.error);
    }
    println!("  verdict    {}", n.verdict());
}
