//! Quantized weights times quantized activations on AArch64. The layout and the arithmetic are those of
//! [`linear`](super); the shape differs from the general body's, since there are 32 registers of four rows each, codes
//! are signed, and `sdot` takes its second operand from any lane.
//!
//! ```text
//! one token                                          many
//! for each group:                                    for each run of groups:
//!     x = 4 × 8 inputs, each twice                       unpack the run's strips of 4 rows
//!     for each strip of 4 rows:                          for each tile of T tokens (8 or 4) and each strip:
//!         unpack, multiply, add up over the lanes            for each group:
//!         acc[strip] += scaled sum       4 registers             w = the strip's codes              8 registers
//!                                                                for each token:
//!                                                                    x = 32 inputs                 1 or 2 registers
//!                                                                    acc[token] += scaled sum      T registers
//! ```
//! Sums stay in registers, since a vector store takes a slot or two of the pipes that multiply. The unpacking of a
//! run is shared by all tokens of a call; two tokens alone unpack as they go. [`Dot`] runs several strips or tokens side by
//! side. What `sdot` and `smmla` do most has tiles of its own: [`tiles`].

mod tiles;

use core::arch::aarch64::*;

use super::codes::Codes;
use super::groups::{Place, each_group, groups_of};
use super::{IntPanel, LinearArgs};
use crate::kernels::isa::arm::strip::{self, RUN, Strips};
use crate::kernels::isa::arm::{
    Dot, Mull, Quad, Rows, Start, keep_in_register, opaque_count, opaque_pointer, settle, settle_addresses, settle_sum,
};
use crate::kernels::isa::{Bytes, Isa};
use crate::weights::{GROUP, LINE, PANEL_ROWS, WeightFormat};

/// Rows of a strip, and strips of a panel.
const ROWS: usize = 4;
const STRIPS: usize = PANEL_ROWS / ROWS;

/// Where strip `strip` of token `t` will be.
#[inline(always)]
fn strip_of(a: LinearArgs, t: usize, strip: usize) -> *mut f32 {
    a.out.wrapping_add(t).cast::<f32>().wrapping_add(strip * ROWS)
}

/// Tokens of the tile that begins with token `t`: 16, 8 or 4; `None` where there are fewer.
#[inline(always)]
fn first_tile(a: LinearArgs, t: usize) -> Option<usize> {
    match a.tokens - t {
        16.. => Some(16),
        8.. => Some(8),
        4.. => Some(4),
        _ => None,
    }
}

/// The end of the run of at most `most` groups that begins with group `first`.
#[inline(always)]
fn run_end(a: LinearArgs, first: usize, most: usize) -> usize {
    let groups = a.k.div_ceil(GROUP);
    if groups - first < most { groups } else { first + most }
}

impl IntPanel for Quad<Mull> {
    #[inline(always)]
    unsafe fn int_panel<C: Codes>(self, a: LinearArgs) {
        // SAFETY: passed on; the tokens are there.
        unsafe {
            let codes = Signed::<Mull, C>::new(self, a.codebook);
            if a.tokens >= 4 {
                codes.many(a);
            }
            let t = codes.two(a, a.tokens / 4 * 4);
            if t < a.tokens {
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

/// The scales of a group of a strip.
#[derive(Clone, Copy)]
struct Scales {
    multipliers: float32x4_t,
    /// The addend of [`Dot::times`].
    least: float32x4_t,
    minima: float32x4_t,
}

/// Scale and sum of a group of a token.
#[derive(Clone, Copy)]
struct Input {
    scale: f32,
    sum: i32,
}

impl Input {
    /// # Safety
    /// `codes` points to the codes of group `g` of a row of `groups`.
    #[inline(always)]
    unsafe fn load(codes: *const i8, groups: usize, g: usize) -> Self {
        let scales = codes.wrapping_add(groups * GROUP - g * (GROUP - 4));
        // SAFETY: as the layout of the row says; both are words.
        unsafe {
            Self {
                scale: scales.cast::<f32>().read_unaligned(),
                sum: scales.wrapping_add(groups * 4).cast::<i32>().read_unaligned(),
            }
        }
    }
}

impl<D: Dot, C: Codes> Signed<D, C> {
    const HAS_TABLE: bool = matches!(C::FORMAT, WeightFormat::Q4);
    const IS_BYTES: bool = C::FORMAT.code_bits() == 8;
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
    const MAX: i32 = if Self::OFFSET == 0 { Self::MAX_STORED } else { Self::OFFSET };
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

    /// The same, with a table of its own for a loop.
    #[inline(always)]
    fn anew(&self) -> Self {
        if Self::HAS_TABLE { Self { table: keep_in_register(self.table), ..*self } } else { Self { ..*self } }
    }

    /// All tokens but those beyond a multiple of four.
    ///
    /// # Safety
    /// As [`LinearArgs`] says, and there are four tokens; the panels are of `C`'s format.
    #[inline(always)]
    unsafe fn many(&self, a: LinearArgs) {
        let groups = a.k.div_ceil(GROUP);
        let mut strips = Strips::empty();
        a.each_panel(
            #[inline(always)]
            |a| {
                let mut first = 0;
                while first < groups {
                    let end = run_end(a, first, RUN);
                    // SAFETY: the panel has the groups; tiles lie within the tokens.
                    unsafe {
                        self.unpack_run(
                            a,
                            first..end,
                            &mut strips,
                            #[inline(always)]
                            |this, place, s, to| this.store_centred(place, s, to),
                        );
                        let mut t = 0;
                        while let Some(count) = first_tile(a, t) {
                            let mut s = 0;
                            while s < STRIPS {
                                let w = strips.group(s, 0).cast_const();
                                if count == 4 {
                                    self.tile::<4>(a, (t, s), first..end, w);
                                } else {
                                    self.tile::<8>(a, (t, s), first..end, w);
                                    if count == 16 {
                                        self.tile::<8>(a, (t + 8, s), first..end, w);
                                    }
                                }
                                s = opaque_count(s + 1);
                            }
                            t += count;
                        }
                    }
                    first = end;
                }
            },
        );
    }

    /// Two tokens from `t` on, where there are as many; returns the next token.
    ///
    /// # Safety
    /// As [`LinearArgs`] says; the panel is of `C`'s format.
    #[inline(always)]
    unsafe fn two(&self, a: LinearArgs, t: usize) -> usize {
        if a.tokens - t < 2 {
            return t;
        }
        // SAFETY: passed on; the tile lies within the tokens.
        unsafe { self.pair(a, t) };
        t + 2
    }

    /// The strip's codes.
    ///
    /// # Safety
    /// `place` is a group of a panel.
    #[inline(always)]
    unsafe fn unpack(&self, place: Place, strip: usize) -> Rows {
        let (half, within) = (strip / 2, strip % 2 * 16);
        let codes = place.codes.wrapping_add(half * (C::FORMAT.code_bytes() / 2) + within);
        // Single bits of both halves are in one line, pairs in a line for each.
        let line = if C::FORMAT.plane_bits() == 1 { 0 } else { half * LINE };
        let planes = place.codes.wrapping_add(C::FORMAT.code_bytes() + line + within);
        // SAFETY: the strip's registers lie within the group's lines.
        unsafe {
            let a = C::unpack(self.isa, self.table, codes, planes, half);
            let b = C::unpack(self.isa, self.table, codes.wrapping_add(32), planes.wrapping_add(32), half);
            (signed(a), signed(b))
        }
    }

    /// The strip's codes in the order that [`Dot::group`] wants, offset included.
    ///
    /// # Safety
    /// `place` is a group of a panel.
    #[inline(always)]
    unsafe fn arranged(&self, place: Place, strip: usize) -> [int8x16_t; 8] {
        let isa = self.isa;
        if C::FORMAT.code_bits() == 4 {
            let at = place.codes.wrapping_add(strip / 2 * (C::FORMAT.code_bytes() / 2) + strip % 2 * 16);
            // SAFETY: the strip's registers lie within the group's lines.
            let load = |offset| unsafe { isa.load_b(at.wrapping_add(offset)) };
            if let Some([p, q, r, s]) = D::arrange_nibbles([load(0), load(LINE)], [load(32), load(LINE + 32)]) {
                let code = |w| if Self::HAS_TABLE { isa.lookup(self.table, w) } else { w };
                let (a, b) = ([p, q, r, s].map(|w| code(isa.lo(w))), [p, q, r, s].map(|w| code(isa.hi(w))));
                let (a, b) = (signed(a), signed(b));
                return [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]];
            }
        }
        // SAFETY: as the caller vouches.
        D::arrange(unsafe { self.unpack(place, strip) })
    }

    /// The strip's scales.
    ///
    /// # Safety
    /// As [`Self::unpack`].
    #[inline(always)]
    unsafe fn scales(&self, place: Place, strip: usize) -> Scales {
        let bytes = if C::FORMAT.has_minimum() { 2 } else { C::FORMAT.multiplier_bytes() };
        let at = place.multipliers.wrapping_add(strip * ROWS * bytes);
        // SAFETY: the strip's multipliers lie within the group's.
        let (multipliers, minima) = unsafe { (C::multipliers(self.isa, at), C::minima(self.isa, at)) };
        let least = self.isa.mul(multipliers, self.isa.splat(-f32::from_bits(D::BIAS as u32)));
        Scales { multipliers, least, minima }
    }

    /// The contribution of a group.
    #[inline(always)]
    fn scaled(&self, sum: int32x4_t, w: Scales, x: Input) -> float32x4_t {
        let isa = self.isa;
        if Self::INTEGERS {
            // SAFETY: base instructions.
            return unsafe { vmulq_n_f32(D::times(sum, w.multipliers, w.least), x.scale) };
        }
        let xscale = isa.splat(x.scale);
        let p = C::scaled(isa, isa.to_f(sum), w.multipliers, xscale);
        if C::FORMAT.has_minimum() {
            isa.add(p, isa.mul(isa.splat(x.sum as f32), isa.mul(w.minima, xscale)))
        } else {
            p
        }
    }

    /// Token `t` alone.
    ///
    /// # Safety
    /// As [`LinearArgs`] says; the panel is of `C`'s format.
    #[inline(always)]
    unsafe fn token(&self, a: LinearArgs, t: usize) {
        let (this, isa) = (self.anew(), self.isa);
        let groups = a.k.div_ceil(GROUP);
        let row = a.x.wrapping_add(t * a.stride).cast::<i8>();
        let mut acc = [isa.splat(0.0); STRIPS];
        each_group::<_, C>(
            isa,
            a,
            #[inline(always)]
            |place| {
                // SAFETY: the group is one of the row's and of the panel's.
                unsafe {
                    let codes = row.add(place.g * GROUP);
                    let x = signed([
                        isa.splat8(codes),
                        isa.splat8(codes.add(8)),
                        isa.splat8(codes.add(16)),
                        isa.splat8(codes.add(24)),
                    ]);
                    let x = D::hold_inputs(x);
                    let input = Input::load(codes, groups, place.g);
                    let start = if Self::OFFSET == 0 {
                        Start::constant(Self::BIAS)
                    } else {
                        Start::new(Self::BIAS - Self::OFFSET * input.sum)
                    };
                    // Scaling all at once hides latencies, scaling half at once saves registers.
                    let [mut p, mut q] = this.strips(place, 0, x, start);
                    if D::TOGETHER < 4 {
                        settle_sum(&mut p);
                        settle_sum(&mut q);
                    } else {
                        acc[0] = isa.add(acc[0], this.scaled(p, this.scales(place, 0), input));
                        acc[1] = isa.add(acc[1], this.scaled(q, this.scales(place, 1), input));
                        settle(&mut acc[0]);
                        settle(&mut acc[1]);
                    }
                    let [r, s] = this.strips(place, 2, x, start);
                    if D::TOGETHER < 4 {
                        acc[0] = isa.add(acc[0], this.scaled(p, this.scales(place, 0), input));
                        acc[1] = isa.add(acc[1], this.scaled(q, this.scales(place, 1), input));
                    }
                    acc[2] = isa.add(acc[2], this.scaled(r, this.scales(place, 2), input));
                    acc[3] = isa.add(acc[3], this.scaled(s, this.scales(place, 3), input));
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

    /// The sums of the strips `first` and `first + 1`.
    ///
    /// # Safety
    /// `place` is a group of a panel.
    #[inline(always)]
    unsafe fn strips(&self, place: Place, first: usize, x: [int8x16_t; 4], start: Start) -> [int32x4_t; 2] {
        // SAFETY: passed on.
        let rows = unsafe { [self.unpack(place, first), self.unpack(place, first + 1)] };
        D::rows(Self::MAX_STORED, rows, x, start)
    }

    /// Unpacks a run of the panel's groups, each strip of a group by `store`.
    ///
    /// # Safety
    /// The panel has the groups, which are no more than a run; `store` may be called with them and room for a group.
    #[inline(always)]
    unsafe fn unpack_run(
        &self,
        a: LinearArgs,
        groups: core::ops::Range<usize>,
        strips: &mut Strips,
        store: impl Fn(&Self, Place, usize, *mut u8),
    ) {
        let this = self.anew();
        groups_of::<_, C>(
            self.isa,
            a,
            groups.start,
            groups.end,
            #[inline(always)]
            |place| {
                let g = place.g - groups.start;
                store(&this, place, 0, strips.group(0, g));
                store(&this, place, 1, strips.group(1, g));
                store(&this, place, 2, strips.group(2, g));
                store(&this, place, 3, strips.group(3, g));
            },
        );
    }

    /// Unpacks a group of a strip, offset taken out.
    ///
    /// # Safety
    /// `place` is a group of a panel; there is room for it at `to`.
    #[inline(always)]
    unsafe fn store_centred(&self, place: Place, s: usize, to: *mut u8) {
        // SAFETY: as the caller vouches.
        unsafe {
            let Scales { multipliers, least, minima } = self.scales(place, s);
            let addend = if C::FORMAT.has_minimum() { minima } else { least };
            strip::rows(to, self.centred(self.arranged(place, s)), multipliers, addend);
        }
    }

    /// Strip `s` of the tokens `t..t + T`, of the groups of a run; `w` are the strip's.
    ///
    /// # Safety
    /// As [`LinearArgs`] says; the strip and the tokens exist, and the groups are at `w`.
    #[inline(always)]
    unsafe fn tile<const T: usize>(
        &self,
        a: LinearArgs,
        (t, s): (usize, usize),
        groups: core::ops::Range<usize>,
        w: *const u8,
    ) {
        let mut acc = [self.isa.splat(0.0); T];
        if groups.start > 0 {
            let mut i = 0;
            while i < T {
                // SAFETY: the output has the tokens.
                acc[i] = unsafe { self.isa.load(strip_of(a, t + i, s)) };
                i += 1;
            }
        }
        let mut w = w;
        let mut g = groups.start;
        while g < groups.end {
            // SAFETY: the group is one of the rows', and unpacked.
            unsafe {
                let (codes, multipliers, addend) = strip::read(w);
                let scales = Scales { multipliers, least: addend, minima: addend };
                let strip = Strip { w: D::hold::<T>(codes), scales, g };
                // One pointer that goes from token to token: the compiler would keep two for each.
                let x = opaque_pointer(a.x.add(t * a.stride + g * GROUP)).cast();
                let x = self.batch::<T, 4>(a, &strip, x, &mut acc, 0);
                if T > 4 {
                    self.batch::<T, 4>(a, &strip, x, &mut acc, 4);
                }
            }
            w = w.wrapping_add(strip::BYTES);
            g += 1;
        }
        let mut i = 0;
        while i < T {
            // SAFETY: the panel has 16 row scales, the output the tokens.
            unsafe {
                if groups.end == a.k.div_ceil(GROUP) {
                    self.finish(a, t + i, s, acc[i]);
                } else {
                    self.isa.store(strip_of(a, t + i, s), acc[i]);
                }
            }
            i += 1;
        }
    }

    /// The tokens `t` and `t + 1`.
    ///
    /// # Safety
    /// As [`LinearArgs`] says; the panel is of `C`'s format.
    #[inline(always)]
    unsafe fn pair(&self, a: LinearArgs, t: usize) {
        let mut s = 0;
        while s < STRIPS {
            let this = self.anew();
            let mut acc = [self.isa.splat(0.0); 2];
            each_group::<_, C>(
                self.isa,
                a,
                #[inline(always)]
                |place| {
                    // SAFETY: the group is one of the rows' and of the panel's.
                    unsafe {
                        let w = this.centred(this.arranged(place, s));
                        let strip = Strip { w, scales: self.scales(place, s), g: place.g };
                        let x = opaque_pointer(a.x.add(t * a.stride + place.g * GROUP)).cast();
                        self.batch::<2, 2>(a, &strip, x, &mut acc, 0);
                    }
                },
            );
            let mut i = 0;
            while i < 2 {
                // SAFETY: the panel has 16 row scales, the output the tokens.
                unsafe { self.finish(a, t + i, s, acc[i]) };
                i += 1;
            }
            s += 1;
        }
    }

    /// Adds the group's part to the sums of the tokens `first..first + M`, from whose first `codes` are; returns those
    /// of the token after them.
    ///
    /// # Safety
    /// The rows have the group, and the sums the tokens.
    #[inline(always)]
    unsafe fn batch<const T: usize, const M: usize>(
        &self,
        a: LinearArgs,
        strip: &Strip,
        codes: *const i8,
        acc: &mut [float32x4_t; T],
        first: usize,
    ) -> *const i8 {
        let groups = a.k.div_ceil(GROUP);
        let mut x = [codes; M];
        let mut i = 1;
        while i < M {
            x[i] = x[i - 1].wrapping_add(a.stride);
            i += 1;
        }
        settle_addresses(&mut x);
        let start = Start::constant(Self::BIAS);
        let mut sums = [start.whole; M];
        // SAFETY: the rows have the group.
        unsafe {
            if M == 4 && D::TOGETHER == 4 {
                [sums[0], sums[1], sums[2], sums[3]] = D::group(Self::MAX, strip.w, [x[0], x[1], x[2], x[3]], start);
            } else {
                [sums[0], sums[1]] = D::group(Self::MAX, strip.w, [x[0], x[1]], start);
                if M == 4 {
                    settle_sum(&mut sums[0]);
                    settle_sum(&mut sums[1]);
                    [sums[2], sums[3]] = D::group(Self::MAX, strip.w, [x[2], x[3]], start);
                }
            }
        }
        let mut i = 0;
        while i < M {
            // SAFETY: as above.
            let input = unsafe { Input::load(x[i], groups, strip.g) };
            acc[first + i] = self.isa.add(acc[first + i], self.scaled(sums[i], strip.scales, input));
            i += 1;
        }
        let mut i = 0;
        while i < M {
            settle(&mut acc[first + i]);
            i += 1;
        }
        x[M - 1].wrapping_add(a.stride)
    }

    /// Takes the offset out.
    #[inline(always)]
    fn centred(&self, w: [int8x16_t; 8]) -> [int8x16_t; 8] {
        if Self::OFFSET == 0 {
            return w;
        }
        // SAFETY: base instructions.
        w.map(|w| unsafe { vsubq_s8(w, vdupq_n_s8(Self::OFFSET as i8)) })
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
            isa.store(strip_of(a, t, strip), y);
        }
    }
}

/// A strip of a group, ready for any number of tokens.
struct Strip {
    w: [int8x16_t; 8],
    scales: Scales,
    g: usize,
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

/// Bytes as signed numbers.
#[inline(always)]
fn signed(w: [uint8x16_t; 4]) -> [int8x16_t; 4] {
    // SAFETY: base instructions.
    unsafe {
        [vreinterpretq_s8_u8(w[0]), vreinterpretq_s8_u8(w[1]), vreinterpretq_s8_u8(w[2]), vreinterpretq_s8_u8(w[3])]
    }
}
