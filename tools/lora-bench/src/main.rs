//! lora-bench
fn main() {}
