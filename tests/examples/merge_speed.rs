//! Speed and memory of merging and quantizing a model of about a billion weights, beside a plain copy of its file.
//!
//! ```text
//! cargo run --release -p conformance --example merge_speed [FOLDER [FORMAT…]]
//! ```
//! Makes a synthetic model in FOLDER (default: a temporary one; 2.5 GB): the shapes of Llama 3.2 1B in bf16, an
//! adapter of rank 16 on all its linear layers, and one of rank 8 (`adapter8`) that only stays there for other measurements.
//! Then `lora-pack merge` runs in each FORMAT (default q8 q4 f16) with the first. With `none` for FORMAT the model is made, and nothing else.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use conformance::tools::tools;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

const LAYERS: usize = 16;
const HIDDEN: usize = 2048;
const INNER: usize = 8192;
const KV: usize = 512;
const VOCAB: usize = 128_256;
/// The adapters' folders and ranks.
const ADAPTERS: [(&str, usize); 2] = [("adapter", 16), ("adapter8", 8)];

/// The linear layers of a block: name, outputs, inputs.
const LINEARS: [(&str, usize, usize); 7] = [
    ("self_attn.q_proj", HIDDEN, HIDDEN),
    ("self_attn.k_proj", KV, HIDDEN),
    ("self_attn.v_proj", KV, HIDDEN),
    ("self_attn.o_proj", HIDDEN, HIDDEN),
    ("mlp.gate_proj", INNER, HIDDEN),
    ("mlp.up_proj", INNER, HIDDEN),
    ("mlp.down_proj", HIDDEN, INNER),
];

type Shapes = Vec<(String, Vec<usize>)>;

fn base_shapes() -> Shapes {
    let mut shapes =
        vec![("model.embed_tokens.weight".into(), vec![VOCAB, HIDDEN]), ("model.norm.weight".into(), vec![HIDDEN])];
    for layer in 0..LAYERS {
        let at = format!("model.layers.{layer}");
        shapes.push((format!("{at}.input_layernorm.weight"), vec![HIDDEN]));
        shapes.push((format!("{at}.post_attention_layernorm.weight"), vec![HIDDEN]));
        shapes.extend(LINEARS.map(|(name, out, inner)| (format!("{at}.{name}.weight"), vec![out, inner])));
    }
    shapes
}

fn adapter_shapes(rank: usize) -> Shapes {
    let mut shapes = Vec::new();
    for layer in 0..LAYERS {
        for (name, out, inner) in LINEARS {
            let at = format!("base_model.model.model.layers.{layer}.{name}");
            shapes.push((format!("{at}.lora_A.weight"), vec![rank, inner]));
            shapes.push((format!("{at}.lora_B.weight"), vec![out, rank]));
        }
    }
    shapes
}

/// Writes random bf16 tensors, roughly normal with deviation 0.02.
fn write(path: &Path, shapes: &Shapes) -> Result<()> {
    let mut header = Map::new();
    let mut at = 0;
    for (name, shape) in shapes {
        let end = at + 2 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let header = Value::from(header).to_string();
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut chunk = Vec::with_capacity(1 << 16);
    while at > 0 {
        chunk.clear();
        for _ in 0..(at / 2).min(1 << 15) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let sum = (0..4).map(|i| (state >> (16 * i) & 0xffff) as f32).sum::<f32>();
            let value = (sum - 131_070.0) / 37_837.0 * 0.02;
            chunk.extend_from_slice(&((value.to_bits() >> 16) as u16).to_le_bytes());
        }
        file.write_all(&chunk)?;
        at -= chunk.len();
    }
    file.into_inner()?.sync_all()?;
    Ok(())
}

fn make(folder: &Path) -> Result<()> {
    let base = folder.join("base");
    if base.join("config.json").exists() {
        return Ok(());
    }
    std::fs::create_dir_all(&base)?;
    write(&base.join("model.safetensors"), &base_shapes())?;
    let targets: Vec<&str> = LINEARS.iter().filter_map(|(name, ..)| name.split('.').nth(1)).collect();
    for (name, rank) in ADAPTERS {
        let adapter = folder.join(name);
        std::fs::create_dir_all(&adapter)?;
        write(&adapter.join("adapter_model.safetensors"), &adapter_shapes(rank))?;
        let config = json!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 32, "target_modules": targets});
        std::fs::write(adapter.join("adapter_config.json"), config.to_string())?;
    }
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": true,
        "vocab_size": VOCAB, "torch_dtype": "bfloat16"
    });
    std::fs::write(base.join("config.json"), config.to_string())?;
    Ok(())
}

/// Copies a file in the way of a simple program: read a megabyte, write it, sync at the end.
fn copy(from: &Path, to: &Path) -> Result<Duration> {
    let start = Instant::now();
    let mut out = BufWriter::with_capacity(1 << 20, File::create(to)?);
    std::io::copy(&mut std::io::BufReader::with_capacity(1 << 20, File::open(from)?), &mut out)?;
    out.into_inner()?.sync_all()?;
    Ok(start.elapsed())
}

/// Reads a file and hashes it, on one thread.
fn hash(path: &Path) -> Result<Duration> {
    let start = Instant::now();
    let (mut file, mut buffer, mut hasher) = (File::open(path)?, vec![0; 1 << 20], Sha256::new());
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    std::hint::black_box(hasher.finalize());
    Ok(start.elapsed())
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let temporary = tempfile::tempdir()?;
    let folder = args.next().map_or_else(|| temporary.path().to_path_buf(), Into::into);
    let formats: Vec<String> = args.collect();
    let formats = if formats.is_empty() { ["q8", "q4", "f16"].map(String::from).to_vec() } else { formats };
    make(&folder)?;
    if formats == ["none"] {
        return Ok(());
    }
    let weights: usize = base_shapes().iter().map(|(_, s)| s.iter().product::<usize>()).sum();
    let stored = folder.join("base/model.safetensors");
    let bytes = std::fs::metadata(&stored)?.len() as f64;
    println!(
        "{:.3} G weights, {:.2} GB in bf16; largest tensor {:.0} MB in bf16",
        weights as f64 / 1e9,
        bytes / 1e9,
        (VOCAB * HIDDEN * 2) as f64 / 1e6
    );
    println!("run       |  wall s |   CPU s | GB/s of bf16 read | file MB | peak MB");
    for format in &formats {
        // A copy before each run: the two are measured under the same load.
        let to = folder.join("copy");
        let wall = copy(&stored, &to)?;
        println!(
            "{:<9} | {:>7.2} | {:>7} | {:>17.3} | {:>7.0} | {:>7}",
            "copy",
            wall.as_secs_f64(),
            "",
            bytes / wall.as_secs_f64() / 1e9,
            bytes / 1e6,
            ""
        );
        std::fs::remove_file(&to)?;
        // What every merge has to do besides: the file is bound to its base by its hash.
        let wall = hash(&stored)?;
        println!(
            "{:<9} | {:>7.2} | {:>7} | {:>17.3} | {:>7} | {:>7}",
            "SHA-256",
            wall.as_secs_f64(),
            "",
            bytes / wall.as_secs_f64() / 1e9,
            "",
            ""
        );
        let out = folder.join("out.lpk");
        let call = tools().pack("merge", &folder).args([
            "--base",
            "base",
            "--adapter",
            "adapter",
            "--no-tokenizer",
            "--quant",
            format,
            "-o",
        ]);
        let done = call.arg(&out).wall(Duration::from_secs(3600)).run()?;
        ensure!(done.code == Some(0), "{}: {}", done.line, done.stderr);
        let size = std::fs::metadata(&out).context("the packed file")?.len() as f64;
        let (wall, cpu) = (done.wall.as_secs_f64(), done.cpu.as_secs_f64());
        println!(
            "merge {format:<3} | {wall:>7.2} | {cpu:>7.2} | {:>17.3} | {:>7.0} | {:>7.0}",
            bytes / wall / 1e9,
            size / 1e6,
            done.peak as f64 / 1e6
        );
        std::fs::remove_file(&out)?;
    }
    Ok(())
}
