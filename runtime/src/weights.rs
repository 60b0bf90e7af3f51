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
//! panel = codes:  for g in 0..G: for half in 0..2 (8 rows each): lines of 64 bytes   (see below)
//!         planes: (q5, q6) for g: for half: 8 rows × 4·bits bytes                      padded to 64
//!         multipliers: for g: 16 × i8 (q4, q4l, q5, q6) or 16 × f16 (q8)              padded to 64
//!         row scales:  16 × f32 (all but q8)                                           64 bytes
//! ```
//! A **line** is 8 slots × 8 bytes; slot `i` holds row [`SLOT_ROW`]`[i]` of the half, so that a pairwise
//! add of two registers leaves the rows in order. For `q8`/`q8r` a group's half is four lines, line `j` holding
//! `k = 8j..8j+8`. For 4-bit codes it is two lines: line `j`'s low nibbles are `k = 8j..8j+8`, its high
//! nibbles `k = 16+8j..16+8j+8`.
//! Float formats store, for each `k` in `0..K_padded`, the 16 rows' values side by side (f32 or f16).

/// Rows stored together.
pub const PANEL_ROWS: usize = 16;
/// Inputs that share one scale.
pub const GROUP: usize = 32;
/// Bytes of a line, and the alignment of every panel.
pub const LINE: usize = 64;
/// Row (within its half panel of 8) held by each slot of a line.
pub const SLOT_ROW: [usize; 8] = [0, 1, 4, 5, 2, 3, 6, 7];

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
