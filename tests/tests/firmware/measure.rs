//! What the programs cost on a board: code, stack, executed instructions. `tests/firmware/measure` prints it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use conformance::data::workspace;
use conformance::desk::Desk;
use lora_runtime::Model;
use lora_runtime::format::EntryKind;
use lora_runtime::map::Mapping;
use lora_runtime::program::Op;

use super::image::{GOAL, sizes};
use super::{Board, build, classifier, generator, qemu, succeed};

/// New tokens of the two runs whose difference is counted.
const NEW: [u64; 2] = [2, 8];

/// Multiplications of weights for one token, its logits included.
fn multiplications(lpk: &Path) -> Result<u64> {
    let file = Mapping::open(lpk)?;
    let model = Model::open(&file)?;
    let entry = model.entry(EntryKind::Decode)?;
    let ops = &model.file.ops[entry.op_start as usize..(entry.op_start + entry.op_count) as usize];
    let mut sum = 0;
    for record in ops {
        if let Op::Linear { weight, .. } = Op::parse(record)? {
            let tensor = &model.file.tensors[weight as usize];
            sum += u64::from(tensor.rows) * u64::from(tensor.cols);
        }
    }
    Ok(sum)
}

/// The plugin that counts instructions.
fn plugin(desk: &Desk) -> Result<PathBuf> {
    let out = desk.path("count.so");
    let source = workspace().join("tests/cross/count.c");
    succeed(Command::new("cc").args(["-O2", "-shared", "-fPIC", "-o"]).arg(&out).arg(source))?;
    Ok(out)
}

fn instructions(board: Board, image: &Path, plugin: &Path) -> Result<u64> {
    let output = qemu(board).arg("-plugin").arg(plugin).args(["-d", "plugin", "-kernel"]).arg(image).output()?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = log.lines().find_map(|l| l.strip_prefix("instructions ")).with_context(|| format!("no count: {log}"))?;
    Ok(line.trim().parse()?)
}

#[test]
#[ignore = "needs the cross tools; tests/firmware/measure runs it"]
fn measure() {
    let desk = Desk::new(&workspace().join("models/demo")).unwrap();
    let classifier = classifier(&desk).unwrap();
    let plugin = plugin(&desk).unwrap();
    println!("board, program: code + constants, instructions");
    for board in super::BOARDS.into_iter().filter(|b| ["mps2-an386", "mps2-an505", "mps3-an547"].contains(&b.machine)) {
        let images = build(board, &[&classifier], None).unwrap();
        let (code, constants) = sizes(&images.join(classifier.name)).unwrap();
        let Board { machine, processor, .. } = board;
        println!("{machine} ({processor}), classify: {code} + {constants} bytes (goal: {GOAL} of code)");
    }
    for quant in ["q8", "q4"] {
        let generator = generator(&desk, quant).unwrap();
        let work = multiplications(&generator.model).unwrap();
        // The larger file does not fit into the flash that two of the maps have.
        let fits = |b: &Board| quant == "q4" || ["mps3-an547", "virt"].contains(&b.map);
        for board in super::BOARDS.into_iter().filter(fits) {
            let counts = NEW.map(|new| {
                let images = build(board, &[&generator], Some(new)).unwrap();
                instructions(board, &images.join(generator.name), &plugin).unwrap()
            });
            let each = (counts[1] - counts[0]) / (NEW[1] - NEW[0]);
            println!(
                "{} ({}), generate {quant}: {each} instructions per token, {:.2} per weight",
                board.machine,
                board.processor,
                each as f64 / work as f64
            );
        }
    }
}
