//! How far off: errors against a recorded tensor, divergence of logits, digests of weights.

use anyhow::{Result, ensure};
use serde::Deserialize;

use crate::tensors::Tensor;

/// Standard deviation with n − 1, or the mean magnitude of a single value; never below 0.001, so that an
/// all-zero tensor does not turn rounding into an infinite error.
#[must_use]
pub fn spread(t: &Tensor) -> f64 {
    let n = t.data.len();
    if n < 2 {
        return t.data.first().map_or(1e-3, |x| f64::from(x.abs()).max(1e-3));
    }
    let mean = t.data.iter().map(|x| f64::from(*x)).sum::<f64>() / n as f64;
    let sum: f64 = t.data.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum();
    (sum / (n - 1) as f64).sqrt().max(1e-3)
}

/// Largest difference over the [`spread`] of what was expected; infinite if a value is not finite.
///
/// # Errors
/// If the shapes differ.
pub fn max_error(expected: &Tensor, got: &Tensor) -> Result<f64> {
    ensure!(expected.shape == got.shape, "shape {:?} instead of {:?}", got.shape, expected.shape);
    let worst = expected.data.iter().zip(&got.data).map(|(a, b)| finite(f64::from(*a) - f64::from(*b)).abs());
    Ok(worst.fold(0.0, f64::max) / spread(expected))
}

/// Root mean square difference over the [`spread`] of what was expected.
///
/// # Errors
/// If the shapes differ.
pub fn rms_error(expected: &Tensor, got: &Tensor) -> Result<f64> {
    ensure!(expected.shape == got.shape, "shape {:?} instead of {:?}", got.shape, expected.shape);
    let sum: f64 =
        expected.data.iter().zip(&got.data).map(|(a, b)| finite(f64::from(*a) - f64::from(*b)).powi(2)).sum();
    Ok((sum / expected.data.len().max(1) as f64).sqrt() / spread(expected))
}

fn finite(x: f64) -> f64 {
    if x.is_finite() { x } else { f64::INFINITY }
}

/// KL(expected ‖ got) in nats of each row's softmax; rows run along the last dimension.
///
/// # Errors
/// If the shapes differ.
pub fn divergences(expected: &Tensor, got: &Tensor) -> Result<Vec<f64>> {
    ensure!(expected.shape == got.shape, "shape {:?} instead of {:?}", got.shape, expected.shape);
    let width = expected.shape.last().copied().unwrap_or(1).max(1);
    let rows = expected.data.chunks(width).zip(got.data.chunks(width));
    Ok(rows
        .map(|(a, b)| {
            let (la, lb) = (log_softmax(a), log_softmax(b));
            finite(la.iter().zip(&lb).map(|(p, q)| p.exp() * (p - q)).sum())
        })
        .collect())
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|x| f64::from(x - top).exp()).sum();
    row.iter().map(|x| f64::from(x - top) - sum.ln()).collect()
}

/// Softmax of a row.
#[must_use]
pub fn softmax(row: &[f32]) -> Vec<f64> {
    log_softmax(row).into_iter().map(f64::exp).collect()
}

/// Index of the largest value, the first of several, and its distance to the second largest.
#[must_use]
pub fn top(row: &[f32]) -> (usize, f32) {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = i;
        }
    }
    let second = row.iter().enumerate().filter(|(i, _)| *i != best).map(|(_, x)| *x).fold(f32::NEG_INFINITY, f32::max);
    (best, row.get(best).copied().unwrap_or(f32::NAN) - second)
}

/// Three numbers that tell two tensors apart without storing one: sum, Euclidean length, and the product with
/// a fixed pseudo-random direction.
#[derive(Clone, Debug, Deserialize)]
pub struct Digest {
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Sum of all values.
    pub sum: f64,
    /// Euclidean length.
    pub l2: f64,
    /// Product with w_i = ((i · 40503) mod 65536) / 65536 − 0.5.
    pub probe: f64,
}

impl Digest {
    /// The digest of a tensor.
    #[must_use]
    pub fn of(t: &Tensor) -> Self {
        let (mut sum, mut squares, mut probe) = (0.0, 0.0, 0.0);
        for (i, x) in t.data.iter().enumerate() {
            let x = f64::from(*x);
            sum += x;
            squares += x * x;
            probe += x * (((i as u64 * 40503) % 65536) as f64 / 65536.0 - 0.5);
        }
        Self { shape: t.shape.clone(), sum, l2: squares.sqrt(), probe }
    }

    /// Largest difference of the three numbers to those of `got`, over this digest's length.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn error(&self, got: &Self) -> Result<f64> {
        ensure!(self.shape == got.shape, "shape {:?} instead of {:?}", got.shape, self.shape);
        let worst = [self.sum - got.sum, self.l2 - got.l2, self.probe - got.probe];
        Ok(worst.into_iter().map(|d| finite(d).abs()).fold(0.0, f64::max) / self.l2.max(1e-30))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(shape: &[usize], data: &[f32]) -> Tensor {
        Tensor { shape: shape.to_vec(), data: data.to_vec() }
    }

    #[test]
    fn errors_are_relative_to_the_spread_and_catch_nan() {
        let a = t(&[4], &[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(max_error(&a, &a).unwrap(), 0.0);
        let off = t(&[4], &[1.0, 2.0, 3.0, 4.5]);
        assert!((max_error(&a, &off).unwrap() - 0.5 / (5.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert!((rms_error(&a, &off).unwrap() - 0.25 / (5.0f64 / 3.0).sqrt()).abs() < 1e-12);
        for broken in [f32::NAN, f32::INFINITY] {
            let bad = t(&[4], &[1.0, broken, 3.0, 4.0]);
            assert_eq!(max_error(&a, &bad).unwrap(), f64::INFINITY);
            assert_eq!(rms_error(&a, &bad).unwrap(), f64::INFINITY);
        }
        assert!(max_error(&a, &t(&[2, 2], &a.data)).is_err());
    }

    #[test]
    fn divergence_of_known_distributions() {
        let a = t(&[2, 2], &[0.0, 0.0, 1.0, 1.0]);
        let b = t(&[2, 2], &[0.0, (3.0f32).ln(), 7.0, 7.0]);
        let kl = divergences(&a, &b).unwrap();
        // KL((1/2, 1/2) || (1/4, 3/4)) = ln 2 - ln(3) / 2
        assert!((kl[0] - ((2.0f64).ln() - (3.0f64).ln() / 2.0)).abs() < 1e-6);
        assert!(kl[1].abs() < 1e-12);
        assert_eq!(divergences(&a, &t(&[2, 2], &[0.0, f32::NAN, 1.0, 1.0])).unwrap()[0], f64::INFINITY);
    }

    #[test]
    fn digest_tells_transposed_from_straight() {
        let a = Digest::of(&t(&[2, 2], &[1.0, 2.0, 3.0, 4.0]));
        let b = Digest::of(&t(&[2, 2], &[1.0, 3.0, 2.0, 4.0]));
        assert_eq!(a.error(&a).unwrap(), 0.0);
        assert!(a.error(&b).unwrap() > 1e-2);
    }

    #[test]
    fn top_gives_the_first_largest_and_the_margin() {
        assert_eq!(top(&[1.0, 5.0, 5.0, 2.0]), (1, 0.0));
        assert_eq!(top(&[-1.0, -3.0]), (0, 2.0));
    }
}
