//! The scale of a group: by search over both signs and a range of sizes, each refitted by least squares.
//!
//! The error that counts is `Σ h·(w − ŵ)²`, where `h` is the importance of the input. Searching for the smallest plain
//! error instead makes a *model* worse than rounding with the largest weight as the scale, because it clips large
//! weights, and those sit where the activations are large. So where no importance is known, `h = w² + mean w²`
//! keeps the large weights where they are.

use lora_runtime::weights::GROUP;

use super::Grid;
use super::lanes::{largest, sum};

/// Scales that are tried, relative to the one that puts the largest weight on an end of the grid.
const SIZES: [f32; 12] = [0.70, 0.735, 0.77, 0.805, 0.84, 0.875, 0.91, 0.945, 0.98, 1.0, 1.04, 1.08];

/// Largest multiplier that a group's scale may turn into before rounding; the row scale leaves some room above, for the
/// multiplier to be rounded up.
const HEADROOM: f32 = 1.05;

/// A group of weights and the importance of their errors, both brought to the order of 1 by powers of two, so that
/// squares and products neither overflow nor vanish.
#[derive(Clone, Debug)]
pub struct Group {
    w: [f32; GROUP],
    h: [f32; GROUP],
    /// Weights are `w · unit`.
    unit: f32,
    /// The weight with the largest magnitude, in units.
    largest: f32,
}

impl Group {
    /// A group of up to 32 weights, padded with zeros. Without an importance, or where it is all zero, it comes
    /// from the weights.
    #[inline(always)]
    #[must_use]
    pub fn new(w: &[f32], importance: Option<&[f32]>) -> Self {
        let mut group = Self { w: [0.0; GROUP], h: [0.0; GROUP], unit: 1.0, largest: 0.0 };
        group.w[..w.len()].copy_from_slice(w);
        let magnitude = largest(&group.w);
        for w in &group.w {
            // The first of several.
            if w.abs() == magnitude {
                group.largest = *w;
                break;
            }
        }
        group.unit = power_of_two(magnitude);
        let inverse = 1.0 / group.unit;
        group.w = scaled(&group.w, inverse);
        group.largest *= inverse;
        let given = importance.map_or(0.0, |h| h.iter().fold(0f32, |m, h| m.max(*h)));
        if given > 0.0 {
            let inverse = 1.0 / power_of_two(given);
            for (out, h) in group.h.iter_mut().zip(importance.unwrap_or_default()) {
                *out = h * inverse;
            }
        } else {
            for (h, w) in group.h.iter_mut().zip(&group.w) {
                *h = w * w;
            }
            let mean = sum(&group.h) / GROUP as f32;
            for h in &mut group.h {
                *h += mean;
            }
        }
        group
    }

    /// `Σ h·(w − ŵ)²` for the grid values `c` at `scale`, all in units.
    #[inline(always)]
    fn error(&self, c: &[f32; GROUP], scale: f32) -> f32 {
        let mut terms = [0.0; GROUP];
        for (((term, w), c), h) in terms.iter_mut().zip(&self.w).zip(c).zip(&self.h) {
            let e = w - c * scale;
            *term = h * e * e;
        }
        sum(&terms)
    }
}

/// The power of two below |v|; 1 for zero, and never so extreme that its inverse is not normal.
fn power_of_two(v: f32) -> f32 {
    if v == 0.0 { 1.0 } else { f32::from_bits(v.to_bits() & 0x7f80_0000).clamp(2f32.powi(-120), 2f32.powi(120)) }
}

#[inline(always)]
fn scaled(w: &[f32; GROUP], by: f32) -> [f32; GROUP] {
    let mut out = [0.0; GROUP];
    for (out, w) in out.iter_mut().zip(w) {
        *out = w * by;
    }
    out
}

/// The best scale found for a group by search, 0 where there is none (a group of zeros). Either sign.
#[inline(always)]
#[must_use]
pub fn fit_group(grid: &Grid, group: &Group) -> f32 {
    let mut best = (group.error(&[0.0; GROUP], 0.0), 0.0);
    for end in grid.ends() {
        for size in SIZES {
            let scale = group.largest / end * size;
            let Some(inverse) = inverse(scale) else { continue };
            // With the codes fixed, the best scale has a closed form.
            let c = grid.nearest(&scaled(&group.w, inverse));
            let (mut cc, mut cw) = ([0.0; GROUP], [0.0; GROUP]);
            for ((((cc, cw), c), w), h) in cc.iter_mut().zip(&mut cw).zip(&c).zip(&group.w).zip(&group.h) {
                let hc = h * c;
                (*cc, *cw) = (hc * c, hc * w);
            }
            let refit = sum(&cw) / sum(&cc);
            if !refit.is_finite() {
                continue;
            }
            let error = group.error(&c, refit);
            if error < best.0 {
                best = (error, refit);
            }
        }
    }
    best.1 * group.unit
}

/// 1 / scale, where it is a number.
#[inline(always)]
fn inverse(scale: f32) -> Option<f32> {
    let inverse = 1.0 / scale;
    inverse.is_finite().then_some(inverse)
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
    let mut best = (f32::INFINITY, 0.0);
    for step in [0.0, -1.0, 1.0] {
        let multiplier = (ratio.round_ties_even() + step).clamp(-128.0, 127.0);
        let s = multiplier * unit;
        let inverse = inverse(s).unwrap_or(0.0);
        let error = group.error(&grid.nearest(&scaled(&group.w, inverse)), s);
        if error < best.0 {
            best = (error, multiplier);
        }
    }
    let inverse = inverse(best.1 * unit).unwrap_or(0.0);
    (best.1 as i8, grid.codes(&scaled(&group.w, inverse)))
}
