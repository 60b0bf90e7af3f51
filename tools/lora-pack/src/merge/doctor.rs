//! What an adapter holds, what each of its options means, and whether it fits a base.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::adapter::Adapter;
use super::config::Verdict;
use super::{AdapterSpec, Level, MergeError, MergeOptions, Merged, Note, Purpose, elsewhere, qlora};
use crate::source::{BaseModel, quote};

/// One adapted module.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Module {
    /// Its path in the adapter's spelling.
    pub name: String,
    /// Tensors by PEFT's names.
    pub parts: Vec<&'static str>,
    /// Its rank by the config; 0 where only the tensors say.
    pub r: usize,
    /// Its alpha.
    pub alpha: f64,
}

/// Whether the adapter fits a base.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fit {
    /// The base's folder.
    pub base: String,
    /// What else its weights could have been in training, where its files do not say.
    pub weights: Option<String>,
    /// It can be merged.
    pub merges: bool,
    /// It can be an adapter file for unmerged mode.
    pub attaches: bool,
    /// Why not, where not.
    pub problem: Option<String>,
    /// Tensors of the adapter that go into the merged model.
    pub applied: usize,
    /// Tensors of the base that change.
    pub changed: usize,
    /// Notes of the merge.
    pub notes: Vec<Note>,
}

/// The whole report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The adapter's folder.
    pub adapter: String,
    /// `peft_type`.
    pub method: &'static str,
    /// What it does to a weight.
    pub formula: &'static str,
    /// The task, by PEFT's name.
    pub task: Option<&'static str>,
    /// The base that the config names.
    pub trained_on: Option<String>,
    /// Tensors in the file.
    pub tensors: usize,
    /// Numbers in them.
    pub parameters: usize,
    /// Bytes of them.
    pub bytes: usize,
    /// Element types.
    pub dtypes: Vec<&'static str>,
    /// Adapted modules.
    pub modules: Vec<Module>,
    /// Parameters that are replaced as a whole.
    pub replaced: Vec<String>,
    /// Tensors without meaning for inference, and why.
    pub ignored: Vec<(String, &'static str)>,
    /// The verdict on every field of the config.
    pub fields: Vec<Verdict>,
    /// Notes about the config.
    pub notes: Vec<Note>,
    /// What other tools do with it that its author did not mean.
    pub elsewhere: Vec<String>,
    /// Whether it fits, if a base was given.
    pub fit: Option<Fit>,
}

/// Examines an adapter, alone or over a base.
///
/// # Errors
/// When the adapter's files cannot be understood at all. That it does not fit the base is part of the report.
pub fn report(spec: &AdapterSpec, base: Option<&BaseModel>, options: &MergeOptions) -> Result<Report, MergeError> {
    let mut notes = Vec::new();
    let adapter = Adapter::open(spec, base, options.force, &mut notes)?;
    let mut modules = Vec::new();
    for ((name, _), group) in adapter.groups.iter().filter(|((name, _), _)| !name.is_empty()) {
        modules.push(Module {
            name: name.clone(),
            parts: group.parts.keys().map(|p| p.name()).collect(),
            r: adapter.targets.rank(name, adapter.config.r)?.0,
            alpha: adapter.targets.alpha(name, adapter.config.alpha)?.0,
        });
    }
    let mut dtypes: Vec<&'static str> = adapter.files.tensors.iter().map(|t| t.dtype.name()).collect();
    dtypes.sort_unstable();
    dtypes.dedup();
    Ok(Report {
        adapter: adapter.files.dir.display().to_string(),
        method: adapter.method.name,
        formula: adapter.method.formula,
        task: adapter.config.task.map(|t| t.name()),
        trained_on: adapter.config.base_model.clone(),
        tensors: adapter.files.tensors.len(),
        parameters: adapter.files.tensors.iter().map(|t| t.elements()).sum(),
        bytes: adapter.files.tensors.iter().map(|t| t.bytes.len()).sum(),
        dtypes,
        modules,
        replaced: adapter.replaced.keys().cloned().collect(),
        ignored: adapter.ignored.clone(),
        fields: adapter.verdicts.clone(),
        notes,
        elsewhere: elsewhere::of(&adapter),
        fit: base.map(|base| fit(spec, base, options)),
    })
}

fn fit(spec: &AdapterSpec, base: &BaseModel, options: &MergeOptions) -> Fit {
    let with = |purpose| {
        let options = MergeOptions { purpose, ..options.clone() };
        Merged::new(base, std::slice::from_ref(spec), &options)
    };
    let (merged, attached) = (with(Purpose::Merge), with(Purpose::Adapter));
    let (merges, attaches) = (merged.is_ok(), attached.is_ok());
    let problem = merged.as_ref().err().map(ToString::to_string);
    let best = merged.or(attached);
    Fit {
        base: base.dir.display().to_string(),
        weights: weights(base),
        merges,
        attaches,
        problem,
        applied: best.as_ref().map_or(0, |m| m.adapters().iter().map(|a| a.applied).sum()),
        changed: best.as_ref().map_or(0, |m| m.changed().len()),
        notes: best.map_or_else(|_| Vec::new(), |m| m.notes().to_vec()),
    }
}

/// What to know of a float base: a quantized one speaks for itself.
fn weights(base: &BaseModel) -> Option<String> {
    let quantized = base.packed().is_some() || base.tensors().iter().any(|t| t.dtype.is_block());
    if quantized || base.quantization().is_some() {
        return None;
    }
    let way = match qlora::matrices(base) {
        Ok(_) => "--qlora-base dequantized merges over the weights that it saw",
        Err(_) => {
            "let transformers dequantize the base that it saw (model.dequantize(), save_pretrained), and merge over that"
        }
    };
    Some(format!(
        "merged as stored; an adapter does not say whether its base was quantized while it was trained (QLoRA): if so, {way}"
    ))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "{}: {}", self.adapter, self.method)?;
        writeln!(f, "  does        {}", self.formula)?;
        writeln!(f, "  task        {}", self.task.unwrap_or("not said"))?;
        if let Some(base) = &self.trained_on {
            writeln!(f, "  trained on  {}", quote(base))?;
        }
        let dtypes = self.dtypes.join(", ");
        writeln!(f, "  holds       {} tensors, {} parameters of {dtypes}", self.tensors, self.parameters)?;
        // Modules of the same kind in one line: the last segment, how often, and what they share.
        let mut kinds: BTreeMap<(&str, usize, String, String), usize> = BTreeMap::new();
        for m in &self.modules {
            let last = m.name.rsplit('.').next().unwrap_or(&m.name);
            *kinds.entry((last, m.r, m.alpha.to_string(), m.parts.join(" "))).or_default() += 1;
        }
        for ((last, r, alpha, parts), count) in kinds {
            let rank = if r > 0 { format!(", r {r}, alpha {alpha}") } else { String::new() };
            writeln!(f, "  adapts      {count} × {last}{rank}  ({parts})")?;
        }
        for name in &self.replaced {
            writeln!(f, "  replaces    {}", quote(name))?;
        }
        for (name, why) in &self.ignored {
            writeln!(f, "  ignores     {}: {why}", quote(name))?;
        }
        writeln!(f, "  config")?;
        for v in &self.fields {
            writeln!(f, "    {:<10}  {} = {}: {}", v.action.word(), v.field, v.value, v.meaning)?;
        }
        notes(f, &self.notes)?;
        for text in &self.elsewhere {
            writeln!(f, "  elsewhere   {text}")?;
        }
        if let Some(weights) = self.fit.as_ref().and_then(|fit| fit.weights.as_ref()) {
            writeln!(f, "  base        {weights}")?;
        }
        match &self.fit {
            None => Ok(()),
            Some(fit) if fit.merges => {
                writeln!(
                    f,
                    "  fits        {}: {} of {} tensors applied, {} tensors of the base change",
                    fit.base, fit.applied, self.tensors, fit.changed
                )?;
                notes(f, &fit.notes)
            }
            Some(fit) => {
                let how = if fit.attaches { "fits as an adapter file only" } else { "does not fit" };
                writeln!(f, "  {how}: {}", fit.problem.as_deref().unwrap_or_default())?;
                notes(f, &fit.notes)
            }
        }
    }
}

fn notes(f: &mut fmt::Formatter, notes: &[Note]) -> fmt::Result {
    for note in notes {
        let level = if note.level == Level::Warning { "warning" } else { "note" };
        writeln!(f, "  {level:<10}  {}: {}", note.about, note.text)?;
    }
    Ok(())
}
