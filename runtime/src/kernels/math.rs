//! Fixed polynomials for the transcendental functions: the same bits on every level, no libm.
//!
//! Vector functions are written over [`Isa`] and therefore consist of single, unfused, correctly rounded binary32
//! operations in exactly the order given here; that order is their definition. Coefficients are minimax fits of our
//! own (Remez exchange on the intervals named below, each coefficient rounded to binary32 before the next was
//! fitted), so the only errors are roundings. Largest errors against binary64, over dense sweeps of the whole range
//! (asserted by the tests):
//!
//! | function | error |
//! |---|---|
//! | [`exp`] | 1.0 ulp while the result is at least 2⁻¹²⁶; below that the result is 0 |
//! | [`tanh`] | 1.5 ulp |
//! | [`sigmoid`] | 2.5 ulp |
//! | [`erf`] | 1.0e-7 absolute |
//! | [`ln`] (scalar) | 0.501 ulp |
//! | [`sin_cos`] (scalar) | 0.501 ulp up to 10⁶ radians |
//!
//! NaN in gives NaN out. A NaN's sign and payload are no part of the contract, because instruction sets differ in them.

use super::isa::Isa;

#[cfg(test)]
mod tests;

/// Arguments above give `exp` of this: the result stays finite.
const EXP_MAX: f32 = 88.722_83;
/// Arguments up to here give 0; just above ln 2⁻¹²⁶, so that every other result is a normal number.
const EXP_MIN: f32 = -87.336_5;
/// 1.5 · 2²³: adding it rounds to an integer, ties to even, and leaves that integer in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; the first has nine significant bits, so `n` times it is exact for every `n` of `exp`.
const LN2_HI: f32 = 355.0 / 512.0;
const LN2_LO: f32 = -2.121_944_4e-4;
/// `(eʳ − 1 − r) / r²` on |r| ≤ 0.34665.
const EXP: [f32; 5] = [0.499_999_94, 0.166_665_17, 0.041_668_102, 0.008_369_192, 0.001_383_887_5];
/// `(tanh x / x − 1) / x²` in `x²`, |x| ≤ 0.625.
const TANH: [f32; 5] = [-0.333_332_8, 0.133_314_06, -0.053_736_515, 0.020_628_234, -0.005_692_538_3];
/// `erf x / x − 1` in `x²`, |x| ≤ 0.92.
const ERF: [f32; 6] = [0.128_379_15, -0.376_125, 0.112_818_77, -0.026_768_58, 0.004_995_853_6, -6.003_800_7e-4];
/// `−ln(1 − erf x)` in `x`, 0.92 ≤ x ≤ 4.
const ERFC: [f32; 6] = [0.002_021_046, 1.119_679_7, 0.651_466_97, 0.090_625_85, -0.015_419_1, 0.001_230_942_3];

/// Horner's rule: `c[0] + x·(c[1] + x·(…))`, a multiplication and an addition per step.
#[inline(always)]
fn horner<I: Isa, const N: usize>(isa: I, x: I::F, c: &[f32; N]) -> I::F {
    let mut i = N - 1;
    let mut p = isa.splat(c[i]);
    while i > 0 {
        i -= 1;
        p = isa.add(isa.mul(p, x), isa.splat(c[i]));
    }
    p
}

/// |x| (clears the sign bit).
#[inline(always)]
pub fn abs<I: Isa>(isa: I, x: I::F) -> I::F {
    isa.from_bits(isa.and_i(isa.bits(x), isa.splat_i(i32::MAX)))
}

/// `magnitude ≥ 0` with the sign of `sign`.
#[inline(always)]
fn with_sign<I: Isa>(isa: I, magnitude: I::F, sign: I::F) -> I::F {
    isa.from_bits(isa.or_i(isa.bits(magnitude), isa.and_i(isa.bits(sign), isa.splat_i(i32::MIN))))
}

/// eˣ. Exactly 1 at ±0, exactly 0 up to −87.3365 (and at −∞), at most the largest finite float.
///
/// ```text
/// y = clamp(x);  t = y·log₂e + ROUND;  n = t − ROUND;  r = (y − n·LN2_HI) − n·LN2_LO
/// p = 1 + (r + r²·P(r));  result = bits(p) + n·2²³ (as integers), or 0 where x <= EXP_MIN
/// ```
#[inline(always)]
pub fn exp<I: Isa>(isa: I, x: I::F) -> I::F {
    // A function of its own where code size counts: a dozen others begin with it.
    #[inline(never)]
    fn once<I: Isa>(isa: I, x: I::F) -> I::F {
        exp_inline(isa, x)
    }
    if const { I::L == 1 } { once(isa, x) } else { exp_inline(isa, x) }
}

#[inline(always)]
fn exp_inline<I: Isa>(isa: I, x: I::F) -> I::F {
    // The constants come first: `max` and `min` then hand a NaN in `x` through.
    let y = isa.max(isa.splat(EXP_MIN), isa.min(isa.splat(EXP_MAX), x));
    let t = isa.add(isa.mul(y, isa.splat(core::f32::consts::LOG2_E)), isa.splat(ROUND));
    let n = isa.sub(t, isa.splat(ROUND));
    let r = isa.sub(isa.sub(y, isa.mul(n, isa.splat(LN2_HI))), isa.mul(n, isa.splat(LN2_LO)));
    let p = isa.mul(isa.mul(r, r), horner(isa, r, &EXP));
    let p = isa.add(isa.splat(1.0), isa.add(r, p));
    // Shifting `t` leaves n (modulo 2⁹) in the exponent field. The sum is in range: p is 0.70…1.42, and where p < 1
    // its own exponent is one lower.
    let scaled = isa.from_bits(isa.add_i(isa.bits(p), isa.shl_i::<23>(isa.bits(t))));
    // Elsewhere y − y is 0, or NaN: a NaN's payload in `t` has made `scaled` anything.
    isa.select(isa.lt(isa.splat(EXP_MIN), x), scaled, isa.sub(y, y))
}

/// tanh: `x + x³·P(x²)` below 0.625, else `1 − 2/(exp(2|x|) + 1)` with the sign of x.
#[inline(always)]
pub fn tanh<I: Isa>(isa: I, x: I::F) -> I::F {
    let a = abs(isa, x);
    let x2 = isa.mul(x, x);
    let near = isa.add(x, isa.mul(isa.mul(x, x2), horner(isa, x2, &TANH)));
    let e = exp(isa, isa.add(a, a));
    let far = isa.sub(isa.splat(1.0), isa.div(isa.splat(2.0), isa.add(e, isa.splat(1.0))));
    isa.select(isa.lt(a, isa.splat(0.625)), near, with_sign(isa, far, x))
}

/// erf: `x + x·P(x²)` below 0.92, else `1 − exp(−Q(min(|x|, 4)))` with the sign of x; exactly ±1 from 4 on.
#[inline(always)]
pub fn erf<I: Isa>(isa: I, x: I::F) -> I::F {
    let a = abs(isa, x);
    let x2 = isa.mul(x, x);
    let near = isa.add(x, isa.mul(x, horner(isa, x2, &ERF)));
    let q = horner(isa, isa.min(isa.splat(4.0), a), &ERFC);
    let far = isa.sub(isa.splat(1.0), exp(isa, isa.sub(isa.splat(0.0), q)));
    isa.select(isa.lt(a, isa.splat(0.92)), near, with_sign(isa, far, x))
}

/// `1 + exp(−x)`: what the sigmoid family divides by.
#[inline(always)]
fn one_plus_exp_neg<I: Isa>(isa: I, x: I::F) -> I::F {
    isa.add(isa.splat(1.0), exp(isa, isa.sub(isa.splat(0.0), x)))
}

/// 1 / (1 + exp(−x)).
#[inline(always)]
pub fn sigmoid<I: Isa>(isa: I, x: I::F) -> I::F {
    isa.div(isa.splat(1.0), one_plus_exp_neg(isa, x))
}

/// x / (1 + exp(−x)).
#[inline(always)]
pub fn silu<I: Isa>(isa: I, x: I::F) -> I::F {
    isa.div(x, one_plus_exp_neg(isa, x))
}

/// The exact GELU: `(0.5·x)·(1 + erf(x·√½))`.
#[inline(always)]
pub fn gelu<I: Isa>(isa: I, x: I::F) -> I::F {
    let e = erf(isa, isa.mul(x, isa.splat(core::f32::consts::FRAC_1_SQRT_2)));
    isa.mul(isa.mul(isa.splat(0.5), x), isa.add(isa.splat(1.0), e))
}

/// The tanh form of GELU, `0.5·x·(1 + tanh u)` with `u = √(2/π)·(x + 0.044715·x³)`, computed as the equal but
/// cancellation-free `x / (1 + exp(−2u))`: `v = x·(C₁ + C₂·(x·x))`, `x / (1 + exp(−v))`.
#[inline(always)]
pub fn gelu_tanh<I: Isa>(isa: I, x: I::F) -> I::F {
    const C1: f32 = 1.595_769; // 2·√(2/π)
    const C2: f32 = 0.071_354_814; // 0.044715 · C1
    let v = isa.mul(x, isa.add(isa.splat(C1), isa.mul(isa.splat(C2), isa.mul(x, x))));
    isa.div(x, one_plus_exp_neg(isa, v))
}

/// x / (1 + exp(−1.702·x)).
#[inline(always)]
pub fn quick_gelu<I: Isa>(isa: I, x: I::F) -> I::F {
    isa.div(x, one_plus_exp_neg(isa, isa.mul(isa.splat(1.702), x)))
}

/// x.
#[inline(always)]
pub fn identity<I: Isa>(_isa: I, x: I::F) -> I::F {
    x
}

/// `if 0 > x { 0 } else { x }`: −0 and NaN pass through.
#[inline(always)]
pub fn relu<I: Isa>(isa: I, x: I::F) -> I::F {
    isa.max(isa.splat(0.0), x)
}

/// The square of [`relu`].
#[inline(always)]
pub fn relu2<I: Isa>(isa: I, x: I::F) -> I::F {
    let r = relu(isa, x);
    isa.mul(r, r)
}

/// Natural logarithm of one value, in binary64, rounded once. −∞ at ±0, NaN below.
#[must_use]
pub fn ln(x: f32) -> f32 {
    if x == 0.0 {
        return f32::NEG_INFINITY;
    }
    if x.is_nan() || x < 0.0 {
        return f32::NAN;
    }
    if x == f32::INFINITY {
        return x;
    }
    // As binary64 every positive binary32 is normal: x = m·2ᵉ with √½ ≤ m < √2.
    const SQRT_HALF_BITS: u64 = 0x3fe6_a09e_667f_3bcd;
    let bits = f64::from(x).to_bits();
    let e = (bits.wrapping_sub(SQRT_HALF_BITS) as i64) >> 52;
    let m = f64::from_bits(bits.wrapping_sub((e as u64) << 52));
    // ln m = 2·artanh(s), s = (m − 1)/(m + 1), |s| < 0.1716: the series ends where s² to the power is below 1e-14.
    let s = (m - 1.0) / (m + 1.0);
    let s2 = s * s;
    let mut series = 0.0;
    let mut k = 17i32;
    while k > 1 {
        series = (series + 1.0 / f64::from(k)) * s2;
        k -= 2;
    }
    (e as f64 * core::f64::consts::LN_2 + 2.0 * (s + s * series)) as f32
}

/// Sine and cosine of one binary32 angle in radians, computed in binary64 and rounded once.
///
/// Accurate to half an ulp (and a hair) up to 10⁶; defined, though meaningless, beyond 2²⁰·π/2. Software binary64
/// gives the same bits as hardware.
#[must_use]
pub fn sin_cos(x: f32) -> (f32, f32) {
    // π/2 in two parts: 33 significant bits, so that n times it is exact for n < 2²⁰, and the rest.
    const PIO2_HI: f64 = f64::from_bits(0x3ff9_21fb_5440_0000);
    const PIO2_LO: f64 = f64::from_bits(0x3dd0_b461_1a62_6331);
    const ROUND64: f64 = 6_755_399_441_055_744.0; // 1.5 · 2⁵²
    // Taylor on |r| ≤ π/4: the first terms left out are below 2e-14.
    const SIN: [f64; 6] =
        [-1.0 / 6.0, 1.0 / 120.0, -1.0 / 5_040.0, 1.0 / 362_880.0, -1.0 / 39_916_800.0, 1.0 / 6_227_020_800.0];
    const COS: [f64; 7] = [
        -0.5,
        1.0 / 24.0,
        -1.0 / 720.0,
        1.0 / 40_320.0,
        -1.0 / 3_628_800.0,
        1.0 / 479_001_600.0,
        -1.0 / 87_178_291_200.0,
    ];
    fn poly<const N: usize>(x: f64, c: &[f64; N]) -> f64 {
        let mut p = c[N - 1];
        let mut i = N - 1;
        while i > 0 {
            i -= 1;
            p = p * x + c[i];
        }
        p
    }
    let x = f64::from(x);
    let t = x * core::f64::consts::FRAC_2_PI + ROUND64;
    let n = t - ROUND64;
    let r = (x - n * PIO2_HI) - n * PIO2_LO;
    let r2 = r * r;
    let sin = (r + r * r2 * poly(r2, &SIN)) as f32;
    let cos = (1.0 + r2 * poly(r2, &COS)) as f32;
    match t.to_bits() & 3 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}
