//! One adapter, taken apart: its config as types, its tensors sorted by what they are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rayon::prelude::*;
use serde_json::Value;

use super::config::{AdapterConfig, Parsed, Verdict};
use super::keys::{self, Key, Part};
use super::method::{self, Method};
use super::targets::Targets;
use super::{MergeError, Note};
use crate::source::{AdapterFiles, BaseModel, SourceError, TensorView, quote};

/// An adapter as the command line gives it.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSpec {
    /// Its folder; `DIR#NAME` for a named one; or a GGUF file.
    pub path: std::path::PathBuf,
    /// Multiplies its scale.
    pub weight: f64,
}

impl AdapterSpec {
    /// The adapter at `path` with weight 1.
    pub fn new(path: impl Into<std::path::PathBuf>) -> Self {
        Self { path: path.into(), weight: 1.0 }
    }
}

/// The factors of one module: part → the tensor's name in the file. `hops` tells parameters of one module apart.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub parts: BTreeMap<Part, String>,
}

impl Group {
    /// One of its tensors, for messages.
    pub fn any(&self) -> &str {
        self.parts.values().next().map_or("", String::as_str)
    }
}

/// An opened adapter.
#[derive(Debug)]
pub(crate) struct Adapter {
    pub label: String,
    pub weight: f64,
    pub files: AdapterFiles,
    pub method: &'static Method,
    pub config: AdapterConfig,
    pub targets: Targets,
    pub verdicts: Vec<Verdict>,
    /// (module path, hops) → factors.
    pub groups: BTreeMap<(String, usize), Group>,
    /// Parameter path → the tensor that replaces it.
    pub replaced: BTreeMap<String, String>,
    /// Tensors without meaning for inference.
    pub ignored: Vec<(String, &'static str)>,
}

impl Adapter {
    pub fn open(
        spec: &AdapterSpec,
        base: Option<&BaseModel>,
        force: bool,
        notes: &mut Vec<Note>,
    ) -> Result<Self, MergeError> {
        let files = AdapterFiles::open(&spec.path, base)?;
        let label = spec.path.file_name().map_or_else(|| "adapter".into(), |n| n.to_string_lossy().into_owned());
        let object = files.config.as_object().expect("the reader admits objects only");
        let file = &files.config_path;
        let name = match object.get("peft_type") {
            Some(Value::String(name)) => name,
            Some(_) => return Err(SourceError::field(file, "peft_type", "not a string").into()),
            None => return Err(SourceError::field(file, "peft_type", "missing: it names the method").into()),
        };
        let Some(method) = method::find(name) else {
            return Err(MergeError::refused(file, format!("peft_type {}", quote(name)), method::why_refused(name)));
        };
        if !spec.weight.is_finite() {
            let problem = format!("weight {} of {label} is not finite", spec.weight);
            return Err(MergeError::Option { option: "--adapter", problem });
        }
        let Parsed { config, verdicts, notes: said } = AdapterConfig::parse(file, object, method, &label, force)?;
        notes.extend(said);
        let targets = Targets::new(file, &config)?;
        let mut adapter = Self {
            label,
            weight: spec.weight,
            method,
            config,
            targets,
            verdicts,
            groups: BTreeMap::new(),
            replaced: BTreeMap::new(),
            ignored: Vec::new(),
            files,
        };
        adapter.sort_tensors()?;
        adapter.check_finite()?;
        Ok(adapter)
    }

    fn sort_tensors(&mut self) -> Result<(), MergeError> {
        let mut copies = Vec::new();
        for tensor in self.files.tensors.iter() {
            let name = tensor.name.to_owned();
            match keys::parse(&name) {
                Key::Factor { module, hops, part } => {
                    let group = self.groups.entry((module, hops)).or_default();
                    if let Some(other) = group.parts.insert(part, name.clone()) {
                        let problem = format!("duplicate: {} means the same", quote(&other));
                        return Err(SourceError::tensor(tensor.file, name, problem).into());
                    }
                }
                Key::Replace { param } => {
                    if let Some(other) = self.replaced.insert(param, name.clone()) {
                        let problem = format!("duplicate: {} replaces the same parameter", quote(&other));
                        return Err(SourceError::tensor(tensor.file, name, problem).into());
                    }
                }
                Key::Copy { params } => copies.push((name, params)),
                Key::Ignored(why) => self.ignored.push((name, why)),
                Key::Foreign(tool) => {
                    let what = format!("tensor {}", quote(&name));
                    let why = format!("it is in the format of {tool}; convert the adapter to PEFT");
                    return Err(MergeError::refused(tensor.file, what, why));
                }
            }
        }
        for (name, params) in copies {
            if params.iter().any(|p| self.replaced.contains_key(p)) {
                self.ignored.push((name, "a second copy of a saved module"));
            } else {
                self.replaced.insert(params[0].clone(), name);
            }
        }
        Ok(())
    }

    /// NaN and infinities would spread through every sum; integers are no weights.
    fn check_finite(&self) -> Result<(), MergeError> {
        let ignored: BTreeSet<&str> = self.ignored.iter().map(|(n, _)| n.as_str()).collect();
        let tensors: Vec<TensorView> = self.files.tensors.iter().filter(|t| !ignored.contains(t.name)).collect();
        tensors.par_iter().try_for_each(|t| {
            if t.name.ends_with("shira_indices") {
                return t.read_i64().map(|_| ());
            }
            match t.first_not_finite()? {
                Some((at, value)) => Err(t.problem(format!("not finite: element {at} is {value}"))),
                None => Ok(()),
            }
        })?;
        Ok(())
    }

    /// A field of the config, for those that only one method has.
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.files.config.get(name).filter(|v| !v.is_null())
    }

    /// The config's path, for messages.
    pub fn config_file(&self) -> &Path {
        &self.files.config_path
    }

    /// A stored tensor that is known to be there.
    pub fn tensor(&self, key: &str) -> Result<TensorView<'_>, SourceError> {
        let missing = || SourceError::tensor(&self.files.weights_path, key, "missing");
        self.files.tensors.get(key).ok_or_else(missing)
    }

    /// A stored tensor as f32.
    pub fn load(&self, key: &str) -> Result<Vec<f32>, SourceError> {
        self.tensor(key)?.read_f32()
    }

    /// An error about a tensor of this adapter.
    pub fn bad(&self, key: &str, problem: impl Into<String>) -> MergeError {
        SourceError::tensor(&self.files.weights_path, key, problem).into()
    }
}
