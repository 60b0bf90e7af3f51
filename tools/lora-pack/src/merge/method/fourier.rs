//! FourierFT: the change of a weight is the inverse transform of a few coefficients of its two-dimensional spectrum. Which
//! ones is not stored: torch draws them again from a seed, and so does this module.

use std::collections::{BTreeMap, HashMap};
use std::f64::consts::TAU;

/// The change as two thin factors, `rows × r` and `r × cols`: one cosine and one sine for every column of the spectrum
/// that has a coefficient.
///
/// ```text
/// Δ[y, x] = scale / (rows·cols) · Σ values[k] · cos 2π(row[k]·y/rows + column[k]·x/cols)
/// ```
pub(super) fn factors(values: &[f32], seed: u64, rows: usize, cols: usize, scale: f64) -> (Vec<f32>, Vec<f32>) {
    let scale = scale / (rows * cols) as f64;
    let mut columns: BTreeMap<usize, Vec<(usize, f64)>> = BTreeMap::new();
    for (value, at) in values.iter().zip(permutation(rows * cols, values.len(), seed)) {
        columns.entry(at % cols).or_default().push((at / cols, f64::from(*value) * scale));
    }
    // The product is reduced first: angles stay exact.
    let wave = |a: usize, b: usize, n: usize| (TAU * (a * b % n) as f64 / n as f64).sin_cos();
    let r = 2 * columns.len();
    let mut left = vec![0.0; rows * r];
    for (y, left) in left.chunks_exact_mut(r.max(1)).enumerate() {
        for (left, coefficients) in left.as_chunks_mut::<2>().0.iter_mut().zip(columns.values()) {
            let (mut cosines, mut sines) = (0.0, 0.0);
            for (row, value) in coefficients {
                let (sin, cos) = wave(*row, y, rows);
                (cosines, sines) = (cosines + value * cos, sines - value * sin);
            }
            *left = [cosines as f32, sines as f32];
        }
    }
    let mut right = Vec::with_capacity(r * cols);
    for column in columns.keys() {
        right.extend((0..cols).map(|x| wave(*column, x, cols).1 as f32));
        right.extend((0..cols).map(|x| wave(*column, x, cols).0 as f32));
    }
    (left, right)
}

/// From so many elements on torch permutes in another way.
pub(crate) const LARGEST: usize = u32::MAX as usize / 20;

/// The first `count` numbers of `torch.randperm(n)` on a CPU, after `manual_seed`.
fn permutation(n: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut random = Mersenne::new(seed as u32);
    // Where a number is no longer at its own place.
    let mut moved: HashMap<usize, usize> = HashMap::new();
    let mut out = Vec::with_capacity(count);
    for i in 0..count.min(n) {
        // The last number is left over: torch draws nothing for it.
        let other = if i + 1 < n { i + random.next() as usize % (n - i) } else { i };
        let here = moved.remove(&i).unwrap_or(i);
        let there = if other == i { here } else { moved.insert(other, here).unwrap_or(other) };
        out.push(there);
    }
    out
}

/// MT19937 (Matsumoto and Nishimura 1998), the generator of torch on CPUs.
struct Mersenne {
    state: [u32; 624],
    at: usize,
}

impl Mersenne {
    fn new(seed: u32) -> Self {
        let mut state = [seed; 624];
        for i in 1..624 {
            let last = state[i - 1];
            state[i] = (last ^ last >> 30).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, at: 624 }
    }

    fn next(&mut self) -> u32 {
        if self.at == 624 {
            self.at = 0;
            for i in 0..624 {
                let y = self.state[i] & 0x8000_0000 | self.state[(i + 1) % 624] & 0x7fff_ffff;
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + 397) % 624] ^ y >> 1 ^ odd;
            }
        }
        let mut y = self.state[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= y << 7 & 0x9d2c_5680;
        y ^= y << 15 & 0xefc6_0000;
        y ^ y >> 18
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_torch() {
        // torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:6]
        for (n, seed, want) in [
            (12, 777, [11, 7, 3, 8, 0, 2]),
            (384, 777, [359, 192, 99, 0, 159, 189]),
            (1000, 5, [411, 49, 291, 695, 678, 515]),
            (5_000_000, 777, [685_735, 1_481_115, 3_612_291, 2_113_197, 1_444_591, 2_694_112]),
        ] {
            assert_eq!(permutation(n, 6, seed), want, "{n} {seed}");
        }
        let mut all = permutation(500, 500, 3);
        all.sort_unstable();
        assert!(all.into_iter().eq(0..500));
    }
}
