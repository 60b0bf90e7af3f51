//! What quantization costs, measured with the programs as a user has them: the tables of `docs/quantization.md`.
//!
//! ```text
//! cargo build --release
//! cargo run --release -p conformance --example quality -- formats BASE [--dither] [--effort best] [q4 q5 q6 q8]
//! cargo run --release -p conformance --example quality -- adapters [--effort best] [--limit N] [--quant q4] [ASSET…]
//! cargo run --release -p conformance --example quality -- kv BASE [--dither] [--quant f32]
//! cargo run --release -p conformance --example quality -- peers BASE [--dither] --bench PATH/lora-bench [q4 q6 auto=95M …]
//! cargo run --release -p conformance --example quality -- sentences BASE [q8 q6]
//! ```
//! `formats` packs a base without and with calibration (general text alone) and compares on `tests/data/quality/eval.txt`,
//! which no calibration reads. `adapters` packs the trained adapters of `../shared/assets` with their calibration texts
//! and asks the public test sets. `peers` has llama.cpp quantize the base (`lora-bench` built with its feature `llama-cpp`),
//! packs it here as well (with `--effort`), and compares both twice: by the weights alone, read back and run here as
//! floats; and as each program computes, with its own 8-bit activations and a KV cache of f16 on both sides; and decodes with
//! each of llama.cpp's files and the largest of ours that is no larger, by turns. A format
//! is a preset, `auto=SIZE` or `auto=BITS`. Bases are packed with balanced channels. `sentences` embeds 200 of them, from the assets' tests and the general text, with a
//! float pack and with quantized ones, and compares by cosine. `--dither` spreads every block weight by a seeded uniform ±½ step of its group of 32,
//! the step taken as 1/15 of the group's range: for a base whose weights lie on a 4-bit grid, which would flatter
//! 4-bit formats.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use conformance::data;
use conformance::desk::{Checked, Desk, Ids, Miss};
use conformance::real::{ASSETS, Asset, Verb, answers, labels};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;

/// Seed of the dither.
const SEED: u64 = 6;

fn main() -> Result<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let mut flag = |name: &str| -> Option<String> {
        let at = args.iter().position(|a| a == name)?;
        args.remove(at);
        (at < args.len()).then(|| args.remove(at))
    };
    let effort = flag("--effort").unwrap_or_else(|| "best".into());
    let limit: usize = flag("--limit").map_or(Ok(usize::MAX), |l| l.parse())?;
    let quant = flag("--quant");
    let bench = flag("--bench");
    let dither = args.iter().position(|a| a == "--dither").map(|at| args.remove(at)).is_some();
    match args.first().map(String::as_str) {
        Some(what @ ("formats" | "kv" | "peers")) => {
            let base = PathBuf::from(args.get(1).context("which base?")?);
            let desk = Desk::new(&base)?;
            let base = if dither { dithered(&base, &desk.path("dithered"))? } else { base };
            match what {
                "kv" => kv(&desk, &base, quant.as_deref().unwrap_or("f32")),
                "peers" => {
                    let bench = bench.context("--bench: where is lora-bench?")?;
                    peers(&desk, &base, Path::new(&bench), &effort, &args[2..])
                }
                _ => formats(&desk, &base, &effort, &args[2..]),
            }
        }
        Some("sentences") => sentences(Path::new(args.get(1).context("which base?")?), &args[2..]),
        Some("adapters") => adapters(&effort, quant.as_deref().unwrap_or("q4"), limit, &args[1..]),
        _ => bail!("formats, adapters, kv, peers or sentences?"),
    }
}

fn plain<T>(checked: Checked<T>) -> Result<T> {
    checked.map_err(|miss| match miss {
        Miss::NotCovered(m) | Miss::Failed(m) => anyhow::anyhow!(m),
    })
}

/// Packs, and gives the report with the CPU seconds in it.
fn pack(desk: &Desk, base: &Path, args: &[String], out: &Path) -> Result<(Value, f64)> {
    let call = desk.pack("merge").arg("--base").arg(base).args(args).arg("--json");
    let done = plain(desk.produce(call.wall(std::time::Duration::from_secs(7200)), out))?;
    Ok((serde_json::from_str(&done.stdout)?, done.cpu.as_secs_f64()))
}

fn verify(desk: &Desk, file: &Path, base: &Path, args: &[String]) -> Result<Value> {
    let call = desk.pack("verify").arg(file).arg("--base").arg(base).args(args).arg("--json");
    let done = plain(desk.succeed(&call.wall(std::time::Duration::from_secs(7200))))?;
    Ok(serde_json::from_str::<Value>(&done.stdout)?["numbers"].clone())
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|a| (*a).to_string()).collect()
}

fn number(v: &Value, digits: usize) -> String {
    v.as_f64().map_or_else(|| "–".into(), |x| format!("{x:.digits$}"))
}

/// Bits per weight in the blocks: matrices that belong to a layer.
fn block_bits(desk: &Desk, file: &Path) -> Result<f64> {
    let done = plain(desk.succeed(&desk.pack("inspect").arg(file).arg("--json")))?;
    let report: Value = serde_json::from_str(&done.stdout)?;
    let (mut bytes, mut weights) = (0.0, 0.0);
    for t in report["tensors"].as_array().context("inspect lists tensors")? {
        let layer = t["name"].as_str().is_some_and(|n| n.contains("layer") || n.contains("block"));
        if layer && t["format"] != "vector" {
            bytes += t["bytes"].as_f64().unwrap_or(0.0);
            weights += t["rows"].as_f64().unwrap_or(0.0) * t["cols"].as_f64().unwrap_or(0.0);
        }
    }
    Ok(bytes * 8.0 / f64::max(weights, 1.0))
}

/// Options for a format: a preset's name, `auto=SIZE` in megabytes (`92M`), or `auto=BITS` a weight (`4.8`).
fn quant(format: &str, effort: &str) -> Vec<String> {
    let mut out = match format.split_once('=') {
        Some((auto, bits)) if bits.parse::<f64>().is_ok() => strings(&["--quant", auto, "--target-bpw", bits]),
        Some((auto, size)) => strings(&["--quant", auto, "--target-size", size]),
        None => strings(&["--quant", format]),
    };
    out.extend(strings(&["--effort", effort]));
    out
}

/// Those of a base, with balanced channels where text is read.
fn options(format: &str, effort: &str) -> Vec<String> {
    let mut out = quant(format, effort);
    if effort != "fast" {
        out.extend(strings(&["--balance", "yes"]));
    }
    out
}

fn eval_text() -> String {
    data::workspace().join("tests/data/quality/eval.txt").to_string_lossy().into_owned()
}

fn formats(desk: &Desk, base: &Path, effort: &str, formats: &[String]) -> Result<()> {
    let all = strings(&["q4", "q4l", "q5", "q6", "q8"]);
    let formats = if formats.is_empty() { &all } else { formats };
    println!("| format | effort | bits in blocks | MB | KL | p99 KL | top-1 | perplexity (float) | CPU s |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for format in formats {
        // Measuring needs text.
        let fast = (effort != "fast" && !format.starts_with("auto")).then_some("fast");
        for effort in fast.into_iter().chain([effort]) {
            let file = desk.path("formats.lpk");
            let (report, cpu) = pack(desk, base, &options(format, effort), &file)?;
            let n = verify(desk, &file, base, &strings(&["--text", &eval_text()]))?;
            println!(
                "| {format} | {effort} | {:.2} | {:.1} | {} | {} | {} | {} ({}) | {cpu:.0} |",
                block_bits(desk, &file)?,
                report["file_bytes"].as_f64().unwrap_or(0.0) / 1e6,
                number(&n["kl_mean"], 5),
                number(&n["kl_p99"], 3),
                number(&n["top1"], 4),
                number(&n["perplexity"], 3),
                number(&n["perplexity_float"], 3),
            );
        }
    }
    Ok(())
}

fn kv(desk: &Desk, base: &Path, quant: &str) -> Result<()> {
    let file = desk.path("kv.lpk");
    pack(desk, base, &strings(&["--quant", quant]), &file)?;
    println!("| KV cache | KL | p99 KL | top-1 |\n|---|---|---|---|");
    for kv in ["f32", "f16", "i8"] {
        let n = verify(desk, &file, base, &strings(&["--text", &eval_text(), "--kv", kv]))?;
        println!("| {kv} | {} | {} | {} |", number(&n["kl_mean"], 6), number(&n["kl_p99"], 4), number(&n["top1"], 4));
    }
    Ok(())
}

/// Texts that embeddings are compared on: short ones that people say, contexts of questions, and sentences of general
/// text.
fn texts() -> Result<Vec<String>> {
    let assets = data::shared().context("the assets are not here")?.join("assets");
    let mut texts = Vec::new();
    for (file, field, count) in [
        ("minilm-l6-embed/texts.jsonl", "text", 20),
        ("minilm-intent/test.public.jsonl", "text", 60),
        ("minilm-qa/test.public.jsonl", "context", 60),
    ] {
        let lines = std::fs::read_to_string(assets.join(file))?;
        for line in lines.lines().take(count) {
            let line: Value = serde_json::from_str(line)?;
            texts.push(line[field].as_str().context("a text")?.to_owned());
        }
    }
    let general = std::fs::read_to_string(data::workspace().join("tools/lora-pack/src/calibrate/general.txt"))?;
    let plain = general.lines().filter(|l| !l.starts_with('{'));
    texts.extend(plain.flat_map(|l| l.split(". ")).filter(|s| (20..300).contains(&s.len())).map(ToOwned::to_owned));
    texts.truncate(200);
    Ok(texts)
}

fn sentences(base: &Path, formats: &[String]) -> Result<()> {
    let desk = Desk::new(base)?;
    let requests: Vec<Value> = texts()?.iter().map(|t| serde_json::json!({ "text": t })).collect();
    let file = desk.path("texts.jsonl");
    std::fs::write(&file, requests.iter().map(|r| format!("{r}\n")).collect::<String>())?;
    let embed = |format: &str| -> Result<(Vec<Vec<f64>>, f64)> {
        let lpk = desk.path("sentences.lpk");
        let (report, _) = pack(&desk, base, &strings(&["--quant", format]), &lpk)?;
        let done = plain(desk.succeed(&desk.run("embed", &lpk).arg("--file").arg(&file).arg("--json")))?;
        let vector = |line: &str| -> Result<Vec<f64>> {
            let line: Value = serde_json::from_str(line)?;
            let list = line["embedding"].as_array().context("an embedding")?;
            Ok(list.iter().filter_map(Value::as_f64).collect())
        };
        let vectors = done.stdout.lines().map(vector).collect::<Result<_>>()?;
        Ok((vectors, report["file_bytes"].as_f64().unwrap_or(0.0) / 1e6))
    };
    let (float, _) = embed("f32")?;
    println!("| format | MB | sentences | lowest cosine | mean |\n|---|---|---|---|---|");
    let usual = strings(&["q8"]);
    for format in if formats.is_empty() { &usual } else { formats } {
        let (packed, size) = embed(format)?;
        let cosines: Vec<f64> = float.iter().zip(&packed).map(|(a, b)| cosine(a, b)).collect();
        let lowest = cosines.iter().copied().fold(1.0, f64::min);
        let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
        println!("| {format} | {size:.1} | {} | {lowest:.5} | {mean:.5} |", cosines.len());
    }
    Ok(())
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// llama.cpp's types, with an importance matrix or without.
const PEERS: [(&str, bool); 10] = [
    ("q4_0", false),
    ("iq4_nl", false),
    ("iq4_nl", true),
    ("q4_k_m", false),
    ("q4_k_m", true),
    ("q5_k_m", false),
    ("q5_k_m", true),
    ("q6_k", false),
    ("q6_k", true),
    ("q8_0", false),
];

/// The numbers of a comparison as cells of a table.
fn cells(n: &Value) -> String {
    format!("{} | {} | {}", number(&n["kl_mean"], 5), number(&n["kl_p99"], 3), number(&n["top1"], 4))
}

fn peers(desk: &Desk, base: &Path, bench: &Path, effort: &str, formats: &[String]) -> Result<()> {
    let (whole, float) = (desk.path("whole.gguf"), desk.path("whole.lpk"));
    let call = desk.pack("export").arg("--base").arg(base).args(["--to", "gguf", "--type", "f32"]);
    plain(desk.produce(call, &whole))?;
    pack(desk, base, &strings(&["--quant", "f32"]), &float)?;
    let text = data::workspace().join("tools/lora-pack/src/calibrate/general.txt");
    let ids = token_lists(desk, &float)?;
    let reference = {
        let inputs: Vec<Ids> = ids.iter().map(|ids| Ids { ids: ids.clone(), ..Ids::default() }).collect();
        let outputs = plain(desk.raw(&float, &inputs, &[]))?;
        let rows = |i| -> Result<Vec<f32>> { Ok(outputs.get(&format!("{i}.logits"))?.data.clone()) };
        (0..ids.len()).map(rows).collect::<Result<Vec<_>>>()?.concat()
    };
    let lists = desk.path("lists.json");
    std::fs::write(&lists, serde_json::to_string(&ids)?)?;
    // The weights of a file, run as floats.
    let weights = |file: &Path| -> Result<Value> {
        let read = desk.path("read.lpk");
        pack(desk, file, &strings(&["--quant", "f32", "--no-tokenizer"]), &read)?;
        verify(desk, &read, base, &strings(&["--text", &eval_text()]))
    };
    println!(
        "| file | effort or importance | MB | KL, weights alone | p99 | top-1 | KL, all in | p99 | top-1 | decode, tokens/s | ours beside it |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let mut own: Vec<Own> = Vec::new();
    let all = strings(&["q4", "q5", "q6", "q8"]);
    for format in if formats.is_empty() { &all } else { formats } {
        let file = desk.path(&format!("own-{format}.lpk"));
        let (report, _) = pack(desk, base, &options(format, effort), &file)?;
        let run = verify(desk, &file, base, &strings(&["--text", &eval_text(), "--kv", "f16"]))?;
        let size = report["file_bytes"].as_f64().unwrap_or(0.0) / 1e6;
        println!("| {format} | {effort} | {size:.1} | {} | {} | – | – |", cells(&weights(&file)?), cells(&run));
        own.push(Own { format: format.clone(), megabytes: size, file });
    }
    for (kind, importance) in PEERS {
        let (quantized, logits) = (desk.path("quantized.gguf"), desk.path("logits.f32"));
        let mut call = std::process::Command::new(bench);
        call.arg("quantize").args([&whole, &quantized]).args(["--type", kind]);
        if importance {
            call.arg("--importance").arg(&text);
        }
        run_bench(call)?;
        let mut call = std::process::Command::new(bench);
        call.arg("logits").arg(&quantized).arg("--ids").arg(&lists).arg("--out").arg(&logits);
        run_bench(call)?;
        let bytes = std::fs::read(&logits)?;
        let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let run = divergence(&reference, &values, ids.iter().map(Vec::len).sum())?;
        let size = std::fs::metadata(&quantized)?.len() as f64 / 1e6;
        println!(
            "| {kind} | {} | {size:.1} | {} | {} | {} |",
            if importance { "yes" } else { "" },
            cells(&weights(&quantized)?),
            cells(&run),
            decode(bench, &own, &quantized, size)?,
        );
    }
    Ok(())
}

/// A pack of ours that peers are compared with.
struct Own {
    format: String,
    megabytes: f64,
    file: PathBuf,
}

/// Speed of a peer's file, and of the largest pack of ours that is no larger (or the smallest), by turns: one thread, CPU time.
fn decode(bench: &Path, own: &[Own], peer: &Path, megabytes: f64) -> Result<String> {
    let fits = own.iter().filter(|o| o.megabytes <= megabytes).max_by(|a, b| a.megabytes.total_cmp(&b.megabytes));
    let smallest = || own.iter().min_by(|a, b| a.megabytes.total_cmp(&b.megabytes));
    let ours = fits.or_else(smallest).context("no pack of ours")?;
    let mut call = std::process::Command::new(bench);
    call.arg("compare").arg(&ours.file).arg(peer).args(["--prompt", "1", "--depth", "0", "--rounds", "7", "--json"]);
    let report: Value = serde_json::from_slice(&run_bench(call)?)?;
    let rows = report["rows"].as_array().context("rows of the comparison")?;
    let row = rows.iter().find(|r| r["test"].as_str().is_some_and(|t| t.starts_with("decode"))).context("decode")?;
    Ok(format!(
        "{} | {}: {} (×{})",
        number(&row["peer_tokens_per_second"]["median"], 1),
        ours.format,
        number(&row["tokens_per_second"]["median"], 1),
        number(&row["ratio"]["median"], 2),
    ))
}

/// What a call printed.
fn run_bench(mut call: std::process::Command) -> Result<Vec<u8>> {
    let done = call.output().with_context(|| format!("cannot run {}", call.get_program().display()))?;
    if !done.status.success() {
        bail!("{}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(done.stdout)
}

/// The evaluation text as token ids, a list a line.
fn token_lists(desk: &Desk, lpk: &Path) -> Result<Vec<Vec<u32>>> {
    let text = std::fs::read_to_string(eval_text())?;
    let mut out = Vec::new();
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        let done = plain(desk.succeed(&desk.run("tokenize", lpk).arg(line).arg("--json")))?;
        let tokens: Value = serde_json::from_str(&done.stdout)?;
        let ids = tokens["ids"].as_array().context("token ids")?;
        out.push(ids.iter().filter_map(Value::as_u64).map(u32::try_from).collect::<Result<_, _>>()?);
    }
    Ok(out)
}

/// KL of rows of logits to others, and how often the first choice is the same, as `verify` gives them.
fn divergence(float: &[f32], other: &[f32], rows: usize) -> Result<Value> {
    if float.len() != other.len() || rows == 0 || !float.len().is_multiple_of(rows) {
        bail!("{} logits beside {} in {rows} rows", other.len(), float.len());
    }
    let log_softmax = |row: &[f32]| -> Vec<f64> {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from(x - top).exp()).sum();
        row.iter().map(|x| f64::from(x - top) - sum.ln()).collect()
    };
    let best = |row: &[f32]| row.iter().enumerate().fold(0, |best, (i, x)| if *x > row[best] { i } else { best });
    let width = float.len() / rows;
    let (mut kl, mut same) = (Vec::with_capacity(rows), 0);
    for (a, b) in float.chunks_exact(width).zip(other.chunks_exact(width)) {
        let (p, q) = (log_softmax(a), log_softmax(b));
        kl.push(p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>());
        same += usize::from(best(a) == best(b));
    }
    kl.sort_by(f64::total_cmp);
    Ok(serde_json::json!({"kl_mean": kl.iter().sum::<f64>() / rows as f64, "kl_p99": kl[(rows * 99).div_ceil(100) - 1],
        "top1": same as f64 / rows as f64}))
}

fn adapters(effort: &str, format: &str, limit: usize, names: &[String]) -> Result<()> {
    println!(
        "| adapter | format | bits in blocks | task KL | top-1 | retention | projection | right, float | right, packed | CPU s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for asset in
        ASSETS.iter().filter(|a| a.verb != Verb::Embed && (names.is_empty() || names.iter().any(|n| n == a.name)))
    {
        match row(asset, effort, format, limit) {
            Ok(line) => println!("{line}"),
            Err(e) => println!("| {} | failed: {e:#} |", asset.name),
        }
    }
    Ok(())
}

fn row(asset: &Asset, effort: &str, format: &str, limit: usize) -> Result<String> {
    let shared = data::shared().context("the assets are not here")?.join("assets");
    let folder = shared.join(asset.name);
    let base = match shared.join(asset.base).join("config.json").is_file() {
        true => shared.join(asset.base),
        false => data::bases().context("the bases are not built")?.join(asset.base),
    };
    let desk = Desk::new(&base)?;
    let adapter =
        if asset.adapter { vec!["--adapter".into(), folder.to_string_lossy().into_owned()] } else { Vec::new() };
    let tests = folder.join("test.public.jsonl");
    let (float, packed) = (desk.path("float.lpk"), desk.path("packed.lpk"));
    let named = [adapter.clone(), labels(&folder)?].concat();
    pack(&desk, &base, &[named.clone(), strings(&["--quant", "f32"])].concat(), &float)?;
    let calib = folder.join("calib.txt").to_string_lossy().into_owned();
    let options = [named, quant(format, effort), strings(&["--calib", &calib])].concat();
    let (_, cpu) = pack(&desk, &base, &options, &packed)?;
    let text = tests.to_string_lossy().into_owned();
    let n = verify(&desk, &packed, &base, &[adapter, strings(&["--text", &text])].concat())?;
    let right = |file: &Path| -> Result<String> {
        let a = plain(answers(&desk, file, asset.verb, &tests, limit))?;
        Ok(format!("{}/{}", a.right, a.count))
    };
    Ok(format!(
        "| {} | {format} | {:.2} | {} | {} | {} | {} | {} | {} | {cpu:.0} |",
        asset.name,
        block_bits(&desk, &packed)?,
        number(&n["kl_mean"], 5),
        number(&n["top1"], 4),
        number(&n["retention"], 4),
        number(&n["projection"], 3),
        right(&float)?,
        right(&packed)?,
    ))
}

/// A copy of a base with its block weights off any grid.
fn dithered(base: &Path, out: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(out)?;
    for entry in std::fs::read_dir(base)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "json" || e == "jinja" || e == "txt") && path.is_file() {
            std::fs::copy(&path, out.join(path.file_name().context("a name")?))?;
        }
    }
    let bytes = std::fs::read(base.join("model.safetensors")).context("only single-file bases can be dithered")?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let mut names: Vec<String> = tensors.names().iter().map(ToString::to_string).collect();
    names.sort();
    let mut state = SEED;
    let mut made: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for name in names {
        let view = tensors.tensor(&name)?;
        let block = name.contains("layer") && view.shape().len() == 2;
        let data = match (block, view.dtype()) {
            (true, Dtype::BF16) => {
                let bits = |b: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
                let mut w: Vec<f32> = view.data().chunks_exact(2).map(bits).collect();
                dither(&mut w, &mut state);
                w.iter().flat_map(|v| to_bf16(*v).to_le_bytes()).collect()
            }
            (true, Dtype::F32) => {
                let value = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                let mut w: Vec<f32> = view.data().chunks_exact(4).map(value).collect();
                dither(&mut w, &mut state);
                w.iter().flat_map(|v| v.to_le_bytes()).collect()
            }
            _ => view.data().to_vec(),
        };
        made.push((name, view.dtype(), view.shape().to_vec(), data));
    }
    let views = made
        .iter()
        .map(|(name, dtype, shape, data)| Ok((name.clone(), TensorView::new(*dtype, shape.clone(), data)?)))
        .collect::<Result<Vec<_>>>()?;
    safetensors::serialize_to_file(views, None, &out.join("model.safetensors"))?;
    Ok(out.into())
}

fn dither(w: &mut [f32], state: &mut u64) {
    for group in w.chunks_mut(32) {
        let (low, high) = group.iter().fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
        let step = (high - low) / 15.0;
        for v in group {
            // SplitMix64.
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = *state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let uniform = ((z ^ (z >> 31)) >> 40) as f32 / 16_777_216.0 - 0.5;
            *v += step * uniform;
        }
    }
}

/// To nearest, ties to even.
fn to_bf16(v: f32) -> u16 {
    let bits = v.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}
