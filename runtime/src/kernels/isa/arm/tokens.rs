//! Four rows times a group of 4, 8 or 16 tokens, by `sdot` and by `smmla`, with the scaling and the sums of floats. Registers are
//! of our choice: with 16 tokens every one is in use.
//!
//! ```text
//!               sdot                                      smmla
//! v0 … v15      sums of floats, four rows of a token      two rows of two tokens each: rows 0 and 1, rows 2 and 3
//! v16 … v23     codes, four rows side by side             rows 0 and 1, 8 inputs at a time; then rows 2 and 3
//! v24 … v27     dot products of four tokens               of two tokens, two registers; multipliers of the rows
//! v28 … v31     their inputs; then products               inputs; then products
//! ```
//! Dot products start from what [`prepare`](super::prepare) leaves, and go on as [`Dot::times`](super::Dot::times) says. What is
//! the same for all tokens comes out of memory each time: loads have pipes of their own, moves take those that multiply.

use core::arch::aarch64::*;
use core::arch::asm;

/// A register of codes times four inputs of each of four tokens.
macro_rules! sdot_step {
    ($($w:literal [$lane:literal])+) => {
        concat!($(
            "sdot v24.4s, v", $w, ".16b, v28.4b[", $lane, "]\nsdot v25.4s, v", $w, ".16b, v29.4b[", $lane, "]\n",
            "sdot v26.4s, v", $w, ".16b, v30.4b[", $lane, "]\nsdot v27.4s, v", $w, ".16b, v31.4b[", $lane, "]\n",
        )+)
    };
}

/// Four tokens. In this order no chain of dot products waits for itself, on processors that start instructions in order.
macro_rules! sdot_four {
    ($a0:literal, $a1:literal, $a2:literal, $a3:literal) => {
        concat!(
            "ldur q24, [{x}, #128]\nldur q25, [{x}, #144]\nldur q26, [{x}, #160]\nldur q27, [{x}, #176]\n",
            "ldur q28, [{x}]\nldur q29, [{x}, #16]\nldur q30, [{x}, #32]\nldur q31, [{x}, #48]\n",
            sdot_step!("16"[0] "17"[1] "18"[2] "19"[3]),
            "ldur q28, [{x}, #64]\nldur q29, [{x}, #80]\nldur q30, [{x}, #96]\nldur q31, [{x}, #112]\n",
            sdot_step!("20"[0] "21"[1] "22"[2] "23"[3]),
            "ldur q31, [{f}]\nldur q28, [{f}, #16]\nldur q29, [{f}, #16]\nldur q30, [{f}, #16]\n",
            "fmla v28.4s, v24.4s, v31.4s\nldur q24, [{f}, #16]\n",
            "fmla v29.4s, v25.4s, v31.4s\nldur q25, [{x}, #192]\n",
            "fmla v30.4s, v26.4s, v31.4s\nadd {x}, {x}, #208\n",
            "fmla v24.4s, v27.4s, v31.4s\n",
            "fmul v28.4s, v28.4s, v25.s[0]\nfmul v29.4s, v29.4s, v25.s[1]\n",
            "fmul v30.4s, v30.4s, v25.s[2]\nfmul v24.4s, v24.4s, v25.s[3]\n",
            "fadd v", $a0, ".4s, v", $a0, ".4s, v28.4s\nfadd v", $a1, ".4s, v", $a1, ".4s, v29.4s\n",
            "fadd v", $a2, ".4s, v", $a2, ".4s, v30.4s\nfadd v", $a3, ".4s, v", $a3, ".4s, v24.4s\n",
        )
    };
}

/// Two tokens.
macro_rules! smmla_two {
    ($a:literal, $b:literal) => {
        concat!(
            "ldur q24, [{x}, #64]\nldur q25, [{x}, #64]\n",
            "ldur q28, [{x}]\nldur q29, [{x}, #16]\nldur q30, [{x}, #32]\nldur q31, [{x}, #48]\n",
            "smmla v24.4s, v16.16b, v28.16b\nsmmla v25.4s, v20.16b, v28.16b\n",
            "smmla v24.4s, v17.16b, v29.16b\nsmmla v25.4s, v21.16b, v29.16b\n",
            "smmla v24.4s, v18.16b, v30.16b\nsmmla v25.4s, v22.16b, v30.16b\n",
            "smmla v24.4s, v19.16b, v31.16b\nsmmla v25.4s, v23.16b, v31.16b\n",
            "ldur q28, [{f}]\nldur q29, [{f}, #16]\nldur q30, [{x}, #80]\nadd {x}, {x}, #96\n",
            "fmla v28.4s, v24.4s, v26.4s\nfmla v29.4s, v25.4s, v27.4s\n",
            "fmul v28.4s, v28.4s, v30.4s\nfmul v29.4s, v29.4s, v30.4s\n",
            "fadd v",
            $a,
            ".4s, v",
            $a,
            ".4s, v28.4s\nfadd v",
            $b,
            ".4s, v",
            $b,
            ".4s, v29.4s\n",
        )
    };
}

/// Four tokens.
macro_rules! smmla_four {
    ($a0:literal, $a1:literal, $a2:literal, $a3:literal) => {
        concat!(smmla_two!($a0, $a1), smmla_two!($a2, $a3))
    };
}

/// The operands of a group.
macro_rules! group {
    ($sums:ident, $w:ident, $factors:ident, $x:ident, [$($more:tt)*], $code:expr, $($i:literal $v:tt),+) => {
        asm!(
            $code,
            $(inout($v) $sums[$i],)+
            in("v16") $w[0], in("v17") $w[1], in("v18") $w[2], in("v19") $w[3],
            in("v20") $w[4], in("v21") $w[5], in("v22") $w[6], in("v23") $w[7], $($more)*
            out("v24") _, out("v25") _, out("v28") _, out("v29") _, out("v30") _, out("v31") _,
            x = inout(reg) $x => _, f = in(reg) $factors,
            options(pure, readonly, nostack, preserves_flags)
        )
    };
}

/// A function that adds the contributions of a group by `$four`.
macro_rules! add {
    ($(#[$doc:meta])* $name:ident, $four:ident, $place:ident, [$($arg:ident: $ty:ty)?], [$($more:tt)*]) => {
        $(#[$doc])*
        #[inline(always)]
        pub unsafe fn $name<const T: usize>(
            sums: &mut [float32x4_t; T],
            w: [int8x16_t; 8],
            $($arg: $ty,)?
            $place: &[float32x4_t; 2],
            x: *const u8,
        ) {
            assert!(T == 4 || T == 8 || T == 16);
            // SAFETY: as the caller vouches.
            unsafe {
                if T == 16 {
                    group!(
                        sums, w, $place, x, [$($more)*],
                        concat!(
                            $four!("0", "1", "2", "3"), $four!("4", "5", "6", "7"),
                            $four!("8", "9", "10", "11"), $four!("12", "13", "14", "15")
                        ),
                        0 "v0", 1 "v1", 2 "v2", 3 "v3", 4 "v4", 5 "v5", 6 "v6", 7 "v7",
                        8 "v8", 9 "v9", 10 "v10", 11 "v11", 12 "v12", 13 "v13", 14 "v14", 15 "v15"
                    );
                } else if T == 8 {
                    group!(
                        sums, w, $place, x, [$($more)*],
                        concat!($four!("0", "1", "2", "3"), $four!("4", "5", "6", "7")),
                        0 "v0", 1 "v1", 2 "v2", 3 "v3", 4 "v4", 5 "v5", 6 "v6", 7 "v7"
                    );
                } else {
                    group!(
                        sums, w, $place, x, [$($more)*], $four!("0", "1", "2", "3"),
                        0 "v0", 1 "v1", 2 "v2", 3 "v3"
                    );
                }
            }
        }
    };
}

add! {
    /// Adds `f32(d)·m·scale`, each operation rounded, to the sums of four rows and `T` tokens (4, 8 or 16); `factors` are the
    /// multipliers and [`Dot::times`](super::Dot::times)' addend.
    ///
    /// # Safety
    /// The CPU has `sdot`; `x` is the group as [`prepare::quads`](super::prepare::quads) leaves it.
    by_sdot, sdot_four, factors, [], [out("v26") _, out("v27") _,]
}

add! {
    /// As [`by_sdot`], where sums are those of two rows and two tokens each, rows 0 and 1 before rows 2 and 3: `multipliers`
    /// are those of the two registers, `addends` theirs.
    ///
    /// # Safety
    /// The CPU has `smmla`; `x` is the group as [`prepare::pairs`](super::prepare::pairs) leaves it.
    by_smmla, smmla_four, addends, [multipliers: [float32x4_t; 2]],
    [in("v26") multipliers[0], in("v27") multipliers[1],]
}
