//! A packed file as something that a linker takes: Rust or C source, or an object file.

mod object;

use std::fmt::Write as _;
use std::io::Write;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

pub use object::{Machine, object};

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Rust source that includes the file.
    Rust,
    /// C source that holds the bytes.
    C,
    /// An object file.
    Object,
}

impl Form {
    /// The form that a file name asks for.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "rs" => Some(Self::Rust),
            "c" => Some(Self::C),
            "o" => Some(Self::Object),
            _ => None,
        }
    }
}

/// How the model is called and where it goes.
#[derive(Clone, Debug)]
pub struct Place {
    /// Name in the program.
    pub name: String,
    /// Section for the linker script.
    pub section: Option<String>,
}

impl Place {
    /// A checked place.
    ///
    /// # Errors
    /// The name is no identifier, or the section's name holds other characters than letters, digits, `.`, `_` and `-`.
    pub fn new(name: &str, section: Option<&str>) -> Result<Self> {
        let mut chars = name.chars();
        let head = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        if !head || !chars.all(|c| c.is_ascii_alphanumeric() || c == '_') {
            bail!("--name {name:?}: expected letters, digits and _");
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if let Some(section) = section.filter(|s| s.is_empty() || !s.chars().all(plain)) {
            bail!("--section {section:?}: expected letters, digits, . _ and -");
        }
        Ok(Self { name: name.into(), section: section.map(Into::into) })
    }
}

/// Rust source beside or near the packed file, which it includes by its path from there.
///
/// # Errors
/// A path cannot be resolved or is no text.
pub fn rust(lpk: &Path, out: &Path, place: &Place) -> Result<String> {
    let path = relative(lpk, out)?;
    let name = place.name.to_uppercase();
    let section = place.section.as_ref().map_or(String::new(), |s| format!(", section = {s:?}"));
    Ok(format!(
        "/// The model, aligned and in place: `Model::open({name})`.\n\
         pub static {name}: &lora_runtime::embedded::Aligned<[u8]> = lora_runtime::include_lpk!({path:?}{section});\n"
    ))
}

/// The way from the folder of `out` to `lpk`, with forward slashes.
fn relative(lpk: &Path, out: &Path) -> Result<String> {
    let folder = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let resolve = |p: &Path| std::fs::canonicalize(p).with_context(|| p.display().to_string());
    let (to, from) = (resolve(lpk)?, resolve(folder)?);
    let same = to.components().zip(from.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(same).map(|_| Component::ParentDir);
    let way: PathBuf = up.chain(to.components().skip(same)).collect();
    let way = way.to_str().with_context(|| format!("{}: not UTF-8", way.display()))?;
    Ok(way.replace('\\', "/"))
}

/// C source with the bytes in it.
///
/// # Errors
/// Writing fails.
pub fn c(bytes: &[u8], place: &Place, out: &mut impl Write) -> std::io::Result<()> {
    let name = &place.name;
    let section = place.section.as_ref().map_or(String::new(), |s| format!(", section(\"{s}\")"));
    writeln!(out, "/* extern const unsigned char {name}[]; extern const size_t {name}_len; */")?;
    writeln!(out, "#include <stddef.h>\n")?;
    writeln!(out, "const size_t {name}_len = {};", bytes.len())?;
    writeln!(out, "__attribute__((aligned(64){section})) const unsigned char {name}[{}] = {{", bytes.len())?;
    let mut line = String::new();
    for run in bytes.chunks(24) {
        line.clear();
        for byte in run {
            // Writing to a string cannot fail.
            let _ = write!(line, "{byte},");
        }
        writeln!(out, "{line}")?;
    }
    writeln!(out, "}};")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_not_compile_are_refused() {
        assert!(Place::new("model", Some(".model")).is_ok());
        for name in ["", "1a", "a-b", "a;b", "ä"] {
            assert!(Place::new(name, None).is_err(), "{name:?}");
        }
        for section in ["", "a b", "a\"b"] {
            assert!(Place::new("a", Some(section)).is_err(), "{section:?}");
        }
    }

    #[test]
    fn rust_source_names_the_file_from_its_own_folder() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("src")).unwrap();
        std::fs::write(at("a.lpk"), b"").unwrap();
        let place = Place::new("model", Some(".model")).unwrap();
        let text = rust(&at("a.lpk"), &at("src/model.rs"), &place).unwrap();
        assert!(text.contains("include_lpk!(\"../a.lpk\", section = \".model\")"), "{text}");
        let beside = rust(&at("a.lpk"), &at("model.rs"), &Place::new("m", None).unwrap()).unwrap();
        assert!(beside.contains("pub static M: ") && beside.contains("include_lpk!(\"a.lpk\")"), "{beside}");
    }

    #[test]
    fn c_source_holds_every_byte() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut text = Vec::new();
        c(&bytes, &Place::new("m", None).unwrap(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let body = text.split_once("= {").unwrap().1.split_once('}').unwrap().0;
        let back: Vec<u8> = body.split(',').filter_map(|n| n.trim().parse().ok()).collect();
        assert_eq!(back, bytes);
        assert!(text.contains("m_len = 256;"));
    }
}
