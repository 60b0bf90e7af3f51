//! Float weights times float activations.
//!
//! Inputs run in groups of 32: a row's products are added up in order within the group, from zero, and the group's
//! sum is added to the row's. The groups' sums do not depend on each other, which hides the latency of the additions.

use crate::kernels::isa::Isa;
use crate::kernels::linear::LinearArgs;
use crate::weights::{GROUP, PANEL_ROWS};

/// How float weights are stored.
pub(crate) trait Stored {
    /// Bytes of a weight.
    const BYTES: usize;
    /// `L` weights as f32.
    ///
    /// # Safety
    /// `at` is valid for reading `L` weights.
    unsafe fn load<I: Isa>(isa: I, at: *const u8) -> I::F;
}

/// binary32.
pub(crate) struct Single;
impl Stored for Single {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, at: *const u8) -> I::F {
        // SAFETY: passed on.
        unsafe { isa.load(at.cast()) }
    }
}

/// binary16.
pub(crate) struct Half;
impl Stored for Half {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, at: *const u8) -> I::F {
        // SAFETY: passed on.
        unsafe { isa.load_f16(at.cast()) }
    }
}

/// Tokens whose sums are held in registers together.
const TILE: usize = 4;

/// The body of the float linear entries.
///
/// # Safety
/// As [`LinearArgs`] says; the panel is of `W`'s format.
#[inline(always)]
pub(crate) unsafe fn panel<I: Isa, W: Stored>(isa: I, a: LinearArgs) {
    // SAFETY: tiles lie within the tokens, strips within the panel's rows.
    unsafe {
        let mut t = 0;
        while t + TILE <= a.tokens {
            strips::<I, W, TILE>(isa, a, t);
            t += TILE;
        }
        while t < a.tokens {
            strips::<I, W, 1>(isa, a, t);
            t += 1;
        }
    }
}

/// All rows for the tokens `t..t + T`, in passes over two registers of rows (over one where the panel has only one).
///
/// # Safety
/// As [`panel`]; the tokens exist.
#[inline(always)]
unsafe fn strips<I: Isa, W: Stored, const T: usize>(isa: I, a: LinearArgs, t: usize) {
    let mut row = 0;
    while row < PANEL_ROWS {
        // SAFETY: passed on.
        unsafe {
            if I::L == PANEL_ROWS {
                tile::<I, W, 1, T>(isa, a, t, row);
            } else {
                tile::<I, W, 2, T>(isa, a, t, row);
            }
        }
        row += if I::L == PANEL_ROWS { I::L } else { 2 * I::L };
    }
}

/// # Safety
/// As [`panel`]; rows `row..row + R·L` and tokens `t..t + T` exist.
#[inline(always)]
unsafe fn tile<I: Isa, W: Stored, const R: usize, const T: usize>(isa: I, a: LinearArgs, t: usize, row: usize) {
    let mut acc = [[isa.splat(0.0); R]; T];
    let mut k = 0;
    while k < a.k {
        let end = if a.k - k < GROUP { a.k } else { k + GROUP };
        let mut group = [[isa.splat(0.0); R]; T];
        while k < end {
            let mut w = [isa.splat(0.0); R];
            let mut r = 0;
            while r < R {
                // SAFETY: k is below the panel's inputs and the rows are below 16.
                w[r] = unsafe { W::load(isa, a.panel.add((k * PANEL_ROWS + row + r * I::L) * W::BYTES)) };
                r += 1;
            }
            let mut i = 0;
            while i < T {
                // SAFETY: row t + i of the activations has k inputs.
                let x = isa.splat(unsafe { a.x.add((t + i) * a.stride).cast::<f32>().add(k).read_unaligned() });
                let mut r = 0;
                while r < R {
                    group[i][r] = isa.add(group[i][r], isa.mul(w[r], x));
                    r += 1;
                }
                i += 1;
            }
            k += 1;
        }
        let mut i = 0;
        while i < T {
            let mut r = 0;
            while r < R {
                acc[i][r] = isa.add(acc[i][r], group[i][r]);
                r += 1;
            }
            i += 1;
        }
    }
    let mut i = 0;
    while i < T {
        let mut r = 0;
        while r < R {
            // SAFETY: the output has the token and the row.
            unsafe { isa.store(a.out.add(t + i).cast::<f32>().add(row + r * I::L), acc[i][r]) };
            r += 1;
        }
        i += 1;
    }
}
