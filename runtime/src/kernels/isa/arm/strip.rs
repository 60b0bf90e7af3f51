//! Strips of four rows as the tiles of many tokens read them: codes unpacked and in order, beside their scales.
//!
//! ```text
//! 192 bytes a group     8 × 16 codes · vectors of floats
//!     sdot              multipliers · addends
//!     smmla             multipliers of rows 0, 0, 1, 1 and 2, 2, 3, 3 · addends of the same rows
//! ```
//! Addends are those of [`Dot::times`](super::Dot::times), which reads them where multipliers are integers, or minima. There is
//! room for a run of groups of a panel, which all tokens of a call share: unpacking costs as much as the products of three
//! tokens or four.

use core::arch::aarch64::*;
use core::mem::MaybeUninit;

/// Groups of a run.
pub const RUN: usize = 8;
/// Strips of a panel.
const STRIPS: usize = 4;
/// Bytes of a group of a strip.
pub const BYTES: usize = 192;
/// Where multipliers of [`rows`] are.
pub const MULTIPLIERS: usize = 128;
/// Where addends of [`rows`] are.
pub const ADDENDS: usize = 144;

/// Room for the strips of a run, and for a group that is read ahead.
#[repr(C, align(64))]
pub struct Strips([MaybeUninit<u8>; (STRIPS * RUN + 1) * BYTES]);

impl Strips {
    /// Room with nothing in it.
    #[inline(always)]
    pub fn empty() -> Self {
        Self([const { MaybeUninit::uninit() }; (STRIPS * RUN + 1) * BYTES])
    }
    /// Group `g < RUN` of the run of strip `s < 4`, aligned for vectors.
    #[inline(always)]
    pub fn group(&mut self, s: usize, g: usize) -> *mut u8 {
        debug_assert!(s < STRIPS && g < RUN, "no room for the group");
        self.0.as_mut_ptr().cast::<u8>().wrapping_add((s * RUN + g) * BYTES)
    }
}

/// Writes codes, multipliers and addends (or minima) of the four rows.
///
/// # Safety
/// `to` is valid for writing [`BYTES`] and aligned for vectors.
#[inline(always)]
pub unsafe fn rows(to: *mut u8, codes: [int8x16_t; 8], m: float32x4_t, addend: float32x4_t) {
    // SAFETY: as the caller vouches.
    unsafe {
        write_codes(to, codes);
        vst1q_f32_x2(to.add(MULTIPLIERS).cast(), float32x4x2_t(m, addend));
    }
}

/// Writes codes, four registers by an instruction.
///
/// # Safety
/// As [`rows`].
#[inline(always)]
unsafe fn write_codes(to: *mut u8, [a, b, c, d, e, f, g, h]: [int8x16_t; 8]) {
    // SAFETY: as the caller vouches.
    unsafe {
        vst1q_s8_x4(to.cast(), int8x16x4_t(a, b, c, d));
        vst1q_s8_x4(to.add(64).cast(), int8x16x4_t(e, f, g, h));
    }
}

/// What [`rows`] wrote.
///
/// # Safety
/// It wrote there.
#[inline(always)]
pub unsafe fn read(from: *const u8) -> ([int8x16_t; 8], float32x4_t, float32x4_t) {
    // SAFETY: as the caller vouches.
    unsafe {
        (
            from.cast::<[int8x16_t; 8]>().read(),
            from.add(MULTIPLIERS).cast::<float32x4_t>().read(),
            from.add(ADDENDS).cast::<float32x4_t>().read(),
        )
    }
}

/// Writes codes, multipliers and addends for `smmla`.
///
/// # Safety
/// As [`rows`].
#[inline(always)]
pub unsafe fn pairs(to: *mut u8, codes: [int8x16_t; 8], m: float32x4_t, addend: float32x4_t) {
    op!({
        let (m, n) = (
            float32x4x2_t(vzip1q_f32(m, m), vzip2q_f32(m, m)),
            float32x4x2_t(vzip1q_f32(addend, addend), vzip2q_f32(addend, addend)),
        );
        write_codes(to, codes);
        vst1q_f32_x4(to.add(128).cast(), float32x4x4_t(m.0, m.1, n.0, n.1));
    });
}
