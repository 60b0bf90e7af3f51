//! Cortex-M with the DSP extension (M4, M7, M33, M35P, M55, M85): two products of 16 bits per instruction.

use core::arch::asm;

use super::scalar::{GroupDot, Lanes};

/// Proof of the DSP extension. Floats are those of the scalar level.
pub type Dsp = Lanes<1, Smlad>;

/// Dot products by `smlad`.
#[derive(Clone, Copy, Debug)]
pub struct Smlad;

// SAFETY: the DSP extension.
unsafe impl GroupDot for Smlad {
    #[inline(always)]
    unsafe fn dot(w: &[u32; 8], x: *const i8) -> i32 {
        let mut sum = 0;
        for (i, &w) in w.iter().enumerate() {
            // SAFETY: the caller vouches for 32 bytes.
            let x = unsafe { x.cast::<u32>().add(i).read_unaligned() };
            // Bytes 0 and 2, then 1 and 3, as 16-bit numbers. The intrinsics are not stable. No sum comes near to the
            // limits, so the saturation flag stays as it is.
            // SAFETY: registers only.
            unsafe {
                asm!(
                    "sxtb16 {a}, {w}",
                    "sxtb16 {b}, {x}",
                    "smlad {sum}, {a}, {b}, {sum}",
                    "sxtb16 {a}, {w}, ror #8",
                    "sxtb16 {b}, {x}, ror #8",
                    "smlad {sum}, {a}, {b}, {sum}",
                    a = out(reg) _, b = out(reg) _, w = in(reg) w, x = in(reg) x, sum = inout(reg) sum,
                    options(pure, nomem, nostack)
                );
            }
        }
        sum
    }
}
