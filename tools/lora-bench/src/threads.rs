//! What more threads bring on a quiet machine, and what they bring when another program takes a whole CPU.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Result;
use lora_runtime::threads::{ArenaBox, Pool};
use lora_runtime::{Session, kernels};

use crate::clock::Clock;
use crate::lora::{self, Lora, Options};
use crate::runner::{Runner, Setup};
use crate::stats::Spread;

const PROMPT: u32 = 128;
const GENERATE: u32 = 32;

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
    let mut text = String::from(
        "| test | threads | beside it | tokens/s, wall time | ÷ the first row of the test (quartiles) |\n|---|---|---|---|---|\n",
    );
    for (name, tokens) in [("prefill", PROMPT), ("decode", GENERATE)] {
        // Per number of threads: alone, and beside a hog.
        let mut speeds = vec![[Vec::new(), Vec::new()]; runners.len()];
        // The first round only warms up.
        for round in 0..=rounds {
            for (runner, speeds) in runners.iter_mut().zip(&mut speeds) {
                for (busy, speeds) in [false, true].into_iter().zip(speeds) {
                    let _hog = busy.then(Hog::start);
                    let seconds = Clock::Wall.seconds(|| match name {
                        "prefill" => runner.prefill(tokens),
                        _ => runner.decode(0, tokens),
                    })?;
                    if round > 0 {
                        speeds.push(f64::from(tokens) / seconds);
                    }
                }
            }
        }
        let first = speeds[0][0].clone();
        for (n, speeds) in threads.iter().zip(&mut speeds) {
            for (beside, speeds) in ["–", "a thread that never waits"].into_iter().zip(speeds) {
                let mut ratios: Vec<f64> = speeds.iter().zip(&first).map(|(speed, first)| speed / first).collect();
                let (speed, ratio) = (Spread::of(speeds), Spread::of(&mut ratios));
                text += &format!(
                    "| {name} {tokens} | {n} | {beside} | {:.1} | **{:.2}** ({:.2}…{:.2}) |\n",
                    speed.median, ratio.median, ratio.low, ratio.high
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
