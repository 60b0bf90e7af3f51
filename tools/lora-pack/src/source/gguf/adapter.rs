//! LoRA adapters as GGUF, presented as the PEFT adapters that they were made of.
//!
//! After llama.cpp's `convert_lora_to_gguf.py` and `llama-adapter.cpp`: `<tensor>.lora_a` (r × in) and `<tensor>.lora_b`
//! (out × r), the rows of B in the order of the base's GGUF tensor; of the embedding A is transposed. One
//! `adapter.lora.alpha` holds for all; a tensor's scale is alpha over its own rank, 1 where alpha is 0.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value as Json, json};

use super::container::{self, Entry, Header, Metadata};
use super::names::{self, Heads, Place, Rules};
use crate::source::arrange::Arrangement;
use crate::source::map::MappedFile;
use crate::source::{SourceError, TensorIndex, quote};

/// The two factors of a tensor.
#[derive(Default)]
struct Factors {
    a: Option<Entry>,
    b: Option<Entry>,
}

/// Opens an adapter file for a base with that config: a PEFT config and PEFT's names.
pub fn open(path: &Path, base: Option<&Json>) -> Result<(Json, TensorIndex), SourceError> {
    let file = MappedFile::open(path)?;
    let Header { metadata, tensors } = container::parse(path, file.bytes())?;
    let metadata = Metadata { file: path, values: &metadata };
    for (key, want) in [("general.type", "adapter"), ("adapter.type", "lora")] {
        match metadata.text(key)? {
            Some(found) if found == want => {}
            Some(found) => return Err(metadata.refuse(key, format!("{}: not a LoRA adapter", quote(found)))),
            None => return Err(metadata.missing(key)),
        }
    }
    if metadata.get("adapter.alora.invocation_tokens").is_some() {
        let why = "an adapter that acts from certain tokens on cannot be read from GGUF; pass the PEFT folder";
        return Err(metadata.refuse("adapter.alora.invocation_tokens", why));
    }
    let key = "general.architecture";
    let architecture = metadata.text(key)?.ok_or_else(|| metadata.missing(key))?.to_owned();
    let Some(base) = base else {
        return Err(SourceError::file(
            path,
            "a GGUF adapter has the base's order of rows: --base is needed to read it",
        ));
    };
    let model_type = base.get("model_type").and_then(Json::as_str).unwrap_or_default();
    let family = names::family_of(model_type).filter(|f| f.gguf == architecture.as_str()).ok_or_else(|| {
        metadata.refuse(key, format!("{} does not fit a base of type {}", quote(&architecture), quote(model_type)))
    })?;
    let gated = |f: &Json| f.as_str().is_some_and(|f| f.starts_with("gated"));
    let variant = family.gguf == "t5" && !base.get("feed_forward_proj").is_some_and(gated);
    let rules = Rules::new(family, Heads::of(base), variant);
    let key = "adapter.lora.alpha";
    let alpha = metadata.number(key)?.ok_or_else(|| metadata.missing(key))?;

    let mut factors: BTreeMap<String, Factors> = BTreeMap::new();
    for t in tensors {
        let (stem, a) = match (t.name.strip_suffix(".lora_a"), t.name.strip_suffix(".lora_b")) {
            (Some(stem), _) => (stem.to_owned(), true),
            (_, Some(stem)) => (stem.to_owned(), false),
            _ => return Err(SourceError::tensor(path, t.name, "neither .lora_a nor .lora_b")),
        };
        let entry = factors.entry(stem).or_default();
        *(if a { &mut entry.a } else { &mut entry.b }) = Some(t);
    }
    let mut index = TensorIndex::default();
    let mut ranks = BTreeMap::new();
    let number = index.add_file(file);
    for (stem, pair) in factors {
        let (Some(a), Some(b)) = (pair.a, pair.b) else {
            return Err(SourceError::tensor(path, stem, "one of .lora_a and .lora_b is missing"));
        };
        let Some(Place { name, arrangement, .. }) = rules.to_hf(&stem) else {
            return Err(SourceError::tensor(path, stem, format!("has no place in the architecture {architecture}")));
        };
        if name.contains("{}") {
            return Err(SourceError::tensor(path, stem, "factors of stacked experts are not supported"));
        }
        let Some(module) = name.strip_suffix(".weight").filter(|_| a.shape.len() == 2 && b.shape.len() == 2) else {
            return Err(SourceError::tensor(path, stem, "not a matrix"));
        };
        let embedding = stem == "token_embd.weight";
        let rank = a.shape[usize::from(embedding)];
        if b.shape[1] != rank {
            let problem = format!("ranks {rank} of lora_a and {} of lora_b differ", b.shape[1]);
            return Err(SourceError::tensor(path, stem, problem));
        }
        // Of a transposed weight PEFT stores the factors as of any other.
        let rows = match arrangement {
            Arrangement::Transposed | Arrangement::Row => Arrangement::Same,
            other => other,
        };
        if !rows.fits(&b.shape) {
            let problem = format!("{} rows of lora_b do not fit the sizes of the heads", b.shape[0]);
            return Err(SourceError::tensor(path, stem, problem));
        }
        let (a_name, b_name) = match embedding {
            true => ("lora_embedding_A", "lora_embedding_B"),
            false => ("lora_A.weight", "lora_B.weight"),
        };
        let place = |part: &str| format!("base_model.model.{module}.{part}");
        let (a_shape, a_order) = match embedding {
            true => (vec![rank, a.shape[0]], Arrangement::Transposed),
            false => (a.shape, Arrangement::Same),
        };
        index.add_arranged(number, place(a_name), a.dtype, a_shape, a.range, a_order)?;
        index.add_arranged(number, place(b_name), b.dtype, b.shape, b.range, rows)?;
        ranks.insert(module.to_owned(), rank);
    }
    Ok((config(family.class, alpha, &ranks), index))
}

/// The config that PEFT would have written.
fn config(class: &str, alpha: f64, ranks: &BTreeMap<String, usize>) -> Json {
    let usual = ranks.values().copied().max().unwrap_or(1);
    let key = |module: &str| module.replace('.', "\\.");
    let others = ranks.iter().filter(|(_, r)| **r != usual);
    let rank_pattern: serde_json::Map<String, Json> = others.clone().map(|(m, r)| (key(m), json!(r))).collect();
    // Alpha 0 means a scale of 1.
    let alpha_pattern: serde_json::Map<String, Json> = match alpha {
        0.0 => others.map(|(m, r)| (key(m), json!(r))).collect(),
        _ => serde_json::Map::new(),
    };
    let task = match class {
        c if c.ends_with("ForConditionalGeneration") => "SEQ_2_SEQ_LM",
        c if c.ends_with("ForCausalLM") || c.ends_with("LMHeadModel") => "CAUSAL_LM",
        _ => "FEATURE_EXTRACTION",
    };
    json!({
        "peft_type": "LORA", "task_type": task, "r": usual, "lora_alpha": if alpha == 0.0 { usual as f64 } else { alpha },
        "target_modules": ranks.keys().collect::<Vec<_>>(), "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern, "bias": "none", "fan_in_fan_out": false, "use_rslora": false, "use_dora": false,
    })
}
