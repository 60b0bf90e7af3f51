//! What becomes of a base that is quantized already (GGUF): blocks that no adapter touches are carried over as they are,
//! touched ones are dequantized, merged, and quantized anew to a finer grid.

use half::f16;
use lora_models::spec::{Part, Source, TensorSpec};
use lora_runtime::kernels::{Multipliers, QuantizedRows};
use lora_runtime::weights::{GROUP, WeightFormat};

use crate::merge::Merged;
use crate::source::arrange::Arrangement;
use crate::source::gguf::blocks::{five_bits, nibbles};
use crate::source::{Dtype, TensorView};

/// The format that holds a stored type without loss.
#[must_use]
pub fn lossless(dtype: Dtype) -> Option<WeightFormat> {
    match dtype {
        Dtype::Q4_0 => Some(WeightFormat::I4),
        Dtype::Q4_1 => Some(WeightFormat::I4M),
        Dtype::Q5_0 => Some(WeightFormat::I5),
        Dtype::Q5_1 => Some(WeightFormat::I5M),
        Dtype::Q8_0 => Some(WeightFormat::Q8),
        Dtype::F16 => Some(WeightFormat::F16),
        Dtype::F32 | Dtype::BF16 => Some(WeightFormat::F32),
        _ => None,
    }
}

/// The format for weights that came off a grid of this type and have changed, or that no format holds as they are: at
/// least about two bits more than the type has.
#[must_use]
pub fn finer(dtype: Dtype) -> Option<WeightFormat> {
    match dtype {
        Dtype::Q2K | Dtype::Q3K | Dtype::Q4K | Dtype::IQ4NL | Dtype::Q4_0 | Dtype::Q4_1 => Some(WeightFormat::Q6),
        Dtype::Q5_0 | Dtype::Q5_1 | Dtype::Q5K | Dtype::Q6K | Dtype::Q8_0 => Some(WeightFormat::Q8),
        Dtype::F16 | Dtype::F32 | Dtype::BF16 => lossless(dtype),
        _ => None,
    }
}

/// The format of `--quant keep` for the matrix `name` of the merged model, as far as the base says one.
#[must_use]
pub fn format(merged: &Merged<'_>, name: &str) -> Option<WeightFormat> {
    match merged.unchanged(name) {
        Some(t) => lossless(t.dtype).filter(|_| t.arrangement != Arrangement::Transposed).or_else(|| finer(t.dtype)),
        None => merged.base_dtype(name).and_then(finer),
    }
}

/// The format that a matrix gets which adapters change.
#[must_use]
pub fn of_changed(merged: &Merged<'_>) -> Option<WeightFormat> {
    merged.changed().iter().find_map(|c| merged.base_dtype(&c.name).filter(|d| d.is_block()).and_then(finer))
}

/// The blocks of a matrix as rows of `format`, where they are all of the type that it holds without loss and nothing was
/// done to them. The values are the same to the bit.
#[must_use]
pub fn carried(spec: &TensorSpec, merged: &Merged<'_>, format: WeightFormat) -> Option<QuantizedRows> {
    if format.is_float() || !spec.factors.is_empty() {
        return None;
    }
    let mut rows = QuantizedRows {
        format,
        k: spec.cols,
        codes: Vec::with_capacity(spec.rows * spec.cols),
        multipliers: if format.has_minimum() {
            Multipliers::HalfAndMinimum(Vec::new())
        } else {
            Multipliers::Half(Vec::new())
        },
        row_scales: Vec::new(),
    };
    for part in &spec.parts {
        let (tensor, from) = stored_rows(part, merged, spec.cols, format)?;
        let bytes = spec.cols / GROUP * tensor.dtype.size();
        for row in from {
            let row = tensor.bytes.get(row * bytes..(row + 1) * bytes)?;
            for block in row.chunks_exact(tensor.dtype.size()) {
                push(tensor.dtype, block, &mut rows)?;
            }
        }
    }
    (rows.codes.len() == spec.rows * spec.cols).then_some(rows)
}

/// The stored rows of a part, in order.
fn stored_rows<'m>(
    part: &Part,
    merged: &'m Merged<'_>,
    cols: usize,
    format: WeightFormat,
) -> Option<(TensorView<'m>, Vec<usize>)> {
    let Source::Checkpoint { name, transpose: false, rows } = &part.source else { return None };
    let tensor = merged.unchanged(name).filter(|t| lossless(t.dtype) == Some(format) && part.add == 0.0)?;
    let fits = tensor.shape.len() == 2 && tensor.shape[1] == cols && cols.is_multiple_of(GROUP);
    let moved = matches!(tensor.arrangement, Arrangement::Transposed | Arrangement::PlusOne);
    if !fits || moved {
        return None;
    }
    let of = |b: usize| rows.start + b * rows.stride..rows.start + b * rows.stride + rows.block;
    let total = tensor.shape[0];
    Some((tensor, (0..rows.count).flat_map(of).map(|r| tensor.arrangement.stored_row(r, total)).collect()))
}

/// Appends a block; `None` where it holds what the format does not: a scale that is not finite, the code −128.
fn push(dtype: Dtype, block: &[u8], rows: &mut QuantizedRows) -> Option<()> {
    let half = |at: usize| {
        let bits = u16::from_le_bytes([block[at], block[at + 1]]);
        f16::from_bits(bits).is_finite().then_some(bits)
    };
    let signed = |codes: [u8; 32], offset: i8| codes.map(|c| c as i8 - offset);
    let codes: [i8; 32] = match dtype {
        Dtype::Q4_0 => signed(nibbles(&block[2..]), 8),
        Dtype::Q4_1 => signed(nibbles(&block[4..]), 0),
        Dtype::Q5_0 => signed(five_bits(&block[2..6], &block[6..]), 16),
        Dtype::Q5_1 => signed(five_bits(&block[4..8], &block[8..]), 0),
        Dtype::Q8_0 => core::array::from_fn(|i| block[2 + i] as i8),
        _ => return None,
    };
    if codes.contains(&-128) {
        return None;
    }
    rows.codes.extend(codes);
    match &mut rows.multipliers {
        Multipliers::Half(m) => m.push(half(0)?),
        Multipliers::HalfAndMinimum(m) => m.push([half(0)?, half(2)?]),
        Multipliers::None | Multipliers::Int(_) => return None,
    }
    Some(())
}
