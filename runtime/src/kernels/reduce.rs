//! Walking rows: whole registers, then the rest through a padded buffer, and sums over 16 logical lanes.
//!
//! A **row sum** is defined on 16 lanes at every level: lane `j` starts at +0 and adds the elements `j, j + 16,
//! j + 32, …` of the row in that order; then the lanes are folded, `i + 8` onto `i`, `i + 4` onto `i`, `+ 2`, `+ 1`
//! (see [`sum_lanes`]). A row that ends within a step of 16 counts as padded with +0, which
//! changes no lane: a lane is never −0.

use super::isa::{Isa, LANES, sum_lanes};

/// Registers that hold [`LANES`] lanes on the narrowest level.
pub const MAX_REGS: usize = LANES;

/// Whether a row can end within a register.
#[inline(always)]
pub const fn has_rest<I: Isa>() -> bool {
    I::L > 1
}

/// Copies `n < 16` elements in runs of 8, 4, 2 and 1 (a plain loop would become a call of `memcpy`).
///
/// # Safety
/// `from` and `to` are valid for `n` elements and do not overlap.
#[inline(always)]
pub unsafe fn copy_few<T: Copy>(from: *const T, to: *mut T, n: usize) {
    let mut i = 0;
    // SAFETY: the runs chosen by the bits of `n` end at `n`; the caller vouches for that many elements.
    unsafe {
        if n & 8 != 0 {
            to.cast::<[T; 8]>().write_unaligned(from.cast::<[T; 8]>().read_unaligned());
            i = 8;
        }
        if n & 4 != 0 {
            to.add(i).cast::<[T; 4]>().write_unaligned(from.add(i).cast::<[T; 4]>().read_unaligned());
            i += 4;
        }
        if n & 2 != 0 {
            to.add(i).cast::<[T; 2]>().write_unaligned(from.add(i).cast::<[T; 2]>().read_unaligned());
            i += 2;
        }
        if n & 1 != 0 {
            to.add(i).write_unaligned(from.add(i).read_unaligned());
        }
    }
}

/// The first `n < L` floats at `p`, the other lanes `pad`.
///
/// # Safety
/// `p` is valid for reading `n` floats, and `n <= L`.
#[inline(always)]
pub unsafe fn load_few<I: Isa>(isa: I, p: *const f32, n: usize, pad: f32) -> I::F {
    let mut lanes = [pad; LANES];
    // SAFETY: n < L <= 16; the buffer holds a register.
    unsafe {
        copy_few(p, lanes.as_mut_ptr(), n);
        isa.load(lanes.as_ptr())
    }
}

/// Stores the first `n < L` lanes.
///
/// # Safety
/// `p` is valid for writing `n` floats, and `n < L`.
#[inline(always)]
pub unsafe fn store_few<I: Isa>(isa: I, p: *mut f32, v: I::F, n: usize) {
    let mut lanes = [0f32; LANES];
    // SAFETY: n < L <= 16; the buffer holds a register.
    unsafe {
        isa.store(lanes.as_mut_ptr(), v);
        copy_few(lanes.as_ptr(), p, n);
    }
}

/// `out[i] = f(a[i])`.
///
/// # Safety
/// `a` is valid for reading, `out` for writing `n` floats; `out` is `a` or does not overlap it.
#[inline(always)]
pub unsafe fn map<I: Isa>(isa: I, a: *const f32, out: *mut f32, n: usize, f: impl Fn(I::F) -> I::F) {
    let mut i = 0;
    // SAFETY: i + L <= n in the loop, and the rest is n - i < L floats.
    unsafe {
        while i + I::L <= n {
            isa.store(out.add(i), f(isa.load(a.add(i))));
            i += I::L;
        }
        if has_rest::<I>() && i < n {
            store_few(isa, out.add(i), f(load_few(isa, a.add(i), n - i, 0.0)), n - i);
        }
    }
}

/// `out[i] = f(a[i], b[i])`.
///
/// # Safety
/// `a` and `b` are valid for reading, `out` for writing `n` floats; `out` is `a` or `b` or does not overlap them.
#[inline(always)]
pub unsafe fn zip<I: Isa>(
    isa: I,
    a: *const f32,
    b: *const f32,
    out: *mut f32,
    n: usize,
    f: impl Fn(I::F, I::F) -> I::F,
) {
    let mut i = 0;
    // SAFETY: i + L <= n in the loop, and the rest is n - i < L floats.
    unsafe {
        while i + I::L <= n {
            isa.store(out.add(i), f(isa.load(a.add(i)), isa.load(b.add(i))));
            i += I::L;
        }
        if has_rest::<I>() && i < n {
            let (x, y) = (load_few(isa, a.add(i), n - i, 0.0), load_few(isa, b.add(i), n - i, 0.0));
            store_few(isa, out.add(i), f(x, y), n - i);
        }
    }
}

/// Folds a row into 16 lanes: `acc = f(acc, x)` from `init`, a short last step padded with `pad`.
///
/// Only the first `16 / L` registers of the result are used.
///
/// # Safety
/// `x` is valid for reading `n` floats.
#[inline(always)]
pub unsafe fn fold<I: Isa>(
    isa: I,
    x: *const f32,
    n: usize,
    init: f32,
    pad: f32,
    f: impl Fn(I::F, I::F) -> I::F,
) -> [I::F; MAX_REGS] {
    let mut acc = [isa.splat(init); MAX_REGS];
    let mut i = 0;
    // SAFETY: i + 16 <= n in the loop; the rest is n - i < 16 floats, copied into a buffer of 16.
    unsafe {
        while i + LANES <= n {
            let mut r = 0;
            while r < LANES / I::L {
                acc[r] = f(acc[r], isa.load(x.add(i + r * I::L)));
                r += 1;
            }
            i += LANES;
        }
        if i < n {
            let mut rest = [pad; LANES];
            copy_few(x.add(i), rest.as_mut_ptr(), n - i);
            let mut r = 0;
            while r < LANES / I::L {
                acc[r] = f(acc[r], isa.load(rest.as_ptr().add(r * I::L)));
                r += 1;
            }
        }
    }
    acc
}

/// The row sum of `f(x[i])`; `f(pad)` must be ±0.
///
/// # Safety
/// `x` is valid for reading `n` floats.
#[inline(always)]
pub unsafe fn sum<I: Isa>(isa: I, x: *const f32, n: usize, pad: f32, f: impl Fn(I::F) -> I::F) -> f32 {
    // SAFETY: passed on.
    let acc = unsafe {
        fold(
            isa,
            x,
            n,
            0.0,
            pad,
            #[inline(always)]
            |acc, x| isa.add(acc, f(x)),
        )
    };
    sum_lanes(isa, &acc[..LANES / I::L])
}

/// The largest element by [`Isa::max`] against −∞, so NaN never wins; −∞ for an empty row.
///
/// # Safety
/// `x` is valid for reading `n` floats.
#[inline(always)]
pub unsafe fn max<I: Isa>(isa: I, x: *const f32, n: usize) -> f32 {
    // SAFETY: passed on.
    let acc = unsafe {
        fold(
            isa,
            x,
            n,
            f32::NEG_INFINITY,
            f32::NEG_INFINITY,
            #[inline(always)]
            |acc, x| isa.max(x, acc),
        )
    };
    super::isa::max_lanes(isa, &acc[..LANES / I::L])
}
