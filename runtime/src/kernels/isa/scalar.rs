//! The portable level: plain Rust on small arrays. It is the specification of every [`Isa`] operation.

use core::marker::PhantomData;

use super::Isa;

/// Proof of `D`'s instructions: registers of `L` lanes in plain Rust.
#[derive(Clone, Copy, Debug)]
pub struct Lanes<const L: usize, D>(PhantomData<D>);

/// Proof of nothing: runs everywhere. Compilers for large processors make vectors of eight lanes; small ones, without
/// vectors, work on one float at a time: the least code, as there is no row's end to treat apart.
pub type Scalar = Lanes<{ if SMALL { 1 } else { 8 } }, Plain>;

/// Whether the target is one of the small processors.
const SMALL: bool = cfg!(all(target_pointer_width = "32", not(target_family = "wasm")));

/// No instructions but those that the compiler chooses.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

#[inline(always)]
fn map<const L: usize, T: Copy, U>(a: [T; L], f: impl Fn(T) -> U) -> [U; L] {
    core::array::from_fn(
        #[inline(always)]
        |i| f(a[i]),
    )
}

#[inline(always)]
fn zip<const L: usize, T: Copy, U: Copy, V>(a: [T; L], b: [U; L], f: impl Fn(T, U) -> V) -> [V; L] {
    core::array::from_fn(
        #[inline(always)]
        |i| f(a[i], b[i]),
    )
}

/// Widens binary16 (exact).
#[cfg(not(all(target_arch = "arm", target_os = "none", target_abi = "eabihf")))]
#[inline(always)]
pub fn f16_to_f32(h: u16) -> f32 {
    let magnitude = u32::from(h & 0x7fff) << 13;
    // A binary32 with the same fields has the exponent bias 15 instead of 127: multiply by 2^112. That is exact for
    // normal and subnormal inputs alike; infinities and NaN keep their all-ones exponent by hand.
    let value = if magnitude >= 0x0f80_0000 {
        f32::from_bits(magnitude | 0x7f80_0000)
    } else {
        f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)
    };
    f32::from_bits(value.to_bits() | u32::from(h & 0x8000) << 16)
}

/// Widens binary16 (exact), as every floating-point unit of a Cortex-M does.
#[cfg(all(target_arch = "arm", target_os = "none", target_abi = "eabihf"))]
#[inline(always)]
pub fn f16_to_f32(h: u16) -> f32 {
    let mut bits = u32::from(h);
    // SAFETY: the instruction comes with the unit that this calling convention needs; registers only. (As an operand the
    // unit's register is not stable.)
    unsafe {
        core::arch::asm!("vmov s0, {v}", "vcvtb.f32.f16 s0, s0", "vmov {v}, s0", v = inout(reg) bits, out("s0") _,
            options(pure, nomem, nostack, preserves_flags));
    }
    f32::from_bits(bits)
}

/// Narrows to binary16, to nearest even.
#[cfg_attr(not(target_os = "none"), inline(always))]
#[cfg_attr(target_os = "none", inline(never))]
pub fn f32_to_f16(v: f32) -> u16 {
    let sign = (v.to_bits() >> 16 & 0x8000) as u16;
    let a = v.to_bits() & 0x7fff_ffff;
    let magnitude = if a > 0x7f80_0000 {
        0x7e00 | (a >> 13 & 0x3ff) as u16
    } else if a >= 0x4780_0000 {
        0x7c00
    } else if a < 0x3880_0000 {
        // Below 2^-14: adding 0.5 leaves the value, in units of 2^-24 and rounded by the adder, in the low bits.
        ((f32::from_bits(a) + 0.5).to_bits() - 0x3f00_0000) as u16
    } else {
        // Rounding may carry into the exponent, up to infinity: that is right.
        ((a + 0xfff + (a >> 13 & 1) - 0x3800_0000) >> 13) as u16
    };
    sign | magnitude
}

/// To the nearest integer, ties to even; `i32::MIN` where it does not fit.
#[inline(always)]
pub fn round_to_i32(v: f32) -> i32 {
    const ULP_ONE: f32 = 8_388_608.0; // 2^23: from here on every float is an integer
    let a = f32::from_bits(v.to_bits() & 0x7fff_ffff);
    if a < ULP_ONE {
        let r = (a + ULP_ONE) - ULP_ONE;
        if v < 0.0 { -r as i32 } else { r as i32 }
    } else if (-2_147_483_648.0..2_147_483_648.0).contains(&v) {
        v as i32
    } else {
        i32::MIN
    }
}

/// √v, correctly rounded, in integers (core has no square root).
#[inline]
pub fn sqrt(v: f32) -> f32 {
    if v == 0.0 || v.is_nan() || v == f32::INFINITY {
        return v;
    }
    if v < 0.0 {
        return f32::NAN;
    }
    let bits = v.to_bits();
    let (mut e, mut m) = ((bits >> 23) as i32, bits & 0x007f_ffff);
    if e == 0 {
        let shift = m.leading_zeros() as i32 - 8;
        m <<= shift;
        e = 1 - shift;
    } else {
        m |= 0x0080_0000;
    }
    // v = m · 2^(e − 150), 2^23 <= m < 2^24. Make the exponent even and the root 25 bits: one more than the mantissa.
    let e = e - 150;
    let radicand = if e & 1 == 0 { u64::from(m) << 26 } else { u64::from(m) << 25 };
    let e = (if e & 1 == 0 { e - 26 } else { e - 25 }) / 2;
    let mut root = 0u64;
    let mut bit = 1u64 << 24;
    while bit != 0 {
        let with = root | bit;
        if with * with <= radicand {
            root = with;
        }
        bit >>= 1;
    }
    // Half an ulp is the last bit; a root is never exactly half way, since its square would need 50 significant bits.
    let rounded = (root + 1) >> 1;
    let e = e + 1;
    // 2^23 <= rounded <= 2^24, and roots of finite floats are always normal.
    f32::from_bits(((e + 150) as u32) << 23) * (rounded as f32 / 8_388_608.0)
}

// SAFETY: the only constructor is the unsafe `proof`.
unsafe impl<const L: usize, D: Copy + 'static> Isa for Lanes<L, D> {
    const L: usize = L;
    // Of the 32 single floats that Cortex-M has; in fours, so that tiles stay small where lanes are many.
    const REGISTERS: usize = if L == 1 { 8 } else { 4 };
    type F = [f32; L];
    type I = [i32; L];

    #[inline(always)]
    unsafe fn proof() -> Self {
        Self(PhantomData)
    }
    #[inline(always)]
    fn splat(self, v: f32) -> Self::F {
        [v; L]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        // SAFETY: the caller vouches for L floats.
        unsafe { p.cast::<[f32; L]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::F) {
        // SAFETY: the caller vouches for L floats.
        unsafe { p.cast::<[f32; L]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::F {
        // SAFETY: the caller vouches for L halves.
        map(unsafe { p.cast::<[u16; L]>().read_unaligned() }, f16_to_f32)
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: Self::F) {
        // SAFETY: the caller vouches for L halves.
        unsafe { p.cast::<[u16; L]>().write_unaligned(map(v, f32_to_f16)) }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        map(a, sqrt)
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::I {
        zip(a, b, |a, b| -i32::from(a < b))
    }
    #[inline(always)]
    fn select(self, mask: Self::I, a: Self::F, b: Self::F) -> Self::F {
        core::array::from_fn(
            #[inline(always)]
            |i| if mask[i] != 0 { a[i] } else { b[i] },
        )
    }
    #[inline(always)]
    fn round_i(self, a: Self::F) -> Self::I {
        map(a, round_to_i32)
    }
    #[inline(always)]
    fn to_f(self, a: Self::I) -> Self::F {
        map(a, |a| a as f32)
    }
    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        map(a, |a| a.to_bits() as i32)
    }
    #[inline(always)]
    fn from_bits(self, a: Self::I) -> Self::F {
        map(a, |a| f32::from_bits(a as u32))
    }

    #[inline(always)]
    fn splat_i(self, v: i32) -> Self::I {
        [v; L]
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn or_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn xor_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a ^ b)
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: Self::I) -> Self::I {
        map(a, |a| a << N)
    }
    #[inline(always)]
    fn sar_i<const N: u32>(self, a: Self::I) -> Self::I {
        map(a, |a| a >> N)
    }
    #[inline(always)]
    unsafe fn load_i(self, p: *const i32) -> Self::I {
        // SAFETY: the caller vouches for L integers.
        unsafe { p.cast::<[i32; L]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_i(self, p: *mut i32, v: Self::I) {
        // SAFETY: the caller vouches for L integers.
        unsafe { p.cast::<[i32; L]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> Self::I {
        // SAFETY: the caller vouches for L bytes.
        map(unsafe { p.cast::<[i8; L]>().read_unaligned() }, i32::from)
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: Self::I) {
        // SAFETY: the caller vouches for L bytes.
        unsafe { p.cast::<[i8; L]>().write_unaligned(map(v, |v| v.clamp(-128, 127) as i8)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_agree_with_the_half_crate() {
        for h in 0..=u16::MAX {
            let want = half::f16::from_bits(h).to_f32();
            let got = f16_to_f32(h);
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{h:#x}");
            // Every half and the floats around it and around its rounding borders.
            for near in -2i32..=2 {
                for base in [want, f32::from_bits(want.to_bits().wrapping_add(0x1000))] {
                    let v = f32::from_bits(base.to_bits().wrapping_add_signed(near));
                    let (got, want) = (f32_to_f16(v), half::f16::from_f32(v));
                    assert!(got == want.to_bits() || v.is_nan() && want.is_nan() && got & 0x7fff > 0x7c00, "{v:e}");
                }
            }
        }
    }

    #[test]
    fn roots_are_correctly_rounded() {
        let mut bits = 1u32;
        let mut n = 0;
        while bits < 0x7f80_0000 {
            let v = f32::from_bits(bits);
            // f64's root has over twice the digits, so rounding it again is innocuous.
            assert_eq!(sqrt(v).to_bits(), (f64::from(v).sqrt() as f32).to_bits(), "{v:e}");
            bits += 1 + bits % 10_007;
            n += 1;
        }
        assert!(n > 100_000);
        assert!(sqrt(-1.0).is_nan() && sqrt(f32::NAN).is_nan());
        assert_eq!(sqrt(-0.0).to_bits(), (-0.0f32).to_bits());
        assert_eq!(sqrt(f32::INFINITY), f32::INFINITY);
        assert_eq!(sqrt(f32::MAX), f32::MAX.sqrt());
    }

    #[test]
    fn rounding_is_to_even_and_marks_what_does_not_fit() {
        for (v, want) in [
            (0.5, 0),
            (1.5, 2),
            (-2.5, -2),
            (-0.49, 0),
            (8_388_607.5, 8_388_608),
            (16_777_216.0, 16_777_216),
            (2_147_483_520.0, 2_147_483_520),
            (-2_147_483_648.0, i32::MIN),
            (2_147_483_648.0, i32::MIN),
            (f32::NAN, i32::MIN),
            (f32::NEG_INFINITY, i32::MIN),
        ] {
            assert_eq!(round_to_i32(v), want, "{v}");
        }
    }
}
