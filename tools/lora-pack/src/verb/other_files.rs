//! `inspect` and `verify` for files that are no models: adapters and bundles.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use lora_runtime::format::hash::{content_hash, verify_hash};
use lora_runtime::format::{Bundle, File, FileKind, Header, NONE, Task};
use lora_runtime::{Adapter, Model};
use serde_json::{Value, json};

use super::{hex, human};

/// What a file is, as far as its header says.
pub fn kind(bytes: &[u8]) -> Option<FileKind> {
    let header: Header = bytemuck::pod_read_unaligned(bytes.get(..size_of::<Header>())?);
    [FileKind::Model, FileKind::Adapter, FileKind::Bundle].into_iter().find(|k| *k as u32 == header.kind)
}

/// Prints what an adapter holds.
///
/// # Errors
/// The file is not sound.
pub fn inspect_adapter(path: &Path, bytes: &[u8], as_json: bool) -> Result<()> {
    let f = File::new_checked(bytes).map_err(|e| anyhow!("{} is not sound: {e}", path.display()))?;
    let task = Task::from_u32(f.info.task).map_or("?", Task::name);
    let patches: Vec<Value> = f.patches.iter().map(|p| patch(&f, p)).collect();
    let labels: Vec<&str> = f.labels.iter().map(|l| f.str(*l)).collect();
    if as_json {
        let meta: BTreeMap<&str, &str> = f.meta.iter().map(|m| (f.str(m.key), f.str(m.value))).collect();
        println!(
            "{}",
            json!({
                "kind": "adapter", "version": f.header.version, "bytes": bytes.len(), "hash": hex(&f.header.hash),
                "fingerprint": hex(&f.header.fingerprint), "task": task, "vocab": f.info.vocab, "labels": labels,
                "head": !f.entries.is_empty(), "invocation_tokens": f.info.invocation, "tokenizer_bytes": f.tokenizer.len(),
                "metadata": meta, "patches": patches, "tensors": f.tensors.len(),
            })
        );
        return Ok(());
    }
    println!("{}: adapter for {task}", path.display());
    println!(
        "  file         {}  format {}  hash {}",
        human(bytes.len() as u64),
        f.header.version,
        hex(&f.header.hash[..8])
    );
    println!("  base         fingerprint {}", hex(&f.header.fingerprint[..8]));
    println!("  head         {}", if f.entries.is_empty() { "the base's" } else { "its own" });
    if !labels.is_empty() {
        println!("  labels       {}", labels.join(", "));
    }
    for p in &patches {
        println!("  {} {}", p["module"].as_str().unwrap_or(""), p["changes"].as_str().unwrap_or(""));
    }
    for m in f.meta {
        println!("  {:<12} {}", f.str(m.key), f.str(m.value).replace('\n', " "));
    }
    Ok(())
}

fn patch(f: &File<'_>, p: &lora_runtime::format::PatchRecord) -> Value {
    let tensor = |i: u32| f.tensors.get(i as usize);
    let mut changes = Vec::new();
    let rank = tensor(p.b).map_or(0, |b| b.cols);
    if rank > 0 {
        changes.push(format!("rank {rank}"));
    }
    let replaced = p.values != NONE || (p.a != NONE && rank == 0);
    if replaced {
        changes.push(match p.index_count {
            0 => "replaced".to_owned(),
            n => format!("{n} rows replaced"),
        });
    }
    for (name, i) in [("gain", p.gain), ("bias", p.bias)] {
        if i != NONE {
            changes.push(name.to_owned());
        }
    }
    let kind = ["linear", "embed", "vector"].get(p.kind as usize).copied().unwrap_or("?");
    json!({"module": f.str(p.module), "slot": p.slot, "kind": kind, "rows": p.rows, "cols": p.cols, "rank": rank,
           "changes": changes.join(", ")})
}

/// Checks an adapter by itself: hash and container. Whether it fits is checked beside its base.
///
/// # Errors
/// It is not sound, or was changed.
pub fn verify_adapter(path: &Path, bytes: &[u8], as_json: bool) -> Result<()> {
    let f = File::new_checked(bytes).map_err(|e| anyhow!("{} is not sound: {e}", path.display()))?;
    verify_hash(&f).with_context(|| format!("{} was changed after packing", path.display()))?;
    if as_json {
        println!(
            "{}",
            json!({"ok": true, "file": path.display().to_string(), "kind": "adapter", "bytes": bytes.len(),
                   "hash": hex(&f.header.hash), "tensors": f.tensors.len(), "patches": f.patches.len()})
        );
    } else {
        println!(
            "{}: a sound adapter file. {}, hash {}",
            path.display(),
            human(bytes.len() as u64),
            hex(&f.header.hash)
        );
        println!(
            "  {} patches, {} tensors; their places are checked when it is attached to its base",
            f.patches.len(),
            f.tensors.len()
        );
    }
    Ok(())
}

/// Checks a bundle: its hash, and every member, adapters against the base.
///
/// # Errors
/// The first member that is not sound, by name.
pub fn verify_bundle(path: &Path, bytes: &[u8], as_json: bool) -> Result<()> {
    let at = |what: &str| format!("{}: {what}", path.display());
    let bundle = Bundle::open(bytes).map_err(|e| anyhow!("{} is not sound: {e}", path.display()))?;
    let header: Header = bytemuck::pod_read_unaligned(&bytes[..size_of::<Header>()]);
    anyhow::ensure!(content_hash(bytes) == header.hash, at("changed after packing"));
    let model = Model::open(bundle.base()).map_err(|e| anyhow!("{} is not sound: {e}", at("the base")))?;
    verify_hash(&model.file).with_context(|| at("the base was changed after packing"))?;
    let mut names = Vec::new();
    for (name, file) in bundle.adapters() {
        let adapter = Adapter::attach(&model, file).map_err(|e| anyhow!("{} is not sound: {e}", at(name)))?;
        verify_hash(&adapter.file).with_context(|| at(&format!("{name} was changed after packing")))?;
        names.push(name);
    }
    if as_json {
        println!(
            "{}",
            json!({"ok": true, "file": path.display().to_string(), "kind": "bundle", "bytes": bytes.len(),
                   "hash": hex(&header.hash), "adapters": names})
        );
    } else {
        println!("{}: sound. A base and {}, which fit it", path.display(), names.join(", "));
    }
    Ok(())
}
