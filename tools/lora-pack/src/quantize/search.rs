//! The scale of a group: by search over both signs and a range of sizes, each refitted by least squares.
//!
//! The error that counts is `Σ h·(w − ŵ)²`, where `h` is the importance of the input. Searching for the smallest plain
//! error instead makes a *model* worse than rounding with the largest weight as the scale, because it clips large
//! weights, and those sit where the activations are large. So where no importance is known, `h = w² + mean w²`
//! keeps the large weights where they are.
//!
//! For grid values `c`, the best scale is `Σ h·w·c / Σ h·c²`, and the error that it leaves is
//! `Σ h·w² − (Σ h·w·c)² / Σ h·c²`: two sums say how good a trial is ([`trials`]).

use lora_runtime::kernels::{Weighed, best_refit, trials};
use lora_runtime::weights::GROUP;

use super::Grid;
use super::lanes::{extremes, sum};

/// Scales that are tried first, relative to the one that puts the largest weight on an end of the grid.
const SIZES: [f32; 12] = [0.70, 0.735, 0.77, 0.805, 0.84, 0.875, 0.91, 0.945, 0.98, 1.0, 1.04, 1.08];
const TRIED: usize = 2 * SIZES.len();

/// Largest multiplier that a group's scale may turn into before rounding; the row scale leaves some room above, for the
/// multiplier to be rounded up.
const HEADROOM: f32 = 1.05;

/// A group of weights and the importance of their errors, both brought to the order of 1 by powers of two, so that
/// squares and products neither overflow nor vanish.
#[derive(Clone, Debug)]
pub struct Group {
    all: Weighed,
    /// Weights are `all.w · unit`.
    unit: f32,
    /// The weight with the largest magnitude, in units.
    largest: f32,
}

impl Group {
    /// A group of weights and the importance of those that are no padding. Without one, or where it is all zero, it
    /// comes from the weights.
    #[inline(always)]
    #[must_use]
    pub fn new(w: &[f32; GROUP], importance: Option<&[f32]>) -> Self {
        let mut all = Weighed { w: *w, h: [0.0; GROUP], hw: [0.0; GROUP] };
        let [low, high] = extremes(w);
        let mut largest = if high < -low { low } else { high };
        let unit = power_of_two(largest);
        let inverse = 1.0 / unit;
        largest *= inverse;
        for w in &mut all.w {
            *w *= inverse;
        }
        let given = importance.map_or(0.0, |h| h.iter().fold(0f32, |m, h| m.max(*h)));
        if given > 0.0 {
            let inverse = 1.0 / power_of_two(given);
            for (out, h) in all.h.iter_mut().zip(importance.unwrap_or_default()) {
                *out = h * inverse;
            }
        } else {
            for (h, w) in all.h.iter_mut().zip(&all.w) {
                *h = w * w;
            }
            let mean = sum(&all.h) / GROUP as f32;
            for h in &mut all.h {
                *h += mean;
            }
        }
        for ((hw, h), w) in all.hw.iter_mut().zip(&all.h).zip(&all.w) {
            *hw = h * w;
        }
        Self { all, unit, largest }
    }
}

/// The power of two below |v|; 1 for zero, and never so extreme that its inverse is not normal.
fn power_of_two(v: f32) -> f32 {
    if v == 0.0 { 1.0 } else { f32::from_bits(v.to_bits() & 0x7f80_0000).clamp(2f32.powi(-120), 2f32.powi(120)) }
}

/// The best scale found for a group by search, 0 where there is none (a group of zeros). Either sign.
#[inline(always)]
#[must_use]
pub fn fit_group(grid: &Grid, group: &Group) -> f32 {
    let full = 2.0 / group.largest;
    if !full.is_finite() {
        return 0.0;
    }
    let mut halves = [0.0; TRIED];
    for (halves, end) in halves.chunks_exact_mut(SIZES.len()).zip(grid.ends()) {
        for (half, size) in halves.iter_mut().zip(SIZES) {
            *half = full * end * (1.0 / size);
        }
    }
    let [wc, cc] = trials(grid.nearest(), &group.all, &halves);
    best_refit(&wc, &cc) * group.unit
}

/// What brings weights over `scale` to half units; 0 where that is no number.
#[inline(always)]
fn halves(scale: f32) -> f32 {
    let halves = 2.0 / scale;
    if halves.is_finite() { halves } else { 0.0 }
}

/// The scale of a row, given its groups' scales.
#[inline(always)]
#[must_use]
pub fn row_scale(scales: &[f32]) -> f32 {
    // Divided first: the largest finite scale must not overflow.
    scales.iter().fold(0f32, |m, s| if s.abs() > m { s.abs() } else { m }) / 127.0 * HEADROOM
}

/// The integer multiplier of a group, near `scale / row_scale`, and the codes with it.
#[inline(always)]
#[must_use]
pub fn fit_multiplier(grid: &Grid, group: &Group, scale: f32, row_scale: f32) -> (i8, [i8; GROUP]) {
    let unit = row_scale / group.unit;
    let ratio = scale / row_scale;
    if !ratio.is_finite() {
        return (0, [grid.code(0.0); GROUP]);
    }
    let nearest = ratio.round_ties_even();
    let multipliers = [0.0, -1.0, 1.0].map(|step| (nearest + step).clamp(-128.0, 127.0));
    let [wc, cc] = trials(grid.nearest(), &group.all, &multipliers.map(|m| halves(m * unit)));
    let mut best = (f32::INFINITY, 0.0);
    for ((multiplier, wc), cc) in multipliers.into_iter().zip(wc).zip(cc) {
        let s = multiplier * unit;
        // The error, less what it is without any scale: Σ h·(w − s·c)² − Σ h·w².
        let error = s * (s * cc - 2.0 * wc);
        best = if error < best.0 { (error, multiplier) } else { best };
    }
    (best.1 as i8, grid.codes(&group.all.w, halves(best.1 * unit)))
}
