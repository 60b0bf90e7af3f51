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

/// One instruction-set level's registers and operations.
///
/// # Safety
/// A value must only be constructible where the CPU has the instructions that the methods use.
pub unsafe trait Isa: Copy + 'static {
    /// 32-bit lanes in a register: 2, 4, 8 or 16.
    const L: usize;
    /// `L` × f32.
    type F: Copy;
    /// `L` × i32 (also the lane mask of comparisons: all ones or zero).
    type I: Copy;
    /// `4·L` bytes: `L / 2` slots of 8 consecutive k.
    type B: Copy;

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
    fn from_bits(self, a: Self::I) -> Self::F;

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

    /// Loads `4·L` bytes (unaligned).
    /// # Safety
    /// `p` is valid for reading `4·L` bytes.
    unsafe fn load_b(self, p: *const u8) -> Self::B;
    /// The 8 bytes at `p` in every slot.
    /// # Safety
    /// `p` is valid for reading 8 bytes.
    unsafe fn splat8(self, p: *const i8) -> Self::B;
    /// The 16 bytes at `p`, repeated (a table for [`Isa::lookup`]).
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
    /// Adds neighbouring lanes: slots of `a` then of `b` in, rows in order out (see
    /// [`crate::weights::SLOT_ROW`]): lane `r` = both lanes of row `r`'s slot.
    fn pair_sum(self, a: Self::I, b: Self::I) -> Self::I;
}
