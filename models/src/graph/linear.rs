//! Linears: projections of one input that get the same format become one, the input is quantized once.

use lora_runtime::format::{BufferKind, NONE, Operand, RowKind, SlotKind};
use lora_runtime::kernels::Act;
use lora_runtime::program::Op;
use lora_runtime::weights::WeightFormat;

use super::Graph;
use crate::balance::Factors;
use crate::error::ModelError;
use crate::experts::{Choice, ExpertSum};
use crate::spec::{Part, Role, RowMap, SlotSpec, Source, Storage, TensorSpec};

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

impl Graph<'_> {
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
        carried.unwrap_or_else(|| self.policy.format(p.role, self.depth))
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
        let layer = self.depth.map(|d| d.layer);
        let role = Some(list[0].role);
        let weight = self.tensor(TensorSpec {
            name: name.into(),
            storage: Storage::Panels(format),
            rows,
            cols,
            parts,
            role,
            layer,
            factors: Factors::default(),
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
                factors: Factors::default(),
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
            let format = self.policy.stored(self.policy.format(list[0].role, self.depth));
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
