//! A packed file beside the float model that it was made from.

use std::path::Path;

use anyhow::{Context, Result};
use lora_runtime::Model;
use lora_runtime::format::Task;
use lora_runtime::kernels::KvType;
use lora_runtime::weights::WeightFormat;

use crate::calibrate::compare::{Distance, Side, compare};
use crate::calibrate::weights::{self, WeightErrors};
use crate::calibrate::{Balance, Twin, count, targets, text};
use crate::merge::{AdapterSpec, MergeOptions, Merged};
use crate::pack::{PackOptions, float_twin};
use crate::source::BaseModel;

/// Below this projection the grid has swallowed a part of the adapter's change.
pub const LEAST_PROJECTION: f64 = 0.9;
/// Below this functional retention the adapter has lost something.
pub const LEAST_RETENTION: f64 = 0.98;

/// What to compare with.
#[derive(Clone, Copy, Debug)]
pub struct Reference<'a> {
    /// Base model.
    pub base: &'a BaseModel,
    /// Adapters.
    pub adapters: &'a [AdapterSpec],
    /// How they were merged.
    pub merge: &'a MergeOptions,
    /// Text, else a general one.
    pub text: Option<&'a Path>,
    /// Most tokens of it.
    pub tokens: usize,
    /// Element type of the KV cache, else the file's.
    pub kv: Option<KvType>,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Numbers {
    /// Tokens of the text.
    pub tokens: usize,
    /// From the float model to the file.
    pub distance: Distance,
    /// KL(merged ‖ base without adapters), where both have outputs of the same kind.
    pub kl_to_base: Option<f64>,
    /// `1 − KL(merged ‖ packed) / KL(merged ‖ base)`.
    pub retention: Option<f64>,
    /// Weights.
    pub weights: WeightErrors,
}

/// Measures a file.
///
/// # Errors
/// The reference cannot be opened, merged or run, or has other outputs than the file.
pub fn measure(packed: Model<'_>, reference: &Reference<'_>) -> Result<Numbers> {
    let base = reference.base;
    let merged = Merged::new(base, reference.adapters, reference.merge)?;
    let task = packed.task();
    let float = twin(base, &merged, task)?;
    let model = float.model()?;
    let documents = match reference.text {
        Some(path) => text::read(path, &model)?,
        None => text::documents(text::GENERAL, &model).context("the general text: give another one with --text")?,
    };
    let mut documents = text::sample(documents, reference.tokens);
    if task == Task::Seq2SeqLm {
        targets::fill(&model, &mut documents)?;
    }
    let side = Side::new(model, KvType::F32);
    let distance = compare(side, Side::new(packed, reference.kv.unwrap_or(packed.kv_type())), &documents)?;
    let mut kl_to_base = None;
    // A task head has nothing to be compared with in the base.
    if !reference.adapters.is_empty() && matches!(task, Task::CausalLm | Task::Seq2SeqLm) {
        let plain = Merged::new(base, &[], &MergeOptions::default())?;
        let plain = twin(base, &plain, task)?;
        if plain.model()?.file.info.vocab == model.file.info.vocab {
            kl_to_base = compare(side, Side::new(plain.model()?, KvType::F32), &documents)?.mean_kl();
        }
    }
    let retention = kl_to_base.zip(distance.mean_kl()).map(|(base, packed)| 1.0 - packed / base);
    let weights = weights::compare(&packed.file, &merged)?;
    Ok(Numbers { tokens: count(&documents), distance, kl_to_base, retention, weights })
}

fn twin(base: &BaseModel, merged: &Merged<'_>, task: Task) -> Result<Twin> {
    let options = PackOptions { task: Some(task), no_tokenizer: true, ..PackOptions::new(WeightFormat::F32) };
    let policy = lora_models::Policy::new(WeightFormat::F32);
    let beside = std::env::temp_dir().join("float.lpk");
    float_twin(base, merged, &options, (&policy, &Balance::default()), &beside, &mut |_, _, _| {})
}

impl Numbers {
    /// The numbers in words.
    #[must_use]
    pub fn verdict(&self) -> String {
        let close = match (self.distance.mean_kl(), self.distance.cosine) {
            (Some(kl), _) => match kl {
                ..0.002 => "as good as the float model",
                0.002..0.015 => "very close to the float model",
                0.015..0.06 => "close to the float model",
                0.06..0.25 => "visibly different from the float model",
                _ => "far from the float model",
            },
            (None, Some(cosine)) => match cosine {
                0.9995.. => "as good as the float model",
                0.995.. => "very close to the float model",
                0.98.. => "close to the float model",
                _ => "far from the float model",
            },
            (None, None) => "not comparable by divergence",
        };
        let mut out = vec![close.to_string()];
        match self.retention {
            Some(r) if r >= LEAST_RETENTION => out.push("the fine-tune is kept".into()),
            Some(_) => {
                out.push("part of the fine-tune is lost: calibrate with the task's text, or use more bits".into())
            }
            None => {}
        }
        if self.weights.projection.is_some_and(|p| p < LEAST_PROJECTION) {
            out.push("the grid swallowed part of the adapter's change: pack from the unquantized base".into());
        }
        out.join("; ")
    }
}
