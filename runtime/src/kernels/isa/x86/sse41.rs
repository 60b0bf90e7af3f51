//! 128-bit registers; binary16 conversions by integer instructions.

use core::arch::x86_64::*;

use super::{EVEN, ODD, count, max_of_four, sum_of_four, sum_of_four_i, word_run};
use crate::kernels::isa::scalar::f32_to_f16;
use crate::kernels::isa::{Bytes, Isa};

/// Proof of SSE4.1 (and SSSE3).
#[derive(Clone, Copy, Debug)]
pub struct Sse41(());

// SAFETY: the only constructor is the unsafe `proof`.
unsafe impl Isa for Sse41 {
    const L: usize = 4;
    // Of 16: operations overwrite an operand, and conversions from binary16 want some.
    const REGISTERS: usize = 12;
    type F = __m128;
    type I = __m128i;

    #[inline(always)]
    unsafe fn proof() -> Self {
        Self(())
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        op!(_mm_prefetch::<_MM_HINT_T0>(p.cast()))
    }
    #[inline(always)]
    fn splat(self, v: f32) -> Self::F {
        op!(_mm_set1_ps(v))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        op!(_mm_loadu_ps(p))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::F) {
        op!(_mm_storeu_ps(p, v))
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::F {
        // Exponent and fraction in their places are the value times 2⁻¹¹², subnormal or not; the largest exponent stays so.
        op!({
            let h = _mm_cvtepu16_epi32(_mm_loadu_si64(p.cast()));
            let magnitude = _mm_and_si128(h, _mm_set1_epi32(0x7fff));
            let scaled = _mm_castsi128_ps(_mm_slli_epi32::<13>(magnitude));
            let value = _mm_castps_si128(_mm_mul_ps(scaled, _mm_set1_ps(f32::from_bits((127 + 112) << 23))));
            let special = _mm_and_si128(_mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x7bff)), _mm_set1_epi32(0xff << 23));
            let sign = _mm_slli_epi32::<16>(_mm_xor_si128(h, magnitude));
            _mm_castsi128_ps(_mm_or_si128(_mm_or_si128(value, special), sign))
        })
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: Self::F) {
        let mut lanes = [0f32; 4];
        op!(_mm_storeu_ps(lanes.as_mut_ptr(), v));
        let [a, b, c, d] = lanes;
        op!(p.cast::<[u16; 4]>().write_unaligned([f32_to_f16(a), f32_to_f16(b), f32_to_f16(c), f32_to_f16(d)]))
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm_div_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        op!(_mm_sqrt_ps(a))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm_min_ps(a, b))
    }
    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::I {
        op!(_mm_castps_si128(_mm_cmplt_ps(a, b)))
    }
    #[inline(always)]
    fn select(self, mask: Self::I, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm_blendv_ps(b, a, _mm_castsi128_ps(mask)))
    }
    #[inline(always)]
    fn round_i(self, a: Self::F) -> Self::I {
        op!(_mm_cvtps_epi32(a))
    }
    #[inline(always)]
    fn to_f(self, a: Self::I) -> Self::F {
        op!(_mm_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        op!(_mm_castps_si128(a))
    }
    #[inline(always)]
    fn from_bits(self, a: Self::I) -> Self::F {
        op!(_mm_castsi128_ps(a))
    }

    #[inline(always)]
    fn sum_of_lanes(self, a: Self::F) -> f32 {
        sum_of_four(a)
    }
    #[inline(always)]
    fn max_of_lanes(self, a: Self::F) -> f32 {
        max_of_four(a)
    }
    #[inline(always)]
    fn sum_of_lanes_i(self, a: Self::I) -> i32 {
        sum_of_four_i(a)
    }

    #[inline(always)]
    fn splat_i(self, v: i32) -> Self::I {
        op!(_mm_set1_epi32(v))
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm_add_epi32(a, b))
    }
    #[inline(always)]
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm_sub_epi32(a, b))
    }
    #[inline(always)]
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm_and_si128(a, b))
    }
    #[inline(always)]
    fn or_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm_or_si128(a, b))
    }
    #[inline(always)]
    fn xor_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm_xor_si128(a, b))
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: Self::I) -> Self::I {
        op!(_mm_sll_epi32(a, count(N)))
    }
    #[inline(always)]
    fn sar_i<const N: u32>(self, a: Self::I) -> Self::I {
        op!(_mm_sra_epi32(a, count(N)))
    }
    #[inline(always)]
    unsafe fn load_i(self, p: *const i32) -> Self::I {
        op!(_mm_loadu_si128(p.cast()))
    }
    #[inline(always)]
    unsafe fn store_i(self, p: *mut i32, v: Self::I) {
        op!(_mm_storeu_si128(p.cast(), v))
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> Self::I {
        op!(_mm_cvtepi8_epi32(_mm_loadu_si32(p.cast())))
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: Self::I) {
        op!({
            let words = _mm_packs_epi32(v, v);
            _mm_storeu_si32(p.cast(), _mm_packs_epi16(words, words))
        })
    }
}

// SAFETY: as above.
unsafe impl Bytes for Sse41 {
    type B = __m128i;

    #[inline(always)]
    unsafe fn load_b(self, p: *const u8) -> Self::B {
        op!(_mm_loadu_si128(p.cast()))
    }
    #[inline(always)]
    unsafe fn splat8(self, p: *const i8) -> Self::B {
        op!(_mm_set1_epi64x(p.cast::<i64>().read_unaligned()))
    }
    #[inline(always)]
    unsafe fn table(self, p: *const u8) -> Self::B {
        op!(_mm_loadu_si128(p.cast()))
    }
    #[inline(always)]
    fn lo(self, a: Self::B) -> Self::B {
        op!(_mm_and_si128(a, _mm_set1_epi8(15)))
    }
    #[inline(always)]
    fn hi(self, a: Self::B) -> Self::B {
        op!(_mm_and_si128(_mm_srli_epi16::<4>(a), _mm_set1_epi8(15)))
    }
    #[inline(always)]
    fn lookup(self, table: Self::B, a: Self::B) -> Self::B {
        op!(_mm_shuffle_epi8(table, a))
    }
    #[inline(always)]
    fn plane<const SHL: u32, const SHR: u32>(self, a: Self::B, mask: u8) -> Self::B {
        op!(_mm_and_si128(_mm_srl_epi16(_mm_sll_epi16(a, count(SHL)), count(SHR)), _mm_set1_epi8(mask as i8)))
    }
    #[inline(always)]
    fn or_b(self, a: Self::B, b: Self::B) -> Self::B {
        op!(_mm_or_si128(a, b))
    }

    #[inline(always)]
    fn dot_u(self, acc: Self::I, w: Self::B, x: Self::B) -> Self::I {
        op!(_mm_add_epi32(acc, _mm_madd_epi16(_mm_maddubs_epi16(w, x), _mm_set1_epi16(1))))
    }
    #[inline(always)]
    fn dot_s(self, acc: Self::I, w: Self::B, x: Self::B) -> Self::I {
        // |w| as unsigned reaches 128, x takes w's sign: pairs stay within 2·128·127 = 32512.
        self.dot_u(acc, op!(_mm_abs_epi8(w)), op!(_mm_sign_epi8(x, w)))
    }
    #[inline(always)]
    fn dots_u<const N: usize>(self, max: i32, w: [Self::B; N], x: [Self::B; N]) -> Self::I {
        op!({
            let run = word_run(max);
            let (mut sum, mut words) = (_mm_setzero_si128(), _mm_setzero_si128());
            let mut i = 0;
            while i < N {
                words = _mm_add_epi16(words, _mm_maddubs_epi16(w[i], x[i]));
                i += 1;
                if i.is_multiple_of(run) || i == N {
                    sum = _mm_add_epi32(sum, _mm_madd_epi16(words, _mm_set1_epi16(1)));
                    words = _mm_setzero_si128();
                }
            }
            sum
        })
    }
    #[inline(always)]
    fn pair_sum(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm_hadd_epi32(a, b))
    }
    #[inline(always)]
    fn deal(self, a: Self::B, b: Self::B) -> (Self::B, Self::B) {
        op!({
            let (a, b) = (_mm_castsi128_ps(a), _mm_castsi128_ps(b));
            (_mm_castps_si128(_mm_shuffle_ps::<EVEN>(a, b)), _mm_castps_si128(_mm_shuffle_ps::<ODD>(a, b)))
        })
    }
    // A broadcast of four bytes is two instructions, one of eight is one.
    const PAIRS_UP_TO: i32 = 255;
    #[inline(always)]
    fn pairs_from(self, start: Self::I, max: i32, a: [Self::B; 4], b: [Self::B; 4], x: [Self::B; 4]) -> Self::I {
        if word_run(max) < 8 {
            let (even, odd) = self.deal(self.dots_u(max, a, x), self.dots_u(max, b, x));
            return self.add_i(start, self.add_i(even, odd));
        }
        // All of a row's products fit 16 bits together.
        op!({
            let (mut first, mut second) = (_mm_maddubs_epi16(a[0], x[0]), _mm_maddubs_epi16(b[0], x[0]));
            let mut i = 1;
            while i < 4 {
                first = _mm_add_epi16(first, _mm_maddubs_epi16(a[i], x[i]));
                second = _mm_add_epi16(second, _mm_maddubs_epi16(b[i], x[i]));
                i += 1;
            }
            let (even, odd) = self.deal(first, second);
            _mm_add_epi32(start, _mm_madd_epi16(_mm_add_epi16(even, odd), _mm_set1_epi16(1)))
        })
    }
    #[inline(always)]
    fn pairs_s_from(self, start: Self::I, a: [Self::B; 4], b: [Self::B; 4], x: [Self::B; 4]) -> Self::I {
        let (even, odd) = self.deal(self.dots_s(a, x), self.dots_s(b, x));
        self.add_i(start, self.add_i(even, odd))
    }
    #[inline(always)]
    unsafe fn splat4(self, p: *const i8) -> Self::B {
        op!(_mm_set1_epi32(p.cast::<i32>().read_unaligned()))
    }
}
