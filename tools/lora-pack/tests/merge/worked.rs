//! Worked numbers: small cases whose results PEFT computed, one per rule.

use super::kit::{Kit, Tensor, close, integers, list, rows, tensor};
use lora_pack::merge::{Combine, MergeOptions, TaskType};
use serde_json::{Value, json};

const Q: &str = "model.layers.0.q.weight";

fn w() -> Tensor {
    rows(&[[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]])
}

fn a() -> Tensor {
    rows(&[[1.0, 2.0, 0.0]])
}

fn b() -> Tensor {
    rows(&[[0.5], [-1.0]])
}

/// One layer `q` with W, and the plain factors A and B over it.
fn one(config: Value) -> Kit {
    let mut kit = Kit::llama(&[(Q, w())]);
    kit.adapter(config, &[("model.layers.0.q.lora_A.weight", a()), ("model.layers.0.q.lora_B.weight", b())]);
    kit
}

/// One layer `q` with this weight, and an adapter with these tensors of `q`.
fn over(weight: Tensor, config: Value, tensors: &[(&str, Tensor)]) -> Kit {
    let mut kit = Kit::llama(&[(Q, weight)]);
    add(&mut kit, config, tensors);
    kit
}

fn add(kit: &mut Kit, config: Value, tensors: &[(&str, Tensor)]) {
    let names: Vec<String> = tensors.iter().map(|(n, _)| format!("model.layers.0.q.{n}")).collect();
    let tensors: Vec<(&str, Tensor)> =
        names.iter().map(String::as_str).zip(tensors.iter().map(|(_, t)| t.clone())).collect();
    kit.adapter(config, &tensors);
}

fn target() -> Value {
    json!({"target_modules": ["q"]})
}

fn with(more: Value) -> Value {
    let mut out = target();
    out.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    out
}

const PLAIN: [[f32; 3]; 2] = [[2.0, 2.0, 2.0], [-2.0, -3.0, -1.0]];

#[test]
fn linear() {
    close(&one(target()).tensor(Q), &PLAIN, 0.0);
    // b is not touched: x = (1,1,1), b = (0.5,−0.5) gives (6.5,−6.5)
    let merged = one(target()).tensor(Q);
    let y: Vec<f32> = merged.chunks(3).zip([0.5, -0.5]).map(|(row, b)| row.iter().sum::<f32>() + b).collect();
    assert_eq!(y, [6.5, -6.5]);
}

#[test]
fn conv1d_by_architecture_not_by_flag() {
    for flag in [true, false] {
        let name = "transformer.h.0.attn.c_attn";
        let weight = format!("{name}.weight");
        let mut kit =
            Kit::new(json!({"model_type": "gpt2"}), &[(&weight, rows(&[[1.0, 0.0], [0.0, 1.0], [2.0, -1.0]]))]);
        kit.adapter(
            json!({"target_modules": ["c_attn"], "fan_in_fan_out": flag}),
            &[(&format!("{name}.lora_A.weight"), a()), (&format!("{name}.lora_B.weight"), b())],
        );
        close(&kit.tensor(&weight), &[[2.0, -2.0], [2.0, -3.0], [2.0, -1.0]], 0.0);
    }
}

#[test]
fn embedding() {
    let name = "model.embed_tokens";
    let weight = format!("{name}.weight");
    let mut kit = Kit::llama(&[(&weight, rows(&[[1.0, 0.0], [0.0, 1.0], [2.0, -1.0]]))]);
    kit.adapter(
        json!({"target_modules": ["embed_tokens"]}),
        &[(&format!("{name}.lora_embedding_A"), a()), (&format!("{name}.lora_embedding_B"), b())],
    );
    close(&kit.tensor(&weight), &[[2.0, -2.0], [2.0, -3.0], [2.0, -1.0]], 0.0);
}

#[test]
fn convolution() {
    // (out 2, in 1, kernel 3) is the 2 × 3 matrix
    let kit = over(
        tensor(&[2, 1, 3], &[1.0, 0.0, 2.0, 0.0, 1.0, -1.0]),
        target(),
        &[("lora_A.weight", tensor(&[1, 1, 3], &[1.0, 2.0, 0.0])), ("lora_B.weight", tensor(&[2, 1, 1], &[0.5, -1.0]))],
    );
    close(&kit.tensor(Q), &PLAIN, 0.0);
}

#[test]
fn scales() {
    // r=8, alpha=16, rank_pattern{a:2}, alpha_pattern{b:4}
    let scale = |config: Value, name: &str, r: usize| {
        let weight = format!("model.layers.0.{name}.weight");
        let mut kit = Kit::llama(&[(&weight, rows(&[[0.0]]))]);
        let mut full = json!({"r": 8, "lora_alpha": 16, "target_modules": ["a", "b"]});
        full.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        let mut factor = vec![0.0; r];
        factor[0] = 1.0;
        kit.adapter(
            full,
            &[
                (&format!("model.layers.0.{name}.lora_A.weight"), tensor(&[r, 1], &factor)),
                (&format!("model.layers.0.{name}.lora_B.weight"), tensor(&[1, r], &factor)),
            ],
        );
        kit.tensor(&weight)[0]
    };
    let patterns = json!({"rank_pattern": {"a": 2}, "alpha_pattern": {"b": 4}});
    assert_eq!(scale(patterns.clone(), "a", 2), 8.0);
    assert_eq!(scale(patterns, "b", 8), 0.5);
    let rs = json!({"rank_pattern": {"a": 2}, "use_rslora": true});
    assert!((scale(rs.clone(), "a", 2) - 11.3137).abs() < 1e-4);
    assert!((scale(rs, "b", 8) - 5.6569).abs() < 1e-4);
    assert_eq!(scale(json!({"r": 4, "use_rslora": true}), "a", 4), 8.0);
    assert_eq!(scale(json!({"r": 4}), "a", 4), 4.0);
    assert_eq!(scale(json!({"lora_alpha": -4.0}), "a", 8), -0.5);
    assert_eq!(scale(json!({"lora_alpha": 0}), "a", 8), 0.0);
    // a converted rank-4 adapter with alpha 12
    assert_eq!(scale(json!({"r": 8, "lora_alpha": 24}), "a", 8), 3.0);
    assert!((scale(json!({"r": 8, "lora_alpha": 16.9705627, "use_rslora": true}), "a", 8) - 6.0).abs() < 1e-6);
}

#[test]
fn dora() {
    let kit = over(
        w(),
        with(json!({"use_dora": true})),
        &[("lora_A.weight", a()), ("lora_B.weight", b()), ("lora_magnitude_vector", list(&[3.0, 5.0]))],
    );
    close(&kit.tensor(Q), &[[1.73205; 3], [-2.67261, -4.00892, -1.33631]], 1e-5);
    let zero = over(
        rows(&[[-1.0, -2.0, 0.0], [0.0, 1.0, -1.0]]),
        with(json!({"use_dora": true})),
        &[("lora_A.weight", a()), ("lora_B.weight", b()), ("lora_magnitude_vector", list(&[3.0, 5.0]))],
    );
    assert!(zero.refusal().contains("output 0 is zero"), "{}", zero.refusal());
}

#[test]
fn dora_twice_uses_the_original_norms_in_order() {
    let dora = |kit: &mut Kit, m: [f32; 2], a: Tensor, b: Tensor| {
        let parts = [("lora_A.weight", a), ("lora_B.weight", b), ("lora_magnitude_vector", list(&m))];
        add(kit, with(json!({"use_dora": true})), &parts);
    };
    let second = || (rows(&[[0.0, -1.0, 4.0]]), rows(&[[2.0], [1.0]]));
    let mut kit = Kit::llama(&[(Q, w())]);
    dora(&mut kit, [3.0, 5.0], a(), b());
    let (a2, b2) = second();
    dora(&mut kit, [2.0, 7.0], a2, b2);
    let got = kit.tensor(Q);
    // by hand: V_a = m_a/‖W + Δ_a‖ · (W + Δ_a), then V_b = m_b/‖W + Δ_b‖ · (V_a + Δ_b)
    let va = [[1.7320508f32; 3], [-2.6726124, -4.008919, -1.3363062]];
    let db = [[0.0f32, -4.0, 16.0], [0.0, -2.0, 8.0]];
    let w = [[1.0f32, 0.0, 2.0], [0.0, 1.0, -1.0]];
    let mut want = [[0f32; 3]; 2];
    for o in 0..2 {
        let norm = (0..3).map(|i| (w[o][i] + db[o][i]).powi(2)).sum::<f32>().sqrt();
        for i in 0..3 {
            want[o][i] = [2.0, 7.0][o] / norm * (va[o][i] + db[o][i]);
        }
    }
    close(&got, &want, 1e-5);
}

#[test]
fn dora_on_an_embedding_takes_columns() {
    let name = "model.embed_tokens";
    let weight = format!("{name}.weight");
    let mut kit = Kit::llama(&[(&weight, rows(&[[1.0, 0.0], [0.0, 1.0], [2.0, -1.0]]))]);
    kit.adapter(
        json!({"target_modules": ["embed_tokens"], "use_dora": true}),
        &[
            (&format!("{name}.lora_embedding_A"), a()),
            (&format!("{name}.lora_embedding_B"), b()),
            (&format!("{name}.lora_magnitude_vector"), list(&[3.0, 5.0])),
        ],
    );
    let want = [[1.73205, -2.67261], [1.73205, -4.00892], [1.73205, -1.33631]];
    close(&kit.tensor(&weight), &want, 1e-5);
}

#[test]
fn lora_bias() {
    let mut kit = Kit::llama(&[(Q, w()), ("model.layers.0.q.bias", list(&[0.5, -0.5]))]);
    let tensors = [("lora_A.weight", a()), ("lora_B.weight", b()), ("lora_B.bias", list(&[10.0, 20.0]))];
    add(&mut kit, with(json!({"lora_bias": true})), &tensors);
    close(&kit.tensor("model.layers.0.q.bias"), &[[20.5, 39.5]], 0.0);
    close(&kit.tensor(Q), &PLAIN, 0.0);
    let without = over(w(), with(json!({"lora_bias": true})), &tensors);
    assert!(without.refusal().contains("no bias"), "{}", without.refusal());
}

#[test]
fn starts_that_change_the_base() {
    let merged = |init: &str, options: &MergeOptions| {
        one(with(json!({"init_lora_weights": init}))).merged(&[], options, |m| m.tensor_f32(Q).unwrap()).unwrap()
    };
    let original = MergeOptions::default();
    close(&merged("pissa", &original), &[[1.2, 2.4, 0.0], [-1.6, -3.2, 0.0]], 1e-6);
    close(&merged("olora", &original), &[[0.0, 2.0, -2.0], [-2.0, -3.0, -1.0]], 1e-6);
    for plain in ["gaussian", "orthogonal", "eva", "mica"] {
        close(&merged(plain, &original), &PLAIN, 0.0);
    }
    let residual = MergeOptions { init_base: lora_pack::merge::InitBase::Residual, ..MergeOptions::default() };
    for any in ["pissa", "olora", "pissa_niter_4", "corda", "loftq", "lora_ga"] {
        close(&merged(any, &residual), &PLAIN, 0.0);
    }
    for lost in ["pissa_niter_4", "corda", "loftq", "lora_ga"] {
        let why = one(with(json!({"init_lora_weights": lost}))).refusal();
        assert!(why.contains("init_lora_weights") && why.contains(lost) && why.contains("convert"), "{why}");
    }
    assert!(one(with(json!({"init_lora_weights": "sorcery"}))).refusal().contains("'sorcery'"));
}

#[test]
fn kasa() {
    let kit = over(
        w(),
        with(json!({"kasa_config": {"beta": 0.0001, "gemma": 0.001}})),
        &[("lora_A.weight", a()), ("lora_B.weight", b()), ("lora_diag", list(&[3.0]))],
    );
    close(&kit.tensor(Q), &[[3.8, 5.6, 2.0], [-6.4, -11.8, -1.0]], 1e-5);
}

#[test]
fn block_diagonal() {
    let bd = json!({"nblocks": 2, "target_modules_bd_a": ["nothing"], "target_modules_bd_b": [".q"]});
    let kit = over(
        tensor(&[4, 4], &[0.0; 16]),
        with(json!({"r": 2, "use_bdlora": bd})),
        &[
            ("lora_A.weight", rows(&[[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])),
            ("lora_B.weight", rows(&[[1.0], [2.0], [3.0], [4.0]])),
        ],
    );
    let want = [[1.0, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0], [0.0, 4.0, 0.0, 0.0]];
    close(&kit.tensor(Q), &want, 0.0);
}

#[test]
fn grouped_inputs() {
    let qa = |a: Tensor| {
        over(
            tensor(&[2, 4], &[0.0; 8]),
            with(json!({"use_qalora": true, "qalora_group_size": 2})),
            &[("lora_A.weight", a), ("lora_B.weight", rows(&[[1.0], [-1.0]]))],
        )
    };
    close(&qa(rows(&[[1.0, 2.0]])).tensor(Q), &[[2.0, 2.0, 4.0, 4.0], [-2.0, -2.0, -4.0, -4.0]], 0.0);
    // A of full width is plain, whatever the flag says.
    close(&qa(rows(&[[1.0, 0.0, 0.0, 0.0]])).tensor(Q), &[[2.0, 0.0, 0.0, 0.0], [-2.0, 0.0, 0.0, 0.0]], 0.0);
}

/// Experts E=2, r=2, s=1: Δ₀ = [[1,2,0],[3,4,0]], Δ₁ = [[20,20,30],[40,40,70]].
const DELTAS: [[f32; 3]; 4] = [[1.0, 2.0, 0.0], [3.0, 4.0, 0.0], [20.0, 20.0, 30.0], [40.0, 40.0, 70.0]];

fn expert_factors(module: &str) -> [(String, Tensor); 2] {
    let a = rows(&[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]]);
    let b = rows(&[[1.0, 10.0, 2.0, 20.0], [3.0, 30.0, 4.0, 40.0]]);
    [(format!("{module}.lora_A.weight"), a), (format!("{module}.lora_B.weight"), b)]
}

fn experts(base: &[(&str, Tensor)], parameter: &str, version: &str) -> Kit {
    let mut kit = Kit::new(json!({"model_type": "mixtral"}), base);
    let config = json!({"r": 2, "lora_alpha": 2, "target_parameters": [format!("mlp.experts.{parameter}")],
        "peft_version": version});
    let [a, b] = expert_factors("model.layers.0.mlp.experts");
    kit.adapter(config, &[(&a.0, a.1), (&b.0, b.1)]);
    kit
}

#[test]
fn fused_experts_over_a_fused_base() {
    let name = "model.layers.0.mlp.experts.down_proj";
    let kit = experts(&[(name, tensor(&[2, 2, 3], &[0.0; 12]))], "down_proj", "0.21.2");
    close(&kit.tensor(name), &DELTAS, 0.0);
    // experts × in × out takes the transposes
    let kit = experts(&[(name, tensor(&[2, 3, 2], &[0.0; 12]))], "down_proj", "0.18.0");
    let want = [[1.0, 3.0], [2.0, 4.0], [0.0, 0.0], [20.0, 40.0], [20.0, 40.0], [30.0, 70.0]];
    close(&kit.tensor(name), &want, 0.0);
}

#[test]
fn fused_experts_over_a_base_that_stores_each() {
    let name = |e: usize, part: &str| format!("model.layers.0.block_sparse_moe.experts.{e}.{part}.weight");
    let zero = || rows(&[[0.0, 0.0, 0.0]]);
    let names: Vec<String> = (0..2).flat_map(|e| ["w1", "w3"].map(|p| name(e, p))).collect();
    let base: Vec<(&str, Tensor)> = names.iter().map(|n| (n.as_str(), zero())).collect();
    let kit = experts(&base, "gate_up_proj", "0.21.2");
    for (name, want) in names.iter().zip(DELTAS) {
        close(&kit.tensor(name), &[want], 0.0);
    }
}

#[test]
fn square_experts_need_the_version() {
    let name = "model.layers.0.mlp.experts.down_proj";
    let square = |version: &str| {
        let mut kit = Kit::new(json!({"model_type": "mixtral"}), &[(name, tensor(&[1, 2, 2], &[0.0; 4]))]);
        let config = json!({"target_parameters": ["experts.down_proj"], "peft_version": version});
        let module = "model.layers.0.mlp.experts";
        kit.adapter(
            config,
            &[
                (&format!("{module}.lora_A.weight"), rows(&[[1.0, 2.0]])),
                (&format!("{module}.lora_B.weight"), rows(&[[3.0], [0.0]])),
            ],
        );
        kit.tensor(name)
    };
    close(&square("0.19.0"), &[[6.0, 12.0], [0.0, 0.0]], 0.0);
    close(&square("0.17.1"), &[[6.0, 0.0], [12.0, 0.0]], 0.0);
}

#[test]
fn a_routers_parameter() {
    let name = "model.layers.0.mlp.gate.weight";
    let mut kit = Kit::llama(&[(name, w())]);
    kit.adapter(
        json!({"target_parameters": ["mlp.gate.weight"]}),
        &[("model.layers.0.mlp.gate.lora_A.weight", a()), ("model.layers.0.mlp.gate.lora_B.weight", b())],
    );
    close(&kit.tensor(name), &PLAIN, 0.0);
}

#[test]
fn token_rows() {
    let table = || rows(&[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0], [8.0, 9.0]]);
    let want = [[0.0, 1.0], [10.0, 11.0], [4.0, 5.0], [30.0, 31.0], [8.0, 9.0]];
    let delta = || rows(&[[30.0, 31.0], [10.0, 11.0]]);
    for indices in [json!([3, 1]), json!({"embed_tokens": [3, 1]})] {
        let mut kit = Kit::llama(&[("model.embed_tokens.weight", table())]);
        let config = json!({"trainable_token_indices": indices});
        kit.adapter(config, &[("model.embed_tokens.token_adapter.trainable_tokens_delta", delta())]);
        close(&kit.tensor("model.embed_tokens.weight"), &want, 0.0);
    }
    let mut kit = Kit::llama(&[("model.embed_tokens.weight", table())]);
    let config = json!({"peft_type": "TRAINABLE_TOKENS", "token_indices": [3, 1], "target_modules": ["embed_tokens"]});
    let mut config = config;
    config["r"] = Value::Null;
    config["lora_alpha"] = Value::Null;
    kit.adapter(config, &[("model.embed_tokens.trainable_tokens_delta", delta())]);
    close(&kit.tensor("model.embed_tokens.weight"), &want, 0.0);
    for (indices, word) in [(json!([3, 3]), "twice"), (json!([3, 5]), "token 5 is past"), (json!([3]), "shape")] {
        let mut kit = Kit::llama(&[("model.embed_tokens.weight", table())]);
        let name = "model.embed_tokens.token_adapter.trainable_tokens_delta";
        kit.adapter(json!({"trainable_token_indices": indices}), &[(name, delta())]);
        assert!(kit.refusal().contains(word), "{}", kit.refusal());
    }
}

/// The plain adapter, and a second one with A2, B2 and s=3.
fn two() -> Kit {
    let mut kit = one(target());
    let parts = [("lora_A.weight", rows(&[[0.0, -1.0, 4.0]])), ("lora_B.weight", rows(&[[2.0], [1.0]]))];
    add(&mut kit, with(json!({"lora_alpha": 3})), &parts);
    kit
}

#[test]
fn combinations() {
    // Deltas over a zero weight, for weights 0.7 and −0.4; W is added back by the test.
    let delta = |combine: Combine, density: Option<f64>, svd_rank: Option<usize>| {
        let options = MergeOptions { combine, density, svd_rank, ..MergeOptions::default() };
        let merged = two().merged(&[0.7, -0.4], &options, |m| m.tensor_f32(Q).unwrap()).unwrap();
        merged.iter().zip([1.0, 0.0, 2.0, 0.0, 1.0, -1.0]).map(|(x, w)| x - w).collect::<Vec<f32>>()
    };
    let exact = [[0.7, 3.8, -9.6], [-1.4, -1.6, -4.8]];
    close(&delta(Combine::Cat, None, None), &exact, 1e-5);
    close(&delta(Combine::Stack, None, None), &exact, 1e-5);
    close(&delta(Combine::Svd, None, Some(2)), &exact, 1e-5);
    close(&delta(Combine::Linear, None, None), &[[3.2923, 9.6327, -12.1923], [-0.1039, -0.3039, 0.3846]], 1e-4);
    close(&delta(Combine::Svd, None, Some(1)), &[[0.1095, 2.6958, -9.907], [0.0448, 1.1017, -4.0488]], 1e-3);
    close(&delta(Combine::Ties, Some(1.0), None), &[[1.6461, 3.2923, -6.0961], [1.2961, 2.5923, -4.8]], 1e-4);
    let pruned = [[0.0, 5.1846, -9.6], [0.0, -2.8, 5.1846]];
    close(&delta(Combine::Ties, Some(0.5), None), &pruned, 1e-4);
    close(&delta(Combine::MagnitudePrune, Some(0.5), None), &pruned, 1e-4);
    // All of it kept: the random forms are their plain ones.
    close(
        &delta(Combine::DareLinear, Some(1.0), None),
        &[[3.2923, 9.6327, -12.1923], [-0.1039, -0.3039, 0.3846]],
        1e-4,
    );
    close(&delta(Combine::DareTies, Some(1.0), None), &[[1.6461, 3.2923, -6.0961], [1.2961, 2.5923, -4.8]], 1e-4);
    close(&delta(Combine::MagnitudePruneSvd, Some(1.0), Some(2)), &exact, 1e-5);
    let sum = two().tensor(Q);
    close(&sum, &[[2.0, -4.0, 26.0], [-2.0, -6.0, 11.0]], 0.0);
}

#[test]
fn random_combinations_follow_the_seed() {
    let run = |seed| {
        let options =
            MergeOptions { combine: Combine::DareTiesSvd, density: Some(0.5), seed, ..MergeOptions::default() };
        two().merged(&[], &options, |m| m.tensor_f32(Q).unwrap()).unwrap()
    };
    assert_eq!(run(7), run(7));
    assert!((0..20).any(|s| run(s) != run(7)));
}

#[test]
fn combinations_that_cannot_be() {
    let mut uneven = one(target());
    add(
        &mut uneven,
        with(json!({"r": 2})),
        &[("lora_A.weight", tensor(&[2, 3], &[0.0; 6])), ("lora_B.weight", tensor(&[2, 2], &[0.0; 4]))],
    );
    let options = |combine| MergeOptions { combine, ..MergeOptions::default() };
    assert!(uneven.refusal_with(&options(Combine::Linear)).contains("equal ranks"));
    assert!(uneven.merged(&[], &options(Combine::Cat), |_| ()).is_ok());
    assert!(uneven.refusal_with(&options(Combine::Ties)).contains("density"));
    let mut tasks = one(with(json!({"task_type": "CAUSAL_LM"})));
    add(&mut tasks, with(json!({"task_type": "SEQ_CLS"})), &[("lora_A.weight", a()), ("lora_B.weight", b())]);
    assert!(tasks.refusal().contains("different tasks"));
}

fn method(name: &str, more: Value, weight: Tensor, tensors: &[(&str, Tensor)]) -> Kit {
    let mut config = with(json!({"peft_type": name, "r": null, "lora_alpha": null}));
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    over(weight, config, tensors)
}

#[test]
fn adalora() {
    let more = json!({"lora_alpha": 4, "init_r": 2, "r": 8, "init_lora_weights": true, "qalora_group_size": 16,
        "rank_pattern": {"model.layers.0.q.lora_E": [true, false]}});
    let kit = method(
        "ADALORA",
        more.clone(),
        w(),
        &[
            ("lora_A", rows(&[[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])),
            ("lora_B", rows(&[[0.5, 1.0], [-1.0, 0.0]])),
            ("lora_E", rows(&[[2.0], [0.0]])),
        ],
    );
    close(&kit.tensor(Q), &[[3.0, 4.0, 2.0], [-4.0, -7.0, -1.0]], 1e-4);
    let pruned = method(
        "ADALORA",
        more,
        w(),
        &[("lora_A", tensor(&[0, 3], &[])), ("lora_B", tensor(&[2, 0], &[])), ("lora_E", tensor(&[0, 1], &[]))],
    );
    close(&pruned.tensor(Q), &[[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]], 0.0);
    let odd = method("ADALORA", json!({"lora_alpha": 4, "init_r": 2, "use_dora": true}), w(), &[("lora_A", a())]);
    assert!(odd.refusal().contains("use_dora"), "{}", odd.refusal());
}

#[test]
fn ia3() {
    let bias = "model.layers.0.q.bias";
    let mut kit = Kit::llama(&[(Q, w()), (bias, list(&[1.0, 1.0]))]);
    let config = with(json!({"peft_type": "IA3", "r": null, "lora_alpha": null, "feedforward_modules": []}));
    add(&mut kit, config, &[("ia3_l", tensor(&[2, 1], &[2.0, 3.0]))]);
    close(&kit.tensor(Q), &[[2.0, 0.0, 4.0], [0.0, 3.0, -3.0]], 0.0);
    close(&kit.tensor(bias), &[[2.0, 3.0]], 0.0);
    let mut kit = Kit::llama(&[(Q, w()), (bias, list(&[1.0, 1.0]))]);
    let config = with(json!({"peft_type": "IA3", "r": null, "lora_alpha": null, "feedforward_modules": ["q"]}));
    add(&mut kit, config, &[("ia3_l", tensor(&[1, 3], &[2.0, 3.0, 4.0]))]);
    close(&kit.tensor(Q), &[[2.0, 0.0, 8.0], [0.0, 3.0, -4.0]], 0.0);
    close(&kit.tensor(bias), &[[1.0, 1.0]], 0.0);
}

#[test]
fn hadamard_and_kronecker() {
    let kit = method(
        "LOHA",
        json!({"r": 1, "alpha": 2}),
        w(),
        &[
            ("hada_w1_a", rows(&[[1.0], [2.0]])),
            ("hada_w1_b", rows(&[[1.0, 0.0, 1.0]])),
            ("hada_w2_a", rows(&[[1.0], [-1.0]])),
            ("hada_w2_b", rows(&[[2.0, 1.0, 1.0]])),
        ],
    );
    close(&kit.tensor(Q), &[[5.0, 0.0, 4.0], [-8.0, 1.0, -5.0]], 0.0);
    let want = [[1.0, 0.0, 2.0, 0.0], [0.0, -1.0, 0.0, -2.0], [3.0, 0.0, 4.0, 0.0], [0.0, -3.0, 0.0, -4.0]];
    let w1 = || rows(&[[1.0, 2.0], [3.0, 4.0]]);
    let w2 = || rows(&[[1.0, 0.0], [0.0, -1.0]]);
    let unit = || rows(&[[1.0, 0.0], [0.0, 1.0]]);
    for parts in [
        vec![("lokr_w1", w1()), ("lokr_w2", w2())],
        vec![("lokr_w1_a", w1()), ("lokr_w1_b", unit()), ("lokr_w2_a", unit()), ("lokr_w2_b", w2())],
    ] {
        let kit = method("LOKR", json!({"r": 2, "alpha": 2}), tensor(&[4, 4], &[0.0; 16]), &parts);
        close(&kit.tensor(Q), &want, 0.0);
    }
}

#[test]
fn vera() {
    let mut kit = Kit::llama(&[(Q, w())]);
    let config = with(json!({"peft_type": "VERA", "r": 1, "lora_alpha": null, "save_projection": true}));
    let dir = kit.adapter(
        config.clone(),
        &[
            ("model.layers.0.q.vera_lambda_b", list(&[2.0, 3.0])),
            ("model.layers.0.q.vera_lambda_d", list(&[4.0])),
            // wider than the layer: cut to its sides
            ("vera_A", rows(&[[1.0, 2.0, 0.0, 9.0]])),
            ("vera_B", rows(&[[0.5], [-1.0], [9.0]])),
        ],
    );
    assert!(dir.exists());
    close(&kit.tensor(Q), &[[5.0, 8.0, 2.0], [-12.0, -23.0, -1.0]], 0.0);
    let without = over(w(), config, &[("vera_lambda_b", list(&[2.0, 3.0])), ("vera_lambda_d", list(&[4.0]))]);
    assert!(without.refusal().contains("save_projection"), "{}", without.refusal());
}

#[test]
fn rotations_and_reflections() {
    let weight = || rows(&[[1.0, 0.0, 2.0, 1.0], [0.0, 1.0, -1.0, 3.0]]);
    let skew = || [("oft_R.weight", rows(&[[1.0], [0.5]]))];
    // r = 0 is how PEFT says that the block size decides
    let exact = method("OFT", json!({"use_cayley_neumann": false, "oft_block_size": 2, "r": 0}), weight(), &skew());
    close(&exact.tensor(Q), &[[0.0, 1.0, 0.4, 2.2], [-1.0, 0.0, -3.0, 1.0]], 1e-6);
    let series = method("OFT", json!({"use_cayley_neumann": true, "num_cayley_neumann_terms": 5}), weight(), &skew());
    close(&series.tensor(Q), &[[0.0, 0.0, 1.875, -0.9375], [0.0, 0.0, 1.6875, 2.4375]], 1e-6);
    let blocks = tensor(&[1, 2, 2, 2], &[0.3, 1.0, -0.5, 2.0, 0.0, 0.25, -0.75, 1.0]);
    let boft = [("boft_R", blocks), ("boft_s", rows(&[[1.0], [2.0]]))];
    let boft = method("BOFT", json!({"boft_block_size": 2}), weight(), &boft);
    close(&boft.tensor(Q), &[[0.28, 0.96, 0.4, 2.2], [-1.92, 0.56, -6.0, 2.0]], 1e-6);
    let several = tensor(&[2, 2, 2, 2], &[0.1; 16]);
    let several = [("boft_R", several), ("boft_s", rows(&[[1.0], [2.0]]))];
    let several = method("BOFT", json!({"boft_block_size": 2}), weight(), &several).refusal();
    assert!(several.contains("butterfly") && several.contains("boft_R"), "{several}");
    let kit = method("HRA", json!({"apply_GS": false}), w(), &[("hra_u", rows(&[[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]))]);
    close(&kit.tensor(Q), &[[0.0, -1.0, -2.0], [-1.0, 0.0, 1.0]], 1e-6);
    let gs = method("HRA", json!({"apply_GS": true}), w(), &[("hra_u", rows(&[[1.0, 1.0], [1.0, 1.0], [0.0, 2.0]]))]);
    close(&gs.tensor(Q), &[[0.0, -1.0, -2.0], [-1.0, 0.0, 1.0]], 1e-6);
}

#[test]
fn other_methods() {
    let miss = method("MISS", json!({"r": 1, "init_weights": true}), w(), &[("miss_block", rows(&[[5.0, 7.0]]))]);
    close(&miss.tensor(Q), &[[6.0, 5.0, 7.0], [7.0, 8.0, 6.0]], 0.0);
    let bat = method("MISS", json!({"r": 1, "init_weights": "bat"}), w(), &[("miss_block", rows(&[[5.0, 7.0]]))]);
    assert!(bat.refusal().contains("'bat'"));
    let hira = method("HIRA", json!({"r": 1}), w(), &[("hira_A", a()), ("hira_B", b())]);
    close(&hira.tensor(Q), &[[1.5, 0.0, 2.0], [0.0, -1.0, -1.0]], 0.0);
    let delora = method(
        "DELORA",
        json!({"r": 1}),
        w(),
        &[
            ("delora_A", rows(&[[3.0, 4.0, 0.0]])),
            ("delora_B", rows(&[[0.0], [2.0]])),
            ("delora_lambda", list(&[10.0])),
            ("delora_w_norm", list(&[1.0, 1.0, 2.0])),
        ],
    );
    close(&delora.tensor(Q), &[[1.0, 0.0, 2.0], [6.0, 9.0, -1.0]], 1e-6);
    let square = rows(&[[1.0, 0.0, 2.0, 1.0], [0.0, 1.0, -1.0, 3.0], [2.0, -1.0, 0.5, 0.0]]);
    let spectrum = [("fourierft_spectrum", list(&[1.0, -2.0, 0.5]))];
    let fourier = method("FOURIERFT", json!({"n_frequency": 3, "scaling": 6.0}), square.clone(), &spectrum);
    let want = [[0.75, 0.0, 2.25, 1.0], [0.5, -0.299_038, -1.5, 4.299_038], [2.5, 0.299_038, 0.0, -1.299_038]];
    close(&fourier.tensor(Q), &want, 1e-6);
    let unseeded = method("FOURIERFT", json!({"random_loc_seed": -1}), square, &spectrum).refusal();
    assert!(unseeded.contains("random_loc_seed"), "{unseeded}");
    let shira = method(
        "SHIRA",
        json!({"r": 1, "mask_type": "random"}),
        w(),
        &[("shira_weight", list(&[5.0, -1.0])), ("shira_indices", integers(&[2, 2], &[0, 1, 1, 2]))],
    );
    close(&shira.tensor(Q), &[[1.0, 5.0, 2.0], [0.0, 1.0, -2.0]], 0.0);
    let outside = method(
        "SHIRA",
        json!({"r": 1}),
        w(),
        &[("shira_weight", list(&[5.0])), ("shira_indices", integers(&[2, 1], &[0, 3]))],
    );
    assert!(outside.refusal().contains("outside"));
}

#[test]
fn norm_tuning() {
    let norm = "model.layers.0.norm.weight";
    let mut kit = Kit::llama(&[(Q, w()), (norm, list(&[1.0, 1.0]))]);
    let config = json!({"peft_type": "LN_TUNING", "r": null, "lora_alpha": null, "target_modules": ["norm"]});
    kit.adapter(config, &[("model.layers.0.norm.ln_tuning_layers.weight", list(&[3.0, 4.0]))]);
    close(&kit.tensor(norm), &[[3.0, 4.0]], 0.0);
}

#[test]
fn every_other_method_is_refused_by_name() {
    for (name, _) in lora_pack::merge::method::REFUSED.iter().chain(&[("TELEPATHY", "")]) {
        let why = method(name, json!({}), w(), &[("lora_A", a())]).refusal();
        assert!(why.contains(name) && why.contains("peft_type"), "{why}");
    }
}

#[test]
fn tasks_and_heads() {
    let base = [("bert.encoder.layer.0.q.weight", w()), ("cls.predictions.transform.dense.weight", w())];
    let config = json!({"model_type": "bert", "architectures": ["BertForMaskedLM"], "id2label": {"0": "a", "1": "b"}});
    let lora = [("bert.encoder.layer.0.q.lora_A.weight", a()), ("bert.encoder.layer.0.q.lora_B.weight", b())];
    let adapter = json!({"target_modules": ["q"], "task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]});

    let mut kit = Kit::new(config.clone(), &base);
    let mut parts = lora.to_vec();
    parts.push(("classifier.weight", tensor(&[3, 3], &[7.0; 9])));
    parts.push(("classifier.original_module.weight", tensor(&[3, 3], &[0.0; 9])));
    kit.adapter(adapter.clone(), &parts);
    kit.merged(&[], &MergeOptions::default(), |m| {
        assert_eq!(m.task(), Some(TaskType::SeqCls));
        assert_eq!(m.config()["architectures"][0], "BertForSequenceClassification");
        assert_eq!(m.config()["num_labels"], 3);
        assert_eq!(m.config().get("id2label"), None);
        assert_eq!(m.shape("classifier.weight").unwrap(), [3, 3]);
        assert_eq!(m.tensor_f32("classifier.weight").unwrap(), [7.0; 9]);
        let summary = &m.adapters()[0];
        assert_eq!((summary.tensors, summary.applied, summary.ignored.len()), (4, 3, 1));
    })
    .unwrap();

    let mut unsaved = Kit::new(config.clone(), &base);
    unsaved.adapter(adapter, &lora);
    assert!(unsaved.refusal().contains("'classifier' is missing"), "{}", unsaved.refusal());
    let mut headless = Kit::new(config, &base);
    headless.adapter(json!({"target_modules": ["q"], "task_type": "SEQ_CLS"}), &lora);
    assert!(headless.refusal().contains("incomplete"), "{}", headless.refusal());
}

#[test]
fn names_of_other_spellings() {
    // saved from the bare backbone, adapter with the prefix; and LayerNorm of the oldest files
    let mut kit = Kit::new(
        json!({"model_type": "bert"}),
        &[("encoder.layer.0.q.weight", w()), ("embeddings.LayerNorm.gamma", list(&[1.0]))],
    );
    kit.adapter(
        json!({"target_modules": r"bert\.encoder\.layer\.\d+\.q"}),
        &[
            ("bert.encoder.layer.0.q.lora_A.weight", a()),
            ("bert.encoder.layer.0.q.lora_B.weight", b()),
            ("bert.embeddings.LayerNorm.weight", list(&[5.0])),
        ],
    );
    close(&kit.tensor("encoder.layer.0.q.weight"), &PLAIN, 0.0);
    close(&kit.tensor("embeddings.LayerNorm.gamma"), &[[5.0]], 0.0);
}

#[test]
fn disagreements_are_errors_unless_forced() {
    let forced = MergeOptions { force: true, ..MergeOptions::default() };
    let parts = || [("lora_A.weight", a()), ("lora_B.weight", b())];
    for (config, word) in [
        (json!({"target_modules": ["q"], "a_new_idea": 3}), "a_new_idea"),
        (json!({"target_modules": ["k"]}), "target_modules"),
        (json!({"target_modules": ["q", "k"]}), "model.layers.0.k"),
    ] {
        let k = "model.layers.0.k.weight";
        let mut kit = Kit::llama(&[(Q, w()), (k, w())]);
        add(&mut kit, config, &parts());
        let why = kit.refusal();
        assert!(why.contains(word), "{why}");
        let notes = kit.merged(&[], &forced, |m| m.notes().iter().map(|n| n.text.clone()).collect::<Vec<_>>()).unwrap();
        assert!(notes.iter().any(|n| n.contains(word) && n.contains("forced")), "{notes:?}");
    }
    // unset unknown fields are no problem
    close(&one(with(json!({"a_new_idea": null, "another": []}))).tensor(Q), &PLAIN, 0.0);
}
