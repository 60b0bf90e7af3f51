//! The small set of register operations that every kernel body is written over.
//!
//! A value of a type that implements [`Isa`] is a proof that the instructions exist on this CPU, so its arithmetic
//! methods are safe; only methods that take pointers are unsafe. All float operations are single IEEE-754
//! binary32 operations, rounded to nearest even, never fused: that is the arithmetic contract, and it makes
//! the same body give the same bits at every level.
//!
//! `L` is the number of 32-bit lanes of a register. Bodies whose result depends on the number of lanes (row
//! reductions) must work on 16 logical lanes, that is on `16 / L` registers, and combine them with the fixed tree of
//! the `reduce` helpers.

#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
pub mod arm;
#[cfg(all(target_arch = "arm", feature = "dsp"))]
pub mod cortex_m;
pub mod scalar;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
pub mod wasm;
#[cfg(target_arch = "x86_64")]
pub mod x86;

/// One instruction-set level's registers and operations.
///
/// # Safety
/// A value must only be constructible where the CPU has the instructions that the methods use.
pub unsafe trait Isa: Copy + 'static {
    /// 32-bit lanes in a register: 1, 4, 8 or 16.
    const L: usize;
    /// Vector registers that a tile may count on (of `L` lanes each).
    const REGISTERS: usize = 16;
    /// `L` × f32.
    type F: Copy;
    /// `L` × i32 (also the lane mask of comparisons: all ones or zero).
    type I: Copy;

    /// The proof value.
    /// # Safety
    /// The CPU has this level's instructions.
    unsafe fn proof() -> Self;

    /// Asks for the cache line at `p`, which need not be valid: it will be read soon. A hint; levels without one do nothing.
    #[inline(always)]
    fn prefetch(self, _p: *const u8) {}
    /// How far before its use a line of weights is asked for, in bytes. Measured with small pages: flat from 1.5 to 6 KiB.
    const AHEAD: usize = 3072;
    /// Asks for the line at `p` to come into the second-level cache, as [`Isa::prefetch`] does into the first. A core waits for few
    /// lines of the first at a time, and for several times as many of the second.
    #[inline(always)]
    fn prefetch_far(self, _p: *const u8) {}
    /// All lanes `v`.
    fn splat(self, v: f32) -> Self::F;
    /// Loads `L` floats (unaligned).
    /// # Safety
    /// `p` is valid for reading `L` f32.
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// Stores `L` floats (unaligned).
    /// # Safety
    /// `p` is valid for writing `L` f32.
    unsafe fn store(self, p: *mut f32, v: Self::F);
    /// Loads `L` binary16 values and widens them (exact).
    /// # Safety
    /// `p` is valid for reading `L` u16.
    unsafe fn load_f16(self, p: *const u16) -> Self::F;
    /// Narrows to binary16, to nearest even, and stores.
    /// # Safety
    /// `p` is valid for writing `L` u16.
    unsafe fn store_f16(self, p: *mut u16, v: Self::F);
    /// a + b.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// a − b.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a / b, correctly rounded.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// √a, correctly rounded.
    fn sqrt(self, a: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`: `b` when either is NaN, on every level.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// Lane mask of `a < b`.
    fn lt(self, a: Self::F, b: Self::F) -> Self::I;
    /// `mask ? a : b` per lane.
    fn select(self, mask: Self::I, a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even; `i32::MIN` where it does not fit or is NaN, on every level.
    fn round_i(self, a: Self::F) -> Self::I;
    /// Integer to float, to nearest even.
    fn to_f(self, a: Self::I) -> Self::F;
    /// The bits of the floats.
    fn bits(self, a: Self::F) -> Self::I;
    /// Floats from bits.
    #[expect(clippy::wrong_self_convention, reason = "self is the proof, not the operand")]
    fn from_bits(self, a: Self::I) -> Self::F;

    /// The lanes added up: the upper half onto the lower, until one is left.
    #[inline(always)]
    fn sum_of_lanes(self, a: Self::F) -> f32 {
        fold_lanes(self, a, |a, b| a + b)
    }
    /// The largest lane, by [`Isa::max`] in the order of [`Isa::sum_of_lanes`].
    #[inline(always)]
    fn max_of_lanes(self, a: Self::F) -> f32 {
        fold_lanes(self, a, |a, b| if a > b { a } else { b })
    }
    /// The integer lanes added up, wrapping.
    #[inline(always)]
    fn sum_of_lanes_i(self, a: Self::I) -> i32 {
        let mut lanes = [0i32; LANES];
        // SAFETY: L <= 16.
        unsafe { self.store_i(lanes.as_mut_ptr(), a) };
        let mut sum = lanes[0];
        let mut i = 1;
        while i < Self::L {
            sum = sum.wrapping_add(lanes[i]);
            i += 1;
        }
        sum
    }

    /// All lanes `v`.
    fn splat_i(self, v: i32) -> Self::I;
    /// a + b, wrapping.
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// a − b, wrapping.
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise and.
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise or.
    fn or_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise exclusive or.
    fn xor_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Shift left by a constant.
    fn shl_i<const N: u32>(self, a: Self::I) -> Self::I;
    /// Arithmetic shift right by a constant.
    fn sar_i<const N: u32>(self, a: Self::I) -> Self::I;
    /// Loads `L` i32 (unaligned).
    /// # Safety
    /// `p` is valid for reading `L` i32.
    unsafe fn load_i(self, p: *const i32) -> Self::I;
    /// Stores `L` i32 (unaligned).
    /// # Safety
    /// `p` is valid for writing `L` i32.
    unsafe fn store_i(self, p: *mut i32, v: Self::I);
    /// Loads `L` i8 and sign-extends.
    /// # Safety
    /// `p` is valid for reading `L` bytes.
    unsafe fn load_i8(self, p: *const i8) -> Self::I;
    /// Narrows to i8 with saturation and stores `L` bytes.
    /// # Safety
    /// `p` is valid for writing `L` bytes.
    unsafe fn store_i8(self, p: *mut i8, v: Self::I);
}

/// What integer sums start from that become floats without a conversion. As a float's bits: 1.5·2²³, whose last bit counts 1, so
/// that BIAS + d are the bits of 1.5·2²³ + d while |d| < 2²².
pub const BIAS: i32 = 0x4b40_0000;

/// Tokens of [`Bytes::dots_together`].
pub const TOGETHER: usize = 8;

/// The operations on bytes of a level that multiplies codes in vectors.
///
/// # Safety
/// As [`Isa`].
pub unsafe trait Bytes: Isa {
    /// `4·L` bytes: `L / 2` slots of 8 consecutive k.
    type B: Copy;
    /// What [`Bytes::dots_s`] adds to the wanted sum: this many times Σx. The caller, who knows Σx, subtracts it.
    const SIGNED_OFFSET: i32 = 0;

    /// Loads `4·L` bytes (unaligned).
    /// # Safety
    /// `p` is valid for reading `4·L` bytes.
    unsafe fn load_b(self, p: *const u8) -> Self::B;
    /// The 8 bytes at `p` in every slot.
    /// # Safety
    /// `p` is valid for reading 8 bytes.
    unsafe fn splat8(self, p: *const i8) -> Self::B;
    /// The 16 bytes at `p`, repeated (a table for [`Bytes::lookup`]).
    /// # Safety
    /// `p` is valid for reading 16 bytes.
    unsafe fn table(self, p: *const u8) -> Self::B;
    /// Low nibbles.
    fn lo(self, a: Self::B) -> Self::B;
    /// High nibbles.
    fn hi(self, a: Self::B) -> Self::B;
    /// `table[a]` per byte; every byte of `a` is 0…15.
    fn lookup(self, table: Self::B, a: Self::B) -> Self::B;
    /// Per lane: `acc + Σ₄ w·x`, `w` unsigned 0…127, `x` signed −127…127; exact.
    fn dot_u(self, acc: Self::I, w: Self::B, x: Self::B) -> Self::I;
    /// Per lane: `acc + Σ₄ w·x`, `w` signed −128…127, `x` signed −127…127; exact.
    fn dot_s(self, acc: Self::I, w: Self::B, x: Self::B) -> Self::I;
    /// Adds neighbouring lanes, `a`'s pairs first: lane `r` holds both lanes of slot `r`, counting the slots of `a`
    /// and then those of `b`. On 256-bit registers the two operands' 128-bit halves interleave instead, which
    /// [`crate::weights::SLOT_ROW`] undoes; [`strip`] names the registers whose pair sum has its rows in order.
    fn pair_sum(self, a: Self::I, b: Self::I) -> Self::I;

    /// The even and the odd lanes of `a` and `b`, each in the order of [`Bytes::pair_sum`]: of every slot the first and
    /// the second four bytes.
    fn deal(self, a: Self::B, b: Self::B) -> (Self::B, Self::B);

    /// Per lane: `Σᵢ dot_u(w[i], x[i])`; every `w` is in 0…`max` ≤ 127. A small `max` lets levels without a 32-bit dot
    /// instruction add up in 16 bits.
    #[inline(always)]
    fn dots_u<const N: usize>(self, _max: i32, w: [Self::B; N], x: [Self::B; N]) -> Self::I {
        let mut sum = self.splat_i(0);
        let mut i = 0;
        while i < N {
            sum = self.dot_u(sum, w[i], x[i]);
            i += 1;
        }
        sum
    }
    /// Brings signed codes into the form that [`Bytes::dots_s`] reads.
    #[inline(always)]
    fn prepare_s(self, w: Self::B) -> Self::B {
        w
    }
    /// Per lane: `Σᵢ (w[i] + SIGNED_OFFSET)·x[i]`; `w` went through [`Bytes::prepare_s`].
    #[inline(always)]
    fn dots_s<const N: usize>(self, w: [Self::B; N], x: [Self::B; N]) -> Self::I {
        let mut sum = self.splat_i(0);
        let mut i = 0;
        while i < N {
            sum = self.dot_s(sum, w[i], x[i]);
            i += 1;
        }
        sum
    }
    /// The four bytes at `p` in every lane.
    /// # Safety
    /// `p` is valid for reading 4 bytes.
    unsafe fn splat4(self, p: *const i8) -> Self::B;
    /// `start + dots_u`: levels whose instruction adds to what is there begin with it.
    #[inline(always)]
    fn dots_from<const N: usize>(self, start: Self::I, max: i32, w: [Self::B; N], x: [Self::B; N]) -> Self::I {
        self.add_i(start, self.dots_u(max, w, x))
    }
    /// `start + dots_s`.
    #[inline(always)]
    fn dots_s_from<const N: usize>(self, start: Self::I, w: [Self::B; N], x: [Self::B; N]) -> Self::I {
        if Self::SIGNED_OFFSET == 0 { self.add_i(start, self.dots_s(w, x)) } else { self.dots_from(start, 255, w, x) }
    }
    /// The 32 bytes at `x`, four per register, in every lane.
    ///
    /// # Safety
    /// `x` is valid for reading 32 bytes.
    #[inline(always)]
    unsafe fn lanes_of_group(self, x: *const i8) -> [Self::B; 8] {
        // SAFETY: the caller vouches for the 32 bytes.
        unsafe {
            [
                self.splat4(x),
                self.splat4(x.add(4)),
                self.splat4(x.add(8)),
                self.splat4(x.add(12)),
                self.splat4(x.add(16)),
                self.splat4(x.add(20)),
                self.splat4(x.add(24)),
                self.splat4(x.add(28)),
            ]
        }
    }
    /// Whether integer sums with integer multipliers should start from [`BIAS`], for [`Bytes::times`].
    const FUSES: bool = false;
    /// `f32(d)·m` where `sum = d + BIAS`, |d| < 2²², `m` is an integer up to 128 and `least = −m·f32(BIAS's bits)`: multiplied and
    /// added in one. The product and the difference are exact before its one rounding, so it is the contract's f32(d)·m and no
    /// fused arithmetic. Only a zero's sign is open, which sums that begin with +0 do not keep.
    #[inline(always)]
    fn times(self, sum: Self::I, m: Self::F, _least: Self::F) -> Self::F {
        self.mul(self.to_f(self.sub_i(sum, self.splat_i(BIAS))), m)
    }
    /// Whether [`Bytes::dots_together`] is better than one token after the other: where registers are many and a dot product is
    /// one instruction.
    const SIDE_BY_SIDE: bool = false;
    /// For each token `start + Σᵢ dot_u(w[i], x[i])`; codes that went through [`Bytes::prepare_s`] count as they are then.
    ///
    /// # Safety
    /// For each token `t`, `x + t·stride` is valid for reading 32 bytes.
    #[inline(always)]
    unsafe fn dots_together(
        self,
        start: [Self::I; TOGETHER],
        w: [Self::B; 8],
        x: *const u8,
        stride: usize,
    ) -> [Self::I; TOGETHER] {
        let mut sums = start;
        let mut t = 0;
        while t < TOGETHER {
            // SAFETY: the caller vouches for the bytes.
            let x = unsafe { self.lanes_of_group(x.add(t * stride).cast()) };
            let mut j = 0;
            while j < w.len() {
                sums[t] = self.dot_u(sums[t], w[j], x[j]);
                j += 1;
            }
            t += 1;
        }
        sums
    }
    /// Largest code up to which [`Bytes::pairs_from`] beats [`Bytes::dots_from`] of registers of four inputs (255 stands for
    /// signed codes): where broadcasts are instructions of their own, half of them are worth two shuffles.
    const PAIRS_UP_TO: i32 = 0;
    /// `start` and the pair sum of both dot products with `x`, as [`Bytes::dots_u`] computes them.
    #[inline(always)]
    fn pairs_from(self, start: Self::I, max: i32, a: [Self::B; 4], b: [Self::B; 4], x: [Self::B; 4]) -> Self::I {
        self.add_i(start, self.pair_sum(self.dots_u(max, a, x), self.dots_u(max, b, x)))
    }
    /// The same of signed codes, as [`Bytes::dots_s`] computes them.
    #[inline(always)]
    fn pairs_s_from(self, start: Self::I, a: [Self::B; 4], b: [Self::B; 4], x: [Self::B; 4]) -> Self::I {
        self.add_i(start, self.pair_sum(self.dots_s(a, x), self.dots_s(b, x)))
    }
    /// `(a << SHL >> SHR) & mask` per byte, one of the shifts being 0 (moves a bit plane into place).
    fn plane<const SHL: u32, const SHR: u32>(self, a: Self::B, mask: u8) -> Self::B;
    /// Bitwise or.
    fn or_b(self, a: Self::B, b: Self::B) -> Self::B;
}

/// The two registers of a line (or, with 16 lanes, of the two halves' lines) whose pair sum is strip `s`, that is rows
/// `s·L..s·L + L` of the panel: byte offsets from the line in the first half, `half` being the distance to the other
/// half's line.
#[inline(always)]
pub const fn strip<I: Bytes>(s: usize, half: usize) -> (usize, usize) {
    match I::L {
        16 => (0, half),
        8 => (s * half, s * half + 32),
        4 => ((s / 2) * half + (s % 2) * 16, (s / 2) * half + (s % 2) * 16 + 32),
        _ => panic!("no such register width"),
    }
}

/// Lanes that a row reduction works on, at every level.
pub const LANES: usize = 16;

/// The sum of 16 logical lanes held in `16 / L` registers: lane `i + 8` onto `i`, `i + 4` onto `i`, `+ 2`, `+ 1`.
#[inline(always)]
pub fn sum_lanes<I: Isa>(isa: I, regs: &[I::F]) -> f32 {
    isa.sum_of_lanes(fold_registers::<I>(
        regs,
        #[inline(always)]
        |a, b| isa.add(a, b),
    ))
}

/// The largest of 16 logical lanes by the tree of [`sum_lanes`]; `max(a, b)` is [`Isa::max`].
#[inline(always)]
pub fn max_lanes<I: Isa>(isa: I, regs: &[I::F]) -> f32 {
    isa.max_of_lanes(fold_registers::<I>(
        regs,
        #[inline(always)]
        |a, b| isa.max(a, b),
    ))
}

#[inline(always)]
fn fold_registers<I: Isa>(regs: &[I::F], f: impl Fn(I::F, I::F) -> I::F) -> I::F {
    assert!(regs.len() == LANES / I::L);
    let mut folded = [regs[0]; LANES];
    let mut i = 1;
    while i < regs.len() {
        folded[i] = regs[i];
        i += 1;
    }
    let mut n = regs.len() / 2;
    while n > 0 {
        let mut i = 0;
        while i < n {
            folded[i] = f(folded[i], folded[i + n]);
            i += 1;
        }
        n /= 2;
    }
    folded[0]
}

#[inline(always)]
fn fold_lanes<I: Isa>(isa: I, a: I::F, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    // SAFETY: L <= 16.
    unsafe { isa.store(lanes.as_mut_ptr(), a) };
    let mut n = I::L / 2;
    while n > 0 {
        let mut i = 0;
        while i < n {
            lanes[i] = f(lanes[i], lanes[i + n]);
            i += 1;
        }
        n /= 2;
    }
    lanes[0]
}
