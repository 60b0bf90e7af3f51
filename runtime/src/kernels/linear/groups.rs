//! The walk over the groups of a panel.
//!
//! Panels lie one after the other and are read once, front to back. The lines that come [`Isa::AHEAD`] are asked for: the hardware's
//! own prefetcher stops at every page, and with it alone a core gets two thirds of the memory's bandwidth. Those that come
//! [`FAR`] are asked for as well, where the level can say that the second-level cache will do.

use crate::kernels::isa::Isa;
use crate::kernels::linear::LinearArgs;
use crate::kernels::linear::codes::Codes;
use crate::weights::{BLOCK, GROUP, LINE, PANEL_ROWS};

/// How far before its use a line should be in the second-level cache, in bytes. Measured on a Xeon of 2023: flat from 14 to 50 KiB;
/// decoding gains 7 % alone on the machine and up to 30 % while others load its caches.
pub(super) const FAR: usize = 24 << 10;

/// A group of a panel.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) g: usize,
    pub(super) codes: *const u8,
    pub(super) multipliers: *const u8,
}

/// Calls `f` with every group of a panel, in order.
#[inline(always)]
pub(super) fn each_group<I: Isa, C: Codes>(isa: I, a: LinearArgs, f: impl FnMut(Place)) {
    groups_of::<I, C>(isa, a, 0, a.k.div_ceil(GROUP), f);
}

/// Calls `f` with the groups `first..last` of a panel, in order; `first` is a multiple of [`BLOCK`], and so is `last`, or it is
/// the end.
#[inline(always)]
pub(super) fn groups_of<I: Isa, C: Codes>(isa: I, a: LinearArgs, first: usize, last: usize, mut f: impl FnMut(Place)) {
    let mut at = a.panel.wrapping_add(first / BLOCK * C::FORMAT.block_bytes());
    let mut g = first;
    while g < last {
        let end = if last - g < BLOCK { last } else { g + BLOCK };
        let mut multipliers = at;
        at = at.wrapping_add(C::FORMAT.multiplier_area(end - g));
        while g < end {
            let mut line = 0;
            while line < C::FORMAT.group_bytes() {
                isa.prefetch(at.wrapping_add(I::AHEAD + line));
                isa.prefetch_far(at.wrapping_add(FAR + line));
                line += LINE;
            }
            if C::FORMAT.multiplier_bytes() > 0 {
                isa.prefetch(multipliers.wrapping_add(I::AHEAD));
                isa.prefetch_far(multipliers.wrapping_add(FAR));
            }
            f(Place { g, codes: at, multipliers });
            at = at.wrapping_add(C::FORMAT.group_bytes());
            multipliers = multipliers.wrapping_add(PANEL_ROWS * C::FORMAT.multiplier_bytes());
            g += 1;
        }
    }
}
