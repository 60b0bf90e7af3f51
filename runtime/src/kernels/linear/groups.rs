//! The walk over the groups of a panel.

use crate::kernels::linear::LinearArgs;
use crate::kernels::linear::codes::Codes;
use crate::weights::{BLOCK, GROUP, PANEL_ROWS};

/// A group of a panel.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) g: usize,
    pub(super) codes: *const u8,
    pub(super) multipliers: *const u8,
}

/// Calls `f` with every group of a panel, in order.
#[inline(always)]
pub(super) fn each_group<C: Codes>(a: LinearArgs, mut f: impl FnMut(Place)) {
    let groups = a.k.div_ceil(GROUP);
    let mut at = a.panel;
    let mut g = 0;
    while g < groups {
        let end = if groups - g < BLOCK { groups } else { g + BLOCK };
        let mut multipliers = at;
        at = at.wrapping_add(C::FORMAT.multiplier_area(end - g));
        while g < end {
            f(Place { g, codes: at, multipliers });
            at = at.wrapping_add(C::FORMAT.group_bytes());
            multipliers = multipliers.wrapping_add(PANEL_ROWS * C::FORMAT.multiplier_bytes());
            g += 1;
        }
    }
}
