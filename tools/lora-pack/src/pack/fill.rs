//! The values of a tensor of the file, out of the merged checkpoint.

use anyhow::{Context, Result, bail};
use lora_models::balance::Factors;
use lora_models::spec::{Part, Product, RowMap, Source, Storage, TensorSpec};
use rayon::prelude::*;

use crate::merge::{Merged, Rows};

/// The values of a tensor, row-major.
pub(crate) fn fill(spec: &TensorSpec, merged: &Merged<'_>) -> Result<Vec<f32>> {
    Values::new(spec, merged)?.all()
}

/// The values of one part of a tensor with rows of `width` values.
pub(crate) fn fill_part(part: &Part, width: usize, merged: &Merged<'_>) -> Result<Vec<f32>> {
    let part = PartValues::new(part, width, merged)?;
    Values { rows: part.rows, cols: width, parts: vec![part], factors: Factors::default() }.all()
}

/// The values of a tensor, to be read some rows at a time.
pub(super) struct Values<'m> {
    parts: Vec<PartValues<'m>>,
    /// Rows; of a vector, values.
    pub rows: usize,
    /// Values of a row; of a vector 1.
    pub cols: usize,
    factors: Factors,
}

/// A run of rows.
struct PartValues<'m> {
    from: Origin<'m>,
    rows: usize,
    add: f32,
}

enum Origin<'m> {
    Rows { rows: Box<Rows<'m>>, map: RowMap },
    Whole(Vec<f32>),
    Zeros,
}

impl<'m> Values<'m> {
    /// Plans the reading; computes what cannot be read by rows.
    ///
    /// # Errors
    /// A tensor is missing or smaller than it should be, or holds a number that is not finite.
    pub fn new(spec: &TensorSpec, merged: &'m Merged<'m>) -> Result<Self> {
        let (rows, cols) = match spec.storage {
            Storage::Vector => (spec.rows * spec.cols, 1),
            Storage::Panels(_) => (spec.rows, spec.cols),
        };
        let parts: Vec<_> = spec.parts.iter().map(|p| PartValues::new(p, cols, merged)).collect::<Result<_>>()?;
        let found: usize = parts.iter().map(|p| p.rows).sum();
        if found != rows {
            bail!("{} values where {} × {} are expected", found * cols, spec.rows, spec.cols);
        }
        Ok(Self { parts, rows, cols, factors: spec.factors.clone() })
    }

    /// Reads as many rows as `out` takes, from row `first` on.
    ///
    /// # Errors
    /// A number is not finite.
    pub fn read(&self, first: usize, out: &mut [f32]) -> Result<()> {
        self.read_parts(first, out)?;
        self.factors.apply(first, self.cols, out);
        Ok(())
    }

    fn read_parts(&self, mut first: usize, mut out: &mut [f32]) -> Result<()> {
        for part in &self.parts {
            if first >= part.rows {
                first -= part.rows;
                continue;
            }
            let values = ((part.rows - first) * self.cols).min(out.len());
            let (now, later) = out.split_at_mut(values);
            part.read(first, now, self.cols)?;
            (first, out) = (0, later);
        }
        Ok(())
    }

    /// All of them.
    fn all(&self) -> Result<Vec<f32>> {
        const VALUES: usize = 1 << 17;
        let rows = (VALUES / self.cols.max(1)).max(1);
        let mut out = vec![0.0; self.rows * self.cols];
        let chunks = out.par_chunks_mut(rows * self.cols.max(1)).enumerate();
        let read: Vec<Result<()>> = chunks.map(|(i, out)| self.read(i * rows, out)).collect();
        read.into_iter().collect::<Result<()>>()?;
        Ok(out)
    }
}

impl<'m> PartValues<'m> {
    fn new(part: &Part, width: usize, merged: &'m Merged<'m>) -> Result<Self> {
        let whole = |values: Vec<f32>| Self { rows: values.len() / width, from: Origin::Whole(values), add: part.add };
        Ok(match &part.source {
            Source::Values(v) => whole(v.clone()),
            Source::Gather { name, index } => {
                let values = merged.tensor_f32(name)?;
                let pick = |i: &u32| values.get(*i as usize).copied();
                let picked = index.iter().map(pick).collect::<Option<_>>();
                whole(picked.with_context(|| format!("{name} has too few values"))?)
            }
            Source::Product(p) => whole(product(p, merged)?),
            Source::Zeros => Self { rows: part.rows, from: Origin::Zeros, add: part.add },
            Source::Checkpoint { name, transpose, rows: map } => {
                let rows = match transpose {
                    true => {
                        let values = merged.tensor_f32(name)?;
                        let stored = values.len() / width;
                        Rows::whole(merged, name, width, transposed(&values, width, stored))
                    }
                    false => merged.rows(name, width)?,
                };
                if map.count > 0 && map.start + (map.count - 1) * map.stride + map.block > rows.len() {
                    bail!("{name} has too few rows");
                }
                Self { rows: map.rows(), from: Origin::Rows { rows: Box::new(rows), map: *map }, add: part.add }
            }
        })
    }

    fn read(&self, first: usize, out: &mut [f32], width: usize) -> Result<()> {
        match &self.from {
            Origin::Zeros => out.fill(0.0),
            Origin::Whole(values) => out.copy_from_slice(&values[first * width..][..out.len()]),
            Origin::Rows { rows, map } => {
                let (mut at, mut out) = (first, &mut *out);
                while !out.is_empty() {
                    let (block, within) = (at / map.block, at % map.block);
                    let n = (map.block - within).min(out.len() / width);
                    let (now, later) = out.split_at_mut(n * width);
                    rows.read(map.start + block * map.stride + within, now)?;
                    (at, out) = (at + n, later);
                }
            }
        }
        if self.add != 0.0 {
            out.iter_mut().for_each(|v| *v += self.add);
        }
        Ok(())
    }
}

/// Every row of a table through a norm and a projection (see [`Source::Product`]).
fn product(p: &Product, merged: &Merged<'_>) -> Result<Vec<f32>> {
    let (table, matrix, bias) =
        (merged.tensor_f32(&p.table)?, merged.tensor_f32(&p.matrix)?, merged.tensor_f32(&p.bias)?);
    let (first, outputs) = p.outputs;
    let width = matrix.len() / bias.len();
    let norm = match &p.norm {
        Some((weight, bias, eps)) => Some((merged.tensor_f32(weight)?, merged.tensor_f32(bias)?, f64::from(*eps))),
        None => None,
    };
    let one = |row: &[f32]| {
        let mut x: Vec<f64> = row.iter().map(|v| f64::from(*v)).collect();
        if let Some((weight, bias, eps)) = &norm {
            let mean = x.iter().sum::<f64>() / width as f64;
            let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width as f64;
            let scale = (variance + eps).sqrt().recip();
            for (v, (w, b)) in x.iter_mut().zip(weight.iter().zip(bias)) {
                *v = (*v - mean) * scale * f64::from(*w) + f64::from(*b);
            }
        }
        let output = |o: usize| {
            let w = &matrix[o * width..][..width];
            let sum: f64 = x.iter().zip(w).map(|(x, w)| x * f64::from(*w)).sum();
            ((sum + f64::from(bias[o])) * f64::from(p.factor)) as f32
        };
        (first..first + outputs).map(output).collect::<Vec<f32>>()
    };
    Ok(table.par_chunks(width).flat_map_iter(one).collect())
}

/// `rows × cols` → `cols × rows`.
fn transposed(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    out.par_chunks_mut(rows).enumerate().for_each(|(c, column)| {
        for (r, v) in column.iter_mut().enumerate() {
            *v = values[r * cols + c];
        }
    });
    out
}
