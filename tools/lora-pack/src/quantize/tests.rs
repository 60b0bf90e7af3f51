//! Properties of the quantizers; how good they are on real models is `examples/snr`'s to say.

use half::f16;

use super::*;

/// Roughly normal numbers, the same everywhere.
fn normal(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 16_777_216.0 - 0.5
    };
    (0..n).map(|_| (0..12).map(|_| uniform()).sum::<f32>() * 0.05).collect()
}

fn snr(format: WeightFormat, w: &[f32], n: usize, k: usize, h: Option<&[f32]>) -> f64 {
    let q = quantize_rows(format, w, n, k, h, &Q4_TABLE).unwrap();
    signal_to_noise(w, &q.dequantize(&Q4_TABLE))
}

#[test]
fn quality_on_normal_weights_is_as_measured() {
    let w = normal(64 * 576, 1);
    let h = vec![1.0; 576];
    for (format, at_least) in [
        (WeightFormat::Q4L, 20.5),
        (WeightFormat::Q4, 21.0),
        (WeightFormat::Q5, 26.5),
        (WeightFormat::Q6, 32.5),
        (WeightFormat::Q8R, 40.0),
        (WeightFormat::Q8, 44.0),
    ] {
        let got = snr(format, &w, 64, 576, Some(&h));
        eprintln!("{}: {got:.2} dB", format.name());
        assert!(got > at_least, "{}: {got} dB", format.name());
    }
}

#[test]
fn importance_moves_the_error_to_where_it_matters_less() {
    let w = normal(32 * 64, 2);
    let h: Vec<f32> = (0..64).map(|i| if i % 4 == 0 { 100.0 } else { 0.1 }).collect();
    let weighted = |h: Option<&[f32]>| {
        let q = quantize_rows(WeightFormat::Q4, &w, 32, 64, h, &Q4_TABLE).unwrap().dequantize(&Q4_TABLE);
        (0..w.len()).filter(|i| i % 4 == 0).map(|i| f64::from(w[i] - q[i]).powi(2)).sum::<f64>()
    };
    assert!(weighted(Some(&h)) < 0.8 * weighted(None));
}

#[test]
fn weights_on_a_binary16_grid_survive_q8_exactly() {
    let codes = normal(8 * 96, 3);
    // Groups with full-scale codes and groups whose largest code is well below 127.
    for largest in [127.0f32, 90.0] {
        let w: Vec<f32> = codes
            .iter()
            .enumerate()
            .map(|(i, v)| {
                let scale = f16::from_f32(0.001 + (i / 32) as f32 * 1e-4).to_f32();
                let code = if i % 32 == 7 { largest } else { (v * 600.0).round().clamp(-largest, largest) };
                code * scale
            })
            .collect();
        let q = quantize_rows(WeightFormat::Q8, &w, 8, 96, None, &Q4_TABLE).unwrap();
        assert_eq!(q.dequantize(&Q4_TABLE), w, "largest code {largest}");
    }
}

#[test]
fn extreme_and_empty_rows_are_quantized() {
    for format in WeightFormat::ALL.into_iter().filter(|format| !format.is_float() && !format.is_import()) {
        for value in [0.0, 1e-38, -1e-41, 1e-7, 3e38, -2e38] {
            let mut w = vec![0.0; 33];
            w[32] = value;
            w[3] = value / 2.0;
            let q = quantize_rows(format, &w, 1, 33, None, &Q4_TABLE);
            if format == WeightFormat::Q8 && value.abs() > Q8_MAX {
                assert_eq!(q.unwrap_err().column, 3, "half of it is too large as well");
                continue;
            }
            let q = q.unwrap();
            let back = q.dequantize(&Q4_TABLE);
            let range = QuantizedRows::code_range(format);
            assert!(q.codes.iter().all(|code| range.contains(code)));
            assert!(back.iter().all(|v| v.is_finite()), "{} {value}", format.name());
            if value.abs() > 1e-8 {
                let error = w.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                // Half a step of the smallest binary16 is the least that q8 can resolve.
                let least = if format == WeightFormat::Q8 { 2f32.powi(-25) } else { 0.0 };
                assert!(error <= (value.abs() * 0.05).max(least), "{} {value}: {error}", format.name());
            }
        }
        assert_eq!(quantize_rows(format, &[], 0, 5, None, &Q4_TABLE).unwrap().codes.len(), 0);
    }
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    let mut w = vec![0.5; 64];
    w[40] = f32::NAN;
    let error = quantize_rows(WeightFormat::Q4, &w, 2, 32, None, &Q4_TABLE).unwrap_err();
    assert_eq!((error.row, error.column), (1, 8));
    assert_eq!(error.to_string(), "weight [1, 8] is NaN: q4 cannot hold it");
}

#[test]
fn nearest_code_is_nearest() {
    for format in [WeightFormat::Q4, WeightFormat::Q4L, WeightFormat::Q5, WeightFormat::Q6] {
        let grid = Grid::new(format, &Q4_TABLE);
        let range = QuantizedRows::code_range(format);
        for i in -9000..9000 {
            let v = i as f32 / 100.0 + 0.003;
            let best = range.clone().map(|c| (grid.value(c) - v).abs()).fold(f32::INFINITY, f32::min);
            assert_eq!((grid.value(grid.code(v)) - v).abs(), best, "{} {v}", format.name());
            assert_eq!(grid.codes(&[v; GROUP], 2.0), [grid.code(v); GROUP]);
        }
    }
}
