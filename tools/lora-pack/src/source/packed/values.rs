//! The values of a pack under the checkpoint's names.

use std::collections::{BTreeMap, HashMap};

use lora_models::balance::Factors;
use lora_models::spec::{Part, RowMap, SlotSpec, Source};
use lora_models::{Checkpoint, Policy, lower};
use lora_runtime::format::{File, NONE, SlotKind, Task, Tensor};
use lora_runtime::kernels::dequant_row;
use lora_runtime::program::Op;
use lora_runtime::weights::{PANEL_ROWS, WeightFormat};
use rayon::prelude::*;
use serde_json::Value;

use crate::calibrate::balance;
use crate::source::map::MappedFile;
use crate::source::{SourceError, TensorIndex};

/// A pack whose tensors can be read by the checkpoint's names.
#[derive(Debug)]
pub struct Packed {
    file: MappedFile,
    merged: bool,
    task: Task,
    pieces: HashMap<String, Vec<Piece>>,
    /// What gives back the values before they were rescaled, by packed tensor.
    factors: BTreeMap<u32, Factors>,
}

/// A run of a packed tensor's rows that came from a checkpoint tensor.
#[derive(Debug)]
struct Piece {
    /// Number of the packed tensor.
    tensor: u32,
    /// First of its rows.
    row: usize,
    /// Where they stood.
    place: Place,
    /// What packing added to every value.
    add: f32,
}

#[derive(Debug)]
enum Place {
    /// Rows of a matrix that is stored transposed or not; a vector counts as rows of one value.
    Rows { map: RowMap, transpose: bool },
    /// Values by their index.
    Values(Vec<u32>),
}

struct Shapes<'a>(&'a TensorIndex);

impl Checkpoint for Shapes<'_> {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.get(name).map(|t| t.shape.to_vec())
    }

    fn format(&self, _: &str) -> Option<WeightFormat> {
        None
    }
}

impl Packed {
    /// Finds out where the tensors of the checkpoint went, whose config and names are given.
    pub(super) fn new(file: MappedFile, config: &Value, names: &TensorIndex) -> Result<Self, SourceError> {
        let problem = |text: String| SourceError::file(file.path(), text);
        let view = view(&file)?;
        let task = Task::from_u32(view.info.task).unwrap_or(Task::Other);
        let lowered = lower(config, &Shapes(names), task, Policy::new(WeightFormat::F32))
            .map_err(|e| problem(format!("its metadata does not describe a model: {e}")))?;
        let alike = |(i, s): (usize, &SlotSpec)| {
            let packed = &view.slots[i];
            view.str(packed.module) == s.module
                && (packed.rows as usize, packed.cols as usize, packed.kind) == (s.rows, s.cols, s.kind as u32)
        };
        if view.slots.len() != lowered.slots.len() || !lowered.slots.iter().enumerate().all(alike) {
            return Err(problem("it was packed by another version of lora-pack; pack it again".into()));
        }
        let mut pieces: HashMap<String, Vec<Piece>> = HashMap::new();
        let mut note = |source: &Source, tensor: u32, row: usize, add: f32| {
            let (name, place) = match source {
                Source::Checkpoint { name, transpose, rows } => {
                    (name, Place::Rows { map: *rows, transpose: *transpose })
                }
                Source::Gather { name, index } => (name, Place::Values(index.clone())),
                Source::Product(_) | Source::Values(_) | Source::Zeros => return,
            };
            pieces.entry(name.clone()).or_default().push(Piece { tensor, row, place, add });
        };
        for (slot, packed) in lowered.slots.iter().zip(view.slots) {
            match slot.kind {
                SlotKind::Linear | SlotKind::Embed => {
                    note(&slot.source, packed.tensor, packed.row_start as usize, 0.0);
                }
                SlotKind::Vector => {
                    let mut row = 0;
                    for Part { source, rows, add, .. } in &lowered.tensors[slot.tensor as usize].parts {
                        note(source, packed.tensor, row, *add);
                        row += rows;
                    }
                }
            }
        }
        for record in view.ops {
            let Ok(Op::Linear { weight, bias, slot, .. }) = Op::parse(record) else { continue };
            if bias == NONE || slot == NONE {
                continue;
            }
            for (spec, packed) in lowered.slots.iter().zip(view.slots).skip(slot as usize) {
                if packed.tensor != weight || packed.kind != SlotKind::Linear as u32 {
                    break;
                }
                note(&spec.bias, bias, packed.row_start as usize, 0.0);
            }
        }
        let merged = view.meta_value("adapter.0").is_some();
        let factors = balance::of_file(&view, &lowered).map_err(|e| problem(format!("{e:#}")))?;
        let factors = factors.into_iter().map(|(t, f)| (t, f.inverse())).collect();
        Ok(Self { task, merged, pieces, factors, file })
    }

    /// What it was packed for.
    pub fn task(&self) -> Task {
        self.task
    }

    /// Whether adapters are merged into it.
    pub fn is_merged(&self) -> bool {
        self.merged
    }

    /// The name of the base, as it was packed.
    pub fn base_name(&self) -> Option<&str> {
        view(&self.file).ok()?.meta_value("base.name")
    }

    /// Its compiled tokenizer; empty where it has none.
    pub fn tokenizer(&self) -> &[u8] {
        view(&self.file).map_or(&[], |f| f.tokenizer)
    }

    /// A tensor of the checkpoint, of `shape`.
    ///
    /// # Errors
    /// The pack does not hold it, or not as a whole.
    pub fn read_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, SourceError> {
        let problem = |text: &str| SourceError::tensor(self.file.path(), name, text);
        let gone = || {
            problem(
                "the pack does not hold it as the checkpoint did (it went through other values, or no op reads it); give \
                 the folder of the base instead of its pack",
            )
        };
        let view = view(&self.file)?;
        let mut out = vec![0.0; shape.iter().product()];
        let mut left = out.len();
        for piece in self.pieces.get(name).map_or(&[][..], Vec::as_slice) {
            if left == 0 {
                // A tied table is met again as the head.
                break;
            }
            let count = match &piece.place {
                Place::Rows { map, .. } => map.rows(),
                Place::Values(index) => index.len(),
            };
            let (width, mut values) =
                rows(&view, piece.tensor, piece.row, count).ok_or_else(|| problem("the pack's tensor is too small"))?;
            if let Some(f) = self.factors.get(&piece.tensor) {
                f.apply(piece.row, width, &mut values);
            }
            let mut put = |at: usize, value: f32| match out.get_mut(at) {
                Some(place) => {
                    *place = value - piece.add;
                    Ok(())
                }
                None => Err(problem("the pack's tensor has more values")),
            };
            match &piece.place {
                Place::Values(index) => {
                    for (at, value) in index.iter().zip(&values) {
                        put(*at as usize, *value)?;
                    }
                    // Several entries may share a value, so this is all there is.
                    left = 0;
                }
                Place::Rows { map, transpose } => {
                    let stored = shape.iter().product::<usize>() / width.max(1);
                    for (i, row) in values.chunks_exact(width).enumerate() {
                        let r = map.start + i / map.block * map.stride + i % map.block;
                        for (c, value) in row.iter().enumerate() {
                            put(if *transpose { c * stored + r } else { r * width + c }, *value)?;
                        }
                    }
                    left = left.saturating_sub(values.len());
                }
            }
        }
        if left == 0 { Ok(out) } else { Err(gone()) }
    }
}

/// The model in a file, of a bundle the base.
fn view(file: &MappedFile) -> Result<File<'_>, SourceError> {
    let problem = |e: lora_runtime::Error| SourceError::file(file.path(), e.to_string());
    let bytes = file.bytes();
    let bytes = match lora_runtime::format::Bundle::is_bundle(bytes) {
        true => lora_runtime::format::Bundle::open(bytes).map_err(problem)?.base(),
        false => bytes,
    };
    File::new_checked(bytes).map_err(problem)
}

/// `count` rows of a tensor from `first` on, and their width.
fn rows(file: &File<'_>, tensor: u32, first: usize, count: usize) -> Option<(usize, Vec<f32>)> {
    match file.tensor(tensor)? {
        Tensor::Vector { rows, cols, data } => {
            // A vector may be one row of many values, or many of one: here it is rows of one value, a table of rows.
            let width = if rows == 1 { 1 } else { cols };
            Some((width, data.get(first * width..(first + count) * width)?.to_vec()))
        }
        Tensor::Panels { format, rows, cols, data } if first + count <= rows => {
            let mut out = vec![0.0; count * cols];
            let bytes = format.panel_bytes(cols);
            out.par_chunks_mut(cols).enumerate().for_each(|(i, out)| {
                let row = first + i;
                let panel = &data[row / PANEL_ROWS * bytes..][..bytes];
                dequant_row(format, &file.header.codebook, panel, row % PANEL_ROWS, out);
            });
            Some((cols, out))
        }
        Tensor::Panels { .. } | Tensor::Thin(_) => None,
    }
}
