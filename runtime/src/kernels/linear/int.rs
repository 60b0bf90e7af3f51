//! Quantized weights times quantized activations: what all formats and levels share, and the body for one token; that for
//! several is in [`many`].
//!
//! A **strip** is as many rows as a register has 32-bit lanes; its codes lie in two registers of every line, whose lanes
//! `pair_sum` folds into one lane per row.
//!
//! ```text
//! for each group g:  for each strip:
//!     w = the two registers' codes, four parts of 8 inputs each, unpacked          (8 registers)
//!     m = the rows' multipliers as floats
//!     d = pair_sum(dot4(w.a, x), dot4(w.b, x)) − offset·Σx                         x broadcast, 8 inputs at a time
//!     acc[strip] += scaled f32(d)
//! ```
//! 1. Codes are unsigned, so that the unsigned × signed dot instructions take them; Σx takes the offset out again.
//! 2. Formats with a minimum add `f32(Σx) · (m · xscale)`; Σx comes with the activations.

use crate::kernels::isa::{Bytes, strip};
use crate::kernels::linear::codes::Codes;
use crate::kernels::linear::groups::{Place, each_group};
use crate::kernels::linear::{LinearArgs, many};
use crate::weights::{GROUP, LINE};

/// The body of the integer linear entries.
///
/// # Safety
/// As [`LinearArgs`] says; the panels are of `C`'s format.
#[inline(always)]
pub(crate) unsafe fn panels<I: Bytes, C: Codes>(isa: I, a: LinearArgs) {
    // SAFETY: passed on.
    unsafe {
        let table = isa.table(a.codebook);
        if a.tokens == 1 {
            a.each_panel(
                #[inline(always)]
                |a| one_token::<I, C>(isa, a, table),
            );
        } else {
            many::panels::<I, C>(isa, a, table);
        }
    }
}

/// What the dot product is too large by, in units of Σx.
#[inline(always)]
pub(super) const fn offset<I: Bytes, C: Codes>() -> i32 {
    if C::FORMAT.code_bits() == 8 { I::SIGNED_OFFSET } else { C::OFFSET }
}

/// Dot product with four parts of the activations, two lanes per row.
#[inline(always)]
fn dots<I: Bytes, C: Codes>(isa: I, w: [I::B; 4], x: [I::B; 4]) -> I::I {
    if C::FORMAT.code_bits() == 8 { isa.dots_s(w, x) } else { isa.dots_u(C::MAX, w, x) }
}

/// Calls `f` with the number of every strip, unrolled, so that the numbers are constants in it.
#[inline(always)]
pub(super) fn each_strip<I: Bytes>(mut f: impl FnMut(usize)) {
    f(0);
    if I::L <= 8 {
        f(1);
    }
    if I::L <= 4 {
        f(2);
        f(3);
    }
}

/// A strip of a group, ready for any number of tokens.
#[derive(Clone, Copy)]
pub(super) struct Strip<I: Bytes> {
    pub(super) a: [I::B; 4],
    pub(super) b: [I::B; 4],
    pub(super) multipliers: I::F,
    pub(super) minima: I::F,
}

impl<I: Bytes> Strip<I> {
    /// The codes in registers of four inputs each.
    #[inline(always)]
    pub(super) fn dealt(&self, isa: I) -> [I::B; 8] {
        let (w0, w1) = isa.deal(self.a[0], self.b[0]);
        let (w2, w3) = isa.deal(self.a[1], self.b[1]);
        let (w4, w5) = isa.deal(self.a[2], self.b[2]);
        let (w6, w7) = isa.deal(self.a[3], self.b[3]);
        [w0, w1, w2, w3, w4, w5, w6, w7]
    }
}

/// # Safety
/// `place` is a group of a panel and `s` a strip.
#[inline(always)]
pub(super) unsafe fn load_strip<I: Bytes, C: Codes>(isa: I, table: I::B, place: Place, s: usize) -> Strip<I> {
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
struct Group<I: Bytes> {
    x: [I::B; 4],
    /// What to take off the dot product.
    offset: I::I,
    scales: Scales<I>,
}

/// What goes with the codes of a group of one token's activations.
#[derive(Clone, Copy)]
pub(super) struct Scales<I: Bytes> {
    /// The scale.
    pub(super) x: I::F,
    /// The sum of the codes, for formats with a minimum.
    pub(super) sum: I::F,
}

/// # Safety
/// `row` is a quantized row of `groups` groups, of which `g` is one.
#[inline(always)]
unsafe fn load_group<I: Bytes, C: Codes>(isa: I, row: *const u8, groups: usize, g: usize) -> Group<I> {
    // SAFETY: as the layout of the row says.
    unsafe {
        let codes = row.add(g * GROUP).cast::<i8>();
        let scales = load_scales::<I, C>(isa, row, groups, g);
        let offset = isa.splat_i(sum_of(row, groups, g).wrapping_mul(offset::<I, C>()));
        Group { x: splat_group(isa, codes), offset, scales }
    }
}

/// The 32 bytes at `x`, eight per register, in every slot.
///
/// # Safety
/// `x` is valid for reading 32 bytes.
#[inline(always)]
pub(super) unsafe fn splat_group<I: Bytes>(isa: I, x: *const i8) -> [I::B; 4] {
    // SAFETY: the caller vouches for the 32 bytes.
    unsafe { [isa.splat8(x), isa.splat8(x.add(8)), isa.splat8(x.add(16)), isa.splat8(x.add(24))] }
}

/// Σx of the group.
///
/// # Safety
/// As [`load_group`].
#[inline(always)]
unsafe fn sum_of(row: *const u8, groups: usize, g: usize) -> i32 {
    // SAFETY: as the layout of the row says.
    unsafe { row.add(groups * (GROUP + 4)).cast::<i32>().add(g).read_unaligned() }
}

/// # Safety
/// As [`load_group`].
#[inline(always)]
unsafe fn load_scales<I: Bytes, C: Codes>(isa: I, row: *const u8, groups: usize, g: usize) -> Scales<I> {
    // SAFETY: as the layout of the row says.
    unsafe {
        let scale = row.add(groups * GROUP).cast::<f32>().add(g).read_unaligned();
        let sum = if C::FORMAT.has_minimum() { isa.to_f(isa.splat_i(sum_of(row, groups, g))) } else { isa.splat(0.0) };
        Scales { x: isa.splat(scale), sum }
    }
}

/// The strip's contribution of one group and token.
#[inline(always)]
fn contribution<I: Bytes, C: Codes>(isa: I, w: &Strip<I>, x: &Group<I>) -> I::F {
    let sums = isa.pair_sum(dots::<I, C>(isa, w.a, x.x), dots::<I, C>(isa, w.b, x.x));
    let dot = if offset::<I, C>() == 0 { sums } else { isa.sub_i(sums, x.offset) };
    finish::<I, C>(isa, dot, w.multipliers, w.minima, x.scales)
}

/// From the dot product to the contribution.
#[inline(always)]
pub(super) fn finish<I: Bytes, C: Codes>(isa: I, dot: I::I, multipliers: I::F, minima: I::F, x: Scales<I>) -> I::F {
    let p = C::scaled(isa, isa.to_f(dot), multipliers, x.x);
    if C::FORMAT.has_minimum() { isa.add(p, isa.mul(x.sum, isa.mul(minima, x.x))) } else { p }
}

/// # Safety
/// As [`panels`], with one panel and one token.
#[inline(always)]
unsafe fn one_token<I: Bytes, C: Codes>(isa: I, a: LinearArgs, table: I::B) {
    let groups = a.k.div_ceil(GROUP);
    let mut acc = [isa.splat(0.0); 8];
    each_group::<I, C>(
        isa,
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
