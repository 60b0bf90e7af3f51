//! Kernels: one generic body per family, instantiated for every instruction-set level.
#![expect(unsafe_code, reason = "kernels read and write through pointers; every block states its condition")]

mod attend;
#[cfg(test)]
mod cases;
mod detect;
mod elementwise;
#[cfg(all(test, feature = "pack", feature = "std"))]
mod guarded;
pub mod isa;
mod kv;
mod level;
mod linear;
pub mod math;
mod norm;
mod quantize_row;
mod reduce;
#[cfg(all(test, feature = "pack", feature = "std"))]
mod reference;
mod rotary;
mod select;
mod table;
#[cfg(feature = "pack")]
mod trial;
mod wide;

pub use attend::{Attend, Bias, DistanceRows, STEP as ATTEND_STEP};
pub use elementwise::Act;
#[cfg(not(feature = "pack"))]
pub(crate) use isa::scalar::f16_to_f32;
#[cfg(feature = "pack")]
pub use isa::scalar::{f16_to_f32, f32_to_f16};
pub use kv::{KV_ALIGN, KV_BLOCK, KvLayout, KvType, kv_head_bytes};
pub use level::Level;
pub use linear::{ActRows, MAX_SHARING_PANELS, MAX_TOKENS, Sums, dequant_row};
#[cfg(feature = "pack")]
pub use linear::{Multipliers, QuantizedRows, pack_float, pack_float_panel};
pub use quantize_row::{QUANT_ROW_ALIGN, QuantRow, quant_row_bytes};
pub use rotary::{RotaryStyle, rotary_angles};
pub use table::Kernels;
#[cfg(feature = "pack")]
pub use trial::{Nearest, Weighed, best_refit, half_unit, nearest_values, trials};
pub use wide::{Wide, widest};
