//! Single rows back as floats: the embedding lookup.

use crate::kernels::isa::scalar::f16_to_f32;
use crate::weights::{GROUP, LINE, PANEL_ROWS, WeightFormat};

/// Writes row `row` (0…15) of a panel as floats: `f32(code · multiplier) · S`, each product rounded once; for `q8`
/// `f32(code) · scale`, for `q8r` `f32(code) · S`, for `i4`, `i5` as `q8`, for `i4m`, `i5m` plus the minimum. `out.len()` is K.
///
/// # Panics
/// When the panel is not exactly [`WeightFormat::panel_bytes`]`(out.len())` long or `row` is not below 16.
pub fn dequant_row(format: WeightFormat, codebook: &[u8; 16], panel: &[u8], row: usize, out: &mut [f32]) {
    let k = out.len();
    assert_eq!(panel.len(), format.panel_bytes(k), "panel size");
    assert!(row < PANEL_ROWS, "row out of range");
    match format {
        WeightFormat::F32 => {
            for (out, w) in out.iter_mut().zip(panel.chunks_exact(PANEL_ROWS * 4)) {
                *out = float(w, row);
            }
            return;
        }
        WeightFormat::F16 => {
            for (out, w) in out.iter_mut().zip(panel.chunks_exact(PANEL_ROWS * 2)) {
                *out = f16_to_f32(u16::from_le_bytes([w[2 * row], w[2 * row + 1]]));
            }
            return;
        }
        _ => {}
    }
    let row_scale = if format.has_row_scale() { float(&panel[format.row_scales_at(k)..], row) } else { 1.0 };
    let slot = format.code_place(row, 0);
    for (g, out) in out.chunks_mut(GROUP).enumerate() {
        let (codes_at, multipliers_at) = format.group_place(k, g);
        let group = &panel[codes_at..codes_at + format.group_bytes()];
        let lines = &group[slot.byte..];
        let values = match format {
            WeightFormat::Q8 | WeightFormat::Q8R => {
                let mut values = [0f32; GROUP];
                for part in 0..4 {
                    for b in 0..8 {
                        values[8 * part + b] = f32::from(lines[part * LINE + b] as i8);
                    }
                }
                values
            }
            _ => {
                let mut codes = [0u8; GROUP];
                for b in 0..8 {
                    let (first, second) = (lines[b], lines[LINE + b]);
                    codes[b] = first & 15;
                    codes[8 + b] = second & 15;
                    codes[16 + b] = first >> 4;
                    codes[24 + b] = second >> 4;
                }
                match format {
                    WeightFormat::Q5 | WeightFormat::I5 | WeightFormat::I5M => {
                        let plane = &group[slot.plane_byte..];
                        for b in 0..8 {
                            let bits = plane[b] >> slot.plane_shift;
                            codes[b] |= bits << 4 & 16;
                            codes[16 + b] |= bits << 3 & 16;
                            codes[8 + b] |= bits << 2 & 16;
                            codes[24 + b] |= bits << 1 & 16;
                        }
                    }
                    WeightFormat::Q6 => {
                        let plane = &group[slot.plane_byte..];
                        for b in 0..8 {
                            let bits = plane[b];
                            codes[b] |= bits << 4 & 48;
                            codes[16 + b] |= bits << 2 & 48;
                            codes[8 + b] |= bits & 48;
                            codes[24 + b] |= bits >> 2 & 48;
                        }
                    }
                    _ => {}
                }
                if format == WeightFormat::Q4 {
                    codes.map(|code| f32::from(codebook[usize::from(code)]) - 64.0)
                } else {
                    let offset = format.code_offset() as f32;
                    codes.map(|code| f32::from(code) - offset)
                }
            }
        };
        let half = |i: usize| {
            let at = multipliers_at + 2 * i;
            f16_to_f32(u16::from_le_bytes([panel[at], panel[at + 1]]))
        };
        let multiplier = match format.multiplier_bytes() {
            1 => f32::from(panel[multipliers_at + row] as i8),
            2 | 4 => half(row),
            _ => 1.0,
        };
        // A factor of 1 changes nothing, so one line serves all formats.
        for (out, value) in out.iter_mut().zip(values) {
            *out = value * multiplier * row_scale;
        }
        if format.has_minimum() {
            let minimum = half(PANEL_ROWS + row);
            out.iter_mut().for_each(|out| *out += minimum);
        }
    }
}

/// Element `i` of little-endian floats.
fn float(bytes: &[u8], i: usize) -> f32 {
    f32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
}
