//! Float weights to quantized rows: which codes and scales represent a weight best.
//!
//! The formats with integer multipliers (`q4`, `q4l`, `q5`, `q6`) are searched group by group (`search`) over a
//! [`Grid`] of code values; `q8` and `q8r` are rounded to nearest, `q8` keeping weights that already lie on a grid with
//! one binary16 scale per 32 inputs exactly as they are. Everything is plain f32 arithmetic in a fixed order: the same
//! weights give the same bytes on every machine and with any number of threads.

mod feedback;
mod grid;
pub mod gridded;
mod lanes;
mod nearest;
mod search;

pub use feedback::quantize_with_feedback;
pub use grid::{Grid, Q4_TABLE};
use lanes::padded;
use nearest::{row_q8, row_q8r};
pub use search::{Group, fit_group, fit_multiplier, row_scale};

use lora_runtime::kernels::{Multipliers, QuantizedRows, Wide, widest};
use lora_runtime::weights::{GROUP, WeightFormat};
use rayon::prelude::*;

/// A weight that a format cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("weight [{row}, {column}] is {value}: {} cannot hold it", .format.name())]
pub struct Unrepresentable {
    /// The format.
    pub format: WeightFormat,
    /// Output.
    pub row: usize,
    /// Input.
    pub column: usize,
    /// What was found: NaN, infinite, or (`q8`) beyond what binary16 scales reach.
    pub value: f32,
}

/// Rows that one task takes at least: rows that a caller's own tasks bring are not split further.
const ROWS: usize = 64;

/// Largest weight of `q8`: 127 times the largest binary16.
const Q8_MAX: f32 = 127.0 * 65504.0;

/// Quantizes an `n × k` weight (row by row in `w`).
///
/// `importance` has one weight per input: the second moment of the inputs that the linear sees. Without it, errors of
/// large weights count more than errors of small ones (see `search`). `codebook` is the file's table for `q4`.
///
/// # Errors
/// When a weight is not finite, or for `q8` too large.
///
/// # Panics
/// When the sizes do not fit each other or the format is a float or an import format.
pub fn quantize_rows(
    format: WeightFormat,
    w: &[f32],
    n: usize,
    k: usize,
    importance: Option<&[f32]>,
    codebook: &[u8; 16],
) -> Result<QuantizedRows, Unrepresentable> {
    assert!(!format.is_float() && !format.is_import(), "{} is not a quantized format", format.name());
    assert_eq!(w.len(), n * k, "weight size");
    assert!(importance.is_none_or(|h| h.len() == k), "importance size");
    check_range(format, w, k)?;
    let grid = Grid::new(format, codebook);
    let mut out = empty(format, n, k);
    if k == 0 {
        return Ok(out);
    }
    let rows = w.par_chunks_exact(k).with_min_len(ROWS).zip(out.codes.par_chunks_exact_mut(k));
    match &mut out.multipliers {
        Multipliers::Half(scales) => {
            let groups = k.div_ceil(GROUP);
            rows.zip(scales.par_chunks_exact_mut(groups)).for_each(|((w, codes), scales)| {
                widest(Halves { w, codes, scales });
            });
        }
        Multipliers::Int(multipliers) => {
            let groups = k.div_ceil(GROUP);
            rows.zip(multipliers.par_chunks_exact_mut(groups)).zip(&mut out.row_scales).for_each(
                |(((w, codes), multipliers), scale)| {
                    *scale = widest(Searched { grid: &grid, w, importance, codes, multipliers });
                },
            );
        }
        // No quantizer makes minima.
        Multipliers::None | Multipliers::HalfAndMinimum(_) => {
            rows.zip(&mut out.row_scales).for_each(|((w, codes), scale)| *scale = widest(Whole { w, codes }));
        }
    }
    Ok(out)
}

/// Refuses weights that `format` cannot hold.
fn check_range(format: WeightFormat, w: &[f32], k: usize) -> Result<(), Unrepresentable> {
    const CHUNK: usize = 1 << 17;
    let most = if format == WeightFormat::Q8 { Q8_MAX } else { f32::MAX };
    let chunk = w.par_chunks(CHUNK).position_first(|w| !widest(Within { w, most }));
    let at = chunk.and_then(|chunk| {
        let first = chunk * CHUNK;
        w[first..].iter().position(|v| v.is_nan() || v.abs() > most).map(|i| first + i)
    });
    match at {
        Some(i) => Err(Unrepresentable { format, row: i / k, column: i % k, value: w[i] }),
        None => Ok(()),
    }
}

/// Whether no magnitude is larger than `most`, or NaN.
struct Within<'a> {
    w: &'a [f32],
    most: f32,
}

impl Wide for Within<'_> {
    type Output = bool;
    #[inline(always)]
    fn run(self) -> bool {
        let mut all = true;
        for v in self.w {
            all &= v.abs() <= self.most;
        }
        all
    }
}

/// `n` rows of zeros.
fn empty(format: WeightFormat, n: usize, k: usize) -> QuantizedRows {
    let groups = n * k.div_ceil(GROUP);
    QuantizedRows {
        format,
        k,
        codes: vec![0; n * k],
        multipliers: match format {
            WeightFormat::Q8 => Multipliers::Half(vec![0; groups]),
            WeightFormat::Q8R => Multipliers::None,
            _ => Multipliers::Int(vec![0; groups]),
        },
        row_scales: if format.has_row_scale() { vec![0.0; n] } else { Vec::new() },
    }
}

/// A row of `q8`.
struct Halves<'a> {
    w: &'a [f32],
    codes: &'a mut [i8],
    scales: &'a mut [u16],
}

impl Wide for Halves<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        row_q8(self.w, self.codes, self.scales);
    }
}

/// A row of `q8r`; gives its scale.
struct Whole<'a> {
    w: &'a [f32],
    codes: &'a mut [i8],
}

impl Wide for Whole<'_> {
    type Output = f32;
    #[inline(always)]
    fn run(self) -> f32 {
        row_q8r(self.w, self.codes)
    }
}

/// A row of `q4`, `q4l`, `q5` or `q6`: scales of the groups first, then the row's, then integer multipliers. Gives the
/// row's scale.
struct Searched<'a> {
    grid: &'a Grid,
    w: &'a [f32],
    importance: Option<&'a [f32]>,
    codes: &'a mut [i8],
    multipliers: &'a mut [i8],
}

impl Wide for Searched<'_> {
    type Output = f32;
    #[inline(always)]
    fn run(self) -> f32 {
        let Self { grid, w, importance, codes, multipliers } = self;
        let mut groups = Vec::with_capacity(multipliers.len());
        let mut scales = Vec::with_capacity(multipliers.len());
        let mut copy = [0.0; GROUP];
        for (g, w) in w.chunks(GROUP).enumerate() {
            let group = Group::new(padded(w, &mut copy), importance.map(|h| &h[g * GROUP..][..w.len()]));
            scales.push(fit_group(grid, &group));
            groups.push(group);
        }
        let scale = row_scale(&scales);
        for (((group, s), multiplier), codes) in groups.iter().zip(scales).zip(multipliers).zip(codes.chunks_mut(GROUP))
        {
            let (fitted, all) = fit_multiplier(grid, group, s, scale);
            *multiplier = fitted;
            codes.copy_from_slice(&all[..codes.len()]);
        }
        scale
    }
}

/// Signal to noise of the approximation `a` of `w`, in decibels.
#[must_use]
pub fn signal_to_noise(w: &[f32], a: &[f32]) -> f64 {
    let (signal, noise) = w.iter().zip(a).fold((0f64, 0f64), |(signal, noise), (w, a)| {
        let (w, a) = (f64::from(*w), f64::from(*a));
        (signal + w * w, noise + (w - a) * (w - a))
    });
    10.0 * (signal / noise).log10()
}

#[cfg(test)]
mod tests;
