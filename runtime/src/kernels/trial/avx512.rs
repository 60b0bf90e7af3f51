//! See [`super::trials`]: the same in registers of 16 lanes, where a table of 16 values is one shuffle of floats.

use core::arch::x86_64::*;

use super::avx2::in_eights;
use super::{Nearest, Weighed};
use crate::weights::GROUP;

/// A border of each cell: the last half unit below it, and the value beyond it.
type Beyond = (__m512i, __m512);

/// See [`super::trials`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn trials(nearest: &Nearest, group: &Weighed, halves: &[f32], wc: &mut [f32], cc: &mut [f32]) {
    let [w, h, hw] = [&group.w, &group.h, &group.hw].map(|v| registers(v));
    match nearest {
        Nearest::Even(low, high) => {
            let (low, high) = (_mm512_set1_epi32((*low).into()), _mm512_set1_epi32((*high).into()));
            in_eights(halves, wc, cc, |by| {
                let c = half_units(w, by).map(|half| {
                    let c = _mm512_srai_epi32::<1>(_mm512_add_epi32(half, _mm512_set1_epi32(1)));
                    _mm512_cvtepi32_ps(_mm512_min_epi32(_mm512_max_epi32(c, low), high))
                });
                fit(h, hw, c)
            });
        }
        Nearest::Table { base, borders } => {
            let mut value = *base;
            // Sixteen values have no more borders between them.
            let mut all: [Beyond; 15] = [(_mm512_setzero_si512(), _mm512_setzero_ps()); 15];
            for (beyond, border) in all.iter_mut().zip(borders) {
                for (value, step) in value.iter_mut().zip(border.step) {
                    *value = value.wrapping_add(step);
                }
                *beyond = (wide(&border.last), _mm512_cvtepi32_ps(wide(&value)));
            }
            let beyond = &all[..borders.len()];
            let base = _mm512_cvtepi32_ps(wide(base));
            in_eights(halves, wc, cc, |by| {
                let c = half_units(w, by).map(|half| {
                    // The shuffles look at the lowest four bits of each index.
                    let cell = _mm512_srai_epi32::<4>(half);
                    let mut c = _mm512_permutexvar_ps(cell, base);
                    // Borders of a cell ascend, so the last one below says the value.
                    for (last, value) in beyond {
                        let past = _mm512_cmpgt_epi32_mask(half, _mm512_permutexvar_epi32(cell, *last));
                        c = _mm512_mask_permutexvar_ps(c, past, cell, *value);
                    }
                    c
                });
                fit(h, hw, c)
            });
        }
    }
}

/// Half units of the weights.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn half_units(w: [__m512; 2], by: f32) -> [__m512i; 2] {
    let by = _mm512_set1_ps(by);
    w.map(|w| {
        let v = _mm512_sub_ps(_mm512_mul_ps(w, by), _mm512_set1_ps(0.5));
        let v = _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(-128.0)), _mm512_set1_ps(127.0));
        _mm512_cvtps_epi32(v)
    })
}

/// Eight lanes of `Σ h·w·c` and `Σ h·c²`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn fit(h: [__m512; 2], hw: [__m512; 2], [c, d]: [__m512; 2]) -> [__m256; 2] {
    [
        eight([_mm512_mul_ps(hw[0], c), _mm512_mul_ps(hw[1], d)]),
        eight([_mm512_mul_ps(_mm512_mul_ps(h[0], c), c), _mm512_mul_ps(_mm512_mul_ps(h[1], d), d)]),
    ]
}

/// 32 terms in eight lanes, in their order, beginning with 0 (which a −0 is not).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn eight(terms: [__m512; 2]) -> __m256 {
    let mut sum = _mm256_setzero_ps();
    for terms in terms {
        sum = _mm256_add_ps(sum, _mm512_castps512_ps256(terms));
        sum = _mm256_add_ps(sum, _mm512_extractf32x8_ps::<1>(terms));
    }
    sum
}

/// 16 bytes as 32-bit integers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn wide(bytes: &[i8; 16]) -> __m512i {
    // SAFETY: the array has 16 bytes, and the load asks for no alignment.
    _mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn registers(v: &[f32; GROUP]) -> [__m512; 2] {
    // SAFETY: the halves of the array have 64 bytes each, and the load asks for no alignment.
    unsafe { [_mm512_loadu_ps(v.as_ptr()), _mm512_loadu_ps(v.as_ptr().add(16))] }
}
