//! `bundle`, `unbundle`, `list`: a base and its adapters in one file.

use anyhow::{Result, anyhow};
use lora_runtime::format::Bundle;
use serde_json::json;

use super::{human, map};
use crate::cli::{BundleArgs, ListArgs, UnbundleArgs};

/// Runs `bundle`.
///
/// # Errors
/// As [`crate::bundle::bundle`].
pub fn run(args: &BundleArgs) -> Result<()> {
    let (adapters, bytes) = crate::bundle::bundle(&args.base, &args.adapters, &args.out)?;
    let names: Vec<&str> = adapters.iter().map(|a| a.0.as_str()).collect();
    if args.json {
        println!("{}", json!({"out": args.out, "file_bytes": bytes, "adapters": names}));
    } else {
        println!("{}: a base and {} ({})", args.out.display(), names.join(", "), human(bytes));
    }
    Ok(())
}

/// Runs `unbundle`.
///
/// # Errors
/// As [`crate::bundle::unbundle`].
pub fn unbundle(args: &UnbundleArgs) -> Result<()> {
    let files = crate::bundle::unbundle(&args.file, &args.out)?;
    if args.json {
        println!("{}", json!({"files": files}));
    } else {
        files.iter().for_each(|f| println!("{}", f.display()));
    }
    Ok(())
}

/// Runs `list`.
///
/// # Errors
/// The file is not a sound bundle.
pub fn list(args: &ListArgs) -> Result<()> {
    let bytes = map(&args.file)?;
    let bundle = Bundle::open(&bytes).map_err(|e| anyhow!("{}: {e}", args.file.display()))?;
    if args.json {
        let one = |(name, file): (&str, &[u8])| json!({"name": name, "bytes": file.len()});
        let adapters: Vec<_> = bundle.adapters().map(one).collect();
        println!("{}", json!({"base_bytes": bundle.base().len(), "adapters": adapters}));
    } else {
        bundle.adapters().for_each(|(name, file)| println!("{name}  {}", human(file.len() as u64)));
    }
    Ok(())
}
