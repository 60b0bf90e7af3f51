//! The one verifier of programs. After [`verify`] every op's buffers, columns, tensors and caches are known to
//! exist, to fit and not to overlap, so the session runs without further checks.

use crate::error::{Error, ErrorKind, Result};
use crate::format::record::{BufferKind, BufferRecord, CacheKind, EntryKind, NONE, Operand, RowKind, SlotKind};
use crate::format::view::{File, Tensor};
use crate::kernels::quant_row_bytes;
use crate::program::op::{BiasKind, EmbedSource, MAX_CHOSEN, MAX_EXPERTS, NormKind, Op};
use crate::weights::WeightFormat;

/// Bound on every width, so that no size computation overflows on a 32-bit device.
const MAX_WIDTH: u32 = 1 << 24;
/// Bound on bytes per row of all buffers together.
const MAX_ROW_AREA: u32 = 1 << 30;
/// Most slots that one linear may have.
pub const MAX_SLOTS: usize = 8;
/// Largest head dimension the attention kernels take.
pub const MAX_HEAD_DIM: u32 = 512;

/// Verifies buffers, caches, entries, outputs and every op of the file.
///
/// # Errors
/// A typed error naming the table and record.
pub fn verify(file: &File<'_>) -> Result<()> {
    verify_buffers(file, None)?;
    verify_caches(file)?;
    verify_entries(file)
}

/// Verifies the head that an adapter file brings: its one entry, whose first buffer stands for the base's hidden states
/// of `hidden` columns and lies behind the head's own memory.
///
/// # Errors
/// As [`verify`].
pub fn verify_head(file: &File<'_>, hidden: u32) -> Result<()> {
    verify_buffers(file, Some(hidden))?;
    verify_entries(file)?;
    for (i, r) in file.ops.iter().enumerate() {
        match Op::parse(r)? {
            Op::Embed { slot, .. } | Op::Linear { slot, .. } if slot != NONE => {
                return Err(Error::new(ErrorKind::Invalid, "ops.slot: in an adapter").index(i as u64));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The slots of a linear: those of its tensor from `first` on.
pub fn linear_slots(file: &File<'_>, first: u32, weight: u32) -> core::ops::Range<u32> {
    let mut end = first;
    while let Some(s) = file.slots.get(end as usize)
        && s.tensor == weight
        && s.kind == SlotKind::Linear as u32
        && ((end - first) as usize) < MAX_SLOTS
    {
        end += 1;
    }
    first..end
}

fn verify_entries(file: &File<'_>) -> Result<()> {
    for (i, e) in file.entries.iter().enumerate() {
        let fail = |what| Error::new(ErrorKind::OutOfBounds, what).index(i as u64);
        if e.kind != EntryKind::Decode as u32 && e.kind != EntryKind::Encode as u32 {
            return Err(Error::new(ErrorKind::Invalid, "entries.kind").index(i as u64).values(e.kind.into(), 0));
        }
        if file.entries[..i].iter().any(|o| o.kind == e.kind) {
            return Err(Error::new(ErrorKind::Invalid, "entries.kind: twice").index(i as u64));
        }
        let ops = e.op_start.checked_add(e.op_count).filter(|end| *end as usize <= file.ops.len());
        let ops_end = ops.ok_or_else(|| fail("entries.ops"))?;
        let outs = e.output_start.checked_add(e.output_count).filter(|end| *end as usize <= file.outputs.len());
        outs.ok_or_else(|| fail("entries.outputs"))?;
        if e.head_op < e.op_start || e.head_op > ops_end {
            return Err(fail("entries.head_op").values(e.head_op.into(), ops_end.into()));
        }
        if e.head_buffer != NONE {
            let hidden = file.buffers.get(e.head_buffer as usize).ok_or_else(|| fail("entries.head_buffer"))?;
            if (hidden.rows, hidden.kind) != (RowKind::Token as u16, BufferKind::F32 as u16) {
                return Err(Error::new(ErrorKind::Invalid, "entries.head_buffer").index(i as u64));
            }
        }
        for index in e.op_start..ops_end {
            let context = Context { file, entry: e.kind, max_positions: e.max_positions };
            context.op(index).map_err(|mut err| {
                if err.index == u64::MAX {
                    err.index = index.into();
                }
                err
            })?;
        }
    }
    for (i, o) in file.outputs.iter().enumerate() {
        buffer(file, o.at, o.width, BufferKind::F32).map_err(|e| e.index(i as u64))?;
    }
    Ok(())
}

fn verify_buffers(file: &File<'_>, hidden: Option<u32>) -> Result<()> {
    if file.info.per_token > MAX_ROW_AREA || file.info.per_output > MAX_ROW_AREA {
        return Err(
            Error::new(ErrorKind::Invalid, "info.per_token").values(file.info.per_token.into(), MAX_ROW_AREA.into())
        );
    }
    if !file.info.per_token.is_multiple_of(64) || !file.info.per_output.is_multiple_of(64) {
        // The areas follow each other: each must leave the next one aligned.
        return Err(Error::new(ErrorKind::Misaligned, "info.per_token").values(file.info.per_token.into(), 64));
    }
    if file.buffers.len() >= usize::from(u16::MAX) {
        return Err(Error::new(ErrorKind::Invalid, "buffers: too many").values(file.buffers.len() as u64, 65534));
    }
    for (i, b) in file.buffers.iter().enumerate() {
        let fail = |kind, what, found: u32, expected: u32| {
            Err(Error::new(kind, what).index(i as u64).values(found.into(), expected.into()))
        };
        let area = match b.rows {
            r if r == RowKind::Token as u16 => file.info.per_token,
            r if r == RowKind::Output as u16 => file.info.per_output,
            r => return fail(ErrorKind::Invalid, "buffers.rows", r.into(), 0),
        };
        if b.width == 0 || b.width > MAX_WIDTH {
            return fail(ErrorKind::Invalid, "buffers.width", b.width, MAX_WIDTH);
        }
        let need = match b.kind {
            k if k == BufferKind::F32 as u16 => b.width * 4,
            k if k == BufferKind::Quant as u16 => quant_row_bytes(b.width as usize) as u32,
            k => return fail(ErrorKind::Invalid, "buffers.kind", k.into(), 0),
        };
        if b.row_bytes != need.next_multiple_of(64) || !b.offset.is_multiple_of(64) {
            return fail(ErrorKind::Misaligned, "buffers.row_bytes", b.row_bytes, need);
        }
        if let Some(width) = hidden.filter(|_| i == 0) {
            if (b.width, b.rows, b.kind, b.offset) != (width, 0, 0, area) {
                return fail(ErrorKind::Mismatch, "buffers: the hidden states", b.width, width);
            }
            continue;
        }
        if b.offset.checked_add(b.row_bytes).is_none_or(|end| end > area) {
            return fail(ErrorKind::OutOfBounds, "buffers.offset", b.offset, area);
        }
    }
    Ok(())
}

fn verify_caches(file: &File<'_>) -> Result<()> {
    for (i, c) in file.caches.iter().enumerate() {
        let dims = c.kv_heads > 0
            && c.kv_heads <= 1 << 16
            && (1..=MAX_HEAD_DIM).contains(&c.key_dim)
            && (1..=MAX_HEAD_DIM).contains(&c.value_dim);
        if !dims || c.kind > CacheKind::Source as u32 {
            return Err(Error::new(ErrorKind::Invalid, "caches")
                .index(i as u64)
                .values(c.kv_heads.into(), c.key_dim.into()));
        }
    }
    Ok(())
}

fn buffer<'f>(file: &'f File<'_>, at: Operand, width: u32, kind: BufferKind) -> Result<&'f BufferRecord> {
    let b = file.buffers.get(usize::from(at.buffer)).filter(|_| at.reserved == 0).ok_or_else(|| {
        Error::new(ErrorKind::OutOfBounds, "operand.buffer").values(at.buffer.into(), file.buffers.len() as u64)
    })?;
    if b.kind != kind as u16 {
        return Err(Error::new(ErrorKind::Invalid, "operand: buffer kind").values(b.kind.into(), kind as u64));
    }
    let end = at.col.checked_add(width);
    if width == 0 || end.is_none_or(|e| e > b.width) {
        return Err(Error::new(ErrorKind::OutOfBounds, "operand.col")
            .values(u64::from(at.col) + u64::from(width), b.width.into()));
    }
    Ok(b)
}

struct Context<'f, 'a> {
    file: &'f File<'a>,
    entry: u32,
    max_positions: u32,
}

impl Context<'_, '_> {
    fn float(&self, at: Operand, width: u32) -> Result<&BufferRecord> {
        buffer(self.file, at, width, BufferKind::F32)
    }

    /// Output and inputs: same row kind, and no input overlaps the output except as `in_place` allows (the very same operand).
    fn rows(&self, out: Operand, inputs: &[(Operand, bool)]) -> Result<()> {
        let bufs = self.file.buffers;
        let o = &bufs[usize::from(out.buffer)];
        for &(at, in_place) in inputs {
            let a = &bufs[usize::from(at.buffer)];
            if a.rows != o.rows {
                return Err(
                    Error::new(ErrorKind::Invalid, "operand: row kinds differ").values(a.rows.into(), o.rows.into())
                );
            }
            self.disjoint(out, at, in_place)?;
        }
        Ok(())
    }

    fn disjoint(&self, out: Operand, at: Operand, in_place: bool) -> Result<()> {
        let bufs = self.file.buffers;
        let (o, a) = (&bufs[usize::from(out.buffer)], &bufs[usize::from(at.buffer)]);
        let overlap = a.rows == o.rows && a.offset < o.offset + o.row_bytes && o.offset < a.offset + a.row_bytes;
        if overlap && !(in_place && at == out) {
            return Err(Error::new(ErrorKind::Invalid, "operand: input overlaps output")
                .values(at.buffer.into(), out.buffer.into()));
        }
        Ok(())
    }

    fn vector(&self, tensor: u32, rows: u32, cols: u32) -> Result<()> {
        match self.file.tensor(tensor) {
            Some(Tensor::Vector { rows: r, cols: c, .. }) if r == rows as usize && c == cols as usize => Ok(()),
            Some(_) => Err(Error::new(ErrorKind::Invalid, "op: vector tensor").values(tensor.into(), cols.into())),
            None => {
                Err(Error::new(ErrorKind::OutOfBounds, "op: tensor")
                    .values(tensor.into(), self.file.tensors.len() as u64))
            }
        }
    }

    fn optional_vector(&self, tensor: u32, cols: u32) -> Result<()> {
        if tensor == NONE { Ok(()) } else { self.vector(tensor, 1, cols) }
    }

    fn panels(&self, tensor: u32) -> Result<(WeightFormat, u32, u32)> {
        match self.file.tensor(tensor) {
            Some(Tensor::Panels { format, rows, cols, .. }) => Ok((format, rows as u32, cols as u32)),
            Some(Tensor::Vector { .. } | Tensor::Thin(_)) => {
                Err(Error::new(ErrorKind::Invalid, "op: panel tensor").values(tensor.into(), 0))
            }
            None => {
                Err(Error::new(ErrorKind::OutOfBounds, "op: tensor")
                    .values(tensor.into(), self.file.tensors.len() as u64))
            }
        }
    }

    fn slot(&self, slot: u32, tensor: u32, kind: SlotKind) -> Result<()> {
        let fits = |s: &crate::format::record::SlotRecord| s.tensor == tensor && s.kind == kind as u32;
        if slot == NONE || self.file.slots.get(slot as usize).is_some_and(fits) {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Invalid, "op: slot").values(slot.into(), tensor.into()))
        }
    }

    fn token_rows(&self, at: Operand) -> Result<()> {
        let rows = self.file.buffers[usize::from(at.buffer)].rows;
        if rows == RowKind::Token as u16 {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Invalid, "operand: not a token buffer").values(rows.into(), 0))
        }
    }

    fn cache(&self, index: u32) -> Result<&crate::format::record::CacheRecord> {
        self.file.caches.get(index as usize).ok_or_else(|| {
            Error::new(ErrorKind::OutOfBounds, "op: cache").values(index.into(), self.file.caches.len() as u64)
        })
    }

    fn op(&self, index: u32) -> Result<()> {
        let invalid = |what, found: u32, expected: u32| {
            Err(Error::new(ErrorKind::Invalid, what).values(found.into(), expected.into()))
        };
        match Op::decode(&self.file.ops[index as usize])? {
            Op::Embed { table, source, offset, out, width, slot, .. } => {
                self.float(out, width)?;
                self.token_rows(out)?;
                let (_, rows, cols) = self.panels(table)?;
                if cols != width {
                    return invalid("embed.width", width, cols);
                }
                let need = match source {
                    EmbedSource::Token => self.file.info.vocab,
                    EmbedSource::TokenType => self.file.info.token_types.max(1),
                    EmbedSource::Position => match self.max_positions.checked_add(offset) {
                        Some(n) => n,
                        None => return invalid("embed.offset", offset, 0),
                    },
                };
                if rows < need {
                    return invalid("embed.table rows", rows, need);
                }
                self.slot(slot, table, SlotKind::Embed)?;
            }
            Op::Norm { kind, a, out, width, groups, weight, bias, .. } => {
                let total = width.saturating_mul(groups);
                self.float(a, total)?;
                self.float(out, total)?;
                self.rows(out, &[(a, true)])?;
                if groups == 0 || (kind == NormKind::Rms && bias != NONE) {
                    return invalid("norm", groups, 1);
                }
                self.optional_vector(weight, width)?;
                self.optional_vector(bias, width)?;
            }
            Op::Quantize { a, out, width } => {
                self.float(a, width)?;
                buffer(self.file, out, width, BufferKind::Quant)?;
                self.rows(out, &[(a, false)])?;
                self.whole_quant_row(out, width)?;
            }
            Op::Linear { a, out, residual, weight, bias, width, slot, .. } => {
                let (format, n, k) = self.panels(weight)?;
                if n != width {
                    return invalid("linear.width", width, n);
                }
                self.linear_input(a, format, k)?;
                self.float(out, n)?;
                self.rows(out, &[(a, false)])?;
                if !residual.is_none() {
                    self.float(residual, n)?;
                    self.rows(out, &[(residual, true)])?;
                }
                self.optional_vector(bias, n)?;
                self.slot(slot, weight, SlotKind::Linear)?;
            }
            Op::Gated { gate, up, out, width, .. } => {
                self.float(gate, width)?;
                self.float(up, width)?;
                self.float(out, width)?;
                self.rows(out, &[(gate, false), (up, false)])?;
            }
            Op::Activation { a, out, width, .. } | Op::Scale { a, out, width, .. } => {
                self.float(a, width)?;
                self.float(out, width)?;
                self.rows(out, &[(a, true)])?;
            }
            Op::Add { a, b, out, width, .. } => {
                self.float(a, width)?;
                self.float(b, width)?;
                self.float(out, width)?;
                self.rows(out, &[(a, true), (b, false)])?;
            }
            Op::RotaryTable { freqs, long_freqs, out, half, .. } => {
                self.vector(freqs, 1, half)?;
                self.optional_vector(long_freqs, half)?;
                self.float(out, half.saturating_mul(2))?;
                self.token_rows(out)?;
            }
            Op::Rotary { x, table, heads, head_dim, half, .. } => {
                if half == 0 || heads == 0 || half.checked_mul(2).is_none_or(|r| r > head_dim) {
                    return invalid("rotary.half", half, head_dim);
                }
                self.float(x, heads.saturating_mul(head_dim))?;
                self.float(table, half * 2)?;
                self.rows(x, &[(table, false)])?;
            }
            Op::KvStore { k, v, cache } => {
                let c = self.cache(cache)?;
                self.float(k, c.kv_heads * c.key_dim)?;
                self.float(v, c.kv_heads * c.value_dim)?;
                self.token_rows(k)?;
                self.token_rows(v)?;
                let store = if c.kind == CacheKind::Source as u32 { EntryKind::Encode as u32 } else { self.entry };
                if store != self.entry {
                    return invalid("kv_store.cache kind", c.kind, 0);
                }
            }
            Op::Attention { q, out, cache, heads, bias_kind, bias, causal, rows, entries, .. } => {
                let c = self.cache(cache)?;
                if heads == 0 || heads % c.kv_heads != 0 {
                    return invalid("attention.heads", heads, c.kv_heads);
                }
                self.float(q, heads.saturating_mul(c.key_dim))?;
                self.float(out, heads.saturating_mul(c.value_dim))?;
                self.rows(out, &[(q, false)])?;
                self.token_rows(q)?;
                if !causal && c.kind == CacheKind::Context as u32 {
                    return invalid("attention: full attention over a context cache", c.kind, 1);
                }
                if bias_kind != BiasKind::Rows && (!rows.is_none() || entries != 0) {
                    return invalid("attention.rows", entries, 0);
                }
                match bias_kind {
                    BiasKind::None if bias == NONE => {}
                    BiasKind::Rows => {
                        self.float(rows, heads.saturating_mul(entries).saturating_mul(2))?;
                        self.rows(out, &[(rows, false)])?;
                        // Row `i` of the step must be position `i`: one whole sequence.
                        if c.kind != CacheKind::Step as u32 || self.entry != EntryKind::Encode as u32 {
                            return invalid("attention: rows of distances outside of an encoder", c.kind, 1);
                        }
                        match self.file.tensor(bias) {
                            Some(Tensor::Vector { rows: 1, cols, .. }) if cols % 2 == 1 => {}
                            _ => return invalid("attention.bias", bias, 1),
                        }
                    }
                    BiasKind::Alibi => self.vector(bias, 1, heads)?,
                    BiasKind::Relative => match self.file.tensor(bias) {
                        Some(Tensor::Vector { rows, cols, .. }) if rows == heads as usize && cols % 2 == 1 => {}
                        _ => return invalid("attention.bias", bias, heads),
                    },
                    BiasKind::None => return invalid("attention.bias", bias, NONE),
                }
            }
            Op::Select { a, out, width, rows: _ } => {
                self.float(a, width)?;
                self.float(out, width)?;
                self.token_rows(a)?;
                self.output_rows(out)?;
            }
            Op::Pool { a, out, width } => {
                self.float(a, width)?;
                self.float(out, width)?;
                self.token_rows(a)?;
                self.output_rows(out)?;
            }
            Op::Route { a, out, width, chosen, .. } => {
                self.float(a, width)?;
                self.float(out, width)?;
                self.rows(out, &[(a, true)])?;
                if width > MAX_EXPERTS || chosen == 0 || chosen > width.min(MAX_CHOSEN) {
                    return invalid("route.chosen", chosen, width.min(MAX_CHOSEN));
                }
            }
            Op::ExpertLinear { a, route, out, weight, experts, slot, width, .. } => {
                if experts == 0 || experts > MAX_EXPERTS || slot >= experts {
                    return invalid("expert_linear.experts", experts, MAX_EXPERTS);
                }
                let first = self.panels(weight)?;
                for i in 0..experts {
                    let weight_i = weight.saturating_add(i);
                    if self.panels(weight_i)? != first {
                        return invalid("expert_linear: experts differ", weight_i, weight);
                    }
                    self.slot(self.file.tensors[weight_i as usize].slot, weight_i, SlotKind::Linear)?;
                }
                let (format, n, k) = first;
                if n != width {
                    return invalid("expert_linear.width", width, n);
                }
                self.linear_input(a, format, k)?;
                self.float(route, experts)?;
                self.float(out, n)?;
                self.rows(out, &[(a, false), (route, false)])?;
            }
        }
        Ok(())
    }

    /// The input of a linear of `k` inputs: float columns, or a whole quantized row.
    fn linear_input(&self, a: Operand, format: WeightFormat, k: u32) -> Result<()> {
        if format.is_float() {
            self.float(a, k)?;
            return Ok(());
        }
        buffer(self.file, a, k, BufferKind::Quant)?;
        self.whole_quant_row(a, k)
    }

    fn output_rows(&self, at: Operand) -> Result<()> {
        let rows = self.file.buffers[usize::from(at.buffer)].rows;
        if rows == RowKind::Output as u16 {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Invalid, "operand: not an output buffer").values(rows.into(), 1))
        }
    }

    fn whole_quant_row(&self, at: Operand, width: u32) -> Result<()> {
        let b = &self.file.buffers[usize::from(at.buffer)];
        if at.col == 0 && b.width == width {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Invalid, "operand: part of a quantized row").values(width.into(), b.width.into()))
        }
    }
}
