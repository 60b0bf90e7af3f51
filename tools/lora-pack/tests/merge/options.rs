//! Options and tensors of adapters that change little and must not be overlooked.

use super::kit::{Kit, Tensor, bf16, close, list, rows, tensor};
use lora_pack::merge::{Level, MergeOptions, TaskType};
use serde_json::{Value, json};

const Q: &str = "model.layers.0.q.weight";
const PLAIN: [[f32; 3]; 2] = [[2.0, 2.0, 2.0], [-2.0, -3.0, -1.0]];

fn w() -> Tensor {
    rows(&[[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]])
}

fn factors(module: &str) -> Vec<(String, Tensor)> {
    vec![
        (format!("{module}.lora_A.weight"), rows(&[[1.0, 2.0, 0.0]])),
        (format!("{module}.lora_B.weight"), rows(&[[0.5], [-1.0]])),
    ]
}

/// An adapter with the plain factors on `model.layers.0.q`.
fn plain(kit: &mut Kit, config: Value) {
    adapter(kit, config, factors("model.layers.0.q"));
}

fn adapter(kit: &mut Kit, config: Value, tensors: Vec<(String, Tensor)>) {
    let tensors: Vec<(&str, Tensor)> = tensors.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
    kit.adapter(config, &tensors);
}

#[test]
fn words_for_tasks() {
    for (word, task, warns) in [
        (json!("QUESTION_ANS"), Some(TaskType::QuestionAns), false),
        (json!("QUESTION_ANSWERING"), Some(TaskType::QuestionAns), true),
        (json!("OTHER"), None, true),
        (Value::Null, None, false),
    ] {
        let head = ("qa_outputs.weight".to_owned(), rows(&[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]));
        let mut kit = Kit::llama(&[(Q, w()), ("qa_outputs.weight", w())]);
        let mut tensors = factors("model.layers.0.q");
        tensors.push(head);
        let config = json!({"target_modules": ["q"], "task_type": word, "modules_to_save": ["qa_outputs"]});
        adapter(&mut kit, config, tensors);
        kit.merged(&[], &MergeOptions::default(), |m| {
            assert_eq!(m.task(), task, "{word}");
            assert_eq!(m.notes().iter().any(|n| n.level == Level::Warning && n.text.contains("task_type")), warns);
        })
        .unwrap();
    }
    let mut kit = Kit::llama(&[(Q, w())]);
    plain(&mut kit, json!({"target_modules": ["q"], "task_type": "TELEPATHY"}));
    assert!(kit.refusal().contains("'TELEPATHY'"), "{}", kit.refusal());
}

#[test]
fn alpha_may_be_any_number() {
    for (alpha, scale) in [(json!(2.0), 1.0), (json!(0.5), 0.25), (json!(0), 0.0), (json!(-2), -1.0)] {
        let mut kit = Kit::llama(&[(Q, w())]);
        plain(&mut kit, json!({"target_modules": ["q"], "lora_alpha": alpha}));
        let delta = [[1.0, 2.0, 0.0], [-2.0, -4.0, 0.0]].as_flattened().iter();
        let base = [1.0, 0.0, 2.0, 0.0, 1.0, -1.0];
        let want: Vec<f32> = base.iter().zip(delta).map(|(w, d)| w + scale * d).collect();
        assert_eq!(kit.tensor(Q), want, "{alpha}");
        let notes = kit.merged(&[], &MergeOptions::default(), |m| m.notes().to_vec()).unwrap();
        assert_eq!(notes.iter().any(|n| n.text.contains("alpha")), scale <= 0.0, "{alpha}");
    }
}

#[test]
fn all_linear_does_not_mean_the_head_or_the_embedding() {
    let base = [(Q, w()), ("lm_head.weight", w()), ("model.embed_tokens.weight", w())];
    let mut kit = Kit::llama(&base);
    plain(&mut kit, json!({"target_modules": "all-linear", "task_type": "CAUSAL_LM"}));
    close(&kit.tensor(Q), &PLAIN, 0.0);
    // A linear layer without factors is missing them.
    let with_k = [&base[..], &[("model.layers.0.k.weight", w())]].concat();
    let mut kit = Kit::llama(&with_k);
    plain(&mut kit, json!({"target_modules": "all-linear", "task_type": "CAUSAL_LM"}));
    assert!(kit.refusal().contains("model.layers.0.k"), "{}", kit.refusal());
}

#[test]
fn without_target_modules_the_file_says_it_all() {
    let mut kit = Kit::llama(&[(Q, w())]);
    plain(&mut kit, json!({"target_modules": null}));
    close(&kit.tensor(Q), &PLAIN, 0.0);
}

#[test]
fn a_zero_row_has_no_direction() {
    // V = W + s·B·A with s = 2; the second row is zero.
    let mut kit = Kit::llama(&[(Q, rows(&[[1.0, 0.0, 2.0], [2.0, 4.0, 0.0]]))]);
    let mut tensors = factors("model.layers.0.q");
    tensors.push(("model.layers.0.q.lora_magnitude_vector".into(), list(&[3.0, 5.0])));
    adapter(&mut kit, json!({"target_modules": ["q"], "use_dora": true}), tensors);
    assert!(kit.refusal().contains("output 1 is zero"), "{}", kit.refusal());
}

#[test]
fn position_biases_of_t5_are_applied() {
    let name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    let q = "encoder.block.0.layer.0.SelfAttention.q";
    let mut kit =
        Kit::new(json!({"model_type": "t5"}), &[(&format!("{q}.weight"), w()), (name, rows(&[[1.0], [2.0]]))]);
    let mut tensors = factors(q);
    tensors.push((name.into(), rows(&[[7.0], [8.0]])));
    adapter(&mut kit, json!({"target_modules": ["q"], "bias": "all"}), tensors);
    close(&kit.tensor(name), &[[7.0], [8.0]], 0.0);
}

#[test]
fn a_saved_name_takes_modules_that_end_with_it() {
    // PEFT wraps by the end of the name, so `classifier` takes DistilBERT's `pre_classifier` too.
    let q = "distilbert.transformer.layer.0.attention.q_lin";
    let base = [(format!("{q}.weight"), w()), ("pre_classifier.weight".into(), w()), ("classifier.weight".into(), w())];
    let base: Vec<(&str, Tensor)> = base.iter().map(|(n, t): &(String, Tensor)| (n.as_str(), t.clone())).collect();
    let mut kit = Kit::new(json!({"model_type": "distilbert"}), &base);
    let mut tensors = factors(q);
    let new = || tensor(&[2, 3], &[7.0; 6]);
    tensors.extend([("pre_classifier.weight".into(), new()), ("classifier.weight".into(), new())]);
    adapter(
        &mut kit,
        json!({"target_modules": ["q_lin"], "task_type": "SEQ_CLS", "modules_to_save": ["classifier"]}),
        tensors,
    );
    assert_eq!(kit.tensor("pre_classifier.weight"), [7.0; 6]);
    assert_eq!(kit.tensor("classifier.weight"), [7.0; 6]);
}

#[test]
fn rounding_as_peft_rounds_is_asked_for() {
    // 1 + 0.00390625 · 1.0009765625 = 1.00391…: between the bf16 numbers 1 and 1.0078125, nearer to the second.
    let base = || Kit::llama(&[(Q, bf16(rows(&[[1.0]])))]);
    let factors = [
        ("model.layers.0.q.lora_A.weight", rows(&[[0.003_91_f32]])),
        ("model.layers.0.q.lora_B.weight", rows(&[[0.5_f32]])),
    ];
    let mut kit = base();
    kit.adapter(json!({"target_modules": ["q"]}), &factors);
    assert_eq!(kit.tensor(Q), [1.0 + 0.003_91]);
    let rounded = MergeOptions { round: true, ..MergeOptions::default() };
    assert_eq!(kit.merged(&[], &rounded, |m| m.tensor_f32(Q).unwrap()).unwrap(), [1.007_812_5]);
}

#[test]
fn two_adapters_cannot_replace_one_tensor() {
    let mut kit = Kit::llama(&[(Q, w()), ("model.norm.weight", list(&[1.0]))]);
    for value in [2.0, 3.0] {
        let mut tensors = factors("model.layers.0.q");
        tensors.push(("model.norm.weight".into(), list(&[value])));
        adapter(&mut kit, json!({"target_modules": ["q"], "modules_to_save": ["norm"]}), tensors);
    }
    assert!(kit.refusal().contains("both replace 'model.norm.weight'"), "{}", kit.refusal());
}

#[test]
fn one_matrix_of_an_expert_is_enough() {
    // PEFT cannot load w1 without w3 over stacked experts; here they are matrices like any other.
    let module = |w: &str| format!("model.layers.0.block_sparse_moe.experts.0.{w}");
    let (w1, w3) = (format!("{}.weight", module("w1")), format!("{}.weight", module("w3")));
    let mut kit = Kit::new(json!({"model_type": "mixtral"}), &[(&w1, w()), (&w3, w())]);
    adapter(&mut kit, json!({"target_modules": ["w1"]}), factors(&module("w1")));
    close(&kit.tensor(&w1), &PLAIN, 0.0);
    close(&kit.tensor(&w3), &[[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]], 0.0);
}

#[test]
fn a_wrong_name_gets_the_closest_ones() {
    let mut kit = Kit::llama(&[("model.layers.0.self_attn.q_proj.weight", w()), ("model.norm.weight", list(&[1.0]))]);
    adapter(&mut kit, json!({"target_modules": ["q_porj"]}), factors("model.layers.0.self_attn.q_porj"));
    let why = kit.refusal();
    assert!(why.contains("q_porj") && why.contains("model.layers.0.self_attn.q_proj"), "{why}");
}
