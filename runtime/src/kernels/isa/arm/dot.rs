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

    /// Two strips of four rows times 32 inputs; `x[i]` holds 8 inputs twice, and went through [`Dot::hold_inputs`].
    fn rows(max: i32, strips: [Rows; 2], x: [int8x16_t; 4], start: Start) -> [int32x4_t; 2];

    /// Inputs as [`Dot::rows`] wants them.
    #[inline(always)]
    fn hold_inputs(x: [int8x16_t; 4]) -> [int8x16_t; 4] {
        x
    }

    /// The four rows' codes in the order that [`Dot::group`] wants.
    fn arrange(rows: Rows) -> [int8x16_t; 8];

    /// The four rows' pairs of nibbles (of each two lines) in an order that makes all low nibbles, then all high ones, what
    /// [`Dot::arrange`] would return: there are half as many registers to arrange. `None` where they lie right.
    #[inline(always)]
    fn arrange_nibbles(_a: [uint8x16_t; 2], _b: [uint8x16_t; 2]) -> Option<[uint8x16_t; 4]> {
        None
    }

    /// The codes as a tile of `T` tokens should hold them.
    #[inline(always)]
    fn hold<const T: usize>(w: [int8x16_t; 8]) -> [int8x16_t; 8] {
        w
    }

    /// Tokens whose chains of dependent instructions run side by side, for processors that start them in order: 2 or 4.
    const TOGETHER: usize;

    /// Four rows times 32 inputs of each of `N` tokens.
    ///
    /// # Safety
    /// Each `x` is valid for reading 32 bytes.
    unsafe fn group<const N: usize>(max: i32, w: [int8x16_t; 8], x: [*const i8; N], start: Start) -> [int32x4_t; N];

    /// `f32(d)·m`, rounded once, where `sum = d + BIAS`, `|d| < 2^22`, `m` is an integer up to 128 and
    /// `least = −m·`[`f32(BIAS's bits)`](Dot::BIAS). The sign of a zero is open.
    fn times(sum: int32x4_t, m: float32x4_t, least: float32x4_t) -> float32x4_t;
}

/// The codes of four rows: of rows 0 and 1, and of rows 2 and 3, 8 inputs at a time.
pub type Rows = ([int8x16_t; 4], [int8x16_t; 4]);

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

/// Rows that go through the dot products together.
const ROWS: usize = 4;

/// The first halves of two registers, and the second.
#[inline(always)]
fn halves(p: uint8x16_t, q: uint8x16_t) -> (uint8x16_t, uint8x16_t) {
    op!({
        let (p, q) = (vreinterpretq_u64_u8(p), vreinterpretq_u64_u8(q));
        (vreinterpretq_u8_u64(vtrn1q_u64(p, q)), vreinterpretq_u8_u64(vtrn2q_u64(p, q)))
    })
}

/// The even words of two registers, and the odd.
#[inline(always)]
fn words(p: uint8x16_t, q: uint8x16_t) -> (uint8x16_t, uint8x16_t) {
    op!({
        let (p, q) = (vreinterpretq_u32_u8(p), vreinterpretq_u32_u8(q));
        (vreinterpretq_u8_u32(vuzp1q_u32(p, q)), vreinterpretq_u8_u32(vuzp2q_u32(p, q)))
    })
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

/// Four rows times 32 inputs, as [`Dot::rows`].
#[inline(always)]
fn four_rows(max: i32, (a, b): Rows, x: [int8x16_t; 4], start: Start) -> int32x4_t {
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

// SAFETY: base instructions only.
unsafe impl Dot for Mull {
    const BIAS: i32 = 0;
    // Four chains of each, and 16-bit sums are twice as many registers.
    const TOGETHER: usize = 2;

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
    fn hold_inputs(x: [int8x16_t; 4]) -> [int8x16_t; 4] {
        x.map(opaque)
    }

    #[inline(always)]
    fn rows(max: i32, strips: [Rows; 2], x: [int8x16_t; 4], start: Start) -> [int32x4_t; 2] {
        [four_rows(max, strips[0], x, start), four_rows(max, strips[1], x, start)]
    }

    /// Of each row the inputs 0…15, then of each row the inputs 16…31.
    #[inline(always)]
    fn arrange((a, b): Rows) -> [int8x16_t; 8] {
        op!({
            let halves = |p, q| {
                let (p, q) = halves(vreinterpretq_u8_s8(p), vreinterpretq_u8_s8(q));
                (vreinterpretq_s8_u8(p), vreinterpretq_s8_u8(q))
            };
            let ((a0, a1), (b0, b1)) = (halves(a[0], a[1]), halves(b[0], b[1]));
            let ((a2, a3), (b2, b3)) = (halves(a[2], a[3]), halves(b[2], b[3]));
            [a0, a1, b0, b1, a2, a3, b2, b3]
        })
    }

    #[inline(always)]
    fn arrange_nibbles(a: [uint8x16_t; 2], b: [uint8x16_t; 2]) -> Option<[uint8x16_t; 4]> {
        let ((a0, a1), (b0, b1)) = (halves(a[0], a[1]), halves(b[0], b[1]));
        Some([a0, a1, b0, b1])
    }

    /// With eight tokens there is no register left for upper halves of the codes.
    #[inline(always)]
    fn hold<const T: usize>(w: [int8x16_t; 8]) -> [int8x16_t; 8] {
        if T == 8 { w.map(opaque) } else { w }
    }

    #[inline(always)]
    unsafe fn group<const N: usize>(max: i32, w: [int8x16_t; 8], x: [*const i8; N], start: Start) -> [int32x4_t; N] {
        op!({
            let two = |w: int8x16_t, x: int8x16_t| vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(x)), w, x);
            let more = |sum: int16x8_t, w: int8x16_t, x: int8x16_t| {
                vmlal_high_s8(vmlal_s8(sum, vget_low_s8(w), vget_low_s8(x)), w, x)
            };
            let mut words = [[vdupq_n_s16(0); ROWS]; N];
            let mut i = 0;
            while i < N {
                let x = opaque(vld1q_s8(x[i]));
                words[i] = [two(w[0], x), two(w[1], x), two(w[2], x), two(w[3], x)];
                i += 1;
            }
            let mut sums = [vdupq_n_s32(0); N];
            let mut i = 0;
            while i < N {
                let x = opaque(vld1q_s8(x[i].add(16)));
                sums[i] = if word_run(max) >= 4 {
                    let [p, q, r, s] = words[i];
                    fold_words(max, 4, [more(p, w[4], x), more(q, w[5], x), more(r, w[6], x), more(s, w[7], x)])
                } else {
                    fold_two(words[i], [two(w[4], x), two(w[5], x), two(w[6], x), two(w[7], x)])
                };
                if start.any {
                    sums[i] = vaddq_s32(sums[i], start.whole);
                }
                i += 1;
            }
            sums
        })
    }

    #[inline(always)]
    fn times(sum: int32x4_t, m: float32x4_t, _: float32x4_t) -> float32x4_t {
        op!(vmulq_f32(vcvtq_f32_s32(sum), m))
    }
}

/// Has `v` computed here, and later loads done later: left alone, the compiler begins all strips or tokens at once and
/// runs out of registers.
#[inline(always)]
pub fn settle(v: &mut float32x4_t) {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0:v} */", inout(vreg) * v, options(nostack, preserves_flags)) }
}

/// [`settle`] for sums that are still integers.
#[inline(always)]
pub fn settle_sum(v: &mut int32x4_t) {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0:v} */", inout(vreg) * v, options(nostack, preserves_flags)) }
}

/// `p`, of which the compiler knows no more than that.
#[inline(always)]
pub fn opaque_pointer(mut p: *const u8) -> *const u8 {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0} */", inout(reg) p, options(pure, nomem, nostack, preserves_flags)) }
    p
}

/// `n`, of which the compiler knows no more than that: it would write a loop's body `n` times.
#[inline(always)]
pub fn opaque_count(mut n: usize) -> usize {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0} */", inout(reg) n, options(pure, nomem, nostack, preserves_flags)) }
    n
}

/// [`settle`] for addresses: processors that start instructions in order lose a cycle when one of another kind stands
/// between those of vectors.
#[inline(always)]
pub fn settle_addresses<const N: usize>(p: &mut [*const i8; N]) {
    let mut i = 0;
    while i < N {
        // SAFETY: no instruction.
        unsafe { asm!("/* {0} */", inout(reg) p[i], options(nostack, preserves_flags)) }
        i += 1;
    }
}

/// `x`, of which the compiler knows no more than that. Where it sees that both halves are the same, or comes to load them
/// apart, it takes the halves of the codes apart too, by an instruction each, and no longer multiplies upper halves in place.
#[inline(always)]
fn opaque(mut x: int8x16_t) -> int8x16_t {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0:v} */", inout(vreg) x, options(pure, nomem, nostack, preserves_flags)) }
    x
}

/// [`Dot::BIAS`] of `sdot` and `smmla`.
pub(super) use crate::kernels::isa::BIAS;

/// `v`, of which the compiler knows no more than that: it would make a constant anew in every round of a loop, or load a
/// value that also others want before each use.
#[inline(always)]
pub fn keep_in_register(mut v: uint8x16_t) -> uint8x16_t {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0:v} */", inout(vreg) v, options(pure, nomem, nostack, preserves_flags)) }
    v
}

/// Four products added into 32 bits by one instruction; if `MATRIX`, of several tokens two rows by two columns of eight.
/// (Processors that have `smmla` have `sdot`.)
#[derive(Clone, Copy, Debug)]
pub struct Products<const MATRIX: bool>;
/// By `sdot`.
pub type Sdot = Products<false>;
/// By `sdot` and `smmla`.
pub type Smmla = Products<true>;

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

/// Sums that start from `start` of two tokens' 32 inputs times eight registers of codes. The order of the
/// instructions is part of it: no chain waits for itself, and no input for its load.
///
/// # Safety
/// The CPU has `sdot`; each `x` is valid for reading 32 bytes.
#[inline(always)]
unsafe fn two(start: int32x4_t, w: [int8x16_t; 8], x: [*const i8; 2]) -> [int32x4_t; 2] {
    macro_rules! step {
        ($w:literal, $lane:literal) => {
            concat!(
                "sdot {s0:v}.4s, {w",
                $w,
                ":v}.16b, {x0:v}.4b[",
                $lane,
                "]\n",
                "sdot {s1:v}.4s, {w",
                $w,
                ":v}.16b, {x1:v}.4b[",
                $lane,
                "]"
            )
        };
    }
    let (mut s0, mut s1) = (start, start);
    // SAFETY: as the caller vouches.
    unsafe {
        asm!(
            step!(0, 0), step!(1, 1), step!(2, 2), step!(3, 3),
            "ldr {x0:q}, [{p0}, #16]", "ldr {x1:q}, [{p1}, #16]",
            step!(4, 0), step!(5, 1), step!(6, 2), step!(7, 3),
            s0 = inout(vreg) s0, s1 = inout(vreg) s1,
            w0 = in(vreg) w[0], w1 = in(vreg) w[1], w2 = in(vreg) w[2], w3 = in(vreg) w[3],
            w4 = in(vreg) w[4], w5 = in(vreg) w[5], w6 = in(vreg) w[6], w7 = in(vreg) w[7],
            x0 = inout(vreg) vld1q_s8(x[0]) => _, x1 = inout(vreg) vld1q_s8(x[1]) => _,
            p0 = in(reg) x[0], p1 = in(reg) x[1],
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    [s0, s1]
}

/// As [`two`], with four tokens.
///
/// # Safety
/// As [`two`].
#[inline(always)]
unsafe fn four(start: int32x4_t, w: [int8x16_t; 8], x: [*const i8; 4]) -> [int32x4_t; 4] {
    macro_rules! step {
        ($w:literal, $lane:literal) => {
            step!($w, $lane, "", "", "", "")
        };
        ($w:literal, $lane:literal, $then0:literal, $then1:literal, $then2:literal, $then3:literal) => {
            concat!(
                "sdot {s0:v}.4s, {w",
                $w,
                ":v}.16b, {x0:v}.4b[",
                $lane,
                "]\n",
                $then0,
                "sdot {s1:v}.4s, {w",
                $w,
                ":v}.16b, {x1:v}.4b[",
                $lane,
                "]\n",
                $then1,
                "sdot {s2:v}.4s, {w",
                $w,
                ":v}.16b, {x2:v}.4b[",
                $lane,
                "]\n",
                $then2,
                "sdot {s3:v}.4s, {w",
                $w,
                ":v}.16b, {x3:v}.4b[",
                $lane,
                "]\n",
                $then3
            )
        };
    }
    let (mut s0, mut s1, mut s2, mut s3) = (start, start, start, start);
    // SAFETY: as the caller vouches.
    unsafe {
        asm!(
            step!(0, 0), step!(1, 1), step!(2, 2),
            step!(3, 3, "ldr {x0:q}, [{p0}, #16]\n", "ldr {x1:q}, [{p1}, #16]\n",
                "ldr {x2:q}, [{p2}, #16]\n", "ldr {x3:q}, [{p3}, #16]\n"),
            step!(4, 0), step!(5, 1), step!(6, 2), step!(7, 3),
            s0 = inout(vreg) s0, s1 = inout(vreg) s1, s2 = inout(vreg) s2, s3 = inout(vreg) s3,
            w0 = in(vreg) w[0], w1 = in(vreg) w[1], w2 = in(vreg) w[2], w3 = in(vreg) w[3],
            w4 = in(vreg) w[4], w5 = in(vreg) w[5], w6 = in(vreg) w[6], w7 = in(vreg) w[7],
            x0 = inout(vreg) vld1q_s8(x[0]) => _, x1 = inout(vreg) vld1q_s8(x[1]) => _,
            x2 = inout(vreg) vld1q_s8(x[2]) => _, x3 = inout(vreg) vld1q_s8(x[3]) => _,
            p0 = in(reg) x[0], p1 = in(reg) x[1], p2 = in(reg) x[2], p3 = in(reg) x[3],
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    [s0, s1, s2, s3]
}

/// Sums that start from `start` of two tokens' 32 inputs times codes as [`Smmla`] arranges them.
///
/// # Safety
/// The CPU has `smmla`; each `x` is valid for reading 32 bytes.
#[inline(always)]
unsafe fn matrix(start: int32x4_t, w: [int8x16_t; 8], x: [*const i8; 2]) -> [int32x4_t; 2] {
    let (mut s0, mut s1) = (start, start);
    // SAFETY: as the caller vouches.
    unsafe {
        asm!(
            "ldr {x0:q}, [{p0}]", "ldr {x1:q}, [{p1}]", "ldr {x2:q}, [{p0}, #16]", "ldr {x3:q}, [{p1}, #16]",
            "zip1 {z:v}.2d, {x0:v}.2d, {x1:v}.2d", "zip2 {x0:v}.2d, {x0:v}.2d, {x1:v}.2d",
            "zip1 {x1:v}.2d, {x2:v}.2d, {x3:v}.2d", "zip2 {x2:v}.2d, {x2:v}.2d, {x3:v}.2d",
            "smmla {s0:v}.4s, {w0:v}.16b, {z:v}.16b", "smmla {s1:v}.4s, {w4:v}.16b, {z:v}.16b",
            "smmla {s0:v}.4s, {w1:v}.16b, {x0:v}.16b", "smmla {s1:v}.4s, {w5:v}.16b, {x0:v}.16b",
            "smmla {s0:v}.4s, {w2:v}.16b, {x1:v}.16b", "smmla {s1:v}.4s, {w6:v}.16b, {x1:v}.16b",
            "smmla {s0:v}.4s, {w3:v}.16b, {x2:v}.16b", "smmla {s1:v}.4s, {w7:v}.16b, {x2:v}.16b",
            s0 = inout(vreg) s0, s1 = inout(vreg) s1,
            w0 = in(vreg) w[0], w1 = in(vreg) w[1], w2 = in(vreg) w[2], w3 = in(vreg) w[3],
            w4 = in(vreg) w[4], w5 = in(vreg) w[5], w6 = in(vreg) w[6], w7 = in(vreg) w[7],
            x0 = out(vreg) _, x1 = out(vreg) _, x2 = out(vreg) _, x3 = out(vreg) _, z = out(vreg) _,
            p0 = in(reg) x[0], p1 = in(reg) x[1],
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    op!([vuzp1q_s32(s0, s1), vuzp2q_s32(s0, s1)])
}

// SAFETY: base instructions and `sdot`, of `MATRIX` also `smmla`.
unsafe impl<const MATRIX: bool> Dot for Products<MATRIX> {
    const BIAS: i32 = BIAS;
    const TOGETHER: usize = 4;

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
    fn rows(_max: i32, [(a, b), (c, d)]: [Rows; 2], x: [int8x16_t; 4], start: Start) -> [int32x4_t; 2] {
        let (mut p, mut q, mut r, mut s) = (start.halves, start.halves, start.halves, start.halves);
        let mut i = 0;
        while i < 4 {
            // In this order no chain waits for itself.
            // SAFETY: registers only.
            unsafe {
                asm!(
                    "sdot {p:v}.4s, {a:v}.16b, {x:v}.16b", "sdot {q:v}.4s, {b:v}.16b, {x:v}.16b",
                    "sdot {r:v}.4s, {c:v}.16b, {x:v}.16b", "sdot {s:v}.4s, {d:v}.16b, {x:v}.16b",
                    p = inout(vreg) p, q = inout(vreg) q, r = inout(vreg) r, s = inout(vreg) s,
                    a = in(vreg) a[i], b = in(vreg) b[i], c = in(vreg) c[i], d = in(vreg) d[i], x = in(vreg) x[i],
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
            i += 1;
        }
        op!([vpaddq_s32(p, q), vpaddq_s32(r, s)])
    }

    /// The four rows side by side, four inputs at a time; for `smmla` rows 0 and 1, then 2 and 3, as they lie in the file.
    #[inline(always)]
    fn arrange((a, b): Rows) -> [int8x16_t; 8] {
        if MATRIX {
            return [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]];
        }
        op!({
            let words = |p, q| {
                let (p, q) = words(vreinterpretq_u8_s8(p), vreinterpretq_u8_s8(q));
                (vreinterpretq_s8_u8(p), vreinterpretq_s8_u8(q))
            };
            let ((w0, w1), (w2, w3)) = (words(a[0], b[0]), words(a[1], b[1]));
            let ((w4, w5), (w6, w7)) = (words(a[2], b[2]), words(a[3], b[3]));
            [w0, w1, w2, w3, w4, w5, w6, w7]
        })
    }

    #[inline(always)]
    fn arrange_nibbles(a: [uint8x16_t; 2], b: [uint8x16_t; 2]) -> Option<[uint8x16_t; 4]> {
        if MATRIX {
            return None;
        }
        let ((w0, w1), (w2, w3)) = (words(a[0], b[0]), words(a[1], b[1]));
        Some([w0, w1, w2, w3])
    }

    #[inline(always)]
    unsafe fn group<const N: usize>(_max: i32, w: [int8x16_t; 8], x: [*const i8; N], start: Start) -> [int32x4_t; N] {
        let mut sums = [start.whole; N];
        // SAFETY: passed on; N is 2 or 4.
        unsafe {
            if MATRIX {
                [sums[0], sums[1]] = matrix(start.whole, w, [x[0], x[1]]);
                if N == 4 {
                    [sums[2], sums[3]] = matrix(start.whole, w, [x[2], x[3]]);
                }
            } else if N == 4 {
                [sums[0], sums[1], sums[2], sums[3]] = four(start.whole, w, [x[0], x[1], x[2], x[3]]);
            } else {
                [sums[0], sums[1]] = two(start.whole, w, [x[0], x[1]]);
            }
        }
        sums
    }

    #[inline(always)]
    fn times(sum: int32x4_t, m: float32x4_t, least: float32x4_t) -> float32x4_t {
        // m·(1.5·2^23 + d) − m·1.5·2^23 in one instruction: the product and the difference are exact before its one
        // rounding, so it is the contract's f32(d)·m and no fused arithmetic. The conversion would cost two slots of the
        // one pipe that has it.
        op!(vfmaq_f32(least, vreinterpretq_f32_s32(sum), m))
    }
}
