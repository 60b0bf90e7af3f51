//! 512-bit registers.

use core::arch::asm;
use core::arch::x86_64::*;

use super::{NEAREST, max_of_four, sum_of_four, sum_of_four_i};
use crate::kernels::isa::{Bytes, Isa, TOGETHER};

/// Proof of AVX-512 F, BW, DQ, VL and VNNI, and with `TILES` of AMX's tiles for bytes.
#[derive(Clone, Copy, Debug)]
pub struct Zmm<const TILES: bool>(());

/// Without tiles.
pub type Avx512 = Zmm<false>;
/// With tiles.
pub type Amx = Zmm<true>;

// SAFETY: the only constructor is the unsafe `proof`.
unsafe impl<const TILES: bool> Isa for Zmm<TILES> {
    const L: usize = 16;
    const REGISTERS: usize = 32;
    type F = __m512;
    type I = __m512i;

    #[inline(always)]
    unsafe fn proof() -> Self {
        Self(())
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        op!(_mm_prefetch::<_MM_HINT_T0>(p.cast()))
    }
    #[inline(always)]
    fn prefetch_far(self, p: *const u8) {
        op!(_mm_prefetch::<_MM_HINT_T1>(p.cast()))
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
    fn sum_of_lanes(self, a: Self::F) -> f32 {
        op!({
            let eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            sum_of_four(_mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight)))
        })
    }
    #[inline(always)]
    fn max_of_lanes(self, a: Self::F) -> f32 {
        op!({
            let eight = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            max_of_four(_mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight)))
        })
    }
    #[inline(always)]
    fn sum_of_lanes_i(self, a: Self::I) -> i32 {
        op!({
            let eight = _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64::<1>(a));
            sum_of_four_i(_mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight)))
        })
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
}

// SAFETY: as above.
unsafe impl<const TILES: bool> Bytes for Zmm<TILES> {
    type B = __m512i;
    const SIGNED_OFFSET: i32 = 128;
    const FUSES: bool = true;
    const SIDE_BY_SIDE: bool = true;

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
    fn dots_from<const N: usize>(self, start: Self::I, _max: i32, w: [Self::B; N], x: [Self::B; N]) -> Self::I {
        if N < 8 {
            let mut sum = start;
            let mut i = 0;
            while i < N {
                sum = self.dot_u(sum, w[i], x[i]);
                i += 1;
            }
            return sum;
        }
        // Two chains: in one, each instruction waits four or five cycles for the last, and too many tokens would have to be
        // under way at a time.
        let (mut first, mut second) = (start, self.splat_i(0));
        let mut i = 0;
        while i < N / 2 {
            first = self.dot_u(first, w[i], x[i]);
            second = self.dot_u(second, w[N / 2 + i], x[N / 2 + i]);
            i += 1;
        }
        self.add_i(first, second)
    }
    #[inline(always)]
    fn times(self, sum: Self::I, m: Self::F, least: Self::F) -> Self::F {
        op!(_mm512_fmadd_ps(_mm512_castsi512_ps(sum), m, least))
    }
    #[inline(always)]
    unsafe fn dots_together(
        self,
        start: [Self::I; TOGETHER],
        w: [Self::B; 8],
        x: *const u8,
        stride: usize,
    ) -> [Self::I; TOGETHER] {
        // SAFETY: the caller vouches for the bytes; the level has the instructions.
        unsafe { dots_together(start, w, x, stride) }
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
    fn dots_s<const N: usize>(self, w: [Self::B; N], x: [Self::B; N]) -> Self::I {
        self.dots_u(255, w, x)
    }
    #[inline(always)]
    fn pair_sum(self, a: Self::I, b: Self::I) -> Self::I {
        let (even, odd) = self.deal(a, b);
        self.add_i(even, odd)
    }
    #[inline(always)]
    fn deal(self, a: Self::B, b: Self::B) -> (Self::B, Self::B) {
        op!({
            let even = _mm512_setr_epi32(0, 2, 8, 10, 4, 6, 12, 14, 16, 18, 24, 26, 20, 22, 28, 30);
            let odd = _mm512_setr_epi32(1, 3, 9, 11, 5, 7, 13, 15, 17, 19, 25, 27, 21, 23, 29, 31);
            (_mm512_permutex2var_epi32(a, even, b), _mm512_permutex2var_epi32(a, odd, b))
        })
    }
    #[inline(always)]
    unsafe fn splat4(self, p: *const i8) -> Self::B {
        op!(_mm512_set1_epi32(p.cast::<i32>().read_unaligned()))
    }
}

/// [`Bytes::dots_together`], instruction by instruction: the compiler would put the chains one after the other again.
///
/// # Safety
/// As there.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dots_together(
    start: [__m512i; TOGETHER],
    w: [__m512i; 8],
    x: *const u8,
    stride: usize,
) -> [__m512i; TOGETHER] {
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = start;
    macro_rules! inputs {
        ($($w:literal $at:literal)*) => {
            concat!($(
                "vpdpbusd {a}, {", $w, "}, dword ptr [{x} + ", $at, "]{{1to16}}\n",
                "vpdpbusd {b}, {", $w, "}, dword ptr [{x} + {s} + ", $at, "]{{1to16}}\n",
                "vpdpbusd {c}, {", $w, "}, dword ptr [{x} + 2*{s} + ", $at, "]{{1to16}}\n",
                "vpdpbusd {d}, {", $w, "}, dword ptr [{y} + ", $at, "]{{1to16}}\n",
                "vpdpbusd {e}, {", $w, "}, dword ptr [{x} + 4*{s} + ", $at, "]{{1to16}}\n",
                "vpdpbusd {f}, {", $w, "}, dword ptr [{y} + 2*{s} + ", $at, "]{{1to16}}\n",
                "vpdpbusd {g}, {", $w, "}, dword ptr [{z} + ", $at, "]{{1to16}}\n",
                "vpdpbusd {h}, {", $w, "}, dword ptr [{y} + 4*{s} + ", $at, "]{{1to16}}\n",
            )*)
        };
    }
    // SAFETY: the caller vouches for the bytes.
    unsafe {
        asm!(
            inputs!("w0" 0 "w1" 4 "w2" 8 "w3" 12 "w4" 16 "w5" 20 "w6" 24 "w7" 28),
            x = in(reg) x, y = in(reg) x.wrapping_add(3 * stride), z = in(reg) x.wrapping_add(6 * stride), s = in(reg) stride,
            w0 = in(zmm_reg) w[0], w1 = in(zmm_reg) w[1], w2 = in(zmm_reg) w[2], w3 = in(zmm_reg) w[3],
            w4 = in(zmm_reg) w[4], w5 = in(zmm_reg) w[5], w6 = in(zmm_reg) w[6], w7 = in(zmm_reg) w[7],
            a = inout(zmm_reg) a, b = inout(zmm_reg) b, c = inout(zmm_reg) c, d = inout(zmm_reg) d,
            e = inout(zmm_reg) e, f = inout(zmm_reg) f, g = inout(zmm_reg) g, h = inout(zmm_reg) h,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    [a, b, c, d, e, f, g, h]
}
