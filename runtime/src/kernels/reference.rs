//! The naive definition of the linear kernels, in plain loops over unpacked weights: the judge in the tests. It shares
//! no code with the kernels but the formats' names.

use std::vec::Vec;

use crate::kernels::QuantRow;
use crate::kernels::linear::{Multipliers, QuantizedRows};
use crate::weights::WeightFormat;

/// Row `r` of quantized weights times a quantized row of activations.
pub(super) fn linear_quantized(w: &QuantizedRows, codebook: &[u8; 16], r: usize, x: &QuantRow<'_>) -> f32 {
    let groups = w.k.div_ceil(32);
    let mut acc = 0f32;
    for g in 0..groups {
        let codes = x.codes(g);
        let mut dot = 0i64;
        for (i, &x) in codes.iter().enumerate() {
            let k = g * 32 + i;
            if k < w.k {
                let code = w.codes[r * w.k + k];
                let value = match w.format {
                    WeightFormat::Q4 => i64::from(codebook[code as usize]) - 64,
                    _ => i64::from(code),
                };
                dot += value * i64::from(x);
            }
        }
        let dot_f = dot as f32;
        assert_eq!(dot_f as i64, dot, "exact");
        let p = match &w.multipliers {
            Multipliers::None => dot_f * x.scale(g),
            Multipliers::Half(s) => dot_f * (half::f16::from_bits(s[r * groups + g]).to_f32() * x.scale(g)),
            Multipliers::HalfAndMinimum(m) => {
                let [s, m] = m[r * groups + g].map(|h| half::f16::from_bits(h).to_f32());
                let sum: i32 = codes.iter().map(|&x| i32::from(x)).sum();
                dot_f * (s * x.scale(g)) + sum as f32 * (m * x.scale(g))
            }
            Multipliers::Int(m) => {
                let m = m[r * groups + g];
                // The correctly rounded exact product, as the contract says in other words.
                let product = (dot * i64::from(m)) as f32;
                assert_eq!(dot_f * f32::from(m), product);
                product * x.scale(g)
            }
        };
        acc += p;
    }
    if w.row_scales.is_empty() { acc } else { acc * w.row_scales[r] }
}

/// A row of float weights times a row of float activations.
pub(super) fn linear_float(w: &[f32], x: &[f32]) -> f32 {
    let pairs: Vec<(f32, f32)> = w.iter().copied().zip(x.iter().copied()).collect();
    pairs.chunks(32).fold(0.0, |acc, group| acc + group.iter().fold(0.0, |p, (w, x)| p + w * x))
}
