//! Files that are cut short or changed: a typed error or a model, never a panic, and an error that says where.

use lora_pack::source::Dtype;
use lora_pack::source::gguf::writer::Item;

use crate::kit::{Gguf, Tensor, counting, mixture, open, with_tokenizer};

fn message(bytes: &[u8]) -> String {
    open(bytes).unwrap_err().to_string()
}

#[test]
fn every_truncation_is_refused() {
    let bytes = with_tokenizer().bytes();
    assert!(open(&bytes).is_ok());
    for n in 0..bytes.len() {
        // What pads the last tensor may be missing.
        if bytes.len() - n >= 32 {
            assert!(open(&bytes[..n]).is_err(), "{n} of {} bytes were accepted", bytes.len());
        }
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(message(&longer).contains("trailing"));
}

#[test]
fn no_changed_byte_makes_it_panic() {
    let bytes = with_tokenizer().bytes();
    let header = bytes.len() - 2400;
    let (mut refused, mut accepted) = (0, 0);
    for at in 0..header {
        for by in [0x01, 0x80, 0xff] {
            let mut changed = bytes.clone();
            changed[at] ^= by;
            match open(&changed) {
                Ok(base) => {
                    accepted += 1;
                    for t in base.tensors().iter() {
                        let _ = t.read_f32();
                    }
                }
                Err(e) => {
                    refused += 1;
                    assert!(!e.to_string().is_empty());
                }
            }
        }
    }
    eprintln!("{refused} refused, {accepted} accepted");
    assert!(refused > accepted);
}

#[test]
fn what_is_wrong_is_named() {
    let llama = Gguf::llama();
    let refused = |change: &dyn Fn(&mut Gguf), words: &[&str]| {
        let mut gguf = llama.clone();
        change(&mut gguf);
        let m = message(&gguf.bytes());
        for word in words {
            assert!(m.contains(word), "{word}: {m}");
        }
    };
    refused(
        &|g| g.meta("general.architecture", Item::Text("mamba".into())),
        &["general.architecture", "'mamba'", "llama"],
    );
    refused(&|g| g.metadata.retain(|(k, _)| k != "llama.block_count"), &["llama.block_count", "missing"]);
    refused(&|g| g.meta("llama.block_count", Item::Text("two".into())), &["llama.block_count", "whole number"]);
    refused(
        &|g| g.meta("llama.attention.head_count_kv", Item::Integers(vec![1, 2])),
        &["head_count_kv", "layer to layer"],
    );
    refused(&|g| g.meta("llama.expert_count", Item::Count(8)), &["expert_used_count", "missing"]);
    refused(&|g| mixture(g, 2, 3), &["blk.0.ffn_gate_exps.weight", "3 experts", "say 2"]);
    refused(
        &|g| {
            mixture(g, 2, 2);
            g.meta("llama.expert_gating_func", Item::Count(2));
        },
        &["expert_gating_func", "not supported"],
    );
    refused(&|g| g.set("blk.0.ffn_up_exps.weight", counting(&[2, 12, 8], 1.0)), &["ffn_up_exps.weight", "no place"]);
    refused(&|g| g.meta("llama.rope.scaling.type", Item::Text("spiral".into())), &["rope.scaling.type", "spiral"]);
    refused(&|g| g.meta("general.alignment", Item::Count(24)), &["general.alignment", "power of two"]);
    refused(&|g| g.set("blk.0.attn_sinks.weight", counting(&[2], 1.0)), &["'blk.0.attn_sinks.weight'", "no place"]);
    refused(&|g| g.set("blk.0.attn_q.weight", counting(&[6, 8], 1.0)), &["attn_q.weight", "heads"]);
    refused(&|g| g.metadata.push(("llama.block_count".into(), Item::Count(1))), &["llama.block_count", "duplicate"]);
    refused(
        &|g| g.tensors.push(("output_norm.weight".into(), counting(&[8], 1.0))),
        &["'output_norm.weight'", "duplicate"],
    );
    refused(&|g| g.meta("general.type", Item::Text("adapter".into())), &["general.type", "adapter"]);
    let odd = Tensor { dtype: Dtype::Q8_0, shape: vec![6, 8], bytes: vec![0; 34] };
    refused(&|g| g.set("token_embd.weight", odd.clone()), &["token_embd.weight", "blocks"]);
    for (bytes, word) in
        [(&b"GGUF\x01\0\0\0"[..], "version 1"), (b"GGUF\0\0\0\x03", "big-endian"), (b"GGU", "truncated")]
    {
        assert!(message(bytes).contains(word));
    }
}

#[test]
fn counts_take_no_memory() {
    // 2⁶⁰ metadata pairs, 2⁶⁰ tensors, an array of 2⁶⁰ strings: all end with the file.
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((1u64 << 60).to_le_bytes());
    bytes.extend((1u64 << 60).to_le_bytes());
    assert!(message(&bytes).contains("truncated"));
    bytes.extend(1u64.to_le_bytes());
    bytes.push(b'k');
    bytes.extend(9u32.to_le_bytes());
    bytes.extend(8u32.to_le_bytes());
    bytes.extend((1u64 << 60).to_le_bytes());
    assert!(message(&bytes).contains("truncated in k"));
    let at = bytes.len() - 12;
    bytes[at] = 4;
    assert!(message(&bytes).contains("k"));
}
