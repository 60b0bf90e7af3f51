//! Peak memory, loading time, and the time to the first token. Each side runs in a process of its own, started here.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value as Json, json};

use crate::clock::Clock;
use crate::lora::{self, Options};
use crate::runner::{Runner, Setup};
use crate::stats::Spread;

/// Positions of the run whose memory is measured, all of them used.
const CONTEXT: u32 = 256;
const PROMPT: u32 = 128;

/// Arguments of `memory`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Our model, or a GGUF file for llama.cpp
    #[arg(required = true)]
    pub models: Vec<PathBuf>,
    #[command(flatten)]
    pub options: Options,
    /// Processes to start for each model; the first one, which may have to read the file from the disk, does not count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
}

/// Arguments of `once`.
#[derive(Debug, clap::Args)]
pub struct OnceArgs {
    model: PathBuf,
    #[command(flatten)]
    options: Options,
}

/// What a process reports.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Bytes of the model file.
    pub file: u64,
    /// Bytes of the KV cache.
    pub kv: u64,
    /// Peak resident memory.
    pub peak: u64,
    /// How much of it lay in huge pages at the end: of files, and the rest. None where the system does not say.
    pub huge: Option<(u64, u64)>,
    /// Milliseconds of CPU time from opening the file to the first op.
    pub load_ms: Spread,
    /// Milliseconds from opening the file to the first token after a prompt of one, with the file in the page cache.
    pub warm_ms: Spread,
    /// The same after the system was asked to drop the file from the page cache; none where it cannot be asked.
    pub cold_ms: Option<Spread>,
}

impl Memory {
    /// Peak ÷ (file + KV cache).
    pub fn ratio(&self) -> f64 {
        self.peak as f64 / (self.file + self.kv) as f64
    }
}

/// Runs the verb.
///
/// # Errors
/// A process fails.
pub fn run(args: &Args) -> Result<()> {
    let rows = args
        .models
        .iter()
        .map(|model| Ok((crate::file_name(model), measure(model, &args.options, args.rounds)?)))
        .collect::<Result<Vec<_>>>()?;
    print!("{}", table(&rows));
    Ok(())
}

/// The rows as a Markdown table.
pub fn table(rows: &[(String, Memory)]) -> String {
    let mut text = format!(
        "| model | file, MB | KV of {CONTEXT} positions, MB | peak RSS, MB | peak ÷ (file + KV) | in huge pages, MB: files, rest | load to first op, CPU ms | \
         first token, ms | the same, file not in memory |\n\
         |---|---|---|---|---|---|---|---|---|\n"
    );
    for (name, m) in rows {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let ms = |s: Spread| format!("{:.2} ({:.2}…{:.2})", s.median, s.low, s.high);
        let huge = m.huge.map_or("–".into(), |(files, rest)| format!("{:.0}, {:.0}", mb(files), mb(rest)));
        text += &format!(
            "| {name} | {:.1} | {:.1} | {:.1} | **{:.2}** | {huge} | {} | {} | {} |\n",
            mb(m.file),
            mb(m.kv),
            mb(m.peak),
            m.ratio(),
            ms(m.load_ms),
            ms(m.warm_ms),
            m.cold_ms.map_or_else(|| "–".into(), ms)
        );
    }
    text
}

/// Starts processes for one model.
///
/// # Errors
/// A process fails.
pub fn measure(model: &Path, options: &Options, rounds: u32) -> Result<Memory> {
    let (mut load, mut warm, mut cold) = (Vec::new(), Vec::new(), Vec::new());
    let number = |report: &Json, name: &'static str| report[name].as_f64().context(name);
    let mut last = Json::Null;
    for round in 0..=rounds {
        if drop_from_cache(model)? {
            let ms = number(&start(model, options)?, "first_ms")?;
            cold.extend((round > 0).then_some(ms));
        }
        last = start(model, options)?;
        if round > 0 {
            load.push(number(&last, "load_ms")?);
            warm.push(number(&last, "first_ms")?);
        }
    }
    let field = |name: &'static str| last[name].as_u64().context(name);
    Ok(Memory {
        file: field("file")?,
        kv: field("kv")?,
        peak: field("peak")?,
        huge: last["huge"][0].as_u64().zip(last["huge"][1].as_u64()),
        load_ms: Spread::of(&mut load),
        warm_ms: Spread::of(&mut warm),
        cold_ms: (!cold.is_empty()).then(|| Spread::of(&mut cold)),
    })
}

/// Starts a process for a model; returns its report.
fn start(model: &Path, options: &Options) -> Result<Json> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("once").arg(model).args(["--kv", options.kv.name()]);
    if let Some(level) = options.isa {
        command.args(["--isa", level.name()]);
    }
    let output = command.output()?;
    if !output.status.success() {
        bail!("{}: {}", model.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Asks the system to forget what it holds of a file; returns whether it can be asked.
#[cfg(target_os = "linux")]
fn drop_from_cache(path: &Path) -> Result<bool> {
    let file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    // Pages that are not on the disk yet are kept.
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(true)
}

#[cfg(not(target_os = "linux"))]
fn drop_from_cache(_: &Path) -> Result<bool> {
    Ok(false)
}

/// One process: loads, reads a prompt, generates the rest of the context.
///
/// # Errors
/// The model cannot be loaded or run.
pub fn once(args: &OnceArgs) -> Result<()> {
    let (start, start_wall) = (Clock::Process.now(), Clock::Wall.now());
    let (kv, times) =
        if args.model.extension().is_some_and(|e| e == "gguf") { once_llama(&args.model)? } else { once_lora(args)? };
    let file = std::fs::metadata(&args.model)?.len();
    let peak = peak_rss().context("the system does not tell peak memory")?;
    let load_ms = (times.loaded - start).as_secs_f64() * 1e3;
    let first_ms = (times.first - start_wall).as_secs_f64() * 1e3;
    println!(
        "{}",
        json!({ "file": file, "kv": kv, "peak": peak, "huge": times.huge, "load_ms": load_ms, "first_ms": first_ms })
    );
    Ok(())
}

const SETUP: Setup = Setup { context: CONTEXT, batch: PROMPT, threads: 1 };

/// When a process got where.
#[derive(Clone, Copy)]
struct Times {
    /// The model was loaded; CPU time of the process.
    loaded: Duration,
    /// The first token was there; wall clock.
    first: Duration,
    /// Bytes in huge pages at the end: of files, and the rest.
    huge: Option<(u64, u64)>,
}

/// Makes a first token, then fills the context.
fn work(runner: &mut dyn Runner) -> Result<Times> {
    let loaded = Clock::Process.now();
    runner.prefill(1)?;
    let first = Clock::Wall.now();
    runner.prefill(PROMPT)?;
    runner.decode(PROMPT, CONTEXT - PROMPT)?;
    Ok(Times { loaded, first, huge: huge_pages() })
}

/// Bytes of the KV cache, and the times.
fn once_lora(args: &OnceArgs) -> Result<(u64, Times)> {
    let mapping = lora::map(&args.model)?;
    let model = lora::verify(&mapping)?;
    let times = lora::with_session(model, &args.options, SETUP, |mut runner| work(&mut runner))?;
    Ok((model.plan(&lora::config(&args.options, SETUP)).kv_bytes, times))
}

#[cfg(feature = "llama-cpp")]
fn once_llama(path: &Path) -> Result<(u64, Times)> {
    let backend = crate::llama::backend()?;
    let model = crate::llama::load(&backend, path)?;
    let times = work(&mut crate::llama::Llama::new(&backend, &model, SETUP)?)?;
    // f16 keys and values.
    let width = model.n_embd() as u32 / model.n_head() * model.n_head_kv();
    Ok((2 * 2 * u64::from(CONTEXT) * u64::from(width) * u64::from(model.n_layer()), times))
}

#[cfg(not(feature = "llama-cpp"))]
fn once_llama(_: &Path) -> Result<(u64, Times)> {
    bail!("this build has no llama.cpp")
}

/// Bytes of files, and of other memory, that this process has in huge pages.
fn huge_pages() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    Some((field("FilePmdMapped:")?, field("AnonHugePages:")?))
}

/// Most bytes of memory that this process has held, mapped file pages included.
fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
