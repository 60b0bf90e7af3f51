//! lora-pack
fn main() {}
