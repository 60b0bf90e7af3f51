//! Quantized weights times quantized activations without vectors: a row and a group at a time, one body for all formats.
//!
//! It is what the other bodies are tested against, beside the naive reference, and what small processors without the DSP
//! extension run; there a small body counts as much as a fast one.

use crate::kernels::isa::scalar::f16_to_f32;
use crate::kernels::linear::LinearArgs;
use crate::weights::{GROUP, LINE, PANEL_ROWS, WeightFormat};

/// # Safety
/// As [`LinearArgs`] says; the panel is of `format`.
#[inline(never)]
pub(super) unsafe fn panel(format: WeightFormat, a: LinearArgs) {
    let groups = a.k.div_ceil(GROUP);
    // SAFETY: groups, rows and tokens are those of the panel, of each row of activations and of the output.
    unsafe {
        for g in 0..groups {
            let (codes_at, multipliers_at) = format.group_place(a.k, g);
            for row in 0..PANEL_ROWS {
                let w = row_codes(format, a.codebook, a.panel.add(codes_at), row);
                let m = multiplier(format, a.panel.add(multipliers_at), row);
                let least = minimum(format, a.panel.add(multipliers_at), row);
                let mut x = a.x;
                for t in 0..a.tokens {
                    let d = dot(&w, x.add(g * GROUP).cast()) as f32;
                    let xscale = x.add(groups * GROUP).cast::<f32>().add(g).read_unaligned();
                    let mut p = if format.multiplier_bytes() == 1 { d * m * xscale } else { d * (m * xscale) };
                    if format.has_minimum() {
                        let sum = x.add(groups * (GROUP + 4)).cast::<i32>().add(g).read_unaligned();
                        p += sum as f32 * (least * xscale);
                    }
                    (*a.out.add(t))[row] += p;
                    x = x.wrapping_add(a.stride);
                }
            }
        }
        row_scales(format, &a);
    }
}

/// The factors of whole rows, where the format has them.
///
/// # Safety
/// As [`LinearArgs`] says; the panel is of `format`.
pub(super) unsafe fn row_scales(format: WeightFormat, a: &LinearArgs) {
    if format.has_row_scale() {
        for t in 0..a.tokens {
            for row in 0..PANEL_ROWS {
                // SAFETY: 16 outputs for each token, and as many factors.
                unsafe { (*a.out.add(t))[row] *= a.row_scales.add(row).read_unaligned() };
            }
        }
    }
}

/// `Σ w·x` of 32 signed bytes, four of `w` per word.
///
/// # Safety
/// `x` is valid for reading 32 bytes.
#[inline(always)]
unsafe fn dot(w: &[u32; 8], x: *const i8) -> i32 {
    let w: [i8; 32] = bytemuck::cast(w.map(u32::to_le));
    // SAFETY: the caller vouches for 32 bytes.
    let x = unsafe { x.cast::<[i8; 32]>().read_unaligned() };
    w.into_iter().zip(x).map(|(w, x)| i32::from(w) * i32::from(x)).sum()
}

/// The multiplier of a row; 1 where the format has none.
///
/// # Safety
/// `at` points to a group's multipliers.
#[inline(always)]
pub(super) unsafe fn multiplier(format: WeightFormat, at: *const u8, row: usize) -> f32 {
    // SAFETY: there are 16 multipliers of the format's size.
    unsafe {
        match format.multiplier_bytes() {
            1 => f32::from(at.cast::<i8>().add(row).read()),
            2 | 4 => f16_to_f32(at.cast::<u16>().add(row).read_unaligned()),
            _ => 1.0,
        }
    }
}

/// The minimum of a row; 0 where the format has none.
///
/// # Safety
/// As [`multiplier`].
#[inline(always)]
pub(super) unsafe fn minimum(format: WeightFormat, at: *const u8, row: usize) -> f32 {
    if format.has_minimum() {
        // SAFETY: the 16 minima follow the 16 multipliers.
        unsafe { f16_to_f32(at.cast::<u16>().add(PANEL_ROWS + row).read_unaligned()) }
    } else {
        0.0
    }
}

/// The group's 32 codes of a row as signed numbers (of `q4`: the table's), four per word.
///
/// # Safety
/// `group` points to a group's codes of a quantized format, `codebook` to 16 bytes.
#[cfg_attr(not(target_os = "none"), inline(always))]
pub(super) unsafe fn row_codes(format: WeightFormat, codebook: *const u8, group: *const u8, row: usize) -> [u32; 8] {
    const EACH: u32 = 0x0101_0101;
    let place = format.code_place(row, 0);
    let mut codes = [0; 8];
    // SAFETY: the slots lie within the group's lines; indices into the table are nibbles.
    unsafe {
        let word = |byte: usize| group.add(byte).cast::<u32>().read_unaligned();
        for h in 0..2 {
            if format.code_bits() == 8 {
                for part in 0..4 {
                    codes[2 * part + h] = word(place.byte + part * LINE + 4 * h);
                }
                continue;
            }
            let (first, second) = (word(place.byte + 4 * h), word(place.byte + LINE + 4 * h));
            let planes = if format.plane_bits() > 0 { word(place.plane_byte + 4 * h) >> place.plane_shift } else { 0 };
            // In the order of the planes.
            let nibbles = [(0, first), (2, first >> 4), (1, second), (3, second >> 4)];
            for (p, (part, nibble)) in nibbles.into_iter().enumerate() {
                let nibble = nibble & (15 * EACH);
                let high = match format.plane_bits() {
                    1 => planes >> p & EACH,
                    2 => planes >> (2 * p) & (3 * EACH),
                    _ => 0,
                };
                codes[2 * part + h] = if format == WeightFormat::Q4 {
                    let table = |code: u8| codebook.add(usize::from(code)).read().wrapping_sub(64);
                    u32::from_le_bytes(nibble.to_le_bytes().map(table))
                } else {
                    // Byte by byte: the top bits, which are free, keep borrows from crossing.
                    let top = 0x80 * EACH;
                    ((nibble | high << 4 | top) - format.code_offset() as u32 * EACH) ^ top
                };
            }
        }
    }
    codes
}
