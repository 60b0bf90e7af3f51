//! What more threads bring on a quiet machine, and what they bring when another program takes a whole CPU.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use lora_runtime::threads::{ArenaBox, Pool};
use lora_runtime::{Session, kernels};

use crate::clock::Clock;
use crate::lora::{self, Lora, Options};
use crate::peak;
use crate::runner::{Runner, Setup};
use crate::stats::Spread;

const PROMPT: u32 = 128;
const GENERATE: u32 = 32;
/// Unmeasured work after something began or ceased beside it: the pool has to notice.
const SETTLE: Duration = Duration::from_millis(300);

/// Arguments of `threads`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model
    pub model: PathBuf,
    #[command(flatten)]
    pub options: Options,
    /// Numbers of threads; the first is what the others are compared with
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [1, 2])]
    pub threads: Vec<usize>,
    /// Turns
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
}

/// Runs the verb.
///
/// # Errors
/// The model cannot be loaded or run.
pub fn run(args: &Args) -> Result<()> {
    print!("{}", table(&args.model, &args.options, &args.threads, args.rounds)?);
    Ok(())
}

/// The measurements as a Markdown table: wall time, turn by turn.
///
/// # Errors
/// The model cannot be loaded or run.
pub fn table(path: &Path, options: &Options, threads: &[usize], rounds: u32) -> Result<String> {
    let mapping = lora::map(path)?;
    let model = lora::verify(&mapping)?;
    let setup = |threads| Setup { context: PROMPT.max(GENERATE) + 1, batch: PROMPT, threads };
    let kernels: &'static kernels::Kernels = options.kernels()?;
    let pools = threads.iter().map(|n| Pool::new(*n)).collect::<std::io::Result<Vec<_>>>()?;
    let config = lora::config(options, setup(1));
    let arena_bytes = usize::try_from(model.plan(&config).arena_bytes)?;
    let mut arenas: Vec<ArenaBox> = pools.iter().map(|_| ArenaBox::new(arena_bytes)).collect();
    let mut runners = Vec::new();
    for (pool, arena) in pools.iter().zip(&mut arenas) {
        runners.push(Lora::new(Session::new(model, config, kernels, pool, arena.as_mut_slice())?));
    }
    let int8 = peak::int8();
    // What so many threads of this machine do at most: multiply, or read the file.
    let limit = |test: &str, threads: usize| match test {
        "prefill" => int8.map(|int8| int8.rate_together(threads)),
        _ => Some(peak::read_together(&mapping, threads, 1).median),
    };
    let mut text = String::from(
        "| test | threads | beside it | tokens/s, wall time | ÷ the first row of the test (quartiles) | \
         the machine's own limit ÷ that of the first row |\n|---|---|---|---|---|---|\n",
    );
    for (name, tokens) in [("prefill", PROMPT), ("decode", GENERATE)] {
        // Per number of threads: alone, and beside a hog; the limits in the same rounds.
        let mut speeds = vec![[Vec::new(), Vec::new()]; runners.len()];
        let mut limits = vec![Vec::new(); runners.len()];
        // The first round only warms up.
        for round in 0..=rounds {
            for (i, runner) in runners.iter_mut().enumerate() {
                let limit = limit(name, threads[i]);
                limits[i].extend(limit.filter(|_| round > 0));
                for (busy, speeds) in [false, true].into_iter().zip(&mut speeds[i]) {
                    let _hog = busy.then(Hog::start);
                    let mut work = || match name {
                        "prefill" => runner.prefill(tokens),
                        _ => runner.decode(0, tokens),
                    };
                    let start = Clock::Wall.now();
                    while Clock::Wall.now() - start < SETTLE {
                        work()?;
                    }
                    let seconds = Clock::Wall.seconds(work)?;
                    if round > 0 {
                        speeds.push(f64::from(tokens) / seconds);
                    }
                }
            }
        }
        let ratio = |of: &[f64], to: &[f64]| -> Option<String> {
            let mut ratios: Vec<f64> = of.iter().zip(to).map(|(a, b)| a / b).collect();
            let spread = (!ratios.is_empty()).then(|| Spread::of(&mut ratios))?;
            Some(format!("**{:.2}** ({:.2}…{:.2})", spread.median, spread.low, spread.high))
        };
        let (first, first_limits) = (speeds[0][0].clone(), limits[0].clone());
        for ((n, speeds), limits) in threads.iter().zip(&mut speeds).zip(&limits) {
            for (beside, speeds) in ["–", "a thread that never waits"].into_iter().zip(speeds) {
                let (none, times) = (|| "–".to_owned(), ratio(speeds, &first));
                let limit = ratio(limits, &first_limits).filter(|_| beside == "–");
                text += &format!(
                    "| {name} {tokens} | {n} | {beside} | {:.1} | {} | {} |\n",
                    Spread::of(speeds).median,
                    times.unwrap_or_else(none),
                    limit.unwrap_or_else(none)
                );
            }
        }
    }
    Ok(text)
}

/// A thread that takes all the CPU time that it gets, until it is dropped.
struct Hog {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Hog {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It cannot have panicked.
            let _ = thread.join();
        }
    }
}
