//! From a merged checkpoint to a file: lower, fill and quantize tensor by tensor, write.

mod facts;
mod file;
mod fill;
mod matrix;
mod task;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use lora_models::spec::{Lowered, Storage};
use lora_models::{Checkpoint, Policy};
use lora_runtime::Model;
use lora_runtime::format::{Task, TensorKind};
use lora_runtime::kernels::KvType;
use lora_runtime::program::Op;
use lora_runtime::weights::WeightFormat;

pub(crate) use self::facts::{info, label_names, tokenizer};
use self::file::Writing;
pub(crate) use self::fill::{fill, fill_part};
pub(crate) use self::matrix::pack_matrix;
pub(crate) use self::task::task_number;
pub use self::task::{headless, task_of};
use crate::calibrate::auto::{self, Budget};
use crate::calibrate::compare::{Distance, Side, compare};
use crate::calibrate::{self, Balance, Calibrated, Effort, Job, Ready, Summary, Twin, own};
use crate::keep;
use crate::merge::Merged;
use crate::quantize::Q4_TABLE;
use crate::source::BaseModel;
use crate::write::LpkWriter;

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
    /// Rescale channels where text says how ([`calibrate::balance`]). Adapters cannot be attached to the file then.
    pub balance: bool,
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
            balance: false,
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
    /// Values whose channels were rescaled.
    pub balanced: usize,
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
        let balance = Balance::default();
        let lowered = lower(merged, options, Policy::new(options.format), &balance)?;
        let file = Writing { base, merged, options, lowered: &lowered, ready: &Ready::new(), balance: &balance };
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
    let mut balance = Balance::default();
    if options.budget.is_some() {
        policy.chosen = auto::separate(&lower(merged, options, policy.clone(), &balance)?);
    }
    let mut lowered = lower(merged, options, policy.clone(), &balance)?;
    let mut twin = float_twin(base, merged, options, (&policy, &balance), out, progress)?;
    let (documents, proof, summary) =
        calibrate::documents(&twin.model()?, &options.calib, options.effort, &|starts, tokens| {
            own::write(&eight_bit(base, merged, options, out)?.model()?, starts, tokens)
        })?;
    if options.balance {
        let values = |tensor: usize| fill(&lowered.tensors[tensor], merged);
        balance = Balance::measure(twin.model()?, &lowered, &documents, &values)?;
        lowered = lower(merged, options, policy.clone(), &balance)?;
        twin = float_twin(base, merged, options, (&policy, &balance), out, progress)?;
    }
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
        lowered = lower(merged, options, policy.clone(), &balance)?;
        twin = float_twin(base, merged, options, (&policy, &balance), out, progress)?;
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
    let file = Writing { base, merged, options, lowered: &lowered, ready: &ready, balance: &balance };
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
fn lower(merged: &Merged<'_>, options: &PackOptions, policy: Policy, balance: &Balance) -> Result<Lowered> {
    let view = View { merged, keep: options.keep };
    let task = task_of(merged, options)?;
    let mut lowered = lora_models::lower(merged.config(), &view, task, policy.clone())?;
    if !balance.is_empty() {
        // Layers of a twin share caches, so it does not show who reads what; its tensors are the same.
        let plain = lora_models::lower(merged.config(), &view, task, Policy { float_twin: false, ..policy })?;
        balance.apply(&plain, &mut lowered);
    }
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
    (policy, balance): (&Policy, &Balance),
    out: &Path,
    progress: Progress<'_>,
) -> Result<Twin> {
    let lowered = lower(merged, options, policy.twin(), balance)?;
    calibrate::check_twin(&lowered, &lower(merged, options, policy.clone(), balance)?)?;
    let temporary = scratch_file(out)?;
    let file = Writing { base, merged, options, lowered: &lowered, ready: &Ready::new(), balance };
    file.write(LpkWriter::scratch(temporary.path())?, BTreeMap::new(), &mut |_, done, total| {
        progress("preparing", done, total);
    })?;
    Twin::open(temporary.into_temp_path())
}

/// The model in `q8`, in a temporary file: as good as float, quick to make and to run.
fn eight_bit(base: &BaseModel, merged: &Merged<'_>, options: &PackOptions, out: &Path) -> Result<Twin> {
    let balance = Balance::default();
    let lowered = lower(merged, options, Policy::new(WeightFormat::Q8), &balance)?;
    let file = Writing { base, merged, options, lowered: &lowered, ready: &Ready::new(), balance: &balance };
    let scratch = scratch_file(out)?;
    file.write(LpkWriter::scratch(scratch.path())?, BTreeMap::new(), &mut |_, _, _| {})?;
    Twin::open(scratch.into_temp_path())
}

pub(crate) fn check_size(lowered: &Lowered) -> Result<()> {
    for t in &lowered.tensors {
        if u32::try_from(t.rows).is_err() || u32::try_from(t.cols).is_err() || t.rows == 0 || t.cols == 0 {
            bail!("tensor {}: {} × {} is outside of what a file can hold", t.name, t.rows, t.cols);
        }
    }
    Ok(())
}
