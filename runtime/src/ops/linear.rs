//! Linear layers: activation quantization, panels spread over threads, epilogue.
//!
//! Work is cut by panels of 16 outputs, so a thread owns whole columns and every weight byte is read by one thread. In
//! prefill a thread runs a block of tokens through a few panels before the next block, so that the panels stay in
//! its first-level cache and the block's activations in its second.

use super::Context;
use super::low_rank::{LowRank, Site};
use crate::format::record::{NONE, Operand};
use crate::format::view::Tensor;
use crate::kernels::Act;
use crate::kernels::Kernels;
use crate::kernels::{ActRows, MAX_SHARING_PANELS, MAX_TOKENS, Sums, Wide, widest};
use crate::session::arena::{ColsMut, Rows};
use crate::session::workers::{Cuts, Workers};
use crate::weights::{PANEL_ROWS, WeightFormat};

/// Tokens whose activations should stay in the second-level cache while panels go by.
pub(super) const TOKEN_BLOCK: usize = 64;
/// Panels of one row that are computed before they are written.
const PANELS_AT_ONCE: usize = 16;
/// Bytes of weights times tokens that a task has at least: some microseconds, of which taking one costs a tenth.
const TASK_WORK: usize = 64 << 10;

/// Tasks of a thread in a long prompt.
const BLOCK_TASKS: usize = 16;

/// How a product of so many panels and rows is dealt out.
pub(super) fn cuts(panels: usize, panel_bytes: usize, rows: usize, workers: &dyn Workers) -> Cuts {
    let threads = workers.count();
    if threads == 1 {
        return Cuts::ALONE;
    }
    let work = (panels * panel_bytes).saturating_mul(rows);
    Cuts::new(threads, panels.min(work / TASK_WORK))
}

pub fn quantize(cx: &mut Context<'_, '_>, a: Operand, out: Operand, width: usize) {
    let kernels = cx.kernels;
    let (out, [a]) = cx.arena.split((out, width), [(a, width)]);
    out.each_bytes(cx.workers, &|i, row| kernels.quantize_row(a.row(i), row));
}

struct Job<'s, 'm> {
    kernels: &'static Kernels,
    codebook: &'m [u8; 16],
    format: WeightFormat,
    cols: usize,
    data: &'s [u8],
    x: Rows<'s>,
    bias: Option<&'m [f32]>,
    act: Act,
    scale: f32,
    /// What adapters add, and their low-rank values.
    update: Option<(&'s LowRank<'m>, Rows<'s>)>,
    /// `None`: no residual; `Some(None)`: the output itself; `Some(Some(rows))`: another buffer.
    residual: Option<Option<Rows<'s>>>,
}

#[allow(clippy::too_many_arguments, reason = "the op's operands")]
pub fn run(
    cx: &mut Context<'_, '_>,
    a: Operand,
    out: Operand,
    residual: Operand,
    (weight, slot): (u32, u32),
    bias: u32,
    act: Act,
    scale: f32,
) {
    let Some(Tensor::Panels { format, rows, cols, data }) = cx.file.tensor(weight) else { return };
    let data = cx.panels.unwrap_or(data);
    let bias = cx.vector(bias);
    let codebook = &cx.file.header.codebook;
    let kernels = cx.kernels;
    let panels = rows.div_ceil(PANEL_ROWS);
    let (kind, n) = cx.arena.rows_of(out);
    let mut next = 0;
    // One pass over the weight, but for steps with more adapters than one pass can hold.
    while next < n {
        let update = (slot != NONE && cx.patches.active())
            .then(|| LowRank::begin(cx, Site { slot, weight, format, cols, input: a, kind }, next, n));
        let pass = update.as_ref().map_or(0..n, |u| u.rows.clone());
        next = pass.end;
        // Several rows go through as many panels at a time as share something.
        let unit = if pass.len() == 1 { 1 } else { kernels.sharing_panels() };
        let units = panels.div_ceil(unit);
        let (threads, blocks) = (cx.workers.count(), pass.len().div_ceil(TOKEN_BLOCK));
        // A long prompt by blocks of tokens, so that a thread goes on with the rows that it has computed; the rest by panels.
        let (run, cuts) = if cfg!(feature = "std") && threads > 1 && blocks >= threads {
            (TOKEN_BLOCK, Cuts::even((BLOCK_TASKS * threads / blocks).clamp(1, units)))
        } else {
            (pass.len(), cuts(units, unit * format.panel_bytes(cols), pass.len(), cx.workers))
        };
        let (y, [x, r], values) = match residual {
            r if r.is_none() || r == out => {
                let (y, [x], values) = cx.arena.split_low_rank((out, rows), [(a, cols)]);
                (y, [x, x], values)
            }
            r => cx.arena.split_low_rank((out, rows), [(a, cols), (r, rows)]),
        };
        let residual = (!residual.is_none()).then(|| (residual != out).then_some(r));
        let update = update.as_ref().map(|u| (u, values));
        let job = Job { kernels, codebook, format, cols, data, x, bias, act, scale, update, residual };
        y.each_block(cx.workers, (pass, run), unit * PANEL_ROWS, cuts, &|cols| job.task(cols));
    }
}

impl Job<'_, '_> {
    /// Computes one range of panels for some rows.
    fn task(&self, out: ColsMut<'_>) {
        if out.rows.len() == 1 { self.one_row(out) } else { self.several_rows(out) }
    }

    /// One row: as many panels at a time as fit the tile.
    fn one_row(&self, mut out: ColsMut<'_>) {
        let panel_bytes = self.format.panel_bytes(self.cols);
        let row = out.rows.start;
        let x = ActRows::new(self.x.bytes(row), self.x.stride());
        let mut tile = Sums::<PANELS_AT_ONCE>::ZEROS;
        let mut index = out.first / PANEL_ROWS;
        for out in out.row(row).chunks_mut(PANELS_AT_ONCE * PANEL_ROWS) {
            let tile = &mut tile.0[..out.len().div_ceil(PANEL_ROWS)];
            let data = &self.data[index * panel_bytes..][..tile.len() * panel_bytes];
            self.kernels.linear_panels(self.format, self.codebook, data, self.cols, x, 1, tile);
            if let Some((update, values)) = &self.update {
                update.update(self.kernels, values, index..index + tile.len(), row, tile);
            }
            for (p, sums) in (index..).zip(tile.iter_mut()) {
                self.add_bias(sums, p, row);
            }
            self.activate(tile);
            for (sums, out) in tile.iter().zip(out.chunks_mut(PANEL_ROWS)) {
                self.write(sums, index, row, out);
                index += 1;
            }
        }
    }

    /// Several rows: as many panels at a time as the level's kernels share something over.
    fn several_rows(&self, mut out: ColsMut<'_>) {
        let panel_bytes = self.format.panel_bytes(self.cols);
        let panels = out.width().div_ceil(PANEL_ROWS);
        let rows = out.rows.clone();
        let mut tile = Sums::<{ MAX_TOKENS * MAX_SHARING_PANELS }>::ZEROS;
        for block in rows.clone().step_by(TOKEN_BLOCK) {
            for p in (0..panels).step_by(self.kernels.sharing_panels()) {
                let index = out.first / PANEL_ROWS + p;
                let count = self.kernels.sharing_panels().min(panels - p);
                let data = &self.data[index * panel_bytes..][..count * panel_bytes];
                for first in (block..rows.end.min(block + TOKEN_BLOCK)).step_by(self.kernels.tokens_at_once()) {
                    let t = self.kernels.tokens_at_once().min(rows.end - first).min(block + TOKEN_BLOCK - first);
                    let x = ActRows::new(self.x.span(first, t), self.x.stride());
                    let tile = &mut tile.0[..count * t];
                    self.kernels.linear_panels(self.format, self.codebook, data, self.cols, x, t, tile);
                    if let Some((update, values)) = &self.update {
                        for (index, sums) in (index..).zip(tile.chunks_exact_mut(t)) {
                            update.update(self.kernels, values, index..index + 1, first, sums);
                        }
                    }
                    self.finish(tile, t, (index, first), &mut out, p * PANEL_ROWS);
                }
            }
        }
    }

    /// From the sums of `t` rows, from `first` on, of each of some panels, from `index` on, to their outputs, which are from
    /// `column` on. Row by row: the outputs of a row lie side by side, those of a panel a row apart.
    #[inline(always)]
    fn finish(
        &self,
        tile: &mut [[f32; PANEL_ROWS]],
        t: usize,
        (index, first): (usize, usize),
        out: &mut ColsMut<'_>,
        column: usize,
    ) {
        let mut bias = self.bias;
        if self.act != Act::None || self.update.is_some() {
            for (panel, sums) in (index..).zip(tile.chunks_exact_mut(t)) {
                for (i, sums) in (first..).zip(sums) {
                    self.add_bias(sums, panel, i);
                }
            }
            self.activate(tile);
            bias = None;
        }
        widest(Finish { job: self, tile, t, index, first, bias, out, column });
    }

    /// The bias of a panel's outputs of a row.
    #[inline(always)]
    fn add_bias(&self, y: &mut [f32; PANEL_ROWS], panel: usize, row: usize) {
        if let Some((update, _)) = self.update.filter(|(update, _)| update.biased) {
            each(y, &update.bias(self.bias, panel, row), |y, b| y + b);
        } else if let Some(bias) = self.bias {
            each(y, &sixteen(&bias[panel * PANEL_ROWS..]), |y, b| y + b);
        }
    }

    /// The activation, of a whole tile at once: a call for every 16 outputs would take longer than what it computes.
    #[inline(always)]
    fn activate(&self, tile: &mut [[f32; PANEL_ROWS]]) {
        if self.act != Act::None {
            self.kernels.activation_in_place(self.act, tile.as_flattened_mut());
        }
    }

    /// Factor and residual of a panel's outputs of a row.
    #[inline(always)]
    fn write(&self, y: &[f32; PANEL_ROWS], panel: usize, row: usize, out: &mut [f32]) {
        let mut y = *y;
        if self.scale != 1.0 {
            y = y.map(|y| y * self.scale);
        }
        self.put(&y, panel, row, out);
    }

    /// Residual of a panel's outputs of a row; the last panel may have fewer than 16.
    #[inline(always)]
    fn put(&self, y: &[f32; PANEL_ROWS], panel: usize, row: usize, out: &mut [f32]) {
        let Some(whole) = out.first_chunk_mut::<PANEL_ROWS>() else {
            let rows =
                self.residual.as_ref().map(|rows| rows.as_ref().map(|rows| &rows.row(row)[panel * PANEL_ROWS..]));
            return put_few(y, rows, out);
        };
        match &self.residual {
            None => *whole = *y,
            // In arrays of their own: registers, for the compiler.
            Some(rows) => {
                let mut r = match rows {
                    None => *whole,
                    Some(rows) => sixteen(&rows.row(row)[panel * PANEL_ROWS..]),
                };
                each(&mut r, y, |r, y| r + y);
                *whole = r;
            }
        }
    }
}

/// The last part of [`Job::finish`], in the widest vectors that there are.
struct Finish<'f, 'j, 's, 'm, 'o> {
    job: &'j Job<'s, 'm>,
    tile: &'f mut [[f32; PANEL_ROWS]],
    t: usize,
    index: usize,
    first: usize,
    bias: Option<&'m [f32]>,
    out: &'f mut ColsMut<'o>,
    column: usize,
}

impl Wide for Finish<'_, '_, '_, '_, '_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self { job, tile, t, index, first, bias, out, column } = self;
        if let Some(bias) = bias {
            for (panel, sums) in (index..).zip(tile.chunks_exact_mut(t)) {
                let bias = sixteen(&bias[panel * PANEL_ROWS..]);
                for y in sums {
                    each(y, &bias, |y, b| y + b);
                }
            }
        }
        if job.scale != 1.0 {
            for y in tile.as_flattened_mut() {
                *y *= job.scale;
            }
        }
        let panels = tile.len() / t;
        for i in 0..t {
            let mut rest = &mut out.row(first + i)[column..];
            for p in 0..panels {
                let (out, behind) = rest.split_at_mut(rest.len().min(PANEL_ROWS));
                job.put(&tile[p * t + i], index + p, first + i, out);
                rest = behind;
            }
        }
    }
}

/// [`Job::put`] where there is no room for 16. On its own: the compiler would make one call of both ways to write outputs.
#[cold]
#[inline(never)]
fn put_few(y: &[f32; PANEL_ROWS], residual: Option<Option<&[f32]>>, out: &mut [f32]) {
    for (i, (out, y)) in out.iter_mut().zip(y).enumerate() {
        *out = match residual {
            None => *y,
            Some(None) => *out + y,
            Some(Some(rows)) => rows[i] + y,
        };
    }
}

/// The first 16 of `values`, zeros behind their end.
#[inline(always)]
fn sixteen(values: &[f32]) -> [f32; PANEL_ROWS] {
    match values.first_chunk() {
        Some(whole) => *whole,
        None => {
            let mut padded = [0.0; PANEL_ROWS];
            padded[..values.len()].copy_from_slice(values);
            padded
        }
    }
}

#[inline(always)]
fn each(y: &mut [f32; PANEL_ROWS], other: &[f32; PANEL_ROWS], f: impl Fn(f32, f32) -> f32) {
    for (y, other) in y.iter_mut().zip(other) {
        *y = f(*y, *other);
    }
}
