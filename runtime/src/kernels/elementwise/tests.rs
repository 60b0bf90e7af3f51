use std::vec::Vec;

use super::*;
use crate::kernels::cases::{Guarded, LENGTHS, Random, assert_same, tanh};

/// The activations in plain floats, written a second time from the definitions in `math`.
mod naive {
    use super::Act;
    use crate::kernels::cases::{exp, horner, tanh};

    pub fn erf(x: f32) -> f32 {
        if x.abs() < 0.92 {
            let p = [0.128_379_15, -0.376_125, 0.112_818_77, -0.026_768_58, 0.004_995_853_6, -6.003_800_7e-4];
            return x + x * horner(x * x, &p);
        }
        if x.is_nan() {
            return x;
        }
        let q = [0.002_021_046, 1.119_679_7, 0.651_466_97, 0.090_625_85, -0.015_419_1, 0.001_230_942_3];
        (1.0 - exp(-horner(x.abs().min(4.0), &q))).copysign(x)
    }

    pub fn act(act: Act, x: f32) -> f32 {
        let relu = if 0.0 > x { 0.0 } else { x };
        match act {
            Act::None => x,
            Act::Relu => relu,
            Act::Silu => x / (1.0 + exp(-x)),
            Act::Gelu => (0.5 * x) * (1.0 + erf(x * core::f32::consts::FRAC_1_SQRT_2)),
            Act::GeluTanh => x / (1.0 + exp(-(x * (1.595_769 + 0.071_354_814 * (x * x))))),
            Act::QuickGelu => x / (1.0 + exp(-(1.702 * x))),
            Act::Tanh => tanh(x),
            Act::Sigmoid => 1.0 / (1.0 + exp(-x)),
            Act::Relu2 => relu * relu,
        }
    }
}

/// Runs `case` on ordinary and wild rows of every length and several alignments, at every level.
fn each(mut case: impl FnMut(&Kernels, &str, &[f32], &[f32], usize)) {
    let mut random = Random::new(1);
    for n in LENGTHS {
        for wild in [false, true] {
            let mut row = || if wild { random.wild_row(n) } else { random.row(n, 1.5) };
            let (a, b) = (row(), row());
            for kernels in Kernels::supported() {
                for offset in [0, 1, 3] {
                    let what = std::format!("{kernels:?}, n {n}, offset {offset}, wild {wild}");
                    case(kernels, &what, &a, &b, offset);
                }
            }
        }
    }
}

fn zip(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect()
}

#[test]
fn activations_and_gates_equal_the_plain_definition() {
    each(|kernels, what, a, b, offset| {
        for act in Act::ALL {
            let what = std::format!("{act:?}, {what}");
            let mut out = Guarded::new(&std::vec![9.0; a.len()], offset);
            kernels.activation(act, a, out.get());
            let want: Vec<f32> = a.iter().map(|x| naive::act(act, *x)).collect();
            assert_same(out.check(), &want, &what);
            let mut x = Guarded::new(a, offset);
            kernels.activation_in_place(act, x.get());
            assert_same(x.check(), &want, &what);

            let want = zip(a, b, |a, b| naive::act(act, a) * b);
            kernels.gated(act, a, b, out.get());
            assert_same(out.check(), &want, &what);
            let mut x = Guarded::new(a, offset);
            kernels.gated_in_place(act, x.get(), b);
            assert_same(x.check(), &want, &what);
        }
    });
}

#[test]
fn sums_products_scales_and_caps_equal_the_plain_definition() {
    each(|kernels, what, a, b, offset| {
        let fresh = |content: &[f32]| Guarded::new(content, offset);
        let zeros = std::vec![0.0; a.len()];
        let s = 0.37f32;

        let want = zip(a, b, |a, b| a + b);
        let (mut out, mut x) = (fresh(&zeros), fresh(a));
        kernels.add(a, b, out.get());
        kernels.add_assign(x.get(), b);
        assert_same(out.check(), &want, what);
        assert_same(x.check(), &want, what);

        let want = zip(a, b, |a, b| a * b);
        let (mut out, mut x) = (fresh(&zeros), fresh(a));
        kernels.mul(a, b, out.get());
        kernels.mul_assign(x.get(), b);
        assert_same(out.check(), &want, what);
        assert_same(x.check(), &want, what);

        let want = zip(a, b, |a, b| a + b * s);
        let (mut out, mut x) = (fresh(&zeros), fresh(a));
        kernels.add_scaled(a, b, s, out.get());
        kernels.add_scaled_assign(x.get(), b, s);
        assert_same(out.check(), &want, what);
        assert_same(x.check(), &want, what);

        let want = zip(a, b, |a, _| a * s);
        let (mut out, mut x) = (fresh(&zeros), fresh(a));
        kernels.scale(a, s, out.get());
        kernels.scale_in_place(x.get(), s);
        assert_same(out.check(), &want, what);
        assert_same(x.check(), &want, what);

        let mut x = fresh(a);
        kernels.softcap_in_place(x.get(), 30.0);
        assert_same(x.check(), &zip(a, b, |a, _| 30.0 * tanh(a / 30.0)), what);
    });
}

#[test]
fn bias_is_added_to_every_row() {
    let bias = Random::new(2).row(17, 1.0);
    for kernels in Kernels::supported() {
        let mut rows = Guarded::new(&Random::new(3).row(3 * 17, 1.0), 1);
        let want: Vec<f32> = rows.get().iter().enumerate().map(|(i, x)| x + bias[i % 17]).collect();
        kernels.add_bias(rows.get(), &bias);
        assert_same(rows.check(), &want, "bias");
        kernels.add_bias(&mut [], &[]);
    }
}

/// Every level against the plain definition for a dense sweep of the exponential, through the sigmoid.
#[test]
fn levels_agree_on_a_dense_sweep() {
    let x: Vec<f32> = (0..=u32::MAX).step_by(20_011).map(f32::from_bits).collect();
    for act in [Act::Sigmoid, Act::Tanh, Act::Gelu] {
        let want: Vec<f32> = x.iter().map(|x| naive::act(act, *x)).collect();
        for kernels in Kernels::supported() {
            let mut out = std::vec![0.0; x.len()];
            kernels.activation(act, &x, &mut out);
            assert_same(&out, &want, &std::format!("{act:?} {kernels:?}"));
        }
    }
}

#[test]
fn numbers_lead_back() {
    for (i, act) in Act::ALL.into_iter().enumerate() {
        assert_eq!(act as usize, i);
        assert_eq!(Act::from_u16(i as u16), Some(act));
    }
    assert_eq!(Act::from_u16(Act::ALL.len() as u16), None);
}
