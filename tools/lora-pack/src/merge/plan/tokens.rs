//! Rows of an embedding that were trained on their own (`trainable_token_indices`, TRAINABLE_TOKENS).

use std::collections::BTreeSet;

use super::super::MergeError;
use super::super::adapter::Adapter;
use super::super::config::Tokens;
use super::super::keys::Part;
use super::super::method::Kind;
use super::super::recipe::Step;
use super::super::targets::is_ending;
use super::Planner;
use crate::source::{SourceError, quote};

pub(super) fn plan(planner: &mut Planner, index: usize, adapter: &Adapter) -> Result<(), MergeError> {
    let field = match adapter.method.kind {
        Kind::TrainableTokens => "token_indices",
        _ => "trainable_token_indices",
    };
    let bad = |problem: String| MergeError::from(SourceError::field(adapter.config_file(), field, problem));
    let mut used: Vec<&str> = Vec::new();
    for ((module, _), group) in &adapter.groups {
        let Some(key) = group.parts.get(&Part::Tokens) else { continue };
        let (indices, named) = match &adapter.config.tokens {
            None => return Err(bad(format!("missing, but the file has {}", quote(key)))),
            Some(Tokens::Input(list)) => (list, 1),
            Some(Tokens::ByModule(map)) => {
                let Some((name, list)) = map.iter().find(|(m, _)| is_ending(module, m)) else {
                    return Err(bad(format!("does not name {}", quote(module))));
                };
                used.push(name);
                (list, map.len())
            }
        };
        if group.parts.len() > 1 && adapter.method.kind == Kind::Lora {
            let why = "its rows are trained and it has factors as well; PEFT allows one of the two";
            return Err(MergeError::refused(&adapter.files.weights_path, quote(key), why));
        }
        let Some(param) = planner.names.resolve(&format!("{module}.weight")) else {
            let error = planner.unknown(adapter, key, &format!("{module}.weight"));
            planner.complain(adapter, error)?;
            continue;
        };
        let shape = planner.shape(&param).unwrap_or_default().to_vec();
        let [rows, cols] = shape[..] else {
            return Err(adapter.bad(key, format!("the base's {} has shape {shape:?}, no table", quote(&param))));
        };
        let delta = adapter.tensor(key)?.shape;
        if *delta != [indices.len(), cols] {
            let want = [indices.len(), cols];
            return Err(adapter.bad(key, format!("shape {delta:?} where {field} and the table need {want:?}")));
        }
        if let Some(i) = indices.iter().find(|i| **i >= rows) {
            return Err(bad(format!("token {i} is past the {rows} rows of {}", quote(&param))));
        }
        let distinct: BTreeSet<_> = indices.iter().collect();
        if distinct.len() != indices.len() {
            return Err(bad("a token is listed twice".into()));
        }
        // One entry speaks for both sides of a tied model; two entries each for their own.
        for param in planner.reach(&param, named == 1) {
            if is_copy(planner, index, adapter, &param, key, indices)? {
                planner.record(&param, index, &[key]);
                continue;
            }
            overlap(planner, adapter, &param, indices)?;
            let step = Step::Rows { adapter: index, key: key.clone(), indices: indices.clone() };
            planner.push(&param, step, index, &[key])?;
        }
    }
    let wanted = match &adapter.config.tokens {
        None => return Ok(()),
        Some(Tokens::Input(list)) => !list.is_empty() && !has_rows(adapter),
        Some(Tokens::ByModule(map)) => {
            let tied = map.len() > used.len() && !planner.tied.is_empty() && !used.is_empty();
            map.iter().any(|(m, _)| !used.contains(&m.as_str())) && !tied
        }
    };
    if wanted {
        let path = adapter.files.weights_path.display();
        return Err(bad(format!("set, but trainable_tokens_delta is missing from {path}")));
    }
    Ok(())
}

fn has_rows(adapter: &Adapter) -> bool {
    adapter.groups.values().any(|g| g.parts.contains_key(&Part::Tokens))
}

/// PEFT writes the rows of a tied embedding once for each side: the second time they are the same.
fn is_copy(
    planner: &Planner,
    index: usize,
    adapter: &Adapter,
    param: &str,
    key: &str,
    mine: &[usize],
) -> Result<bool, MergeError> {
    for step in planner.recipes.get(param).map_or(&[][..], |r| &r.steps) {
        if let Step::Rows { adapter: other, key: earlier, indices } = step
            && *other == index
            && *indices == mine
            && adapter.tensor(earlier)?.same_as(&adapter.tensor(key)?)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Two adapters may not replace the same row.
fn overlap(planner: &Planner, adapter: &Adapter, param: &str, mine: &[usize]) -> Result<(), MergeError> {
    let steps = planner.recipes.get(param).map_or(&[][..], |r| &r.steps);
    for step in steps {
        if let Step::Rows { indices, .. } = step
            && let Some(i) = mine.iter().find(|i| indices.contains(i))
        {
            return Err(MergeError::Conflict {
                a: "an earlier adapter".into(),
                b: adapter.label.clone(),
                problem: format!("both replace row {i} of {}", quote(param)),
            });
        }
    }
    Ok(())
}
