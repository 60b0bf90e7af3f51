//! Kernels: one generic body per family, instantiated for every instruction-set level.
pub mod isa;
