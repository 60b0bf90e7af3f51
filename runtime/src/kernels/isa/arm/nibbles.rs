//! 16 rows of 4-bit codes times a group of one token, by `sdot`, with the scaling and the sums of floats.
//!
//! A line's registers hold two rows each, eight inputs in the low nibbles and eight in the high ones. Two lines, the codes
//! of eight rows, are taken at a time:
//!
//! ```text
//! v0 … v3     sums of floats of the 16 rows          v8 … v11, v28 … v31   low nibbles; then scales and products
//! v4          15 in every byte                       v12 … v15             dot products, two lanes a row
//! v5          what nibbles stand for (q4)            v16 … v19             inputs, the same 8 in both halves
//! v6          where multipliers of one byte go       v20 … v27             the two lines; then high nibbles
//! v7          1.5·2^23
//! ```
//! Dot products start from [`BIAS`] less what the codes' offset makes, so that as bits of a float they are 1.5·2^23 + d,
//! and a subtraction gives d.
//!
//! The order is for processors that start instructions in order: those that take equally long stand together, and loads
//! beside shifts, conversions and multiplications by a lane. The second half's codes are loaded while the first half's
//! products are scaled.

use core::arch::aarch64::*;
use core::arch::asm;

use super::dot::{BIAS, keep_in_register};

/// How a group's scales are stored, and what follows from it (`x` is the group's scale of the token):
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scaling {
    /// int8: `(d·m)·x`.
    Integers,
    /// binary16: `d·(s·x)`.
    Halves,
    /// binary16, minima after the scales: `d·(s·x) + Σx·(m·x)`.
    HalvesAndMinima,
}

/// What nibbles stand for.
macro_rules! look_up {
    ($($codes:literal)+) => {
        concat!($("tbl v", $codes, ".16b, {{v5.16b}}, v", $codes, ".16b\n"),+)
    };
}

/// Nibbles stand for themselves.
macro_rules! keep {
    ($($codes:literal)+) => {
        ""
    };
}

/// Inputs times codes, added to dot products.
macro_rules! times {
    ($x:literal: $($sum:literal += $codes:literal),+) => {
        concat!($("sdot v", $sum, ".4s, v", $codes, ".16b, v", $x, ".16b\n"),+)
    };
}

/// The dot products of eight rows, whose codes are loaded. `$load`s are further instructions, to go beside shifts.
macro_rules! products {
    ($nibble:ident, $load0:expr, $load1:expr, $load2:expr) => {
        concat!(
            "and v8.16b, v20.16b, v4.16b\nand v9.16b, v21.16b, v4.16b\n",
            "and v10.16b, v22.16b, v4.16b\nand v11.16b, v23.16b, v4.16b\n",
            "and v28.16b, v24.16b, v4.16b\nand v29.16b, v25.16b, v4.16b\n",
            "and v30.16b, v26.16b, v4.16b\nand v31.16b, v27.16b, v4.16b\n",
            "ushr v20.16b, v20.16b, #4\nldur q12, [{x}, #64]\nushr v21.16b, v21.16b, #4\nldur q13, [{x}, #64]\n",
            "ushr v22.16b, v22.16b, #4\nldur q14, [{x}, #64]\nushr v23.16b, v23.16b, #4\nldur q15, [{x}, #64]\n",
            "ushr v24.16b, v24.16b, #4\n", $load0, "ushr v25.16b, v25.16b, #4\n", $load1,
            "ushr v26.16b, v26.16b, #4\n", $load2, "ushr v27.16b, v27.16b, #4\n",
            $nibble!(8 9 10 11 28 29 30 31 20 21 22 23 24 25 26 27),
            times!(16: 12 += 8, 13 += 9, 14 += 10, 15 += 11), times!(17: 12 += 28, 13 += 29, 14 += 30, 15 += 31),
            times!(18: 12 += 20, 13 += 21, 14 += 22, 15 += 23), times!(19: 12 += 24, 13 += 25, 14 += 26, 15 += 27),
        )
    };
}

/// Adds the dot products of rows 0…7, scaled, to sums. `$load`s are further instructions, to go beside others.
macro_rules! first_half {
    ($scaled:ident, $load0:expr, $load1:expr, $load2:expr, $load3:expr) => {
        $scaled!("0", "1", ["0" "4" "0" "32"], $load0, $load1, $load2, $load3)
    };
}

/// As [`first_half`], of rows 8…15.
macro_rules! second_half {
    ($scaled:ident) => {
        $scaled!("2", "3", ["8" "12" "16" "48"], "", "", "", "")
    };
}

/// Dot products as floats, in v8 and v9.
macro_rules! exact {
    () => {
        "fsub v8.4s, v8.4s, v7.4s\nfsub v9.4s, v9.4s, v7.4s\n"
    };
}

/// v8 and v9 are added to sums.
macro_rules! add {
    ($sum0:literal, $sum1:literal) => {
        concat!("fadd v", $sum0, ".4s, v", $sum0, ".4s, v8.4s\nfadd v", $sum1, ".4s, v", $sum1, ".4s, v9.4s\n",)
    };
}

/// [`Scaling::Integers`]. A multiplier goes to the top of a lane, and the conversion divides by 2^24.
macro_rules! integers {
    ($sum0:literal, $sum1:literal, [$m0:literal $m1:literal $_s:literal $_m:literal],
     $load0:expr, $load1:expr, $load2:expr, $load3:expr) => {
        concat!(
            "ldur s10, [{m}, #",
            $m0,
            "]\nldur s11, [{m}, #",
            $m1,
            "]\nldur s28, [{x}, #80]\n",
            "tbl v10.16b, {{v10.16b}}, v6.16b\ntbl v11.16b, {{v11.16b}}, v6.16b\n",
            "addp v8.4s, v12.4s, v13.4s\n",
            $load0,
            "addp v9.4s, v14.4s, v15.4s\n",
            $load1,
            "scvtf v10.4s, v10.4s, #24\n",
            $load2,
            "scvtf v11.4s, v11.4s, #24\n",
            $load3,
            exact!(),
            "fmul v8.4s, v8.4s, v10.4s\nfmul v9.4s, v9.4s, v11.4s\n",
            "fmul v8.4s, v8.4s, v28.s[0]\nfmul v9.4s, v9.4s, v28.s[0]\n",
            add!($sum0, $sum1),
        )
    };
}

/// `d·(s·x)` in v8 and v9; x and Σx are in v28.
macro_rules! by_halves {
    ($s:literal, $load0:expr, $load1:expr, $load2:expr, $load3:expr) => {
        concat!(
            "ldur q29, [{m}, #",
            $s,
            "]\nldur d28, [{x}, #80]\n",
            "fcvtl v10.4s, v29.4h\n",
            $load0,
            "fcvtl2 v11.4s, v29.8h\n",
            $load1,
            "addp v8.4s, v12.4s, v13.4s\n",
            $load2,
            "addp v9.4s, v14.4s, v15.4s\n",
            $load3,
            "fmul v10.4s, v10.4s, v28.s[0]\nfmul v11.4s, v11.4s, v28.s[0]\n",
            exact!(),
            "fmul v8.4s, v8.4s, v10.4s\nfmul v9.4s, v9.4s, v11.4s\n",
        )
    };
}

/// [`Scaling::Halves`].
macro_rules! halves {
    ($sum0:literal, $sum1:literal, [$_m0:literal $_m1:literal $s:literal $_m:literal],
     $load0:expr, $load1:expr, $load2:expr, $load3:expr) => {
        concat!(by_halves!($s, $load0, $load1, $load2, $load3), add!($sum0, $sum1))
    };
}

/// [`Scaling::HalvesAndMinima`].
macro_rules! halves_and_minima {
    ($sum0:literal, $sum1:literal, [$_m0:literal $_m1:literal $s:literal $m:literal],
     $load0:expr, $load1:expr, $load2:expr, $load3:expr) => {
        concat!(
            by_halves!($s, $load0, $load1, $load2, $load3),
            "ldur q29, [{m}, #",
            $m,
            "]\n",
            "fcvtl v10.4s, v29.4h\nfcvtl2 v11.4s, v29.8h\n",
            "fmul v10.4s, v10.4s, v28.s[0]\nfmul v11.4s, v11.4s, v28.s[0]\n",
            "fmul v10.4s, v10.4s, v28.s[1]\nfmul v11.4s, v11.4s, v28.s[1]\n",
            "fadd v8.4s, v8.4s, v10.4s\nfadd v9.4s, v9.4s, v11.4s\n",
            add!($sum0, $sum1),
        )
    };
}

/// The group.
macro_rules! group {
    ($nibble:ident, $scaled:ident, $low:ident, $bias:ident, $codes:ident, $multipliers:ident, $x:ident, $sums:ident, [$($more:tt)*]) => {
        asm!(
            "ldur q20, [{c}]\nldur q21, [{c}, #32]\nldur q22, [{c}, #16]\nldur q23, [{c}, #48]",
            "ldur q24, [{c}, #64]\nldur q25, [{c}, #96]\nldur q26, [{c}, #80]\nldur q27, [{c}, #112]",
            "ldur q16, [{x}]\nldur q17, [{x}, #16]",
            products!($nibble, "ldur q18, [{x}, #32]\n", "ldur q19, [{x}, #48]\n", ""),
            first_half!(
                $scaled,
                "ldur q20, [{c}, #128]\nldur q21, [{c}, #160]\n", "ldur q22, [{c}, #144]\nldur q23, [{c}, #176]\n",
                "ldur q24, [{c}, #192]\nldur q25, [{c}, #224]\n", "ldur q26, [{c}, #208]\nldur q27, [{c}, #240]\n"
            ),
            products!($nibble, "", "", ""),
            second_half!($scaled),
            inout("v0") $sums[0], inout("v1") $sums[1], inout("v2") $sums[2], inout("v3") $sums[3],
            in("v4") $low, in("v7") $bias, $($more)*
            c = in(reg) $codes, m = in(reg) $multipliers, x = in(reg) $x,
            out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _, out("v14") _,
            out("v15") _, out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _,
            out("v22") _, out("v23") _, out("v24") _, out("v25") _, out("v26") _, out("v27") _, out("v28") _,
            out("v29") _, out("v30") _, out("v31") _,
            options(pure, readonly, nostack, preserves_flags)
        )
    };
}

/// What [`add`] wants in registers.
#[derive(Clone, Copy)]
pub struct Constants {
    low: uint8x16_t,
    top: uint8x16_t,
    bias: uint8x16_t,
}

impl Constants {
    /// In registers.
    #[inline(always)]
    pub fn ready() -> Self {
        // 255 is no byte's number: those places become 0.
        let top = [0x01ff_ffff_00ff_ffff, 0x03ff_ffff_02ff_ffff].map(|half| op!(vcreate_u64(half)));
        op!(Self {
            low: keep_in_register(vdupq_n_u8(15)),
            top: keep_in_register(vreinterpretq_u8_u64(vcombine_u64(top[0], top[1]))),
            bias: keep_in_register(vreinterpretq_u8_s32(vdupq_n_s32(BIAS))),
        })
    }
}

/// Adds the contributions of a group of 16 rows to `sums`. A code stands for itself or, if `TABLE`, for an entry of `table`.
///
/// # Safety
/// The CPU has `sdot`; `codes` is valid for reading the group's four lines, `multipliers` for reading what `scaling` says;
/// `x` is the group as [`prepare::token`](super::prepare::token) leaves it.
#[inline(always)]
pub unsafe fn add<const TABLE: bool>(
    constants: Constants,
    sums: &mut [float32x4_t; 4],
    scaling: Scaling,
    table: uint8x16_t,
    codes: *const u8,
    multipliers: *const u8,
    x: *const u8,
) {
    // SAFETY: as the caller vouches.
    unsafe {
        let Constants { low, top, bias } = constants;
        match scaling {
            Scaling::Integers if TABLE => {
                group!(look_up, integers, low, bias, codes, multipliers, x, sums, [in("v5") table, in("v6") top,])
            }
            Scaling::Integers => {
                group!(keep, integers, low, bias, codes, multipliers, x, sums, [in("v6") top, out("v5") _,])
            }
            Scaling::Halves => {
                group!(keep, halves, low, bias, codes, multipliers, x, sums, [out("v5") _, out("v6") _,])
            }
            Scaling::HalvesAndMinima => {
                group!(keep, halves_and_minima, low, bias, codes, multipliers, x, sums, [out("v5") _, out("v6") _,])
            }
        }
    }
}
