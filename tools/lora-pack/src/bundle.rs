//! Bundles: a base and its adapters in one file, and back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use lora_runtime::format::{Bundle, FileKind, MemberRecord};
use lora_runtime::map::Mapping;
use lora_runtime::{Adapter, Model};

use crate::write::{LpkWriter, Strings, Tables};

/// A bundle's adapter: its name and the bytes of its file.
pub type Member = (String, u64);

/// Writes the packed base and adapters into one file. Every adapter is checked against the base; its name is that of
/// its file.
///
/// # Errors
/// A file that is not sound or not what it should be, an adapter of another base, two of one name.
pub fn bundle(base: &Path, adapters: &[PathBuf], out: &Path) -> Result<(Vec<Member>, u64)> {
    let open = |path: &Path| Mapping::open(path).with_context(|| format!("cannot open {}", path.display()));
    let base_map = open(base)?;
    let model = Model::open(&base_map).map_err(|e| anyhow!("{}: {e}", base.display()))?;
    if Bundle::is_bundle(&base_map) {
        bail!("{}: already a bundle; unbundle it first", base.display());
    }
    let mut files = BTreeMap::new();
    for path in adapters {
        let map = open(path)?;
        Adapter::attach(&model, &map).map_err(|e| anyhow!("{}: {e}", path.display()))?;
        let name = path.file_stem().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if name.is_empty() || files.insert(name.clone(), map).is_some() {
            bail!("{}: two adapters are named {name:?}; names are those of the files", path.display());
        }
    }
    let mut writer = LpkWriter::create(out)?;
    let mut strings = Strings::default();
    let mut members = Vec::new();
    let mut list = Vec::new();
    let mut add = |name: &str, kind: FileKind, bytes: &[u8]| -> Result<()> {
        let (offset, len) = (writer.member(bytes)?, bytes.len() as u64);
        members.push(MemberRecord { name: strings.add(name), kind: kind as u32, reserved: 0, offset, len });
        Ok(())
    };
    add("", FileKind::Model, &base_map)?;
    for (name, map) in &files {
        add(name, FileKind::Adapter, map)?;
        list.push((name.clone(), map.len() as u64));
    }
    let meta = BTreeMap::from([("pack.tool".to_owned(), concat!("lora-pack ", env!("CARGO_PKG_VERSION")).to_owned())]);
    let tables = Tables {
        kind: FileKind::Bundle,
        fingerprint: model.file.header.fingerprint,
        codebook: model.file.header.codebook,
        info: None,
        meta,
        strings,
        entries: Vec::new(),
        ops: Vec::new(),
        buffers: Vec::new(),
        caches: Vec::new(),
        outputs: Vec::new(),
        tensors: Vec::new(),
        slots: Vec::new(),
        patches: Vec::new(),
        indices: Vec::new(),
        members,
        labels: Vec::new(),
        tokenizer: Vec::new(),
    };
    Ok((list, writer.finish(tables)?.0))
}

/// Writes the files of a bundle into a folder that does not exist yet: `base.lpk` and one of each adapter's name.
///
/// # Errors
/// Not a sound bundle, a name that is no file name, the folder exists.
pub fn unbundle(file: &Path, out: &Path) -> Result<Vec<PathBuf>> {
    let map = Mapping::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let bundle = Bundle::open(&map).map_err(|e| anyhow!("{}: {e}", file.display()))?;
    if out.exists() {
        bail!("{} exists", out.display());
    }
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = tempfile::Builder::new().prefix(".lora-pack-").tempdir_in(parent)?;
    let mut names = Vec::new();
    for (name, bytes) in std::iter::once(("base", bundle.base())).chain(bundle.adapters()) {
        let file_name = format!("{name}.lpk");
        let plain = Path::new(&file_name).file_name().is_some_and(|n| n == file_name.as_str());
        let path = folder.path().join(&file_name);
        if !plain || path.exists() {
            bail!("{name:?} cannot be the name of a file beside the others");
        }
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        names.push(out.join(&file_name));
    }
    std::fs::rename(folder.keep(), out).with_context(|| format!("cannot write {}", out.display()))?;
    Ok(names)
}
