//! Tied embeddings, resized vocabularies, replicated layers: what becomes of the model as a whole.

use super::kit::{Kit, Tensor, close, rows, tensor};
use lora_pack::merge::{MergeOptions, Merged};
use serde_json::{Value, json};

const EMBED: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

fn table() -> Tensor {
    rows(&[[1.0, 0.0], [0.0, 1.0], [2.0, -1.0]])
}

const TABLE: [[f32; 2]; 3] = [[1.0, 0.0], [0.0, 1.0], [2.0, -1.0]];
/// The table with the embedding's factors added.
const EMBEDDED: [[f32; 2]; 3] = [[2.0, -2.0], [2.0, -3.0], [2.0, -1.0]];

/// A tied llama; with `stored`, the head is in the file as well.
fn tied(stored: bool) -> Kit {
    let mut tensors = vec![(EMBED, table()), ("model.norm.weight", tensor(&[2], &[1.0, 1.0]))];
    if stored {
        tensors.push((HEAD, table()));
    }
    let config = json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": true,
        "vocab_size": 3});
    Kit::new(config, &tensors)
}

fn causal(more: Value) -> Value {
    let mut out = json!({"task_type": "CAUSAL_LM"});
    out.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    out
}

fn embedding_factors() -> [(&'static str, Tensor); 2] {
    [
        ("model.embed_tokens.lora_embedding_A", rows(&[[1.0, 2.0, 0.0]])),
        ("model.embed_tokens.lora_embedding_B", rows(&[[0.5], [-1.0]])),
    ]
}

/// The same product as the embedding's factors, as a linear layer's: swapped and transposed.
fn head_factors() -> [(&'static str, Tensor); 2] {
    [("lm_head.lora_A.weight", rows(&[[0.5, -1.0]])), ("lm_head.lora_B.weight", rows(&[[1.0], [2.0], [0.0]]))]
}

fn look<T>(kit: &Kit, use_it: impl FnOnce(&Merged) -> T) -> T {
    kit.merged(&[], &MergeOptions::default(), use_it).unwrap()
}

fn names(m: &Merged) -> Vec<String> {
    m.names().map(str::to_owned).collect()
}

#[test]
fn lora_on_one_side_unties() {
    for stored in [false, true] {
        let mut kit = tied(stored);
        kit.adapter(causal(json!({"target_modules": ["embed_tokens"]})), &embedding_factors());
        look(&kit, |m| {
            assert_eq!(names(m), [HEAD, EMBED, "model.norm.weight"]);
            assert_eq!(m.config()["tie_word_embeddings"], false);
            close(&m.tensor_f32(EMBED).unwrap(), &EMBEDDED, 0.0);
            close(&m.tensor_f32(HEAD).unwrap(), &TABLE, 0.0);
            assert_eq!(m.changed().len(), 1);
        });
        let mut kit = tied(stored);
        kit.adapter(causal(json!({"target_modules": ["lm_head"]})), &head_factors());
        look(&kit, |m| {
            assert_eq!(m.config()["tie_word_embeddings"], false);
            close(&m.tensor_f32(EMBED).unwrap(), &TABLE, 0.0);
            close(&m.tensor_f32(HEAD).unwrap(), &EMBEDDED, 0.0);
        });
    }
}

#[test]
fn lora_on_both_sides() {
    let both = |head: [(&'static str, Tensor); 2]| {
        let mut kit = tied(false);
        let mut parts = embedding_factors().to_vec();
        parts.extend(head);
        kit.adapter(causal(json!({"target_modules": ["embed_tokens", "lm_head"]})), &parts);
        kit
    };
    // Different deltas: each side its own.
    let other =
        [("lm_head.lora_A.weight", rows(&[[1.0, 0.0]])), ("lm_head.lora_B.weight", rows(&[[1.0], [0.0], [0.0]]))];
    look(&both(other), |m| {
        close(&m.tensor_f32(EMBED).unwrap(), &EMBEDDED, 0.0);
        close(&m.tensor_f32(HEAD).unwrap(), &[[3.0, 0.0], [0.0, 1.0], [2.0, -1.0]], 0.0);
    });
    // Equal deltas: added once, still tied.
    look(&both(head_factors()), |m| {
        assert_eq!(names(m), [EMBED, "model.norm.weight"]);
        assert_eq!(m.config()["tie_word_embeddings"], true);
        close(&m.tensor_f32(EMBED).unwrap(), &EMBEDDED, 0.0);
    });
    // One side's factors, asked to be tied.
    let mut kit = tied(false);
    let config = json!({"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": true});
    kit.adapter(causal(config), &embedding_factors());
    look(&kit, |m| {
        assert_eq!(m.config()["tie_word_embeddings"], true);
        close(&m.tensor_f32(EMBED).unwrap(), &EMBEDDED, 0.0);
    });
}

#[test]
fn saved_modules_of_a_tied_model() {
    let new = || tensor(&[3, 2], &[9.0; 6]);
    let mut kit = tied(false);
    kit.adapter(causal(json!({"modules_to_save": ["lm_head"]})), &[(HEAD, new())]);
    look(&kit, |m| {
        assert_eq!(m.config()["tie_word_embeddings"], false);
        close(&m.tensor_f32(EMBED).unwrap(), &TABLE, 0.0);
        assert_eq!(m.tensor_f32(HEAD).unwrap(), [9.0; 6]);
    });
    let mut kit = tied(false);
    let both = json!({"modules_to_save": ["lm_head", "embed_tokens"]});
    kit.adapter(causal(both), &[(HEAD, new()), (EMBED, new())]);
    look(&kit, |m| {
        assert_eq!(names(m), [EMBED, "model.norm.weight"]);
        assert_eq!(m.tensor_f32(EMBED).unwrap(), [9.0; 6]);
    });
    // Saved after a resize, without any config entry.
    let mut kit = tied(false);
    let larger = || tensor(&[4, 2], &[7.0; 8]);
    kit.adapter(causal(json!({})), &[(HEAD, larger()), (EMBED, larger())]);
    look(&kit, |m| {
        assert_eq!(m.config()["vocab_size"], 4);
        assert_eq!(m.shape(EMBED).unwrap(), [4, 2]);
        assert_eq!(names(m), [EMBED, "model.norm.weight"]);
    });
    // One side only: the other follows.
    let mut kit = tied(false);
    kit.adapter(causal(json!({})), &[(EMBED, larger())]);
    look(&kit, |m| assert_eq!(m.shape(EMBED).unwrap(), [4, 2]));
    // An untied model needs both.
    let config = json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": false});
    let mut kit = Kit::new(config, &[(EMBED, table()), (HEAD, table())]);
    kit.adapter(causal(json!({})), &[(EMBED, larger())]);
    assert!(kit.refusal().contains("4") && kit.refusal().contains("shape"), "{}", kit.refusal());
}

#[test]
fn tokens_of_a_tied_model() {
    let delta = "model.embed_tokens.token_adapter.trainable_tokens_delta";
    let mut kit = tied(true);
    kit.adapter(causal(json!({"trainable_token_indices": [1]})), &[(delta, rows(&[[8.0, 9.0]]))]);
    look(&kit, |m| {
        assert_eq!(names(m), [EMBED, "model.norm.weight"]);
        close(&m.tensor_f32(EMBED).unwrap(), &[[1.0, 0.0], [8.0, 9.0], [2.0, -1.0]], 0.0);
    });
    let mut kit = tied(true);
    kit.adapter(
        causal(json!({"trainable_token_indices": {"embed_tokens": [1], "lm_head": [0]}})),
        &[(delta, rows(&[[8.0, 9.0]])), ("lm_head.token_adapter.trainable_tokens_delta", rows(&[[6.0, 7.0]]))],
    );
    look(&kit, |m| {
        assert_eq!(m.config()["tie_word_embeddings"], false);
        close(&m.tensor_f32(EMBED).unwrap(), &[[1.0, 0.0], [8.0, 9.0], [2.0, -1.0]], 0.0);
        close(&m.tensor_f32(HEAD).unwrap(), &[[6.0, 7.0], [0.0, 1.0], [2.0, -1.0]], 0.0);
    });
}

#[test]
fn tokens_that_were_saved_for_both_sides() {
    // What TRAINABLE_TOKENS writes over a tied model: the same rows under both names.
    let mut kit = tied(false);
    let mut config =
        causal(json!({"peft_type": "TRAINABLE_TOKENS", "token_indices": [1], "target_modules": ["embed_tokens"]}));
    for of_lora in ["r", "lora_alpha"] {
        config[of_lora] = Value::Null;
    }
    let delta = || rows(&[[8.0, 9.0]]);
    kit.adapter(
        config,
        &[("model.embed_tokens.trainable_tokens_delta", delta()), ("lm_head.trainable_tokens_delta", delta())],
    );
    look(&kit, |m| {
        assert_eq!(names(m), [EMBED, "model.norm.weight"]);
        close(&m.tensor_f32(EMBED).unwrap(), &[[1.0, 0.0], [8.0, 9.0], [2.0, -1.0]], 0.0);
        assert_eq!(m.adapters()[0].applied, 2);
    });
}

#[test]
fn a_t5_head_takes_the_scale_when_it_is_untied() {
    let config = json!({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 4,
        "tie_word_embeddings": true});
    let shared = || tensor(&[3, 4], &[1.0; 12]);
    let mut kit = Kit::new(config.clone(), &[("shared.weight", shared())]);
    let head = json!({"task_type": "SEQ_2_SEQ_LM", "modules_to_save": ["lm_head"]});
    kit.adapter(head, &[("lm_head.weight", tensor(&[3, 4], &[6.0; 12]))]);
    look(&kit, |m| {
        assert_eq!(m.config()["tie_word_embeddings"], false);
        assert_eq!(m.tensor_f32("lm_head.weight").unwrap(), [3.0; 12]);
        assert_eq!(m.tensor_f32("decoder.embed_tokens.weight").unwrap(), [1.0; 12]);
    });
    // The two stacks have embeddings of their own; `shared` is nobody's.
    let mut kit = Kit::new(config.clone(), &[("shared.weight", shared())]);
    let factors = |m: &str| {
        [
            (format!("{m}.lora_embedding_A"), tensor(&[1, 3], &[1.0; 3])),
            (format!("{m}.lora_embedding_B"), tensor(&[4, 1], &[1.0; 4])),
        ]
    };
    let [a, b] = factors("shared");
    kit.adapter(json!({"task_type": "SEQ_2_SEQ_LM", "target_modules": ["shared"]}), &[(&a.0, a.1), (&b.0, b.1)]);
    assert!(kit.refusal().contains("'shared'"), "{}", kit.refusal());
    let mut kit = Kit::new(config, &[("shared.weight", shared())]);
    let [a, b] = factors("encoder.embed_tokens");
    let target = json!({"task_type": "SEQ_2_SEQ_LM", "target_modules": "encoder\\.embed_tokens"});
    kit.adapter(target, &[(&a.0, a.1), (&b.0, b.1)]);
    look(&kit, |m| {
        assert_eq!(m.tensor_f32("encoder.embed_tokens.weight").unwrap(), [3.0; 12]);
        assert_eq!(m.tensor_f32("decoder.embed_tokens.weight").unwrap(), [1.0; 12]);
        assert_eq!(m.tensor_f32("lm_head.weight").unwrap(), [0.5; 12]);
    });
}

#[test]
fn replicated_layers_are_copies() {
    let layer = |i: usize| format!("model.layers.{i}.q.weight");
    let (l0, l1) = (layer(0), layer(1));
    let config = json!({"model_type": "llama", "num_hidden_layers": 2, "layer_types": ["a", "b"]});
    let one = |x: f32| rows(&[[x]]);
    let mut kit = Kit::new(config, &[(&l0, one(10.0)), (&l1, one(20.0))]);
    let names: Vec<(String, String)> = (0..3)
        .map(|i| (format!("model.layers.{i}.q.lora_A.weight"), format!("model.layers.{i}.q.lora_B.weight")))
        .collect();
    let mut parts = Vec::new();
    for (i, (a, b)) in names.iter().enumerate() {
        parts.push((a.as_str(), one(1.0)));
        parts.push((b.as_str(), one(i as f32)));
    }
    kit.adapter(json!({"target_modules": ["q"], "layer_replication": [[0, 2], [0, 1]], "lora_alpha": 1}), &parts);
    look(&kit, |m| {
        assert_eq!(m.config()["num_hidden_layers"], 3);
        assert_eq!(m.config()["layer_types"], json!(["a", "b", "a"]));
        let got: Vec<f32> = (0..3).map(|i| m.tensor_f32(&layer(i)).unwrap()[0]).collect();
        assert_eq!(got, [10.0, 21.0, 12.0]);
    });
}
