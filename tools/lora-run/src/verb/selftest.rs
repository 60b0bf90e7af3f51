//! `selftest`: whether this machine computes what the packer computed, to the last bit, with every instruction set
//! that it has and with one thread and several.

use anyhow::{Context, Result, bail};
use lora_runtime::kernels::Kernels;
use lora_runtime::selftest::{Golden, KEY, digest};
use lora_runtime::threads::{ArenaBox, Pool};
use lora_runtime::{Model, Session};
use serde_json::json;

use crate::cli::ModelArgs;
use crate::load::Host;
use crate::output::Out;

/// Arguments of `selftest`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  lora-run selftest model.lpk\n  lora-run selftest model.lpk --json")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb.
///
/// # Errors
/// The file holds no golden result, or this machine computes another.
pub fn run(args: &Args) -> Result<()> {
    let host = Host::open(&args.model)?;
    let model = host.model()?;
    let Some(golden) = Golden::of(&model) else {
        bail!("the file holds no golden result (metadata {KEY:?}): pack it with a lora-pack that writes one");
    };
    let golden = golden.with_context(|| format!("metadata {KEY:?}"))?;
    let levels: Vec<&'static Kernels> = match args.model.isa {
        Some(_) => vec![host.kernels],
        None => Kernels::supported().collect(),
    };
    let mut thread_counts = vec![1, host.threads()];
    thread_counts.dedup();
    let mut out = Out::new();
    let (mut runs, mut failed) = (Vec::new(), 0);
    for &kernels in &levels {
        for &threads in &thread_counts {
            // Chunk sizes that do not divide the input, in turn.
            for chunk in [golden.ids().len() as u32, 3] {
                let got = once(model, &golden, kernels, threads, chunk)?;
                let ok = got == golden.digest;
                failed += usize::from(!ok);
                if !args.json {
                    let verdict = if ok { "ok".to_owned() } else { format!("DIFFERS: {got:016x}") };
                    out.line(&format!(
                        "{:<8} {threads:>3} threads  {chunk:>3} tokens a step  {verdict}",
                        kernels.level().name()
                    ))?;
                }
                runs.push(json!({ "isa": kernels.level().name(), "threads": threads, "chunk": chunk, "ok": ok }));
            }
        }
    }
    if args.json {
        out.json(&json!({ "ok": failed == 0, "digest": format!("{:016x}", golden.digest), "runs": runs }))?;
    }
    if failed > 0 {
        bail!("{failed} of {} runs do not give the packer's result {:016x}", runs.len(), golden.digest);
    }
    Ok(())
}

fn once(model: Model<'_>, golden: &Golden, kernels: &'static Kernels, threads: usize, chunk: u32) -> Result<u64> {
    let config = golden.config(&model, chunk);
    let pool = Pool::new(threads).with_context(|| format!("cannot start {threads} threads"))?;
    let mut arena = ArenaBox::new(usize::try_from(model.plan(&config).arena_bytes)?);
    let mut session = Session::new(model, config, kernels, &pool, arena.as_mut_slice())?;
    Ok(digest(&mut session, golden.ids())?)
}
