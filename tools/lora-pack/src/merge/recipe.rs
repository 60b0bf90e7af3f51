//! How one merged tensor is made.

use super::adapter::Adapter;
use super::factors::{Pair, Region};
use super::{MergeError, matrix};
use crate::source::BaseModel;

/// Where a merged tensor starts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Origin {
    /// A tensor of the base.
    Base(String),
    /// A whole tensor of an adapter.
    Adapter { adapter: usize, key: String },
}

/// One change of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// Adds a product of factors.
    LowRank { pair: Pair, weight: f64, region: Region },
    /// Adds a product, then rescales every output to its learned magnitude.
    Dora { pair: Pair, weight: f64, region: Region, magnitude: String },
    /// `b += scale · lora_B.bias`
    Bias { adapter: usize, key: String, scale: f64 },
    /// Replaces rows.
    Rows { adapter: usize, key: String, indices: Vec<usize> },
    /// Multiplies everything.
    Scale(f32),
}

/// Origin, shape, and the steps in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Recipe {
    pub origin: Origin,
    pub shape: Vec<usize>,
    pub steps: Vec<Step>,
}

/// What recipes read from.
pub(crate) struct Inputs<'a> {
    pub base: &'a BaseModel,
    pub adapters: &'a [Adapter],
}

impl Recipe {
    /// The tensor after all steps.
    pub fn make(&self, inputs: &Inputs) -> Result<Vec<f32>, MergeError> {
        let mut w = self.start(inputs)?;
        for (i, step) in self.steps.iter().enumerate() {
            self.apply(step, i, &mut w, inputs)?;
        }
        Ok(w)
    }

    fn start(&self, inputs: &Inputs) -> Result<Vec<f32>, MergeError> {
        Ok(match &self.origin {
            Origin::Base(name) => inputs.base.read_f32(name)?,
            Origin::Adapter { adapter, key } => inputs.adapters[*adapter].load(key)?,
        })
    }

    fn apply(&self, step: &Step, number: usize, w: &mut [f32], inputs: &Inputs) -> Result<(), MergeError> {
        match step {
            Step::LowRank { pair, weight, region } => {
                let f = pair.load(inputs.adapters, *weight)?;
                matrix::add_product(region.of(w), region.cols, &f.left, &f.right, f.r);
            }
            Step::Dora { pair, weight, region, magnitude } => {
                let f = pair.load(inputs.adapters, *weight)?;
                let adapter = &inputs.adapters[pair.adapter];
                let first = number == 0;
                let norms = |m: &[f32]| match pair.transposed {
                    true => matrix::column_norms(m, region.cols),
                    false => matrix::row_norms(m, region.cols),
                };
                // The norm is that of this adapter over the weight that nobody else has changed yet.
                let before = if first {
                    None
                } else {
                    let mut alone = self.start(inputs)?;
                    matrix::add_product(region.of(&mut alone), region.cols, &f.left, &f.right, f.r);
                    Some(norms(region.of(&mut alone)))
                };
                let w = region.of(w);
                matrix::add_product(w, region.cols, &f.left, &f.right, f.r);
                let norms = before.unwrap_or_else(|| norms(w));
                let mut gain = adapter.load(magnitude)?;
                for (i, (g, n)) in gain.iter_mut().zip(norms).enumerate() {
                    if n == 0.0 {
                        let problem = format!("the merged weight's output {i} is zero, which no magnitude can rescale");
                        return Err(adapter.bad(magnitude, problem));
                    }
                    *g /= n;
                }
                match pair.transposed {
                    true => matrix::scale_columns(w, &gain),
                    false => matrix::scale_rows(w, region.cols, &gain),
                }
            }
            Step::Bias { adapter, key, scale } => {
                let delta = inputs.adapters[*adapter].load(key)?;
                w.iter_mut().zip(delta).for_each(|(b, d)| *b += *scale as f32 * d);
            }
            Step::Rows { adapter, key, indices } => {
                let rows = inputs.adapters[*adapter].load(key)?;
                let cols = self.shape[1];
                for (&at, row) in indices.iter().zip(rows.chunks_exact(cols)) {
                    w[at * cols..(at + 1) * cols].copy_from_slice(row);
                }
            }
            Step::Scale(by) => w.iter_mut().for_each(|x| *x *= by),
        }
        Ok(())
    }
}
