//! `--quant keep`: a quantized base's blocks in the packed file, to the bit.

use std::collections::BTreeMap;

use lora_pack::merge::{AdapterSpec, MergeOptions, Merged};
use lora_pack::pack::{PackOptions, PackReport, pack};
use lora_pack::source::BaseModel;
use lora_runtime::Model;
use lora_runtime::format::Tensor;
use lora_runtime::kernels::QuantizedRows;
use lora_runtime::map::Mapping;
use lora_runtime::weights::WeightFormat;

use crate::adapter::write as write_adapter;
use crate::export::quantized;
use crate::kit::counting;

/// Packs; the values of every matrix by name, and its format.
fn packed(base: &BaseModel, adapters: &[AdapterSpec]) -> (PackReport, BTreeMap<String, (WeightFormat, Vec<f32>)>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.lpk");
    let merged = Merged::new(base, adapters, &MergeOptions::default()).unwrap();
    let options = PackOptions { keep: true, ..PackOptions::new(WeightFormat::Q8) };
    let report = pack(base, &merged, &options, BTreeMap::new(), &path, &mut |_, _, _| {}).unwrap();
    let bytes = Mapping::open(&path).unwrap();
    let model = Model::open(&bytes).unwrap();
    let f = &model.file;
    let matrices = f.tensors.iter().zip(0..).filter_map(|(record, i)| {
        let Some(Tensor::Panels { format, rows, cols, data }) = f.tensor(i) else { return None };
        let values = match format.is_float() {
            true => Vec::new(),
            false => QuantizedRows::unpack(format, data, rows, cols).dequantize(&f.header.codebook),
        };
        Some((f.str(record.name).to_owned(), (format, values)))
    });
    let matrices = matrices.collect();
    (report, matrices)
}

#[test]
fn blocks_are_carried_over_to_the_bit() {
    let base = quantized().open().unwrap();
    let (report, matrices) = packed(&base, &[]);
    let mut seen = 0;
    for (name, (format, values)) in &matrices {
        eprintln!("{name}: {}", format.name());
        // Fused matrices are their modules' rows one after the other.
        let parts: Vec<&str> = name.split('+').collect();
        let want: Option<Vec<f32>> = parts
            .iter()
            .map(|m| base.read_f32(&format!("{m}.weight")).ok())
            .collect::<Option<Vec<_>>>()
            .map(|p| p.concat());
        let Some(want) = want else { continue };
        assert_eq!(values.len(), want.len(), "{name}");
        let differ = values.iter().zip(&want).filter(|(a, b)| a.to_bits() != b.to_bits() && **a != **b).count();
        assert_eq!(differ, 0, "{name}");
        seen += parts.len();
    }
    assert!(seen >= 5, "{seen}");
    assert_eq!(report.carried, matrices.len());
    let formats: Vec<WeightFormat> = matrices.values().map(|m| m.0).collect();
    for format in [WeightFormat::I4, WeightFormat::I4M, WeightFormat::I5, WeightFormat::I5M, WeightFormat::Q8] {
        assert!(formats.contains(&format), "{}", format.name());
    }
}

#[test]
fn what_an_adapter_changes_gets_a_finer_grid() {
    let base = quantized().open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lora.gguf");
    let factors = [
        ("blk.0.ffn_down.weight.lora_a", counting(&[1, 64], 1e-3)),
        ("blk.0.ffn_down.weight.lora_b", counting(&[32, 1], 1e-3)),
    ];
    write_adapter(&path, 1.0, &factors);
    let (report, matrices) = packed(&base, &[AdapterSpec::new(&path)]);
    let down = &matrices["model.layers.0.mlp.down_proj"];
    assert_eq!(down.0, WeightFormat::Q6);
    assert_eq!(report.carried, matrices.len() - 1);
}
