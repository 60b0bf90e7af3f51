//! Programs on bare boards under QEMU: the same models give the same bits as on this machine.
//!
//! Needs the cross tools (`tests/cross/setup`), so it runs where it is asked for:
//! `cargo test --workspace --release --test firmware -- --ignored --nocapture`. `BOARDS=mps2-an386,virt` chooses.

mod measure;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use conformance::data::workspace;
use conformance::desk::Desk;
use lora_runtime::kernels::{Kernels, Level};
use lora_runtime::map::Mapping;
use lora_runtime::sampler::{Rng, Sampling};
use lora_runtime::session::workers::Inline;
use lora_runtime::tasks::{TextBuffer, classify, generate};
use lora_runtime::threads::ArenaBox;
use lora_runtime::{Model, Session, selftest};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// A board under QEMU.
#[derive(Clone, Copy)]
struct Board {
    /// QEMU's machine.
    machine: &'static str,
    /// The board whose memory map the image has.
    map: &'static str,
    /// The compiler's target.
    target: &'static str,
    /// QEMU's processor.
    processor: &'static str,
}

const BOARDS: [Board; 5] = {
    const fn board(machine: &'static str, map: &'static str, target: &'static str, processor: &'static str) -> Board {
        Board { machine, map, target, processor }
    }
    [
        board("mps2-an386", "mps2-an386", "thumbv7em-none-eabihf", "cortex-m4"),
        board("mps2-an500", "mps2-an386", "thumbv7em-none-eabihf", "cortex-m7"),
        board("mps2-an505", "mps2-an505", "thumbv8m.main-none-eabihf", "cortex-m33"),
        board("mps3-an547", "mps3-an547", "thumbv8m.main-none-eabihf", "cortex-m55"),
        board("virt", "virt", "aarch64-unknown-none", "cortex-a72"),
    ]
};

const PROMPT: &str = "<|user|>Dock the robot right away<|end|><|assistant|>";
const ANSWER: &str = "{\"fn\":\"vacuum\",\"act\":\"dock\"}";
const TEXTS: &str = "turn the light on in the winter\nthe second report is quick to read";

/// A program of tests/firmware, and what it must print.
struct Program {
    name: &'static str,
    model: PathBuf,
    expected: String,
}

/// The session of both examples, on this machine with the portable kernels.
fn with_session<T>(
    lpk: &Path,
    positions: u32,
    step: u32,
    work: impl FnOnce(&mut Session<'_>) -> lora_runtime::Result<T>,
) -> Result<(T, u64)> {
    let file = Mapping::open(lpk)?;
    let model = Model::open(&file)?;
    let config = model.config(positions, step);
    let planned = model.plan(&config).arena_bytes;
    let mut arena = ArenaBox::new(usize::try_from(planned)?);
    let kernels = Kernels::for_level(Level::Scalar).context("portable kernels are always there")?;
    let mut session = Session::new(model, config, kernels, &Inline, arena.as_mut_slice())?;
    Ok((work(&mut session)?, planned))
}

fn generator(desk: &Desk, quant: &str) -> Result<Program> {
    let demo = workspace().join("models/demo");
    let model = desk.path("generate.lpk");
    let call = desk.pack("merge").arg("--base").arg(demo.join("tiny-base"));
    let call = call.arg("--adapter").arg(demo.join("tiny-home-control")).args(["--quant", quant]);
    desk.produce(call, &model).map_err(|miss| anyhow::anyhow!("{miss:?}"))?;
    let ((text, digest), arena) = with_session(&model, 96, 8, |session| {
        let model = *session.model();
        let mut buffer = TextBuffer::<64, 1024>::new();
        let prompt = buffer.encode(&model, PROMPT)?;
        let mut decoder = model.tokenizer()?.decoder(true);
        let mut text = String::new();
        let greedy = Sampling::GREEDY;
        generate(session, prompt, 48, &greedy, &mut Rng::new(1), |id| decoder.push(id, &mut text).is_ok())?;
        let _ = decoder.finish(&mut text);
        Ok((text, selftest::digest(session, prompt.tokens)?))
    })?;
    ensure!(text == ANSWER, "the demo model answers {text}");
    let expected = format!("arena {arena} bytes, one less is refused\n{text}\ndigest {digest:016x}\n");
    Ok(Program { name: "generate", model, expected })
}

/// The recorded encoder in `folder`, with the pooler that its head needs and that the recording left out.
fn encoder_with_pooler(folder: &Path) -> Result<()> {
    let source = workspace().join("tests/data/fixtures/bert_seqcls/base");
    std::fs::create_dir(folder)?;
    for entry in std::fs::read_dir(&source)? {
        let entry = entry?;
        std::fs::copy(entry.path(), folder.join(entry.file_name()))?;
    }
    let bytes = std::fs::read(source.join("model.safetensors"))?;
    let file = SafeTensors::deserialize(&bytes)?;
    let mut tensors: Vec<_> = file.tensors();
    const WIDTH: usize = 64;
    let number = |i: usize| ((i * 7919 % 65) as f32 - 32.0) / 256.0;
    let weight: Vec<u8> = (0..WIDTH * WIDTH).flat_map(|i| number(i).to_le_bytes()).collect();
    let view = |shape: &[usize], data| TensorView::new(Dtype::F32, shape.to_vec(), data);
    tensors.push(("bert.pooler.dense.weight".into(), view(&[WIDTH, WIDTH], &weight)?));
    tensors.push(("bert.pooler.dense.bias".into(), view(&[WIDTH], &weight[..4 * WIDTH])?));
    Ok(safetensors::serialize_to_file(tensors, None, &folder.join("model.safetensors"))?)
}

fn classifier(desk: &Desk) -> Result<Program> {
    let model = desk.path("classify.lpk");
    let base = desk.path("base");
    encoder_with_pooler(&base)?;
    let adapter = workspace().join("tests/data/fixtures/bert_seqcls/adapter");
    let call = desk.pack("merge").arg("--base").arg(&base).arg("--adapter").arg(adapter).args(["--quant", "q8"]);
    desk.produce(call, &model).map_err(|miss| anyhow::anyhow!("{miss:?}"))?;
    let (lines, arena) = with_session(&model, 48, 48, |session| {
        let model = *session.model();
        let mut buffer = TextBuffer::<48, 1024>::new();
        let mut lines = String::new();
        for line in TEXTS.lines() {
            let (best, scores) = classify(session, buffer.encode(&model, line)?)?;
            lines.push_str(model.file.label(best).unwrap_or("?"));
            for score in scores {
                let _ = write!(lines, " {:08x}", score.to_bits());
            }
            lines.push('\n');
        }
        Ok(lines)
    })?;
    let expected = format!("arena {arena} bytes, one less is refused\n{lines}");
    Ok(Program { name: "classify", model, expected })
}

/// `cargo` for a board, through tests/cross.
fn cargo(board: Board, verb: &str, program: &Program) -> Command {
    let mut command = Command::new(workspace().join("tests/cross/cargo"));
    command.arg(board.target).arg(verb).args(["--quiet", "--release", "--manifest-path", "tests/firmware/Cargo.toml"]);
    command.args(["--bin", program.name]).current_dir(workspace());
    command.env("BOARD", board.map).env("MODEL", &program.model).env("PROMPT", PROMPT).env("TEXTS", TEXTS);
    // The instructions that thumbv8m leaves out; what is built for M33 runs on M55.
    command.env("CARGO_TARGET_THUMBV8M_MAIN_NONE_EABIHF_RUSTFLAGS", "-C target-cpu=cortex-m33");
    // Cargo's own settings for this test are not the board's.
    for (key, _) in std::env::vars().filter(|(k, _)| k.starts_with("CARGO_PKG") || k == "RUSTUP_TOOLCHAIN") {
        command.env_remove(key);
    }
    command
}

fn check(board: Board, program: &Program) -> Result<()> {
    let Board { machine, processor, .. } = board;
    let output = cargo(board, "run", program)
        .env("CROSS_BOARD", machine)
        .env("CROSS_CPU", processor)
        .output()
        .context("tests/cross/cargo cannot be started")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let (body, stack) = text.rsplit_once("stack ").with_context(|| format!("no stack size in {text:?}"))?;
    ensure!(body == program.expected, "printed {body:?} instead of {:?}", program.expected);
    let used: u32 = stack.trim().strip_suffix(" bytes").unwrap_or_default().parse().context("stack size")?;
    conformance::say(&format!("{machine} ({processor}): {}: the host's bits; stack {used} bytes", program.name));
    // The start code paints 32 kB.
    ensure!(used < 0x8000, "the stack was used up");
    Ok(())
}

fn succeed(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?} cannot be started"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

/// The classifier in C, linked by arm-none-eabi-gcc (or what `ARM_CC` names): static library, embedded model, header.
fn c_on_cortex_m(desk: &Desk, program: &Program) -> Result<String> {
    let target = "thumbv7em-none-eabihf";
    let cargo = workspace().join("tests/cross/cargo");
    let build = ["build", "--quiet", "--release", "-p", "lora-runtime-c", "--no-default-features"];
    succeed(Command::new(&cargo).arg(target).args(build).current_dir(workspace()).env_remove("RUSTUP_TOOLCHAIN"))?;
    let folder = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    let library = folder.join("cross").join(target).join("release/liblora_runtime.a");
    let object = desk.path("model.o");
    let call = desk.pack("embed").arg(&program.model).args(["--target", "cortex-m4", "--section", ".model"]);
    desk.produce(call, &object).map_err(|miss| anyhow::anyhow!("{miss:?}"))?;
    let memory = "MEMORY { FLASH : ORIGIN = 0, LENGTH = 4M\n RAM : ORIGIN = 0x20000000, LENGTH = 4M }\n\
                  REGION_ALIAS(\"MODEL\", FLASH);\n";
    std::fs::write(desk.path("memory.x"), memory)?;
    let firmware = workspace().join("tests/firmware");
    let image = desk.path("classify-c");
    let mut cc = Command::new(std::env::var_os("ARM_CC").unwrap_or_else(|| "arm-none-eabi-gcc".into()));
    cc.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-Os", "-ffreestanding", "-nostdlib", "-nostartfiles"]);
    cc.args(["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-Wl,--gc-sections"]);
    cc.arg("-DMEMORY_BYTES=262144").arg(format!("-DTEXTS={TEXTS:?}"));
    cc.arg("-I").arg(workspace().join("runtime/capi/include")).arg(firmware.join("c/classify.c"));
    cc.arg(&object).arg(&library).arg("-L").arg(desk.path("")).arg("-L").arg(firmware.join("link"));
    succeed(cc.args(["-T", "board.x", "-o"]).arg(&image))?;
    succeed(qemu(BOARDS[0]).arg("-kernel").arg(&image))
}

/// The emulator of a board, whose console is standard output.
fn qemu(board: Board) -> Command {
    let system = if board.target.starts_with("thumb") { "qemu-system-arm" } else { "qemu-system-aarch64" };
    let mut qemu = Command::new("timeout");
    qemu.args(["300", system, "-M", board.machine, "-cpu", board.processor, "-display", "none", "-nic", "none"]);
    qemu.args(["-monitor", "none", "-serial", "none", "-no-reboot", "-chardev", "stdio,id=console"]);
    qemu.args(["-semihosting-config", "enable=on,target=native,chardev=console"]);
    qemu
}

#[test]
#[ignore = "needs the cross tools; .ci/run firmware runs it"]
fn c_on_a_board_computes_the_hosts_bits() {
    let desk = Desk::new(&workspace().join("models/demo")).unwrap();
    let program = classifier(&desk).unwrap();
    let printed = c_on_cortex_m(&desk, &program).unwrap();
    assert_eq!(program.expected.split_once('\n').unwrap().1, printed);
}

#[test]
#[ignore = "needs the cross tools; .ci/run firmware runs it"]
fn boards_compute_the_hosts_bits() {
    let desk = Desk::new(&workspace().join("models/demo")).unwrap();
    let programs = [classifier(&desk).unwrap(), generator(&desk, "q4").unwrap()];
    let chosen = std::env::var("BOARDS").unwrap_or_default();
    let mut failed = Vec::new();
    for board in BOARDS.into_iter().filter(|b| chosen.is_empty() || chosen.split(',').any(|c| c == b.machine)) {
        // The README's program keeps its model in flash, which one of the maps has no room for.
        let readme = Program { name: "readme", model: programs[1].model.clone(), expected: ANSWER.into() };
        let all = programs.iter().chain(Some(&readme).filter(|_| board.machine == "mps2-an386"));
        for program in all {
            if let Err(error) = check(board, program) {
                failed.push(format!("{}: {}: {error:#}", board.machine, program.name));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
