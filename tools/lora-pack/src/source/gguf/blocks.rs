//! ggml's block types: bytes of one block to its elements.
//!
//! Layouts after ggml's `block_q4_0` … `block_iq4_nl` and the tables of the GGUF documentation. `d` is a binary16 scale,
//! `m` a binary16 minimum; nothing is fused, so the values are ggml's to the bit:
//!
//! | type | elements | bytes | value |
//! |---|---|---|---|
//! | Q4_0, Q5_0, Q8_0 | 32 | 18, 22, 34 | `d·(q − 8)`, `d·(q − 16)`, `d·q` |
//! | Q4_1, Q5_1 | 32 | 20, 24 | `d·q + m` |
//! | IQ4_NL | 32 | 18 | `d·table[q]` |
//! | Q2_K, Q4_K, Q5_K | 256 | 84, 144, 176 | `(d·scale)·q − (dmin·min)`, 4- or 6-bit scales and minima |
//! | Q3_K, Q6_K | 256 | 110, 210 | `(d·scale)·q`, 6- or 8-bit signed scales |
//!
//! In the types of 32, byte `i` of the nibbles holds element `i` (low) and `16 + i` (high), bit `i` of the fifth bits
//! belongs to element `i`.

use core::array::from_fn;

use half::f16;

/// The values of IQ4_NL's codes.
const IQ4_NL: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The binary16 at `at`.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The 32 nibbles in 16 bytes.
pub(crate) fn nibbles(bytes: &[u8]) -> [u8; 32] {
    from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 })
}

/// 32 nibbles with a fifth bit each.
pub(crate) fn five_bits(high: &[u8], nibble_bytes: &[u8]) -> [u8; 32] {
    let low = nibbles(nibble_bytes);
    from_fn(|i| low[i] | (high[i / 8] >> (i % 8) & 1) << 4)
}

pub(crate) fn q4_0(b: &[u8; 18]) -> [f32; 32] {
    let d = half(b, 0);
    nibbles(&b[2..]).map(|q| d * (f32::from(q) - 8.0))
}

pub(crate) fn q4_1(b: &[u8; 20]) -> [f32; 32] {
    let (d, m) = (half(b, 0), half(b, 2));
    nibbles(&b[4..]).map(|q| d * f32::from(q) + m)
}

pub(crate) fn q5_0(b: &[u8; 22]) -> [f32; 32] {
    let d = half(b, 0);
    five_bits(&b[2..6], &b[6..]).map(|q| d * (f32::from(q) - 16.0))
}

pub(crate) fn q5_1(b: &[u8; 24]) -> [f32; 32] {
    let (d, m) = (half(b, 0), half(b, 2));
    five_bits(&b[4..8], &b[8..]).map(|q| d * f32::from(q) + m)
}

pub(crate) fn q8_0(b: &[u8; 34]) -> [f32; 32] {
    let d = half(b, 0);
    from_fn(|i| d * f32::from(b[2 + i] as i8))
}

pub(crate) fn iq4_nl(b: &[u8; 18]) -> [f32; 32] {
    let d = half(b, 0);
    nibbles(&b[2..]).map(|q| d * f32::from(IQ4_NL[usize::from(q)]))
}

/// Element `i` of 2-bit codes: runs of 128 elements in 32 bytes, the four runs of 32 at shifts 0, 2, 4, 6.
fn two_bits(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3
}

/// 16 bytes of 4-bit scales (low) and minima (high), codes, d, dmin.
pub(crate) fn q2_k(b: &[u8; 84]) -> [f32; 256] {
    let (d, dmin) = (half(b, 80), half(b, 82));
    from_fn(|i| {
        let s = b[i / 16];
        d * f32::from(s & 15) * f32::from(two_bits(&b[16..80], i)) - dmin * f32::from(s >> 4)
    })
}

/// Third bits (of element `i`: bit `i / 32` of byte `i % 32`; clear means 4 less), 2-bit codes, 12 bytes of 6-bit
/// scales + 32, d.
pub(crate) fn q3_k(b: &[u8; 110]) -> [f32; 256] {
    let d = half(b, 108);
    let packed = &b[96..108];
    // Low nibbles of 16 scales in 8 bytes, then their upper two bits in 4 bytes.
    let scale = |s: usize| {
        let low = packed[s % 8] >> (s / 8 * 4) & 15;
        let high = packed[8 + s % 4] >> (s / 4 * 2) & 3;
        f32::from((low | high << 4) as i8 - 32)
    };
    from_fn(|i| {
        let high = b[i % 32] >> (i / 32) & 1;
        let q = two_bits(&b[32..96], i) as i8 - if high == 0 { 4 } else { 0 };
        d * scale(i / 16) * f32::from(q)
    })
}

/// The 6-bit scale and minimum of run `j` (of 8) of 32 elements.
fn scale_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (s, m) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    };
    (f32::from(s), f32::from(m))
}

/// d, dmin, 12 bytes of scales and minima, nibbles: runs of 64 elements in 32 bytes, the first 32 low.
pub(crate) fn q4_k(b: &[u8; 144]) -> [f32; 256] {
    let (d, dmin) = (half(b, 0), half(b, 2));
    from_fn(|i| {
        let (s, m) = scale_min(&b[4..16], i / 32);
        let q = b[16 + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
        d * s * f32::from(q) - dmin * m
    })
}

/// As Q4_K with fifth bits before the nibbles: of element `i`, bit `i / 32` of byte `i % 32`.
pub(crate) fn q5_k(b: &[u8; 176]) -> [f32; 256] {
    let (d, dmin) = (half(b, 0), half(b, 2));
    from_fn(|i| {
        let (s, m) = scale_min(&b[4..16], i / 32);
        let low = b[48 + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
        let high = b[16 + i % 32] >> (i / 32) & 1;
        d * s * f32::from(low | high << 4) - dmin * m
    })
}

/// Nibbles (runs of 128 elements in 64 bytes, the first 64 low), upper two bits, 16 signed scales, d.
pub(crate) fn q6_k(b: &[u8; 210]) -> [f32; 256] {
    let d = half(b, 208);
    from_fn(|i| {
        let low = b[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
        let high = two_bits(&b[128..192], i);
        let q = (low | high << 4) as i8 - 32;
        d * f32::from(b[192 + i / 16] as i8) * f32::from(q)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block whose scale is 0.5 at `at`, and `set` bytes.
    fn block<const N: usize>(at: usize, set: &[(usize, u8)]) -> [u8; N] {
        let mut b = [0; N];
        b[at..at + 2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        for (i, v) in set {
            b[*i] = *v;
        }
        b
    }

    fn put(b: &mut [u8], at: usize, v: f32) {
        b[at..at + 2].copy_from_slice(&f16::from_f32(v).to_le_bytes());
    }

    #[test]
    fn blocks_of_32_worked_by_hand() {
        // Byte 3 = 0xa5: element 3 is 5, element 19 is 10.
        let v = q4_0(&block(0, &[(2 + 3, 0xa5)]));
        assert_eq!((v[3], v[19], v[0]), (0.5 * -3.0, 0.5 * 2.0, 0.5 * -8.0));
        let mut b = block::<20>(0, &[(4 + 3, 0xa5)]);
        put(&mut b, 2, -1.25);
        let v = q4_1(&b);
        assert_eq!((v[3], v[19], v[0]), (2.5 - 1.25, 5.0 - 1.25, -1.25));
        // Bits 3 and 19 of the fifth bits are bytes 0 and 2, bit 3 of each.
        let v = q5_0(&block(0, &[(2, 8), (4, 8), (6 + 3, 0xa5)]));
        assert_eq!((v[3], v[19], v[0]), (0.5 * 5.0, 0.5 * 10.0, 0.5 * -16.0));
        let mut b = block::<24>(0, &[(4, 8), (8 + 3, 0xa5)]);
        put(&mut b, 2, 3.0);
        let v = q5_1(&b);
        assert_eq!((v[3], v[19], v[0]), (0.5 * 21.0 + 3.0, 0.5 * 10.0 + 3.0, 3.0));
        let v = q8_0(&block(0, &[(2, 0x80), (33, 127)]));
        assert_eq!((v[0], v[31]), (-64.0, 63.5));
        let v = iq4_nl(&block(0, &[(2, 0xf0)]));
        assert_eq!((v[0], v[16], v[5]), (-63.5, 56.5, -63.5));
    }

    #[test]
    fn blocks_of_256_worked_by_hand() {
        // Element 200 = 128 + 72: run 2 of the second 128, byte 32 + 8, shift 4; scale 200 / 16 = 12.
        let mut b = block::<84>(80, &[(12, 0x37), (16 + 40, 2 << 4)]);
        put(&mut b, 82, 0.25);
        let v = q2_k(&b);
        assert_eq!((v[200], v[201], v[0]), (0.5 * 7.0 * 2.0 - 0.25 * 3.0, -0.75, 0.0));
        // Scale 12: low nibble in the upper half of byte 4, upper bits at shift 6 of byte 8.
        let v = q3_k(&block(108, &[(8, 1 << 6), (32 + 40, 3 << 4), (96 + 4, 0x50), (96 + 8, 2 << 6)]));
        assert_eq!((v[200], v[201]), (0.5 * 5.0 * 3.0, 0.5 * 5.0 * -4.0));
        assert_eq!(v[0], 0.5 * -32.0 * -4.0);
        // Run 200 / 32 = 6: scale low in byte 10, upper bits of byte 2; minimum in byte 10's high nibble and byte 6.
        let mut b = block::<144>(0, &[(4 + 10, 0x9d), (4 + 2, 0x80), (4 + 6, 0x40), (16 + 96 + 8, 0x0e)]);
        put(&mut b, 2, 0.125);
        let v = q4_k(&b);
        assert_eq!(v[200], 0.5 * 45.0 * 14.0 - 0.125 * 25.0);
        // The same runs' lower scales are bytes 2 and 6 masked to six bits.
        assert_eq!(v[64], 0.0);
        let mut b =
            block::<176>(0, &[(4 + 10, 0x9d), (4 + 2, 0x80), (4 + 6, 0x40), (48 + 96 + 8, 0x0e), (16 + 8, 1 << 6)]);
        put(&mut b, 2, 0.125);
        assert_eq!(q5_k(&b)[200], 0.5 * 45.0 * 30.0 - 0.125 * 25.0);
        // Element 200: the second 128, low nibbles' byte 64 + (72 - 64) high; upper bits byte 128 + 40 at shift 4.
        let v = q6_k(&block(208, &[(64 + 8, 0x70), (128 + 40, 3 << 4), (192 + 12, 0xfe)]));
        assert_eq!((v[200], v[201]), (0.5 * -2.0 * (55.0 - 32.0), 0.5 * -2.0 * -32.0));
    }
}
