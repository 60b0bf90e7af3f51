//! Every recorded model case in every mode: merged, unmerged, quantized, by the task's own verb.
//!
//! `CONFORMANCE_CASES=llama,bert` and `CONFORMANCE_MODES=base` restrict a run by parts of names.

use std::path::Path;

use conformance::{checks, data, in_parallel, ledger};

fn run(title: &str, root: &Path) {
    let wanted = std::env::var("CONFORMANCE_CASES").unwrap_or_default();
    let folders = data::case_folders(root).expect("the folder of cases can be listed");
    let name = |p: &Path| p.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let chosen: Vec<_> = folders.into_iter().filter(|p| ledger::selected(&wanted, &name(p))).collect();
    let results = in_parallel(&chosen, |dir| (name(dir), checks::case(dir).expect("the case itself is sound")));
    ledger::enforce(title, &results);
}

#[test]
fn committed_cases() {
    let root = data::committed();
    assert!(data::case_folders(&root).is_ok_and(|c| c.len() >= 3), "the committed cases are gone");
    run("committed cases", &root);
}

#[test]
fn conformance_kit() {
    if let Some(root) = data::shared_fixtures("the conformance kit") {
        run("conformance kit", &root);
    }
}
