//! ARM's DSP extension (Cortex-M4, M7, M33, M35P, M55, M85; every ARMv7-A): two products of 16 bits per instruction.
//!
//! The intrinsics are not stable, and small programs are compiled for size: so the steps of a dot product are written out,
//! each for as many codes as an instruction's operands allow. A step takes its activations, pairs of halfwords, at `x`
//! and moves on. No sum comes near to the limits of 32 bits, so the saturation flag stays as it is.

use core::arch::asm;

use super::scalar::Lanes;

#[cfg(feature = "mve")]
pub mod mve;

/// Proof of the DSP extension. Floats are those of the scalar level.
pub type Dsp = Lanes<1, Extension>;

/// The extension's instructions.
#[derive(Clone, Copy, Debug)]
pub struct Extension;

impl Dsp {
    /// Bytes 0 and 2 and bytes 1 and 3 as signed halfwords.
    #[inline(always)]
    pub fn pairs(self, bytes: u32) -> [u32; 2] {
        let (even, odd);
        // SAFETY: the extension, of which self is the proof; registers only.
        unsafe {
            asm!("sxtb16 {even}, {bytes}", "sxtb16 {odd}, {bytes}, ror #8",
                bytes = in(reg) bytes, even = out(reg) even, odd = lateout(reg) odd,
                options(pure, nomem, nostack, preserves_flags));
        }
        [even, odd]
    }

    /// Adds the products of eight signed bytes in two words and four pairs.
    ///
    /// # Safety
    /// `x` is valid for reading four words, and aligned.
    #[inline(always)]
    pub unsafe fn bytes(self, sum: &mut i32, codes: [u32; 2], x: &mut *const u32) {
        // SAFETY: the extension; the caller vouches for what is read.
        unsafe {
            asm!(
                "ldmia {x}!, {{r2, r3, r4, r5}}",
                "sxtb16 {t}, {a}",
                "smlad {sum}, {t}, r2, {sum}",
                "sxtb16 {t}, {a}, ror #8",
                "smlad {sum}, {t}, r3, {sum}",
                "sxtb16 {t}, {b}",
                "smlad {sum}, {t}, r4, {sum}",
                "sxtb16 {t}, {b}, ror #8",
                "smlad {sum}, {t}, r5, {sum}",
                x = inout(reg) *x, sum = inout(reg) *sum, a = in(reg) codes[0], b = in(reg) codes[1], t = out(reg) _,
                out("r2") _, out("r3") _, out("r4") _, out("r5") _,
                options(pure, readonly, nostack, preserves_flags)
            );
        }
    }

    /// Adds the products of the pairs that `table` has for four bytes, and four pairs.
    ///
    /// # Safety
    /// `table` is valid for reading 256 words, `x` for four, both aligned.
    #[inline(always)]
    pub unsafe fn looked_up(self, sum: &mut i32, codes: u32, table: *const u32, x: &mut *const u32) {
        // SAFETY: the extension; the caller vouches for what is read.
        unsafe {
            asm!(
                "ldmia {x}!, {{r2, r3, r4, r5}}",
                "uxtb {t}, {codes}",
                "ldr {t}, [{table}, {t}, lsl #2]",
                "smlad {sum}, {t}, r2, {sum}",
                "uxtb {t}, {codes}, ror #8",
                "ldr {t}, [{table}, {t}, lsl #2]",
                "smlad {sum}, {t}, r3, {sum}",
                "uxtb {t}, {codes}, ror #16",
                "ldr {t}, [{table}, {t}, lsl #2]",
                "smlad {sum}, {t}, r4, {sum}",
                "uxtb {t}, {codes}, ror #24",
                "ldr {t}, [{table}, {t}, lsl #2]",
                "smlad {sum}, {t}, r5, {sum}",
                x = inout(reg) *x, sum = inout(reg) *sum, codes = in(reg) codes, table = in(reg) table, t = out(reg) _,
                out("r2") _, out("r3") _, out("r4") _, out("r5") _,
                options(pure, readonly, nostack, preserves_flags)
            );
        }
    }

    /// Adds the products of eight nibbles and four pairs: the low nibbles of the even bytes, of the odd bytes, then the
    /// high ones.
    ///
    /// # Safety
    /// `x` is valid for reading four words, and aligned.
    #[inline(always)]
    pub unsafe fn nibbles(self, sum: &mut i32, codes: u32, x: &mut *const u32) {
        // SAFETY: the extension; the caller vouches for what is read.
        unsafe {
            asm!(
                "ldmia {x}!, {{r2, r3, r4, r5}}",
                "and {t}, {mask}, {codes}",
                "smlad {sum}, {t}, r2, {sum}",
                "and {t}, {mask}, {codes}, lsr #8",
                "smlad {sum}, {t}, r3, {sum}",
                "and {t}, {mask}, {codes}, lsr #4",
                "smlad {sum}, {t}, r4, {sum}",
                "and {t}, {mask}, {codes}, lsr #12",
                "smlad {sum}, {t}, r5, {sum}",
                x = inout(reg) *x, sum = inout(reg) *sum, codes = in(reg) codes, mask = in(reg) 0x000f_000f, t = out(reg) _,
                out("r2") _, out("r3") _, out("r4") _, out("r5") _,
                options(pure, readonly, nostack, preserves_flags)
            );
        }
    }

    /// Adds the products of eight pairs of bits and four pairs, in the order of [`Dsp::nibbles`]: in every byte of `high`
    /// the low nibble's bits are 0 and 1, the high nibble's 2 and 3.
    ///
    /// # Safety
    /// `x` is valid for reading four words, and aligned.
    #[inline(always)]
    pub unsafe fn planes(self, sum: &mut i32, high: u32, x: &mut *const u32) {
        // SAFETY: the extension; the caller vouches for what is read.
        unsafe {
            asm!(
                "ldmia {x}!, {{r2, r3, r4, r5}}",
                "and {t}, {mask}, {high}",
                "smlad {sum}, {t}, r2, {sum}",
                "and {t}, {mask}, {high}, lsr #8",
                "smlad {sum}, {t}, r3, {sum}",
                "and {t}, {mask}, {high}, lsr #2",
                "smlad {sum}, {t}, r4, {sum}",
                "and {t}, {mask}, {high}, lsr #10",
                "smlad {sum}, {t}, r5, {sum}",
                x = inout(reg) *x, sum = inout(reg) *sum, high = in(reg) high, mask = in(reg) 0x0003_0003, t = out(reg) _,
                out("r2") _, out("r3") _, out("r4") _, out("r5") _,
                options(pure, readonly, nostack, preserves_flags)
            );
        }
    }
}
