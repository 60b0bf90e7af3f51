//! GGUF files that the tests write themselves, and block values recorded from gguf-py.

mod adapter;
mod blocks;
mod export;
mod hostile;
mod keep;
mod kit;
mod model;
