//! Single rows back as floats: the embedding lookup.

use crate::kernels::isa::scalar::f16_to_f32;
#[cfg(all(target_arch = "arm", feature = "dsp"))]
use crate::kernels::linear::cortex_m::row_codes;
#[cfg(not(all(target_arch = "arm", feature = "dsp")))]
use crate::kernels::linear::plain::row_codes;
use crate::kernels::linear::plain::{minimum, multiplier};
use crate::weights::{GROUP, PANEL_ROWS, WeightFormat};

/// Writes row `row` (0…15) of a panel as floats: `f32(code · multiplier) · S`, each product rounded once; for `q8`
/// `f32(code) · scale`, for `q8r` `f32(code) · S`, for `i4`, `i5` as `q8`, for `i4m`, `i5m` plus the minimum. `out.len()` is K.
///
/// # Panics
/// When the panel is not exactly [`WeightFormat::panel_bytes`]`(out.len())` long or `row` is not below 16.
pub fn dequant_row(format: WeightFormat, codebook: &[u8; 16], panel: &[u8], row: usize, out: &mut [f32]) {
    let k = out.len();
    assert!(panel.len() == format.panel_bytes(k), "panel size");
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
    for (g, out) in out.chunks_mut(GROUP).enumerate() {
        let (codes_at, multipliers_at) = format.group_place(k, g);
        assert!(codes_at + format.group_bytes() <= panel.len());
        // SAFETY: the panel has its size, so the group's multipliers and codes lie within it.
        let (codes, multiplier, minimum) = unsafe {
            let codes = row_codes(format, codebook.as_ptr(), panel.as_ptr().add(codes_at), row);
            let multipliers = panel.as_ptr().add(multipliers_at);
            (codes, multiplier(format, multipliers, row), minimum(format, multipliers, row))
        };
        let codes: [i8; GROUP] = bytemuck::cast(codes.map(u32::to_le));
        // A factor of 1 changes nothing, so one line serves all formats.
        for (out, code) in out.iter_mut().zip(codes) {
            *out = f32::from(code) * multiplier * row_scale;
        }
        if format.has_minimum() {
            out.iter_mut().for_each(|out| *out += minimum);
        }
    }
}

/// Element `i` of little-endian floats.
fn float(bytes: &[u8], i: usize) -> f32 {
    f32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
}
