//! HF config to program.
