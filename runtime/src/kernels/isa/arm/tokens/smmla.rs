//! [`tokens`](super) by `smmla`.

use core::arch::aarch64::*;
use core::arch::asm;

use super::{START, Scaling};
use crate::kernels::isa::arm::prepare::group_bytes;
use crate::kernels::isa::arm::strip;

/// The strip's codes and multipliers.
macro_rules! codes {
    () => {
        concat!(
            "ldur q16, [{w}]\nldur q17, [{w}, #16]\nldur q18, [{w}, #32]\nldur q19, [{w}, #48]\n",
            "ldur q20, [{w}, #64]\nldur q21, [{w}, #80]\nldur q22, [{w}, #96]\nldur q23, [{w}, #112]\n",
            "ldur q26, [{w}, #128]\nldur q27, [{w}, #144]\n",
        )
    };
}

/// Two tokens.
macro_rules! two {
    ($scaled:ident, $a:literal, $b:literal) => {
        concat!(
            "ldur q24, [{start}]\nldur q25, [{start}]\n",
            "ldur q28, [{x}]\nldur q29, [{x}, #16]\nldur q30, [{x}, #32]\nldur q31, [{x}, #48]\n",
            "smmla v24.4s, v16.16b, v28.16b\nsmmla v25.4s, v20.16b, v28.16b\n",
            "smmla v24.4s, v17.16b, v29.16b\nsmmla v25.4s, v21.16b, v29.16b\n",
            "smmla v24.4s, v18.16b, v30.16b\nsmmla v25.4s, v22.16b, v30.16b\n",
            "smmla v24.4s, v19.16b, v31.16b\nsmmla v25.4s, v23.16b, v31.16b\n",
            "ldur q30, [{x}, #64]\nadd {x}, {x}, #80\n",
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
macro_rules! integers {
    () => {
        concat!(
            "ldur q28, [{w}, #160]\nldur q29, [{w}, #176]\n",
            "fmla v28.4s, v24.4s, v26.4s\nfmla v29.4s, v25.4s, v27.4s\n",
            "fmul v28.4s, v28.4s, v30.4s\nfmul v29.4s, v29.4s, v30.4s\n",
        )
    };
}

/// [`Scaling::Halves`].
macro_rules! halves {
    () => {
        concat!(
            "ldur q31, [{start}]\n",
            "fsub v24.4s, v24.4s, v31.4s\nfsub v25.4s, v25.4s, v31.4s\n",
            "fmul v28.4s, v26.4s, v30.4s\nfmul v29.4s, v27.4s, v30.4s\n",
            "fmul v28.4s, v24.4s, v28.4s\nfmul v29.4s, v25.4s, v29.4s\n",
        )
    };
}

/// [`Scaling::Rows`].
macro_rules! rows {
    () => {
        concat!(
            "ldur q31, [{start}]\n",
            "fsub v28.4s, v24.4s, v31.4s\nfsub v29.4s, v25.4s, v31.4s\n",
            "fmul v28.4s, v28.4s, v30.4s\nfmul v29.4s, v29.4s, v30.4s\n",
        )
    };
}

/// Four tokens.
macro_rules! four {
    ($scaled:ident, $a0:literal, $a1:literal, $a2:literal, $a3:literal) => {
        concat!(two!($scaled, $a0, $a1), two!($scaled, $a2, $a3))
    };
}

/// The operands of a group.
macro_rules! group {
    ($sums:ident, $w:ident, $x:ident, $code:expr, $($i:literal $v:tt),+) => {
        asm!(
            codes!(),
            $code,
            $(inout($v) $sums[$i],)+
            out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _, out("v23") _,
            out("v24") _, out("v25") _, out("v26") _, out("v27") _, out("v28") _, out("v29") _, out("v30") _, out("v31") _,
            x = inout(reg) $x => _, w = in(reg) $w, start = in(reg) &START,
            options(pure, readonly, nostack, preserves_flags)
        )
    };
}

/// A group of any number of tokens, scaled by `$scaled`.
macro_rules! tokens {
    ($sums:ident, $w:ident, $x:ident, $scaled:ident) => {
        if T == 16 {
            group!(
                $sums, $w, $x,
                concat!(
                    four!($scaled, "0", "1", "2", "3"), four!($scaled, "4", "5", "6", "7"),
                    four!($scaled, "8", "9", "10", "11"), four!($scaled, "12", "13", "14", "15")
                ),
                0 "v0", 1 "v1", 2 "v2", 3 "v3", 4 "v4", 5 "v5", 6 "v6", 7 "v7",
                8 "v8", 9 "v9", 10 "v10", 11 "v11", 12 "v12", 13 "v13", 14 "v14", 15 "v15"
            );
        } else if T == 8 {
            group!(
                $sums, $w, $x,
                concat!(four!($scaled, "0", "1", "2", "3"), four!($scaled, "4", "5", "6", "7")),
                0 "v0", 1 "v1", 2 "v2", 3 "v3", 4 "v4", 5 "v5", 6 "v6", 7 "v7"
            );
        } else {
            group!(
                $sums, $w, $x, four!($scaled, "0", "1", "2", "3"),
                0 "v0", 1 "v1", 2 "v2", 3 "v3"
            );
        }
    };
}

/// Adds the parts of `groups` groups to the sums of four rows and `T` tokens (4, 8 or 16): those of two rows and two tokens
/// each, rows 0 and 1 before rows 2 and 3.
///
/// # Safety
/// The CPU has `smmla`; `w` are the groups as [`strip::pairs`] leaves them, `x` as
/// [`prepare::pairs`](crate::kernels::isa::arm::prepare::pairs) does.
#[inline(always)]
pub unsafe fn by_smmla<const T: usize>(
    scaling: Scaling,
    sums: &mut [float32x4_t; T],
    mut groups: usize,
    mut w: *const u8,
    mut x: *const u8,
) {
    assert!(T == 4 || T == 8 || T == 16);
    while groups > 0 {
        // SAFETY: as the caller vouches.
        unsafe {
            match scaling {
                Scaling::Integers => tokens!(sums, w, x, integers),
                Scaling::Halves => tokens!(sums, w, x, halves),
                Scaling::Rows => tokens!(sums, w, x, rows),
            }
        }
        w = w.wrapping_add(strip::BYTES);
        x = x.wrapping_add(group_bytes::<T, true>());
        groups -= 1;
    }
}
