//! From adapters to recipes: which tensor of the base each tensor of an adapter changes, and how.
//!
//! The keys in the file say what is adapted, the config says how. Both are followed and must agree: a factor that the
//! config does not ask for, or a module that it asks for without factors, is an error, because PEFT would silently
//! run something else than what was trained.

mod lora;
mod replace;
mod stack;

use std::collections::{BTreeMap, BTreeSet};

use super::adapter::Adapter;
use super::config::warning;
use super::names::Names;
use super::recipe::{Origin, Recipe, Step};
use super::{MergeError, Note};
use crate::source::{BaseModel, SourceError, quote};

/// The work in progress.
pub(crate) struct Planner<'a> {
    pub base: &'a BaseModel,
    pub names: Names,
    pub recipes: BTreeMap<String, Recipe>,
    /// Merged parameter → (adapter, tensors of it that were used).
    pub applied: BTreeMap<String, Vec<(usize, Vec<String>)>>,
    pub notes: Vec<Note>,
    pub force: bool,
}

/// Whether GPT-2's `Conv1D` holds this module, which stores its weight as (in × out). Decided by the architecture:
/// the config's `fan_in_fan_out` may be wrong and a square weight does not tell.
pub(crate) fn is_conv1d(model_type: &str, module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or(module);
    matches!(model_type, "gpt2" | "openai-gpt" | "imagegpt" | "decision_transformer")
        && matches!(last, "c_attn" | "c_proj" | "c_fc" | "q_attn")
}

impl<'a> Planner<'a> {
    pub fn new(base: &'a BaseModel, names: Names, force: bool) -> Self {
        Self { base, names, recipes: BTreeMap::new(), applied: BTreeMap::new(), notes: Vec::new(), force }
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
            let origin = self.names.origin(param).ok_or_else(|| MergeError::NoTensor(param.to_owned()))?;
            let shape = self.base.tensors().get(origin).map(|t| t.shape.to_vec()).unwrap_or_default();
            let recipe = Recipe { origin: Origin::Base(origin.to_owned()), shape, steps: Vec::new() };
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

    pub fn record(&mut self, param: &str, adapter: usize, keys: &[&str]) {
        let entry = self.applied.entry(param.to_owned()).or_default();
        entry.push((adapter, keys.iter().map(|k| k.to_string()).collect()));
    }

    /// Plans everything that adapter number `index` does.
    pub fn add(&mut self, index: usize, adapter: &Adapter) -> Result<(), MergeError> {
        self.names.forget_prefix();
        for (module, _) in adapter.groups.keys() {
            if let Some(disk) = self.names.resolve_module(module) {
                self.names.observe(module, &disk);
            }
        }
        lora::check_init(adapter)?;
        replace::plan(self, index, adapter)?;
        let seen = lora::plan(self, index, adapter)?;
        self.check_targets(adapter, &seen)
    }

    /// An error about a module of the adapter that the base does not have.
    fn unknown(&self, adapter: &Adapter, key: &str, path: &str) -> MergeError {
        let closest: Vec<String> = self.names.closest(path).into_iter().map(quote).collect();
        let problem = format!("the base has no {}; closest: {}", quote(path), closest.join(", "));
        adapter.bad(key, problem)
    }

    /// Under `force` a disagreement between file and config is a warning, and PEFT's reading holds.
    fn complain(&mut self, adapter: &Adapter, error: MergeError) -> Result<(), MergeError> {
        if !self.force {
            return Err(error);
        }
        self.notes.push(warning(&adapter.label, format!("{error} (ignored, as forced)")));
        Ok(())
    }

    /// Every module that the config asks for must have had factors. `seen` holds the base's names of those that had.
    fn check_targets(&mut self, adapter: &Adapter, seen: &BTreeSet<String>) -> Result<(), MergeError> {
        let file = adapter.config_file();
        let output = stack::output_head(&self.names);
        let modules: Vec<String> = self
            .names
            .iter()
            .filter(|p| self.shape(p).is_some_and(|s| s.len() >= 2))
            .filter_map(|p| p.strip_suffix(".weight"))
            .map(str::to_owned)
            .collect();
        for module in modules {
            if seen.contains(&module) {
                continue;
            }
            let linear = !stack::is_embedding(&module) && Some(&module) != output.as_ref();
            let mut wanted = false;
            for name in self.names.in_adapter(&module) {
                wanted |= adapter.targets.is_target(&name, linear)?;
            }
            if !wanted {
                continue;
            }
            if stack::is_certainly_used(&module, adapter.config.task) {
                let problem = format!(
                    "target_modules names {}, but its factors are missing from {}",
                    quote(&module),
                    adapter.files.weights_path.display()
                );
                self.complain(adapter, SourceError::field(file, "target_modules", problem).into())?;
            } else {
                let text = format!(
                    "{module} of the base matches target_modules and has no factors; the task's model is taken not to have it"
                );
                self.notes.push(super::config::info(&adapter.label, text));
            }
        }
        self.warn_of_idle_endings(adapter, seen)
    }

    /// A list entry that matches nothing is probably a slip; a list that matches nothing is an error.
    fn warn_of_idle_endings(&mut self, adapter: &Adapter, seen: &BTreeSet<String>) -> Result<(), MergeError> {
        use super::config::Selection;
        use super::targets::is_ending;
        let names: Vec<String> = adapter.groups.keys().map(|(m, _)| m.clone()).collect();
        if let Some(Selection::Endings(list)) = &adapter.config.target_modules {
            for ending in list {
                if !names.iter().any(|n| is_ending(n, ending)) {
                    let text = format!("target_modules entry {} matches no module that has factors", quote(ending));
                    self.notes.push(warning(&adapter.label, text));
                }
            }
        }
        if seen.is_empty() && adapter.replaced.is_empty() && !adapter.config.is_empty() {
            let problem = "no module of the base matches";
            return Err(SourceError::field(adapter.config_file(), "target_modules", problem).into());
        }
        Ok(())
    }
}
