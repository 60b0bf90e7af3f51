//! A verified model: the file, its program and its tokenizer.

use crate::error::{Error, ErrorKind, Result};
use crate::format::record::{EntryKind, EntryRecord, FileKind, OutputRecord, ProblemType, RowKind, Task};
use crate::format::view::File;
use crate::kernels::KvType;
use crate::program::op::{Op, SelectRows};
use crate::program::plan::{Plan, SessionConfig};
use crate::program::verify;
use crate::tokenizer::Tokenizer;

/// A verified model, borrowing the file's bytes. Cheap to copy.
#[derive(Clone, Copy)]
pub struct Model<'a> {
    /// The verified file.
    pub file: File<'a>,
    tokenizer: Option<Tokenizer<'a>>,
}

impl<'a> Model<'a> {
    /// Verifies `bytes` (mapped, in flash, or read) and gives the model. The bytes must be 64-byte aligned.
    /// The cost does not depend on the size of the weights; the content hash is checked by
    /// `format::hash::verify_hash` (feature `hash`).
    ///
    /// # Errors
    /// A typed error naming section, record and field for anything that is not a sound model file.
    pub fn open(bytes: &'a [u8]) -> Result<Self> {
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
        Ok(Self { file, tokenizer })
    }

    /// The task.
    #[must_use]
    pub fn task(&self) -> Task {
        Task::from_u32(self.file.info.task).unwrap_or(Task::Other)
    }

    /// The KV cache's default element type.
    #[must_use]
    pub fn kv_type(&self) -> KvType {
        u16::try_from(self.file.info.kv_type).ok().and_then(KvType::from_u16).unwrap_or(KvType::F32)
    }

    /// How label scores are read.
    #[must_use]
    pub const fn problem(&self) -> ProblemType {
        match self.file.info.problem {
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
        let info = self.file.info;
        &info.eos[..(info.eos_count as usize).min(info.eos.len())]
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
        &self.file.outputs[entry.output_start as usize..(entry.output_start + entry.output_count) as usize]
    }

    /// Whether an output has a row for every token of a step, else one for every output row.
    #[must_use]
    pub fn has_token_rows(&self, output: &OutputRecord) -> bool {
        self.file.buffers.get(usize::from(output.at.buffer)).is_some_and(|b| b.rows == RowKind::Token as u16)
    }

    /// Whether an entry must see its whole input in one step: encoders, and what pools over the input or takes its
    /// first row. Everything else gives the same bits however the input is cut into steps.
    #[must_use]
    pub fn needs_whole_input(&self, entry: &EntryRecord) -> bool {
        let ops = &self.file.ops[entry.op_start as usize..(entry.op_start + entry.op_count) as usize];
        let whole = |op: Op| matches!(op, Op::Pool { .. } | Op::Select { rows: SelectRows::First, .. });
        entry.kind == EntryKind::Encode as u32 || ops.iter().any(|r| Op::parse(r).is_ok_and(whole))
    }

    /// Exact byte counts for a session.
    #[must_use]
    pub const fn plan(&self, config: &SessionConfig) -> Plan {
        Plan::of(&self.file, config)
    }
}
