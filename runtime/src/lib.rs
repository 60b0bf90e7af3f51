//! # lora-runtime
//!
//! Runs `.lpk` models in place: the file is mapped (or linked into flash), verified once, and then
//! executed as a flat program of coarse ops. The crate knows ops, not architectures.
//!
//! | module | holds |
//! |---|---|
//! | [`error`] | the one error type |
//! | [`weights`] | weight formats and the panel layout every kernel reads |
//! | [`kernels`] | the instruction-set levels and the kernel table |
//! | [`tokenizer`] | tokenizers compiled to flat tables, used in place |
//!
//! The crate is `no_std` always; feature `std` adds file mapping, threads and CPU detection through
//! the operating system, feature `alloc` adds conveniences that return `Vec`.
#![no_std]

// One facade for core, alloc and std: with no feature it is core, with `alloc` or `std` it grows.
extern crate no_std_compat as std;

pub mod error;
pub mod kernels;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, ErrorKind, Result};
