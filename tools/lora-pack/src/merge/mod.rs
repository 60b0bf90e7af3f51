//! Merging PEFT adapters into a base model.
//!
//! [`Merged`] is the checkpoint that the base and its adapters amount to: names, shapes, a config, and every tensor
//! computed on demand in f32, as a whole or by rows ([`Rows`]). Nothing is written.

mod adapter;
mod combine;
pub mod config;
mod delta;
pub mod doctor;
mod elsewhere;
mod error;
pub mod export;
mod factors;
mod init;
mod keys;
mod layout;
mod matrix;
pub mod method;
mod names;
mod outcome;
mod plan;
mod provenance;
pub mod qlora;
mod recipe;
mod rows;
mod svd;
mod targets;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use self::adapter::Adapter;
pub use self::adapter::AdapterSpec;
pub use self::combine::{Combine, MajoritySign};
pub use self::config::{TaskType, Verdict};
pub use self::delta::{Delta, LowRank};
pub use self::error::{Level, MergeError, Note};
pub use self::factors::Region;
use self::names::Names;
use self::plan::Planner;
use self::recipe::{Inputs, Recipe};
pub use self::rows::Rows;
use crate::source::{BaseModel, Dtype, TensorView, TokenizerFiles, quote};

/// What the base directory holds, for adapters whose start changed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InitBase {
    /// The model as published: the change is computed again.
    #[default]
    Original,
    /// The model after the change.
    Residual,
}

impl std::str::FromStr for InitBase {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "original" => Ok(Self::Original),
            "residual" => Ok(Self::Residual),
            _ => Err("one of original, residual".into()),
        }
    }
}

/// What the result is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Purpose {
    /// A merged model: what acts on a part of the input only is refused.
    #[default]
    Merge,
    /// An adapter file for unmerged mode.
    Adapter,
}

/// How to merge. The defaults stack all adapters on the original base.
#[derive(Debug, Clone, Default)]
pub struct MergeOptions {
    /// How several adapters become one.
    pub combine: Combine,
    /// Share of elements that the pruning combinations keep.
    pub density: Option<f64>,
    /// Rank of the `svd` combinations; the largest rank of the adapters if absent.
    pub svd_rank: Option<usize>,
    /// How `ties` elects signs.
    pub majority_sign: MajoritySign,
    /// For the `dare` combinations.
    pub seed: u64,
    /// What the base is.
    pub init_base: InitBase,
    /// The revision of the base, where the user says it: a branch, a tag or a commit.
    pub base_revision: Option<String>,
    /// What for.
    pub purpose: Purpose,
    /// Rounds every changed tensor once to the type that the base stores it in, as PEFT does when it merges linear layers
    /// of such a base. The exact sum otherwise.
    pub round: bool,
    /// Turns disagreements between an adapter's config and its tensors, and unknown config fields, into warnings; what
    /// PEFT would do then holds.
    pub force: bool,
}

/// One tensor that differs from the base.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Changed {
    /// Its name in the merged model.
    pub name: String,
    /// Adapter tensors that went into it: (index of the adapter, name in its file).
    pub from: Vec<(usize, String)>,
}

/// What one adapter was and what of it was used.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct AdapterSummary {
    /// The last part of its path.
    pub label: String,
    /// The weight it was given.
    pub weight: f64,
    /// `peft_type`.
    pub method: &'static str,
    /// Default rank.
    pub r: usize,
    /// Default alpha.
    pub alpha: f64,
    /// Tensors in the file.
    pub tensors: usize,
    /// Tensors that went into the merged model.
    pub applied: usize,
    /// Tensors without meaning for inference, and why.
    pub ignored: Vec<(String, &'static str)>,
    /// The verdict on every field of the config.
    pub verdicts: Vec<Verdict>,
}

/// A base with adapters merged in.
pub struct Merged<'a> {
    base: &'a BaseModel,
    adapters: Vec<Adapter>,
    names: Names,
    recipes: BTreeMap<String, Recipe>,
    applied: BTreeMap<String, Vec<(usize, Vec<String>)>>,
    config: Value,
    task: Option<TaskType>,
    /// Where it is not just the base's.
    tokenizer: Option<TokenizerFiles>,
    /// See [`MergeOptions::round`].
    round: bool,
    notes: Vec<Note>,
}

impl<'a> Merged<'a> {
    /// Opens the adapters and plans the merge; reads the adapters' tensors, and of the base only shapes.
    pub fn new(base: &'a BaseModel, specs: &[AdapterSpec], options: &MergeOptions) -> Result<Self, MergeError> {
        let mut notes = Vec::new();
        let adapters = specs
            .iter()
            .map(|s| Adapter::open(s, Some(base), options.force, &mut notes))
            .collect::<Result<Vec<_>, _>>()?;
        let task = agreed_task(&adapters)?;
        let mut config = base.config.clone();
        let (mut names, order) = layout::names(base, &adapters)?;
        if let Some(order) = &order {
            layout::replicate_config(&mut config, order, &mut notes);
        }
        let tied = layout::tied(&mut names, base, task, &mut notes);
        let mut planner = Planner::new(base, options, names, tied);
        for (index, adapter) in adapters.iter().enumerate() {
            planner.add(index, adapter)?;
        }
        planner.combine(&adapters)?;
        let Planner { mut names, tied, mut recipes, mut applied, notes: planned, .. } = planner;
        notes.extend(planned);
        // An adapter file speaks of each member of a tied group by itself, and the base's program stays as it is.
        let settling = if options.purpose == Purpose::Merge { tied.as_slice() } else { &[] };
        for group in settling {
            layout::settle(group, &mut names, &mut recipes, base, &adapters, &mut config, &mut notes)?;
        }
        applied.retain(|name, _| recipes.contains_key(name));
        let own = adapters.iter().map(|a| &a.files.tokenizer).filter(|t| t.is_present());
        let tokenizer = own.fold(None, |below: Option<TokenizerFiles>, over| {
            Some(below.as_ref().unwrap_or(&base.tokenizer).with(over))
        });
        let mut merged =
            Self { base, adapters, names, recipes, applied, config, task, tokenizer, round: options.round, notes };
        outcome::finish(&mut merged)?;
        provenance::check(&mut merged, options)?;
        Ok(merged)
    }

    /// Names of all tensors of the merged model, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let all: BTreeSet<&str> = self.names.iter().chain(self.recipes.keys().map(String::as_str)).collect();
        all.into_iter()
    }

    /// Shape of a tensor of the merged model.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        match self.recipes.get(name) {
            Some(recipe) => Some(&recipe.shape),
            None => self.names.origin(name).and_then(|o| self.base.tensors().get(o)).map(|t| t.shape),
        }
    }

    /// The base's tensor behind `name`, where no adapter changes it.
    pub fn unchanged(&self, name: &str) -> Option<TensorView<'_>> {
        let origin = self.names.origin(name).filter(|_| !self.recipes.contains_key(name))?;
        self.base.tensors().get(origin)
    }

    /// What the base stores the tensor behind `name` as, changed or not.
    pub fn base_dtype(&self, name: &str) -> Option<Dtype> {
        self.names.origin(name).and_then(|o| self.base.tensors().get(o)).map(|t| t.dtype)
    }

    /// Computes a tensor: the base's, widened to f32, with everything that the adapters do to it. Refuses NaN and
    /// infinities. May be called from several threads.
    pub fn tensor_f32(&self, name: &str) -> Result<Vec<f32>, MergeError> {
        let w = match self.recipes.get(name) {
            Some(recipe) => {
                let mut w = recipe.make(name, &Inputs { base: self.base, adapters: &self.adapters })?;
                if let Some(dtype) = self.rounding(name) {
                    dtype.round(&mut w);
                }
                w
            }
            None => {
                let origin = self.names.origin(name).ok_or_else(|| MergeError::NoTensor(name.to_owned()))?;
                self.base.read_f32(origin)?
            }
        };
        self.check_finite(name, 0, &w)?;
        Ok(w)
    }

    /// The type that a changed tensor is rounded to, if it is.
    fn rounding(&self, name: &str) -> Option<Dtype> {
        self.base_dtype(name).filter(|_| self.round)
    }

    /// Refuses NaN and infinities among the elements of `name` from number `first` on.
    fn check_finite(&self, name: &str, first: usize, w: &[f32]) -> Result<(), MergeError> {
        match matrix::first_not_finite(w) {
            None => Ok(()),
            Some(at) => {
                let from = match self.recipes.contains_key(name) {
                    true => Cow::from("after merging"),
                    false => format!("stored so in {}", self.base.dir.display()).into(),
                };
                let (at, value) = (first + at, w[at]);
                Err(MergeError::NotFinite { tensor: name.to_owned(), at, value, from: from.into_owned() })
            }
        }
    }

    /// The tensors that differ from the base, by name.
    pub fn changed(&self) -> Vec<Changed> {
        let one = |(name, from): (&String, &Vec<(usize, Vec<String>)>)| Changed {
            name: name.clone(),
            from: from.iter().flat_map(|(i, keys)| keys.iter().map(|k| (*i, k.clone()))).collect(),
        };
        self.applied.iter().map(one).collect()
    }

    /// What became of each adapter.
    pub fn adapters(&self) -> Vec<AdapterSummary> {
        let summary = |(index, a): (usize, &Adapter)| {
            let used: BTreeSet<&str> = self
                .applied
                .values()
                .flatten()
                .filter(|(i, _)| *i == index)
                .flat_map(|(_, keys)| keys.iter().map(String::as_str))
                .collect();
            AdapterSummary {
                label: a.label.clone(),
                weight: a.weight,
                method: a.method.name,
                r: a.config.r,
                alpha: a.config.alpha,
                tensors: a.files.tensors.len(),
                applied: used.len(),
                ignored: a.ignored.clone(),
                verdicts: a.verdicts.clone(),
            }
        };
        self.adapters.iter().enumerate().map(summary).collect()
    }

    /// The base's config with what the merge changed.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The task that the adapters were trained for; `None` where they do not say, and the base's class decides.
    pub fn task(&self) -> Option<TaskType> {
        self.task
    }

    /// What a user should know.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// The base.
    pub fn base(&self) -> &'a BaseModel {
        self.base
    }

    /// The base's tokenizer and chat template, with what the adapters bring in their place.
    pub fn tokenizer(&self) -> &TokenizerFiles {
        self.tokenizer.as_ref().unwrap_or(&self.base.tokenizer)
    }
}

impl std::fmt::Debug for Merged<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let labels: Vec<String> = self.adapters.iter().map(|a| quote(&a.label)).collect();
        f.debug_struct("Merged").field("base", &self.base.dir).field("adapters", &labels).finish_non_exhaustive()
    }
}

/// Adapters for different heads cannot share one model.
fn agreed_task(adapters: &[Adapter]) -> Result<Option<TaskType>, MergeError> {
    let mut found: Option<(&Adapter, TaskType)> = None;
    for adapter in adapters {
        match (found, adapter.config.task) {
            (None, Some(task)) => found = Some((adapter, task)),
            (Some((first, a)), Some(b)) if a != b => {
                return Err(MergeError::Conflict {
                    a: first.label.clone(),
                    b: adapter.label.clone(),
                    problem: format!("trained for different tasks: {} and {}", a.name(), b.name()),
                });
            }
            _ => {}
        }
    }
    Ok(found.map(|(_, task)| task))
}
