//! `embed`: a packed file for a linker.

use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use lora_runtime::Model;
use lora_runtime::format::hash::verify_hash;
use lora_runtime::format::{File, FileKind};
use serde_json::json;

use super::{human, map};
use crate::cli::EmbedArgs;
use crate::embed::{Form, Machine, Place, c, object, rust};
use crate::write::set_readable;

/// Runs the verb.
///
/// # Errors
/// The file is not sound, the output's kind is not known, or it cannot be written.
pub fn run(args: &EmbedArgs) -> Result<()> {
    let out = &args.out;
    let Some(form) = Form::of(out) else {
        bail!("{}: expected a name that ends with .rs, .c or .o", out.display());
    };
    let place = Place::new(&args.name, args.section.as_deref())?;
    let bytes = map(&args.file)?;
    let unsound = || format!("{} is not sound", args.file.display());
    // An adapter's numbers are judged beside its base, on the device; here its container and hash.
    let file = match File::new_checked(&bytes) {
        Ok(file) if file.header.kind == FileKind::Adapter as u32 => file,
        _ => Model::open(&bytes).with_context(unsound)?.file,
    };
    verify_hash(&file)?;
    let machine = match args.target.as_deref() {
        None => None,
        Some(name) => match Machine::from_name(name) {
            Some(machine) => Some(machine),
            None => bail!("--target {name}: expected arm, aarch64, x86_64 or a target that begins with one of them"),
        },
    };
    match (form, machine) {
        (Form::Rust, _) => {
            let text = rust(&args.file, out, &place)?;
            save(out, |to| to.write_all(text.as_bytes()))?;
        }
        (Form::C, _) => save(out, |to| c(&bytes, &place, to))?,
        (Form::Object, Some(machine)) => {
            let file = object(&bytes, &place, machine);
            save(out, |to| to.write_all(&file))?;
        }
        (Form::Object, None) => bail!("an object file needs --target: arm, aarch64 or x86_64"),
    }
    if args.json {
        println!("{}", json!({"out": out.display().to_string(), "name": place.name, "model_bytes": bytes.len()}));
    } else {
        println!("{}: {} as {}", out.display(), human(bytes.len() as u64), place.name);
    }
    Ok(())
}

/// Writes a file whole or not at all.
fn save(path: &Path, write: impl FnOnce(&mut BufWriter<&mut std::fs::File>) -> std::io::Result<()>) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = || format!("cannot write {}", path.display());
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
    let mut buffered = BufWriter::new(file.as_file_mut());
    write(&mut buffered).and_then(|()| buffered.flush()).with_context(failed)?;
    drop(buffered);
    set_readable(file.as_file())?;
    file.as_file().sync_all().with_context(failed)?;
    file.persist(path).map(|_| ()).with_context(failed)
}
