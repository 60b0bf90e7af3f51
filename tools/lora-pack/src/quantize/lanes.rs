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
    across(lanes, |a, b| a + b)
}

/// The largest magnitude.
#[inline(always)]
pub fn largest(w: &[f32; GROUP]) -> f32 {
    let mut lanes = [0f32; 8];
    for chunk in w.as_chunks::<8>().0 {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, v.abs());
        }
    }
    across(lanes, larger)
}

/// The smallest and the largest element.
#[inline(always)]
pub fn extremes(w: &[f32; GROUP]) -> [f32; 2] {
    let chunks = w.as_chunks::<8>().0;
    let (mut lows, mut highs) = (chunks[0], chunks[0]);
    for chunk in &chunks[1..] {
        for ((low, high), v) in lows.iter_mut().zip(&mut highs).zip(chunk) {
            *low = smaller(*low, *v);
            *high = larger(*high, *v);
        }
    }
    [across(lows, smaller), across(highs, larger)]
}

/// The smaller one, in the way of the vector instruction.
#[inline(always)]
pub fn smaller(a: f32, b: f32) -> f32 {
    if b < a { b } else { a }
}

/// The larger one.
#[inline(always)]
pub fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// All lanes by `of`, halving them.
#[inline(always)]
pub fn across([a, b, c, d, e, f, g, h]: [f32; 8], of: impl Fn(f32, f32) -> f32) -> f32 {
    let [a, b, c, d] = [of(a, e), of(b, f), of(c, g), of(d, h)];
    of(of(a, c), of(b, d))
}

/// A group of up to 32 weights: itself where it is full, else a copy with zeros after it. (To copy full ones too costs
/// more than some kernels that read them.)
#[inline(always)]
pub fn padded<'a>(w: &'a [f32], copy: &'a mut [f32; GROUP]) -> &'a [f32; GROUP] {
    match w.first_chunk() {
        Some(w) => w,
        None => {
            copy[..w.len()].copy_from_slice(w);
            copy[w.len()..].fill(0.0);
            copy
        }
    }
}
