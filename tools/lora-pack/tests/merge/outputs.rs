//! The other forms of a merge: factors for unmerged mode, a folder for other tools, a report.

use super::kit::{Kit, Tensor, list, rows, tensor};
use lora_pack::merge::{AdapterSpec, Delta, MergeOptions, Merged, Purpose, doctor, export};
use lora_pack::source::{BaseModel, Dtype};
use serde_json::json;

const Q: &str = "model.layers.0.q.weight";

fn factors(scale: f32) -> Vec<(&'static str, Tensor)> {
    vec![
        ("model.layers.0.q.lora_A.weight", rows(&[[scale, 2.0, 0.0]])),
        ("model.layers.0.q.lora_B.weight", rows(&[[0.5], [-1.0]])),
    ]
}

fn kit() -> Kit {
    Kit::llama(&[(Q, rows(&[[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]])), ("model.norm.weight", list(&[1.0, 1.0, 1.0]))])
}

/// What a layer with this update computes with: gain ⊙ (W + B·A), as stored.
fn applied(w: &[f32], cols: usize, delta: &Delta) -> Vec<f32> {
    let Delta::LowRank { parts, gain } = delta else { panic!("{delta:?}") };
    let mut out: Vec<f64> = w.iter().map(|&x| x.into()).collect();
    for p in parts {
        let (rows, cols) = (p.region.rows, p.region.cols);
        let (inputs, outputs) = if p.transposed { (rows, cols) } else { (cols, rows) };
        for o in 0..outputs {
            for i in 0..inputs {
                let x: f64 = (0..p.r).map(|k| f64::from(p.b[o * p.r + k]) * f64::from(p.a[k * inputs + i])).sum();
                out[p.region.at + if p.transposed { i * cols + o } else { o * cols + i }] += x;
            }
        }
    }
    if let Some(gain) = gain {
        let transposed = parts[0].transposed;
        for (at, x) in out.iter_mut().enumerate() {
            *x *= f64::from(gain[if transposed { at % cols } else { at / cols }]);
        }
    }
    out.into_iter().map(|x| x as f32).collect()
}

#[test]
fn unmerged_updates_are_the_merge() {
    let magnitude = |m: [f32; 2]| ("model.layers.0.q.lora_magnitude_vector", list(&m));
    let dora = json!({"target_modules": ["q"], "use_dora": true});
    let plain = json!({"target_modules": ["q"]});
    let kits = [
        vec![(plain.clone(), factors(1.0))],
        vec![(plain.clone(), factors(1.0)), (plain.clone(), factors(3.0))],
        vec![(dora.clone(), [factors(1.0), vec![magnitude([3.0, 5.0])]].concat())],
        vec![
            (dora.clone(), [factors(1.0), vec![magnitude([3.0, 5.0])]].concat()),
            (plain.clone(), factors(-2.0)),
            (dora, [factors(2.0), vec![magnitude([1.0, 0.5])]].concat()),
        ],
        vec![(json!({"target_modules": ["q"], "init_lora_weights": "pissa"}), factors(1.0))],
    ];
    let unmerged = MergeOptions { purpose: Purpose::Adapter, ..MergeOptions::default() };
    for adapters in kits {
        let mut kit = kit();
        for (config, parts) in &adapters {
            kit.adapter(config.clone(), parts);
        }
        kit.merged(&[0.5], &unmerged, |m| {
            let got = applied(&m.base().read_f32(Q).unwrap(), 3, &m.delta(Q).unwrap().unwrap());
            for (a, b) in got.iter().zip(m.tensor_f32(Q).unwrap()) {
                assert!((a - b).abs() < 1e-5, "{got:?}");
            }
            assert_eq!(m.delta("model.norm.weight").unwrap(), None);
        })
        .unwrap();
    }
}

#[test]
fn unmerged_tables_and_wholes() {
    let embed = "model.embed_tokens.weight";
    let mut kit = Kit::llama(&[(embed, tensor(&[3, 2], &[0.0; 6])), ("model.norm.weight", list(&[1.0, 1.0]))]);
    kit.adapter(
        json!({"trainable_token_indices": [2, 0], "modules_to_save": ["norm"]}),
        &[
            ("model.embed_tokens.token_adapter.trainable_tokens_delta", rows(&[[5.0, 6.0], [1.0, 2.0]])),
            ("model.norm.weight", list(&[3.0, 4.0])),
        ],
    );
    let unmerged = MergeOptions { purpose: Purpose::Adapter, ..MergeOptions::default() };
    kit.merged(&[], &unmerged, |m| {
        let rows = Delta::Rows { indices: vec![0, 2], values: vec![1.0, 2.0, 5.0, 6.0] };
        assert_eq!(m.delta(embed).unwrap(), Some(rows));
        assert_eq!(m.delta("model.norm.weight").unwrap(), Some(Delta::Whole(vec![3.0, 4.0])));
    })
    .unwrap();
}

#[test]
fn an_export_is_a_model_again() {
    let mut kit = kit();
    kit.adapter(json!({"target_modules": ["q"]}), &factors(1.0));
    let out = kit.base().with_file_name("out");
    let write =
        |dtype| kit.merged(&[], &MergeOptions::default(), |m| export::safetensors(m, &out, dtype, None)).unwrap();
    write(None).unwrap();
    let back = BaseModel::open(&out).unwrap();
    assert_eq!(back.model_type(), "llama");
    assert_eq!(back.read_f32(Q).unwrap(), [2.0, 2.0, 2.0, -2.0, -3.0, -1.0]);
    assert_eq!(back.tensors().len(), 2);
    let again = write(None).unwrap_err().to_string();
    assert!(again.contains("exists"), "{again}");
    std::fs::remove_dir_all(&out).unwrap();
    write(Some(Dtype::BF16)).unwrap();
    let back = BaseModel::open(&out).unwrap();
    assert_eq!(back.tensors().get(Q).unwrap().dtype, Dtype::BF16);
    assert_eq!(back.config["torch_dtype"], "bfloat16");
    // Nothing half-written stays behind a failure.
    std::fs::remove_dir_all(&out).unwrap();
    let mut large = Kit::llama(&[(Q, tensor(&[1, 1], &[1e6]))]);
    large.adapter(json!({"target_modules": ["q"], "modules_to_save": ["q"]}), &[(Q, tensor(&[1, 1], &[1e6]))]);
    let out = large.base().with_file_name("out");
    let error = large.merged(&[], &MergeOptions::default(), |m| export::safetensors(m, &out, Some(Dtype::F16), None));
    assert!(error.unwrap().unwrap_err().to_string().contains("too large for F16"));
    let left: Vec<_> = std::fs::read_dir(out.parent().unwrap()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn labels_go_into_an_exported_config() {
    let mut kit = Kit::new(
        json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}),
        &[(Q, tensor(&[1, 1], &[1.0]))],
    );
    let head = ("score.weight", tensor(&[2, 1], &[1.0, 2.0]));
    kit.adapter(json!({"task_type": "SEQ_CLS", "modules_to_save": ["score"]}), &[head]);
    let out = kit.base().with_file_name("out");
    let write = |labels: &[&str]| {
        let labels: Vec<String> = labels.iter().map(|l| (*l).to_owned()).collect();
        kit.merged(&[], &MergeOptions::default(), |m| export::safetensors(m, &out, None, Some(&labels))).unwrap()
    };
    let error = write(&["one", "two", "three"]).unwrap_err().to_string();
    assert!(error.contains("--labels") && error.contains("the head has 2"), "{error}");
    assert!(!out.exists());
    write(&["off", "on"]).unwrap();
    let config = BaseModel::open(&out).unwrap().config;
    assert_eq!(config["id2label"], json!({"0": "off", "1": "on"}));
    assert_eq!(config["label2id"], json!({"off": 0, "on": 1}));
}

#[test]
fn the_report_says_what_fits() {
    let mut kit = kit();
    let dir =
        kit.adapter(json!({"target_modules": ["q"], "task_type": "CAUSAL_LM", "lora_dropout": 0.1}), &factors(1.0));
    let base = BaseModel::open(&kit.base()).unwrap();
    let report = doctor::report(&AdapterSpec::new(&dir), Some(&base), &MergeOptions::default()).unwrap();
    assert_eq!((report.method, report.task, report.tensors, report.parameters), ("LORA", Some("CAUSAL_LM"), 2, 5));
    let fit = report.fit.as_ref().unwrap();
    assert!(fit.merges && fit.attaches && fit.applied == 2 && fit.changed == 1);
    let text = report.to_string();
    for word in ["1 × q, r 1, alpha 2", "irrelevant  lora_dropout = 0.1", "applied     r = 1", "2 of 2 tensors applied"]
    {
        assert!(text.contains(word), "{word} in:\n{text}");
    }
    let other = Kit::llama(&[("model.layers.0.k.weight", rows(&[[1.0]]))]);
    let other = BaseModel::open(&other.base()).unwrap();
    let fit = doctor::report(&AdapterSpec::new(&dir), Some(&other), &MergeOptions::default()).unwrap().fit.unwrap();
    assert!(!fit.merges && fit.problem.unwrap().contains("model.layers.0.q"));
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    let (rows, cols) = (130, 70);
    let values: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut kit = Kit::llama(&[(Q, tensor(&[rows, cols], &values))]);
    let factor = |n: usize| (0..n).map(|i| (i as f32 * 0.91).cos()).collect::<Vec<f32>>();
    kit.adapter(
        json!({"target_modules": ["q"], "r": 5, "use_dora": true, "init_lora_weights": "pissa"}),
        &[
            ("model.layers.0.q.lora_A.weight", tensor(&[5, cols], &factor(5 * cols))),
            ("model.layers.0.q.lora_B.weight", tensor(&[rows, 5], &factor(rows * 5))),
            ("model.layers.0.q.lora_magnitude_vector", list(&factor(rows))),
        ],
    );
    let base = BaseModel::open(&kit.base()).unwrap();
    let spec = AdapterSpec::new(kit.base().with_file_name("adapter0"));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            Merged::new(&base, std::slice::from_ref(&spec), &MergeOptions::default()).unwrap().tensor_f32(Q).unwrap()
        })
    };
    let one = run(1);
    assert_eq!(run(3), one);
    assert_eq!(run(4), one);
}
