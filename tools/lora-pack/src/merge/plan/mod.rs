//! From adapters to recipes: which tensor of the base each tensor of an adapter changes, and how.
//!
//! The keys in the file say what is adapted, the config says how. Both are followed and must agree: a factor that the
//! config does not ask for, or a module that it asks for without factors, is an error, because PEFT would silently
//! run something else than what was trained.

mod check;
mod lora;
mod method;
mod params;
mod replace;
pub(super) mod stack;
mod tokens;

use std::collections::BTreeMap;

use super::adapter::Adapter;
use super::combine;
use super::config::warning;
use super::factors::{Pair, Region};
use super::layout::Tied;
use super::method::Kind;
use super::names::Names;
use super::recipe::{Origin, Recipe, Step};
use super::{MergeError, MergeOptions, Note, Purpose};
use crate::source::{BaseModel, quote};

/// Factors of several adapters over one region.
type Parts = Vec<(Pair, f64)>;

/// The work in progress.
pub(crate) struct Planner<'a> {
    pub base: &'a BaseModel,
    pub options: &'a MergeOptions,
    pub names: Names,
    pub tied: Vec<Tied>,
    pub recipes: BTreeMap<String, Recipe>,
    /// Merged parameter → (adapter, tensors of it that were used).
    pub applied: BTreeMap<String, Vec<(usize, Vec<String>)>>,
    pub notes: Vec<Note>,
    /// (parameter, first element) → factors that wait to be combined.
    waiting: BTreeMap<(String, usize), (Region, Parts)>,
}

impl<'a> Planner<'a> {
    pub fn new(base: &'a BaseModel, options: &'a MergeOptions, names: Names, tied: Vec<Tied>) -> Self {
        let (recipes, applied, waiting) = Default::default();
        Self { base, options, names, tied, recipes, applied, notes: Vec::new(), waiting }
    }

    /// Shape of a logical parameter as planned so far.
    pub fn shape(&self, param: &str) -> Option<&[usize]> {
        if let Some(recipe) = self.recipes.get(param) {
            return Some(&recipe.shape);
        }
        self.names.origin(param).and_then(|o| self.base.tensors().get(o)).map(|t| t.shape)
    }

    /// The recipe of a parameter, begun from the base where there is none yet.
    pub fn recipe(&mut self, param: &str) -> Result<&mut Recipe, MergeError> {
        if !self.recipes.contains_key(param) {
            let missing = || MergeError::NoTensor(param.to_owned());
            let origin = self.names.origin(param).ok_or_else(missing)?;
            let shape = self.base.tensors().get(origin).map(|t| t.shape.to_vec()).ok_or_else(missing)?;
            let recipe = Recipe { origin: Origin::Base(origin.to_owned()), shape, start: None, steps: Vec::new() };
            self.recipes.insert(param.to_owned(), recipe);
        }
        self.recipes.get_mut(param).ok_or_else(|| MergeError::NoTensor(param.to_owned()))
    }

    /// Adds a step and records whose tensors it uses.
    pub fn push(&mut self, param: &str, step: Step, adapter: usize, keys: &[&str]) -> Result<(), MergeError> {
        self.recipe(param)?.steps.push(step);
        self.record(param, adapter, keys);
        Ok(())
    }

    /// Adds a product of factors, now or when all adapters are known.
    pub fn push_pair(
        &mut self,
        param: &str,
        pair: Pair,
        region: Region,
        weight: f64,
        keys: &[&str],
    ) -> Result<(), MergeError> {
        let adapter = pair.adapter;
        if self.options.combine.is_sum() {
            return self.push(param, Step::LowRank { pair, weight, region }, adapter, keys);
        }
        self.recipe(param)?;
        let slot = self.waiting.entry((param.to_owned(), region.at)).or_insert_with(|| (region, Vec::new()));
        slot.1.push((pair, weight));
        self.record(param, adapter, keys);
        Ok(())
    }

    pub fn record(&mut self, param: &str, adapter: usize, keys: &[&str]) {
        let entry = self.applied.entry(param.to_owned()).or_default();
        entry.push((adapter, keys.iter().map(|k| k.to_string()).collect()));
    }

    /// Plans everything that adapter number `index` does.
    pub fn add(&mut self, index: usize, adapter: &Adapter) -> Result<(), MergeError> {
        self.check_purpose(adapter)?;
        self.names.forget_prefix();
        for (module, _) in adapter.groups.keys() {
            if let Some(disk) = self.names.resolve_module(module) {
                self.names.observe(module, &disk);
            }
        }
        replace::plan(self, index, adapter)?;
        tokens::plan(self, index, adapter)?;
        let seen = match adapter.method.kind {
            Kind::Lora | Kind::AdaLora | Kind::Vera | Kind::DeLora => lora::plan(self, index, adapter)?,
            _ => method::plan(self, index, adapter)?,
        };
        check::targets(self, index, adapter, &seen)
    }

    /// What was asked for must be possible with this adapter at all.
    fn check_purpose(&self, adapter: &Adapter) -> Result<(), MergeError> {
        let config = &adapter.config;
        if config.invocation_tokens.is_some() && self.options.purpose == Purpose::Merge {
            let why =
                "an activated LoRA acts on a part of the prompt only and cannot be merged; make an adapter file of it";
            return Err(MergeError::refused(adapter.config_file(), "alora_invocation_tokens", why));
        }
        if config.layer_replication.is_some() && self.options.purpose == Purpose::Adapter {
            let why = "it changes the stack of layers, which an adapter file cannot; merge it into the base";
            return Err(MergeError::refused(adapter.config_file(), "layer_replication", why));
        }
        if self.options.combine.is_sum() {
            return Ok(());
        }
        let cannot = [
            ("use_dora", config.dora),
            ("lora_bias", config.lora_bias),
            ("target_parameters", !config.target_parameters.is_empty()),
            ("peft_type", adapter.method.kind != Kind::Lora),
        ];
        match cannot.iter().find(|(_, set)| *set) {
            None => Ok(()),
            Some((what, _)) => {
                let why = format!("it cannot be combined by {}; stack the adapters", self.options.combine.name());
                Err(MergeError::refused(adapter.config_file(), *what, why))
            }
        }
    }

    /// After the last adapter: turns waiting factors into steps.
    pub fn combine(&mut self, adapters: &[Adapter]) -> Result<(), MergeError> {
        let options = self.options;
        let how = combine::Recipe {
            how: options.combine,
            density: options.density.unwrap_or(1.0),
            sign: options.majority_sign,
            seed: options.seed,
            rank: options.svd_rank.unwrap_or_else(|| adapters.iter().map(|a| a.config.r).max().unwrap_or(0)),
        };
        if how.how.prunes() && !options.density.is_some_and(|d| (0.0..=1.0).contains(&d)) {
            let problem = format!("{} needs a density between 0 and 1", how.how.name());
            return Err(MergeError::Option { option: "--density", problem });
        }
        for ((param, _), (region, parts)) in std::mem::take(&mut self.waiting) {
            let uneven = parts.iter().find(|(p, _)| p.r != parts[0].0.r);
            if let Some((other, _)) = uneven.filter(|_| !how.how.on_deltas()) {
                return Err(MergeError::Conflict {
                    a: adapters[parts[0].0.adapter].label.clone(),
                    b: adapters[other.adapter].label.clone(),
                    problem: format!(
                        "{} needs equal ranks, {} has {} and {}; use cat or an _svd form",
                        how.how.name(),
                        quote(&param),
                        parts[0].0.r,
                        other.r
                    ),
                });
            }
            self.recipe(&param)?.steps.push(Step::Combined { parts, how, region });
        }
        Ok(())
    }

    /// An error about a name of the adapter that the base does not have.
    fn unknown(&self, adapter: &Adapter, key: &str, path: &str) -> MergeError {
        let closest: Vec<String> = self.names.closest(path).into_iter().map(quote).collect();
        let problem = format!("the base has no {}; closest: {}", quote(path), closest.join(", "));
        adapter.bad(key, problem)
    }

    /// Under `force` a disagreement between file and config is a warning, and PEFT's reading holds: tensors that were
    /// not asked for are left out, missing ones change nothing.
    fn complain(&mut self, adapter: &Adapter, error: MergeError) -> Result<(), MergeError> {
        if !self.options.force {
            return Err(error);
        }
        self.notes.push(warning(&adapter.label, format!("{error} (ignored, as forced)")));
        Ok(())
    }

    /// The parameters that an update of `param` reaches: itself, or all that share its tensor.
    fn reach(&self, param: &str, all: bool) -> Vec<String> {
        let group = self.tied.iter().find(|t| t.members.iter().any(|m| m == param));
        match group {
            Some(group) if all => group.members.clone(),
            _ => vec![param.to_owned()],
        }
    }
}
