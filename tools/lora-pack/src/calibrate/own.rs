//! Calibration text that a language model writes itself, where there is not enough of other text: what it says is what
//! it has been trained on.

use anyhow::{Context, Result};
use lora_runtime::format::EntryKind;
use lora_runtime::kernels::Kernels;
use lora_runtime::program::{AdapterNeeds, SessionConfig};
use lora_runtime::sampler::{Rng, Sampling, choose};
use lora_runtime::threads::{ArenaBox, Pool};
use lora_runtime::{Model, Segment, Session, Step};

use super::Document;

/// Tokens of a text.
const LENGTH: u32 = 256;
/// Texts that are written at once.
const BATCH: usize = 64;
/// Most texts, as a multiple of what full ones would be.
const MOST: usize = 4;
/// Tokens that a text takes over from another one, to begin with.
const START: usize = 4;
/// Texts that end sooner are left out.
const SHORTEST: usize = 16;
/// The model's own distribution, without what it finds all but impossible.
const SAMPLING: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.02 };

/// About `budget` tokens of text by `model`, each text beginning as one of `starts` does. The same on every machine.
///
/// # Errors
/// The model does not run.
pub fn write(model: &Model<'_>, starts: &[Document], budget: usize) -> Result<Vec<Document>> {
    let length = LENGTH.min(model.entry(EntryKind::Decode)?.max_positions);
    let least = budget.div_ceil(length as usize);
    let starts: Vec<&[u32]> = starts.iter().map(|d| &d.tokens[..d.tokens.len().min(START)]).collect();
    let mut out = Vec::new();
    let pool = Pool::new(rayon::current_num_threads()).context("cannot start threads")?;
    let mut number = 0;
    let mut written = 0;
    // Texts that end by themselves are shorter, so there are more of them; but a model may have nothing to say.
    while written < budget && number < MOST * least && !starts.is_empty() {
        let missing = (budget - written).div_ceil(length as usize).min(BATCH);
        let batch: Vec<Text> = (number..number + missing)
            .map(|i| Text { ids: starts[i % starts.len()].to_vec(), rng: Rng::new(i as u64), done: false })
            .collect();
        number += batch.len();
        let config = SessionConfig {
            context: length,
            tokens: (batch.len() * START) as u32,
            outputs: batch.len() as u32,
            source: 0,
            sequences: batch.len() as u32,
            kv: model.kv_type(),
            adapters: AdapterNeeds::NONE,
        };
        let mut arena = ArenaBox::new(model.plan(&config).arena_bytes as usize);
        let session = Session::new(*model, config, Kernels::best(), &pool, arena.as_mut_slice())?;
        let texts = continue_all(session, batch, length as usize)?;
        out.extend(texts.into_iter().filter(|d| d.tokens.len() >= SHORTEST));
        written = super::count(&out);
    }
    Ok(out)
}

struct Text {
    ids: Vec<u32>,
    rng: Rng,
    done: bool,
}

fn continue_all(mut session: Session<'_>, mut texts: Vec<Text>, length: usize) -> Result<Vec<Document>> {
    let mut past = vec![0; texts.len()];
    loop {
        let (mut tokens, mut segments, mut outputs, mut running) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (i, t) in texts.iter().enumerate().filter(|(_, t)| !t.done && t.ids.len() < length) {
            let new = &t.ids[past[i]..];
            segments.push(Segment { sequence: i as u32, past: past[i] as u32, len: new.len() as u32 });
            tokens.extend_from_slice(new);
            outputs.push(tokens.len() as u32 - 1);
            past[i] = t.ids.len();
            running.push(i);
        }
        if running.is_empty() {
            return Ok(texts.into_iter().map(|t| Document { tokens: t.ids, ..Document::default() }).collect());
        }
        let step = Step { tokens: &tokens, token_types: &[], segments: &segments, outputs: &outputs };
        session.run(EntryKind::Decode, &step)?;
        let eos = session.model().eos();
        let logits = session.output(EntryKind::Decode, "logits")?;
        for (row, i) in running.into_iter().enumerate() {
            let t = &mut texts[i];
            let mut logits = logits.row(row).to_vec();
            match choose(Kernels::best(), &mut logits, &SAMPLING, &mut t.rng) {
                Some(id) => {
                    t.ids.push(id);
                    t.done = eos.contains(&id);
                }
                None => t.done = true,
            }
        }
    }
}
