use std::vec::Vec;

use super::*;
use crate::kernels::cases::{Guarded, Random, assert_same};

#[test]
fn rotation_equals_the_plain_definition() {
    let mut random = Random::new(11);
    for (head_dim, h) in [(2, 1), (16, 8), (64, 32), (64, 8), (34, 17), (80, 16), (128, 64), (30, 15), (8, 0)] {
        for heads in [0, 1, 3] {
            let x = random.row(heads * head_dim, 1.0);
            let (cos, sin) = (random.row(h, 1.0), random.row(h, 1.0));
            for style in [RotaryStyle::Half, RotaryStyle::Interleaved] {
                let mut want = x.clone();
                for head in want.chunks_exact_mut(head_dim) {
                    for i in 0..h {
                        let (p, q) = if style == RotaryStyle::Half { (i, i + h) } else { (2 * i, 2 * i + 1) };
                        let (a, b) = (head[p], head[q]);
                        head[p] = a * cos[i] - b * sin[i];
                        head[q] = b * cos[i] + a * sin[i];
                    }
                }
                for kernels in Kernels::supported() {
                    for offset in [0, 1] {
                        let mut got = Guarded::new(&x, offset);
                        kernels.rotary(style, got.get(), head_dim, &cos, &sin);
                        assert_same(got.check(), &want, &std::format!("{kernels:?} {style:?} {head_dim} {h} {heads}"));
                    }
                }
            }
        }
    }
}

#[test]
fn angles_are_those_of_the_binary32_product() {
    let inv_freq: Vec<f32> = (0..32).map(|i| (1.0 / 10_000f64.powf(f64::from(i) / 32.0)) as f32).collect();
    let (mut cos, mut sin) = ([0.0; 32], [0.0; 32]);
    for pos in [0, 1, 2, 1_023, 131_071] {
        rotary_angles(pos, &inv_freq, 1.0, &mut cos, &mut sin);
        for i in 0..32 {
            let angle = f64::from(pos as f32 * inv_freq[i]);
            assert!((f64::from(cos[i]) - angle.cos()).abs() <= 3.1e-8, "{pos} {i}");
            assert!((f64::from(sin[i]) - angle.sin()).abs() <= 3.1e-8, "{pos} {i}");
        }
        let (unscaled_cos, unscaled_sin) = (cos, sin);
        rotary_angles(pos, &inv_freq, 1.25, &mut cos, &mut sin);
        assert_eq!(cos, unscaled_cos.map(|v| v * 1.25));
        assert_eq!(sin, unscaled_sin.map(|v| v * 1.25));
    }
}

#[test]
fn numbers_lead_back() {
    for style in [RotaryStyle::Half, RotaryStyle::Interleaved] {
        assert_eq!(RotaryStyle::from_u16(style as u16), Some(style));
    }
    assert_eq!(RotaryStyle::from_u16(2), None);
}
