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

/// Two stored factors and what has to be done to them.
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
    /// One expert of a stack: A holds experts × r rows, column k·experts + e of B belongs to expert e. Of the stored
    /// rows of the stack's matrix, those in `rows` are this tensor's.
    Expert {
        /// Which.
        index: usize,
        /// Of how many.
        experts: usize,
        /// Rows of the parameter that this tensor holds.
        rows: std::ops::Range<usize>,
    },
}

impl Pair {
    /// A (r × in) and B (out × r), without the scale.
    pub fn plain(&self, adapters: &[Adapter]) -> Result<(Vec<f32>, Vec<f32>), MergeError> {
        let adapter = &adapters[self.adapter];
        let (a, b) = (adapter.load(&self.a)?, adapter.load(&self.b)?);
        Ok(match &self.form {
            Form::Plain => (a, b),
            Form::Expert { index, experts, .. } => {
                let cols = a.len() / (experts * self.r);
                let a = a[index * self.r * cols..(index + 1) * self.r * cols].to_vec();
                let b = b.chunks_exact(experts * self.r).flat_map(|row| row.iter().skip(*index).step_by(*experts));
                (a, b.copied().collect())
            }
        })
    }

    /// The factors over the stored weight, `extra` multiplied into the scale.
    pub fn load(&self, adapters: &[Adapter], extra: f64) -> Result<Factors, MergeError> {
        let (mut a, mut b) = self.plain(adapters)?;
        let r = self.r;
        let scale = (self.scale * extra) as f32;
        b.iter_mut().for_each(|x| *x *= scale);
        let (mut left, right) = if self.transposed {
            let (inputs, outputs) = (a.len() / r, b.len() / r);
            (matrix::transpose(&a, r, inputs), matrix::transpose(&b, outputs, r))
        } else {
            (std::mem::take(&mut b), std::mem::take(&mut a))
        };
        if let Form::Expert { rows, .. } = &self.form {
            left = left[rows.start * r..rows.end * r].to_vec();
        }
        Ok(Factors { r, left, right })
    }
}
