//! Weights as bitsandbytes stores them: 4 bits in blocks with a scale each (`nf4`, `fp4`), whose scales may be quantized once
//! more, or 8 bits with a scale for each row (LLM.int8).
//!
//! They are presented as the floats that bitsandbytes makes of them, to the bit: 4 bits as `table[code] · scale` in f32,
//! rounded once to the type that the weight had before, which is what training multiplied with; 8 bits as
//! `code · scale · (1/127)` in f32.

mod read;
mod round_trip;

pub use round_trip::{Quantization, RoundTrip};

pub(super) use read::adopt;

use rayon::prelude::*;

use super::Dtype;
use super::tensors::Place;

/// What bitsandbytes multiplies 8-bit codes and their scale with: 1/127, as torch rounds it.
const PER_CODE: f32 = 7.874_016e-3;

/// A table of 16 values between −1 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FourBit {
    /// Quantiles of the normal distribution.
    Nf4,
    /// A sign, two bits of exponent, one of mantissa.
    Fp4,
}

impl FourBit {
    const ALL: [Self; 2] = [Self::Nf4, Self::Fp4];

    /// As bitsandbytes calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }

    /// The values by code.
    pub const fn table(self) -> [f32; 16] {
        match self {
            Self::Nf4 => [
                -1.0,
                -0.696_192_8,
                -0.525_073_05,
                -0.394_917_5,
                -0.284_441_38,
                -0.184_773_43,
                -0.091_050_036,
                0.0,
                0.079_580_3,
                0.160_930_2,
                0.246_112_3,
                0.337_915_24,
                0.440_709_83,
                0.562_617,
                0.722_956_84,
                1.0,
            ],
            Self::Fp4 => {
                const STEPS: [f32; 8] = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];
                let mut table = [0.0; 16];
                let mut i = 0;
                while i < 8 {
                    (table[i], table[i + 8]) = (STEPS[i] / 12.0, 0.0 - STEPS[i] / 12.0);
                    i += 1;
                }
                table
            }
        }
    }
}

/// What turns a tensor's codes into numbers.
#[derive(Debug)]
pub(super) enum Coded {
    /// Two codes a byte, the first in the upper half.
    Four { table: FourBit, block: usize, scales: Scales },
    /// A byte a code, and a scale for each row.
    Eight { scales: Vec<f32> },
}

/// The scales of the blocks.
#[derive(Debug)]
pub(super) enum Scales {
    /// An f32 each.
    Plain(Place),
    /// Double quantization: `map[code] · absmax + offset`, where blocks of codes share an absmax.
    Nested { codes: Place, map: Box<[f32; 256]>, absmax: Vec<f32>, block: usize, offset: f32 },
}

impl Coded {
    /// Where the bytes of the scales are, if they are read from the file.
    pub(super) fn scales(&self) -> Option<&Place> {
        match self {
            Self::Four { scales: Scales::Plain(at) | Scales::Nested { codes: at, .. }, .. } => Some(at),
            Self::Eight { .. } => None,
        }
    }

    /// In words.
    fn describe(&self) -> String {
        match self {
            Self::Four { table, block, scales } => {
                let double = if matches!(scales, Scales::Nested { .. }) { ", double quantization" } else { "" };
                format!("{} in blocks of {block}{double}", table.name())
            }
            Self::Eight { .. } => "int8 with a scale for each row".into(),
        }
    }
}

/// What turns a tensor's codes into numbers, with the bytes of the scales.
#[derive(Clone, Copy, Debug)]
pub struct CodedView<'a> {
    pub(super) coded: &'a Coded,
    pub(super) scales: &'a [u8],
}

impl CodedView<'_> {
    /// In words: which type, which blocks.
    pub fn describe(&self) -> String {
        self.coded.describe()
    }

    /// Everything beside the codes that the values depend on, for a fingerprint.
    pub(super) fn parts(&self) -> Vec<u8> {
        let mut out = self.describe().into_bytes();
        let mut add = |values: &[f32]| out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        match self.coded {
            Coded::Four { scales: Scales::Nested { map, absmax, offset, .. }, .. } => {
                add(&map[..]);
                add(absmax);
                add(&[*offset]);
            }
            Coded::Four { .. } => {}
            Coded::Eight { scales } => add(scales),
        }
        out.extend(self.scales);
        out
    }

    /// The elements from `first` on. `codes` are the tensor's bytes, `columns` the stored matrix's, `dtype` what the values
    /// are rounded to.
    pub(super) fn read(&self, codes: &[u8], columns: usize, dtype: Dtype, first: usize, out: &mut [f32]) {
        const CHUNK: usize = 1 << 16;
        out.par_chunks_mut(CHUNK).enumerate().for_each(|(i, out)| {
            let first = first + i * CHUNK;
            match self.coded {
                Coded::Four { table, block, .. } => self.read_four(codes, &table.table(), *block, first, out),
                Coded::Eight { scales } => {
                    for (i, out) in (first..).zip(&mut *out) {
                        *out = f32::from(codes[i] as i8) * scales[i / columns] * PER_CODE;
                    }
                }
            }
            dtype.round_here(out);
        });
    }

    fn read_four(&self, codes: &[u8], table: &[f32; 16], block: usize, first: usize, out: &mut [f32]) {
        let (mut at, mut out) = (first, out);
        while !out.is_empty() {
            let scale = self.scale(at / block);
            let (now, later) = out.split_at_mut((block - at % block).min(out.len()));
            for (i, out) in (at..).zip(&mut *now) {
                let code = if i % 2 == 0 { codes[i / 2] >> 4 } else { codes[i / 2] & 15 };
                *out = table[usize::from(code)] * scale;
            }
            at += now.len();
            out = later;
        }
    }

    /// The scale of a block of 4-bit codes.
    fn scale(&self, number: usize) -> f32 {
        match self.coded {
            Coded::Four { scales: Scales::Nested { map, absmax, block, offset, .. }, .. } => {
                map[usize::from(self.scales[number])] * absmax[number / block] + offset
            }
            Coded::Four { .. } => self.scales.as_chunks().0.get(number).map_or(0.0, |b| f32::from_le_bytes(*b)),
            Coded::Eight { .. } => 0.0,
        }
    }
}
