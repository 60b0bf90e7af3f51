//! The inner loop of the packer's search for a group's scale: how well a grid of whole numbers fits a group of weights
//! over some scale.
//!
//! ```text
//! half = 2·w/scale rounded down (one byte; borders between whole numbers are multiples of one half)
//! c    = the grid's value nearest to it
//! wc   = Σ h·w·c      cc = Σ h·c²
//! ```
//! The plain body is the definition; those for AVX2 and AVX-512 do the same operations in the same order. They are written
//! by hand because a search is some thirty of these for 32 weights, and the compiler makes several times as many instructions of
//! the plain one. In a table of 16 values, the upper four bits of a half unit say in which of 16 cells it lies; a byte
//! shuffle looks up what every cell begins with, and its borders.

use std::vec::Vec;

use crate::weights::GROUP;

/// Added and taken off again, it rounds a number below 2²² to the nearest integer, ties to even, without a call.
const ROUND: f32 = 12_582_912.0;
const LANES: usize = 8;

/// The way from a half unit to the nearest value of a grid.
#[derive(Clone, Debug, PartialEq)]
pub enum Nearest {
    /// Every whole number from the first to the second is a value.
    Even(i8, i8),
    /// A table of values.
    Table {
        /// What each cell of 16 half units begins with; cells are numbered by the upper four bits of the byte.
        base: [i8; 16],
        /// The first border within each cell, the second, and so on.
        borders: Vec<Border>,
    },
}

/// A border within each cell, if there is one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Border {
    /// The last half unit below it; 127 for none.
    last: [i8; 16],
    /// What the value beyond it has over the one below.
    step: [i8; 16],
}

/// A group of weights in the order of 1.
#[derive(Clone, Debug)]
pub struct Weighed {
    /// Weights.
    pub w: [f32; GROUP],
    /// Importance of their errors.
    pub h: [f32; GROUP],
    /// `h·w`.
    pub hw: [f32; GROUP],
}

/// The half unit of a number that is given in half units: rounded down, but where it is whole, whose neighbours are
/// equally near to the border between them.
#[inline(always)]
#[must_use]
pub fn half_unit(v: f32) -> i8 {
    let v = v - 0.5;
    let v = if v < -128.0 { -128.0 } else { v };
    let v = if v > 127.0 { 127.0 } else { v };
    // The rounded integer stands in the low bits of the sum.
    (v + ROUND).to_bits() as i8
}

impl Nearest {
    /// The way to the nearest of 16 ascending `values`, which gives the entry of `named` in its place.
    #[must_use]
    pub fn of_table(values: &[i8; 16], named: &[i8; 16]) -> Self {
        let mut base = [named[0]; 16];
        let mut borders: Vec<Border> = Vec::new();
        let mut count = [0; 16];
        for i in 1..16 {
            // From here on, value `i` is nearer than the one before.
            let first = i32::from(values[i - 1]) + i32::from(values[i]);
            let step = named[i].wrapping_sub(named[i - 1]);
            for number in 0..16_i32 {
                let at = (number & 15) as usize;
                let begin = if number < 8 { 16 * number } else { 16 * (number - 16) };
                if first <= begin {
                    base[at] = base[at].wrapping_add(step);
                } else if first < begin + 16 {
                    if borders.len() == count[at] {
                        borders.push(Border { last: [i8::MAX; 16], step: [0; 16] });
                    }
                    borders[count[at]].last[at] = (first - 1) as i8;
                    borders[count[at]].step[at] = step;
                    count[at] += 1;
                }
            }
        }
        Self::Table { base, borders }
    }

    /// The value nearest to a half unit.
    #[inline]
    #[must_use]
    pub fn value(&self, half: i8) -> i8 {
        match self {
            Self::Even(low, high) => ((i16::from(half) + 1) >> 1).clamp((*low).into(), (*high).into()) as i8,
            Self::Table { base, borders } => {
                let cell = usize::from(half as u8 >> 4);
                let beyond = borders.iter().filter(|border| half > border.last[cell]);
                beyond.fold(base[cell], |value, border| value.wrapping_add(border.step[cell]))
            }
        }
    }
}

/// Tries scales: `halves` has what brings the weights to half units, 2 / scale. Each has to be finite. Writes `Σ h·w·c`
/// and `Σ h·c²` for each.
pub fn trials<const N: usize>(nearest: &Nearest, group: &Weighed, halves: &[f32; N]) -> [[f32; N]; 2] {
    let [mut wc, mut cc] = [[0.0; N]; 2];
    #[cfg(target_arch = "x86_64")]
    if super::Level::Avx512.is_supported() {
        // SAFETY: the CPU has the level, and the level these instructions.
        unsafe { avx512::trials(nearest, group, halves, &mut wc, &mut cc) };
        return [wc, cc];
    } else if super::Level::Avx2.is_supported() {
        // SAFETY: as above.
        unsafe { avx2::trials(nearest, group, halves, &mut wc, &mut cc) };
        return [wc, cc];
    }
    plain(nearest, group, halves, &mut wc, &mut cc);
    [wc, cc]
}

fn plain(nearest: &Nearest, group: &Weighed, halves: &[f32], wc: &mut [f32], cc: &mut [f32]) {
    for ((by, wc), cc) in halves.iter().zip(wc).zip(cc) {
        let (mut wcs, mut ccs) = ([0.0; LANES], [0.0; LANES]);
        for (i, ((w, h), hw)) in group.w.iter().zip(&group.h).zip(&group.hw).enumerate() {
            let c = f32::from(nearest.value(half_unit(w * by)));
            wcs[i % LANES] += hw * c;
            ccs[i % LANES] += h * c * c;
        }
        (*wc, *cc) = (across(wcs), across(ccs));
    }
}

/// The refitted scale `wc/cc` of the trial that takes most off the error, which is `wc²/cc`: the first of equals; 0 where
/// none takes anything.
#[must_use]
pub fn best_refit<const N: usize>(wc: &[f32; N], cc: &[f32; N]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if N.is_multiple_of(LANES) && super::Level::Avx2.is_supported() {
        // SAFETY: the CPU has the level, and the level these instructions.
        return unsafe { avx2::best_refit(wc, cc) };
    }
    plain_best_refit(wc, cc)
}

fn plain_best_refit(wc: &[f32], cc: &[f32]) -> f32 {
    let mut best = (0.0, 0.0);
    for (wc, cc) in wc.iter().zip(cc) {
        let refit = wc / cc;
        let gain = wc * refit;
        best = if gain > best.0 { (gain, refit) } else { best };
    }
    best.1
}

/// The values nearest to weights, where `halves` brings those to half units.
#[must_use]
pub fn nearest_values(nearest: &Nearest, w: &[f32; GROUP], halves: f32) -> [i8; GROUP] {
    #[cfg(target_arch = "x86_64")]
    if super::Level::Avx2.is_supported() {
        // SAFETY: the CPU has the level, and the level these instructions.
        return unsafe { avx2::nearest_values(nearest, w, halves) };
    }
    w.map(|w| nearest.value(half_unit(w * halves)))
}

/// Σ in an order that fits one vector register.
fn across([a, b, c, d, e, f, g, h]: [f32; LANES]) -> f32 {
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: [i8; 16] = [-64, -50, -41, -33, -26, -19, -12, -6, 0, 7, 13, 20, 27, 35, 43, 56];

    #[test]
    fn values_are_nearest() {
        let table = Nearest::of_table(&TABLE, &TABLE);
        let even: Vec<i8> = (-16..=15).collect();
        for (nearest, values) in [(table, &TABLE[..]), (Nearest::Even(-16, 15), &even)] {
            for i in -3000..3000 {
                let v = i as f32 * 0.0233;
                let distance = |c: i8| (f32::from(c) - v).abs();
                let best = values.iter().map(|c| distance(*c)).fold(f32::INFINITY, f32::min);
                let got = nearest.value(half_unit(2.0 * v));
                assert!(values.contains(&got) && distance(got) <= best, "{v}: {got}");
            }
        }
    }

    #[test]
    fn every_level_gives_the_bits_of_the_plain_body() {
        let mut state = 1_u64;
        let mut number = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / 8_388_608.0 - 1.0
        };
        // Many borders in one cell.
        let narrow = core::array::from_fn(|i| i as i8 - 7);
        for nearest in [
            Nearest::of_table(&TABLE, &TABLE),
            Nearest::of_table(&narrow, &TABLE),
            Nearest::Even(-8, 7),
            Nearest::Even(-32, 31),
        ] {
            for round in 0..500 {
                let w: [f32; GROUP] = core::array::from_fn(|_| number() * 2.0);
                let h: [f32; GROUP] = core::array::from_fn(|_| number().abs());
                let hw = core::array::from_fn(|i| w[i] * h[i]);
                let group = Weighed { w, h, hw };
                let first = [0.0, number() * 40.0, number() * 300.0, -64.0, 1e30, -3e38 * number().abs(), 0.25];
                // A full eight, and some more.
                let halves: [f32; 11] = core::array::from_fn(|i| if i < 7 { first[i] } else { number() * 50.0 });
                let [mut wc, mut cc] = [[0.0; 11]; 2];
                plain(&nearest, &group, &halves, &mut wc, &mut cc);
                let bits = |sums: [[f32; 11]; 2]| sums.map(|s| s.map(f32::to_bits));
                assert_eq!(bits(trials(&nearest, &group, &halves)), bits([wc, cc]), "{nearest:?} round {round}");
                #[cfg(target_arch = "x86_64")]
                if crate::kernels::Level::Avx2.is_supported() {
                    let [mut wide_wc, mut wide_cc] = [[0.0; 11]; 2];
                    // SAFETY: the CPU has the level, and the level these instructions.
                    unsafe { avx2::trials(&nearest, &group, &halves, &mut wide_wc, &mut wide_cc) };
                    assert_eq!(bits([wide_wc, wide_cc]), bits([wc, cc]), "{nearest:?} round {round}, AVX2");
                }
                for by in halves {
                    let want = w.map(|w| nearest.value(half_unit(w * by)));
                    assert_eq!(nearest_values(&nearest, &w, by), want, "{nearest:?} by {by}");
                }
            }
        }
    }

    #[test]
    fn the_first_of_the_best_is_chosen() {
        let mut state = 7_u64;
        for round in 0..2000 {
            // Few values, so that there are ties, also of opposite signs; zeros make gains that are no number.
            let mut number = |n: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % n
            };
            let wc: [f32; 24] = core::array::from_fn(|_| number(5) as f32 - 2.0);
            let cc: [f32; 24] = core::array::from_fn(|_| number(4) as f32);
            let cc = if round % 3 == 0 { cc.map(|c| c + 1.0) } else { cc };
            assert_eq!(best_refit(&wc, &cc).to_bits(), plain_best_refit(&wc, &cc).to_bits(), "{wc:?} {cc:?}");
        }
        assert_eq!(best_refit(&[0.0; 16], &[0.0; 16]), 0.0);
        assert_eq!(best_refit(&[f32::NAN; 8], &[1.0; 8]), 0.0);
        assert_eq!(best_refit(&[2.0, -3.0, 3.0], &[1.0; 3]), -3.0);
    }

    #[test]
    fn a_table_can_give_the_numbers_of_its_entries() {
        let numbers = core::array::from_fn(|i| i as i8);
        let (values, codes) = (Nearest::of_table(&TABLE, &TABLE), Nearest::of_table(&TABLE, &numbers));
        for half in i8::MIN..=i8::MAX {
            assert_eq!(values.value(half), TABLE[codes.value(half) as usize]);
        }
    }
}
