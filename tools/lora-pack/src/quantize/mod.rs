//! Float weights to quantized rows: which codes and scales represent a weight best.
//!
//! The formats with integer multipliers (`q4`, `q4l`, `q5`, `q6`) are searched group by group (`search`) over a
//! [`Grid`] of code values; `q8` and `q8r` are rounded to nearest, `q8` keeping weights that already lie on a grid with
//! one binary16 scale per 32 inputs exactly as they are. Everything is plain f32 arithmetic in a fixed order: the same
//! weights give the same bytes on every machine and with any number of threads.

mod feedback;
mod grid;
pub mod gridded;
mod search;

pub use feedback::quantize_with_feedback;
pub use grid::{Grid, Q4_TABLE};
pub use search::{Group, fit_group, fit_multiplier, row_scale};

use half::f16;
use lora_runtime::kernels::{Multipliers, QuantizedRows};
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
    let rows: Vec<Row> = w
        .par_chunks_exact(k.max(1))
        .map(|row| match format {
            WeightFormat::Q8 => row_q8(row),
            WeightFormat::Q8R => row_q8r(row),
            _ => row_searched(&grid, row, importance),
        })
        .collect();
    Ok(gather(format, k, rows))
}

/// Refuses weights that `format` cannot hold.
fn check_range(format: WeightFormat, w: &[f32], k: usize) -> Result<(), Unrepresentable> {
    let most = if format == WeightFormat::Q8 { Q8_MAX } else { f32::MAX };
    match w.par_iter().position_first(|v| v.is_nan() || v.abs() > most) {
        Some(i) => Err(Unrepresentable { format, row: i / k, column: i % k, value: w[i] }),
        None => Ok(()),
    }
}

/// Rows side by side.
fn gather(format: WeightFormat, k: usize, rows: Vec<Row>) -> QuantizedRows {
    let mut out = QuantizedRows {
        format,
        k,
        codes: Vec::with_capacity(rows.len() * k),
        multipliers: match format {
            WeightFormat::Q8 => Multipliers::Half(Vec::new()),
            WeightFormat::Q8R => Multipliers::None,
            _ => Multipliers::Int(Vec::new()),
        },
        row_scales: Vec::new(),
    };
    for row in rows {
        out.codes.extend(row.codes);
        match &mut out.multipliers {
            // No quantizer makes minima.
            Multipliers::None | Multipliers::HalfAndMinimum(_) => {}
            Multipliers::Int(m) => m.extend(row.multipliers),
            Multipliers::Half(h) => h.extend(row.halves),
        }
        out.row_scales.extend(row.scale);
    }
    out
}

/// One quantized row; the parts that its format does not have are empty.
#[derive(Default)]
struct Row {
    codes: Vec<i8>,
    multipliers: Vec<i8>,
    halves: Vec<u16>,
    scale: Option<f32>,
}

/// `q4`, `q4l`, `q5`, `q6`: scales of the groups first, then the row's, then integer multipliers.
fn row_searched(grid: &Grid, w: &[f32], importance: Option<&[f32]>) -> Row {
    let groups: Vec<Group> = w
        .chunks(GROUP)
        .enumerate()
        .map(|(g, w)| Group::new(w, importance.map(|h| &h[g * GROUP..][..w.len()])))
        .collect();
    let scales: Vec<f32> = groups.iter().map(|group| fit_group(grid, group)).collect();
    let scale = row_scale(&scales);
    let mut row = Row { scale: Some(scale), ..Row::default() };
    for (group, s) in groups.iter().zip(scales) {
        let (multiplier, codes) = fit_multiplier(grid, group, s, scale);
        row.multipliers.push(multiplier);
        row.codes.extend(codes);
    }
    row.codes.truncate(w.len());
    row
}

fn largest(w: &[f32]) -> f32 {
    w.iter().fold(0.0, |m, v| if v.abs() > m { v.abs() } else { m })
}

/// `q8r`: to nearest, the largest weight of the row on ±127.
fn row_q8r(w: &[f32]) -> Row {
    let scale = largest(w) / 127.0;
    Row { codes: w.iter().map(|v| code8(*v, scale)).collect(), scale: Some(scale), ..Row::default() }
}

/// `q8`: to nearest, with a binary16 scale; exact where the group lies on a binary16 grid already.
fn row_q8(w: &[f32]) -> Row {
    let mut row = Row::default();
    for group in w.chunks(GROUP) {
        let scale = exact_half_scale(group).unwrap_or_else(|| nearest_half_scale(group));
        row.halves.push(scale.to_bits());
        row.codes.extend(group.iter().map(|v| code8(*v, scale.to_f32())));
    }
    row
}

/// v / scale to the nearest code −127…127; 0 where there is no scale.
fn code8(v: f32, scale: f32) -> i8 {
    if scale == 0.0 { 0 } else { (v / scale).round_ties_even().clamp(-127.0, 127.0) as i8 }
}

/// The binary16 scale of which all weights of the group are integer multiples up to 127, if there is one.
fn exact_half_scale(w: &[f32]) -> Option<f16> {
    let largest = largest(w);
    if largest == 0.0 {
        return Some(f16::ZERO);
    }
    // A quick look at the weight that differs most from the largest rules out most codes: it is a multiple of the scale
    // too, up to the rounding of two f32 operations.
    let smallest = w.iter().map(|v| v.abs()).filter(|v| *v > 0.0).fold(largest, f32::min);
    let ratio = smallest / largest;
    let whole = |code: u8| (ratio * f32::from(code) - (ratio * f32::from(code)).round()).abs() < 1e-4;
    (1..=127u8).rev().filter(|code| whole(*code)).find_map(|code| {
        let scale = f16::from_f32(largest / f32::from(code));
        let s = scale.to_f32();
        // Products of a binary16 and an int8 are exact in f32.
        (s > 0.0 && w.iter().all(|v| (v / s).round_ties_even() * s == *v && (v / s).abs() < 127.5)).then_some(scale)
    })
}

/// The binary16 scale nearest to the one that puts the largest weight on ±127, or the next one up where rounding
/// down would clip it (scales below 2⁻¹⁴ have few digits).
fn nearest_half_scale(w: &[f32]) -> f16 {
    let largest = largest(w);
    let scale = f16::from_f32(largest / 127.0);
    if largest < 127.5 * scale.to_f32() { scale } else { f16::from_bits(scale.to_bits() + 1) }
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
