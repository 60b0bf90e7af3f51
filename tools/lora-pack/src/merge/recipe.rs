//! How one merged tensor is made.

use super::adapter::Adapter;
use super::combine;
use super::factors::{Factors, Pair, Region};
use super::init::{self, Start};
use super::method::dense::Dense;
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
    /// Adds a product of factors that several adapters make together.
    Combined { parts: Vec<(Pair, f64)>, how: combine::Recipe, region: Region },
    /// Adds a product, then rescales every output to its learned magnitude.
    Dora { pair: Pair, weight: f64, region: Region, magnitude: String },
    /// A method that is not low-rank.
    Dense { adapter: usize, dense: Dense, weight: f64, region: Region },
    /// `b += scale · lora_B.bias`
    Bias { adapter: usize, key: String, scale: f64 },
    /// Replaces rows.
    Rows { adapter: usize, key: String, indices: Vec<usize> },
    /// Multiplies everything.
    Scale(f32),
}

/// Origin, shape, what the adapter's start took off the base, and the steps in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Recipe {
    pub origin: Origin,
    pub shape: Vec<usize>,
    pub start: Option<(Start, Region)>,
    pub steps: Vec<Step>,
}

/// What recipes read from.
pub(crate) struct Inputs<'a> {
    pub base: &'a BaseModel,
    pub adapters: &'a [Adapter],
}

impl Recipe {
    /// The tensor after all steps. `name` is the merged tensor's.
    pub fn make(&self, name: &str, inputs: &Inputs) -> Result<Vec<f32>, MergeError> {
        let mut w = self.before(inputs)?;
        for (i, step) in self.steps.iter().enumerate() {
            self.apply(step, i == 0, &mut w, name, inputs)?;
        }
        Ok(w)
    }

    /// The weight that the adapters were trained on.
    pub fn before(&self, inputs: &Inputs) -> Result<Vec<f32>, MergeError> {
        let mut w = match &self.origin {
            Origin::Base(name) => inputs.base.read_f32(name)?,
            Origin::Adapter { adapter, key } => inputs.adapters[*adapter].load(key)?,
        };
        if let Some((start, region)) = self.start {
            init::subtract(&mut w, start, region).ok_or_else(|| self.no_qr(inputs))?;
        }
        Ok(w)
    }

    pub fn no_qr(&self, inputs: &Inputs) -> MergeError {
        let file = inputs.adapters.first().map_or(inputs.base.dir.as_path(), |a| a.config_file());
        let why = format!("the first columns of {:?} are dependent, so its QR is not unique", self.origin);
        MergeError::refused(file, "init_lora_weights \"olora\"", why)
    }

    fn apply(&self, step: &Step, first: bool, w: &mut [f32], name: &str, inputs: &Inputs) -> Result<(), MergeError> {
        let add = |w: &mut [f32], region: &Region, f: &Factors| {
            matrix::add_product(region.of(w), region.cols, &f.left, &f.right, f.r);
        };
        match step {
            Step::LowRank { pair, weight, region } => add(w, region, &pair.load(inputs.adapters, *weight)?),
            Step::Combined { parts, how, region } => {
                add(w, region, &how.factors(parts, inputs.adapters, *region, name)?);
            }
            Step::Dora { pair, weight, region, magnitude } => {
                let f = pair.load(inputs.adapters, *weight)?;
                // The norm is that of this adapter alone over the weight that no other has changed.
                let gain = if first {
                    add(w, region, &f);
                    self.gain(w, pair, *region, magnitude, inputs)?
                } else {
                    let mut alone = self.before(inputs)?;
                    add(&mut alone, region, &f);
                    let gain = self.gain(&mut alone, pair, *region, magnitude, inputs)?;
                    add(w, region, &f);
                    gain
                };
                match pair.transposed {
                    true => matrix::scale_columns(region.of(w), &gain),
                    false => matrix::scale_rows(region.of(w), region.cols, &gain),
                }
            }
            Step::Dense { adapter, dense, weight, region } => {
                dense.apply(region.of(w), *region, &inputs.adapters[*adapter], *weight)?;
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

    /// DoRA's factor for every output: learned magnitude over the norm of `merged`.
    pub fn gain(
        &self,
        merged: &mut [f32],
        pair: &Pair,
        region: Region,
        magnitude: &str,
        inputs: &Inputs,
    ) -> Result<Vec<f32>, MergeError> {
        let merged = region.of(merged);
        let norms = match pair.transposed {
            true => matrix::column_norms(merged, region.cols),
            false => matrix::row_norms(merged, region.cols),
        };
        let adapter = &inputs.adapters[pair.adapter];
        let mut gain = adapter.load(magnitude)?;
        for (i, (g, n)) in gain.iter_mut().zip(norms).enumerate() {
            if n == 0.0 {
                let problem = format!("the merged weight's output {i} is zero, which no magnitude can rescale");
                return Err(adapter.bad(magnitude, problem));
            }
            *g /= n;
        }
        Ok(gain)
    }
}
