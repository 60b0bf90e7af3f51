//! PEFT adapters for the tiny Llama, written to disk and packed.

use std::collections::BTreeMap;
use std::path::Path;

use lora_pack::adapter::pack_adapter;
use lora_pack::merge::{AdapterSpec, MergeOptions};
use lora_pack::pack::PackOptions;
use lora_pack::source::BaseModel;
use lora_runtime::weights::WeightFormat;
use serde_json::{Value, json};

use crate::common::{Aligned, aligned, noise, write_base};

/// A kind of adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// LoRA of rank 3 on every linear.
    Plain,
    /// DoRA on two of them.
    Dora,
    /// Another norm weight.
    Norm,
    /// New rows of the tied embedding.
    Tokens,
    /// LoRA on the embedding alone.
    Embedding,
    /// A classifier of its own.
    Classifier,
    /// LoRA that acts from tokens 5, 6 on.
    Activated,
    /// LoRA of rank 20 on queries, keys and values, of which it holds those from the first number up to the second.
    Attention(usize, usize),
}

/// Every kind that stands for a way to change the base.
pub const KINDS: [Kind; 7] =
    [Kind::Plain, Kind::Dora, Kind::Norm, Kind::Tokens, Kind::Embedding, Kind::Classifier, Kind::Activated];

const LINEARS: [(&str, usize, usize); 7] = [
    ("self_attn.q_proj", 32, 32),
    ("self_attn.k_proj", 16, 32),
    ("self_attn.v_proj", 16, 32),
    ("self_attn.o_proj", 32, 32),
    ("mlp.gate_proj", 48, 32),
    ("mlp.up_proj", 48, 32),
    ("mlp.down_proj", 32, 48),
];

type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

fn lora(
    tensors: &mut Tensors,
    module: &str,
    rank: usize,
    (rows, cols): (usize, usize),
    next: &mut impl FnMut() -> f32,
) {
    let mut values = |n: usize| (0..n).map(|_| next()).collect();
    tensors.push((format!("{module}.lora_A.weight"), vec![rank, cols], values(rank * cols)));
    tensors.push((format!("{module}.lora_B.weight"), vec![rows, rank], values(rows * rank)));
}

fn content(kind: Kind, seed: u64) -> (Value, Tensors) {
    let mut next = noise(1000 + seed);
    let mut tensors = Vec::new();
    let layer = "model.layers.0";
    let rank = if matches!(kind, Kind::Attention(..)) { 20 } else { 3 };
    let linear = |tensors: &mut Tensors, list: &[(&str, usize, usize)], next: &mut dyn FnMut() -> f32| {
        let mut next = next;
        for (name, rows, cols) in list {
            lora(tensors, &format!("{layer}.{name}"), rank, (*rows, *cols), &mut next);
        }
    };
    let names: Vec<&str> = LINEARS.iter().map(|l| l.0.rsplit('.').next().unwrap()).collect();
    let config = match kind {
        Kind::Plain => {
            linear(&mut tensors, &LINEARS, &mut next);
            json!({"target_modules": names})
        }
        Kind::Dora => {
            linear(&mut tensors, &LINEARS[1..3], &mut next);
            for name in ["k_proj", "v_proj"] {
                let m = (0..16).map(|_| 2.0 + next()).collect();
                tensors.push((format!("{layer}.self_attn.{name}.lora_magnitude_vector"), vec![16], m));
            }
            json!({"target_modules": ["k_proj", "v_proj"], "use_dora": true})
        }
        Kind::Norm => {
            linear(&mut tensors, &LINEARS[3..4], &mut next);
            let w = (0..32).map(|_| 1.0 + next()).collect();
            tensors.push((format!("{layer}.input_layernorm.weight"), vec![32], w));
            json!({"target_modules": ["o_proj"], "modules_to_save": ["input_layernorm"]})
        }
        Kind::Tokens => {
            linear(&mut tensors, &LINEARS[..1], &mut next);
            let rows = (0..64).map(|_| next()).collect();
            let key = "model.embed_tokens.token_adapter.trainable_tokens_delta";
            tensors.push((key.into(), vec![2, 32], rows));
            json!({"target_modules": ["q_proj"], "trainable_token_indices": [3, 7]})
        }
        Kind::Embedding => {
            let mut values = |n: usize| (0..n).map(|_| next()).collect();
            tensors.push(("model.embed_tokens.lora_embedding_A".into(), vec![3, 48], values(144)));
            tensors.push(("model.embed_tokens.lora_embedding_B".into(), vec![32, 3], values(96)));
            json!({"target_modules": ["embed_tokens"]})
        }
        Kind::Classifier => {
            linear(&mut tensors, &LINEARS[..1], &mut next);
            tensors.push(("score.weight".into(), vec![5, 32], (0..160).map(|_| next()).collect()));
            json!({"target_modules": ["q_proj"], "task_type": "SEQ_CLS", "modules_to_save": ["score"]})
        }
        Kind::Activated => {
            linear(&mut tensors, &LINEARS[..3], &mut next);
            json!({"target_modules": ["q_proj", "k_proj", "v_proj"], "alora_invocation_tokens": [5, 6]})
        }
        Kind::Attention(from, to) => {
            linear(&mut tensors, &LINEARS[..3], &mut next);
            let names = &names[from..to];
            tensors.retain(|(name, ..)| names.iter().any(|n| name.contains(n)));
            json!({"target_modules": names, "r": rank, "lora_alpha": 2 * rank})
        }
    };
    (config, tensors)
}

/// Writes an adapter folder.
pub fn write_adapter(dir: &Path, kind: Kind, seed: u64) {
    let (extra, tensors) = content(kind, seed);
    let mut config = json!({"peft_type": "LORA", "r": 3, "lora_alpha": 6, "task_type": "CAUSAL_LM"});
    config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    std::fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|t| bytemuck::cast_slice(&t.2).to_vec()).collect();
    let views: BTreeMap<String, safetensors::tensor::TensorView<'_>> = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| {
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap();
            (format!("base_model.model.{name}"), view)
        })
        .collect();
    safetensors::serialize_to_file(views, None, &dir.join("adapter_model.safetensors")).unwrap();
}

/// The bytes of an adapter for the tiny Llama, its factors in `format`.
pub fn adapter(kind: Kind, seed: u64, format: WeightFormat) -> Aligned {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    let own = dir.path().join("adapter");
    std::fs::create_dir(&base).unwrap();
    std::fs::create_dir(&own).unwrap();
    write_base(&base);
    write_adapter(&own, kind, seed);
    let out = dir.path().join("a.lpk");
    let options = PackOptions { no_tokenizer: true, ..PackOptions::new(format) };
    let base = BaseModel::open(&base).unwrap();
    pack_adapter(&base, &AdapterSpec::new(&own), &MergeOptions::default(), &options, &out).unwrap();
    aligned(&std::fs::read(out).unwrap())
}
