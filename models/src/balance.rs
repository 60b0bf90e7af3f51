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
//! A site speaks of slots, so it is the same one in whatever formats the model is lowered to.

use std::collections::BTreeMap;

use lora_runtime::format::{CacheRecord, Operand, SlotKind};
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
}

impl Site {
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

/// All sites of a model, in the order of its program.
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
    (0..finder.ops.len()).filter_map(|i| finder.site(i)).collect()
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
                Some(Site { channels: width, producers, readers, run: width, shared: 1 })
            }
            Op::Gated { up, out, width, .. } => {
                let width = width as usize;
                let producer = self.matrix_slot(i, up, width)?;
                let readers = self.readers(i, out, width)?;
                Some(Site { channels: width, producers: vec![producer], readers, run: width, shared: 1 })
            }
            Op::KvStore { v, cache, .. } => {
                let record: CacheRecord = self.lowered.caches[cache as usize];
                let (kv_heads, dim) = (record.kv_heads as usize, record.value_dim as usize);
                let channels = kv_heads * dim;
                let producer = self.matrix_slot(i, v, channels)?;
                // Layers may keep their values in the same place one after the other.
                let mut reading = Vec::new();
                for (j, op) in self.ops.iter().enumerate().skip(i + 1) {
                    match op {
                        Op::KvStore { cache: c, .. } if *c == cache => break,
                        Op::Attention { cache: c, out, heads, .. } if *c == cache => {
                            reading.push((j, *out, *heads as usize));
                        }
                        _ => {}
                    }
                }
                let [(j, out, heads)] = reading[..] else { return None };
                let readers = self.readers(j, out, heads * dim)?;
                Some(Site { channels, producers: vec![producer], readers, run: dim, shared: heads / kv_heads })
            }
            _ => None,
        }
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
        let mut maker = None;
        for t in self.touches.iter().filter(|t| t.meets(at, columns)) {
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
