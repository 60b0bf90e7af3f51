//! Activations, gated activations, additions, factors.

use super::Context;
use crate::format::record::Operand;
use crate::kernels::Act;

pub fn gated(cx: &mut Context<'_, '_>, gate: Operand, up: Operand, out: Operand, width: usize, act: Act) {
    let kernels = cx.kernels;
    let (out, [gate, up]) = cx.arena.split((out, width), [(gate, width), (up, width)]);
    out.each_row(cx.workers, |i, row| kernels.gated(act, gate.row(i), up.row(i), row));
}

pub fn activation(cx: &mut Context<'_, '_>, a: Operand, out: Operand, width: usize, act: Act) {
    let kernels = cx.kernels;
    if a == out {
        cx.arena.out(out, width).each_row(cx.workers, |_, row| kernels.activation_in_place(act, row));
    } else {
        let (out, [a]) = cx.arena.split((out, width), [(a, width)]);
        out.each_row(cx.workers, |i, row| kernels.activation(act, a.row(i), row));
    }
}

pub fn add(cx: &mut Context<'_, '_>, a: Operand, b: Operand, out: Operand, width: usize, scale: f32) {
    let kernels = cx.kernels;
    if a == out {
        let (out, [b]) = cx.arena.split((out, width), [(b, width)]);
        out.each_row(cx.workers, |i, row| kernels.add_scaled_assign(row, b.row(i), scale));
    } else {
        let (out, [a, b]) = cx.arena.split((out, width), [(a, width), (b, width)]);
        out.each_row(cx.workers, |i, row| kernels.add_scaled(a.row(i), b.row(i), scale, row));
    }
}

pub fn scale(cx: &mut Context<'_, '_>, a: Operand, out: Operand, width: usize, factor: f32, cap: f32) {
    let kernels = cx.kernels;
    let finish = |row: &mut [f32]| {
        if factor != 1.0 {
            kernels.scale_in_place(row, factor);
        }
        if cap != 0.0 {
            kernels.softcap_in_place(row, cap);
        }
    };
    if a == out {
        cx.arena.out(out, width).each_row(cx.workers, |_, row| finish(row));
    } else {
        let (out, [a]) = cx.arena.split((out, width), [(a, width)]);
        out.each_row(cx.workers, |i, row| {
            row.copy_from_slice(a.row(i));
            finish(row);
        });
    }
}
