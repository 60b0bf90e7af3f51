//! What the tests of the float kernels share: lengths, values, guarded buffers and the comparison of bits.

use std::vec::Vec;

use super::isa::LANES;

/// Lengths round every border: registers, steps of 16, and a model's width.
pub const LENGTHS: [usize; 12] = [0, 1, 7, 8, 15, 16, 17, 31, 33, 64, 129, 576];

/// A small generator (xorshift64*), so that failures repeat.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() as usize) % n
    }
    /// Uniform in −1…1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
    /// `n` values of about `scale`, a few of them much larger.
    pub fn row(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.unit() * if self.below(20) == 0 { 30.0 * scale } else { scale }).collect()
    }
    /// `n` values of which some are zeros of both signs, subnormal, huge, infinite or NaN.
    pub fn wild_row(&mut self, n: usize) -> Vec<f32> {
        const WILD: [f32; 14] = [
            0.0,
            -0.0,
            1e-45,
            -1e-40,
            f32::MIN_POSITIVE,
            1e-20,
            1.0,
            -90.0,
            88.8,
            1e30,
            f32::MAX,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
        ];
        (0..n).map(|_| if self.below(3) == 0 { self.unit() * 10.0 } else { WILD[self.below(WILD.len())] }).collect()
    }
}

/// A buffer of `n` floats, `offset` floats off alignment, between guard bands.
pub struct Guarded {
    all: Vec<f32>,
    start: usize,
    n: usize,
}

const GUARD: u32 = 0x7fa5_c3e1; // a NaN that no operation makes

impl Guarded {
    pub fn new(content: &[f32], offset: usize) -> Self {
        let (start, n) = (LANES + offset, content.len());
        let mut all = std::vec![f32::from_bits(GUARD); start + n + LANES];
        all[start..start + n].copy_from_slice(content);
        Self { all, start, n }
    }
    pub fn get(&mut self) -> &mut [f32] {
        &mut self.all[self.start..self.start + self.n]
    }
    /// The content, once the bands round it are found untouched.
    pub fn check(&self) -> &[f32] {
        let (before, after) = (&self.all[..self.start], &self.all[self.start + self.n..]);
        assert!(before.iter().chain(after).all(|v| v.to_bits() == GUARD), "wrote outside the buffer");
        &self.all[self.start..self.start + self.n]
    }
}

/// Same bits, or NaN both.
pub fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// Asserts that two rows have the same bits.
#[track_caller]
pub fn assert_same(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(same(*g, *w), "{what}: element {i} is {g:e} ({:#x}), not {w:e} ({:#x})", g.to_bits(), w.to_bits());
    }
}

/// The row sum as `reduce` defines it, in plain loops.
pub fn row_sum(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    for (i, v) in x.iter().enumerate() {
        lanes[i % 16] += v;
    }
    for n in [8, 4, 2, 1] {
        for i in 0..n {
            lanes[i] += lanes[i + n];
        }
    }
    lanes[0]
}

/// Horner's rule in plain floats.
pub fn horner(x: f32, c: &[f32]) -> f32 {
    c.iter().rev().skip(1).fold(c[c.len() - 1], |p, c| p * x + c)
}

/// `math::exp` in plain floats, written a second time from its definition.
pub fn exp(x: f32) -> f32 {
    if x.is_nan() {
        return x;
    }
    if x <= -87.3365 {
        return 0.0;
    }
    let x = if x > 88.72283 { 88.72283 } else { x };
    let n = (x * core::f32::consts::LOG2_E).round_ties_even();
    let r = (x - n * (355.0 / 512.0)) - n * -2.121_944_4e-4;
    let p = horner(r, &[0.499_999_94, 0.166_665_17, 0.041_668_102, 0.008_369_192, 0.001_383_887_5]);
    let p = 1.0 + (r + (r * r) * p);
    // 2ⁿ may overflow where p < 1, so scale in two exact steps.
    let half = (n as i32) / 2;
    p * 2f32.powi(half) * 2f32.powi(n as i32 - half)
}

/// `math::tanh` likewise.
pub fn tanh(x: f32) -> f32 {
    if x.abs() < 0.625 {
        let t = x * x;
        return x + (x * t) * horner(t, &[-0.333_332_8, 0.133_314_06, -0.053_736_515, 0.020_628_234, -0.005_692_538_3]);
    }
    if x.is_nan() { x } else { (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x) }
}
