//! Bases that were quantized before: their weights lie on a coarse grid, and a grid of the same kind can swallow a small
//! change that is added to them.

use lora_runtime::weights::{GROUP, WeightFormat};

use super::{Q4_TABLE, quantize_rows};
use crate::merge::{MergeError, Merged};

/// Most values of a group on a 4-bit grid.
const LEVELS: usize = 16;
/// Tensors and rows that are looked at.
const TENSORS: usize = 4;
const ROWS: usize = 64;

/// What a look at a base's weights found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gridded {
    /// `⟨Q(W+Δ) − Q(W), Δ⟩ / ‖Δ‖²`: what remains of the adapters' change after rounding to the format.
    pub projection: f64,
}

/// Whether nearly every group of 32 has at most 16 different values.
#[must_use]
pub fn on_grid(w: &[f32]) -> bool {
    let distinct = |group: &[f32]| {
        let mut bits: Vec<u32> = group.iter().map(|v| v.to_bits()).collect();
        bits.sort_unstable();
        bits.dedup();
        bits.len()
    };
    let groups = w.chunks_exact(GROUP).len();
    let coarse = w.chunks_exact(GROUP).filter(|g| distinct(g) <= LEVELS).count();
    groups > 0 && coarse * 20 >= groups * 19
}

/// Looks at some matrices that the adapters change; `None` where the base is on no grid.
///
/// # Errors
/// A tensor cannot be read or merged.
pub fn look(merged: &Merged<'_>, format: WeightFormat) -> Result<Option<Gridded>, MergeError> {
    let (mut along, mut square, mut seen) = (0.0, 0.0, 0);
    for changed in merged.changed() {
        let Some(&[_, k]) = merged.shape(&changed.name) else { continue };
        let Some(stored) = merged.base().tensors().get(&changed.name) else { continue };
        let rows = merged.rows(&changed.name, k)?;
        if k % GROUP != 0 || stored.elements() / k != rows.len() {
            continue;
        }
        if seen == TENSORS {
            break;
        }
        seen += 1;
        let n = rows.len().min(ROWS);
        let (mut base, mut w) = (vec![0.0; n * k], vec![0.0; n * k]);
        if stored.has_rows(k) {
            stored.read_rows(0, k, &mut base)?;
        } else {
            base.copy_from_slice(&merged.base().read_f32(&changed.name)?[..n * k]);
        }
        rows.read(0, &mut w)?;
        let (base, w) = (base.as_slice(), w.as_slice());
        if !on_grid(base) {
            return Ok(None);
        }
        let rounded = |w: &[f32]| quantize_rows(format, w, n, k, None, &Q4_TABLE).map(|q| q.dequantize(&Q4_TABLE));
        let (Ok(before), Ok(after)) = (rounded(base), rounded(w)) else { return Ok(None) };
        for i in 0..n * k {
            let delta = f64::from(w[i] - base[i]);
            along += f64::from(after[i] - before[i]) * delta;
            square += delta * delta;
        }
    }
    Ok((seen > 0 && square > 0.0).then(|| Gridded { projection: along / square }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_is_seen_and_a_smooth_weight_is_not() {
        let smooth: Vec<f32> = (0..3200).map(|i| (i as f32 * 0.37).sin()).collect();
        assert!(!on_grid(&smooth));
        let coarse: Vec<f32> = smooth.iter().map(|v| (v * 7.0).round() / 7.0).collect();
        assert!(on_grid(&coarse));
        assert!(!on_grid(&coarse[..31]));
    }
}
