//! GGUF files that the tests write themselves, and block values recorded from gguf-py.

mod blocks;
mod hostile;
mod kit;
mod model;
