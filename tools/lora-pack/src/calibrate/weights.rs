//! A packed file's weights beside the float ones: errors by module, and how much of an adapter's change is in them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use lora_models::Policy;
use lora_models::balance::Factors;
use lora_runtime::format::{File, Task, Tensor};
use lora_runtime::kernels::dequant_row;
use lora_runtime::weights::{PANEL_ROWS, WeightFormat};
use rayon::prelude::*;

use super::balance;
use crate::merge::Merged;
use crate::pack::View;

/// The error of one module's matrix.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ModuleError {
    /// Module path.
    pub module: String,
    /// Format in the file.
    pub format: &'static str,
    /// Root mean square of the difference over that of the weights.
    pub error: f64,
}

/// What the comparison found.
#[derive(Clone, Debug, Default)]
pub struct WeightErrors {
    /// By module.
    pub modules: Vec<ModuleError>,
    /// `⟨Q(W+Δ) − W, Δ⟩ / ‖Δ‖²` over everything that the adapters changed: 1 when the change is all there, 0 when
    /// quantization swallowed it.
    pub projection: Option<f64>,
    /// `‖Δ‖ / ‖W‖` over the same.
    pub change: Option<f64>,
}

/// Compares every matrix that is a module of its own in the checkpoint.
///
/// # Errors
/// A tensor cannot be read or merged.
pub fn compare(file: &File<'_>, merged: &Merged<'_>) -> Result<WeightErrors> {
    let changed: BTreeSet<String> = merged.changed().into_iter().map(|c| c.name).collect();
    let view = View { merged, keep: false };
    let task = Task::from_u32(file.info.task).unwrap_or(Task::Other);
    let lowered = lora_models::lower(merged.config(), &view, task, Policy::new(WeightFormat::F32))?;
    let factors: BTreeMap<u32, Factors> =
        balance::of_file(file, &lowered)?.into_iter().map(|(t, f)| (t, f.inverse())).collect();
    let mut out = WeightErrors::default();
    let (mut along, mut square, mut base_square) = (0.0, 0.0, 0.0);
    for slot in file.slots {
        let module = file.str(slot.module);
        let name = format!("{module}.weight");
        let (rows, cols) = (slot.rows as usize, slot.cols as usize);
        let Some(Tensor::Panels { format, data, .. }) = file.tensor(slot.tensor) else { continue };
        // Parts of a fused checkpoint matrix are not compared.
        let transposed = match merged.shape(&name) {
            Some(&[a, b]) if (a, b) == (rows, cols) => false,
            Some(&[a, b]) if (a, b) == (cols, rows) => true,
            _ => continue,
        };
        let oriented = |w: Vec<f32>| -> Vec<f32> {
            if !transposed {
                return w;
            }
            (0..rows * cols).into_par_iter().map(|i| w[i % cols * rows + i / cols]).collect()
        };
        let w = oriented(merged.tensor_f32(&name)?);
        let mut packed = vec![0.0; rows * cols];
        let panel_bytes = format.panel_bytes(cols);
        packed.par_chunks_mut(cols).enumerate().for_each(|(r, out)| {
            let at = slot.row_start as usize + r;
            let panel = &data[at / PANEL_ROWS * panel_bytes..][..panel_bytes];
            dequant_row(format, &file.header.codebook, panel, at % PANEL_ROWS, out);
            if let Some(f) = factors.get(&slot.tensor) {
                f.apply(at, cols, out);
            }
        });
        let (signal, noise) = w.iter().zip(&packed).fold((0.0, 0.0), |(s, n), (w, q)| {
            let (w, e) = (f64::from(*w), f64::from(q - w));
            (s + w * w, n + e * e)
        });
        let error = (noise / f64::max(signal, f64::MIN_POSITIVE)).sqrt();
        out.modules.push(ModuleError { module: module.into(), format: format.name(), error });
        if changed.contains(&name)
            && let Ok(base) = merged.base().read_f32(&name)
            && base.len() == w.len()
        {
            for ((w, q), base) in w.iter().zip(&packed).zip(&oriented(base)) {
                let delta = f64::from(w - base);
                along += f64::from(q - base) * delta;
                square += delta * delta;
                base_square += f64::from(*base) * f64::from(*base);
            }
        }
        merged.base().tensors().release();
    }
    if square > 0.0 {
        out.projection = Some(along / square);
        out.change = Some((square / base_square.max(f64::MIN_POSITIVE)).sqrt());
    }
    Ok(out)
}
