//! Error feedback: inputs are rounded in order, and what rounding one of them did to the outputs is taken out by the
//! later ones, as far as the inputs go together.
//!
//! ```text
//! target_j = w_j + Σ_{i<j} (w_i − ŵ_i)·U_ij        H = U·D·Uᵀ, the second moment of the inputs
//! ```
//! The scale of a group is searched when the group is reached, on its targets, with `D` as the importance: `D_j` is
//! what an error of input `j` costs that later inputs cannot take out.

use lora_runtime::kernels::{Multipliers, QuantizedRows, Wide, widest};
use lora_runtime::weights::{GROUP, WeightFormat};
use rayon::prelude::*;

use super::{Grid, Group, Unrepresentable, check_range, empty, fit_group, fit_multiplier, row_scale};
use crate::calibrate::Factor;

/// Quantizes an `n × k` weight to `q4`, `q4l`, `q5` or `q6` for inputs with the factored second moment `moment`.
///
/// # Errors
/// When a weight is not finite.
///
/// # Panics
/// When the sizes do not fit each other, or for another format.
pub fn quantize_with_feedback(
    format: WeightFormat,
    w: &[f32],
    n: usize,
    moment: &Factor,
    codebook: &[u8; 16],
) -> Result<QuantizedRows, Unrepresentable> {
    use WeightFormat::{Q4, Q4L, Q5, Q6};
    assert!(matches!(format, Q4 | Q4L | Q5 | Q6), "{} has no groups with integer multipliers", format.name());
    let k = moment.k;
    assert_eq!(w.len(), n * k, "weight size");
    check_range(format, w, k)?;
    let grid = Grid::new(format, codebook);
    let columns = Columns::new(moment);
    let mut out = empty(format, n, k);
    if let Multipliers::Int(multipliers) = &mut out.multipliers {
        let rows = w.par_chunks_exact(k).zip(out.codes.par_chunks_exact_mut(k));
        rows.zip(multipliers.par_chunks_exact_mut(k.div_ceil(GROUP))).zip(&mut out.row_scales).for_each(
            |(((w, codes), multipliers), scale)| {
                *scale = widest(Row { columns: &columns, grid: &grid, w, codes, multipliers });
            },
        );
    }
    Ok(out)
}

/// `U` cut into the columns of each group, and `D`.
struct Columns<'f> {
    /// For every group, the rows `0..end of the group` of its 32 columns.
    groups: Vec<Vec<[f32; GROUP]>>,
    importance: &'f [f32],
}

impl<'f> Columns<'f> {
    fn new(moment: &'f Factor) -> Self {
        let k = moment.k;
        let of_group = |g: usize| {
            let (first, end) = (g * GROUP, k.min((g + 1) * GROUP));
            (0..end)
                .map(|i| {
                    let mut u = [0.0; GROUP];
                    u[..end - first].copy_from_slice(&moment.upper[i * k + first..i * k + end]);
                    u
                })
                .collect()
        };
        Self { groups: (0..k.div_ceil(GROUP)).into_par_iter().map(of_group).collect(), importance: &moment.diagonal }
    }
}

/// A row on its way; gives its scale.
struct Row<'a> {
    columns: &'a Columns<'a>,
    grid: &'a Grid,
    w: &'a [f32],
    codes: &'a mut [i8],
    multipliers: &'a mut [i8],
}

impl Wide for Row<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let Self { columns, grid, w, codes, multipliers } = self;
        // The largest scale that a group can come out with, before anything has moved.
        let [low, high] = grid.ends();
        let longest = if -low > high { -low } else { high };
        let bound = |w: &[f32]| w.iter().fold(0.0, |m: f32, v| if v.abs() > m { v.abs() } else { m }) / longest;
        let scale = row_scale(&w.chunks(GROUP).map(bound).collect::<Vec<_>>());
        let mut errors = vec![0.0_f32; w.len()];
        for (g, u) in columns.groups.iter().enumerate() {
            let first = g * GROUP;
            let w = &w[first..w.len().min(first + GROUP)];
            let mut moved = [0.0; GROUP];
            for (e, u) in errors[..first].iter().zip(u) {
                for (moved, u) in moved.iter_mut().zip(u) {
                    *moved += e * u;
                }
            }
            let mut target = [0.0; GROUP];
            for ((t, w), moved) in target.iter_mut().zip(w).zip(&moved) {
                *t = w + moved;
            }
            let group = Group::new(&target[..w.len()], Some(&columns.importance[first..][..w.len()]));
            let (multiplier, _) = fit_multiplier(grid, &group, fit_group(grid, &group), scale);
            multipliers[g] = multiplier;
            let step = f32::from(multiplier) * scale;
            let inverse = 1.0 / step;
            let inverse = if inverse.is_finite() { inverse } else { 0.0 };
            for j in 0..w.len() {
                let code = grid.code(target[j] * inverse);
                codes[first + j] = code;
                let e = w[j] - grid.value(code) * step;
                errors[first + j] = e;
                let u = &u[first + j];
                for (t, u) in target[j + 1..].iter_mut().zip(&u[j + 1..]) {
                    *t += e * u;
                }
            }
        }
        scale
    }
}
