//! The builder that architecture descriptions write to: values, tensors, fused linears.
//!
//! A value is an activation buffer with a name of its own; the memory that it shares with others is decided
//! afterwards ([`crate::allocate`]). Projections of one input that get the same format are fused into one linear; for integer
//! formats the input is quantized once and shared.

use std::collections::HashMap;

use lora_runtime::format::{
    BufferKind, BufferRecord, CacheKind, CacheRecord, EntryKind, NONE, Operand, RowKind, SlotKind,
};
use lora_runtime::kernels::Act;
use lora_runtime::kernels::quant_row_bytes;
use lora_runtime::program::{NormKind, Op, SelectRows};
use lora_runtime::weights::WeightFormat;

use crate::error::ModelError;
use crate::experts::{Choice, ExpertSum};
use crate::policy::Policy;
use crate::spec::{
    EntrySpec, HeadSpec, OutputSpec, Part, Product, Role, RowMap, SlotSpec, Source, Storage, TensorSpec,
};

/// The checkpoint as the lowering sees it: names and shapes after merging.
pub trait Checkpoint {
    /// Shape of a tensor, `None` when there is none of this name.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// The format that a matrix has whatever the policy says: that of its blocks, where they are carried over.
    fn format(&self, _name: &str) -> Option<WeightFormat> {
        None
    }
}

/// A matrix to multiply with: one or more of them on the same input become one linear where their formats agree.
#[derive(Clone, Debug)]
pub struct Projection {
    /// Module path in the checkpoint (`….q_proj`), without `.weight`.
    pub module: String,
    /// Outputs.
    pub rows: usize,
    /// Rows of the module's matrix, when it holds more than this projection.
    pub part: Option<RowMap>,
    /// Whether a bias is expected: `Some(true)` required, `Some(false)` none, `None` as the checkpoint has it.
    pub bias: Option<bool>,
    /// Stored as inputs × outputs.
    pub transpose: bool,
    /// Role.
    pub role: Role,
}

impl Projection {
    /// A plain projection of a module of its own.
    #[must_use]
    pub fn new(module: impl Into<String>, rows: usize, role: Role) -> Self {
        Self { module: module.into(), rows, part: None, bias: None, transpose: false, role }
    }
    /// Sets whether a bias must exist.
    #[must_use]
    pub const fn bias(mut self, bias: bool) -> Self {
        self.bias = Some(bias);
        self
    }
}

/// What happens after `W·x + b`.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue {
    /// Activation.
    pub act: Act,
    /// Factor before the residual.
    pub scale: f32,
}

impl Default for Epilogue {
    fn default() -> Self {
        Self { act: Act::None, scale: 1.0 }
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
    /// Layer that new tensors belong to, and the number of layers.
    pub layer: Option<(usize, usize)>,
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
            layer: None,
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

    // ---- tensors ----------------------------------------------------------------------------------------------

    fn tensor(&mut self, spec: TensorSpec) -> Result<u32, ModelError> {
        if let Some(&id) = self.tensor_ids.get(&spec.name) {
            return Ok(id);
        }
        let id = u32::try_from(self.tensors.len()).map_err(|_| ModelError::TooLarge("tensors"))?;
        self.tensor_ids.insert(spec.name.clone(), id);
        self.tensors.push(spec);
        Ok(id)
    }

    /// A vector of the checkpoint, which adapters can replace.
    fn stored_vector(&mut self, spec: TensorSpec) -> Result<u32, ModelError> {
        let (name, rows, cols) = (spec.name.clone(), spec.rows, spec.cols);
        let known = self.tensors.len();
        let tensor = self.tensor(spec)?;
        if tensor as usize == known {
            let slot = SlotSpec { rows, cols, ..SlotSpec::new(SlotKind::Vector, name, tensor) };
            self.slots.push(slot);
        }
        Ok(tensor)
    }

    /// The slot of a table that tokens, types or positions look up: one for every lookup.
    #[must_use]
    pub fn embed_slot(&mut self, table: u32) -> u32 {
        let t = &self.tensors[table as usize];
        let [part] = t.parts.as_slice() else { return NONE };
        if part.module.is_empty() {
            return NONE;
        }
        let slot = SlotSpec {
            rows: t.rows,
            cols: t.cols,
            source: part.source.clone(),
            ..SlotSpec::new(SlotKind::Embed, part.module.clone(), table)
        };
        self.slots.push(slot);
        self.slots.len() as u32 - 1
    }

    /// From here on stands the task head, on the hidden states `hidden`: another head can take its place.
    pub fn begin_head(&mut self, hidden: Operand) {
        self.head = Some(HeadSpec { op: self.ops.len(), hidden, slots: self.slots.len() });
    }

    /// A checkpoint vector of `len`, `add` added to every value.
    ///
    /// # Errors
    /// Missing, or another shape.
    pub fn vector(&mut self, name: &str, len: usize, add: f32, field: &'static str) -> Result<u32, ModelError> {
        self.expect(name, &[len], field)?;
        self.flat(name, len, add)
    }

    /// As [`Graph::vector`], stored as a matrix of one row.
    ///
    /// # Errors
    /// Missing, or another shape.
    pub fn row(&mut self, name: &str, len: usize, field: &'static str) -> Result<u32, ModelError> {
        self.expect(name, &[1, len], field)?;
        self.flat(name, len, 0.0)
    }

    fn flat(&mut self, name: &str, len: usize, add: f32) -> Result<u32, ModelError> {
        self.stored_vector(TensorSpec {
            name: name.into(),
            storage: Storage::Vector,
            rows: 1,
            cols: len,
            parts: vec![Part {
                source: Source::Checkpoint { name: name.into(), transpose: false, rows: RowMap::range(0, len) },
                rows: len,
                add,
                module: String::new(),
            }],
            role: None,
            layer: self.layer.map(|l| l.0),
        })
    }

    /// Computed numbers, `rows × cols`.
    ///
    /// # Errors
    /// Too many tensors.
    pub fn values(&mut self, name: &str, rows: usize, values: Vec<f32>) -> Result<u32, ModelError> {
        let cols = values.len() / rows;
        self.tensor(TensorSpec {
            name: name.into(),
            storage: Storage::Vector,
            rows,
            cols,
            parts: vec![Part { source: Source::Values(values), rows, add: 0.0, module: String::new() }],
            role: None,
            layer: None,
        })
    }

    /// Values of a checkpoint tensor picked one by one, `rows × cols` (see [`Source::Gather`]).
    ///
    /// # Errors
    /// Too many tensors.
    pub fn gathered(&mut self, name: &str, rows: usize, cols: usize, source: Source) -> Result<u32, ModelError> {
        self.stored_vector(TensorSpec {
            name: name.into(),
            storage: Storage::Vector,
            rows,
            cols,
            parts: vec![Part { source, rows, add: 0.0, module: String::new() }],
            role: None,
            layer: None,
        })
    }

    /// The projection of a table that no input changes, as a matrix of `rows` outputs (see [`Source::Product`]), and its
    /// slot.
    ///
    /// # Errors
    /// Too many tensors.
    pub fn product(&mut self, name: &str, rows: usize, product: Product) -> Result<(u32, u32), ModelError> {
        let (role, cols) = (Role::SmallEmbedding, product.outputs.1);
        let source = Source::Product(Box::new(product));
        let weight = self.tensor(TensorSpec {
            name: name.into(),
            storage: Storage::Panels(self.policy.stored(self.policy.format(role, None))),
            rows,
            cols,
            parts: vec![Part { source: source.clone(), rows, add: 0.0, module: String::new() }],
            role: Some(role),
            layer: self.layer.map(|l| l.0),
        })?;
        self.inputs += 1;
        let slot =
            SlotSpec { rows, cols, source, input: self.inputs, ..SlotSpec::new(SlotKind::Linear, name.into(), weight) };
        self.slots.push(slot);
        Ok((weight, self.slots.len() as u32 - 1))
    }

    /// A computed table to look up rows in.
    ///
    /// # Errors
    /// Too many tensors.
    pub fn computed_matrix(
        &mut self,
        name: &str,
        rows: usize,
        values: Vec<f32>,
        role: Role,
    ) -> Result<u32, ModelError> {
        let cols = values.len() / rows;
        self.tensor(TensorSpec {
            name: name.into(),
            storage: Storage::Panels(self.policy.stored(self.policy.format(role, None))),
            rows,
            cols,
            parts: vec![Part { source: Source::Values(values), rows, add: 0.0, module: String::new() }],
            role: Some(role),
            layer: None,
        })
    }

    /// A whole checkpoint matrix as panels (embeddings, tied heads).
    ///
    /// # Errors
    /// Missing, or another shape.
    pub fn matrix(
        &mut self,
        module: &str,
        rows: usize,
        cols: usize,
        role: Role,
        field: &'static str,
    ) -> Result<u32, ModelError> {
        let name = format!("{module}.weight");
        self.expect(&name, &[rows, cols], field)?;
        let format = self.checkpoint.format(&name).unwrap_or_else(|| self.policy.format(role, None));
        let format = self.policy.stored(format);
        self.tensor(TensorSpec {
            name: module.into(),
            storage: Storage::Panels(format),
            rows,
            cols,
            parts: vec![Part {
                source: Source::Checkpoint { name, transpose: false, rows: RowMap::range(0, rows) },
                rows,
                add: 0.0,
                module: module.into(),
            }],
            role: Some(role),
            layer: None,
        })
    }

    /// The format of a tensor.
    #[must_use]
    pub fn format_of(&self, tensor: u32) -> WeightFormat {
        match self.tensors[tensor as usize].storage {
            Storage::Panels(f) => f,
            Storage::Vector => WeightFormat::F32,
        }
    }

    // ---- ops --------------------------------------------------------------------------------------------------

    /// `x` as a linear of `format` wants it: itself for float formats, else quantized (once).
    fn linear_input(&mut self, x: Operand, cols: usize, format: WeightFormat) -> Result<Operand, ModelError> {
        if format.is_float() {
            return Ok(x);
        }
        debug_assert!(x.col == 0, "only whole values are quantized");
        if let Some(&q) = self.quantized.get(&x.buffer) {
            return Ok(q);
        }
        let rows = if self.buffers[usize::from(x.buffer)].rows == RowKind::Token as u16 {
            RowKind::Token
        } else {
            RowKind::Output
        };
        let q = self.buffer(rows, BufferKind::Quant, cols)?;
        self.push(Op::Quantize { a: x, out: q, width: cols as u32 });
        self.quantized.insert(x.buffer, q);
        Ok(q)
    }

    /// `W·x (+ b)` with a tensor that exists already (a tied head). Adapters know it as `module`.
    ///
    /// # Errors
    /// Too many buffers.
    pub fn linear_with(
        &mut self,
        module: &str,
        x: Operand,
        tensor: u32,
        bias: u32,
        epilogue: Epilogue,
    ) -> Result<Operand, ModelError> {
        let (rows, cols) = (self.tensors[tensor as usize].rows, self.tensors[tensor as usize].cols);
        let a = self.linear_input(x, cols, self.format_of(tensor))?;
        let out = self.value_like(x, rows)?;
        let slot = self.slots.len() as u32;
        let own = format!("{module}.weight");
        let source = match self.has(&own) {
            true => Source::Checkpoint { name: own, transpose: false, rows: RowMap::range(0, rows) },
            false => self.tensors[tensor as usize].parts[0].source.clone(),
        };
        let part_of = |t: u32| self.tensors.get(t as usize).map_or(Source::Zeros, |t| t.parts[0].source.clone());
        let bias_source = part_of(bias);
        self.inputs += 1;
        let (cols, input) = (cols, self.inputs);
        let spec = SlotSpec::new(SlotKind::Linear, module.into(), tensor);
        self.slots.push(SlotSpec { rows, cols, source, bias: bias_source, input, ..spec });
        self.push(Op::Linear {
            slot,
            a,
            out,
            residual: Operand::NONE,
            weight: tensor,
            bias,
            act: epilogue.act,
            scale: epilogue.scale,
            width: rows as u32,
        });
        Ok(out)
    }

    /// Several projections of `x`, side by side in one new value, in the order given; fused where formats agree.
    ///
    /// # Errors
    /// Missing tensors, other shapes.
    pub fn project(
        &mut self,
        name: &str,
        x: Operand,
        cols: usize,
        list: &[Projection],
        epilogue: Epilogue,
    ) -> Result<Operand, ModelError> {
        let width = list.iter().map(|p| p.rows).sum();
        let out = self.value_like(x, width)?;
        self.project_into(name, x, cols, list, epilogue, out, Operand::NONE)?;
        Ok(out)
    }

    /// `target += scale · act(W·x + b)`: a projection back into the residual stream.
    ///
    /// # Errors
    /// Missing tensors, other shapes.
    pub fn project_residual(
        &mut self,
        x: Operand,
        cols: usize,
        projection: Projection,
        scale: f32,
        target: Operand,
    ) -> Result<(), ModelError> {
        let name = projection.module.clone();
        let epilogue = Epilogue { act: Act::None, scale };
        self.project_into(&name, x, cols, &[projection], epilogue, target, target)
    }

    fn projection_format(&self, p: &Projection) -> WeightFormat {
        let carried = self.checkpoint.format(&format!("{}.weight", p.module));
        carried.unwrap_or_else(|| self.policy.format(p.role, self.layer))
    }

    #[allow(clippy::too_many_arguments, reason = "the one place that all projections come through")]
    fn project_into(
        &mut self,
        name: &str,
        x: Operand,
        cols: usize,
        list: &[Projection],
        epilogue: Epilogue,
        out: Operand,
        residual: Operand,
    ) -> Result<(), ModelError> {
        let mut col = 0;
        let mut rest = list;
        self.inputs += 1;
        while let Some(first) = rest.first() {
            let format = self.projection_format(first);
            let run = rest.iter().take_while(|p| self.projection_format(p) == format).count();
            let (fused, tail) = rest.split_at(run);
            let tensor_name = if fused.len() == list.len() && list.len() > 1 {
                name.to_string()
            } else {
                fused.iter().map(|p| p.module.as_str()).collect::<Vec<_>>().join("+")
            };
            let format = self.policy.stored(format);
            let (weight, bias) = self.fuse(&tensor_name, cols, fused, format)?;
            let slot = self.linear_slots.get(&weight).copied().unwrap_or_else(|| self.add_slots(weight, cols, fused));
            let rows: usize = fused.iter().map(|p| p.rows).sum();
            let a = self.linear_input(x, cols, format)?;
            let shift = |at: Operand| if at.is_none() { at } else { Self::columns(at, col) };
            self.push(Op::Linear {
                slot,
                a,
                out: shift(out),
                residual: shift(residual),
                weight,
                bias,
                act: epilogue.act,
                scale: epilogue.scale,
                width: rows as u32,
            });
            col += rows;
            rest = tail;
        }
        Ok(())
    }

    /// Slots for the projections of a new tensor; gives the first.
    fn add_slots(&mut self, tensor: u32, cols: usize, list: &[Projection]) -> u32 {
        let first = self.slots.len() as u32;
        let mut row_start = 0;
        for p in list {
            let rows = p.part.unwrap_or(RowMap::range(0, p.rows));
            let source = |what: &str, transpose| {
                let name = format!("{}.{what}", p.module);
                if self.has(&name) { Source::Checkpoint { name, transpose, rows } } else { Source::Zeros }
            };
            let slot = SlotSpec {
                row_start,
                rows: p.rows,
                cols,
                source: source("weight", p.transpose),
                bias: if p.bias == Some(false) { Source::Zeros } else { source("bias", false) },
                input: self.inputs,
                ..SlotSpec::new(SlotKind::Linear, p.module.clone(), tensor)
            };
            self.slots.push(slot);
            row_start += p.rows;
        }
        self.linear_slots.insert(tensor, first);
        first
    }

    fn fuse(
        &mut self,
        name: &str,
        cols: usize,
        list: &[Projection],
        format: WeightFormat,
    ) -> Result<(u32, u32), ModelError> {
        let mut parts = Vec::new();
        let mut bias_parts = Vec::new();
        let mut any_bias = false;
        for p in list {
            let weight = format!("{}.weight", p.module);
            let bias = format!("{}.bias", p.module);
            let found = self
                .shape(&weight)
                .ok_or_else(|| ModelError::MissingTensor { name: weight.clone(), hint: String::new() })?;
            let source_rows =
                p.part.map_or(p.rows, |_| if p.transpose { found.get(1) } else { found.first() }.copied().unwrap_or(0));
            let expected = if p.transpose { vec![cols, source_rows] } else { vec![source_rows, cols] };
            let map = p.part.unwrap_or(RowMap::range(0, p.rows));
            let fits = map.count == 0 || map.start + (map.count - 1) * map.stride + map.block <= source_rows;
            if found != expected || !fits || map.rows() != p.rows {
                return Err(ModelError::Shape {
                    name: weight,
                    found,
                    expected: vec![p.rows, cols],
                    field: "head and layer sizes",
                });
            }
            push_part(
                &mut parts,
                Part {
                    source: Source::Checkpoint { name: weight, transpose: p.transpose, rows: map },
                    rows: p.rows,
                    add: 0.0,
                    module: p.module.clone(),
                },
            );
            let has = match (p.bias, self.shape(&bias)) {
                (Some(false), _) | (None, None) => false,
                (Some(true), None) => return Err(ModelError::MissingTensor { name: bias, hint: String::new() }),
                (_, Some(shape)) if shape == [source_rows] => true,
                (_, Some(found)) => {
                    return Err(ModelError::Shape { name: bias, found, expected: vec![source_rows], field: "bias" });
                }
            };
            any_bias |= has;
            // A bias is a row vector: its "rows" are the matrix's, one value each.
            let source =
                if has { Source::Checkpoint { name: bias, transpose: false, rows: map } } else { Source::Zeros };
            push_part(&mut bias_parts, Part { source, rows: p.rows, add: 0.0, module: p.module.clone() });
        }
        let rows = list.iter().map(|p| p.rows).sum();
        let layer = self.layer.map(|l| l.0);
        let role = Some(list[0].role);
        let weight = self.tensor(TensorSpec {
            name: name.into(),
            storage: Storage::Panels(format),
            rows,
            cols,
            parts,
            role,
            layer,
        })?;
        let bias = if any_bias {
            self.tensor(TensorSpec {
                name: format!("{name}.bias"),
                storage: Storage::Vector,
                rows: 1,
                cols: rows,
                parts: bias_parts,
                role: None,
                layer,
            })?
        } else {
            NONE
        };
        Ok((weight, bias))
    }

    /// A matrix per expert, one after the other in the tensor table; gives the first. All have the format of the first,
    /// and slots of their own.
    ///
    /// # Errors
    /// Missing tensors, other shapes.
    pub fn expert_matrices(&mut self, cols: usize, experts: &[(String, Vec<Projection>)]) -> Result<u32, ModelError> {
        let first = self.tensors.len();
        for (i, (name, list)) in experts.iter().enumerate() {
            let format = self.policy.stored(self.policy.format(list[0].role, self.layer));
            let (id, _) = self.fuse(name, cols, list, format)?;
            debug_assert_eq!(id as usize, first + i, "layers with experts share no weights");
            self.inputs += 1;
            self.add_slots(id, cols, list);
        }
        u32::try_from(first).map_err(|_| ModelError::TooLarge("tensors"))
    }

    /// The linear of each row's own expert (see [`Op::ExpertLinear`]).
    ///
    /// # Errors
    /// Too many buffers.
    pub fn expert_linear(
        &mut self,
        x: Operand,
        out: Operand,
        weight: u32,
        choice: Choice,
        sum: ExpertSum,
    ) -> Result<(), ModelError> {
        let (rows, cols) = (self.tensors[weight as usize].rows, self.tensors[weight as usize].cols);
        let a = self.linear_input(x, cols, self.format_of(weight))?;
        self.push(Op::ExpertLinear {
            a,
            route: choice.route,
            out,
            weight,
            experts: choice.experts as u32,
            slot: choice.slot as u32,
            weighted: sum.weighted,
            add: sum.add,
            width: rows as u32,
        });
        Ok(())
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

/// Appends a part, or lengthens the last one where it goes on in the same tensor (q, k and v of a fused matrix), so that
/// the tensor is read once.
fn push_part(parts: &mut Vec<Part>, part: Part) {
    if let Some(last) = parts.last_mut()
        && last.module == part.module
        && let (Source::Checkpoint { name, rows, .. }, Source::Checkpoint { name: next_name, rows: next, .. }) =
            (&mut last.source, &part.source)
        && name == next_name
        && (rows.count, next.count) == (1, 1)
        && rows.start + rows.block == next.start
    {
        *rows = RowMap::range(rows.start, rows.block + next.block);
        last.rows += part.rows;
        return;
    }
    parts.push(part);
}
