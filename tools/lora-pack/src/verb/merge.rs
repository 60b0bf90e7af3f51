//! `merge`: base + adapters → one packed file.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use lora_runtime::format::Task;
use lora_runtime::weights::WeightFormat;
use serde_json::{Value, json};

use super::{hex, human};
use crate::calibrate::Effort;
use crate::calibrate::auto::Budget;
use crate::calibrate::compare::Distance;
use crate::cli::{BasisArgs, CombineArgs, MergeArgs, QloraBase, Quant};
use crate::generation::Generation;
use crate::keep;
use crate::merge::{AdapterSpec, Level, MergeOptions, Merged, Note, qlora};
use crate::pack::{PackOptions, PackReport, headless, pack};
use crate::quantize::gridded::{self, Gridded};
use crate::source::{BaseModel, hub};
use crate::verify::LEAST_PROJECTION;

/// Runs the verb.
///
/// # Errors
/// Anything refused, named; no output file is left then.
pub fn run(args: &MergeArgs) -> Result<()> {
    let base = open_base(&args.base, &args.basis)?;
    let adapters = args.adapters.iter().map(|a| adapter_spec(a)).collect::<Result<Vec<_>>>()?;
    let merged = Merged::new(&base, &adapters, &merge_options(&args.combine, &args.basis, args.pack.force)?)?;
    for note in merged.notes() {
        eprintln!("{}", note_line(note));
    }
    let quantized = base.tensors().iter().any(|t| t.dtype.is_block());
    let quant = args.quant.unwrap_or(if quantized { Quant::Keep } else { Quant::Format(WeightFormat::Q8) });
    let options = PackOptions {
        format: quant.format(),
        keep: quant == Quant::Keep,
        labels: args.pack.labels.as_deref().map(labels).transpose()?,
        task: args.pack.task,
        no_tokenizer: args.pack.no_tokenizer,
        effort: effort(args, quant)?,
        calib: args.calib.clone(),
        budget: budget(args, quant)?,
        balance: balance(args, quant, quantized)?,
    };
    let target = if options.keep { keep::of_changed(&merged) } else { Some(options.format) };
    let grid = match target.filter(|t| !t.is_float()) {
        Some(target) => gridded::look(&merged, target)?.map(|grid| (grid, target)),
        None => None,
    };
    if let Some((grid, target)) = grid {
        eprintln!("{}", grid_line(grid, target.name()));
    }
    let bar = progress_bar();
    let meta = provenance(&base, &merged, args);
    let report = pack(&base, &merged, &options, meta, &args.pack.out, &mut |stage, done, total| {
        bar.set_message(stage);
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    if let Some(note) = headless(&merged, &options) {
        eprintln!("note: {note}");
    }
    let settings = match report.task {
        Task::CausalLm | Task::Seq2SeqLm => Generation::new(&base, merged.config()).left_out(),
        _ => Vec::new(),
    };
    for note in &settings {
        eprintln!("{}", note_line(note));
    }
    if args.pack.json {
        let mut json = report_json(&report, &merged, args, quant);
        json["notes"] = merged.notes().iter().chain(&settings).map(|n| json!(n)).collect();
        json["delta_retained"] = json!(grid.map(|(grid, _)| grid.projection));
        println!("{json}");
    } else {
        print_report(&report, &merged, args);
    }
    Ok(())
}

/// The base: a path, or a model's name on the Hub.
pub fn open_base(arg: &Path, basis: &BasisArgs) -> Result<BaseModel> {
    let mut base = BaseModel::open(&hub::locate(arg, basis.base_revision.as_deref())?)?;
    if let Some(QloraBase(Some(quantization))) = basis.qlora_base {
        qlora::round_trip(&mut base, quantization)?;
    }
    Ok(base)
}

/// What packing onto a base that was quantized before means.
fn grid_line(grid: Gridded, format: &str) -> String {
    let percent = 100.0 * grid.projection;
    if grid.projection < LEAST_PROJECTION {
        format!(
            "warning: base: its weights lie on a 4-bit grid, and the grid would swallow the delta: {percent:.1} % of the \
             adapters' change is left in {format}; use a format with at least 2 bits more, or the unquantized base"
        )
    } else {
        format!(
            "note: base: its weights lie on a 4-bit grid; {percent:.1} % of the adapters' change is left in {format}"
        )
    }
}

/// The user's word; else text is there to be used, and choosing formats needs some.
/// Whether channels are balanced; `quantized`: the base is, and its grid would be lost.
fn balance(args: &MergeArgs, quant: Quant, quantized: bool) -> Result<bool> {
    let reads = effort(args, quant)? != Effort::Fast && !quant.format().is_float();
    if args.balance == Some(true) && !reads {
        bail!("--balance yes needs text to see the channels: --effort normal or best, and a quantized format");
    }
    Ok(reads && args.balance.unwrap_or(!args.adapters.is_empty() && !quantized))
}

fn effort(args: &MergeArgs, quant: Quant) -> Result<Effort> {
    let auto = quant == Quant::Auto;
    if quant == Quant::Keep && (args.effort.is_some_and(|e| e != Effort::Fast) || !args.calib.is_empty()) {
        bail!("--quant keep carries weights over as they are: --calib and --effort go with the other formats");
    }
    match args.effort {
        Some(Effort::Fast) if auto => bail!("--quant auto measures on text: --effort normal or best"),
        Some(Effort::Fast) if !args.calib.is_empty() => {
            bail!("--effort fast does not run the model: leave out --calib")
        }
        None if auto || !args.calib.is_empty() => Ok(Effort::Normal),
        effort => Ok(effort.unwrap_or_default()),
    }
}

/// The size that `--quant auto` keeps.
fn budget(args: &MergeArgs, quant: Quant) -> Result<Option<Budget>> {
    match (quant, args.target_size, args.target_bpw) {
        (Quant::Format(_) | Quant::Keep, None, None) => Ok(None),
        (Quant::Format(_) | Quant::Keep, ..) => bail!("--target-size and --target-bpw go with --quant auto"),
        (Quant::Auto, Some(bytes), _) => Ok(Some(Budget::Bytes(bytes))),
        (Quant::Auto, None, bits) => Ok(Some(Budget::Bits(bits.unwrap_or(DEFAULT_BITS)))),
    }
}

/// Bits per weight of `--quant auto` where the user gives no target.
const DEFAULT_BITS: f64 = 5.0;

/// `DIR` or `DIR=WEIGHT`; a folder whose own name holds `=` is taken whole when it exists.
pub fn adapter_spec(arg: &str) -> Result<AdapterSpec> {
    let whole = PathBuf::from(arg);
    if whole.exists() {
        return Ok(AdapterSpec { path: whole, weight: 1.0 });
    }
    let spec = |path: &Path, weight| Ok(AdapterSpec { path: hub::locate(path, None)?, weight });
    match arg.rsplit_once('=') {
        Some((path, weight)) => {
            let weight: f64 = weight.parse().with_context(|| format!("--adapter {arg}: the weight is not a number"))?;
            if !weight.is_finite() {
                bail!("--adapter {arg}: the weight is not finite");
            }
            spec(Path::new(path), weight)
        }
        None => spec(&whole, 1.0),
    }
}

/// The library's options from the arguments.
pub fn merge_options(args: &CombineArgs, basis: &BasisArgs, force: bool) -> Result<MergeOptions> {
    Ok(MergeOptions {
        combine: parsed("--combine", args.combine.as_ref())?,
        density: args.density,
        svd_rank: args.svd_rank,
        majority_sign: parsed("--majority-sign", args.majority_sign.as_ref())?,
        seed: args.seed.unwrap_or(0),
        round: args.peft_exact,
        force,
        ..basis_options(basis)?
    })
}

/// What of the library's options is about the base.
pub fn basis_options(basis: &BasisArgs) -> Result<MergeOptions> {
    Ok(MergeOptions {
        init_base: parsed("--init-base", basis.init_base.as_ref())?,
        base_revision: basis.base_revision.clone(),
        ..MergeOptions::default()
    })
}

fn parsed<T: std::str::FromStr<Err = String> + Default>(flag: &str, arg: Option<&String>) -> Result<T> {
    arg.map_or_else(|| Ok(T::default()), |a| a.parse().map_err(|known| anyhow!("{flag} {a}: expected {known}")))
}

/// Labels as `a,b,c`, or from a JSON file: a list, `{"0": "a"}`, or an object with `id2label`.
pub fn labels(arg: &str) -> Result<Vec<String>> {
    let is_json = Path::new(arg).extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    if !is_json {
        return Ok(arg.split(',').map(|s| s.trim().to_string()).collect());
    }
    let text = std::fs::read_to_string(arg).with_context(|| format!("--labels {arg}"))?;
    let value: Value = serde_json::from_str(&text).with_context(|| format!("--labels {arg}"))?;
    let map = value.get("id2label").unwrap_or(&value);
    let names: Option<Vec<String>> = match map {
        Value::Array(list) => list.iter().map(|v| v.as_str().map(str::to_string)).collect(),
        Value::Object(m) => {
            (0..m.len()).map(|i| m.get(&i.to_string()).and_then(Value::as_str).map(str::to_string)).collect()
        }
        _ => None,
    };
    names.with_context(|| format!("--labels {arg}: expected a list of names, or a map from \"0\", \"1\", … to names"))
}

/// A note in one printable line (names may come from files).
pub fn note_line(note: &Note) -> String {
    let level = if note.level == Level::Warning { "warning" } else { "note" };
    format!("{level}: {}: {}", note.about, note.text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg:11} {bar:30} {percent} %, {eta} left");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn provenance(base: &BaseModel, merged: &Merged<'_>, args: &MergeArgs) -> BTreeMap<String, String> {
    let mut meta = BTreeMap::new();
    meta.insert("base.name".into(), base.name());
    meta.extend(base.quantization().map(|text| ("base.weights".into(), text)));
    meta.insert("pack.tool".into(), concat!("lora-pack ", env!("CARGO_PKG_VERSION")).into());
    for (i, a) in merged.adapters().into_iter().enumerate() {
        let about = json!({"name": a.label, "weight": a.weight, "type": a.method, "r": a.r, "alpha": a.alpha,
                           "tensors": a.tensors, "applied": a.applied});
        meta.insert(format!("adapter.{i}"), about.to_string());
    }
    if let Some(combine) = &args.combine.combine {
        meta.insert("adapter.combine".into(), combine.clone());
    }
    meta
}

/// Adapter tensors that went into the model, and all that the adapters hold.
pub fn applied(merged: &Merged<'_>) -> (usize, usize) {
    merged.adapters().iter().fold((0, 0), |(applied, all), a| (applied + a.applied, all + a.tensors))
}

fn report_json(r: &PackReport, merged: &Merged<'_>, args: &MergeArgs, quant: Quant) -> Value {
    let (applied, total) = applied(merged);
    json!({
        "out": args.pack.out, "file_bytes": r.file_bytes, "float_bytes": r.float_bytes, "hash": hex(&r.hash),
        "architecture": r.architecture, "task": r.task.name(), "quant": quant.name(), "carried": r.carried, "proof": r.distance.as_ref().map(Distance::json),
        "effort": effort(args, quant).unwrap_or_default().name(), "bits_per_weight": r.bits_per_weight, "tensors": r.tensors, "seconds": r.seconds, "balanced": r.balanced,
        "adapter_tensors_applied": applied, "adapter_tensors": total, "changed": merged.changed().len(),
    })
}

/// A distance in one line.
pub fn distance_line(d: &Distance) -> String {
    let mut out = match (d.mean_kl(), d.p99_kl(), d.cosine) {
        (Some(mean), Some(p99), _) => format!("KL {mean:.5} (99 % below {p99:.4})"),
        (.., Some(cosine)) => format!("cosine {cosine:.5}"),
        _ => String::from("outputs compared"),
    };
    out += &format!(", same first choice {:.2} % of {} rows", 100.0 * d.top1(), d.rows);
    if let Some((a, b)) = d.loss {
        out += &format!(", perplexity {:.3} → {:.3}", a.exp(), b.exp());
    }
    out
}

fn print_report(r: &PackReport, merged: &Merged<'_>, args: &MergeArgs) {
    let (applied, total) = applied(merged);
    println!("{}: {} for {}", args.pack.out.display(), r.architecture, r.task.name());
    if total > 0 {
        println!(
            "  adapters   {applied} of {total} adapter tensors applied, {} base tensors changed",
            merged.changed().len()
        );
    }
    if r.carried > 0 {
        println!("  carried    {} matrices of the base as they were, to the bit", r.carried);
    }
    for (name, (n, weights, bytes)) in &r.formats {
        println!(
            "  {name:<9}  {n} matrices, {weights} weights, {} ({:.3} bits each)",
            human(*bytes),
            *bytes as f64 * 8.0 / *weights as f64
        );
    }
    if let Some(c) = &r.calibration {
        println!(
            "  calibrated on {} tokens in {} texts ({}), effort {}",
            c.tokens,
            c.documents,
            c.source,
            c.effort.name()
        );
    }
    if r.balanced > 0 {
        println!("  balanced   the channels of {} values; adapters cannot be attached to this file", r.balanced);
    }
    if let Some(d) = &r.distance {
        println!("  proof      {}, on text kept apart", distance_line(d));
    }
    println!(
        "  size       {} (float: {}), {:.3} bits per weight, in {:.1} s",
        human(r.file_bytes),
        human(r.float_bytes),
        r.bits_per_weight,
        r.seconds
    );
}
