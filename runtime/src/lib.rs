//! # lora-runtime
//!
//! Runs `.lpk` models in place: the file is mapped (or linked into flash), verified once, and then
//! executed as a flat program of coarse ops. The crate knows ops, not architectures.
//!
//! | module | holds |
//! |---|---|
//! | [`adapter`] | adapters beside a mapped base, chosen per request |
//! | [`error`] | the one error type |
//! | [`format`](mod@format) | every record of a file, and the checked view of it |
//! | [`weights`] | weight formats and the panel layout every kernel reads |
//! | [`program`] | ops, their verification, the memory plan |
//! | [`kernels`] | the instruction-set levels and the kernel table |
//! | `ops` | operands → kernels, one file per op |
//! | [`sampler`] | choosing the next token from a row of logits |
//! | [`embedded`] | models linked into the program, static memory |
//! | [`selftest`] | whether a device computes what the packer computed |
//! | [`session`] | the arena, KV caches, one step |
//! | [`tasks`] | whole tasks without a heap: generate, classify, tag, embed |
//! | [`tokenizer`] | tokenizers compiled to flat tables, used in place |
//! | `map`, `threads` | file mapping and the worker pool (feature `std`) |
//!
//! The crate is `no_std` always; feature `std` adds file mapping, threads and CPU detection through
//! the operating system, feature `alloc` adds conveniences that return `Vec`.
#![no_std]

// One facade for core, alloc and std: with no feature it is core, with `alloc` or `std` it grows.
extern crate no_std_compat as std;

pub mod adapter;
pub mod embedded;
pub mod error;
pub mod format;
pub mod kernels;
#[cfg(feature = "std")]
pub mod map;
pub mod model;
mod ops;
pub mod program;
pub mod sampler;
pub mod selftest;
pub mod session;
pub mod tasks;
#[cfg(feature = "std")]
pub mod threads;
pub mod tokenizer;
pub mod weights;

pub use adapter::{Active, Adapter, Set};
pub use error::{Error, ErrorKind, Result};
pub use model::Model;
pub use session::{Pass, Segment, Session, Step};
