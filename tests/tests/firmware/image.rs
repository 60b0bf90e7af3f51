//! What is in an image: its size, and who could reach a panic.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lora_pack::target::{Firmware, Target};

use super::succeed;

/// Bytes of code that the classifier, whole with start code and program, may have on any Cortex-M.
pub const GOAL: u64 = 120 << 10;

/// Where panics remain, each behind a check that has been made before: docs/firmware.md says which.
const MODULES: [&str; 12] = [
    "lora_runtime::session",
    "lora_runtime::ops",
    "lora_runtime::kernels",
    "lora_runtime::tokenizer",
    "lora_runtime::weights",
    "lora_runtime::format",
    "lora_runtime::program",
    "lora_runtime::model",
    "lora_runtime::adapter",
    // Of core, called by the above and by the program: pieces of slices, pairs of iterators, closures.
    "core::slice",
    "core::iter",
    "core::ops",
];

/// What a classifier has no use for: a program holds the tasks that it calls, so they need no features of their own.
const OTHERS: [&str; 4] =
    ["lora_runtime::sampler", "lora_runtime::selftest", "lora_runtime::tasks::generate", "lora_runtime::tasks::tag"];

/// The ends that are left: places outside of a slice, asserted conditions, a divisor of zero. None of `unwrap`, of
/// arithmetic that overflows, or of text cut within a character.
const ENDS: [&str; 10] = [
    "core::panicking::panic",
    "core::panicking::panic_fmt",
    "core::panicking::panic_bounds_check",
    "core::panicking::panic_const::panic_const_div_by_zero",
    "core::panicking::panic_const::panic_const_rem_by_zero",
    "core::slice::index::slice_index_fail",
    "core::slice::copy_from_slice_impl::len_mismatch_fail",
    "core::slice::<impl [T]>::copy_from_slice::len_mismatch_fail",
    "core::slice::<impl [T]>::split_at::fail",
    "core::panicking::panic_nounwind",
];

/// What `lora-pack plan --target` says of firmware for a processor.
pub fn planned(processor: &str) -> Result<Firmware> {
    Target::from_name(processor).and_then(|t| t.firmware).context("plan --target knows the processor")
}

/// Checks the classifier's image for a board against the lists above and the goal.
pub fn check(board: &str, image: &Path) -> Result<()> {
    let (code, constants) = sizes(image)?;
    conformance::say(&format!("{board}: classify: {code} bytes of code (at most {GOAL}), {constants} of constants"));
    ensure!(code <= GOAL, "{code} bytes of code are more than {GOAL}");
    let planned = planned(board)?.code_bytes;
    ensure!((planned * 98 / 100..=planned).contains(&(code + constants)), "plan --target says {planned} bytes");
    let mut callers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let text = succeed(Command::new("arm-none-eabi-objdump").args(["-d", "-C", "--no-show-raw-insn"]).arg(image))?;
    let mut function = "";
    for line in text.lines() {
        if let Some(name) = line.strip_suffix(">:").and_then(|l| l.split_once(" <")) {
            function = name.1;
            ensure!(!OTHERS.iter().any(|other| function.starts_with(other)), "{function} is in the classifier's image");
        } else if let Some(target) = branch(line)
            && ends(target)
            && !ends(function)
        {
            callers.entry(target.to_owned()).or_default().push(function.to_owned());
        }
    }
    ensure!(callers.len() > 2, "the disassembly names no panics: {} lines", text.lines().count());
    let mut wrong = Vec::new();
    let mut modules: BTreeMap<&str, usize> = BTreeMap::new();
    for (end, functions) in &callers {
        if !ENDS.contains(&end.as_str()) {
            wrong.push(format!("{end} is called by {}", functions.join(", ")));
        }
        for function in functions {
            // `<core::iter::…::Zip<A,B> as …>::new` is core's too; the example itself cuts its own buffers.
            let name = function.trim_start_matches(['<', '&']);
            match MODULES.iter().find(|m| name.starts_with(**m)) {
                Some(module) => *modules.entry(module).or_default() += 1,
                None if name.starts_with("classify::") => {}
                None => wrong.push(format!("{function} can reach {end}")),
            }
        }
    }
    let count: Vec<_> = modules.iter().map(|(module, n)| format!("{module} {n}")).collect();
    conformance::say(&format!("{board}: calls that panic: {}", count.join(", ")));
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The function that an instruction calls or jumps to.
fn branch(line: &str) -> Option<&str> {
    let mut parts = line.split('\t');
    let operation = parts.nth(1)?;
    let target = parts.next()?.split_once('<')?.1;
    operation.starts_with('b').then(|| target.strip_suffix('>').unwrap_or(target))
}

/// Whether a function of core only serves to panic.
fn ends(function: &str) -> bool {
    function.starts_with("core::panicking::")
        || ["_fail", "::fail", "_failed", "something_went_wrong"].iter().any(|end| function.ends_with(end))
            && !function.starts_with("lora_runtime")
}

/// Sizes of an ELF32 file's sections: code, and constants.
pub fn sizes(image: &Path) -> Result<(u64, u64)> {
    let file = std::fs::read(image).with_context(|| image.display().to_string())?;
    let number = |at: usize, n: usize| -> Result<usize> {
        let bytes = file.get(at..at + n).context("the image ends early")?;
        Ok(bytes.iter().rev().fold(0, |v, b| v << 8 | usize::from(*b)))
    };
    ensure!(file.starts_with(b"\x7fELF\x01\x01"), "not a 32-bit ELF file");
    let (table, size, count, names) = (number(32, 4)?, number(46, 2)?, number(48, 2)?, number(50, 2)?);
    let names = number(table + names * size + 16, 4)?;
    let (mut code, mut constants) = (0, 0);
    for i in 0..count {
        let section = table + i * size;
        let name = &file[names + number(section, 4)?..];
        let len = number(section + 20, 4)? as u64;
        match name.split(|b| *b == 0).next().unwrap_or_default() {
            b".text" | b".vectors" => code += len,
            b".rodata" | b".data" => constants += len,
            _ => {}
        }
    }
    Ok((code, constants))
}
