//! What the programs cost: code, executed instructions, on boards and, of `lora-run`, under Linux. `tests/firmware/measure`
//! prints it.

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

/// Prints what a token costs, from the counts of runs of [`NEW`] tokens.
fn report(place: &str, quant: &str, counts: [u64; 2], work: u64) {
    let each = (counts[1] - counts[0]) / (NEW[1] - NEW[0]);
    println!("{place}, generate {quant}: {each} instructions per token, {:.2} per weight", each as f64 / work as f64);
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
    for quant in ["q8", "q4", "f16", "f32"] {
        let generator = generator(&desk, quant).unwrap();
        let work = multiplications(&generator.model).unwrap();
        // The larger files do not fit into the flash that two of the maps have.
        let fits = |b: &Board| quant == "q4" || ["mps3-an547", "virt"].contains(&b.map);
        for board in super::BOARDS.into_iter().filter(fits) {
            let counts = NEW.map(|new| {
                let images = build(board, &[&generator], Some(new)).unwrap();
                on_board(board, &images.join(generator.name), &plugin).unwrap()
            });
            report(&format!("{} ({})", board.machine, board.processor), quant, counts, work);
        }
        for linux in LINUX {
            let program = lora_run(linux).unwrap();
            let counts = NEW.map(|new| on_linux(linux, &program, &generator.model, new, &plugin).unwrap());
            report(&format!("Linux ({})", linux.processor), quant, counts, work);
        }
    }
}
