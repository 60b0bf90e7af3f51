//! The arithmetic of merging: dense row-major f32 matrices.
//!
//! Everything is computed row by row (or column by column), each element by one thread in one fixed order, so the
//! bytes do not depend on the number of threads. Products accumulate in f32 in k order, multiply then add: the error
//! of a rank-r product is below r/2 units in the last place of the sum of magnitudes, which for the ranks in use is
//! far below the rounding of any stored weight. Norms accumulate in f64.

use lora_runtime::kernels::{Wide, widest};
use rayon::prelude::*;

/// Rows that one task takes.
const ROWS: usize = 64;
/// The register tile: rows × columns of the result.
const TILE_ROWS: usize = 4;
const TILE_COLS: usize = 16;

/// `w += left · right`, where `w` has `cols` columns, `left` is rows × r and `right` is r × cols.
///
/// A tile of 4 × 16 results stays in registers over all k, and the strip of `right` that it reads (r lines of 64 bytes)
/// is copied together and stays in the first cache for the 64 rows of a task, so `w` is read and written once.
pub fn add_product(w: &mut [f32], cols: usize, left: &[f32], right: &[f32], r: usize) {
    if cols == 0 || r == 0 {
        return;
    }
    debug_assert_eq!(left.len() * cols, w.len() * r);
    debug_assert_eq!(right.len(), r * cols);
    w.par_chunks_mut(ROWS * cols)
        .zip(left.par_chunks(ROWS * r))
        .for_each(|(w, left)| widest(AddProduct { w, cols, left, right, r }));
}

/// [`add_product`] to the rows of one task.
struct AddProduct<'a> {
    w: &'a mut [f32],
    cols: usize,
    left: &'a [f32],
    right: &'a [f32],
    r: usize,
}

impl Wide for AddProduct<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self { w, cols, left, right, r } = self;
        // Of each tile its rows' factors side by side, with zeros for rows that do not exist.
        let mut factors = vec![[0f32; TILE_ROWS]; left.len().div_ceil(TILE_ROWS * r) * r];
        for (factors, left) in factors.chunks_exact_mut(r).zip(left.chunks(TILE_ROWS * r)) {
            for (row, left) in left.chunks_exact(r).enumerate() {
                for (factors, l) in factors.iter_mut().zip(left) {
                    factors[row] = *l;
                }
            }
        }
        let mut strip = vec![[0f32; TILE_COLS]; r];
        for col in (0..cols).step_by(TILE_COLS) {
            let width = TILE_COLS.min(cols - col);
            for (strip, right) in strip.iter_mut().zip(right.chunks_exact(cols)) {
                match right[col..].first_chunk() {
                    Some(right) => *strip = *right,
                    None => strip[..width].copy_from_slice(&right[col..]),
                }
            }
            for (w, factors) in w.chunks_mut(TILE_ROWS * cols).zip(factors.chunks_exact(r)) {
                let sums = product(factors, &strip);
                for (w, sum) in w.chunks_exact_mut(cols).zip(&sums) {
                    let w = &mut w[col..col + width];
                    let mut line = [0.0; TILE_COLS];
                    match w.first_chunk() {
                        Some(w) => line = *w,
                        None => line[..width].copy_from_slice(w),
                    }
                    for (w, s) in line.iter_mut().zip(sum) {
                        *w += s;
                    }
                    match w.first_chunk_mut() {
                        Some(w) => *w = line,
                        None => w.copy_from_slice(&line[..width]),
                    }
                }
            }
        }
    }
}

/// A tile of the product.
#[inline(always)]
fn product(factors: &[[f32; TILE_ROWS]], strip: &[[f32; TILE_COLS]]) -> [[f32; TILE_COLS]; TILE_ROWS] {
    // A variable for each line: an array of them would be vectorised across its rows.
    let [mut a, mut b, mut c, mut d] = [[0f32; TILE_COLS]; TILE_ROWS];
    for (factors, strip) in factors.iter().zip(strip) {
        a = line(a, factors[0], strip);
        b = line(b, factors[1], strip);
        c = line(c, factors[2], strip);
        d = line(d, factors[3], strip);
    }
    [a, b, c, d]
}

/// `sum + l · strip`
#[inline(always)]
fn line(mut sum: [f32; TILE_COLS], l: f32, strip: &[f32; TILE_COLS]) -> [f32; TILE_COLS] {
    for (s, x) in sum.iter_mut().zip(strip) {
        *s += l * x;
    }
    sum
}

/// The transpose of a rows × cols matrix.
pub fn transpose(m: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; m.len()];
    if rows == 0 || cols == 0 {
        return out;
    }
    out.par_chunks_mut(rows).enumerate().for_each(|(c, out)| {
        for (r, o) in out.iter_mut().enumerate() {
            *o = m[r * cols + c];
        }
    });
    out
}

/// Euclidean norm of every row.
pub fn row_norms(m: &[f32], cols: usize) -> Vec<f32> {
    m.par_chunks(cols.max(1)).map(|row| row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt() as f32).collect()
}

/// Euclidean norm of every column.
pub fn column_norms(m: &[f32], cols: usize) -> Vec<f32> {
    const STRIP: usize = 64;
    let mut out = vec![0.0; cols];
    out.par_chunks_mut(STRIP).enumerate().for_each(|(strip, out)| {
        let mut sums = [0f64; STRIP];
        for row in m.chunks_exact(cols) {
            for (s, &x) in sums.iter_mut().zip(&row[strip * STRIP..strip * STRIP + out.len()]) {
                *s += f64::from(x).powi(2);
            }
        }
        for (o, s) in out.iter_mut().zip(sums) {
            *o = s.sqrt() as f32;
        }
    });
    out
}

/// Multiplies row i by `by[i]`.
pub fn scale_rows(m: &mut [f32], cols: usize, by: &[f32]) {
    m.par_chunks_mut(cols.max(1)).zip(by.par_iter()).for_each(|(row, g)| row.iter_mut().for_each(|x| *x *= g));
}

/// Multiplies column j by `by[j]`.
pub fn scale_columns(m: &mut [f32], by: &[f32]) {
    m.par_chunks_mut(by.len().max(1)).for_each(|row| row.iter_mut().zip(by).for_each(|(x, g)| *x *= g));
}

/// The first element that is NaN or infinite.
pub fn first_not_finite(m: &[f32]) -> Option<usize> {
    const CHUNK: usize = 1 << 17;
    m.par_chunks(CHUNK).enumerate().find_map_first(|(i, chunk)| {
        if widest(AllFinite(chunk)) {
            return None;
        }
        chunk.iter().position(|x| !x.is_finite()).map(|at| i * CHUNK + at)
    })
}

struct AllFinite<'a>(&'a [f32]);

impl Wide for AllFinite<'_> {
    type Output = bool;
    #[inline(always)]
    fn run(self) -> bool {
        let mut all = true;
        for x in self.0 {
            all &= x.is_finite();
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut x = seed.wrapping_mul(0x9e37_79b9) | 1;
        let mut next = || {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x as f32 / u32::MAX as f32 - 0.5
        };
        (0..n).map(|_| next()).collect()
    }

    /// The definition, in the same order of additions.
    fn naive(w: &mut [f32], cols: usize, left: &[f32], right: &[f32], r: usize) {
        for (i, w) in w.iter_mut().enumerate() {
            let (row, col) = (i / cols, i % cols);
            let mut sum = 0.0;
            for k in 0..r {
                sum += left[row * r + k] * right[k * cols + col];
            }
            *w += sum;
        }
    }

    #[test]
    fn product_equals_its_definition_to_the_bit() {
        for rows in [0, 1, 3, 4, 5, 63, 64, 65, 130] {
            for cols in [0, 1, 7, 15, 16, 17, 40] {
                for r in [0, 1, 2, 5, 16] {
                    let (left, right) = (numbers(rows * r, 1), numbers(r * cols, 2));
                    let mut got = numbers(rows * cols, 3);
                    let mut want = got.clone();
                    add_product(&mut got, cols, &left, &right, r);
                    naive(&mut want, cols, &left, &right, r);
                    assert_eq!(got, want, "{rows}×{r}×{cols}");
                }
            }
        }
    }

    #[test]
    fn product_does_not_depend_on_the_threads() {
        let (rows, cols, r) = (300, 77, 13);
        let (left, right) = (numbers(rows * r, 4), numbers(r * cols, 5));
        let run = |threads| {
            let mut w = numbers(rows * cols, 6);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| add_product(&mut w, cols, &left, &right, r));
            w
        };
        let one = run(1);
        for threads in [2, 3, 5] {
            assert_eq!(run(threads), one);
        }
    }

    #[test]
    fn norms_and_scales() {
        let m = [3.0, 0.0, 4.0, 0.0, 2.0, 0.0];
        assert_eq!(row_norms(&m, 3), [5.0, 2.0]);
        assert_eq!(column_norms(&m, 3), [3.0, 2.0, 4.0]);
        let mut rows = m;
        scale_rows(&mut rows, 3, &[2.0, 10.0]);
        assert_eq!(rows, [6.0, 0.0, 8.0, 0.0, 20.0, 0.0]);
        let mut columns = m;
        scale_columns(&mut columns, &[1.0, 10.0, 100.0]);
        assert_eq!(columns, [3.0, 0.0, 400.0, 0.0, 20.0, 0.0]);
        assert_eq!(transpose(&m, 2, 3), [3.0, 0.0, 0.0, 2.0, 4.0, 0.0]);
    }

    #[test]
    fn finds_what_is_not_finite() {
        let mut m = vec![1e38f32; 40_000];
        assert_eq!(first_not_finite(&m), None);
        m[33_333] = f32::NEG_INFINITY;
        m[39_999] = f32::NAN;
        assert_eq!(first_not_finite(&m), Some(33_333));
    }
}
