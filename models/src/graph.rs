//! The builder that architecture descriptions write to: values, tensors, fused linears.
//!
//! A value is an activation buffer with a name of its own; the memory that it shares with others is decided
//! afterwards ([`crate::allocate`]). Projections of one input that get the same format are fused into one linear; for integer
//! formats the input is quantized once and shared.
//! What tensors are made of stands in `tensors`, how linears are fused in `linear`.

mod linear;
mod tensors;

use std::collections::HashMap;

use lora_runtime::format::{BufferKind, BufferRecord, CacheKind, CacheRecord, EntryKind, NONE, Operand, RowKind};
use lora_runtime::kernels::quant_row_bytes;
use lora_runtime::program::{NormKind, Op, SelectRows};
use lora_runtime::weights::WeightFormat;

pub use self::linear::{Epilogue, Projection};
use crate::error::ModelError;
use crate::policy::{Depth, Policy};
use crate::spec::{EntrySpec, HeadSpec, OutputSpec, SlotSpec, TensorSpec};

/// The checkpoint as the lowering sees it: names and shapes after merging.
pub trait Checkpoint {
    /// Shape of a tensor, `None` when there is none of this name.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// The format that a matrix has whatever the policy says: that of its blocks, where they are carried over.
    fn format(&self, _name: &str) -> Option<WeightFormat> {
        None
    }
}

/// Normalisation parameters.
#[derive(Clone, Copy, Debug)]
pub struct NormSpec {
    /// Kind.
    pub kind: NormKind,
    /// Epsilon.
    pub eps: f32,
    /// Added to the stored weight (1 for Gemma).
    pub add: f32,
    /// Whether the norms have weights (and biases) at all.
    pub weights: bool,
}

/// The graph under construction.
pub struct Graph<'c> {
    checkpoint: &'c dyn Checkpoint,
    policy: Policy,
    /// Layer that new tensors belong to.
    pub depth: Option<Depth>,
    /// Buffers (offsets still unset).
    pub buffers: Vec<BufferRecord>,
    /// Tensors.
    pub tensors: Vec<TensorSpec>,
    tensor_ids: HashMap<String, u32>,
    /// Places for adapters.
    pub slots: Vec<SlotSpec>,
    /// The first linear slot of a tensor.
    linear_slots: HashMap<u32, u32>,
    /// Inputs that projections have read.
    inputs: usize,
    head: Option<HeadSpec>,
    /// Caches.
    pub caches: Vec<CacheRecord>,
    /// Finished entries.
    pub entries: Vec<EntrySpec>,
    ops: Vec<Op>,
    outputs: Vec<OutputSpec>,
    quantized: HashMap<u16, Operand>,
}

impl<'c> Graph<'c> {
    /// An empty graph.
    #[must_use]
    pub fn new(checkpoint: &'c dyn Checkpoint, policy: Policy) -> Self {
        Self {
            checkpoint,
            policy,
            depth: None,
            buffers: Vec::new(),
            tensors: Vec::new(),
            tensor_ids: HashMap::new(),
            slots: Vec::new(),
            linear_slots: HashMap::new(),
            inputs: 0,
            head: None,
            caches: Vec::new(),
            entries: Vec::new(),
            ops: Vec::new(),
            outputs: Vec::new(),
            quantized: HashMap::new(),
        }
    }

    // ---- checkpoint -------------------------------------------------------------------------------------------

    /// Whether the checkpoint has a tensor.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.checkpoint.shape(name).is_some()
    }

    /// The shape of a tensor.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.checkpoint.shape(name)
    }

    /// Checks that `name` exists with exactly `shape`.
    ///
    /// # Errors
    /// Missing, or another shape.
    pub fn expect(&self, name: &str, shape: &[usize], field: &'static str) -> Result<(), ModelError> {
        let found = self
            .checkpoint
            .shape(name)
            .ok_or_else(|| ModelError::MissingTensor { name: name.into(), hint: String::new() })?;
        if found == shape {
            Ok(())
        } else {
            Err(ModelError::Shape { name: name.into(), found, expected: shape.to_vec(), field })
        }
    }

    // ---- values -----------------------------------------------------------------------------------------------

    fn buffer(&mut self, rows: RowKind, kind: BufferKind, width: usize) -> Result<Operand, ModelError> {
        let id =
            u16::try_from(self.buffers.len()).ok().filter(|i| *i < 0xfff0).ok_or(ModelError::TooLarge("buffers"))?;
        let width32 = u32::try_from(width).ok().filter(|w| *w <= 1 << 24).ok_or(ModelError::TooLarge("columns"))?;
        let bytes = if kind == BufferKind::F32 { width * 4 } else { quant_row_bytes(width) };
        self.buffers.push(BufferRecord {
            rows: rows as u16,
            kind: kind as u16,
            width: width32,
            row_bytes: bytes.next_multiple_of(64) as u32,
            offset: 0,
            reserved: 0,
        });
        Ok(Operand::new(id, 0))
    }

    /// A new float value with a row per token.
    ///
    /// # Errors
    /// Too many or too wide.
    pub fn token_value(&mut self, width: usize) -> Result<Operand, ModelError> {
        self.buffer(RowKind::Token, BufferKind::F32, width)
    }

    /// A new float value with a row per output.
    ///
    /// # Errors
    /// Too many or too wide.
    pub fn output_value(&mut self, width: usize) -> Result<Operand, ModelError> {
        self.buffer(RowKind::Output, BufferKind::F32, width)
    }

    /// A new float value with the same kind of rows as `like`.
    ///
    /// # Errors
    /// Too many or too wide.
    pub fn value_like(&mut self, like: Operand, width: usize) -> Result<Operand, ModelError> {
        let rows = self.buffers[usize::from(like.buffer)].rows;
        if rows == RowKind::Token as u16 { self.token_value(width) } else { self.output_value(width) }
    }

    /// Columns from `col` on of a value.
    #[must_use]
    pub const fn columns(at: Operand, col: usize) -> Operand {
        Operand::new(at.buffer, at.col + col as u32)
    }

    /// Appends an op; a value that it writes is no longer the one that was quantized.
    pub fn push(&mut self, op: Op) {
        let record = op.encode();
        self.quantized.remove(&record.out.buffer);
        self.ops.push(op);
    }

    /// From here on stands the task head, on the hidden states `hidden`: another head can take its place.
    pub fn begin_head(&mut self, hidden: Operand) {
        self.head = Some(HeadSpec { op: self.ops.len(), hidden, slots: self.slots.len() });
    }

    /// Normalises `groups` runs of `width`, in place when `out == x`.
    ///
    /// # Errors
    /// Missing tensors, other shapes.
    pub fn norm(
        &mut self,
        x: Operand,
        out: Operand,
        module: &str,
        width: usize,
        groups: usize,
        spec: NormSpec,
    ) -> Result<(), ModelError> {
        let (kind, eps, width32, groups) = (spec.kind, spec.eps, width as u32, groups as u32);
        if !spec.weights {
            self.push(Op::Norm { kind, a: x, out, width: width32, groups, eps, weight: NONE, bias: NONE });
            return Ok(());
        }
        let mut names = (format!("{module}.weight"), format!("{module}.bias"));
        if !self.has(&names.0) && self.has(&format!("{module}.gamma")) {
            names = (format!("{module}.gamma"), format!("{module}.beta"));
        }
        let weight = self.vector(&names.0, width, spec.add, "hidden_size")?;
        let bias = if spec.kind == NormKind::Layer && self.has(&names.1) {
            self.vector(&names.1, width, 0.0, "hidden_size")?
        } else {
            NONE
        };
        self.push(Op::Norm { kind, a: x, out, width: width32, groups, eps, weight, bias });
        Ok(())
    }

    /// A new value with the rows that the caller asks for (or the first or last one).
    ///
    /// # Errors
    /// Too many buffers.
    pub fn select(&mut self, x: Operand, width: usize, rows: SelectRows) -> Result<Operand, ModelError> {
        let out = self.output_value(width)?;
        self.push(Op::Select { a: x, out, width: width as u32, rows });
        Ok(out)
    }

    /// A new KV cache.
    ///
    /// # Errors
    /// Too many caches.
    pub fn cache(
        &mut self,
        kind: CacheKind,
        kv_heads: usize,
        key_dim: usize,
        value_dim: usize,
    ) -> Result<u32, ModelError> {
        let id = u32::try_from(self.caches.len()).map_err(|_| ModelError::TooLarge("caches"))?;
        let cache = CacheRecord {
            kind: kind as u32,
            kv_heads: kv_heads as u32,
            key_dim: key_dim as u32,
            value_dim: value_dim as u32,
            reserved: 0,
        };
        // Whole sequences in one step: a layer's keys and values are not needed after the layer.
        if self.policy.float_twin
            && kind == CacheKind::Context
            && let Some(same) = self.caches.iter().position(|c| alike(c, &cache))
        {
            return Ok(same as u32);
        }
        self.caches.push(cache);
        Ok(id)
    }

    /// Names a result of the entry under construction.
    pub fn output(&mut self, name: &'static str, at: Operand, width: usize) {
        self.outputs.push(OutputSpec { name, at, width: width as u32 });
    }

    /// Ends the entry under construction.
    pub fn finish_entry(&mut self, kind: EntryKind, max_positions: usize) {
        self.entries.push(EntrySpec {
            kind,
            ops: std::mem::take(&mut self.ops),
            outputs: std::mem::take(&mut self.outputs),
            max_positions: max_positions as u32,
            head: self.head.take(),
        });
        self.quantized.clear();
    }
}

fn alike(a: &CacheRecord, b: &CacheRecord) -> bool {
    (a.kind, a.kv_heads, a.key_dim, a.value_dim) == (b.kind, b.kv_heads, b.key_dim, b.value_dim)
}
