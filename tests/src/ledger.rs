//! `tests/coverage.json`: which checks pass and which are not covered yet, per case and mode.
//!
//! A run must agree with the file in both directions. A check that stops passing is a regression; one that
//! starts to pass has to be recorded, so that it can never silently stop again. `BLESS=1` rewrites the entries of
//! the cases that ran. A failed check is never recorded: it fails the test until the program is mended.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::desk::{Miss, Report};

/// What is known of one mode of a case.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Entry {
    /// Checks that pass, by name, comma separated.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pass: String,
    /// Checks that the programs refuse, with their reason.
    #[serde(default, rename = "not covered", skip_serializing_if = "BTreeMap::is_empty")]
    pub not_covered: BTreeMap<String, String>,
}

/// Case, then mode.
type Ledger = BTreeMap<String, BTreeMap<String, Entry>>;

/// Results of a run: case name, then (mode, report).
pub type Results = Vec<(String, Vec<(String, Report)>)>;

fn path() -> PathBuf {
    crate::data::workspace().join("tests/coverage.json")
}

fn read() -> Result<Ledger> {
    match std::fs::read_to_string(path()) {
        Ok(text) => serde_json::from_str(&text).context("reading tests/coverage.json"),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Ledger::new()),
        Err(e) => Err(e).context("reading tests/coverage.json"),
    }
}

/// True if `name` holds one of the comma-separated words in `wanted`, or nothing is wanted in particular.
#[must_use]
pub fn selected(wanted: &str, name: &str) -> bool {
    wanted.is_empty() || wanted.split(',').any(|w| name.contains(w))
}

/// Compares results with the ledger, prints a table, and returns what is wrong: failed checks and differences.
///
/// # Errors
/// If the ledger cannot be read or, with `BLESS=1`, written.
pub fn judge(title: &str, results: &Results) -> Result<Vec<String>> {
    // Several tests of one executable may bless at the same time.
    static FILE: Mutex<()> = Mutex::new(());
    let _guard = FILE.lock();
    let bless = std::env::var_os("BLESS").is_some_and(|v| v == "1");
    let mut ledger = read()?;
    let (mut wrong, mut passed, mut missing, mut failed) = (Vec::new(), 0, 0, 0);
    for (case, modes) in results {
        for (mode, report) in modes {
            let known = ledger.get(case).and_then(|m| m.get(mode)).cloned().unwrap_or_default();
            let known_pass: BTreeSet<&str> = known.pass.split(", ").filter(|s| !s.is_empty()).collect();
            let mut entry = Entry::default();
            let (mut pass, mut words) = (BTreeSet::new(), Vec::new());
            for (check, outcome) in report {
                match outcome {
                    Ok(measure) => {
                        passed += 1;
                        pass.insert(*check);
                        words.push(format!("{check} {measure}"));
                    }
                    Err(Miss::NotCovered(reason)) => {
                        missing += 1;
                        entry.not_covered.insert((*check).to_owned(), reason.clone());
                        words.push(format!("{check} —"));
                        if known_pass.contains(check) && !bless {
                            wrong.push(format!("{case}/{mode}: {check} passed before, is now refused: {reason}"));
                        }
                    }
                    Err(Miss::Failed(why)) => {
                        failed += 1;
                        words.push(format!("{check} FAILED"));
                        wrong.push(format!("{case}/{mode}: {check} failed: {why}"));
                    }
                }
            }
            crate::say(&format!("{case:26} {mode:16} {}", words.join(" · ")));
            entry.pass = pass.iter().copied().collect::<Vec<_>>().join(", ");
            if bless {
                ledger.entry(case.clone()).or_default().insert(mode.clone(), entry);
                continue;
            }
            let asked: BTreeSet<&str> = report.iter().map(|(check, _)| *check).collect();
            for check in pass.difference(&known_pass) {
                wrong.push(format!("{case}/{mode}: {check} passes and is not recorded (BLESS=1 records it)"));
            }
            for check in known_pass.difference(&asked) {
                wrong.push(format!("{case}/{mode}: {check} passed before and was not reached"));
            }
        }
    }
    if bless {
        let text = serde_json::to_string_pretty(&ledger)?;
        std::fs::write(path(), text + "\n").context("writing tests/coverage.json")?;
        if let Some((path, page)) = crate::models::expected()? {
            std::fs::write(path, page).context("writing docs/models.md")?;
        }
    }
    crate::say(&format!("{title}: {passed} checks passed, {missing} not covered, {failed} failed"));
    Ok(wrong)
}

/// [`judge`], failing the test with every finding.
///
/// # Panics
/// If anything failed or differs from the ledger.
pub fn enforce(title: &str, results: &Results) {
    let wrong = judge(title, results).expect("the ledger is readable");
    assert!(wrong.is_empty(), "{title}: {} findings\n{}", wrong.len(), wrong.join("\n"));
}
