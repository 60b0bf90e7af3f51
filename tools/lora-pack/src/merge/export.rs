//! The merged model for other tools: as a Hugging Face folder, or as a GGUF file.

pub mod gguf;
mod metadata;
mod vocabulary;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use half::{bf16, f16};
use serde_json::{Map, Value, json};

use super::Merged;
use super::recipe::Origin;
use crate::source::arrange::Arrangement;
use crate::source::{Dtype, TensorView, quote};

/// Files that belong to a tokenizer, whoever made it.
const TOKENIZER_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
];

/// One tensor to be written.
struct Item {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: u64,
}

/// Writes `out/model.safetensors` with its configs and tokenizer. Unchanged tensors keep their bytes; changed ones are
/// computed in f32 and rounded once, to `dtype`, else to the type that the base stores them in. `out` must not exist:
/// the folder appears under its name only when it is complete. `labels` go into the config.
pub fn safetensors(merged: &Merged, out: &Path, dtype: Option<Dtype>, labels: Option<&[String]>) -> Result<()> {
    if out.exists() {
        bail!("{}: exists already", out.display());
    }
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new().prefix(".lora-pack-export-").tempdir_in(parent)?;
    let dir = temporary.path();
    write_weights(merged, &dir.join("model.safetensors"), dtype)?;
    write_json(&dir.join("config.json"), &config(merged, dtype, labels)?)?;
    if let Some(generation) = &merged.base().generation_config {
        write_json(&dir.join("generation_config.json"), generation)?;
    }
    for from in &merged.tokenizer().dirs {
        for name in TOKENIZER_FILES {
            let source = from.join(name);
            if source.is_file() {
                std::fs::copy(&source, dir.join(name)).with_context(|| source.display().to_string())?;
            }
        }
    }
    write_tokenizer(merged, dir)?;
    let done: PathBuf = temporary.keep();
    std::fs::rename(&done, out).with_context(|| out.display().to_string()).inspect_err(|_| {
        // Best effort: the error that matters is the rename's.
        let _ = std::fs::remove_dir_all(&done);
    })
}

/// What no file of the base holds: a tokenizer out of GGUF.
fn write_tokenizer(merged: &Merged, dir: &Path) -> Result<()> {
    let files = merged.tokenizer();
    if let Some(json) = files.tokenizer_json.as_ref().filter(|_| !dir.join("tokenizer.json").exists()) {
        std::fs::write(dir.join("tokenizer.json"), json)?;
    }
    if let Some(config) = files.tokenizer_config.as_ref().filter(|_| !dir.join("tokenizer_config.json").exists()) {
        let mut config = config.clone();
        if let (Some(map), Some(template)) = (config.as_object_mut(), &files.chat_template) {
            map.insert("chat_template".into(), template.as_str().into());
        }
        write_json(&dir.join("tokenizer_config.json"), &config)?;
    }
    Ok(())
}

fn config(merged: &Merged, dtype: Option<Dtype>, labels: Option<&[String]>) -> Result<Value> {
    let mut config = merged.config().clone();
    if let (Some(map), Some(labels)) = (config.as_object_mut(), labels) {
        let head = map.get("num_labels").and_then(Value::as_u64);
        if let Some(head) = head.filter(|n| *n != labels.len() as u64) {
            bail!("--labels names {} labels, the head has {head}", labels.len());
        }
        let id2label: Map<String, Value> = (0..).zip(labels).map(|(i, l)| (i.to_string(), json!(l))).collect();
        let label2id: Map<String, Value> = (0..).zip(labels).map(|(i, l)| (l.clone(), json!(i))).collect();
        map.insert("id2label".into(), id2label.into());
        map.insert("label2id".into(), label2id.into());
    }
    if let (Some(map), Some(dtype)) = (config.as_object_mut(), dtype) {
        let name = match dtype {
            Dtype::F16 => "float16",
            Dtype::BF16 => "bfloat16",
            _ => "float32",
        };
        let key = if map.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        map.insert(key.into(), name.into());
    }
    Ok(config)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    std::fs::write(path, text).with_context(|| path.display().to_string())
}

fn items(merged: &Merged, dtype: Option<Dtype>) -> Result<Vec<Item>> {
    let stored = merged.base().tensors();
    let usual = stored.iter().find(|t| t.dtype.is_float()).map_or(Dtype::F32, |t| t.dtype);
    let item = |name: &str| -> Result<Item> {
        let shape = merged.shape(name).unwrap_or_default().to_vec();
        let own = match merged.recipes.get(name).map(|r| &r.origin) {
            Some(Origin::Adapter { .. }) => stored.get(name).map_or(usual, |t| t.dtype),
            Some(Origin::Base(base)) => stored.get(base).map_or(usual, |t| t.dtype),
            None => merged.names.origin(name).and_then(|o| stored.get(o)).map_or(usual, |t| t.dtype),
        };
        // Blocks have no place in safetensors.
        let own = if own.is_block() { Dtype::F32 } else { own };
        let dtype = dtype.filter(|_| own.is_float()).unwrap_or(own);
        let elements: usize = shape.iter().product();
        Ok(Item { name: name.to_owned(), dtype, bytes: elements as u64 * dtype.size() as u64, shape })
    };
    merged.names().map(item).collect()
}

fn write_weights(merged: &Merged, path: &Path, dtype: Option<Dtype>) -> Result<()> {
    let items = items(merged, dtype)?;
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut at = 0;
    for i in &items {
        let end = at + i.bytes;
        header.insert(i.name.clone(), json!({"dtype": i.dtype.name(), "shape": i.shape, "data_offsets": [at, end]}));
        at = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for item in &items {
        write_tensor(merged, item, &mut file)?;
    }
    let file = file.into_inner()?;
    file.sync_all()?;
    Ok(())
}

fn write_tensor(merged: &Merged, item: &Item, file: &mut impl Write) -> Result<()> {
    let unchanged = !merged.recipes.contains_key(&item.name);
    let stored = merged.names.origin(&item.name).and_then(|o| merged.base().tensors().get(o));
    let plain = |s: &TensorView| s.is_plain() && s.dtype == item.dtype && s.arrangement == Arrangement::Same;
    if let Some(stored) = stored.filter(|s| unchanged && plain(s)) {
        file.write_all(stored.bytes)?;
        return Ok(());
    }
    let values = merged.tensor_f32(&item.name)?;
    for chunk in values.chunks(1 << 16) {
        let bytes: Vec<u8> = match item.dtype {
            Dtype::F32 => chunk.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Dtype::BF16 => chunk.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
            Dtype::F64 => chunk.iter().flat_map(|x| f64::from(*x).to_le_bytes()).collect(),
            Dtype::F16 => {
                if let Some(x) = chunk.iter().find(|x| f16::from_f32(**x).is_infinite()) {
                    bail!("tensor {}: {x} is too large for F16; export as f32 or bf16", quote(&item.name));
                }
                chunk.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()
            }
            other => bail!("tensor {}: cannot be written as {}; choose f32", quote(&item.name), other.name()),
        };
        file.write_all(&bytes)?;
    }
    Ok(())
}
