//! A merged tensor in blocks of rows, so that a large one never exists as a whole.

use std::collections::BTreeMap;

use super::factors::Factors;
use super::recipe::{Inputs, Origin, Recipe, Step};
use super::{MergeError, Merged, matrix};
use crate::source::{Dtype, TensorView};

/// A tensor of the merged model, to be read some rows at a time, by several threads if need be.
pub struct Rows<'m> {
    merged: &'m Merged<'m>,
    name: String,
    /// Elements of a row.
    width: usize,
    rows: usize,
    source: Source<'m>,
}

enum Source<'m> {
    /// The base's, and what is done to its rows; `round` afterwards to that type.
    Stored { stored: TensorView<'m>, changes: Vec<Change>, round: Option<Dtype> },
    /// Computed already, because some step looks at more than one row.
    Whole(Vec<f32>),
}

/// A step that treats every row by itself.
enum Change {
    /// Adds a product to the rows from `first` on.
    Add {
        first: usize,
        factors: Factors,
    },
    /// Replaces rows: where in `values` each is.
    Replace {
        at: BTreeMap<usize, usize>,
        values: Vec<f32>,
    },
    Scale(f32),
}

impl<'a> Merged<'a> {
    /// Opens a tensor for reading rows of `width` elements.
    ///
    /// # Errors
    /// As [`Merged::tensor_f32`] where the tensor has to be computed as a whole.
    pub fn rows(&'a self, name: &str, width: usize) -> Result<Rows<'a>, MergeError> {
        let recipe = self.recipes.get(name);
        let base = match recipe {
            None => self.names.origin(name),
            Some(Recipe { origin: Origin::Base(base), start: None, .. }) => Some(base.as_str()),
            Some(_) => None,
        };
        let stored = base.and_then(|base| self.base.tensors().get(base)).filter(|t| t.has_rows(width));
        let changes = match recipe {
            None => Some(Vec::new()),
            Some(recipe) => recipe.by_rows(width, &Inputs { base: self.base, adapters: &self.adapters })?,
        };
        let (Some(stored), Some(changes)) = (stored, changes) else {
            return Ok(Rows::whole(self, name, width, self.tensor_f32(name)?));
        };
        let round = recipe.and_then(|_| self.rounding(name));
        let rows = stored.elements() / width;
        Ok(Rows { merged: self, name: name.to_owned(), width, rows, source: Source::Stored { stored, changes, round } })
    }
}

impl<'m> Rows<'m> {
    /// Rows of values that are there.
    pub fn whole(merged: &'m Merged<'m>, name: &str, width: usize, values: Vec<f32>) -> Self {
        let rows = values.len() / width;
        Self { merged, name: name.to_owned(), width, rows, source: Source::Whole(values) }
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Reads as many rows as `out` takes, from row `first` on. Refuses NaN and infinities.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn read(&self, first: usize, out: &mut [f32]) -> Result<(), MergeError> {
        let width = self.width;
        match &self.source {
            Source::Whole(values) => {
                out.copy_from_slice(&values[first * width..][..out.len()]);
                Ok(())
            }
            Source::Stored { stored, changes, round } => {
                stored.read_rows(first, width, out)?;
                changes.iter().for_each(|change| change.apply(first, width, out));
                if let Some(dtype) = round {
                    dtype.round(out);
                }
                self.merged.check_finite(&self.name, first * width, out)
            }
        }
    }
}

impl Change {
    fn apply(&self, first: usize, width: usize, out: &mut [f32]) {
        let rows = out.len() / width;
        match self {
            Self::Add { first: start, factors: Factors { r, left, right } } => {
                let (from, to) = (first.max(*start), (first + rows).min(start + left.len() / (*r).max(1)));
                if from < to {
                    let left = &left[(from - start) * r..(to - start) * r];
                    matrix::add_product(&mut out[(from - first) * width..(to - first) * width], width, left, right, *r);
                }
            }
            Self::Replace { at, values } => {
                for (row, from) in at.range(first..first + rows) {
                    out[(row - first) * width..][..width].copy_from_slice(&values[from * width..][..width]);
                }
            }
            Self::Scale(by) => out.iter_mut().for_each(|v| *v *= by),
        }
    }
}

impl Recipe {
    /// The steps as changes of rows of `width` elements; `None` where one of them looks at more than its row.
    fn by_rows(&self, width: usize, inputs: &Inputs) -> Result<Option<Vec<Change>>, MergeError> {
        let mut changes = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            changes.push(match step {
                Step::LowRank { pair, weight, region } if region.cols == width && region.at.is_multiple_of(width) => {
                    Change::Add { first: region.at / width, factors: pair.load(inputs.adapters, *weight)? }
                }
                Step::Rows { adapter, key, indices } if self.shape.get(1) == Some(&width) && self.shape.len() == 2 => {
                    let at = indices.iter().copied().zip(0..).collect();
                    Change::Replace { at, values: inputs.adapters[*adapter].load(key)? }
                }
                Step::Scale(by) => Change::Scale(*by),
                _ => return Ok(None),
            });
        }
        Ok(Some(changes))
    }
}
