//! Four rows times a run of groups of 4, 8 or 16 tokens, by `sdot` and by `smmla`, with the scaling and the sums of floats.
//! Registers are of our choice: with 16 tokens every one is in use.
//!
//! ```text
//!               sdot                                      smmla
//! v0 … v15      sums of floats, four rows of a token      two rows of two tokens each: rows 0 and 1, rows 2 and 3
//! v16 … v23     codes, four rows side by side             rows 0 and 1, 8 inputs at a time; then rows 2 and 3
//! v24 … v27     dot products of four tokens               of two tokens, two registers; multipliers of the rows
//! v28 … v31     inputs of all four; then products         inputs; then products
//! ```
//! Codes, whose offset is out, and multipliers come as [`strip`](super::strip) lays them out, inputs as
//! [`prepare`](super::prepare) does. What is the same for all tokens comes out of memory each time: loads have pipes of their
//! own, moves take those that multiply.

mod sdot;
mod smmla;

pub use sdot::by_sdot;
pub use smmla::by_smmla;

use super::dot::BIAS;

/// How a dot product `d` becomes a part of a sum, each operation rounded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scaling {
    /// `d·m·xscale`, as [`Dot::times`](super::Dot::times) says: multipliers are small integers.
    Integers,
    /// `d·(m·xscale)`.
    Halves,
    /// `d·xscale`.
    Rows,
}

/// What dot products start from, four times: as bits of a float they are 1.5·2^23 + d, and a subtraction gives d: exact, and
/// done by any pipe, which the conversion is not.
static START: u128 = (BIAS as u128) * 0x0000_0001_0000_0001_0000_0001_0000_0001;
