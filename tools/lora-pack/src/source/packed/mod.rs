//! A packed model, presented as the checkpoint that it was made of.
//!
//! The config and the names come from the file's metadata, the values from its tensors: lowering the config once more
//! says which rows of which tensor are which checkpoint tensor. A quantized file gives the values that it runs with.

mod facts;
mod values;

use std::path::Path;

use lora_runtime::Model;
use lora_runtime::format::FileKind;
use serde_json::Value;

pub use facts::{CONFIG, GENERATION, TENSORS, encode};
pub use values::Packed;

use super::map::MappedFile;
use super::{SourceError, TensorIndex, TokenizerFiles};
use crate::calibrate::balance;

/// What a base model is made of.
#[derive(Debug)]
pub struct Parts {
    /// As `config.json`.
    pub config: Value,
    /// As `generation_config.json`.
    pub generation_config: Option<Value>,
    /// The chat template; the tokenizer itself is compiled.
    pub tokenizer: TokenizerFiles,
    /// Names and shapes.
    pub tensors: TensorIndex,
    /// The values.
    pub packed: Packed,
    /// The fingerprint of the base behind it.
    pub fingerprint: [u8; 32],
}

/// Whether a file begins like a pack.
pub fn is_packed(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 8];
    let read = std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut magic));
    read.is_ok() && magic == lora_runtime::format::MAGIC
}

/// Opens a model file, of a bundle the base.
pub fn open(path: &Path) -> Result<Parts, SourceError> {
    let file = MappedFile::open(path)?;
    let model = Model::open(file.bytes()).map_err(|e| SourceError::file(path, e.to_string()))?;
    if model.file.header.kind != FileKind::Model as u32 {
        return Err(SourceError::file(path, "not a model"));
    }
    let text = |key: &str| model.file.meta_value(key);
    let json = |key: &'static str| match text(key).map(serde_json::from_str::<Value>) {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some(value)),
        Some(Err(e)) => Err(SourceError::field(path, key, e.to_string())),
    };
    let missing =
        |key| SourceError::field(path, key, "missing: this pack does not say what it was made of; pack it again");
    let config = json(CONFIG)?.ok_or_else(|| missing(CONFIG))?;
    let names = json(TENSORS)?.ok_or_else(|| missing(TENSORS))?;
    let names = facts::decode(&names).ok_or_else(|| SourceError::field(path, TENSORS, "not names with shapes"))?;
    let template = model.file.str(model.file.info.chat_template);
    let tokenizer = TokenizerFiles {
        chat_template: (!template.is_empty()).then(|| template.to_owned()),
        ..TokenizerFiles::default()
    };
    let generation_config = json(GENERATION)?;
    let mut fingerprint = model.file.header.fingerprint;
    if text(balance::KEY).is_some() {
        fingerprint = balance::fingerprint(fingerprint);
    }
    let mut tensors = TensorIndex::default();
    let number = tensors.add_file(MappedFile::open(path)?);
    for (name, shape) in &names {
        tensors.add_packed(number, name.clone(), shape.clone())?;
    }
    let packed = Packed::new(file, &config, &tensors)?;
    Ok(Parts { config, generation_config, tokenizer, tensors, packed, fingerprint })
}
