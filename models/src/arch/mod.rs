//! One small file per family: config → description. No loops over tokens, no arithmetic on weights.

pub mod bert;
pub mod llama;
