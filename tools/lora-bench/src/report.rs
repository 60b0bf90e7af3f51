//! `docs/performance.md`: everything in one run on one machine.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value as Json;

use crate::lora::Options;
use crate::runner::Setup;
use crate::{code, compare, memory, ops, roofline, threads};

/// Arguments of `report`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pairs `OURS.lpk=THEIRS.gguf`; the first is also taken apart op by op
    #[arg(required = true, value_name = "OURS=THEIRS")]
    pub pairs: Vec<String>,
    #[command(flatten)]
    pub options: Options,
    /// What to do how often
    #[command(flatten)]
    pub plan: compare::Plan,
    /// Other builds of this program, for other instruction sets of llama.cpp, each with the level of our kernels that
    /// it is beside
    #[arg(long, value_name = "LEVEL=PROGRAM")]
    pub also: Vec<String>,
    /// Text of a section on sentence encoders, as `tests/onnx/beside.py` prints it
    #[arg(long, value_name = "FILE")]
    pub encoders: Option<PathBuf>,
    /// A sentence about the circumstances, such as how busy the machine was
    #[arg(long)]
    pub note: Option<String>,
    /// The file to write
    #[arg(short = 'o', long, value_name = "FILE.md")]
    pub out: PathBuf,
}

/// Runs the verb.
///
/// # Errors
/// A model cannot be loaded or run, or the file not be written.
pub fn run(args: &Args) -> Result<()> {
    let pairs = args
        .pairs
        .iter()
        .map(|pair| {
            let (ours, theirs) = pair.split_once('=').with_context(|| format!("{pair}: write OURS.lpk=THEIRS.gguf"))?;
            Ok((PathBuf::from(ours), PathBuf::from(theirs)))
        })
        .collect::<Result<Vec<_>>>()?;
    let Some(build) = compare::peer_build() else {
        bail!("this build has no llama.cpp: cargo build --release -p lora-bench --features llama-cpp");
    };
    let mut text = String::from("# Performance\n\nWritten by `lora-bench report`; do not edit. ");
    text += "How to repeat it: [tools/lora-bench/README.md](../tools/lora-bench/README.md).\n\n";
    writeln!(text, "- machine: {}", machine())?;
    if let Some(note) = &args.note {
        writeln!(text, "- {note}")?;
    }
    text += "\n## Beside llama.cpp\n\nCrate `llama-cpp-sys-2`. Turn by turn in one process; medians, and the quartiles of the turns' ratios. Above 1 we are faster.\n";
    let level = args.options.kernels()?.level().name();
    for (ours, theirs) in &pairs {
        let size = |path: &PathBuf| Ok::<f64, std::io::Error>(std::fs::metadata(path)?.len() as f64 / 1e6);
        let names = (crate::file_name(ours), crate::file_name(theirs));
        writeln!(text, "\n### {} ({:.1} MB) and {} ({:.1} MB)", names.0, size(ours)?, names.1, size(theirs)?)?;
        let mut section = |level: &str, build: &str, rows: &[compare::Row]| {
            let kv = args.options.kv.name();
            writeln!(
                text,
                "\nOur kernels {level}, KV cache {kv}; llama.cpp `{build}`\n\n{}",
                compare::table(rows).trim_end()
            )
        };
        for other in &args.also {
            let (level, program) = other.split_once('=').with_context(|| format!("{other}: write LEVEL=PROGRAM"))?;
            eprintln!("{} beside {}: {program}", names.0, names.1);
            let (build, rows) = measured_by(program, level, (ours, theirs), args)?;
            section(level, &build, &rows)?;
        }
        eprintln!("{} beside {}", names.0, names.1);
        section(level, &build, &compare::measure(ours, Some(theirs), &args.options, &args.plan)?)?;
    }
    if let Some(path) = &args.encoders {
        let said = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        writeln!(
            text,
            "\n## Sentence encoders beside ONNX Runtime\n\nOne thread, CPU time, turn by turn (`tests/onnx/beside.py`).\n\n{}",
            said.trim()
        )?;
    }
    writeln!(text, "\nThe rest of this page: our kernels {level}.")?;
    text += "\n## Memory and loading\n\n";
    let mut rows = Vec::new();
    for path in pairs.iter().flat_map(|(ours, theirs)| [ours, theirs]) {
        eprintln!("memory of {}", path.display());
        rows.push((crate::file_name(path), memory::measure(path, &args.options, args.plan.rounds)?));
    }
    text += &memory::table(&rows);
    let models: Vec<PathBuf> = pairs.iter().map(|(ours, _)| ours.clone()).collect();
    if args.plan.threads.len() > 1 {
        writeln!(text, "\n## More threads: {}\n", crate::file_name(&models[0]))?;
        text += &threads::table(&models[0], &args.options, &args.plan.threads, args.plan.rounds)?;
    }
    text += "\n## Limits of the machine\n\n";
    text += &roofline::text(&models, &args.options, &args.plan.threads, args.plan.rounds)?;
    let first = &models[0];
    for (title, depth, tokens) in
        [("one token", 0, 1), ("one token at position 1024", 1024, 1), ("a prompt of 128 tokens", 0, 128)]
    {
        writeln!(text, "\n## Where the time goes: {}, {title}\n", crate::file_name(first))?;
        let setup = Setup { context: depth + tokens, batch: 128, threads: 1 };
        text += &ops::table(first, &args.options, setup, (depth, tokens), args.plan.rounds)?;
    }
    text += "\n## Instructions of the kernels\n\nCounted in the machine code of this build (`lora-bench code`), scales and loop included.\n\n";
    text += &code::counts();
    std::fs::write(&args.out, text).with_context(|| format!("cannot write {}", args.out.display()))
}

/// What another build of this program says about itself and measures.
fn measured_by(program: &str, level: &str, pair: (&Path, &Path), args: &Args) -> Result<(String, Vec<compare::Row>)> {
    let plan = &args.plan;
    let list = |values: &[String]| values.join(",");
    let numbers = |values: &[u32]| list(&values.iter().map(u32::to_string).collect::<Vec<_>>());
    let output = Command::new(program)
        .args([Path::new("compare"), pair.0, pair.1])
        .args(["--json", "--isa", level, "--kv", args.options.kv.name()])
        .args(["--threads", &list(&plan.threads.iter().map(usize::to_string).collect::<Vec<_>>())])
        .args(["--prompt", &numbers(&plan.prompt), "--depth", &numbers(&plan.depth)])
        .args(["--generate", &plan.generate.to_string(), "--rounds", &plan.rounds.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program} failed");
    let json: Json = serde_json::from_slice(&output.stdout)?;
    let rows = json["rows"].as_array().and_then(|rows| rows.iter().map(compare::Row::of_json).collect());
    let build = json["peer_build"].as_str().with_context(|| format!("{program} was built without llama.cpp"))?;
    Ok((build.to_owned(), rows.context("the rows of a comparison")?))
}

/// The processor's name and number, the system.
fn machine() -> String {
    let field = |text: &str, name: &str| {
        text.lines().find(|l| l.starts_with(name)).and_then(|l| l.split_once(':')).map(|(_, v)| v.trim().to_owned())
    };
    let cpu = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|t| field(&t, "model name"));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cpus} CPUs, {}", cpu.unwrap_or_else(|| "unknown processor".into()), std::env::consts::OS)
}
