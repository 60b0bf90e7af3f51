//! A tiny Llama written to disk and packed, for tests that need a file but no conformance data.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::path::Path;

use lora_pack::merge::{MergeOptions, Merged};
use lora_pack::pack::{PackOptions, pack};
use lora_pack::source::BaseModel;
use lora_runtime::format::{SectionId, SectionRecord};
use lora_runtime::weights::WeightFormat;
use serde_json::json;

/// Bytes at a 64-byte boundary.
pub struct Aligned {
    blocks: Vec<[u64; 8]>,
    offset: usize,
    len: usize,
}

/// Copies `bytes` to a 64-byte boundary.
pub fn aligned(bytes: &[u8]) -> Aligned {
    let blocks = vec![[0_u64; 8]; bytes.len().div_ceil(64) + 2];
    let offset = (64 - blocks.as_ptr() as usize % 64) % 64;
    let mut a = Aligned { blocks, offset, len: bytes.len() };
    a.bytes_mut().copy_from_slice(bytes);
    a
}

impl Aligned {
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.blocks)[self.offset..self.offset + self.len]
    }
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let (offset, len) = (self.offset, self.len);
        &mut bytemuck::cast_slice_mut(&mut self.blocks)[offset..offset + len]
    }
}

/// Where the tables after the weights start.
pub fn tables_start(file: &[u8]) -> usize {
    let first: SectionRecord = bytemuck::pod_read_unaligned(&file[128..160]);
    assert_eq!(first.id, SectionId::Weights as u32);
    (first.offset + first.len) as usize
}

/// A fixed sequence of numbers in −0.5…0.5.
pub fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / 16_777_216.0 - 0.5
    }
}

/// Writes a base model folder: one Llama layer, hidden 32, two heads over one, vocabulary 48.
pub fn write_base(dir: &Path) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "hidden_act": "silu",
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "vocab_size": 48, "eos_token_id": 2, "bos_token_id": 1
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let layer = "model.layers.0";
    let shapes: Vec<(String, Vec<usize>)> = [
        ("model.embed_tokens.weight".into(), vec![48, 32]),
        (format!("{layer}.input_layernorm.weight"), vec![32]),
        (format!("{layer}.self_attn.q_proj.weight"), vec![32, 32]),
        (format!("{layer}.self_attn.k_proj.weight"), vec![16, 32]),
        (format!("{layer}.self_attn.v_proj.weight"), vec![16, 32]),
        (format!("{layer}.self_attn.o_proj.weight"), vec![32, 32]),
        (format!("{layer}.post_attention_layernorm.weight"), vec![32]),
        (format!("{layer}.mlp.gate_proj.weight"), vec![48, 32]),
        (format!("{layer}.mlp.up_proj.weight"), vec![48, 32]),
        (format!("{layer}.mlp.down_proj.weight"), vec![32, 48]),
        ("model.norm.weight".into(), vec![32]),
    ]
    .into();
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .enumerate()
        .map(|(i, (name, shape))| {
            let mut next = noise(i as u64 + 1);
            let bytes = (0..shape.iter().product()).flat_map(|_| next().to_le_bytes()).collect();
            (name, shape, bytes)
        })
        .collect();
    let views: BTreeMap<&str, safetensors::tensor::TensorView<'_>> = data
        .iter()
        .map(|(name, shape, bytes)| {
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap();
            (name.as_str(), view)
        })
        .collect();
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
}

/// The bytes of the tiny model packed in `format`.
pub fn tiny_llama(format: WeightFormat) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    write_base(dir.path());
    let out = dir.path().join("tiny.lpk");
    let base = BaseModel::open(dir.path()).unwrap();
    let merged = Merged::new(&base, &[], &MergeOptions::default()).unwrap();
    let options = PackOptions { no_tokenizer: true, ..PackOptions::new(format) };
    pack(&base, &merged, &options, BTreeMap::new(), &out, &mut |_, _, _| {}).unwrap();
    std::fs::read(out).unwrap()
}
