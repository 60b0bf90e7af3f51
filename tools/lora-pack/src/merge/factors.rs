//! Low-rank updates: where two factors come from and how they become `left · right` over a stored weight.
//!
//! PEFT's `B·A` is (out × r)·(r × in). A weight that is stored as (in × out) — Conv1D and embeddings — takes the
//! transpose. [`Factors`] are always in the orientation of the storage, scale included, so one kernel serves all.

use super::adapter::Adapter;
use super::{MergeError, matrix};

/// `left` (rows × r) times `right` (r × cols), to be added to a stored matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// Rank.
    pub r: usize,
    /// rows × r.
    pub left: Vec<f32>,
    /// r × cols.
    pub right: Vec<f32>,
}

/// A part of a tensor, as a matrix: `rows × cols` elements from element `at` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First element.
    pub at: usize,
    /// Rows as stored.
    pub rows: usize,
    /// Columns as stored.
    pub cols: usize,
}

impl Region {
    /// The whole of a tensor whose first dimension is the rows.
    pub fn whole(shape: &[usize]) -> Self {
        let rows = shape.first().copied().unwrap_or(1);
        Self { at: 0, rows, cols: shape.iter().skip(1).product() }
    }

    /// The region of a flat tensor.
    pub fn of<'a>(&self, tensor: &'a mut [f32]) -> &'a mut [f32] {
        &mut tensor[self.at..self.at + self.rows * self.cols]
    }
}

/// Two stored factors and what has to be done to them. Shapes were checked when it was planned.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Index of the adapter.
    pub adapter: usize,
    /// Tensor of A: (r, in).
    pub a: String,
    /// Tensor of B: (out, r).
    pub b: String,
    /// alpha / r and its kin.
    pub scale: f64,
    /// The weight is stored as (in × out).
    pub transposed: bool,
    /// Rank after the form is undone.
    pub r: usize,
    /// How the stored factors differ from plain ones.
    pub form: Form,
}

/// How stored factors differ from a plain A (r × in) and B (out × r).
#[derive(Debug, Clone, PartialEq)]
pub enum Form {
    /// Not at all.
    Plain,
    /// Row k of A is multiplied by element k of this tensor (KaSA's diagonal, AdaLoRA's E).
    Diagonal(String),
    /// A is stored as the blocks of a block-diagonal matrix, one below the other.
    BlockA(usize),
    /// B likewise.
    BlockB(usize),
    /// One column of A stands for a group of so many inputs (QA-LoRA).
    Grouped(usize),
    /// One expert of a stack: A holds experts × r rows, column k·experts + e of B belongs to expert e. Of the rows of
    /// the stack's matrix as stored, those in `rows` are this tensor's.
    Expert {
        /// Which.
        index: usize,
        /// Of how many.
        experts: usize,
        /// Rows of the parameter that this tensor holds.
        rows: std::ops::Range<usize>,
    },
    /// VeRA: A and B are shared by all layers and cut to `inputs` and `outputs`; `d` scales the rows of A, `b` those
    /// of B.
    Shared {
        /// `vera_lambda_d`
        d: String,
        /// `vera_lambda_b`
        b: String,
        /// Columns of A that count.
        inputs: usize,
        /// Rows of B that count.
        outputs: usize,
    },
    /// DeLoRA: every rank-one term is normalised, then `lambda` / r and the norms of the base's columns scale it.
    Normalised {
        /// `delora_lambda`
        lambda: String,
        /// `delora_w_norm`
        w_norm: String,
    },
}

impl Pair {
    /// A (r × in) and B (out × r), without the scale.
    pub fn plain(&self, adapters: &[Adapter]) -> Result<(Vec<f32>, Vec<f32>), MergeError> {
        let adapter = &adapters[self.adapter];
        let (mut a, mut b) = (adapter.load(&self.a)?, adapter.load(&self.b)?);
        let r = self.r;
        match &self.form {
            Form::Plain => {}
            Form::Diagonal(key) => {
                let diagonal = adapter.load(key)?;
                let cols = a.len() / r.max(1);
                matrix::scale_rows(&mut a, cols, &diagonal);
            }
            Form::BlockA(n) => a = block_diagonal(&a, r, *n),
            Form::BlockB(n) => {
                let rows = b.len() * n / r;
                b = block_diagonal(&b, rows, *n);
            }
            Form::Grouped(size) => {
                // P/g: PEFT averages over groups and then multiplies by their number.
                let groups = a.len() / r;
                let by = groups as f32 / *size as f32;
                a = a.iter().flat_map(|x| std::iter::repeat_n(x * by, *size)).collect();
            }
            Form::Expert { index, experts, .. } => {
                let cols = a.len() / (experts * r);
                a = a[index * r * cols..(index + 1) * r * cols].to_vec();
                let mine = |row: &[f32]| row.iter().skip(*index).step_by(*experts).copied().collect::<Vec<_>>();
                b = b.chunks_exact(experts * r).flat_map(mine).collect();
            }
            Form::Shared { d, b: lambda_b, inputs, outputs } => {
                let stored = a.len() / r;
                a = a.chunks_exact(stored).flat_map(|row| &row[..*inputs]).copied().collect();
                b.truncate(outputs * r);
                matrix::scale_rows(&mut a, *inputs, &adapter.load(d)?);
                matrix::scale_rows(&mut b, r, &adapter.load(lambda_b)?);
            }
            Form::Normalised { lambda, w_norm } => {
                let cols = a.len() / r;
                let strength = adapter.load(lambda)?[0] / r as f32;
                let (a_norms, b_norms) = (matrix::row_norms(&a, cols), matrix::column_norms(&b, r));
                let floor = |x: f32| x.max(1e-4);
                let by: Vec<f32> =
                    a_norms.iter().zip(&b_norms).map(|(a, b)| strength / (floor(*a) * floor(*b))).collect();
                matrix::scale_rows(&mut a, cols, &by);
                matrix::scale_columns(&mut a, &adapter.load(w_norm)?);
            }
        }
        Ok((a, b))
    }

    /// The factors over the stored weight, `extra` multiplied into the scale.
    pub fn load(&self, adapters: &[Adapter], extra: f64) -> Result<Factors, MergeError> {
        let (a, mut b) = self.plain(adapters)?;
        let scale = (self.scale * extra) as f32;
        b.iter_mut().for_each(|x| *x *= scale);
        Ok(self.oriented(a, b))
    }

    /// The factors over the stored weight, without any scale.
    pub fn load_unscaled(&self, adapters: &[Adapter]) -> Result<Factors, MergeError> {
        let (a, b) = self.plain(adapters)?;
        Ok(self.oriented(a, b))
    }

    fn oriented(&self, a: Vec<f32>, b: Vec<f32>) -> Factors {
        let r = self.r;
        let (mut left, right) = match self.transposed {
            true if r > 0 => (matrix::transpose(&a, r, a.len() / r), matrix::transpose(&b, b.len() / r, r)),
            _ => (b, a),
        };
        if let Form::Expert { rows, .. } = &self.form {
            left = left[rows.start * r..rows.end * r].to_vec();
        }
        Factors { r, left, right }
    }
}

/// n blocks of rows, stored one below the other, moved to the diagonal of a matrix of `rows` rows.
fn block_diagonal(stored: &[f32], rows: usize, n: usize) -> Vec<f32> {
    let width = stored.len() / rows;
    let mut out = vec![0.0; rows * width * n];
    for (i, row) in stored.chunks_exact(width).enumerate() {
        let block = i / (rows / n);
        out[(i * n + block) * width..][..width].copy_from_slice(row);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_move_to_the_diagonal() {
        assert_eq!(block_diagonal(&[1.0, 2.0, 3.0, 4.0], 4, 2), [1.0, 0.0, 2.0, 0.0, 0.0, 3.0, 0.0, 4.0]);
        assert_eq!(block_diagonal(&[1.0, 2.0, 3.0, 4.0], 2, 2), [1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 3.0, 4.0]);
    }

    #[test]
    fn regions_of_tensors() {
        assert_eq!(Region::whole(&[3, 4]), Region { at: 0, rows: 3, cols: 4 });
        assert_eq!(Region::whole(&[8, 2, 3, 3]), Region { at: 0, rows: 8, cols: 18 });
        assert_eq!(Region::whole(&[5]), Region { at: 0, rows: 5, cols: 1 });
    }
}
