//! The register tiles of attention: sums of queries times keys, and of weights times values.

use super::super::isa::{Isa, LANES};
use super::super::kv::{KV_BLOCK, KvLayout, KvType};
use super::super::reduce::copy_few;
use super::{Attend, STEP};
use crate::weights::LINE;

/// Queries that go through the tiles together.
pub const TILE: usize = 4;

/// The part of a step that up to [`TILE`] queries see, and what the stages hand on. Scores come first, on a line's boundary, so
/// that no register of them lies across two lines.
#[repr(C)]
#[cfg_attr(any(target_arch = "x86_64", target_arch = "aarch64"), repr(align(64)))]
pub struct Tile {
    /// Scores, then weights, of the step's positions.
    pub(super) s: [[f32; STEP]; TILE],
    pub(super) kv: KvType,
    pub(super) layout: KvLayout,
    pub(super) head_dim_k: usize,
    pub(super) head_dim_v: usize,
    /// The step's first block.
    pub(super) block: *const u8,
    /// The step's first position.
    pub(super) at: usize,
    /// First and last + 1 position seen, counted from the step's beginning.
    pub(super) from: usize,
    pub(super) to: usize,
    /// Queries in use.
    pub(super) n: usize,
    /// Each query's head, and the distance of the step's first position from its own.
    pub(super) place: [(usize, isize); TILE],
    q: [*const f32; TILE],
    out: [*mut f32; TILE],
    /// Factor of what `out` holds from the steps before.
    pub(super) factor: [f32; TILE],
}

impl Tile {
    /// An empty tile.
    pub fn new(a: &Attend<'_>, layout: KvLayout) -> Self {
        Self {
            kv: a.kv,
            layout,
            head_dim_k: a.head_dim_k,
            head_dim_v: a.head_dim_v,
            block: core::ptr::null(),
            at: 0,
            from: 0,
            to: 0,
            n: 0,
            place: [(0, 0); TILE],
            q: [core::ptr::null(); TILE],
            out: [core::ptr::null_mut(); TILE],
            s: [[0.0; STEP]; TILE],
            factor: [1.0; TILE],
        }
    }
    /// Moves to the positions `from..to` of the step that begins with `block` at position `at`, for `n` queries.
    pub fn step(&mut self, block: *const u8, at: usize, (from, to): (usize, usize), n: usize) {
        (self.block, self.at, self.from, self.to, self.n) = (block, at, from, to, n);
    }
    /// Names query `i`, its output, its head, and the distance of the step's first position from its own.
    pub fn query(&mut self, i: usize, q: *const f32, out: *mut f32, head: usize, distance: isize) {
        (self.q[i], self.out[i], self.place[i]) = (q, out, (head, distance));
    }
    /// The registers of the whole blocks that hold a position of the part.
    #[inline(always)]
    pub(super) fn registers<I: Isa>(&self) -> (usize, usize) {
        let per_block = LANES / I::L;
        (self.from / KV_BLOCK * per_block, self.to.div_ceil(KV_BLOCK) * per_block)
    }
}

/// An element type of the cache.
trait Element {
    const BYTES: usize;
    /// Whether each position has a scale behind the block's elements.
    const SCALED: bool;
    /// # Safety
    /// `p` is valid for reading `L` elements.
    unsafe fn load<I: Isa>(isa: I, p: *const u8) -> I::F;
}

struct F32;
struct F16;
struct I8;

impl Element for F32 {
    const BYTES: usize = 4;
    const SCALED: bool = false;
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, p: *const u8) -> I::F {
        // SAFETY: passed on.
        unsafe { isa.load(p.cast()) }
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    const SCALED: bool = false;
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, p: *const u8) -> I::F {
        // SAFETY: passed on.
        unsafe { isa.load_f16(p.cast()) }
    }
}

impl Element for I8 {
    const BYTES: usize = 1;
    const SCALED: bool = true;
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, p: *const u8) -> I::F {
        // SAFETY: passed on.
        isa.to_f(unsafe { isa.load_i8(p.cast()) })
    }
}

/// Whether the level's registers hold tiles of [`TILE`] queries, or of two at most.
const fn wide<I: Isa>() -> bool {
    I::REGISTERS >= 12
}

/// Queries of a tile of a level that is not [`wide`]: one where code size counts, with more of the other side instead.
const fn pair<I: Isa>() -> usize {
    if I::L == 1 { 1 } else { 2 }
}

/// Registers of a tile beside `queries` queries: their sums fill half of the level's registers.
const fn tile_width<I: Isa>(queries: usize) -> usize {
    match I::REGISTERS / 2 / queries {
        0 | 1 => 1,
        2 | 3 => 2,
        4..8 => 4,
        // Four blocks of a step are all there is.
        _ if I::L == LANES => 4,
        _ => 8,
    }
}

/// The sums of queries times keys: `tile.s[i][j] = Σ q[i][d]·k[j][d]`, times the key's scale if it has one, for the
/// whole blocks of the part.
///
/// # Safety
/// The blocks of the part are readable, and the queries' `head_dim_k` floats.
#[inline(always)]
pub unsafe fn scores<I: Isa>(isa: I, tile: &mut Tile) {
    // SAFETY: passed on.
    unsafe {
        match tile.kv {
            KvType::F32 => scores_of::<I, F32>(isa, tile),
            KvType::F16 => scores_of::<I, F16>(isa, tile),
            KvType::I8 => scores_of::<I, I8>(isa, tile),
        }
    }
}

/// `out[i] = out[i]·factor[i] + Σ s[i][j]·v[j]` over the positions of the part.
///
/// # Safety
/// The blocks of the part are readable, `out` valid for `head_dim_v` floats.
#[inline(always)]
pub unsafe fn values<I: Isa>(isa: I, tile: &Tile) {
    // SAFETY: passed on.
    unsafe {
        match tile.kv {
            KvType::F32 => values_of::<I, F32>(isa, tile),
            KvType::F16 => values_of::<I, F16>(isa, tile),
            KvType::I8 => values_of::<I, I8>(isa, tile),
        }
    }
}

/// # Safety
/// As [`scores`].
#[inline(always)]
unsafe fn scores_of<I: Isa, E: Element>(isa: I, tile: &mut Tile) {
    // SAFETY: passed on.
    unsafe {
        if const { wide::<I>() } {
            match tile.n {
                4 => score_rows::<I, E, 4>(isa, tile, 0),
                3 => score_rows::<I, E, 3>(isa, tile, 0),
                2 => score_rows::<I, E, 2>(isa, tile, 0),
                _ => score_rows::<I, E, 1>(isa, tile, 0),
            }
        } else {
            let mut i = 0;
            while const { pair::<I>() == 2 } && i + 2 <= tile.n {
                score_rows::<I, E, 2>(isa, tile, i);
                i += 2;
            }
            while i < tile.n {
                score_rows::<I, E, 1>(isa, tile, i);
                i += 1;
            }
        }
    }
}

/// # Safety
/// As [`values`].
#[inline(always)]
unsafe fn values_of<I: Isa, E: Element>(isa: I, tile: &Tile) {
    // SAFETY: passed on.
    unsafe {
        if const { wide::<I>() } {
            match tile.n {
                4 => value_rows::<I, E, 4>(isa, tile, 0),
                3 => value_rows::<I, E, 3>(isa, tile, 0),
                2 => value_rows::<I, E, 2>(isa, tile, 0),
                _ => value_rows::<I, E, 1>(isa, tile, 0),
            }
        } else {
            let mut i = 0;
            while const { pair::<I>() == 2 } && i + 2 <= tile.n {
                value_rows::<I, E, 2>(isa, tile, i);
                i += 2;
            }
            while i < tile.n {
                value_rows::<I, E, 1>(isa, tile, i);
                i += 1;
            }
        }
    }
}

/// Scores of queries `first..first + M`.
///
/// # Safety
/// As [`scores`].
#[inline(always)]
unsafe fn score_rows<I: Isa, E: Element, const M: usize>(isa: I, tile: &mut Tile, first: usize) {
    let (mut c, to) = tile.registers::<I>();
    let width = const { tile_width::<I>(M) };
    // SAFETY: passed on.
    unsafe {
        while c + width <= to {
            match const { tile_width::<I>(M) } {
                8 => score_tile::<I, E, M, 8>(isa, tile, first, c),
                4 => score_tile::<I, E, M, 4>(isa, tile, first, c),
                2 => score_tile::<I, E, M, 2>(isa, tile, first, c),
                _ => score_tile::<I, E, M, 1>(isa, tile, first, c),
            }
            c += width;
        }
        // Without a remainder where blocks are whole tiles.
        if const { !(LANES / I::L).is_multiple_of(tile_width::<I>(M)) } {
            while c < to {
                score_tile::<I, E, M, 1>(isa, tile, first, c);
                c += 1;
            }
        }
    }
}

/// Outputs of queries `first..first + M`.
///
/// # Safety
/// As [`values`].
#[inline(always)]
unsafe fn value_rows<I: Isa, E: Element, const M: usize>(isa: I, tile: &Tile, first: usize) {
    let n = tile.head_dim_v;
    let width = const { tile_width::<I>(M) * I::L };
    let mut to = [core::ptr::null_mut(); M];
    let mut buffer = [[0f32; LANES]; M];
    let mut d = 0;
    // SAFETY: passed on; in the buffer there is room for a register.
    unsafe {
        let mut m = 0;
        while m < M {
            to[m] = *tile.out.as_ptr().add(first + m);
            m += 1;
        }
        // With one lane every tile goes the way of the last: the loop below has the same one.
        while const { I::L > 1 } && d + width <= n {
            match const { tile_width::<I>(M) } {
                8 => value_tile::<I, E, M, 8>(isa, tile, first, d, &to),
                4 => value_tile::<I, E, M, 4>(isa, tile, first, d, &to),
                2 => value_tile::<I, E, M, 2>(isa, tile, first, d, &to),
                _ => value_tile::<I, E, M, 1>(isa, tile, first, d, &to),
            }
            let mut m = 0;
            while m < M {
                to[m] = to[m].add(width);
                m += 1;
            }
            d += width;
        }
        let step = if const { I::L > 1 } { I::L } else { 4 };
        while d < n {
            // The last few elements of the outputs go through a buffer; rows of the cache are padded.
            let few = n - d < step;
            let outputs = to;
            let mut m = 0;
            while m < M {
                if few {
                    copy_few(outputs[m], buffer[m].as_mut_ptr(), n - d);
                    to[m] = buffer[m].as_mut_ptr();
                }
                m += 1;
            }
            if const { I::L > 1 } {
                value_tile::<I, E, M, 1>(isa, tile, first, d, &to);
            } else {
                value_tile::<I, E, M, 4>(isa, tile, first, d, &to);
            }
            let mut m = 0;
            while m < M {
                if few {
                    copy_few(buffer[m].as_ptr(), outputs[m], n - d);
                } else {
                    to[m] = to[m].add(step);
                }
                m += 1;
            }
            d += step;
        }
    }
}

/// Scores of `W` registers of positions, from register `c` of the step on, for queries `first..first + M`.
///
/// # Safety
/// As [`scores`]; the registers are those of blocks of the part.
#[inline(always)]
unsafe fn score_tile<I: Isa, E: Element, const M: usize, const W: usize>(
    isa: I,
    tile: &mut Tile,
    first: usize,
    c: usize,
) {
    let regs = LANES / I::L;
    let mut acc = [[isa.splat(0.0); W]; M];
    let mut q = [core::ptr::null(); M];
    let mut keys = [tile.block; W];
    // SAFETY: register c + w holds lanes (c + w) mod regs of block (c + w) / regs.
    unsafe {
        let mut m = 0;
        while m < M {
            q[m] = *tile.q.as_ptr().add(first + m);
            m += 1;
        }
        let mut w = 0;
        while w < W {
            keys[w] = tile.block.add((c + w) / regs * tile.layout.block + (c + w) % regs * I::L * E::BYTES);
            w += 1;
        }
        let mut d = 0;
        while d < tile.head_dim_k {
            let mut k = [isa.splat(0.0); W];
            let mut w = 0;
            while w < W {
                k[w] = E::load(isa, keys[w].add(d * KV_BLOCK * E::BYTES));
                if w.is_multiple_of(regs) {
                    // The values of the same block come next.
                    isa.prefetch(keys[w].wrapping_add(tile.layout.values + d * KV_BLOCK * E::BYTES));
                }
                w += 1;
            }
            let mut m = 0;
            while m < M {
                let x = isa.splat(*q[m].add(d));
                let mut w = 0;
                while w < W {
                    acc[m][w] = isa.add(acc[m][w], isa.mul(x, k[w]));
                    w += 1;
                }
                m += 1;
            }
            d += 1;
        }
        let mut w = 0;
        while w < W {
            let mut m = 0;
            while m < M {
                let mut sum = acc[m][w];
                if E::SCALED {
                    let scales = tile.block.add((c + w) / regs * tile.layout.block + tile.head_dim_k * KV_BLOCK);
                    sum = isa.mul(sum, isa.load_f16(scales.cast::<u16>().add((c + w) % regs * I::L)));
                }
                isa.store(tile.s.as_mut_ptr().add(first + m).cast::<f32>().add((c + w) * I::L), sum);
                m += 1;
            }
            w += 1;
        }
    }
}

/// `W` registers from `d` on, kept at `to`, of the outputs of queries `first..first + M`.
///
/// # Safety
/// As [`values`]; `d` begins a register of a padded row; `to` is valid for `W` registers.
#[inline(always)]
unsafe fn value_tile<I: Isa, E: Element, const M: usize, const W: usize>(
    isa: I,
    tile: &Tile,
    first: usize,
    d: usize,
    to: &[*mut f32; M],
) {
    let mut acc = [[isa.splat(0.0); W]; M];
    let mut p = [core::ptr::null(); M];
    // From a value to as far into the keys of the same block in the next step: keys fill about as much as values.
    let next_keys = STEP / KV_BLOCK * tile.layout.block - tile.layout.values;
    // SAFETY: positions are below STEP; rows of the cache are padded to 16 elements, so a register at d stays inside.
    unsafe {
        let mut m = 0;
        while m < M {
            p[m] = tile.s.as_ptr().add(first + m).cast::<f32>();
            let factor = isa.splat(*tile.factor.as_ptr().add(first + m));
            let mut w = 0;
            while w < W {
                acc[m][w] = isa.mul(isa.load(to[m].add(w * I::L)), factor);
                w += 1;
            }
            m += 1;
        }
        let mut j = tile.from;
        while j < tile.to {
            // To the end of the block.
            let end = (j / KV_BLOCK + 1) * KV_BLOCK;
            let end = if end < tile.to { end } else { tile.to };
            let values = tile.block.add(j / KV_BLOCK * tile.layout.block + tile.layout.values + d * E::BYTES);
            let mut row = values.add(j % KV_BLOCK * tile.layout.row * E::BYTES);
            while j < end {
                let mut v = [isa.splat(0.0); W];
                let mut w = 0;
                while w < W {
                    v[w] = E::load(isa, row.add(w * I::L * E::BYTES));
                    w += 1;
                }
                let mut line = 0;
                while line < W * I::L * E::BYTES {
                    isa.prefetch(row.wrapping_add(next_keys + line));
                    line += LINE;
                }
                let mut m = 0;
                while m < M {
                    let x = isa.splat(*p[m].add(j));
                    let mut w = 0;
                    while w < W {
                        acc[m][w] = isa.add(acc[m][w], isa.mul(x, v[w]));
                        w += 1;
                    }
                    m += 1;
                }
                row = row.add(tile.layout.row * E::BYTES);
                j += 1;
            }
        }
        let mut m = 0;
        while m < M {
            let mut w = 0;
            while w < W {
                isa.store(to[m].add(w * I::L), acc[m][w]);
                w += 1;
            }
            m += 1;
        }
    }
}
