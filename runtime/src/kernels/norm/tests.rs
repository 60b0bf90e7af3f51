use std::vec::Vec;

use super::*;
use crate::kernels::cases::{Guarded, LENGTHS, Random, assert_same, row_sum};

fn squares(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| x * x).collect()
}

fn naive_rms(x: &[f32], weight: Option<&[f32]>, eps: f32) -> Vec<f32> {
    let r = 1.0 / (row_sum(&squares(x)) / x.len() as f32 + eps).sqrt();
    (0..x.len()).map(|i| weight.map_or(x[i] * r, |w| (x[i] * r) * w[i])).collect()
}

fn naive_layer(x: &[f32], weight: Option<&[f32]>, bias: Option<&[f32]>, eps: f32) -> Vec<f32> {
    let mean = row_sum(x) / x.len() as f32;
    let d: Vec<f32> = x.iter().map(|x| x - mean).collect();
    let r = 1.0 / (row_sum(&squares(&d)) / x.len() as f32 + eps).sqrt();
    (0..x.len())
        .map(|i| {
            let y = weight.map_or(d[i] * r, |w| (d[i] * r) * w[i]);
            bias.map_or(y, |b| y + b[i])
        })
        .collect()
}

#[test]
fn norms_equal_the_plain_definition() {
    let mut random = Random::new(7);
    for n in LENGTHS {
        for wild in [false, true] {
            let x = if wild { random.wild_row(n) } else { random.row(n, 2.0) };
            let (w, b) = (random.row(n, 1.0), random.row(n, 1.0));
            for kernels in Kernels::supported() {
                for (offset, eps) in [(0, 1e-5), (1, 1e-6), (3, 0.0)] {
                    let what = std::format!("{kernels:?}, n {n}, offset {offset}, wild {wild}");
                    let zeros = std::vec![0.0; n];
                    for weight in [None, Some(&w[..])] {
                        let want = naive_rms(&x, weight, eps);
                        let (mut out, mut over) = (Guarded::new(&zeros, offset), Guarded::new(&x, offset));
                        kernels.rms_norm(&x, weight, eps, out.get());
                        kernels.rms_norm_in_place(over.get(), weight, eps);
                        assert_same(out.check(), &want, &what);
                        assert_same(over.check(), &want, &what);
                        for bias in [None, Some(&b[..])] {
                            let want = naive_layer(&x, weight, bias, eps);
                            let (mut out, mut over) = (Guarded::new(&zeros, offset), Guarded::new(&x, offset));
                            kernels.layer_norm(&x, weight, bias, eps, out.get());
                            kernels.layer_norm_in_place(over.get(), weight, bias, eps);
                            assert_same(out.check(), &want, &what);
                            assert_same(over.check(), &want, &what);
                        }
                    }
                }
            }
        }
    }
}

/// The definition itself against binary64.
#[test]
fn norms_are_accurate() {
    let x = Random::new(8).row(576, 3.0);
    let n = x.len() as f64;
    let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
    let squares = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n;
    let mut out = x.clone();
    Kernels::best().rms_norm(&x, None, 1e-5, &mut out);
    for (x, y) in x.iter().zip(&out) {
        let want = f64::from(*x) / (squares + 1e-5).sqrt();
        assert!((f64::from(*y) - want).abs() <= 4e-7 * want.abs(), "{y} {want}");
    }
    Kernels::best().layer_norm(&x, None, None, 1e-5, &mut out);
    for (x, y) in x.iter().zip(&out) {
        let want = (f64::from(*x) - mean) / (squares - mean * mean + 1e-5).sqrt();
        assert!((f64::from(*y) - want).abs() <= 1e-6, "{y} {want}");
    }
}

#[test]
#[should_panic(expected = "slice.len() == n")]
fn weights_of_another_length_are_refused() {
    Kernels::best().rms_norm_in_place(&mut [1.0; 4], Some(&[1.0; 3]), 1e-5);
}
