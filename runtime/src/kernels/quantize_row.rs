//! Activations in 8 bits: the layout of a quantized row and the kernel that writes it.
//!
//! ```text
//! row of K inputs, G = ⌈K / 32⌉:  codes i8[32·G] · scales f32[G] · sums i32[G]      padded to 64 bytes
//! scale[g] = max|x| / 127     code = x · (127 / max|x|), to the nearest even integer     sum[g] = Σ codes
//! ```
//! A group without a usable largest value (all zero, or so small that 127 / max|x| overflows) has scale 0 and codes 0.
//! Codes beyond K are 0. The sum lets kernels that work on unsigned codes take the offset out again.
//! NaN inputs give the code −127 and do not take part in the maximum; an infinite one makes the scale infinite.

use crate::kernels::isa::Isa;
use crate::kernels::reduce::copy_few;
use crate::kernels::table::Kernels;
use crate::weights::GROUP;

/// The size of quantized rows is a multiple of this.
pub const QUANT_ROW_ALIGN: usize = 64;

/// Bytes of a quantized row of `k` inputs, which is also the distance between rows.
#[must_use]
pub const fn quant_row_bytes(k: usize) -> usize {
    quant_row_used(k).next_multiple_of(QUANT_ROW_ALIGN)
}

/// Bytes of a quantized row without the padding at its end.
pub(super) const fn quant_row_used(k: usize) -> usize {
    k.div_ceil(GROUP) * (GROUP + 4 + 4)
}

/// The parts of a quantized row.
#[derive(Clone, Copy, Debug)]
pub struct QuantRow<'a> {
    bytes: &'a [u8],
    groups: usize,
}

impl<'a> QuantRow<'a> {
    /// Views `bytes`, which hold a row of `k` inputs.
    ///
    /// # Panics
    /// When `bytes` is shorter than [`quant_row_bytes`]`(k)`.
    #[must_use]
    pub fn new(bytes: &'a [u8], k: usize) -> Self {
        assert!(bytes.len() >= quant_row_bytes(k));
        Self { bytes, groups: k.div_ceil(GROUP) }
    }
    /// Groups in the row.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups
    }
    /// The codes of group `g`.
    #[must_use]
    pub fn codes(&self, g: usize) -> [i8; GROUP] {
        core::array::from_fn(|i| self.bytes[g * GROUP + i] as i8)
    }
    /// The scale of group `g`.
    #[must_use]
    pub fn scale(&self, g: usize) -> f32 {
        f32::from_le_bytes(self.word(self.groups * GROUP, g))
    }
    /// The sum of the codes of group `g`.
    #[must_use]
    pub fn sum(&self, g: usize) -> i32 {
        i32::from_le_bytes(self.word(self.groups * (GROUP + 4), g))
    }
    fn word(&self, part: usize, g: usize) -> [u8; 4] {
        assert!(g < self.groups);
        core::array::from_fn(|i| self.bytes[part + 4 * g + i])
    }
}

/// Operands of the `quantize_row` entry.
///
/// `x` is valid for reading `k` f32, `out` for writing [`quant_row_bytes`]`(k)` bytes; neither needs any alignment.
#[derive(Clone, Copy)]
pub(super) struct QuantizeArgs {
    x: *const f32,
    k: usize,
    out: *mut u8,
}

impl Kernels {
    /// Quantizes one row of activations into `out`, whose length is [`quant_row_bytes`]`(x.len())`.
    ///
    /// # Panics
    /// When the length differs.
    pub fn quantize_row(&self, x: &[f32], out: &mut [u8]) {
        assert!(out.len() == quant_row_bytes(x.len()));
        let args = QuantizeArgs { x: x.as_ptr(), k: x.len(), out: out.as_mut_ptr() };
        // SAFETY: the lengths are as the entry wants them.
        unsafe { (self.quantize_row)(args) }
    }
}

/// # Safety
/// As [`QuantizeArgs`] says.
#[inline(always)]
pub(super) unsafe fn body<I: Isa>(isa: I, a: QuantizeArgs) {
    let groups = a.k.div_ceil(GROUP);
    let whole = a.k / GROUP;
    // SAFETY: all offsets are those of the layout, and whole groups lie within x.
    unsafe {
        let scales = a.out.add(groups * GROUP);
        let sums = scales.add(groups * 4);
        let mut tail = [0f32; GROUP];
        let mut g = 0;
        while g < groups {
            let mut from = a.x.wrapping_add(g * GROUP);
            if g == whole {
                let (to, n) = (tail.as_mut_ptr(), a.k % GROUP);
                if n >= 16 {
                    to.cast::<[f32; 16]>().write(from.cast::<[f32; 16]>().read_unaligned());
                }
                copy_few(from.add(n & 16), to.add(n & 16), n % 16);
                from = tail.as_ptr();
            }
            let (scale, sum) = group(isa, from, a.out.add(g * GROUP).cast());
            scales.cast::<f32>().add(g).write_unaligned(scale);
            sums.cast::<i32>().add(g).write_unaligned(sum);
            g += 1;
        }
        let end = quant_row_used(a.k);
        a.out.add(end).write_bytes(0, quant_row_bytes(a.k) - end);
    }
}

/// Quantizes 32 inputs; returns scale and sum.
///
/// # Safety
/// `x` is valid for reading, `codes` for writing 32 elements.
#[inline(always)]
unsafe fn group<I: Isa>(isa: I, x: *const f32, codes: *mut i8) -> (f32, i32) {
    let magnitude = isa.splat_i(0x7fff_ffff);
    // SAFETY: i + L <= 32 everywhere.
    unsafe {
        // `max(new, old)` keeps the old value when the new one is NaN, so the order of folding does not matter.
        let mut largest = isa.splat(0.0);
        let mut i = 0;
        while i < GROUP {
            largest = isa.max(isa.from_bits(isa.and_i(isa.bits(isa.load(x.add(i))), magnitude)), largest);
            i += I::L;
        }
        let amax = isa.max_of_lanes(largest);
        let inverse = 127.0 / amax;
        if !inverse.is_finite() {
            codes.write_bytes(0, GROUP);
            return (0.0, 0);
        }
        let inverse = isa.splat(inverse);
        // An infinite input makes 0 · ∞ = NaN here, and NaN must become some code in range.
        let least = isa.splat(-127.0);
        let mut sum = isa.splat_i(0);
        let mut i = 0;
        while i < GROUP {
            let code = isa.round_i(isa.max(isa.mul(isa.load(x.add(i)), inverse), least));
            isa.store_i8(codes.add(i), code);
            sum = isa.add_i(sum, code);
            i += I::L;
        }
        (amax / 127.0, isa.sum_of_lanes_i(sum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    /// The definition, in plain words.
    fn reference(x: &[f32]) -> Vec<u8> {
        let groups = x.len().div_ceil(GROUP);
        let (mut codes, mut scales, mut sums) = (Vec::new(), Vec::new(), Vec::new());
        for g in 0..groups {
            let members: Vec<f32> = (0..GROUP).map(|i| x.get(g * GROUP + i).copied().unwrap_or(0.0)).collect();
            let amax = members.iter().fold(0f32, |m, v| m.max(v.abs()));
            let usable = (127.0 / amax).is_finite();
            let quantize = |v: &f32| {
                let scaled = v * (127.0 / amax);
                if scaled.is_nan() { -127 } else { scaled.max(-127.0).round_ties_even() as i32 }
            };
            let group: Vec<i32> = members.iter().map(|v| if usable { quantize(v) } else { 0 }).collect();
            codes.extend(group.iter().map(|&c| c as i8 as u8));
            scales.extend((if usable { amax / 127.0 } else { 0.0 }).to_le_bytes());
            sums.extend(group.iter().sum::<i32>().to_le_bytes());
        }
        let mut row = [codes, scales, sums].concat();
        row.resize(quant_row_bytes(x.len()), 0);
        row
    }

    #[test]
    fn every_level_equals_the_definition() {
        let mut state = 1u32;
        let mut random = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        let mut cases = 0;
        for kernels in Kernels::supported() {
            for k in [0usize, 1, 31, 32, 33, 64, 95, 576] {
                for kind in 0..9 {
                    let mut x: Vec<f32> = (0..k).map(|_| random() * 3.0).collect();
                    match kind {
                        1 => x.fill(0.0),
                        2 => x.iter_mut().for_each(|v| *v *= 1e-38),
                        3 => x.iter_mut().for_each(|v| *v *= 1e38),
                        4 => x.iter_mut().step_by(7).for_each(|v| *v = f32::NAN),
                        5 => x.iter_mut().skip(5).step_by(40).for_each(|v| *v = f32::NEG_INFINITY),
                        6 => x.iter_mut().for_each(|v| *v = -1.5),
                        // Exactly half way between codes.
                        7 => x.iter_mut().enumerate().for_each(|(i, v)| *v = (i % 32) as f32 * 4.0 + 1.5 - 63.5),
                        8 => x.iter_mut().for_each(|v| *v = f32::from_bits(1)),
                        _ => {}
                    }
                    // Odd alignment in and out, and guards around the output.
                    let mut bytes = vec![0u8; 4 * k + 1];
                    bytes[1..].copy_from_slice(&x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
                    let n = quant_row_bytes(k);
                    let mut out = vec![0xa5u8; n + 65 + 64];
                    kernels.quantize_row(&x, &mut out[65..65 + n]);
                    assert_eq!(&out[65..65 + n], reference(&x), "{kernels:?} k={k} kind={kind}");
                    assert!(out[..65].iter().chain(&out[65 + n..]).all(|&b| b == 0xa5), "wrote outside");
                    cases += 1;
                }
            }
        }
        std::eprintln!("quantize_row: {cases} cases");
        assert!(cases >= 72);
    }

    #[test]
    fn view_finds_the_parts() {
        let x: Vec<f32> = (0..70).map(|i| i as f32 - 30.0).collect();
        let mut out = vec![0; quant_row_bytes(70)];
        Kernels::best().quantize_row(&x, &mut out);
        let row = QuantRow::new(&out, 70);
        assert_eq!(row.groups(), 3);
        assert_eq!(row.scale(2), 39.0 / 127.0);
        assert_eq!(row.codes(0)[0], -127);
        assert_eq!(row.codes(2)[6..], [0; 26]);
        assert_eq!(row.sum(1), row.codes(1).iter().map(|&c| i32::from(c)).sum::<i32>());
    }
}
