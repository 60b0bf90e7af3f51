//! A PEFT adapter folder, `adapter_config.json` and the weights beside it, or a LoRA adapter as GGUF.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{BaseModel, SourceError, TensorIndex, TokenizerFiles, gguf, json, pickle};

/// The config's file name.
pub const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PICKLE: &str = "adapter_model.bin";

/// An opened adapter: its config parsed as JSON, its weights mapped. What they mean is [`merge`](crate::merge)'s
/// business.
#[derive(Debug)]
pub struct AdapterFiles {
    /// The folder that holds the config, or the GGUF file.
    pub dir: PathBuf,
    /// The path of `adapter_config.json` (or of the GGUF file), for messages.
    pub config_path: PathBuf,
    /// The parsed config: an object.
    pub config: Value,
    /// The config's bytes, for a digest.
    pub config_bytes: Vec<u8>,
    /// The path of the weights file.
    pub weights_path: PathBuf,
    /// All stored tensors.
    pub tensors: TensorIndex,
    /// A tokenizer of its own, where the adapter brings one.
    pub tokenizer: TokenizerFiles,
}

impl AdapterFiles {
    /// Opens `dir`, `dir/name` or `dir#name` (a named adapter of a folder that `save_pretrained` wrote), the
    /// weights file in one, or a GGUF file, which only the `base` makes readable.
    pub fn open(path: &Path, base: Option<&BaseModel>) -> Result<Self, SourceError> {
        if path.is_file() && gguf::is_gguf(path) {
            let (config, tensors) = gguf::adapter::open(path, base.map(|b| &b.config))?;
            if tensors.is_empty() {
                return Err(SourceError::file(path, "no tensors in it"));
            }
            return Ok(Self {
                dir: path.to_owned(),
                config_path: path.to_owned(),
                config_bytes: config.to_string().into_bytes(),
                config,
                weights_path: path.to_owned(),
                tensors,
                tokenizer: TokenizerFiles::default(),
            });
        }
        let dir = resolve(path)?;
        let config_path = dir.join(CONFIG);
        let config_bytes = json::read_bytes(&config_path, json::MAX_CONFIG)?;
        let config = json::parse(&config_path, &config_bytes)?;
        if !config.is_object() {
            return Err(SourceError::file(&config_path, "not a JSON object"));
        }
        let (weights_path, tensors) = open_weights(&dir)?;
        if tensors.is_empty() {
            return Err(SourceError::file(&weights_path, "no tensors in it"));
        }
        let tokenizer = TokenizerFiles::read(&dir)?;
        Ok(Self { dir, config_path, config, config_bytes, weights_path, tensors, tokenizer })
    }
}

fn resolve(path: &Path) -> Result<PathBuf, SourceError> {
    if path.join(CONFIG).exists() {
        return Ok(path.to_owned());
    }
    if path.is_file() {
        return Ok(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned());
    }
    if !path.exists()
        && let Some((dir, name)) = path.to_str().and_then(|p| p.rsplit_once('#'))
    {
        let plain = !name.is_empty() && name != ".." && !name.contains(['/', '\\']);
        let named = Path::new(dir).join(name);
        if plain && named.join(CONFIG).exists() {
            return Ok(named);
        }
        return Err(SourceError::file(&named, format!("no adapter here: {CONFIG} is missing")));
    }
    let mut named: Vec<String> = std::fs::read_dir(path)
        .map_err(|e| SourceError::io(path, e))?
        .flatten()
        .filter(|e| e.path().join(CONFIG).exists())
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    named.sort();
    let mut problem = format!("{CONFIG} is missing");
    if !named.is_empty() {
        problem += &format!("; adapters in sub-folders: {} (name one as DIR#NAME)", named.join(", "));
    }
    Err(SourceError::file(path, problem))
}

fn open_weights(dir: &Path) -> Result<(PathBuf, TensorIndex), SourceError> {
    let path = dir.join(WEIGHTS);
    if path.exists() {
        let tensors = TensorIndex::open(&path)?;
        return Ok((path, tensors));
    }
    let path = dir.join(PICKLE);
    if path.exists() {
        let tensors = pickle::open(&path)?;
        return Ok((path, tensors));
    }
    Err(SourceError::file(dir, format!("{WEIGHTS} is missing (and there is no {PICKLE} either)")))
}
