//! What a file is presented as: names, rows, config, tokenizer.

use lora_pack::source::gguf::writer::Item;
use serde_json::json;

use crate::kit::{Gguf, counting};

#[test]
fn a_llama_has_its_checkpoints_names_and_rows() {
    let base = Gguf::llama().open().unwrap();
    assert_eq!(base.model_type(), "llama");
    for (field, want) in [
        ("hidden_size", json!(8)),
        ("num_hidden_layers", json!(1)),
        ("num_key_value_heads", json!(1)),
        ("intermediate_size", json!(12)),
        ("vocab_size", json!(6)),
        ("tie_word_embeddings", json!(true)),
        ("architectures", json!(["LlamaForCausalLM"])),
    ] {
        assert_eq!(base.config[field], want, "{field}");
    }
    // Stored rows 0 1 2 3 of a head are the checkpoint's 0 2 1 3.
    let q = base.read_f32("model.layers.0.self_attn.q_proj.weight").unwrap();
    let first: Vec<f32> = q.chunks(8).map(|row| row[0]).collect();
    assert_eq!(first, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0].map(|r: f32| (r * 8.0) * 0.01));
    assert_eq!(base.read_f32("model.layers.0.self_attn.v_proj.weight").unwrap()[8], 0.08);
    assert_eq!(base.tensors().get("model.layers.0.mlp.down_proj.weight").unwrap().shape, [8, 12]);
}

#[test]
fn gemma_norms_lose_the_one_that_was_added() {
    let mut gguf = Gguf::llama();
    for (key, item) in &mut gguf.metadata {
        *key = key.replace("llama.", "gemma.");
        if key == "general.architecture" {
            *item = Item::Text("gemma".into());
        }
    }
    gguf.meta("gemma.attention.key_length", Item::Count(4));
    gguf.set("output_norm.weight", counting(&[8], 0.25));
    let base = gguf.open().unwrap();
    assert_eq!(base.read_f32("model.norm.weight").unwrap()[..3], [-1.0, -0.75, -0.5]);
    assert_eq!(base.config["hidden_activation"], "gelu_pytorch_tanh");
}

#[test]
fn rotary_factors_become_a_config() {
    let mut gguf = Gguf::llama();
    gguf.set("rope_freqs.weight", counting(&[2], 3.0));
    let base = gguf.open().unwrap();
    assert_eq!(base.config["rope_scaling"]["short_factor"], json!([0.0, 3.0]));
    assert!(!base.tensors().contains("rope_freqs.weight"));
}

#[test]
fn tokenizers_are_expressed() {
    let texts = |list: &[&str]| Item::Texts(list.iter().map(|t| (*t).to_owned()).collect());
    let mut gguf = Gguf::llama();
    gguf.meta("tokenizer.ggml.model", Item::Text("llama".into()));
    gguf.meta("tokenizer.ggml.tokens", texts(&["<unk>", "<s>", "</s>", "a", "b", "ab"]));
    gguf.meta("tokenizer.ggml.scores", Item::Numbers(vec![0.0, 0.0, 0.0, -2.0, -3.0, -1.0]));
    gguf.meta("tokenizer.ggml.token_type", Item::Integers(vec![2, 3, 3, 1, 1, 1]));
    gguf.meta("tokenizer.ggml.unknown_token_id", Item::Count(0));
    gguf.meta("tokenizer.ggml.bos_token_id", Item::Count(1));
    gguf.meta("tokenizer.ggml.eos_token_id", Item::Count(2));
    gguf.meta("tokenizer.chat_template", Item::Text("{{ messages }}".into()));
    let base = gguf.open().unwrap();
    assert_eq!(base.tokenizer.chat_template.as_deref(), Some("{{ messages }}"));
    let json: serde_json::Value = serde_json::from_slice(base.tokenizer.tokenizer_json.as_ref().unwrap()).unwrap();
    assert_eq!(json["model"]["merges"], json!([["a", "b"]]));
    assert_eq!(json["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");
    let compiled = lora_pack::compile::tokenizer::compile_tokenizer(base.tokenizer.tokenizer_json.as_ref().unwrap(), 6);
    assert_eq!(compiled.unwrap().id_of("ab"), Some(5));

    gguf.meta("tokenizer.ggml.model", Item::Text("bert".into()));
    gguf.meta("tokenizer.ggml.tokens", texts(&["[UNK]", "[CLS]", "[SEP]", "▁play", "ing", "▁a"]));
    let base = gguf.open().unwrap();
    let json: serde_json::Value = serde_json::from_slice(base.tokenizer.tokenizer_json.as_ref().unwrap()).unwrap();
    assert_eq!(json["model"]["vocab"], json!({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "play": 3, "##ing": 4, "a": 5}));
    assert_eq!(json["normalizer"]["lowercase"], true);

    gguf.meta("tokenizer.ggml.model", Item::Text("gpt2".into()));
    gguf.meta("tokenizer.ggml.pre", Item::Text("martian".into()));
    let base = gguf.open().unwrap();
    assert!(base.tokenizer.tokenizer_json.is_none());
    assert!(base.tokenizer.problem.unwrap().contains("'martian'"));
}
