//! `docs/models.md`: which architectures are supported, and what is proved of each, from the ledger. Whoever blesses the
//! ledger writes the page, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use anyhow::{Context, Result};
use lora_models::arch::{ARCHITECTURES, Reader};
use serde_json::Value;

use crate::case::Case;
use crate::data;

/// Columns of the table, and the ledger's checks behind each.
const COLUMNS: &[(&str, &[&str])] = &[
    ("f32", &["raw"]),
    ("text or answer", &["greedy", "beam", "task"]),
    ("q8", &["q8", "q8 greedy"]),
    ("q4", &["q4"]),
    ("same bits", &["bits", "q4 bits"]),
    ("merged weights", &["merged"]),
    ("unmerged", &["unmerged", "unmerged greedy"]),
];

/// Passed and asked, by column.
type Row = Vec<(usize, usize)>;

fn count(row: &mut Row, entry: &Value) {
    let pass: BTreeSet<&str> = entry["pass"].as_str().unwrap_or("").split(", ").collect();
    let refused = |check: &str| entry["not covered"].get(check).is_some();
    for (cell, (_, checks)) in row.iter_mut().zip(COLUMNS) {
        cell.0 += checks.iter().filter(|c| pass.contains(*c)).count();
        cell.1 += checks.iter().filter(|c| pass.contains(*c) || refused(c)).count();
    }
}

fn page(ledger: &Value, cases: &[Case]) -> String {
    let mut rows: BTreeMap<(&str, &str), (Vec<&str>, Row)> = BTreeMap::new();
    for case in cases {
        let new = || (Vec::new(), vec![(0, 0); COLUMNS.len()]);
        let (names, row) = rows.entry((case.arch.as_str(), case.task.name())).or_insert_with(new);
        names.push(&case.name);
        for entry in ledger[&case.name].as_object().into_iter().flatten().map(|(_, e)| e) {
            count(row, entry);
        }
    }
    let mut out = String::from(
        "# Models\n\n\
         Generated from `tests/coverage.json` and the list of architectures, whenever the ledger is blessed (`tests/README.md`). Any other `model_type`, and any option of a config that would change numbers and is not supported, is refused by name.\n\n\
         ## Architectures\n",
    );
    let kind = |r: &Reader| match r {
        Reader::Decoder(_) => "Decoders (CAUSAL_LM, SEQ_CLS, TOKEN_CLS, QUESTION_ANS, FEATURE_EXTRACTION)",
        Reader::Encoder(_) => "Encoders (SEQ_CLS, TOKEN_CLS, QUESTION_ANS, FEATURE_EXTRACTION)",
        Reader::Seq2Seq(_) => "Encoder–decoders (SEQ_2_SEQ_LM)",
    };
    let titles: BTreeSet<&str> = ARCHITECTURES.iter().map(|(_, r)| kind(r)).collect();
    for title in titles {
        let of = ARCHITECTURES.iter().filter(|(_, r)| kind(r) == title);
        let names: Vec<&str> = of.map(|(name, _)| *name).collect();
        let _ = writeln!(out, "- **{title}**: {}", names.join(", "));
    }
    let proved: BTreeSet<&str> = cases.iter().map(|c| c.arch.as_str()).collect();
    let without: Vec<&str> = ARCHITECTURES.iter().map(|a| a.0).filter(|a| !proved.contains(a)).collect();
    let _ = writeln!(out, "\nWithout a recorded case of their own: {}.", without.join(", "));
    out += "\n## What is proved\n\nChecks passed of those asked, over all modes of the recorded cases (base, adapter, combinations): `f32` every output \
            within 10⁻³ of a standard deviation of transformers + PEFT; `q8`, `q4` within the kit's bars; `same bits` over threads, chunks \
            and instruction sets.\n\n";
    let titles: Vec<&str> = COLUMNS.iter().map(|c| c.0).collect();
    let _ = writeln!(out, "| architecture | task | cases | {} |", titles.join(" | "));
    let _ = writeln!(out, "|---|---|---|{}", "---|".repeat(COLUMNS.len()));
    for ((arch, task), (names, row)) in &rows {
        let cell = |(pass, asked): &(usize, usize)| match asked {
            0 => "–".to_owned(),
            _ => format!("{pass}/{asked}"),
        };
        let cells: Vec<String> = row.iter().map(cell).collect();
        let _ = writeln!(out, "| {arch} | {task} | {} | {} |", names.join(", "), cells.join(" | "));
    }
    out
}

/// The page as it should be, and its path; `None` without the kit, whose cases it lists.
///
/// # Errors
/// If the ledger or a case cannot be read.
pub fn expected() -> Result<Option<(std::path::PathBuf, String)>> {
    let Some(kit) = data::shared_fixtures("the page of models") else { return Ok(None) };
    let ledger = std::fs::read_to_string(data::workspace().join("tests/coverage.json")).context("the ledger")?;
    let ledger: Value = serde_json::from_str(&ledger).context("the ledger")?;
    let mut folders = data::case_folders(&kit)?;
    folders.extend(data::case_folders(&data::committed())?);
    let mut cases: Vec<Case> = folders.iter().map(|f| Case::read(f)).collect::<Result<_>>()?;
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases.dedup_by(|a, b| a.name == b.name);
    Ok(Some((data::workspace().join("docs/models.md"), page(&ledger, &cases))))
}
