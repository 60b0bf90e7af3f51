//! Keys and values into the cache, and attention over it.
//!
//! Work is cut by kv head and by runs of tokens, so that each key and value that a task reads serves all query heads that share it.

use super::Context;
use crate::format::record::{CacheKind, Operand, RowKind};
use crate::kernels::{Attend, Bias, DistanceRows, KvType, kv_head_bytes};
use crate::program::op::{BiasKind, Op};
use crate::program::plan::cache_capacity;

/// Tokens of one attention task.
const TOKEN_RUN: usize = 16;

/// Sizes of a cache.
struct Shape {
    kv: KvType,
    kv_heads: usize,
    key_dim: usize,
    value_dim: usize,
    /// Bytes of one kv head's region.
    head_bytes: usize,
    kind: u32,
}

fn shape(cx: &Context<'_, '_>, cache: u32) -> Shape {
    let c = &cx.file.caches[cache as usize];
    let (key_dim, value_dim) = (c.key_dim as usize, c.value_dim as usize);
    let capacity = cache_capacity(c.kind, cx.config) as usize;
    Shape {
        kv: cx.config.kv,
        kv_heads: c.kv_heads as usize,
        key_dim,
        value_dim,
        head_bytes: kv_head_bytes(cx.config.kv, key_dim, value_dim, capacity),
        kind: c.kind,
    }
}

pub fn store(cx: &mut Context<'_, '_>, k: Operand, v: Operand, cache: u32) {
    let s = shape(cx, cache);
    let (kernels, step) = (cx.kernels, cx.step);
    let mut first = 0;
    for segment in step.segments {
        let inputs = [(k, s.kv_heads * s.key_dim), (v, s.kv_heads * s.value_dim)];
        let (region, [k, v]) = cx.arena.cache_mut(cache, segment.sequence, inputs);
        for (head, region) in region.chunks_exact_mut(s.head_bytes).enumerate() {
            for i in 0..segment.len as usize {
                let key = &k.row(first + i)[head * s.key_dim..][..s.key_dim];
                let value = &v.row(first + i)[head * s.value_dim..][..s.value_dim];
                kernels.kv_store(s.kv, region, segment.past as usize + i, key, value);
            }
        }
        first += segment.len as usize;
    }
}

pub fn run(cx: &mut Context<'_, '_>, op: &Op) {
    let Op::Attention { q, out, cache, heads, scale, softcap, window, causal, bias_kind, bias, rows, entries } = *op
    else {
        return;
    };
    let s = shape(cx, cache);
    let heads = heads as usize;
    let group = heads / s.kv_heads;
    let base_table = cx.vector(bias).unwrap_or(&[]);
    let bias_width = base_table.len() / heads;
    let patches = cx.patches;
    let (kernels, step, workers, source_len) = (cx.kernels, cx.step, cx.workers, cx.source_len as usize);
    let mut first = 0;
    for segment in step.segments {
        let (past, len) = (segment.past as usize, segment.len as usize);
        let table = patches.vector(bias, RowKind::Token, first).unwrap_or(base_table);
        let table_of_distances = base_table;
        let entries = entries as usize;
        // Without rows of biases the queries stand in for them: every op has the same operands.
        let (rows, rows_width) = if bias_kind == BiasKind::Rows { (rows, 2 * heads * entries) } else { (q, 1) };
        let inputs = [(q, heads * s.key_dim), (rows, rows_width)];
        let (region, mut out, [q, rows]) =
            cx.arena.cache_split(cache, segment.sequence, (out, heads * s.value_dim), inputs);
        let stored = if s.kind == CacheKind::Source as u32 { source_len } else { past + len };
        let reach = if window == 0 { usize::MAX } else { window as usize - 1 };
        out.tiles(workers, first..first + len, TOKEN_RUN, group * s.value_dim, &|tile| {
            let head = tile.first_block;
            let table = |per_head: usize| &table[head * group * per_head..(head + 1) * group * per_head];
            let tokens = tile.rows();
            let start = tile.first_row;
            let call = Attend {
                kv: s.kv,
                region: &region[head * s.head_bytes..][..s.head_bytes],
                len: stored,
                head_dim_k: s.key_dim,
                head_dim_v: s.value_dim,
                q: &q.span_floats(start, tokens)[head * group * s.key_dim..],
                q_stride: q.stride() / 4,
                tokens,
                heads: group,
                pos: past + (start - first),
                back: reach,
                ahead: if causal { 0 } else { reach },
                scale,
                softcap,
                bias: match bias_kind {
                    BiasKind::None => Bias::None,
                    BiasKind::Alibi => Bias::Alibi(table(1)),
                    BiasKind::Relative => {
                        Bias::Relative { tables: table(bias_width), width: bias_width, offset: bias_width / 2 }
                    }
                    BiasKind::Rows => Bias::Rows(DistanceRows {
                        rows: &rows.span_floats(first, len)[head * group * entries..],
                        stride: rows.stride() / 4,
                        keys: heads * entries,
                        width: entries,
                        entry: table_of_distances,
                        offset: table_of_distances.len() / 2,
                    }),
                },
                sinks: None,
            };
            tile.attend(kernels, &call);
        });
        first += len;
    }
}
