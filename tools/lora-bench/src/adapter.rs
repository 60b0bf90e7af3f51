//! What unmerged mode costs: opening and switching adapters, the memory of a hundred, and the speed of a step, with the
//! mode prepared but no adapter acting, and with one acting.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use lora_runtime::format::EntryKind;
use lora_runtime::map::Mapping;
use lora_runtime::program::{AdapterNeeds, SessionConfig};
use lora_runtime::session::workers::Inline;
use lora_runtime::threads::ArenaBox;
use lora_runtime::{Active, Adapter, Model, Segment, Session, Set, Step};

use crate::clock::Clock;
use crate::lora::Options;
use crate::stats::Spread;

const PROMPT: u32 = 128;
const MANY: usize = 100;

/// Arguments of `adapter`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  lora-bench adapter base.lpk home.lpk

One thread, in CPU time, step by step in turn: what slows the machine down for a while slows all sides.")]
pub struct Args {
    /// The packed base
    pub base: PathBuf,
    /// An adapter file for it
    pub adapter: PathBuf,
    /// Tokens to generate on every side; an eighth as many prompts
    #[arg(long, default_value_t = 64)]
    pub rounds: usize,
    #[command(flatten)]
    pub options: Options,
}

/// Runs the verb.
///
/// # Errors
/// A file is not sound, or they do not fit.
pub fn run(args: &Args) -> Result<()> {
    let base = Mapping::open(&args.base).with_context(|| args.base.display().to_string())?;
    let model = Model::open(&base).map_err(|e| anyhow!("{e}"))?;
    opening(&model, args)?;
    speed(model, args)
}

/// Maps the adapter a hundred times, attaches every mapping, and switches between them.
fn opening(model: &Model<'_>, args: &Args) -> Result<()> {
    let (path, kernels) = (&args.adapter, args.options.kernels()?);
    let bytes = std::fs::metadata(path).with_context(|| path.display().to_string())?.len() as usize;
    let before = resident()?;
    let maps = (0..MANY).map(|_| Mapping::open(path)).collect::<std::io::Result<Vec<_>>>()?;
    let mut took = Vec::new();
    let mut adapters = Vec::new();
    for map in &maps {
        let start = Instant::now();
        adapters.push(Adapter::attach(model, map).map_err(|e| anyhow!("{e}"))?);
        took.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let attached = resident()?;
    let sets: Vec<Set<'_>> =
        adapters.iter().map(|a| Set::new(&[Active::new(a)]).map_err(|e| anyhow!("{e}"))).collect::<Result<_>>()?;
    let config = config(args, adapters[0].needs());
    let mut arena = ArenaBox::new(usize::try_from(model.plan(&config).arena_bytes)?);
    let mut session =
        Session::new(*model, config, kernels, &Inline, arena.as_mut_slice()).map_err(|e| anyhow!("{e}"))?;
    let start = Instant::now();
    for set in &sets {
        session.select(*set).map_err(|e| anyhow!("{e}"))?;
    }
    let switch = start.elapsed().as_secs_f64() * 1e6 / MANY as f64;
    let attaching = Spread::of(&mut took);
    println!(
        "{MANY} adapters of {:.2} MB: attached in {:.3} ms each (median; {:.3} at most), switched in {switch:.3} µs each",
        bytes as f64 / 1e6,
        attaching.median,
        took[MANY - 1]
    );
    println!(
        "memory of the {MANY}, nothing run yet: {:.2} MB, {:.1} % of their files",
        (attached - before) as f64 / 1e6,
        (attached - before) as f64 * 100.0 / (bytes * MANY) as f64
    );
    Ok(())
}

/// Steps without the mode, with it but no adapter, and with the adapter.
fn speed(model: Model<'_>, args: &Args) -> Result<()> {
    let kernels = args.options.kernels()?;
    let map = Mapping::open(&args.adapter)?;
    let adapter = Adapter::attach(&model, &map).map_err(|e| anyhow!("{e}"))?;
    let set = Set::new(&[Active::new(&adapter)]).map_err(|e| anyhow!("{e}"))?;
    let sides = [
        ("no unmerged mode", AdapterNeeds::NONE, Set::BASE),
        ("prepared, none acting", set.needs(), Set::BASE),
        ("one acting", set.needs(), set),
    ];
    let mut arenas: Vec<ArenaBox> = sides
        .iter()
        .map(|(_, needs, _)| Ok(ArenaBox::new(usize::try_from(model.plan(&config(args, *needs)).arena_bytes)?)))
        .collect::<Result<_>>()?;
    let mut sessions = Vec::new();
    for ((_, needs, set), arena) in sides.iter().zip(&mut arenas) {
        let made = Session::new(model, config(args, *needs), kernels, &Inline, arena.as_mut_slice());
        let mut session = made.map_err(|e| anyhow!("{e}"))?;
        session.select(*set).map_err(|e| anyhow!("{e}"))?;
        sessions.push(session);
    }
    let prompt: Vec<u32> = (0..PROMPT).map(|i| i % 97 + 3).collect();
    let mut times = [[const { Vec::new() }; 3], [const { Vec::new() }; 3]];
    for round in 0..args.rounds {
        // Turn and turn about, so that no side always comes first.
        for i in 0..3 {
            let side = (round + i) % 3;
            // Prompts take long: an eighth of the rounds.
            if round % 8 == 0 {
                times[0][side].push(step(&mut sessions[side], &prompt, 0)?);
            }
            times[1][side].push(step(&mut sessions[side], &prompt[..1], PROMPT)?);
        }
    }
    for (what, times) in [(format!("prompt of {PROMPT}"), &times[0]), (format!("one token at {PROMPT}"), &times[1])] {
        println!("{what}:");
        for (side, (name, ..)) in sides.iter().enumerate() {
            let mut ratios: Vec<f64> = times[0].iter().zip(&times[side]).map(|(base, own)| base / own).collect();
            let (ratio, mut own) = (Spread::of(&mut ratios), times[side].clone());
            println!(
                "  {name:<22} {:>9.3} ms   speed {:.3} ({:.3}…{:.3}) of that without the mode",
                Spread::of(&mut own).median * 1e3,
                ratio.median,
                ratio.low,
                ratio.high
            );
        }
    }
    Ok(())
}

fn config(args: &Args, adapters: AdapterNeeds) -> SessionConfig {
    SessionConfig {
        context: PROMPT + 8,
        tokens: PROMPT,
        outputs: 1,
        source: 0,
        sequences: 1,
        kv: args.options.kv,
        adapters,
    }
}

/// One step; its CPU time in seconds.
fn step(session: &mut Session<'_>, tokens: &[u32], past: u32) -> Result<f64> {
    let len = tokens.len() as u32;
    let segments = [Segment { sequence: 0, past, len }];
    let step = Step { tokens, token_types: &[], segments: &segments, outputs: &[len - 1] };
    Clock::Thread.seconds(|| session.run(EntryKind::Decode, &step)).map_err(|e| anyhow!("{e}"))
}

/// Bytes of this process in memory, file pages included.
fn resident() -> Result<usize> {
    let text = std::fs::read_to_string("/proc/self/statm").context("/proc/self/statm (Linux)")?;
    Ok(text.split(' ').nth(1).unwrap_or_default().parse::<usize>()? * 4096)
}
