//! What an adapter does at one slot.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use lora_models::spec::{Lowered, Part, Product, RowMap, SlotSpec, Source};
use lora_runtime::format::SlotKind;

use crate::merge::{Delta, LowRank, Merged};
use crate::pack::{fill, fill_part};

/// The change of a slot's values.
pub enum Change {
    /// None.
    None,
    /// `B·A`, of `r` ranks: for a matrix A is r × cols and B rows × r; for a table A is rows × r and B cols × r.
    LowRank {
        /// Slots with the same key have the same A.
        key: String,
        /// Ranks.
        r: usize,
        /// A.
        a: Vec<f32>,
        /// B.
        b: Vec<f32>,
    },
    /// Rows in place of the base's (of a matrix: what they add to them); without indices, of all.
    Rows {
        /// Which, ascending.
        indices: Option<Vec<u32>>,
        /// Row by row.
        values: Vec<f32>,
    },
}

/// What an adapter does at a slot.
pub struct Update {
    /// To the values.
    pub change: Change,
    /// Factor of every output.
    pub gain: Option<Vec<f32>>,
    /// Bias in place of the base's.
    pub bias: Option<Vec<f32>>,
}

/// A product in the orientation of a matrix, and the factor of its outputs.
struct Factors {
    r: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    gain: Option<Vec<f32>>,
}

/// Finds updates, and keeps a list of what was found.
pub struct Updates<'a, 'b> {
    plain: &'a Merged<'b>,
    merged: &'a Merged<'b>,
    /// The base's program.
    pub before: &'a Lowered,
    after: &'a Lowered,
    changed: BTreeSet<String>,
    /// Changed tensors that have gone into an update.
    pub consumed: BTreeSet<String>,
}

/// Names of the tensors that an adapter changes.
pub fn changed_sources(merged: &Merged<'_>) -> BTreeSet<String> {
    merged.changed().into_iter().map(|c| c.name).collect()
}

impl<'a, 'b> Updates<'a, 'b> {
    /// Of the adapter in `merged` over the base `plain`, both lowered.
    pub fn new(plain: &'a Merged<'b>, merged: &'a Merged<'b>, before: &'a Lowered, after: &'a Lowered) -> Self {
        Self { plain, merged, before, after, changed: changed_sources(merged), consumed: BTreeSet::new() }
    }

    /// Whether a matrix of the head, which begins at slot `first`, is another one altogether.
    pub fn replaces_head(&self, first: usize) -> Result<bool> {
        for (before, after) in self.before.slots.iter().zip(&self.after.slots).skip(first) {
            let Some((name, ..)) = checkpoint(&after.source).filter(|_| after.kind == SlotKind::Linear) else {
                continue;
            };
            if before.rows != after.rows || matches!(self.merged.delta(name)?, Some(Delta::Whole(_))) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The update of slot `i`, `None` where nothing changes.
    pub fn of(&mut self, i: usize) -> Result<Option<Update>> {
        let (before, after) = (&self.before.slots[i], &self.after.slots[i]);
        let update = match before.kind {
            SlotKind::Vector => self.vector(after)?,
            SlotKind::Linear => self.linear(before, after).with_context(|| before.module.clone())?,
            SlotKind::Embed => self.table(before, after).with_context(|| before.module.clone())?,
        };
        let nothing = matches!(update.change, Change::None) && update.gain.is_none() && update.bias.is_none();
        Ok((!nothing).then_some(update))
    }

    fn vector(&mut self, slot: &SlotSpec) -> Result<Update> {
        let spec = &self.after.tensors[slot.tensor as usize];
        let names = spec.parts.iter().filter_map(|p| match &p.source {
            Source::Checkpoint { name, .. } | Source::Gather { name, .. } => Some(name),
            Source::Product(_) | Source::Values(_) | Source::Zeros => None,
        });
        let touched: Vec<String> = names.filter(|n| self.changed.contains(*n)).cloned().collect();
        let change = match touched.is_empty() {
            true => Change::None,
            false => Change::Rows { indices: None, values: fill(spec, self.merged)? },
        };
        self.consumed.extend(touched);
        Ok(Update { change, gain: None, bias: None })
    }

    fn linear(&mut self, before: &SlotSpec, after: &SlotSpec) -> Result<Update> {
        let bias = self.bias(before, after)?;
        let mut update = Update { change: Change::None, gain: None, bias };
        if let Source::Product(product) = &after.source {
            let touched: Vec<String> =
                names(product).filter(|n| self.changed.contains(*n)).map(str::to_owned).collect();
            if !touched.is_empty() {
                update.change = self.difference(before, after)?;
                self.consumed.extend(touched);
            }
            return Ok(update);
        }
        let Some((name, transpose, map)) = checkpoint(&after.source) else { return Ok(update) };
        let Some(delta) = self.merged.delta(name)? else { return Ok(update) };
        self.consumed.insert(name.to_owned());
        if let Delta::LowRank { parts, gain } = &delta
            && let Some(Factors { r, a, b, gain }) = self.factors(name, parts, gain.as_deref(), transpose)
        {
            update.change = Change::LowRank { key: name.to_owned(), r, a, b: rows_of(&b, r, map) };
            update.gain = gain.map(|g| rows_of(&g, 1, map));
            return Ok(update);
        }
        update.change = self.difference(before, after)?;
        Ok(update)
    }

    /// Of what is not low-rank: what is added to the rows.
    fn difference(&self, before: &SlotSpec, after: &SlotSpec) -> Result<Change> {
        let part = |s: &SlotSpec| Part { source: s.source.clone(), rows: s.rows, add: 0.0, module: String::new() };
        let mut values = fill_part(&part(after), after.cols, self.merged)?;
        let base = fill_part(&part(before), before.cols, self.plain)?;
        if values.len() != base.len() {
            bail!("the adapter's matrix has another shape than the base's");
        }
        values.iter_mut().zip(base).for_each(|(v, b)| *v -= b);
        Ok(sparse(values, after.cols, |row| row.iter().any(|v| *v != 0.0)))
    }

    /// Factors and gain in the orientation of a matrix that is stored transposed or not; `None` where there are none.
    fn factors(&self, name: &str, parts: &[LowRank], gain: Option<&[f32]>, transpose: bool) -> Option<Factors> {
        let [p] = parts else { return None };
        let values: usize = self.merged.shape(name)?.iter().product();
        if p.region.at != 0 || p.region.rows * p.region.cols != values {
            return None;
        }
        if p.transposed == transpose {
            return Some(Factors { r: p.r, a: p.a.clone(), b: p.b.clone(), gain: gain.map(<[f32]>::to_vec) });
        }
        // The same product read the other way; a gain would then stand on the inputs.
        let (inputs, outputs) = (p.a.len() / p.r.max(1), p.b.len() / p.r.max(1));
        let turned =
            || Factors { r: p.r, a: transposed(&p.b, outputs, p.r), b: transposed(&p.a, p.r, inputs), gain: None };
        gain.is_none().then(turned)
    }

    fn bias(&mut self, before: &SlotSpec, after: &SlotSpec) -> Result<Option<Vec<f32>>> {
        let Some((name, ..)) = checkpoint(&after.bias) else { return Ok(None) };
        let new = checkpoint(&before.bias).is_none();
        if !new && !self.changed.contains(name) {
            return Ok(None);
        }
        self.consumed.insert(name.to_owned());
        let part = Part { source: after.bias.clone(), rows: after.rows, add: 0.0, module: String::new() };
        Ok(Some(fill_part(&part, 1, self.merged)?))
    }

    fn table(&mut self, before: &SlotSpec, after: &SlotSpec) -> Result<Update> {
        let mut update = Update { change: Change::None, gain: None, bias: None };
        let Some((name, ..)) = checkpoint(&after.source) else { return Ok(update) };
        let Some(delta) = self.merged.delta(name)? else { return Ok(update) };
        self.consumed.insert(name.to_owned());
        match delta {
            Delta::LowRank { parts, gain } => {
                // A table is a matrix of columns × rows that is stored transposed.
                if let Some(Factors { r, a, b, gain }) = self.factors(name, &parts, gain.as_deref(), true) {
                    update.change = Change::LowRank { key: name.to_owned(), r, a: transposed(&a, r, after.rows), b };
                    update.gain = gain;
                    return Ok(update);
                }
                update.change = Change::Rows { indices: None, values: self.merged.tensor_f32(name)? };
            }
            Delta::Rows { indices, values } => {
                let indices = indices.into_iter().map(|i| i as u32).collect();
                update.change = Change::Rows { indices: Some(indices), values };
            }
            Delta::Whole(values) if before.rows == after.rows => {
                let (origin, ..) = checkpoint(&before.source).context("a table without a name")?;
                let base = self.plain.tensor_f32(origin)?;
                let mut rows = base.chunks_exact(before.cols);
                update.change = sparse(values, after.cols, |row| rows.next() != Some(row));
            }
            Delta::Whole(values) => update.change = Change::Rows { indices: None, values },
        }
        Ok(update)
    }
}

/// The rows that differ, if they are the smaller part.
fn sparse(values: Vec<f32>, cols: usize, mut differs: impl FnMut(&[f32]) -> bool) -> Change {
    let rows = values.chunks_exact(cols);
    let indices: Vec<u32> = rows.enumerate().filter(|(_, row)| differs(row)).map(|(i, _)| i as u32).collect();
    match indices.len() {
        0 => Change::None,
        n if n * 2 < values.len() / cols => {
            let some = indices.iter().flat_map(|i| &values[*i as usize * cols..][..cols]).copied().collect();
            Change::Rows { indices: Some(indices), values: some }
        }
        _ => Change::Rows { indices: None, values },
    }
}

/// The tensors that a product is made of.
fn names(p: &Product) -> impl Iterator<Item = &str> {
    let norm = p.norm.iter().flat_map(|(weight, bias, _)| [weight.as_str(), bias.as_str()]);
    norm.chain([p.table.as_str(), p.matrix.as_str(), p.bias.as_str()])
}

/// Name, orientation and rows of a slot's source.
fn checkpoint(source: &Source) -> Option<(&str, bool, RowMap)> {
    match source {
        Source::Checkpoint { name, transpose, rows } => Some((name, *transpose, *rows)),
        _ => None,
    }
}

/// The rows that a slot takes of a matrix.
fn rows_of(values: &[f32], cols: usize, map: RowMap) -> Vec<f32> {
    let block = |b: usize| &values[(map.start + b * map.stride) * cols..][..map.block * cols];
    (0..map.count).flat_map(block).copied().collect()
}

/// `rows × cols` → `cols × rows`.
fn transposed(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| values[r * cols + c])).collect()
}
