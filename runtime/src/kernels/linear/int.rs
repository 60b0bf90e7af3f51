//! Quantized weights times quantized activations: one body for all formats and levels.
//!
//! A **strip** is as many rows as a register has 32-bit lanes; its codes lie in two registers of every line, whose lanes
//! `pair_sum` folds into one lane per row.
//!
//! ```text
//! for each group g:  for each strip:
//!     w = the two registers' codes, four parts of 8 inputs each, unpacked once     (8 registers)
//!     m = the rows' multipliers as floats
//!     for each token:
//!         d = pair_sum(dot4(w.a, x), dot4(w.b, x)) − offset·Σx                     x broadcast, 8 inputs at a time
//!         acc[token][strip] += scaled f32(d)
//! ```
//! 1. Codes are unsigned, so that the unsigned × signed dot instructions take them; Σx takes the offset out again.
//! 2. Formats with a minimum add `f32(Σx) · (m · xscale)`; Σx comes with the activations.
//! 3. One token keeps its sums in registers. With more, the sums live in `out`: a load and a store per 16 dot
//!    products cost less than the registers would, and any number of tokens shares one unpacking.

use crate::kernels::isa::{Isa, strip};
use crate::kernels::linear::LinearArgs;
use crate::weights::{BLOCK, GROUP, LINE, PANEL_ROWS, WeightFormat};

/// A weight format as the body sees it.
pub(crate) trait Codes {
    /// Its name elsewhere.
    const FORMAT: WeightFormat;
    /// Largest unpacked code.
    const MAX: i32;
    /// What unpacked codes have been raised by: the dot product is lowered by this times Σx.
    const OFFSET: i32;

    /// The codes of one register of a line, in four parts of 8 inputs. `table` is the codebook; `half` the half of
    /// the panel that the register belongs to.
    ///
    /// # Safety
    /// `codes` points to the register in the first of the half's lines of a group, `plane` to the register in the
    /// plane's line.
    unsafe fn unpack<I: Isa>(isa: I, table: I::B, codes: *const u8, plane: *const u8, half: usize) -> [I::B; 4];
    /// Dot product with four parts of the activations, two lanes per row.
    #[inline(always)]
    fn dots<I: Isa>(isa: I, w: [I::B; 4], x: [I::B; 4]) -> I::I {
        isa.dots_u(Self::MAX, w, x)
    }
    /// Dot product with a group of activations, one lane per row; `w` holds 4 inputs per register.
    ///
    /// # Safety
    /// `x` is valid for reading 32 bytes.
    #[inline(always)]
    unsafe fn group<I: Isa>(isa: I, w: [I::B; 8], x: *const i8) -> I::I {
        // SAFETY: passed on.
        unsafe { isa.group_u(Self::MAX, w, x) }
    }
    /// [`Codes::OFFSET`], where the level has a say in it.
    #[inline(always)]
    fn offset<I: Isa>() -> i32 {
        Self::OFFSET
    }
    /// Minima of `L` rows, whose multipliers are at `at`; read where the format has them.
    ///
    /// # Safety
    /// `at` is valid for reading the group's multipliers of the format from it on.
    #[inline(always)]
    unsafe fn minima<I: Isa>(isa: I, at: *const u8) -> I::F {
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
    unsafe fn multipliers<I: Isa>(isa: I, at: *const u8) -> I::F {
        // SAFETY: the caller vouches for L bytes.
        isa.to_f(unsafe { isa.load_i8(at.cast()) })
    }
    /// The group's contribution from its dot product, multipliers and activation scale.
    #[inline(always)]
    fn scaled<I: Isa>(isa: I, dot: I::F, multipliers: I::F, xscale: I::F) -> I::F {
        isa.mul(isa.mul(dot, multipliers), xscale)
    }
}

/// The four parts of the nibbles at `codes`.
///
/// # Safety
/// `codes` points to a register in the first of two lines.
#[inline(always)]
unsafe fn nibbles<I: Isa>(isa: I, codes: *const u8) -> [I::B; 4] {
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
    unsafe fn unpack<I: Isa>(isa: I, table: I::B, codes: *const u8, _: *const u8, _: usize) -> [I::B; 4] {
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
    unsafe fn unpack<I: Isa>(isa: I, _: I::B, codes: *const u8, _: *const u8, _: usize) -> [I::B; 4] {
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
    unsafe fn unpack<I: Isa>(isa: I, _: I::B, codes: *const u8, plane: *const u8, half: usize) -> [I::B; 4] {
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
    unsafe fn unpack<I: Isa>(isa: I, _: I::B, codes: *const u8, plane: *const u8, _: usize) -> [I::B; 4] {
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
unsafe fn bytes<I: Isa>(isa: I, codes: *const u8) -> [I::B; 4] {
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
    unsafe fn unpack<I: Isa>(isa: I, _: I::B, codes: *const u8, _: *const u8, _: usize) -> [I::B; 4] {
        // SAFETY: as the caller vouches.
        unsafe { bytes(isa, codes) }
    }
    #[inline(always)]
    fn dots<I: Isa>(isa: I, w: [I::B; 4], x: [I::B; 4]) -> I::I {
        isa.dots_s(w, x)
    }
    #[inline(always)]
    unsafe fn group<I: Isa>(isa: I, w: [I::B; 8], x: *const i8) -> I::I {
        // SAFETY: passed on.
        unsafe { isa.group_s(w, x) }
    }
    #[inline(always)]
    fn offset<I: Isa>() -> i32 {
        I::SIGNED_OFFSET
    }
    #[inline(always)]
    unsafe fn multipliers<I: Isa>(isa: I, at: *const u8) -> I::F {
        // SAFETY: the caller vouches for L halves.
        unsafe { isa.load_f16(at.cast()) }
    }
    #[inline(always)]
    fn scaled<I: Isa>(isa: I, dot: I::F, multipliers: I::F, xscale: I::F) -> I::F {
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
    unsafe fn unpack<I: Isa>(isa: I, _: I::B, codes: *const u8, _: *const u8, _: usize) -> [I::B; 4] {
        // SAFETY: as the caller vouches.
        unsafe { bytes(isa, codes) }
    }
    #[inline(always)]
    fn dots<I: Isa>(isa: I, w: [I::B; 4], x: [I::B; 4]) -> I::I {
        isa.dots_s(w, x)
    }
    #[inline(always)]
    unsafe fn group<I: Isa>(isa: I, w: [I::B; 8], x: *const i8) -> I::I {
        // SAFETY: passed on.
        unsafe { isa.group_s(w, x) }
    }
    #[inline(always)]
    fn offset<I: Isa>() -> i32 {
        I::SIGNED_OFFSET
    }
    #[inline(always)]
    unsafe fn multipliers<I: Isa>(isa: I, _: *const u8) -> I::F {
        isa.splat(1.0)
    }
    #[inline(always)]
    fn scaled<I: Isa>(isa: I, dot: I::F, _: I::F, xscale: I::F) -> I::F {
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
            unsafe fn unpack<I: Isa>(isa: I, t: I::B, codes: *const u8, plane: *const u8, half: usize) -> [I::B; 4] {
                // SAFETY: passed on.
                unsafe { $codes::unpack(isa, t, codes, plane, half) }
            }
            #[inline(always)]
            unsafe fn multipliers<I: Isa>(isa: I, at: *const u8) -> I::F {
                // SAFETY: the caller vouches for L halves.
                unsafe { isa.load_f16(at.cast()) }
            }
            #[inline(always)]
            fn scaled<I: Isa>(isa: I, dot: I::F, multipliers: I::F, xscale: I::F) -> I::F {
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

/// The body of the integer linear entries.
///
/// # Safety
/// As [`LinearArgs`] says; the panel is of `C`'s format.
#[inline(always)]
pub(crate) unsafe fn panel<I: Isa, C: Codes>(isa: I, a: LinearArgs) {
    // SAFETY: passed on.
    unsafe {
        let table = isa.table(a.codebook);
        if a.tokens == 1 {
            one_token::<I, C>(isa, a, table);
        } else {
            many_tokens::<I, C>(isa, a, table);
        }
    }
}

/// A group of a panel.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) g: usize,
    pub(super) codes: *const u8,
    pub(super) multipliers: *const u8,
}

/// Calls `f` with every group of a panel, in order.
#[inline(always)]
pub(super) fn each_group<C: Codes>(a: LinearArgs, mut f: impl FnMut(Place)) {
    let groups = a.k.div_ceil(GROUP);
    let mut at = a.panel;
    let mut g = 0;
    while g < groups {
        let end = if groups - g < BLOCK { groups } else { g + BLOCK };
        let mut multipliers = at;
        at = at.wrapping_add(C::FORMAT.multiplier_area(end - g));
        while g < end {
            f(Place { g, codes: at, multipliers });
            at = at.wrapping_add(C::FORMAT.group_bytes());
            multipliers = multipliers.wrapping_add(PANEL_ROWS * C::FORMAT.multiplier_bytes());
            g += 1;
        }
    }
}

/// Calls `f` with the number of every strip, unrolled, so that the numbers are constants in it.
#[inline(always)]
fn each_strip<I: Isa>(mut f: impl FnMut(usize)) {
    f(0);
    if I::L <= 8 {
        f(1);
    }
    if I::L <= 4 {
        f(2);
        f(3);
    }
    if I::L <= 2 {
        f(4);
        f(5);
        f(6);
        f(7);
    }
}

/// A strip of a group, ready for any number of tokens.
#[derive(Clone, Copy)]
struct Strip<I: Isa> {
    a: [I::B; 4],
    b: [I::B; 4],
    multipliers: I::F,
    minima: I::F,
}

/// # Safety
/// `place` is a group of a panel and `s` a strip.
#[inline(always)]
unsafe fn load_strip<I: Isa, C: Codes>(isa: I, table: I::B, place: Place, s: usize) -> Strip<I> {
    let (a, b) = strip::<I>(s, C::FORMAT.code_bytes() / 2);
    let (half_a, half_b) = (s * I::L / 8, (s * I::L + I::L / 2) / 8);
    // Single bits of both halves are in one line, pairs in a line for each.
    let (plane_a, plane_b) = strip::<I>(s, if C::FORMAT.plane_bits() == 1 { 0 } else { LINE });
    let planes = place.codes.wrapping_add(C::FORMAT.code_bytes());
    let scale_bytes = if C::FORMAT.has_minimum() { 2 } else { C::FORMAT.multiplier_bytes() };
    let multipliers = place.multipliers.wrapping_add(s * I::L * scale_bytes);
    // SAFETY: the strip's registers lie within the group's lines, its multipliers within the group's.
    unsafe {
        Strip {
            a: C::unpack(isa, table, place.codes.add(a), planes.wrapping_add(plane_a), half_a),
            b: C::unpack(isa, table, place.codes.add(b), planes.wrapping_add(plane_b), half_b),
            multipliers: C::multipliers(isa, multipliers),
            minima: C::minima(isa, multipliers),
        }
    }
}

/// A group of one token's activations.
#[derive(Clone, Copy)]
struct Group<I: Isa> {
    x: [I::B; 4],
    scales: Scales<I>,
}

/// What goes with the codes of a group of one token's activations.
#[derive(Clone, Copy)]
struct Scales<I: Isa> {
    /// What to take off the dot product.
    offset: I::I,
    /// The scale.
    x: I::F,
    /// The sum of the codes, for formats with a minimum.
    sum: I::F,
}

/// # Safety
/// `row` is a quantized row of `groups` groups, of which `g` is one.
#[inline(always)]
unsafe fn load_group<I: Isa, C: Codes>(isa: I, row: *const u8, groups: usize, g: usize) -> Group<I> {
    // SAFETY: as the layout of the row says.
    unsafe {
        let codes = row.add(g * GROUP).cast::<i8>();
        let scales = load_scales::<I, C>(isa, row, groups, g);
        let x = [isa.splat8(codes), isa.splat8(codes.add(8)), isa.splat8(codes.add(16)), isa.splat8(codes.add(24))];
        Group { x, scales }
    }
}

/// # Safety
/// As [`load_group`].
#[inline(always)]
unsafe fn load_scales<I: Isa, C: Codes>(isa: I, row: *const u8, groups: usize, g: usize) -> Scales<I> {
    // SAFETY: as the layout of the row says.
    unsafe {
        let scale = row.add(groups * GROUP).cast::<f32>().add(g).read_unaligned();
        let sum = row.add(groups * (GROUP + 4)).cast::<i32>().add(g).read_unaligned();
        Scales {
            offset: isa.splat_i(sum.wrapping_mul(C::offset::<I>())),
            x: isa.splat(scale),
            sum: isa.splat(if C::FORMAT.has_minimum() { sum as f32 } else { 0.0 }),
        }
    }
}

/// The strip's contribution of one group and token.
#[inline(always)]
fn contribution<I: Isa, C: Codes>(isa: I, w: &Strip<I>, x: &Group<I>) -> I::F {
    let sums = isa.pair_sum(C::dots(isa, w.a, x.x), C::dots(isa, w.b, x.x));
    finish::<I, C>(isa, sums, w.multipliers, w.minima, x.scales)
}

/// From the dot product of unsigned codes to the contribution.
#[inline(always)]
fn finish<I: Isa, C: Codes>(isa: I, dot: I::I, multipliers: I::F, minima: I::F, x: Scales<I>) -> I::F {
    let dot = if C::offset::<I>() == 0 { dot } else { isa.sub_i(dot, x.offset) };
    let p = C::scaled(isa, isa.to_f(dot), multipliers, x.x);
    if C::FORMAT.has_minimum() { isa.add(p, isa.mul(x.sum, isa.mul(minima, x.x))) } else { p }
}

/// # Safety
/// As [`panel`], with one token.
#[inline(always)]
unsafe fn one_token<I: Isa, C: Codes>(isa: I, a: LinearArgs, table: I::B) {
    let groups = a.k.div_ceil(GROUP);
    let mut acc = [isa.splat(0.0); 8];
    each_group::<C>(
        a,
        #[inline(always)]
        |place| {
            // SAFETY: the group is one of the row's, strips are those of the level.
            let x = unsafe { load_group::<I, C>(isa, a.x, groups, place.g) };
            each_strip::<I>(
                #[inline(always)]
                |s| {
                    // SAFETY: as above.
                    let w = unsafe { load_strip::<I, C>(isa, table, place, s) };
                    acc[s] = isa.add(acc[s], contribution::<I, C>(isa, &w, &x));
                },
            );
        },
    );
    each_strip::<I>(
        #[inline(always)]
        |s| {
            // SAFETY: there are 16 row scales, the output has 16 rows.
            unsafe {
                let y = if C::FORMAT.has_row_scale() {
                    isa.mul(acc[s], isa.load(a.row_scales.add(s * I::L)))
                } else {
                    acc[s]
                };
                isa.store(a.out.cast::<f32>().add(s * I::L), y);
            }
        },
    );
}

/// # Safety
/// As [`panel`].
#[inline(always)]
unsafe fn many_tokens<I: Isa, C: Codes>(isa: I, a: LinearArgs, table: I::B) {
    let groups = a.k.div_ceil(GROUP);
    each_group::<C>(
        a,
        #[inline(always)]
        |place| {
            each_strip::<I>(
                #[inline(always)]
                |s| {
                    // SAFETY: the group is one of the panel's and of each row's, strips are those of the level, t is
                    // below the number of tokens.
                    unsafe {
                        let Strip { a: wa, b: wb, multipliers, minima } = load_strip::<I, C>(isa, table, place, s);
                        let (w0, w1) = isa.deal(wa[0], wb[0]);
                        let (w2, w3) = isa.deal(wa[1], wb[1]);
                        let (w4, w5) = isa.deal(wa[2], wb[2]);
                        let (w6, w7) = isa.deal(wa[3], wb[3]);
                        let w = [w0, w1, w2, w3, w4, w5, w6, w7];
                        let mut row = a.x;
                        let mut out = a.out.cast::<f32>().add(s * I::L);
                        let mut t = 0;
                        while t < a.tokens {
                            let dot = C::group(isa, w, row.add(place.g * GROUP).cast());
                            let scales = load_scales::<I, C>(isa, row, groups, place.g);
                            let p = finish::<I, C>(isa, dot, multipliers, minima, scales);
                            isa.store(out, isa.add(isa.load(out), p));
                            row = row.wrapping_add(a.stride);
                            out = out.wrapping_add(PANEL_ROWS);
                            t += 1;
                        }
                    }
                },
            );
        },
    );
    if C::FORMAT.has_row_scale() {
        each_strip::<I>(
            #[inline(always)]
            |s| {
                // SAFETY: there are 16 row scales; t is below the number of tokens.
                unsafe {
                    let scales = isa.load(a.row_scales.add(s * I::L));
                    let mut t = 0;
                    while t < a.tokens {
                        let out = a.out.add(t).cast::<f32>().add(s * I::L);
                        isa.store(out, isa.mul(isa.load(out), scales));
                        t += 1;
                    }
                }
            },
        );
    }
}
