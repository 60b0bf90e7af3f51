//! What the programs cost: code, executed instructions, on boards and, of `lora-run`, under Linux. `tests/firmware/measure`
//! prints it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use conformance::data::workspace;
use conformance::desk::Desk;
use lora_pack::target::{MEASURED, Target};
use lora_runtime::Model;
use lora_runtime::format::EntryKind;
use lora_runtime::map::Mapping;
use lora_runtime::program::Op;

use super::image::{GOAL, sizes};
use super::{Board, PROMPT, build, classifier, cross_cargo, generator, qemu, succeed, target_folder};

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

fn on_board(board: Board, image: &Path, plugin: &Path) -> Result<u64> {
    counted(qemu(board).arg("-plugin").arg(plugin).args(["-d", "plugin", "-kernel"]).arg(image))
}

/// What `lora-run` executes for `new` tokens of the generator's answer.
fn on_linux(linux: Linux, program: &Path, model: &Path, new: u64, plugin: &Path) -> Result<u64> {
    let mut qemu = Command::new(linux.emulator);
    qemu.args(["-cpu", linux.processor, "-plugin"]).arg(plugin).args(["-d", "plugin"]).arg(program);
    qemu.arg("generate").arg(model).args(["-p", PROMPT, "--temp", "0", "--threads", "1", "-n", &new.to_string()]);
    counted(&mut qemu)
}

/// The plugin's count of an emulator's run.
fn counted(qemu: &mut Command) -> Result<u64> {
    let output = qemu.output()?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = log.lines().find_map(|l| l.strip_prefix("instructions ")).with_context(|| format!("no count: {log}"))?;
    Ok(line.trim().parse()?)
}

/// A processor under Linux.
#[derive(Clone, Copy)]
struct Linux {
    /// The compiler's target.
    target: &'static str,
    /// Features of the program.
    features: &'static str,
    emulator: &'static str,
    processor: &'static str,
}

const LINUX: [Linux; 4] = {
    const fn aarch64(processor: &'static str) -> Linux {
        Linux { target: "aarch64-unknown-linux-gnu", features: "", emulator: "qemu-aarch64", processor }
    }
    let armv7 = "armv7-unknown-linux-gnueabihf";
    [
        aarch64("cortex-a53"),
        aarch64("cortex-a72"),
        aarch64("cortex-a76"),
        Linux { target: armv7, features: "lora-runtime/dsp", emulator: "qemu-arm", processor: "cortex-a7" },
    ]
};

/// Builds the static `lora-run` and gives its place.
fn lora_run(linux: Linux) -> Result<PathBuf> {
    let mut cargo = cross_cargo(linux.target, "build");
    cargo.env("CROSS_STATIC", "1").args(["--release", "-p", "lora-run", "--features", linux.features]);
    succeed(&mut cargo)?;
    Ok(target_folder().join("cross").join(linux.target).join("release/lora-run"))
}

/// Prints what a token costs, from the counts of runs of [`NEW`] tokens; whether `plan --target`, where it knows the
/// processor, says the same.
fn report(place: &str, target: Option<Target>, format: usize, counts: [u64; 2], work: u64) -> bool {
    let each = (counts[1] - counts[0]) / (NEW[1] - NEW[0]);
    let (quant, weight) = (MEASURED[format], each as f64 / work as f64);
    println!("{place}, generate {quant}: {each} instructions per token, {weight:.2} per weight");
    let said = target.map(|t| t.instructions(format)).filter(|said| format!("{said:.2}") != format!("{weight:.2}"));
    if let Some(said) = said {
        println!("    plan --target says {said:.2}");
    }
    said.is_none()
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
    let wanted = std::env::var("MEASURE").unwrap_or_default();
    let mut same = true;
    for (format, quant) in MEASURED.into_iter().enumerate() {
        let generator = generator(&desk, quant).unwrap();
        let work = multiplications(&generator.model).unwrap();
        // The larger files do not fit into the flash that two of the maps have, so Cortex-M55 without its vector unit stands
        // for the others.
        let fits = |b: &Board| quant == "q4" || ["mps3-an547", "virt"].contains(&b.map);
        let plain = super::BOARDS.into_iter().filter(|b| !b.features.is_empty()).map(|b| Board { features: "", ..b });
        let boards = super::BOARDS.into_iter().chain(plain).filter(fits);
        for board in boards.filter(|_| wanted != "linux") {
            let counts = NEW.map(|new| {
                let images = build(board, &[&generator], Some(new)).unwrap();
                on_board(board, &images.join(generator.name), &plugin).unwrap()
            });
            let Board { machine, processor, features, .. } = board;
            let stands_for = if board.map == "mps3-an547" && features.is_empty() { "cortex-m33" } else { processor };
            let target = Target::from_name(stands_for).filter(|t| t.firmware.is_some());
            same &= report(&format!("{machine} ({processor} {features})"), target, format, counts, work);
        }
        for linux in LINUX.into_iter().filter(|_| wanted != "boards") {
            let program = lora_run(linux).unwrap();
            let counts = NEW.map(|new| on_linux(linux, &program, &generator.model, new, &plugin).unwrap());
            let target = Target::from_name(linux.processor);
            same &= report(&format!("Linux ({})", linux.processor), target, format, counts, work);
        }
    }
    assert!(same, "tools/lora-pack/src/target.rs and docs/firmware.md have other numbers");
}
