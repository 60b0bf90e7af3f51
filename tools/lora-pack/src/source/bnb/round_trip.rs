//! A float weight as training over its quantized form saw it: quantized as bitsandbytes does, and dequantized again.
//!
//! Every code is the nearest one, as in bitsandbytes' plain torch code. Its code for CPUs and GPUs searches and sums in ways of
//! its own: there a weight or scale beside the middle between two codes can get the other one. The mean of the scales, which
//! double quantization takes off them, is the correctly rounded one.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use half::f16;
use rayon::prelude::*;

use super::FourBit;
use crate::source::Dtype;

/// Weights of a block.
const BLOCK: usize = 64;
/// Scales of a block that share a scale of their own.
const NESTED: usize = 256;

/// How bitsandbytes quantized the weights that an adapter was trained over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// 4 bits in blocks of 64; `double`: the scales are quantized again.
    Four {
        /// The table.
        table: FourBit,
        /// `bnb_4bit_use_double_quant`.
        double: bool,
    },
    /// 8 bits with a scale for each row.
    Eight,
}

impl Quantization {
    const NF4_DOUBLE: Self = Self::Four { table: FourBit::Nf4, double: true };
    const NAMES: [(&str, Self); 5] = [
        ("nf4-double", Self::NF4_DOUBLE),
        ("nf4", Self::Four { table: FourBit::Nf4, double: false }),
        ("fp4-double", Self::Four { table: FourBit::Fp4, double: true }),
        ("fp4", Self::Four { table: FourBit::Fp4, double: false }),
        ("int8", Self::Eight),
    ];
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(Self::NAMES.iter().find(|(_, q)| q == self).map_or("", |(name, _)| name))
    }
}

impl FromStr for Quantization {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == s).map(|(_, q)| *q);
        let names = Self::NAMES.map(|(name, _)| name).join(", ");
        // The recipe of the QLoRA paper.
        found
            .or((s == "dequantized").then_some(Self::NF4_DOUBLE))
            .ok_or_else(|| format!("one of original, dequantized, {names}"))
    }
}

/// What reading a weight does to its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundTrip {
    /// How.
    pub quantization: Quantization,
    /// The matrix is stored as (inputs × outputs).
    pub transposed: bool,
}

impl RoundTrip {
    /// Quantizes and dequantizes a matrix of `shape` in place. `dtype` is its own type: what 4 bits are dequantized to.
    pub(in crate::source) fn apply(self, w: Vec<f32>, shape: &[usize], dtype: Dtype) -> Vec<f32> {
        let columns = shape.last().copied().unwrap_or(1).max(1);
        let rows = w.len() / columns;
        let mut w = if self.transposed { transposed(&w, rows, columns) } else { w };
        match self.quantization {
            Quantization::Four { table, double } => {
                four(&mut w, table, double);
                w.par_chunks_mut(1 << 16).for_each(|w| dtype.round_here(w));
            }
            Quantization::Eight => eight(&mut w, if self.transposed { rows } else { columns }),
        }
        if self.transposed { transposed(&w, columns, rows) } else { w }
    }
}

/// `rows × columns` → `columns × rows`.
fn transposed(w: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).into_par_iter().flat_map_iter(|c| (0..rows).map(move |r| w[r * columns + c])).collect()
}

/// The largest magnitude, and what divides by it.
fn absmax(w: &[f32]) -> (f32, f32) {
    let most = w.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
    (most, 1.0 / most.max(1e-38))
}

/// A table in ascending order with the middles between neighbours.
struct Sorted {
    values: Vec<f32>,
    middles: Vec<f32>,
}

impl Sorted {
    fn new(values: &[f32]) -> Self {
        let mut values = values.to_vec();
        values.sort_by(f32::total_cmp);
        let middles = values.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
        Self { values, middles }
    }

    /// The value nearest to `v`, the lower of two.
    fn nearest(&self, v: f32) -> f32 {
        let v = v.clamp(-1.0, 1.0);
        self.values[self.middles.partition_point(|middle| *middle < v)]
    }
}

fn four(w: &mut [f32], table: FourBit, double: bool) {
    let table = Sorted::new(&table.table());
    let mut scales: Vec<f32> = w
        .par_chunks_mut(BLOCK)
        .map(|w| {
            let (most, inverse) = absmax(w);
            w.iter_mut().for_each(|v| *v = table.nearest(*v * inverse));
            most
        })
        .collect();
    if double {
        nested(&mut scales);
    }
    w.par_chunks_mut(BLOCK).zip(scales).for_each(|(w, scale)| w.iter_mut().for_each(|v| *v *= scale));
}

/// Scales, less their mean, in 8 bits, and back.
fn nested(scales: &mut [f32]) {
    static DYNAMIC: LazyLock<Sorted> = LazyLock::new(|| Sorted::new(&dynamic_map()));
    let mean = (scales.iter().map(|s| f64::from(*s)).sum::<f64>() / scales.len().max(1) as f64) as f32;
    for scales in scales.chunks_mut(NESTED) {
        scales.iter_mut().for_each(|s| *s -= mean);
        let (most, inverse) = absmax(scales);
        scales.iter_mut().for_each(|s| *s = DYNAMIC.nearest(*s * inverse) * most + mean);
    }
}

/// bitsandbytes' signed dynamic type: seven decades, each with twice as many steps as the one below; 0 and 1.
fn dynamic_map() -> Vec<f32> {
    let mut map = vec![0.0, 1.0];
    for decade in 0..7 {
        let steps = 1 << decade;
        // torch.linspace(0.1, 1): from the nearer end, in one rounding.
        let width = f64::from((1.0 - 0.1_f32) / steps as f32);
        let border = |i: i32| {
            let from_below = f64::from(0.1_f32) + width * f64::from(i);
            let from_above = 1.0 - width * f64::from(steps - i);
            (if i < (steps + 1) / 2 { from_below } else { from_above }) as f32
        };
        let unit = 10f64.powi(decade - 6) as f32;
        for i in 0..steps {
            let value = unit * ((border(i) + border(i + 1)) / 2.0);
            map.extend([value, -value]);
        }
    }
    map
}

/// Rows from f16, as bitsandbytes takes them.
fn eight(w: &mut [f32], columns: usize) {
    w.par_chunks_mut(columns).for_each(|row| {
        row.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
        let (most, inverse) = absmax(row);
        if most > 0.0 {
            // A code has no negative zero.
            let code = |v: f32| (v * (inverse * 127.0)).round_ties_even() + 0.0;
            row.iter_mut().for_each(|v| *v = code(*v) * most * super::PER_CODE);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, quantization) in Quantization::NAMES {
            assert_eq!(name.parse(), Ok(quantization));
            assert_eq!(quantization.to_string(), name);
        }
        assert_eq!("dequantized".parse(), Ok(Quantization::NF4_DOUBLE));
        assert!("q4".parse::<Quantization>().unwrap_err().contains("nf4-double"));
    }

    #[test]
    fn values_of_a_table_stay() {
        // With its largest value in every block, a table comes back as it was.
        for table in FourBit::ALL {
            let mut w: Vec<f32> = (0..BLOCK * 3).map(|i| table.table()[i % 16] * 0.25).collect();
            let before = w.clone();
            four(&mut w, table, false);
            assert_eq!(w, before);
        }
        let mut w: Vec<f32> = (-127..=127).map(|i| i as f32 / 128.0).collect();
        let before = w.clone();
        eight(&mut w, 255);
        assert!(w.iter().zip(&before).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn the_dynamic_map_has_its_steps() {
        let map = Sorted::new(&dynamic_map()).values;
        assert_eq!((map.len(), map[0], map[255]), (256, -0.992_968_74, 1.0));
        assert!(map.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
