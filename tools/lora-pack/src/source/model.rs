//! A base model: a Hugging Face folder, one `.safetensors` file with `config.json` beside it, a GGUF file, or a pack.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::bnb::{self, Quantization, RoundTrip};
use super::packed::{self, Packed};
use super::{SourceError, TensorIndex, TokenizerFiles, gguf, index, json};

/// Bytes read between two releases of mapped pages.
const RELEASE_EVERY: usize = 64 << 20;
/// Bytes of a tensor between two counts of them.
const HASHED_AT_ONCE: usize = 4 << 20;

/// An opened base model: its configs read, its weights mapped.
#[derive(Debug)]
pub struct BaseModel {
    /// The folder, or the GGUF file or pack.
    pub dir: PathBuf,
    /// `config.json`; an object with a `model_type`.
    pub config: Value,
    /// `generation_config.json`.
    pub generation_config: Option<Value>,
    /// Tokenizer and chat template.
    pub tokenizer: TokenizerFiles,
    tensors: TensorIndex,
    packed: Option<Packed>,
    fingerprint: OnceLock<[u8; 32]>,
}

impl BaseModel {
    /// Opens a model folder, the single weights file in one, a GGUF file, or a pack.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let meta = std::fs::metadata(path).map_err(|e| SourceError::io(path, e))?;
        if meta.is_file() && gguf::is_gguf(path) {
            let gguf::Parts { config, tokenizer, tensors } = gguf::open(path)?;
            if tensors.is_empty() {
                return Err(SourceError::file(path, "the file has no tensors"));
            }
            return Ok(Self {
                dir: path.to_owned(),
                config,
                generation_config: None,
                tokenizer,
                tensors,
                packed: None,
                fingerprint: OnceLock::new(),
            });
        }
        if meta.is_file() && packed::is_packed(path) {
            let parts = packed::open(path)?;
            return Ok(Self {
                dir: path.to_owned(),
                config: parts.config,
                generation_config: parts.generation_config,
                tokenizer: parts.tokenizer,
                tensors: parts.tensors,
                packed: Some(parts.packed),
                fingerprint: parts.fingerprint.into(),
            });
        }
        let (dir, file) = if meta.is_dir() {
            (path.to_owned(), None)
        } else {
            let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            (dir.to_owned(), Some(path.to_owned()))
        };
        let config = read_config(&dir)?;
        let mut tensors = match file {
            Some(file) => TensorIndex::open(&file)?,
            None => open_weights(&dir)?,
        };
        bnb::adopt(&mut tensors, config.get("model_type").and_then(Value::as_str).unwrap_or_default())?;
        if tensors.is_empty() {
            return Err(SourceError::file(&dir, "the weights file has no tensors"));
        }
        Ok(Self {
            config,
            generation_config: json::read_if_there(&dir.join("generation_config.json"))?,
            tokenizer: TokenizerFiles::read(&dir)?,
            tensors,
            packed: None,
            dir,
            fingerprint: OnceLock::new(),
        })
    }

    /// All stored tensors.
    pub fn tensors(&self) -> &TensorIndex {
        &self.tensors
    }

    /// The pack, where the base is one.
    pub fn packed(&self) -> Option<&Packed> {
        self.packed.as_ref()
    }

    /// What it is called: the folder's or file's name; a pack keeps that of its base.
    pub fn name(&self) -> String {
        if let Some(name) = self.packed.as_ref().and_then(Packed::base_name) {
            return name.to_owned();
        }
        let path = self.dir.canonicalize().unwrap_or_else(|_| self.dir.clone());
        path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
    }

    /// `model_type` of the config.
    pub fn model_type(&self) -> &str {
        self.config.get("model_type").and_then(Value::as_str).unwrap_or_default()
    }

    /// Has these matrices quantized and dequantized whenever they are read.
    pub fn round_trip(&mut self, names: &[String], quantization: Quantization) {
        for name in names {
            let transposed = is_conv1d(self.model_type(), name.strip_suffix(".weight").unwrap_or(name));
            self.tensors.set_round_trip(name, RoundTrip { quantization, transposed });
        }
        self.fingerprint = OnceLock::new();
    }

    /// What stands between the stored weights and the numbers that are read, in words; `None` where nothing does.
    pub fn quantization(&self) -> Option<String> {
        let mut kinds = BTreeMap::<String, usize>::new();
        for t in self.tensors.iter() {
            let kind = match (&t.coded, t.round_trip) {
                (Some(coded), _) => format!("stored by bitsandbytes as {}", coded.describe()),
                (None, Some(trip)) => format!("quantized to {} and dequantized", trip.quantization),
                (None, None) => continue,
            };
            *kinds.entry(kind).or_default() += 1;
        }
        let parts: Vec<String> = kinds.into_iter().map(|(kind, count)| format!("{count} matrices {kind}")).collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    /// One stored tensor, widened.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, SourceError> {
        let tensor = self.tensors.get(name).ok_or_else(|| SourceError::tensor(&self.dir, name, "missing"))?;
        match &self.packed {
            Some(packed) => packed.read_f32(name, tensor.shape),
            None => tensor.read_f32(),
        }
    }

    /// SHA-256 over every tensor's name, dtype, shape and bytes, and the config: equal for equal models however they
    /// are sharded. Reads all weights on the first call.
    pub fn fingerprint(&self) -> [u8; 32] {
        *self.fingerprint.get_or_init(|| {
            let tensors: Vec<_> = self.tensors.iter().collect();
            let read = AtomicUsize::new(0);
            let parts: Vec<[u8; 32]> = tensors
                .par_iter()
                .map(|t| {
                    let mut hash = Sha256::new();
                    hash.update((t.name.len() as u64).to_le_bytes());
                    hash.update(t.name);
                    hash.update(t.dtype.name());
                    hash.update((t.shape.len() as u64).to_le_bytes());
                    for &d in t.shape {
                        hash.update((d as u64).to_le_bytes());
                    }
                    if let Some(coded) = &t.coded {
                        hash.update(coded.parts());
                    }
                    if let Some(trip) = t.round_trip {
                        hash.update(trip.quantization.to_string());
                    }
                    for piece in t.bytes.chunks(HASHED_AT_ONCE) {
                        hash.update(piece);
                        let before = read.fetch_add(piece.len(), Ordering::Relaxed);
                        if before % RELEASE_EVERY + piece.len() >= RELEASE_EVERY {
                            self.tensors.release();
                        }
                    }
                    hash.finalize().into()
                })
                .collect();
            let mut hash = Sha256::new();
            hash.update(self.config.to_string());
            for part in parts {
                hash.update(part);
            }
            hash.finalize().into()
        })
    }
}

/// Whether GPT-2's `Conv1D` holds this module, which stores its weight as (in × out). Decided by the architecture:
/// an adapter's `fan_in_fan_out` may be wrong and a square weight does not tell.
pub fn is_conv1d(model_type: &str, module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or(module);
    matches!(model_type, "gpt2" | "openai-gpt" | "imagegpt" | "decision_transformer")
        && matches!(last, "c_attn" | "c_proj" | "c_fc" | "q_attn")
}

fn read_config(dir: &Path) -> Result<Value, SourceError> {
    let path = dir.join("config.json");
    let mut config = json::read(&path)?;
    let Some(object) = config.as_object_mut() else {
        return Err(SourceError::file(&path, "not a JSON object"));
    };
    match object.get("model_type") {
        Some(Value::String(_)) => {}
        Some(_) => return Err(SourceError::field(&path, "model_type", "not a string")),
        None => return Err(SourceError::field(&path, "model_type", "missing: it names the architecture")),
    }
    if let Some(quantized) = object.get("quantization_config").filter(|v| !v.is_null()) {
        let method = quantized.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
        if method != "bitsandbytes" {
            let problem = format!(
                "the weights are quantized already ({method}); pass the float model that they came from or, to merge over \
                 what training saw, these weights dequantized (transformers: load it, model.dequantize(), save_pretrained)"
            );
            return Err(SourceError::field(&path, "quantization_config", problem));
        }
        // The tensors themselves say what they are, and what is made of them is float.
        object.remove("quantization_config");
    }
    Ok(config)
}

/// The files that transformers would load, in its order.
fn open_weights(dir: &Path) -> Result<TensorIndex, SourceError> {
    let single = dir.join("model.safetensors");
    if single.exists() {
        return TensorIndex::open(&single);
    }
    let sharded = dir.join("model.safetensors.index.json");
    if sharded.exists() {
        return index::open(&sharded);
    }
    let pickles = ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt"];
    let problem = match pickles.iter().find(|p| dir.join(p).exists()) {
        Some(pickle) => format!("only {pickle} is here; a pickle can run code, so convert the model to safetensors"),
        None if dir.join("adapter_config.json").exists() => {
            "no model.safetensors here, but an adapter_config.json: this is an adapter, not a base model".into()
        }
        None => "no weights: neither model.safetensors nor model.safetensors.index.json is here".into(),
    };
    Err(SourceError::file(dir, problem))
}
