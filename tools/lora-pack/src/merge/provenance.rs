//! Whether the base is the one that the adapters were trained on, as far as names and revisions tell.

use serde_json::Value;

use super::config::{info, warning};
use super::{MergeError, MergeOptions, Merged};
use crate::source::{hub, quote};

/// Compares what the adapters say about their base with what is known of the given one. A name is a hint, since people
/// rename and copy models: another one is a warning. A revision is a statement: another one is an error.
pub(super) fn check(merged: &mut Merged, options: &MergeOptions) -> Result<(), MergeError> {
    name(merged);
    if let Some(text) = merged.base.quantization() {
        merged.notes.push(info("base", format!("{text}: what training over it saw")));
    }
    revision(merged, options)
}

fn name(merged: &mut Merged) {
    let own = |name: &str| name.trim_end_matches('/').rsplit(['/', '\\']).next().unwrap_or(name).to_lowercase();
    let said = merged.base.config.get("_name_or_path").and_then(Value::as_str).filter(|n| !n.is_empty());
    let base = said.map(str::to_owned).or_else(|| Some(hub::snapshot_of(&merged.base.dir)?.repo));
    let Some(base) = base.as_deref().map(own) else { return };
    let texts = merged.adapters.iter().filter_map(|a| {
        let trained = a.config.base_model.as_deref().map(own).filter(|n| !n.is_empty() && *n != base)?;
        let text = format!("trained on {}, the base calls itself {}", quote(&trained), quote(&base));
        Some(warning(&a.label, text))
    });
    let texts: Vec<_> = texts.collect();
    merged.notes.extend(texts);
}

fn revision(merged: &mut Merged, options: &MergeOptions) -> Result<(), MergeError> {
    let dir = &merged.base.dir;
    let commit = hub::snapshot_of(dir).map(|s| s.commit);
    // The commit that a name stands for, where the cache around the base knows it.
    let meaning = |name: &str| hub::resolve_beside(dir, name).unwrap_or_else(|| name.to_owned());
    let said = options.base_revision.as_deref();
    if let (Some(said), Some(commit)) = (said, &commit)
        && hub::is_commit(&meaning(said))
        && meaning(said) != *commit
    {
        let problem = format!("{} is another revision than the base's folder holds, {commit}", quote(said));
        return Err(MergeError::Option { option: "--base-revision", problem });
    }
    let known = commit.or_else(|| said.map(str::to_owned));
    let mut notes = Vec::new();
    for adapter in &merged.adapters {
        let Some(trained) = adapter.config.revision.as_deref() else { continue };
        let Some(known) = &known else {
            let text = format!("trained on revision {}; which one the base is, is not known", quote(trained));
            notes.push(info(&adapter.label, text));
            continue;
        };
        let (theirs, ours) = (meaning(trained), meaning(known));
        if theirs == ours || said == Some(trained) {
            continue;
        }
        let text = format!("trained on revision {}, and the base is {}", quote(trained), quote(known));
        match (hub::is_commit(&theirs) == hub::is_commit(&ours), options.force) {
            // A branch beside a commit: nobody here can tell whether they are the same.
            (false, _) => notes.push(warning(&adapter.label, text)),
            (true, true) => notes.push(warning(&adapter.label, format!("{text}; merged all the same, as forced"))),
            (true, false) => {
                let why = format!("{text}; pass that revision of the base (--force merges all the same)");
                return Err(MergeError::refused(adapter.config_file(), "revision", why));
            }
        }
    }
    merged.notes.extend(notes);
    Ok(())
}
