//! Methods whose change is not a product of thin factors. Each works row by row on a stored matrix.

use rayon::prelude::*;

use super::super::adapter::Adapter;
use super::super::factors::Region;
use super::super::{MergeError, matrix};
use super::fourier;

/// A change of one weight, with the names of its tensors.
#[derive(Debug, Clone, PartialEq)]
pub enum Dense {
    /// IA3 over outputs (rows) or inputs (columns).
    Scale {
        /// `ia3_l`
        by: String,
        /// Rows, not columns, are scaled.
        rows: bool,
    },
    /// LoHa: the element-wise product of two low-rank products.
    Hadamard {
        /// `w1_a`, `w1_b`, `w2_a`, `w2_b`
        factors: [String; 4],
        /// alpha / r
        scale: f64,
    },
    /// LoKr: a Kronecker product; each side one tensor or a product of two.
    Kronecker {
        /// Left side.
        w1: Vec<String>,
        /// Right side.
        w2: Vec<String>,
        /// alpha / r
        scale: f64,
    },
    /// OFT: blocks of inputs are rotated.
    Rotate {
        /// `oft_R.weight`: (blocks, b·(b−1)/2)
        skew: String,
        /// b
        block: usize,
        /// Terms of the Neumann series; the exact inverse if `None`.
        terms: Option<usize>,
    },
    /// BOFT: blocks of inputs are rotated, then outputs scaled.
    RotateAndScale {
        /// `boft_R`: (1, blocks, b, b)
        blocks: String,
        /// `boft_s`: (out, 1)
        gains: String,
        /// b
        block: usize,
    },
    /// FourierFT: coefficients of the change's spectrum.
    Spectrum {
        /// `fourierft_spectrum`: (n)
        values: String,
        /// Decides where they are.
        seed: u64,
        /// Multiplies the change.
        scale: f64,
    },
    /// HRA: inputs are reflected, one vector after the other.
    Reflect {
        /// `hra_u`: (in, r)
        vectors: String,
        /// The vectors are made orthogonal first.
        orthogonal: bool,
    },
    /// MiSS: a block of rows repeats over the inputs.
    Repeat {
        /// `miss_block`: (r, out)
        block: String,
    },
    /// HiRA: the weight times a low-rank product, element by element.
    Modulate {
        /// `hira_A`: (r, in)
        a: String,
        /// `hira_B`: (out, r)
        b: String,
    },
    /// SHiRA: single elements.
    Sparse {
        /// `shira_weight`: (n)
        values: String,
        /// `shira_indices`: (2, n), rows then columns
        positions: String,
    },
}

impl Dense {
    /// Whether the change is added to the weight, so that a user's weight can scale it.
    pub fn is_additive(&self) -> bool {
        match self {
            Self::Hadamard { .. } | Self::Kronecker { .. } | Self::Repeat { .. } => true,
            Self::Sparse { .. } | Self::Spectrum { .. } => true,
            Self::Scale { .. } | Self::Rotate { .. } | Self::RotateAndScale { .. } => false,
            Self::Reflect { .. } | Self::Modulate { .. } => false,
        }
    }

    /// Changes `w` in place. Shapes were checked when the step was planned.
    pub fn apply(&self, w: &mut [f32], region: Region, adapter: &Adapter, weight: f64) -> Result<(), MergeError> {
        let cols = region.cols;
        match self {
            Self::Scale { by, rows: true } => matrix::scale_rows(w, cols, &adapter.load(by)?),
            Self::Scale { by, rows: false } => matrix::scale_columns(w, &adapter.load(by)?),
            Self::Hadamard { factors: [a1, b1, a2, b2], scale } => {
                let (a1, b1, a2, b2) = (adapter.load(a1)?, adapter.load(b1)?, adapter.load(a2)?, adapter.load(b2)?);
                let (r1, r2) = (a1.len() / region.rows, a2.len() / region.rows);
                let scale = (scale * weight) as f32;
                each_row(w, cols, |o, row| {
                    let mut x = vec![0.0; cols];
                    let mut y = vec![0.0; cols];
                    add_row(&mut x, &a1[o * r1..(o + 1) * r1], &b1);
                    add_row(&mut y, &a2[o * r2..(o + 1) * r2], &b2);
                    for ((w, x), y) in row.iter_mut().zip(x).zip(y) {
                        *w += scale * x * y;
                    }
                });
            }
            Self::Kronecker { w1, w2, scale } => {
                let (w1, (p1, q1)) = side(w1, adapter)?;
                let (w2, (p2, q2)) = side(w2, adapter)?;
                debug_assert_eq!((p1 * p2, q1 * q2), (region.rows, cols));
                let scale = (scale * weight) as f32;
                each_row(w, cols, |o, row| {
                    let (i, k) = (o / p2, o % p2);
                    for (j, part) in row.chunks_exact_mut(q2).enumerate() {
                        let x = scale * w1[i * q1 + j];
                        part.iter_mut().zip(&w2[k * q2..]).for_each(|(w, y)| *w += x * y);
                    }
                });
            }
            Self::Rotate { skew, block, terms } => {
                let stored = adapter.load(skew)?;
                let per = block * (block - 1) / 2;
                let rotations = stored
                    .chunks_exact(per.max(1))
                    .map(|v| rotation(v, *block, *terms))
                    .collect::<Option<Vec<_>>>()
                    .ok_or_else(|| adapter.bad(skew, "its Cayley transform does not exist"))?;
                each_row(w, cols, |_, row| turn(row, &rotations, *block));
            }
            Self::RotateAndScale { blocks, gains, block } => {
                let (stored, gains) = (adapter.load(blocks)?, adapter.load(gains)?);
                let rotations = stored
                    .chunks_exact(block * block)
                    .map(|m| rotation(&skew_part(m, *block), *block, None))
                    .collect::<Option<Vec<_>>>()
                    .ok_or_else(|| adapter.bad(blocks, "its Cayley transform does not exist"))?;
                each_row(w, cols, |o, row| {
                    turn(row, &rotations, *block);
                    row.iter_mut().for_each(|x| *x *= gains[o]);
                });
            }
            Self::Spectrum { values, seed, scale } => {
                let values = adapter.load(values)?;
                let (left, right) = fourier::factors(&values, *seed, region.rows, cols, scale * weight);
                matrix::add_product(w, cols, &left, &right, right.len() / cols.max(1));
            }
            Self::Reflect { vectors, orthogonal } => {
                let stored = adapter.load(vectors)?;
                let r = stored.len() / cols;
                let u = unit_vectors(&stored, cols, r, *orthogonal);
                let u = u.ok_or_else(|| adapter.bad(vectors, "a reflection vector is zero"))?;
                each_row(w, cols, |_, row| {
                    for u in &u {
                        let share: f64 = u.iter().zip(&*row).map(|(u, &x)| u * f64::from(x)).sum();
                        row.iter_mut().zip(u).for_each(|(x, u)| *x = (f64::from(*x) - 2.0 * share * u) as f32);
                    }
                });
            }
            Self::Repeat { block } => {
                let block = adapter.load(block)?;
                let r = block.len() / region.rows;
                each_row(w, cols, |o, row| {
                    for (i, x) in row.iter_mut().enumerate() {
                        *x += weight as f32 * block[(i % r) * region.rows + o];
                    }
                });
            }
            Self::Modulate { a, b } => {
                let (a, b) = (adapter.load(a)?, adapter.load(b)?);
                let r = b.len() / region.rows;
                each_row(w, cols, |o, row| {
                    let mut x = vec![0.0; cols];
                    add_row(&mut x, &b[o * r..(o + 1) * r], &a);
                    row.iter_mut().zip(x).for_each(|(w, x)| *w += *w * x);
                });
            }
            Self::Sparse { values, positions } => {
                let values = adapter.load(values)?;
                let at = adapter.tensor(positions)?.read_i64()?;
                let (rows, columns) = at.split_at(values.len());
                for ((value, row), column) in values.iter().zip(rows).zip(columns) {
                    let inside = |x: i64, limit: usize| usize::try_from(x).ok().filter(|x| *x < limit);
                    let (Some(row), Some(column)) = (inside(*row, region.rows), inside(*column, cols)) else {
                        return Err(adapter.bad(positions, format!("position ({row}, {column}) is outside")));
                    };
                    w[row * cols + column] += weight as f32 * value;
                }
            }
        }
        Ok(())
    }
}

fn each_row(w: &mut [f32], cols: usize, change: impl Fn(usize, &mut [f32]) + Sync) {
    w.par_chunks_mut(cols.max(1)).enumerate().for_each(|(o, row)| change(o, row));
}

/// `out += Σ left[k] · right[k, :]`
fn add_row(out: &mut [f32], left: &[f32], right: &[f32]) {
    for (l, row) in left.iter().zip(right.chunks_exact(out.len())) {
        out.iter_mut().zip(row).for_each(|(o, x)| *o += l * x);
    }
}

/// One side of a Kronecker product, and its shape.
fn side(keys: &[String], adapter: &Adapter) -> Result<(Vec<f32>, (usize, usize)), MergeError> {
    let shape = |key: &String| Ok::<_, MergeError>(Region::whole(adapter.tensor(key)?.shape));
    Ok(match keys {
        [a, b] => {
            let (ra, rb) = (shape(a)?, shape(b)?);
            let mut out = vec![0.0; ra.rows * rb.cols];
            matrix::add_product(&mut out, rb.cols, &adapter.load(a)?, &adapter.load(b)?, ra.cols);
            (out, (ra.rows, rb.cols))
        }
        _ => (adapter.load(&keys[0])?, shape(&keys[0]).map(|r| (r.rows, r.cols))?),
    })
}

/// Turns every block of a row by its rotation; one shared block turns every part alike.
fn turn(row: &mut [f32], rotations: &[Square], block: usize) {
    for (i, part) in row.chunks_exact_mut(block).enumerate() {
        let r = rotations.get(i).unwrap_or(&rotations[0]);
        let turned: Vec<f32> = r
            .chunks_exact(block)
            .map(|r| r.iter().zip(&*part).map(|(r, &x)| r * f64::from(x)).sum::<f64>() as f32)
            .collect();
        part.copy_from_slice(&turned);
    }
}

/// The upper triangle of `(m − mᵀ) / 2`.
fn skew_part(m: &[f32], n: usize) -> Vec<f32> {
    (0..n).flat_map(|i| (i + 1..n).map(move |j| 0.5 * (m[i * n + j] - m[j * n + i]))).collect()
}

type Square = Vec<f64>;

fn multiply(a: &Square, b: &Square, n: usize) -> Square {
    let mut out = vec![0.0; n * n];
    for (row, a) in out.chunks_exact_mut(n).zip(a.chunks_exact(n)) {
        for (x, b) in a.iter().zip(b.chunks_exact(n)) {
            row.iter_mut().zip(b).for_each(|(o, y)| *o += x * y);
        }
    }
    out
}

/// The rotation of a skew matrix Q, stored as its upper triangle: (I − Q)(I + Q)⁻¹, or as many terms of its series as
/// PEFT takes. `None` if I + Q has no inverse.
fn rotation(upper: &[f32], n: usize, terms: Option<usize>) -> Option<Square> {
    let mut q = vec![0.0; n * n];
    let mut stored = upper.iter().map(|&x| f64::from(x));
    for i in 0..n {
        for j in i + 1..n {
            let x = stored.next().unwrap_or(0.0);
            (q[i * n + j], q[j * n + i]) = (x, -x);
        }
    }
    let unit =
        |sign: f64| -> Square { (0..n * n).map(|k| f64::from(u8::from(k / n == k % n)) + sign * q[k]).collect() };
    let Some(terms) = terms else {
        // X (I + Q) = I − Q; transposed, (I − Q) Xᵀ = I + Q, since Qᵀ = −Q.
        let xt = solve(unit(-1.0), unit(1.0), n)?;
        return Some((0..n * n).map(|k| xt[(k % n) * n + k / n]).collect());
    };
    let mut r: Square = (0..n * n).map(|k| f64::from(u8::from(k / n == k % n))).collect();
    let add = |r: &mut Square, x: &Square, by: f64| r.iter_mut().zip(x).for_each(|(r, x)| *r += by * x);
    if terms > 1 {
        add(&mut r, &q, 2.0);
        if terms > 2 {
            let mut power = multiply(&q, &q, n);
            add(&mut r, &power, 2.0);
            for _ in 3..terms - 1 {
                power = multiply(&power, &q, n);
                add(&mut r, &power, 2.0);
            }
            power = multiply(&power, &q, n);
            add(&mut r, &power, 1.0);
        }
    }
    Some(r)
}

/// Solves a·x = b by elimination with row pivots.
fn solve(mut a: Square, mut b: Square, n: usize) -> Option<Square> {
    for k in 0..n {
        let pivot = (k..n).max_by(|&i, &j| a[i * n + k].abs().total_cmp(&a[j * n + k].abs()))?;
        if a[pivot * n + k].abs() < 1e-300 {
            return None;
        }
        for j in 0..n {
            a.swap(k * n + j, pivot * n + j);
            b.swap(k * n + j, pivot * n + j);
        }
        for i in (0..n).filter(|i| *i != k) {
            let f = a[i * n + k] / a[k * n + k];
            if f != 0.0 {
                for j in 0..n {
                    a[i * n + j] -= f * a[k * n + j];
                    b[i * n + j] -= f * b[k * n + j];
                }
            }
        }
    }
    for k in 0..n {
        let d = a[k * n + k];
        b[k * n..(k + 1) * n].iter_mut().for_each(|x| *x /= d);
    }
    Some(b)
}

/// The columns of `u` (len × r) as unit vectors.
fn unit_vectors(u: &[f32], len: usize, r: usize, orthogonal: bool) -> Option<Vec<Vec<f64>>> {
    let mut out: Vec<Vec<f64>> = Vec::with_capacity(r);
    for i in 0..r {
        let mut x: Vec<f64> = (0..len).map(|j| f64::from(u[j * r + i])).collect();
        if orthogonal {
            for b in &out {
                let share: f64 = b.iter().zip(&x).map(|(b, x)| b * x).sum();
                x.iter_mut().zip(b).for_each(|(x, b)| *x -= share * b);
            }
        }
        let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        if norm == 0.0 {
            return None;
        }
        x.iter_mut().for_each(|x| *x /= norm);
        out.push(x);
    }
    Some(out)
}
