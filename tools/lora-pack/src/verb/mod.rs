//! One file per verb.

pub mod adapter;
pub mod bundle;
pub mod demo;
pub mod doctor;
pub mod embed;
pub mod export;
pub mod fetch;
pub mod inspect;
pub mod merge;
mod other_files;
pub mod plan;
pub mod verify;

use std::path::Path;

use anyhow::{Context, Result};
use lora_runtime::map::Mapping;

/// Maps a packed file.
fn map(path: &Path) -> Result<Mapping> {
    Mapping::open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// `bytes` for people.
fn human(bytes: u64) -> String {
    let b = bytes as f64;
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{:.1} kB", b / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", b / 1e6),
        _ => format!("{:.1} GB", b / 1e9),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
