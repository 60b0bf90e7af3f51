//! Arithmetic on groups of 32 in forms that compilers turn into vector instructions: plain loops over arrays, and
//! reductions in an order of lanes that is written down.

use lora_runtime::weights::GROUP;

/// Added and taken off again, it rounds a number below 2²² to the nearest integer, ties to even, without a call.
pub const ROUND: f32 = 12_582_912.0;

/// `v`, but no less than `low` and no more than `high`.
#[inline(always)]
pub fn limited(v: f32, low: f32, high: f32) -> f32 {
    let v = if v < low { low } else { v };
    if v > high { high } else { v }
}

/// Σ in a fixed order that fits one vector register.
#[inline(always)]
pub fn sum(terms: &[f32; GROUP]) -> f32 {
    let mut lanes = [0f32; 8];
    for chunk in terms.as_chunks::<8>().0 {
        for (lane, term) in lanes.iter_mut().zip(chunk) {
            *lane += term;
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// The largest magnitude.
#[inline(always)]
pub fn largest(w: &[f32; GROUP]) -> f32 {
    let [low, high] = extremes(w);
    if high < -low { -low } else { high }
}

/// The smallest and the largest element.
#[inline(always)]
pub fn extremes(w: &[f32; GROUP]) -> [f32; 2] {
    let (mut lows, mut highs) = ([w[0]; 8], [w[0]; 8]);
    for chunk in w.as_chunks::<8>().0 {
        for ((low, high), v) in lows.iter_mut().zip(&mut highs).zip(chunk) {
            *low = if *v < *low { *v } else { *low };
            *high = if *v > *high { *v } else { *high };
        }
    }
    let (mut low, mut high) = (lows[0], highs[0]);
    for (l, h) in lows.into_iter().zip(highs) {
        low = if l < low { l } else { low };
        high = if h > high { h } else { high };
    }
    [low, high]
}
