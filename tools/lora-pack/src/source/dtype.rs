//! Element types of stored tensors, and widening them to f32.

use half::bf16;
use lora_runtime::kernels::{Wide, f16_to_f32, f32_to_f16, widest};
use rayon::prelude::*;

use super::gguf::blocks;

/// An element type by its safetensors name, or a block type of GGUF by ggml's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the documentation: they are the format's own")]
pub enum Dtype {
    Bool,
    U8,
    I8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    F8E4M3,
    F8E5M2,
    F16,
    BF16,
    F32,
    F64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    IQ4NL,
}

impl Dtype {
    /// Type, name, elements of a block, bytes of a block.
    const ALL: [(Dtype, &'static str, usize, usize); 26] = [
        (Dtype::Bool, "BOOL", 1, 1),
        (Dtype::U8, "U8", 1, 1),
        (Dtype::I8, "I8", 1, 1),
        (Dtype::I16, "I16", 1, 2),
        (Dtype::U16, "U16", 1, 2),
        (Dtype::I32, "I32", 1, 4),
        (Dtype::U32, "U32", 1, 4),
        (Dtype::I64, "I64", 1, 8),
        (Dtype::U64, "U64", 1, 8),
        (Dtype::F8E4M3, "F8_E4M3", 1, 1),
        (Dtype::F8E5M2, "F8_E5M2", 1, 1),
        (Dtype::F16, "F16", 1, 2),
        (Dtype::BF16, "BF16", 1, 2),
        (Dtype::F32, "F32", 1, 4),
        (Dtype::F64, "F64", 1, 8),
        (Dtype::Q4_0, "Q4_0", 32, 18),
        (Dtype::Q4_1, "Q4_1", 32, 20),
        (Dtype::Q5_0, "Q5_0", 32, 22),
        (Dtype::Q5_1, "Q5_1", 32, 24),
        (Dtype::Q8_0, "Q8_0", 32, 34),
        (Dtype::Q2K, "Q2_K", 256, 84),
        (Dtype::Q3K, "Q3_K", 256, 110),
        (Dtype::Q4K, "Q4_K", 256, 144),
        (Dtype::Q5K, "Q5_K", 256, 176),
        (Dtype::Q6K, "Q6_K", 256, 210),
        (Dtype::IQ4NL, "IQ4_NL", 32, 18),
    ];

    /// The type of that safetensors name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(d, n, ..)| *n == name && !d.is_block()).map(|row| row.0)
    }

    fn row(self) -> &'static (Dtype, &'static str, usize, usize) {
        // The table lists every variant; a test walks it.
        Self::ALL.iter().find(|row| row.0 == self).unwrap_or(&Self::ALL[0])
    }

    /// The safetensors name, or ggml's.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Elements of a block: 1 but for GGUF's block types.
    pub fn block(self) -> usize {
        self.row().2
    }

    /// Bytes of a block.
    pub fn size(self) -> usize {
        self.row().3
    }

    /// Whether several elements share scales.
    pub fn is_block(self) -> bool {
        self.block() > 1
    }

    /// Whether the elements are numbers with fractions, which is what weights are made of.
    pub fn is_float(self) -> bool {
        let plain = matches!(self, Dtype::F8E4M3 | Dtype::F8E5M2 | Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64);
        plain || self.is_block()
    }

    /// Rounds values to what the type can hold, to nearest even. Types wider than f32, and others, leave them.
    pub fn round(self, values: &mut [f32]) {
        if matches!(self, Dtype::F16 | Dtype::BF16) {
            values.par_chunks_mut(1 << 17).for_each(|values| self.round_here(values));
        }
    }

    /// [`Dtype::round`] on this thread alone.
    pub(crate) fn round_here(self, values: &mut [f32]) {
        match self {
            Dtype::F16 => values.iter_mut().for_each(|x| *x = f16_to_f32(f32_to_f16(*x))),
            Dtype::BF16 => values.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
            _ => {}
        }
    }

    /// Widens (F64: rounds to nearest) little-endian `bytes` into `out`; blocks give the values that ggml computes.
    /// `false` when the type is not a float; the lengths must agree, and be whole blocks.
    pub(crate) fn widen(self, bytes: &[u8], out: &mut [f32]) -> bool {
        debug_assert_eq!(bytes.len() * self.block(), out.len() * self.size());
        match self {
            Dtype::F32 => convert(bytes, out, f32::from_le_bytes),
            Dtype::F16 => convert(bytes, out, |b| f16_to_f32(u16::from_le_bytes(b))),
            // The upper half of an f32.
            Dtype::BF16 => convert(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
            Dtype::F64 => convert(bytes, out, |b| f64::from_le_bytes(b) as f32),
            Dtype::F8E4M3 => convert(bytes, out, |[b]| f8e4m3(b)),
            // E5M2 is the upper half of an f16.
            Dtype::F8E5M2 => convert(bytes, out, |[b]| f16_to_f32(u16::from(b) << 8)),
            Dtype::Q4_0 => decode(bytes, out, blocks::q4_0),
            Dtype::Q4_1 => decode(bytes, out, blocks::q4_1),
            Dtype::Q5_0 => decode(bytes, out, blocks::q5_0),
            Dtype::Q5_1 => decode(bytes, out, blocks::q5_1),
            Dtype::Q8_0 => decode(bytes, out, blocks::q8_0),
            Dtype::Q2K => decode(bytes, out, blocks::q2_k),
            Dtype::Q3K => decode(bytes, out, blocks::q3_k),
            Dtype::Q4K => decode(bytes, out, blocks::q4_k),
            Dtype::Q5K => decode(bytes, out, blocks::q5_k),
            Dtype::Q6K => decode(bytes, out, blocks::q6_k),
            Dtype::IQ4NL => decode(bytes, out, blocks::iq4_nl),
            _ => return false,
        }
        true
    }
}

fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], one: impl Fn([u8; N]) -> f32 + Sync) {
    const CHUNK: usize = 1 << 17;
    out.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * N)).for_each(|(out, bytes)| {
        widest(Convert { bytes: bytes.as_chunks().0, out, one: &one });
    });
}

struct Convert<'a, const N: usize, F> {
    bytes: &'a [[u8; N]],
    out: &'a mut [f32],
    one: &'a F,
}

impl<const N: usize, F: Fn([u8; N]) -> f32> Wide for Convert<'_, N, F> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (o, b) in self.out.iter_mut().zip(self.bytes) {
            *o = (self.one)(*b);
        }
    }
}

/// Blocks of `N` bytes to `M` elements each.
fn decode<const N: usize, const M: usize>(bytes: &[u8], out: &mut [f32], one: impl Fn(&[u8; N]) -> [f32; M] + Sync) {
    const BLOCKS: usize = 1 << 9;
    out.par_chunks_mut(BLOCKS * M).zip(bytes.par_chunks(BLOCKS * N)).for_each(|(out, bytes)| {
        for (o, b) in out.as_chunks_mut::<M>().0.iter_mut().zip(bytes.as_chunks::<N>().0) {
            *o = one(b);
        }
    });
}

/// E4M3 in its "fn" form: bias 7, no infinities, only 0x7f and 0xff are NaN.
fn f8e4m3(b: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(b >> 3 & 0xf), f32::from(b & 7));
    let magnitude = match (exponent, b & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if b & 0x80 != 0 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_is_in_the_table() {
        for (dtype, name, block, size) in Dtype::ALL {
            assert_eq!((dtype.name(), dtype.block(), dtype.size()), (name, block, size));
            assert_eq!(Dtype::from_name(name), Some(dtype).filter(|d| !d.is_block()));
        }
        assert_eq!(Dtype::from_name("F5"), None);
    }

    #[test]
    fn floats_widen() {
        let one = |d: Dtype, bytes: &[u8]| {
            let mut out = [0f32];
            assert!(d.widen(bytes, &mut out));
            out[0]
        };
        assert_eq!(one(Dtype::F32, &1.5f32.to_le_bytes()), 1.5);
        assert_eq!(one(Dtype::F64, &(-2.25f64).to_le_bytes()), -2.25);
        assert_eq!(one(Dtype::F16, &[0x00, 0x3c]), 1.0);
        assert_eq!(one(Dtype::F16, &[0x01, 0x00]), 2f32.powi(-24));
        assert_eq!(one(Dtype::BF16, &[0x80, 0x3f]), 1.0);
        assert_eq!(one(Dtype::F8E4M3, &[0x38]), 1.0);
        assert_eq!(one(Dtype::F8E4M3, &[0x7e]), 448.0);
        assert_eq!(one(Dtype::F8E4M3, &[0x81]), -(2f32.powi(-9)));
        assert!(one(Dtype::F8E4M3, &[0x7f]).is_nan());
        assert_eq!(one(Dtype::F8E5M2, &[0x7b]), 57344.0);
        assert!(one(Dtype::F8E5M2, &[0x7c]).is_infinite());
        assert!(!Dtype::I64.widen(&[0; 8], &mut [0.0]));
    }
}
