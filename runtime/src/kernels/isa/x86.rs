//! x86-64: SSE4.1, AVX2, AVX-VNNI and AVX-512-VNNI registers.
//!
//! AVX2 and AVX-VNNI share everything but the dot product, which is [`Ymm`]'s parameter.

use core::arch::x86_64::*;
use core::marker::PhantomData;

use super::Isa;
use super::scalar::{f16_to_f32, f32_to_f16};

/// An expression of this level's intrinsics.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: `self` proves that the CPU has the instructions; where there is a pointer, the caller of the unsafe
        // method vouches for it.
        unsafe { $e }
    };
}

/// Rounding operand of the conversions to binary16.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;

/// A shift count; constant after inlining.
#[inline(always)]
fn count(n: u32) -> __m128i {
    op!(_mm_cvtsi32_si128(n as i32))
}

/// Proof of SSE4.1 (and SSSE3).
#[derive(Clone, Copy, Debug)]
pub struct Sse41(());

// SAFETY: the only constructor is the unsafe `proof`.
unsafe impl Isa for Sse41 {
    const L: usize = 4;
    type F = __m128;
    type I = __m128i;
    type B = __m128i;

    #[inline(always)]
    unsafe fn proof() -> Self {
        Self(())
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
        let h = op!(p.cast::<[u16; 4]>().read_unaligned());
        let lanes = h.map(f16_to_f32);
        op!(_mm_loadu_ps(lanes.as_ptr()))
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: Self::F) {
        let mut lanes = [0f32; 4];
        op!(_mm_storeu_ps(lanes.as_mut_ptr(), v));
        op!(p.cast::<[u16; 4]>().write_unaligned(lanes.map(f32_to_f16)))
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
    fn dot_u4(self, max: i32, w: [Self::B; 4], x: [Self::B; 4]) -> Self::I {
        op!({
            let [a, b, c, d] = [
                _mm_maddubs_epi16(w[0], x[0]),
                _mm_maddubs_epi16(w[1], x[1]),
                _mm_maddubs_epi16(w[2], x[2]),
                _mm_maddubs_epi16(w[3], x[3]),
            ];
            let one = _mm_set1_epi16(1);
            if max <= WORD_SUM_4 {
                _mm_madd_epi16(_mm_add_epi16(_mm_add_epi16(a, b), _mm_add_epi16(c, d)), one)
            } else if max <= WORD_SUM_2 {
                let ab = _mm_madd_epi16(_mm_add_epi16(a, b), one);
                _mm_add_epi32(ab, _mm_madd_epi16(_mm_add_epi16(c, d), one))
            } else {
                let ab = _mm_add_epi32(_mm_madd_epi16(a, one), _mm_madd_epi16(b, one));
                _mm_add_epi32(ab, _mm_add_epi32(_mm_madd_epi16(c, one), _mm_madd_epi16(d, one)))
            }
        })
    }
    #[inline(always)]
    fn pair_sum(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm_hadd_epi32(a, b))
    }
}

/// Largest unsigned code with which four (two) registers of pairwise products add up within 16 bits.
const WORD_SUM_4: i32 = 32767 / (4 * 2 * 127);
const WORD_SUM_2: i32 = 32767 / (2 * 2 * 127);

/// The dot products of a level with 256-bit registers.
///
/// # Safety
/// A type may only be used where the CPU has its instructions: [`Ymm`] of it is the proof.
pub unsafe trait Dot: Copy + 'static {
    /// See [`Isa::SIGNED_OFFSET`].
    const SIGNED_OFFSET: i32;
    /// See [`Isa::dot_u`].
    fn dot_u(acc: __m256i, w: __m256i, x: __m256i) -> __m256i;
    /// See [`Isa::dot_u4`].
    fn dot_u4(max: i32, w: [__m256i; 4], x: [__m256i; 4]) -> __m256i;
    /// See [`Isa::prepare_s`].
    fn prepare_s(w: __m256i) -> __m256i;
    /// See [`Isa::dot_s4`].
    fn dot_s4(w: [__m256i; 4], x: [__m256i; 4]) -> __m256i;
}

/// Dot products of plain AVX2: pairs in 16 bits, then pairs of pairs.
#[derive(Clone, Copy, Debug)]
pub struct Maddubs;

// SAFETY: AVX2 only.
unsafe impl Dot for Maddubs {
    const SIGNED_OFFSET: i32 = 0;
    #[inline(always)]
    fn dot_u(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        op!(_mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1))))
    }
    #[inline(always)]
    fn dot_u4(max: i32, w: [__m256i; 4], x: [__m256i; 4]) -> __m256i {
        op!({
            let [a, b, c, d] = [
                _mm256_maddubs_epi16(w[0], x[0]),
                _mm256_maddubs_epi16(w[1], x[1]),
                _mm256_maddubs_epi16(w[2], x[2]),
                _mm256_maddubs_epi16(w[3], x[3]),
            ];
            let one = _mm256_set1_epi16(1);
            if max <= WORD_SUM_4 {
                _mm256_madd_epi16(_mm256_add_epi16(_mm256_add_epi16(a, b), _mm256_add_epi16(c, d)), one)
            } else if max <= WORD_SUM_2 {
                let ab = _mm256_madd_epi16(_mm256_add_epi16(a, b), one);
                _mm256_add_epi32(ab, _mm256_madd_epi16(_mm256_add_epi16(c, d), one))
            } else {
                let ab = _mm256_add_epi32(_mm256_madd_epi16(a, one), _mm256_madd_epi16(b, one));
                _mm256_add_epi32(ab, _mm256_add_epi32(_mm256_madd_epi16(c, one), _mm256_madd_epi16(d, one)))
            }
        })
    }
    #[inline(always)]
    fn prepare_s(w: __m256i) -> __m256i {
        w
    }
    #[inline(always)]
    fn dot_s4(w: [__m256i; 4], x: [__m256i; 4]) -> __m256i {
        // |w| as unsigned reaches 128, x takes w's sign: pairs stay within 2·128·127 = 32512.
        op!({
            Self::dot_u4(
                128,
                [_mm256_abs_epi8(w[0]), _mm256_abs_epi8(w[1]), _mm256_abs_epi8(w[2]), _mm256_abs_epi8(w[3])],
                [
                    _mm256_sign_epi8(x[0], w[0]),
                    _mm256_sign_epi8(x[1], w[1]),
                    _mm256_sign_epi8(x[2], w[2]),
                    _mm256_sign_epi8(x[3], w[3]),
                ],
            )
        })
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
            #[inline(always)]
            fn dot_u(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
                op!($instruction(acc, w, x))
            }
            #[inline(always)]
            fn dot_u4(_max: i32, w: [__m256i; 4], x: [__m256i; 4]) -> __m256i {
                op!({
                    let a = $instruction(_mm256_setzero_si256(), w[0], x[0]);
                    let a = $instruction(a, w[1], x[1]);
                    $instruction($instruction(a, w[2], x[2]), w[3], x[3])
                })
            }
            #[inline(always)]
            fn prepare_s(w: __m256i) -> __m256i {
                op!(_mm256_xor_si256(w, _mm256_set1_epi8(-128)))
            }
            #[inline(always)]
            fn dot_s4(w: [__m256i; 4], x: [__m256i; 4]) -> __m256i {
                Self::dot_u4(255, w, x)
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

/// Proof of AVX2, F16C and `D`'s instructions.
#[derive(Clone, Copy, Debug)]
pub struct Ymm<D>(PhantomData<D>);

/// Proof of AVX2 and F16C.
pub type Avx2 = Ymm<Maddubs>;
/// Proof of AVX2, F16C and AVX-VNNI.
pub type AvxVnni = Ymm<VnniVex>;
/// AVX-VNNI's twin in AVX-512-VL's encoding.
#[cfg(test)]
pub type Avx512Vl = Ymm<VnniEvex>;

// SAFETY: the only constructor is the unsafe `proof`.
unsafe impl<D: Dot> Isa for Ymm<D> {
    const L: usize = 8;
    type F = __m256;
    type I = __m256i;
    type B = __m256i;
    const SIGNED_OFFSET: i32 = D::SIGNED_OFFSET;

    #[inline(always)]
    unsafe fn proof() -> Self {
        Self(PhantomData)
    }
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
    fn dot_u4(self, max: i32, w: [Self::B; 4], x: [Self::B; 4]) -> Self::I {
        D::dot_u4(max, w, x)
    }
    #[inline(always)]
    fn prepare_s(self, w: Self::B) -> Self::B {
        D::prepare_s(w)
    }
    #[inline(always)]
    fn dot_s4(self, w: [Self::B; 4], x: [Self::B; 4]) -> Self::I {
        D::dot_s4(w, x)
    }
    #[inline(always)]
    fn pair_sum(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm256_hadd_epi32(a, b))
    }
}

/// Proof of AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

// SAFETY: the only constructor is the unsafe `proof`.
unsafe impl Isa for Avx512 {
    const L: usize = 16;
    const REGISTERS: usize = 32;
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    const SIGNED_OFFSET: i32 = 128;

    #[inline(always)]
    unsafe fn proof() -> Self {
        Self(())
    }
    #[inline(always)]
    fn splat(self, v: f32) -> Self::F {
        op!(_mm512_set1_ps(v))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        op!(_mm512_loadu_ps(p))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::F) {
        op!(_mm512_storeu_ps(p, v))
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::F {
        op!(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast())))
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: Self::F) {
        op!(_mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<NEAREST>(v)))
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        op!(_mm512_sqrt_ps(a))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::I {
        op!(_mm512_movm_epi32(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b)))
    }
    #[inline(always)]
    fn select(self, mask: Self::I, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_mask_blend_ps(_mm512_movepi32_mask(mask), b, a))
    }
    #[inline(always)]
    fn round_i(self, a: Self::F) -> Self::I {
        op!(_mm512_cvtps_epi32(a))
    }
    #[inline(always)]
    fn to_f(self, a: Self::I) -> Self::F {
        op!(_mm512_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        op!(_mm512_castps_si512(a))
    }
    #[inline(always)]
    fn from_bits(self, a: Self::I) -> Self::F {
        op!(_mm512_castsi512_ps(a))
    }

    #[inline(always)]
    fn splat_i(self, v: i32) -> Self::I {
        op!(_mm512_set1_epi32(v))
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm512_sub_epi32(a, b))
    }
    #[inline(always)]
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn or_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn xor_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm512_xor_si512(a, b))
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: Self::I) -> Self::I {
        op!(_mm512_slli_epi32::<N>(a))
    }
    #[inline(always)]
    fn sar_i<const N: u32>(self, a: Self::I) -> Self::I {
        op!(_mm512_srai_epi32::<N>(a))
    }
    #[inline(always)]
    unsafe fn load_i(self, p: *const i32) -> Self::I {
        op!(_mm512_loadu_si512(p.cast()))
    }
    #[inline(always)]
    unsafe fn store_i(self, p: *mut i32, v: Self::I) {
        op!(_mm512_storeu_si512(p.cast(), v))
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> Self::I {
        op!(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())))
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: Self::I) {
        op!(_mm_storeu_si128(p.cast(), _mm512_cvtsepi32_epi8(v)))
    }

    #[inline(always)]
    unsafe fn load_b(self, p: *const u8) -> Self::B {
        op!(_mm512_loadu_si512(p.cast()))
    }
    #[inline(always)]
    unsafe fn splat8(self, p: *const i8) -> Self::B {
        op!(_mm512_set1_epi64(p.cast::<i64>().read_unaligned()))
    }
    #[inline(always)]
    unsafe fn table(self, p: *const u8) -> Self::B {
        op!(_mm512_broadcast_i32x4(_mm_loadu_si128(p.cast())))
    }
    #[inline(always)]
    fn lo(self, a: Self::B) -> Self::B {
        op!(_mm512_and_si512(a, _mm512_set1_epi8(15)))
    }
    #[inline(always)]
    fn hi(self, a: Self::B) -> Self::B {
        op!(_mm512_and_si512(_mm512_srli_epi16::<4>(a), _mm512_set1_epi8(15)))
    }
    #[inline(always)]
    fn lookup(self, table: Self::B, a: Self::B) -> Self::B {
        op!(_mm512_shuffle_epi8(table, a))
    }
    #[inline(always)]
    fn plane<const SHL: u32, const SHR: u32>(self, a: Self::B, mask: u8) -> Self::B {
        op!(_mm512_and_si512(_mm512_srli_epi16::<SHR>(_mm512_slli_epi16::<SHL>(a)), _mm512_set1_epi8(mask as i8)))
    }
    #[inline(always)]
    fn or_b(self, a: Self::B, b: Self::B) -> Self::B {
        op!(_mm512_or_si512(a, b))
    }

    #[inline(always)]
    fn dot_u(self, acc: Self::I, w: Self::B, x: Self::B) -> Self::I {
        op!(_mm512_dpbusd_epi32(acc, w, x))
    }
    #[inline(always)]
    fn dot_s(self, acc: Self::I, w: Self::B, x: Self::B) -> Self::I {
        // There is no 512-bit sign instruction: negate x where w is negative, and use |w|, unsigned.
        op!({
            let x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
            _mm512_dpbusd_epi32(acc, _mm512_abs_epi8(w), x)
        })
    }
    #[inline(always)]
    fn prepare_s(self, w: Self::B) -> Self::B {
        op!(_mm512_xor_si512(w, _mm512_set1_epi8(-128)))
    }
    #[inline(always)]
    fn dot_s4(self, w: [Self::B; 4], x: [Self::B; 4]) -> Self::I {
        self.dot_u4(255, w, x)
    }
    #[inline(always)]
    fn pair_sum(self, a: Self::I, b: Self::I) -> Self::I {
        op!({
            let even = _mm512_setr_epi32(0, 2, 8, 10, 4, 6, 12, 14, 16, 18, 24, 26, 20, 22, 28, 30);
            let odd = _mm512_setr_epi32(1, 3, 9, 11, 5, 7, 13, 15, 17, 19, 25, 27, 21, 23, 29, 31);
            _mm512_add_epi32(_mm512_permutex2var_epi32(a, even, b), _mm512_permutex2var_epi32(a, odd, b))
        })
    }
}
