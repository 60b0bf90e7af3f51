//! Reading what other tools wrote: Hugging Face model folders, GGUF files and PEFT adapter folders; and packs, as what they
//! were made of.
//!
//! Every byte here comes from outside, so each reader checks before it trusts and answers with a [`SourceError`] that
//! names the file and, where there is one, the tensor or the field. Weights are mapped, never read as a whole.

pub mod adapter;
pub mod arrange;
pub mod bnb;
pub mod dtype;
mod error;
#[cfg(feature = "hub")]
pub mod fetch;
pub mod gguf;
pub mod hub;
mod index;
pub mod json;
mod map;
pub mod model;
pub mod packed;
pub mod pickle;
pub mod safetensors;
pub mod sentence;
pub mod tensors;
pub mod tokenizer;
mod zip;

pub use adapter::AdapterFiles;
pub use dtype::Dtype;
pub use error::{SourceError, quote};
pub use map::MappedFile;
pub use model::BaseModel;
pub use tensors::{TensorIndex, TensorView};
pub use tokenizer::TokenizerFiles;
