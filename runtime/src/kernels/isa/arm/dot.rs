//! The dot products of 8-bit integers, which is all that AArch64's levels differ in.

use core::arch::aarch64::*;
use core::arch::asm;

/// The dot products of a level with 128-bit registers. Codes are signed here; none is further from 0 than `max` ≤ 128,
/// no `x` further than 127. `START` says whether there is a number to start from that is not 0.
///
/// # Safety
/// A type may only be used where the CPU has its instructions: [`Quad`](super::Quad) of it is the proof.
pub unsafe trait Dot: Copy + 'static {
    /// What [`Dot::rows`] and [`Dot::group`] add to a sum that starts at 0, so that [`Dot::times`] is cheap.
    const BIAS: i32;

    /// Per lane `Σᵢ Σ₄ w[i]·x[i]`.
    fn dots<const N: usize>(max: i32, w: [int8x16_t; N], x: [int8x16_t; N]) -> int32x4_t;

    /// Four rows times 32 inputs: `a[i]` holds 8 inputs of rows 0 and 1, `b[i]` of rows 2 and 3, `x[i]` the inputs
    /// twice. The sums of lanes 0 and 2 of `start` are what each row starts from.
    fn rows(max: i32, a: [int8x16_t; 4], b: [int8x16_t; 4], x: [int8x16_t; 4], start: Start) -> int32x4_t;

    /// The four rows' codes in the order that [`Dot::group`] wants.
    fn arrange(a: [int8x16_t; 4], b: [int8x16_t; 4]) -> [int8x16_t; 8];

    /// Four rows times the 32 inputs at `x`.
    ///
    /// # Safety
    /// `x` is valid for reading 32 bytes.
    unsafe fn group(max: i32, w: [int8x16_t; 8], x: *const i8, start: Start) -> int32x4_t;

    /// `f32(d)·m`, rounded once, where `sum = d + BIAS`, `|d| < 2^22`, `m` is an integer up to 128 and
    /// `least = −m·`[`f32(BIAS's bits)`](Dot::BIAS). The sign of a zero is open.
    fn times(sum: int32x4_t, m: float32x4_t, least: float32x4_t) -> float32x4_t;
}

/// The number that a dot product starts from, as each level wants it.
#[derive(Clone, Copy)]
pub struct Start {
    /// Every row's number in the lanes 0 and 2, nothing in 1 and 3.
    pub halves: int32x4_t,
    /// Every row's number in every lane.
    pub whole: int32x4_t,
    /// Whether there is one.
    pub any: bool,
}

/// Products of base NEON: eight of 16 bits at a time.
#[derive(Clone, Copy, Debug)]
pub struct Mull;

/// How many products of activations and codes up to `max` add up within 16 bits.
#[inline(always)]
const fn word_run(max: i32) -> usize {
    (32767 / (127 * max)) as usize
}

/// The sum of the eight lanes of each of four registers, each a sum of `n` products.
#[inline(always)]
fn fold_words(max: i32, n: i32, [a, b, c, d]: [int16x8_t; 4]) -> int32x4_t {
    let largest = 127 * max * n;
    op!({
        if 4 * largest <= 32767 {
            vpaddlq_s16(vpaddq_s16(vpaddq_s16(a, b), vpaddq_s16(c, d)))
        } else if 2 * largest <= 32767 {
            vpaddq_s32(vpaddlq_s16(vpaddq_s16(a, b)), vpaddlq_s16(vpaddq_s16(c, d)))
        } else {
            let (ab, cd) = (vpaddq_s32(vpaddlq_s16(a), vpaddlq_s16(b)), vpaddq_s32(vpaddlq_s16(c), vpaddlq_s16(d)));
            vpaddq_s32(ab, cd)
        }
    })
}

/// [`fold_words`] of two runs of `n` products each.
#[inline(always)]
fn fold_two(a: [int16x8_t; 4], b: [int16x8_t; 4]) -> int32x4_t {
    op!({
        let [p, q, r, s]: [int32x4_t; 4] = [
            vpadalq_s16(vpaddlq_s16(a[0]), b[0]),
            vpadalq_s16(vpaddlq_s16(a[1]), b[1]),
            vpadalq_s16(vpaddlq_s16(a[2]), b[2]),
            vpadalq_s16(vpaddlq_s16(a[3]), b[3]),
        ];
        vpaddq_s32(vpaddq_s32(p, q), vpaddq_s32(r, s))
    })
}

// SAFETY: base instructions only.
unsafe impl Dot for Mull {
    const BIAS: i32 = 0;

    #[inline(always)]
    fn dots<const N: usize>(max: i32, w: [int8x16_t; N], x: [int8x16_t; N]) -> int32x4_t {
        op!({
            let run = word_run(max);
            let (mut low, mut high) = (vdupq_n_s32(0), vdupq_n_s32(0));
            let (mut low_words, mut high_words) = (vdupq_n_s16(0), vdupq_n_s16(0));
            let mut i = 0;
            while i < N {
                if i.is_multiple_of(run) {
                    low_words = vmull_s8(vget_low_s8(w[i]), vget_low_s8(x[i]));
                    high_words = vmull_high_s8(w[i], x[i]);
                } else {
                    low_words = vmlal_s8(low_words, vget_low_s8(w[i]), vget_low_s8(x[i]));
                    high_words = vmlal_high_s8(high_words, w[i], x[i]);
                }
                i += 1;
                if i.is_multiple_of(run) || i == N {
                    low = vpadalq_s16(low, low_words);
                    high = vpadalq_s16(high, high_words);
                }
            }
            vpaddq_s32(low, high)
        })
    }

    #[inline(always)]
    fn rows(max: i32, a: [int8x16_t; 4], b: [int8x16_t; 4], x: [int8x16_t; 4], start: Start) -> int32x4_t {
        op!({
            // Two registers' products per row, in 16 bits.
            let two = |i: usize| {
                let low = |w: [int8x16_t; 4]| {
                    let first = vmull_s8(vget_low_s8(w[i]), vget_low_s8(x[i]));
                    vmlal_s8(first, vget_low_s8(w[i + 1]), vget_low_s8(x[i + 1]))
                };
                let high = |w: [int8x16_t; 4]| vmlal_high_s8(vmull_high_s8(w[i], x[i]), w[i + 1], x[i + 1]);
                [low(a), high(a), low(b), high(b)]
            };
            let sum = if word_run(max) >= 4 {
                let [p, q, r, s] = two(0);
                let p = vmlal_s8(p, vget_low_s8(a[2]), vget_low_s8(x[2]));
                let q = vmlal_high_s8(q, a[2], x[2]);
                let r = vmlal_s8(r, vget_low_s8(b[2]), vget_low_s8(x[2]));
                let s = vmlal_high_s8(s, b[2], x[2]);
                let p = vmlal_s8(p, vget_low_s8(a[3]), vget_low_s8(x[3]));
                let q = vmlal_high_s8(q, a[3], x[3]);
                let r = vmlal_s8(r, vget_low_s8(b[3]), vget_low_s8(x[3]));
                let s = vmlal_high_s8(s, b[3], x[3]);
                fold_words(max, 4, [p, q, r, s])
            } else {
                fold_two(two(0), two(2))
            };
            if start.any { vaddq_s32(sum, start.whole) } else { sum }
        })
    }

    /// Of each row the inputs 0…15, then of each row the inputs 16…31.
    #[inline(always)]
    fn arrange(a: [int8x16_t; 4], b: [int8x16_t; 4]) -> [int8x16_t; 8] {
        op!({
            let pairs = |p, q| {
                let (p, q) = (vreinterpretq_s64_s8(p), vreinterpretq_s64_s8(q));
                (vreinterpretq_s8_s64(vtrn1q_s64(p, q)), vreinterpretq_s8_s64(vtrn2q_s64(p, q)))
            };
            let ((a0, a1), (b0, b1)) = (pairs(a[0], a[1]), pairs(b[0], b[1]));
            let ((a2, a3), (b2, b3)) = (pairs(a[2], a[3]), pairs(b[2], b[3]));
            [a0, a1, b0, b1, a2, a3, b2, b3]
        })
    }

    #[inline(always)]
    unsafe fn group(max: i32, w: [int8x16_t; 8], x: *const i8, start: Start) -> int32x4_t {
        op!({
            let (x0, x1) = (vld1q_s8(x), vld1q_s8(x.add(16)));
            let two = |w: int8x16_t, x: int8x16_t| vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(x)), w, x);
            let first = [two(w[0], x0), two(w[1], x0), two(w[2], x0), two(w[3], x0)];
            let sum = if word_run(max) >= 4 {
                let add =
                    |sum: int16x8_t, w: int8x16_t| vmlal_high_s8(vmlal_s8(sum, vget_low_s8(w), vget_low_s8(x1)), w, x1);
                let [p, q, r, s] = first;
                fold_words(max, 4, [add(p, w[4]), add(q, w[5]), add(r, w[6]), add(s, w[7])])
            } else {
                fold_two(first, [two(w[4], x1), two(w[5], x1), two(w[6], x1), two(w[7], x1)])
            };
            if start.any { vaddq_s32(sum, start.whole) } else { sum }
        })
    }

    #[inline(always)]
    fn times(sum: int32x4_t, m: float32x4_t, _: float32x4_t) -> float32x4_t {
        op!(vmulq_f32(vcvtq_f32_s32(sum), m))
    }
}

/// Four products added into 32 bits by one instruction.
#[derive(Clone, Copy, Debug)]
pub struct Sdot;

/// `acc + Σ₄ w·x` per lane. The intrinsic is not stable yet.
///
/// # Safety
/// The CPU has `sdot`.
#[inline(always)]
unsafe fn sdot(mut acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: registers only.
    unsafe {
        asm!("sdot {acc:v}.4s, {w:v}.16b, {x:v}.16b", acc = inout(vreg) acc, w = in(vreg) w, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

/// [`sdot`] with the same four `x`, those of lane `LANE`, for every lane of `w`.
///
/// # Safety
/// The CPU has `sdot`.
#[inline(always)]
unsafe fn sdot_lane<const LANE: usize>(mut acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: registers only.
    unsafe {
        asm!("sdot {acc:v}.4s, {w:v}.16b, {x:v}.4b[{lane}]", acc = inout(vreg) acc, w = in(vreg) w, x = in(vreg) x,
            lane = const LANE, options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

// SAFETY: base instructions and `sdot`.
unsafe impl Dot for Sdot {
    // As a float's bits: 1.5·2^23, whose last bit counts 1, so that BIAS + d are the bits of 1.5·2^23 + d.
    const BIAS: i32 = 0x4b40_0000;

    #[inline(always)]
    fn dots<const N: usize>(_max: i32, w: [int8x16_t; N], x: [int8x16_t; N]) -> int32x4_t {
        op!({
            let mut sum = vdupq_n_s32(0);
            let mut i = 0;
            while i < N {
                sum = sdot(sum, w[i], x[i]);
                i += 1;
            }
            sum
        })
    }

    #[inline(always)]
    fn rows(_max: i32, a: [int8x16_t; 4], b: [int8x16_t; 4], x: [int8x16_t; 4], start: Start) -> int32x4_t {
        op!({
            let (mut p, mut q) = (start.halves, start.halves);
            let mut i = 0;
            while i < 4 {
                p = sdot(p, a[i], x[i]);
                q = sdot(q, b[i], x[i]);
                i += 1;
            }
            vpaddq_s32(p, q)
        })
    }

    /// The four rows side by side, four inputs at a time.
    #[inline(always)]
    fn arrange(a: [int8x16_t; 4], b: [int8x16_t; 4]) -> [int8x16_t; 8] {
        op!({
            let pairs = |p, q| {
                let (p, q) = (vreinterpretq_s32_s8(p), vreinterpretq_s32_s8(q));
                (vreinterpretq_s8_s32(vuzp1q_s32(p, q)), vreinterpretq_s8_s32(vuzp2q_s32(p, q)))
            };
            let ((w0, w1), (w2, w3)) = (pairs(a[0], b[0]), pairs(a[1], b[1]));
            let ((w4, w5), (w6, w7)) = (pairs(a[2], b[2]), pairs(a[3], b[3]));
            [w0, w1, w2, w3, w4, w5, w6, w7]
        })
    }

    #[inline(always)]
    unsafe fn group(_max: i32, w: [int8x16_t; 8], x: *const i8, start: Start) -> int32x4_t {
        op!({
            let (x0, x1) = (vld1q_s8(x), vld1q_s8(x.add(16)));
            let sum = sdot_lane::<0>(start.whole, w[0], x0);
            let sum = sdot_lane::<1>(sum, w[1], x0);
            let sum = sdot_lane::<2>(sum, w[2], x0);
            let sum = sdot_lane::<3>(sum, w[3], x0);
            let sum = sdot_lane::<0>(sum, w[4], x1);
            let sum = sdot_lane::<1>(sum, w[5], x1);
            let sum = sdot_lane::<2>(sum, w[6], x1);
            sdot_lane::<3>(sum, w[7], x1)
        })
    }

    #[inline(always)]
    fn times(sum: int32x4_t, m: float32x4_t, least: float32x4_t) -> float32x4_t {
        // m·(1.5·2^23 + d) − m·1.5·2^23 in one instruction: the product and the difference are exact before its one
        // rounding, so it is the contract's f32(d)·m and no fused arithmetic. The conversion would cost two slots of the
        // one pipe that has it.
        op!(vfmaq_f32(least, vreinterpretq_f32_s32(sum), m))
    }
}

/// [`Sdot`], and a matrix product of two rows by two columns of eight.
#[derive(Clone, Copy, Debug)]
pub struct Smmla;

// SAFETY: as `Sdot`, whose instructions come with `smmla`.
unsafe impl Dot for Smmla {
    const BIAS: i32 = Sdot::BIAS;

    #[inline(always)]
    fn dots<const N: usize>(max: i32, w: [int8x16_t; N], x: [int8x16_t; N]) -> int32x4_t {
        Sdot::dots(max, w, x)
    }
    #[inline(always)]
    fn rows(max: i32, a: [int8x16_t; 4], b: [int8x16_t; 4], x: [int8x16_t; 4], start: Start) -> int32x4_t {
        Sdot::rows(max, a, b, x, start)
    }
    #[inline(always)]
    fn arrange(a: [int8x16_t; 4], b: [int8x16_t; 4]) -> [int8x16_t; 8] {
        Sdot::arrange(a, b)
    }
    #[inline(always)]
    unsafe fn group(max: i32, w: [int8x16_t; 8], x: *const i8, start: Start) -> int32x4_t {
        // SAFETY: passed on.
        unsafe { Sdot::group(max, w, x, start) }
    }
    #[inline(always)]
    fn times(sum: int32x4_t, m: float32x4_t, least: float32x4_t) -> float32x4_t {
        Sdot::times(sum, m, least)
    }
}
