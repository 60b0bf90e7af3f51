//! Quantized weights times several tokens.
//!
//! ```text
//! for each run of groups:
//!     start = −offset · Σx                             of every token and group
//!     for each panel, group and strip:
//!         w = the strip's codes, unpacked once
//!         m = the rows' multipliers as floats
//!         for each token:
//!             d = start + dot(w, x)                    x broadcast, a few inputs at a time
//!             out[token][strip] += scaled f32(d)
//! ```
//! 1. The sums live in `out`: a load and a store beside 8 dot products cost less than the registers would, and any number of
//!    tokens shares one unpacking. Nobody writes zeros there: in the first group the sums so far are read from elsewhere.
//! 2. What unsigned codes make the dot products too large by is what they start from, so that taking it out is one load. It is
//!    computed once for all panels of a call, a register of groups at a time.
//! 3. Of each row a register holds 4 inputs, or 8 and there are two, as one is loaded: what is better depends on the level and
//!    the codes ([`Bytes::PAIRS_UP_TO`]).
//! 4. In the chain of a token's dot product each instruction waits four or five cycles for the last. Levels with registers for it
//!    let those of 8 tokens grow side by side ([`Bytes::dots_together`]); the others do what the processor finds to do meanwhile.
//! 5. Where multipliers are whole numbers, dot products can start from [`BIAS`], which saves the
//!    conversion ([`Bytes::times`]).

use core::mem::MaybeUninit;

use crate::kernels::isa::{BIAS, Bytes, TOGETHER};
use crate::kernels::linear::codes::Codes;
use crate::kernels::linear::groups::groups_of;
use crate::kernels::linear::int::{Scales, Strip, each_strip, finish, load_strip, offset, splat_group};
use crate::kernels::linear::{LinearArgs, MAX_TOKENS, Sums};
use crate::weights::{BLOCK, GROUP, PANEL_ROWS};

/// Groups of a run: a token's starts are then as far apart as its sums.
const RUN: usize = PANEL_ROWS;
const _: () = assert!(RUN.is_multiple_of(BLOCK));

/// Whether dot products start from [`BIAS`].
const fn fuses<I: Bytes, C: Codes>() -> bool {
    // Multipliers of a byte are whole numbers; the largest sum is far below 2²².
    I::FUSES && C::FORMAT.multiplier_bytes() == 1 && GROUP as i32 * C::MAX * 127 < 1 << 22
}

/// What every token's sums are before the first group: so nobody has to write zeros.
static ZEROS: Sums<1> = Sums::ZEROS;

/// Room for the starts of a run.
type Starts = MaybeUninit<[[i32; RUN]; MAX_TOKENS]>;

/// # Safety
/// As [`LinearArgs`] says; the panels are of `C`'s format, whose codebook is in `table`.
#[inline(always)]
pub(super) unsafe fn panels<I: Bytes, C: Codes>(isa: I, a: LinearArgs, table: I::B) {
    let groups = a.k.div_ceil(GROUP);
    let mut room = Starts::uninit();
    let starts = room.as_mut_ptr().cast::<i32>();
    let mut first = 0;
    while first < groups {
        let last = if groups - first < RUN { groups } else { first + RUN };
        // SAFETY: groups and panels are those of the call.
        unsafe {
            if offset::<I, C>() != 0 || C::FORMAT.has_minimum() {
                start::<I, C>(isa, a, first, last, starts);
            }
            // That of group g is so far from the end.
            let starts = starts.wrapping_add(RUN).wrapping_sub(last);
            a.each_panel(
                #[inline(always)]
                |a| run::<I, C>(isa, a, table, (first, last), starts),
            );
        }
        first = last;
    }
    if C::FORMAT.has_row_scale() {
        a.each_panel(
            #[inline(always)]
            |a| {
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
                )
            },
        );
    }
}

/// Writes what the dot products of the groups `first..last` start from, or, of formats with a minimum, the groups' sums as
/// floats, at the end of the tokens' places.
///
/// # Safety
/// As [`LinearArgs`] says; the groups are the rows', at most [`RUN`].
#[inline(always)]
unsafe fn start<I: Bytes, C: Codes>(isa: I, a: LinearArgs, first: usize, last: usize, starts: *mut i32) {
    let groups = a.k.div_ceil(GROUP);
    let mut end = a.x.wrapping_add(groups * (GROUP + 4) + last * 4).cast::<i32>();
    let mut to = starts.wrapping_add(RUN);
    let mut t = 0;
    while t < a.tokens {
        // SAFETY: a register that ends with the last sum begins within the row, whose other parts are nine times as long
        // as the sums, but for a row of one group in a register of 16.
        unsafe {
            if I::L > 9 && groups == 1 {
                let sum = isa.splat_i(end.sub(1).read_unaligned());
                isa.store_i(to.sub(I::L), started::<I, C>(isa, sum));
            } else {
                let mut back = 0;
                while back < last - first {
                    back += I::L;
                    let sums = isa.load_i(end.sub(back));
                    isa.store_i(to.sub(back), started::<I, C>(isa, sums));
                }
            }
        }
        end = end.wrapping_byte_add(a.stride);
        to = to.wrapping_add(RUN);
        t += 1;
    }
}

/// Σx as it is read later.
#[inline(always)]
fn started<I: Bytes, C: Codes>(isa: I, sums: I::I) -> I::I {
    if C::FORMAT.has_minimum() {
        return isa.bits(isa.to_f(sums));
    }
    let raised = match offset::<I, C>() {
        8 => isa.shl_i::<3>(sums),
        16 => isa.shl_i::<4>(sums),
        32 => isa.shl_i::<5>(sums),
        64 => isa.shl_i::<6>(sums),
        128 => isa.shl_i::<7>(sums),
        _ => unreachable!("codes are raised by a power of two"),
    };
    isa.sub_i(isa.splat_i(if fuses::<I, C>() { BIAS } else { 0 }), raised)
}

/// A panel's part of a run: `starts` points to where group 0's would be.
///
/// # Safety
/// As [`panels`], with one panel; the run's starts are written.
#[inline(always)]
unsafe fn run<I: Bytes, C: Codes>(
    isa: I,
    a: LinearArgs,
    table: I::B,
    (first, last): (usize, usize),
    starts: *const i32,
) {
    let groups = a.k.div_ceil(GROUP);
    groups_of::<I, C>(
        isa,
        a,
        first,
        last,
        #[inline(always)]
        |place| {
            each_strip::<I>(
                #[inline(always)]
                |s| {
                    // SAFETY: the group is one of the panel's and of each row's, strips are those of the level, t is
                    // below the number of tokens.
                    unsafe {
                        let mut strip = load_strip::<I, C>(isa, table, place, s);
                        if fuses::<I, C>() {
                            // Formats with whole multipliers have no minima.
                            strip.minima = isa.mul(strip.multipliers, isa.splat(-f32::from_bits(BIAS as u32)));
                        }
                        let w = strip.dealt(isa);
                        let out = a.out.cast::<f32>().add(s * I::L);
                        let (sums, step) =
                            if place.g == 0 { (ZEROS.0.as_ptr().cast(), 0) } else { (out.cast_const(), PANEL_ROWS) };
                        let mut at = At {
                            codes: a.x.add(place.g * GROUP),
                            scale: a.x.add(groups * GROUP + place.g * 4),
                            start: starts.wrapping_add(place.g),
                            sums,
                            out,
                        };
                        let mut t = 0;
                        while I::SIDE_BY_SIDE && t + TOGETHER <= a.tokens {
                            together::<I, C>(isa, &strip, w, at, (a.stride, step));
                            at = at.skip(TOGETHER, a.stride, step);
                            t += TOGETHER;
                        }
                        while t < a.tokens {
                            token::<I, C>(isa, &strip, w, at);
                            at = at.skip(1, a.stride, step);
                            t += 1;
                        }
                    }
                },
            );
        },
    );
}

/// Where a token's things are, of a group and strip.
#[derive(Clone, Copy)]
struct At {
    codes: *const u8,
    scale: *const u8,
    start: *const i32,
    /// The sum so far.
    sums: *const f32,
    /// Where the next one goes.
    out: *mut f32,
}

impl At {
    /// Those `n` tokens on; the sums so far are `step` floats apart.
    #[inline(always)]
    fn skip(self, n: usize, stride: usize, step: usize) -> Self {
        Self {
            codes: self.codes.wrapping_add(n * stride),
            scale: self.scale.wrapping_add(n * stride),
            start: self.start.wrapping_add(n * RUN),
            sums: self.sums.wrapping_add(n * step),
            out: self.out.wrapping_add(n * PANEL_ROWS),
        }
    }
}

/// The parts of [`TOGETHER`] tokens, whose dot products grow side by side: in the chain of one, each instruction waits for the
/// last, four or five cycles.
///
/// # Safety
/// All that `at` and the tokens after it name is there.
#[inline(always)]
unsafe fn together<I: Bytes, C: Codes>(isa: I, strip: &Strip<I>, w: [I::B; 8], at: At, (stride, step): (usize, usize)) {
    // SAFETY: as the caller vouches.
    unsafe {
        let mut dots = [isa.splat_i(0); TOGETHER];
        if offset::<I, C>() != 0 {
            let mut t = 0;
            while t < TOGETHER {
                dots[t] = isa.splat_i(*at.start.add(t * RUN));
                t += 1;
            }
        }
        let dots = isa.dots_together(dots, w, at.codes, stride);
        let mut t = 0;
        while t < TOGETHER {
            add::<I, C>(isa, strip, dots[t], at.skip(t, stride, step));
            t += 1;
        }
    }
}

/// A token's part.
///
/// # Safety
/// All that `at` names is there.
#[inline(always)]
unsafe fn token<I: Bytes, C: Codes>(isa: I, strip: &Strip<I>, w: [I::B; 8], at: At) {
    // SAFETY: as the caller vouches.
    unsafe {
        let start = isa.splat_i(if offset::<I, C>() == 0 { 0 } else { *at.start });
        let (pairs, signed) = (C::MAX <= I::PAIRS_UP_TO, C::FORMAT.code_bits() == 8);
        let dot = if pairs {
            let (a, b, x) = (strip.a, strip.b, splat_group(isa, at.codes.cast()));
            if signed { isa.pairs_s_from(start, a, b, x) } else { isa.pairs_from(start, C::MAX, a, b, x) }
        } else {
            let x = isa.lanes_of_group(at.codes.cast());
            if signed { isa.dots_s_from(start, w, x) } else { isa.dots_from(start, C::MAX, w, x) }
        };
        add::<I, C>(isa, strip, dot, at);
    }
}

/// Adds a token's dot products, scaled, to its sums.
///
/// # Safety
/// All that `at` names is there.
#[inline(always)]
unsafe fn add<I: Bytes, C: Codes>(isa: I, strip: &Strip<I>, dot: I::I, at: At) {
    // SAFETY: as the caller vouches.
    unsafe {
        let x = isa.splat(at.scale.cast::<f32>().read_unaligned());
        let scales = Scales { x, sum: isa.splat(if C::FORMAT.has_minimum() { *at.start.cast::<f32>() } else { 0.0 }) };
        let p = if fuses::<I, C>() {
            isa.mul(isa.times(dot, strip.multipliers, strip.minima), x)
        } else {
            finish::<I, C>(isa, dot, strip.multipliers, strip.minima, scales)
        };
        isa.store(at.out, isa.add(isa.load(at.sums), p));
    }
}
