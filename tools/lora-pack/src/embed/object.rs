//! A relocatable ELF object with one section: the model, 64-byte aligned, and its length behind it.
//!
//! Layout after the System V ABI's generic part: header, section contents, symbol table, string tables, section headers.

use super::Place;

/// For which processors the linker works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// 32-bit ARM.
    Arm,
    /// 64-bit ARM.
    Aarch64,
    /// x86-64.
    X86_64,
}

impl Machine {
    /// The machine of a processor or target name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "arm" => Some(Self::Arm),
            "aarch64" => Some(Self::Aarch64),
            "x86_64" => Some(Self::X86_64),
            _ if name.starts_with("thumb") || name.starts_with("cortex-m") || name.starts_with("armv7") => {
                Some(Self::Arm)
            }
            _ if name.starts_with("aarch64-") => Some(Self::Aarch64),
            _ if name.starts_with("x86_64-") => Some(Self::X86_64),
            _ => None,
        }
    }

    fn wide(self) -> bool {
        self != Self::Arm
    }

    /// Number in the header, and its flags (for ARM: version 5 of its binary interface).
    fn numbers(self) -> (u16, u32) {
        match self {
            Self::Arm => (40, 0x0500_0000),
            Self::Aarch64 => (183, 0),
            Self::X86_64 => (62, 0),
        }
    }
}

/// Little-endian output in which an address is 4 or 8 bytes wide.
struct Out {
    bytes: Vec<u8>,
    wide: bool,
}

impl Out {
    fn half(&mut self, v: u16) {
        self.bytes.extend(v.to_le_bytes());
    }
    fn word(&mut self, v: u32) {
        self.bytes.extend(v.to_le_bytes());
    }
    fn address(&mut self, v: u64) {
        let all = v.to_le_bytes();
        self.bytes.extend(if self.wide { &all[..] } else { &all[..4] });
    }
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

/// Contents and header fields of a section.
struct Section<'n> {
    name: &'n str,
    kind: u32,
    flags: u64,
    at: u64,
    len: u64,
    link: u32,
    info: u32,
    align: u64,
    entry: u64,
}

/// A section without flags, links or alignment.
fn plain(name: &str, kind: u32, at: usize, len: usize) -> Section<'_> {
    Section { name, kind, flags: 0, at: at as u64, len: len as u64, link: 0, info: 0, align: 1, entry: 0 }
}

/// The object file.
#[must_use]
pub fn object(model: &[u8], place: &Place, machine: Machine) -> Vec<u8> {
    let wide = machine.wide();
    let (header, symbol, section) = if wide { (64, 24, 64) } else { (52, 16, 40) };
    let mut out = Out { bytes: vec![0; header], wide };
    out.align(64);
    let data = out.bytes.len();
    out.bytes.extend_from_slice(model);
    out.align(8);
    let length = out.bytes.len() - data;
    out.address(model.len() as u64);
    let data_len = out.bytes.len() - data;

    // Strings: a zero, then each name and a zero.
    let name = place.section.clone().unwrap_or_else(|| ".rodata.model".into());
    let strings = format!("\0{0}\0{0}_len\0", place.name);
    let section_names = format!("\0{name}\0.symtab\0.strtab\0.shstrtab\0.note.GNU-stack\0");
    out.align(8);
    let symbols_at = out.bytes.len();
    let word_bytes = if wide { 8 } else { 4 };
    let objects = [(1, 0, model.len() as u64), (2 + place.name.len() as u32, length as u64, word_bytes)];
    out.bytes.resize(symbols_at + symbol, 0);
    // Global (1) objects (1) of section 1.
    for (name, at, size) in objects {
        out.word(name);
        if wide {
            out.bytes.extend([0x11, 0]);
            out.half(1);
            out.address(at);
            out.address(size);
        } else {
            out.address(at);
            out.address(size);
            out.bytes.extend([0x11, 0]);
            out.half(1);
        }
    }
    let strings_at = out.bytes.len();
    out.bytes.extend(strings.bytes());
    let names_at = out.bytes.len();
    out.bytes.extend(section_names.bytes());
    out.align(8);
    let table_at = out.bytes.len();

    let sections = [
        Section { align: 0, ..plain("", 0, 0, 0) },
        // Program data (1), allocated (2).
        Section { flags: 2, align: 64, ..plain(&name, 1, data, data_len) },
        // Symbols (2): their strings are section 3, the first global one is number 1.
        Section {
            link: 3,
            info: 1,
            align: 8,
            entry: symbol as u64,
            ..plain(".symtab", 2, symbols_at, strings_at - symbols_at)
        },
        plain(".strtab", 3, strings_at, strings.len()),
        plain(".shstrtab", 3, names_at, section_names.len()),
        // Says that the stack need not be executable.
        plain(".note.GNU-stack", 1, table_at, 0),
    ];
    for s in &sections {
        // A name may be the end of another: look for it with the zeros around it. The empty one is at 0.
        let found = section_names.find(&format!("\0{}\0", s.name)).map_or(0, |at| at + 1);
        out.word(found as u32);
        out.word(s.kind);
        out.address(s.flags);
        out.address(0);
        out.address(s.at);
        out.address(s.len);
        out.word(s.link);
        out.word(s.info);
        out.address(s.align);
        out.address(s.entry);
    }

    let (number, flags) = machine.numbers();
    let mut head = Out { bytes: Vec::new(), wide };
    head.bytes.extend(b"\x7fELF");
    head.bytes.extend([if wide { 2 } else { 1 }, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    head.half(1);
    head.half(number);
    head.word(1);
    head.address(0);
    head.address(0);
    head.address(table_at as u64);
    head.word(flags);
    head.half(header as u16);
    head.half(0);
    head.half(0);
    head.half(section as u16);
    head.half(sections.len() as u16);
    head.half(4);
    out.bytes[..header].copy_from_slice(&head.bytes);
    out.bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a reader of the headers finds: each section's name, and offset and length of its contents.
    fn sections(file: &[u8], wide: bool) -> Vec<(String, usize, usize)> {
        let number = |at: usize, n: usize| file[at..at + n].iter().rev().fold(0, |v, b| v << 8 | usize::from(*b));
        let (address, table, size, count) = if wide { (8, 40, 64, 60) } else { (4, 32, 40, 48) };
        let field = |i: usize, at: usize, n: usize| number(number(table, address) + i * size + at, n);
        let place = |i: usize| (field(i, 8 + 2 * address, address), field(i, 8 + 3 * address, address));
        let n = number(count, 2);
        let names = place(number(count + 2, 2)).0;
        let text = |at: usize| file[at..].iter().take_while(|b| **b != 0).map(|b| *b as char).collect();
        (0..n).map(|i| (text(names + field(i, 0, 4)), place(i).0, place(i).1)).collect()
    }

    #[test]
    fn the_headers_lead_to_the_model_and_its_length() {
        let model: Vec<u8> = (0..1003_u32).map(|i| i as u8).collect();
        for machine in [Machine::Arm, Machine::Aarch64, Machine::X86_64] {
            let place = Place::new("home", Some(".symtab.model")).unwrap();
            let file = object(&model, &place, machine);
            let all = sections(&file, machine.wide());
            let names: Vec<&str> = all.iter().map(|s| s.0.as_str()).collect();
            assert_eq!(names, ["", ".symtab.model", ".symtab", ".strtab", ".shstrtab", ".note.GNU-stack"]);
            let (_, at, len) = all[1];
            assert_eq!(at % 64, 0);
            assert_eq!(file[at..at + 1003], model);
            let word = if machine.wide() { 8 } else { 4 };
            assert_eq!((len, file[at + 1008..at + 1010].to_vec()), (1008 + word, 1003_u16.to_le_bytes().to_vec()));
            let (_, strings, _) = all[3];
            assert!(file[strings..].starts_with(b"\0home\0home_len\0"));
        }
    }
}
