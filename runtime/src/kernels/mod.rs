//! Kernels: one generic body per family, instantiated for every instruction-set level.
#![expect(unsafe_code, reason = "kernels read and write through pointers; every block states its condition")]

mod detect;
pub mod isa;
mod level;
mod quantize_row;
mod table;

pub use level::Level;
pub use quantize_row::{QUANT_ROW_ALIGN, QuantRow, quant_row_bytes};
pub use table::Kernels;
