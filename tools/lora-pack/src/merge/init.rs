//! Starts that change the base: what PEFT subtracts from a weight when it loads an unconverted adapter.
//!
//! Each is a product of two thin factors over the stored weight, computed in f64 from the original weight. Which signs
//! and rotations a decomposition chooses does not matter: only the product is used, and that is unique (as long as the
//! last value kept differs from the first one left out).

use super::factors::{Factors, Region};
use super::{matrix, svd};

/// What is taken off.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Start {
    /// PiSSA: the `r` leading singular triplets.
    LeadingSvd { r: usize },
    /// OLoRA: `scale` times the first `r` columns of Q with the first `r` rows of R.
    LeadingQr { r: usize, scale: f64 },
    /// KaSA: the `r` smallest singular triplets.
    TrailingSvd { r: usize },
}

impl Start {
    /// The negative of what is taken off, so that it can be added like any product. `None` where the QR of OLoRA is not
    /// unique: the first r columns are dependent.
    pub fn factors(self, w: &[f32], region: Region) -> Option<Factors> {
        let (rows, cols) = (region.rows, region.cols);
        let (mut left, right) = match self {
            Start::LeadingSvd { r } => svd::leading(w, rows, cols, r).factors(r),
            Start::TrailingSvd { r } => {
                let mut all = svd::full(w, rows, cols);
                let keep = all.s.len().saturating_sub(r);
                (all.u, all.s, all.v) = (all.u.split_off(keep), all.s.split_off(keep), all.v.split_off(keep));
                all.factors(r)
            }
            Start::LeadingQr { r, scale } => leading_qr(w, rows, cols, r.min(rows).min(cols), scale)?,
        };
        left.iter_mut().for_each(|x| *x = -*x);
        Some(Factors { r: right.len() / cols.max(1), left, right })
    }
}

/// Q[:, :r]·R[:r, :] is the projection of w onto its own first r columns.
fn leading_qr(w: &[f32], rows: usize, cols: usize, r: usize, scale: f64) -> Option<(Vec<f32>, Vec<f32>)> {
    let mut q: Vec<Vec<f64>> = Vec::with_capacity(r);
    for j in 0..r {
        let mut x: Vec<f64> = (0..rows).map(|i| f64::from(w[i * cols + j])).collect();
        let before = x.iter().map(|e| e * e).sum::<f64>().sqrt();
        for _ in 0..2 {
            for b in &q {
                let share: f64 = b.iter().zip(&x).map(|(a, b)| a * b).sum();
                x.iter_mut().zip(b).for_each(|(e, b)| *e -= share * b);
            }
        }
        let after = x.iter().map(|e| e * e).sum::<f64>().sqrt();
        if after <= before * 1e-10 {
            return None;
        }
        x.iter_mut().for_each(|e| *e /= after);
        q.push(x);
    }
    let mut left = Vec::with_capacity(rows * r);
    for i in 0..rows {
        left.extend(q.iter().map(|b| (b[i] * scale) as f32));
    }
    let mut right = Vec::with_capacity(r * cols);
    for b in &q {
        let mut sums = vec![0f64; cols];
        for (row, share) in w.chunks_exact(cols).zip(b) {
            sums.iter_mut().zip(row).for_each(|(s, &x)| *s += share * f64::from(x));
        }
        right.extend(sums.into_iter().map(|s| s as f32));
    }
    Some((left, right))
}

/// Takes the start off a weight.
pub fn subtract(w: &mut [f32], start: Start, region: Region) -> Option<()> {
    let w = region.of(w);
    let f = start.factors(w, region)?;
    matrix::add_product(w, region.cols, &f.left, &f.right, f.r);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const W: [f32; 6] = [1.0, 0.0, 2.0, 0.0, 1.0, -1.0];

    fn after(start: Start) -> Vec<f32> {
        let mut w = W.to_vec();
        subtract(&mut w, start, Region { at: 0, rows: 2, cols: 3 }).unwrap();
        w
    }

    fn close(got: &[f32], want: [f32; 6]) {
        for (a, b) in got.iter().zip(want) {
            assert!((a - b).abs() < 1e-6, "{got:?}");
        }
    }

    #[test]
    fn worked_numbers() {
        close(&after(Start::LeadingSvd { r: 1 }), [0.2, 0.4, 0.0, 0.4, 0.8, 0.0]);
        close(&after(Start::LeadingQr { r: 1, scale: 2.0 }), [-1.0, 0.0, -2.0, 0.0, 1.0, -1.0]);
        close(&after(Start::TrailingSvd { r: 1 }), [0.8, -0.4, 2.0, -0.4, 0.2, -1.0]);
    }

    #[test]
    fn dependent_columns_have_no_unique_qr() {
        let mut w = [1.0, 2.0, 0.0, 1.0, 2.0, 5.0];
        assert!(subtract(&mut w, Start::LeadingQr { r: 2, scale: 1.0 }, Region { at: 0, rows: 2, cols: 3 }).is_none());
    }
}
