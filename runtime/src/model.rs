//! A verified model: the file, its program and its tokenizer.

use crate::adapter::Adapter;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bundle::Bundle;
use crate::format::record::{EntryKind, EntryRecord, FileKind, OpRecord, OutputRecord, ProblemType, RowKind, Task};
use crate::format::view::File;
use crate::kernels::KvType;
use crate::program::op::{Op, SelectRows};
use crate::program::plan::{Plan, SessionConfig};
use crate::program::verify;
use crate::sampler::Rules;
use crate::tokenizer::Tokenizer;

/// A verified model, borrowing the file's bytes. Cheap to copy.
#[derive(Clone, Copy)]
pub struct Model<'a> {
    /// The verified file.
    pub file: File<'a>,
    /// The file that speaks for the model: its task, labels, template, defaults and vocabulary. The model's own, or
    /// that of the adapter it is seen with ([`Model::with_adapter`]).
    pub face: File<'a>,
    tokenizer: Option<Tokenizer<'a>>,
}

impl<'a> Model<'a> {
    /// Verifies `bytes` (mapped, in flash, or read) and gives the model, of a bundle its base. The bytes must be 64-byte aligned.
    /// The cost does not depend on the size of the weights; the content hash is checked by
    /// `format::hash::verify_hash` (feature `hash`).
    ///
    /// # Errors
    /// A typed error naming section, record and field for anything that is not a sound model file.
    pub fn open(bytes: &'a [u8]) -> Result<Self> {
        // Of a bundle, the base.
        let bytes = if Bundle::is_bundle(bytes) { Bundle::open(bytes)?.base() } else { bytes };
        let file = File::new_checked(bytes)?;
        if file.header.kind != FileKind::Model as u32 {
            return Err(Error::new(ErrorKind::Mismatch, "header.kind: not a model").values(file.header.kind.into(), 1));
        }
        if Task::from_u32(file.info.task).is_none() {
            return Err(Error::new(ErrorKind::Invalid, "info.task").values(file.info.task.into(), 0));
        }
        if u16::try_from(file.info.kv_type).ok().and_then(KvType::from_u16).is_none() {
            return Err(Error::new(ErrorKind::Invalid, "info.kv_type").values(file.info.kv_type.into(), 0));
        }
        verify::verify(&file)?;
        let tokenizer = if file.tokenizer.is_empty() {
            None
        } else {
            Some(Tokenizer::new_checked(file.tokenizer, file.info.vocab)?)
        };
        Ok(Self { file, face: file, tokenizer })
    }

    /// The model as it is while `adapter` acts: with the adapter's task, outputs, labels, template, tokenizer and
    /// defaults.
    #[must_use]
    pub fn with_adapter(mut self, adapter: &Adapter<'a>) -> Self {
        self.face = adapter.file;
        self.tokenizer = adapter.tokenizer().or(self.tokenizer);
        self
    }

    /// The entry of the head that the adapter brings for `entry`.
    fn head(&self, entry: &EntryRecord) -> Option<&'a EntryRecord> {
        let adapter = self.face.header.kind == FileKind::Adapter as u32;
        self.face.entries.first().filter(|e| adapter && e.kind == entry.kind)
    }

    /// The task.
    #[must_use]
    pub fn task(&self) -> Task {
        Task::from_u32(self.face.info.task).unwrap_or(Task::Other)
    }

    /// The KV cache's default element type.
    #[must_use]
    pub fn kv_type(&self) -> KvType {
        u16::try_from(self.file.info.kv_type).ok().and_then(KvType::from_u16).unwrap_or(KvType::F32)
    }

    /// How label scores are read.
    #[must_use]
    pub const fn problem(&self) -> ProblemType {
        match self.face.info.problem {
            1 => ProblemType::MultiLabel,
            2 => ProblemType::Regression,
            _ => ProblemType::SingleLabel,
        }
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] for a file without one.
    pub fn tokenizer(&self) -> Result<&Tokenizer<'a>> {
        self.tokenizer.as_ref().ok_or(Error::new(ErrorKind::Mismatch, "the file has no tokenizer"))
    }

    /// The tokens that end generation.
    #[must_use]
    pub fn eos(&self) -> &'a [u32] {
        let info = self.face.info;
        &info.eos[..(info.eos_count as usize).min(info.eos.len())]
    }

    /// What the model's authors force or forbid.
    #[must_use]
    pub fn rules(&self) -> Rules<'a> {
        let info = self.face.info;
        Rules {
            first: info.forced_first.checked_sub(1),
            suppressed: &info.suppressed[..(info.suppressed_count as usize).min(info.suppressed.len())],
            no_repeat: info.no_repeat_ngram,
            min_new: info.min_new,
            eos: self.eos(),
        }
    }

    /// An entry point.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] when the file has none of this kind.
    pub fn entry(&self, kind: EntryKind) -> Result<&'a EntryRecord> {
        let what = match kind {
            EntryKind::Decode => "the model has no decode entry",
            EntryKind::Encode => "the model has no encode entry",
        };
        self.file.entries.iter().find(|e| e.kind == kind as u32).ok_or(Error::new(ErrorKind::Mismatch, what))
    }

    /// The outputs of an entry.
    #[must_use]
    pub fn outputs(&self, entry: &EntryRecord) -> &'a [OutputRecord] {
        let (file, e) = self.head(entry).map_or((&self.file, entry), |head| (&self.face, head));
        &file.outputs[e.output_start as usize..(e.output_start + e.output_count) as usize]
    }

    /// The name of an output of an entry.
    #[must_use]
    pub fn output_name(&self, entry: &EntryRecord, output: &OutputRecord) -> &'a str {
        if self.head(entry).is_some() { self.face.str(output.name) } else { self.file.str(output.name) }
    }

    /// Whether an output of an entry has a row for every token of a step, else one for every output row.
    #[must_use]
    pub fn has_token_rows(&self, entry: &EntryRecord, output: &OutputRecord) -> bool {
        let buffers = if self.head(entry).is_some() { self.face.buffers } else { self.file.buffers };
        buffers.get(usize::from(output.at.buffer)).is_some_and(|b| b.rows == RowKind::Token as u16)
    }

    /// Whether an entry must see its whole input in one step: encoders, and what pools over the input or takes its
    /// first row. Everything else gives the same bits however the input is cut into steps.
    #[must_use]
    pub fn needs_whole_input(&self, entry: &EntryRecord) -> bool {
        let whole = |r: &OpRecord| {
            Op::parse(r).is_ok_and(|op| matches!(op, Op::Pool { .. } | Op::Select { rows: SelectRows::First, .. }))
        };
        let ops =
            |file: &File<'a>, e: &EntryRecord, end: u32| file.ops[e.op_start as usize..end as usize].iter().any(whole);
        let end = |e: &EntryRecord| e.op_start + e.op_count;
        entry.kind == EntryKind::Encode as u32
            || match self.head(entry) {
                None => ops(&self.file, entry, end(entry)),
                Some(head) => ops(&self.file, entry, entry.head_op) || ops(&self.face, head, end(head)),
            }
    }

    /// The output that holds the pooled vector of an embedding model: as the file says, else the mean.
    #[must_use]
    pub const fn pooled_output(&self) -> &'static str {
        match self.face.info.pooling {
            2 => "cls_pooled",
            3 => "last_pooled",
            _ => "mean_pooled",
        }
    }

    /// A session of one sequence: `positions` of it, at most `step` tokens at once where the model allows steps, one
    /// output row, the file's type of KV cache.
    #[must_use]
    pub fn config(&self, positions: u32, step: u32) -> SessionConfig {
        let has = |kind| self.entry(kind).is_ok();
        SessionConfig::single(has(EntryKind::Decode), has(EntryKind::Encode), positions, step, self.kv_type())
    }

    /// Exact byte counts for a session.
    #[must_use]
    pub const fn plan(&self, config: &SessionConfig) -> Plan {
        Plan::of(&self.file, config)
    }
}
