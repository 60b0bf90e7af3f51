//! LoRA adapters as GGUF: the merge is that of the PEFT adapter that they were made of.

use std::path::Path;

use lora_pack::merge::{AdapterSpec, MergeOptions, Merged};
use lora_pack::source::BaseModel;
use lora_pack::source::gguf::writer::{self, Item, Planned};

use crate::kit::{Gguf, Tensor, counting};

/// Writes an adapter file.
pub fn write(path: &Path, alpha: f32, tensors: &[(&str, Tensor)]) {
    let metadata = [
        ("general.type", Item::Text("adapter".into())),
        ("general.architecture", Item::Text("llama".into())),
        ("adapter.type", Item::Text("lora".into())),
        ("adapter.lora.alpha", Item::Number(alpha)),
    ];
    let metadata: Vec<(String, Item)> = metadata.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    let planned: Vec<Planned> = tensors
        .iter()
        .map(|(name, t)| Planned { name: (*name).into(), dtype: t.dtype, shape: t.shape.clone() })
        .collect();
    let mut out = writer::header(&metadata, &planned);
    for (_, t) in tensors {
        out.extend(&t.bytes);
        out.resize(out.len() + writer::padding(out.len() as u64), 0);
    }
    std::fs::write(path, out).unwrap();
}

fn delta(base: &BaseModel, adapter: &Path, name: &str) -> Vec<f32> {
    let merged = Merged::new(base, &[AdapterSpec::new(adapter)], &MergeOptions::default()).unwrap();
    let (a, b) = (merged.tensor_f32(name).unwrap(), base.read_f32(name).unwrap());
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

#[test]
fn factors_merge_in_the_checkpoints_rows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lora.gguf");
    let base = Gguf::llama().open().unwrap();
    // Rank 1, alpha 2: the delta of stored row r is 2·r in column 0. Ranks may differ: v has 2.
    let first = |r: usize| {
        let bytes = (0..r * 8).flat_map(|i| (if i % 8 == 0 { 1f32 } else { 0.0 }).to_le_bytes()).collect();
        Tensor { shape: vec![r, 8], bytes, ..counting(&[1, 1], 1.0) }
    };
    write(
        &path,
        2.0,
        &[
            ("blk.0.attn_q.weight.lora_a", first(1)),
            ("blk.0.attn_q.weight.lora_b", counting(&[8, 1], 1.0)),
            ("blk.0.attn_v.weight.lora_a", first(2)),
            ("blk.0.attn_v.weight.lora_b", counting(&[4, 2], 1.0)),
            ("token_embd.weight.lora_a", counting(&[6, 1], 1.0)),
            ("token_embd.weight.lora_b", counting(&[8, 1], 1.0)),
        ],
    );
    let near = |got: &[f32], want: &[f32]| got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5);
    let q = delta(&base, &path, "model.layers.0.self_attn.q_proj.weight");
    let column: Vec<f32> = q.chunks(8).map(|row| row[0]).collect();
    assert!(near(&column, &[0.0, 4.0, 2.0, 6.0, 8.0, 12.0, 10.0, 14.0]), "{column:?}");
    // Alpha over its own rank: 2 / 2.
    let v = delta(&base, &path, "model.layers.0.self_attn.v_proj.weight");
    let column: Vec<f32> = v.chunks(8).map(|row| row[0]).collect();
    assert!(near(&column, &[1.0, 5.0, 9.0, 13.0]), "{column:?}");
    // Of the embedding A is stored transposed.
    let e = delta(&base, &path, "model.embed_tokens.weight");
    assert!(near(&e[8..16], &[0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0]), "{:?}", &e[8..16]);
}

#[test]
fn what_does_not_fit_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lora.gguf");
    let base = Gguf::llama().open().unwrap();
    let refused = |tensors: &[(&str, Tensor)], words: &[&str]| {
        write(&path, 2.0, tensors);
        let error = Merged::new(&base, &[AdapterSpec::new(&path)], &MergeOptions::default()).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{word}: {error}");
        }
    };
    let (a, b) = (counting(&[1, 8], 1.0), counting(&[8, 1], 1.0));
    refused(&[("blk.0.attn_q.weight.lora_a", a.clone())], &["blk.0.attn_q.weight", "missing"]);
    refused(&[("blk.0.attn_q.weight", a.clone())], &["neither"]);
    let other = counting(&[8, 2], 1.0);
    refused(&[("blk.0.attn_q.weight.lora_a", a.clone()), ("blk.0.attn_q.weight.lora_b", other)], &["ranks"]);
    refused(&[("blk.7.attn_q.weight.lora_a", a.clone()), ("blk.7.attn_q.weight.lora_b", b.clone())], &["layers.7"]);
    refused(&[("blk.0.nothing.weight.lora_a", a), ("blk.0.nothing.weight.lora_b", b)], &["no place"]);
    // Alone it cannot be read.
    write(&path, 2.0, &[("blk.0.attn_q.weight.lora_a", counting(&[1, 8], 1.0))]);
    let error = lora_pack::merge::doctor::report(&AdapterSpec::new(&path), None, &MergeOptions::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("--base"), "{error}");
}
