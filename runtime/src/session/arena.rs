//! The caller's arena, carved into activation rows and KV caches.
//!
//! Rows are handed out as one output and its inputs at a time; the output's memory is checked to be disjoint from the
//! inputs', so everything above this module is safe code.
#![expect(unsafe_code, reason = "rows of one arena are lent to several threads; disjointness is asserted here")]

use core::marker::PhantomData;
use core::ops::Range;

use super::workers::{Cuts, Workers};
use crate::error::{Error, ErrorKind, Result};
use crate::format::record::CacheKind;
use crate::format::record::{BufferRecord, Operand, RowKind};
use crate::format::view::File;
use crate::kernels::{Attend, KV_BLOCK, Kernels, kv_head_bytes};
use crate::program::plan::{ARENA_ALIGN, Plan, SessionConfig, cache_bytes, cache_copies};

/// The arena of a session.
pub struct Arena<'m> {
    base: *mut u8,
    file: File<'m>,
    config: SessionConfig,
    /// Where the output rows' area starts.
    output_area: usize,
    /// Where the KV caches start.
    kv_area: usize,
    /// Where the adapters' memory starts: low-rank values, a head's token and output rows, the sequences' keys.
    adapter_area: usize,
    /// The buffers of the head that is running in place of the base's, and the base's buffer that is its first.
    head: Option<(&'m [BufferRecord], u16)>,
    /// Rows of the current step.
    tokens: usize,
    outputs: usize,
    _arena: PhantomData<&'m mut [u8]>,
}

// SAFETY: the arena is exclusively borrowed for 'm; all access goes through &self or &mut self methods that follow the
// usual aliasing rules.
unsafe impl Send for Arena<'_> {}
// SAFETY: as above; `&Arena` gives no access to the memory.
unsafe impl Sync for Arena<'_> {}

impl<'m> Arena<'m> {
    /// Takes exactly the planned bytes of `memory` and zeroes the activations. The caches are left as they are: attention
    /// never reads a position that was not stored, so memory for positions that no one needs is not touched.
    ///
    /// # Errors
    /// [`ErrorKind::TooSmall`] when one byte is missing, [`ErrorKind::Misaligned`] unless 64-byte aligned.
    pub fn new(file: File<'m>, config: SessionConfig, memory: &'m mut [u8]) -> Result<Self> {
        let plan = Plan::of(&file, &config);
        if (memory.len() as u64) < plan.arena_bytes {
            return Err(Error::new(ErrorKind::TooSmall, "arena").values(memory.len() as u64, plan.arena_bytes));
        }
        if !(memory.as_ptr() as usize).is_multiple_of(ARENA_ALIGN) {
            return Err(Error::new(ErrorKind::Misaligned, "arena")
                .values((memory.as_ptr() as usize % ARENA_ALIGN) as u64, ARENA_ALIGN as u64));
        }
        memory[..plan.activation_bytes as usize].fill(0);
        let output_area = file.info.per_token as usize * config.tokens as usize;
        let kv_area = plan.activation_bytes as usize;
        let adapter_area = (plan.activation_bytes + plan.kv_bytes) as usize;
        Ok(Self {
            base: memory.as_mut_ptr(),
            file,
            config,
            output_area,
            kv_area,
            adapter_area,
            head: None,
            tokens: 0,
            outputs: 0,
            _arena: PhantomData,
        })
    }

    /// Sets the rows of the coming step.
    ///
    /// # Errors
    /// [`ErrorKind::Capacity`] beyond the plan.
    pub fn begin(&mut self, tokens: usize, outputs: usize) -> Result<()> {
        if tokens > self.config.tokens as usize {
            return Err(
                Error::new(ErrorKind::Capacity, "tokens in one step").values(tokens as u64, self.config.tokens.into())
            );
        }
        if outputs > self.config.outputs as usize {
            return Err(Error::new(ErrorKind::Capacity, "output rows in one step")
                .values(outputs as u64, self.config.outputs.into()));
        }
        (self.tokens, self.outputs) = (tokens, outputs);
        self.head = None;
        Ok(())
    }

    /// From here on operands mean the buffers of an adapter's head, whose first is the base's buffer `hidden`.
    pub fn begin_head(&mut self, buffers: &'m [BufferRecord], hidden: u16) {
        self.head = Some((buffers, hidden));
    }

    /// What the cache of every sequence was computed with; the last one is the encoder's output. Empty without
    /// adapters.
    pub fn keys(&mut self) -> &mut [CacheKey] {
        let needs = &self.config.adapters;
        let count = if needs.used { self.config.sequences as usize + 1 } else { 0 };
        let keys = needs.bytes(&self.config) as usize - (count * size_of::<CacheKey>()).next_multiple_of(ARENA_ALIGN);
        // SAFETY: the plan ends with the keys, in bytes zeroed by `new` and disjoint from everything else; the place is
        // a multiple of 64, and every bit pattern is a key. &mut self makes it exclusive.
        unsafe { core::slice::from_raw_parts_mut(self.base.add(self.adapter_area + keys).cast(), count) }
    }

    /// Low-rank values: a row for every row of an op, `rank` wide.
    fn low_rank(&self, rows: usize) -> Raw {
        let needs = &self.config.adapters;
        let (stride, bytes) = (needs.row_bytes() as usize, needs.rank as usize * 4);
        assert!(rows <= self.config.tokens.max(self.config.outputs) as usize, "rows of a step");
        // SAFETY: `adapter_area` begins with max(T, R) rows of this stride.
        Raw { ptr: unsafe { self.base.add(self.adapter_area) }, stride, rows, bytes }
    }

    /// The low-rank values for writing, beside an input.
    pub fn low_rank_mut(&mut self, input: (Operand, usize)) -> (RowsMut<'_>, Rows<'_>) {
        let input = Rows { raw: self.raw(input.0, input.1), _memory: PhantomData };
        (RowsMut { raw: self.low_rank(input.len()), _memory: PhantomData }, input)
    }

    /// As [`Arena::split`], and the low-rank values for reading.
    pub fn split_low_rank<const N: usize>(
        &mut self,
        out: (Operand, usize),
        inputs: [(Operand, usize); N],
    ) -> (RowsMut<'_>, [Rows<'_>; N], Rows<'_>) {
        let low = self.low_rank(self.place(out.0.buffer).2);
        let (out, inputs) = self.split(out, inputs);
        (out, inputs, Rows { raw: low, _memory: PhantomData })
    }

    /// Byte range (start, stride, rows) of a buffer in this step, and its record.
    fn place(&self, buffer: u16) -> (usize, usize, usize, &'m BufferRecord) {
        if let Some((buffers, _)) = self.head.filter(|_| buffer != 0) {
            let b = &buffers[usize::from(buffer)];
            let (needs, c) = (&self.config.adapters, &self.config);
            let rows = c.tokens.max(c.outputs) as usize;
            let area = self.adapter_area + rows * needs.row_bytes() as usize;
            let (offset, stride) = (b.offset as usize, b.row_bytes as usize);
            return if b.rows == RowKind::Token as u16 {
                (area + offset * c.tokens as usize, stride, self.tokens, b)
            } else {
                let area = area + needs.per_token as usize * c.tokens as usize;
                (area + offset * c.outputs as usize, stride, self.outputs, b)
            };
        }
        let b = &self.file.buffers[usize::from(self.base_buffer(buffer))];
        let stride = b.row_bytes as usize;
        if b.rows == RowKind::Token as u16 {
            (b.offset as usize * self.config.tokens as usize, stride, self.tokens, b)
        } else {
            (self.output_area + b.offset as usize * self.config.outputs as usize, stride, self.outputs, b)
        }
    }

    /// The base's buffer that an operand means: its own, or that of the hidden states for a head.
    fn base_buffer(&self, buffer: u16) -> u16 {
        self.head.map_or(buffer, |(_, hidden)| hidden)
    }

    fn raw(&self, at: Operand, width: usize) -> Raw {
        let (start, stride, rows, b) = self.place(at.buffer);
        let quant = b.kind == crate::format::record::BufferKind::Quant as u16;
        let (skip, bytes) = if quant { (0, stride) } else { (at.col as usize * 4, width * 4) };
        assert!(skip + bytes <= stride, "verified operand");
        // SAFETY: the verifier established offset + row_bytes <= per_token (per_output), so `rows` rows from `start`
        // lie inside the planned arena, whose length `new` checked; for a head the same holds of its own area, which
        // the session compared with the plan.
        Raw { ptr: unsafe { self.base.add(start + skip) }, stride, rows, bytes }
    }

    /// Which rows an operand has, and how many in this step.
    #[must_use]
    pub fn rows_of(&self, at: Operand) -> (RowKind, usize) {
        let (_, _, rows, b) = self.place(at.buffer);
        (if b.rows == RowKind::Token as u16 { RowKind::Token } else { RowKind::Output }, rows)
    }

    /// A finished buffer for reading.
    #[must_use]
    pub fn read(&self, at: Operand, width: usize) -> Rows<'_> {
        Rows { raw: self.raw(at, width), _memory: PhantomData }
    }

    /// An output alone (also for in-place ops).
    pub fn out(&mut self, at: Operand, width: usize) -> RowsMut<'_> {
        RowsMut { raw: self.raw(at, width), _memory: PhantomData }
    }

    /// An output and its inputs.
    ///
    /// # Panics
    /// When an input overlaps the output, which the verifier excludes.
    pub fn split<const N: usize>(
        &mut self,
        out: (Operand, usize),
        inputs: [(Operand, usize); N],
    ) -> (RowsMut<'_>, [Rows<'_>; N]) {
        let (o_start, o_stride, ..) = self.place(out.0.buffer);
        let o_rows = self.capacity(out.0.buffer);
        for (at, _) in inputs {
            let (start, stride, ..) = self.place(at.buffer);
            let rows = self.capacity(at.buffer);
            let disjoint = start + stride * rows <= o_start || o_start + o_stride * o_rows <= start;
            assert!(disjoint, "an input overlaps the output");
        }
        let rows = inputs.map(|(at, width)| Rows { raw: self.raw(at, width), _memory: PhantomData });
        (RowsMut { raw: self.raw(out.0, out.1), _memory: PhantomData }, rows)
    }

    fn capacity(&self, buffer: u16) -> usize {
        if self.place(buffer).3.rows == RowKind::Token as u16 {
            self.config.tokens as usize
        } else {
            self.config.outputs as usize
        }
    }

    fn cache_start(&self, cache: u32, sequence: u32) -> (usize, usize) {
        let mut start = self.kv_area;
        for c in &self.file.caches[..cache as usize] {
            start += cache_bytes(c, &self.config) as usize * cache_copies(c.kind, &self.config) as usize;
        }
        let c = &self.file.caches[cache as usize];
        let bytes = cache_bytes(c, &self.config) as usize;
        let slot = if c.kind == CacheKind::Context as u32 { sequence as usize } else { 0 };
        (start + slot * bytes, bytes)
    }

    /// Copies the first `positions` of one sequence's past over another's.
    ///
    /// # Panics
    /// When a sequence is not below the planned number, or there are more positions than planned.
    pub fn copy_past(&mut self, from: u32, to: u32, positions: usize) {
        assert!(from < self.config.sequences && to < self.config.sequences, "sequences in range");
        assert!(positions <= self.config.context as usize, "positions in range");
        for (index, c) in self.file.caches.iter().enumerate().filter(|(_, c)| c.kind == CacheKind::Context as u32) {
            let (from, bytes) = self.cache_start(index as u32, from);
            let (to, _) = self.cache_start(index as u32, to);
            let head = bytes / c.kv_heads as usize;
            // Blocks of positions follow each other in a head's region.
            let blocks = positions.div_ceil(KV_BLOCK) * KV_BLOCK;
            let used = kv_head_bytes(self.config.kv, c.key_dim as usize, c.value_dim as usize, blocks);
            for offset in (0..c.kv_heads as usize).map(|h| h * head) {
                // SAFETY: both regions are inside the arena (as in `cache_mut`) and exclusive through &mut self; `copy` allows
                // them to be the same one.
                unsafe { core::ptr::copy(self.base.add(from + offset), self.base.add(to + offset), used) };
            }
        }
    }

    /// One sequence's cache for writing, beside the rows to store.
    ///
    /// # Panics
    /// When `sequence` is not below the planned number.
    pub fn cache_mut<const N: usize>(
        &mut self,
        cache: u32,
        sequence: u32,
        inputs: [(Operand, usize); N],
    ) -> (&mut [u8], [Rows<'_>; N]) {
        assert!(sequence < self.config.sequences, "sequence in range");
        let (start, bytes) = self.cache_start(cache, sequence);
        let rows = inputs.map(|(at, width)| Rows { raw: self.raw(at, width), _memory: PhantomData });
        // SAFETY: the plan sums every cache's bytes after the activation area, so the range is inside the arena and
        // disjoint from all activation rows; &mut self makes it exclusive.
        (unsafe { core::slice::from_raw_parts_mut(self.base.add(start), bytes) }, rows)
    }

    /// One sequence's cache for reading, beside an output and its inputs.
    ///
    /// # Panics
    /// When `sequence` is not below the planned number or the operands overlap.
    pub fn cache_split<const N: usize>(
        &mut self,
        cache: u32,
        sequence: u32,
        out: (Operand, usize),
        inputs: [(Operand, usize); N],
    ) -> (&[u8], RowsMut<'_>, [Rows<'_>; N]) {
        assert!(sequence < self.config.sequences, "sequence in range");
        let (start, bytes) = self.cache_start(cache, sequence);
        // SAFETY: as in `cache_mut`; the cache is disjoint from the activation rows that `split` lends.
        let region = unsafe { core::slice::from_raw_parts(self.base.add(start), bytes) };
        let (rows, inputs) = self.split(out, inputs);
        (region, rows, inputs)
    }
}

/// Bytes of rows as the floats that they are. (The crate's own panic would bring text formatting into firmware.)
fn floats(bytes: &[u8]) -> &[f32] {
    bytemuck::try_cast_slice(bytes).unwrap_or_else(|_| panic!("rows of floats"))
}

fn floats_mut(bytes: &mut [u8]) -> &mut [f32] {
    bytemuck::try_cast_slice_mut(bytes).unwrap_or_else(|_| panic!("rows of floats"))
}

/// What a sequence's cache was computed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct CacheKey {
    /// Identifies adapters and weights, 0 for the base.
    pub set: u64,
    /// First position that is not the base's.
    pub from: u32,
    /// Zero.
    pub reserved: u32,
}

#[derive(Clone, Copy)]
struct Raw {
    ptr: *mut u8,
    stride: usize,
    rows: usize,
    bytes: usize,
}

impl Raw {
    /// Where a row's columns begin.
    fn at(&self, row: usize) -> *mut u8 {
        assert!(row < self.rows, "row in range");
        // SAFETY: inside the arena (see `Arena::raw`).
        unsafe { self.ptr.add(row * self.stride) }
    }

    /// The columns of a row.
    ///
    /// # Safety
    /// Nothing else names them during `'a`.
    unsafe fn row_mut<'a>(&self, row: usize) -> &'a mut [u8] {
        // SAFETY: inside the arena (see `Arena::raw`), the caller's alone.
        unsafe { core::slice::from_raw_parts_mut(self.at(row), self.bytes) }
    }
}

/// Rows for reading.
#[derive(Clone, Copy)]
pub struct Rows<'s> {
    raw: Raw,
    _memory: PhantomData<&'s [u8]>,
}

// SAFETY: shared, read-only access to plain numbers.
unsafe impl Sync for Rows<'_> {}
// SAFETY: as above.
unsafe impl Send for Rows<'_> {}

impl<'s> Rows<'s> {
    /// Number of rows.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.raw.rows
    }
    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.raw.rows == 0
    }
    /// Bytes from row to row.
    #[must_use]
    pub const fn stride(&self) -> usize {
        self.raw.stride
    }
    /// Bytes of a row's columns.
    #[must_use]
    pub fn bytes(&self, row: usize) -> &'s [u8] {
        // SAFETY: `raw` describes rows inside the arena (see `Arena::raw`), not written while 's lasts.
        unsafe { core::slice::from_raw_parts(self.raw.at(row), self.raw.bytes) }
    }
    /// A row of floats.
    #[must_use]
    pub fn row(&self, row: usize) -> &'s [f32] {
        floats(self.bytes(row))
    }
    /// From the first byte of row `first` to the last byte of row `first + count − 1`, as kernels take several rows.
    #[must_use]
    pub fn span(&self, first: usize, count: usize) -> &'s [u8] {
        assert!(count > 0 && first + count <= self.raw.rows, "rows in range");
        let len = (count - 1) * self.raw.stride + self.raw.bytes;
        // SAFETY: as in `bytes`; the bytes between the rows' columns belong to the same buffer (or to a buffer that
        // shares its rows' stride) and are not written while 's lasts.
        unsafe { core::slice::from_raw_parts(self.raw.ptr.add(first * self.raw.stride), len) }
    }
    /// [`Rows::span`] of rows of floats.
    #[must_use]
    pub fn span_floats(&self, first: usize, count: usize) -> &'s [f32] {
        floats(self.span(first, count))
    }
}

/// Rows for writing.
pub struct RowsMut<'s> {
    raw: Raw,
    _memory: PhantomData<&'s mut [u8]>,
}

// SAFETY: the methods below give every row, or every block of columns, to exactly one task.
unsafe impl Sync for RowsMut<'_> {}
// SAFETY: exclusive access to plain numbers.
unsafe impl Send for RowsMut<'_> {}

impl<'s> RowsMut<'s> {
    /// A row of floats, for as long as the rows are lent; `None` where there is no such row.
    #[must_use]
    pub fn into_row(self, row: usize) -> Option<&'s mut [f32]> {
        if row >= self.raw.rows {
            return None;
        }
        // SAFETY: exclusively borrowed for 's and given away once.
        Some(floats_mut(unsafe { self.raw.row_mut(row) }))
    }
    /// Number of rows.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.raw.rows
    }
    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.raw.rows == 0
    }
    /// A row of floats.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        floats_mut(self.bytes(row))
    }
    /// Bytes of a row's columns.
    pub fn bytes(&mut self, row: usize) -> &mut [u8] {
        // SAFETY: exclusively borrowed through &mut self.
        unsafe { self.raw.row_mut(row) }
    }

    /// The columns from `col` on, `width` of them.
    #[must_use]
    pub fn columns(mut self, col: usize, width: usize) -> Self {
        assert!((col + width) * 4 <= self.raw.bytes, "columns in range");
        // SAFETY: still inside the rows.
        self.raw.ptr = unsafe { self.raw.ptr.add(col * 4) };
        self.raw.bytes = width * 4;
        self
    }

    /// Runs `f` for every row, rows spread over the workers.
    // A row is long enough for a call through a pointer; a copy of this for every op would be kilobytes of a firmware.
    pub fn each_bytes(self, workers: &dyn Workers, f: &(dyn Fn(usize, &mut [u8]) + Sync)) {
        let raw = SendRaw(self.raw);
        let n = self.raw.rows;
        let per_task = n.div_ceil(workers.count() * 4).max(1);
        workers.run(n.div_ceil(per_task), &|task| {
            let raw = &raw;
            for row in task * per_task..n.min((task + 1) * per_task) {
                // SAFETY: `Workers::run` gives each task number to one call, so this row is borrowed once.
                f(row, unsafe { raw.0.row_mut(row) });
            }
        });
    }

    /// Runs `f` for every row of floats, rows spread over the workers.
    pub fn each_row(self, workers: &dyn Workers, f: impl Fn(usize, &mut [f32]) + Sync) {
        self.each_bytes(workers, &|row, bytes| f(row, floats_mut(bytes)));
    }

    /// Splits the columns into blocks of `block` elements (the last may be shorter), deals them out to calls of `f`, for runs of `run`
    /// rows of `range` each, so that every block of every row is in exactly one call; `f` reaches them through [`ColsMut`].
    pub fn each_block(
        self,
        workers: &dyn Workers,
        (range, run): (Range<usize>, usize),
        block: usize,
        cuts: Cuts,
        f: &(dyn Fn(ColsMut<'_>) + Sync),
    ) {
        assert!(range.end <= self.raw.rows && run > 0, "rows in range");
        let width = self.raw.bytes / 4;
        let blocks = width.div_ceil(block);
        let raw = SendRaw(self.raw);
        let tasks = cuts.tasks();
        workers.run(tasks * range.len().div_ceil(run), &|task| {
            let raw = &raw;
            let first_row = range.start + task / tasks * run;
            let task = task % tasks;
            let rows = first_row..range.end.min(first_row + run);
            let start = cuts.start(task, blocks) * block;
            let end = width.min(cuts.start(task + 1, blocks) * block);
            // SAFETY: columns start..end of every row; `Workers::run` gives each task number to one call, and tasks have
            // disjoint columns or rows, which `ColsMut::row` holds them to.
            let ptr = unsafe { raw.0.ptr.add(first_row * raw.0.stride + start * 4) };
            f(ColsMut {
                raw: Raw { ptr, rows: rows.len(), bytes: (end - start) * 4, ..raw.0 },
                first: start,
                rows,
                _memory: PhantomData,
            });
        });
    }
}

impl RowsMut<'_> {
    /// Cuts rows `range` into runs of `run` and the columns into blocks of `block` elements, and runs `f` for every tile.
    pub fn tiles(
        &mut self,
        workers: &dyn Workers,
        range: Range<usize>,
        run: usize,
        block: usize,
        f: &(dyn Fn(TileMut<'_>) + Sync),
    ) {
        assert!(range.end <= self.raw.rows, "rows in range");
        let blocks = self.raw.bytes / 4 / block;
        let runs = range.len().div_ceil(run);
        let raw = SendRaw(self.raw);
        workers.run(blocks * runs, &|task| {
            let raw = &raw;
            let (first_block, r) = (task % blocks, task / blocks);
            let first_row = range.start + r * run;
            let rows = run.min(range.end - first_row);
            // SAFETY: a tile inside the rows of `raw`; `Workers::run` gives each task number to one call, and tiles of
            // different numbers share neither a row nor a column.
            let ptr = unsafe { raw.0.ptr.add(first_row * raw.0.stride + first_block * block * 4) };
            f(TileMut {
                raw: Raw { ptr, rows, bytes: block * 4, ..raw.0 },
                first_block,
                first_row,
                _memory: PhantomData,
            });
        });
    }
}

/// A block of columns of a run of rows, for one task.
pub struct TileMut<'t> {
    raw: Raw,
    /// Number of the block.
    pub first_block: usize,
    /// First row.
    pub first_row: usize,
    _memory: PhantomData<&'t mut [u8]>,
}

impl TileMut<'_> {
    /// Rows of the tile.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.raw.rows
    }

    /// The tile's columns of its row `row`, counted from the tile's first.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        // SAFETY: the tile belongs to this task alone.
        floats_mut(unsafe { self.raw.row_mut(row) })
    }

    /// Writes the result of an attention call of as many tokens as the tile has rows.
    pub fn attend(self, kernels: &Kernels, call: &Attend<'_>) {
        assert!(
            call.tokens == self.raw.rows && call.heads * call.head_dim_v * 4 <= self.raw.bytes,
            "the call fits the tile"
        );
        let stride = self.raw.stride / 4;
        let len = (self.raw.rows - 1) * stride + self.raw.bytes / 4;
        // SAFETY: `heads · head_dim_v` floats of each row, all inside the tile, which belongs to this task alone; the
        // buffer's rows are 64-byte aligned and columns whole floats.
        unsafe { kernels.attend_shared(call, self.raw.ptr.cast(), len, stride) };
    }
}

struct SendRaw(Raw);
// SAFETY: a pointer to plain numbers, used by disjoint tasks only.
unsafe impl Sync for SendRaw {}

/// A range of columns of some rows, for one task.
pub struct ColsMut<'t> {
    raw: Raw,
    /// The first of them.
    pub first: usize,
    /// Rows of the task.
    pub rows: Range<usize>,
    _memory: PhantomData<&'t mut [u8]>,
}

impl ColsMut<'_> {
    /// Columns in the range.
    #[must_use]
    pub const fn width(&self) -> usize {
        self.raw.bytes / 4
    }
    /// This range of a row.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        // A row before the task's becomes a large number, which is out of range as well.
        let row = row.wrapping_sub(self.rows.start);
        // SAFETY: borrowed by this task alone (see `each_block`).
        floats_mut(unsafe { self.raw.row_mut(row) })
    }
}
