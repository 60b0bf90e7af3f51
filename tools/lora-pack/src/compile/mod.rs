//! What is compiled besides weights.

pub mod tokenizer;
