//! The tiles of `sdot` and `smmla`: one token with codes of 4 bits, and 16, 8 or 4 tokens with all formats that have no minima.
//!
//! ```text
//! one token                                many
//! for each run of groups:                  for each run of groups:
//!     prepare the token's groups               prepare the tokens' groups, in the order of use
//!     for each panel:                          for each panel:
//!         for each group:                          unpack the run's strips
//!             acc[strip] += scaled products        for each tile of T tokens and each strip of 4 rows:
//!                                                      for each group:
//!                                                          acc[token] += scaled products
//! ```
//! Between runs the sums are where the output will be.

use core::arch::aarch64::*;

use super::super::codes::Codes;
use super::super::groups::{Place, groups_of};
use super::super::{IntPanel, LinearArgs};
use super::{STRIPS, Signed, first_tile, run_end, strip_of};
use crate::kernels::isa::Isa;
use crate::kernels::isa::arm::nibbles::{self, Constants, Scaling};
use crate::kernels::isa::arm::prepare::{self, Run, TOKEN_RUN, TilesRoom, TokenRoom, group_bytes};
use crate::kernels::isa::arm::strip::{self, RUN, Strips};
use crate::kernels::isa::arm::{Products, Quad, opaque_count, tokens};
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
            if a.tokens >= 4 {
                match Signed::<Products<MATRIX>, C>::TILES {
                    Some(scaling) => codes.tiles(a, scaling),
                    None => codes.many(a),
                }
            }
            let (t, mut last) = (a.tokens / 4 * 4, a.tokens);
            if C::FORMAT.code_bits() == 4 && a.tokens % 2 == 1 {
                last -= 1;
                codes.alone(a, last);
            }
            if t < last {
                a.each_panel(
                    #[inline(always)]
                    |a| {
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

impl<const MATRIX: bool, C: Codes> Signed<Products<MATRIX>, C> {
    const SCALING: Scaling = if Self::INTEGERS {
        Scaling::Integers
    } else if C::FORMAT.has_minimum() {
        Scaling::HalvesAndMinima
    } else {
        Scaling::Halves
    };

    /// How tiles scale; without it there are none.
    const TILES: Option<tokens::Scaling> = if Self::INTEGERS {
        Some(tokens::Scaling::Integers)
    } else if C::FORMAT.has_minimum() {
        None
    } else if C::FORMAT.multiplier_bytes() == 0 {
        Some(tokens::Scaling::Rows)
    } else {
        Some(tokens::Scaling::Halves)
    };

    /// The groups `first..end` of the tokens from `t` on.
    #[inline(always)]
    fn run(a: LinearArgs, t: usize, first: usize, end: usize) -> Run {
        let groups = a.k.div_ceil(GROUP);
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
        let mut room = TokenRoom::empty();
        let mut run = Self::run(a, t, 0, run_end(a, 0, TOKEN_RUN));
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
            run = Self::run(a, t, run.end, run_end(a, run.end, TOKEN_RUN));
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

    /// All tokens but those beyond a multiple of four.
    ///
    /// # Safety
    /// As [`LinearArgs`] says; the panels are of `C`'s format, which scales as `scaling` says; there are four tokens.
    #[inline(always)]
    unsafe fn tiles(&self, a: LinearArgs, scaling: tokens::Scaling) {
        let mut room = TilesRoom::empty();
        let mut strips = Strips::empty();
        let mut run = Self::run(a, 0, 0, run_end(a, 0, RUN));
        while run.first < run.groups {
            let mut t = 0;
            while let Some(count) = first_tile(a, t) {
                let run = Self::run(a, t, run.first, run.end);
                // SAFETY: the rows have the groups.
                unsafe {
                    if MATRIX {
                        prepare::pairs(run, count, Self::prepared(&mut room, t));
                    } else {
                        prepare::quads(run, count, Self::prepared(&mut room, t));
                    }
                }
                t += count;
            }
            a.each_panel(
                #[inline(always)]
                |a| {
                    // SAFETY: the panel has the groups and strips, the output the tokens, and the room their groups.
                    unsafe {
                        self.unpack_run(
                            a,
                            run.first..run.end,
                            &mut strips,
                            #[inline(always)]
                            |this, place, s, to| this.store(place, s, to),
                        );
                        let mut t = 0;
                        while let Some(count) = first_tile(a, t) {
                            let mut s = 0;
                            while s < STRIPS {
                                let (w, x) = (strips.group(s, 0).cast_const(), Self::prepared(&mut room, t));
                                match count {
                                    16 => self.strip::<16>(a, scaling, (t, s), &run, w, x),
                                    8 => self.strip::<8>(a, scaling, (t, s), &run, w, x),
                                    _ => self.strip::<4>(a, scaling, (t, s), &run, w, x),
                                }
                                s = opaque_count(s + 1);
                            }
                            t += count;
                        }
                    }
                },
            );
            run = Self::run(a, 0, run.end, run_end(a, run.end, RUN));
        }
    }

    /// Where the prepared groups of the tile that begins with token `t` are.
    #[inline(always)]
    fn prepared(room: &mut TilesRoom, t: usize) -> *mut u8 {
        room.start().wrapping_add(t / 4 * RUN * group_bytes::<4, MATRIX>())
    }

    /// Unpacks a group of a strip, offset taken out.
    ///
    /// # Safety
    /// `place` is a group of a panel; there is room for it at `to`.
    #[inline(always)]
    unsafe fn store(&self, place: Place, s: usize, to: *mut u8) {
        // SAFETY: as the caller vouches.
        unsafe {
            if MATRIX {
                let scales = self.scales(place, s);
                strip::pairs(to, self.centred(self.arranged(place, s)), scales.multipliers, scales.least);
            } else {
                self.store_centred(place, s, to);
            }
        }
    }

    /// Strip `s` of the tokens `t..t + T`; `w` and `x` are the run's groups.
    ///
    /// # Safety
    /// As [`Self::tiles`]; the strip and the tokens exist.
    #[inline(always)]
    unsafe fn strip<const T: usize>(
        &self,
        a: LinearArgs,
        scaling: tokens::Scaling,
        (t, s): (usize, usize),
        run: &Run,
        w: *const u8,
        x: *const u8,
    ) {
        let isa = self.isa;
        let mut acc = [isa.splat(0.0); T];
        if run.first > 0 {
            let mut i = 0;
            while i < T {
                // SAFETY: the output has the tokens.
                acc[i] = unsafe { isa.load(strip_of(a, t + i, s)) };
                i += 1;
            }
        }
        // SAFETY: the groups are unpacked and prepared, and there is room behind them.
        unsafe {
            if MATRIX {
                tokens::by_smmla(scaling, &mut acc, run.end - run.first, w, x);
            } else {
                tokens::by_sdot(scaling, &mut acc, run.end - run.first, w, x);
            }
        }
        let mut i = 0;
        while i < T {
            let (p, q) = (acc[i], acc[i + 1]);
            // Sums of two tokens each stay as they are until the last run.
            let apart = MATRIX && run.end == run.groups;
            // SAFETY: base instructions.
            let (p, q) = if apart { unsafe { (vuzp1q_f32(p, q), vuzp2q_f32(p, q)) } } else { (p, q) };
            // SAFETY: as above.
            unsafe {
                self.leave(a, run, t + i, s, p);
                self.leave(a, run, t + i + 1, s, q);
            }
            i += 2;
        }
    }
}
