//! From token rows to output rows: selection and mean pooling.

use super::Context;
use crate::format::record::Operand;
use crate::program::op::SelectRows;

pub fn select(cx: &mut Context<'_, '_>, a: Operand, out: Operand, width: usize, rows: SelectRows) {
    let step = cx.step;
    let (out, [a]) = cx.arena.split((out, width), [(a, width)]);
    out.each_row(cx.workers, |i, row| {
        let from = match rows {
            SelectRows::Requested => step.outputs[i] as usize,
            SelectRows::First => 0,
            SelectRows::Last => step.tokens.len() - 1,
        };
        row.copy_from_slice(a.row(from));
    });
}

pub fn mean(cx: &mut Context<'_, '_>, a: Operand, out: Operand, width: usize) {
    let kernels = cx.kernels;
    let n = cx.step.tokens.len();
    let (out, [a]) = cx.arena.split((out, width), [(a, width)]);
    out.each_row(cx.workers, |_, row| {
        row.copy_from_slice(a.row(0));
        for i in 1..n {
            kernels.add_assign(row, a.row(i));
        }
        kernels.scale_in_place(row, 1.0 / n as f32);
    });
}
