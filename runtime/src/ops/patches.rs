//! Which adapters act on which rows of a step.

use core::ops::Range;

use crate::adapter::{Active, Patch, Set};
use crate::format::record::{NONE, RowKind};
use crate::format::view::File;
use crate::session::Step;

/// The sets of a step's segments. Cheap to copy.
#[derive(Clone, Copy)]
pub struct Patches<'s, 'm> {
    /// The base.
    base: File<'m>,
    step: &'s Step<'s>,
    /// A set for each segment.
    sets: Sets<'s, 'm>,
    /// Some set is not the base alone.
    active: bool,
    vectors: bool,
}

#[derive(Clone, Copy)]
enum Sets<'s, 'm> {
    Same(&'s Set<'m>),
    Each(&'s [Set<'m>]),
}

/// Consecutive rows on which the same adapters act.
#[derive(Clone)]
pub struct Run<'s, 'm> {
    pub rows: Range<usize>,
    pub set: &'s Set<'m>,
    /// Position of the first row; an adapter acts on the run when it acts there.
    position: u32,
}

impl<'s, 'm> Run<'s, 'm> {
    /// The adapters that act on the run, in order.
    pub fn acting(&self) -> impl Iterator<Item = &'s Active<'m>> + use<'s, 'm> {
        let position = self.position;
        let set: &'s Set<'m> = self.set;
        set.iter().filter(move |a| a.from <= position)
    }
}

impl<'s, 'm> Patches<'s, 'm> {
    /// One set for all segments.
    pub fn same(base: File<'m>, step: &'s Step<'s>, set: &'s Set<'m>) -> Self {
        Self { base, step, sets: Sets::Same(set), active: !set.is_base(), vectors: set.has_vectors() }
    }

    /// A set for each segment.
    pub fn each(base: File<'m>, step: &'s Step<'s>, sets: &'s [Set<'m>]) -> Self {
        let active = sets.iter().any(|s| !s.is_base());
        Self { base, step, sets: Sets::Each(sets), active, vectors: sets.iter().any(Set::has_vectors) }
    }

    /// For ops that no adapter changes: those of a head that an adapter brings.
    pub fn none(mut self) -> Self {
        (self.active, self.vectors) = (false, false);
        self
    }

    /// Whether any adapter acts.
    pub const fn active(&self) -> bool {
        self.active
    }

    /// The set of a segment.
    pub fn set(&self, segment: usize) -> &'s Set<'m> {
        match self.sets {
            Sets::Same(set) => set,
            Sets::Each(sets) => &sets[segment],
        }
    }

    /// The run that row `row` of a value with `kind` rows begins.
    pub fn run(&self, kind: RowKind, row: usize, rows: usize) -> Run<'s, 'm> {
        let token = match kind {
            RowKind::Token => row,
            RowKind::Output => self.step.outputs.get(row).map_or(0, |t| *t as usize),
        };
        let mut first = 0;
        for (i, s) in self.step.segments.iter().enumerate() {
            let len = s.len as usize;
            if token >= first + len {
                first += len;
                continue;
            }
            let set = self.set(i);
            let position = s.past + (token - first) as u32;
            let end = match kind {
                RowKind::Output => row + 1,
                RowKind::Token => {
                    // Up to the next row from which another adapter acts.
                    let next = set.iter().map(|a| a.from).filter(|from| *from > position).min().unwrap_or(u32::MAX);
                    (first + len).min(row.saturating_add((next - position) as usize))
                }
            };
            return Run { rows: row..end.min(rows), set, position };
        }
        Run { rows: row..rows, set: &Set::BASE, position: 0 }
    }

    /// The vector that an adapter puts in place of a tensor for a row.
    pub fn vector(&self, tensor: u32, kind: RowKind, row: usize) -> Option<&'m [f32]> {
        if !self.vectors || tensor == NONE {
            return None;
        }
        let slot = self.base.tensors.get(tensor as usize)?.slot;
        let mut found = None;
        for a in self.run(kind, row, row + 1).acting() {
            if let Some(p) = a.adapter.patch(slot) {
                found = p.vector(p.record.values);
            }
        }
        found
    }

    /// The patches of a slot for a row, in order, and their weights.
    pub fn of_row(&self, slot: u32, kind: RowKind, row: usize) -> impl Iterator<Item = (Patch<'m>, f32)> {
        let run = self.run(kind, row, row + 1);
        run.acting().filter_map(move |a| Some((a.adapter.patch(slot)?, a.weight)))
    }
}
