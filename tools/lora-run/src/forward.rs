//! A whole input through a model: what every verb but the generating ones does.

use anyhow::Result;
use lora_runtime::format::{EntryKind, Task};
use lora_runtime::{Model, Segment, Session, Step};

use crate::load::{Host, Room, positions};

/// The input of one run.
#[derive(Clone, Copy, Debug)]
pub struct Ids<'i> {
    /// Token ids.
    pub tokens: &'i [u32],
    /// Token types, or empty.
    pub types: &'i [u32],
}

/// How an input is cut into steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// The entry that reads the input.
    pub entry: EntryKind,
    /// Most tokens of a step.
    pub tokens: u32,
    /// Every token row is an output row (language models), else only the last one.
    pub every_row: bool,
}

impl Steps {
    /// The steps of an input of `len` tokens. Encoders and pooled outputs need the whole input in one step.
    pub fn of(model: &Model<'_>, len: usize, chunk: u32) -> Self {
        let whole = u32::try_from(len).unwrap_or(u32::MAX);
        let entry = if model.entry(EntryKind::Encode).is_ok() { EntryKind::Encode } else { EntryKind::Decode };
        let needs_whole = model.entry(entry).is_ok_and(|e| model.needs_whole_input(e));
        let tokens = if needs_whole { whole } else { whole.min(chunk) };
        Self { entry, tokens, every_row: entry == EntryKind::Decode && model.task() == Task::CausalLm }
    }
}

/// Runs `ids` from the start of a sequence; after every step calls `each` with the first token's index and the session.
///
/// # Errors
/// As [`Session::run`], or what `each` returns.
pub fn forward(
    session: &mut Session<'_>,
    steps: Steps,
    ids: Ids<'_>,
    mut each: impl FnMut(usize, &Session<'_>) -> Result<()>,
) -> Result<()> {
    let chunk = steps.tokens.max(1) as usize;
    let all_rows: Vec<u32> = (0..steps.tokens).collect();
    session.select(session.selected().for_prompt(ids.tokens))?;
    for (i, tokens) in ids.tokens.chunks(chunk).enumerate() {
        let first = i * chunk;
        let n = tokens.len();
        let segment = Segment { sequence: 0, past: first as u32, len: n as u32 };
        let step = Step {
            tokens,
            token_types: if ids.types.is_empty() { &[] } else { &ids.types[first..first + n] },
            segments: &[segment],
            outputs: if steps.every_row { &all_rows[..n] } else { &all_rows[n - 1..n] },
        };
        session.run(steps.entry, &step)?;
        each(first, session)?;
    }
    Ok(())
}

/// One input in a session of its own: as [`forward`].
///
/// # Errors
/// As [`Host::session`] and [`forward`].
pub fn run_alone(
    host: &Host,
    model: Model<'_>,
    room: &mut Room,
    ids: Ids<'_>,
    each: impl FnMut(usize, &Session<'_>) -> Result<()>,
) -> Result<()> {
    let steps = Steps::of(&model, ids.tokens.len(), host.chunk());
    let outputs = if steps.every_row { steps.tokens } else { 1 };
    // The runtime refuses more positions than there are, naming both numbers.
    let context = match steps.entry {
        EntryKind::Decode => host.context(&model, ids.tokens.len() as u32)?,
        EntryKind::Encode => 0,
    };
    let config = host.config(&model, context, steps.tokens.min(positions(&model).max(1)), outputs);
    let mut session = host.session(model, config, room)?;
    forward(&mut session, steps, ids, each)
}
