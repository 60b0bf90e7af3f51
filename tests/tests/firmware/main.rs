//! Programs on bare boards under QEMU: the same models give the same bits as on this machine.
//!
//! Needs the cross tools (`tests/cross/setup`), so it runs where it is asked for:
//! `cargo test --workspace --release --test firmware -- --ignored --nocapture`. `BOARDS=mps2-an386,virt` chooses.

mod image;
mod measure;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use conformance::data::{golden, workspace};
use conformance::desk::Desk;
use conformance::process::Call;
use lora_runtime::kernels::{Kernels, Level};
use lora_runtime::map::Mapping;
use lora_runtime::sampler::{Rng, Sampling};
use lora_runtime::selftest::{Golden, digest};
use lora_runtime::session::workers::Inline;
use lora_runtime::tasks::{TextBuffer, classify, generate};
use lora_runtime::threads::ArenaBox;
use lora_runtime::{Active, Adapter, Model, Session, Set};
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
    /// Features of the programs, beside the default ones.
    features: &'static str,
}

const BOARDS: [Board; 5] = {
    const fn board(machine: &'static str, map: &'static str, target: &'static str, processor: &'static str) -> Board {
        Board { machine, map, target, processor, features: "" }
    }
    [
        board("mps2-an386", "mps2-an386", "thumbv7em-none-eabihf", "cortex-m4"),
        board("mps2-an500", "mps2-an386", "thumbv7em-none-eabihf", "cortex-m7"),
        board("mps2-an505", "mps2-an505", "thumbv8m.main-none-eabihf", "cortex-m33"),
        Board { features: "mve", ..board("mps3-an547", "mps3-an547", "thumbv8m.main-none-eabihf", "cortex-m55") },
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
    adapters: Vec<PathBuf>,
    /// The last adapter as Rust source.
    source: Option<PathBuf>,
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
        let golden = Golden::of(&model).expect("packs have a golden result")?;
        Ok((text, format!("{:016x}", digest(session, golden.ids())?)))
    })?;
    ensure!(text == ANSWER, "the demo model answers {text}");
    ensure!(digest == golden(quant), "the demo model as {quant} computes {digest}: models/demo/golden.txt has another");
    let expected = format!("arena {arena} bytes, one less is refused\n{text}\ndigest {digest}\n");
    Ok(Program { name: "generate", model, adapters: Vec::new(), source: None, expected })
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

/// The recorded adapter with other numbers, in a folder of its own.
fn other_adapter(from: &Path, folder: &Path) -> Result<()> {
    std::fs::create_dir(folder)?;
    std::fs::copy(from.join("adapter_config.json"), folder.join("adapter_config.json"))?;
    let bytes = std::fs::read(from.join("adapter_model.safetensors"))?;
    let file = SafeTensors::deserialize(&bytes)?;
    let mut tensors = Vec::new();
    for (name, view) in file.tensors() {
        ensure!(view.dtype() == Dtype::F32, "{name} is not float32");
        // The values in reverse order.
        let data: Vec<u8> = view.data().rchunks_exact(4).flatten().copied().collect();
        tensors.push((name, view.shape().to_vec(), data));
    }
    let views = tensors.iter().map(|(name, shape, data)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), data)?)));
    let views: Vec<_> = views.collect::<Result<_>>()?;
    Ok(safetensors::serialize_to_file(views, None, &folder.join("adapter_model.safetensors"))?)
}

/// An encoder with two adapters, switched between texts.
fn classifier(desk: &Desk) -> Result<Program> {
    let (model, base) = (desk.path("base.lpk"), desk.path("base"));
    encoder_with_pooler(&base)?;
    let adapter = workspace().join("tests/data/fixtures/bert_seqcls/adapter");
    let other = desk.path("other");
    other_adapter(&adapter, &other)?;
    let pack = |call: Call, out: &Path| desk.produce(call, out).map_err(|miss| anyhow::anyhow!("{miss:?}"));
    pack(desk.pack("merge").arg("--base").arg(&base).args(["--quant", "q8"]), &model)?;
    let adapters = [(&adapter, "on,off,other"), (&other, "dull,plain,bright")];
    let mut files = Vec::new();
    for (i, (folder, labels)) in adapters.into_iter().enumerate() {
        let file = desk.path(&format!("adapter{i}.lpk"));
        let call = desk.pack("adapter").arg("--base").arg(&base).arg("--adapter").arg(folder);
        pack(call.args(["--labels", labels]), &file)?;
        files.push(file);
    }
    let (lines, arena) = classify_here(&model, &files)?;
    let half = lines.len() / 2;
    ensure!(lines[..half] != lines[half..], "both adapters say {lines:?}");
    let expected = format!("arena {arena} bytes, one less is refused\n{}", lines.concat());
    let source = desk.path("second.rs");
    pack(desk.pack("embed").arg(&files[1]).args(["--name", "second", "--section", ".model"]), &source)?;
    Ok(Program { name: "classify", model, adapters: files, source: Some(source), expected })
}

/// The lines of the classifier's program and its arena, on this machine with the portable kernels.
fn classify_here(base: &Path, adapters: &[PathBuf]) -> Result<(Vec<String>, u64)> {
    let file = Mapping::open(base)?;
    let base = Model::open(&file)?;
    let files = adapters.iter().map(|f| Mapping::open(f)).collect::<Result<Vec<_>, _>>()?;
    let adapters = files.iter().map(|f| Adapter::attach(&base, f)).collect::<Result<Vec<_>, _>>()?;
    let mut config = base.config(48, 48);
    for adapter in &adapters {
        config.adapters = config.adapters.or(adapter.needs());
    }
    let planned = base.plan(&config).arena_bytes;
    let mut arena = ArenaBox::new(usize::try_from(planned)?);
    let kernels = Kernels::for_level(Level::Scalar).context("portable kernels are always there")?;
    let mut session = Session::new(base, config, kernels, &Inline, arena.as_mut_slice())?;
    let mut buffer = TextBuffer::<48, 1024>::new();
    let mut lines = Vec::new();
    for adapter in &adapters {
        let model = base.with_adapter(adapter);
        session.select(Set::new(&[Active::new(adapter)])?)?;
        session.set_face(model)?;
        for text in TEXTS.lines() {
            let (best, scores) = classify(&mut session, buffer.encode(&model, text)?)?;
            let mut line = model.face.label(best).context("labels have names")?.to_owned();
            for score in scores {
                let _ = write!(line, " {:08x}", score.to_bits());
            }
            lines.push(line + "\n");
        }
    }
    Ok((lines, planned))
}

/// `cargo` for a board, through tests/cross.
fn cargo(board: Board, verb: &str) -> Command {
    cross_cargo(board.target, verb)
}

/// `cargo` for a target, through tests/cross.
fn cross_cargo(target: &str, verb: &str) -> Command {
    let mut command = Command::new(workspace().join("tests/cross/cargo"));
    command.arg(target).args([verb, "--quiet"]).current_dir(workspace());
    // The instructions that thumbv8m leaves out; what is built for M33 runs on M55.
    command.env("CARGO_TARGET_THUMBV8M_MAIN_NONE_EABIHF_RUSTFLAGS", "-C target-cpu=cortex-m33");
    // Cargo's own settings for this test are not the board's.
    for (key, _) in std::env::vars().filter(|(k, _)| k.starts_with("CARGO_PKG") || k == "RUSTUP_TOOLCHAIN") {
        command.env_remove(key);
    }
    command
}

/// Builds programs for a board, all at once, and gives the folder of their images.
fn build(board: Board, programs: &[&Program], new: Option<u64>) -> Result<PathBuf> {
    let mut command = cargo(board, "build");
    command.args(["--release", "--manifest-path", "tests/firmware/Cargo.toml"]);
    command.args(["--features", board.features]).env("BOARD", board.map).env("PROMPT", PROMPT).env("TEXTS", TEXTS);
    for program in programs {
        command.args(["--bin", program.name]);
        if let (Some(first), Some(second)) = (program.adapters.first(), &program.source) {
            command.env("BASE", &program.model).env("ADAPTER_1", first).env("ADAPTER_2_RS", second);
        } else {
            command.env("MODEL", &program.model);
        }
    }
    if let Some(new) = new {
        // The cache of a float model for few positions: it fits every board.
        command.env("NEW", new.to_string()).env("POSITIONS", "40");
    }
    succeed(&mut command)?;
    Ok(target_folder().join("cross").join(board.target).join("release"))
}

fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

fn check(board: Board, program: &Program, images: &Path) -> Result<()> {
    let Board { machine, processor, .. } = board;
    let text = succeed(qemu(board).arg("-kernel").arg(images.join(program.name)))?;
    let (body, stack) = text.rsplit_once("stack ").with_context(|| format!("no stack size in {text:?}"))?;
    ensure!(body == program.expected, "printed {body:?} instead of {:?}", program.expected);
    let sizes = stack.trim().strip_suffix(" bytes").and_then(|s| s.split_once(" of ")).context("stack size")?;
    let (used, all): (u32, u32) = (sizes.0.parse()?, sizes.1.parse()?);
    conformance::say(&format!("{machine} ({processor}): {}: the host's bits; stack {used} bytes", program.name));
    ensure!(used < all, "the stack was used up");
    if board.target.starts_with("thumb") {
        let planned = image::planned(processor)?.stack_bytes;
        ensure!(u64::from(used) <= planned, "plan --target says {planned} bytes of stack");
    }
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
    let board = BOARDS[0];
    let mut cargo = cargo(board, "build");
    cargo.args(["--profile", "firmware", "-p", "lora-runtime-c", "--no-default-features", "--features", "dsp"]);
    succeed(&mut cargo)?;
    let library = target_folder().join("cross").join(board.target).join("firmware/liblora_runtime.a");
    let mut objects = Vec::new();
    for (file, name) in [&program.model].into_iter().chain(&program.adapters).zip(["model", "first", "second"]) {
        let object = desk.path(&format!("{name}.o"));
        let call = desk.pack("embed").arg(file).args(["--target", "cortex-m4", "--section", ".model", "--name", name]);
        desk.produce(call, &object).map_err(|miss| anyhow::anyhow!("{miss:?}"))?;
        objects.push(object);
    }
    let memory = "MEMORY { FLASH : ORIGIN = 0, LENGTH = 4M\n RAM : ORIGIN = 0x20000000, LENGTH = 4M }\n\
                  REGION_ALIAS(\"MODEL\", FLASH);\nstack_bytes = 0x8000;\n";
    std::fs::write(desk.path("memory.x"), memory)?;
    let firmware = workspace().join("tests/firmware");
    let image = desk.path("classify-c");
    let mut cc = Command::new(std::env::var_os("ARM_CC").unwrap_or_else(|| "arm-none-eabi-gcc".into()));
    cc.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-Os", "-ffreestanding", "-nostdlib", "-nostartfiles"]);
    cc.args(["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-Wl,--gc-sections"]);
    cc.arg("-DMEMORY_BYTES=262144").arg(format!("-DTEXTS={TEXTS:?}"));
    cc.arg("-I").arg(workspace().join("runtime/capi/include")).arg(firmware.join("c/classify.c"));
    cc.args(&objects).arg(&library).arg("-L").arg(desk.path("")).arg("-L").arg(firmware.join("link"));
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
    let (classifier, generator) = (classifier(&desk).unwrap(), generator(&desk, "q4").unwrap());
    let readme = Program {
        name: "readme",
        adapters: Vec::new(),
        source: None,
        expected: ANSWER.into(),
        model: generator.model.clone(),
    };
    let chosen = std::env::var("BOARDS").unwrap_or_default();
    let mut failed = Vec::new();
    let mut built: Option<(&str, PathBuf)> = None;
    for board in BOARDS.into_iter().filter(|b| chosen.is_empty() || chosen.split(',').any(|c| c == b.machine)) {
        // The README's program keeps its model in flash, which one of the maps has no room for.
        let readme = (board.map == "mps2-an386").then_some(&readme);
        let programs: Vec<_> = [&classifier, &generator].into_iter().chain(readme).collect();
        let images = match &built {
            Some((map, images)) if *map == board.map => images.clone(),
            _ => {
                let images = build(board, &programs, None).unwrap();
                if board.target.starts_with("thumb")
                    && let Err(error) = image::check(board.processor, &images.join("classify"))
                {
                    failed.push(format!("{}: {error:#}", board.machine));
                }
                images
            }
        };
        for program in programs {
            if let Err(error) = check(board, program, &images) {
                failed.push(format!("{}: {}: {error:#}", board.machine, program.name));
            }
        }
        built = Some((board.map, images));
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
