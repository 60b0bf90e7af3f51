//! The machine code of the kernel entries: what the compiler made of the bodies, read from a disassembly.
//!
//! A kernel body is generic and relies on inlining; nothing in the language promises it. Here is checked that no entry contains a call, and
//! that no loop over tokens of a linear entry, nor an innermost loop of attention, stores a vector register on the stack. Not judged: the
//! loop for one token, which waits for memory anyway. The same reading counts instructions: of the loop over groups for one token, per row
//! of 32 weights, and of the loop over tokens, per row and token.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Arguments of `code`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A program that contains the kernels (default: this one)
    pub program: Option<PathBuf>,
    /// The disassembler: that of the program's processor
    #[arg(long, value_name = "NAME", default_value = "objdump")]
    pub objdump: String,
}

/// An instruction: its address, and its text.
type Line<'t> = (u64, &'t str);

/// What was found in an entry.
#[derive(Clone, Debug, Default, PartialEq)]
struct Entry {
    calls: usize,
    /// The innermost loops.
    loops: Vec<Loop>,
}

/// What was found in a loop.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Loop {
    instructions: usize,
    /// It asks for cache lines: of a linear entry, only the loop for one token does.
    asks: bool,
    /// It multiplies: what makes activations ready does not.
    multiplies: bool,
    /// It multiplies codes.
    dots: bool,
    /// Vector registers stored on the stack.
    spills: usize,
}

impl Entry {
    /// Spills in the loops that are judged.
    fn spills(&self, name: &str) -> usize {
        let attention = name.starts_with("attend_s") || name.starts_with("attend_v");
        let judged = |l: &&Loop| attention || name.starts_with("linear_") && !l.asks;
        self.loops.iter().filter(judged).map(|l| l.spills).sum()
    }
}

/// Runs the verb.
///
/// # Errors
/// There is no disassembler, or an entry contains a call or a spill.
pub fn run(args: &Args) -> Result<()> {
    let program = match &args.program {
        Some(path) => path.clone(),
        None => std::env::current_exe()?,
    };
    let entries = read(&program, &args.objdump)?;
    print!("{}", table(&entries));
    let bad: Vec<String> = entries
        .iter()
        .filter(|((_, name), e)| e.calls > 0 || e.spills(name) > 0)
        .map(|((level, name), e)| format!("{name}@{level}: {} calls, {} spills in loops", e.calls, e.spills(name)))
        .collect();
    if !bad.is_empty() {
        bail!("{}", bad.join("\n"));
    }
    eprintln!("{} entries: no call, and no spill in their loops", entries.len());
    Ok(())
}

/// The instruction counts of this program as a Markdown table, or why there are none.
pub fn counts() -> String {
    match std::env::current_exe().map_err(Into::into).and_then(|program| read(&program, "objdump")) {
        Ok(entries) => table(&entries),
        Err(error) => format!("Not counted: {error:#}\n"),
    }
}

/// Entries by level and name.
type Entries = BTreeMap<(String, String), Entry>;

fn read(program: &Path, objdump: &str) -> Result<Entries> {
    let output = Command::new(objdump)
        .args(["--disassemble", "--demangle", "--no-show-raw-insn"])
        .arg(program)
        .output()
        .with_context(|| format!("cannot run {objdump} (Debian: binutils)"))?;
    let entries = parse(&String::from_utf8_lossy(&output.stdout));
    if entries.is_empty() {
        bail!("{}: no kernel entries (stripped, or built without optimization?)", program.display());
    }
    Ok(entries)
}

/// Reads a disassembly.
fn parse(text: &str) -> Entries {
    let mut entries = Entries::new();
    // Functions are separated by empty lines and begin with `address <name>:`.
    for function in text.split("\n\n") {
        let mut lines = function.lines();
        let Some(name) = lines.find_map(|l| l.split_once('<')?.1.strip_suffix(">:")) else { continue };
        let Some(path) = name.strip_prefix("lora_runtime::kernels::table::") else { continue };
        let Some((module, entry)) = path.split_once("::") else { continue };
        let level = module.strip_suffix("_floats").unwrap_or(module);
        // The scalar level is the specification and may be slow; `Kernels::…` are functions of the table itself.
        if !level.starts_with(char::is_lowercase) || level.starts_with("scalar") || entry.contains("::") {
            continue;
        }
        let code: Vec<Line<'_>> = lines.filter_map(instruction).collect();
        entries.insert((level.to_owned(), entry.to_owned()), judge(&code));
    }
    entries
}

/// `  45290:\tpush %rbp` as address and text.
fn instruction(line: &str) -> Option<Line<'_>> {
    let (address, text) = line.split_once(':')?;
    Some((u64::from_str_radix(address.trim(), 16).ok()?, text.trim()))
}

fn judge(code: &[Line<'_>]) -> Entry {
    let read = |(from, to): (usize, usize)| {
        let body = &code[from..=to];
        let has = |parts: &[&str]| body.iter().any(|(_, text)| parts.iter().any(|p| mnemonic(text).contains(p)));
        Loop {
            instructions: body.len(),
            asks: body.iter().any(|(_, text)| text.starts_with("prefetch") || text.starts_with("prfm")),
            multiplies: has(&["mul", "fml", "dot"]),
            dots: has(&["maddubs", "dpbus", "dot", "mmla", "smull", "smlal"]),
            spills: body.iter().filter(|(_, text)| is_spill(text)).count(),
        }
    };
    Entry {
        calls: code.iter().filter(|(_, text)| is_call(text)).count(),
        loops: innermost(code).into_iter().map(read).collect(),
    }
}

/// First and last instruction of every loop that contains no other.
fn innermost(code: &[Line<'_>]) -> Vec<(usize, usize)> {
    let backward = |(at, (address, text)): (usize, &Line<'_>)| {
        let target = jump_target(text).filter(|target| target <= address)?;
        Some((code.iter().position(|(a, _)| *a == target)?, at))
    };
    let all: Vec<(usize, usize)> = code.iter().enumerate().filter_map(backward).collect();
    let contains = |outer: &(usize, usize), inner: &(usize, usize)| outer.0 <= inner.0 && inner.1 <= outer.1;
    let is_innermost = |l: &(usize, usize)| all.iter().filter(|other| contains(l, other)).count() == 1;
    all.iter().filter(|l| is_innermost(l)).copied().collect()
}

fn mnemonic(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or("")
}

/// The address that a jump goes to: `jne 45360 <name+0xd0>`, `cbnz x8, 45360 <…>`.
fn jump_target(text: &str) -> Option<u64> {
    let m = mnemonic(text);
    let jumps = m.starts_with('j') || m == "b" || m.starts_with("b.") || m.starts_with("cb") || m.starts_with("tb");
    let target = text.split('<').next()?.trim().rsplit([' ', '\t', ',']).next()?;
    if jumps { u64::from_str_radix(target.trim_start_matches("0x"), 16).ok() } else { None }
}

fn is_call(text: &str) -> bool {
    matches!(mnemonic(text), "call" | "callq" | "bl" | "blr")
}

/// A vector register stored on the stack: `vmovdqu %ymm3,0x20(%rsp)`, `str q3, [sp, #32]`.
fn is_spill(text: &str) -> bool {
    let m = mnemonic(text);
    let x86 = m.contains("mov") && text.contains("mm") && text.ends_with("(%rsp)");
    let arm =
        (m == "str" || m == "stp" || m == "stur") && text.contains("[sp") && text[m.len()..].trim().starts_with('q');
    x86 || arm
}

/// Rows of 32 weights that a turn of the loop over tokens does, by level: those of a register; AVX-512 has eight tokens in a turn,
/// and AMX adds up four groups.
fn rows_of_a_turn(level: &str) -> usize {
    match level {
        "avx2" | "avxvnni" => 8,
        "avx512" => 8 * 16,
        "amx" => 4 * 16,
        _ => 4,
    }
}

/// Instructions of the linear entries, per row and group of 32 weights.
fn table(entries: &Entries) -> String {
    let mut text = String::from(
        "| level | format | one token: instructions per 32 weights | many tokens: per 32 weights and token |\n\
         |---|---|---|---|\n",
    );
    for ((level, name), entry) in entries {
        let Some(format) = name.strip_prefix("linear_").filter(|f| !f.starts_with('f')) else { continue };
        // A panel has 16 rows.
        let most = |of: fn(&&Loop) -> bool| entry.loops.iter().filter(of).map(|l| l.instructions).max().unwrap_or(0);
        let one = most(|l| l.asks && l.dots) as f64 / 16.0;
        let many = most(|l| !l.asks && l.multiplies) as f64 / rows_of_a_turn(level) as f64;
        text += &format!("| {level} | {format} | {one:.1} | {many:.1} |\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
0000000000001000 <lora_runtime::kernels::table::avx2::linear_q4>:
    1000:\tpush   %rbp
    1004:\tprefetcht0 0xc00(%rdx)
    1006:\tvpmaddubsw %ymm1,%ymm2,%ymm3
    1008:\tvmovdqu %ymm3,0x20(%rsp)
    100c:\tjne    1004 <lora_runtime::kernels::table::avx2::linear_q4+0x4>
    1010:\tmov    %rax,0x8(%rsp)
    1014:\tvmulps (%r8),%ymm1,%ymm2
    1018:\tjb     1014 <lora_runtime::kernels::table::avx2::linear_q4+0x14>
    101c:\tjmp    1010 <lora_runtime::kernels::table::avx2::linear_q4+0x10>
    1020:\tcall   *0x551(%rip)        # 1f7 <memcpy@GLIBC_2.14>
    1024:\tret

0000000000002000 <lora_runtime::kernels::table::neon_floats::attend_scores>:
    2000:\tldr q1, [x0]
    2004:\tstr q1, [sp, #16]
    2008:\tcbnz x8, 2000 <x>
    200c:\tb.ne 200c <x>
    2010:\tret

0000000000003000 <lora_runtime::kernels::table::Kernels::best>:
    3000:\tcall 1000 <x>
";

    #[test]
    fn loops_calls_and_spills_are_found() {
        let entries = parse(TEXT);
        assert_eq!(entries.len(), 2);
        let q4 = &entries[&("avx2".to_owned(), "linear_q4".to_owned())];
        let seen = |instructions, spills| Loop { instructions, spills, ..Loop::default() };
        let one = Loop { asks: true, dots: true, ..seen(4, 1) };
        assert_eq!(*q4, Entry { calls: 1, loops: vec![one, Loop { multiplies: true, ..seen(2, 0) }] });
        assert_eq!(q4.spills("linear_q4"), 0);
        let scores = &entries[&("neon".to_owned(), "attend_scores".to_owned())];
        assert_eq!(*scores, Entry { calls: 0, loops: vec![seen(3, 1), seen(1, 0)] });
        assert_eq!(scores.spills("attend_scores"), 1);
        assert!(table(&entries).contains("| avx2 | q4 | 0.2 | 0.2 |"));
    }
}
