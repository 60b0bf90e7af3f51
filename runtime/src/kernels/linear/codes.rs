//! The quantized formats as the vector bodies read them: from the lines of a panel to registers of codes.

use crate::kernels::isa::Bytes;
use crate::weights::{LINE, PANEL_ROWS, WeightFormat};

/// A weight format as the body sees it.
pub(crate) trait Codes {
    /// Its name elsewhere.
    const FORMAT: WeightFormat;
    /// Largest unpacked code.
    const MAX: i32;
    /// What unpacked codes have been raised by in the file.
    const OFFSET: i32;

    /// The codes of one register of a line, in four parts of 8 inputs. `table` is the codebook; `half` the half of
    /// the panel that the register belongs to.
    ///
    /// # Safety
    /// `codes` points to the register in the first of the half's lines of a group, `plane` to the register in the
    /// plane's line.
    unsafe fn unpack<I: Bytes>(isa: I, table: I::B, codes: *const u8, plane: *const u8, half: usize) -> [I::B; 4];
    /// Minima of `L` rows, whose multipliers are at `at`; read where the format has them.
    ///
    /// # Safety
    /// `at` is valid for reading the group's multipliers of the format from it on.
    #[inline(always)]
    unsafe fn minima<I: Bytes>(isa: I, at: *const u8) -> I::F {
        if Self::FORMAT.has_minimum() {
            // SAFETY: the minima of the same rows lie a panel's multipliers further.
            unsafe { isa.load_f16(at.add(2 * PANEL_ROWS).cast()) }
        } else {
            isa.splat(0.0)
        }
    }
    /// Multipliers of `L` rows.
    ///
    /// # Safety
    /// `at` is valid for reading `L` multipliers of the format.
    #[inline(always)]
    unsafe fn multipliers<I: Bytes>(isa: I, at: *const u8) -> I::F {
        // SAFETY: the caller vouches for L bytes.
        isa.to_f(unsafe { isa.load_i8(at.cast()) })
    }
    /// The group's contribution from its dot product, multipliers and activation scale.
    #[inline(always)]
    fn scaled<I: Bytes>(isa: I, dot: I::F, multipliers: I::F, xscale: I::F) -> I::F {
        isa.mul(isa.mul(dot, multipliers), xscale)
    }
}

/// The four parts of the nibbles at `codes`.
///
/// # Safety
/// `codes` points to a register in the first of two lines.
#[inline(always)]
unsafe fn nibbles<I: Bytes>(isa: I, codes: *const u8) -> [I::B; 4] {
    // SAFETY: the caller vouches for both lines.
    let (first, second) = unsafe { (isa.load_b(codes), isa.load_b(codes.add(LINE))) };
    [isa.lo(first), isa.lo(second), isa.hi(first), isa.hi(second)]
}

/// 4-bit codes into the file's table.
pub(crate) struct Q4;
impl Codes for Q4 {
    const FORMAT: WeightFormat = WeightFormat::Q4;
    const MAX: i32 = 127;
    const OFFSET: i32 = 64;
    #[inline(always)]
    unsafe fn unpack<I: Bytes>(isa: I, table: I::B, codes: *const u8, _: *const u8, _: usize) -> [I::B; 4] {
        // SAFETY: as the caller vouches.
        let [a, b, c, d] = unsafe { nibbles(isa, codes) };
        [isa.lookup(table, a), isa.lookup(table, b), isa.lookup(table, c), isa.lookup(table, d)]
    }
}

/// 4-bit linear codes.
pub(crate) struct Q4L;
impl Codes for Q4L {
    const FORMAT: WeightFormat = WeightFormat::Q4L;
    const MAX: i32 = 15;
    const OFFSET: i32 = WeightFormat::Q4L.code_offset();
    #[inline(always)]
    unsafe fn unpack<I: Bytes>(isa: I, _: I::B, codes: *const u8, _: *const u8, _: usize) -> [I::B; 4] {
        // SAFETY: as the caller vouches.
        unsafe { nibbles(isa, codes) }
    }
}

/// 5-bit linear codes.
pub(crate) struct Q5;
impl Codes for Q5 {
    const FORMAT: WeightFormat = WeightFormat::Q5;
    const MAX: i32 = 31;
    const OFFSET: i32 = WeightFormat::Q5.code_offset();
    #[inline(always)]
    unsafe fn unpack<I: Bytes>(isa: I, _: I::B, codes: *const u8, plane: *const u8, half: usize) -> [I::B; 4] {
        // SAFETY: as the caller vouches.
        let ([a, b, c, d], bits) = unsafe { (nibbles(isa, codes), isa.load_b(plane)) };
        // Places 0…3 of a half are parts 0, 2, 1, 3; each goes to bit 4.
        let [p, q, r, s] = if half == 0 {
            [
                isa.plane::<4, 0>(bits, 16),
                isa.plane::<2, 0>(bits, 16),
                isa.plane::<3, 0>(bits, 16),
                isa.plane::<1, 0>(bits, 16),
            ]
        } else {
            [
                isa.plane::<0, 0>(bits, 16),
                isa.plane::<0, 2>(bits, 16),
                isa.plane::<0, 1>(bits, 16),
                isa.plane::<0, 3>(bits, 16),
            ]
        };
        [isa.or_b(a, p), isa.or_b(b, q), isa.or_b(c, r), isa.or_b(d, s)]
    }
}

/// 6-bit linear codes.
pub(crate) struct Q6;
impl Codes for Q6 {
    const FORMAT: WeightFormat = WeightFormat::Q6;
    const MAX: i32 = 63;
    const OFFSET: i32 = WeightFormat::Q6.code_offset();
    #[inline(always)]
    unsafe fn unpack<I: Bytes>(isa: I, _: I::B, codes: *const u8, plane: *const u8, _: usize) -> [I::B; 4] {
        // SAFETY: as the caller vouches.
        let ([a, b, c, d], bits) = unsafe { (nibbles(isa, codes), isa.load_b(plane)) };
        // Places 0…3 are parts 0, 2, 1, 3; each goes to bits 4 and 5.
        [
            isa.or_b(a, isa.plane::<4, 0>(bits, 48)),
            isa.or_b(b, isa.plane::<0, 0>(bits, 48)),
            isa.or_b(c, isa.plane::<2, 0>(bits, 48)),
            isa.or_b(d, isa.plane::<0, 2>(bits, 48)),
        ]
    }
}

/// The four parts of int8 codes, as the level's signed dot product wants them.
///
/// # Safety
/// `codes` points to a register in the first of four lines.
#[inline(always)]
unsafe fn bytes<I: Bytes>(isa: I, codes: *const u8) -> [I::B; 4] {
    // SAFETY: the caller vouches for the four lines.
    unsafe {
        [
            isa.prepare_s(isa.load_b(codes)),
            isa.prepare_s(isa.load_b(codes.add(LINE))),
            isa.prepare_s(isa.load_b(codes.add(2 * LINE))),
            isa.prepare_s(isa.load_b(codes.add(3 * LINE))),
        ]
    }
}

/// int8 codes with a binary16 scale per group.
pub(crate) struct Q8;
impl Codes for Q8 {
    const FORMAT: WeightFormat = WeightFormat::Q8;
    const MAX: i32 = 255;
    const OFFSET: i32 = 0;
    #[inline(always)]
    unsafe fn unpack<I: Bytes>(isa: I, _: I::B, codes: *const u8, _: *const u8, _: usize) -> [I::B; 4] {
        // SAFETY: as the caller vouches.
        unsafe { bytes(isa, codes) }
    }
    #[inline(always)]
    unsafe fn multipliers<I: Bytes>(isa: I, at: *const u8) -> I::F {
        // SAFETY: the caller vouches for L halves.
        unsafe { isa.load_f16(at.cast()) }
    }
    #[inline(always)]
    fn scaled<I: Bytes>(isa: I, dot: I::F, multipliers: I::F, xscale: I::F) -> I::F {
        isa.mul(dot, isa.mul(multipliers, xscale))
    }
}

/// int8 codes with a scale per row only.
pub(crate) struct Q8R;
impl Codes for Q8R {
    const FORMAT: WeightFormat = WeightFormat::Q8R;
    const MAX: i32 = 255;
    const OFFSET: i32 = 0;
    #[inline(always)]
    unsafe fn unpack<I: Bytes>(isa: I, _: I::B, codes: *const u8, _: *const u8, _: usize) -> [I::B; 4] {
        // SAFETY: as the caller vouches.
        unsafe { bytes(isa, codes) }
    }
    #[inline(always)]
    unsafe fn multipliers<I: Bytes>(isa: I, _: *const u8) -> I::F {
        isa.splat(1.0)
    }
    #[inline(always)]
    fn scaled<I: Bytes>(isa: I, dot: I::F, _: I::F, xscale: I::F) -> I::F {
        isa.mul(dot, xscale)
    }
}

/// A format whose codes are another's and whose scales are binary16, as GGUF's blocks have them.
macro_rules! imported {
    ($(#[$doc:meta])* $name:ident, $offset:expr, codes of $codes:ident) => {
        $(#[$doc])*
        pub(crate) struct $name;
        impl Codes for $name {
            const FORMAT: WeightFormat = WeightFormat::$name;
            const MAX: i32 = $codes::MAX;
            const OFFSET: i32 = $offset;
            #[inline(always)]
            unsafe fn unpack<I: Bytes>(isa: I, t: I::B, codes: *const u8, plane: *const u8, half: usize) -> [I::B; 4] {
                // SAFETY: passed on.
                unsafe { $codes::unpack(isa, t, codes, plane, half) }
            }
            #[inline(always)]
            unsafe fn multipliers<I: Bytes>(isa: I, at: *const u8) -> I::F {
                // SAFETY: the caller vouches for L halves.
                unsafe { isa.load_f16(at.cast()) }
            }
            #[inline(always)]
            fn scaled<I: Bytes>(isa: I, dot: I::F, multipliers: I::F, xscale: I::F) -> I::F {
                isa.mul(dot, isa.mul(multipliers, xscale))
            }
        }
    };
}

imported!(
    /// 4-bit linear codes with a binary16 scale per group.
    I4, WeightFormat::I4.code_offset(), codes of Q4L
);
imported!(
    /// 4-bit codes with a binary16 scale and minimum per group.
    I4M, 0, codes of Q4L
);
imported!(
    /// 5-bit linear codes with a binary16 scale per group.
    I5, WeightFormat::I5.code_offset(), codes of Q5
);
imported!(
    /// 5-bit codes with a binary16 scale and minimum per group.
    I5M, 0, codes of Q5
);
