//! Running a model: a session owns an arena and executes steps in it.
//!
//! A step is one pass of an entry's program over some tokens. Where they belong is said by [`Segment`]s: tokens of
//! one or several sequences, each continuing after its past. The session keeps no other state than the KV caches in
//! its arena, so the caller decides what each sequence's past is.

pub mod arena;
pub mod workers;

use core::ops::Range;

use crate::adapter::{Adapter, Set};
use crate::error::{Error, ErrorKind, Result};
use crate::format::record::{CacheKind, EntryKind, EntryRecord, NONE, Operand, OutputRecord};
use crate::format::view::{File, Tensor};
use crate::kernels::Kernels;
use crate::model::Model;
use crate::ops;
use crate::program::op::Op;
use crate::program::plan::SessionConfig;

use arena::{Arena, CacheKey, Rows};
use workers::Workers;

/// Consecutive tokens of one sequence within a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Which of the session's sequences.
    pub sequence: u32,
    /// Positions already in its cache.
    pub past: u32,
    /// Tokens in this step.
    pub len: u32,
}

/// The input of one step.
#[derive(Clone, Copy, Debug)]
pub struct Step<'s> {
    /// Token ids of all segments, one after another.
    pub tokens: &'s [u32],
    /// Token type of every token; empty for all zero.
    pub token_types: &'s [u32],
    /// Where the tokens belong; their lengths add up to `tokens.len()`.
    pub segments: &'s [Segment],
    /// Token rows (indices into `tokens`) whose outputs are wanted, for models that select rows.
    pub outputs: &'s [u32],
}

impl Step<'_> {
    /// Position of token row `row` in its sequence.
    #[must_use]
    pub fn position(&self, row: usize) -> u32 {
        let mut first = 0;
        for s in self.segments {
            if row < first + s.len as usize {
                return s.past + (row - first) as u32;
            }
            first += s.len as usize;
        }
        0
    }
}

/// Called before every op with its index and after the last one; for profiles.
pub type Observer<'o> = &'o mut dyn FnMut(u32, Option<&Op>);

/// A step in progress: see [`Session::start`].
pub struct Pass<'r, 'm> {
    session: &'r mut Session<'m>,
    step: Step<'r>,
    ops: Range<u32>,
}

impl Pass<'_, '_> {
    /// Indices of the step's ops, in the order in which they must run.
    #[must_use]
    pub fn ops(&self) -> Range<u32> {
        self.ops.clone()
    }

    /// One of them.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for an index outside of the step.
    pub fn op(&self, index: u32) -> Result<Op> {
        if !self.ops.contains(&index) {
            return Err(Error::new(ErrorKind::Invalid, "op of another entry").values(index.into(), self.ops.end.into()));
        }
        Op::parse(&self.session.model.file.ops[index as usize])
    }

    /// Runs an op. `panels` take the place of a linear's matrix, in the same format and shape.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for an index outside of the step, [`ErrorKind::Mismatch`] for panels of another size.
    pub fn run(&mut self, index: u32, panels: Option<&[u8]>) -> Result<()> {
        let op = self.op(index)?;
        if let Some(panels) = panels {
            let expected = match op {
                Op::Linear { weight, .. } => match self.session.model.file.tensor(weight) {
                    Some(Tensor::Panels { data, .. }) => data.len(),
                    _ => 0,
                },
                _ => 0,
            };
            if panels.len() != expected {
                return Err(Error::new(ErrorKind::Mismatch, "panels").values(panels.len() as u64, expected as u64));
            }
        }
        let session = &mut *self.session;
        let mut cx = ops::Context {
            file: session.model.file,
            arena: &mut session.arena,
            kernels: session.kernels,
            workers: session.workers,
            step: &self.step,
            config: &session.config,
            source_len: session.source_len[0],
            panels,
            patches: ops::Patches::same(session.model.file, &self.step, &Set::BASE),
        };
        ops::run(&op, &mut cx);
        Ok(())
    }

    /// Columns of a buffer's rows in this step, as the ops so far have left them.
    #[must_use]
    pub fn rows(&self, at: Operand, width: usize) -> Rows<'_> {
        self.session.arena.read(at, width)
    }
}

/// A model running in an arena.
pub struct Session<'m> {
    model: Model<'m>,
    config: SessionConfig,
    arena: Arena<'m>,
    kernels: &'static Kernels,
    workers: &'m dyn Workers,
    source_len: [u32; 1],
    /// The adapters of steps that do not say.
    set: Set<'m>,
    /// The adapter whose head ran last.
    head: Option<&'m Adapter<'m>>,
}

impl<'m> Session<'m> {
    /// A session in exactly the planned bytes of `memory` (64-byte aligned; need not be zeroed).
    ///
    /// # Errors
    /// [`ErrorKind::TooSmall`] with the exact need when one byte is missing; [`ErrorKind::Capacity`] for a context
    /// beyond the model's positions; [`ErrorKind::Invalid`] for an empty plan.
    pub fn new(
        model: Model<'m>,
        config: SessionConfig,
        kernels: &'static Kernels,
        workers: &'m dyn Workers,
        memory: &'m mut [u8],
    ) -> Result<Self> {
        if config.tokens == 0 || config.outputs == 0 || config.sequences == 0 {
            return Err(Error::new(ErrorKind::Invalid, "session config: tokens, outputs and sequences must not be 0"));
        }
        if let Some(e) = model.file.entries.iter().find(|e| e.kind == EntryKind::Decode as u32)
            && config.context > e.max_positions
        {
            return Err(
                Error::new(ErrorKind::Capacity, "context").values(config.context.into(), e.max_positions.into())
            );
        }
        let arena = Arena::new(model.file, config, memory)?;
        Ok(Self { model, config, arena, kernels, workers, source_len: [0], set: Set::BASE, head: None })
    }

    /// The model.
    #[must_use]
    pub const fn model(&self) -> &Model<'m> {
        &self.model
    }

    /// What the session was planned for.
    #[must_use]
    pub const fn config(&self) -> &SessionConfig {
        &self.config
    }

    /// Chooses the adapters of all further [`Session::run`]s: a copy of the set, nothing else.
    ///
    /// # Errors
    /// [`ErrorKind::Capacity`] when they need more than [`SessionConfig::adapters`] planned.
    pub fn select(&mut self, set: Set<'m>) -> Result<()> {
        self.check_set(&set)?;
        self.set = set;
        Ok(())
    }

    /// Goes on with another face of the same model ([`Model::with_adapter`]): what tasks go by, task, labels and defaults.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] for another model.
    pub fn set_face(&mut self, model: Model<'m>) -> Result<()> {
        if !core::ptr::eq(model.file.header, self.model.file.header) {
            return Err(Error::new(ErrorKind::Mismatch, "a face of another model"));
        }
        self.model = model;
        Ok(())
    }

    /// The adapters of [`Session::run`].
    #[must_use]
    pub const fn selected(&self) -> &Set<'m> {
        &self.set
    }

    /// The kernels in use.
    #[must_use]
    pub const fn kernels(&self) -> &'static Kernels {
        self.kernels
    }

    /// Runs one step.
    ///
    /// # Errors
    /// A token id, token type, position or row out of range, or more than was planned; [`ErrorKind::Mismatch`] when a
    /// sequence's past was computed with other adapters. Nothing has run then.
    pub fn run(&mut self, entry: EntryKind, step: &Step<'_>) -> Result<()> {
        self.run_observed(entry, step, &mut |_, _| {})
    }

    /// Runs one step with adapters of its own for every segment: `sets[i]` for `step.segments[i]`. Each segment gets
    /// the bits that it gets alone.
    ///
    /// # Errors
    /// As [`Session::run`] and [`Session::select`]; segments that need different heads.
    pub fn run_with(&mut self, entry: EntryKind, step: &Step<'_>, sets: &[Set<'m>]) -> Result<()> {
        if sets.len() != step.segments.len() {
            return Err(Error::new(ErrorKind::Invalid, "sets: not one for each segment")
                .values(sets.len() as u64, step.segments.len() as u64));
        }
        sets.iter().try_for_each(|s| self.check_set(s))?;
        self.execute(entry, step, ops::Patches::each(self.model.file, step, sets), &mut |_, _| {})
    }

    /// Runs one step and tells `observer` before every op.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_observed(&mut self, entry: EntryKind, step: &Step<'_>, observer: Observer<'_>) -> Result<()> {
        let set = self.set;
        self.execute(entry, step, ops::Patches::same(self.model.file, step, &set), observer)
    }

    /// Starts a step of the base alone, whose ops the caller runs one by one: how calibration watches a model and puts
    /// weights of its own in place of the file's.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn start<'r>(&'r mut self, entry: EntryKind, step: Step<'r>) -> Result<Pass<'r, 'm>> {
        let (record, _) = self.begin(entry, &step, &ops::Patches::same(self.model.file, &step, &Set::BASE))?;
        Ok(Pass { ops: record.op_start..record.op_start + record.op_count, session: self, step })
    }

    /// Checks a step and makes room for it; gives its entry and the adapter whose head takes the place of the entry's.
    fn begin(
        &mut self,
        entry: EntryKind,
        step: &Step<'_>,
        patches: &ops::Patches<'_, 'm>,
    ) -> Result<(&'m EntryRecord, Option<&'m Adapter<'m>>)> {
        let record = self.model.entry(entry)?;
        self.check(step, entry, record.max_positions, patches)?;
        let head = head_of(step, record, patches)?;
        self.check_caches(step, entry, patches)?;
        self.arena.begin(step.tokens.len(), step.outputs.len())?;
        self.remember(step, entry, patches);
        self.head = head;
        if entry == EntryKind::Encode {
            self.source_len = [step.tokens.len() as u32];
        }
        Ok((record, head))
    }

    fn execute<'s>(
        &mut self,
        entry: EntryKind,
        step: &'s Step<'s>,
        patches: ops::Patches<'s, 'm>,
        observer: Observer<'_>,
    ) -> Result<()> {
        let (record, head) = self.begin(entry, step, &patches)?;
        let end = head.map_or(record.op_start + record.op_count, |_| record.head_op);
        self.ops(self.model.file, record.op_start..end, step, patches, observer)?;
        if let Some((file, own)) = head.and_then(|a| Some((a.file, a.head()?))) {
            self.arena.begin_head(file.buffers, record.head_buffer as u16);
            self.ops(file, own.op_start..own.op_start + own.op_count, step, patches.none(), observer)?;
        }
        observer(NONE, None);
        Ok(())
    }

    fn ops<'s>(
        &mut self,
        file: File<'m>,
        range: Range<u32>,
        step: &'s Step<'s>,
        patches: ops::Patches<'s, 'm>,
        observer: Observer<'_>,
    ) -> Result<()> {
        for index in range {
            let op = Op::parse(&file.ops[index as usize])?;
            observer(index, Some(&op));
            let mut cx = ops::Context {
                file,
                arena: &mut self.arena,
                kernels: self.kernels,
                workers: self.workers,
                step,
                config: &self.config,
                source_len: self.source_len[0],
                panels: None,
                patches,
            };
            ops::run(&op, &mut cx);
        }
        Ok(())
    }

    /// Copies the first `positions` of one sequence's past over another's, so that both continue it (beam search, several
    /// answers to one prompt).
    ///
    /// # Errors
    /// [`ErrorKind::Capacity`] for a sequence or a number of positions beyond the plan.
    pub fn copy_past(&mut self, from: u32, to: u32, positions: u32) -> Result<()> {
        let fail = |what, found: u32, limit: u32| {
            Err(Error::new(ErrorKind::Capacity, what).values(found.into(), limit.into()))
        };
        if from.max(to) >= self.config.sequences {
            return fail("sequence", from.max(to), self.config.sequences);
        }
        if positions > self.config.context {
            return fail("positions", positions, self.config.context);
        }
        self.arena.copy_past(from, to, positions as usize);
        // What the past was computed with goes along.
        if let Some((_, keys)) = self.arena.keys().split_last_mut() {
            keys[to as usize] = keys[from as usize];
        }
        Ok(())
    }

    /// A named output of the entry that ran last: token rows, or one row per requested output.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] when the entry has no such output.
    pub fn output(&self, entry: EntryKind, name: &str) -> Result<Rows<'_>> {
        let o = self.find_output(entry, name)?;
        Ok(self.arena.read(o.at, o.width as usize))
    }

    /// A row of a named output, to be worked on in place: it is lost for later reading, and the next step writes it anew.
    ///
    /// # Errors
    /// As [`Session::output`]; [`ErrorKind::Capacity`] for a row that the last step did not have.
    pub fn row_mut(&mut self, entry: EntryKind, name: &str, row: usize) -> Result<&mut [f32]> {
        let o = self.find_output(entry, name)?;
        let rows = self.arena.out(o.at, o.width as usize);
        let count = rows.len();
        rows.into_row(row).ok_or(Error::new(ErrorKind::Capacity, "output row").values(row as u64, count as u64))
    }

    /// The last row of a named output, as [`Session::row_mut`].
    ///
    /// # Errors
    /// As [`Session::row_mut`].
    pub fn last_row_mut(&mut self, entry: EntryKind, name: &str) -> Result<&mut [f32]> {
        let row = self.output(entry, name)?.len().saturating_sub(1);
        self.row_mut(entry, name, row)
    }

    fn find_output(&self, entry: EntryKind, name: &str) -> Result<&'m OutputRecord> {
        let record = self.model.entry(entry)?;
        let own = self.head.and_then(|a| Some((a.file, a.head()?))).filter(|(_, e)| e.kind == entry as u32);
        let (file, e) = own.unwrap_or((self.model.file, record));
        let outputs = &file.outputs[e.output_start as usize..(e.output_start + e.output_count) as usize];
        let named = outputs.iter().find(|o| file.str(o.name) == name);
        named.ok_or(Error::new(ErrorKind::Mismatch, "the model has no such output"))
    }

    /// How many of the first `past` cached positions of a sequence hold under the selected adapters: what other adapters
    /// computed does not.
    #[must_use]
    pub fn reusable(&mut self, sequence: u32, past: u32) -> u32 {
        let set = self.set;
        let Some((_, keys)) = self.arena.keys().split_last_mut() else { return past };
        let Some(key) = keys.get(sequence as usize) else { return 0 };
        let (now, from) = set.key(past);
        match key.set {
            0 => past.min(from),
            cached if cached == now => past,
            _ => past.min(from).min(key.from),
        }
    }

    fn check_set(&self, set: &Set<'m>) -> Result<()> {
        let base = &self.model.file.header.fingerprint;
        if set.iter().any(|a| a.adapter.file.header.fingerprint != *base) {
            return Err(Error::new(ErrorKind::Mismatch, "an adapter for another base"));
        }
        if self.config.adapters.covers(&set.needs()) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Capacity, "adapters: more than the session was planned for")
            .values(set.needs().rank.into(), self.config.adapters.rank.into()))
    }

    /// The past of every segment, and the encoder's output, come from the adapters that act now.
    fn check_caches(&mut self, step: &Step<'_>, entry: EntryKind, patches: &ops::Patches<'_, 'm>) -> Result<()> {
        let reads_source = entry == EntryKind::Decode && self.has_source();
        let keys = self.arena.keys();
        let Some((source, keys)) = keys.split_last_mut() else { return Ok(()) };
        for (i, s) in step.segments.iter().enumerate() {
            let set = patches.set(i);
            let key = keys[s.sequence as usize];
            let now = set.key(s.past).0;
            let base = key.set == 0 || s.past <= key.from;
            let fits = if base { now == 0 } else { key.set == now };
            if entry == EntryKind::Decode && s.past > 0 && !fits {
                return Err(Error::new(ErrorKind::Mismatch, "the sequence's past was computed with other adapters")
                    .index(s.sequence.into()));
            }
            if reads_source && source.set != set.key(u32::MAX).0 {
                return Err(Error::new(ErrorKind::Mismatch, "the encoder's output was computed with other adapters"));
            }
        }
        Ok(())
    }

    fn remember(&mut self, step: &Step<'_>, entry: EntryKind, patches: &ops::Patches<'_, 'm>) {
        let keys = self.arena.keys();
        let Some((source, keys)) = keys.split_last_mut() else { return };
        for (i, s) in step.segments.iter().enumerate() {
            let whole = entry == EntryKind::Encode;
            let (set, from) = patches.set(i).key(if whole { u32::MAX } else { s.past + s.len });
            *(if whole { &mut *source } else { &mut keys[s.sequence as usize] }) = CacheKey { set, from, reserved: 0 };
        }
    }

    fn has_source(&self) -> bool {
        self.model.file.caches.iter().any(|c| c.kind == CacheKind::Source as u32)
    }

    fn check(
        &self,
        step: &Step<'_>,
        entry: EntryKind,
        max_positions: u32,
        patches: &ops::Patches<'_, 'm>,
    ) -> Result<()> {
        let fail = |what, found: u64, expected: u64| Err(Error::new(ErrorKind::Capacity, what).values(found, expected));
        let info = self.model.file.info;
        if step.tokens.is_empty() {
            return fail("tokens: none", 0, 1);
        }
        if !step.token_types.is_empty() && step.token_types.len() != step.tokens.len() {
            return fail("token types", step.token_types.len() as u64, step.tokens.len() as u64);
        }
        if let Some(id) = step.token_types.iter().find(|id| **id >= info.token_types.max(1)) {
            return fail("token type id", (*id).into(), info.token_types.into());
        }
        let mut total = 0_u64;
        for (i, s) in step.segments.iter().enumerate() {
            let end = u64::from(s.past) + u64::from(s.len);
            let limit = if entry == EntryKind::Decode { self.config.context } else { max_positions };
            if end > limit.min(max_positions).into() {
                return fail("positions", end, limit.min(max_positions).into());
            }
            if s.sequence >= self.config.sequences || s.len == 0 {
                return fail("segment", s.sequence.into(), self.config.sequences.into());
            }
            if step.segments[..i].iter().any(|o| o.sequence == s.sequence) {
                return fail("segment: sequence twice", s.sequence.into(), 0);
            }
            let vocab = patches.set(i).vocab().unwrap_or(info.vocab);
            let tokens = step.tokens.iter().skip(total as usize).take(s.len as usize);
            if let Some(id) = tokens.into_iter().find(|id| **id >= vocab) {
                return fail("token id", (*id).into(), vocab.into());
            }
            total += u64::from(s.len);
        }
        if total != step.tokens.len() as u64 {
            return fail("segments", total, step.tokens.len() as u64);
        }
        if entry == EntryKind::Encode {
            // An encoder sees its whole sequence at once, one sequence per step.
            if step.segments.len() != 1 || step.segments[0].past != 0 {
                return fail("encode: one whole sequence per step", step.segments.len() as u64, 1);
            }
            if self.has_source() && total > self.config.source.into() {
                return fail("source positions", total, self.config.source.into());
            }
        }
        if let Some(row) = step.outputs.iter().find(|r| **r as usize >= step.tokens.len()) {
            return fail("output row", (*row).into(), step.tokens.len() as u64);
        }
        Ok(())
    }
}

/// The adapter whose head takes the place of the base's.
fn head_of<'m>(
    step: &Step<'_>,
    entry: &EntryRecord,
    patches: &ops::Patches<'_, 'm>,
) -> Result<Option<&'m Adapter<'m>>> {
    let own = |i: usize| patches.set(i).head().filter(|a| a.head().is_some_and(|e| e.kind == entry.kind));
    let first = own(0);
    for i in 1..step.segments.len() {
        let same = match (first, own(i)) {
            (None, None) => true,
            (Some(a), Some(b)) => a.file.header.hash == b.file.header.hash,
            _ => false,
        };
        if !same {
            return Err(Error::new(ErrorKind::Mismatch, "segments of one step need different heads").index(i as u64));
        }
    }
    Ok(first)
}
