//! Factors: LoRA on linear layers, Conv1D and embeddings, its variants, and the methods that are low-rank in disguise.

use std::collections::BTreeSet;

use super::super::adapter::{Adapter, Group};
use super::super::config::{Init, warning};
use super::super::factors::{Form, Pair, Region};
use super::super::init::Start;
use super::super::keys::Part;
use super::super::method::Kind;
use super::super::recipe::Step;
use super::super::svd::LARGEST_FULL;
use super::super::{InitBase, MergeError};
use super::{Planner, params};
use crate::source::model::is_conv1d;
use crate::source::quote;

/// Plans all factor groups and returns the base's names of the modules that they adapt.
pub(super) fn plan(planner: &mut Planner, index: usize, adapter: &Adapter) -> Result<BTreeSet<String>, MergeError> {
    check_init(planner, adapter)?;
    let mut seen = BTreeSet::new();
    let mut modules: Vec<&str> = adapter.groups.keys().map(|(m, _)| m.as_str()).collect();
    modules.dedup();
    for module in modules {
        if params::plan(planner, index, adapter, module)? {
            continue;
        }
        for ((_, hops), group) in adapter.groups.range((module.to_owned(), 0)..=(module.to_owned(), usize::MAX)) {
            let only_rows = group.parts.keys().all(|p| *p == Part::Tokens);
            let shared = module.is_empty() && adapter.method.kind == Kind::Vera;
            if only_rows || shared {
                continue;
            }
            if *hops > 0 {
                let what = format!("tensor {}", quote(group.any()));
                let why = "nested layers (several methods on one module, or attention in one piece) are not supported";
                return Err(MergeError::refused(&adapter.files.weights_path, what, why));
            }
            if let Some(disk) = one(planner, index, adapter, module, group)? {
                seen.insert(disk);
            }
        }
    }
    Ok(seen)
}

/// The factors of one module, checked against the config and each other.
struct Found<'a> {
    a: &'a str,
    b: &'a str,
    r: usize,
    scale: f64,
    form: Form,
    /// Inputs and outputs that the factors are made for.
    sides: (usize, usize),
}

/// A module of the base and how its weight is stored.
struct Layer {
    module: String,
    param: String,
    region: Region,
    shape: Vec<usize>,
    transposed: bool,
    embedding: bool,
}

impl Layer {
    fn sides(&self) -> (usize, usize) {
        match self.transposed {
            true => (self.region.rows, self.region.cols),
            false => (self.region.cols, self.region.rows),
        }
    }
}

fn one(
    planner: &mut Planner,
    index: usize,
    adapter: &Adapter,
    module: &str,
    group: &Group,
) -> Result<Option<String>, MergeError> {
    let Some(layer) = layer(planner, adapter, module, group)? else { return Ok(None) };
    if !adapter.targets.is_target(module, true)? && adapter.config.target_modules.is_some() {
        let error = adapter.bad(group.any(), format!("target_modules does not name {}", quote(module)));
        planner.complain(adapter, error)?;
        return Ok(None);
    }
    if layer.embedding && layer.module.rsplit('.').next() == Some("shared") {
        let why = "the encoder and the decoder have embed_tokens of their own, so it has no effect when PEFT runs it";
        return Err(MergeError::refused(&adapter.files.weights_path, format!("LoRA on {}", quote(module)), why));
    }
    if empty(adapter, group)? {
        let text = format!("all ranks of {module} were pruned: it is unchanged");
        planner.notes.push(super::super::config::info(&adapter.label, text));
        return Ok(Some(layer.module));
    }
    let found = factors(planner, adapter, module, group, &layer)?;
    for (key, have, want, side) in
        [(found.a, found.sides.0, layer.sides().0, "inputs"), (found.b, found.sides.1, layer.sides().1, "outputs")]
    {
        if have != want {
            let problem =
                format!("its shape is for {have} {side}, the base's weight of shape {:?} has {want}", layer.shape);
            return Err(adapter.bad(key, problem));
        }
    }
    let pair = Pair {
        adapter: index,
        a: found.a.to_owned(),
        b: found.b.to_owned(),
        scale: found.scale,
        transposed: layer.transposed,
        r: found.r,
        form: found.form.clone(),
    };
    let mut keys = vec![found.a, found.b];
    keys.extend(adapter.config.kasa.then(|| group.parts.get(&Part::Diag)).flatten().map(String::as_str));
    keys.extend(group.parts.values().map(String::as_str).filter(|k| uses(&found.form, k)));
    start(planner, adapter, &layer, &found)?;
    // With ensure_weight_tying one side's factors speak for both, unless the other side has its own.
    let twins = planner.reach(&layer.param, layer.embedding && adapter.config.ensure_weight_tying);
    for param in twins {
        if param != layer.param && has_factors(planner, adapter, &param) {
            continue;
        }
        if adapter.config.dora {
            let magnitude = magnitude(adapter, group, layer.sides().1)?;
            let step = Step::Dora {
                pair: pair.clone(),
                weight: adapter.weight,
                region: layer.region,
                magnitude: magnitude.to_owned(),
            };
            let keys = [keys.as_slice(), &[magnitude]].concat();
            planner.push(&param, step, index, &keys)?;
        } else {
            planner.push_pair(&param, pair.clone(), layer.region, adapter.weight, &keys)?;
        }
    }
    bias(planner, index, adapter, group, &found, &layer)?;
    no_other_parts(adapter, group)?;
    Ok(Some(layer.module))
}

/// Finds the module in the base.
fn layer(planner: &mut Planner, adapter: &Adapter, module: &str, group: &Group) -> Result<Option<Layer>, MergeError> {
    let Some(disk) = planner.names.resolve_module(module) else {
        let error = planner.unknown(adapter, group.any(), &format!("{module}.weight"));
        planner.complain(adapter, error)?;
        return Ok(None);
    };
    let embedding = group.parts.contains_key(&Part::EmbeddingA) || group.parts.contains_key(&Part::EmbeddingB);
    let param = format!("{disk}.weight");
    let shape = planner.shape(&param).unwrap_or_default().to_vec();
    if shape.len() < 2 {
        return Err(adapter.bad(group.any(), format!("the base's {} has shape {shape:?}, no matrix", quote(&param))));
    }
    let transposed = embedding || is_conv1d(planner.base.model_type(), &disk);
    Ok(Some(Layer { region: Region::whole(&shape), module: disk, param, shape, transposed, embedding }))
}

fn has_factors(planner: &Planner, adapter: &Adapter, param: &str) -> bool {
    let modules = adapter.groups.keys().filter_map(|(m, _)| planner.names.resolve_module(m));
    let wanted = param.strip_suffix(".weight");
    modules.into_iter().any(|m| Some(m.as_str()) == wanted)
}

/// AdaLoRA may have pruned all of a module.
fn empty(adapter: &Adapter, group: &Group) -> Result<bool, MergeError> {
    let Some(e) = group.parts.get(&Part::E) else { return Ok(false) };
    Ok(adapter.method.kind == Kind::AdaLora && adapter.tensor(e)?.elements() == 0)
}

fn uses(form: &Form, key: &str) -> bool {
    match form {
        Form::Diagonal(d) => d == key,
        Form::Shared { d, b, .. } => d == key || b == key,
        Form::Normalised { lambda, w_norm } => lambda == key || w_norm == key,
        _ => false,
    }
}

/// Finds the factors of a module, and checks them against each other and the config.
fn factors<'a>(
    planner: &mut Planner,
    adapter: &'a Adapter,
    module: &str,
    group: &'a Group,
    layer: &Layer,
) -> Result<Found<'a>, MergeError> {
    let get = |part: Part| {
        let missing = || adapter.bad(group.any(), format!("its {} is missing", part.name()));
        group.parts.get(&part).map(String::as_str).ok_or_else(missing)
    };
    match adapter.method.kind {
        Kind::Vera => return vera(adapter, group, layer, &get),
        Kind::DeLora => {
            let (a, b) = (get(Part::Of("delora_A"))?, get(Part::Of("delora_B"))?);
            let (lambda, w_norm) = (get(Part::Of("delora_lambda"))?, get(Part::Of("delora_w_norm"))?);
            let ((r, inputs), (outputs, _)) = matching(adapter, a, b)?;
            for (key, want) in [(lambda, 1), (w_norm, inputs)] {
                expect(adapter, key, want)?;
            }
            let form = Form::Normalised { lambda: lambda.into(), w_norm: w_norm.into() };
            return Ok(Found { a, b, r, scale: 1.0, form, sides: (inputs, outputs) });
        }
        _ => {}
    }
    let (a, b) = match layer.embedding {
        true => (get(Part::EmbeddingA)?, get(Part::EmbeddingB)?),
        false => (get(Part::A)?, get(Part::B)?),
    };
    if adapter.method.kind == Kind::AdaLora {
        let ((r, inputs), (outputs, _)) = matching(adapter, a, b)?;
        let e = get(Part::E)?;
        expect(adapter, e, r)?;
        let init_r = adapter.field("init_r").and_then(|v| v.as_f64()).unwrap_or(12.0);
        let alpha = if adapter.config.alpha > 0.0 { adapter.config.alpha } else { init_r };
        let scale = alpha / (init_r + 1e-5);
        return Ok(Found { a, b, r, scale, form: Form::Diagonal(e.into()), sides: (inputs, outputs) });
    }
    let (r, alpha) = rank_and_alpha(planner, adapter, module)?;
    let ((rows, a_cols), (b_rows, cols)) = (sides(adapter, a)?, sides(adapter, b)?);
    let form = form(adapter, module, group, a_cols, layer)?;
    let stored_r = match form {
        Form::BlockB(n) => r / n,
        _ => r,
    };
    if rows != r {
        let from = if r == adapter.config.r { "r" } else { "rank_pattern" };
        return Err(adapter.bad(a, format!("its shape has rank {rows}, the config's {from} says {r}")));
    }
    if cols != stored_r {
        let problem = format!("shape has {cols} columns, but {} has rank {rows}", quote(a));
        return Err(adapter.bad(b, problem));
    }
    if let Form::Diagonal(key) = &form {
        expect(adapter, key, r)?;
    }
    let (mut inputs, outputs) = (a_cols, b_rows);
    match form {
        Form::BlockA(n) | Form::BlockB(n) if r % n != 0 || (b_rows % n != 0) => {
            return Err(adapter.bad(a, format!("rank {r} and {b_rows} outputs do not divide into {n} blocks")));
        }
        Form::BlockA(n) => inputs *= n,
        Form::Grouped(size) => inputs *= size,
        _ => {}
    }
    Ok(Found { a, b, r, scale: adapter.config.scale(alpha, r), form, sides: (inputs, outputs) })
}

/// A and B of a method whose rank only the tensors tell.
#[allow(clippy::type_complexity)]
fn matching(adapter: &Adapter, a: &str, b: &str) -> Result<((usize, usize), (usize, usize)), MergeError> {
    let (sides_a, sides_b) = (sides(adapter, a)?, sides(adapter, b)?);
    if sides_a.0 != sides_b.1 {
        let problem = format!("shape has {} columns, but {} has rank {}", sides_b.1, quote(a), sides_a.0);
        return Err(adapter.bad(b, problem));
    }
    Ok((sides_a, sides_b))
}

fn vera<'a>(
    adapter: &'a Adapter,
    group: &'a Group,
    layer: &Layer,
    get: &dyn Fn(Part) -> Result<&'a str, MergeError>,
) -> Result<Found<'a>, MergeError> {
    let (b, d) = (get(Part::Of("vera_lambda_b"))?, get(Part::Of("vera_lambda_d"))?);
    let shared = adapter.groups.get(&(String::new(), 0));
    let projection = |name| shared.and_then(|g| g.parts.get(&Part::Of(name)).or(group.parts.get(&Part::Of(name))));
    let (Some(a_key), Some(b_key)) = (projection("vera_A"), projection("vera_B")) else {
        let why =
            "its random projections are not in the file; save it with save_projection=true, or merge it with PEFT";
        return Err(MergeError::refused(adapter.config_file(), "save_projection=false", why));
    };
    let ((r, most_in), (most_out, _)) = matching(adapter, a_key, b_key)?;
    let (inputs, outputs) = layer.sides();
    if inputs > most_in || outputs > most_out {
        let problem = format!("shape is for {most_in} inputs and {most_out} outputs, {} has more", quote(&layer.param));
        return Err(adapter.bad(a_key, problem));
    }
    expect(adapter, d, r)?;
    expect(adapter, b, outputs)?;
    let form = Form::Shared { d: d.into(), b: b.into(), inputs, outputs };
    Ok(Found { a: a_key, b: b_key, r, scale: 1.0, form, sides: (inputs, outputs) })
}

pub(super) fn rank_and_alpha(planner: &mut Planner, adapter: &Adapter, name: &str) -> Result<(usize, f64), MergeError> {
    let (r, disagree_r) = adapter.targets.rank(name, adapter.config.r)?;
    let (alpha, disagree_alpha) = adapter.targets.alpha(name, adapter.config.alpha)?;
    for (disagree, field) in [(disagree_r, "rank_pattern"), (disagree_alpha, "alpha_pattern")] {
        if disagree {
            let text = format!("two keys of {field} match {} with different values; the first holds", quote(name));
            planner.notes.push(warning(&adapter.label, text));
        }
    }
    Ok((r, alpha))
}

/// How the stored factors differ from plain ones, by the config and A's columns.
fn form(adapter: &Adapter, module: &str, group: &Group, a_cols: usize, layer: &Layer) -> Result<Form, MergeError> {
    if adapter.config.kasa {
        let diagonal = group.parts.get(&Part::Diag);
        let diagonal =
            diagonal.ok_or_else(|| adapter.bad(group.any(), "kasa_config is set, but its lora_diag is missing"))?;
        return Ok(Form::Diagonal(diagonal.clone()));
    }
    if let Some(bd) = &adapter.config.block_diagonal {
        let hit = |list: &[String]| list.iter().any(|part| module.contains(part.as_str()));
        if hit(&bd.a) {
            return Ok(Form::BlockA(bd.blocks));
        }
        if hit(&bd.b) {
            return Ok(Form::BlockB(bd.blocks));
        }
    }
    // PEFT leaves plain layers plain whatever the flag says, so the shape decides.
    Ok(match adapter.config.qalora {
        Some(size) if a_cols != layer.sides().0 && a_cols * size == layer.sides().0 => Form::Grouped(size),
        _ => Form::Plain,
    })
}

/// First dimension, and the product of the others.
pub(super) fn sides(adapter: &Adapter, key: &str) -> Result<(usize, usize), MergeError> {
    let shape = adapter.tensor(key)?.shape;
    let size: usize = shape.iter().product();
    if shape.len() < 2 || size == 0 {
        let problem = format!("shape {shape:?} is no factor; was it saved from a sharded run without gathering?");
        return Err(adapter.bad(key, problem));
    }
    Ok((shape[0], size / shape[0]))
}

pub(super) fn expect(adapter: &Adapter, key: &str, elements: usize) -> Result<(), MergeError> {
    let tensor = adapter.tensor(key)?;
    if tensor.elements() == elements {
        return Ok(());
    }
    Err(adapter.bad(key, format!("shape {:?} where {elements} elements are needed", tensor.shape)))
}

fn magnitude<'a>(adapter: &Adapter, group: &'a Group, outputs: usize) -> Result<&'a str, MergeError> {
    let Some(key) = group.parts.get(&Part::Magnitude) else {
        return Err(adapter.bad(group.any(), "use_dora is set, but its lora_magnitude_vector is missing"));
    };
    expect(adapter, key, outputs)?;
    Ok(key)
}

fn bias(
    planner: &mut Planner,
    index: usize,
    adapter: &Adapter,
    group: &Group,
    found: &Found,
    layer: &Layer,
) -> Result<(), MergeError> {
    let outputs = layer.sides().1;
    let key = match (group.parts.get(&Part::BBias), adapter.config.lora_bias) {
        (None, false) => return Ok(()),
        (None, true) => return Err(adapter.bad(found.b, "lora_bias is set, but its lora_B.bias is missing")),
        (Some(key), false) => return Err(adapter.bad(key, "unexpected: lora_bias is not set")),
        (Some(key), true) => key,
    };
    let param = planner.names.resolve(&format!("{}.bias", layer.module));
    let Some(param) = param.filter(|p| planner.shape(p) == Some(&[outputs])) else {
        return Err(adapter.bad(key, format!("the base's {} has no bias of shape [{outputs}]", quote(&layer.module))));
    };
    expect(adapter, key, outputs)?;
    let step = Step::Bias { adapter: index, key: key.clone(), scale: found.scale * adapter.weight };
    planner.push(&param, step, index, &[key])
}

/// A part that nobody asked for means something that nobody did.
fn no_other_parts(adapter: &Adapter, group: &Group) -> Result<(), MergeError> {
    for (part, key) in &group.parts {
        let known = match part {
            Part::A | Part::B | Part::EmbeddingA | Part::EmbeddingB | Part::BBias | Part::Tokens => true,
            Part::Magnitude => adapter.config.dora,
            Part::Diag => adapter.config.kasa,
            Part::E => adapter.method.kind == Kind::AdaLora,
            Part::Of(name) => match adapter.method.kind {
                Kind::Vera => name.starts_with("vera_"),
                Kind::DeLora => name.starts_with("delora_"),
                _ => false,
            },
        };
        if !known {
            let what = adapter.method.name;
            return Err(adapter.bad(key, format!("unexpected: this {what} adapter does not ask for {}", part.name())));
        }
    }
    Ok(())
}

/// Starts that cannot be computed again need the base that was trained on.
fn check_init(planner: &Planner, adapter: &Adapter) -> Result<(), MergeError> {
    let Init::Lost(word) = &adapter.config.init else { return Ok(()) };
    if planner.options.init_base == InitBase::Residual {
        return Ok(());
    }
    let why = format!(
        "{word} changed the base in training in a way that cannot be computed again; convert the adapter \
         (PEFT: save_pretrained(path_initial_model_for_weight_conversion=…)), or pass the changed base with \
         --init-base residual"
    );
    Err(MergeError::refused(adapter.config_file(), "init_lora_weights", why))
}

/// What loading takes off the base before the factors are added.
fn start(planner: &mut Planner, adapter: &Adapter, layer: &Layer, found: &Found) -> Result<(), MergeError> {
    let region = layer.region;
    let start = match adapter.config.init {
        _ if adapter.config.kasa => {
            if region.rows.min(region.cols) > LARGEST_FULL {
                let why = format!("the full decomposition of {:?} is too much here; merge it with PEFT", layer.shape);
                return Err(MergeError::refused(adapter.config_file(), "kasa_config", why));
            }
            Start::TrailingSvd { r: found.r }
        }
        _ if planner.options.init_base == InitBase::Residual => return Ok(()),
        Init::Pissa => Start::LeadingSvd { r: found.r },
        Init::Olora => Start::LeadingQr { r: found.r, scale: found.scale },
        Init::Plain | Init::Lost(_) => return Ok(()),
    };
    if layer.embedding || (layer.transposed && matches!(start, Start::LeadingQr { .. })) {
        let why = format!("PEFT has no such start for {}", quote(&layer.module));
        return Err(MergeError::refused(adapter.config_file(), "init_lora_weights", why));
    }
    let recipe = planner.recipe(&layer.param)?;
    if recipe.start.replace((start, region)).is_some() {
        let why = "two adapters that both change the base at load depend on each other; convert them first";
        return Err(MergeError::refused(adapter.config_file(), "init_lora_weights", why));
    }
    Ok(())
}
