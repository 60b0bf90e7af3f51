//! [`tokens`](super) by `sdot`.
//!
//! The order is for processors that start instructions in order, one or two in a cycle. Dot products of four tokens take
//! turns, so that none waits for itself. A register of inputs is loaded while the one before it is multiplied; the next four
//! tokens' first inputs and starts, and the next group's codes, come as soon as their registers are free. `ld1` takes
//! longer than `ldur`, and so ends no sooner than a dot product that starts with it: the two may start together. `ldur` stands
//! before multiplications of floats for the same reason.

use core::arch::aarch64::*;
use core::arch::asm;

use super::{START, Scaling};
use crate::kernels::isa::arm::strip::{ADDENDS, MULTIPLIERS};

/// A register of codes times four inputs of each of four tokens. `$early` and `$next` are loads to go between.
macro_rules! step {
    ($codes:literal, $x:literal, [$s0:literal $s1:literal $s2:literal $s3:literal], $early:expr, $next:expr) => {
        concat!(
            "sdot v",
            $s0,
            ".4s, v",
            $codes,
            ".16b, v",
            $x,
            ".4b[0]\n",
            $early,
            "sdot v",
            $s1,
            ".4s, v",
            $codes,
            ".16b, v",
            $x,
            ".4b[1]\n",
            $next,
            "sdot v",
            $s2,
            ".4s, v",
            $codes,
            ".16b, v",
            $x,
            ".4b[2]\nsdot v",
            $s3,
            ".4s, v",
            $codes,
            ".16b, v",
            $x,
            ".4b[3]\n",
        )
    };
}

/// The dot products of four tokens, whose starts and first inputs are loaded. `x` moves on to the next four. `$two`, `$four`
/// and `$seven` are loads to go into the steps 2 and 4 and before step 7.
macro_rules! dots {
    ($group:ident, $s:tt, $two:literal, $four:literal, $seven:literal) => {
        concat!(
            step!("16", "28", $s, "", "ldur q29, [{x}, #-112]\n"),
            step!("17", "29", $s, "", "ldur q28, [{x}, #-96]\n"),
            $group!(0),
            step!("18", "28", $s, $two, "ldur q29, [{x}, #-80]\n"),
            $group!(1),
            step!("19", "29", $s, "", "ldur q28, [{x}, #-64]\n"),
            $group!(2),
            step!("20", "28", $s, $four, "ldur q29, [{x}, #-48]\n"),
            $group!(3),
            step!("21", "29", $s, "", concat!("ldur q28, [{x}, #-32]\n", $group!(w))),
            $group!(4),
            step!("22", "28", $s, "", "ldur q29, [{x}, #-16]\nadd {x}, {x}, #144\n"),
            $group!(5),
            $seven,
            step!("23", "29", $s, "", ""),
        )
    };
}

/// After the last tokens of a group: its codes are replaced by the next one's, whose strip `w` and `m` move on to.
macro_rules! leaving {
    (0) => {
        "ldur q16, [{w}, #48]\n"
    };
    (1) => {
        "ldur q17, [{w}, #64]\n"
    };
    (2) => {
        "ldur q18, [{w}, #80]\n"
    };
    (3) => {
        "ldur q19, [{w}, #96]\n"
    };
    (w) => {
        "add {w}, {w}, #192\n"
    };
    (4) => {
        "ldur q20, [{w}, #-80]\n"
    };
    (5) => {
        "ldur q21, [{w}, #-64]\nsubs {n}, {n}, #1\n"
    };
    (addends) => {
        "#-192"
    };
    (6) => {
        "ldur q22, [{w}, #-48]\n"
    };
    (m) => {
        "add {m}, {m}, #192\n"
    };
    (7) => {
        "ldur q23, [{w}, #-32]\n"
    };
}

/// After other tokens nothing changes.
macro_rules! staying {
    (addends) => {
        "#0"
    };
    ($other:tt) => {
        ""
    };
}

/// An instruction on floats.
macro_rules! floats {
    ($op:literal $to:literal, $a:literal, $b:literal) => {
        concat!($op, " v", $to, ".4s, v", $a, ".4s, v", $b, ".4s\n")
    };
    ($op:literal $to:literal, $a:literal, $b:literal [$lane:literal]) => {
        concat!($op, " v", $to, ".4s, v", $a, ".4s, v", $b, ".s[", $lane, "]\n")
    };
}

/// Loads what the next dot product starts from.
macro_rules! start {
    ($load:ident $n:literal) => {
        $load!($n, "{start}")
    };
}
macro_rules! ldur {
    ($to:literal, $from:literal) => {
        concat!("ldur q", $to, ", [", $from, "]\n")
    };
}
macro_rules! ld1 {
    ($to:literal, $from:literal) => {
        concat!("ld1 {{v", $to, ".16b}}, [", $from, "]\n")
    };
}

/// Four tokens by [`Scaling::Integers`]: dot products in `s`, those of the next four in `n`; sums in `a`. `p` and `scales` are
/// registers that are free, or those of the first two dot products.
macro_rules! integers {
    ($group:ident, [$s0:literal $s1:literal $s2:literal $s3:literal], [$n0:literal $n1:literal $n2:literal $n3:literal],
     [$a0:literal $a1:literal $a2:literal $a3:literal], $p:literal, $scales:literal) => {
        concat!(
            dots!($group, [$s0 $s1 $s2 $s3], "ld1 {{v30.16b}}, [{w}]\n", "ld1 {{v31.16b}}, [{w}]\n", "ld1 {{v28.16b}}, [{m}]\n"),
            "ldur q29, [{w}, ", $group!(addends), "]\n", floats!("fmla" "30", $s0, "28"),
            "ldur q", $p, ", [{w}, ", $group!(addends), "]\n", floats!("fmla" "31", $s1, "28"),
            "ldur q", $scales, ", [{x}, #-144]\n", $group!(m), floats!("fmla" "29", $s2, "28"),
            $group!(6), floats!("fmla" $p, $s3, "28"),
            "ldur q28, [{x}, #-128]\n", floats!("fmul" "30", "30", $scales["0"]),
            start!(ldur $n0), floats!("fmul" "31", "31", $scales["1"]),
            start!(ldur $n1), floats!("fmul" "29", "29", $scales["2"]),
            $group!(7), floats!("fmul" $p, $p, $scales["3"]),
            floats!("fadd" $a0, $a0, "30"), start!(ld1 $n2), floats!("fadd" $a1, $a1, "31"),
            floats!("fadd" $a2, $a2, "29"), floats!("fadd" $a3, $a3, $p), start!(ld1 $n3),
        )
    };
}

/// Four tokens by [`Scaling::Halves`].
macro_rules! halves {
    ($group:ident, [$s0:literal $s1:literal $s2:literal $s3:literal],
     [$a0:literal $a1:literal $a2:literal $a3:literal]) => {
        concat!(
            dots!($group, [$s0 $s1 $s2 $s3], "ld1 {{v30.16b}}, [{x}]\n", "ld1 {{v31.16b}}, [{m}]\n", "ld1 {{v28.16b}}, [{start}]\n"),
            $group!(6), $group!(7), $group!(m),
            floats!("fsub" $s0, $s0, "28"), floats!("fmul" "29", "31", "30"["0"]),
            floats!("fsub" $s1, $s1, "28"), floats!("fsub" $s2, $s2, "28"), floats!("fsub" $s3, $s3, "28"),
            floats!("fmul" "28", "31", "30"["1"]), floats!("fmul" $s0, $s0, "29"),
            floats!("fmul" "29", "31", "30"["2"]), floats!("fmul" "31", "31", "30"["3"]),
            floats!("fmul" $s1, $s1, "28"), "ldur q28, [{x}, #-128]\n",
            floats!("fadd" $a0, $a0, $s0), start!(ld1 $s0), floats!("fmul" $s2, $s2, "29"),
            floats!("fadd" $a1, $a1, $s1), start!(ld1 $s1), floats!("fmul" $s3, $s3, "31"),
            floats!("fadd" $a2, $a2, $s2), start!(ld1 $s2), floats!("fadd" $a3, $a3, $s3), start!(ld1 $s3),
        )
    };
}

/// Four tokens by [`Scaling::Rows`].
macro_rules! rows {
    ($group:ident, [$s0:literal $s1:literal $s2:literal $s3:literal],
     [$a0:literal $a1:literal $a2:literal $a3:literal]) => {
        concat!(
            dots!($group, [$s0 $s1 $s2 $s3], "ld1 {{v30.16b}}, [{start}]\n", "ld1 {{v31.16b}}, [{x}]\n", ""),
            $group!(6), floats!("fsub" $s0, $s0, "30"), $group!(7), floats!("fsub" $s1, $s1, "30"),
            floats!("fsub" $s2, $s2, "30"), floats!("fsub" $s3, $s3, "30"), "ldur q28, [{x}, #-128]\n",
            floats!("fmul" $s0, $s0, "31"["0"]), floats!("fmul" $s1, $s1, "31"["1"]),
            floats!("fmul" $s2, $s2, "31"["2"]), floats!("fmul" $s3, $s3, "31"["3"]),
            floats!("fadd" $a0, $a0, $s0), start!(ld1 $s0), floats!("fadd" $a1, $a1, $s1),
            floats!("fadd" $a2, $a2, $s2), start!(ld1 $s1), floats!("fadd" $a3, $a3, $s3), start!(ldur $s2), start!(ldur $s3),
        )
    };
}

/// Four tokens at a time as often as the number says. Without free registers those of dot products change places from four to
/// four: the first that are free again take the first starts.
macro_rules! group {
    (16, integers) => {
        concat!(
            integers!(staying, ["24" "25" "26" "27"], ["26" "27" "25" "24"], ["0" "1" "2" "3"], "24", "25"),
            integers!(staying, ["26" "27" "25" "24"], ["25" "24" "27" "26"], ["4" "5" "6" "7"], "26", "27"),
            integers!(staying, ["25" "24" "27" "26"], ["27" "26" "24" "25"], ["8" "9" "10" "11"], "25", "24"),
            integers!(leaving, ["27" "26" "24" "25"], ["24" "25" "26" "27"], ["12" "13" "14" "15"], "27", "26"),
        )
    };
    (16, $four:ident) => {
        concat!(
            $four!(staying, ["24" "25" "26" "27"], ["0" "1" "2" "3"]),
            $four!(staying, ["24" "25" "26" "27"], ["4" "5" "6" "7"]),
            $four!(staying, ["24" "25" "26" "27"], ["8" "9" "10" "11"]),
            $four!(leaving, ["24" "25" "26" "27"], ["12" "13" "14" "15"]),
        )
    };
    (8, integers) => {
        concat!(
            integers!(staying, ["24" "25" "26" "27"], ["24" "25" "26" "27"], ["0" "1" "2" "3"], "8", "9"),
            integers!(leaving, ["24" "25" "26" "27"], ["24" "25" "26" "27"], ["4" "5" "6" "7"], "8", "9"),
        )
    };
    (8, $four:ident) => {
        concat!(
            $four!(staying, ["24" "25" "26" "27"], ["0" "1" "2" "3"]),
            $four!(leaving, ["24" "25" "26" "27"], ["4" "5" "6" "7"]),
        )
    };
    (4, integers) => {
        integers!(leaving, ["24" "25" "26" "27"], ["24" "25" "26" "27"], ["0" "1" "2" "3"], "8", "9")
    };
    (4, $four:ident) => {
        $four!(leaving, ["24" "25" "26" "27"], ["0" "1" "2" "3"])
    };
}

/// All groups, with operands.
macro_rules! run {
    ($sums:ident, $n:ident, $w:ident, $x:ident, $group:expr, [$($m:tt)*], [$($more:tt)*], $($i:literal $v:tt),+) => {
        asm!(
            "ldur q16, [{w}, #-144]\nldur q17, [{w}, #-128]\nldur q18, [{w}, #-112]\nldur q19, [{w}, #-96]",
            "ldur q20, [{w}, #-80]\nldur q21, [{w}, #-64]\nldur q22, [{w}, #-48]\nldur q23, [{w}, #-32]",
            "ldur q28, [{x}, #-128]",
            start!(ldur "24"), start!(ldur "25"), start!(ldur "26"), start!(ldur "27"),
            "2:",
            $group,
            "b.ne 2b",
            $(inout($v) $sums[$i],)+
            out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _, out("v23") _,
            out("v24") _, out("v25") _, out("v26") _, out("v27") _, out("v28") _, out("v29") _, out("v30") _, out("v31") _,
            $($more)*
            n = inout(reg) $n => _, x = inout(reg) $x.wrapping_add(128) => _, w = inout(reg) $w.wrapping_add(ADDENDS) => _,
            start = in(reg) &START, $($m)*
            options(pure, readonly, nostack)
        )
    };
}

/// All groups of any number of tokens, four of them by `$four`.
macro_rules! tokens {
    ($sums:ident, $n:ident, $w:ident, $x:ident, $four:ident, $m:tt) => {
        if T == 16 {
            run!(
                $sums, $n, $w, $x, group!(16, $four), $m, [],
                0 "v0", 1 "v1", 2 "v2", 3 "v3", 4 "v4", 5 "v5", 6 "v6", 7 "v7",
                8 "v8", 9 "v9", 10 "v10", 11 "v11", 12 "v12", 13 "v13", 14 "v14", 15 "v15"
            );
        } else if T == 8 {
            run!(
                $sums, $n, $w, $x, group!(8, $four), $m, [out("v8") _, out("v9") _,],
                0 "v0", 1 "v1", 2 "v2", 3 "v3", 4 "v4", 5 "v5", 6 "v6", 7 "v7"
            );
        } else {
            run!(
                $sums, $n, $w, $x, group!(4, $four), $m, [out("v8") _, out("v9") _,],
                0 "v0", 1 "v1", 2 "v2", 3 "v3"
            );
        }
    };
}

/// Adds the parts of `groups` groups, of which there is one, to the sums of four rows and `T` tokens (4, 8 or 16).
///
/// # Safety
/// The CPU has `sdot`; `w` are the groups as [`strip::rows`](crate::kernels::isa::arm::strip::rows) leaves them, `x` as
/// [`prepare::quads`](crate::kernels::isa::arm::prepare::quads) does. The codes of one group more and 16 bytes of inputs may
/// be read, whatever they are.
#[inline(always)]
pub unsafe fn by_sdot<const T: usize>(
    scaling: Scaling,
    sums: &mut [float32x4_t; T],
    groups: usize,
    w: *const u8,
    x: *const u8,
) {
    assert!(T == 4 || T == 8 || T == 16);
    // SAFETY: as the caller vouches.
    unsafe {
        match scaling {
            Scaling::Integers => {
                tokens!(sums, groups, w, x, integers, [m = inout(reg) w.wrapping_add(MULTIPLIERS) => _,]);
            }
            Scaling::Halves => {
                tokens!(sums, groups, w, x, halves, [m = inout(reg) w.wrapping_add(MULTIPLIERS) => _,]);
            }
            Scaling::Rows => tokens!(sums, groups, w, x, rows, []),
        }
    }
}
