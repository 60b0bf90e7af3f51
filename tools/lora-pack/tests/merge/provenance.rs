//! Whether the base is the one that an adapter was trained on.

use super::kit::{Kit, rows};
use lora_pack::merge::{AdapterSpec, Level, MergeOptions, Merged};
use lora_pack::source::BaseModel;
use serde_json::json;

const Q: &str = "model.layers.0.q.weight";
const HERE: &str = "0123456789abcdef0123456789abcdef01234567";
const THERE: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// What merging an adapter that was trained on `trained` says, over a base that lies in a cache as commit [`HERE`] (its
/// `main`), or anywhere; `said` is the user's word for the base.
fn merge(trained: &str, cached: bool, said: Option<&str>, force: bool) -> Result<Vec<(Level, String)>, String> {
    let mut kit = Kit::llama(&[(Q, rows(&[[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]))]);
    let config = json!({"target_modules": ["q"], "base_model_name_or_path": "org/name", "revision": trained});
    let factors = [
        ("model.layers.0.q.lora_A.weight", rows(&[[1.0, 2.0, 0.0]])),
        ("model.layers.0.q.lora_B.weight", rows(&[[0.5], [-1.0]])),
    ];
    let adapter = kit.adapter(config, &factors);
    let mut base = kit.base();
    if cached {
        let repo = kit.base().with_file_name("models--org--name");
        std::fs::create_dir_all(repo.join("snapshots")).unwrap();
        std::fs::create_dir_all(repo.join("refs")).unwrap();
        std::fs::write(repo.join("refs/main"), HERE).unwrap();
        base = repo.join("snapshots").join(HERE);
        std::fs::rename(kit.base(), &base).unwrap();
    }
    let base = BaseModel::open(&base).map_err(|e| e.to_string())?;
    let options = MergeOptions { base_revision: said.map(str::to_owned), force, ..MergeOptions::default() };
    let merged = Merged::new(&base, &[AdapterSpec::new(adapter)], &options).map_err(|e| e.to_string())?;
    Ok(merged.notes().iter().map(|n| (n.level, n.text.clone())).collect())
}

#[test]
fn the_same_revision_says_nothing() {
    for (trained, cached, said) in [
        (HERE, true, None),
        ("main", true, None),
        (HERE, true, Some("main")),
        ("v2", false, Some("v2")),
        (HERE, false, Some(HERE)),
    ] {
        assert_eq!(merge(trained, cached, said, false), Ok(Vec::new()), "{trained} {cached} {said:?}");
    }
}

#[test]
fn another_revision_is_an_error_unless_forced() {
    for (trained, cached, said) in [(THERE, true, None), (THERE, false, Some(HERE)), ("v1", false, Some("v2"))] {
        let error = merge(trained, cached, said, false).unwrap_err();
        assert!(error.contains("revision") && error.contains(trained) && error.contains("--force"), "{error}");
        let notes = merge(trained, cached, said, true).unwrap();
        assert!(matches!(&notes[..], [(Level::Warning, text)] if text.contains(trained)), "{notes:?}");
    }
    let error = merge(HERE, true, Some(THERE), true).unwrap_err();
    assert!(error.contains("--base-revision") && error.contains(HERE), "{error}");
}

#[test]
fn what_cannot_be_compared_is_said() {
    let notes = merge("v2", true, None, false).unwrap();
    assert!(
        matches!(&notes[..], [(Level::Warning, text)] if text.contains("'v2'") && text.contains(HERE)),
        "{notes:?}"
    );
    let notes = merge("v2", false, None, false).unwrap();
    assert!(matches!(&notes[..], [(Level::Info, text)] if text.contains("not known")), "{notes:?}");
}
