//! Balanced channels leave the float model as it is, to the bit, whatever the family; what can be balanced is found.

use std::path::{Path, PathBuf};

use lora_models::balance::{Place, Site, biases, factors, sites};
use lora_models::spec::Lowered;
use lora_models::{Checkpoint, Policy};
use lora_pack::calibrate::compare::{Side, compare};
use lora_pack::calibrate::{Balance, Document};
use lora_pack::merge::{MergeOptions, Merged};
use lora_pack::pack::{PackOptions, float_twin, task_of};
use lora_pack::source::BaseModel;
use lora_runtime::format::Task;
use lora_runtime::kernels::KvType;
use lora_runtime::weights::WeightFormat;

struct Shapes<'a, 'b>(&'a Merged<'b>);

impl Checkpoint for Shapes<'_, '_> {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.shape(name).map(<[usize]>::to_vec)
    }

    fn format(&self, _: &str) -> Option<WeightFormat> {
        None
    }
}

fn fixture(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/fixtures").join(case).join("base")
}

/// Sites of a fixture, and whether the model is the same after rescaling all of them.
fn balanced(case: &str) -> usize {
    let base = BaseModel::open(&fixture(case)).unwrap_or_else(|e| panic!("{case}: {e}"));
    let merged = Merged::new(&base, &[], &MergeOptions::default()).unwrap();
    let options = PackOptions { no_tokenizer: true, ..PackOptions::new(WeightFormat::F32) };
    let (task, policy) = (task_of(&merged, &options).unwrap(), Policy::new(WeightFormat::F32));
    let lowered = lora_models::lower(merged.config(), &Shapes(&merged), task, policy.clone()).unwrap();
    let sites = sites(&lowered);
    let exponent = |i: usize, s: &Site, c: usize| ((s.pairs.partner(c, s.run).min(c) * 7 + i) % 9) as i8 - 4;
    let exponents = sites.iter().enumerate().map(|(i, s)| (0..s.channels).map(|c| exponent(i, s, c)).collect());
    let balance = Balance::new(exponents.collect());
    let dir = tempfile::tempdir().unwrap();
    let twin = |balance: &Balance| {
        float_twin(&base, &merged, &options, (&policy, balance), &dir.path().join("x.lpk"), &mut |_, _, _| {}).unwrap()
    };
    let (plain, scaled) = (twin(&Balance::default()), twin(&balance));
    let ids = |seed: u32, n: u32| (0..n).map(|i| 3 + (i * 17 + seed) % (lowered.vocab - 3)).collect::<Vec<u32>>();
    let target = if task == Task::Seq2SeqLm { ids(5, 7) } else { Vec::new() };
    let documents = [Document { tokens: ids(1, 12), target, ..Document::default() }];
    let (plain, scaled) = (plain.model().unwrap(), scaled.model().unwrap());
    let d = compare(Side::new(plain, KvType::F32), Side::new(scaled, KvType::F32), &documents).unwrap();
    assert!(d.rows > 0 && d.same_top == d.rows, "{case}");
    assert!(d.kl.iter().all(|kl| *kl == 0.0), "{case}: {:?}", d.kl);
    assert!(d.cosine.is_none_or(|c| c > 0.999_999), "{case}: {:?}", d.cosine);
    sites.len()
}

#[test]
fn the_float_model_stays_the_same() {
    // By layer: both norms, the values, the gated half of the MLP, the keys; the head is the embedding.
    assert_eq!(balanced("llama_tied_qv") % 5, 0);
    for (case, least) in [
        ("qwen2_qa", 10),
        ("gemma_mqa", 10),
        ("gptj_interleaved", 6),
        ("phi_parallel", 4),
        ("cohere_parallel", 4),
        ("glm4_sandwich", 4),
        ("stablelm_partial", 6),
        ("mpt_alibi", 4),
        ("mbart_prenorm", 4),
        ("qwen3_moe_qk_norm", 2),
        // Norms of sums feed the residual stream too: the values alone.
        ("bert_seqcls", 2),
        ("deberta_v2_qa", 2),
    ] {
        let found = balanced(case);
        println!("{case}: {found} sites");
        assert!(found >= least, "{case}: {found}");
    }
}

/// A pack is read back by the sites of the model in floats: what is one matrix there may be two in the file.
#[test]
fn sites_of_one_lowering_speak_of_all_matrices_of_another() {
    for case in ["llama_tied_qv", "qwen2_qa", "gemma_mqa"] {
        let base = BaseModel::open(&fixture(case)).unwrap_or_else(|e| panic!("{case}: {e}"));
        let merged = Merged::new(&base, &[], &MergeOptions::default()).unwrap();
        let options = PackOptions { no_tokenizer: true, ..PackOptions::new(WeightFormat::F32) };
        let task = task_of(&merged, &options).unwrap();
        let lower = |format| lora_models::lower(merged.config(), &Shapes(&merged), task, Policy::new(format)).unwrap();
        let float = lower(WeightFormat::F32);
        for format in [WeightFormat::Q4, WeightFormat::Q5, WeightFormat::Q8] {
            let packed = lower(format);
            let exponents: Vec<Vec<i8>> =
                sites(&float).iter().map(|s| (0..s.channels).map(|c| (c % 5) as i8 - 2).collect()).collect();
            let of = |lowered: &Lowered| {
                let place = |slot: u32| {
                    let s = &packed.slots[slot as usize];
                    let t = &packed.tensors[s.tensor as usize];
                    Some(Place { tensor: s.tensor, shape: (t.rows, t.cols), row: s.row_start })
                };
                let biases = biases(packed.entries.iter().flat_map(|e| e.ops.iter().copied()));
                factors(&sites(lowered), &exponents, &place, &biases)
            };
            assert_eq!(of(&float), of(&packed), "{case}, {}", format.name());
        }
    }
}
