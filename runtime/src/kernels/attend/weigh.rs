//! From sums to scores to weights: factor, soft cap, bias, running maximum, exponentials.

use super::super::isa::{Isa, LANES, max_lanes};
use super::super::kv::{KV_BLOCK, KvType};
use super::super::math::{exp, tanh};
use super::super::reduce::MAX_REGS;
use super::tile::{TILE, Tile};
use super::{Attend, Bias, State};

/// Turns the sums of every query of the tile into weights (times the values' scales), takes them into its state, and
/// leaves the factor of what the state held before.
///
/// # Safety
/// The blocks of the part are readable; `state` is valid for the tile's queries, whose heads are heads of the call.
#[inline(always)]
pub unsafe fn weigh<I: Isa>(isa: I, tile: &mut Tile, a: &Attend<'_>, state: *mut State) {
    let range = tile.registers::<I>();
    let n = tile.n.min(TILE);
    let mut top = [0f32; TILE];
    let mut i = 0;
    while i < n {
        // SAFETY: passed on; i < n.
        unsafe {
            let s = tile.s.as_mut_ptr().add(i).cast::<f32>();
            let (head, distance) = *tile.place.as_ptr().add(i);
            finish_scores(isa, a, s, (head, distance), range);
            if let Bias::Rows(rows) = &a.bias {
                let query = (tile.at as isize - distance) as usize;
                let mut j = tile.from;
                while j < tile.to {
                    *s.add(j) += rows.at(head, query, tile.at + j);
                    j += 1;
                }
            }
            let mut j = range.0 * I::L;
            while j < tile.from {
                *s.add(j) = f32::NEG_INFINITY;
                j += 1;
            }
            let mut j = tile.to;
            while j < range.1 * I::L {
                *s.add(j) = f32::NEG_INFINITY;
                j += 1;
            }
            top[i] = largest(isa, s, range, (*state.add(i)).m);
        }
        i += 1;
    }
    // A loop of its own, so that the queries' searches for their maxima, short chains of slow steps, overlap.
    let mut i = 0;
    while i < n {
        // SAFETY: as above.
        unsafe {
            let s = tile.s.as_mut_ptr().add(i).cast::<f32>();
            *tile.factor.as_mut_ptr().add(i) = take(isa, tile, s, range, top[i], &mut *state.add(i));
        }
        i += 1;
    }
}

/// Turns sums `s` into scores: factor, soft cap, bias.
///
/// # Safety
/// `head` is a head of the call; registers `from..to` are inside the step, whose first position is `distance` from the
/// query's own.
#[inline(always)]
unsafe fn finish_scores<I: Isa>(
    isa: I,
    a: &Attend<'_>,
    s: *mut f32,
    (head, distance): (usize, isize),
    (from, to): (usize, usize),
) {
    /// Puts every register through `f(x, distance)`.
    #[inline(always)]
    unsafe fn each<I: Isa>(isa: I, s: *mut f32, (from, to): (usize, usize), f: impl Fn(I::F, isize) -> I::F) {
        let mut c = from;
        while c < to {
            // SAFETY: c·L + L <= STEP.
            unsafe { isa.store(s.add(c * I::L), f(isa.load(s.add(c * I::L)), (c * I::L) as isize)) };
            c += 1;
        }
    }
    let range = (from, to);
    let (scale, cap) = (isa.splat(a.scale), isa.splat(a.softcap));
    // SAFETY: passed on; tables have `width` entries per head, and the slopes one.
    unsafe {
        each(
            isa,
            s,
            range,
            #[inline(always)]
            |x, _| isa.mul(x, scale),
        );
        if a.softcap != 0.0 {
            each(
                isa,
                s,
                range,
                #[inline(always)]
                |x, _| isa.mul(cap, tanh(isa, isa.div(x, cap))),
            );
        }
        match a.bias {
            Bias::None | Bias::Rows(_) => {}
            Bias::Alibi(slopes) => {
                let slope = isa.splat(*slopes.as_ptr().add(head));
                each(
                    isa,
                    s,
                    range,
                    #[inline(always)]
                    |x, at| {
                        let mut lanes = [0f32; LANES];
                        let mut i = 0;
                        while i < I::L {
                            lanes[i] = (distance + at + i as isize) as f32;
                            i += 1;
                        }
                        isa.add(x, isa.mul(slope, isa.load(lanes.as_ptr())))
                    },
                );
            }
            Bias::Relative { tables, width, offset } => {
                let table = tables.as_ptr().add(head * width);
                let first = distance.saturating_add_unsigned(offset);
                each(
                    isa,
                    s,
                    range,
                    #[inline(always)]
                    |x, at| {
                        let at = first.saturating_add(at);
                        if at >= 0 && at as usize + I::L <= width {
                            return isa.add(x, isa.load(table.add(at as usize)));
                        }
                        let mut lanes = [0f32; LANES];
                        let mut i = 0;
                        while i < I::L {
                            // Not `clamp`, which has a panic for an empty range.
                            let at = at.saturating_add(i as isize);
                            let at = if at < 0 { 0 } else { at as usize };
                            lanes[i] = *table.add(if at < width { at } else { width - 1 });
                            i += 1;
                        }
                        isa.add(x, isa.load(lanes.as_ptr()))
                    },
                );
            }
        }
    }
}

/// The largest of the scores and `m`.
///
/// # Safety
/// Registers `from..to` are inside the step.
#[inline(always)]
unsafe fn largest<I: Isa>(isa: I, s: *const f32, (from, to): (usize, usize), m: f32) -> f32 {
    let regs = LANES / I::L;
    let mut largest = [isa.splat(m); MAX_REGS];
    let mut c = from;
    while c < to {
        let mut i = 0;
        while i < regs {
            // SAFETY: passed on; whole blocks have `regs` registers.
            largest[i] = isa.max(unsafe { isa.load(s.add((c + i) * I::L)) }, largest[i]);
            i += 1;
        }
        c += regs;
    }
    max_lanes(isa, &largest[..regs])
}

/// Turns scores into weights (times the values' scales), `top` being their largest, and takes them into the state;
/// returns the factor of what the state held before.
///
/// # Safety
/// Registers `from..to` are inside blocks that hold a position of the step.
#[inline(always)]
unsafe fn take<I: Isa>(
    isa: I,
    tile: &Tile,
    s: *mut f32,
    (from, to): (usize, usize),
    top: f32,
    State { m, l }: &mut State,
) -> f32 {
    let regs = LANES / I::L;
    let (block, layout) = (tile.block, tile.layout);
    let scaled = matches!(tile.kv, KvType::I8);
    // SAFETY: registers are inside the step, and i < regs inside `l`.
    unsafe {
        let mut factor = 1.0;
        if top != *m {
            let mut lanes = [0f32; LANES];
            isa.store(lanes.as_mut_ptr(), exp(isa, isa.splat(*m - top)));
            factor = lanes[0];
            *m = top;
        }
        let top = isa.splat(top);
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
                let at = s.add((c + i) * I::L);
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
