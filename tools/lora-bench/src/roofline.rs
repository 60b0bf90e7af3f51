//! The limits of this machine, and how near a step comes to them.
//!
//! Generating reads every weight once a token, so memory bandwidth limits it; reading a prompt reuses weights, so
//! the multipliers limit it.

use std::path::{Path, PathBuf};

use anyhow::Result;
use lora_runtime::Model;
use lora_runtime::format::{EntryKind, Tensor};
use lora_runtime::program::Op;

use crate::clock::Clock;
use crate::lora::{self, Options};
use crate::peak::{self, Pages};
use crate::runner::{Runner, Setup};
use crate::stats::Spread;

const PROMPT: u32 = 128;
const GENERATE: u32 = 32;

/// Arguments of `roofline`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Models to measure
    pub models: Vec<PathBuf>,
    #[command(flatten)]
    pub options: Options,
    /// Numbers of threads that read memory together
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [1, 2])]
    pub threads: Vec<usize>,
    /// Turns
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
}

/// What a token takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Bytes of weights that one generated token reads.
    pub bytes: u64,
    /// Multiply-adds of a token in the middle of a prompt: everything but the head.
    pub macs: u64,
}

/// Runs the verb.
///
/// # Errors
/// A model cannot be loaded or run.
pub fn run(args: &Args) -> Result<()> {
    print!("{}", text(&args.models, &args.options, &args.threads, args.rounds)?);
    Ok(())
}

/// The measurements as Markdown.
///
/// # Errors
/// A model cannot be loaded or run.
pub fn text(models: &[PathBuf], options: &Options, threads: &[usize], rounds: u32) -> Result<String> {
    let gb = |s: Spread| format!("{:.1} ({:.1}…{:.1})", s.median / 1e9, s.low / 1e9, s.high / 1e9);
    let mut text = String::from("| limit | |\n|---|---|\n");
    for n in threads {
        let who = if *n == 1 { "one core".to_owned() } else { format!("{n} threads together, wall time") };
        for (pages, name) in [(Pages::Small, "4 KiB"), (Pages::Huge, "huge")] {
            let rate = gb(peak::read_anonymous(pages, *n, rounds)?);
            text += &format!("| read bandwidth of {who}, {name} pages, GB/s | {rate} |\n");
        }
    }
    if threads.iter().any(|n| *n > 1) {
        let time = peak::hand_over(rounds);
        let time = format!("{:.0} ({:.0}…{:.0})", time.median, time.low, time.high);
        text += &format!("| until a thread sees what another has written, ns | {time} |\n");
    }
    let int8 = peak::int8();
    let one = int8.map(|int8| int8.rate());
    if let (Some(int8), Some(one)) = (int8, one) {
        text += &format!("| int8 multiply-adds of one core, 10⁹/s, by {} | {} |\n", int8.name, gb(one));
        for n in threads.iter().filter(|n| **n > 1) {
            let mut rates: Vec<f64> = (0..rounds).map(|_| int8.rate_together(*n)).collect();
            let rate = gb(Spread::of(&mut rates));
            text += &format!("| the same of {n} threads together, wall time | {rate} |\n");
        }
    }
    if !models.is_empty() {
        text += "\n| model | bytes a token | read of the file itself, GB/s | decode, tokens/s | share of that bandwidth | \
                 prefill, tokens/s | share of int8 peak |\n|---|---|---|---|---|---|---|\n";
    }
    for model in models {
        text += &row(model, options, rounds, one.map(|peak| peak.median))?;
    }
    Ok(text)
}

/// One model: bandwidth and decode turn by turn, then prefill.
fn row(path: &Path, options: &Options, rounds: u32, int8: Option<f64>) -> Result<String> {
    let mapping = lora::map(path)?;
    let model = lora::verify(&mapping)?;
    let cost = cost(&model)?;
    let setup = Setup { context: PROMPT.max(GENERATE) + 1, batch: PROMPT, threads: 1 };
    let (mut reads, mut decodes, mut shares, mut prefills) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    lora::with_session(model, options, setup, |mut runner| {
        for round in 0..=rounds {
            let read = peak::read(&mapping, 1).median;
            let seconds = Clock::Thread.seconds(|| runner.decode(0, GENERATE))?;
            let decode = f64::from(GENERATE) / seconds;
            let seconds = Clock::Thread.seconds(|| runner.prefill(PROMPT))?;
            if round > 0 {
                reads.push(read);
                decodes.push(decode);
                shares.push(decode * cost.bytes as f64 / read);
                prefills.push(f64::from(PROMPT) / seconds);
            }
        }
        Ok(())
    })?;
    let (read, decode) = (Spread::of(&mut reads), Spread::of(&mut decodes));
    let (share, prefill) = (Spread::of(&mut shares), Spread::of(&mut prefills));
    let of_peak = int8.map_or("–".into(), |peak| format!("{:.2}", prefill.median * cost.macs as f64 / peak));
    Ok(format!(
        "| {} | {:.1} MB | {:.1} | {:.1} | **{:.2}** ({:.2}…{:.2}) | {:.1} | **{of_peak}** |\n",
        crate::file_name(path),
        cost.bytes as f64 / 1e6,
        read.median / 1e9,
        decode.median,
        share.median,
        share.low,
        share.high,
        prefill.median,
    ))
}

/// What a token of the decoder takes, from the program.
///
/// # Errors
/// The model does not generate.
pub fn cost(model: &Model<'_>) -> Result<Cost> {
    let entry = model.entry(EntryKind::Decode)?;
    let mut cost = Cost::default();
    // Linear layers after rows were selected run once a step, for the last token.
    let mut selected = false;
    for record in &model.file.ops[entry.op_start as usize..][..entry.op_count as usize] {
        match Op::parse(record)? {
            Op::Select { .. } => selected = true,
            // Of experts a token reads one a slot, and each slot has an op.
            Op::Linear { weight, .. } | Op::ExpertLinear { weight, .. } => {
                if let Some(Tensor::Panels { rows, cols, data, .. }) = model.file.tensor(weight) {
                    cost.bytes += data.len() as u64;
                    if !selected {
                        cost.macs += (rows * cols) as u64;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(cost)
}
