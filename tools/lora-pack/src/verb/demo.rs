//! `demo`: packs the shipped model with its adapter and lets it answer, all in this process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use lora_runtime::format::EntryKind;
use lora_runtime::kernels::Kernels;
use lora_runtime::map::Mapping;
use lora_runtime::program::{AdapterNeeds, SessionConfig};
use lora_runtime::threads::{ArenaBox, Pool};
use lora_runtime::tokenizer::EncodeOptions;
use lora_runtime::{Model, Segment, Session, Step};
use serde_json::Value;

use super::human;
use crate::cli::DemoArgs;
use crate::merge::{AdapterSpec, MergeOptions, Merged};
use crate::pack::{PackOptions, pack};
use crate::source::BaseModel;

/// Commands answered when none is given.
const EXAMPLES: usize = 6;
/// Longest answer.
const MAX_NEW: usize = 96;

/// Runs the verb.
///
/// # Errors
/// The demo folder is not found, or packing or running it fails.
pub fn run(args: &DemoArgs) -> Result<()> {
    let dir = match &args.dir {
        Some(d) => d.clone(),
        None => find_demo().context("models/demo is not here nor in a folder above: give --dir")?,
    };
    let folder = tempfile::tempdir()?;
    let file = args.out.clone().unwrap_or_else(|| folder.path().join("demo.lpk"));
    let base = BaseModel::open(&dir.join("tiny-base"))?;
    let adapter = AdapterSpec { path: dir.join("tiny-home-control"), weight: 1.0 };
    let merged = Merged::new(&base, &[adapter], &MergeOptions::default())?;
    let options = PackOptions::new(args.quant);
    let mut meta = BTreeMap::new();
    meta.insert("base.name".into(), "tiny-base".into());
    meta.insert("adapter.0".into(), "tiny-home-control".into());
    let report = pack(&base, &merged, &options, meta, &file, &mut |_, _, _| {})?;
    let (applied, total) = super::merge::applied(&merged);
    println!(
        "packed tiny-base + tiny-home-control as {}: {applied} of {total} adapter tensors merged, {} → {} in {:.1} s\n",
        args.quant.name(),
        human(report.float_bytes),
        human(report.file_bytes),
        report.seconds
    );
    let prompts = if args.commands.is_empty() { examples(&dir)? } else { args.commands.clone() };
    answer(&file, &prompts)?;
    if let Some(out) = &args.out {
        println!("\nkept {}: try `lora-run chat {}`", out.display(), out.display());
    }
    Ok(())
}

fn find_demo() -> Option<PathBuf> {
    let here = std::env::current_dir().ok()?;
    here.ancestors().map(|d| d.join("models/demo")).find(|d| d.join("tiny-base/config.json").is_file())
}

/// The first commands of the adapter's public test set.
fn examples(dir: &Path) -> Result<Vec<String>> {
    let path = dir.join("prompts.jsonl");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let command = |line: &str| {
        let value: Value = serde_json::from_str(line)?;
        Ok(value["text"].as_str().unwrap_or_default().to_string())
    };
    text.lines().take(EXAMPLES).map(command).collect::<Result<_>>().with_context(|| path.display().to_string())
}

fn answer(file: &Path, commands: &[String]) -> Result<()> {
    let bytes = Mapping::open(file)?;
    let model = Model::open(&bytes)?;
    let tokenizer = model.tokenizer()?;
    let pool = Pool::new(std::thread::available_parallelism().map_or(1, usize::from))?;
    let config = SessionConfig {
        context: model.file.info.max_positions.min(512),
        tokens: 64,
        outputs: 1,
        source: 0,
        sequences: 1,
        kv: model.kv_type(),
        adapters: AdapterNeeds::NONE,
    };
    let mut arena = ArenaBox::new(model.plan(&config).arena_bytes as usize);
    let mut session = Session::new(model, config, Kernels::best(), &pool, arena.as_mut_slice())?;
    for command in commands {
        let prompt = format!("<|user|>{command}<|end|><|assistant|>");
        let ids: Vec<u32> = tokenizer.encode(&prompt, EncodeOptions::default())?.ids();
        let start = Instant::now();
        let new = greedy(&mut session, &ids, MAX_NEW)?;
        let seconds = start.elapsed().as_secs_f64();
        let text = tokenizer.decode(&new, true);
        let shown = serde_json::from_str::<Value>(&text).map_or(text, |v| v.to_string());
        println!("> {command}\n  {shown}   ({} tokens in {:.0} ms)", ids.len() + new.len(), seconds * 1e3);
    }
    Ok(())
}

/// Greedy continuation until an end token.
fn greedy(session: &mut Session<'_>, prompt: &[u32], max_new: usize) -> Result<Vec<u32>> {
    let chunk = session.config().tokens as usize;
    let eos = session.model().eos();
    let mut new = Vec::new();
    let mut past = 0;
    let mut pending = prompt.to_vec();
    loop {
        for tokens in pending.chunks(chunk) {
            let len = tokens.len() as u32;
            let segments = [Segment { sequence: 0, past, len }];
            session
                .run(EntryKind::Decode, &Step { tokens, token_types: &[], segments: &segments, outputs: &[len - 1] })?;
            past += len;
        }
        let logits = session.output(EntryKind::Decode, "logits")?;
        let Some(next) = Kernels::best().argmax(logits.row(0)) else { break };
        let next = next as u32;
        if eos.contains(&next) || new.len() == max_new {
            break;
        }
        new.push(next);
        pending = vec![next];
    }
    Ok(new)
}
