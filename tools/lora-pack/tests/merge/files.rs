//! Adapter folders in their various forms, and what is refused in them.

use super::kit::{Kit, Tensor, close, list, rows, tensor};
use lora_pack::merge::{AdapterSpec, MergeOptions, Merged, Purpose};
use lora_pack::source::BaseModel;
use serde_json::json;

const Q: &str = "model.layers.0.q.weight";

fn kit() -> Kit {
    Kit::llama(&[(Q, rows(&[[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]))])
}

fn factors() -> [(&'static str, Tensor); 2] {
    [
        ("model.layers.0.q.lora_A.weight", rows(&[[1.0, 2.0, 0.0]])),
        ("model.layers.0.q.lora_B.weight", rows(&[[0.5], [-1.0]])),
    ]
}

const MERGED: [[f32; 3]; 2] = [[2.0, 2.0, 2.0], [-2.0, -3.0, -1.0]];

#[test]
fn named_adapters_in_sub_folders() {
    let mut kit = kit();
    let dir = kit.adapter(json!({"target_modules": ["q"]}), &factors());
    let outer = dir.with_file_name("checkpoints");
    std::fs::create_dir(&outer).unwrap();
    std::fs::rename(&dir, outer.join("second")).unwrap();
    let base = BaseModel::open(&kit.base()).unwrap();
    let open = |path: std::path::PathBuf| {
        Merged::new(&base, &[AdapterSpec::new(path)], &MergeOptions::default()).map(|m| m.tensor_f32(Q).unwrap())
    };
    for path in [
        outer.join("second"),
        outer.with_file_name("checkpoints#second"),
        outer.join("second").join("adapter_model.safetensors"),
    ] {
        close(&open(path).unwrap(), &MERGED, 0.0);
    }
    let why = open(outer.clone()).unwrap_err().to_string();
    assert!(why.contains("adapter_config.json") && why.contains("second"), "{why}");
    for outside in ["checkpoints#..", "checkpoints#../adapter0", "checkpoints#none"] {
        assert!(open(outer.with_file_name(outside)).is_err());
    }
}

#[test]
fn two_tensors_of_one_meaning_are_refused() {
    let mut kit = kit();
    let mut parts = factors().to_vec();
    parts.push(("model.layers.0.q.lora_A.default.weight", rows(&[[1.0, 2.0, 0.0]])));
    kit.adapter(json!({"target_modules": ["q"]}), &parts);
    assert!(kit.refusal().contains("duplicate"), "{}", kit.refusal());
}

#[test]
fn factors_that_were_not_gathered_are_refused() {
    for broken in [tensor(&[0], &[]), list(&[1.0, 2.0, 0.0])] {
        let mut kit = kit();
        let [_, b] = factors();
        kit.adapter(json!({"target_modules": ["q"]}), &[("model.layers.0.q.lora_A.weight", broken), b]);
        assert!(kit.refusal().contains("gathering"), "{}", kit.refusal());
    }
}

#[test]
fn an_activated_adapter_is_for_unmerged_mode() {
    let mut kit = kit();
    kit.adapter(json!({"target_modules": ["q"], "alora_invocation_tokens": [7, 8]}), &factors());
    assert!(kit.refusal().contains("alora_invocation_tokens"), "{}", kit.refusal());
    let unmerged = MergeOptions { purpose: Purpose::Adapter, ..MergeOptions::default() };
    kit.merged(&[], &unmerged, |m| {
        assert_eq!(m.invocation_tokens(), Some(&[7, 8][..]));
        assert!(m.delta(Q).unwrap().is_some());
    })
    .unwrap();
}

#[test]
fn numbers_that_are_not_finite_are_refused() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut kit = kit();
        kit.adapter(
            json!({"target_modules": ["q"], "modules_to_save": ["q"]}),
            &[(Q, rows(&[[1.0, 0.0, bad], [0.0, 1.0, -1.0]]))],
        );
        assert!(kit.refusal().contains("not finite"), "{}", kit.refusal());
    }
    // finite factors whose product is not
    let mut kit = kit();
    let huge = [
        ("model.layers.0.q.lora_A.weight", rows(&[[1e30, 0.0, 0.0]])),
        ("model.layers.0.q.lora_B.weight", rows(&[[1e30], [0.0]])),
    ];
    kit.adapter(json!({"target_modules": ["q"]}), &huge);
    assert!(kit.refusal().contains(Q) && kit.refusal().contains("inf"), "{}", kit.refusal());
}

#[test]
fn bias_modes() {
    let bias = "model.layers.0.q.bias";
    let base = || Kit::llama(&[(Q, rows(&[[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]])), (bias, list(&[1.0, 2.0]))]);
    let mut with = base();
    let mut parts = factors().to_vec();
    parts.push(("model.layers.0.q.base_layer.bias", list(&[5.0, 6.0])));
    with.adapter(json!({"target_modules": ["q"], "bias": "lora_only"}), &parts);
    assert_eq!(with.tensor(bias), [5.0, 6.0]);
    // PEFT up to 0.20 did not save them.
    let mut lost = base();
    lost.adapter(json!({"target_modules": ["q"], "bias": "lora_only"}), &factors());
    let notes = lost.merged(&[], &MergeOptions::default(), |m| m.notes().to_vec()).unwrap();
    assert!(notes.iter().any(|n| n.text.contains("lost")), "{notes:?}");
    let mut odd = base();
    odd.adapter(json!({"target_modules": ["q"], "bias": "some"}), &factors());
    assert!(odd.refusal().contains("`bias`"));
    // Two adapters cannot both set it.
    with.adapter(json!({"target_modules": ["q"], "bias": "lora_only"}), &parts);
    assert!(with.refusal().contains("both replace"), "{}", with.refusal());
}

#[test]
fn what_is_counted() {
    let mut kit = kit();
    let mut parts = factors().to_vec();
    parts.push(("model.layers.0.q.lora_velora_embed", list(&[1.0])));
    kit.adapter(json!({"target_modules": ["q", "nowhere"]}), &parts);
    kit.merged(&[], &MergeOptions::default(), |m| {
        let summary = &m.adapters()[0];
        assert_eq!((summary.tensors, summary.applied, summary.ignored.len()), (3, 2, 1));
        assert_eq!(m.changed().len(), 1);
        assert!(m.notes().iter().any(|n| n.text.contains("'nowhere'")));
        assert!(summary.verdicts.iter().any(|v| v.field == "target_modules"));
    })
    .unwrap();
}

#[test]
fn an_adapters_tokenizer_stands_over_the_bases() {
    let mut kit = kit();
    let dir = kit.adapter(json!({"target_modules": ["q"]}), &factors());
    let write = |dir: &std::path::Path, name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    write(&kit.base(), "tokenizer.json", "{\"base\": 1}");
    write(&kit.base(), "tokenizer_config.json", "{\"chat_template\": \"base\"}");
    let look = |want: (&str, &str)| {
        kit.merged(&[], &MergeOptions::default(), |m| {
            let t = m.tokenizer();
            let json = String::from_utf8(t.tokenizer_json.clone().unwrap()).unwrap();
            assert_eq!((json.as_str(), t.chat_template.as_deref().unwrap()), want);
        })
        .unwrap();
    };
    look(("{\"base\": 1}", "base"));
    write(&dir, "chat_template.jinja", "own");
    look(("{\"base\": 1}", "own"));
    write(&dir, "tokenizer.json", "{\"own\": 1}");
    look(("{\"own\": 1}", "own"));
}
