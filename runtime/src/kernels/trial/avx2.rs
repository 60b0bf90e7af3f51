//! See [`super::trials`].

use core::arch::x86_64::*;

use super::{Border, LANES, Nearest, Weighed};
use crate::weights::GROUP;

/// See [`super::trials`].
#[target_feature(enable = "avx2")]
pub(super) fn trials(nearest: &Nearest, group: &Weighed, halves: &[f32], wc: &mut [f32], cc: &mut [f32]) {
    match nearest {
        Nearest::Even(low, high) => in_eights(halves, wc, cc, |by| {
            let c = half_units(&group.w, by).map(|half| _mm256_cvtepi32_ps(evenly(half, *low, *high)));
            fit(group, c)
        }),
        Nearest::Table { base, borders } => in_eights(halves, wc, cc, |by| {
            let half = bytes(half_units(&group.w, by));
            fit(group, floats(in_table(half, base, borders)))
        }),
    }
}

/// Lets `one` make the lanes of both sums for each of `halves`, and adds the lanes up, those of eight trials at a time.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn in_eights(halves: &[f32], wc: &mut [f32], cc: &mut [f32], one: impl Fn(f32) -> [__m256; 2]) {
    let (eights, wc_eights, cc_eights) = (halves.as_chunks::<LANES>(), wc.as_chunks_mut(), cc.as_chunks_mut());
    for ((halves, wc), cc) in eights.0.iter().zip(wc_eights.0).zip(cc_eights.0) {
        let [mut wcs, mut ccs] = [[_mm256_setzero_ps(); LANES]; 2];
        for ((by, wc), cc) in halves.iter().zip(&mut wcs).zip(&mut ccs) {
            [*wc, *cc] = one(*by);
        }
        (*wc, *cc) = (across_each(wcs), across_each(ccs));
    }
    for ((by, wc), cc) in eights.1.iter().zip(wc_eights.1).zip(cc_eights.1) {
        [*wc, *cc] = one(*by).map(|lanes| across(lanes));
    }
}

/// See [`super::best_refit`]; whole eights of trials.
#[target_feature(enable = "avx2")]
pub(super) fn best_refit(wc: &[f32], cc: &[f32]) -> f32 {
    let [mut gains, mut refits, mut numbers] = [_mm256_setzero_ps(); 3];
    let mut number = _mm256_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0);
    for (wc, cc) in wc.as_chunks::<LANES>().0.iter().zip(cc.as_chunks::<LANES>().0) {
        let (wc, cc) = (load(wc), load(cc));
        let refit = _mm256_div_ps(wc, cc);
        let gain = _mm256_mul_ps(wc, refit);
        let better = _mm256_cmp_ps::<_CMP_GT_OQ>(gain, gains);
        gains = _mm256_blendv_ps(gains, gain, better);
        refits = _mm256_blendv_ps(refits, refit, better);
        numbers = _mm256_blendv_ps(numbers, number, better);
        number = _mm256_add_ps(number, _mm256_set1_ps(LANES as f32));
    }
    // The lanes with the most, and of those the one with the lowest number.
    let most = everywhere(gains, |a, b| _mm256_max_ps(a, b));
    let with_most = _mm256_cmp_ps::<_CMP_EQ_OQ>(gains, most);
    let their_numbers = _mm256_blendv_ps(_mm256_set1_ps(f32::INFINITY), numbers, with_most);
    let first = _mm256_cmp_ps::<_CMP_EQ_OQ>(their_numbers, everywhere(their_numbers, |a, b| _mm256_min_ps(a, b)));
    // Only one lane had that trial, but where none takes anything off: then all are 0.
    let lane = _mm256_movemask_ps(first).trailing_zeros();
    _mm256_cvtss_f32(_mm256_permutevar8x32_ps(refits, _mm256_set1_epi32(lane as i32)))
}

/// What `of` makes of all lanes, in every lane.
#[inline]
#[target_feature(enable = "avx2")]
fn everywhere(v: __m256, of: impl Fn(__m256, __m256) -> __m256) -> __m256 {
    let v = of(v, _mm256_permute2f128_ps::<0x01>(v, v));
    let v = of(v, _mm256_permute_ps::<0b01_00_11_10>(v));
    of(v, _mm256_permute_ps::<0b10_11_00_01>(v))
}

/// See [`super::nearest_values`].
#[target_feature(enable = "avx2")]
pub(super) fn nearest_values(nearest: &Nearest, w: &[f32; GROUP], halves: f32) -> [i8; GROUP] {
    let half = half_units(w, halves);
    let values = match nearest {
        Nearest::Even(low, high) => bytes(half.map(|half| evenly(half, *low, *high))),
        Nearest::Table { base, borders } => in_table(bytes(half), base, borders),
    };
    let mut out = [0; GROUP];
    // SAFETY: the array has the register's 32 bytes, and the store asks for no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), values) };
    out
}

/// The nearest whole numbers within bounds to 32-bit half units.
#[inline]
#[target_feature(enable = "avx2")]
fn evenly(half: __m256i, low: i8, high: i8) -> __m256i {
    let c = _mm256_srai_epi32::<1>(_mm256_add_epi32(half, _mm256_set1_epi32(1)));
    _mm256_min_epi32(_mm256_max_epi32(c, _mm256_set1_epi32(low.into())), _mm256_set1_epi32(high.into()))
}

/// The nearest values of a table to half units.
#[inline]
#[target_feature(enable = "avx2")]
fn in_table(half: __m256i, base: &[i8; 16], borders: &[Border]) -> __m256i {
    let cell = _mm256_and_si256(_mm256_srli_epi16::<4>(half), _mm256_set1_epi8(15));
    let mut c = _mm256_shuffle_epi8(twice(base), cell);
    for border in borders {
        let beyond = _mm256_cmpgt_epi8(half, _mm256_shuffle_epi8(twice(&border.last), cell));
        c = _mm256_add_epi8(c, _mm256_and_si256(beyond, _mm256_shuffle_epi8(twice(&border.step), cell)));
    }
    c
}

/// A table for both halves of a register.
#[inline]
#[target_feature(enable = "avx2")]
fn twice(table: &[i8; 16]) -> __m256i {
    // SAFETY: the array has 16 bytes, and the load asks for no alignment.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(table.as_ptr().cast()) })
}

/// Half units of the weights, as 32-bit integers.
#[inline]
#[target_feature(enable = "avx2")]
fn half_units(w: &[f32; GROUP], by: f32) -> [__m256i; 4] {
    let by = _mm256_set1_ps(by);
    registers(w).map(|w| {
        let v = _mm256_sub_ps(_mm256_mul_ps(w, by), _mm256_set1_ps(0.5));
        // What is too low for an integer becomes the lowest one, and ends on the lowest value too.
        _mm256_cvtps_epi32(_mm256_min_ps(v, _mm256_set1_ps(127.0)))
    })
}

/// The lanes of `Σ h·w·c` and `Σ h·c²`.
#[inline]
#[target_feature(enable = "avx2")]
fn fit(group: &Weighed, c: [__m256; 4]) -> [__m256; 2] {
    let (mut wc, mut cc) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for ((c, h), hw) in c.into_iter().zip(registers(&group.h)).zip(registers(&group.hw)) {
        wc = _mm256_add_ps(wc, _mm256_mul_ps(hw, c));
        cc = _mm256_add_ps(cc, _mm256_mul_ps(_mm256_mul_ps(h, c), c));
    }
    [wc, cc]
}

/// See [`super::across`].
#[inline]
#[target_feature(enable = "avx2")]
fn across(v: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

/// [`across`] of eight at once.
#[inline]
#[target_feature(enable = "avx2")]
fn across_each([a, b, c, d, e, f, g, h]: [__m256; LANES]) -> [f32; LANES] {
    let four = |a, b| _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
    let [ab, cd, ef, gh] = [four(a, b), four(c, d), four(e, f), four(g, h)];
    let two = |ab, cd| {
        let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
        let (low, high) = (_mm256_unpacklo_pd(ab, cd), _mm256_unpackhi_pd(ab, cd));
        _mm256_add_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high))
    };
    let (acbd, egfh) = (two(ab, cd), two(ef, gh));
    let sums =
        _mm256_add_ps(_mm256_shuffle_ps::<0b10_00_10_00>(acbd, egfh), _mm256_shuffle_ps::<0b11_01_11_01>(acbd, egfh));
    let sums = _mm256_permutevar8x32_ps(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    let mut out = [0.0; LANES];
    // SAFETY: the array has the register's 32 bytes, and the store asks for no alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sums) };
    out
}

#[inline]
#[target_feature(enable = "avx2")]
fn registers(v: &[f32; GROUP]) -> [__m256; 4] {
    let mut out = [_mm256_setzero_ps(); 4];
    for (out, v) in out.iter_mut().zip(v.as_chunks().0) {
        *out = load(v);
    }
    out
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(v: &[f32; LANES]) -> __m256 {
    // SAFETY: the array has the register's 32 bytes, and the load asks for no alignment.
    unsafe { _mm256_loadu_ps(v.as_ptr()) }
}

/// Integers that fit a byte each, as bytes in their order.
#[inline]
#[target_feature(enable = "avx2")]
fn bytes([a, b, c, d]: [__m256i; 4]) -> __m256i {
    // Packing works on halves of registers by themselves: fours of all inputs alternate.
    let mixed = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
}

/// 32 bytes as floats.
#[inline]
#[target_feature(enable = "avx2")]
fn floats(bytes: __m256i) -> [__m256; 4] {
    let (low, high) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
    let upper = |v| _mm_unpackhi_epi64(v, v);
    [low, upper(low), high, upper(high)].map(|v| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)))
}
