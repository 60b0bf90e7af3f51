//! Embedding lookup: rows of a panel tensor by token, token type or position.

use super::Context;
use crate::format::record::Operand;
use crate::format::view::Tensor;
use crate::kernels::dequant_row;
use crate::program::op::EmbedSource;
use crate::weights::PANEL_ROWS;

pub fn run(
    cx: &mut Context<'_, '_>,
    table: u32,
    source: EmbedSource,
    offset: u32,
    scale: f32,
    (out, width): (Operand, usize),
) {
    let Some(Tensor::Panels { format, cols, data, .. }) = cx.file.tensor(table) else { return };
    let (kernels, step, codebook) = (cx.kernels, cx.step, &cx.file.header.codebook);
    let panel_bytes = format.panel_bytes(cols);
    cx.arena.out(out, width).each_row(cx.workers, |row, out| {
        let index = match source {
            EmbedSource::Token => step.tokens[row] as usize,
            EmbedSource::TokenType => step.token_types.get(row).map_or(0, |t| *t as usize),
            EmbedSource::Position => (step.position(row) + offset) as usize,
        };
        let panel = &data[index / PANEL_ROWS * panel_bytes..][..panel_bytes];
        dequant_row(format, codebook, panel, index % PANEL_ROWS, out);
        if scale != 1.0 {
            kernels.scale_in_place(out, scale);
        }
    });
}
