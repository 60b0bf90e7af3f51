//! Where the time of a step goes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use lora_runtime::format::{EntryKind, Tensor};
use lora_runtime::program::Op;
use lora_runtime::{Model, Segment, Step};

use crate::clock::Clock;
use crate::lora::{self, Lora, Options};
use crate::runner::{Runner, Setup};

/// Arguments of `ops`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model
    pub model: PathBuf,
    #[command(flatten)]
    pub options: Options,
    /// Tokens of a step: 1 is generating, more is reading a prompt
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub tokens: u32,
    /// Positions already in the cache
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub depth: u32,
    /// Threads
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub threads: usize,
    /// Steps to add up
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
}

/// What runs: the decoder's entry, or of models without one the encoder's.
fn entry(model: &Model<'_>) -> EntryKind {
    if model.entry(EntryKind::Decode).is_ok() { EntryKind::Decode } else { EntryKind::Encode }
}

/// Runs the verb.
///
/// # Errors
/// The model cannot be loaded or run.
pub fn run(args: &Args) -> Result<()> {
    let setup = Setup { context: args.depth + args.tokens, batch: args.tokens.max(128), threads: args.threads };
    print!("{}", table(&args.model, &args.options, setup, (args.depth, args.tokens), args.rounds)?);
    Ok(())
}

/// Calls and seconds of an op kind.
#[derive(Clone, Copy, Default)]
struct Share {
    calls: u32,
    seconds: f64,
}

/// The breakdown of steps of `tokens` tokens at `depth` as a Markdown table.
///
/// # Errors
/// The model cannot be loaded or run.
pub fn table(path: &Path, options: &Options, setup: Setup, (depth, tokens): (u32, u32), rounds: u32) -> Result<String> {
    let mapping = lora::map(path)?;
    let model = lora::verify(&mapping)?;
    let mut shares: BTreeMap<String, Share> = BTreeMap::new();
    lora::with_session(model, options, setup, |mut runner| {
        runner.decode(depth, 0)?;
        // Once for the caches, not counted.
        observe(&mut runner, &model, (depth, tokens), Clock::for_threads(setup.threads), &mut BTreeMap::new())?;
        for _ in 0..rounds {
            observe(&mut runner, &model, (depth, tokens), Clock::for_threads(setup.threads), &mut shares)?;
        }
        Ok(())
    })?;
    let total: f64 = shares.values().map(|s| s.seconds).sum();
    let mut rows: Vec<(String, Share)> = shares.into_iter().collect();
    rows.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
    let mut text = String::from("| op | calls a step | µs a step | share |\n|---|---|---|---|\n");
    for (name, share) in rows {
        text += &format!(
            "| {name} | {} | {:.1} | {:.1} % |\n",
            share.calls / rounds,
            share.seconds * 1e6 / f64::from(rounds),
            100.0 * share.seconds / total
        );
    }
    text += &format!("| all | | {:.1} | |\n", total * 1e6 / f64::from(rounds));
    Ok(text)
}

/// One step, its time added to `shares`.
fn observe(
    runner: &mut Lora<'_>,
    model: &Model<'_>,
    (depth, tokens): (u32, u32),
    clock: Clock,
    shares: &mut BTreeMap<String, Share>,
) -> Result<()> {
    let ids = runner.tokens(depth, tokens);
    let segments = [Segment { sequence: 0, past: depth, len: tokens }];
    let step = Step { tokens: &ids, token_types: &[], segments: &segments, outputs: &[tokens - 1] };
    // Names are looked up afterwards: only readings of the clock stand between ops.
    let mut readings = Vec::with_capacity(2000);
    runner.session.run_observed(entry(model), &step, &mut |_, op| readings.push((op.copied(), clock.now())))?;
    for pair in readings.windows(2) {
        let (Some(op), start) = pair[0] else { continue };
        let share = shares.entry(name(model, &op)).or_default();
        share.calls += 1;
        share.seconds += (pair[1].1 - start).as_secs_f64();
    }
    Ok(())
}

/// The op's name; of linear layers also the shape and format.
fn name(model: &Model<'_>, op: &Op) -> String {
    let tensor = match op {
        Op::Linear { weight, .. } | Op::ExpertLinear { weight, .. } => model.file.tensor(*weight),
        _ => None,
    };
    match tensor {
        Some(Tensor::Panels { format, rows, cols, .. }) => {
            format!("{} {rows}×{cols} {}", op.code().name(), format.name())
        }
        _ => op.code().name().to_owned(),
    }
}
