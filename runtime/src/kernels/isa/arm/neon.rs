//! 128-bit registers. The levels share everything but the dot products, which are [`Quad`]'s parameter.

use core::arch::aarch64::*;
use core::marker::PhantomData;

use super::Dot;
use crate::kernels::isa::{Bytes, Isa};

/// Proof of NEON and `D`'s instructions.
#[derive(Clone, Copy, Debug)]
pub struct Quad<D>(PhantomData<D>);

// SAFETY: the only constructor is the unsafe `proof`.
unsafe impl<D: Dot> Isa for Quad<D> {
    const L: usize = 4;
    const REGISTERS: usize = 32;
    type F = float32x4_t;
    type I = int32x4_t;

    #[inline(always)]
    unsafe fn proof() -> Self {
        Self(PhantomData)
    }
    #[inline(always)]
    fn splat(self, v: f32) -> Self::F {
        op!(vdupq_n_f32(v))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        op!(vld1q_f32(p))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::F) {
        op!(vst1q_f32(p, v))
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::F {
        op!(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))))
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: Self::F) {
        op!(vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))))
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        op!(vaddq_f32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        op!(vsubq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        op!(vmulq_f32(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        op!(vdivq_f32(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        op!(vsqrtq_f32(a))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // Not `fmax`, which returns NaN where either operand is one.
        op!(vbslq_f32(vcgtq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        op!(vbslq_f32(vcltq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::I {
        op!(vreinterpretq_s32_u32(vcltq_f32(a, b)))
    }
    #[inline(always)]
    fn select(self, mask: Self::I, a: Self::F, b: Self::F) -> Self::F {
        op!(vbslq_f32(vreinterpretq_u32_s32(mask), a, b))
    }
    #[inline(always)]
    fn round_i(self, a: Self::F) -> Self::I {
        // The conversion saturates, and makes 0 of NaN.
        op!(vbslq_s32(vcltq_f32(a, vdupq_n_f32(2_147_483_648.0)), vcvtnq_s32_f32(a), vdupq_n_s32(i32::MIN)))
    }
    #[inline(always)]
    fn to_f(self, a: Self::I) -> Self::F {
        op!(vcvtq_f32_s32(a))
    }
    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        op!(vreinterpretq_s32_f32(a))
    }
    #[inline(always)]
    fn from_bits(self, a: Self::I) -> Self::F {
        op!(vreinterpretq_f32_s32(a))
    }

    #[inline(always)]
    fn splat_i(self, v: i32) -> Self::I {
        op!(vdupq_n_s32(v))
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(vaddq_s32(a, b))
    }
    #[inline(always)]
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(vsubq_s32(a, b))
    }
    #[inline(always)]
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(vandq_s32(a, b))
    }
    #[inline(always)]
    fn or_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(vorrq_s32(a, b))
    }
    #[inline(always)]
    fn xor_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(veorq_s32(a, b))
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: Self::I) -> Self::I {
        // The shift by a register of constants becomes one by a constant.
        op!(vshlq_s32(a, vdupq_n_s32(N as i32)))
    }
    #[inline(always)]
    fn sar_i<const N: u32>(self, a: Self::I) -> Self::I {
        op!(vshlq_s32(a, vdupq_n_s32(-(N as i32))))
    }
    #[inline(always)]
    unsafe fn load_i(self, p: *const i32) -> Self::I {
        op!(vld1q_s32(p))
    }
    #[inline(always)]
    unsafe fn store_i(self, p: *mut i32, v: Self::I) {
        op!(vst1q_s32(p, v))
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> Self::I {
        op!({
            let bytes = vreinterpret_s8_s32(vdup_n_s32(p.cast::<i32>().read_unaligned()));
            vmovl_s16(vget_low_s16(vmovl_s8(bytes)))
        })
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: Self::I) {
        op!({
            let words = vqmovn_s32(v);
            let bytes = vqmovn_s16(vcombine_s16(words, words));
            p.cast::<i32>().write_unaligned(vget_lane_s32::<0>(vreinterpret_s32_s8(bytes)))
        })
    }
}

// SAFETY: as above.
unsafe impl<D: Dot> Bytes for Quad<D> {
    type B = uint8x16_t;

    #[inline(always)]
    unsafe fn load_b(self, p: *const u8) -> Self::B {
        op!(vld1q_u8(p))
    }
    #[inline(always)]
    unsafe fn splat8(self, p: *const i8) -> Self::B {
        op!(vreinterpretq_u8_u64(vdupq_n_u64(p.cast::<u64>().read_unaligned())))
    }
    #[inline(always)]
    unsafe fn table(self, p: *const u8) -> Self::B {
        op!(vld1q_u8(p))
    }
    #[inline(always)]
    fn lo(self, a: Self::B) -> Self::B {
        op!(vandq_u8(a, vdupq_n_u8(15)))
    }
    #[inline(always)]
    fn hi(self, a: Self::B) -> Self::B {
        op!(vshrq_n_u8::<4>(a))
    }
    #[inline(always)]
    fn lookup(self, table: Self::B, a: Self::B) -> Self::B {
        op!(vqtbl1q_u8(table, a))
    }
    #[inline(always)]
    fn plane<const SHL: u32, const SHR: u32>(self, a: Self::B, mask: u8) -> Self::B {
        op!(vandq_u8(vshlq_u8(a, vdupq_n_s8(SHL as i8 - SHR as i8)), vdupq_n_u8(mask)))
    }
    #[inline(always)]
    fn or_b(self, a: Self::B, b: Self::B) -> Self::B {
        op!(vorrq_u8(a, b))
    }

    #[inline(always)]
    fn dot_u(self, acc: Self::I, w: Self::B, x: Self::B) -> Self::I {
        self.dot_s(acc, w, x)
    }
    #[inline(always)]
    fn dot_s(self, acc: Self::I, w: Self::B, x: Self::B) -> Self::I {
        self.add_i(acc, self.dots_u(128, [w], [x]))
    }
    #[inline(always)]
    fn dots_u<const N: usize>(self, max: i32, w: [Self::B; N], x: [Self::B; N]) -> Self::I {
        D::dots(max, w.map(signed), x.map(signed))
    }
    #[inline(always)]
    fn dots_s<const N: usize>(self, w: [Self::B; N], x: [Self::B; N]) -> Self::I {
        self.dots_u(128, w, x)
    }
    #[inline(always)]
    fn pair_sum(self, a: Self::I, b: Self::I) -> Self::I {
        op!(vpaddq_s32(a, b))
    }
    #[inline(always)]
    fn deal(self, a: Self::B, b: Self::B) -> (Self::B, Self::B) {
        op!({
            let (a, b) = (vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b));
            (vreinterpretq_u8_u32(vuzp1q_u32(a, b)), vreinterpretq_u8_u32(vuzp2q_u32(a, b)))
        })
    }
    #[inline(always)]
    unsafe fn splat4(self, p: *const i8) -> Self::B {
        op!(vreinterpretq_u8_u32(vdupq_n_u32(p.cast::<u32>().read_unaligned())))
    }
}

/// Bytes as signed numbers.
#[inline(always)]
fn signed(a: uint8x16_t) -> int8x16_t {
    op!(vreinterpretq_s8_u8(a))
}
