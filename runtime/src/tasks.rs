//! Whole tasks over a session, without a heap: read a text, continue it, classify, tag or embed it.
//!
//! They work on sequence 0 and on what a program without an operating system needs; a host program with several
//! sequences, stop texts or prefix reuse calls [`Session::run`] itself.

use crate::error::{Error, ErrorKind, Result};
use crate::format::record::{EntryKind, NONE, ProblemType, Task};
use crate::kernels::Kernels;
use crate::model::Model;
use crate::sampler::{Rng, Sampling, choose};
use crate::session::arena::Rows;
use crate::session::{Segment, Session, Step};
use crate::tokenizer::{EncodeOptions, Token};

/// Memory in which texts of up to `TOKENS` tokens are encoded; `SCRATCH` words are the tokenizer's
/// ([`Tokenizer::scratch_len`](crate::tokenizer::Tokenizer::scratch_len)).
pub struct TextBuffer<const TOKENS: usize, const SCRATCH: usize> {
    scratch: [u32; SCRATCH],
    tokens: [Token; TOKENS],
    ids: [u32; TOKENS],
    types: [u32; TOKENS],
}

/// The input of a model.
#[derive(Clone, Copy, Debug)]
pub struct Ids<'i> {
    /// Token ids.
    pub tokens: &'i [u32],
    /// Token type of every token; empty for all zero.
    pub types: &'i [u32],
}

impl<const TOKENS: usize, const SCRATCH: usize> TextBuffer<TOKENS, SCRATCH> {
    /// An empty buffer.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "for statics, where Default cannot be called")]
    pub const fn new() -> Self {
        let token = Token { id: 0, start: 0, end: 0, word: 0, sequence: 0, type_id: 0, special: false };
        Self { scratch: [0; SCRATCH], tokens: [token; TOKENS], ids: [0; TOKENS], types: [0; TOKENS] }
    }

    /// Encodes a text for a model, with the model's special tokens around it.
    ///
    /// # Errors
    /// As [`encode_into`](crate::tokenizer::Tokenizer::encode_into); the model has no tokenizer.
    pub fn encode(&mut self, model: &Model<'_>, text: &str) -> Result<Ids<'_>> {
        self.encode_with(model, text, EncodeOptions::default())
    }

    /// Encodes a text for a model.
    ///
    /// # Errors
    /// As [`TextBuffer::encode`].
    pub fn encode_with(&mut self, model: &Model<'_>, text: &str, options: EncodeOptions) -> Result<Ids<'_>> {
        let n = model.tokenizer()?.encode_into(text, options, &mut self.scratch, &mut self.tokens)?;
        for ((token, id), kind) in self.tokens[..n].iter().zip(&mut self.ids).zip(&mut self.types) {
            (*id, *kind) = (token.id, token.type_id.into());
        }
        let typed = model.file.info.token_types > 1;
        Ok(Ids { tokens: &self.ids[..n], types: if typed { &self.types[..n] } else { &[] } })
    }

    /// The tokens of the last text: where each one stands in it.
    #[must_use]
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }
}

/// Runs `ids` behind the first `past` positions of the sequence, in steps as long as planned; then the session's outputs
/// are those of the last step. Returns the positions that are now in the cache.
///
/// # Errors
/// As [`Session::run`]; a model that must see its input whole gets one step, which has to be as long.
pub fn feed(session: &mut Session<'_>, entry: EntryKind, ids: Ids<'_>, mut past: u32) -> Result<u32> {
    let whole = session.model().needs_whole_input(session.model().entry(entry)?);
    let step = if whole { ids.tokens.len() } else { session.config().tokens as usize };
    let mut types = ids.types.chunks(step.max(1));
    // An empty input is one empty step, which the session refuses by name.
    let empty = ids.tokens.is_empty().then_some(ids.tokens);
    for tokens in ids.tokens.chunks(step.max(1)).chain(empty) {
        let len = tokens.len() as u32;
        let segments = [Segment { sequence: 0, past, len }];
        let outputs = [len.saturating_sub(1)];
        let token_types = types.next().unwrap_or(&[]);
        session.run(entry, &Step { tokens, token_types, segments: &segments, outputs: &outputs })?;
        past += len;
    }
    Ok(past)
}

/// Why a continuation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The model said so.
    Eos,
    /// As many tokens as were wanted.
    Length,
    /// No more positions.
    Context,
    /// The receiver of the tokens wanted no more.
    Stopped,
}

/// Continues a prompt: hands every new token to `each` until the model ends, `max_new` tokens are there, no position is
/// left or `each` returns false. The prompt is what the sequence begins with; of an encoder–decoder it is the
/// encoder's input. The model's [`Rules`](crate::sampler::Rules) hold, but for runs that must not come twice: nothing remembers them.
///
/// # Errors
/// As [`feed`]; [`ErrorKind::Invalid`] for logits that are not numbers.
pub fn generate(
    session: &mut Session<'_>,
    prompt: Ids<'_>,
    max_new: usize,
    sampling: &Sampling,
    rng: &mut Rng,
    mut each: impl FnMut(u32) -> bool,
) -> Result<Ending> {
    let model = *session.model();
    let rules = model.rules();
    let mut past = 0;
    let start = [if model.face.info.decoder_start == NONE { 0 } else { model.face.info.decoder_start }];
    let first = if model.entry(EntryKind::Encode).is_ok() {
        feed(session, EntryKind::Encode, prompt, 0)?;
        Ids { tokens: &start, types: &[] }
    } else {
        prompt
    };
    past = feed(session, EntryKind::Decode, first, past)?;
    for made in 0..max_new {
        let kernels = session.kernels();
        let logits = session.last_row_mut(EntryKind::Decode, "logits")?;
        rules.apply(logits, &[], made);
        let next = choose(kernels, logits, sampling, rng)
            .ok_or(Error::new(ErrorKind::Invalid, "logits: not numbers; the weights are damaged"))?;
        if model.eos().contains(&next) {
            return Ok(Ending::Eos);
        }
        if !each(next) {
            return Ok(Ending::Stopped);
        }
        if made + 1 < max_new {
            if past == session.config().context {
                return Ok(Ending::Context);
            }
            past = feed(session, EntryKind::Decode, Ids { tokens: &[next], types: &[] }, past)?;
        }
    }
    Ok(Ending::Length)
}

/// The entry that reads inputs: the encoder, where there is one.
fn reader(model: &Model<'_>) -> EntryKind {
    if model.entry(EntryKind::Encode).is_ok() { EntryKind::Encode } else { EntryKind::Decode }
}

/// Turns a row of label logits into scores as the model's problem means them (probabilities that sum to one, a
/// probability for each label, or the values themselves) and finds the largest.
///
/// # Errors
/// [`ErrorKind::Invalid`] for logits that are not numbers.
fn score(kernels: &Kernels, problem: ProblemType, row: &mut [f32]) -> Result<usize> {
    let bad = Error::new(ErrorKind::Invalid, "scores: not numbers; the weights are damaged");
    let best = kernels.argmax(row).filter(|_| row.iter().all(|x| !x.is_nan())).ok_or(bad)?;
    match problem {
        ProblemType::SingleLabel => kernels.softmax_in_place(row),
        ProblemType::MultiLabel => {
            for x in row {
                // The sigmoid is a softmax against 0.
                let mut pair = [*x, 0.0];
                kernels.softmax_in_place(&mut pair);
                *x = pair[0];
            }
        }
        ProblemType::Regression => {}
    }
    Ok(best)
}

/// Classifies an input: the index of its best label, and the scores of all of them.
///
/// # Errors
/// As [`feed`]; [`ErrorKind::Mismatch`] for a model of another task; [`ErrorKind::Invalid`] for scores that are not numbers.
pub fn classify<'s>(session: &'s mut Session<'_>, ids: Ids<'_>) -> Result<(usize, &'s [f32])> {
    let (model, kernels) = (*session.model(), session.kernels());
    expect_task(&model, Task::SeqCls)?;
    let entry = reader(&model);
    feed(session, entry, ids, 0)?;
    let row = session.last_row_mut(entry, "logits")?;
    Ok((score(kernels, model.problem(), row)?, row))
}

/// Tags every token of an input: hands token index, best label and its probability to `each`.
///
/// # Errors
/// As [`classify`].
pub fn tag(session: &mut Session<'_>, ids: Ids<'_>, mut each: impl FnMut(usize, usize, f32)) -> Result<()> {
    let (model, kernels) = (*session.model(), session.kernels());
    expect_task(&model, Task::TokenCls)?;
    let entry = reader(&model);
    // Steps as `feed` makes them; each one's rows are read before the next.
    let whole = model.needs_whole_input(model.entry(entry)?);
    let step = if whole { ids.tokens.len() } else { session.config().tokens as usize }.max(1);
    let mut types = ids.types.chunks(step);
    for (i, tokens) in ids.tokens.chunks(step).enumerate() {
        feed(session, entry, Ids { tokens, types: types.next().unwrap_or(&[]) }, (i * step) as u32)?;
        for row in 0..tokens.len() {
            let scores = session.row_mut(entry, "logits", row)?;
            let best = score(kernels, ProblemType::SingleLabel, scores)?;
            each(i * step + row, best, scores[best]);
        }
    }
    Ok(())
}

/// Embeds an input: its vector, pooled as the model says.
///
/// # Errors
/// As [`feed`]; [`ErrorKind::Mismatch`] for a model without such an output.
pub fn embed<'s>(session: &'s mut Session<'_>, ids: Ids<'_>) -> Result<&'s [f32]> {
    let model = *session.model();
    let entry = reader(&model);
    feed(session, entry, ids, 0)?;
    let rows: Rows<'s> = session.output(entry, model.pooled_output())?;
    Ok(rows.row(0))
}

fn expect_task(model: &Model<'_>, task: Task) -> Result<()> {
    if model.task() == task {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Mismatch, "the model has another task").values(model.task() as u64, task as u64))
}
