//! 256-bit registers. AVX2 and AVX-VNNI share everything but the dot product, which is [`Ymm`]'s parameter.

use core::arch::x86_64::*;
use core::marker::PhantomData;

use super::{EVEN, NEAREST, ODD, count, max_of_four, sum_of_four, sum_of_four_i, word_run};
use crate::kernels::isa::{Bytes, Isa};

/// The dot products of a level with 256-bit registers.
///
/// # Safety
/// A type may only be used where the CPU has its instructions: [`Ymm`] of it is the proof.
pub unsafe trait Dot: Copy + 'static {
    /// See [`Bytes::SIGNED_OFFSET`].
    const SIGNED_OFFSET: i32;
    /// See [`Bytes::PAIRS_UP_TO`].
    const PAIRS_UP_TO: i32;
    /// See [`Bytes::dot_u`].
    fn dot_u(acc: __m256i, w: __m256i, x: __m256i) -> __m256i;
    /// See [`Bytes::dots_from`].
    fn dots_from<const N: usize>(start: __m256i, max: i32, w: [__m256i; N], x: [__m256i; N]) -> __m256i;
    /// See [`Bytes::prepare_s`].
    fn prepare_s(w: __m256i) -> __m256i;
    /// See [`Bytes::dots_s`].
    fn dots_s<const N: usize>(w: [__m256i; N], x: [__m256i; N]) -> __m256i;
}

/// Dot products of plain AVX2: pairs in 16 bits, then pairs of pairs.
#[derive(Clone, Copy, Debug)]
pub struct Maddubs;

// SAFETY: AVX2 only.
unsafe impl Dot for Maddubs {
    const SIGNED_OFFSET: i32 = 0;
    const PAIRS_UP_TO: i32 = 15;
    #[inline(always)]
    fn dot_u(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        op!(_mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1))))
    }
    #[inline(always)]
    fn dots_from<const N: usize>(start: __m256i, max: i32, w: [__m256i; N], x: [__m256i; N]) -> __m256i {
        op!({
            let run = word_run(max);
            let (mut sum, mut words) = (start, _mm256_setzero_si256());
            let mut i = 0;
            while i < N {
                words = _mm256_add_epi16(words, _mm256_maddubs_epi16(w[i], x[i]));
                i += 1;
                if i.is_multiple_of(run) || i == N {
                    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
                    words = _mm256_setzero_si256();
                }
            }
            sum
        })
    }
    #[inline(always)]
    fn prepare_s(w: __m256i) -> __m256i {
        w
    }
    #[inline(always)]
    fn dots_s<const N: usize>(w: [__m256i; N], x: [__m256i; N]) -> __m256i {
        let mut sum = op!(_mm256_setzero_si256());
        let mut i = 0;
        while i < N {
            // |w| as unsigned reaches 128, x takes w's sign: pairs stay within 2·128·127 = 32512.
            sum = Self::dot_u(sum, op!(_mm256_abs_epi8(w[i])), op!(_mm256_sign_epi8(x[i], w[i])));
            i += 1;
        }
        sum
    }
}

/// A dot product by an instruction that adds four products into 32 bits, unsigned by signed.
macro_rules! dpbusd {
    ($name:ident, $instruction:ident, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        // SAFETY: AVX2 and this one instruction.
        unsafe impl Dot for $name {
            const SIGNED_OFFSET: i32 = 128;
            const PAIRS_UP_TO: i32 = 0;
            #[inline(always)]
            fn dot_u(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
                op!($instruction(acc, w, x))
            }
            #[inline(always)]
            fn dots_from<const N: usize>(start: __m256i, _: i32, w: [__m256i; N], x: [__m256i; N]) -> __m256i {
                let mut sum = start;
                let mut i = 0;
                while i < N {
                    sum = Self::dot_u(sum, w[i], x[i]);
                    i += 1;
                }
                sum
            }
            #[inline(always)]
            fn prepare_s(w: __m256i) -> __m256i {
                op!(_mm256_xor_si256(w, _mm256_set1_epi8(-128)))
            }
            #[inline(always)]
            fn dots_s<const N: usize>(w: [__m256i; N], x: [__m256i; N]) -> __m256i {
                Self::dots_from(op!(_mm256_setzero_si256()), 255, w, x)
            }
        }
    };
}
dpbusd!(VnniVex, _mm256_dpbusd_avx_epi32, "The dot product of AVX-VNNI.");
#[cfg(test)]
dpbusd!(
    VnniEvex,
    _mm256_dpbusd_epi32,
    "The same in AVX-512-VL's encoding, so that CPUs without AVX-VNNI test that path."
);

/// Proof of AVX2, F16C, FMA and `D`'s instructions.
#[derive(Clone, Copy, Debug)]
pub struct Ymm<D>(PhantomData<D>);

/// Proof of AVX2, F16C and FMA.
pub type Avx2 = Ymm<Maddubs>;
/// Proof of AVX2, F16C, FMA and AVX-VNNI.
pub type AvxVnni = Ymm<VnniVex>;
/// AVX-VNNI's twin in AVX-512-VL's encoding.
#[cfg(test)]
pub type Avx512Vl = Ymm<VnniEvex>;

// SAFETY: the only constructor is the unsafe `proof`.
unsafe impl<D: Dot> Isa for Ymm<D> {
    const L: usize = 8;
    type F = __m256;
    type I = __m256i;

    #[inline(always)]
    unsafe fn proof() -> Self {
        Self(PhantomData)
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        op!(_mm_prefetch::<_MM_HINT_T0>(p.cast()))
    }
    #[inline(always)]
    fn prefetch_far(self, p: *const u8) {
        op!(_mm_prefetch::<_MM_HINT_T1>(p.cast()))
    }
    /// Measured on a Zen 4 whose file lies in huge pages: 4 to 8 % faster than half of it, which AVX-512 prefers there.
    const AHEAD: usize = 6144;
    #[inline(always)]
    fn splat(self, v: f32) -> Self::F {
        op!(_mm256_set1_ps(v))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        op!(_mm256_loadu_ps(p))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::F) {
        op!(_mm256_storeu_ps(p, v))
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::F {
        op!(_mm256_cvtph_ps(_mm_loadu_si128(p.cast())))
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: Self::F) {
        op!(_mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<NEAREST>(v)))
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        op!(_mm256_sqrt_ps(a))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::I {
        op!(_mm256_castps_si256(_mm256_cmp_ps::<_CMP_LT_OQ>(a, b)))
    }
    #[inline(always)]
    fn select(self, mask: Self::I, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm256_blendv_ps(b, a, _mm256_castsi256_ps(mask)))
    }
    #[inline(always)]
    fn round_i(self, a: Self::F) -> Self::I {
        op!(_mm256_cvtps_epi32(a))
    }
    #[inline(always)]
    fn to_f(self, a: Self::I) -> Self::F {
        op!(_mm256_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        op!(_mm256_castps_si256(a))
    }
    #[inline(always)]
    fn from_bits(self, a: Self::I) -> Self::F {
        op!(_mm256_castsi256_ps(a))
    }

    #[inline(always)]
    fn sum_of_lanes(self, a: Self::F) -> f32 {
        sum_of_four(op!(_mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a))))
    }
    #[inline(always)]
    fn max_of_lanes(self, a: Self::F) -> f32 {
        max_of_four(op!(_mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a))))
    }
    #[inline(always)]
    fn sum_of_lanes_i(self, a: Self::I) -> i32 {
        sum_of_four_i(op!(_mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a))))
    }

    #[inline(always)]
    fn splat_i(self, v: i32) -> Self::I {
        op!(_mm256_set1_epi32(v))
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm256_add_epi32(a, b))
    }
    #[inline(always)]
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm256_sub_epi32(a, b))
    }
    #[inline(always)]
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm256_and_si256(a, b))
    }
    #[inline(always)]
    fn or_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm256_or_si256(a, b))
    }
    #[inline(always)]
    fn xor_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm256_xor_si256(a, b))
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: Self::I) -> Self::I {
        op!(_mm256_sll_epi32(a, count(N)))
    }
    #[inline(always)]
    fn sar_i<const N: u32>(self, a: Self::I) -> Self::I {
        op!(_mm256_sra_epi32(a, count(N)))
    }
    #[inline(always)]
    unsafe fn load_i(self, p: *const i32) -> Self::I {
        op!(_mm256_loadu_si256(p.cast()))
    }
    #[inline(always)]
    unsafe fn store_i(self, p: *mut i32, v: Self::I) {
        op!(_mm256_storeu_si256(p.cast(), v))
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> Self::I {
        op!(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())))
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: Self::I) {
        op!({
            let words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            _mm_storel_epi64(p.cast(), _mm_packs_epi16(words, words))
        })
    }
}

// SAFETY: as above.
unsafe impl<D: Dot> Bytes for Ymm<D> {
    type B = __m256i;
    const SIGNED_OFFSET: i32 = D::SIGNED_OFFSET;
    const PAIRS_UP_TO: i32 = D::PAIRS_UP_TO;
    const FUSES: bool = true;

    #[inline(always)]
    fn times(self, sum: Self::I, m: Self::F, least: Self::F) -> Self::F {
        op!(_mm256_fmadd_ps(_mm256_castsi256_ps(sum), m, least))
    }
    #[inline(always)]
    unsafe fn load_b(self, p: *const u8) -> Self::B {
        op!(_mm256_loadu_si256(p.cast()))
    }
    #[inline(always)]
    unsafe fn splat8(self, p: *const i8) -> Self::B {
        op!(_mm256_set1_epi64x(p.cast::<i64>().read_unaligned()))
    }
    #[inline(always)]
    unsafe fn table(self, p: *const u8) -> Self::B {
        op!(_mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast())))
    }
    #[inline(always)]
    fn lo(self, a: Self::B) -> Self::B {
        op!(_mm256_and_si256(a, _mm256_set1_epi8(15)))
    }
    #[inline(always)]
    fn hi(self, a: Self::B) -> Self::B {
        op!(_mm256_and_si256(_mm256_srli_epi16::<4>(a), _mm256_set1_epi8(15)))
    }
    #[inline(always)]
    fn lookup(self, table: Self::B, a: Self::B) -> Self::B {
        op!(_mm256_shuffle_epi8(table, a))
    }
    #[inline(always)]
    fn plane<const SHL: u32, const SHR: u32>(self, a: Self::B, mask: u8) -> Self::B {
        op!(_mm256_and_si256(
            _mm256_srl_epi16(_mm256_sll_epi16(a, count(SHL)), count(SHR)),
            _mm256_set1_epi8(mask as i8)
        ))
    }
    #[inline(always)]
    fn or_b(self, a: Self::B, b: Self::B) -> Self::B {
        op!(_mm256_or_si256(a, b))
    }

    #[inline(always)]
    fn dot_u(self, acc: Self::I, w: Self::B, x: Self::B) -> Self::I {
        D::dot_u(acc, w, x)
    }
    #[inline(always)]
    fn dot_s(self, acc: Self::I, w: Self::B, x: Self::B) -> Self::I {
        D::dot_u(acc, op!(_mm256_abs_epi8(w)), op!(_mm256_sign_epi8(x, w)))
    }
    #[inline(always)]
    fn dots_u<const N: usize>(self, max: i32, w: [Self::B; N], x: [Self::B; N]) -> Self::I {
        D::dots_from(self.splat_i(0), max, w, x)
    }
    #[inline(always)]
    fn dots_from<const N: usize>(self, start: Self::I, max: i32, w: [Self::B; N], x: [Self::B; N]) -> Self::I {
        D::dots_from(start, max, w, x)
    }
    #[inline(always)]
    fn prepare_s(self, w: Self::B) -> Self::B {
        D::prepare_s(w)
    }
    #[inline(always)]
    fn dots_s<const N: usize>(self, w: [Self::B; N], x: [Self::B; N]) -> Self::I {
        D::dots_s(w, x)
    }
    #[inline(always)]
    fn deal(self, a: Self::B, b: Self::B) -> (Self::B, Self::B) {
        op!({
            let (a, b) = (_mm256_castsi256_ps(a), _mm256_castsi256_ps(b));
            let (even, odd) = (_mm256_shuffle_ps::<EVEN>(a, b), _mm256_shuffle_ps::<ODD>(a, b));
            (_mm256_castps_si256(even), _mm256_castps_si256(odd))
        })
    }
    #[inline(always)]
    fn pairs_from(self, start: Self::I, max: i32, a: [Self::B; 4], b: [Self::B; 4], x: [Self::B; 4]) -> Self::I {
        if word_run(max) < 8 {
            let (even, odd) = self.deal(self.dots_u(max, a, x), self.dots_u(max, b, x));
            return self.add_i(start, self.add_i(even, odd));
        }
        // All of a row's products fit 16 bits together.
        op!({
            let (mut first, mut second) = (_mm256_maddubs_epi16(a[0], x[0]), _mm256_maddubs_epi16(b[0], x[0]));
            let mut i = 1;
            while i < 4 {
                first = _mm256_add_epi16(first, _mm256_maddubs_epi16(a[i], x[i]));
                second = _mm256_add_epi16(second, _mm256_maddubs_epi16(b[i], x[i]));
                i += 1;
            }
            let (even, odd) = self.deal(first, second);
            let words = _mm256_add_epi16(even, odd);
            _mm256_add_epi32(start, _mm256_madd_epi16(words, _mm256_set1_epi16(1)))
        })
    }
    #[inline(always)]
    unsafe fn splat4(self, p: *const i8) -> Self::B {
        op!(_mm256_set1_epi32(p.cast::<i32>().read_unaligned()))
    }
    #[inline(always)]
    fn pair_sum(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm256_hadd_epi32(a, b))
    }
}
