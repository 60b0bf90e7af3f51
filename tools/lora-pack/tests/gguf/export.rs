//! Written as GGUF, read again: nothing may have changed.

use std::path::Path;

use lora_pack::merge::export::gguf::{Encoding, Options, write};
use lora_pack::merge::{MergeOptions, Merged};
use lora_pack::source::gguf::writer::Item;
use lora_pack::source::{BaseModel, Dtype};

use crate::kit::{Gguf, Tensor, counting, mixture, with_tokenizer};

/// A llama with a tokenizer.
pub fn model() -> Gguf {
    let mut gguf = with_tokenizer();
    gguf.meta("tokenizer.chat_template", Item::Text("{{ bos_token }}".into()));
    gguf
}

fn export(base: &BaseModel, to: &Path, name: &str) -> std::path::PathBuf {
    let merged = Merged::new(base, &[], &MergeOptions::default()).unwrap();
    write(&merged, to, Encoding::from_name(name).unwrap(), &Options::default()).unwrap().path
}

#[test]
fn floats_come_back_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let mut gguf = model();
    gguf.set("rope_freqs.weight", counting(&[2], 0.5));
    gguf.tensors.retain(|(name, _)| name != "rope_freqs.weight");
    let base = gguf.open().unwrap();
    let path = export(&base, &dir.path().join("out.gguf"), "f32");
    let back = BaseModel::open(&path).unwrap();
    assert_eq!(base.tensors().len(), back.tensors().len());
    for t in base.tensors().iter() {
        assert_eq!(t.read_f32().unwrap(), back.read_f32(t.name).unwrap(), "{}", t.name);
    }
    assert_eq!(base.tokenizer.tokenizer_json, back.tokenizer.tokenizer_json);
    assert_eq!(base.tokenizer.chat_template, back.tokenizer.chat_template);
    for field in ["hidden_size", "rope_theta", "rms_norm_eps", "tie_word_embeddings", "bos_token_id", "eos_token_id"] {
        assert_eq!(base.config[field], back.config[field], "{field}");
    }
}

#[test]
fn experts_are_taken_apart_and_stacked_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut gguf = model();
    // More than ten: by number, not by name.
    mixture(&mut gguf, 12, 12);
    let base = gguf.open().unwrap();
    assert_eq!(base.config["model_type"], "mixtral");
    assert_eq!((&base.config["num_local_experts"], &base.config["intermediate_size"]), (&12.into(), &12.into()));
    let up = base.read_f32("model.layers.0.block_sparse_moe.experts.11.w3.weight").unwrap();
    assert_eq!((up.len(), up[0], up[95]), (96, (11.0 * 96.0) * 0.02, (11.0 * 96.0 + 95.0) * 0.02));
    let back = BaseModel::open(&export(&base, &dir.path().join("out.gguf"), "f32")).unwrap();
    assert_eq!(base.tensors().len(), back.tensors().len());
    for t in base.tensors().iter() {
        assert!(t.same_as(&back.tensors().get(t.name).unwrap()), "{}", t.name);
    }
    for field in ["model_type", "num_local_experts", "num_experts_per_tok", "intermediate_size"] {
        assert_eq!(base.config[field], back.config[field], "{field}");
    }
}

/// A llama of blocks: hidden 32, two heads of 16 over one.
pub fn quantized() -> Gguf {
    let mut gguf = model();
    for (key, item) in &mut gguf.metadata {
        match key.as_str() {
            "llama.embedding_length" => *item = Item::Count(32),
            "llama.feed_forward_length" => *item = Item::Count(64),
            "llama.rope.dimension_count" => *item = Item::Count(16),
            _ => {}
        }
    }
    let blocks = |shape: &[usize], dtype: Dtype| {
        let n = shape.iter().product::<usize>() / 32;
        let half = 0x2c66u16.to_le_bytes();
        // The minimum of the types that have one is the scale once more; no int8 code is −128.
        let minimum = matches!(dtype, Dtype::Q4_1 | Dtype::Q5_1);
        let code = |i: usize, b: usize| ((i * 37 + b * 11) as u8).max(1) ^ u8::from((i * 37 + b * 11) % 256 == 128);
        let half = move |b: usize| (b < 2 || minimum && b < 4).then(|| half[b % 2]);
        let one = move |i: usize| (0..dtype.size()).map(move |b| half(b).unwrap_or_else(|| code(i, b)));
        Tensor { dtype, shape: shape.to_vec(), bytes: (0..n).flat_map(one).collect() }
    };
    for (name, shape, dtype) in [
        ("token_embd.weight", &[6, 32][..], Dtype::Q8_0),
        ("blk.0.attn_q.weight", &[32, 32], Dtype::Q4_0),
        ("blk.0.attn_k.weight", &[16, 32], Dtype::Q4_0),
        ("blk.0.attn_v.weight", &[16, 32], Dtype::Q5_0),
        ("blk.0.attn_output.weight", &[32, 32], Dtype::Q5_1),
        ("blk.0.ffn_gate.weight", &[64, 32], Dtype::Q4_0),
        ("blk.0.ffn_up.weight", &[64, 32], Dtype::Q4_0),
        ("blk.0.ffn_down.weight", &[32, 64], Dtype::Q4_1),
    ] {
        gguf.set(name, blocks(shape, dtype));
    }
    for name in ["blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"] {
        gguf.set(name, counting(&[32], 0.1));
    }
    gguf
}

#[test]
fn kept_blocks_are_copied() {
    let dir = tempfile::tempdir().unwrap();
    let base = quantized().open().unwrap();
    let path = export(&base, dir.path(), "keep");
    assert_eq!(path.file_name().unwrap(), "model-9.5K-v1.0-mixed.gguf");
    let back = BaseModel::open(&path).unwrap();
    for t in base.tensors().iter() {
        let b = back.tensors().get(t.name).unwrap();
        assert!(t.same_as(&b), "{}", t.name);
    }
    // As Q8_0 the embedding is copied, and what was Q4_0 comes near.
    let back = BaseModel::open(&export(&base, &dir.path().join("q8.gguf"), "q8_0")).unwrap();
    let name = "model.layers.0.self_attn.q_proj.weight";
    let (a, b) = (base.read_f32(name).unwrap(), back.read_f32(name).unwrap());
    let largest = a.iter().fold(0f32, |m, v| m.max(v.abs()));
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= largest / 127.0));
}

#[test]
fn what_gguf_cannot_say_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut base = model().open().unwrap();
    base.config["sliding_window"] = 16.into();
    base.config["model_type"] = "mistral".into();
    let merged = Merged::new(&base, &[], &MergeOptions::default()).unwrap();
    let out = dir.path().join("m.gguf");
    let error = write(&merged, &out, Encoding::Type(Dtype::F32), &Options::default()).unwrap_err().to_string();
    assert!(error.contains("window: 16") && error.contains("--force"), "{error}");
    assert!(!out.exists());
    let written =
        write(&merged, &out, Encoding::Type(Dtype::F32), &Options { force: true, no_tokenizer: false }).unwrap();
    assert!(written.notes.iter().any(|n| n.text.contains("window: 16")));
}

/// Models without a tokenizer, such as those that only measure speed.
#[test]
fn a_model_of_token_ids_is_written_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut gguf = model();
    gguf.metadata.retain(|(key, _)| !key.starts_with("tokenizer."));
    let base = gguf.open().unwrap();
    assert!(base.tokenizer.tokenizer_json.is_none());
    let merged = Merged::new(&base, &[], &MergeOptions::default()).unwrap();
    let out = dir.path().join("m.gguf");
    let error = format!("{:#}", write(&merged, &out, Encoding::Type(Dtype::F32), &Options::default()).unwrap_err());
    assert!(error.contains("--no-tokenizer") && !out.exists(), "{error}");
    let options = Options { no_tokenizer: true, force: false };
    write(&merged, &out, Encoding::Type(Dtype::F32), &options).unwrap();
    let back = BaseModel::open(&out).unwrap();
    assert!(back.tokenizer.tokenizer_json.is_none());
    for t in base.tensors().iter() {
        assert!(t.same_as(&back.tensors().get(t.name).unwrap()), "{}", t.name);
    }
    assert_eq!(base.config["vocab_size"], back.config["vocab_size"]);
}
