//! Adapters beside a mapped base: attached in place, chosen for every request, several at once.
//!
//! ```text
//! linear   y = gain ⊙ (W·x + s·B·(A·x)) + bias         embed   gain ⊙ (W[i] + s·B·A[i])
//! ```
//! Everything that PEFT trains is one of these or a new value in place of the base's; `s` is the weight that the request
//! gives the adapter. An [`Adapter`] is a checked view of a file's bytes (mapped, in flash, read); a [`Set`] says which
//! adapters act and how much; a step runs with one set for each of its segments. Nothing is copied and nothing is
//! allocated, so switching costs nothing and a hundred adapters take the pages that are touched.
//!
//! The rows of the base's pass do not depend on the adapters of other rows: every segment gets the bits that it gets
//! alone, and without an adapter those of the base.

mod set;
mod verify;

use crate::error::{Error, ErrorKind, Result};
use crate::format::record::{EntryRecord, FileKind, NONE, PatchRecord};
use crate::format::view::{File, Tensor, Thin};
use crate::model::Model;
use crate::program::plan::AdapterNeeds;
use crate::tokenizer::Tokenizer;

pub use set::{Active, MAX_ACTIVE, Set};

/// An adapter file that was checked against a base. Cheap to copy.
#[derive(Clone, Copy)]
pub struct Adapter<'a> {
    /// The verified file.
    pub file: File<'a>,
    tokenizer: Option<Tokenizer<'a>>,
    needs: AdapterNeeds,
    /// Magnitudes and biases hold for weight 1 only.
    fixed: bool,
    vectors: bool,
}

impl<'a> Adapter<'a> {
    /// Verifies `bytes` (64-byte aligned) against `base`: every number, shape and range, once.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] for an adapter of another base; a typed error naming section, record and field for
    /// anything that is not a sound adapter file.
    pub fn attach(base: &Model<'_>, bytes: &'a [u8]) -> Result<Self> {
        let file = File::new_checked(bytes)?;
        if file.header.kind != FileKind::Adapter as u32 {
            return Err(
                Error::new(ErrorKind::Mismatch, "header.kind: not an adapter").values(file.header.kind.into(), 2)
            );
        }
        let (own, of_base) = (&file.header.fingerprint, &base.file.header.fingerprint);
        if own.iter().zip(of_base).all(|(a, b)| *a == !*b) {
            return Err(Error::new(
                ErrorKind::Mismatch,
                "the base's channels are balanced, which adapters do not fit: pack it with --balance no (header.fingerprint)",
            ));
        }
        if own != of_base {
            return Err(Error::new(ErrorKind::Mismatch, "the adapter is for another base (header.fingerprint)"));
        }
        let needs = verify::verify(&file, base)?;
        let tokenizer = match file.tokenizer {
            [] => None,
            tables => Some(Tokenizer::new_checked(tables, file.info.vocab)?),
        };
        let fixed = file.patches.iter().any(|p| p.gain != NONE || p.bias != NONE);
        let vectors = file.patches.iter().any(|p| p.kind == crate::format::SlotKind::Vector as u32);
        Ok(Self { file, tokenizer, needs, fixed, vectors })
    }

    /// The name it was packed under.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.file.meta_value("adapter.name").unwrap_or("")
    }

    /// What a session needs to run it.
    #[must_use]
    pub const fn needs(&self) -> AdapterNeeds {
        self.needs
    }

    /// The head that it brings in place of the base's.
    #[must_use]
    pub fn head(&self) -> Option<&'a EntryRecord> {
        self.file.entries.first()
    }

    /// The tokens from whose last occurrence on it acts (activated LoRA); empty for one that always acts.
    #[must_use]
    pub fn invocation(&self) -> &'a [u32] {
        let count = self.file.info.invocation as usize;
        &self.file.indices[self.file.indices.len() - count..]
    }

    /// Position from which it acts in a sequence that begins with `prompt`: where its invocation tokens occur last, 0
    /// for an adapter without; `None` when they do not occur, and the base alone answers.
    #[must_use]
    pub fn acts_from(&self, prompt: &[u32]) -> Option<u32> {
        match self.invocation() {
            [] => Some(0),
            tokens => prompt.windows(tokens.len()).rposition(|w| w == tokens).map(|at| at as u32),
        }
    }

    pub(crate) const fn tokenizer(&self) -> Option<Tokenizer<'a>> {
        self.tokenizer
    }

    pub(crate) fn patch(&self, slot: u32) -> Option<Patch<'a>> {
        let i = self.file.patches.binary_search_by_key(&slot, |p| p.slot).ok()?;
        Some(Patch { file: self.file, record: &self.file.patches[i] })
    }
}

/// A patch with its tensors.
#[derive(Clone, Copy)]
pub(crate) struct Patch<'a> {
    pub file: File<'a>,
    pub record: &'a PatchRecord,
}

impl<'a> Patch<'a> {
    pub fn b(&self) -> Option<Thin<'a>> {
        self.thin(self.record.b)
    }

    pub fn thin(&self, tensor: u32) -> Option<Thin<'a>> {
        match self.file.tensor(tensor) {
            Some(Tensor::Thin(t)) => Some(t),
            _ => None,
        }
    }

    pub fn vector(&self, tensor: u32) -> Option<&'a [f32]> {
        match self.file.tensor(tensor) {
            Some(Tensor::Vector { data, .. }) => Some(data),
            _ => None,
        }
    }

    /// The replaced rows' numbers.
    pub fn indices(&self) -> &'a [u32] {
        &self.file.indices[self.record.index_start as usize..][..self.record.index_count as usize]
    }
}
