//! `include/lora_runtime.h` is generated: its functions, structs and sizes are what the sources export, its comments, order
//! and constants are its own. `BLESS=1 cargo test --release -p lora-runtime-c --test header` writes it anew.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// Columns of a line.
const WIDTH: usize = 120;

/// What the sources export.
#[derive(Default)]
struct Exports {
    /// The C name of each Rust type.
    types: BTreeMap<String, String>,
    /// Functions: return type, and parameters with their types.
    functions: BTreeMap<String, (String, Vec<(String, String)>)>,
    /// Structs with their fields.
    structs: BTreeMap<String, Vec<(String, String)>>,
    /// Bytes of the structs that are the library's alone.
    sizes: BTreeMap<String, String>,
}

/// The text between `start` and `end`.
fn between<'t>(text: &'t str, start: &str, end: &str) -> &'t str {
    let rest = text.split_once(start).unwrap_or_else(|| panic!("{start:?} in {:?}", &text[..text.len().min(200)])).1;
    rest.split_once(end).unwrap_or_else(|| panic!("{end:?} behind {start:?}")).0
}

/// `name: type` for each piece of a list.
fn list(text: &str) -> Vec<(String, String)> {
    let pieces = text.split([',', '\n']).filter_map(|piece| piece.trim().trim_start_matches("pub ").split_once(": "));
    pieces.map(|(name, kind)| (name.trim_end_matches('_').to_owned(), kind.to_owned())).collect()
}

impl Exports {
    fn read(&mut self, source: &str) {
        // "… `lora_x` of the header" stands above the type that is called so.
        for (at, _) in source.match_indices("` of the header") {
            let name = source[..at].rsplit('`').next().expect("a name");
            let item =
                source[at..].lines().skip(1).find(|l| !l.starts_with("///") && !l.starts_with("#[")).expect("an item");
            let kind = item.trim_start_matches("pub ").split([' ', '(', '{', '=']).nth(1).expect("a type").to_owned();
            if item.ends_with('{') {
                self.structs.insert(name.to_owned(), list(between(&source[at..], item, "\n}")));
            } else if let Some(constant) = item.strip_suffix("]);").and_then(|i| i.rsplit(' ').next()) {
                let value = between(source, &format!("const {constant}: usize = "), ";");
                self.sizes.insert(name.to_owned(), value.to_owned());
            }
            self.types.insert(kind, name.to_owned());
        }
        for function in source.split("pub unsafe extern \"C\" fn ").skip(1) {
            let (name, rest) = function.split_once('(').expect("parameters");
            let (parameters, rest) = rest.split_once(')').expect("the end of the parameters");
            let result = between(rest, "", "{").trim().trim_start_matches("-> ");
            self.functions.insert(name.to_owned(), (result.to_owned(), list(parameters)));
        }
    }

    /// A declaration of `name`, of this Rust type.
    fn declare(&self, name: &str, kind: &str) -> String {
        if let Some((inner, count)) =
            kind.strip_prefix('[').and_then(|k| k.strip_suffix(']')).and_then(|k| k.split_once("; "))
        {
            return format!("{}[{count}]", self.declare(name, inner));
        }
        if let Some(inner) = kind.strip_prefix("Option<").and_then(|k| k.strip_suffix('>')) {
            return self.declare(name, inner);
        }
        if let Some(target) = kind.strip_prefix("*mut ") {
            return self.declare(&format!("*{name}"), target);
        }
        if let Some(target) = kind.strip_prefix("*const ") {
            let inner = self.declare(&format!("*{name}"), target);
            return if target.starts_with('*') { inner } else { format!("const {inner}") };
        }
        let kind = match kind.rsplit("::").next().expect("a name") {
            "u8" => "uint8_t",
            "u32" => "uint32_t",
            "u64" => "uint64_t",
            "i32" => "int32_t",
            "usize" => "size_t",
            "f32" => "float",
            "c_char" => "char",
            "c_void" | "" => "void",
            own => self.types.get(own).unwrap_or_else(|| panic!("{own} is not said to be of the header")),
        };
        format!("{kind} {name}")
    }

    /// A function's declaration, broken into lines.
    fn function(&self, name: &str) -> String {
        let (result, parameters) =
            self.functions.get(name).unwrap_or_else(|| panic!("the header declares {name}, which nothing exports"));
        let mut line = format!("{}(", self.declare(name, result));
        let indent = line.len();
        let mut text = String::new();
        for (i, (name, kind)) in parameters.iter().enumerate() {
            let piece = self.declare(name, kind) + if i + 1 < parameters.len() { "," } else { ");" };
            let begun = !line.ends_with([' ', '(']);
            if begun && line.len() + 1 + piece.len() > WIDTH {
                text += &line;
                text.push('\n');
                line = " ".repeat(indent);
            } else if begun {
                line.push(' ');
            }
            line += &piece;
        }
        text + &line
    }

    /// A struct with the comments that its fields had, and the lines of their own among them.
    fn structure(&self, name: &str, old: &[&str]) -> String {
        let fields = &self.structs[name];
        let comment = |field: &str| {
            let line = old.iter().position(|l| l.split(['/', ';']).next().is_some_and(|d| ends_with_word(d, field)));
            line.map(|at| {
                let above = old[..at].iter().rev().take_while(|l| l.trim_start().starts_with("/*"));
                let above: Vec<_> = above.copied().filter(|l| at > 0 && l.trim_end().ends_with("*/")).collect();
                (old[at].split_once("/*").map(|(_, comment)| comment.to_owned()), above)
            })
        };
        let lines: Vec<_> = fields.iter().map(|(field, kind)| format!("    {};", self.declare(field, kind))).collect();
        let comments: Vec<_> = fields.iter().map(|(field, _)| comment(field).unwrap_or_default()).collect();
        let commented = lines.iter().zip(&comments).filter(|(_, c)| c.0.is_some());
        let column = commented.map(|(line, _)| line.len()).max().unwrap_or(0);
        let mut text = String::new();
        for (line, (comment, above)) in lines.iter().zip(comments) {
            for line in above.iter().rev() {
                let _ = writeln!(text, "{line}");
            }
            let _ = match comment {
                Some(comment) => writeln!(text, "{line:column$} /*{comment}"),
                None => writeln!(text, "{line}"),
            };
        }
        text
    }

    /// The header anew.
    fn header(&self, old: &str) -> String {
        let mut text = String::new();
        let mut lines = old.lines();
        while let Some(line) = lines.next() {
            let alias = line.strip_prefix("typedef ");
            let opened = alias.unwrap_or(line).strip_prefix("struct ").and_then(|l| l.split_once(" {")).map(|l| l.0);
            let size = line.strip_prefix("#define LORA_").and_then(|l| l.split_once("_BYTES ")).map(|l| l.0);
            if let Some(name) = opened.filter(|name| self.structs.contains_key(*name)) {
                let body: Vec<_> = lines.by_ref().take_while(|l| !l.starts_with('}')).collect();
                let end = if alias.is_some() { format!("}} {name};") } else { "};".into() };
                let _ = writeln!(text, "{line}\n{}{end}", self.structure(name, &body));
            } else if let Some(name) = size {
                let bytes = &self.sizes[&format!("lora_{}", name.to_lowercase())];
                let _ = writeln!(text, "#define LORA_{name}_BYTES {bytes}");
            } else if let Some(name) = declared(line) {
                let mut last = line;
                while !last.ends_with(';') {
                    last = lines.next().expect("the end of a declaration");
                }
                let _ = writeln!(text, "{}", self.function(name));
            } else {
                let _ = writeln!(text, "{line}");
            }
        }
        text
    }
}

/// Whether a field's declaration ends with that name, before an array's length.
fn ends_with_word(declaration: &str, word: &str) -> bool {
    let name = declaration.trim_end().split('[').next().unwrap_or_default();
    name.strip_suffix(word).is_some_and(|before| before.ends_with([' ', '*']))
}

/// The function that a line begins to declare.
fn declared(line: &str) -> Option<&str> {
    let before = line.split_once('(')?.0;
    let (kind, name) = before.rsplit_once([' ', '*'])?;
    (name.starts_with("lora_")
        && !kind.is_empty()
        && !line.starts_with([' ', '/', '#'])
        && !kind.starts_with("typedef"))
    .then_some(name)
}

#[test]
fn the_header_is_what_the_sources_export() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = here.join("include/lora_runtime.h");
    let old = std::fs::read_to_string(&path).unwrap();
    let mut exports = Exports::default();
    let mut sources: Vec<_> = std::fs::read_dir(here.join("src")).unwrap().map(|e| e.unwrap().path()).collect();
    sources.sort();
    for source in sources {
        exports.read(&std::fs::read_to_string(source).unwrap());
    }
    assert!(exports.functions.len() > 25 && exports.structs.len() > 8 && exports.sizes.len() == 3);
    let new = exports.header(&old);
    for name in exports.functions.keys() {
        assert_eq!(
            new.matches(&format!("{name}(lora_")).count() + new.matches(&format!("{name}(const ")).count(),
            1,
            "{name}"
        );
    }
    for name in exports.structs.keys() {
        assert!(new.contains(&format!("struct {name} {{")), "{name} stands nowhere in the header");
    }
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &new).unwrap();
    } else if let Some((old, new)) = old.lines().zip(new.lines()).find(|(old, new)| old != new) {
        panic!("the header says {old:?} instead of {new:?}; BLESS=1 writes it anew");
    } else {
        assert_eq!(old, new);
    }
}
