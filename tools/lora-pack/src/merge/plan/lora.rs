//! Factors of LoRA: linear layers, Conv1D, embeddings, with DoRA and biases.

use std::collections::BTreeSet;

use super::super::MergeError;
use super::super::adapter::{Adapter, Group};
use super::super::config::{Init, TaskType, warning};
use super::super::factors::{Form, Pair, Region};
use super::super::keys::Part;
use super::super::recipe::Step;
use super::{Planner, is_conv1d};
use crate::source::quote;

/// Plans all factor groups and returns the base's names of the modules that they adapt.
pub(super) fn plan(planner: &mut Planner, index: usize, adapter: &Adapter) -> Result<BTreeSet<String>, MergeError> {
    let mut seen = BTreeSet::new();
    for ((module, hops), group) in &adapter.groups {
        if *hops > 0 {
            let key = group.parts.values().next().map_or("", String::as_str);
            return Err(MergeError::refused(&adapter.files.weights_path, quote(key), "nested factors"));
        }
        if let Some(disk) = one(planner, index, adapter, module, group)? {
            seen.insert(disk);
        }
    }
    Ok(seen)
}

/// What every kind of module needs to know about its factors.
struct Found<'a> {
    a: &'a str,
    b: &'a str,
    r: usize,
    scale: f64,
}

fn one(
    planner: &mut Planner,
    index: usize,
    adapter: &Adapter,
    module: &str,
    group: &Group,
) -> Result<Option<String>, MergeError> {
    let any = group.parts.values().next().map_or("", String::as_str);
    let Some(disk) = planner.names.resolve_module(module) else {
        let error = planner.unknown(adapter, any, &format!("{module}.weight"));
        planner.complain(adapter, error)?;
        return Ok(None);
    };
    if !adapter.targets.is_target(module, true)? && adapter.config.target_modules.is_some() {
        let error = adapter.bad(any, format!("target_modules does not name {}", quote(module)));
        planner.complain(adapter, error)?;
        return Ok(None);
    }
    let embedding = group.parts.contains_key(&Part::EmbeddingA) || group.parts.contains_key(&Part::EmbeddingB);
    let found = factors(planner, adapter, module, group, embedding)?;
    let param = format!("{disk}.weight");
    let shape = planner.shape(&param).unwrap_or_default().to_vec();
    let region = Region::whole(&shape);
    let generates = matches!(adapter.config.task, Some(TaskType::CausalLm | TaskType::Seq2SeqLm));
    if embedding && generates && super::stack::output_head(&planner.names).is_none() {
        let why = "LoRA on a tied embedding is not supported yet";
        return Err(MergeError::refused(&adapter.files.weights_path, quote(found.a), why));
    }
    let transposed = embedding || is_conv1d(planner.base.model_type(), &disk);
    if shape.len() < 2 {
        return Err(adapter.bad(found.a, format!("the base's {} has shape {shape:?}, no matrix", quote(&param))));
    }
    let (inputs, outputs) = match transposed {
        true => (region.rows, region.cols),
        false => (region.cols, region.rows),
    };
    check_sides(adapter, &found, inputs, outputs, &shape)?;
    let pair = Pair {
        adapter: index,
        a: found.a.to_owned(),
        b: found.b.to_owned(),
        scale: found.scale,
        transposed,
        r: found.r,
        form: Form::Plain,
    };
    let mut keys = vec![found.a, found.b];
    let step = if adapter.config.dora {
        let magnitude = magnitude(adapter, module, group, outputs)?;
        keys.push(magnitude);
        Step::Dora { pair, weight: adapter.weight, region, magnitude: magnitude.to_owned() }
    } else {
        Step::LowRank { pair, weight: adapter.weight, region }
    };
    planner.push(&param, step, index, &keys)?;
    bias(planner, index, adapter, &disk, group, &found, outputs)?;
    no_other_parts(adapter, group)?;
    Ok(Some(disk))
}

/// Finds A and B, and checks them against each other and the config.
fn factors<'a>(
    planner: &mut Planner,
    adapter: &Adapter,
    module: &str,
    group: &'a Group,
    embedding: bool,
) -> Result<Found<'a>, MergeError> {
    let (part_a, part_b) = match embedding {
        true => (Part::EmbeddingA, Part::EmbeddingB),
        false => (Part::A, Part::B),
    };
    let get = |part: Part, other: Part| {
        group.parts.get(&part).map(String::as_str).ok_or_else(|| {
            let key = group.parts.get(&other).or(group.parts.values().next()).map_or(module, String::as_str);
            adapter.bad(key, format!("its {} is missing", part.name()))
        })
    };
    let (a, b) = (get(part_a, part_b)?, get(part_b, part_a)?);
    let (rows, _) = sides(adapter, a)?;
    let (_, cols) = sides(adapter, b)?;
    if rows != cols {
        let problem = format!("shape has {cols} columns, but {} has rank {rows}", quote(a));
        return Err(adapter.bad(b, problem));
    }
    let (r, disagree_r) = adapter.targets.rank(module, adapter.config.r)?;
    let (alpha, disagree_alpha) = adapter.targets.alpha(module, adapter.config.alpha)?;
    if rows != r {
        let from = if r == adapter.config.r { "r" } else { "rank_pattern" };
        return Err(adapter.bad(a, format!("its shape has rank {rows}, the config's {from} says {r}")));
    }
    for (disagree, field) in [(disagree_r, "rank_pattern"), (disagree_alpha, "alpha_pattern")] {
        if disagree {
            let text = format!("two keys of {field} match {} with different values; the first holds", quote(module));
            planner.notes.push(warning(&adapter.label, text));
        }
    }
    Ok(Found { a, b, r, scale: adapter.config.scale(alpha, r) })
}

/// First dimension, and the product of the others.
fn sides(adapter: &Adapter, key: &str) -> Result<(usize, usize), MergeError> {
    let shape = adapter.tensor(key)?.shape;
    let size: usize = shape.iter().product();
    if shape.len() < 2 || size == 0 {
        let problem = format!("shape {shape:?} is no factor; was it saved from a sharded run without gathering?");
        return Err(adapter.bad(key, problem));
    }
    Ok((shape[0], size / shape[0]))
}

fn check_sides(
    adapter: &Adapter,
    found: &Found,
    inputs: usize,
    outputs: usize,
    shape: &[usize],
) -> Result<(), MergeError> {
    let (a, b) = (adapter.tensor(found.a)?, adapter.tensor(found.b)?);
    for (key, have, want, side) in
        [(found.a, a.elements() / found.r, inputs, "inputs"), (found.b, b.elements() / found.r, outputs, "outputs")]
    {
        if have != want {
            let problem = format!("its shape is for {have} {side}, the base's weight of shape {shape:?} has {want}");
            return Err(adapter.bad(key, problem));
        }
    }
    Ok(())
}

fn magnitude<'a>(adapter: &Adapter, module: &str, group: &'a Group, outputs: usize) -> Result<&'a str, MergeError> {
    let Some(key) = group.parts.get(&Part::Magnitude) else {
        let key = group.parts.values().next().map_or(module, String::as_str);
        return Err(adapter.bad(key, "use_dora is set, but its lora_magnitude_vector is missing"));
    };
    let tensor = adapter.tensor(key)?;
    if tensor.elements() != outputs {
        let problem = format!("magnitude of shape {:?} for {outputs} outputs", tensor.shape);
        return Err(adapter.bad(key, problem));
    }
    Ok(key)
}

fn bias(
    planner: &mut Planner,
    index: usize,
    adapter: &Adapter,
    disk: &str,
    group: &Group,
    found: &Found,
    outputs: usize,
) -> Result<(), MergeError> {
    let key = match (group.parts.get(&Part::BBias), adapter.config.lora_bias) {
        (None, false) => return Ok(()),
        (None, true) => return Err(adapter.bad(found.b, "lora_bias is set, but its lora_B.bias is missing")),
        (Some(key), false) => return Err(adapter.bad(key, "unexpected: lora_bias is not set")),
        (Some(key), true) => key,
    };
    let param = planner.names.resolve(&format!("{disk}.bias"));
    let Some(param) = param.filter(|p| planner.shape(p) == Some(&[outputs])) else {
        return Err(adapter.bad(key, format!("the base's {} has no bias of shape [{outputs}]", quote(disk))));
    };
    if adapter.tensor(key)?.elements() != outputs {
        return Err(adapter.bad(key, format!("shape {:?} for {outputs} outputs", adapter.tensor(key)?.shape)));
    }
    let step = Step::Bias { adapter: index, key: key.clone(), scale: found.scale * adapter.weight };
    planner.push(&param, step, index, &[key])
}

/// A part that nobody asked for means something that nobody did.
fn no_other_parts(adapter: &Adapter, group: &Group) -> Result<(), MergeError> {
    for (part, key) in &group.parts {
        let known = match part {
            Part::A | Part::B | Part::EmbeddingA | Part::EmbeddingB | Part::BBias => true,
            Part::Magnitude => adapter.config.dora,
            _ => false,
        };
        if !known {
            return Err(adapter.bad(key, format!("unexpected: the config does not ask for {}", part.name())));
        }
    }
    Ok(())
}

/// Refuses what is not done yet.
pub(super) fn check_init(adapter: &Adapter) -> Result<(), MergeError> {
    let c = &adapter.config;
    let later = [
        ("init_lora_weights", c.init != Init::Plain),
        ("layer_replication", c.layer_replication.is_some()),
        ("target_parameters", !c.target_parameters.is_empty()),
        ("trainable_token_indices", c.tokens.is_some()),
        ("alora_invocation_tokens", c.invocation_tokens.is_some()),
        ("use_bdlora", c.block_diagonal.is_some()),
        ("kasa_config", c.kasa),
        ("use_qalora", c.qalora.is_some()),
    ];
    match later.iter().find(|(_, set)| *set) {
        Some((field, _)) => Err(MergeError::refused(adapter.config_file(), *field, "not supported yet")),
        None => Ok(()),
    }
}
