//! From sums to scores to weights: factor, soft cap, bias, running maximum, exponentials.

use super::super::isa::{Isa, LANES, max_lanes};
use super::super::kv::{KV_BLOCK, KvType};
use super::super::math::{exp, tanh};
use super::super::reduce::MAX_REGS;
use super::tile::Tile;
use super::{Attend, Bias, State};

/// Turns the sums of query `i` into weights (times the values' scales), takes them into its state, and leaves the
/// factor of what the state held before.
///
/// # Safety
/// The blocks of the part are readable; `i` is a query of the tile, `head` one of the call; `distance` is that of the
/// step's first position from the query's own.
#[inline(always)]
pub unsafe fn weigh<I: Isa>(
    isa: I,
    tile: &mut Tile,
    i: usize,
    a: &Attend<'_>,
    (head, distance): (usize, isize),
    state: &mut State,
) {
    let range = tile.registers::<I>();
    // SAFETY: passed on.
    unsafe {
        finish_scores(isa, a, tile, i, (head, distance), range);
        tile.factor[i] = take(isa, tile, i, range, state);
    }
}

/// Turns sums `s` into scores: factor, soft cap, bias; −∞ outside the part seen.
///
/// # Safety
/// `head` is a head of the call; registers `from..to` are inside the step.
#[inline(always)]
unsafe fn finish_scores<I: Isa>(
    isa: I,
    a: &Attend<'_>,
    tile: &mut Tile,
    i: usize,
    (head, distance): (usize, isize),
    (from, to): (usize, usize),
) {
    let (seen_from, seen_to) = (tile.from, tile.to);
    let s = &mut tile.s[i];
    let scale = isa.splat(a.scale);
    let mut c = from;
    while c < to {
        // SAFETY: c·L + L <= STEP; tables have `width` entries per head, and the slopes one.
        unsafe {
            let p = s.as_mut_ptr().add(c * I::L);
            let mut x = isa.mul(isa.load(p), scale);
            if a.softcap != 0.0 {
                let cap = isa.splat(a.softcap);
                x = isa.mul(cap, tanh(isa, isa.div(x, cap)));
            }
            let at = distance + (c * I::L) as isize;
            match a.bias {
                Bias::None => {}
                Bias::Alibi(slopes) => {
                    let mut lanes = [0f32; LANES];
                    let mut i = 0;
                    while i < I::L {
                        lanes[i] = (at + i as isize) as f32;
                        i += 1;
                    }
                    x = isa.add(x, isa.mul(isa.splat(*slopes.as_ptr().add(head)), isa.load(lanes.as_ptr())));
                }
                Bias::Relative { tables, width, offset } => {
                    let table = tables.as_ptr().add(head * width);
                    let at = at.saturating_add_unsigned(offset);
                    if at >= 0 && at as usize + I::L <= width {
                        x = isa.add(x, isa.load(table.add(at as usize)));
                    } else {
                        let mut lanes = [0f32; LANES];
                        let mut i = 0;
                        while i < I::L {
                            lanes[i] = *table.add(at.saturating_add(i as isize).clamp(0, width as isize - 1) as usize);
                            i += 1;
                        }
                        x = isa.add(x, isa.load(lanes.as_ptr()));
                    }
                }
            }
            isa.store(p, x);
        }
        c += 1;
    }
    let mut j = from * I::L;
    while j < seen_from {
        s[j] = f32::NEG_INFINITY;
        j += 1;
    }
    let mut j = seen_to;
    while j < to * I::L {
        s[j] = f32::NEG_INFINITY;
        j += 1;
    }
}

/// Turns scores into weights (times the values' scales) and takes them into the state; returns the factor of what the
/// state held before.
///
/// # Safety
/// Registers `from..to` are inside blocks that hold a position of the step.
#[inline(always)]
unsafe fn take<I: Isa>(
    isa: I,
    tile: &mut Tile,
    i: usize,
    (from, to): (usize, usize),
    State { m, l }: &mut State,
) -> f32 {
    let regs = LANES / I::L;
    let (block, layout) = (tile.block, tile.layout);
    let scaled = matches!(tile.kv, KvType::I8);
    let s = &mut tile.s[i];
    // SAFETY: registers are inside the step, and i < regs inside `l`.
    unsafe {
        let mut largest = [isa.splat(*m); MAX_REGS];
        let mut c = from;
        while c < to {
            let mut i = 0;
            while i < regs {
                largest[i] = isa.max(isa.load(s.as_ptr().add((c + i) * I::L)), largest[i]);
                i += 1;
            }
            c += regs;
        }
        let largest = max_lanes(isa, &largest[..regs]);
        let mut factor = 1.0;
        if largest != *m {
            let mut lanes = [0f32; LANES];
            isa.store(lanes.as_mut_ptr(), exp(isa, isa.splat(*m - largest)));
            factor = lanes[0];
            *m = largest;
        }
        let top = isa.splat(largest);
        let mut sums = [isa.splat(0.0); MAX_REGS];
        let mut i = 0;
        while i < regs {
            sums[i] = isa.mul(isa.load(l.as_ptr().add(i * I::L)), isa.splat(factor));
            i += 1;
        }
        let mut c = from;
        while c < to {
            let values = block.add(c / regs * layout.block + layout.values);
            let scales = values.add(layout.row * KV_BLOCK).cast::<u16>();
            let mut i = 0;
            while i < regs {
                let at = s.as_mut_ptr().add((c + i) * I::L);
                let mut p = exp(isa, isa.sub(isa.load(at), top));
                sums[i] = isa.add(sums[i], p);
                if scaled {
                    p = isa.mul(p, isa.load_f16(scales.add(i * I::L)));
                }
                isa.store(at, p);
                i += 1;
            }
            c += regs;
        }
        let mut i = 0;
        while i < regs {
            isa.store(l.as_mut_ptr().add(i * I::L), sums[i]);
            i += 1;
        }
        factor
    }
}
