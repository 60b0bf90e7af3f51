//! Writes the memory map of the board that `BOARD` names for the linker script.

use std::path::{Path, PathBuf};

/// Name, flash, RAM, where the model lies (each: start, kilobytes).
type Board = (&'static str, (u32, u32), (u32, u32), (u32, u32));

/// The boards' memory as QEMU 7.2 has it. One image serves the first board's processors M4 and M7.
const BOARDS: [Board; 4] = [
    ("mps2-an386", (0, 4096), (0x2000_0000, 4096), (0, 0)),
    ("mps2-an505", (0x1000_0000, 4096), (0x3800_0000, 4096), (0, 0)),
    ("mps3-an547", (0, 512), (0x2000_0000, 512), (0x6000_0000, 65536)),
    ("virt", (0x4008_0000, 32768), (0x4208_0000, 32768), (0, 0)),
];

/// The README's Rust program as a file, with the model that it names beside it.
fn readme(out: &Path) {
    let path = Path::new("../../README.md");
    println!("cargo:rerun-if-changed={}", path.display());
    println!("cargo:rerun-if-env-changed=MODEL");
    let text = std::fs::read_to_string(path).expect("the README is there");
    let block = text.split_once("```rust\n").and_then(|(_, rest)| rest.split_once("```")).expect("a Rust program").0;
    std::fs::write(out.join("readme.rs"), block).expect("the build folder is writable");
    if let Some(model) = std::env::var_os("MODEL") {
        println!("cargo:rerun-if-changed={}", model.display());
        std::fs::copy(model, out.join("home.lpk")).expect("MODEL can be copied");
    }
}

fn main() {
    println!("cargo:rerun-if-env-changed=BOARD");
    println!("cargo:rerun-if-changed=link");
    let wanted = std::env::var("BOARD").unwrap_or_else(|_| "mps2-an386".into());
    let Some((name, flash, ram, model)) = BOARDS.into_iter().find(|b| b.0 == wanted) else {
        panic!("BOARD={wanted}: expected one of {}", BOARDS.map(|b| b.0).join(", "));
    };
    let region = |(start, kb): (u32, u32)| format!("ORIGIN = {start:#x}, LENGTH = {kb}K");
    let alias = if model.1 == 0 { "REGION_ALIAS(\"MODEL\", FLASH);\n" } else { "" };
    let third = if model.1 == 0 { String::new() } else { format!("  MODEL : {}\n", region(model)) };
    // Frames of a 64-bit processor are up to twice as large.
    let stack = if name == "virt" { 0x10000 } else { 0x8000 };
    let text = format!(
        "stack_bytes = {stack:#x};\nMEMORY\n{{\n  FLASH : {}\n  RAM : {}\n{third}}}\n{alias}",
        region(flash),
        region(ram)
    );
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    std::fs::write(out.join("memory.x"), text).expect("the build folder is writable");
    readme(&out);
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    println!("cargo:rustc-link-search={}", out.display());
    println!("cargo:rustc-link-search={here}/link");
    println!("cargo:rustc-link-arg=-Tboard.x");
    println!("cargo:rustc-link-arg=--nmagic");
    println!("cargo:rustc-env=BOARD={name}");
}
