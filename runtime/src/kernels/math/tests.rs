//! Dense sweeps against binary64 from std, at the scalar level; the levels are compared with each other in
//! `elementwise`, whose kernels expose these functions.

use super::super::isa::scalar::Scalar;
use super::*;

/// Every `step`-th binary32 in `[lo, hi]`, both of one sign.
fn sweep(lo: f32, hi: f32, step: u32, mut f: impl FnMut(f32)) {
    let (a, b) = (lo.to_bits().min(hi.to_bits()), lo.to_bits().max(hi.to_bits()));
    let mut bits = a;
    while bits <= b {
        f(f32::from_bits(bits));
        bits += step;
    }
    f(f32::from_bits(b));
}

/// Distance of `got` from `want` in units in the last place of `want` (as a normal binary32).
fn ulps(got: f32, want: f64) -> f64 {
    let e = (want.abs().to_bits() >> 52) as i32 - 1023;
    (f64::from(got) - want).abs() / 2f64.powi(e.max(-126) - 23)
}

fn call(f: impl Fn(Scalar, <Scalar as Isa>::F) -> <Scalar as Isa>::F, x: f32) -> f32 {
    // SAFETY: plain Rust.
    let scalar = unsafe { Scalar::proof() };
    f(scalar, scalar.splat(x))[0]
}

/// The largest error in ulps of `f` over both signs of `[tiny, limit]`.
fn worst(f: impl Fn(f32) -> f32, want: impl Fn(f64) -> f64, low: f32, high: f32) -> f64 {
    let mut worst = (0.0, 0.0);
    let mut check = |x: f32| {
        let e = ulps(f(x), want(f64::from(x)));
        assert!(!e.is_nan(), "{x:e}");
        if e > worst.0 {
            worst = (e, x);
        }
    };
    sweep(1e-30, high, 2_503, &mut check);
    sweep(-1e-30, low, 2_503, &mut check);
    std::eprintln!("  worst {:.4} ulp at {:e}", worst.0, worst.1);
    worst.0
}

/// erf in binary64: the Maclaurin series of exp(x²)·erf(x), whose terms are all positive.
fn erf64(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut k) = (x, x, 0.0);
    while term.abs() > 1e-18 * sum.abs() {
        k += 1.0;
        term *= 2.0 * x * x / (2.0 * k + 1.0);
        sum += term;
    }
    sum * (-x * x).exp() * 2.0 / core::f64::consts::PI.sqrt()
}

#[test]
fn exp_is_within_one_ulp() {
    assert!(worst(|x| call(exp, x), f64::exp, -87.3364, EXP_MAX) <= 1.0);
    for x in [0.0, -0.0, f32::MIN_POSITIVE, -1e-40] {
        assert_eq!(call(exp, x), 1.0);
    }
    for x in [f32::NEG_INFINITY, -1e30, -100.0, -87.34] {
        assert_eq!(call(exp, x).to_bits(), 0, "{x}");
    }
    let above = f32::from_bits(EXP_MIN.to_bits() - 1);
    assert!(call(exp, EXP_MIN) == 0.0 && call(exp, above) >= f32::MIN_POSITIVE);
    for x in [f32::INFINITY, 1e30, 89.0, EXP_MAX] {
        assert!(call(exp, x) == call(exp, EXP_MAX) && call(exp, x).is_finite(), "{x}");
    }
    // Whatever the payload.
    sweep(f32::from_bits(0x7f80_0001), f32::from_bits(0x7fff_ffff), 4_099, |nan| {
        assert!(call(exp, nan).is_nan() && call(exp, -nan).is_nan(), "{:#x}", nan.to_bits());
    });
}

#[test]
fn exp_never_falls_as_its_argument_rises() {
    let mut last = f32::INFINITY;
    sweep(-1e-6, -87.0, 101, |x| {
        let e = call(exp, x);
        assert!(e <= last * (1.0 + 2.0 * f32::EPSILON), "{x:e}");
        last = e;
    });
}

#[test]
fn tanh_is_within_an_ulp_and_a_half() {
    assert!(worst(|x| call(tanh, x), f64::tanh, -30.0, 30.0) <= 1.5);
    assert_eq!(call(tanh, f32::INFINITY), 1.0);
    assert_eq!(call(tanh, f32::NEG_INFINITY), -1.0);
    assert_eq!((call(tanh, 0.0), call(tanh, -0.0)), (0.0, 0.0));
    assert!(call(tanh, f32::NAN).is_nan());
}

#[test]
fn sigmoid_is_within_two_and_a_half_ulps() {
    assert!(worst(|x| call(sigmoid, x), |x| 1.0 / (1.0 + (-x).exp()), -87.0, 100.0) <= 2.5);
    assert_eq!(call(sigmoid, 0.0), 0.5);
    assert_eq!(call(sigmoid, f32::INFINITY), 1.0);
    assert!(call(sigmoid, f32::NEG_INFINITY) < 1e-38);
    assert!(call(sigmoid, f32::NAN).is_nan());
}

#[test]
fn erf_is_within_one_in_ten_million() {
    let mut worst = (0.0, 0.0);
    let mut check = |x: f32| {
        let e = (f64::from(call(erf, x)) - erf64(f64::from(x))).abs();
        assert!(!e.is_nan(), "{x:e}");
        if e > worst.0 {
            worst = (e, x);
        }
    };
    sweep(1e-30, 20.0, 2_503, &mut check);
    sweep(-1e-30, -20.0, 2_503, &mut check);
    std::eprintln!("  erf: worst {:e} at {:e}", worst.0, worst.1);
    assert!(worst.0 <= 1e-7);
    for x in [4.0, 5.0, 1e30, f32::INFINITY] {
        assert_eq!((call(erf, x), call(erf, -x)), (1.0, -1.0));
    }
    assert!(call(erf, f32::NAN).is_nan());
}

/// Largest of |error| / max(|x|, tiny) of an activation shaped like `x·Φ(x)`.
fn worst_per_x(f: impl Fn(f32) -> f32, want: impl Fn(f64) -> f64) -> f64 {
    let mut worst = (0.0, 0.0);
    let mut check = |x: f32| {
        let e = (f64::from(f(x)) - want(f64::from(x))).abs() / f64::from(x.abs());
        assert!(!e.is_nan(), "{x:e}");
        if e > worst.0 {
            worst = (e, x);
        }
    };
    sweep(1e-30, 60.0, 2_503, &mut check);
    sweep(-1e-30, -60.0, 2_503, &mut check);
    std::eprintln!("  worst |error| / |x| {:e} at {:e}", worst.0, worst.1);
    worst.0
}

#[test]
fn gates_are_within_two_in_ten_million_of_x() {
    let sigmoid64 = |x: f64| 1.0 / (1.0 + (-x).exp());
    assert!(worst_per_x(|x| call(silu, x), |x| x * sigmoid64(x)) <= 2e-7);
    assert!(worst_per_x(|x| call(gelu, x), |x| 0.5 * x * (1.0 + erf64(x / 2f64.sqrt()))) <= 2e-7);
    let u = |x: f64| (2.0 / core::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    assert!(worst_per_x(|x| call(gelu_tanh, x), |x| x * sigmoid64(2.0 * u(x))) <= 2e-7);
    assert!(worst_per_x(|x| call(quick_gelu, x), |x| x * sigmoid64(1.702 * x)) <= 2e-7);
    for f in [silu::<Scalar>, gelu::<Scalar>, gelu_tanh::<Scalar>, quick_gelu::<Scalar>, relu::<Scalar>] {
        assert_eq!(call(f, 0.0), 0.0);
        assert_eq!(call(f, 300.0), 300.0);
        assert!(call(f, -300.0).abs() < 1e-35);
        assert_eq!(call(f, f32::INFINITY), f32::INFINITY);
        assert!(call(f, f32::NAN).is_nan());
    }
    assert_eq!((call(relu, -3.0), call(relu, 2.0)), (0.0, 2.0));
}

#[test]
fn ln_is_rounded_once() {
    let mut worst: f64 = 0.0;
    sweep(1e-45, f32::MAX, 10_007, |x| worst = worst.max(ulps(ln(x), f64::from(x).ln())));
    // Where the logarithm is small its ulp is small as well.
    sweep(0.99, 1.01, 1, |x| worst = worst.max(if x == 1.0 { 0.0 } else { ulps(ln(x), f64::from(x).ln()) }));
    std::eprintln!("  ln: worst {worst:.5} ulp");
    assert!(worst <= 0.501);
    assert_eq!(ln(1.0).to_bits(), 0);
    assert_eq!((ln(0.0), ln(-0.0), ln(f32::INFINITY)), (f32::NEG_INFINITY, f32::NEG_INFINITY, f32::INFINITY));
    assert!(ln(-1.0).is_nan() && ln(f32::NAN).is_nan() && ln(f32::NEG_INFINITY).is_nan());
}

#[test]
fn sin_cos_are_rounded_once_up_to_a_million() {
    let mut worst: (f64, f32) = (0.0, 0.0);
    let mut check = |x: f32| {
        let (s, c) = sin_cos(x);
        let e = ulps(s, f64::from(x).sin()).max(ulps(c, f64::from(x).cos()));
        if e > worst.0 || e.is_nan() {
            worst = (e, x);
        }
    };
    sweep(1e-30, 1e6, 2_503, &mut check);
    sweep(-1e-30, -1e6, 5_003, &mut check);
    for n in 0..1_000_000 {
        check(n as f32);
    }
    // The floats next to multiples of π/2, where sine or cosine nearly vanish.
    for n in 1..600_000 {
        let x = (f64::from(n) * core::f64::consts::FRAC_PI_2) as f32;
        check(x);
        check(f32::from_bits(x.to_bits() + 1));
        check(f32::from_bits(x.to_bits() - 1));
    }
    std::eprintln!("  sin, cos: worst {:.6} ulp at {}", worst.0, worst.1);
    assert!(worst.0 <= 0.501);
    assert_eq!(sin_cos(0.0), (0.0, 1.0));
    for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(sin_cos(x).0.is_nan() && sin_cos(x).1.is_nan());
    }
    let _defined_beyond = sin_cos(f32::MAX);
}
