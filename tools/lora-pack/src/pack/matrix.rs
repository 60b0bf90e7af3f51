//! Matrices into panels, block of panels by block of panels: what is between weights and bytes never exists as a whole.

use anyhow::{Result, anyhow};
use half::f16;
use lora_runtime::kernels::pack_float_panel;
use lora_runtime::weights::{PANEL_ROWS, WeightFormat};
use rayon::prelude::*;

use super::fill::Values;
use crate::quantize::{Unrepresentable, quantize_rows};
use crate::write::LpkWriter;

/// Most panels of a block, which one task quantizes and lays out.
const MOST_PANELS: usize = 4;
/// Values that a block had better not exceed, so that they and their codes stay in a core's cache.
const BLOCK_VALUES: usize = 1 << 17;
/// Values of the blocks that are made before they are written together.
const PIECE_VALUES: usize = 1 << 21;

/// Rows of a block.
fn rows_at_once(cols: usize) -> usize {
    (BLOCK_VALUES / (PANEL_ROWS * cols.max(1))).clamp(1, MOST_PANELS) * PANEL_ROWS
}

/// Quantizes a matrix and lays it out.
pub(crate) fn pack_matrix(
    format: WeightFormat,
    values: &[f32],
    rows: usize,
    cols: usize,
    codebook: &[u8; 16],
) -> Result<Vec<u8>> {
    let at_once = rows_at_once(cols);
    let mut out = vec![0; format.tensor_bytes(rows, cols)];
    let blocks = out
        .par_chunks_mut(at_once / PANEL_ROWS * format.panel_bytes(cols))
        .zip(values.par_chunks(at_once * cols))
        .enumerate()
        .map(|(block, (out, values))| pack_block(format, block * at_once, values, cols, codebook, out));
    first_error(blocks.collect())?;
    Ok(out)
}

/// Makes a matrix out of `values` and appends it to the file, piece by piece; gives its offset and length. `release` is
/// called after every piece.
pub(super) fn write_matrix(
    format: WeightFormat,
    values: &Values<'_>,
    codebook: &[u8; 16],
    writer: &mut LpkWriter,
    release: &dyn Fn(),
) -> Result<(u64, u64)> {
    let (rows, cols) = (values.rows, values.cols);
    let offset = writer.position();
    let (at_once, panel_bytes) = (rows_at_once(cols), format.panel_bytes(cols));
    let piece = (PIECE_VALUES / (at_once * cols.max(1))).max(rayon::current_num_threads()) * at_once;
    for first in (0..rows).step_by(piece) {
        let rows = piece.min(rows - first);
        writer.piece(rows.div_ceil(PANEL_ROWS) * panel_bytes, |out| {
            let block = |buffer: &mut Vec<f32>, (block, out): (usize, &mut [u8])| {
                let start = block * at_once;
                buffer.resize(at_once.min(rows - start) * cols, 0.0);
                values.read(first + start, buffer)?;
                pack_block(format, first + start, buffer, cols, codebook, out)
            };
            let blocks = out.par_chunks_mut(at_once / PANEL_ROWS * panel_bytes).enumerate();
            first_error(blocks.map_init(Vec::new, block).collect())
        })?;
        release();
    }
    Ok((offset, writer.position() - offset))
}

/// The error of the first block that has one, whoever met his first.
fn first_error(blocks: Vec<Result<()>>) -> Result<()> {
    blocks.into_iter().collect()
}

/// Quantizes some rows, `first` and those after it, and lays them out.
fn pack_block(
    format: WeightFormat,
    first: usize,
    values: &[f32],
    cols: usize,
    codebook: &[u8; 16],
    out: &mut [u8],
) -> Result<()> {
    let panels = out.chunks_exact_mut(format.panel_bytes(cols)).enumerate();
    if !format.is_float() {
        let quantized = quantize_rows(format, values, values.len() / cols, cols, None, codebook)
            .map_err(|e| Unrepresentable { row: first + e.row, ..e })?;
        panels.for_each(|(i, panel)| quantized.pack_panel(i * PANEL_ROWS, panel));
        return Ok(());
    }
    if format == WeightFormat::F16 {
        let most = f16::MAX.to_f32();
        if !values.iter().fold(true, |all, v| all & (v.abs() <= most)) {
            let v = values.iter().find(|v| v.abs() > most).unwrap_or(&f32::NAN);
            return Err(anyhow!("the value {v} does not fit f16; use --quant f32 or an integer format"));
        }
    }
    for ((_, panel), rows) in panels.zip(values.chunks(PANEL_ROWS * cols)) {
        pack_float_panel(format, rows, cols, panel);
    }
    Ok(())
}
