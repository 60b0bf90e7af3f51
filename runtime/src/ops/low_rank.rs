//! The updates of adapters on a linear: `A·x` once for each adapter and input, then `B` times that in the tasks that
//! compute the base's outputs, before activation and residual.
//!
//! ```text
//! t = s · (A·x)                     rows of A in panels of 16, for every row that the adapter acts on
//! y = gain ⊙ (W·x + B·t) + bias     in the order of the set, each product as the float kernels define it
//! ```
//! Where A's format does not fit the input (float factors on a quantized row, 8-bit factors on floats), the input is
//! converted in blocks of 256, and the blocks' sums are added in order.

use core::ops::Range;

use super::Context;
use super::patches::Run;
use crate::adapter::{MAX_ACTIVE, Patch};
use crate::format::record::{NONE, Operand, RowKind};
use crate::format::view::{File, Tensor, Thin};
use crate::kernels::{ActRows, Kernels, MAX_TOKENS, QuantRow, Sums, quant_row_bytes};
use crate::program::verify::{MAX_SLOTS, linear_slots};
use crate::session::arena::Rows;
use crate::session::workers::{Inline, Workers};
use crate::weights::{GROUP, PANEL_ROWS, WeightFormat};

/// Most terms of one pass over a linear; rows with more take another pass.
const MAX_TERMS: usize = MAX_ACTIVE * MAX_SLOTS;
/// Inputs that are converted at a time: whole blocks of every format.
const CONVERT: usize = 256;
/// Products of A below which waking the other threads costs more than they save.
const ALONE: usize = 1 << 17;

/// What one adapter does to the outputs of one slot, for some rows.
#[derive(Clone, Copy)]
struct Term<'m> {
    /// First row and the row after the last.
    rows: (usize, usize),
    /// First output of the slot in the tensor, and the output after its last.
    outputs: (usize, usize),
    /// Columns of the low-rank values.
    t: (usize, usize),
    /// Turns low-rank values to outputs; without it they are outputs themselves.
    b: Option<Thin<'m>>,
    /// Which outputs, ascending; empty for all.
    indices: &'m [u32],
    gain: Option<&'m [f32]>,
    bias: Option<&'m [f32]>,
}

impl Term<'_> {
    /// The rows and outputs that it has among others.
    fn overlap(&self, rows: &Range<usize>, outputs: &Range<usize>) -> Option<(Range<usize>, Range<usize>)> {
        let r = rows.start.max(self.rows.0)..rows.end.min(self.rows.1);
        let o = outputs.start.max(self.outputs.0)..outputs.end.min(self.outputs.1);
        (r.start < r.end && o.start < o.end).then_some((r, o))
    }

    /// [`LowRank::update`] for outputs that are not a whole panel of the slot, and for updates without B.
    #[cold]
    fn update_part(
        &self,
        kernels: &Kernels,
        values: &Rows<'_>,
        panel: usize,
        first: usize,
        sums: &mut [[f32; PANEL_ROWS]],
    ) {
        let column = panel * PANEL_ROWS;
        if let Some((rows, outputs)) = self.overlap(&(first..first + sums.len()), &(column..column + PANEL_ROWS)) {
            let n = rows.len();
            let sums = &mut sums[rows.start - first..rows.end - first];
            let lanes = outputs.start - column..outputs.end - column;
            // The slot's outputs of this panel, counted from its first.
            let own = outputs.start - self.outputs.0..outputs.end - self.outputs.0;
            let (t0, t1) = self.t;
            if let Some(b) = &self.b {
                for q in own.start / PANEL_ROWS..own.end.div_ceil(PANEL_ROWS) {
                    let x = ActRows::new(&values.span(rows.start, n)[t0 * 4..], values.stride());
                    let mut tile = Sums::<MAX_TOKENS>::ZEROS;
                    kernels.add_thin_panels(b.format, b.panels(q..q + 1), t1 - t0, x, n, &mut tile.0[..n]);
                    let part = own.start.max(q * PANEL_ROWS)..own.end.min((q + 1) * PANEL_ROWS);
                    for (sums, update) in sums.iter_mut().zip(tile.0.iter()) {
                        let to = lanes.start + (part.start - own.start);
                        let from = part.start - q * PANEL_ROWS;
                        for i in 0..part.len() {
                            sums[to + i] += update[from + i];
                        }
                    }
                }
            } else if t1 > t0 {
                let whole = self.indices.is_empty();
                let from = if whole { own.start } else { self.indices.partition_point(|i| (*i as usize) < own.start) };
                let to = if whole { own.end } else { self.indices.partition_point(|i| (*i as usize) < own.end) };
                for (i, sums) in sums.iter_mut().enumerate() {
                    let row = &values.row(rows.start + i)[t0..t1];
                    for (j, value) in (from..to).zip(&row[from..to]) {
                        let at = if whole { j } else { self.indices[j] as usize };
                        sums[lanes.start + at - own.start] += value;
                    }
                }
            }
            if let Some(gain) = self.gain {
                for sums in sums {
                    for (s, g) in sums[lanes.clone()].iter_mut().zip(&gain[own.clone()]) {
                        *s *= g;
                    }
                }
            }
        }
    }
}

/// The updates on a linear for the rows of one pass.
pub struct LowRank<'m> {
    /// The rows of the pass.
    pub rows: Range<usize>,
    terms: [Option<Term<'m>>; MAX_TERMS],
    count: usize,
    /// Some bias is not the base's.
    pub biased: bool,
}

/// The linear and its input.
#[derive(Clone, Copy)]
pub struct Site {
    /// First slot.
    pub slot: u32,
    /// Weight.
    pub weight: u32,
    /// Format of the weight: float, or the input is quantized.
    pub format: WeightFormat,
    /// Inputs.
    pub cols: usize,
    /// Input.
    pub input: Operand,
    /// Rows.
    pub kind: RowKind,
}

impl<'m> LowRank<'m> {
    /// Plans the pass that begins at row `first`, and computes its low-rank values.
    pub fn begin(cx: &mut Context<'_, 'm>, site: Site, first: usize, rows: usize) -> Self {
        let mut pass = Self { rows: first..first, terms: [None; MAX_TERMS], count: 0, biased: false };
        let file = cx.file;
        let slots = linear_slots(&file, site.slot, site.weight);
        while pass.rows.end < rows {
            let run = cx.patches.run(site.kind, pass.rows.end, rows);
            let patched = |slot: u32| run.acting().filter(move |a| a.adapter.patch(slot).is_some()).count();
            let terms: usize = slots.clone().map(patched).sum();
            if pass.count + terms > MAX_TERMS {
                break;
            }
            pass.rows.end = run.rows.end;
            if terms > 0 {
                let rows = run.rows.clone();
                pass.extend(&file, &run, slots.clone(), |p, panels, at, weight| {
                    project(cx, site, p, rows.clone(), panels, at, weight);
                });
            }
        }
        pass
    }

    /// The terms of one row of a step's `run` on some slots, whose low-rank values exist already.
    pub fn of_row(file: &File<'m>, run: &Run<'_, 'm>, slots: Range<u32>) -> Self {
        let row = run.rows.start;
        let mut pass = Self { rows: row..row + 1, terms: [None; MAX_TERMS], count: 0, biased: false };
        pass.extend(file, run, slots, |_, _, _, _| {});
        pass
    }

    /// Computes the low-rank values of one row of a step's `run` on some slots.
    pub fn project_row(cx: &mut Context<'_, 'm>, site: Site, run: &Run<'_, 'm>) {
        let (file, row) = (cx.file, run.rows.start);
        let mut pass = Self { rows: row..row + 1, terms: [None; MAX_TERMS], count: 0, biased: false };
        let slots = linear_slots(&file, site.slot, site.weight);
        pass.extend(&file, run, slots, |p, panels, at, weight| {
            project(cx, site, p, row..row + 1, panels, at, weight);
        });
    }

    /// Whether nothing acts.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds what acts on a run; `project` is called for every A, with the panels of it that these slots use, the first
    /// column of its values and the adapter's weight.
    fn extend(
        &mut self,
        file: &File<'m>,
        run: &Run<'_, 'm>,
        slots: Range<u32>,
        mut project: impl FnMut(&Patch<'m>, Range<usize>, usize, f32),
    ) {
        let mut t = 0;
        for active in run.acting() {
            let (mut shared, mut at) = (NONE, 0);
            for slot in slots.clone() {
                let Some(p) = active.adapter.patch(slot) else { continue };
                if p.record.a != NONE && p.record.a != shared {
                    (shared, at) = (p.record.a, t);
                    // Slots of one input may be in several tensors of the base: each takes its own part of the stack.
                    let sharing = (slot..slots.end).filter_map(|s| active.adapter.patch(s));
                    let used = sharing.filter(|s| s.record.a == shared).map(|s| ranks(&s));
                    let used = used.fold(ranks(&p), |all, r| all.start.min(r.start)..all.end.max(r.end));
                    let panels = used.start / PANEL_ROWS..used.end.div_ceil(PANEL_ROWS);
                    project(&p, panels, at, active.weight);
                    t += columns(&p);
                }
                let s = &file.slots[slot as usize];
                self.add(&p, &run.rows, (s.row_start as usize, (s.row_start + s.rows) as usize), at);
            }
        }
    }

    fn add(&mut self, p: &Patch<'m>, rows: &Range<usize>, outputs: (usize, usize), at: usize) {
        let (r, t) = (p.record, ranks(p));
        let bias = p.vector(r.bias);
        self.biased |= bias.is_some();
        self.terms[self.count] = Some(Term {
            rows: (rows.start, rows.end),
            outputs,
            t: (at + t.start, at + t.end),
            b: p.b(),
            indices: p.indices(),
            gain: p.vector(r.gain),
            bias,
        });
        self.count += 1;
    }

    /// Adds the updates to the sums of some panels, and applies gains. `sums` holds the rows from `first` on of the first
    /// panel, then those of the next; several panels come with one row. `values` are the low-rank values.
    pub fn update(
        &self,
        kernels: &Kernels,
        values: &Rows<'_>,
        panels: Range<usize>,
        first: usize,
        sums: &mut [[f32; PANEL_ROWS]],
    ) {
        let n = sums.len() / panels.len();
        debug_assert!(n == 1 || panels.len() == 1, "a part of some rows of some panels is no run");
        for term in self.terms[..self.count].iter().flatten() {
            let rows = first.max(term.rows.0)..(first + n).min(term.rows.1);
            let columns = panels.start * PANEL_ROWS..panels.end * PANEL_ROWS;
            if rows.is_empty() || term.outputs.0 >= columns.end || term.outputs.1 <= columns.start {
                continue;
            }
            // Whole panels of a slot that begins with one, as in every model whose heads are a multiple of 16 wide.
            let mut whole = panels.start..panels.start;
            if let (Some(b), true) = (&term.b, term.outputs.0.is_multiple_of(PANEL_ROWS)) {
                let slot = term.outputs.0 / PANEL_ROWS;
                whole.start = panels.start.max(slot);
                whole.end = panels.end.min(term.outputs.1 / PANEL_ROWS).max(whole.start);
                if !whole.is_empty() {
                    let from = (whole.start - panels.start) * n + rows.start - first;
                    let sums = &mut sums[from..from + whole.len() * rows.len()];
                    let (t0, t1) = term.t;
                    let x = ActRows::new(&values.span(rows.start, rows.len())[t0 * 4..], values.stride());
                    let b_panels = b.panels(whole.start - slot..whole.end - slot);
                    kernels.add_thin_panels(b.format, b_panels, t1 - t0, x, rows.len(), sums);
                    if let Some(gain) = term.gain {
                        let gain = gain[(whole.start - slot) * PANEL_ROWS..].chunks_exact(PANEL_ROWS);
                        for (sums, gain) in sums.chunks_exact_mut(rows.len()).zip(gain) {
                            for (s, g) in sums.iter_mut().flat_map(|s| s.iter_mut().zip(gain)) {
                                *s *= g;
                            }
                        }
                    }
                }
            }
            // The other panels in which it has outputs.
            let all =
                panels.start.max(term.outputs.0 / PANEL_ROWS)..panels.end.min(term.outputs.1.div_ceil(PANEL_ROWS));
            for panel in (all.start..whole.start).chain(whole.end.max(all.start)..all.end) {
                let from = (panel - panels.start) * n;
                term.update_part(kernels, values, panel, first, &mut sums[from..from + n]);
            }
        }
    }

    /// The bias of a panel for a row: the base's, with what adapters put in its place.
    pub fn bias(&self, base: Option<&[f32]>, panel: usize, row: usize) -> [f32; PANEL_ROWS] {
        let column = panel * PANEL_ROWS;
        let mut bias = [0.0; PANEL_ROWS];
        for (b, base) in bias.iter_mut().zip(base.unwrap_or(&[]).iter().skip(column)) {
            *b = *base;
        }
        for term in self.terms[..self.count].iter().flatten() {
            if let (Some(own), Some((_, outputs))) =
                (term.bias, term.overlap(&(row..row + 1), &(column..column + PANEL_ROWS)))
            {
                let from = outputs.start - term.outputs.0;
                bias[outputs.start - column..outputs.end - column].copy_from_slice(&own[from..from + outputs.len()]);
            }
        }
        bias
    }
}

/// The rows of a patch's A that it uses.
fn ranks(p: &Patch<'_>) -> Range<usize> {
    let first = p.record.a_row as usize;
    let count = match (p.record.a, p.b(), p.indices().len()) {
        (NONE, ..) => 0,
        (_, Some(b), _) => b.cols,
        (_, None, 0) => p.record.rows as usize,
        (_, None, n) => n,
    };
    first..first + count
}

/// Columns that the values of a patch's A take.
fn columns(p: &Patch<'_>) -> usize {
    (p.file.tensors[p.record.a as usize].rows as usize).next_multiple_of(PANEL_ROWS)
}

/// `t = weight · (A·x)` for some rows and panels of A, whose first panel's values begin in column `at`.
fn project(
    cx: &mut Context<'_, '_>,
    site: Site,
    p: &Patch<'_>,
    rows: Range<usize>,
    panels: Range<usize>,
    at: usize,
    weight: f32,
) {
    let Some(a) = p.file.tensor(p.record.a) else { return };
    let width = panels.len() * PANEL_ROWS;
    let (kernels, codebook) = (cx.kernels, &cx.file.header.codebook);
    let (out, x) = cx.arena.low_rank_mut((site.input, site.cols));
    let workers: &dyn Workers = if rows.len() * width * site.cols < ALONE { &Inline } else { cx.workers };
    let quantized = !site.format.is_float();
    out.columns(at + panels.start * PANEL_ROWS, width).tiles(workers, rows, MAX_TOKENS, PANEL_ROWS, &|mut tile| {
        let (first, n, panel) = (tile.first_row, tile.rows(), panels.start + tile.first_block);
        let mut sums = Sums::<MAX_TOKENS>::ZEROS;
        let sums = &mut sums.0[..n];
        let span = || ActRows::new(x.span(first, n), x.stride());
        match a {
            Tensor::Thin(a) if !quantized => {
                kernels.add_thin_panels(a.format, a.panels(panel..panel + 1), a.cols, span(), n, sums);
            }
            Tensor::Thin(a) => {
                for (i, sums) in sums.iter_mut().enumerate() {
                    let row = QuantRow::new(x.bytes(first + i), a.cols);
                    convert(a.cols, sums, |range, sums| {
                        let mut floats = [0.0_f32; CONVERT];
                        for (g, out) in floats[..range.len()].chunks_mut(GROUP).enumerate() {
                            let g = range.start / GROUP + g;
                            let scale = row.scale(g);
                            for (out, code) in out.iter_mut().zip(row.codes(g)) {
                                *out = f32::from(code) * scale;
                            }
                        }
                        let (n, x) = (range.len(), ActRows::floats(&floats, CONVERT));
                        kernels.add_thin_panels(a.format, a.panel(panel, range), n, x, 1, sums);
                    });
                }
            }
            Tensor::Panels { format, cols, data, .. } => {
                let bytes = format.panel_bytes(cols);
                let data = &data[panel * bytes..][..bytes];
                if quantized {
                    kernels.linear_panel(format, codebook, data, cols, span(), sums);
                } else {
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let row = x.row(first + i);
                        convert(cols, sums, |range, sums| {
                            let mut quant = [0_u8; quant_row_bytes(CONVERT)];
                            let quant = &mut quant[..quant_row_bytes(range.len())];
                            kernels.quantize_row(&row[range.clone()], quant);
                            // Blocks are whole, so a part of a panel is a panel.
                            let from = format.panel_bytes(range.start);
                            let part = &data[from..from + format.panel_bytes(range.len())];
                            let x = ActRows::new(quant, quant.len());
                            kernels.linear_panel(format, codebook, part, range.len(), x, sums);
                        });
                    }
                }
            }
            Tensor::Vector { .. } => {}
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            if weight != 1.0 {
                sums.iter_mut().for_each(|s| *s *= weight);
            }
            tile.row(i).copy_from_slice(sums);
        }
    });
}

/// Sums of blocks of inputs, in order.
fn convert(cols: usize, sums: &mut [f32; PANEL_ROWS], block: impl Fn(Range<usize>, &mut [[f32; PANEL_ROWS]])) {
    for start in (0..cols).step_by(CONVERT) {
        let mut part = [[0.0_f32; PANEL_ROWS]];
        block(start..cols.min(start + CONVERT), &mut part);
        for (s, p) in sums.iter_mut().zip(part[0]) {
            *s += p;
        }
    }
}
