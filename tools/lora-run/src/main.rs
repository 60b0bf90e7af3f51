//! lora-run
fn main() {}
