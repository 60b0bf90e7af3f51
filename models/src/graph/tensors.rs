//! Tensors of the file to be, as recipes over the checkpoint's.

use lora_runtime::format::{NONE, SlotKind};
use lora_runtime::weights::WeightFormat;

use super::Graph;
use crate::balance::Factors;
use crate::error::ModelError;
use crate::spec::{Part, Product, Role, RowMap, SlotSpec, Source, Storage, TensorSpec};

impl Graph<'_> {
    pub(super) fn tensor(&mut self, spec: TensorSpec) -> Result<u32, ModelError> {
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
            layer: self.depth.map(|d| d.layer),
            factors: Factors::default(),
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
            factors: Factors::default(),
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
            factors: Factors::default(),
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
            layer: self.depth.map(|d| d.layer),
            factors: Factors::default(),
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
            factors: Factors::default(),
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
            factors: Factors::default(),
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
}
