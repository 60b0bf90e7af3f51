//! The tiles of `sdot` and `smmla`: one token with codes of 4 bits, and 16, 8 or 4 tokens with integer multipliers.
//!
//! ```text
//! for each run of groups:                          as many as there is room for
//!     prepare the tokens' groups                   in the order of use, beside the numbers that sums start from
//!     for each panel:
//!         one token                                T tokens
//!         for each group:                          for each strip of 4 rows:
//!             acc[strip] += scaled products            for each group:
//!                                                          w = the strip's codes, unpacked
//!                                                          acc[token] += scaled products
//! ```
//! Between runs the sums are where the output will be.

use core::arch::aarch64::*;

use super::super::codes::Codes;
use super::super::groups::{Place, groups_of};
use super::super::{IntPanel, LinearArgs};
use super::{ROWS, STRIPS, Signed};
use crate::kernels::isa::Isa;
use crate::kernels::isa::arm::nibbles::{self, Constants, Scaling};
use crate::kernels::isa::arm::prepare::{self, Room, Run, group_bytes, groups_at_once};
use crate::kernels::isa::arm::{Products, Quad, tokens};
use crate::weights::GROUP;

impl<const MATRIX: bool> IntPanel for Quad<Products<MATRIX>> {
    #[inline(always)]
    unsafe fn int_panel<C: Codes>(self, a: LinearArgs) {
        // SAFETY: passed on.
        unsafe { self.int_panels::<C>(a) }
    }

    #[inline(always)]
    unsafe fn int_panels<C: Codes>(self, a: LinearArgs) {
        // SAFETY: passed on; tiles lie within the tokens.
        unsafe {
            let codes = Signed::<Products<MATRIX>, C>::new(self, a.codebook);
            let mut t = 0;
            if Signed::<Products<MATRIX>, C>::INTEGERS {
                if a.tokens == 16 {
                    codes.tile::<16>(a, t);
                    t += 16;
                }
                if a.tokens - t >= 8 {
                    codes.tile::<8>(a, t);
                    t += 8;
                }
                if a.tokens - t >= 4 {
                    codes.tile::<4>(a, t);
                    t += 4;
                }
            }
            let mut last = a.tokens;
            if C::FORMAT.code_bits() == 4 && a.tokens % 2 == 1 {
                last -= 1;
                codes.alone(a, last);
            }
            if t < last {
                a.each_panel(
                    #[inline(always)]
                    |a| {
                        let t = if Signed::<Products<MATRIX>, C>::INTEGERS { t } else { codes.eights_and_four(a, t) };
                        let t = codes.two(a, t);
                        if C::FORMAT.code_bits() > 4 && t < last {
                            codes.token(a, t);
                        }
                    },
                );
            }
        }
    }
}

/// Where strip `strip` of token `t` will be.
#[inline(always)]
fn strip_of(a: LinearArgs, t: usize, strip: usize) -> *mut f32 {
    a.out.wrapping_add(t).cast::<f32>().wrapping_add(strip * ROWS)
}

impl<const MATRIX: bool, C: Codes> Signed<Products<MATRIX>, C> {
    const SCALING: Scaling = if Self::INTEGERS {
        Scaling::Integers
    } else if C::FORMAT.has_minimum() {
        Scaling::HalvesAndMinima
    } else {
        Scaling::Halves
    };

    /// The groups of the tokens from `t` on that there is room for, from `first` on.
    #[inline(always)]
    fn run<const T: usize>(a: LinearArgs, t: usize, first: usize) -> Run {
        let groups = a.k.div_ceil(GROUP);
        let end = if groups - first < groups_at_once::<T>() { groups } else { first + groups_at_once::<T>() };
        Run { row: a.x.wrapping_add(t * a.stride), stride: a.stride, groups, first, end, offset: Self::OFFSET }
    }

    /// Token `t` alone.
    ///
    /// # Safety
    /// As [`LinearArgs`] says; the panels are of `C`'s format, whose codes have 4 bits.
    #[inline(always)]
    unsafe fn alone(&self, a: LinearArgs, t: usize) {
        let (this, isa) = (self.anew(), self.isa);
        let constants = Constants::ready();
        let mut room = Room::empty();
        let mut run = Self::run::<1>(a, t, 0);
        while run.first < run.groups {
            // SAFETY: the row has the groups.
            unsafe { prepare::token(run, room.start()) };
            a.each_panel(
                #[inline(always)]
                |a| {
                    // SAFETY: the output has the token's 16 rows, and the panel 16 row scales.
                    unsafe {
                        let at = |s| strip_of(a, t, s);
                        let mut acc = [isa.load(at(0)), isa.load(at(1)), isa.load(at(2)), isa.load(at(3))];
                        let mut x = room.start().cast_const();
                        groups_of::<_, C>(
                            isa,
                            a,
                            run.first,
                            run.end,
                            #[inline(always)]
                            |Place { codes, multipliers, .. }| {
                                if Self::HAS_TABLE {
                                    nibbles::add::<true>(
                                        constants,
                                        &mut acc,
                                        Self::SCALING,
                                        this.table,
                                        codes,
                                        multipliers,
                                        x,
                                    );
                                } else {
                                    nibbles::add::<false>(
                                        constants,
                                        &mut acc,
                                        Self::SCALING,
                                        this.table,
                                        codes,
                                        multipliers,
                                        x,
                                    );
                                }
                                x = x.wrapping_add(group_bytes::<1, MATRIX>());
                            },
                        );
                        let mut s = 0;
                        while s < STRIPS {
                            self.leave(a, &run, t, s, acc[s]);
                            s += 1;
                        }
                    }
                },
            );
            run = Self::run::<1>(a, t, run.end);
        }
    }

    /// Writes a strip of a token, scaled after the last run.
    ///
    /// # Safety
    /// As [`LinearArgs`] says; the token and the strip exist.
    #[inline(always)]
    unsafe fn leave(&self, a: LinearArgs, run: &Run, t: usize, strip: usize, acc: float32x4_t) {
        // SAFETY: as the caller vouches.
        unsafe {
            if run.end == run.groups {
                self.finish(a, t, strip, acc);
            } else {
                self.isa.store(strip_of(a, t, strip), acc);
            }
        }
    }

    /// The tokens `t..t + T`.
    ///
    /// # Safety
    /// As [`LinearArgs`] says; the panels are of `C`'s format, which has integer multipliers.
    #[inline(always)]
    unsafe fn tile<const T: usize>(&self, a: LinearArgs, t: usize) {
        let mut room = Room::empty();
        let mut run = Self::run::<T>(a, t, 0);
        while run.first < run.groups {
            // SAFETY: the rows have the groups.
            unsafe {
                if MATRIX {
                    prepare::pairs(run, T, room.start());
                } else {
                    prepare::quads(run, T, room.start());
                }
            }
            a.each_panel(
                #[inline(always)]
                |a| {
                    let mut s = 0;
                    while s < STRIPS {
                        // SAFETY: the panel has the strip, the output the tokens, and the room their groups.
                        unsafe { self.strip::<T>(a, t, s, &run, room.start()) };
                        s += 1;
                    }
                },
            );
            run = Self::run::<T>(a, t, run.end);
        }
    }

    /// Strip `s` of the tokens `t..t + T`; `x` are the run's groups.
    ///
    /// # Safety
    /// As [`Self::tile`]; the strip exists.
    #[inline(always)]
    unsafe fn strip<const T: usize>(&self, a: LinearArgs, t: usize, s: usize, run: &Run, x: *const u8) {
        let (this, isa) = (self.anew(), self.isa);
        let mut acc = [isa.splat(0.0); T];
        if run.first > 0 {
            let mut i = 0;
            while i < T {
                // SAFETY: the output has the tokens.
                unsafe {
                    let (p, q) = (isa.load(strip_of(a, t + i, s)), isa.load(strip_of(a, t + i + 1, s)));
                    (acc[i], acc[i + 1]) = if MATRIX { (vzip1q_f32(p, q), vzip2q_f32(p, q)) } else { (p, q) };
                }
                i += 2;
            }
        }
        let mut x = x;
        groups_of::<_, C>(
            isa,
            a,
            run.first,
            run.end,
            #[inline(always)]
            |place| {
                // SAFETY: the group is one of the panel's, and prepared.
                unsafe {
                    let w = this.arranged(place, s);
                    let scales = self.scales(place, s);
                    let m = scales.multipliers;
                    if MATRIX {
                        let m = [vzip1q_f32(m, m), vzip2q_f32(m, m)];
                        let least = [vzip1q_f32(scales.least, scales.least), vzip2q_f32(scales.least, scales.least)];
                        tokens::by_smmla(&mut acc, w, m, &least, x);
                    } else {
                        tokens::by_sdot(&mut acc, w, &[m, scales.least], x);
                    }
                }
                x = x.wrapping_add(group_bytes::<T, MATRIX>());
            },
        );
        let mut i = 0;
        while i < T {
            // SAFETY: as above.
            unsafe {
                let (p, q) = (acc[i], acc[i + 1]);
                let (p, q) = if MATRIX { (vuzp1q_f32(p, q), vuzp2q_f32(p, q)) } else { (p, q) };
                self.leave(a, run, t + i, s, p);
                self.leave(a, run, t + i + 1, s, q);
            }
            i += 2;
        }
    }
}
