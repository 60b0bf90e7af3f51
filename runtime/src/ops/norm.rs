//! Normalisation of whole rows or of every head of a row.

use super::Context;
use crate::format::record::Operand;
use crate::kernels::Kernels;
use crate::program::op::NormKind;

#[allow(clippy::too_many_arguments, reason = "the op's operands")]
pub fn run(
    cx: &mut Context<'_, '_>,
    kind: NormKind,
    a: Operand,
    out: Operand,
    (width, groups): (usize, usize),
    eps: f32,
    weight: u32,
    bias: u32,
) {
    let base = (cx.vector(weight), cx.vector(bias));
    let (kernels, patches, rows) = (cx.kernels, cx.patches, cx.arena.rows_of(out).0);
    // Adapters may bring weights of their own for a row.
    let of_row =
        |row: usize| (patches.vector(weight, rows, row).or(base.0), patches.vector(bias, rows, row).or(base.1));
    let one = |row: usize, x: Option<&[f32]>, out: &mut [f32]| {
        let (weight, bias) = of_row(row);
        match x {
            Some(x) => apply(kernels, kind, x, weight, bias, eps, out),
            None => apply_in_place(kernels, kind, out, weight, bias, eps),
        }
    };
    if a == out {
        cx.arena.out(out, width * groups).each_row(cx.workers, |i, row| {
            for run in row.chunks_exact_mut(width) {
                one(i, None, run);
            }
        });
    } else {
        let (out, [a]) = cx.arena.split((out, width * groups), [(a, width * groups)]);
        out.each_row(cx.workers, |i, row| {
            for (x, run) in a.row(i).chunks_exact(width).zip(row.chunks_exact_mut(width)) {
                one(i, Some(x), run);
            }
        });
    }
}

fn apply(
    kernels: &Kernels,
    kind: NormKind,
    x: &[f32],
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    eps: f32,
    out: &mut [f32],
) {
    match kind {
        NormKind::Rms => kernels.rms_norm(x, weight, eps, out),
        NormKind::Layer => kernels.layer_norm(x, weight, bias, eps, out),
    }
}

fn apply_in_place(
    kernels: &Kernels,
    kind: NormKind,
    x: &mut [f32],
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    eps: f32,
) {
    match kind {
        NormKind::Rms => kernels.rms_norm_in_place(x, weight, eps),
        NormKind::Layer => kernels.layer_norm_in_place(x, weight, bias, eps),
    }
}
