//! What the programs cost on a board: code, stack, executed instructions. `tests/firmware/measure` prints it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use conformance::data::workspace;
use conformance::desk::Desk;
use lora_runtime::Model;
use lora_runtime::format::EntryKind;
use lora_runtime::map::Mapping;
use lora_runtime::program::Op;

use super::{Board, Program, cargo, classifier, generator, qemu, succeed};

/// What the classifier's code and constants should not exceed. They do: the script says by how much.
const CLASSIFIER_GOAL: u64 = 120 << 10;
/// New tokens of the two runs whose difference is counted.
const NEW: [u64; 2] = [2, 8];

/// Sizes of an ELF32 file's sections: code, and constants.
fn sizes(image: &Path) -> Result<(u64, u64)> {
    let file = std::fs::read(image).with_context(|| image.display().to_string())?;
    let number = |at: usize, n: usize| -> Result<usize> {
        let bytes = file.get(at..at + n).context("the image ends early")?;
        Ok(bytes.iter().rev().fold(0, |v, b| v << 8 | usize::from(*b)))
    };
    ensure!(file.starts_with(b"\x7fELF\x01\x01"), "not a 32-bit ELF file");
    let (table, size, count, names) = (number(32, 4)?, number(46, 2)?, number(48, 2)?, number(50, 2)?);
    let names = number(table + names * size + 16, 4)?;
    let (mut code, mut constants) = (0, 0);
    for i in 0..count {
        let section = table + i * size;
        let name = &file[names + number(section, 4)?..];
        let len = number(section + 20, 4)? as u64;
        match name.split(|b| *b == 0).next().unwrap_or_default() {
            b".text" | b".vectors" => code += len,
            b".rodata" | b".data" => constants += len,
            _ => {}
        }
    }
    Ok((code, constants))
}

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
        let image = build(board, &classifier, None).unwrap();
        let (code, constants) = sizes(&image).unwrap();
        let Board { machine, processor, .. } = board;
        println!("{machine} ({processor}), classify: {code} + {constants} bytes (goal {CLASSIFIER_GOAL})");
    }
    for quant in ["q8", "q4"] {
        let generator = generator(&desk, quant).unwrap();
        let work = multiplications(&generator.model).unwrap();
        for board in super::BOARDS {
            let counts = NEW.map(|new| {
                let image = build(board, &generator, Some(new)).unwrap();
                instructions(board, &image, &plugin).unwrap()
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

/// Builds a program and gives its image.
fn build(board: Board, program: &Program, new: Option<u64>) -> Result<PathBuf> {
    let mut command = cargo(board, "build", program);
    if let Some(new) = new {
        command.env("NEW", new.to_string());
    }
    succeed(&mut command)?;
    let folder = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    Ok(folder.join("cross").join(board.target).join("release").join(program.name))
}
