//! What the decoder of an encoder–decoder reads in calibration where the text does not say: the float model's own
//! greedy answers.

use anyhow::Result;
use lora_runtime::format::EntryKind;
use lora_runtime::kernels::{Kernels, KvType};
use lora_runtime::program::{AdapterNeeds, SessionConfig};
use lora_runtime::session::workers::Inline;
use lora_runtime::threads::ArenaBox;
use lora_runtime::{Model, Segment, Session, Step};
use rayon::prelude::*;

use super::text::{Document, target};

/// Longest answer.
const LONGEST: usize = 64;

/// Fills the empty targets of `documents`.
///
/// # Errors
/// A document does not fit the model.
pub fn fill(model: &Model<'_>, documents: &mut [Document]) -> Result<()> {
    documents.par_iter_mut().filter(|d| d.target.is_empty()).try_for_each(|d| {
        d.target = greedy(model, &d.tokens)?;
        Ok(())
    })
}

/// The greedy answer, start token included and end token not. The float twin keeps no past, so that every step reads
/// the whole answer again.
fn greedy(model: &Model<'_>, source: &[u32]) -> Result<Vec<u32>> {
    let limit = model.entry(EntryKind::Decode)?.max_positions.min(LONGEST as u32);
    let config = SessionConfig {
        context: limit,
        tokens: limit.max(source.len() as u32),
        outputs: 1,
        source: source.len() as u32,
        sequences: 1,
        kv: KvType::F32,
        adapters: AdapterNeeds::NONE,
    };
    let mut arena = ArenaBox::new(model.plan(&config).arena_bytes as usize);
    let mut session = Session::new(*model, config, Kernels::best(), &Inline, arena.as_mut_slice())?;
    let mut run = |entry, tokens: &[u32]| -> Result<Option<u32>> {
        let segments = [Segment { sequence: 0, past: 0, len: tokens.len() as u32 }];
        let outputs = [tokens.len() as u32 - 1];
        session.run(entry, &Step { tokens, token_types: &[], segments: &segments, outputs: &outputs })?;
        if entry == EntryKind::Encode {
            return Ok(None);
        }
        Ok(Kernels::best().argmax(session.output(entry, "logits")?.row(0)).map(|id| id as u32))
    };
    run(EntryKind::Encode, source)?;
    let mut ids = target(model, &[]);
    while ids.len() < limit as usize {
        match run(EntryKind::Decode, &ids)? {
            Some(next) if !model.eos().contains(&next) => ids.push(next),
            _ => break,
        }
    }
    Ok(ids)
}
