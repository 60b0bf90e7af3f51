//! Which adapters act on a sequence.

use super::Adapter;
use crate::error::{Error, ErrorKind, Result};
use crate::format::record::NONE;
use crate::format::view::File;
use crate::program::plan::AdapterNeeds;

/// Most adapters that act on one sequence at once.
pub const MAX_ACTIVE: usize = 4;

/// One acting adapter.
#[derive(Clone, Copy)]
pub struct Active<'a> {
    /// The adapter.
    pub adapter: &'a Adapter<'a>,
    /// Factor of its updates; replaced values hold whatever it is.
    pub weight: f32,
    /// First position of the sequence on which it acts (see [`Adapter::acts_from`]).
    pub from: u32,
}

impl<'a> Active<'a> {
    /// Acting fully from the start.
    #[must_use]
    pub const fn new(adapter: &'a Adapter<'a>) -> Self {
        Self { adapter, weight: 1.0, from: 0 }
    }
}

/// The adapters that act on a sequence, in order. Checked once, copied freely.
#[derive(Clone, Copy, Default)]
pub struct Set<'a> {
    list: [Option<Active<'a>>; MAX_ACTIVE],
    needs: AdapterNeeds,
}

impl<'a> Set<'a> {
    /// No adapter: the base.
    pub const BASE: Self = Self { list: [None; MAX_ACTIVE], needs: AdapterNeeds::NONE };

    /// The set of `active`.
    ///
    /// # Errors
    /// More than [`MAX_ACTIVE`]; adapters for different vocabularies; two that replace the same value or the head; a
    /// weight that is not finite, or not 1 for an adapter whose magnitudes or biases hold only so.
    pub fn new(active: &[Active<'a>]) -> Result<Self> {
        let mut set = Self::BASE;
        if active.len() > MAX_ACTIVE {
            return Err(
                Error::new(ErrorKind::Capacity, "adapters at once").values(active.len() as u64, MAX_ACTIVE as u64)
            );
        }
        for (i, a) in active.iter().enumerate() {
            let fail = |kind, what| Err(Error::new(kind, what).index(i as u64));
            if !a.weight.is_finite() {
                return fail(ErrorKind::Invalid, "adapter weight: not finite");
            }
            if a.weight != 1.0 && a.adapter.fixed {
                return fail(
                    ErrorKind::Mismatch,
                    "adapter weight: this adapter has magnitudes (DoRA) or biases, which hold for weight 1 only",
                );
            }
            for b in &active[..i] {
                if b.adapter.file.header.fingerprint != a.adapter.file.header.fingerprint {
                    return fail(ErrorKind::Mismatch, "adapters of different bases");
                }
                if b.adapter.file.info.vocab != a.adapter.file.info.vocab {
                    return fail(ErrorKind::Mismatch, "adapters for different vocabularies at once");
                }
                if b.adapter.file.info.task != a.adapter.file.info.task {
                    return fail(ErrorKind::Mismatch, "adapters for different tasks at once");
                }
                if b.adapter.head().is_some() && a.adapter.head().is_some() {
                    return fail(ErrorKind::Mismatch, "two adapters at once that bring a head");
                }
                if let Some(slot) = both_replace(&a.adapter.file, &b.adapter.file) {
                    return Err(Error::new(ErrorKind::Mismatch, "two adapters at once that replace the same slot")
                        .index(slot.into()));
                }
            }
            set.list[i] = Some(*a);
            set.needs = if i == 0 { a.adapter.needs } else { set.needs.and(a.adapter.needs) };
        }
        Ok(set)
    }

    /// Whether no adapter acts.
    #[must_use]
    pub const fn is_base(&self) -> bool {
        self.list[0].is_none()
    }

    /// What a session needs to run it.
    #[must_use]
    pub const fn needs(&self) -> AdapterNeeds {
        self.needs
    }

    /// The acting adapters, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Active<'a>> {
        self.list.iter().flatten()
    }

    /// The same adapters for a sequence that begins with `prompt`: activated ones act from their invocation on, or not
    /// at all.
    #[must_use]
    pub fn for_prompt(mut self, prompt: &[u32]) -> Self {
        for a in self.list.iter_mut().flatten() {
            a.from = a.adapter.acts_from(prompt).unwrap_or(u32::MAX);
        }
        self
    }

    /// The adapter that brings a head.
    pub(crate) fn head(&self) -> Option<&'a Adapter<'a>> {
        self.iter().find(|a| a.adapter.head().is_some()).map(|a| a.adapter)
    }

    /// Token ids that may occur, where the adapters change their number.
    pub(crate) fn vocab(&self) -> Option<u32> {
        self.list[0].map(|a| a.adapter.file.info.vocab)
    }

    pub(crate) fn has_vectors(&self) -> bool {
        self.iter().any(|a| a.adapter.vectors)
    }

    /// What identifies the keys and values of positions below `end`, and the first position that is not the base's.
    pub(crate) fn key(&self, end: u32) -> (u64, u32) {
        let (mut key, mut first) = (0_u64, u32::MAX);
        for a in self.iter().filter(|a| a.from < end) {
            first = first.min(a.from);
            let hash = &a.adapter.file.header.hash;
            for word in hash
                .chunks_exact(8)
                .map(|w| u64::from_le_bytes([w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]]))
                .chain([u64::from(a.weight.to_bits()), u64::from(a.from)])
            {
                // FNV-1a over words: order matters.
                key = (key ^ word ^ 0xcbf2_9ce4_8422_2325).wrapping_mul(0x0100_0000_01b3) ^ (key >> 29);
            }
            key |= 1;
        }
        (key, first)
    }
}

/// A slot at which both put something in place of the base's value.
fn both_replace(a: &File<'_>, b: &File<'_>) -> Option<u32> {
    let replaces = |p: &&crate::format::PatchRecord| p.bias != NONE || p.values != NONE;
    let mut others = b.patches.iter().filter(replaces).peekable();
    for p in a.patches.iter().filter(replaces) {
        while others.next_if(|o| o.slot < p.slot).is_some() {}
        if let Some(o) = others.peek()
            && o.slot == p.slot
            && ((p.bias != NONE && o.bias != NONE) || (p.values != NONE && o.values != NONE))
        {
            return Some(p.slot);
        }
    }
    None
}
