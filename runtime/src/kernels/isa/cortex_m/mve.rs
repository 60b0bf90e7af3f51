//! The vector unit of Cortex-M55 and M85 (M-profile vector extension): 16 products of bytes per instruction.
//!
//! A row's codes lie 8 bytes in each of several lines, which a load with offsets gathers. The compiler need not know the
//! processor: `.cpu` tells the assembler, so that all else is compiled as for any Cortex-M.

use core::arch::asm;

use super::Dsp;
use crate::weights::LINE;

/// Where a row's pieces are, from the first one.
static PLACES: [u64; 4] = [0, LINE as u64, 2 * LINE as u64, 3 * LINE as u64];

/// Rows whose pieces lie side by side.
pub const SLOTS: usize = 8;

impl Dsp {
    /// The dot products of eight rows of 32 signed bytes with `x`, in the order of slots.
    ///
    /// # Safety
    /// `codes` is valid for reading four lines, `x` for 32 bytes; `codes` is a multiple of 8.
    #[inline(always)]
    pub unsafe fn lines_of_bytes(self, codes: *const u8, x: *const u8, dots: &mut [i32; SLOTS]) {
        // SAFETY: the feature is the builder's word that the unit is there; the caller vouches for what is read, and eight
        // words are written.
        unsafe {
            asm!(
                ".cpu cortex-m55",
                "vldrw.u32 q0, [{places}]",
                "vldrw.u32 q1, [{places}, #16]",
                "vldrb.u8 q2, [{x}]",
                "vldrb.u8 q3, [{x}, #16]",
                "dls lr, {count}",
                "2:",
                "vldrd.u64 q4, [{codes}, q0]",
                "vldrd.u64 q5, [{codes}, q1]",
                "vmladav.s8 r0, q4, q2",
                "vmladava.s8 r0, q5, q3",
                "str r0, [{dots}], #4",
                "add {codes}, {codes}, #8",
                "le lr, 2b",
                places = in(reg) &raw const PLACES, x = in(reg) x, count = in(reg) SLOTS,
                codes = inout(reg) codes => _, dots = inout(reg) dots.as_mut_ptr() => _,
                out("r0") _, out("lr") _, out("d0") _, out("d1") _, out("d2") _, out("d3") _, out("d4") _, out("d5") _,
                out("d6") _, out("d7") _, out("d8") _, out("d9") _, out("d10") _, out("d11") _,
                options(nostack, preserves_flags)
            );
        }
    }

    /// As [`Dsp::lines_of_bytes`] of codes that `table` has for nibbles: the low ones of two lines, then the high ones.
    ///
    /// # Safety
    /// `codes` is valid for reading two lines, `x` for 32 bytes; `codes` is a multiple of 8.
    #[inline(always)]
    pub unsafe fn lines_of_indices(self, codes: *const u8, table: &[i8; 16], x: *const u8, dots: &mut [i32; SLOTS]) {
        // SAFETY: as above; nibbles are indices into the table.
        unsafe {
            asm!(
                ".cpu cortex-m55",
                "vldrw.u32 q0, [{places}]",
                "vmov.i8 q1, #15",
                "vldrb.u8 q2, [{x}]",
                "vldrb.u8 q3, [{x}, #16]",
                "dls lr, {count}",
                "2:",
                "vldrd.u64 q4, [{codes}, q0]",
                "vshr.u8 q5, q4, #4",
                "vand q4, q4, q1",
                "vldrb.u8 q6, [{table}, q4]",
                "vldrb.u8 q7, [{table}, q5]",
                "vmladav.s8 r0, q6, q2",
                "vmladava.s8 r0, q7, q3",
                "str r0, [{dots}], #4",
                "add {codes}, {codes}, #8",
                "le lr, 2b",
                places = in(reg) &raw const PLACES, x = in(reg) x, count = in(reg) SLOTS, table = in(reg) table.as_ptr(),
                codes = inout(reg) codes => _, dots = inout(reg) dots.as_mut_ptr() => _,
                out("r0") _, out("lr") _, out("d0") _, out("d1") _, out("d2") _, out("d3") _, out("d4") _, out("d5") _,
                out("d6") _, out("d7") _, out("d8") _, out("d9") _, out("d10") _, out("d11") _, out("d12") _, out("d13") _, out("d14") _,
                out("d15") _,
                options(nostack, preserves_flags)
            );
        }
    }
}
