//! Quantized weights times quantized activations on AArch64. The layout and the arithmetic are those of [`int`](super::int);
//! the shape differs, since there are 32 registers of four rows each, codes are signed, and `sdot` takes its second
//! operand from any lane.
//!
//! ```text
//! one token                                          T tokens (16, 8, 4 or 2)
//! for each group:                                    for each strip of 4 rows:
//!     x = 4 × 8 inputs, each twice                       for each group:
//!     for each strip of 4 rows:                              w = the strip's codes, unpacked      8 registers
//!         unpack, multiply, add up over the lanes            for each token:
//!         acc[strip] += scaled sum       4 registers             x = 32 inputs                    2 registers
//!                                                                acc[token] += scaled sum         T registers
//! ```
//! Sums stay in registers, since a vector store takes a slot or two of the pipes that multiply. The unpacking of a
//! group is shared by T tokens.

use core::arch::aarch64::*;

use super::int::{Codes, Place, each_group};
use super::{IntPanel, LinearArgs};
use crate::kernels::isa::Isa;
use crate::kernels::isa::arm::{Dot, Quad, Start};
use crate::weights::{GROUP, LINE, PANEL_ROWS, WeightFormat};

/// Rows of a strip, and strips of a panel.
const ROWS: usize = 4;
const STRIPS: usize = PANEL_ROWS / ROWS;

impl<D: Dot> IntPanel for Quad<D> {
    #[inline(always)]
    unsafe fn int_panel<C: Codes>(self, a: LinearArgs) {
        // SAFETY: passed on; tiles lie within the tokens.
        unsafe {
            let codes = Signed::<D, C>::new(self, a.codebook);
            let mut t = 0;
            while t + 16 <= a.tokens {
                codes.tokens::<16>(a, t);
                t += 16;
            }
            if a.tokens - t >= 8 {
                codes.tokens::<8>(a, t);
                t += 8;
            }
            if a.tokens - t >= 4 {
                codes.tokens::<4>(a, t);
                t += 4;
            }
            if a.tokens - t >= 2 {
                codes.tokens::<2>(a, t);
                t += 2;
            }
            if a.tokens - t == 1 {
                codes.token(a, t);
            }
        }
    }
}

/// A format whose codes are read as signed numbers.
struct Signed<D: Dot, C: Codes> {
    isa: Quad<D>,
    table: uint8x16_t,
    format: core::marker::PhantomData<C>,
}

impl<D: Dot, C: Codes> Signed<D, C> {
    const HAS_TABLE: bool = matches!(C::FORMAT, WeightFormat::Q4);
    const IS_BYTES: bool = matches!(C::FORMAT, WeightFormat::Q8 | WeightFormat::Q8R);
    /// Whether [`Dot::times`] applies: multipliers are small integers.
    const INTEGERS: bool = C::FORMAT.multiplier_bytes() == 1;
    /// What linear codes are stored with; the table and int8 codes are signed from the beginning.
    const OFFSET: i32 = if Self::HAS_TABLE || Self::IS_BYTES { 0 } else { C::OFFSET };
    /// Largest code while the offset is in, and when it is out.
    const MAX_STORED: i32 = if Self::HAS_TABLE {
        64
    } else if Self::IS_BYTES {
        128
    } else {
        C::MAX
    };
    const MAX: i32 = if Self::HAS_TABLE || Self::IS_BYTES { Self::MAX_STORED } else { C::OFFSET };
    /// What sums start from.
    const BIAS: i32 = if Self::INTEGERS { D::BIAS } else { 0 };

    /// # Safety
    /// `codebook` is valid for reading 16 bytes.
    #[inline(always)]
    unsafe fn new(isa: Quad<D>, codebook: *const u8) -> Self {
        // SAFETY: as the caller vouches.
        let table = unsafe { vsubq_u8(isa.table(codebook), vdupq_n_u8(64)) };
        Self { isa, table, format: core::marker::PhantomData }
    }

    /// The strip's codes: rows 0 and 1, rows 2 and 3, four parts of 8 inputs each.
    ///
    /// # Safety
    /// `place` is a group of a panel.
    #[inline(always)]
    unsafe fn unpack(&self, place: Place, strip: usize) -> ([int8x16_t; 4], [int8x16_t; 4]) {
        let (half, within) = (strip / 2, strip % 2 * 16);
        let codes = place.codes.wrapping_add(half * (C::FORMAT.code_bytes() / 2) + within);
        // q5 has both halves' bits in one line, q6 a line for each.
        let line = if C::FORMAT.plane_bits() == 1 { 0 } else { half * LINE };
        let planes = place.codes.wrapping_add(C::FORMAT.code_bytes() + line + within);
        // SAFETY: the strip's registers lie within the group's lines.
        unsafe {
            let a = C::unpack(self.isa, self.table, codes, planes, half);
            let b = C::unpack(self.isa, self.table, codes.wrapping_add(32), planes.wrapping_add(32), half);
            (signed(a), signed(b))
        }
    }

    /// The strip's multipliers.
    ///
    /// # Safety
    /// As [`Self::unpack`].
    #[inline(always)]
    unsafe fn multipliers(&self, place: Place, strip: usize) -> float32x4_t {
        let at = place.multipliers.wrapping_add(strip * ROWS * C::FORMAT.multiplier_bytes());
        // SAFETY: the strip's multipliers lie within the group's.
        unsafe { C::multipliers(self.isa, at) }
    }

    /// The addend of [`Dot::times`] for the multipliers.
    #[inline(always)]
    fn least(&self, multipliers: float32x4_t) -> float32x4_t {
        self.isa.mul(multipliers, self.isa.splat(-f32::from_bits(D::BIAS as u32)))
    }

    /// The contribution of a group.
    #[inline(always)]
    fn scaled(&self, sum: int32x4_t, multipliers: float32x4_t, least: float32x4_t, xscale: f32) -> float32x4_t {
        if Self::INTEGERS {
            // SAFETY: base instructions.
            unsafe { vmulq_n_f32(D::times(sum, multipliers, least), xscale) }
        } else {
            C::scaled(self.isa, self.isa.to_f(sum), multipliers, self.isa.splat(xscale))
        }
    }

    /// Token `t` alone.
    ///
    /// # Safety
    /// As [`LinearArgs`] says; the panel is of `C`'s format.
    #[inline(always)]
    unsafe fn token(&self, a: LinearArgs, t: usize) {
        let isa = self.isa;
        let groups = a.k.div_ceil(GROUP);
        let row = a.x.wrapping_add(t * a.stride);
        let mut acc = [isa.splat(0.0); STRIPS];
        each_group::<C>(
            a,
            #[inline(always)]
            |place| {
                // SAFETY: the group is one of the row's and of the panel's.
                unsafe {
                    let codes = row.add(place.g * GROUP).cast::<i8>();
                    let x = signed([
                        isa.splat8(codes),
                        isa.splat8(codes.add(8)),
                        isa.splat8(codes.add(16)),
                        isa.splat8(codes.add(24)),
                    ]);
                    let xscale = scale(row, groups, place.g);
                    let start = if Self::OFFSET == 0 {
                        Start::constant(Self::BIAS)
                    } else {
                        let sum = row.add(groups * (GROUP + 4)).cast::<i32>().add(place.g).read_unaligned();
                        Start::new(Self::BIAS - Self::OFFSET * sum)
                    };
                    let mut s = 0;
                    while s < STRIPS {
                        let (wa, wb) = self.unpack(place, s);
                        let m = self.multipliers(place, s);
                        let sum = D::rows(Self::MAX_STORED, wa, wb, x, start);
                        acc[s] = isa.add(acc[s], self.scaled(sum, m, self.least(m), xscale));
                        s += 1;
                    }
                }
            },
        );
        let mut s = 0;
        while s < STRIPS {
            // SAFETY: the panel has 16 row scales, the output the token.
            unsafe { self.finish(a, t, s, acc[s]) };
            s += 1;
        }
    }

    /// The tokens `t..t + T`.
    ///
    /// # Safety
    /// As [`LinearArgs`] says; the panel is of `C`'s format.
    #[inline(always)]
    unsafe fn tokens<const T: usize>(&self, a: LinearArgs, t: usize) {
        let isa = self.isa;
        let groups = a.k.div_ceil(GROUP);
        let start = Start::constant(Self::BIAS);
        let mut s = 0;
        while s < STRIPS {
            let mut acc = [isa.splat(0.0); T];
            each_group::<C>(
                a,
                #[inline(always)]
                |place| {
                    // SAFETY: the group is one of the rows' and of the panel's.
                    unsafe {
                        let (wa, wb) = self.unpack(place, s);
                        let w = D::arrange(self.centred(wa), self.centred(wb));
                        let m = self.multipliers(place, s);
                        let least = self.least(m);
                        let mut row = a.x.add(t * a.stride);
                        let mut i = 0;
                        while i < T {
                            let sum = D::group(Self::MAX, w, row.add(place.g * GROUP).cast(), start);
                            let p = self.scaled(sum, m, least, scale(row, groups, place.g));
                            acc[i] = isa.add(acc[i], p);
                            row = row.wrapping_add(a.stride);
                            i += 1;
                        }
                    }
                },
            );
            let mut i = 0;
            while i < T {
                // SAFETY: the panel has 16 row scales, the output the tokens.
                unsafe { self.finish(a, t + i, s, acc[i]) };
                i += 1;
            }
            s += 1;
        }
    }

    /// Takes the offset out.
    #[inline(always)]
    fn centred(&self, w: [int8x16_t; 4]) -> [int8x16_t; 4] {
        if Self::OFFSET == 0 {
            return w;
        }
        // SAFETY: base instructions.
        unsafe {
            let offset = vdupq_n_s8(Self::OFFSET as i8);
            [vsubq_s8(w[0], offset), vsubq_s8(w[1], offset), vsubq_s8(w[2], offset), vsubq_s8(w[3], offset)]
        }
    }

    /// Writes a strip of a token.
    ///
    /// # Safety
    /// As [`LinearArgs`] says; the token and the strip exist.
    #[inline(always)]
    unsafe fn finish(&self, a: LinearArgs, t: usize, strip: usize, acc: float32x4_t) {
        let isa = self.isa;
        // SAFETY: there are 16 row scales, and the output has 16 rows of the token.
        unsafe {
            let y =
                if C::FORMAT.has_row_scale() { isa.mul(acc, isa.load(a.row_scales.add(strip * ROWS))) } else { acc };
            isa.store(a.out.add(t).cast::<f32>().add(strip * ROWS), y);
        }
    }
}

impl Start {
    /// Sums start from `v`.
    #[inline(always)]
    fn new(v: i32) -> Self {
        // SAFETY: base instructions.
        let whole = unsafe { vdupq_n_s32(v) };
        // SAFETY: as above.
        let halves = unsafe { vreinterpretq_s32_u64(vdupq_n_u64(u64::from(v as u32))) };
        Self { halves, whole, any: true }
    }
    /// Sums start from `v`, which is known beforehand.
    #[inline(always)]
    fn constant(v: i32) -> Self {
        Self { any: v != 0, ..Self::new(v) }
    }
}

/// The scale of group `g` of a quantized row.
///
/// # Safety
/// The row has the group.
#[inline(always)]
unsafe fn scale(row: *const u8, groups: usize, g: usize) -> f32 {
    // SAFETY: as the layout of the row says.
    unsafe { row.add(groups * GROUP).cast::<f32>().add(g).read_unaligned() }
}

/// Bytes as signed numbers.
#[inline(always)]
fn signed(w: [uint8x16_t; 4]) -> [int8x16_t; 4] {
    // SAFETY: base instructions.
    unsafe {
        [vreinterpretq_s8_u8(w[0]), vreinterpretq_s8_u8(w[1]), vreinterpretq_s8_u8(w[2]), vreinterpretq_s8_u8(w[3])]
    }
}
