//! WebAssembly: 128-bit registers. A module is compiled for them or not at all, so the build decides.

use core::arch::wasm32::*;

use super::{Bytes, Isa};
use crate::kernels::isa::scalar::f32_to_f16;

/// Proof of `simd128`.
#[derive(Clone, Copy, Debug)]
pub struct Simd128(());

/// How many products of activations and codes up to `max` add up within 16 bits.
#[inline(always)]
const fn word_run(max: i32) -> usize {
    (32767 / (127 * max)) as usize
}

/// Per lane the sum of `N` times four products, added up in 16 bits `run` at a time.
#[inline(always)]
fn dots<const N: usize>(run: usize, w: [v128; N], x: [v128; N]) -> v128 {
    let zero = i32x4_splat(0);
    let (mut low, mut high, mut low_words, mut high_words) = (zero, zero, zero, zero);
    let mut i = 0;
    while i < N {
        low_words = i16x8_add(low_words, i16x8_extmul_low_i8x16(w[i], x[i]));
        high_words = i16x8_add(high_words, i16x8_extmul_high_i8x16(w[i], x[i]));
        i += 1;
        if i.is_multiple_of(run) || i == N {
            low = i32x4_add(low, i32x4_extadd_pairwise_i16x8(low_words));
            high = i32x4_add(high, i32x4_extadd_pairwise_i16x8(high_words));
            (low_words, high_words) = (zero, zero);
        }
    }
    pairs(low, high)
}

/// The sums of neighbouring lanes, `a`'s first.
#[inline(always)]
fn pairs(a: v128, b: v128) -> v128 {
    i32x4_add(i32x4_shuffle::<0, 2, 4, 6>(a, b), i32x4_shuffle::<1, 3, 5, 7>(a, b))
}

// SAFETY: the only constructor is the unsafe `proof`.
unsafe impl Isa for Simd128 {
    const L: usize = 4;
    // Most machines underneath have 16.
    const REGISTERS: usize = 12;
    type F = v128;
    type I = v128;

    #[inline(always)]
    unsafe fn proof() -> Self {
        Self(())
    }
    #[inline(always)]
    fn splat(self, v: f32) -> v128 {
        f32x4_splat(v)
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> v128 {
        // SAFETY: as the caller vouches.
        unsafe { v128_load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: v128) {
        // SAFETY: as the caller vouches.
        unsafe { v128_store(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> v128 {
        // SAFETY: as the caller vouches.
        let h = unsafe { u32x4_load_extend_u16x4(p) };
        // Exponent and fraction in their places are the value times 2⁻¹¹², subnormal or not; the largest exponent stays so.
        let magnitude = v128_and(h, u32x4_splat(0x7fff));
        let value = f32x4_mul(u32x4_shl(magnitude, 13), f32x4_splat(f32::from_bits((127 + 112) << 23)));
        let special = v128_and(i32x4_gt(magnitude, i32x4_splat(0x7bff)), i32x4_splat(0xff << 23));
        let sign = u32x4_shl(v128_xor(h, magnitude), 16);
        v128_or(v128_or(value, special), sign)
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: v128) {
        let halves = [
            f32_to_f16(f32x4_extract_lane::<0>(v)),
            f32_to_f16(f32x4_extract_lane::<1>(v)),
            f32_to_f16(f32x4_extract_lane::<2>(v)),
            f32_to_f16(f32x4_extract_lane::<3>(v)),
        ];
        // SAFETY: as the caller vouches.
        unsafe { p.cast::<[u16; 4]>().write_unaligned(halves) }
    }
    #[inline(always)]
    fn add(self, a: v128, b: v128) -> v128 {
        f32x4_add(a, b)
    }
    #[inline(always)]
    fn sub(self, a: v128, b: v128) -> v128 {
        f32x4_sub(a, b)
    }
    #[inline(always)]
    fn mul(self, a: v128, b: v128) -> v128 {
        f32x4_mul(a, b)
    }
    #[inline(always)]
    fn div(self, a: v128, b: v128) -> v128 {
        f32x4_div(a, b)
    }
    #[inline(always)]
    fn sqrt(self, a: v128) -> v128 {
        f32x4_sqrt(a)
    }
    #[inline(always)]
    fn max(self, a: v128, b: v128) -> v128 {
        // `pmax(p, q)` is `p < q ? q : p`.
        f32x4_pmax(b, a)
    }
    #[inline(always)]
    fn min(self, a: v128, b: v128) -> v128 {
        f32x4_pmin(b, a)
    }
    #[inline(always)]
    fn lt(self, a: v128, b: v128) -> v128 {
        f32x4_lt(a, b)
    }
    #[inline(always)]
    fn select(self, mask: v128, a: v128, b: v128) -> v128 {
        v128_bitselect(a, b, mask)
    }
    #[inline(always)]
    fn round_i(self, a: v128) -> v128 {
        // The conversion saturates, and makes 0 of NaN.
        let fits = f32x4_lt(a, f32x4_splat(2_147_483_648.0));
        v128_bitselect(i32x4_trunc_sat_f32x4(f32x4_nearest(a)), i32x4_splat(i32::MIN), fits)
    }
    #[inline(always)]
    fn to_f(self, a: v128) -> v128 {
        f32x4_convert_i32x4(a)
    }
    #[inline(always)]
    fn bits(self, a: v128) -> v128 {
        a
    }
    #[inline(always)]
    fn from_bits(self, a: v128) -> v128 {
        a
    }

    #[inline(always)]
    fn splat_i(self, v: i32) -> v128 {
        i32x4_splat(v)
    }
    #[inline(always)]
    fn add_i(self, a: v128, b: v128) -> v128 {
        i32x4_add(a, b)
    }
    #[inline(always)]
    fn sub_i(self, a: v128, b: v128) -> v128 {
        i32x4_sub(a, b)
    }
    #[inline(always)]
    fn and_i(self, a: v128, b: v128) -> v128 {
        v128_and(a, b)
    }
    #[inline(always)]
    fn or_i(self, a: v128, b: v128) -> v128 {
        v128_or(a, b)
    }
    #[inline(always)]
    fn xor_i(self, a: v128, b: v128) -> v128 {
        v128_xor(a, b)
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: v128) -> v128 {
        i32x4_shl(a, N)
    }
    #[inline(always)]
    fn sar_i<const N: u32>(self, a: v128) -> v128 {
        i32x4_shr(a, N)
    }
    #[inline(always)]
    unsafe fn load_i(self, p: *const i32) -> v128 {
        // SAFETY: as the caller vouches.
        unsafe { v128_load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store_i(self, p: *mut i32, v: v128) {
        // SAFETY: as the caller vouches.
        unsafe { v128_store(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> v128 {
        // SAFETY: as the caller vouches.
        let bytes = unsafe { v128_load32_zero(p.cast()) };
        i32x4_extend_low_i16x8(i16x8_extend_low_i8x16(bytes))
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: v128) {
        let words = i16x8_narrow_i32x4(v, v);
        // SAFETY: as the caller vouches.
        unsafe { v128_store32_lane::<0>(i8x16_narrow_i16x8(words, words), p.cast()) }
    }
}

// SAFETY: as above.
unsafe impl Bytes for Simd128 {
    type B = v128;

    #[inline(always)]
    unsafe fn load_b(self, p: *const u8) -> v128 {
        // SAFETY: as the caller vouches.
        unsafe { v128_load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn splat8(self, p: *const i8) -> v128 {
        // SAFETY: as the caller vouches.
        unsafe { v128_load64_splat(p.cast()) }
    }
    #[inline(always)]
    unsafe fn splat4(self, p: *const i8) -> v128 {
        // SAFETY: as the caller vouches.
        unsafe { v128_load32_splat(p.cast()) }
    }
    #[inline(always)]
    unsafe fn table(self, p: *const u8) -> v128 {
        // SAFETY: as the caller vouches.
        unsafe { v128_load(p.cast()) }
    }
    #[inline(always)]
    fn lo(self, a: v128) -> v128 {
        v128_and(a, u8x16_splat(15))
    }
    #[inline(always)]
    fn hi(self, a: v128) -> v128 {
        u8x16_shr(a, 4)
    }
    #[inline(always)]
    fn lookup(self, table: v128, a: v128) -> v128 {
        u8x16_swizzle(table, a)
    }
    #[inline(always)]
    fn plane<const SHL: u32, const SHR: u32>(self, a: v128, mask: u8) -> v128 {
        v128_and(u16x8_shr(u16x8_shl(a, SHL), SHR), u8x16_splat(mask))
    }
    #[inline(always)]
    fn or_b(self, a: v128, b: v128) -> v128 {
        v128_or(a, b)
    }

    #[inline(always)]
    fn dot_u(self, acc: v128, w: v128, x: v128) -> v128 {
        self.dot_s(acc, w, x)
    }
    #[inline(always)]
    fn dot_s(self, acc: v128, w: v128, x: v128) -> v128 {
        i32x4_add(acc, dots(1, [w], [x]))
    }
    #[inline(always)]
    fn dots_u<const N: usize>(self, max: i32, w: [v128; N], x: [v128; N]) -> v128 {
        dots(word_run(max), w, x)
    }
    #[inline(always)]
    fn dots_s<const N: usize>(self, w: [v128; N], x: [v128; N]) -> v128 {
        dots(word_run(128), w, x)
    }
    #[inline(always)]
    fn pair_sum(self, a: v128, b: v128) -> v128 {
        pairs(a, b)
    }
    #[inline(always)]
    fn deal(self, a: v128, b: v128) -> (v128, v128) {
        (i32x4_shuffle::<0, 2, 4, 6>(a, b), i32x4_shuffle::<1, 3, 5, 7>(a, b))
    }
}
