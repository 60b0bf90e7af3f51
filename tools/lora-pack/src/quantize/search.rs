//! The scale of a group: by search over both signs and a range of sizes, each refitted by least squares.
//!
//! The error that counts is `Σ h·(w − ŵ)²`, where `h` is the importance of the input. Searching for the smallest plain
//! error instead makes a *model* worse than rounding with the largest weight as the scale, because it clips large
//! weights, and those sit where the activations are large. So where no importance is known, `h = w² + mean w²`
//! keeps the large weights where they are.

use lora_runtime::weights::GROUP;

use super::Grid;

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
    #[must_use]
    pub fn new(w: &[f32], importance: Option<&[f32]>) -> Self {
        let mut group = Self { w: [0.0; GROUP], h: [0.0; GROUP], unit: 1.0, largest: 0.0 };
        group.w[..w.len()].copy_from_slice(w);
        let largest = w.iter().fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
        group.unit = power_of_two(largest);
        let inverse = 1.0 / group.unit;
        group.w = group.w.map(|v| v * inverse);
        group.largest = largest * inverse;
        match importance {
            Some(h) if h.iter().any(|h| *h > 0.0) => {
                let inverse = 1.0 / power_of_two(h.iter().fold(0f32, |m, h| m.max(*h)));
                for (out, h) in group.h.iter_mut().zip(h) {
                    *out = h * inverse;
                }
            }
            _ => {
                let mean = sum(&group.w.map(|w| w * w)) / GROUP as f32;
                group.h = group.w.map(|w| w * w + mean);
            }
        }
        group
    }

    /// `Σ h·(w − ŵ)²` for the grid values `c` at `scale`, all in units.
    fn error(&self, c: &[f32; GROUP], scale: f32) -> f32 {
        sum(&core::array::from_fn(|i| {
            let e = self.w[i] - c[i] * scale;
            self.h[i] * e * e
        }))
    }
}

/// The power of two below |v|; 1 for zero, and never so extreme that its inverse is not normal.
fn power_of_two(v: f32) -> f32 {
    if v == 0.0 { 1.0 } else { f32::from_bits(v.to_bits() & 0x7f80_0000).clamp(2f32.powi(-120), 2f32.powi(120)) }
}

/// Σ in a fixed order that the compiler can keep in one vector register.
fn sum(terms: &[f32; GROUP]) -> f32 {
    let mut lanes = [0f32; 8];
    for chunk in terms.chunks_exact(8) {
        for (lane, term) in lanes.iter_mut().zip(chunk) {
            *lane += term;
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// The best scale found for a group by search, 0 where there is none (a group of zeros). Either sign.
#[must_use]
pub fn fit_group(grid: &Grid, group: &Group) -> f32 {
    let mut best = (group.error(&[0.0; GROUP], 0.0), 0.0);
    for end in grid.ends() {
        for size in SIZES {
            let scale = group.largest / end * size;
            let Some(inverse) = inverse(scale) else { continue };
            // With the codes fixed, the best scale has a closed form.
            let c = grid.nearest_all(&group.w.map(|w| w * inverse));
            let hc: [f32; GROUP] = core::array::from_fn(|i| group.h[i] * c[i]);
            let cc = sum(&core::array::from_fn(|i| hc[i] * c[i]));
            let refit = sum(&core::array::from_fn(|i| hc[i] * group.w[i])) / cc;
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
fn inverse(scale: f32) -> Option<f32> {
    let inverse = 1.0 / scale;
    inverse.is_finite().then_some(inverse)
}

/// The scale of a row, given its groups' scales.
#[must_use]
pub fn row_scale(scales: &[f32]) -> f32 {
    // Divided first: the largest finite scale must not overflow.
    scales.iter().fold(0f32, |m, s| if s.abs() > m { s.abs() } else { m }) / 127.0 * HEADROOM
}

/// The integer multiplier of a group, near `scale / row_scale`, and the codes with it.
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
        let error = group.error(&grid.nearest_all(&group.w.map(|w| w * inverse)), s);
        if error < best.0 {
            best = (error, multiplier);
        }
    }
    let inverse = inverse(best.1 * unit).unwrap_or(0.0);
    (best.1 as i8, group.w.map(|w| grid.code(w * inverse)))
}
