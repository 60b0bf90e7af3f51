//! AArch64: base NEON, and the dot and matrix products of later processors.

/// An expression of this level's intrinsics.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: `self` proves that the CPU has the instructions; where there is a pointer, the caller of the unsafe
        // method vouches for it.
        unsafe { $e }
    };
}

mod dot;
mod neon;
pub mod nibbles;
pub mod prepare;
pub mod strip;
pub mod tokens;

pub use dot::{
    Dot, Mull, Products, Rows, Sdot, Smmla, Start, keep_in_register, opaque_count, opaque_pointer, settle,
    settle_addresses, settle_sum,
};
pub use neon::Quad;

/// Proof of AArch64's base instructions.
pub type Neon = Quad<Mull>;
/// Proof of NEON and `sdot`.
pub type Dotprod = Quad<Sdot>;
/// Proof of NEON, `sdot` and `smmla`.
pub type I8mm = Quad<Smmla>;
