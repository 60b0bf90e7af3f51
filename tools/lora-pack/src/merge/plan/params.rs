//! `target_parameters`: factors for bare parameters, above all the fused experts of a mixture.
//!
//! transformers 5 holds the experts of a layer as one tensor (experts × rows × columns); most checkpoints store one
//! matrix per expert. Factors are saved on the *module*: of n targeted parameters the one that was registered first
//! is innermost and so has n − 1 `.base_layer` in its name.

use super::super::MergeError;
use super::super::adapter::{Adapter, Group};
use super::super::factors::{Form, Pair, Region};
use super::super::keys::Part;
use super::super::targets::is_ending;
use super::Planner;
use super::lora::{rank_and_alpha, sides};
use crate::source::quote;

/// Registration order of the parameters of expert modules.
const ORDER: &[&str] = &["gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"];

/// Per-expert matrices on disk: (gate, up, down).
const PER_EXPERT: &[(&str, &str, &str)] = &[("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")];

/// One parameter as the base stores it: regions of tensors that together are (experts ×) rows × columns.
struct Stored {
    /// (expert, rows of the expert's matrix, parameter, region in it)
    pieces: Vec<(usize, std::ops::Range<usize>, String, Region)>,
    experts: usize,
    rows: usize,
    cols: usize,
    three: bool,
}

/// Plans the factors of a module whose parameters are targeted. `false` if none is.
pub(super) fn plan(planner: &mut Planner, index: usize, adapter: &Adapter, module: &str) -> Result<bool, MergeError> {
    let groups: Vec<(usize, &Group)> = adapter
        .groups
        .range((module.to_owned(), 0)..=(module.to_owned(), usize::MAX))
        .map(|((_, hops), group)| (*hops, group))
        .collect();
    let mut names: Vec<&str> = Vec::new();
    for target in &adapter.config.target_parameters {
        let last = target.rsplit('.').next().unwrap_or(target);
        if is_ending(&format!("{module}.{last}"), target) && !names.contains(&last) {
            names.push(last);
        }
    }
    if names.is_empty() {
        return Ok(false);
    }
    names.sort_by_key(|n| ORDER.iter().position(|o| o == n));
    if names.len() != groups.len() {
        let problem =
            format!("{} parameters of {} are targeted, {} have factors", names.len(), quote(module), groups.len());
        return Err(adapter.bad(groups[0].1.any(), problem));
    }
    if names.len() > 1 && names.iter().any(|n| !ORDER.contains(n)) {
        let what = format!("target_parameters of {}", quote(module));
        let why = "the order in which these parameters were wrapped is not known";
        return Err(MergeError::refused(adapter.config_file(), what, why));
    }
    for (i, name) in names.iter().enumerate() {
        let hops = names.len() - 1 - i;
        let Some((_, group)) = groups.iter().find(|(h, _)| *h == hops) else {
            return Err(adapter.bad(groups[0].1.any(), format!("the factors of parameter {} are missing", quote(name))));
        };
        one(planner, index, adapter, module, name, group)?;
    }
    Ok(true)
}

fn one(
    planner: &mut Planner,
    index: usize,
    adapter: &Adapter,
    module: &str,
    name: &str,
    group: &Group,
) -> Result<(), MergeError> {
    let path = format!("{module}.{name}");
    let part = |part: Part| {
        let missing = || adapter.bad(group.any(), format!("its {} is missing", part.name()));
        group.parts.get(&part).map(String::as_str).ok_or_else(missing)
    };
    let (a, b) = (part(Part::A)?, part(Part::B)?);
    if let Some((other, key)) = group.parts.iter().find(|(p, _)| !matches!(p, Part::A | Part::B)) {
        return Err(adapter.bad(key, format!("unexpected {} on a parameter", other.name())));
    }
    let Some(stored) = find(planner, &path) else {
        let error = planner.unknown(adapter, a, &path);
        return planner.complain(adapter, error);
    };
    let (r, alpha) = rank_and_alpha(planner, adapter, &path)?;
    let ((a_rows, a_cols), (b_rows, b_cols)) = (sides(adapter, a)?, sides(adapter, b)?);
    let ranks = stored.experts * r;
    for (key, have) in [(a, a_rows), (b, b_cols)] {
        if have != ranks {
            let problem = format!("shape has {have} ranks, {} experts of rank {r} have {ranks}", stored.experts);
            return Err(adapter.bad(key, problem));
        }
    }
    let direct = (a_cols, b_rows) == (stored.cols, stored.rows);
    let swapped = (a_cols, b_rows) == (stored.rows, stored.cols);
    if !direct && !swapped {
        let (rows, cols) = (stored.rows, stored.cols);
        return Err(
            adapter.bad(a, format!("shape is for {a_cols} inputs and {b_rows} outputs, {path} is {rows} × {cols}"))
        );
    }
    // A square says nothing: PEFT before 0.19 took dimension 1 of every stack for the inputs, later ones ask the
    // architecture.
    let transposed = match (direct, swapped) {
        (true, true) => stored.three && (takes_rows_for_inputs(planner) || before_019(adapter)),
        (direct, _) => !direct,
    };
    for (expert, rows, param, region) in stored.pieces {
        let form = match stored.three {
            true => Form::Expert { index: expert, experts: stored.experts, rows },
            false => Form::Plain,
        };
        let scale = adapter.config.scale(alpha, r);
        let pair = Pair { adapter: index, a: a.to_owned(), b: b.to_owned(), scale, transposed, r, form };
        planner.push_pair(&param, pair, region, adapter.weight, &[a, b])?;
    }
    Ok(())
}

/// Architectures whose stacks are experts × inputs × outputs.
fn takes_rows_for_inputs(planner: &Planner) -> bool {
    matches!(planner.base.model_type(), "gpt_oss" | "aria" | "aria_text" | "llama4" | "llama4_text")
}

fn before_019(adapter: &Adapter) -> bool {
    adapter.config.peft_version.is_some_and(|v| v < (0, 19))
}

fn find(planner: &Planner, path: &str) -> Option<Stored> {
    if let Some(param) = planner.names.resolve(path) {
        return match *planner.shape(&param)? {
            [experts, rows, cols] => {
                let region = |e: usize| Region { at: e * rows * cols, rows, cols };
                let pieces = (0..experts).map(|e| (e, 0..rows, param.clone(), region(e))).collect();
                Some(Stored { pieces, experts, rows, cols, three: true })
            }
            [rows, cols] => {
                let pieces = vec![(0, 0..rows, param, Region { at: 0, rows, cols })];
                Some(Stored { pieces, experts: 1, rows, cols, three: false })
            }
            _ => None,
        };
    }
    let (module, name) = path.rsplit_once('.')?;
    PER_EXPERT.iter().find_map(|(gate, up, down)| {
        let parts: &[&str] = match name {
            "gate_up_proj" => &[gate, up],
            "down_proj" => &[down],
            _ => return None,
        };
        let matrix = |expert: usize, part: &str| {
            let param = planner.names.resolve(&format!("{module}.{expert}.{part}.weight"))?;
            match *planner.shape(&param)? {
                [rows, cols] => Some((param, rows, cols)),
                _ => None,
            }
        };
        let mut pieces = Vec::new();
        let mut size = None;
        let mut experts = 0;
        while matrix(experts, parts[0]).is_some() {
            let mut at = 0;
            let mut width = 0;
            for part in parts {
                let (param, rows, cols) = matrix(experts, part)?;
                pieces.push((experts, at..at + rows, param, Region { at: 0, rows, cols }));
                at += rows;
                width = cols;
            }
            if *size.get_or_insert((at, width)) != (at, width) {
                return None;
            }
            experts += 1;
        }
        let (rows, cols) = size?;
        Some(Stored { pieces, experts, rows, cols, three: true })
    })
}
