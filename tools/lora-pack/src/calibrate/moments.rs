//! Second moments of a linear's inputs: `Σ x·yᵀ` over token rows.
//!
//! The products run on the runtime's float kernel: a run of tokens is the inputs of one panel, so the sums of a run
//! are f32 in the kernel's fixed order, and runs are added up in f64. The bits depend on nothing but the rows and how
//! they are cut into runs.

use lora_runtime::kernels::{ActRows, Kernels};
use lora_runtime::weights::{PANEL_ROWS, WeightFormat};
use rayon::prelude::*;

/// Tokens whose products are added up in f32.
pub const RUN: usize = 512;

/// A matrix of sums, row-major: one row per entry of `x`, one column per entry of `y`.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Rows: entries of `x`.
    pub n: usize,
    /// Columns: entries of `y`.
    pub k: usize,
    /// `n × k` sums; of a symmetric matrix only the entries up to the diagonal are filled before [`Moments::mean`].
    sums: Vec<f64>,
    /// Token rows that were added.
    pub rows: usize,
}

impl Moments {
    /// No rows yet, of one set of `k` inputs.
    #[must_use]
    pub fn new(k: usize) -> Self {
        Self::between(k, k)
    }

    /// No rows yet, of `n` numbers and `k` others.
    #[must_use]
    pub fn between(n: usize, k: usize) -> Self {
        Self { n, k, sums: vec![0.0; n * k], rows: 0 }
    }

    /// Adds `x·xᵀ` of every row of `x` (rows of `k`).
    pub fn add_square(&mut self, x: &[f32]) {
        self.add(x, x, true);
    }

    /// Adds `x·yᵀ` of every pair of rows.
    pub fn add_product(&mut self, x: &[f32], y: &[f32]) {
        self.add(x, y, false);
    }

    fn add(&mut self, x: &[f32], y: &[f32], symmetric: bool) {
        let (n, k) = (self.n, self.k);
        assert_eq!(x.len() / n, y.len() / k, "rows of both");
        for (x, y) in x.chunks(RUN * n).zip(y.chunks(RUN * k)) {
            let tokens = y.len() / k;
            let columns = transposed(x, tokens, n);
            let panels = panels(y, tokens, k);
            let panel_bytes = WeightFormat::F32.panel_bytes(tokens);
            let kernels = Kernels::best();
            self.sums.par_chunks_mut(PANEL_ROWS * k).enumerate().for_each(|(block, sums)| {
                let first = block * PANEL_ROWS;
                let rows = sums.len() / k;
                let x = ActRows::floats(&columns[first * tokens..], tokens);
                let mut tile = [[0.0; PANEL_ROWS]; PANEL_ROWS];
                for p in 0..if symmetric { block + 1 } else { k.div_ceil(PANEL_ROWS) } {
                    let panel = &panels[p * panel_bytes..][..panel_bytes];
                    kernels.linear_panel(WeightFormat::F32, &[0; 16], panel, tokens, x, &mut tile[..rows]);
                    let width = PANEL_ROWS.min(k - p * PANEL_ROWS);
                    for (sums, tile) in sums.chunks_exact_mut(k).zip(&tile) {
                        for (sum, t) in sums[p * PANEL_ROWS..][..width].iter_mut().zip(tile) {
                            *sum += f64::from(*t);
                        }
                    }
                }
            });
            self.rows += tokens;
        }
    }

    /// The mean of `x·xᵀ`: both halves filled.
    #[must_use]
    pub fn mean_symmetric(&self) -> Vec<f64> {
        let (k, inverse) = (self.k, 1.0 / self.rows.max(1) as f64);
        let mut out = vec![0.0; k * k];
        out.par_chunks_mut(k).enumerate().for_each(|(i, row)| {
            for (j, v) in row.iter_mut().enumerate() {
                *v = inverse * if j <= i { self.sums[i * k + j] } else { self.sums[j * k + i] };
            }
        });
        out
    }

    /// The mean of `x·yᵀ`.
    #[must_use]
    pub fn mean(&self) -> Vec<f32> {
        let inverse = 1.0 / self.rows.max(1) as f64;
        self.sums.iter().map(|s| (s * inverse) as f32).collect()
    }

    /// The mean of `x²` by input.
    #[must_use]
    pub fn diagonal(&self) -> Vec<f32> {
        let inverse = 1.0 / self.rows.max(1) as f64;
        (0..self.k).map(|i| (self.sums[i * self.k + i] * inverse) as f32).collect()
    }
}

/// `rows × cols` → `cols × rows`.
fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    out.par_chunks_mut(rows).enumerate().for_each(|(c, column)| {
        for (r, v) in column.iter_mut().enumerate() {
            *v = x[r * cols + c];
        }
    });
    out
}

/// The columns of `y` as panel rows, its rows as their inputs.
fn panels(y: &[f32], rows: usize, cols: usize) -> Vec<u8> {
    let bytes = WeightFormat::F32.panel_bytes(rows);
    let mut out = vec![0; bytes * cols.div_ceil(PANEL_ROWS)];
    out.par_chunks_mut(bytes).enumerate().for_each(|(p, panel)| {
        let first = p * PANEL_ROWS;
        let width = PANEL_ROWS.min(cols - first);
        for (row, place) in y.chunks_exact(cols).zip(panel.chunks_exact_mut(4 * PANEL_ROWS)) {
            for (v, to) in row[first..first + width].iter().zip(place.chunks_exact_mut(4)) {
                to.copy_from_slice(&v.to_le_bytes());
            }
        }
    });
    out
}

/// `a·bᵀ` of `n × k` and `m × k`, on the same kernel.
#[must_use]
pub fn product(a: &[f32], b: &[f32], k: usize) -> Vec<f32> {
    let m = b.len() / k;
    let panels = lora_runtime::kernels::pack_float(WeightFormat::F32, b, m, k);
    let bytes = WeightFormat::F32.panel_bytes(k);
    let mut out = vec![0.0; a.len() / k * m];
    out.par_chunks_mut(PANEL_ROWS * m).zip(a.par_chunks(PANEL_ROWS * k)).for_each(|(out, a)| {
        let rows = a.len() / k;
        let mut tile = [[0.0; PANEL_ROWS]; PANEL_ROWS];
        for (p, panel) in panels.chunks_exact(bytes).enumerate() {
            let x = ActRows::floats(a, k);
            Kernels::best().linear_panel(WeightFormat::F32, &[0; 16], panel, k, x, &mut tile[..rows]);
            let width = PANEL_ROWS.min(m - p * PANEL_ROWS);
            for (out, tile) in out.chunks_exact_mut(m).zip(&tile) {
                out[p * PANEL_ROWS..][..width].copy_from_slice(&tile[..width]);
            }
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    #[test]
    fn sums_equal_the_plain_loop() {
        for (tokens, n, k) in [(1, 1, 1), (3, 5, 17), (40, 48, 48), (600, 50, 33)] {
            let (x, y) = (values(tokens * n, 1), values(tokens * k, 99));
            let (mut square, mut cross) = (Moments::new(n), Moments::between(n, k));
            square.add_square(&x);
            cross.add_product(&x, &y);
            let (square, cross) = (square.mean_symmetric(), cross.mean());
            let sum = |i: usize, y: &[f32], width: usize, j: usize| {
                (0..tokens).map(|t| f64::from(x[t * n + i]) * f64::from(y[t * width + j])).sum::<f64>() / tokens as f64
            };
            for i in 0..n {
                for j in 0..n {
                    assert!((square[i * n + j] - sum(i, &x, n, j)).abs() < 1e-5, "{tokens} {n} {i} {j}");
                }
                for j in 0..k {
                    assert!((f64::from(cross[i * k + j]) - sum(i, &y, k, j)).abs() < 1e-5, "{tokens} {n} {k} {i} {j}");
                }
            }
        }
    }

    #[test]
    fn product_equals_the_plain_loop() {
        let (n, m, k) = (19, 21, 37);
        let (a, b) = (values(n * k, 5), values(m * k, 7));
        let got = product(&a, &b, k);
        for (i, j) in (0..n).flat_map(|i| (0..m).map(move |j| (i, j))) {
            let sum: f32 = (0..k).map(|t| a[i * k + t] * b[j * k + t]).sum();
            assert!((got[i * m + j] - sum).abs() < 1e-4);
        }
    }
}
