//! The base as adapters see it: replicated layers, and embeddings that share one tensor.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::adapter::Adapter;
use super::config::{info, warning};
use super::names::Names;
use super::recipe::{Origin, Recipe, Step};
use super::{MergeError, Note, TaskType};
use crate::source::{BaseModel, SourceError};

/// Names of the output embedding, by family.
pub const OUTPUTS: &[&str] = &["lm_head", "embed_out", "language_model.lm_head"];

/// Parameters that are one tensor in the base. The first holds it there.
#[derive(Debug, Clone)]
pub(crate) struct Tied {
    pub members: Vec<String>,
    /// The member that is the output embedding, if it is tied in.
    pub output: Option<String>,
}

/// A config value, at the top or in the text part of a multimodal config.
pub(crate) fn config_value<'a>(config: &'a Value, key: &str) -> Option<&'a Value> {
    let found = config.get(key).filter(|v| !v.is_null());
    found.or_else(|| config.get("text_config").and_then(|t| t.get(key)).filter(|v| !v.is_null()))
}

/// The task of the base's own class.
pub(crate) fn base_task(config: &Value) -> Option<TaskType> {
    let class = config.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str)?;
    TaskType::of_class(class)
}

/// The names of the base, with replicated layers in place of the stored ones.
pub(crate) fn names(base: &BaseModel, adapters: &[Adapter]) -> Result<(Names, Option<Vec<usize>>), MergeError> {
    let stored = base.tensors().iter().map(|t| (t.name.to_owned(), t.name.to_owned()));
    let with = adapters.iter().find(|a| a.config.layer_replication.is_some());
    let Some(first) = with else {
        return Ok((Names::new(base.model_type(), stored.collect()), None));
    };
    if let Some(other) = adapters.iter().find(|a| a.config.layer_replication != first.config.layer_replication) {
        let problem = "layer_replication differs, so they are made for different stacks of layers".to_owned();
        return Err(MergeError::Conflict { a: first.label.clone(), b: other.label.clone(), problem });
    }
    let bad = |problem: String| SourceError::field(first.config_file(), "layer_replication", problem);
    let container = layer_container(base).ok_or_else(|| bad("the base has no single stack of layers".into()))?;
    let layer_of = |name: &str| -> Option<(usize, String)> {
        let (number, rest) = name.strip_prefix(&container)?.split_once('.')?;
        Some((number.parse().ok()?, rest.to_owned()))
    };
    let count = base.tensors().iter().filter_map(|t| layer_of(t.name)).map(|(l, _)| l + 1).max().unwrap_or(0);
    let mut order = Vec::new();
    for &(start, end) in first.config.layer_replication.iter().flatten() {
        if end > count {
            return Err(bad(format!("[{start}, {end}) reaches past the base's {count} layers")).into());
        }
        order.extend(start..end);
        if order.len() > 100 * count {
            return Err(bad(format!("asks for more than {} layers", 100 * count)).into());
        }
    }
    let mut params = BTreeMap::new();
    for (name, origin) in stored {
        match layer_of(&name) {
            None => {
                params.insert(name, origin);
            }
            Some((layer, rest)) => {
                for (new, _) in order.iter().enumerate().filter(|(_, old)| **old == layer) {
                    params.insert(format!("{container}{new}.{rest}"), origin.clone());
                }
            }
        }
    }
    Ok((Names::new(base.model_type(), params), Some(order)))
}

/// What stands before the layer number: `model.layers.`, if all layers share it.
fn layer_container(base: &BaseModel) -> Option<String> {
    let mut found = BTreeSet::new();
    for t in base.tensors().iter() {
        let mut at = 0;
        for segment in t.name.split('.') {
            if segment.parse::<u32>().is_ok() {
                found.insert(t.name[..at].to_owned());
                break;
            }
            at += segment.len() + 1;
        }
    }
    match found.len() {
        1 => found.pop_first(),
        _ => None,
    }
}

/// The config for a replicated stack.
pub(crate) fn replicate_config(config: &mut Value, order: &[usize], notes: &mut Vec<Note>) {
    let Some(map) = config.as_object_mut() else { return };
    for key in ["num_hidden_layers", "n_layer", "num_layers"] {
        if map.get(key).is_some_and(|v| v.is_number()) {
            map.insert(key.to_owned(), order.len().into());
        }
    }
    for key in ["layer_types", "no_rope_layers", "mlp_layer_types"] {
        if let Some(Value::Array(list)) = map.get_mut(key)
            && order.iter().all(|&l| l < list.len())
        {
            *list = order.iter().map(|&l| list[l].clone()).collect();
        }
    }
    notes.push(info("base", format!("the stack has {} layers after layer_replication", order.len())));
}

/// Finds tensors that stand for several parameters, and adds names for those that are not stored.
pub(crate) fn tied(names: &mut Names, base: &BaseModel, task: Option<TaskType>, notes: &mut Vec<Note>) -> Vec<Tied> {
    let ends = |n: &str, what: &str| n == format!("{what}.weight") || n.ends_with(&format!(".{what}.weight"));
    let all: Vec<String> = names.iter().map(str::to_owned).collect();
    let find = |what: &[&str]| all.iter().find(|n| what.iter().any(|w| ends(n, w))).cloned();

    let mut members = Vec::new();
    if let Some(shared) = find(&["shared"]) {
        let prefix = shared.strip_suffix("shared.weight").unwrap_or_default().to_owned();
        members.push(shared.clone());
        for side in ["encoder", "decoder"] {
            let name = format!("{prefix}{side}.embed_tokens.weight");
            if names.origin(&name).is_none() {
                names.add(&name, &shared);
            }
            members.push(name);
        }
    } else {
        // In this order: BERT-like models have other tables that end alike, none of them a word table.
        let words = ["embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings"];
        let Some(input) = words.iter().find_map(|w| find(&[w])) else { return Vec::new() };
        members.push(input);
    }
    let generates = matches!(task.or(base_task(&base.config)), Some(TaskType::CausalLm | TaskType::Seq2SeqLm));
    let output = generates.then(|| tied_output(names, base, &members[0], notes)).flatten();
    if let Some(output) = &output {
        let stored = names.origin(&members[0]).unwrap_or(&members[0]).to_owned();
        names.add(output, &stored);
        members.push(output.clone());
    }
    if members.len() < 2 { Vec::new() } else { vec![Tied { members, output }] }
}

/// The output embedding's name, if it is tied to `input`.
fn tied_output(names: &Names, base: &BaseModel, input: &str, notes: &mut Vec<Note>) -> Option<String> {
    let stored = OUTPUTS.iter().map(|o| format!("{o}.weight")).find(|o| names.origin(o).is_some());
    let declared = config_value(&base.config, "tie_word_embeddings").and_then(Value::as_bool);
    let same_bytes = |output: &str| {
        let (a, b) = (base.tensors().get(output), base.tensors().get(input));
        a.zip(b).is_some_and(|(a, b)| a.same_as(&b))
    };
    match (stored, declared) {
        (_, Some(false)) => None,
        (Some(output), Some(true)) => {
            if !same_bytes(&output) {
                let text = format!("tie_word_embeddings is set, so the differing {output} in the file is not used");
                notes.push(warning("base", text));
            }
            Some(output)
        }
        (Some(output), None) => same_bytes(&output).then_some(output),
        (None, _) => {
            let name = match base.model_type() {
                "gpt_neox" => "embed_out.weight",
                _ if input.starts_with("language_model.") => "language_model.lm_head.weight",
                _ => "lm_head.weight",
            };
            Some(name.to_owned())
        }
    }
}

/// After planning: a group whose members all ended alike stays tied; any other comes apart, and each member becomes a
/// tensor of its own.
pub(crate) fn settle(
    group: &Tied,
    names: &mut Names,
    recipes: &mut BTreeMap<String, Recipe>,
    base: &BaseModel,
    adapters: &[Adapter],
    config: &mut Value,
    notes: &mut Vec<Note>,
) -> Result<(), MergeError> {
    let stored = |n: &str| base.tensors().contains(n);
    let alike = |a: &str, b: &str| -> Result<bool, MergeError> { same(recipes.get(a), recipes.get(b), adapters) };
    let mut together = true;
    for other in &group.members[1..] {
        together &= alike(&group.members[0], other)?;
    }
    if together {
        // One tensor says it all. Members that are stored as well keep their names, but for the output: a tied model
        // does not read it.
        let model = recipes.get(&group.members[0]).cloned();
        for member in &group.members[1..] {
            recipes.remove(member);
            if !stored(member) || Some(member) == group.output.as_ref() {
                names.remove(member);
            } else if let Some(recipe) = &model {
                recipes.insert(member.clone(), recipe.clone());
            }
        }
        return Ok(());
    }
    let Some(output) = &group.output else { return Ok(()) };
    notes.push(info(
        "base",
        format!("{output} and the input embedding are no longer tied: they were changed differently"),
    ));
    if let Some(map) = config.as_object_mut() {
        map.insert("tie_word_embeddings".into(), false.into());
    }
    // A tied T5 scales the decoder's output by d_model^-1/2 and an untied one does not, so the head takes the factor.
    let scales = matches!(base.model_type(), "t5" | "mt5" | "umt5" | "longt5" | "switch_transformers");
    if scales && base.config.get("scale_decoder_outputs").is_none() {
        let width = base.config.get("d_model").and_then(Value::as_f64).unwrap_or(1.0);
        let recipe = match recipes.remove(output) {
            Some(recipe) => recipe,
            None => {
                let origin = names.origin(output).unwrap_or(output).to_owned();
                let shape = base.tensors().get(&origin).map(|t| t.shape.to_vec()).unwrap_or_default();
                Recipe { origin: Origin::Base(origin), shape, start: None, steps: Vec::new() }
            }
        };
        let mut recipe = recipe;
        recipe.steps.push(Step::Scale(width.powf(-0.5) as f32));
        recipes.insert(output.clone(), recipe);
    }
    Ok(())
}

/// Whether two recipes over the same base tensor give the same numbers.
fn same(a: Option<&Recipe>, b: Option<&Recipe>, adapters: &[Adapter]) -> Result<bool, MergeError> {
    let (a, b) = match (a, b) {
        (None, None) => return Ok(true),
        (Some(a), Some(b)) => (a, b),
        _ => return Ok(false),
    };
    let origins = match (&a.origin, &b.origin) {
        (Origin::Base(_), Origin::Base(_)) => true,
        (Origin::Adapter { adapter: i, key: x }, Origin::Adapter { adapter: j, key: y }) => {
            let (x, y) = (adapters[*i].tensor(x)?, adapters[*j].tensor(y)?);
            x.same_as(&y)
        }
        _ => false,
    };
    if !origins || a.start != b.start || a.steps.len() != b.steps.len() {
        return Ok(false);
    }
    for (x, y) in a.steps.iter().zip(&b.steps) {
        // Factors of a tied head are the embedding's, swapped and transposed: other tensors, the same product.
        let equal = match (x, y) {
            (Step::LowRank { pair: p, weight: u, region: r }, Step::LowRank { pair: q, weight: v, region: s })
                if p.scale == q.scale && u == v && r == s =>
            {
                p == q || p.load_unscaled(adapters)? == q.load_unscaled(adapters)?
            }
            _ => x == y,
        };
        if !equal {
            return Ok(false);
        }
    }
    Ok(true)
}
