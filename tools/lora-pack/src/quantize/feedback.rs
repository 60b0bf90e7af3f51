//! Error feedback: inputs are rounded in order, and what rounding one of them did to the outputs is taken out by the
//! later ones, as far as the inputs go together.
//!
//! ```text
//! target_j = w_j + Σ_{i<j} (w_i − ŵ_i)·U_ij        H = U·D·Uᵀ, the second moment of the inputs
//! ```
//! The scale of a group is searched when the group is reached, on its targets, with `D` as the importance: `D_j` is
//! what an error of input `j` costs that later inputs cannot take out. That search rounds all 32 at once; the scales near
//! its best are then tried as the group will be rounded, one input after the other, which decides. 8 bits take the
//! largest target instead.

use lora_runtime::kernels::{Multipliers, QuantizedRows, Wide, widest};
use lora_runtime::weights::{GROUP, WeightFormat};
use rayon::prelude::*;

use super::lanes::padded;
use super::nearest::half_scale;
use super::{Grid, Group, Unrepresentable, check_range, empty, fit_group, fit_multiplier, row_scale};
use crate::calibrate::Factor;

/// Quantizes an `n × k` weight for inputs with the factored second moment `moment`.
///
/// # Errors
/// When a weight is not finite.
///
/// # Panics
/// When the sizes do not fit each other, or for a float or an import format.
pub fn quantize_with_feedback(
    format: WeightFormat,
    w: &[f32],
    n: usize,
    moment: &Factor,
    codebook: &[u8; 16],
) -> Result<QuantizedRows, Unrepresentable> {
    assert!(!format.is_float() && !format.is_import(), "{} is not a quantized format", format.name());
    let k = moment.k;
    assert_eq!(w.len(), n * k, "weight size");
    check_range(format, w, k)?;
    let columns = &Columns::new(moment);
    let groups = k.div_ceil(GROUP);
    let mut out = empty(format, n, k);
    let rows = w.par_chunks_exact(k).zip(out.codes.par_chunks_exact_mut(k));
    match &mut out.multipliers {
        Multipliers::Int(multipliers) => {
            let grid = &Grid::new(format, codebook);
            rows.zip(multipliers.par_chunks_exact_mut(groups)).zip(&mut out.row_scales).for_each(
                |(((w, codes), multipliers), scale)| {
                    *scale = widest(Row { columns, steps: OnGrid { grid, multipliers }, w, codes });
                },
            );
        }
        Multipliers::Half(scales) => {
            rows.zip(scales.par_chunks_exact_mut(groups)).for_each(|((w, codes), scales)| {
                widest(Row { columns, steps: Halves(scales), w, codes });
            });
        }
        Multipliers::None => rows.zip(&mut out.row_scales).for_each(|((w, codes), scale)| {
            *scale = widest(Row { columns, steps: Whole, w, codes });
        }),
        // No quantizer makes minima.
        Multipliers::HalfAndMinimum(_) => {}
    }
    Ok(out)
}

/// How a format puts the numbers of a row into codes, group by group.
trait Steps {
    /// The scale of the row, before anything has moved.
    fn start(&self, w: &[f32]) -> f32;
    /// Chooses and notes the step between codes for group `g`; `importance` has an entry for each of its weights.
    fn step(&mut self, g: usize, scale: f32, target: &[f32; GROUP], importance: &[f32]) -> f32;
    /// Scales that are tried beside that one.
    const OTHERS: usize = 0;
    /// One of them, as a multiplier and a step.
    #[inline(always)]
    fn other(&self, _g: usize, _scale: f32, _i: usize) -> Option<(i8, f32)> {
        None
    }
    /// Notes another multiplier for group `g`.
    #[inline(always)]
    fn take(&mut self, _g: usize, _multiplier: i8) {}
    /// The code nearest to `v` steps.
    fn code(&self, v: f32) -> i8;
    /// How many steps a code stands for.
    fn value(&self, code: i8) -> f32;
}

/// By how much the scales that are tried beside a group's differ from it.
const NEAR: [f32; 6] = [-0.025, 0.025, -0.05, 0.05, -0.1, 0.1];

/// The largest magnitude.
#[inline(always)]
fn most(w: &[f32]) -> f32 {
    w.iter().fold(0.0, |m: f32, v| if v.abs() > m { v.abs() } else { m })
}

/// `q4`, `q4l`, `q5` and `q6`.
struct OnGrid<'a> {
    grid: &'a Grid,
    multipliers: &'a mut [i8],
}

impl Steps for OnGrid<'_> {
    #[inline(always)]
    fn start(&self, w: &[f32]) -> f32 {
        // The largest scale that a group can come out with.
        let [low, high] = self.grid.ends();
        let longest = if -low > high { -low } else { high };
        row_scale(&w.chunks(GROUP).map(|w| most(w) / longest).collect::<Vec<_>>())
    }

    #[inline(always)]
    fn step(&mut self, g: usize, scale: f32, target: &[f32; GROUP], importance: &[f32]) -> f32 {
        let mut copy = [0.0; GROUP];
        let group = Group::new(padded(&target[..importance.len()], &mut copy), Some(importance));
        let (multiplier, _) = fit_multiplier(self.grid, &group, fit_group(self.grid, &group), scale);
        self.multipliers[g] = multiplier;
        f32::from(multiplier) * scale
    }

    const OTHERS: usize = NEAR.len();

    #[inline(always)]
    fn other(&self, g: usize, scale: f32, i: usize) -> Option<(i8, f32)> {
        let multiplier = f32::from(self.multipliers[g]);
        let change = multiplier * NEAR[i];
        // Small multipliers have only large steps.
        let change = if change.abs() < 1.0 { 1f32.copysign(change) } else { change };
        let other = (multiplier + change).round_ties_even();
        let fits = (-128.0..=127.0).contains(&other) && other * multiplier > 0.0;
        fits.then_some((other as i8, other * scale))
    }

    #[inline(always)]
    fn take(&mut self, g: usize, multiplier: i8) {
        self.multipliers[g] = multiplier;
    }

    #[inline(always)]
    fn code(&self, v: f32) -> i8 {
        self.grid.code(v)
    }

    #[inline(always)]
    fn value(&self, code: i8) -> f32 {
        self.grid.value(code)
    }
}

/// To the nearest of −127…127.
#[inline(always)]
fn code8(v: f32) -> i8 {
    v.round_ties_even().clamp(-127.0, 127.0) as i8
}

/// `q8`: the scales of its groups.
struct Halves<'a>(&'a mut [u16]);

impl Steps for Halves<'_> {
    #[inline(always)]
    fn start(&self, _w: &[f32]) -> f32 {
        1.0
    }

    #[inline(always)]
    fn step(&mut self, g: usize, _scale: f32, target: &[f32; GROUP], _importance: &[f32]) -> f32 {
        let scale = half_scale(target);
        self.0[g] = scale.to_bits();
        scale.to_f32()
    }

    #[inline(always)]
    fn code(&self, v: f32) -> i8 {
        code8(v)
    }

    #[inline(always)]
    fn value(&self, code: i8) -> f32 {
        f32::from(code)
    }
}

/// `q8r`.
struct Whole;

impl Steps for Whole {
    #[inline(always)]
    fn start(&self, w: &[f32]) -> f32 {
        most(w) / 127.0
    }

    #[inline(always)]
    fn step(&mut self, _g: usize, scale: f32, _target: &[f32; GROUP], _importance: &[f32]) -> f32 {
        scale
    }

    #[inline(always)]
    fn code(&self, v: f32) -> i8 {
        code8(v)
    }

    #[inline(always)]
    fn value(&self, code: i8) -> f32 {
        f32::from(code)
    }
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

/// A group whose inputs were rounded in order.
struct Rounded {
    codes: [i8; GROUP],
    errors: [f32; GROUP],
    /// What later inputs cannot take out.
    loss: f32,
}

impl Default for Rounded {
    fn default() -> Self {
        Self { codes: [0; GROUP], errors: [0.0; GROUP], loss: 0.0 }
    }
}

impl Rounded {
    /// Rounds weights `w` that have moved to `target`; keeps the result if it loses less.
    #[inline(always)]
    fn better<S: Steps>(
        &mut self,
        steps: &S,
        step: f32,
        (w, mut target): (&[f32], [f32; GROUP]),
        u: &[[f32; GROUP]],
        importance: &[f32],
    ) -> bool {
        let inverse = 1.0 / step;
        let inverse = if inverse.is_finite() { inverse } else { 0.0 };
        let mut out = Self::default();
        for (j, (w, (u, importance))) in w.iter().zip(u.iter().zip(importance)).enumerate() {
            let code = steps.code(target[j] * inverse);
            let value = steps.value(code) * step;
            let (e, missed) = (w - value, target[j] - value);
            (out.codes[j], out.errors[j]) = (code, e);
            out.loss += importance * missed * missed;
            // Of a NaN, such as there is at first, nothing is worse.
            if out.loss >= self.loss {
                return false;
            }
            for (t, u) in target[j + 1..].iter_mut().zip(&u[j + 1..]) {
                *t += e * u;
            }
        }
        *self = out;
        true
    }
}

/// A row on its way; gives its scale.
struct Row<'a, S> {
    columns: &'a Columns<'a>,
    steps: S,
    w: &'a [f32],
    codes: &'a mut [i8],
}

impl<S: Steps> Wide for Row<'_, S> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let Self { columns, mut steps, w, codes } = self;
        let scale = steps.start(w);
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
            let (u, importance) = (&u[first..], &columns.importance[first..][..w.len()]);
            let step = steps.step(g, scale, &target, importance);
            let mut taken = None;
            let mut best = Rounded { loss: f32::NAN, ..Rounded::default() };
            best.better(&steps, step, (w, target), u, importance);
            for i in 0..S::OTHERS {
                if let Some((multiplier, step)) = steps.other(g, scale, i)
                    && best.better(&steps, step, (w, target), u, importance)
                {
                    taken = Some(multiplier);
                }
            }
            if let Some(multiplier) = taken {
                steps.take(g, multiplier);
            }
            codes[first..][..w.len()].copy_from_slice(&best.codes[..w.len()]);
            errors[first..][..w.len()].copy_from_slice(&best.errors[..w.len()]);
        }
        scale
    }
}
