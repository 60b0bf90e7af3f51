//! [`Dot::nibbles`](super::Dot::nibbles) by `sdot`: 16 rows of 4-bit codes times 32 inputs of one token.
//!
//! A line's registers hold two rows each, eight inputs in the low nibbles and eight in the high ones. The next line is
//! loaded between the instructions of this one (`a`, then `b`), and one at a time: a load of a pair takes as long as six
//! of one on some processors. What sums start from comes out of memory, since moves take the pipes that multiply.

use core::arch::aarch64::*;
use core::arch::asm;

/// A line: `$p`, its registers, times `{$low}` and `{$high}`; `$then` are other instructions, to go between.
macro_rules! line {
    ($lookup:ident, $p:literal, $low:literal, $high:literal, [$($then:expr),*]) => {
        concat!(
            "and {t0:v}.16b, {", $p, "0:v}.16b, {m:v}.16b\nand {t1:v}.16b, {", $p, "1:v}.16b, {m:v}.16b\n",
            "and {t2:v}.16b, {", $p, "2:v}.16b, {m:v}.16b\nand {t3:v}.16b, {", $p, "3:v}.16b, {m:v}.16b\n",
            $($then,)*
            $lookup!("t0"), $lookup!("t1"), $lookup!("t2"), $lookup!("t3"),
            "ushr {", $p, "0:v}.16b, {", $p, "0:v}.16b, #4\nushr {", $p, "1:v}.16b, {", $p, "1:v}.16b, #4\n",
            "ushr {", $p, "2:v}.16b, {", $p, "2:v}.16b, #4\nushr {", $p, "3:v}.16b, {", $p, "3:v}.16b, #4\n",
            "sdot {s0:v}.4s, {t0:v}.16b, {", $low, ":v}.16b\nsdot {s1:v}.4s, {t1:v}.16b, {", $low, ":v}.16b\n",
            "sdot {s2:v}.4s, {t2:v}.16b, {", $low, ":v}.16b\nsdot {s3:v}.4s, {t3:v}.16b, {", $low, ":v}.16b\n",
            $lookup!(concat!($p, "0")), $lookup!(concat!($p, "1")),
            $lookup!(concat!($p, "2")), $lookup!(concat!($p, "3")),
            "sdot {s0:v}.4s, {", $p, "0:v}.16b, {", $high, ":v}.16b\n",
            "sdot {s1:v}.4s, {", $p, "1:v}.16b, {", $high, ":v}.16b\n",
            "sdot {s2:v}.4s, {", $p, "2:v}.16b, {", $high, ":v}.16b\n",
            "sdot {s3:v}.4s, {", $p, "3:v}.16b, {", $high, ":v}.16b\n",
        )
    };
}

/// Loads a line; rows 0…3 go to `0` and `1`, rows 4…7 to `2` and `3`.
macro_rules! load {
    ($p:literal, $o0:literal, $o1:literal, $o2:literal, $o3:literal) => {
        concat!(
            "ldur {",
            $p,
            "0:q}, [{c}, #",
            $o0,
            "]\nldur {",
            $p,
            "1:q}, [{c}, #",
            $o1,
            "]\n",
            "ldur {",
            $p,
            "2:q}, [{c}, #",
            $o2,
            "]\nldur {",
            $p,
            "3:q}, [{c}, #",
            $o3,
            "]\n",
        )
    };
}

/// Sums begin.
macro_rules! start {
    () => {
        "ldur {s0:q}, [{f}]\nldur {s1:q}, [{f}]\nldur {s2:q}, [{f}]\nldur {s3:q}, [{f}]\n"
    };
}

/// What a nibble stands for.
macro_rules! look_up {
    ($register:expr) => {
        concat!("tbl {", $register, ":v}.16b, {{{table:v}.16b}}, {", $register, ":v}.16b\n")
    };
}

/// The nibble itself.
macro_rules! keep {
    ($register:expr) => {
        ""
    };
}

/// The group.
macro_rules! group {
    ($lookup:ident, $codes:ident, $x:ident, $start:ident, [$($table:tt)*]) => {{
        let (mut r0, mut r1, mut s0, mut s2);
        asm!(
            load!("a", 0, 32, 16, 48),
            line!($lookup, "a", "x0", "x2", [start!(), load!("b", 64, 96, 80, 112)]),
            line!($lookup, "b", "x1", "x3", [load!("a", 128, 160, 144, 176)]),
            "addp {r0:v}.4s, {s0:v}.4s, {s1:v}.4s", "addp {r1:v}.4s, {s2:v}.4s, {s3:v}.4s",
            line!($lookup, "a", "x0", "x2", [start!(), load!("b", 192, 224, 208, 240)]),
            line!($lookup, "b", "x1", "x3", []),
            "addp {s0:v}.4s, {s0:v}.4s, {s1:v}.4s", "addp {s2:v}.4s, {s2:v}.4s, {s3:v}.4s",
            r0 = out(vreg) r0, r1 = out(vreg) r1,
            s0 = out(vreg) s0, s1 = out(vreg) _, s2 = out(vreg) s2, s3 = out(vreg) _,
            a0 = out(vreg) _, a1 = out(vreg) _, a2 = out(vreg) _, a3 = out(vreg) _,
            b0 = out(vreg) _, b1 = out(vreg) _, b2 = out(vreg) _, b3 = out(vreg) _,
            t0 = out(vreg) _, t1 = out(vreg) _, t2 = out(vreg) _, t3 = out(vreg) _,
            x0 = in(vreg) $x[0], x1 = in(vreg) $x[1], x2 = in(vreg) $x[2], x3 = in(vreg) $x[3],
            m = in(vreg) vdupq_n_u8(15), $($table)*
            c = in(reg) $codes, f = in(reg) $start,
            options(pure, readonly, nostack, preserves_flags)
        );
        [r0, r1, s0, s2]
    }};
}

/// [`Dot::nibbles`](super::Dot::nibbles).
///
/// # Safety
/// As there; the CPU has `sdot`.
#[inline(always)]
pub(super) unsafe fn by_sdot<const TABLE: bool>(
    codes: *const u8,
    table: uint8x16_t,
    x: [int8x16_t; 4],
    start: &int32x4_t,
) -> [int32x4_t; 4] {
    // SAFETY: as the caller vouches.
    unsafe {
        if TABLE {
            group!(look_up, codes, x, start, [table = in(vreg) table,])
        } else {
            group!(keep, codes, x, start, [])
        }
    }
}
