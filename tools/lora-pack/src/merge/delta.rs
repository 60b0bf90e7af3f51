//! The same adapters unmerged: what each one does to each tensor, in the form that an adapter file stores.
//!
//! A layer with an update runs as `y = gain ⊙ (W·x + B·(A·x)) + bias`. Everything that PEFT can train fits that or is
//! a new value: several adapters stack their ranks, DoRA's magnitudes become the gain, biases are replaced, and what
//! is not low-rank (IA3 over inputs, Hadamard products, rotations) is a replaced weight.

use super::factors::{Factors, Region};
use super::recipe::{Inputs, Origin, Recipe, Step};
use super::{MergeError, Merged, matrix};
use crate::source::SourceError;

/// A product of factors over a part of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    /// Which part: the whole tensor but for the experts of a fused stack.
    pub region: Region,
    /// The base stores this weight as inputs × outputs (Conv1D, embeddings).
    pub transposed: bool,
    /// Rank: of several adapters, the sum.
    pub r: usize,
    /// r × inputs.
    pub a: Vec<f32>,
    /// outputs × r, every scale folded in.
    pub b: Vec<f32>,
}

/// What the adapters do to one tensor of the base.
#[derive(Debug, Clone, PartialEq)]
pub enum Delta {
    /// Adds products, then scales every output.
    LowRank {
        /// One per region.
        parts: Vec<LowRank>,
        /// Factor per output, where DoRA or IA3 has one.
        gain: Option<Vec<f32>>,
    },
    /// Replaces rows of a table.
    Rows {
        /// Row numbers, ascending.
        indices: Vec<usize>,
        /// One row each.
        values: Vec<f32>,
    },
    /// Replaces the tensor.
    Whole(Vec<f32>),
}

impl Merged<'_> {
    /// What the adapters do to a tensor; `None` if nothing. Plan with [`Purpose::Adapter`](super::Purpose::Adapter),
    /// so that tied tensors are spoken of one by one.
    pub fn delta(&self, name: &str) -> Result<Option<Delta>, MergeError> {
        let Some(recipe) = self.recipes.get(name) else { return Ok(None) };
        if recipe.start.is_none() && recipe.steps.is_empty() && matches!(recipe.origin, Origin::Base(_)) {
            return Ok(None);
        }
        let inputs = Inputs { base: self.base, adapters: &self.adapters };
        let delta = match recipe.as_rows(&inputs)? {
            Some(rows) => rows,
            None => match recipe.as_products(name, &inputs)? {
                Some(products) => products,
                None => Delta::Whole(self.tensor_f32(name)?),
            },
        };
        let finite = match &delta {
            Delta::LowRank { parts, gain } => {
                let numbers = parts.iter().flat_map(|p| [&p.a, &p.b]).chain(gain);
                numbers.into_iter().all(|v| matrix::first_not_finite(v).is_none())
            }
            Delta::Rows { values, .. } | Delta::Whole(values) => matrix::first_not_finite(values).is_none(),
        };
        if !finite {
            return Err(SourceError::tensor(&self.base.dir, name, "its update is not finite").into());
        }
        Ok(Some(delta))
    }

    /// The tokens that switch an activated LoRA on, where the adapter is one.
    pub fn invocation_tokens(&self) -> Option<&[u32]> {
        self.adapters.iter().find_map(|a| a.config.invocation_tokens.as_deref())
    }
}

/// Products of one region while they are collected.
struct Stack {
    region: Region,
    transposed: bool,
    factors: Vec<Factors>,
}

impl Recipe {
    /// The recipe as replaced rows, if that is all it does.
    fn as_rows(&self, inputs: &Inputs) -> Result<Option<Delta>, MergeError> {
        if self.start.is_some() || self.steps.is_empty() || !matches!(self.origin, Origin::Base(_)) {
            return Ok(None);
        }
        let cols = self.shape.get(1).copied().unwrap_or(1);
        let mut rows = std::collections::BTreeMap::new();
        for step in &self.steps {
            let Step::Rows { adapter, key, indices } = step else { return Ok(None) };
            let values = inputs.adapters[*adapter].load(key)?;
            rows.extend(indices.iter().copied().zip(values.chunks_exact(cols).map(<[f32]>::to_vec)));
        }
        let (indices, values): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        Ok(Some(Delta::Rows { indices, values: values.concat() }))
    }

    /// The recipe as products and a gain, if it is that.
    fn as_products(&self, name: &str, inputs: &Inputs) -> Result<Option<Delta>, MergeError> {
        if !matches!(self.origin, Origin::Base(_)) || self.shape.len() < 2 {
            return Ok(None);
        }
        let mut stacks: Vec<Stack> = Vec::new();
        let mut gain: Option<Vec<f32>> = None;
        let mut push = |region: Region, transposed: bool, factors: Factors| match stacks
            .iter_mut()
            .find(|s| s.region == region && s.transposed == transposed)
        {
            Some(stack) => stack.factors.push(factors),
            None => stacks.push(Stack { region, transposed, factors: vec![factors] }),
        };
        let oriented = self.steps.iter().find_map(|s| match s {
            Step::LowRank { pair, .. } | Step::Dora { pair, .. } => Some(pair.transposed),
            Step::Combined { parts, .. } => parts.first().map(|(p, _)| p.transposed),
            _ => None,
        });
        if let Some((start, region)) = self.start {
            let Origin::Base(base) = &self.origin else { return Ok(None) };
            let w = inputs.base.read_f32(base)?;
            let part = &w[region.at..region.at + region.rows * region.cols];
            let factors = start.factors(part, region).ok_or_else(|| self.no_qr(inputs))?;
            push(region, oriented.unwrap_or(false), factors);
        }
        for step in &self.steps {
            match step {
                Step::LowRank { pair, weight, region } => {
                    let factors = pair.load(inputs.adapters, *weight)?;
                    push(*region, pair.transposed, under(factors, &gain, pair.transposed));
                }
                Step::Combined { parts, how, region } => {
                    let transposed = parts.first().is_some_and(|(p, _)| p.transposed);
                    let factors = how.factors(parts, inputs.adapters, *region, name)?;
                    push(*region, transposed, under(factors, &gain, transposed));
                }
                Step::Dora { pair, weight, region, magnitude } => {
                    let factors = pair.load(inputs.adapters, *weight)?;
                    let mut alone = self.before(inputs)?;
                    matrix::add_product(region.of(&mut alone), region.cols, &factors.left, &factors.right, factors.r);
                    let own = self.gain(&mut alone, pair, *region, magnitude, inputs)?;
                    push(*region, pair.transposed, under(factors, &gain, pair.transposed));
                    gain = Some(match gain {
                        None => own,
                        Some(earlier) => earlier.iter().zip(own).map(|(a, b)| a * b).collect(),
                    });
                }
                _ => return Ok(None),
            }
        }
        let parts = stacks.into_iter().map(Stack::finish).collect();
        Ok(Some(Delta::LowRank { parts, gain }))
    }
}

/// What is added after a gain stands below it divided by the gain: g·(W + L) + Δ = g·(W + L + Δ/g).
fn under(mut f: Factors, gain: &Option<Vec<f32>>, transposed: bool) -> Factors {
    if let Some(gain) = gain {
        let inverse: Vec<f32> = gain.iter().map(|g| 1.0 / g).collect();
        match transposed {
            true => matrix::scale_columns(&mut f.right, &inverse),
            false => matrix::scale_rows(&mut f.left, f.r, &inverse),
        }
    }
    f
}

impl Stack {
    /// Ranks side by side, in the orientation of the layer: A takes inputs, B gives outputs.
    fn finish(self) -> LowRank {
        let Region { rows, cols, .. } = self.region;
        let r: usize = self.factors.iter().map(|f| f.r).sum();
        let right: Vec<f32> = self.factors.iter().flat_map(|f| &f.right).copied().collect();
        let mut left = Vec::with_capacity(rows * r);
        for row in 0..rows {
            for f in &self.factors {
                left.extend_from_slice(&f.left[row * f.r..(row + 1) * f.r]);
            }
        }
        let (a, b) = match self.transposed {
            true => (matrix::transpose(&left, rows, r), matrix::transpose(&right, r, cols)),
            false => (right, left),
        };
        LowRank { region: self.region, transposed: self.transposed, r, a, b }
    }
}
