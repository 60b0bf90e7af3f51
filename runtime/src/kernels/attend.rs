//! Attention of a few query vectors over the key/value cache of one kv head.
//!
//! A call serves `tokens × heads` queries that share a kv head. Query `(t, h)` stands at position `i = pos + t` and
//! sees the positions `lo ≤ j < hi`, `lo = max(i − back, 0)`, `hi = min(i + ahead + 1, len)`.
//!
//! # Definition
//! Every operation is rounded, in this order, with `exp` and `tanh` of [`math`](super::math):
//! ```text
//! s(j) = ((Σ over d = 0, 1, … of q[d]·k[j][d], from +0) · key scale(j)) · scale       (key scale: i8 only)
//! s(j) = cap·tanh(s(j) / cap)                                                         where there is a soft cap
//! s(j) = s(j) + slope·(j − i),  or  s(j) + by_distance[clamp(j − i + offset)]         where there is a bias
//! s(j) = s(j) + (query_row(i)[c] + key_row(j)[c]),  c = entry[clamp(j − i + offset)]  where rows speak of distances
//! ```
//! State of a query: `m` = −∞, sums `l[16]` = +0, `out[d]` = +0 (with a sink: `m` = its logit, `l[0]` = 1). Then for
//! each **step**, the positions in `[lo, hi)` of one aligned run of [`STEP`], in order:
//! ```text
//! m' = max(m, s of the step);  c = exp(m − m')                                        (1 where m' = m)
//! p(j) = exp(s(j) − m');   l[r] = l[r]·c, then + p(j) for each j ≡ r (mod 16), in order
//! out[d] = out[d]·c, then + (p(j) · value scale(j))·v[j][d] for each j, in order
//! ```
//! At the end `out[d] = out[d] / Σl` (the tree of [`sum_lanes`](super::isa::sum_lanes)), or +0 where no position is visible. Steps begin at
//! multiples of [`STEP`] of the absolute position, and a query's arithmetic mentions no other query: results do not
//! depend on how tokens are split into calls, nor on tiles or threads. Positions outside `[lo, hi)` are never used,
//! not even multiplied by zero.
//!
//! # How it runs
//! Queries are taken 16 at a time, and every step of keys and values is read once for all 16. Within a step, queries
//! that see the same part of it (all of them, away from the edges) go four at a time through two register tiles:
//! ```text
//! scores: 4 queries × W registers of positions, over d;        each key register is used by 4 queries
//! values: 4 queries × W registers of d, over the positions;    each value register is used by 4 queries
//! ```
//! `W` is chosen so that the sums fill half of the level's registers. The running output lives in `out`, so the
//! stack holds the scores of four queries and the sums `l`, whatever the width of the heads. The walk over queries and
//! steps is ordinary code; the three stages of a step, [`tile::scores`], [`weigh::weigh`] and [`tile::values`], are
//! the kernels.

use super::Kernels;
use super::isa::LANES;
use super::kv::{KV_BLOCK, KvLayout, KvType};

#[cfg(test)]
mod tests;
pub(super) mod tile;
pub(super) mod weigh;

use tile::{TILE, Tile};

/// Positions between two corrections of the running maximum.
pub const STEP: usize = 64;
/// Queries that share one pass over the keys and values.
const QUERIES: usize = 16;

/// What is added to a score.
#[derive(Clone, Copy, Debug)]
pub enum Bias<'a> {
    /// Nothing.
    None,
    /// `slope · (j − i)`, one slope per head.
    Alibi(&'a [f32]),
    /// `table[clamp(j − i + offset, 0, width − 1)]`, one table of `width` per head, one after the other.
    Relative {
        /// The tables.
        tables: &'a [f32],
        /// Entries of a table.
        width: usize,
        /// Index of distance 0.
        offset: usize,
    },
    /// What the query's row and the key's row say about their distance (disentangled attention).
    Rows(DistanceRows<'a>),
}

/// Rows of position biases. Row `i` belongs to position `i`: for every head `width` entries that are added where `i` is
/// the query, then, from `keys` on, as many where it is the key.
#[derive(Clone, Copy, Debug)]
pub struct DistanceRows<'a> {
    /// The rows, from the first head of the call on.
    pub rows: &'a [f32],
    /// Floats from row to row.
    pub stride: usize,
    /// Floats from a row's entries for queries to those for keys.
    pub keys: usize,
    /// Entries of a head.
    pub width: usize,
    /// The entry of every distance; whole numbers, at most `width − 1` counts.
    pub entry: &'a [f32],
    /// Index of distance 0 in `entry`.
    pub offset: usize,
}

impl DistanceRows<'_> {
    /// The bias of head `head`, query position `i` and key position `j`.
    ///
    /// # Safety
    /// Both positions have rows, and the head entries in them.
    #[inline(always)]
    unsafe fn at(&self, head: usize, i: usize, j: usize) -> f32 {
        let distance = (j + self.offset).saturating_sub(i);
        let last = self.entry.len() - 1;
        // SAFETY: the index is inside `entry`, the entry is below `width`; the rest is the caller's word.
        unsafe {
            let entry = *self.entry.as_ptr().add(if distance < last { distance } else { last }) as usize;
            let entry = head * self.width + if entry < self.width { entry } else { self.width - 1 };
            *self.rows.as_ptr().add(i * self.stride + entry)
                + *self.rows.as_ptr().add(j * self.stride + self.keys + entry)
        }
    }
}

/// One call of attention: the queries of `tokens` neighbouring positions and `heads` heads, over one kv head.
#[derive(Clone, Copy, Debug)]
pub struct Attend<'a> {
    /// How the cache keeps its elements.
    pub kv: KvType,
    /// The kv head's region.
    pub region: &'a [u8],
    /// Positions stored.
    pub len: usize,
    /// Width of queries and keys.
    pub head_dim_k: usize,
    /// Width of values.
    pub head_dim_v: usize,
    /// Queries: head `h` of token `t` begins at `t · q_stride + h · head_dim_k`.
    pub q: &'a [f32],
    /// Floats from a token's queries to the next token's.
    pub q_stride: usize,
    /// Tokens.
    pub tokens: usize,
    /// Query heads that share this kv head.
    pub heads: usize,
    /// Position of the first token.
    pub pos: usize,
    /// How many positions before its own a token sees (`usize::MAX`: all; a window of `w` is `w − 1`).
    pub back: usize,
    /// How many positions after its own a token sees (0: causal; `usize::MAX`: all).
    pub ahead: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Soft cap of the scores; 0 for none.
    pub softcap: f32,
    /// Position bias.
    pub bias: Bias<'a>,
    /// Logit per head that takes part in the softmax without a value.
    pub sinks: Option<&'a [f32]>,
}

impl Attend<'_> {
    /// The positions that token `t` sees.
    #[inline(always)]
    fn range(&self, t: usize) -> (usize, usize) {
        let i = self.pos + t;
        let end = i.saturating_add(self.ahead).saturating_add(1);
        (i.saturating_sub(self.back), if end < self.len { end } else { self.len })
    }

    /// Floats that `queries` vectors of `width` span at a token's stride, or `None` where they do not fit a `usize`.
    fn span(&self, width: usize, stride: usize) -> Option<usize> {
        let token = self.heads.checked_mul(width)?;
        match self.tokens {
            0 => Some(0),
            tokens => (tokens - 1).checked_mul(stride)?.checked_add(token),
        }
    }

    /// Panics where a slice is shorter than the call says.
    fn check(&self, out_len: usize, out_stride: usize) {
        let block = KvLayout::new(self.kv, self.head_dim_k, self.head_dim_v).block;
        assert!(self.len.div_ceil(KV_BLOCK) <= self.region.len() / block, "the region ends before the last position");
        let fits = |span: Option<usize>, len| span.is_some_and(|span| span <= len);
        assert!(fits(self.span(self.head_dim_k, self.q_stride), self.q.len()), "the queries are too short");
        assert!(fits(self.span(self.head_dim_v, out_stride), out_len), "the output is too short");
        assert!(
            self.tokens < 2 || self.heads * self.head_dim_v <= out_stride,
            "the tokens of the output overlap each other"
        );
        assert!(self.pos.checked_add(self.tokens).is_some());
        assert!(self.sinks.is_none_or(|sinks| sinks.len() >= self.heads), "there are too few sinks");
        match self.bias {
            Bias::None => {}
            Bias::Alibi(slopes) => assert!(slopes.len() >= self.heads, "there are too few slopes"),
            Bias::Relative { tables, width, .. } => {
                assert!(width > 0 && tables.len() / width >= self.heads, "there are too few tables");
            }
            Bias::Rows(r) => {
                let last = self.len.max(self.pos + self.tokens).saturating_sub(1);
                let end = last.checked_mul(r.stride).and_then(|row| row.checked_add(r.keys + self.heads * r.width));
                assert!(r.width > 0 && end.is_some_and(|end| end <= r.rows.len()), "there are too few rows");
                assert!(!r.entry.is_empty() && r.offset < r.entry.len(), "distances have no entries");
            }
        }
    }
}

/// The state of a query between steps.
#[derive(Clone, Copy)]
pub(super) struct State {
    /// Running maximum.
    m: f32,
    /// Running sums.
    l: [f32; LANES],
}

/// Up to [`QUERIES`] queries from `first` on, over all they see.
///
/// # Safety
/// The call is checked ([`Attend::check`]), `out` valid for its output and apart from everything the call reads.
unsafe fn queries(kernels: &Kernels, a: &Attend<'_>, (first, count): (usize, usize), out: *mut f32, out_stride: usize) {
    let layout = KvLayout::new(a.kv, a.head_dim_k, a.head_dim_v);
    let place = |i: usize| ((first + i) / a.heads, (first + i) % a.heads);
    // SAFETY: the queries are those of the call, for which the caller vouches.
    let output = |i: usize| unsafe {
        let (t, h) = place(i);
        out.add(t * out_stride + h * a.head_dim_v)
    };
    let mut tile = Tile::new(a, layout);
    let mut state = [State { m: f32::NEG_INFINITY, l: [0.0; LANES] }; QUERIES];
    let (mut low, mut high) = (usize::MAX, 0);
    for (i, state) in state[..count].iter_mut().enumerate() {
        let (t, h) = place(i);
        let (lo, hi) = a.range(t);
        if lo < hi {
            (low, high) = (low.min(lo), high.max(hi));
        }
        if let Some(sinks) = a.sinks {
            (state.m, state.l[0]) = (sinks[h], 1.0);
        }
        // SAFETY: the output of a query of the call.
        unsafe { core::slice::from_raw_parts_mut(output(i), a.head_dim_v).fill(0.0) };
    }
    let mut at = low / STEP * STEP;
    while at < high {
        // What query i sees of the step.
        let part = |i: usize| {
            let (lo, hi) = a.range(place(i).0);
            (lo.saturating_sub(at), hi.saturating_sub(at).min(STEP))
        };
        let mut i = 0;
        while i < count {
            let (from, to) = part(i);
            let mut n = 1;
            while n < TILE && i + n < count && part(i + n) == (from, to) {
                n += 1;
            }
            if from < to {
                // SAFETY: a position of this block is seen, so it is below `len` and inside the region.
                let block = unsafe { a.region.as_ptr().add(at / KV_BLOCK * layout.block) };
                tile.step(block, at, (from, to), n);
                for j in 0..n {
                    let (t, h) = place(i + j);
                    let q = &a.q[t * a.q_stride + h * a.head_dim_k..];
                    tile.query(j, q.as_ptr(), output(i + j), h, at as isize - (a.pos + t) as isize);
                }
                // SAFETY: whole blocks of stored positions, queries and outputs of the call; the table fits the CPU.
                unsafe {
                    (kernels.attend_scores)(&mut tile);
                    (kernels.attend_weigh)(&mut tile, a, state[i..i + n].as_mut_ptr());
                    (kernels.attend_values)(&tile);
                }
            }
            i += n;
        }
        at += STEP;
    }
    for (i, state) in state[..count].iter().enumerate() {
        let mut sums = state.l;
        for n in [8, 4, 2, 1] {
            for r in 0..n {
                sums[r] += sums[r + n];
            }
        }
        if sums[0] != 0.0 {
            // SAFETY: the output of a query of the call.
            let out = unsafe { core::slice::from_raw_parts_mut(output(i), a.head_dim_v) };
            out.iter_mut().for_each(|out| *out /= sums[0]);
        }
    }
}

/// Attention as defined above.
///
/// # Safety
/// As [`queries`].
unsafe fn attend(kernels: &Kernels, a: &Attend<'_>, out: *mut f32, out_stride: usize) {
    let total = a.tokens * a.heads;
    for first in (0..total).step_by(QUERIES) {
        // SAFETY: passed on.
        unsafe { queries(kernels, a, (first, QUERIES.min(total - first)), out, out_stride) };
    }
}

impl Kernels {
    /// Attention of the call's queries: head `h` of token `t` is written to `out[t·out_stride + h·head_dim_v..]`.
    ///
    /// # Panics
    /// Where a slice is shorter than the call says.
    pub fn attend(&self, call: &Attend<'_>, out: &mut [f32], out_stride: usize) {
        call.check(out.len(), out_stride);
        // SAFETY: checked; the table fits the CPU.
        unsafe { attend(self, call, out.as_mut_ptr(), out_stride) }
    }

    /// [`Kernels::attend`] for callers that share one output between threads, each writing the heads of its own.
    ///
    /// # Panics
    /// As [`Kernels::attend`], with `out_len` floats from `out` on.
    ///
    /// # Safety
    /// The floats that the call writes (not the gaps that its stride leaves) are valid for writing, and nobody else
    /// uses them meanwhile.
    pub unsafe fn attend_shared(&self, call: &Attend<'_>, out: *mut f32, out_len: usize, out_stride: usize) {
        call.check(out_len, out_stride);
        // SAFETY: checked; the rest is the caller's word; the table fits the CPU.
        unsafe { attend(self, call, out, out_stride) }
    }
}
