//! Mixtures of experts: which experts a row takes, and linear layers whose matrix depends on the row.
//!
//! Rows are independent, so neither the step's size nor the other rows change a row's bits. As in
//! [`linear`](super::linear), work is cut by panels; within a block of tokens, those of the same expert go through its
//! panels together; rows on
//! which adapters act go alone, each with its own updates.

use super::Context;
use super::linear::{TOKEN_BLOCK, cuts};
use super::low_rank::{LowRank, Site};
use super::patches::Patches;
use crate::format::record::{NONE, Operand, RowKind};
use crate::format::view::{File, Tensor};
use crate::kernels::{ActRows, Kernels, MAX_TOKENS, Sums};
use crate::program::op::{MAX_CHOSEN, Op};
use crate::program::verify::linear_slots;
use crate::session::arena::{ColsMut, Rows};
use crate::weights::PANEL_ROWS;

pub fn route(cx: &mut Context<'_, '_>, a: Operand, out: Operand, width: usize, chosen: usize, normalize: bool) {
    let kernels = cx.kernels;
    let keep = |row: &mut [f32]| {
        kernels.softmax_in_place(row);
        let (mut index, mut value) = ([0_u32; MAX_CHOSEN as usize], [0.0_f32; MAX_CHOSEN as usize]);
        let found = kernels.top_k(row, &mut index[..chosen], &mut value[..chosen]);
        row.fill(0.0);
        let total = if normalize { value[..found].iter().fold(0.0, |sum, v| sum + v) } else { 1.0 };
        for (i, v) in index[..found].iter().zip(&value) {
            row[*i as usize] = v / total;
        }
    };
    if a == out {
        cx.arena.out(out, width).each_row(cx.workers, |_, row| keep(row));
    } else {
        let (out, [a]) = cx.arena.split((out, width), [(a, width)]);
        out.each_row(cx.workers, |i, row| {
            row.copy_from_slice(a.row(i));
            keep(row);
        });
    }
}

struct Job<'s, 'm> {
    kernels: &'static Kernels,
    file: File<'m>,
    x: Rows<'s>,
    route: Rows<'s>,
    /// Tensor of the first expert.
    first: u32,
    slot: usize,
    weighted: bool,
    add: bool,
    /// What adapters add, and their low-rank values.
    update: Option<(Patches<'s, 'm>, Rows<'s>)>,
    kind: RowKind,
}

pub fn linear(cx: &mut Context<'_, '_>, op: &Op) {
    let Op::ExpertLinear { a, route, out, weight, experts, slot, weighted, add, width } = *op else { return };
    let Some(Tensor::Panels { format, cols, .. }) = cx.file.tensor(weight) else { return };
    let (file, kernels, slot) = (cx.file, cx.kernels, slot as usize);
    let (kind, n) = cx.arena.rows_of(out);
    let patched = cx.patches.active() && file.tensors[weight as usize].slot != NONE;
    if patched {
        for row in 0..n {
            let (_, [route]) = cx.arena.split((out, width as usize), [(route, experts as usize)]);
            let expert = choice(route.row(row), slot);
            if expert == NONE {
                continue;
            }
            let weight = weight + expert;
            let site = Site { slot: file.tensors[weight as usize].slot, weight, format, cols, input: a, kind };
            LowRank::project_row(cx, site, &cx.patches.run(kind, row, row + 1));
        }
    }
    let (y, [x, route], values) =
        cx.arena.split_low_rank((out, width as usize), [(a, cols), (route, experts as usize)]);
    let update = patched.then_some((cx.patches, values));
    let job = Job { kernels, file, x, route, first: weight, slot, weighted, add, update, kind };
    let panels = (width as usize).div_ceil(PANEL_ROWS);
    let cuts = cuts(panels, format.panel_bytes(cols), n, cx.workers);
    y.each_block(cx.workers, (0..n, n), PANEL_ROWS, cuts, &|cols| job.task(cols));
}

/// The `slot`-th expert of a row with these weights, or [`NONE`].
fn choice(route: &[f32], slot: usize) -> u32 {
    let taken = route.iter().enumerate().filter(|(_, weight)| **weight != 0.0);
    taken.map(|(expert, _)| expert as u32).nth(slot).unwrap_or(NONE)
}

impl Job<'_, '_> {
    /// Computes one range of panels for all rows.
    fn task(&self, mut out: ColsMut<'_>) {
        let n = self.x.len();
        for first in (0..n).step_by(TOKEN_BLOCK) {
            let mut choices = [NONE; TOKEN_BLOCK];
            let choices = &mut choices[..TOKEN_BLOCK.min(n - first)];
            for (i, expert) in choices.iter_mut().enumerate() {
                *expert = choice(self.route.row(first + i), self.slot);
            }
            for (i, expert) in choices.iter().enumerate() {
                if *expert == NONE {
                    if !self.add {
                        out.row(first + i).fill(0.0);
                    }
                } else if let Some((patches, values)) = &self.update {
                    let row = first + i;
                    let tensor = self.first + expert;
                    let slots = linear_slots(&self.file, self.file.tensors[tensor as usize].slot, tensor);
                    let update = LowRank::of_row(&self.file, &patches.run(self.kind, row, row + 1), slots);
                    self.expert(*expert, row, &[*expert], &mut out, (!update.is_empty()).then_some((&update, values)));
                } else if !choices[..i].contains(expert) {
                    self.expert(*expert, first, choices, &mut out, None);
                }
            }
        }
    }

    /// One expert's panels for the rows from `first` on that chose it; an update is of one row.
    fn expert(
        &self,
        expert: u32,
        first: usize,
        choices: &[u32],
        out: &mut ColsMut<'_>,
        update: Option<(&LowRank<'_>, &Rows<'_>)>,
    ) {
        let Some(Tensor::Panels { format, cols, data, .. }) = self.file.tensor(self.first + expert) else { return };
        let panel_bytes = format.panel_bytes(cols);
        let mut tile = Sums::<MAX_TOKENS>::ZEROS;
        for p in 0..out.width().div_ceil(PANEL_ROWS) {
            let index = out.first / PANEL_ROWS + p;
            let panel = &data[index * panel_bytes..][..panel_bytes];
            let mut from = 0;
            while let Some(run) = Run::next(choices, expert, from) {
                let rows = self.x.span(first + run.start, (run.count - 1) * run.step + 1);
                let rows = ActRows::new(rows, self.x.stride() * run.step);
                let tile = &mut tile.0[..run.count];
                self.kernels.linear_panel(format, &self.file.header.codebook, panel, cols, rows, tile);
                if let Some((update, values)) = update {
                    update.update(self.kernels, values, index..index + 1, first, tile);
                }
                for (i, sums) in tile.iter().enumerate() {
                    let row = first + run.start + i * run.step;
                    let weight = if self.weighted { self.route.row(row)[expert as usize] } else { 1.0 };
                    for (y, sum) in out.row(row)[p * PANEL_ROWS..].iter_mut().zip(sums) {
                        let value = sum * weight;
                        *y = if self.add { *y + value } else { value };
                    }
                }
                from = run.start + (run.count - 1) * run.step + 1;
            }
        }
    }
}

/// Neighbouring rows of one expert that lie equally far apart: what a kernel takes at once.
struct Run {
    start: usize,
    step: usize,
    count: usize,
}

impl Run {
    /// The first run at or after `from`.
    fn next(choices: &[u32], expert: u32, from: usize) -> Option<Self> {
        let mut rows = choices.iter().enumerate().skip(from).filter(|(_, e)| **e == expert).map(|(i, _)| i);
        let start = rows.next()?;
        let mut run = Self { start, step: 1, count: 1 };
        let mut last = start;
        for row in rows {
            if run.count == 1 {
                run.step = row - start;
            }
            if row - last != run.step || run.count == MAX_TOKENS {
                break;
            }
            (last, run.count) = (row, run.count + 1);
        }
        Some(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_equally_spaced_and_cover_every_row() {
        let choices = [7, 1, 7, 2, 7, 7, 1, 7, 9, 9, 7];
        let check = |expert, expected: &[(usize, usize, usize)]| {
            let mut from = 0;
            for run in expected {
                let r = Run::next(&choices, expert, from).unwrap();
                assert_eq!((r.start, r.step, r.count), *run);
                from = r.start + (r.count - 1) * r.step + 1;
            }
            assert!(Run::next(&choices, expert, from).is_none());
        };
        check(7, &[(0, 2, 3), (5, 2, 2), (10, 1, 1)]);
        check(1, &[(1, 5, 2)]);
        check(9, &[(8, 1, 2)]);
        check(3, &[]);
        assert_eq!(Run::next(&[4; MAX_TOKENS + 8], 4, 0).map(|r| r.count), Some(MAX_TOKENS));
    }
}
