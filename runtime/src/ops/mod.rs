//! Ops: operands → kernels. One file per op; no op knows an instruction set, no kernel knows an op.
//!
//! The program was verified ([`crate::program::verify`]), so an op may index its buffers, tensors and caches freely.

mod attention;
mod elementwise;
mod embed;
mod experts;
mod linear;
mod low_rank;
mod norm;
mod patches;
mod rotary;
mod select;

use crate::format::record::NONE;
use crate::format::view::{File, Tensor};
use crate::kernels::Kernels;
use crate::program::op::Op;
use crate::program::plan::SessionConfig;
use crate::session::Step;
use crate::session::arena::Arena;
use crate::session::workers::Workers;

pub use patches::Patches;

/// What an op runs in.
pub struct Context<'s, 'm> {
    /// The file.
    pub file: File<'m>,
    /// The arena.
    pub arena: &'s mut Arena<'m>,
    /// Kernel table.
    pub kernels: &'static Kernels,
    /// Threads.
    pub workers: &'s dyn Workers,
    /// The step.
    pub step: &'s Step<'s>,
    /// The session's plan.
    pub config: &'s SessionConfig,
    /// Positions of the encoder's last output.
    pub source_len: u32,
    /// Stands in for the panels of a linear's matrix.
    pub panels: Option<&'s [u8]>,
    /// The adapters of the step's rows.
    pub patches: Patches<'s, 'm>,
}

impl<'m> Context<'_, 'm> {
    /// A vector tensor of the verified program; `None` for [`NONE`].
    fn vector(&self, tensor: u32) -> Option<&'m [f32]> {
        if tensor == NONE {
            return None;
        }
        match self.file.tensor(tensor) {
            Some(Tensor::Vector { data, .. }) => Some(data),
            _ => None,
        }
    }
}

/// Runs one op of a verified program.
pub fn run(op: &Op, cx: &mut Context<'_, '_>) {
    match *op {
        Op::Embed { table, source, offset, scale, out, width, slot } => {
            embed::run(cx, (table, slot), source, offset, scale, (out, width as usize));
        }
        Op::Norm { kind, a, out, width, groups, eps, weight, bias } => {
            norm::run(cx, kind, a, out, (width as usize, groups as usize), eps, weight, bias);
        }
        Op::Quantize { a, out, width } => linear::quantize(cx, a, out, width as usize),
        Op::Linear { a, out, residual, weight, bias, act, scale, width: _, slot } => {
            linear::run(cx, a, out, residual, (weight, slot), bias, act, scale);
        }
        Op::Gated { gate, up, out, width, act } => elementwise::gated(cx, gate, up, out, width as usize, act),
        Op::Activation { a, out, width, act } => elementwise::activation(cx, a, out, width as usize, act),
        Op::Add { a, b, out, width, scale } => elementwise::add(cx, a, b, out, width as usize, scale),
        Op::Scale { a, out, width, factor, cap } => elementwise::scale(cx, a, out, width as usize, factor, cap),
        Op::RotaryTable { freqs, long_freqs, threshold, scale, out, half } => {
            rotary::table(cx, freqs, long_freqs, threshold, scale, out, half as usize);
        }
        Op::Rotary { x, table, heads, head_dim, half, interleaved } => {
            rotary::apply(cx, x, table, heads as usize, head_dim as usize, half as usize, interleaved);
        }
        Op::KvStore { k, v, cache } => attention::store(cx, k, v, cache),
        Op::Attention { .. } => attention::run(cx, op),
        Op::Select { a, out, width, rows } => select::select(cx, a, out, width as usize, rows),
        Op::Pool { a, out, width } => select::mean(cx, a, out, width as usize),
        Op::Route { a, out, width, chosen, normalize } => {
            experts::route(cx, a, out, width as usize, chosen as usize, normalize);
        }
        Op::ExpertLinear { .. } => experts::linear(cx, op),
    }
}
