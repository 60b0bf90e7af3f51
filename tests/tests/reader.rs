//! The format documents against the files: a reader written from `docs/` alone, in another language, finds in a pack what
//! the runtime finds.

use std::process::Command;

use conformance::data;
use conformance::desk::Desk;
use lora_runtime::format::File;
use lora_runtime::format::view::Tensor;
use lora_runtime::kernels::dequant_row;
use lora_runtime::map::Mapping;
use serde_json::Value;

/// Sum and sum of squares of a tensor's values.
fn digest(file: &File<'_>, index: u32) -> (f64, f64) {
    let add = |(sum, square): (f64, f64), v: &f32| (sum + f64::from(*v), square + f64::from(*v) * f64::from(*v));
    match file.tensor(index).expect("a tensor of the table") {
        Tensor::Vector { data, .. } => data.iter().fold((0.0, 0.0), add),
        Tensor::Thin(_) => panic!("tensor {index}: thin tensors are for adapters"),
        Tensor::Panels { format, rows, cols, data } => {
            let mut row = vec![0.0; cols];
            let mut total = (0.0, 0.0);
            for r in 0..rows {
                let panel = &data[r / 16 * format.panel_bytes(cols)..][..format.panel_bytes(cols)];
                dequant_row(format, &file.header.codebook, panel, r % 16, &mut row);
                total = row.iter().fold(total, add);
            }
            total
        }
    }
}

#[test]
fn a_reader_written_from_the_documents_agrees() {
    let python = Command::new("python3").arg("-c").arg("import sys; sys.exit(sys.version_info < (3, 8))").status();
    if !python.is_ok_and(|status| status.success()) {
        conformance::say("SKIP reader: no python3 of 3.8 or later");
        return;
    }
    let case = data::workspace().join("tests/data/fixtures/llama_tied_qv");
    let desk = Desk::new(&case).expect("a temporary folder");
    for quant in ["f32", "f16", "q8", "q8r", "q4", "q4l", "q5", "q6"] {
        let lpk = desk.path(&format!("{quant}.lpk"));
        let mut call =
            desk.pack("merge").arg("--base").arg(case.join("base")).arg("--adapter").arg(case.join("adapter"));
        call = call.args(["--quant", quant]);
        desk.produce(call, &lpk).unwrap_or_else(|miss| panic!("{quant}: {miss:?}"));
        let script = data::workspace().join("tests/reader/lpk.py");
        let output = Command::new("python3").arg(script).arg(&lpk).output().expect("python3 runs");
        assert!(output.status.success(), "{quant}: {}", String::from_utf8_lossy(&output.stderr));
        let seen: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        compare(quant, &seen, &lpk);
    }
}

fn compare(quant: &str, seen: &Value, lpk: &std::path::Path) {
    let mapping = Mapping::open(lpk).expect("the pack opens");
    let file = File::new_checked(&mapping).expect("the pack is sound");
    assert_eq!(seen["meta"].as_object().expect("metadata").len(), file.meta.len());
    let tensors = seen["tensors"].as_array().expect("tensors");
    assert_eq!(tensors.len(), file.tensors.len());
    let mut formats = std::collections::BTreeSet::new();
    for (index, (theirs, record)) in tensors.iter().zip(file.tensors).enumerate() {
        assert_eq!(theirs["name"], file.str(record.name));
        formats.insert(theirs["format"].as_str().expect("a format").to_owned());
        let (sum, square) = digest(&file, index as u32);
        let (their_sum, their_square) = (theirs["sum"].as_f64().unwrap(), theirs["square"].as_f64().unwrap());
        // The runtime rounds every value to binary32 once or twice, the script works in binary64.
        assert!((their_square - square).abs() <= 1e-6 * square, "{quant} {}: {their_square} {square}", theirs["name"]);
        let bound = 1e-6 * (square * f64::from(record.rows) * f64::from(record.cols)).sqrt();
        assert!((their_sum - sum).abs() <= bound, "{quant} {}: {their_sum} {sum}", theirs["name"]);
    }
    assert!(formats.contains(quant), "{quant} is not among {formats:?}");
    let tokenizer = &seen["tokenizer"];
    assert!(tokenizer["merges"].as_u64() > Some(100), "{tokenizer}");
    assert_eq!(tokenizer["merges"], tokenizer["merges_found"], "{tokenizer}");
    assert!(tokenizer["in_trie"].as_u64() > Some(256), "{tokenizer}");
}
