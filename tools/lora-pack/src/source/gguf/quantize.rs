//! Floats to ggml's block types, for export.
//!
//! Q8_0 is ggml's own rule. For Q4_0 and Q5_0 the scale of a block is searched: the one that puts the largest weight on the
//! long end of the grid and eleven around it, each refitted by least squares with weights `w² + mean w²` (large weights
//! meet large activations), the best kept. Any reader of these types reads the result.

use half::f16;

use crate::source::Dtype;

/// Elements of a block.
const BLOCK: usize = 32;

/// Scales that are tried, relative to the one that puts the largest weight on the long end.
const SIZES: [f32; 12] = [0.70, 0.735, 0.77, 0.805, 0.84, 0.875, 0.91, 0.945, 0.98, 1.0, 1.04, 1.08];

/// Whether [`blocks`] makes this type.
pub fn can_make(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::Q8_0 | Dtype::Q4_0 | Dtype::Q5_0)
}

/// Appends finite `values`, whole blocks of 32, as blocks of a type that [`can_make`]. `false` where a scale is beyond
/// binary16.
pub fn blocks(dtype: Dtype, values: &[f32], out: &mut Vec<u8>) -> bool {
    for w in values.as_chunks::<BLOCK>().0 {
        let (scale, codes) = match dtype {
            Dtype::Q8_0 => eight(w),
            Dtype::Q4_0 => searched(w, -8.0, 7.0),
            _ => searched(w, -16.0, 15.0),
        };
        if scale.is_infinite() {
            return false;
        }
        out.extend(scale.to_le_bytes());
        match dtype {
            Dtype::Q8_0 => out.extend(codes.map(|c| c as u8)),
            Dtype::Q4_0 => out.extend((0..16).map(|i| (codes[i] + 8) as u8 | ((codes[i + 16] + 8) as u8) << 4)),
            _ => {
                let codes = codes.map(|c| (c + 16) as u8);
                let high = codes.iter().enumerate().fold(0u32, |bits, (i, c)| bits | u32::from(c >> 4) << i);
                out.extend(high.to_le_bytes());
                out.extend((0..16).map(|i| codes[i] & 15 | codes[i + 16] << 4));
            }
        }
    }
    true
}

fn eight(w: &[f32; BLOCK]) -> (f16, [i8; BLOCK]) {
    let largest = w.iter().fold(0f32, |m, v| m.max(v.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    (f16::from_f32(scale), w.map(|v| (v * inverse).round().clamp(-127.0, 127.0) as i8))
}

fn searched(w: &[f32; BLOCK], low: f32, high: f32) -> (f16, [i8; BLOCK]) {
    let largest = w.iter().fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    let mean = w.iter().map(|v| v * v).sum::<f32>() / BLOCK as f32;
    let importance = w.map(|v| v * v + mean);
    let quantize = |scale: f32| w.map(|v| (v / scale).round_ties_even().clamp(low, high));
    let mut best = (f32::INFINITY, f16::ZERO, [0f32; BLOCK]);
    for size in SIZES {
        let codes = quantize(largest / low * size);
        let (mut up, mut down) = (0f32, 0f32);
        for ((v, h), c) in w.iter().zip(importance).zip(codes) {
            up += h * c * v;
            down += h * c * c;
        }
        let scale = f16::from_f32(up / down);
        let s = scale.to_f32();
        if !s.is_normal() {
            continue;
        }
        let codes = quantize(s);
        let error: f32 = w.iter().zip(importance).zip(codes).map(|((v, h), c)| h * (v - c * s) * (v - c * s)).sum();
        if error < best.0 {
            best = (error, scale, codes);
        }
    }
    if best.0 == f32::INFINITY && largest != 0.0 {
        // Too small or too large for a refit; the plain rule.
        let scale = f16::from_f32(largest / low);
        let s = scale.to_f32();
        let codes = if s == 0.0 { [0.0; BLOCK] } else { quantize(s) };
        return (scale, codes.map(|c| c as i8));
    }
    (best.1, best.2.map(|c| c as i8))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise() -> impl FnMut() -> f32 {
        let mut state = 9u64;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / 16_777_216.0 - 0.5
        }
    }

    #[test]
    fn blocks_read_back_near_the_values() {
        let mut random = noise();
        let w: Vec<f32> = (0..64 * 32).map(|_| (0..6).map(|_| random()).sum::<f32>() * 0.1).collect();
        for (dtype, decibels) in [(Dtype::Q8_0, 44.0), (Dtype::Q5_0, 26.0), (Dtype::Q4_0, 20.0)] {
            let mut bytes = Vec::new();
            assert!(blocks(dtype, &w, &mut bytes));
            assert_eq!(bytes.len(), 64 * dtype.size());
            let mut back = vec![0.0; w.len()];
            assert!(dtype.widen(&bytes, &mut back));
            let (signal, error) = w
                .iter()
                .zip(&back)
                .fold((0f64, 0f64), |(s, e), (a, b)| (s + f64::from(*a).powi(2), e + f64::from(a - b).powi(2)));
            let snr = 10.0 * (signal / error).log10();
            eprintln!("{}: {snr:.1} dB", dtype.name());
            assert!(snr > decibels, "{}: {snr} dB", dtype.name());
        }
    }

    #[test]
    fn extremes_stay_finite_or_are_refused() {
        for dtype in [Dtype::Q8_0, Dtype::Q5_0, Dtype::Q4_0] {
            for v in [0.0, 1e-30, -1e-7, 1000.0] {
                let mut w = vec![0.0; 32];
                w[5] = v;
                let mut bytes = Vec::new();
                assert!(blocks(dtype, &w, &mut bytes));
                let mut back = vec![0.0; 32];
                dtype.widen(&bytes, &mut back);
                assert!(
                    back.iter().all(|x| x.is_finite()) && (back[5] - v).abs() <= 1e-6 + v.abs() * 0.01,
                    "{v}: {}",
                    back[5]
                );
            }
            assert!(!blocks(dtype, &[3e38; 32], &mut Vec::new()));
        }
    }
}
