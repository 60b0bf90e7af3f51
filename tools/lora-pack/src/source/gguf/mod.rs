//! GGUF files, presented as the Hugging Face checkpoints that they were made of.
//!
//! | file | part |
//! |---|---|
//! | `container` | the bytes: metadata, tensor infos, data; everything is checked here |
//! | `blocks` | block types to floats |
//! | `names` | which checkpoint tensor a GGUF tensor is, by architecture |
//! | `config`, `tokenizer` | metadata as `config.json` and `tokenizer.json` |
//! | `adapter` | LoRA adapters as PEFT's |
//! | `writer`, `quantize` | the bytes before the data, and blocks out of floats: export |
//! | `file_name` | the naming convention |

pub mod adapter;
pub mod blocks;
pub mod config;
pub mod container;
pub mod file_name;
pub mod names;
pub mod quantize;
pub mod tokenizer;
pub mod writer;

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value as Json;

use self::container::{Header, Metadata};
use self::names::{Place, Rules};
use super::map::MappedFile;
use super::{SourceError, TensorIndex, TokenizerFiles, quote};

/// What a base model is made of.
#[derive(Debug)]
pub struct Parts {
    /// As `config.json`.
    pub config: Json,
    /// As the tokenizer's files.
    pub tokenizer: TokenizerFiles,
    /// The tensors under the checkpoint's names.
    pub tensors: TensorIndex,
}

/// Whether a file begins like GGUF, or is named so.
pub fn is_gguf(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    let begins = std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut magic)).is_ok();
    begins && magic == container::MAGIC || path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// Opens a model file.
pub fn open(path: &Path) -> Result<Parts, SourceError> {
    let file = MappedFile::open(path)?;
    let Header { metadata, tensors } = container::parse(path, file.bytes())?;
    let metadata = Metadata { file: path, values: &metadata };
    match metadata.text("general.type")? {
        None | Some("model") => {}
        Some(other) => return Err(metadata.refuse("general.type", format!("{}: this is not a model", quote(other)))),
    }
    if metadata.count("split.count")?.is_some_and(|n| n > 1) {
        return Err(metadata.refuse("split.count", "models in several files are not supported; join them first"));
    }
    let key = "general.architecture";
    let name = metadata.text(key)?.ok_or_else(|| metadata.missing(key))?;
    let experts = config::has_experts(metadata, name)?;
    let family = names::family(name, experts).ok_or_else(|| {
        let known: BTreeSet<&str> = names::FAMILIES.iter().filter(|f| f.experts == experts).map(|f| f.gguf).collect();
        let known: Vec<&str> = known.into_iter().collect();
        let with = if experts { "with experts " } else { "" };
        metadata.refuse(key, format!("{} {with}is not supported; supported are {}", quote(name), known.join(", ")))
    })?;
    let factors = |entry: &container::Entry| {
        let mut out = vec![0.0; entry.shape.iter().product()];
        match entry.dtype.widen(&file.bytes()[entry.range.clone()], &mut out) {
            true => Ok(out),
            false => Err(SourceError::tensor(path, entry.name.as_str(), "not a list of floats")),
        }
    };
    let read = config::read(metadata, family, &tensors, &factors)?;
    let variant = family.is_variant(|name| tensors.iter().any(|t| t.name == name));
    let rules = Rules::new(family, read.heads, variant);
    let mut placed = Vec::new();
    for t in tensors {
        if names::ROTARY_FACTORS.contains(&t.name.as_str()) {
            continue;
        }
        let Some(Place { name, arrangement, .. }) = rules.to_hf(&t.name) else {
            let problem = format!("has no place in the architecture {}", family.gguf);
            return Err(SourceError::tensor(path, t.name, problem));
        };
        // Experts are stacked; each is presented as a matrix of its own.
        let (count, shape) = match t.shape[..] {
            [count, ref one @ ..] if name.contains("{}") => (count, one.to_vec()),
            _ => (1, t.shape),
        };
        if name.contains("{}") && count != read.experts {
            let problem = format!("{count} experts, the metadata say {}", read.experts);
            return Err(SourceError::tensor(path, t.name, problem));
        }
        let shape = arrangement.checkpoint_shape(shape);
        if !arrangement.fits(&shape) {
            let problem = format!("shape {shape:?} does not fit the sizes of the heads ({:?})", read.heads);
            return Err(SourceError::tensor(path, t.name, problem));
        }
        // Whole blocks stand in a row, so a stack is cut between blocks.
        let bytes = t.range.len() / count.max(1);
        for i in 0..count {
            let at = t.range.start + i * bytes;
            placed.push((name.replace("{}", &i.to_string()), t.dtype, shape.clone(), at..at + bytes, arrangement));
        }
    }
    let mut dir = TokenizerFiles { tokenizer_config: tokenizer::config(metadata)?, ..TokenizerFiles::default() };
    dir.chat_template = tokenizer::chat_template(metadata)?;
    match tokenizer::read(metadata)? {
        Some(Ok(json)) => dir.tokenizer_json = Some(json),
        Some(Err(why)) => dir.problem = Some(why),
        None => {}
    }
    let config = read.config;
    let mut index = TensorIndex::default();
    let number = index.add_file(file);
    for (name, dtype, shape, range, arrangement) in placed {
        index.add_arranged(number, name, dtype, shape, range, arrangement)?;
    }
    Ok(Parts { config, tokenizer: dir, tensors: index })
}
