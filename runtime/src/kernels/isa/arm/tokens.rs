//! [`Dot::add`](super::Dot::add) by `sdot` and by `smmla`, in registers of our choice: with 16 tokens every one is in use.
//!
//! ```text
//! v0 … v15    the tokens' sums of floats           {p0} … {p3}   codes of four tokens
//! v16 … v23   codes of four rows                   {d}           from token to token
//! v24 … v27   dot products of four tokens          {o}           from codes to scale
//! v28 … v31   their inputs                         {f}           `Factors`
//! ```
//! Dot products start from [`Factors::start`] and go on as [`Dot::times`](super::Dot::times) says. What is the same for
//! all tokens comes out of memory each time: loads have pipes of their own, moves take those that multiply.

use core::arch::aarch64::*;
use core::arch::asm;

use super::Factors;

/// A register of codes times four inputs of each of four tokens.
macro_rules! sdot_step {
    ($w:literal, $lane:literal) => {
        sdot_step!($w, $lane, "", "", "", "")
    };
    ($w:literal, $lane:literal, $then0:literal, $then1:literal, $then2:literal, $then3:literal) => {
        concat!(
            "sdot v24.4s, v",
            $w,
            ".16b, v28.4b[",
            $lane,
            "]\n",
            $then0,
            "sdot v25.4s, v",
            $w,
            ".16b, v29.4b[",
            $lane,
            "]\n",
            $then1,
            "sdot v26.4s, v",
            $w,
            ".16b, v30.4b[",
            $lane,
            "]\n",
            $then2,
            "sdot v27.4s, v",
            $w,
            ".16b, v31.4b[",
            $lane,
            "]\n",
            $then3,
        )
    };
}

/// Four tokens; the codes are four rows side by side, four inputs at a time. In this order no chain of dot products
/// waits for itself, on processors that start instructions in order.
macro_rules! sdot_four {
    ($a0:literal, $a1:literal, $a2:literal, $a3:literal) => {
        concat!(
            "ldur q28, [{p0}]\nldur q24, [{f}, #32]\nldur q29, [{p1}]\nldur q25, [{f}, #32]\n",
            "ldur q30, [{p2}]\nldur q26, [{f}, #32]\nldur q31, [{p3}]\nldur q27, [{f}, #32]\n",
            sdot_step!("16", 0),
            sdot_step!("17", 1),
            sdot_step!("18", 2),
            sdot_step!(
                "19",
                3,
                "ldur q28, [{p0}, #16]\n",
                "ldur q29, [{p1}, #16]\n",
                "ldur q30, [{p2}, #16]\n",
                "ldur q31, [{p3}, #16]\n"
            ),
            sdot_step!("20", 0),
            sdot_step!("21", 1),
            sdot_step!("22", 2),
            sdot_step!("23", 3),
            scale_four!("24", "25", "26", "27", "28", "29", "30", "31", $a0, $a1, $a2, $a3),
        )
    };
}

/// Two tokens: into `$s` rows 0 and 1, into `$u` rows 2 and 3, of both tokens by turns.
macro_rules! smmla_two {
    ($s:literal, $u:literal, $p:literal, $q:literal) => {
        concat!(
            "ldur q28, [",
            $p,
            "]\nldur q29, [",
            $q,
            "]\nldur q",
            $s,
            ", [{f}, #32]\nldur q",
            $u,
            ", [{f}, #32]\n",
            "zip1 v30.2d, v28.2d, v29.2d\nzip2 v28.2d, v28.2d, v29.2d\n",
            "ldur q31, [",
            $p,
            ", #16]\nldur q29, [",
            $q,
            ", #16]\n",
            "smmla v",
            $s,
            ".4s, v16.16b, v30.16b\nsmmla v",
            $u,
            ".4s, v20.16b, v30.16b\n",
            "zip1 v30.2d, v31.2d, v29.2d\nzip2 v31.2d, v31.2d, v29.2d\n",
            "smmla v",
            $s,
            ".4s, v17.16b, v28.16b\nsmmla v",
            $u,
            ".4s, v21.16b, v28.16b\n",
            "smmla v",
            $s,
            ".4s, v18.16b, v30.16b\nsmmla v",
            $u,
            ".4s, v22.16b, v30.16b\n",
            "smmla v",
            $s,
            ".4s, v19.16b, v31.16b\nsmmla v",
            $u,
            ".4s, v23.16b, v31.16b\n",
        )
    };
}

/// Four tokens; the codes are those of rows 0 and 1, then those of rows 2 and 3, eight inputs at a time.
macro_rules! smmla_four {
    ($a0:literal, $a1:literal, $a2:literal, $a3:literal) => {
        concat!(
            smmla_two!("24", "25", "{p0}", "{p1}"),
            smmla_two!("26", "27", "{p2}", "{p3}"),
            "uzp1 v28.4s, v24.4s, v25.4s\nuzp2 v29.4s, v24.4s, v25.4s\n",
            "uzp1 v30.4s, v26.4s, v27.4s\nuzp2 v31.4s, v26.4s, v27.4s\n",
            scale_four!("28", "29", "30", "31", "24", "25", "26", "27", $a0, $a1, $a2, $a3),
        )
    };
}

/// Scales the dot products `$s0`…`$s3` and adds them to the sums; goes to the next four tokens. `$f0`…`$f3` are free.
macro_rules! scale_four {
    ($s0:literal, $s1:literal, $s2:literal, $s3:literal, $f0:literal, $f1:literal, $f2:literal, $f3:literal,
     $a0:literal, $a1:literal, $a2:literal, $a3:literal) => {
        concat!(
            "ldur q",
            $f3,
            ", [{f}]\n",
            "ldur q",
            $f0,
            ", [{f}, #16]\nldur q",
            $f1,
            ", [{f}, #16]\nldur q",
            $f2,
            ", [{f}, #16]\n",
            "fmla v",
            $f0,
            ".4s, v",
            $s0,
            ".4s, v",
            $f3,
            ".4s\nldur q",
            $s0,
            ", [{f}, #16]\n",
            "fmla v",
            $f1,
            ".4s, v",
            $s1,
            ".4s, v",
            $f3,
            ".4s\nldr s",
            $s1,
            ", [{p0}, {o}]\n",
            "fmla v",
            $f2,
            ".4s, v",
            $s2,
            ".4s, v",
            $f3,
            ".4s\nldr s",
            $s2,
            ", [{p1}, {o}]\n",
            "fmla v",
            $s0,
            ".4s, v",
            $s3,
            ".4s, v",
            $f3,
            ".4s\nldr s",
            $s3,
            ", [{p2}, {o}]\n",
            "ldr s",
            $f3,
            ", [{p3}, {o}]\nadd {p0}, {p3}, {d}\n",
            "fmul v",
            $f0,
            ".4s, v",
            $f0,
            ".4s, v",
            $s1,
            ".s[0]\nadd {p1}, {p0}, {d}\n",
            "fmul v",
            $f1,
            ".4s, v",
            $f1,
            ".4s, v",
            $s2,
            ".s[0]\nadd {p2}, {p1}, {d}\n",
            "fmul v",
            $f2,
            ".4s, v",
            $f2,
            ".4s, v",
            $s3,
            ".s[0]\nadd {p3}, {p2}, {d}\n",
            "fmul v",
            $s0,
            ".4s, v",
            $s0,
            ".4s, v",
            $f3,
            ".s[0]\n",
            "fadd v",
            $a0,
            ".4s, v",
            $a0,
            ".4s, v",
            $f0,
            ".4s\n",
            "fadd v",
            $a1,
            ".4s, v",
            $a1,
            ".4s, v",
            $f1,
            ".4s\n",
            "fadd v",
            $a2,
            ".4s, v",
            $a2,
            ".4s, v",
            $f2,
            ".4s\n",
            "fadd v",
            $a3,
            ".4s, v",
            $a3,
            ".4s, v",
            $s0,
            ".4s\n",
        )
    };
}

/// The operands of a group, and the sums of the tokens in it.
macro_rules! group {
    ($x:ident, $stride:ident, $scale:ident, $factors:ident, $w:ident, $acc:ident,
     $code:expr, $($i:literal $v:tt),+) => {
        asm!(
            $code,
            $(inout($v) $acc[$i],)+
            in("v16") $w[0], in("v17") $w[1], in("v18") $w[2], in("v19") $w[3],
            in("v20") $w[4], in("v21") $w[5], in("v22") $w[6], in("v23") $w[7],
            out("v24") _, out("v25") _, out("v26") _, out("v27") _,
            out("v28") _, out("v29") _, out("v30") _, out("v31") _,
            p0 = inout(reg) $x => _, p1 = inout(reg) $x.wrapping_add($stride) => _,
            p2 = inout(reg) $x.wrapping_add(2 * $stride) => _, p3 = inout(reg) $x.wrapping_add(3 * $stride) => _,
            d = in(reg) $stride, o = in(reg) $scale, f = in(reg) $factors,
            options(pure, readonly, nostack, preserves_flags)
        )
    };
}

/// A function that is [`Dot::add`](super::Dot::add) by `$four`.
macro_rules! add {
    ($name:ident, $four:ident, $feature:literal) => {
        /// [`Dot::add`](super::Dot::add), of 4, 8 or 16 tokens.
        ///
        /// # Safety
        #[doc = concat!("As there; the CPU has `", $feature, "`.")]
        #[inline(always)]
        pub(super) unsafe fn $name<const T: usize>(
            acc: &mut [float32x4_t; T],
            w: [int8x16_t; 8],
            factors: &Factors,
            x: *const i8,
            stride: usize,
            scale: usize,
        ) {
            assert!(T == 4 || T == 8 || T == 16);
            // SAFETY: as the caller vouches.
            unsafe {
                if T == 16 {
                    group!(
                        x, stride, scale, factors, w, acc,
                        concat!(
                            $four!("0", "1", "2", "3"), $four!("4", "5", "6", "7"),
                            $four!("8", "9", "10", "11"), $four!("12", "13", "14", "15")
                        ),
                        0 "v0", 1 "v1", 2 "v2", 3 "v3", 4 "v4", 5 "v5", 6 "v6", 7 "v7",
                        8 "v8", 9 "v9", 10 "v10", 11 "v11", 12 "v12", 13 "v13", 14 "v14", 15 "v15"
                    );
                } else if T == 8 {
                    group!(
                        x, stride, scale, factors, w, acc,
                        concat!($four!("0", "1", "2", "3"), $four!("4", "5", "6", "7")),
                        0 "v0", 1 "v1", 2 "v2", 3 "v3", 4 "v4", 5 "v5", 6 "v6", 7 "v7"
                    );
                } else {
                    group!(
                        x, stride, scale, factors, w, acc, $four!("0", "1", "2", "3"),
                        0 "v0", 1 "v1", 2 "v2", 3 "v3"
                    );
                }
            }
        }
    };
}

add!(by_sdot, sdot_four, "sdot");
add!(by_smmla, smmla_four, "smmla");
