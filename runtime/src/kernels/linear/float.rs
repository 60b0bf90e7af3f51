//! Float weights times float activations.
//!
//! Inputs run in groups of 32: a row's products are added up in order within the group, from zero, and the group's
//! sum is added to the row's. The groups' sums do not depend on each other, which hides the latency of the additions.

use crate::kernels::isa::Isa;
use crate::kernels::linear::{LinearArgs, ThinArgs};
use crate::weights::{GROUP, LINE, PANEL_ROWS};

/// How float weights are stored.
pub(crate) trait Stored {
    /// Bytes of a weight.
    const BYTES: usize;
    /// `L` weights as f32.
    ///
    /// # Safety
    /// `at` is valid for reading `L` weights.
    unsafe fn load<I: Isa>(isa: I, at: *const u8) -> I::F;
}

/// binary32.
pub(crate) struct Single;
impl Stored for Single {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, at: *const u8) -> I::F {
        // SAFETY: passed on.
        unsafe { isa.load(at.cast()) }
    }
}

/// binary16.
pub(crate) struct Half;
impl Stored for Half {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, at: *const u8) -> I::F {
        // SAFETY: passed on.
        unsafe { isa.load_f16(at.cast()) }
    }
}

/// Tokens whose sums are held in registers together.
const TILE: usize = 4;
/// The same where a register holds a panel's rows: there are 32 of those, and a weight is converted once for more tokens.
const LARGE_TILES: [usize; 2] = [16, 8];
/// Inputs that are taken without asking for the end: a divisor of the group.
const fn step<I: Isa, W: Stored>() -> usize {
    if narrow::<I, W>() && I::L < PANEL_ROWS { 2 } else { 8 }
}

/// Registers of one lane are a small processor's: one way through a panel, four rows and a token at a time, for little code.
const fn small<I: Isa>() -> bool {
    I::L == 1
}

/// The body of the float linear entries.
///
/// # Safety
/// As [`LinearArgs`] says; the panel is of `W`'s format.
#[inline(always)]
pub(crate) unsafe fn panel<I: Isa, W: Stored>(isa: I, a: LinearArgs) {
    // SAFETY: passed on.
    unsafe {
        tokens::<I, W>(
            isa,
            Place { panel: a.panel, next: 0, k: a.k, x: a.x, stride: a.stride, out: a.out },
            a.tokens,
            false,
        )
    }
}

/// The body of the thin entries: products of panels that follow each other are added to the sums.
///
/// # Safety
/// As [`ThinArgs`] says; the panels are of `W`'s format.
#[inline(always)]
pub(crate) unsafe fn add_thin<I: Isa, W: Stored>(isa: I, a: ThinArgs) {
    let next = a.k * PANEL_ROWS * W::BYTES;
    let at = Place { panel: a.panels, next, k: a.k, x: a.x, stride: a.stride, out: a.out };
    if a.tokens == 1 && !small::<I>() {
        // SAFETY: passed on.
        return unsafe { add_thin_row::<I, W>(isa, at, a.count) };
    }
    let mut panel = 0;
    while panel < a.count {
        let (from, out) = (at.panel.wrapping_add(panel * next), at.out.wrapping_add(panel * a.tokens));
        // SAFETY: the panel is one of `count`, and so are its rows of the sums.
        unsafe { tokens::<I, W>(isa, Place { panel: from, out, ..at }, a.tokens, true) };
        panel += 1;
    }
}

/// One token, whose sums follow each other as the panels' rows do: they are taken four registers at a time, so that narrow
/// panels keep the adders busy.
///
/// # Safety
/// `a` has `count` panels, and as many rows of sums.
#[inline(always)]
unsafe fn add_thin_row<I: Isa, W: Stored>(isa: I, mut a: Place, count: usize) {
    let at_once = I::L * 4 / PANEL_ROWS;
    // The next call takes up where this one ends, after many lines of the base: too far for the hardware's own guess.
    let ahead = count * a.next;
    let mut left = count;
    while left > 0 {
        let panels = if left >= at_once { at_once } else { 1 };
        let mut line = 0;
        while line < panels * a.next {
            isa.prefetch(a.panel.wrapping_add(ahead + line));
            line += LINE;
        }
        // SAFETY: so many panels are left.
        unsafe {
            if left < at_once {
                strips::<I, W, 1>(isa, a, 0, true);
            } else {
                tile::<I, W, 4, 1>(isa, a, 0, 0, true);
            }
        }
        a.panel = a.panel.wrapping_add(panels * a.next);
        a.out = a.out.wrapping_add(panels);
        left -= panels;
    }
}

/// A panel of `k` inputs, rows of activations and of sums; the next panel is `next` bytes further.
#[derive(Clone, Copy)]
struct Place {
    panel: *const u8,
    next: usize,
    k: usize,
    x: *const u8,
    stride: usize,
    out: *mut [f32; PANEL_ROWS],
}

/// The sums of `count` tokens: written, or added to what is there.
///
/// # Safety
/// The panel is whole, and the activations and sums have `count` tokens.
#[inline(always)]
unsafe fn tokens<I: Isa, W: Stored>(isa: I, a: Place, count: usize, add: bool) {
    // SAFETY: tiles lie within the tokens, strips within the panel's rows.
    unsafe {
        if small::<I>() {
            return small_tokens::<I, W>(isa, a, count, add);
        }
        let mut t = 0;
        if I::L == PANEL_ROWS {
            while t + LARGE_TILES[0] <= count {
                strips::<I, W, { LARGE_TILES[0] }>(isa, a, t, add);
                t += LARGE_TILES[0];
            }
            if t + LARGE_TILES[1] <= count {
                strips::<I, W, { LARGE_TILES[1] }>(isa, a, t, add);
                t += LARGE_TILES[1];
            }
        }
        while t + TILE <= count {
            strips::<I, W, TILE>(isa, a, t, add);
            t += TILE;
        }
        while t < count {
            strips::<I, W, 1>(isa, a, t, add);
            t += 1;
        }
    }
}

/// [`tokens`] on a small processor: one function for all its callers, written out because such programs are compiled for
/// size. The sums are those of [`tile`].
///
/// # Safety
/// As [`tokens`].
#[inline(never)]
unsafe fn small_tokens<I: Isa, W: Stored>(isa: I, a: Place, count: usize, add: bool) {
    let mut t = 0;
    while t < count * PANEL_ROWS {
        let row = t % PANEL_ROWS;
        // SAFETY: the panel has four rows from each fourth on, and its inputs; activations and sums have the token.
        unsafe {
            let mut x = a.x.add(t / PANEL_ROWS * a.stride).cast::<f32>();
            let mut w = a.panel.add(row * W::BYTES);
            let zero = isa.splat(0.0);
            let (mut s0, mut s1, mut s2, mut s3) = (zero, zero, zero, zero);
            let mut left = a.k;
            while left > 0 {
                let mut n = if left < GROUP { left } else { GROUP };
                left -= n;
                let (mut g0, mut g1, mut g2, mut g3) = (zero, zero, zero, zero);
                while n > 0 {
                    let by = isa.splat(x.read_unaligned());
                    g0 = isa.add(g0, isa.mul(W::load(isa, w), by));
                    g1 = isa.add(g1, isa.mul(W::load(isa, w.add(W::BYTES)), by));
                    g2 = isa.add(g2, isa.mul(W::load(isa, w.add(2 * W::BYTES)), by));
                    g3 = isa.add(g3, isa.mul(W::load(isa, w.add(3 * W::BYTES)), by));
                    w = w.add(PANEL_ROWS * W::BYTES);
                    x = x.add(1);
                    n -= 1;
                }
                (s0, s1, s2, s3) = (isa.add(s0, g0), isa.add(s1, g1), isa.add(s2, g2), isa.add(s3, g3));
            }
            let mut out = a.out.cast::<f32>().add(t);
            for sum in [s0, s1, s2, s3] {
                isa.store(out, if add { isa.add(isa.load(out), sum) } else { sum });
                out = out.add(1);
            }
        }
        t += 4;
    }
}

/// Whether a pass is over one register of rows, not two: where the panel has only one, or there are few registers and weights
/// take some to convert.
const fn narrow<I: Isa, W: Stored>() -> bool {
    I::L == PANEL_ROWS || I::REGISTERS < 16 && W::BYTES < 4
}

/// All rows for the tokens `t..t + T`, in passes over two registers of rows, or over one.
///
/// # Safety
/// As [`tokens`]; the tokens exist.
#[inline(always)]
unsafe fn strips<I: Isa, W: Stored, const T: usize>(isa: I, a: Place, t: usize, add: bool) {
    let mut row = 0;
    while row < PANEL_ROWS {
        // SAFETY: passed on.
        unsafe {
            if const { narrow::<I, W>() } {
                tile::<I, W, 1, T>(isa, a, t, row, add);
            } else {
                tile::<I, W, 2, T>(isa, a, t, row, add);
            }
        }
        row += if narrow::<I, W>() { I::L } else { 2 * I::L };
    }
}

/// Rows `row..row + R·L` of the panel and of those behind it, for the tokens `t..t + T`.
///
/// # Safety
/// As [`tokens`]; the rows and tokens exist, and `row` is below 16. With rows of several panels there is one token.
#[inline(always)]
unsafe fn tile<I: Isa, W: Stored, const R: usize, const T: usize>(isa: I, a: Place, t: usize, row: usize, add: bool) {
    let mut acc = [[isa.splat(0.0); R]; T];
    let mut k = 0;
    while k < a.k {
        let end = if a.k - k < GROUP { a.k } else { k + GROUP };
        if T > 1 && t == 0 && row == 0 {
            ask::<I, W>(isa, a.panel.wrapping_add(k * PANEL_ROWS * W::BYTES));
        }
        let mut group = [[isa.splat(0.0); R]; T];
        while k + step::<I, W>() <= end {
            let mut i = 0;
            while i < step::<I, W>() {
                // SAFETY: k + i is below the panel's inputs.
                unsafe { input::<I, W, R, T>(isa, a, t, row, k + i, &mut group) };
                i += 1;
            }
            k += step::<I, W>();
        }
        while k < end {
            // SAFETY: k is below the panel's inputs.
            unsafe { input::<I, W, R, T>(isa, a, t, row, k, &mut group) };
            k += 1;
        }
        let mut i = 0;
        while i < T {
            let mut r = 0;
            while r < R {
                acc[i][r] = isa.add(acc[i][r], group[i][r]);
                r += 1;
            }
            i += 1;
        }
    }
    let mut i = 0;
    while i < T {
        let mut r = 0;
        while r < R {
            // SAFETY: the output has the token and the row.
            unsafe {
                let out = a.out.add(t + i).cast::<f32>().add(row + r * I::L);
                isa.store(out, if add { isa.add(isa.load(out), acc[i][r]) } else { acc[i][r] });
            }
            r += 1;
        }
        i += 1;
    }
}

/// Asks for the lines of the group after the one at `p`: the first tokens bring a panel from memory, and the hardware's own
/// prefetcher stops at every page.
#[inline(always)]
fn ask<I: Isa, W: Stored>(isa: I, p: *const u8) {
    const AHEAD: usize = 2048;
    let mut line = 0;
    while line < GROUP * PANEL_ROWS * W::BYTES {
        isa.prefetch(p.wrapping_add(AHEAD + line));
        line += LINE;
    }
}

/// Adds the products of input `k` to a group's sums.
///
/// # Safety
/// As [`tile`]; the panel and the activations have the input.
#[inline(always)]
unsafe fn input<I: Isa, W: Stored, const R: usize, const T: usize>(
    isa: I,
    a: Place,
    t: usize,
    row: usize,
    k: usize,
    group: &mut [[I::F; R]; T],
) {
    let mut w = [isa.splat(0.0); R];
    let mut r = 0;
    while r < R {
        let at = row + r * I::L;
        // SAFETY: the panels have the input and the rows.
        w[r] = unsafe {
            W::load(isa, a.panel.add(at / PANEL_ROWS * a.next + (k * PANEL_ROWS + at % PANEL_ROWS) * W::BYTES))
        };
        r += 1;
    }
    let mut i = 0;
    while i < T {
        // SAFETY: row t + i of the activations has the input.
        let x = isa.splat(unsafe { a.x.add((t + i) * a.stride).cast::<f32>().add(k).read_unaligned() });
        let mut r = 0;
        while r < R {
            group[i][r] = isa.add(group[i][r], isa.mul(w[r], x));
            r += 1;
        }
        i += 1;
    }
}
