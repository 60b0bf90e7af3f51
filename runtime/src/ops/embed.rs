//! Embedding lookup: rows of a panel tensor by token, token type or position.

use super::Context;
use crate::adapter::Patch;
use crate::format::record::{NONE, Operand, RowKind};
use crate::format::view::{Tensor, Thin};
use crate::kernels::{ActRows, Kernels, dequant_row};
use crate::program::op::EmbedSource;
use crate::weights::PANEL_ROWS;

pub fn run(
    cx: &mut Context<'_, '_>,
    (table, slot): (u32, u32),
    source: EmbedSource,
    offset: u32,
    scale: f32,
    (out, width): (Operand, usize),
) {
    let Some(Tensor::Panels { format, cols, data, .. }) = cx.file.tensor(table) else { return };
    let patches = cx.patches;
    let patched = patches.active() && slot != NONE;
    let (kernels, step, codebook) = (cx.kernels, cx.step, &cx.file.header.codebook);
    let panel_bytes = format.panel_bytes(cols);
    cx.arena.out(out, width).each_row(cx.workers, |row, out| {
        let index = match source {
            EmbedSource::Token => step.tokens[row] as usize,
            EmbedSource::TokenType => step.token_types.get(row).map_or(0, |t| *t as usize),
            EmbedSource::Position => (step.position(row) + offset) as usize,
        };
        // A row beyond the base's table is in an adapter's.
        if let Some(panel) = data.get(index / PANEL_ROWS * panel_bytes..).and_then(|d| d.get(..panel_bytes)) {
            dequant_row(format, codebook, panel, index % PANEL_ROWS, out);
        }
        if patched {
            for (patch, weight) in patches.of_row(slot, RowKind::Token, row) {
                apply(kernels, &patch, weight, index, out);
            }
        }
        if scale != 1.0 {
            kernels.scale_in_place(out, scale);
        }
    });
}

/// What an adapter makes of row `index`.
fn apply(kernels: &Kernels, patch: &Patch<'_>, weight: f32, index: usize, out: &mut [f32]) {
    let record = patch.record;
    if let Some(Tensor::Panels { format, cols, data, .. }) = patch.file.tensor(record.values) {
        let row = match patch.indices() {
            [] => Some(index),
            indices => indices.binary_search(&(index as u32)).ok(),
        };
        if let Some(row) = row {
            let bytes = format.panel_bytes(cols);
            let panel = &data[row / PANEL_ROWS * bytes..][..bytes];
            dequant_row(format, &patch.file.header.codebook, panel, row % PANEL_ROWS, out);
        }
    }
    if let (Some(a), Some(b)) = (patch.thin(record.a), patch.b()) {
        low_rank(kernels, &a, &b, weight, index, out);
    }
    if let Some(gain) = patch.vector(record.gain) {
        for (out, g) in out.iter_mut().zip(gain) {
            *out *= g;
        }
    }
}

/// `out += weight · B·A[index]`, ranks in blocks of 64 in order.
fn low_rank(kernels: &Kernels, a: &Thin<'_>, b: &Thin<'_>, weight: f32, index: usize, out: &mut [f32]) {
    const RANKS: usize = 64;
    for start in (0..a.cols).step_by(RANKS) {
        let ranks = start..a.cols.min(start + RANKS);
        let mut t = [0.0_f32; RANKS];
        for (t, rank) in t.iter_mut().zip(ranks.clone()) {
            *t = weight * a.value(index, rank);
        }
        for (panel, out) in out.chunks_mut(PANEL_ROWS).enumerate() {
            let mut sums = [[0.0_f32; PANEL_ROWS]];
            let x = ActRows::floats(&t, RANKS);
            kernels.add_thin_panels(b.format, b.panel(panel, ranks.clone()), ranks.len(), x, 1, &mut sums);
            for (out, s) in out.iter_mut().zip(sums[0]) {
                *out += s;
            }
        }
    }
}
