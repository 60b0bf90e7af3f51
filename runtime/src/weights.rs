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
//! panel = codes:       for g in 0..G: for half in 0..2 (8 rows each): lines of 64 bytes   (see below)
//!         planes:      (q5, q6) for g: one line (q5), or for half: one line (q6)
//!         multipliers: for g: 16 × i8 (q4, q4l, q5, q6) or 16 × f16 (q8)              padded to 64
//!         row scales:  16 × f32 (all but q8)                                           64 bytes
//! ```
//! A **line** is 8 slots × 8 bytes; slot `i` holds row [`SLOT_ROW`]`[i]` of the half, so that a pairwise
//! add of two registers leaves the rows in order. For `q8`/`q8r` a group's half is four lines, line `j` holding
//! `k = 8j..8j+8`. For 4-bit codes it is two lines: line `j`'s low nibbles are `k = 8j..8j+8`, its high
//! nibbles `k = 16+8j..16+8j+8`.
//!
//! **Planes** hold the bits above the nibble, in lines of the same slots; byte `b` of a slot belongs to
//! `k = b, 8+b, 16+b, 24+b`, the four *parts* 0…3. `q6`: one line per half, bits `2p..2p+2` of a byte are part
//! [`PLANE_PART`]`[p]`. `q5`: one line for both halves, bit `4·half + p` of a byte is part `PLANE_PART[p]`.
//!
//! Linear codes are stored with an offset that makes them unsigned (8 for `q4l`, 16 for `q5`, 32 for `q6`); `q4`
//! stores the index into the table; `q8` and `q8r` are two's complement.
//! Float formats store, for each `k` in `0..K_padded`, the 16 rows' values side by side (f32 or f16).

/// Rows stored together.
pub const PANEL_ROWS: usize = 16;
/// Inputs that share one scale.
pub const GROUP: usize = 32;
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
}

impl WeightFormat {
    /// Every format, in the order of their numbers.
    pub const ALL: [Self; 8] = [Self::F32, Self::F16, Self::Q8, Self::Q8R, Self::Q4, Self::Q4L, Self::Q5, Self::Q6];

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

    /// Bits of a code, or of a float.
    #[must_use]
    pub const fn code_bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::F16 => 16,
            Self::Q8 | Self::Q8R => 8,
            Self::Q4 | Self::Q4L => 4,
            Self::Q5 => 5,
            Self::Q6 => 6,
        }
    }

    /// What is added to a linear code to store it, and taken out of the dot product again.
    #[must_use]
    pub const fn code_offset(self) -> i32 {
        match self {
            Self::Q4L => 8,
            Self::Q5 => 16,
            Self::Q6 => 32,
            Self::F32 | Self::F16 | Self::Q8 | Self::Q8R | Self::Q4 => 0,
        }
    }

    /// Bits of a code that are kept in planes.
    pub(crate) const fn plane_bits(self) -> usize {
        match self {
            Self::Q5 => 1,
            Self::Q6 => 2,
            Self::F32 | Self::F16 | Self::Q8 | Self::Q8R | Self::Q4 | Self::Q4L => 0,
        }
    }

    /// Bytes of the multiplier of one row and group.
    pub(crate) const fn multiplier_bytes(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Q8R => 0,
            Self::Q8 => 2,
            Self::Q4 | Self::Q4L | Self::Q5 | Self::Q6 => 1,
        }
    }

    /// Whether a panel ends with a scale per row.
    #[must_use]
    pub const fn has_row_scale(self) -> bool {
        matches!(self, Self::Q8R | Self::Q4 | Self::Q4L | Self::Q5 | Self::Q6)
    }

    /// Where the parts of a panel of `k` inputs begin.
    #[must_use]
    pub const fn panel_layout(self, k: usize) -> PanelLayout {
        match self.checked_panel_layout(k) {
            Some(layout) => layout,
            None => panic!("a panel larger than the address space"),
        }
    }

    /// [`WeightFormat::panel_layout`] for sizes from outside.
    #[must_use]
    pub const fn checked_panel_layout(self, k: usize) -> Option<PanelLayout> {
        // Bytes per group, all multiples of 64 but the multipliers'.
        let codes = PANEL_ROWS * GROUP * (self.code_bits() - self.plane_bits()) / 8;
        let planes = PANEL_ROWS * GROUP * self.plane_bits() / 8;
        let multipliers = PANEL_ROWS * self.multiplier_bytes();
        let tail = if self.has_row_scale() { PANEL_ROWS * 4 } else { 0 };
        let groups = k.div_ceil(GROUP);
        // The largest sum of the below; when it fits, nothing else overflows.
        let Some(most) = groups.checked_mul(codes + planes + multipliers) else { return None };
        if most > isize::MAX as usize - 2 * LINE {
            return None;
        }
        let planes_at = groups * codes;
        let multipliers_at = planes_at + groups * planes;
        let row_scales_at = multipliers_at + (groups * multipliers).next_multiple_of(LINE);
        Some(PanelLayout { groups, planes_at, multipliers_at, row_scales_at, bytes: row_scales_at + tail })
    }

    /// Bytes of one panel of `k` inputs; a multiple of 64.
    #[must_use]
    pub const fn panel_bytes(self, k: usize) -> usize {
        self.panel_layout(k).bytes
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
        match self.checked_panel_layout(k) {
            Some(layout) => n.div_ceil(PANEL_ROWS).checked_mul(layout.bytes),
            None => None,
        }
    }

    /// Bits per weight of a weight of `n` × `k`, scales and padding included.
    #[must_use]
    pub fn bits_per_weight(self, n: usize, k: usize) -> f64 {
        8.0 * self.tensor_bytes(n, k) as f64 / (n as f64 * k as f64)
    }
}

/// Offsets of the parts of a panel; the codes are at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PanelLayout {
    /// Groups of 32 inputs.
    pub groups: usize,
    /// Bit planes.
    pub planes_at: usize,
    /// Multipliers of rows and groups.
    pub multipliers_at: usize,
    /// Scales of rows.
    pub row_scales_at: usize,
    /// Size of the panel.
    pub bytes: usize,
}

/// Where the code of a row (0…15) and input `k` is, from the beginning of a quantized panel's codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodePlace {
    /// Byte with the int8 code, or with the nibble.
    pub byte: usize,
    /// Shift of the nibble: 0 or 4.
    pub shift: usize,
    /// Byte with the high bits, from the beginning of the planes.
    pub plane_byte: usize,
    /// Shift of the high bits within it.
    pub plane_shift: usize,
}

impl WeightFormat {
    /// The place of the code of `row` and `k`; for quantized formats.
    pub(crate) const fn code_place(self, row: usize, k: usize) -> CodePlace {
        let (half, slot) = (row / 8, slot_of(row % 8));
        let (group, part, b) = (k / GROUP, k % GROUP / 8, k % 8);
        let place = part / 2 + 2 * (part % 2); // the p with PLANE_PART[p] == part
        let in_line = 8 * slot + b;
        let (line, shift) = if self.code_bits() == 8 {
            ((2 * group + half) * 4 + part, 0)
        } else {
            ((2 * group + half) * 2 + part % 2, 4 * (part / 2))
        };
        let (plane_line, plane_shift) = match self {
            Self::Q5 => (group, 4 * half + place),
            Self::Q6 => (2 * group + half, 2 * place),
            Self::F32 | Self::F16 | Self::Q8 | Self::Q8R | Self::Q4 | Self::Q4L => (0, 0),
        };
        CodePlace { byte: line * LINE + in_line, shift, plane_byte: plane_line * LINE + in_line, plane_shift }
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
        assert_eq!(WeightFormat::from_u16(8), None);
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
        assert_eq!(WeightFormat::Q4.tensor_bytes(17, 576), 2 * bytes(WeightFormat::Q4, 576));
        for format in WeightFormat::ALL {
            assert_eq!(format.tensor_bytes(0, 5), 0);
            for k in [0, 1, 31, 32, 33, 1000] {
                let layout = format.panel_layout(k);
                assert_eq!(layout.bytes % LINE, 0);
                assert_eq!(layout.multipliers_at % LINE, 0);
                assert_eq!(layout.groups, k.div_ceil(32));
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
            let layout = format.panel_layout(96);
            let (mut low, mut high) = (BTreeSet::new(), BTreeSet::new());
            for (row, k) in (0..16).flat_map(|row| (0..96).map(move |k| (row, k))) {
                let place = format.code_place(row, k);
                let bits = format.code_bits();
                for bit in 0..bits.min(if bits == 8 { 8 } else { 4 }) {
                    assert!(low.insert(8 * place.byte + place.shift + bit));
                }
                for bit in 4..if bits == 8 { 4 } else { bits } {
                    assert!(high.insert(8 * place.plane_byte + place.plane_shift + bit - 4));
                }
            }
            assert_eq!(low.len(), 8 * layout.planes_at, "{format:?}");
            assert_eq!(high.len(), 8 * (layout.row_scales_at.min(layout.multipliers_at) - layout.planes_at));
            assert!(low.last().is_none_or(|&bit| bit < 8 * layout.planes_at));
        }
    }
}
