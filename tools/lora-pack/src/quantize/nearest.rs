//! `q8` and `q8r`: to the nearest code.

use half::f16;
use lora_runtime::kernels::{f16_to_f32, f32_to_f16};
use lora_runtime::weights::GROUP;

use super::lanes::{ROUND, across, larger, largest, limited, padded, smaller};

/// `q8r`: the largest weight of the row on ±127. Gives the scale of the row.
#[inline(always)]
pub fn row_q8r(w: &[f32], codes: &mut [i8]) -> f32 {
    let mut copy = [0.0; GROUP];
    let mut most = 0f32;
    for w in w.chunks(GROUP) {
        most = larger(most, largest(padded(w, &mut copy)));
    }
    let scale = most / 127.0;
    for (w, codes) in w.chunks(GROUP).zip(codes.chunks_mut(GROUP)) {
        codes8(padded(w, &mut copy), scale, codes);
    }
    scale
}

/// `q8`: a binary16 scale for each group; exact where the group lies on a binary16 grid already. Gives their bits.
#[inline(always)]
pub fn row_q8(w: &[f32], codes: &mut [i8], scales: &mut [u16]) {
    let mut copy = [0.0; GROUP];
    for ((w, codes), out) in w.chunks(GROUP).zip(codes.chunks_mut(GROUP)).zip(scales) {
        let group = padded(w, &mut copy);
        let largest = largest(group);
        let scale = exact_half_scale(group, largest).unwrap_or_else(|| nearest_half_scale(largest));
        *out = scale.to_bits();
        codes8(group, f16_to_f32(scale.to_bits()), codes);
    }
}

/// v / scale to the nearest code −127…127, as many as there are places; 0 where there is no scale.
#[inline(always)]
fn codes8(group: &[f32; GROUP], scale: f32, codes: &mut [i8]) {
    let scale = if scale == 0.0 { f32::INFINITY } else { scale };
    for (code, v) in codes.iter_mut().zip(group) {
        // The rounded integer stands in the low bits of the sum.
        *code = (limited(v / scale, -127.0, 127.0) + ROUND).to_bits() as i8;
    }
}

/// The codes that the largest weight of a group may have on a grid, 127 first; a 0 fills the last run up.
const CODES: [[f32; GROUP]; 4] = {
    let mut codes = [[0.0; GROUP]; 4];
    let mut i = 0;
    while i < 127 {
        codes[i / GROUP][i % GROUP] = (127 - i) as f32;
        i += 1;
    }
    codes
};

/// The scale of a group of `q8`: the one on which its weights lie, or the nearest; the largest at most.
#[inline(always)]
pub fn half_scale(w: &[f32; GROUP]) -> f16 {
    let most = largest(w);
    exact_half_scale(w, most).unwrap_or_else(|| nearest_half_scale(most)).min(f16::MAX)
}

/// The binary16 scale of which all weights of the group are integer multiples up to 127, if there is one.
#[inline(always)]
fn exact_half_scale(w: &[f32; GROUP], largest: f32) -> Option<f16> {
    if largest == 0.0 {
        return Some(f16::ZERO);
    }
    // A product of 11 and 7 bits has at most 18 of the 24 that a weight can have.
    let mut bits = 0;
    for v in w {
        bits |= v.to_bits();
    }
    if bits & 0x3f != 0 {
        return None;
    }
    // A quick look at the weight that differs most from the largest rules out most codes: it is a multiple of the scale
    // too, up to the rounding of two f32 operations.
    let ratio = smallest(w, largest) / largest;
    for codes in &CODES {
        let mut off = [0f32; GROUP];
        let mut any = false;
        for (off, code) in off.iter_mut().zip(codes) {
            let multiple = ratio * code;
            *off = (multiple - ((multiple + ROUND) - ROUND)).abs();
            any |= *off < 1e-4;
        }
        if !any {
            continue;
        }
        for (off, code) in off.iter().zip(codes) {
            if *off < 1e-4 && *code > 0.0 {
                let scale = narrow(largest / code);
                if holds(w, f16_to_f32(scale.to_bits())) {
                    return Some(scale);
                }
            }
        }
    }
    None
}

/// Whether all weights are integer multiples of `s` up to 127. Products of a binary16 and an int8 are exact in f32.
#[inline(always)]
fn holds(w: &[f32; GROUP], s: f32) -> bool {
    let mut all = s > 0.0;
    for v in w {
        let code = v / s;
        all &= (((code + ROUND) - ROUND) * s == *v) & (code.abs() < 127.5);
    }
    all
}

/// The smallest magnitude that is not zero; `largest` where there is none.
#[inline(always)]
fn smallest(w: &[f32; GROUP], largest: f32) -> f32 {
    let mut lanes = [largest; 8];
    for chunk in w.as_chunks::<8>().0 {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = smaller(*lane, if *v == 0.0 { largest } else { v.abs() });
        }
    }
    across(lanes, smaller)
}

/// The binary16 scale nearest to the one that puts the largest weight on ±127, or the next one up where rounding
/// down would clip it (scales below 2⁻¹⁴ have few digits).
#[inline(always)]
fn nearest_half_scale(largest: f32) -> f16 {
    let scale = narrow(largest / 127.0);
    if largest < 127.5 * f16_to_f32(scale.to_bits()) { scale } else { f16::from_bits(scale.to_bits() + 1) }
}

/// To the nearest binary16, by arithmetic that is compiled into the loop around it.
#[inline(always)]
fn narrow(v: f32) -> f16 {
    f16::from_bits(f32_to_f16(v))
}
