//! Bases that bitsandbytes quantized, and float bases that adapters were trained over in its form
//! (`tests/peft/bitsandbytes_bases.py` made the data).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use conformance::data;
use conformance::desk::{Desk, Ids, Miss};
use conformance::score::max_error;
use conformance::tensors::Archive;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Folder, the float base it was made of, and the option that makes the same of that.
const QUANTIZED: [(&str, &str, &str); 4] = [
    ("nf4_double", "llama", "dequantized"),
    ("fp4", "llama", "fp4"),
    ("int8", "llama", "int8"),
    ("gpt2_nf4", "gpt2", "nf4"),
];

fn folder(name: &str) -> PathBuf {
    data::workspace().join("tests/data/bitsandbytes").join(name)
}

fn desk() -> Desk {
    Desk::new(&folder("")).expect("a temporary folder")
}

/// The weights that `lora-pack` reads from a base, in f32.
fn exported(desk: &Desk, base: &Path, flags: &[&str]) -> Archive {
    let out = desk.path("exported");
    let call = desk.pack("export").arg("--base").arg(base).args(flags).args(["--to", "safetensors", "--dtype", "f32"]);
    desk.produce(call, &out).unwrap_or_else(|miss| panic!("{}: {miss:?}", base.display()));
    let config = std::fs::read_to_string(out.join("config.json")).expect("a config");
    assert!(!config.contains("quantization_config"), "what was exported is float");
    let archive = Archive::read(&out).expect("exported tensors");
    std::fs::remove_dir_all(&out).expect("it can go");
    archive
}

fn digests() -> Value {
    serde_json::from_slice(&std::fs::read(folder("expected.json")).expect("the data")).expect("JSON")
}

/// Every weight that bitsandbytes quantizes has the bits that it dequantizes to, every other one those of the float base.
fn assert_weights(got: &Archive, name: &str, float: &str) {
    let digests = digests();
    let digests = digests[name].as_object().expect("digests");
    let original = Archive::read(&folder(float)).expect("the float base");
    for tensor in original.names() {
        let (values, own) = (got.get(tensor).expect("it is there"), original.get(tensor).expect("it is there"));
        assert_eq!(values.shape, own.shape, "{name}: {tensor}");
        match digests.get(tensor) {
            None => assert_eq!(values, own, "{name}: {tensor}"),
            Some(digest) => {
                let bytes: Vec<u8> = values.data.iter().flat_map(|v| v.to_le_bytes()).collect();
                let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
                assert_eq!(digest, &hex, "{name}: {tensor}");
            }
        }
    }
    assert_eq!(original.names().count(), got.names().count());
}

#[test]
fn a_quantized_base_has_the_values_that_bitsandbytes_gives() {
    let desk = desk();
    for (name, float, _) in QUANTIZED {
        assert_weights(&exported(&desk, &folder(name), &[]), name, float);
    }
}

#[test]
fn a_float_base_can_be_read_as_training_saw_it() {
    let desk = desk();
    for (name, float, option) in QUANTIZED {
        assert_weights(&exported(&desk, &folder(float), &["--qlora-base", option]), name, float);
    }
    let original = exported(&desk, &folder("llama"), &["--qlora-base", "original"]);
    let stored = Archive::read(&folder("llama")).expect("the float base");
    assert!(
        stored.names().all(|name| original.get(name).expect("it is there") == stored.get(name).expect("it is there"))
    );
}

/// Packs with `flags` in f32.
fn packed(desk: &Desk, verb: &str, out: &str, flags: &[&str]) -> PathBuf {
    let out = desk.path(out);
    let call = desk.pack(verb).args(flags).args(["--no-tokenizer", "--quant", "f32"]);
    desk.produce(call, &out).unwrap_or_else(|miss| panic!("{verb} {flags:?}: {miss:?}"));
    out
}

#[test]
fn logits_with_an_adapter_are_those_of_peft_over_the_dequantized_base() {
    let desk = desk();
    let expected = Archive::read(&folder("expected.safetensors")).expect("the data");
    let ids = Ids { ids: expected.ids("ids").expect("the input").to_vec(), types: None, decoder: None };
    let adapter = folder("adapter");
    let adapter = adapter.to_str().expect("a path");
    let check = |lpk: &Path, extra: &[String], name: &str| {
        let got = desk.raw(lpk, std::slice::from_ref(&ids), extra).unwrap_or_else(|miss| panic!("{name}: {miss:?}"));
        let logits = got.get("0.logits").expect("logits");
        let error = max_error(expected.get(name).expect("the data"), logits).expect("the same shape");
        assert!(error < 1e-5, "{name} {extra:?}: {error} std");
    };
    for (name, float, option) in QUANTIZED.into_iter().filter(|q| q.1 == "llama") {
        let (quantized, float) = (folder(name), folder(float));
        let [quantized, float] = [&quantized, &float].map(|p| p.to_str().expect("a path"));
        for basis in [&["--base", quantized][..], &["--base", float, "--qlora-base", option]] {
            let with = [basis, &["--adapter", adapter]].concat();
            check(&packed(&desk, "merge", "merged.lpk", &with), &[], name);
            let base = packed(&desk, "merge", "base.lpk", basis);
            let own = packed(&desk, "adapter", "adapter.lpk", &with);
            check(&base, &["--adapter".into(), own.display().to_string()], name);
        }
        // An adapter file is for the base that it was made over.
        let own = packed(&desk, "adapter", "adapter.lpk", &["--base", quantized, "--adapter", adapter]);
        let other = packed(&desk, "merge", "other.lpk", &["--base", float]);
        let refused = desk.raw(&other, std::slice::from_ref(&ids), &["--adapter".into(), own.display().to_string()]);
        assert!(matches!(&refused, Err(Miss::NotCovered(m)) if m.contains("base")), "{refused:?}");
    }
}

#[test]
fn doctor_says_how_the_weights_are_read() {
    let desk = desk();
    let adapter = folder("adapter");
    for (base, flags, words) in [
        ("nf4_double", &[][..], "7 matrices stored by bitsandbytes as nf4 in blocks of 64, double quantization"),
        ("int8", &[], "7 matrices stored by bitsandbytes as int8 with a scale for each row"),
        ("llama", &[], "--qlora-base dequantized merges over the weights that it saw"),
        ("llama", &["--qlora-base", "fp4"], "7 matrices quantized to fp4 and dequantized"),
    ] {
        let call = desk.pack("doctor").arg(&adapter).arg("--base").arg(folder(base)).args(flags);
        let done = desk.succeed(&call).unwrap_or_else(|miss| panic!("{base}: {miss:?}"));
        assert!(done.stdout.contains(words), "{}", done.stdout);
    }
    // What would be refused is not advised.
    let (experts, adapter) = (data::committed().join("qwen3_moe_qk_norm"), "adapter");
    let call = desk.pack("doctor").arg(experts.join(adapter)).arg("--base").arg(experts.join("base"));
    let done = desk.succeed(&call).unwrap_or_else(|miss| panic!("experts: {miss:?}"));
    assert!(done.stdout.contains("model.dequantize()") && !done.stdout.contains("--qlora-base"), "{}", done.stdout);
}

#[test]
fn an_option_that_does_not_fit_the_base_is_refused() {
    let desk = desk();
    let refused = |base: &Path, option: &str, word: &str| {
        let call = desk.pack("merge").arg("--base").arg(base).args(["--no-tokenizer", "--qlora-base", option, "-o"]);
        let done = call.arg(desk.path("none.lpk")).run().expect("lora-pack starts");
        assert!(matches!(done.code, Some(1 | 2)), "{option}: {}", done.stderr);
        assert!(done.stderr.contains("--qlora-base") && done.stderr.contains(word), "{}", done.stderr);
    };
    refused(&folder("fp4"), "fp4", "leave the option out");
    refused(&folder("llama"), "q4", "nf4-double");
    let pack = packed(&desk, "merge", "base.lpk", &["--base", folder("llama").to_str().expect("a path")]);
    refused(&pack, "nf4", "quantized already");
    let experts = data::committed().join("qwen3_moe_qk_norm/base");
    refused(&experts, "dequantized", "experts");
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// A copy of a base, its tensors edited.
fn edited(desk: &Desk, base: &str, edit: impl FnOnce(&mut Tensors)) -> PathBuf {
    let to = desk.path("edited");
    std::fs::create_dir_all(&to).expect("a folder");
    std::fs::copy(folder(base).join("config.json"), to.join("config.json")).expect("a copy");
    let bytes = std::fs::read(folder(base).join("model.safetensors")).expect("the data");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut tensors: Tensors =
        file.iter().map(|(n, t)| (n.into(), (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect();
    edit(&mut tensors);
    let views: BTreeMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|(n, (dtype, shape, data))| (n.as_str(), TensorView::new(*dtype, shape.clone(), data).expect("a tensor")))
        .collect();
    safetensors::serialize_to_file(views, None, &to.join("model.safetensors")).expect("a file");
    to
}

const Q: &str = "model.layers.0.self_attn.q_proj.weight";

/// A companion of a weight.
fn part<'t>(tensors: &'t mut Tensors, suffix: &str) -> &'t mut (Dtype, Vec<usize>, Vec<u8>) {
    tensors.get_mut(&format!("{Q}{suffix}")).expect("it is there")
}

/// Another word in the state of a weight, as long as the old one or not.
fn reword(tensors: &mut Tensors, from: &str, to: &str) {
    let state = part(tensors, ".quant_state.bitsandbytes__nf4");
    let text = String::from_utf8(state.2.clone()).expect("text");
    assert!(text.contains(from), "{text}");
    state.2 = text.replacen(from, to, 1).into_bytes();
    state.1 = vec![state.2.len()];
}

#[test]
fn codes_may_be_stored_as_another_type() {
    let desk = desk();
    let base = edited(&desk, "nf4_double", |t| {
        let codes = t.get_mut(Q).expect("it is there");
        (codes.0, codes.1[0]) = (Dtype::BF16, codes.1[0] / 2);
    });
    assert_weights(&exported(&desk, &base, &[]), "nf4_double", "llama");
}

#[test]
fn what_is_malformed_is_refused_by_name() {
    type Edit = fn(&mut Tensors);
    let state = ".quant_state.bitsandbytes__nf4";
    let broken: [(&str, &str, Edit); 21] = [
        (".absmax", "missing", |t| drop(t.remove(&format!("{Q}.absmax")))),
        (".quant_map", "missing", |t| drop(t.remove(&format!("{Q}.quant_map")))),
        (".nested_absmax", "missing", |t| drop(t.remove(&format!("{Q}.nested_absmax")))),
        (".nested_quant_map", "missing", |t| drop(t.remove(&format!("{Q}.nested_quant_map")))),
        ("", "missing", |t| drop(t.remove(Q))),
        (".absmax", "no quant_state", |t| drop(t.remove(&format!("{Q}.quant_state.bitsandbytes__nf4")))),
        (".quant_map", "not the table", |t| part(t, ".quant_map").2[..4].copy_from_slice(&0.5f32.to_le_bytes())),
        (".quant_map", "needed", |t| *part(t, ".quant_map") = (Dtype::F32, vec![4], vec![0; 16])),
        (".absmax", "needed", |t| *part(t, ".absmax") = (Dtype::U8, vec![3], vec![0; 3])),
        (".absmax", "needed", |t| *part(t, ".absmax") = (Dtype::F16, vec![64], vec![0; 128])),
        (".nested_absmax", "needed", |t| *part(t, ".nested_absmax") = (Dtype::F32, vec![2], vec![0; 8])),
        ("", "bytes", |t| *t.get_mut(Q).expect("it is there") = (Dtype::U8, vec![100, 1], vec![0; 100])),
        ("", "dtype I16", |t| *t.get_mut(Q).expect("it is there") = (Dtype::I16, vec![1024, 1], vec![0; 2048])),
        (state, "blocksize", |t| reword(t, "\"blocksize\": 64", "\"blocksize\": 0")),
        (state, "blocksize", |t| reword(t, "\"blocksize\": 64", "\"blocksize\": 65")),
        (state, "nested_blocksize", |t| reword(t, "\"nested_blocksize\": 256", "\"nested_blocksize\": 0")),
        (state, "quant_type", |t| reword(t, "\"nf4\"", "\"fp4\"")),
        (state, "dtype", |t| reword(t, "\"bfloat16\"", "\"int4\"")),
        (state, "no matrix", |t| reword(t, "[64, 64]", "[4096]")),
        (state, "overflows", |t| reword(t, "[64, 64]", "[4294967296, 4294967296]")),
        (state, "not a quant_state", |t| reword(t, "{", "[")),
    ];
    let desk = desk();
    let refused = |base: &Path, tensor: &str, word: &str| {
        let out = desk.path("none");
        let call = desk.pack("export").arg("--base").arg(base).args(["--to", "safetensors", "-o"]).arg(&out);
        let done = call.run().expect("lora-pack starts");
        assert_eq!(done.code, Some(1), "{tensor} {word}: {}", done.stderr);
        assert!(
            done.stderr.contains(&format!("'{tensor}'")) && done.stderr.contains(word),
            "{tensor}: {}",
            done.stderr
        );
        assert!(!out.exists());
    };
    for (suffix, word, edit) in broken {
        refused(&edited(&desk, "nf4_double", edit), &format!("{Q}{suffix}"), word);
    }
    let module = Q.strip_suffix(".weight").expect("a weight");
    let eight: [(&str, &str, Edit); 4] = [
        (".weight", "no SCB", |t| drop(t.remove(&Q.replace("weight", "SCB")))),
        (".SCB", "needed", |t| {
            let scales = t.get_mut(&Q.replace("weight", "SCB")).expect("it is there");
            (scales.1, scales.2) = (vec![32], scales.2[..128].to_vec());
        }),
        (".weight", "SCB", |t| t.get_mut(Q).expect("it is there").0 = Dtype::U8),
        (".weight_format", "rows", |t| t.get_mut(&Q.replace("weight", "weight_format")).expect("it is there").2[0] = 1),
    ];
    for (suffix, word, edit) in eight {
        refused(&edited(&desk, "int8", edit), &format!("{module}{suffix}"), word);
    }
}
