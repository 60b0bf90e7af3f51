//! Where a factor can move from the producer of a value to its readers without changing what the model computes.
//!
//! ```text
//! x' = x / s by channel        W' = W · diag(s)        W'·x' = W·x
//! ```
//! The producer is one that a factor passes through: a norm's weights, the values of attention, the ungated half of an
//! MLP. With powers of two nothing rounds differently, so the float model is the same to the bit; a quantized one is
//! not: an input that is much larger than the 31 beside it no longer makes their 8-bit codes coarse, and its weights get
//! finer steps.
//!
//! Keys and queries are a pair of another kind: what divides a key's channel multiplies the query's, and no column is
//! touched. Attention multiplies the two; a cache of 8-bit keys has one scale for a head's channels.
//!
//! A site speaks of slots, so it is the same one in whatever formats the model is lowered to.

use std::collections::BTreeMap;

use lora_runtime::format::{CacheKind, CacheRecord, Operand, SlotKind};
use lora_runtime::kernels::Act;
use lora_runtime::program::Op;

use crate::spec::{Lowered, SlotSpec};

/// A value whose channels can be rescaled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Channels.
    pub channels: usize,
    /// What is divided, by rows: the slots of a norm's vectors, or of the matrix that makes the channels.
    pub producers: Vec<u32>,
    /// What is multiplied, by columns: the slots of the matrices that read them, all of them, because what is one matrix
    /// in one format may be two in others.
    pub readers: Vec<u32>,
    /// Columns of the readers' input that come in runs of this many channels …
    pub run: usize,
    /// … each of which is read so many times: heads of queries that share their values.
    pub shared: usize,
    /// Of keys: what else is multiplied, by rows: the slot of the matrix that makes the queries, whose rows come in the
    /// order of the readers' columns. Such a site has no readers.
    pub queries: Option<u32>,
    /// Of keys: which channels of a run are rotated together, so that they need the same factor.
    pub pairs: Pairs,
}

/// Pairs of channels that a rotation mixes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pairs {
    /// Pairs at the beginning of a run; the channels behind them are on their own.
    pub half: usize,
    /// Pairs are neighbours instead of `half` apart.
    pub interleaved: bool,
}

impl Pairs {
    /// The other channel of a channel's pair, itself where there is none.
    #[must_use]
    pub const fn partner(&self, channel: usize, run: usize) -> usize {
        let (first, at) = (channel / run * run, channel % run);
        if at >= 2 * self.half {
            return channel;
        }
        first + if self.interleaved { at ^ 1 } else { (at + self.half) % (2 * self.half) }
    }
}

impl Site {
    /// One whose channels are the columns of what reads it.
    #[must_use]
    pub const fn of_columns(channels: usize, producers: Vec<u32>, readers: Vec<u32>) -> Self {
        let pairs = Pairs { half: 0, interleaved: false };
        Self { channels, producers, readers, run: channels, shared: 1, queries: None, pairs }
    }

    /// The channel of a column of the readers' input.
    #[must_use]
    pub const fn channel(&self, column: usize) -> usize {
        column / (self.run * self.shared) * self.run + column % self.run
    }
}

/// Factors of a tensor's rows (of a vector, its values) and columns; empty where there are none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Factors {
    /// By row.
    pub rows: Vec<f32>,
    /// By column.
    pub cols: Vec<f32>,
}

impl Factors {
    /// Whether nothing is changed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.cols.is_empty()
    }

    /// Multiplies rows of `width` values, the first of which is row `first`.
    pub fn apply(&self, first: usize, width: usize, values: &mut [f32]) {
        if self.is_empty() || width == 0 {
            return;
        }
        for (i, row) in values.chunks_mut(width).enumerate() {
            if let Some(factor) = self.rows.get(first + i) {
                row.iter_mut().for_each(|v| *v *= factor);
            }
            for (v, factor) in row.iter_mut().zip(&self.cols) {
                *v *= factor;
            }
        }
    }

    /// Divides where [`Factors::apply`] multiplies; with powers of two it gives the same values back.
    #[must_use]
    pub fn inverse(&self) -> Self {
        let inverse = |list: &[f32]| list.iter().map(|f| f.recip()).collect();
        Self { rows: inverse(&self.rows), cols: inverse(&self.cols) }
    }
}

/// Where a slot stands.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its tensor.
    pub tensor: u32,
    /// Rows and columns of that.
    pub shape: (usize, usize),
    /// The slot's first row.
    pub row: usize,
}

/// The factors by tensor that rescale the channels of `sites` by 2^exponent; `biases` names the bias of a matrix.
#[must_use]
pub fn factors(
    sites: &[Site],
    exponents: &[Vec<i8>],
    place: &dyn Fn(u32) -> Option<Place>,
    biases: &BTreeMap<u32, u32>,
) -> BTreeMap<u32, Factors> {
    let mut out: BTreeMap<u32, Factors> = BTreeMap::new();
    let power = |e: i8| f32::from(e).exp2();
    for (site, exponents) in sites.iter().zip(exponents) {
        if exponents.iter().all(|e| *e == 0) {
            continue;
        }
        for p in site.producers.iter().filter_map(|slot| place(*slot)) {
            for tensor in [Some(&p.tensor), biases.get(&p.tensor)].into_iter().flatten() {
                let vector = p.shape.0 == 1;
                let rows = &mut out.entry(*tensor).or_default().rows;
                rows.resize(if vector { p.shape.1 } else { p.shape.0 }, 1.0);
                for (f, e) in rows[p.row..].iter_mut().zip(exponents) {
                    *f = power(-*e);
                }
            }
        }
        for p in site.queries.iter().filter_map(|slot| place(*slot)) {
            for tensor in [Some(&p.tensor), biases.get(&p.tensor)].into_iter().flatten() {
                let rows = &mut out.entry(*tensor).or_default().rows;
                rows.resize(p.shape.0, 1.0);
                let of_row = |r| exponents.get(site.channel(r)).copied().map_or(1.0, power);
                rows[p.row..]
                    .iter_mut()
                    .take(site.channels * site.shared)
                    .enumerate()
                    .for_each(|(r, f)| *f = of_row(r));
            }
        }
        for p in site.readers.iter().filter_map(|slot| place(*slot)) {
            let of_column = |c| exponents.get(site.channel(c)).copied().map_or(1.0, power);
            out.entry(p.tensor).or_default().cols = (0..p.shape.1).map(of_column).collect();
        }
    }
    out
}

/// The biases of the matrices of a program.
pub fn biases(ops: impl Iterator<Item = Op>) -> BTreeMap<u32, u32> {
    ops.filter_map(|op| match op {
        Op::Linear { weight, bias, .. } if bias != lora_runtime::format::NONE => Some((weight, bias)),
        _ => None,
    })
    .collect()
}

/// What an op does with columns of a value.
struct Touch {
    /// Number of the op, counted over all entries.
    op: usize,
    at: Operand,
    columns: usize,
    writes: bool,
}

impl Touch {
    fn meets(&self, at: Operand, columns: usize) -> bool {
        let (a, b) = (self.at.col as usize, at.col as usize);
        self.at.buffer == at.buffer && a < b + columns && b < a + self.columns
    }
}

/// All sites of a model, in the order of its program; those of keys after the others.
#[must_use]
pub fn sites(lowered: &Lowered) -> Vec<Site> {
    let ops: Vec<Op> = lowered.entries.iter().flat_map(|e| e.ops.iter().copied()).collect();
    let mut touches = Vec::new();
    let mut uses: BTreeMap<u32, usize> = BTreeMap::new();
    for (i, op) in ops.iter().enumerate() {
        touch(i, op, lowered, &mut touches);
        for tensor in tensors(op) {
            *uses.entry(tensor).or_default() += 1;
        }
    }
    for o in lowered.entries.iter().flat_map(|e| &e.outputs) {
        touches.push(Touch { op: ops.len(), at: o.at, columns: o.width as usize, writes: false });
    }
    let finder = Finder { lowered, ops, touches, uses };
    let all = 0..finder.ops.len();
    all.clone().filter_map(|i| finder.site(i)).chain(all.filter_map(|i| finder.keys(i))).collect()
}

struct Finder<'l> {
    lowered: &'l Lowered,
    ops: Vec<Op>,
    touches: Vec<Touch>,
    /// How many ops use a tensor.
    uses: BTreeMap<u32, usize>,
}

impl Finder<'_> {
    /// The site whose value op `i` makes.
    fn site(&self, i: usize) -> Option<Site> {
        match self.ops[i] {
            Op::Norm { out, width, groups: 1, weight, bias, .. } => {
                let width = width as usize;
                let vectors = [weight, bias].into_iter().filter(|t| *t != lora_runtime::format::NONE);
                let producers = vectors.map(|t| self.vector_slot(t)).collect::<Option<Vec<_>>>()?;
                let readers = self.readers(i, out, width).filter(|_| !producers.is_empty())?;
                Some(Site::of_columns(width, producers, readers))
            }
            Op::Gated { up, out, width, .. } => {
                let width = width as usize;
                let producer = self.matrix_slot(i, up, width)?;
                let readers = self.readers(i, out, width)?;
                Some(Site::of_columns(width, vec![producer], readers))
            }
            Op::KvStore { v, cache, .. } => {
                let record: CacheRecord = self.lowered.caches[cache as usize];
                let (kv_heads, dim) = (record.kv_heads as usize, record.value_dim as usize);
                let channels = kv_heads * dim;
                let producer = self.matrix_slot(i, v, channels)?;
                let (j, _, out, heads) = self.attention(i, cache)?;
                let readers = self.readers(j, out, heads * dim)?;
                let site = Site::of_columns(channels, vec![producer], readers);
                Some(Site { run: dim, shared: heads / kv_heads, ..site })
            }
            _ => None,
        }
    }

    /// The site of the keys that op `i` stores for later.
    fn keys(&self, i: usize) -> Option<Site> {
        let Op::KvStore { k, cache, .. } = self.ops[i] else { return None };
        let record: CacheRecord = self.lowered.caches[cache as usize];
        // What lasts for a step is not kept in 8 bits.
        if record.kind == CacheKind::Step as u32 {
            return None;
        }
        let (kv_heads, dim) = (record.kv_heads as usize, record.key_dim as usize);
        let (j, q, _, heads) = self.attention(i, cache)?;
        let (producer, pairs) = self.rotated(i, k, kv_heads * dim, dim)?;
        let (query, of_queries) = self.rotated(j, q, heads * dim, dim)?;
        let site = Site::of_columns(kv_heads * dim, vec![producer], Vec::new());
        let site = Site { run: dim, shared: heads / kv_heads, queries: Some(query), pairs, ..site };
        (pairs == of_queries).then_some(site)
    }

    /// The op that alone reads what op `i` stores in `cache`: its number, its queries, its output and its heads.
    fn attention(&self, i: usize, cache: u32) -> Option<(usize, Operand, Operand, usize)> {
        // Layers may keep their keys and values in the same place one after the other.
        let mut reading = Vec::new();
        for (j, op) in self.ops.iter().enumerate().skip(i + 1) {
            match op {
                Op::KvStore { cache: c, .. } if *c == cache => break,
                Op::Attention { cache: c, q, out, heads, .. } if *c == cache => {
                    reading.push((j, *q, *out, *heads as usize));
                }
                _ => {}
            }
        }
        let [only] = reading[..] else { return None };
        Some(only)
    }

    /// The slot that alone makes `columns` columns at `at`, which nothing but op `reader` reads, and how they are rotated
    /// on the way, in heads of `dim`.
    fn rotated(&self, reader: usize, at: Operand, columns: usize, dim: usize) -> Option<(u32, Pairs)> {
        let mut pairs = Pairs::default();
        let mut rotations = Vec::new();
        for t in self.touches.iter().filter(|t| t.writes && t.meets(at, columns)) {
            if let Op::Rotary { x, heads, head_dim, half, interleaved, .. } = *self.ops.get(t.op)? {
                if x != at || (head_dim as usize, (heads * head_dim) as usize) != (dim, columns) || pairs.half > 0 {
                    return None;
                }
                pairs = Pairs { half: half as usize, interleaved };
                rotations.push(t.op);
            }
        }
        self.slot_behind(reader, at, columns, &rotations).map(|slot| (slot, pairs))
    }

    fn used_once(&self, tensor: u32) -> bool {
        self.uses.get(&tensor) == Some(&1)
    }

    fn vector_slot(&self, tensor: u32) -> Option<u32> {
        let found = self.lowered.slots.iter().position(|s| s.kind == SlotKind::Vector && s.tensor == tensor);
        found.filter(|_| self.used_once(tensor)).map(|i| i as u32)
    }

    /// The slot that alone makes `columns` columns at `at`, which nothing but op `reader` reads.
    fn matrix_slot(&self, reader: usize, at: Operand, columns: usize) -> Option<u32> {
        self.slot_behind(reader, at, columns, &[])
    }

    /// The same, with ops between that change the columns in place.
    fn slot_behind(&self, reader: usize, at: Operand, columns: usize, between: &[usize]) -> Option<u32> {
        let mut maker = None;
        for t in self.touches.iter().filter(|t| t.meets(at, columns) && !between.contains(&t.op)) {
            match (t.writes, maker) {
                (true, None) => maker = Some(t.op),
                (false, _) if t.op == reader => {}
                _ => return None,
            }
        }
        let Op::Linear { out, residual, weight, act: Act::None, slot, .. } = *self.ops.get(maker?)? else {
            return None;
        };
        let row = (at.col as usize).checked_sub(out.col as usize)?;
        if !residual.is_none() || !self.used_once(weight) {
            return None;
        }
        self.slots_of(weight, slot).find(|(_, s)| (s.row_start, s.rows) == (row, columns)).map(|(i, _)| i)
    }

    /// The slots of the linears that read the value of op `maker`, if nothing else does.
    fn readers(&self, maker: usize, at: Operand, columns: usize) -> Option<Vec<u32>> {
        let mut out = Vec::new();
        for t in self.touches.iter().filter(|t| t.meets(at, columns)) {
            if t.writes {
                if t.op != maker {
                    return None;
                }
                continue;
            }
            match self.ops.get(t.op)? {
                Op::Quantize { out: codes, width, .. } if t.at == at && *width as usize == columns => {
                    for t in self.touches.iter().filter(|t| t.meets(*codes, columns) && !t.writes) {
                        out.extend(self.reader(t, *codes, columns)?);
                    }
                }
                _ => out.extend(self.reader(t, at, columns)?),
            }
        }
        (!out.is_empty()).then_some(out)
    }

    fn reader(&self, t: &Touch, at: Operand, columns: usize) -> Option<impl Iterator<Item = u32>> {
        let Op::Linear { a, weight, slot, .. } = *self.ops.get(t.op)? else { return None };
        let spec = &self.lowered.tensors[weight as usize];
        let whole = a == at && t.at == at && spec.cols == columns;
        let slots = (whole && self.used_once(weight)).then(|| self.slots_of(weight, slot))?;
        slots.clone().next().is_some().then(|| slots.map(|(i, _)| i))
    }

    /// The slots of a matrix, `first` and those after it.
    fn slots_of(&self, weight: u32, first: u32) -> impl Iterator<Item = (u32, &SlotSpec)> + Clone {
        let of_tensor = move |s: &&SlotSpec| s.tensor == weight && s.kind == SlotKind::Linear;
        let slots = self.lowered.slots.get(first as usize..).unwrap_or_default();
        (first..).zip(slots.iter().take_while(of_tensor))
    }
}

/// Tensors that an op reads.
fn tensors(op: &Op) -> Vec<u32> {
    let r = op.encode();
    match op {
        Op::ExpertLinear { weight, experts, .. } => (*weight..weight + experts).collect(),
        _ => [r.w0, r.w1].into_iter().filter(|t| *t != lora_runtime::format::NONE).collect(),
    }
}

fn touch(op: usize, what: &Op, lowered: &Lowered, out: &mut Vec<Touch>) {
    let mut add = |writes: bool, at: Operand, columns: usize| {
        if !at.is_none() {
            out.push(Touch { op, at, columns, writes });
        }
    };
    let cache = |cache: u32| lowered.caches[cache as usize];
    let cols = |tensor: u32| lowered.tensors[tensor as usize].cols;
    match *what {
        Op::Embed { out, width, .. } => add(true, out, width as usize),
        Op::Norm { a, out, width, groups, .. } => {
            add(false, a, (width * groups) as usize);
            add(true, out, (width * groups) as usize);
        }
        Op::Linear { a, out, residual, weight, width, .. } => {
            add(false, a, cols(weight));
            add(false, residual, width as usize);
            add(true, out, width as usize);
        }
        Op::Gated { gate, up, out, width, .. } => {
            add(false, gate, width as usize);
            add(false, up, width as usize);
            add(true, out, width as usize);
        }
        Op::Add { a, b, out, width, .. } => {
            add(false, a, width as usize);
            add(false, b, width as usize);
            add(true, out, width as usize);
        }
        Op::Quantize { a, out, width }
        | Op::Activation { a, out, width, .. }
        | Op::Scale { a, out, width, .. }
        | Op::Select { a, out, width, .. }
        | Op::Pool { a, out, width }
        | Op::Route { a, out, width, .. } => {
            add(false, a, width as usize);
            add(true, out, width as usize);
        }
        Op::RotaryTable { out, half, .. } => add(true, out, 2 * half as usize),
        Op::Rotary { x, table, heads, head_dim, half, .. } => {
            add(false, table, 2 * half as usize);
            add(false, x, (heads * head_dim) as usize);
            add(true, x, (heads * head_dim) as usize);
        }
        Op::KvStore { k, v, cache: c } => {
            add(false, k, (cache(c).kv_heads * cache(c).key_dim) as usize);
            add(false, v, (cache(c).kv_heads * cache(c).value_dim) as usize);
        }
        Op::Attention { q, out, cache: c, heads, rows, entries, .. } => {
            add(false, q, (heads * cache(c).key_dim) as usize);
            add(false, rows, 2 * (heads * entries) as usize);
            add(true, out, (heads * cache(c).value_dim) as usize);
        }
        Op::ExpertLinear { a, route, out, weight, experts, width, .. } => {
            add(false, a, cols(weight));
            add(false, route, experts as usize);
            add(true, out, width as usize);
        }
    }
}
