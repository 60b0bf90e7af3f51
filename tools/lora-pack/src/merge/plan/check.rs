//! After an adapter was planned: everything that its config asks for must have been there.

use std::collections::BTreeSet;

use super::super::MergeError;
use super::super::adapter::Adapter;
use super::super::config::{Selection, info, warning};
use super::super::method::Kind;
use super::super::targets::is_ending;
use super::{Planner, stack};
use crate::source::{SourceError, quote};

/// Every module that the config asks for must have had factors. `seen` holds the base's names of those that had.
pub(super) fn targets(
    planner: &mut Planner,
    index: usize,
    adapter: &Adapter,
    seen: &BTreeSet<String>,
) -> Result<(), MergeError> {
    let used = planner.applied.values().flatten().any(|(i, _)| *i == index);
    if !used && seen.is_empty() {
        let problem = "no module of the base matches it, or none has factors: the adapter would change nothing";
        let error = SourceError::field(adapter.config_file(), "target_modules", problem).into();
        planner.complain(adapter, error)?;
    }
    // These replace whole tensors or rows; planning them was the check.
    if matches!(adapter.method.kind, Kind::LnTuning | Kind::TrainableTokens) {
        return Ok(());
    }
    let output = stack::output_head(&planner.names);
    let modules: Vec<String> = planner
        .names
        .iter()
        .filter(|p| planner.shape(p).is_some_and(|s| s.len() >= 2))
        .filter_map(|p| p.strip_suffix(".weight"))
        .filter(|m| !seen.contains(*m))
        .map(str::to_owned)
        .collect();
    for module in modules {
        let linear = !stack::is_embedding(&module) && Some(&module) != output.as_ref();
        let mut wanted = false;
        for name in planner.names.in_adapter(&module) {
            wanted |= adapter.targets.is_target(&name, linear)?;
        }
        // The same layer under its other names may have had them: a tied embedding counts once.
        let twin = planner.reach(&format!("{module}.weight"), true);
        let twin_seen = twin.iter().filter_map(|p| p.strip_suffix(".weight")).any(|m| seen.contains(m));
        if !wanted || (twin_seen && adapter.config.ensure_weight_tying) {
            continue;
        }
        if stack::is_certainly_used(&module, adapter.config.task) {
            let problem = format!(
                "target_modules names {}, but its factors are missing from {}",
                quote(&module),
                adapter.files.weights_path.display()
            );
            let error = SourceError::field(adapter.config_file(), "target_modules", problem).into();
            planner.complain(adapter, error)?;
        } else {
            let text =
                format!("{module} matches target_modules without having factors; the task's model has no such module");
            planner.notes.push(info(&adapter.label, text));
        }
    }
    idle_endings(planner, adapter);
    Ok(())
}

/// A list entry that matches nothing is probably a slip.
fn idle_endings(planner: &mut Planner, adapter: &Adapter) {
    let Some(Selection::Endings(list)) = &adapter.config.target_modules else { return };
    for ending in list {
        if !adapter.groups.keys().any(|(module, _)| is_ending(module, ending)) {
            let text = format!("target_modules entry {} matches no module that has factors", quote(ending));
            planner.notes.push(warning(&adapter.label, text));
        }
    }
}
