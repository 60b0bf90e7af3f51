//! Where the test data lies.

use std::path::{Path, PathBuf};

/// Root of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The digest of what the demo model computes, packed with `--quant format`: one number for all processors.
///
/// # Panics
/// If `models/demo/golden.txt` has none.
#[must_use]
pub fn golden(format: &str) -> String {
    let path = workspace().join("models/demo/golden.txt");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let digest = text.lines().find_map(|line| line.strip_prefix(format)?.strip_prefix(' '));
    digest.unwrap_or_else(|| panic!("{} has no line for {format}", path.display())).to_owned()
}

/// The small set of cases committed with the project: always there.
#[must_use]
pub fn committed() -> PathBuf {
    workspace().join("tests/data/fixtures")
}

/// The folder with the complete conformance kit (`fixtures/`) and the trained adapters (`assets/`): what
/// `LORA_PACK_SHARED` names, else `../shared` beside the checkout. `None` where neither exists.
///
/// # Panics
/// If the variable is set and names no folder: a typing error must not look like an absent kit.
#[must_use]
pub fn shared() -> Option<PathBuf> {
    match std::env::var_os("LORA_PACK_SHARED") {
        Some(named) => {
            let path = PathBuf::from(&named);
            assert!(path.is_dir(), "LORA_PACK_SHARED is set, but {} is no folder", path.display());
            Some(path)
        }
        None => Some(workspace().join("../shared")).filter(|p| p.is_dir()),
    }
}

/// `shared()/fixtures`, with a loud skip of `what` where it is absent.
#[must_use]
pub fn shared_fixtures(what: &str) -> Option<PathBuf> {
    let found = shared().map(|s| s.join("fixtures")).filter(|p| p.is_dir());
    if found.is_none() {
        crate::skip(what, "no conformance kit; set LORA_PACK_SHARED or place it in ../shared");
    }
    found
}

/// The folder with the larger base models (`LORA_PACK_BASES`): they are not part of the kit, see `tests/README.md`.
#[must_use]
pub fn bases() -> Option<PathBuf> {
    std::env::var_os("LORA_PACK_BASES").map(PathBuf::from).filter(|p| p.is_dir())
}

/// Folders below `root` that hold a `case.json`, by name.
///
/// # Errors
/// If the folder cannot be listed.
pub fn case_folders(root: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root)? {
        let path = entry?.path();
        if path.join("case.json").is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
