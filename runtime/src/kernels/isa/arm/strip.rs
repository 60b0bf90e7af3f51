//! Strips of four rows as the tiles of many tokens read them: codes unpacked and in order, beside their scales.
//!
//! ```text
//! 192 bytes a group     8 × 16 codes · 4 vectors of floats
//!     sdot              multipliers · – · addends · –
//!     smmla             those of rows 0, 0, 1, 1 and 2, 2, 3, 3 · addends of the same rows
//! ```
//! Addends are those of [`Dot::times`](super::Dot::times) where multipliers are integers, else 1.5·2^23, which is to be taken
//! from dot products; for base NEON, whose codes lie as for `sdot`, minima. There is room for a run of groups of a panel, which all tokens of a call share: unpacking costs as much as
//! the products of two tokens or three.

use core::arch::aarch64::*;
use core::mem::MaybeUninit;

use super::dot::BIAS;

/// Groups of a run.
pub const RUN: usize = 8;
/// Strips of a panel.
const STRIPS: usize = 4;
/// Bytes of a group of a strip.
pub const BYTES: usize = 192;

/// Room for the strips of a run.
#[repr(C, align(64))]
pub struct Strips([MaybeUninit<u8>; STRIPS * RUN * BYTES]);

impl Strips {
    /// Room with nothing in it.
    #[inline(always)]
    pub fn empty() -> Self {
        Self([const { MaybeUninit::uninit() }; STRIPS * RUN * BYTES])
    }
    /// Group `g < RUN` of the run of strip `s < 4`, aligned for vectors.
    #[inline(always)]
    pub fn group(&mut self, s: usize, g: usize) -> *mut u8 {
        debug_assert!(s < STRIPS && g < RUN, "no room for the group");
        self.0.as_mut_ptr().cast::<u8>().wrapping_add((s * RUN + g) * BYTES)
    }
}

/// 1.5·2^23, from whose bits dot products start.
#[inline(always)]
pub fn bias() -> float32x4_t {
    op!(vdupq_n_f32(f32::from_bits(BIAS as u32)))
}

/// Writes codes, multipliers and addends (or minima) of the four rows.
///
/// # Safety
/// `to` is valid for writing [`BYTES`] and aligned for vectors.
#[inline(always)]
pub unsafe fn rows(to: *mut u8, codes: [int8x16_t; 8], m: float32x4_t, addend: float32x4_t) {
    // SAFETY: as the caller vouches.
    unsafe {
        to.cast::<[int8x16_t; 8]>().write(codes);
        to.add(128).cast::<float32x4_t>().write(m);
        to.add(160).cast::<float32x4_t>().write(addend);
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
            from.add(128).cast::<float32x4_t>().read(),
            from.add(160).cast::<float32x4_t>().read(),
        )
    }
}

/// Writes codes, multipliers and addends for `smmla`.
///
/// # Safety
/// As [`rows`].
#[inline(always)]
pub unsafe fn pairs(to: *mut u8, codes: [int8x16_t; 8], m: float32x4_t, addend: float32x4_t) {
    let vectors = op!([vzip1q_f32(m, m), vzip2q_f32(m, m), vzip1q_f32(addend, addend), vzip2q_f32(addend, addend)]);
    // SAFETY: as the caller vouches.
    unsafe {
        to.cast::<[int8x16_t; 8]>().write(codes);
        to.add(128).cast::<[float32x4_t; 4]>().write(vectors);
    }
}
