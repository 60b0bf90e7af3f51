//! Tensors of an adapter that are the whole new value of a parameter: heads, biases, norms, embeddings.

use super::super::MergeError;
use super::super::adapter::Adapter;
use super::super::config::{Bias, info, warning};
use super::super::recipe::{Origin, Recipe};
use super::super::targets::is_ending;
use super::{Planner, stack};
use crate::source::{SourceError, quote};

pub(super) fn plan(planner: &mut Planner, index: usize, adapter: &Adapter) -> Result<(), MergeError> {
    for (path, key) in &adapter.replaced {
        one(planner, index, adapter, path, key)?;
    }
    check_saved(planner, adapter)?;
    check_biases(planner, adapter);
    Ok(())
}

fn one(planner: &mut Planner, index: usize, adapter: &Adapter, path: &str, key: &str) -> Result<(), MergeError> {
    let shape = adapter.tensor(key)?.shape.to_vec();
    let param = match planner.names.resolve(path) {
        Some(param) => param,
        None if is_new_head(adapter, path) => path.to_owned(),
        // Causal masks that old transformers kept as buffers, caught by bias="all" of old PEFT.
        None if path.ends_with(".attn.bias") || path.ends_with(".attn.masked_bias") => {
            planner.notes.push(info(&adapter.label, format!("{} is a mask buffer, not a weight", quote(key))));
            return Ok(());
        }
        None => {
            let error = planner.unknown(adapter, key, path);
            return planner.complain(adapter, error);
        }
    };
    let old = planner.shape(&param).map(<[usize]>::to_vec);
    if let Some(old) = &old {
        check_shape(adapter, key, &param, old, &shape)?;
    }
    let resized = old.as_ref().is_some_and(|old| *old != shape);
    if param.rsplit('.').nth(1) == Some("shared") && !resized {
        let why = "the encoder and the decoder have embed_tokens of their own, so it has no effect when PEFT runs it";
        return Err(MergeError::refused(&adapter.files.weights_path, quote(key), why));
    }
    if adapter.weight != 1.0 {
        let text = format!("{param} is replaced as a whole; the weight {} does not act on it", adapter.weight);
        planner.notes.push(warning(&adapter.label, text));
    }
    // A resized vocabulary, and what is asked to stay tied, reaches every member of a tied group that has no value of
    // its own in the file.
    let all = adapter.config.ensure_weight_tying || (resized && is_vocabulary(module_of(&param)));
    let own: Vec<String> = adapter.replaced.keys().filter_map(|p| planner.names.resolve(p)).collect();
    for target in planner.reach(&param, all) {
        if target == param || !own.contains(&target) {
            replace(planner, index, adapter, &target, key, &shape)?;
        }
    }
    Ok(())
}

fn replace(
    planner: &mut Planner,
    index: usize,
    adapter: &Adapter,
    param: &str,
    key: &str,
    shape: &[usize],
) -> Result<(), MergeError> {
    if let Some(Recipe { origin: Origin::Adapter { adapter: other, .. }, .. }) = planner.recipes.get(param) {
        let (a, b) = (format!("adapter {other}"), format!("adapter {index} ({})", adapter.label));
        let error = MergeError::Conflict { a, b, problem: format!("both replace {}", quote(param)) };
        return planner.complain(adapter, error);
    }
    let steps = planner.recipes.remove(param).map(|r| r.steps).unwrap_or_default();
    let origin = Origin::Adapter { adapter: index, key: key.to_owned() };
    planner.recipes.insert(param.to_owned(), Recipe { origin, shape: shape.to_vec(), start: None, steps });
    planner.record(param, index, &[key]);
    Ok(())
}

fn module_of(param: &str) -> &str {
    param.rsplit_once('.').map_or(param, |(module, _)| module)
}

/// A head that the base lacks comes with the adapter; nothing else may.
fn is_new_head(adapter: &Adapter, path: &str) -> bool {
    let module = module_of(path);
    let inside = |m: &str| {
        let mut at = String::new();
        module.split('.').any(|s| {
            at = if at.is_empty() { s.to_owned() } else { format!("{at}.{s}") };
            is_ending(&at, m)
        })
    };
    let saved = adapter.config.task.map_or(&[][..], |t| t.saved_modules());
    adapter.config.modules_to_save.iter().any(|m| inside(m)) || saved.iter().any(|m| inside(m))
}

/// Heads may have another number of labels and embeddings another number of tokens; nothing else may change shape.
fn check_shape(adapter: &Adapter, key: &str, param: &str, old: &[usize], new: &[usize]) -> Result<(), MergeError> {
    let module = module_of(param);
    let rows_may_differ = stack::is_task_head(param)
        || is_vocabulary(module)
        || (stack::is_output_head(module) && param.ends_with(".bias"));
    let fits = old == new || (rows_may_differ && old.len() == new.len() && old.get(1..) == new.get(1..));
    if fits {
        return Ok(());
    }
    Err(adapter.bad(key, format!("shape {new:?} cannot replace shape {old:?} of the base's {}", quote(param))))
}

/// Tables with one row per token of the vocabulary.
fn is_vocabulary(module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or(module);
    stack::is_output_head(module)
        || matches!(last, "embed_tokens" | "word_embeddings" | "wte" | "embed_in" | "tok_embeddings" | "shared")
}

/// What modules_to_save names must be in the file. Of the heads that PEFT adds for a task, one suffices.
fn check_saved(planner: &mut Planner, adapter: &Adapter) -> Result<(), MergeError> {
    let auto = adapter.config.task.map_or(&[][..], |t| t.saved_modules());
    let has = |m: &str| {
        adapter.replaced.keys().any(|path| {
            let mut at = path.as_str();
            loop {
                if is_ending(at, m) {
                    return true;
                }
                match at.rsplit_once('.') {
                    Some((head, _)) => at = head,
                    None => return false,
                }
            }
        })
    };
    let any_auto = auto.iter().any(|m| has(m));
    for module in &adapter.config.modules_to_save {
        if has(module) || (any_auto && auto.contains(&module.as_str())) {
            continue;
        }
        let in_base = planner.names.iter().any(|p| {
            let mut at = p;
            while let Some((head, _)) = at.rsplit_once('.') {
                if is_ending(head, module) {
                    return true;
                }
                at = head;
            }
            false
        });
        if !in_base && !auto.contains(&module.as_str()) {
            let text = format!("modules_to_save names {}, which neither the base nor the file has", quote(module));
            planner.notes.push(warning(&adapter.label, text));
            continue;
        }
        let problem =
            format!("{} is missing: {} has no tensor of it", quote(module), adapter.files.weights_path.display());
        let error = SourceError::field(adapter.config_file(), "modules_to_save", problem).into();
        planner.complain(adapter, error)?;
    }
    Ok(())
}

/// PEFT up to 0.20 trained biases of `lora_only` and did not save them.
fn check_biases(planner: &mut Planner, adapter: &Adapter) {
    if adapter.config.bias == Bias::None || adapter.replaced.keys().any(|p| p.ends_with(".bias")) {
        return;
    }
    let text = format!(
        "the config says bias={:?}, but the file has no bias: PEFT before 0.21 lost them, or the base has none",
        if adapter.config.bias == Bias::All { "all" } else { "lora_only" }
    );
    planner.notes.push(warning(&adapter.label, text));
}
