//! `H = U·D·Uᵀ` with a unit upper triangle `U`: what error feedback and the solver walk along.
//!
//! With `e = w − ŵ` the loss `e·H·eᵀ` is `Σ_j D_j·(e_j + Σ_{i<j} e_i·U_ij)²`: the errors of earlier inputs are taken out
//! by moving a later one by `Σ e_i·U_ij`. (GPTQ, Frantar et al. 2022, in the form of QuIP's LDLQ, Chee et al. 2023.)

use rayon::prelude::*;

/// Columns that are eliminated together.
const BLOCK: usize = 64;

/// The factors of a symmetric positive matrix.
#[derive(Clone, Debug)]
pub struct Factor {
    /// Rows and columns.
    pub k: usize,
    /// `U`, row-major, ones on the diagonal and zeros below.
    pub upper: Vec<f32>,
    /// `D`, above zero.
    pub diagonal: Vec<f32>,
}

impl Factor {
    /// Factors `h + damping · mean(diag h) · 1` (`h` row-major, both halves filled).
    #[must_use]
    pub fn new(mut h: Vec<f64>, k: usize, damping: f64) -> Self {
        let mean = (0..k).map(|i| h[i * k + i]).sum::<f64>() / k.max(1) as f64;
        // An input that never was anything but zero: any positive number leaves it alone.
        let added = if mean > 0.0 { damping * mean } else { 1.0 };
        for i in 0..k {
            h[i * k + i] += added;
        }
        let floor = added * 1e-3;
        let mut diagonal = vec![0.0; k];
        let mut end = k;
        while end > 0 {
            let start = end.saturating_sub(BLOCK);
            diagonal_block(&mut h, k, start..end, floor, &mut diagonal);
            let (above, block) = h.split_at_mut(start * k);
            // U of the rows above: solved from the last column of the block to its first.
            let factors = &*block;
            above.par_chunks_mut(k).enumerate().for_each(|(i, row)| {
                for j in (start..end).rev() {
                    let of_j = &factors[(j - start) * k..][..k];
                    let sum: f64 = (j + 1..end).map(|m| row[m] * diagonal[m] * of_j[m]).sum();
                    row[j] = (of_j[i] - sum) / diagonal[j];
                }
            });
            // What remains of H above, one row after another: H_i −= Σ_m (U_im·D_m)·U_·m.
            let columns: Vec<f64> =
                (start..end).flat_map(|m| (0..start).map(move |i| (i, m))).map(|(i, m)| above[i * k + m]).collect();
            above.par_chunks_mut(k).enumerate().for_each(|(i, row)| {
                for m in start..end {
                    let factor = row[m] * diagonal[m];
                    let column = &columns[(m - start) * start..][..=i];
                    for (h, u) in row.iter_mut().zip(column) {
                        *h -= factor * u;
                    }
                }
            });
            end = start;
        }
        let mut upper = vec![0.0; k * k];
        upper.par_chunks_mut(k.max(1)).enumerate().for_each(|(i, row)| {
            row[i] = 1.0;
            for j in i + 1..k {
                row[j] = h[i * k + j] as f32;
            }
        });
        Self { k, upper, diagonal: diagonal.iter().map(|d| *d as f32).collect() }
    }

    /// `G·H⁻¹` for rows `G` of `k`.
    #[must_use]
    pub fn solve(&self, g: &[f32]) -> Vec<f32> {
        const LANES: usize = 32;
        let k = self.k;
        let lower = self.transposed();
        let mut out = vec![0.0; g.len()];
        out.par_chunks_mut(LANES * k).zip(g.par_chunks(LANES * k)).for_each(|(out, g)| {
            // Column after column for all rows at once: a row is a lane.
            let rows = g.len() / k;
            let mut y = vec![[0.0_f32; LANES]; k];
            for (lane, row) in g.chunks_exact(k).enumerate() {
                for (y, v) in y.iter_mut().zip(row) {
                    y[lane] = *v;
                }
            }
            for j in (0..k).rev() {
                let (head, tail) = y.split_at_mut(j + 1);
                subtract(&mut head[j], tail, &self.upper[j * k + j + 1..(j + 1) * k]);
            }
            for (y, d) in y.iter_mut().zip(&self.diagonal) {
                y.iter_mut().for_each(|v| *v /= d);
            }
            for j in 1..k {
                let (head, tail) = y.split_at_mut(j);
                subtract(&mut tail[0], head, &lower[j * k..j * k + j]);
            }
            for (lane, row) in out.chunks_exact_mut(k).enumerate().take(rows) {
                for (v, y) in row.iter_mut().zip(&y) {
                    *v = y[lane];
                }
            }
        });
        out
    }

    fn transposed(&self) -> Vec<f32> {
        let k = self.k;
        let mut out = vec![0.0; k * k];
        out.par_chunks_mut(k.max(1)).enumerate().for_each(|(j, row)| {
            for (i, v) in row.iter_mut().enumerate() {
                *v = self.upper[i * k + j];
            }
        });
        out
    }
}

/// `to −= Σ factor·row`, in order.
fn subtract<const N: usize>(to: &mut [f32; N], rows: &[[f32; N]], factors: &[f32]) {
    let mut sum = *to;
    for (row, factor) in rows.iter().zip(factors) {
        for (s, v) in sum.iter_mut().zip(row) {
            *s -= factor * v;
        }
    }
    *to = sum;
}

/// Eliminates a diagonal block: its `D`, and `U` above its diagonal.
fn diagonal_block(h: &mut [f64], k: usize, block: std::ops::Range<usize>, floor: f64, diagonal: &mut [f64]) {
    for j in block.clone().rev() {
        // Entries up to the diagonal hold what is left of H; those right of it hold U.
        let sum: f64 = (j + 1..block.end).map(|m| h[j * k + m] * h[j * k + m] * diagonal[m]).sum();
        diagonal[j] = (h[j * k + j] - sum).max(floor);
        for i in block.start..j {
            let sum: f64 = (j + 1..block.end).map(|m| h[i * k + m] * diagonal[m] * h[j * k + m]).sum();
            h[i * k + j] = (h[j * k + i] - sum) / diagonal[j];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(k: usize) -> Vec<f64> {
        let rows = 2 * k + 3;
        let x: Vec<f64> = (0..(rows * k) as u32)
            .map(|i| f64::from(i.wrapping_mul(2_654_435_761) >> 8) / f64::from(1 << 23) - 1.0)
            .collect();
        let mut h = vec![0.0; k * k];
        for (i, j) in (0..k).flat_map(|i| (0..k).map(move |j| (i, j))) {
            h[i * k + j] = (0..rows).map(|t| x[t * k + i] * x[t * k + j]).sum();
        }
        h
    }

    #[test]
    fn factors_multiply_back() {
        for k in [1, 2, 5, 63, 64, 65, 150] {
            let h = matrix(k);
            let mean = (0..k).map(|i| h[i * k + i]).sum::<f64>() / k as f64;
            let f = Factor::new(h.clone(), k, 0.01);
            for (i, j) in (0..k).flat_map(|i| (0..k).map(move |j| (i, j))) {
                let back: f64 = (i.max(j)..k)
                    .map(|m| f64::from(f.upper[i * k + m]) * f64::from(f.diagonal[m]) * f64::from(f.upper[j * k + m]))
                    .sum();
                let expected = h[i * k + j] + if i == j { 0.01 * mean } else { 0.0 };
                assert!((back - expected).abs() < 1e-4 * mean, "{k}: {i} {j} {back} {expected}");
            }
        }
    }

    #[test]
    fn solve_undoes_the_product() {
        let k = 70;
        let h = matrix(k);
        let mean = (0..k).map(|i| h[i * k + i]).sum::<f64>() / k as f64;
        let f = Factor::new(h.clone(), k, 0.05);
        let x: Vec<f32> = (0..3 * k).map(|i| ((i * 37 % 19) as f32 - 9.0) / 9.0).collect();
        let g: Vec<f32> = x
            .chunks(k)
            .flat_map(|x| {
                let h = &h;
                (0..k).map(move |j| {
                    let sum: f64 = (0..k).map(|i| f64::from(x[i]) * h[i * k + j]).sum();
                    (sum + 0.05 * mean * f64::from(x[j])) as f32
                })
            })
            .collect();
        for (a, b) in f.solve(&g).iter().zip(&x) {
            assert!((a - b).abs() < 1e-3, "{a} {b}");
        }
    }

    #[test]
    fn inputs_that_are_always_zero_are_left_alone() {
        let f = Factor::new(vec![0.0; 9], 3, 0.01);
        assert_eq!(f.upper, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
        assert!(f.diagonal.iter().all(|d| *d > 0.0));
    }
}
