//! Kernels: one generic body per family, instantiated for every instruction-set level.
#![expect(unsafe_code, reason = "kernels read and write through pointers; every block states its condition")]

pub mod isa;
