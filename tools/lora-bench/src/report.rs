//! `docs/performance.md`: everything in one run on one machine.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

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
    writeln!(text, "- our kernels: {}; KV cache {}", args.options.kernels()?.level().name(), args.options.kv.name())?;
    writeln!(text, "- llama.cpp: crate `llama-cpp-sys-2`, `{build}`")?;
    if let Some(note) = &args.note {
        writeln!(text, "- {note}")?;
    }
    text += "\n## Beside llama.cpp\n\nTurn by turn in one process; medians, and the quartiles of the turns' ratios. Above 1 we are faster.\n";
    for (ours, theirs) in &pairs {
        let size = |path: &PathBuf| Ok::<f64, std::io::Error>(std::fs::metadata(path)?.len() as f64 / 1e6);
        let names = (crate::file_name(ours), crate::file_name(theirs));
        writeln!(text, "\n### {} ({:.1} MB) and {} ({:.1} MB)\n", names.0, size(ours)?, names.1, size(theirs)?)?;
        eprintln!("{} beside {}", names.0, names.1);
        text += &compare::table(&compare::measure(ours, Some(theirs), &args.options, &args.plan)?);
    }
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
    text += &roofline::text(&models, &args.options, args.plan.rounds)?;
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

/// The processor's name and number, the system.
fn machine() -> String {
    let field = |text: &str, name: &str| {
        text.lines().find(|l| l.starts_with(name)).and_then(|l| l.split_once(':')).map(|(_, v)| v.trim().to_owned())
    };
    let cpu = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|t| field(&t, "model name"));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cpus} CPUs, {}", cpu.unwrap_or_else(|| "unknown processor".into()), std::env::consts::OS)
}
