//! The merge against what Hugging Face PEFT computed, over the conformance kit.
//!
//! The kit is optional: it is looked for in `LORA_PACK_SHARED`, else in `../shared` beside the checkout, and the tests
//! say so when they skip.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lora_pack::merge::{AdapterSpec, Combine, Delta, MajoritySign, MergeOptions, Merged, Purpose};
use lora_pack::source::{BaseModel, TensorIndex};
use serde_json::Value;

fn fixtures() -> Option<PathBuf> {
    let shared = std::env::var_os("LORA_PACK_SHARED").map(PathBuf::from);
    let shared = shared.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"));
    let dir = shared.join("fixtures");
    if dir.is_dir() {
        return Some(dir);
    }
    eprintln!("SKIP: no conformance kit at {}", dir.display());
    None
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The folders of a directory that hold a case of one of these kinds.
fn cases(dir: &Path, kinds: &[&str]) -> Vec<(String, Value)> {
    let mut out: Vec<(String, Value)> = std::fs::read_dir(dir)
        .unwrap()
        .flatten()
        .filter(|e| e.path().join("case.json").exists())
        .map(|e| (e.file_name().into_string().unwrap(), read(&e.path().join("case.json"))))
        .filter(|(_, case)| kinds.contains(&case["kind"].as_str().unwrap()))
        .collect();
    out.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(!out.is_empty());
    out
}

/// Our name of a tensor that the kit names as transformers saves it.
fn our_name(merged: &Merged, name: &str) -> String {
    let has = |n: &str| merged.shape(n).is_some();
    if has(name) {
        return name.to_owned();
    }
    let bare = name.split_once('.').map_or(name, |(_, rest)| rest);
    assert!(has(bare), "no tensor for {name}");
    bare.to_owned()
}

fn digest(w: &[f32]) -> (f64, f64, f64) {
    let weight = |i: usize| ((i as u64 * 40503) % 65536) as f64 / 65536.0 - 0.5;
    let sum = w.iter().map(|&x| f64::from(x)).sum();
    let l2 = w.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let probe = w.iter().enumerate().map(|(i, &x)| f64::from(x) * weight(i)).sum();
    (sum, l2, probe)
}

/// Reading by rows, in blocks that do not end with the tensor, gives the same bits as reading all at once.
fn assert_same_by_rows(merged: &Merged, name: &str, whole: &[f32]) {
    let width = *merged.shape(name).unwrap().last().unwrap();
    let rows = merged.rows(name, width).unwrap();
    assert_eq!(rows.len() * width, whole.len(), "{name}");
    let mut block = vec![f32::NAN; 5 * width];
    for (i, want) in whole.chunks(5 * width).enumerate() {
        let got = &mut block[..want.len()];
        rows.read(5 * i, got).unwrap();
        assert!(got.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}: rows from {}", 5 * i);
    }
}

/// Compares every changed tensor of one mode; returns the largest error found.
fn compare(case: &str, mode: &Value, merged: &Merged, expected: &TensorIndex, tolerance: f64) -> f64 {
    let mut worst = 0f64;
    let changed = mode["merged_changed"].as_object().unwrap();
    let mut ours: Vec<String> = merged.changed().into_iter().map(|c| c.name).collect();
    let mut theirs: Vec<String> = changed.keys().map(|n| our_name(merged, n)).collect();
    ours.sort();
    theirs.sort();
    assert_eq!(ours, theirs, "{case}: the sets of changed tensors differ");
    for (name, want) in changed {
        let got = merged.tensor_f32(&our_name(merged, name)).unwrap();
        assert_same_by_rows(merged, &our_name(merged, name), &got);
        let shape: Vec<usize> =
            want["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
        assert_eq!(merged.shape(&our_name(merged, name)).unwrap(), shape, "{case}: {name}");
        let l2 = want["l2"].as_f64().unwrap();
        let (sum, norm, probe) = digest(&got);
        for (what, got) in [("sum", sum), ("l2", norm), ("probe", probe)] {
            let error = (got - want[what].as_f64().unwrap()).abs() / l2;
            assert!(error <= tolerance, "{case}: {name}: {what} is off by {error:e} of l2");
            worst = worst.max(error);
        }
    }
    for (name, key) in mode["merged_tensors"].as_object().unwrap() {
        let got = merged.tensor_f32(&our_name(merged, name)).unwrap();
        let want = expected.get(key.as_str().unwrap()).unwrap().read_f32().unwrap();
        assert_eq!(got.len(), want.len());
        let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
        let error = got.iter().zip(&want).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
        assert!(f64::from(error) <= tolerance, "{case}: {name}: off by {error:e} of the largest value");
        worst = worst.max(error.into());
    }
    worst
}

fn options(mode: &Value) -> MergeOptions {
    let params = &mode["params"];
    MergeOptions {
        combine: mode["method"].as_str().map_or(Combine::Stack, |m| m.parse().unwrap()),
        density: params["density"].as_f64(),
        svd_rank: params["svd_rank"].as_u64().map(|r| r as usize),
        majority_sign: params["majority_sign_method"].as_str().map_or(MajoritySign::Total, |m| m.parse().unwrap()),
        ..MergeOptions::default()
    }
}

#[test]
fn every_model_merges_to_pefts_numbers() {
    let Some(dir) = fixtures() else { return };
    let (mut modes, mut failed) = (0, Vec::new());
    for (name, case) in cases(&dir, &["model"]) {
        if case["base"]["format"] != "safetensors" {
            continue;
        }
        let folder = dir.join(&name);
        let base = BaseModel::open(&folder.join("base")).unwrap();
        let expected = TensorIndex::open(&folder.join("expected.safetensors")).unwrap();
        let dirs: BTreeMap<&str, &str> = case["adapters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|a| (a["name"].as_str().unwrap(), a["dir"].as_str().unwrap()))
            .collect();
        for mode in case["modes"].as_array().unwrap() {
            let Some(changed) = mode["merged_changed"].as_object() else { continue };
            if changed.is_empty() {
                continue;
            }
            let weights = mode["weights"].as_array();
            let specs: Vec<AdapterSpec> = mode["adapters"]
                .as_array()
                .unwrap()
                .iter()
                .enumerate()
                .map(|(i, a)| AdapterSpec {
                    path: folder.join(dirs[a.as_str().unwrap()]),
                    weight: weights.map_or(1.0, |w| w[i].as_f64().unwrap()),
                })
                .collect();
            let what = format!("{name}/{}", mode["id"].as_str().unwrap());
            let features = case["features"].to_string();
            let svd = features.contains("pissa") || features.contains("olora") || mode["method"] == "svd";
            modes += 1;
            match Merged::new(&base, &specs, &options(mode)) {
                Ok(merged) => {
                    let run = std::panic::AssertUnwindSafe(|| {
                        compare(&what, mode, &merged, &expected, if svd { 1e-4 } else { 1e-5 })
                    });
                    match std::panic::catch_unwind(run) {
                        Ok(worst) => println!("{what}: {worst:.1e}"),
                        Err(_) => failed.push(what),
                    }
                }
                Err(e) => failed.push(format!("{what}: {e}")),
            }
        }
    }
    assert!(failed.is_empty(), "{} of {modes} modes failed:\n{}", failed.len(), failed.join("\n"));
}

/// gain ⊙ (W + B·A) from the parts of an unmerged update, as stored.
fn with_update(base: Option<Vec<f32>>, delta: &Delta) -> Vec<f32> {
    match delta {
        Delta::Whole(values) => values.clone(),
        Delta::Rows { indices, values } => {
            let mut w = base.unwrap();
            let cols = values.len() / indices.len();
            for (at, row) in indices.iter().zip(values.chunks(cols)) {
                w[at * cols..(at + 1) * cols].copy_from_slice(row);
            }
            w
        }
        Delta::LowRank { parts, gain } => {
            let mut w = base.unwrap();
            for p in parts {
                let (inputs, outputs) = (p.a.len() / p.r, p.b.len() / p.r);
                for o in 0..outputs {
                    for i in 0..inputs {
                        let at = p.region.at + if p.transposed { i * outputs + o } else { o * inputs + i };
                        let x: f64 =
                            (0..p.r).map(|k| f64::from(p.b[o * p.r + k]) * f64::from(p.a[k * inputs + i])).sum();
                        w[at] += x as f32;
                        w[at] *= gain.as_ref().map_or(1.0, |g| g[o]);
                    }
                }
            }
            w
        }
    }
}

#[test]
fn every_update_alone_gives_the_merged_tensor() {
    let Some(dir) = fixtures() else { return };
    let options = MergeOptions { purpose: Purpose::Adapter, ..MergeOptions::default() };
    let mut low_rank = 0;
    for (name, case) in cases(&dir, &["model"]) {
        if case["base"]["format"] != "safetensors" || name == "llama_layer_replication" {
            continue;
        }
        let folder = dir.join(&name);
        let base = BaseModel::open(&folder.join("base")).unwrap();
        for adapter in case["adapters"].as_array().unwrap() {
            let spec = AdapterSpec::new(folder.join(adapter["dir"].as_str().unwrap()));
            let merged = Merged::new(&base, &[spec], &options).unwrap();
            for changed in merged.changed() {
                let delta = merged.delta(&changed.name).unwrap().unwrap();
                low_rank += usize::from(matches!(delta, Delta::LowRank { .. }));
                let got = with_update(base.read_f32(&changed.name).ok(), &delta);
                let want = merged.tensor_f32(&changed.name).unwrap();
                let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
                let error = got.iter().zip(&want).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
                assert!(error < 2e-6, "{name}: {}: {error:e}", changed.name);
            }
        }
    }
    assert!(low_rank > 400, "{low_rank}");
}

/// Cases for which PEFT defines no merge: the true merged checkpoint, from the base and the factors by hand.
#[test]
fn what_peft_cannot_merge() {
    let Some(dir) = fixtures() else { return };
    let open = |name: &str| {
        let folder = dir.join(name);
        let factors = TensorIndex::open(&folder.join("adapter/adapter_model.safetensors")).unwrap();
        (BaseModel::open(&folder.join("base")).unwrap(), AdapterSpec::new(folder.join("adapter")), factors)
    };
    let close = |got: &[f32], want: &[f32]| got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5);

    let (base, spec, factors) = open("llama_tied_embed_lora");
    let merged = Merged::new(&base, &[spec], &MergeOptions::default()).unwrap();
    let (embed, head) = ("model.embed_tokens.weight", "lm_head.weight");
    assert_eq!(merged.config()["tie_word_embeddings"], false);
    let mut want = base.read_f32(embed).unwrap();
    assert_eq!(merged.tensor_f32(head).unwrap(), want);
    let factor = |part: &str| {
        let t = factors.get(&format!("base_model.model.model.embed_tokens.lora_embedding_{part}")).unwrap();
        (t.read_f32().unwrap(), t.shape.to_vec())
    };
    let ((a, a_shape), (b, b_shape)) = (factor("A"), factor("B"));
    let (r, vocab, width) = (a_shape[0], a_shape[1], b_shape[0]);
    for token in 0..vocab {
        for i in 0..width {
            let x: f32 = (0..r).map(|k| b[i * r + k] * a[k * vocab + token]).sum();
            want[token * width + i] += 8.0 / r as f32 * x;
        }
    }
    assert!(close(&merged.tensor_f32(embed).unwrap(), &want));

    let (base, spec, factors) = open("llama_layer_replication");
    let merged = Merged::new(&base, &[spec], &MergeOptions::default()).unwrap();
    assert_eq!(merged.config()["num_hidden_layers"], 4);
    for (new, old) in [0, 1, 1, 2].into_iter().enumerate() {
        let name = |l: usize| format!("model.layers.{l}.self_attn.o_proj");
        let mut want = base.read_f32(&format!("{}.weight", name(old))).unwrap();
        let factor = |part: &str| factors.get(&format!("base_model.model.{}.{part}.weight", name(new))).unwrap();
        let (a, b) = (factor("lora_A").read_f32().unwrap(), factor("lora_B").read_f32().unwrap());
        let (r, width) = (factor("lora_A").shape[0], factor("lora_A").shape[1]);
        for (at, w) in want.iter_mut().enumerate() {
            let (o, i) = (at / width, at % width);
            *w += 16.0 / r as f32 * (0..r).map(|k| b[o * r + k] * a[k * width + i]).sum::<f32>();
        }
        assert!(close(&merged.tensor_f32(&format!("{}.weight", name(new))).unwrap(), &want), "layer {new}");
        let norm = |l: usize| format!("model.layers.{l}.input_layernorm.weight");
        assert_eq!(merged.tensor_f32(&norm(new)).unwrap(), base.read_f32(&norm(old)).unwrap());
    }

    let (base, spec, _) = open("llama_alora");
    let why = Merged::new(&base, std::slice::from_ref(&spec), &MergeOptions::default()).unwrap_err().to_string();
    assert!(why.contains("alora_invocation_tokens"), "{why}");
    let options = MergeOptions { purpose: Purpose::Adapter, ..MergeOptions::default() };
    assert_eq!(Merged::new(&base, &[spec], &options).unwrap().invocation_tokens().unwrap().len(), 9);
}

/// A refusal must contain one word of each group of `must_name`.
fn names_it(message: &str, groups: &Value) -> bool {
    let message = message.to_lowercase();
    let has = |word: &Value| message.contains(&word.as_str().unwrap().to_lowercase());
    groups.as_array().unwrap().iter().all(|g| g.as_array().unwrap().iter().any(has))
}

/// Faults of a base's config or set of tensors that show only when the architecture is lowered, which is not done here.
const FOR_THE_LOWERING: &[&str] = &[
    "base_config_activation",
    "base_config_huge",
    "base_config_kv_heads",
    "base_config_negative",
    "base_config_no_heads",
    "base_config_no_hidden",
    "base_config_rope_type",
    "base_config_text_number",
    "base_config_too_many_layers",
    "base_config_vocab",
    "base_config_zero_heads",
    "base_missing_tensor",
    "base_unknown_arch",
    "base_wrong_shape",
];

/// Every float tensor of the merged model, and the notes.
type Everything = (BTreeMap<String, Vec<f32>>, Vec<String>);

fn everything(base: &Path, adapter: &Path) -> Result<Everything, String> {
    let base = BaseModel::open(base).map_err(|e| e.to_string())?;
    let merged =
        Merged::new(&base, &[AdapterSpec::new(adapter)], &MergeOptions::default()).map_err(|e| e.to_string())?;
    let floats = merged.names().filter(|n| base.tensors().get(n).is_none_or(|t| t.dtype.is_float()));
    let tensors = floats.map(|n| Ok((n.to_owned(), merged.tensor_f32(n).map_err(|e| e.to_string())?)));
    Ok((tensors.collect::<Result<_, String>>()?, merged.notes().iter().map(|n| n.text.clone()).collect()))
}

#[test]
fn malformed_inputs_are_refused_by_name() {
    let Some(dir) = fixtures() else { return };
    let dir = dir.join("bad");
    let mut wrong = Vec::new();
    let (good, _) = everything(&dir.join("_good/base"), &dir.join("_good/adapter")).unwrap();
    for (name, case) in cases(&dir, &["bad_input", "edge_input"]) {
        if case["broken"] == "tokenizer" || FOR_THE_LOWERING.contains(&name.as_str()) {
            continue;
        }
        let side = |which: &str| dir.join(&name).join(case[which].as_str().unwrap());
        let start = std::time::Instant::now();
        let got = everything(&side("base"), &side("adapter"));
        let took = start.elapsed().as_secs_f64();
        if took > 5.0 {
            wrong.push(format!("{name}: took {took:.1} s"));
        }
        let must = &case["must_name"];
        let fine = match (case["expect"].as_str().unwrap(), &got) {
            ("ok", Ok((tensors, _))) => good.iter().all(|(n, w)| tensors.get(n) == Some(w)),
            ("error" | "error_or_warning" | "error_or_ok", Err(e)) => names_it(e, must),
            ("error_or_warning", Ok((_, notes))) => names_it(&notes.join("\n"), must),
            ("error_or_ok", Ok(_)) => true,
            _ => false,
        };
        let said = got.as_ref().map(|(_, notes)| notes.join("; "));
        println!("{name}: {said:?}");
        if !fine {
            wrong.push(format!("{name}: {said:?}, must name {must}"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
