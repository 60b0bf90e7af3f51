//! The tensors of an adapter file, as they are laid out and written.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use half::f16;
use lora_models::spec::SlotSpec;
use lora_runtime::format::{NONE, PatchRecord, SlotKind, TensorKind, TensorRecord};
use lora_runtime::weights::{PANEL_ROWS, WeightFormat};

use super::update::{Change, Update};
use crate::pack::pack_matrix;
use crate::quantize::Q4_TABLE;
use crate::write::{LpkWriter, Strings};

/// A file under construction, with what its tables will hold.
pub struct Writer {
    /// The file.
    pub file: LpkWriter,
    /// Format of the factors.
    format: WeightFormat,
    /// Strings.
    pub strings: Strings,
    /// Tensors written.
    pub records: Vec<TensorRecord>,
    /// Row numbers.
    pub indices: Vec<u32>,
}

/// The factors A of slots that read one input, stacked: the tensor, and by key the first row of each.
pub struct Stack {
    tensor: u32,
    rows: BTreeMap<String, u32>,
}

impl Writer {
    /// Writes factors in `format`: `f32`, `f16`, or `q8` (what multiplies outputs then stays `f16`).
    pub fn new(file: LpkWriter, format: WeightFormat) -> Self {
        Self { file, format, strings: Strings::default(), records: Vec::new(), indices: Vec::new() }
    }

    /// The float format of what `q8` does not hold.
    pub fn float(&self) -> WeightFormat {
        if self.format == WeightFormat::F32 { WeightFormat::F32 } else { WeightFormat::F16 }
    }

    /// Appends a tensor.
    pub fn tensor(
        &mut self,
        name: &str,
        kind: TensorKind,
        format: WeightFormat,
        shape: (usize, usize),
        bytes: &[u8],
    ) -> Result<u32> {
        let (offset, _) = self.file.tensor(bytes)?;
        self.records.push(TensorRecord {
            name: self.strings.add(name),
            kind: kind as u16,
            format: format as u16,
            rows: u32::try_from(shape.0)?,
            cols: u32::try_from(shape.1)?,
            slot: NONE,
            offset,
            len: bytes.len() as u64,
        });
        Ok(self.records.len() as u32 - 1)
    }

    fn vector(&mut self, name: &str, rows: usize, values: &[f32]) -> Result<u32> {
        let shape = (rows, values.len() / rows);
        self.tensor(name, TensorKind::Vector, WeightFormat::F32, shape, bytemuck::cast_slice(values))
    }

    fn panels(&mut self, name: &str, format: WeightFormat, values: &[f32], cols: usize) -> Result<u32> {
        let rows = values.len() / cols;
        let bytes = pack_matrix(format, values, rows, cols, &Q4_TABLE)?;
        self.tensor(name, TensorKind::Panels, format, (rows, cols), &bytes)
    }

    fn thin(&mut self, name: &str, values: &[f32], cols: usize) -> Result<u32> {
        let (format, rows) = (self.float(), values.len() / cols);
        let bytes = pack_thin(format, values, rows, cols)?;
        self.tensor(name, TensorKind::Thin, format, (rows, cols), &bytes)
    }

    /// The rows of A of linears on one input: 8-bit panels, or thin ones.
    fn factor(&mut self, name: &str, values: &[f32], cols: usize) -> Result<u32> {
        match self.format {
            WeightFormat::Q8 => self.panels(name, WeightFormat::Q8, values, cols),
            _ => self.thin(name, values, cols),
        }
    }

    /// Writes the stacked factors A of some slots.
    pub fn stack(&mut self, updates: &[Option<Update>], cols: usize, module: &str) -> Result<Stack> {
        let mut stack = Stack { tensor: NONE, rows: BTreeMap::new() };
        let (mut values, mut first) = (Vec::new(), 0);
        for update in updates.iter().flatten() {
            let Change::LowRank { key, r, a, b: _ } = &update.change else { continue };
            if *r > 0 && !stack.rows.contains_key(key) {
                stack.rows.insert(key.clone(), first);
                values.extend_from_slice(a);
                first += *r as u32;
            }
        }
        if first > 0 {
            stack.tensor = self.factor(&format!("{module}.A"), &values, cols)?;
        }
        Ok(stack)
    }

    /// Writes an update of `slot` and fills its record.
    pub fn write(&mut self, update: &Update, slot: &SlotSpec, stack: &Stack, record: &mut PatchRecord) -> Result<()> {
        let name = |part: &str| format!("{}.{part}", slot.module);
        match (&update.change, slot.kind) {
            (Change::None, _) => {}
            (Change::LowRank { r: 0, .. }, _) => {}
            (Change::LowRank { key, r, b, .. }, SlotKind::Linear) => {
                (record.a, record.a_row) = (stack.tensor, stack.rows[key]);
                record.b = self.thin(&name("B"), b, *r)?;
            }
            (Change::LowRank { r, a, b, .. }, _) => {
                record.a = self.thin(&name("A"), a, *r)?;
                record.b = self.thin(&name("B"), b, *r)?;
            }
            (Change::Rows { indices, values }, SlotKind::Linear) => {
                self.index(indices.as_deref(), record);
                record.a = self.factor(&name("rows"), values, slot.cols)?;
            }
            (Change::Rows { indices, values }, SlotKind::Embed) => {
                self.index(indices.as_deref(), record);
                record.values = self.panels(&name("rows"), self.format, values, slot.cols)?;
            }
            (Change::Rows { values, .. }, SlotKind::Vector) => {
                record.values = self.vector(&slot.module, slot.rows, values)?;
            }
        }
        if let Some(gain) = &update.gain {
            record.gain = self.vector(&name("gain"), 1, gain)?;
        }
        if let Some(bias) = &update.bias {
            record.bias = self.vector(&name("bias"), 1, bias)?;
        }
        Ok(())
    }

    fn index(&mut self, indices: Option<&[u32]>, record: &mut PatchRecord) {
        let indices = indices.unwrap_or(&[]);
        record.index_start = self.indices.len() as u32;
        record.index_count = indices.len() as u32;
        self.indices.extend_from_slice(indices);
    }
}

/// Lays out a narrow matrix: panels of 16 rows, for every input the 16 rows' values.
fn pack_thin(format: WeightFormat, values: &[f32], rows: usize, cols: usize) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(rows.next_multiple_of(PANEL_ROWS) * cols * 4);
    for panel in 0..rows.div_ceil(PANEL_ROWS) {
        for (col, row) in (0..cols).flat_map(|c| (0..PANEL_ROWS).map(move |r| (c, panel * PANEL_ROWS + r))) {
            let v = if row < rows { values[row * cols + col] } else { 0.0 };
            match format {
                WeightFormat::F32 => out.extend(v.to_le_bytes()),
                _ if v.abs() > f16::MAX.to_f32() => bail!("the value {v} does not fit f16; use --quant f32"),
                _ => out.extend(f16::from_f32(v).to_le_bytes()),
            }
        }
    }
    Ok(out)
}
