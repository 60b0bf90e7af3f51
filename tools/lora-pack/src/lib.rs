//! lora-pack as a library: what the command line does, callable from tests.

pub mod adapter;
pub mod bundle;
pub mod calibrate;
pub mod cli;
pub mod compile;
pub mod embed;
pub mod generation;
pub mod golden;
pub mod keep;
pub mod merge;
pub mod pack;
pub mod quantize;
pub mod source;
pub mod target;
pub mod verb;
pub mod verify;
pub mod write;
