//! Singular value decompositions in f64, deterministic to the bit for any number of threads.
//!
//! Two ways, one result: small matrices are decomposed completely by one-sided Jacobi rotations, which is as exact as
//! f64 allows; of large ones only the leading triplets are wanted, and Golub–Kahan–Lanczos bidiagonalisation with full
//! reorthogonalisation finds those from a few hundred products with the matrix.

use rayon::prelude::*;

/// Up to this smaller dimension everything is decomposed.
const SMALL: usize = 192;
/// Largest smaller dimension that [`full`] is meant for: minutes of work.
pub const LARGEST_FULL: usize = 2048;
/// Residual of a triplet, relative to the largest singular value, at which it counts as found.
const CONVERGED: f64 = 1e-11;

/// Leading triplets: `u[i]` and `v[i]` are unit vectors, `s` descends.
#[derive(Debug, Clone)]
pub struct Svd {
    pub u: Vec<Vec<f64>>,
    pub s: Vec<f64>,
    pub v: Vec<Vec<f64>>,
}

impl Svd {
    /// `left` (rows × k, the values multiplied in) and `right` (k × cols) of the first k triplets.
    pub fn factors(&self, k: usize) -> (Vec<f32>, Vec<f32>) {
        let k = k.min(self.s.len());
        let rows = self.u.first().map_or(0, Vec::len);
        let mut left = Vec::with_capacity(rows * k);
        for row in 0..rows {
            left.extend((0..k).map(|i| (self.u[i][row] * self.s[i]) as f32));
        }
        let right = self.v[..k].iter().flatten().map(|&x| x as f32).collect();
        (left, right)
    }
}

/// The `k` leading triplets of a rows × cols matrix.
pub fn leading(m: &[f32], rows: usize, cols: usize, k: usize) -> Svd {
    let k = k.min(rows).min(cols);
    if rows.min(cols) <= SMALL {
        let mut all = full(m, rows, cols);
        all.u.truncate(k);
        all.s.truncate(k);
        all.v.truncate(k);
        return all;
    }
    lanczos(m, rows, cols, k)
}

/// All triplets.
pub fn full(m: &[f32], rows: usize, cols: usize) -> Svd {
    let tall = rows >= cols;
    let (n, len) = if tall { (cols, rows) } else { (rows, cols) };
    let column = |j: usize| -> Vec<f64> {
        match tall {
            true => (0..len).map(|i| f64::from(m[i * cols + j])).collect(),
            false => m[j * cols..(j + 1) * cols].iter().map(|&x| f64::from(x)).collect(),
        }
    };
    let (long, s, short) = jacobi((0..n).map(column).collect());
    let (u, v) = if tall { (long, short) } else { (short, long) };
    Svd { u, s, v }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// `a -= f · b`
fn subtract(a: &mut [f64], f: f64, b: &[f64]) {
    a.iter_mut().zip(b).for_each(|(x, y)| *x -= f * y);
}

fn rotate(a: &mut [f64], b: &mut [f64], c: f64, s: f64) {
    for (x, y) in a.iter_mut().zip(b) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

/// One-sided Jacobi on n columns: rotates pairs until all are orthogonal. Returns unit left vectors, values in
/// descending order, and right vectors.
#[allow(clippy::type_complexity)]
fn jacobi(mut a: Vec<Vec<f64>>) -> (Vec<Vec<f64>>, Vec<f64>, Vec<Vec<f64>>) {
    const SWEEPS: usize = 60;
    let n = a.len();
    let mut v: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for _ in 0..SWEEPS {
        let mut rotated = false;
        for p in 0..n {
            for q in p + 1..n {
                let (head, tail) = a.split_at_mut(q);
                let (x, y) = (&mut head[p], &mut tail[0]);
                let (xx, yy, xy) = (dot(x, x), dot(y, y), dot(x, y));
                if xy.abs() <= 1e-15 * (xx * yy).sqrt() || xy == 0.0 {
                    continue;
                }
                rotated = true;
                let zeta = (yy - xx) / (2.0 * xy);
                let t = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                let c = 1.0 / (1.0 + t * t).sqrt();
                rotate(x, y, c, c * t);
                let (head, tail) = v.split_at_mut(q);
                rotate(&mut head[p], &mut tail[0], c, c * t);
            }
        }
        if !rotated {
            break;
        }
    }
    let mut order: Vec<(f64, usize)> = a.iter().map(|c| norm(c)).zip(0..).collect();
    order.sort_by(|x, y| y.0.total_cmp(&x.0).then(x.1.cmp(&y.1)));
    let s: Vec<f64> = order.iter().map(|(s, _)| *s).collect();
    let u = order.iter().map(|&(s, i)| a[i].iter().map(|x| if s > 0.0 { x / s } else { 0.0 }).collect()).collect();
    let v = order.iter().map(|&(_, i)| std::mem::take(&mut v[i])).collect();
    (u, s, v)
}

/// m · x
fn times(m: &[f32], cols: usize, x: &[f64]) -> Vec<f64> {
    m.par_chunks(cols).map(|row| row.iter().zip(x).map(|(&a, b)| f64::from(a) * b).sum()).collect()
}

/// mᵀ · y, by strips of columns so that every sum has one order.
fn transposed_times(m: &[f32], cols: usize, y: &[f64]) -> Vec<f64> {
    const STRIP: usize = 256;
    let mut out = vec![0.0; cols];
    out.par_chunks_mut(STRIP).enumerate().for_each(|(strip, out)| {
        let from = strip * STRIP;
        for (row, &w) in m.chunks_exact(cols).zip(y) {
            for (o, &a) in out.iter_mut().zip(&row[from..]) {
                *o += f64::from(a) * w;
            }
        }
    });
    out
}

/// A fixed direction number `n`: the same on every machine.
fn direction(len: usize, n: u64) -> Vec<f64> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(n + 1);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as f64 / u64::MAX as f64 - 0.5
    };
    (0..len).map(|_| next()).collect()
}

/// Makes `x` orthogonal to all of `basis` (twice, which is enough) and returns its norm after that.
fn orthogonalize(x: &mut [f64], basis: &[Vec<f64>]) -> f64 {
    for _ in 0..2 {
        let shares: Vec<f64> = basis.par_iter().map(|b| dot(b, x)).collect();
        x.par_chunks_mut(1024).enumerate().for_each(|(i, part)| {
            for (b, f) in basis.iter().zip(&shares) {
                subtract(part, *f, &b[i * 1024..i * 1024 + part.len()]);
            }
        });
    }
    norm(x)
}

/// Golub–Kahan–Lanczos: orthonormal p (in rows) and q (in cols) with m·Q = P·B, B upper bidiagonal. Where the process
/// runs out (a low-rank matrix), it goes on in a fresh direction, so that repeated values are found as well.
fn lanczos(m: &[f32], rows: usize, cols: usize, k: usize) -> Svd {
    let most = rows.min(cols);
    let (mut p, mut q): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (Vec::new(), Vec::new());
    let (mut alpha, mut beta): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
    let mut next_check = (2 * k + 16).min(most);
    let mut largest = 0f64;
    let mut restarts = 0;

    let mut x = direction(cols, 0);
    let n = norm(&x);
    x.iter_mut().for_each(|e| *e /= n);
    loop {
        // x is the next q.
        let mut y = times(m, cols, &x);
        if let (Some(last), Some(b)) = (p.last(), beta.last()) {
            subtract(&mut y, *b, last);
        }
        q.push(x);
        let mut a = orthogonalize(&mut y, &p);
        largest = largest.max(a);
        if a <= largest * 1e-14 {
            // Nothing of the matrix is left in this direction; any unit vector will do for p.
            a = 0.0;
            y = direction(rows, 1 << 32 | restarts);
            let n = orthogonalize(&mut y, &p);
            y.iter_mut().for_each(|e| *e /= n);
        } else {
            y.iter_mut().for_each(|e| *e /= a);
        }
        alpha.push(a);
        let mut z = transposed_times(m, cols, &y);
        subtract(&mut z, a, &q[q.len() - 1]);
        p.push(y);
        let done = q.len() == most;
        let mut b = if done { 0.0 } else { orthogonalize(&mut z, &q) };
        largest = largest.max(b);
        let exhausted = b <= largest * 1e-14;
        if exhausted && !done {
            b = 0.0;
            restarts += 1;
            z = direction(cols, restarts);
            let n = orthogonalize(&mut z, &q);
            z.iter_mut().for_each(|e| *e /= n);
        } else if !done {
            z.iter_mut().for_each(|e| *e /= b);
        }
        beta.push(b);
        x = z;

        // Two fresh directions in a row that the matrix sends to zero: the rest of it is zero.
        let nothing_left = restarts > 1 && alpha.last() == Some(&0.0) && exhausted;
        if q.len() < next_check && !done && !nothing_left {
            continue;
        }
        next_check = (next_check + next_check / 2).min(most);
        // B by columns: alpha on the diagonal, beta above it.
        let size = q.len();
        let columns = (0..size).map(|j| {
            let mut c = vec![0.0; size];
            c[j] = alpha[j];
            if j > 0 {
                c[j - 1] = beta[j - 1];
            }
            c
        });
        let (bu, s, bv) = jacobi(columns.collect());
        let top = s.first().copied().unwrap_or(0.0);
        let found = |i: usize| b * bu[i][size - 1].abs() <= CONVERGED * top;
        if done || nothing_left || (size >= k && (0..k).all(found)) {
            let k = k.min(size);
            return Svd {
                u: (0..k).map(|i| combine(&p, &bu[i], rows)).collect(),
                v: (0..k).map(|i| combine(&q, &bv[i], cols)).collect(),
                s: s[..k].to_vec(),
            };
        }
    }
}

/// Σ basis[j] · by[j]
fn combine(basis: &[Vec<f64>], by: &[f64], len: usize) -> Vec<f64> {
    let mut out = vec![0.0; len];
    out.par_chunks_mut(1024).enumerate().for_each(|(i, part)| {
        for (b, f) in basis.iter().zip(by) {
            subtract(part, -f, &b[i * 1024..i * 1024 + part.len()]);
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        direction(n, seed).into_iter().map(|x| x as f32).collect()
    }

    fn rebuilt(svd: &Svd, row: usize, col: usize) -> f64 {
        (0..svd.s.len()).map(|i| svd.u[i][row] * svd.s[i] * svd.v[i][col]).sum()
    }

    #[test]
    fn full_decomposition_rebuilds_the_matrix() {
        for (rows, cols) in [(1, 1), (5, 3), (3, 5), (16, 16), (40, 7)] {
            let m = numbers(rows * cols, 9);
            let svd = full(&m, rows, cols);
            for row in 0..rows {
                for col in 0..cols {
                    assert!((rebuilt(&svd, row, col) - f64::from(m[row * cols + col])).abs() < 1e-13);
                }
            }
            for i in 0..svd.s.len() {
                for j in 0..=i {
                    let want = f64::from(u8::from(i == j));
                    assert!((dot(&svd.u[i], &svd.u[j]) - want).abs() < 1e-12);
                    assert!((dot(&svd.v[i], &svd.v[j]) - want).abs() < 1e-12);
                }
            }
            assert!(svd.s.is_sorted_by(|a, b| a >= b));
        }
    }

    #[test]
    fn lanczos_agrees_with_jacobi() {
        let (rows, cols, k) = (60, 90, 6);
        let m = numbers(rows * cols, 3);
        let (some, all) = (lanczos(&m, rows, cols, k), full(&m, rows, cols));
        for i in 0..k {
            assert!((some.s[i] - all.s[i]).abs() < 1e-12 * all.s[0], "{i}");
            assert!((dot(&some.u[i], &all.u[i]).abs() - 1.0).abs() < 1e-9, "{i}");
            assert!((dot(&some.v[i], &all.v[i]).abs() - 1.0).abs() < 1e-9, "{i}");
        }
    }

    #[test]
    fn lanczos_handles_low_rank_and_repeated_values() {
        // Rank 2 with equal values: e0 e0ᵀ + e1 e1ᵀ.
        let (rows, cols) = (30, 20);
        let mut m = vec![0f32; rows * cols];
        m[0] = 1.0;
        m[cols + 1] = 1.0;
        let svd = lanczos(&m, rows, cols, 4);
        for row in 0..rows {
            for col in 0..cols {
                assert!((rebuilt(&svd, row, col) - f64::from(m[row * cols + col])).abs() < 1e-12);
            }
        }
        assert!((svd.s[0] - 1.0).abs() < 1e-12 && (svd.s[1] - 1.0).abs() < 1e-12);
        let zero = lanczos(&vec![0.0; rows * cols], rows, cols, 3);
        assert!(zero.s.iter().all(|s| *s == 0.0));
    }

    #[test]
    fn the_bits_do_not_depend_on_the_threads() {
        let (rows, cols) = (300, 260);
        let m = numbers(rows * cols, 5);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| leading(&m, rows, cols, 5).factors(5))
        };
        assert_eq!(run(1), run(3));
    }
}
