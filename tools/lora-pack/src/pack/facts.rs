//! What a file says about its model beside program and weights: tokenizer, labels, special tokens, defaults.

use anyhow::{Context, Result, bail};
use bytemuck::Zeroable;
use lora_models::spec::{Lowered, Storage};
use lora_runtime::format::{CacheKind, Info};
use lora_runtime::kernels::KvType;
use serde_json::Value;

use super::PackOptions;
use crate::compile::tokenizer::{Compiled, compile_tokenizer};
use crate::generation::Generation;
use crate::merge::Merged;
use crate::source::BaseModel;
use crate::write::Strings;

/// The compiled tokenizer of a model with `vocab` ids; `None` where it has none and that was asked for.
pub(crate) fn tokenizer(
    base: &BaseModel,
    merged: &Merged<'_>,
    vocab: u32,
    options: &PackOptions,
) -> Result<Option<Compiled>> {
    match &merged.tokenizer().tokenizer_json {
        Some(json) => Ok(Some(compile_tokenizer(json, vocab).context("tokenizer.json")?)),
        None if options.no_tokenizer => Ok(None),
        None if let Some(problem) = &merged.tokenizer().problem => {
            bail!("{}: {problem}; --no-tokenizer packs a model of token ids", base.dir.display())
        }
        None => bail!(
            "tokenizer.json is missing from {}: without it, --no-tokenizer packs a model of token ids",
            base.dir.display()
        ),
    }
}

/// Label names: the user's, else the config's `id2label`, else `LABEL_i`.
pub(crate) fn label_names(config: &Value, options: &PackOptions, labels: usize) -> Result<Vec<String>> {
    if labels == 0 {
        return Ok(Vec::new());
    }
    if let Some(names) = &options.labels {
        if names.len() != labels {
            bail!("--labels names {} labels, the head has {labels}", names.len());
        }
        return Ok(names.clone());
    }
    let named = |i: usize| config.get("id2label").and_then(|m| m.get(i.to_string())).and_then(Value::as_str);
    Ok((0..labels).map(|i| named(i).map_or_else(|| format!("LABEL_{i}"), str::to_string)).collect())
}

pub(crate) fn info(base: &BaseModel, merged: &Merged<'_>, lowered: &Lowered, strings: &mut Strings) -> Info {
    let config = merged.config();
    let quantized = lowered.tensors.iter().any(|t| matches!(t.storage, Storage::Panels(f) if !f.is_float()));
    // An encoder's cache holds one layer at a time: half precision costs next to nothing there.
    let passing = lowered.caches.iter().all(|c| c.kind == CacheKind::Step as u32);
    let kv_default = match (quantized, passing) {
        (true, false) => KvType::I8,
        (true, true) => KvType::F16,
        (false, _) => KvType::F32,
    };
    let mut info = Info {
        task: lowered.task as u32,
        vocab: lowered.vocab,
        max_positions: lowered.max_positions,
        token_types: lowered.token_types,
        hidden: lowered.hidden,
        labels: lowered.labels,
        problem: lowered.problem as u32,
        kv_type: kv_default as u32,
        architecture: strings.add(lowered.architecture),
        chat_template: strings.add(merged.tokenizer().chat_template.as_deref().unwrap_or("")),
        pooling: lowered.pooling,
        normalize: 1,
        per_token: lowered.per_token,
        per_output: lowered.per_output,
        ..Info::zeroed()
    };
    Generation::new(base, config).fill(&mut info);
    info
}
