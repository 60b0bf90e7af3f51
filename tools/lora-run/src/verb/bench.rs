//! `bench`: tokens per second, reading prompts and generating.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use lora_runtime::format::EntryKind;
use lora_runtime::threads::ArenaBox;
use lora_runtime::{Model, Segment, Session, Set, Step};
use serde_json::{Value as Json, json};

use crate::cli::ModelArgs;
use crate::load::{Host, positions};
use crate::output::{Out, note};
use crate::stats::human;

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lora-run bench model.lpk
  lora-run bench model.lpk -p 128,512 -n 64 -t 1,2,4 -r 5 --json
  lora-run bench model.lpk --isa avx2          (compare instruction sets)

  lora-run bench base.lpk --adapter a.lpk      (what the adapter costs: each step also without it, in turn)

Rows: ppN reads a prompt of N tokens, tgN generates N tokens; tokens per second, median and range of the repetitions.")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Prompt lengths to measure; 0 for none
    #[arg(short = 'p', long, value_name = "N,N", value_delimiter = ',', default_values_t = [128, 512])]
    pub prompt: Vec<u32>,
    /// Tokens to generate; 0 for none
    #[arg(short = 'n', long, value_name = "N,N", value_delimiter = ',', default_values_t = [64])]
    pub generate: Vec<u32>,
    /// Numbers of threads (default: one for each CPU)
    #[arg(short = 't', value_name = "N,N", value_delimiter = ',', conflicts_with = "threads",
          value_parser = clap::value_parser!(u16).range(1..=256))]
    pub thread_counts: Vec<u16>,
    /// Repetitions
    #[arg(short = 'r', long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What a row measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    /// A prompt of so many tokens.
    Prompt(u32),
    /// So many generated tokens.
    Generate(u32),
}

impl Test {
    fn name(self) -> String {
        match self {
            Self::Prompt(n) => format!("pp{n}"),
            Self::Generate(n) => format!("tg{n}"),
        }
    }
    fn tokens(self) -> u32 {
        match self {
            Self::Prompt(n) | Self::Generate(n) => n,
        }
    }
}

/// Runs the verb.
///
/// # Errors
/// The file is not sound, or nothing was measured.
pub fn run(args: &Args) -> Result<()> {
    let host = Host::open(&args.model)?;
    let model = host.model()?;
    let load_ms = host.since_start().as_secs_f64() * 1e3;
    let info = model.file.info;
    let kv = host.kv(&model);
    let mut out = Out::new();
    note(&format!(
        "{}: {}, {}, kernels {}, KV cache {}, opened in {load_ms:.2} ms",
        args.model.model.display(),
        model.file.str(info.architecture),
        human(model.file.bytes.len() as u64),
        host.kernels.level().name(),
        kv.name(),
    ));
    let mut rows = Vec::new();
    let threads = if args.thread_counts.is_empty() {
        vec![host.threads()]
    } else {
        args.thread_counts.iter().map(|t| usize::from(*t)).collect()
    };
    for threads in threads {
        for test in tests(args, &model) {
            let rounds = measure(&host, model, test, threads, args.repeat).with_context(|| test.name())?;
            let round = |x: f64| (x * 100.0).round() / 100.0;
            let tps = sorted(rounds.iter().map(|r| f64::from(test.tokens()) / r.own));
            let (min, median_tps, max) = (round(tps[0]), round(median(&tps)), round(tps[tps.len() - 1]));
            // Of each round the ratio: what slows the machine down for a while slows both.
            let ratios = sorted(rounds.iter().filter_map(|r| Some(r.base? / r.own)));
            let ratio = (!ratios.is_empty()).then(|| (median(&ratios) * 1e4).round() / 1e4);
            if !args.json {
                let beside = ratio.map_or_else(String::new, |r| format!("  {r:.4} of the base's speed"));
                out.line(&format!(
                    "{:<8} {threads:>3} threads  {median_tps:>10.2} tokens/s  ({min:.2} to {max:.2}){beside}",
                    test.name()
                ))?;
            }
            let mut row = json!({ "test": test.name(), "threads": threads, "tps_median": median_tps, "tps_min": min, "tps_max": max });
            if let Some(ratio) = ratio {
                row["of_base"] = json!(ratio);
            }
            rows.push(row);
        }
    }
    if rows.is_empty() {
        bail!("nothing to measure: the model has {} positions", positions(&model));
    }
    if args.json {
        out.json(&report(args, &model, &host, load_ms, rows))?;
    }
    Ok(())
}

fn report(args: &Args, model: &Model<'_>, host: &Host, load_ms: f64, rows: Vec<Json>) -> Json {
    json!({
        "model": args.model.model.display().to_string(),
        "architecture": model.file.str(model.file.info.architecture),
        "file_bytes": model.file.bytes.len(),
        "isa": host.kernels.level().name(),
        "kv": host.kv(model).name(),
        "chunk": host.chunk(),
        "load_ms": (load_ms * 1e3).round() / 1e3,
        "rows": rows,
    })
}

/// The tests that fit the model; what does not is said.
fn tests(args: &Args, model: &Model<'_>) -> Vec<Test> {
    let decodes = model.entry(EntryKind::Decode).is_ok();
    let prompts = args.prompt.iter().map(|n| Test::Prompt(*n));
    let generates = args.generate.iter().filter(|_| decodes).map(|n| Test::Generate(*n));
    let fits = |t: &Test| {
        let fits = t.tokens() < positions(model);
        if !fits {
            note(&format!("{} is left out: the model has {} positions", t.name(), positions(model)));
        }
        fits && t.tokens() > 0
    };
    prompts.chain(generates).filter(fits).collect()
}

/// Seconds of one repetition.
#[derive(Clone, Copy, Default)]
struct Round {
    own: f64,
    /// The same steps without the adapters, each right after its twin.
    base: Option<f64>,
}

fn measure(host: &Host, model: Model<'_>, test: Test, threads: usize, repeat: u32) -> Result<Vec<Round>> {
    let entry = if model.entry(EntryKind::Encode).is_ok() { EntryKind::Encode } else { EntryKind::Decode };
    let n = test.tokens();
    let chunk = match (test, entry) {
        (Test::Prompt(n), EntryKind::Encode) => n,
        (Test::Prompt(n), EntryKind::Decode) => host.chunk().min(n),
        (Test::Generate(_), _) => 1,
    };
    let mut config = host.config(&model, if model.entry(EntryKind::Decode).is_ok() { n + 1 } else { 0 }, chunk, 1);
    if entry == EntryKind::Encode && model.entry(EntryKind::Decode).is_ok() {
        config.source = n;
    }
    let set = host.set()?;
    config.adapters = set.needs();
    let sets = if set.is_base() { vec![set] } else { vec![set, Set::BASE] };
    config.sequences = sets.len() as u32;
    let mut arena = ArenaBox::new(usize::try_from(model.plan(&config).arena_bytes)?);
    let pool = host.pool_of(threads)?;
    let mut session = Session::new(model, config, host.kernels, &pool, arena.as_mut_slice())?;
    let ids = tokens(&model, n);
    let mut rounds = Vec::with_capacity(repeat as usize);
    // The first round only warms up: pages are read, clocks rise.
    for round in 0..=repeat {
        let mut seconds = [0.0; 2];
        for (i, tokens) in ids.chunks(chunk as usize).enumerate() {
            for (sequence, set) in sets.iter().enumerate() {
                let start = Instant::now();
                step(&mut session, entry, tokens, (sequence as u32, (i * chunk as usize) as u32), *set)?;
                if matches!(test, Test::Generate(_)) {
                    // Chosen as in greedy generation, so that nothing of a real step is left out.
                    let logits = session.output(EntryKind::Decode, "logits");
                    std::hint::black_box(logits.ok().and_then(|rows| host.kernels.argmax(rows.row(0))));
                }
                seconds[sequence] += start.elapsed().as_secs_f64();
            }
        }
        if round > 0 {
            rounds.push(Round { own: seconds[0], base: (sets.len() > 1).then_some(seconds[1]) });
        }
    }
    Ok(rounds)
}

fn step<'m>(
    session: &mut Session<'m>,
    entry: EntryKind,
    tokens: &[u32],
    (sequence, past): (u32, u32),
    set: Set<'m>,
) -> Result<()> {
    let len = tokens.len() as u32;
    let segments = [Segment { sequence, past, len }];
    let step = Step { tokens, token_types: &[], segments: &segments, outputs: &[len - 1] };
    Ok(session.run_with(entry, &step, &[set])?)
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Any tokens will do; these are spread over the vocabulary as text is.
fn tokens(model: &Model<'_>, n: u32) -> Vec<u32> {
    let vocab = u64::from(model.file.info.vocab.max(1));
    (0..u64::from(n)).map(|i| (i.wrapping_mul(2_654_435_761) % vocab) as u32).collect()
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
    }
}
