//! From a merged checkpoint to a file: lower, fill and quantize tensor by tensor, write.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use bytemuck::Zeroable;
use half::f16;
use lora_models::spec::{Lowered, Part, Product, RowMap, SlotSpec, Source, Storage, TensorSpec};
use lora_models::{Checkpoint, Policy};
use lora_runtime::Model;
use lora_runtime::format::{
    CacheKind, EntryRecord, FileKind, Info, NONE, OutputRecord, SlotKind, SlotRecord, StrRef, Task, TensorKind,
    TensorRecord,
};
use lora_runtime::kernels::{KvType, pack_float_panel};
use lora_runtime::program::Op;
use lora_runtime::selftest::KEY as GOLDEN;
use lora_runtime::weights::{PANEL_ROWS, WeightFormat};
use rayon::prelude::*;
use serde_json::Value;

use crate::calibrate::auto::{self, Budget};
use crate::calibrate::compare::{Distance, Side, compare};
use crate::calibrate::{self, Calibrated, Effort, Job, Ready, Summary, Twin, own};
use crate::compile::tokenizer::{Compiled, compile_tokenizer};
use crate::generation::Generation;
use crate::golden;
use crate::keep;
use crate::merge::{Merged, TaskType};
use crate::quantize::{Q4_TABLE, Unrepresentable, quantize_rows};
use crate::source::{BaseModel, packed, sentence};
use crate::write::{LpkWriter, Strings, Tables};

/// How to pack.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// Main format.
    pub format: WeightFormat,
    /// Matrices of a quantized base keep their blocks, or get a finer grid where adapters change them; `format` is for
    /// those that the base says nothing about. Goes with [`Effort::Fast`] only.
    pub keep: bool,
    /// Label names by index, when the user gives them.
    pub labels: Option<Vec<String>>,
    /// Task, when the adapter and the base do not say.
    pub task: Option<Task>,
    /// Pack without a tokenizer where the base has none.
    pub no_tokenizer: bool,
    /// Work that goes into quantization.
    pub effort: Effort,
    /// Calibration texts.
    pub calib: Vec<PathBuf>,
    /// Choose formats by measurement to keep this size, instead of by the preset of `format`.
    pub budget: Option<Budget>,
}

impl PackOptions {
    /// Packs to `format`, everything else as it comes.
    #[must_use]
    pub const fn new(format: WeightFormat) -> Self {
        Self {
            format,
            keep: false,
            labels: None,
            task: None,
            no_tokenizer: false,
            effort: Effort::Fast,
            calib: Vec::new(),
            budget: None,
        }
    }
}

/// What was packed.
#[derive(Clone, Debug)]
pub struct PackReport {
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of all weights as f32.
    pub float_bytes: u64,
    /// Tensors written.
    pub tensors: usize,
    /// Bits per weight over all matrices, scales included.
    pub bits_per_weight: f64,
    /// Content hash.
    pub hash: [u8; 32],
    /// Architecture.
    pub architecture: &'static str,
    /// Task.
    pub task: Task,
    /// Per format: matrices, weights, bytes.
    pub formats: BTreeMap<&'static str, (usize, u64, u64)>,
    /// Matrices whose blocks were carried over.
    pub carried: usize,
    /// What was calibrated with.
    pub calibration: Option<Summary>,
    /// How far the packed model is from the float one, on text that was kept apart.
    pub distance: Option<Distance>,
    /// Seconds of the whole pack.
    pub seconds: f64,
}

/// Progress of a pack: what is going on, how much of it is done and how much there is.
pub type Progress<'p> = &'p mut dyn FnMut(&'static str, u64, u64);

/// The merged checkpoint as the lowering sees it.
pub(crate) struct View<'a, 'b> {
    pub merged: &'a Merged<'b>,
    /// Formats are the base's, as far as it has some.
    pub keep: bool,
}

impl Checkpoint for View<'_, '_> {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.merged.shape(name).map(|s| s.to_vec())
    }

    fn format(&self, name: &str) -> Option<WeightFormat> {
        keep::format(self.merged, name).filter(|_| self.keep)
    }
}

/// The task of a merged model: the user's word, the adapter's, then the base's head. A base whose head is of no task
/// is packed for its hidden states (see [`headless`]).
///
/// # Errors
/// When nobody says, and an adapter was made for one.
pub fn task_of(merged: &Merged<'_>, options: &PackOptions) -> Result<Task> {
    let class = class_of(merged);
    let known = options.task.or_else(|| merged.task().or_else(|| class.and_then(TaskType::of_class)).map(task_number));
    known.or_else(|| merged.adapters().is_empty().then_some(Task::FeatureExtraction)).ok_or_else(|| {
        anyhow!(
            "the task is unknown: neither the adapter's task_type nor config.json's architectures names it; give --task"
        )
    })
}

/// Says so where a base's head is of no task (a masked language model).
pub fn headless(merged: &Merged<'_>, options: &PackOptions) -> Option<String> {
    let class = class_of(merged);
    let known = options.task.is_some() || merged.task().is_some() || class.and_then(TaskType::of_class).is_some();
    let name = class.unwrap_or("the base");
    (!known).then(|| format!("{name} has no task's head: packed for its hidden states"))
}

fn class_of<'m>(merged: &'m Merged<'_>) -> Option<&'m str> {
    merged.config().get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str)
}

/// The file's task of PEFT's task.
pub(crate) const fn task_number(task: TaskType) -> Task {
    match task {
        TaskType::CausalLm => Task::CausalLm,
        TaskType::Seq2SeqLm => Task::Seq2SeqLm,
        TaskType::SeqCls => Task::SeqCls,
        TaskType::TokenCls => Task::TokenCls,
        TaskType::QuestionAns => Task::QuestionAnswering,
        TaskType::FeatureExtraction => Task::FeatureExtraction,
    }
}

/// Packs `merged` into `out`.
///
/// # Errors
/// An unsupported model, a missing tensor, a number that is not finite, a disk error: each named; no file is left.
pub fn pack(
    base: &BaseModel,
    merged: &Merged<'_>,
    options: &PackOptions,
    extra_meta: BTreeMap<String, String>,
    out: &Path,
    progress: Progress<'_>,
) -> Result<PackReport> {
    let start = Instant::now();
    let mut meta = extra_meta;
    meta.insert("quant.effort".into(), options.effort.name().into());
    if options.effort == Effort::Fast || options.format.is_float() {
        let lowered = lower(merged, options, Policy::new(options.format))?;
        let file = Writing { base, merged, options, lowered: &lowered, ready: &Ready::new() };
        let report = file.write(LpkWriter::create(out)?, meta, progress)?;
        return Ok(PackReport { seconds: start.elapsed().as_secs_f64(), ..report });
    }
    let report = calibrated(base, merged, options, meta, out, progress)?;
    Ok(PackReport { seconds: start.elapsed().as_secs_f64(), ..report })
}

/// Packs with the model run over text, and the proof of it in the file.
fn calibrated(
    base: &BaseModel,
    merged: &Merged<'_>,
    options: &PackOptions,
    mut meta: BTreeMap<String, String>,
    out: &Path,
    progress: Progress<'_>,
) -> Result<PackReport> {
    let mut policy = Policy::new(options.format);
    if options.budget.is_some() {
        policy.chosen = auto::separate(&lower(merged, options, policy.clone())?);
    }
    let mut lowered = lower(merged, options, policy.clone())?;
    let mut twin = float_twin(base, merged, options, &policy, out, progress)?;
    let (documents, proof, summary) =
        calibrate::documents(&twin.model()?, &options.calib, options.effort, &|starts, tokens| {
            own::write(&eight_bit(base, merged, options, out)?.model()?, starts, tokens)
        })?;
    if let Some(budget) = options.budget {
        if lowered.entries.iter().flat_map(|e| &e.ops).any(|op| matches!(op, Op::ExpertLinear { .. })) {
            bail!(
                "--quant auto cannot measure what rounding does to a mixture of experts yet; name a format: --quant q8, \
                 q6 or q4"
            );
        }
        let overhead = twin.model()?.file.header.file_len - panel_bytes(&twin.model()?) + AUTO_MARGIN;
        let values = |tensor: usize| fill(&lowered.tensors[tensor], merged);
        let job =
            Job { twin: twin.model()?, target: &lowered, codebook: &Q4_TABLE, two_streams: false, values: &values };
        policy.chosen = auto::choose(&job, &documents, budget, overhead, &mut |done, total| {
            progress("measuring", done as u64, total as u64);
        })?;
        lowered = lower(merged, options, policy.clone())?;
        twin = float_twin(base, merged, options, &policy, out, progress)?;
    }
    let values = |tensor: usize| fill(&lowered.tensors[tensor], merged);
    let job = Job {
        twin: twin.model()?,
        target: &lowered,
        codebook: &Q4_TABLE,
        two_streams: options.effort == Effort::Best,
        values: &values,
    };
    let mut ready = calibrate::calibrate(&job, &documents, &mut |done, total| {
        progress("calibrating", done as u64, total as u64);
    })?;
    // The file is written twice, so what no text reached is quantized here.
    for (index, spec) in lowered.tensors.iter().enumerate() {
        if let Storage::Panels(format) = spec.storage
            && !ready.contains_key(&index)
        {
            let bytes = pack_matrix(format, &values(index)?, spec.rows, spec.cols, &Q4_TABLE)
                .with_context(|| format!("tensor {}", spec.name))?;
            ready.insert(index, Calibrated { bytes, error: 0.0 });
        }
    }
    let errors: BTreeMap<&str, f64> = ready
        .iter()
        .filter(|(_, c)| c.error > 0.0)
        .map(|(i, c)| (lowered.tensors[*i].name.as_str(), (c.error * 1e5).round() / 1e5))
        .collect();
    meta.insert("quant.output_errors".into(), serde_json::to_string(&errors)?);
    let about = format!("{} tokens in {} texts: {}", summary.tokens, summary.documents, summary.source);
    meta.insert("quant.calibration".into(), about);
    let file = Writing { base, merged, options, lowered: &lowered, ready: &ready };
    let mut distance = None;
    if !proof.is_empty() {
        let scratch = scratch_file(out)?;
        file.write(LpkWriter::scratch(scratch.path())?, BTreeMap::new(), &mut |_, _, _| {})?;
        let packed = Twin::open(scratch.into_temp_path())?;
        let (float, packed) = (Side::new(twin.model()?, KvType::F32), packed.model()?);
        let d = compare(float, Side::new(packed, packed.kv_type()), &proof)?;
        meta.insert("quant.proof".into(), d.json().to_string());
        distance = Some(d);
    }
    let report = file.write(LpkWriter::create(out)?, meta, progress)?;
    Ok(PackReport { calibration: Some(summary), distance, ..report })
}

/// What a file of chosen formats may hold beyond the tables of its float twin.
const AUTO_MARGIN: u64 = 16 << 10;

/// Bytes of a model's matrices.
fn panel_bytes(model: &Model<'_>) -> u64 {
    model.file.tensors.iter().filter(|t| t.kind == TensorKind::Panels as u16).map(|t| t.len).sum()
}

/// A temporary file beside `out`.
fn scratch_file(out: &Path) -> Result<tempfile::NamedTempFile> {
    let dir = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".lora-pack-").suffix(".tmp").tempfile_in(dir);
    file.with_context(|| format!("cannot write to the folder {}", dir.display()))
}

/// Lowers the merged model.
fn lower(merged: &Merged<'_>, options: &PackOptions, policy: Policy) -> Result<Lowered> {
    let view = View { merged, keep: options.keep };
    let lowered = lora_models::lower(merged.config(), &view, task_of(merged, options)?, policy)?;
    check_size(&lowered)?;
    Ok(lowered)
}

/// The float model with the tensors of `policy`'s, in a temporary file beside `out`.
///
/// # Errors
/// As [`pack`].
pub fn float_twin(
    base: &BaseModel,
    merged: &Merged<'_>,
    options: &PackOptions,
    policy: &Policy,
    out: &Path,
    progress: Progress<'_>,
) -> Result<Twin> {
    let lowered = lower(merged, options, policy.twin())?;
    calibrate::check_twin(&lowered, &lower(merged, options, policy.clone())?)?;
    let temporary = scratch_file(out)?;
    let file = Writing { base, merged, options, lowered: &lowered, ready: &Ready::new() };
    file.write(LpkWriter::scratch(temporary.path())?, BTreeMap::new(), &mut |_, done, total| {
        progress("preparing", done, total);
    })?;
    Twin::open(temporary.into_temp_path())
}

/// The model in `q8`, in a temporary file: as good as float, quick to make and to run.
fn eight_bit(base: &BaseModel, merged: &Merged<'_>, options: &PackOptions, out: &Path) -> Result<Twin> {
    let lowered = lower(merged, options, Policy::new(WeightFormat::Q8))?;
    let file = Writing { base, merged, options, lowered: &lowered, ready: &Ready::new() };
    let scratch = scratch_file(out)?;
    file.write(LpkWriter::scratch(scratch.path())?, BTreeMap::new(), &mut |_, _, _| {})?;
    Twin::open(scratch.into_temp_path())
}

/// A lowered model on its way into a file.
struct Writing<'w, 'b> {
    base: &'w BaseModel,
    merged: &'w Merged<'b>,
    options: &'w PackOptions,
    lowered: &'w Lowered,
    /// Matrices that are quantized already.
    ready: &'w Ready,
}

impl Writing<'_, '_> {
    fn write(
        &self,
        mut writer: LpkWriter,
        mut meta: BTreeMap<String, String>,
        progress: Progress<'_>,
    ) -> Result<PackReport> {
        let Self { base, merged, options, lowered, ready } = *self;
        let config = merged.config();
        let tokenizer = tokenizer(base, merged, lowered.vocab, options)?;
        let sentence = match lowered.task {
            Task::FeatureExtraction | Task::Other => sentence::read(&base.dir)?,
            _ => None,
        };
        let codebook = Q4_TABLE;
        let mut strings = Strings::default();
        let total: u64 = lowered.tensors.iter().map(|t| (t.rows * t.cols * 4) as u64).sum();
        let mut done = 0;
        let mut records = Vec::with_capacity(lowered.tensors.len());
        let mut formats: BTreeMap<&'static str, (usize, u64, u64)> = BTreeMap::new();
        let mut carried = 0;
        for (index, spec) in lowered.tensors.iter().enumerate() {
            let blocks = match spec.storage {
                Storage::Panels(format) => keep::carried(spec, merged, format),
                Storage::Vector => None,
            };
            carried += usize::from(blocks.is_some());
            let (kind, format, bytes) = match (spec.storage, ready.get(&index), blocks) {
                (Storage::Panels(format), _, Some(blocks)) => (TensorKind::Panels, format, blocks.pack().into()),
                (Storage::Panels(format), Some(c), _) => (TensorKind::Panels, format, Cow::from(&c.bytes)),
                (storage, ..) => {
                    let values = fill(spec, merged).with_context(|| format!("tensor {}", spec.name))?;
                    match storage {
                        Storage::Vector => {
                            let bytes = bytemuck::cast_slice(&values).to_vec();
                            (TensorKind::Vector, WeightFormat::F32, bytes.into())
                        }
                        Storage::Panels(format) => {
                            let bytes = pack_matrix(format, &values, spec.rows, spec.cols, &codebook)
                                .with_context(|| format!("tensor {}", spec.name))?;
                            (TensorKind::Panels, format, bytes.into())
                        }
                    }
                }
            };
            if kind == TensorKind::Panels {
                let entry = formats.entry(format.name()).or_default();
                entry.0 += 1;
                entry.1 += (spec.rows * spec.cols) as u64;
                entry.2 += bytes.len() as u64;
            }
            let offset = writer.tensor(&bytes)?;
            records.push(TensorRecord {
                name: strings.add(&spec.name),
                kind: kind as u16,
                format: format as u16,
                rows: spec.rows as u32,
                cols: spec.cols as u32,
                slot: NONE,
                offset,
                len: bytes.len() as u64,
            });
            done += (spec.rows * spec.cols * 4) as u64;
            progress("packing", done, total);
            base.tensors().release();
        }
        let labels = label_names(config, options, lowered.labels as usize)?;
        let labels: Vec<StrRef> = labels.iter().map(|l| strings.add(l)).collect();
        let mut info = info(base, merged, lowered, &mut strings);
        if let Some(s) = sentence {
            (info.pooling, info.normalize) = (s.pooling, s.normalize.into());
        }
        meta.insert("format.blocks".into(), options.format.name().into());
        let shapes = merged.names().filter_map(|name| Some((name, merged.shape(name)?)));
        meta.insert(packed::TENSORS.into(), packed::encode(shapes).to_string());
        meta.insert(packed::CONFIG.into(), config.to_string());
        if let Some(generation) = &base.generation_config {
            meta.insert(packed::GENERATION.into(), generation.to_string());
        }
        let kv = KvType::from_u16(info.kv_type as u16).unwrap_or(KvType::F32);
        let positions = lowered.entries.iter().map(|e| e.max_positions).min().unwrap_or(0);
        meta.insert(GOLDEN.into(), golden::pending(kv, lowered.vocab, positions)?.to_string());
        let special = merged.tokenizer().special_tokens();
        if !special.is_empty() {
            meta.insert("tokenizer.special_tokens".into(), serde_json::to_string(&special)?);
        }
        let (entries, ops, outputs) = program(lowered, &mut strings);
        let slots = slots(lowered, &mut strings);
        // A vector's slot, or the first of a linear's.
        for (i, s) in slots.iter().enumerate().rev().filter(|(_, s)| s.kind != SlotKind::Embed as u32) {
            records[s.tensor as usize].slot = i as u32;
        }
        let tables = Tables {
            kind: FileKind::Model,
            fingerprint: base.fingerprint(),
            codebook,
            info: Some(info),
            meta,
            strings,
            entries,
            ops,
            buffers: lowered.buffers.clone(),
            caches: lowered.caches.clone(),
            outputs,
            tensors: records,
            slots,
            patches: Vec::new(),
            indices: Vec::new(),
            members: Vec::new(),
            labels,
            tokenizer: tokenizer.map(|t| t.bytes).unwrap_or_default(),
        };
        let (file_bytes, hash) = writer.finish(tables)?;
        let (weights, packed) = formats.values().fold((0, 0), |(w, b), f| (w + f.1, b + f.2));
        Ok(PackReport {
            file_bytes,
            float_bytes: total,
            tensors: lowered.tensors.len(),
            bits_per_weight: packed as f64 * 8.0 / (weights as f64).max(1.0),
            hash,
            architecture: lowered.architecture,
            task: lowered.task,
            formats,
            carried,
            calibration: None,
            distance: None,
            seconds: 0.0,
        })
    }
}

/// The compiled tokenizer of a model with `vocab` ids; `None` where it has none and that was asked for.
pub(crate) fn tokenizer(
    base: &BaseModel,
    merged: &Merged<'_>,
    vocab: u32,
    options: &PackOptions,
) -> Result<Option<Compiled>> {
    match &merged.tokenizer().tokenizer_json {
        Some(json) => Ok(Some(compile_tokenizer(json, vocab).context("tokenizer.json")?)),
        None if options.no_tokenizer => Ok(None),
        None if let Some(problem) = &merged.tokenizer().problem => {
            bail!("{}: {problem}; --no-tokenizer packs a model of token ids", base.dir.display())
        }
        None => bail!(
            "tokenizer.json is missing from {}: without it, --no-tokenizer packs a model of token ids",
            base.dir.display()
        ),
    }
}

pub(crate) fn check_size(lowered: &Lowered) -> Result<()> {
    for t in &lowered.tensors {
        if u32::try_from(t.rows).is_err() || u32::try_from(t.cols).is_err() || t.rows == 0 || t.cols == 0 {
            bail!("tensor {}: {} × {} is outside of what a file can hold", t.name, t.rows, t.cols);
        }
    }
    Ok(())
}

/// Panels that one task quantizes and lays out: few enough that their codes stay in the cache between the two.
const PANELS_AT_ONCE: usize = 4;

/// Quantizes a matrix and lays it out, block of panels by block of panels: what is between weights and bytes never
/// exists as a whole.
pub(crate) fn pack_matrix(
    format: WeightFormat,
    values: &[f32],
    rows: usize,
    cols: usize,
    codebook: &[u8; 16],
) -> Result<Vec<u8>> {
    let panel_bytes = format.panel_bytes(cols);
    let (rows_at_once, bytes_at_once) = (PANELS_AT_ONCE * PANEL_ROWS, PANELS_AT_ONCE * panel_bytes);
    let mut out = vec![0; format.tensor_bytes(rows, cols)];
    let blocks = out.par_chunks_mut(bytes_at_once).zip(values.par_chunks(rows_at_once * cols)).enumerate();
    if !format.is_float() {
        blocks.try_for_each(|(block, (out, values))| {
            let quantized = quantize_rows(format, values, values.len() / cols, cols, None, codebook)
                .map_err(|e| Unrepresentable { row: e.row + block * rows_at_once, ..e })?;
            for (i, panel) in out.chunks_exact_mut(panel_bytes).enumerate() {
                quantized.pack_panel(i * PANEL_ROWS, panel);
            }
            Ok::<_, Unrepresentable>(())
        })?;
        return Ok(out);
    }
    if format == WeightFormat::F16
        && let Some(v) = values.iter().find(|v| v.abs() > f16::MAX.to_f32())
    {
        bail!("the value {v} does not fit f16; use --quant f32 or an integer format");
    }
    blocks.for_each(|(_, (out, values))| {
        for (panel, rows) in out.chunks_exact_mut(panel_bytes).zip(values.chunks(PANEL_ROWS * cols)) {
            pack_float_panel(format, rows, cols, panel);
        }
    });
    Ok(out)
}

/// The values of a tensor, row-major.
pub(crate) fn fill(spec: &TensorSpec, merged: &Merged<'_>) -> Result<Vec<f32>> {
    let vector = spec.storage == Storage::Vector;
    let mut out = Vec::new();
    for part in &spec.parts {
        let width = if vector { 1 } else { spec.cols };
        let mut values = fill_part(part, width, merged)?;
        if part.add != 0.0 {
            values.par_iter_mut().for_each(|v| *v += part.add);
        }
        if out.is_empty() {
            out = values;
            if spec.parts.len() > 1 {
                out.reserve_exact(spec.rows * spec.cols - out.len().min(spec.rows * spec.cols));
            }
        } else {
            out.extend_from_slice(&values);
        }
    }
    if out.len() != spec.rows * spec.cols {
        bail!("{} values where {} × {} are expected", out.len(), spec.rows, spec.cols);
    }
    Ok(out)
}

pub(crate) fn fill_part(part: &Part, width: usize, merged: &Merged<'_>) -> Result<Vec<f32>> {
    match &part.source {
        Source::Values(v) => Ok(v.clone()),
        Source::Gather { name, index } => {
            let values = merged.tensor_f32(name)?;
            let pick = |i: &u32| values.get(*i as usize).copied();
            index.iter().map(pick).collect::<Option<_>>().with_context(|| format!("{name} has too few values"))
        }
        Source::Product(p) => product(p, merged),
        Source::Zeros => Ok(vec![0.0; part.rows * width]),
        Source::Checkpoint { name, transpose, rows } => {
            let values = merged.tensor_f32(name)?;
            let stored = values.len() / width;
            let values = if *transpose { transposed(&values, width, stored) } else { values };
            if *rows == RowMap::range(0, stored) {
                return Ok(values);
            }
            let mut out = Vec::with_capacity(rows.rows() * width);
            for b in 0..rows.count {
                let first = rows.start + b * rows.stride;
                let run = values.get(first * width..(first + rows.block) * width);
                out.extend_from_slice(run.with_context(|| format!("{name} has too few rows"))?);
            }
            Ok(out)
        }
    }
}

/// Every row of a table through a norm and a projection (see [`Source::Product`]).
fn product(p: &Product, merged: &Merged<'_>) -> Result<Vec<f32>> {
    let (table, matrix, bias) =
        (merged.tensor_f32(&p.table)?, merged.tensor_f32(&p.matrix)?, merged.tensor_f32(&p.bias)?);
    let (first, outputs) = p.outputs;
    let width = matrix.len() / bias.len();
    let norm = match &p.norm {
        Some((weight, bias, eps)) => Some((merged.tensor_f32(weight)?, merged.tensor_f32(bias)?, f64::from(*eps))),
        None => None,
    };
    let one = |row: &[f32]| {
        let mut x: Vec<f64> = row.iter().map(|v| f64::from(*v)).collect();
        if let Some((weight, bias, eps)) = &norm {
            let mean = x.iter().sum::<f64>() / width as f64;
            let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width as f64;
            let scale = (variance + eps).sqrt().recip();
            for (v, (w, b)) in x.iter_mut().zip(weight.iter().zip(bias)) {
                *v = (*v - mean) * scale * f64::from(*w) + f64::from(*b);
            }
        }
        let output = |o: usize| {
            let w = &matrix[o * width..][..width];
            let sum: f64 = x.iter().zip(w).map(|(x, w)| x * f64::from(*w)).sum();
            ((sum + f64::from(bias[o])) * f64::from(p.factor)) as f32
        };
        (first..first + outputs).map(output).collect::<Vec<f32>>()
    };
    Ok(table.par_chunks(width).flat_map_iter(one).collect())
}

/// `rows × cols` → `cols × rows`.
fn transposed(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    out.par_chunks_mut(rows).enumerate().for_each(|(c, column)| {
        for (r, v) in column.iter_mut().enumerate() {
            *v = values[r * cols + c];
        }
    });
    out
}

pub(crate) fn program(
    lowered: &Lowered,
    strings: &mut Strings,
) -> (Vec<EntryRecord>, Vec<lora_runtime::format::OpRecord>, Vec<OutputRecord>) {
    let (mut entries, mut ops, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
    for e in &lowered.entries {
        entries.push(EntryRecord {
            kind: e.kind as u32,
            op_start: ops.len() as u32,
            op_count: e.ops.len() as u32,
            output_start: outputs.len() as u32,
            output_count: e.outputs.len() as u32,
            max_positions: e.max_positions,
            head_op: (ops.len() + e.head.map_or(e.ops.len(), |h| h.op)) as u32,
            head_buffer: e.head.map_or(NONE, |h| h.hidden.buffer.into()),
        });
        ops.extend(e.ops.iter().map(Op::encode));
        outputs.extend(e.outputs.iter().map(|o| OutputRecord {
            name: strings.add(o.name),
            at: o.at,
            width: o.width,
            reserved: 0,
        }));
    }
    (entries, ops, outputs)
}

fn slots(lowered: &Lowered, strings: &mut Strings) -> Vec<SlotRecord> {
    let record = |s: &SlotSpec| SlotRecord {
        module: strings.add(&s.module),
        tensor: s.tensor,
        row_start: s.row_start as u32,
        rows: s.rows as u32,
        cols: s.cols as u32,
        kind: s.kind as u32,
        reserved: 0,
    };
    lowered.slots.iter().map(record).collect()
}

/// Label names: the user's, else the config's `id2label`, else `LABEL_i`.
pub(crate) fn label_names(config: &Value, options: &PackOptions, labels: usize) -> Result<Vec<String>> {
    if labels == 0 {
        return Ok(Vec::new());
    }
    if let Some(names) = &options.labels {
        if names.len() != labels {
            bail!("--labels names {} labels, the head has {labels}", names.len());
        }
        return Ok(names.clone());
    }
    let named = |i: usize| config.get("id2label").and_then(|m| m.get(i.to_string())).and_then(Value::as_str);
    Ok((0..labels).map(|i| named(i).map_or_else(|| format!("LABEL_{i}"), str::to_string)).collect())
}

pub(crate) fn info(base: &BaseModel, merged: &Merged<'_>, lowered: &Lowered, strings: &mut Strings) -> Info {
    let config = merged.config();
    let quantized = lowered.tensors.iter().any(|t| matches!(t.storage, Storage::Panels(f) if !f.is_float()));
    // An encoder's cache holds one layer at a time: half precision costs next to nothing there.
    let passing = lowered.caches.iter().all(|c| c.kind == CacheKind::Step as u32);
    let kv_default = match (quantized, passing) {
        (true, false) => KvType::I8,
        (true, true) => KvType::F16,
        (false, _) => KvType::F32,
    };
    let mut info = Info {
        task: lowered.task as u32,
        vocab: lowered.vocab,
        max_positions: lowered.max_positions,
        token_types: lowered.token_types,
        hidden: lowered.hidden,
        labels: lowered.labels,
        problem: lowered.problem as u32,
        kv_type: kv_default as u32,
        architecture: strings.add(lowered.architecture),
        chat_template: strings.add(merged.tokenizer().chat_template.as_deref().unwrap_or("")),
        pooling: lowered.pooling,
        normalize: 1,
        per_token: lowered.per_token,
        per_output: lowered.per_output,
        ..Info::zeroed()
    };
    Generation::new(base, config).fill(&mut info);
    info
}
