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
//! Codes and multipliers come as [`strip`](super::strip) lays them out. Dot products start from what
//! [`prepare`](super::prepare) leaves. What is the same for all tokens comes out of memory each time: loads have pipes of their
//! own, moves take those that multiply.

use core::arch::aarch64::*;
use core::arch::asm;

/// How a dot product `d` becomes a part of a sum, each operation rounded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scaling {
    /// `d·m·xscale`, as [`Dot::times`](super::Dot::times) says: multipliers are small integers.
    Integers,
    /// `d·(m·xscale)`.
    Halves,
    /// `d·xscale`.
    Rows,
}

/// The strip's codes.
macro_rules! codes {
    () => {
        concat!(
            "ldur q16, [{w}]\nldur q17, [{w}, #16]\nldur q18, [{w}, #32]\nldur q19, [{w}, #48]\n",
            "ldur q20, [{w}, #64]\nldur q21, [{w}, #80]\nldur q22, [{w}, #96]\nldur q23, [{w}, #112]\n",
        )
    };
}

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
    ($scaled:ident, $a0:literal, $a1:literal, $a2:literal, $a3:literal) => {
        concat!(
            "ldur q24, [{x}, #128]\nldur q25, [{x}, #144]\nldur q26, [{x}, #160]\nldur q27, [{x}, #176]\n",
            "ldur q28, [{x}]\nldur q29, [{x}, #16]\nldur q30, [{x}, #32]\nldur q31, [{x}, #48]\n",
            sdot_step!("16"[0] "17"[1] "18"[2] "19"[3]),
            "ldur q28, [{x}, #64]\nldur q29, [{x}, #80]\nldur q30, [{x}, #96]\nldur q31, [{x}, #112]\n",
            sdot_step!("20"[0] "21"[1] "22"[2] "23"[3]),
            $scaled!($a0, $a1, $a2, $a3),
        )
    };
}

/// [`Scaling::Integers`].
macro_rules! sdot_integers {
    ($a0:literal, $a1:literal, $a2:literal, $a3:literal) => {
        concat!(
            "ldur q31, [{w}, #128]\nldur q28, [{w}, #160]\nldur q29, [{w}, #160]\nldur q30, [{w}, #160]\n",
            "fmla v28.4s, v24.4s, v31.4s\nldur q24, [{w}, #160]\n",
            "fmla v29.4s, v25.4s, v31.4s\nldur q25, [{x}, #192]\n",
            "fmla v30.4s, v26.4s, v31.4s\nadd {x}, {x}, #208\n",
            "fmla v24.4s, v27.4s, v31.4s\n",
            "fmul v28.4s, v28.4s, v25.s[0]\nfmul v29.4s, v29.4s, v25.s[1]\n",
            "fmul v30.4s, v30.4s, v25.s[2]\nfmul v24.4s, v24.4s, v25.s[3]\n",
            "fadd v",
            $a0,
            ".4s, v",
            $a0,
            ".4s, v28.4s\nfadd v",
            $a1,
            ".4s, v",
            $a1,
            ".4s, v29.4s\n",
            "fadd v",
            $a2,
            ".4s, v",
            $a2,
            ".4s, v30.4s\nfadd v",
            $a3,
            ".4s, v",
            $a3,
            ".4s, v24.4s\n",
        )
    };
}

/// `d` of four tokens, from the bits of [`BIAS`](super::Dot::BIAS) + d: exact, and done by any pipe, which the conversion is not.
macro_rules! sdot_floats {
    () => {
        concat!(
            "ldur q28, [{w}, #160]\nldur q30, [{x}, #192]\nadd {x}, {x}, #208\n",
            "fsub v24.4s, v24.4s, v28.4s\nfsub v25.4s, v25.4s, v28.4s\n",
            "fsub v26.4s, v26.4s, v28.4s\nfsub v27.4s, v27.4s, v28.4s\n",
        )
    };
}

/// Adds the dot products, scaled by now, to the sums.
macro_rules! sdot_sums {
    ($a0:literal, $a1:literal, $a2:literal, $a3:literal) => {
        concat!(
            "fadd v",
            $a0,
            ".4s, v",
            $a0,
            ".4s, v24.4s\nfadd v",
            $a1,
            ".4s, v",
            $a1,
            ".4s, v25.4s\n",
            "fadd v",
            $a2,
            ".4s, v",
            $a2,
            ".4s, v26.4s\nfadd v",
            $a3,
            ".4s, v",
            $a3,
            ".4s, v27.4s\n",
        )
    };
}

/// [`Scaling::Halves`].
macro_rules! sdot_halves {
    ($a0:literal, $a1:literal, $a2:literal, $a3:literal) => {
        concat!(
            "ldur q31, [{w}, #128]\n",
            sdot_floats!(),
            "fmul v28.4s, v31.4s, v30.s[0]\nfmul v29.4s, v31.4s, v30.s[1]\n",
            "fmul v24.4s, v24.4s, v28.4s\nfmul v25.4s, v25.4s, v29.4s\n",
            "fmul v28.4s, v31.4s, v30.s[2]\nfmul v29.4s, v31.4s, v30.s[3]\n",
            "fmul v26.4s, v26.4s, v28.4s\nfmul v27.4s, v27.4s, v29.4s\n",
            sdot_sums!($a0, $a1, $a2, $a3),
        )
    };
}

/// [`Scaling::Rows`].
macro_rules! sdot_rows {
    ($a0:literal, $a1:literal, $a2:literal, $a3:literal) => {
        concat!(
            sdot_floats!(),
            "fmul v24.4s, v24.4s, v30.s[0]\nfmul v25.4s, v25.4s, v30.s[1]\n",
            "fmul v26.4s, v26.4s, v30.s[2]\nfmul v27.4s, v27.4s, v30.s[3]\n",
            sdot_sums!($a0, $a1, $a2, $a3),
        )
    };
}

/// Two tokens.
macro_rules! smmla_two {
    ($scaled:ident, $a:literal, $b:literal) => {
        concat!(
            "ldur q24, [{x}, #64]\nldur q25, [{x}, #64]\n",
            "ldur q28, [{x}]\nldur q29, [{x}, #16]\nldur q30, [{x}, #32]\nldur q31, [{x}, #48]\n",
            "smmla v24.4s, v16.16b, v28.16b\nsmmla v25.4s, v20.16b, v28.16b\n",
            "smmla v24.4s, v17.16b, v29.16b\nsmmla v25.4s, v21.16b, v29.16b\n",
            "smmla v24.4s, v18.16b, v30.16b\nsmmla v25.4s, v22.16b, v30.16b\n",
            "smmla v24.4s, v19.16b, v31.16b\nsmmla v25.4s, v23.16b, v31.16b\n",
            "ldur q28, [{w}, #160]\nldur q29, [{w}, #176]\nldur q30, [{x}, #80]\nadd {x}, {x}, #96\n",
            $scaled!(),
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

/// [`Scaling::Integers`].
macro_rules! smmla_integers {
    () => {
        concat!(
            "fmla v28.4s, v24.4s, v26.4s\nfmla v29.4s, v25.4s, v27.4s\n",
            "fmul v28.4s, v28.4s, v30.4s\nfmul v29.4s, v29.4s, v30.4s\n",
        )
    };
}

/// [`Scaling::Halves`].
macro_rules! smmla_halves {
    () => {
        concat!(
            "fsub v24.4s, v24.4s, v28.4s\nfsub v25.4s, v25.4s, v29.4s\n",
            "fmul v28.4s, v26.4s, v30.4s\nfmul v29.4s, v27.4s, v30.4s\n",
            "fmul v28.4s, v24.4s, v28.4s\nfmul v29.4s, v25.4s, v29.4s\n",
        )
    };
}

/// [`Scaling::Rows`].
macro_rules! smmla_rows {
    () => {
        concat!(
            "fsub v28.4s, v24.4s, v28.4s\nfsub v29.4s, v25.4s, v29.4s\n",
            "fmul v28.4s, v28.4s, v30.4s\nfmul v29.4s, v29.4s, v30.4s\n",
        )
    };
}

/// Four tokens.
macro_rules! smmla_four {
    ($scaled:ident, $a0:literal, $a1:literal, $a2:literal, $a3:literal) => {
        concat!(smmla_two!($scaled, $a0, $a1), smmla_two!($scaled, $a2, $a3))
    };
}

/// The operands of a group.
macro_rules! group {
    ($sums:ident, $w:ident, $x:ident, $before:expr, $code:expr, $($i:literal $v:tt),+) => {
        asm!(
            codes!(),
            $before,
            $code,
            $(inout($v) $sums[$i],)+
            out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _, out("v23") _,
            out("v24") _, out("v25") _, out("v26") _, out("v27") _, out("v28") _, out("v29") _, out("v30") _, out("v31") _,
            x = inout(reg) $x => _, w = in(reg) $w,
            options(pure, readonly, nostack, preserves_flags)
        )
    };
}

/// A group of any number of tokens, scaled by `$scaled`.
macro_rules! tokens {
    ($sums:ident, $w:ident, $x:ident, $before:literal, $four:ident, $scaled:ident) => {
        if T == 16 {
            group!(
                $sums, $w, $x, $before,
                concat!(
                    $four!($scaled, "0", "1", "2", "3"), $four!($scaled, "4", "5", "6", "7"),
                    $four!($scaled, "8", "9", "10", "11"), $four!($scaled, "12", "13", "14", "15")
                ),
                0 "v0", 1 "v1", 2 "v2", 3 "v3", 4 "v4", 5 "v5", 6 "v6", 7 "v7",
                8 "v8", 9 "v9", 10 "v10", 11 "v11", 12 "v12", 13 "v13", 14 "v14", 15 "v15"
            );
        } else if T == 8 {
            group!(
                $sums, $w, $x, $before,
                concat!($four!($scaled, "0", "1", "2", "3"), $four!($scaled, "4", "5", "6", "7")),
                0 "v0", 1 "v1", 2 "v2", 3 "v3", 4 "v4", 5 "v5", 6 "v6", 7 "v7"
            );
        } else {
            group!(
                $sums, $w, $x, $before, $four!($scaled, "0", "1", "2", "3"),
                0 "v0", 1 "v1", 2 "v2", 3 "v3"
            );
        }
    };
}

/// A function that adds the contributions of a group by `$four`.
macro_rules! add {
    ($(#[$doc:meta])* $name:ident, $before:literal, $four:ident, $integers:ident, $halves:ident, $rows:ident) => {
        $(#[$doc])*
        #[inline(always)]
        pub unsafe fn $name<const T: usize>(scaling: Scaling, sums: &mut [float32x4_t; T], w: *const u8, x: *const u8) {
            assert!(T == 4 || T == 8 || T == 16);
            // SAFETY: as the caller vouches.
            unsafe {
                match scaling {
                    Scaling::Integers => tokens!(sums, w, x, $before, $four, $integers),
                    Scaling::Halves => tokens!(sums, w, x, $before, $four, $halves),
                    Scaling::Rows => tokens!(sums, w, x, $before, $four, $rows),
                }
            }
        }
    };
}

add! {
    /// Adds a group's part to the sums of four rows and `T` tokens (4, 8 or 16).
    ///
    /// # Safety
    /// The CPU has `sdot`; `w` is the group as [`strip::rows`](super::strip::rows) leaves it, `x` as
    /// [`prepare::quads`](super::prepare::quads) does.
    by_sdot, "", sdot_four, sdot_integers, sdot_halves, sdot_rows
}

add! {
    /// As [`by_sdot`], where sums are those of two rows and two tokens each, rows 0 and 1 before rows 2 and 3.
    ///
    /// # Safety
    /// The CPU has `smmla`; `w` is the group as [`strip::pairs`](super::strip::pairs) leaves it, `x` as
    /// [`prepare::pairs`](super::prepare::pairs) does.
    by_smmla, "ldur q26, [{w}, #128]\nldur q27, [{w}, #144]\n", smmla_four, smmla_integers, smmla_halves, smmla_rows
}
