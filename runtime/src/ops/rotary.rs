//! Rotary position embedding: the table of a step, and its application.

use super::Context;
use crate::format::record::Operand;
use crate::kernels::{RotaryStyle, rotary_angles};

pub fn table(
    cx: &mut Context<'_, '_>,
    freqs: u32,
    long_freqs: u32,
    threshold: u32,
    scale: f32,
    out: Operand,
    half: usize,
) {
    let long = if cx.config.context > threshold { cx.vector(long_freqs) } else { None };
    let Some(freqs) = long.or_else(|| cx.vector(freqs)) else { return };
    let step = cx.step;
    cx.arena.out(out, 2 * half).each_row(cx.workers, |row, out| {
        let (cos, sin) = out.split_at_mut(half);
        rotary_angles(step.position(row), freqs, scale, cos, sin);
    });
}

pub fn apply(
    cx: &mut Context<'_, '_>,
    x: Operand,
    table: Operand,
    heads: usize,
    head_dim: usize,
    half: usize,
    interleaved: bool,
) {
    let kernels = cx.kernels;
    let style = if interleaved { RotaryStyle::Interleaved } else { RotaryStyle::Half };
    let (x, [table]) = cx.arena.split((x, heads * head_dim), [(table, 2 * half)]);
    x.each_row(cx.workers, |i, row| {
        let (cos, sin) = table.row(i).split_at(half);
        kernels.rotary(style, row, head_dim, cos, sin);
    });
}
