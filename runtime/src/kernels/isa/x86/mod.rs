//! x86-64: SSE4.1, AVX2, AVX-VNNI and AVX-512-VNNI registers; what AMX's tiles do is in `kernels/linear/amx.rs`.

use core::arch::x86_64::{__m128i, _MM_FROUND_TO_NEAREST_INT, _mm_cvtsi32_si128};

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
