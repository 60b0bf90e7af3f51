//! Weight formats and their layout in the file: the single definition of both.
//!
//! Every 2-D weight `W` is `N` outputs (rows) × `K` inputs. Rows are stored in **panels** of
//! [`PANEL_ROWS`] = 16; `N` is padded to the panel with zero rows, `K` to the **group** of
//! [`GROUP`] = 32 with zero codes. `G = K_padded / 32`. Every panel starts 64-byte aligned and has the
//! same size, [`WeightFormat::panel_bytes`].
//!
//! Quantized formats follow `w[r,k] ≈ S[r] · s[r,g] · c[q[r,k]]`:
//!
//! ```text
//! panel = blocks:     for each 4 groups (the last block may have fewer):
//!             multipliers: for g: 16 × i8 (q4, q4l, q5, q6), 16 × f16 (q8, i4, i5)
//!                                 or 2 × 16 × f16 (i4m, i5m)                          padded to 64
//!             groups:      for g: codes:  for half in 0..2 (8 rows each): lines of 64 bytes
//!                                 planes: (q5, i5, i5m) one line, or (q6) for half: one line
//!         row scales: 16 × f32 (q8r, q4, q4l, q5, q6)                                  64 bytes
//! ```
//! One token's walk through a panel is one stream of addresses, which is what prefetchers follow: with the planes and
//! multipliers in parts of their own, weights from memory were up to four times slower.
//!
//! The import formats hold GGUF's blocks without loss: `i4`, `i5` are `w = s·q`, `i4m`, `i5m` are `w = s·q + m`, with binary16
//! `s` and `m` per row and group, `s` of the 16 rows first, and no row scale.
//!
//! A **line** is 8 slots × 8 bytes; slot `i` holds row [`SLOT_ROW`]`[i]` of the half, so that a pairwise
//! add of two registers leaves the rows in order. For `q8`/`q8r` a group's half is four lines, line `j` holding
//! `k = 8j..8j+8`. For 4-bit codes it is two lines: line `j`'s low nibbles are `k = 8j..8j+8`, its high
//! nibbles `k = 16+8j..16+8j+8`.
//!
//! **Planes** hold the bits above the nibble, in lines of the same slots; byte `b` of a slot belongs to
//! `k = b, 8+b, 16+b, 24+b`, the four *parts* 0…3. `q6`: one line per half, bits `2p..2p+2` of a byte are part
//! [`PLANE_PART`]`[p]`. `q5`, `i5`, `i5m`: one line for both halves, bit `4·half + p` of a byte is part `PLANE_PART[p]`.
//!
//! Linear codes are stored with an offset that makes them unsigned (8 for `q4l` and `i4`, 16 for `q5` and `i5`, 32 for `q6`);
//! those of `i4m` and `i5m` are unsigned; `q4` stores the index into the table; `q8` and `q8r` are two's complement.
//! **Thin** panels (adapters' factors) are float panels without the padding of K.
//! Float formats store, for each `k` in `0..K_padded`, the 16 rows' values side by side (f32 or f16).

/// Rows stored together.
pub const PANEL_ROWS: usize = 16;
/// Inputs that share one scale.
pub const GROUP: usize = 32;
/// Groups of a block, which begins with their multipliers.
pub const BLOCK: usize = 4;
/// Bytes of a line, and the alignment of every panel.
pub const LINE: usize = 64;
/// Row (within its half panel of 8) held by each slot of a line.
pub const SLOT_ROW: [usize; 8] = [0, 1, 4, 5, 2, 3, 6, 7];

/// Part of a group (`k / 8`) whose high bits are at place `p` of a plane byte. In the order of the nibbles: the first
/// line's low and high ones, then the second line's.
pub const PLANE_PART: [usize; 4] = [0, 2, 1, 3];

/// How a 2-D weight is stored. The numbers are part of the file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum WeightFormat {
    /// 32-bit floats.
    F32 = 0,
    /// 16-bit IEEE floats.
    F16 = 1,
    /// int8 codes, f16 scale per row and group.
    Q8 = 2,
    /// int8 codes, f32 scale per row.
    Q8R = 3,
    /// 4-bit codes into the file's 16-entry table, i8 multiplier per row and group, f32 scale per row.
    Q4 = 4,
    /// 4-bit linear codes −8…7, scales as `Q4`.
    Q4L = 5,
    /// 5-bit linear codes −16…15 (nibble + 1 bit plane), scales as `Q4`.
    Q5 = 6,
    /// 6-bit linear codes −32…31 (nibble + 2 bit planes), scales as `Q4`.
    Q6 = 7,
    /// GGUF's Q4_0: 4-bit linear codes −8…7, f16 scale per row and group.
    I4 = 8,
    /// GGUF's Q4_1: 4-bit codes 0…15, f16 scale and minimum per row and group.
    I4M = 9,
    /// GGUF's Q5_0: 5-bit linear codes −16…15, f16 scale per row and group.
    I5 = 10,
    /// GGUF's Q5_1: 5-bit codes 0…31, f16 scale and minimum per row and group.
    I5M = 11,
}

impl WeightFormat {
    /// Every format, in the order of their numbers.
    pub const ALL: [Self; 12] = [
        Self::F32,
        Self::F16,
        Self::Q8,
        Self::Q8R,
        Self::Q4,
        Self::Q4L,
        Self::Q5,
        Self::Q6,
        Self::I4,
        Self::I4M,
        Self::I5,
        Self::I5M,
    ];

    /// The format of that number in the file.
    #[must_use]
    pub const fn from_u16(number: u16) -> Option<Self> {
        if (number as usize) < Self::ALL.len() { Some(Self::ALL[number as usize]) } else { None }
    }

    /// The name used on command lines and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
            Self::Q8R => "q8r",
            Self::Q4 => "q4",
            Self::Q4L => "q4l",
            Self::Q5 => "q5",
            Self::Q6 => "q6",
            Self::I4 => "i4",
            Self::I4M => "i4m",
            Self::I5 => "i5",
            Self::I5M => "i5m",
        }
    }

    /// The format of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Whether the format stores floats, and so takes float activations; all others take quantized rows.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16)
    }

    /// Whether the format is only made out of a GGUF file's blocks, never by quantizing.
    #[must_use]
    pub const fn is_import(self) -> bool {
        matches!(self, Self::I4 | Self::I4M | Self::I5 | Self::I5M)
    }

    /// Bits of a code, or of a float.
    #[must_use]
    pub const fn code_bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::F16 => 16,
            Self::Q8 | Self::Q8R => 8,
            Self::Q4 | Self::Q4L | Self::I4 | Self::I4M => 4,
            Self::Q5 | Self::I5 | Self::I5M => 5,
            Self::Q6 => 6,
        }
    }

    /// What is added to a linear code to store it, and taken out of the dot product again.
    #[must_use]
    pub const fn code_offset(self) -> i32 {
        match self {
            Self::Q4L | Self::I4 => 8,
            Self::Q5 | Self::I5 => 16,
            Self::Q6 => 32,
            Self::F32 | Self::F16 | Self::Q8 | Self::Q8R | Self::Q4 | Self::I4M | Self::I5M => 0,
        }
    }

    /// Bits of a code that are kept in planes.
    pub(crate) const fn plane_bits(self) -> usize {
        match self {
            Self::Q5 | Self::I5 | Self::I5M => 1,
            Self::Q6 => 2,
            Self::F32 | Self::F16 | Self::Q8 | Self::Q8R | Self::Q4 | Self::Q4L | Self::I4 | Self::I4M => 0,
        }
    }

    /// Bytes of the multiplier (and minimum) of one row and group.
    pub(crate) const fn multiplier_bytes(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Q8R => 0,
            Self::Q8 | Self::I4 | Self::I5 => 2,
            Self::I4M | Self::I5M => 4,
            Self::Q4 | Self::Q4L | Self::Q5 | Self::Q6 => 1,
        }
    }

    /// Whether groups have a minimum, which stands after the multipliers of the 16 rows.
    #[must_use]
    pub const fn has_minimum(self) -> bool {
        matches!(self, Self::I4M | Self::I5M)
    }

    /// Whether a panel ends with a scale per row.
    #[must_use]
    pub const fn has_row_scale(self) -> bool {
        matches!(self, Self::Q8R | Self::Q4 | Self::Q4L | Self::Q5 | Self::Q6)
    }

    /// Bytes of a group's codes.
    pub(crate) const fn code_bytes(self) -> usize {
        PANEL_ROWS * GROUP * (self.code_bits() - self.plane_bits()) / 8
    }

    /// Bytes of a group's codes and planes, or of a float format's 32 inputs.
    pub(crate) const fn group_bytes(self) -> usize {
        PANEL_ROWS * GROUP * self.code_bits() / 8
    }

    /// Bytes of the multipliers at the beginning of a block of `groups` groups.
    pub(crate) const fn multiplier_area(self, groups: usize) -> usize {
        (groups * PANEL_ROWS * self.multiplier_bytes()).next_multiple_of(LINE)
    }

    /// Bytes of a full block.
    pub(crate) const fn block_bytes(self) -> usize {
        self.multiplier_area(BLOCK) + BLOCK * self.group_bytes()
    }

    /// Where a panel of `k` inputs keeps the codes of group `g`, and its multipliers.
    pub(crate) const fn group_place(self, k: usize, g: usize) -> (usize, usize) {
        let left = k.div_ceil(GROUP) - g / BLOCK * BLOCK;
        let block = g / BLOCK * self.block_bytes();
        let area = self.multiplier_area(if left < BLOCK { left } else { BLOCK });
        (block + area + g % BLOCK * self.group_bytes(), block + g % BLOCK * PANEL_ROWS * self.multiplier_bytes())
    }

    /// Where a panel of `k` inputs keeps the row scales, if the format has them: at its end.
    pub(crate) const fn row_scales_at(self, k: usize) -> usize {
        self.panel_bytes(k) - self.row_scale_bytes()
    }

    /// Bytes of the row scales at the end of a panel.
    pub(crate) const fn row_scale_bytes(self) -> usize {
        if self.has_row_scale() { PANEL_ROWS * 4 } else { 0 }
    }

    /// Bytes of one panel of `k` inputs; a multiple of 64.
    #[must_use]
    pub const fn panel_bytes(self, k: usize) -> usize {
        match self.checked_panel_bytes(k) {
            Some(bytes) => bytes,
            None => panic!("a panel larger than the address space"),
        }
    }

    /// [`WeightFormat::panel_bytes`] for sizes from outside: `None` where it overflows.
    #[must_use]
    pub const fn checked_panel_bytes(self, k: usize) -> Option<usize> {
        let groups = k.div_ceil(GROUP);
        let last = groups % BLOCK;
        let last_bytes = self.multiplier_area(last) + last * self.group_bytes() + self.row_scale_bytes();
        match (groups / BLOCK).checked_mul(self.block_bytes()) {
            // No slice is larger than isize::MAX.
            Some(blocks) if blocks <= isize::MAX as usize - last_bytes => Some(blocks + last_bytes),
            _ => None,
        }
    }

    /// Bytes of a weight of `n` outputs × `k` inputs.
    #[must_use]
    pub const fn tensor_bytes(self, n: usize, k: usize) -> usize {
        match self.checked_tensor_bytes(n, k) {
            Some(bytes) => bytes,
            None => panic!("a tensor larger than the address space"),
        }
    }

    /// [`WeightFormat::tensor_bytes`] for sizes from outside: `None` where it overflows.
    #[must_use]
    pub const fn checked_tensor_bytes(self, n: usize, k: usize) -> Option<usize> {
        match self.checked_panel_bytes(k) {
            Some(bytes) => n.div_ceil(PANEL_ROWS).checked_mul(bytes),
            None => None,
        }
    }

    /// Bytes of a thin panel of `k` inputs, for the float formats.
    #[must_use]
    pub const fn thin_panel_bytes(self, k: usize) -> usize {
        k * PANEL_ROWS * self.code_bits() / 8
    }

    /// Bytes of a thin matrix of `n` outputs × `k` inputs; `None` where it overflows.
    #[must_use]
    pub const fn checked_thin_bytes(self, n: usize, k: usize) -> Option<usize> {
        match n.div_ceil(PANEL_ROWS).checked_mul(k) {
            Some(columns) if columns <= isize::MAX as usize / (PANEL_ROWS * 4) => Some(self.thin_panel_bytes(columns)),
            _ => None,
        }
    }

    /// Bits per weight of a weight of `n` × `k`, scales and padding included.
    #[must_use]
    pub fn bits_per_weight(self, n: usize, k: usize) -> f64 {
        8.0 * self.tensor_bytes(n, k) as f64 / (n as f64 * k as f64)
    }
}

/// Where the code of a row (0…15) and an input (0…31) is, from the beginning of a group's codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodePlace {
    /// Byte with the int8 code, or with the nibble.
    pub byte: usize,
    /// Shift of the nibble: 0 or 4.
    pub shift: usize,
    /// Byte with the high bits, if the format has planes.
    pub plane_byte: usize,
    /// Shift of the high bits within it.
    pub plane_shift: usize,
}

impl WeightFormat {
    /// The place of the code of `row` and input `k` (0…31) in a group; for quantized formats.
    pub(crate) const fn code_place(self, row: usize, k: usize) -> CodePlace {
        let (half, slot) = (row / 8, slot_of(row % 8));
        let (part, b) = (k / 8, k % 8);
        let place = part / 2 + 2 * (part % 2); // the p with PLANE_PART[p] == part
        let in_line = 8 * slot + b;
        let (line, shift) =
            if self.code_bits() == 8 { (half * 4 + part, 0) } else { (half * 2 + part % 2, 4 * (part / 2)) };
        let (plane_line, plane_shift) = match self {
            Self::Q5 | Self::I5 | Self::I5M => (0, 4 * half + place),
            Self::Q6 => (half, 2 * place),
            Self::F32 | Self::F16 | Self::Q8 | Self::Q8R | Self::Q4 | Self::Q4L | Self::I4 | Self::I4M => (0, 0),
        };
        CodePlace {
            byte: line * LINE + in_line,
            shift,
            plane_byte: self.code_bytes() + plane_line * LINE + in_line,
            plane_shift,
        }
    }
}

/// The slot that holds a row of the half.
const fn slot_of(row: usize) -> usize {
    let mut slot = 0;
    while SLOT_ROW[slot] != row {
        slot += 1;
    }
    slot
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_and_numbers_lead_back() {
        for format in WeightFormat::ALL {
            assert_eq!(WeightFormat::from_u16(format as u16), Some(format));
            assert_eq!(WeightFormat::from_name(format.name()), Some(format));
        }
        assert_eq!(WeightFormat::from_u16(12), None);
        assert_eq!(WeightFormat::from_name("q3"), None);
    }

    #[test]
    fn sizes_are_what_the_format_document_says() {
        let bytes = |format: WeightFormat, k| format.panel_bytes(k);
        assert_eq!(bytes(WeightFormat::F32, 33), 16 * 64 * 4);
        assert_eq!(bytes(WeightFormat::F16, 576), 16 * 576 * 2);
        assert_eq!(bytes(WeightFormat::Q8, 576), 16 * 576 + 18 * 32);
        assert_eq!(bytes(WeightFormat::Q8R, 576), 16 * 576 + 64);
        assert_eq!(bytes(WeightFormat::Q4, 576), 8 * 576 + 320 + 64);
        assert_eq!(bytes(WeightFormat::Q4L, 1), 8 * 32 + 64 + 64);
        assert_eq!(bytes(WeightFormat::Q5, 576), 10 * 576 + 320 + 64);
        assert_eq!(bytes(WeightFormat::Q6, 576), 12 * 576 + 320 + 64);
        assert_eq!(bytes(WeightFormat::I4, 576), 8 * 576 + 18 * 32);
        assert_eq!(bytes(WeightFormat::I5M, 576), 10 * 576 + 18 * 64);
        assert_eq!(WeightFormat::Q4.tensor_bytes(17, 576), 2 * bytes(WeightFormat::Q4, 576));
        for format in WeightFormat::ALL {
            assert_eq!(format.tensor_bytes(0, 5), 0);
            for k in [0, 1, 31, 32, 33, 1000] {
                assert_eq!(format.panel_bytes(k) % LINE, 0);
            }
        }
    }

    #[test]
    fn sizes_beyond_the_address_space_are_refused() {
        for format in WeightFormat::ALL {
            for k in [usize::MAX, usize::MAX / 2, usize::MAX / 16] {
                assert_eq!(format.checked_tensor_bytes(1, k), None, "{format:?} {k}");
            }
            assert_eq!(format.checked_tensor_bytes(usize::MAX, 576), None);
            assert!(format.checked_tensor_bytes(1 << 20, 1 << 12).is_some());
        }
    }

    #[test]
    fn every_code_has_bits_of_its_own() {
        for format in WeightFormat::ALL.into_iter().filter(|format| !format.is_float()) {
            let mut taken = BTreeSet::new();
            let bits = format.code_bits();
            let low = bits - format.plane_bits();
            for (row, k) in (0..16).flat_map(|row| (0..32).map(move |k| (row, k))) {
                let place = format.code_place(row, k);
                for bit in 0..low {
                    assert!(taken.insert(8 * place.byte + place.shift + bit));
                }
                for bit in low..bits {
                    assert!(taken.insert(8 * place.plane_byte + place.plane_shift + bit - low));
                }
            }
            assert!(taken.into_iter().eq(0..8 * format.group_bytes()), "{format:?}");
        }
    }

    #[test]
    fn parts_of_a_panel_fill_it() {
        for format in WeightFormat::ALL.into_iter().filter(|format| !format.is_float()) {
            for k in [1usize, 32, 33, 64, 96, 128, 129, 576] {
                let mut parts = BTreeSet::new();
                for g in 0..k.div_ceil(32) {
                    let (codes, multipliers) = format.group_place(k, g);
                    parts.insert((codes, codes + format.group_bytes()));
                    parts.insert((multipliers, multipliers + 16 * format.multiplier_bytes()));
                }
                parts.insert((format.row_scales_at(k), format.panel_bytes(k)));
                let mut end = 0;
                for (from, to) in parts {
                    // Only the padding of multipliers to a line may lie between parts.
                    assert!(from >= end && from - end < LINE, "{format:?} {k}");
                    assert!(from == end || from % LINE == 0, "{format:?} {k}");
                    end = to;
                }
                assert_eq!(end, format.panel_bytes(k), "{format:?} {k}");
            }
        }
    }
}
