//! x86-64: SSE4.1, AVX2, AVX-VNNI and AVX-512-VNNI registers; what AMX's tiles do is in `kernels/linear/amx.rs`.

use core::arch::x86_64::{
    __m128, __m128i, _MM_FROUND_TO_NEAREST_INT, _mm_add_epi32, _mm_add_ps, _mm_cvtsi32_si128, _mm_cvtsi128_si32,
    _mm_cvtss_f32, _mm_max_ps, _mm_movehl_ps, _mm_shuffle_epi32, _mm_shuffle_ps,
};

/// An expression of this level's intrinsics.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: `self` proves that the CPU has the instructions; where there is a pointer, the caller of the unsafe
        // method vouches for it.
        unsafe { $e }
    };
}

mod avx512;
mod sse41;
mod ymm;

pub use avx512::{Amx, Avx512};
pub use sse41::Sse41;
#[cfg(test)]
pub use ymm::Avx512Vl;
pub use ymm::{Avx2, AvxVnni, Dot, Ymm};

/// Rounding operand of the conversions to binary16.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;
/// Shuffle operands that pick even and odd lanes.
const EVEN: i32 = 0x88;
const ODD: i32 = 0xdd;

/// A shift count; constant after inlining.
#[inline(always)]
fn count(n: u32) -> __m128i {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_cvtsi32_si128(n as i32) }
}

/// How many registers of pairwise products of activations and codes up to `max` add up within 16 bits.
#[inline(always)]
const fn word_run(max: i32) -> usize {
    (32767 / (2 * 127 * max)) as usize
}

/// The four lanes as [`Isa::sum_of_lanes`](super::Isa::sum_of_lanes) adds them up.
#[inline(always)]
fn sum_of_four(a: __m128) -> f32 {
    // SAFETY: SSE2 is part of x86-64.
    unsafe {
        let two = _mm_add_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_add_ps(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// The largest of four lanes.
#[inline(always)]
fn max_of_four(a: __m128) -> f32 {
    // SAFETY: as above.
    unsafe {
        let two = _mm_max_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_max_ps(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// The sum of four lanes.
#[inline(always)]
fn sum_of_four_i(a: __m128i) -> i32 {
    // SAFETY: as above.
    unsafe {
        let two = _mm_add_epi32(a, _mm_shuffle_epi32::<0x4e>(a));
        _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0xb1>(two)))
    }
}
