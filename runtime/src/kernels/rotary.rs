//! Rotary position embedding: the angles of a position and the rotation of head vectors.

use super::isa::Isa;
use super::reduce::{has_rest, load_few, store_few};
use super::{Kernels, math};

#[cfg(test)]
mod tests;

/// Which two elements of a head form pair `i`, of `h` pairs. The numbers are part of the file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum RotaryStyle {
    /// `i` and `i + h` (GPT-NeoX, Llama).
    Half = 0,
    /// `2i` and `2i + 1` (GPT-J).
    Interleaved = 1,
}

impl RotaryStyle {
    /// The style of that number in a file.
    #[must_use]
    pub fn from_u16(number: u16) -> Option<Self> {
        match number {
            0 => Some(Self::Half),
            1 => Some(Self::Interleaved),
            _ => None,
        }
    }
}

/// Fills `cos` and `sin` for one position: of the angle `pos · inv_freq[i]`, a binary32 product of binary32 numbers
/// as in the frameworks, by [`math::sin_cos`], each then multiplied by `scale` (1 where the model has none).
///
/// # Panics
/// Where the lengths differ.
pub fn rotary_angles(pos: u32, inv_freq: &[f32], scale: f32, cos: &mut [f32], sin: &mut [f32]) {
    assert!(inv_freq.len() == cos.len() && inv_freq.len() == sin.len());
    for ((inv_freq, cos), sin) in inv_freq.iter().zip(cos).zip(sin) {
        let (s, c) = math::sin_cos(pos as f32 * inv_freq);
        *cos = c * scale;
        *sin = s * scale;
    }
}

/// Rotates the first `2h` elements of each of `heads` vectors, `stride` apart, in place. Of a pair `(a, b)` becomes
/// `(a·cos − b·sin, b·cos + a·sin)`, every operation rounded.
///
/// # Safety
/// `x` valid for `(heads − 1)·stride + 2h` floats; `cos` and `sin` valid for `h` floats and apart from `x`.
#[inline(always)]
pub unsafe fn rotary<I: Isa>(
    isa: I,
    style: RotaryStyle,
    mut x: *mut f32,
    heads: usize,
    stride: usize,
    (cos, sin, h): (*const f32, *const f32, usize),
) {
    let mut head = 0;
    while head < heads {
        // SAFETY: the caller vouches for 2h floats of every head and h of the tables; in the loops i + L <= h.
        unsafe {
            let mut i = 0;
            match style {
                RotaryStyle::Half => {
                    while i + I::L <= h {
                        let (a, b) = (isa.load(x.add(i)), isa.load(x.add(i + h)));
                        let (c, s) = (isa.load(cos.add(i)), isa.load(sin.add(i)));
                        isa.store(x.add(i), isa.sub(isa.mul(a, c), isa.mul(b, s)));
                        isa.store(x.add(i + h), isa.add(isa.mul(b, c), isa.mul(a, s)));
                        i += I::L;
                    }
                    if has_rest::<I>() && i < h {
                        let n = h - i;
                        let (a, b) = (load_few(isa, x.add(i), n, 0.0), load_few(isa, x.add(i + h), n, 0.0));
                        let (c, s) = (load_few(isa, cos.add(i), n, 0.0), load_few(isa, sin.add(i), n, 0.0));
                        store_few(isa, x.add(i), isa.sub(isa.mul(a, c), isa.mul(b, s)), n);
                        store_few(isa, x.add(i + h), isa.add(isa.mul(b, c), isa.mul(a, s)), n);
                    }
                }
                // Plain floats: the registers have no shuffle, and the compiler finds one where there is any.
                RotaryStyle::Interleaved => {
                    while i < h {
                        let (a, b) = (*x.add(2 * i), *x.add(2 * i + 1));
                        let (c, s) = (*cos.add(i), *sin.add(i));
                        *x.add(2 * i) = a * c - b * s;
                        *x.add(2 * i + 1) = b * c + a * s;
                        i += 1;
                    }
                }
            }
            head += 1;
            if head < heads {
                x = x.add(stride);
            }
        }
    }
}

impl Kernels {
    /// Rotates every head of `x` (vectors of `head_dim`, one after the other, all of one position) in place: its first
    /// `2·cos.len()` elements.
    ///
    /// # Panics
    /// Where `x` is no whole number of heads, `cos` and `sin` differ in length or a head is shorter than they ask.
    pub fn rotary(&self, style: RotaryStyle, x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
        assert!(head_dim > 0 && x.len().is_multiple_of(head_dim));
        assert!(cos.len() == sin.len() && 2 * cos.len() <= head_dim);
        let table = (cos.as_ptr(), sin.as_ptr(), cos.len());
        // SAFETY: heads · head_dim floats, of each of which the first 2h <= head_dim are used; the table fits the CPU.
        unsafe { (self.rotary)(style, x.as_mut_ptr(), x.len() / head_dim, head_dim, table) }
    }
}
