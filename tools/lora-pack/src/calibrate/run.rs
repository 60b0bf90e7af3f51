//! The calibration pass: the float model runs over all documents at once, op by op; before each linear its inputs are
//! summed up and its matrix is quantized.
//!
//! With two streams, a second run of the same program goes through the matrices as they were quantized so far. The
//! matrix is then fitted to give the float model's outputs from the *quantized* model's inputs, and where its output is
//! added to a residual `r`, to make good for what that has lost so far:
//!
//! ```text
//! H̃ = mean x̃·x̃ᵀ    C = mean x·x̃ᵀ    R = mean (r − r̃)·x̃ᵀ
//! target = W + α·(W·(C − H̃) + R)·(H̃ + λ)⁻¹        α = ½, λ = 20 % of mean diag H̃
//! ```

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use lora_models::spec::{Lowered, Role, Storage};
use lora_runtime::format::{EntryKind, Operand, Task};
use lora_runtime::kernels::{Act, Kernels, KvType, QuantizedRows, pack_float};
use lora_runtime::program::{AdapterNeeds, Op, SessionConfig};
use lora_runtime::session::workers::Inline;
use lora_runtime::threads::ArenaBox;
use lora_runtime::weights::WeightFormat;
use lora_runtime::{Model, Pass, Segment, Session, Step};
use rayon::prelude::*;

use super::moments::{RUN, product};
use super::{Document, Factor, Moments};
use crate::quantize::{quantize_rows, quantize_with_feedback};

/// Share of the way from the plain weights to those that undo the earlier layers' errors.
const ALPHA: f32 = 0.5;
/// Damping of the fit to the float outputs, as a share of the mean of H̃'s diagonal.
const FIT_DAMPING: f64 = 0.2;
/// Damping of error feedback, likewise.
const FEEDBACK_DAMPING: f64 = 0.03;
/// Output rows of a document of a language model: they feed the head.
const HEAD_ROWS: usize = 32;
/// Error feedback needs this many rows per input.
const LEAST_ROWS: usize = 2;

/// A matrix after quantization.
#[derive(Clone, Debug)]
pub struct Calibrated {
    /// Its panels.
    pub bytes: Vec<u8>,
    /// Root of the mean squared error of its outputs on the calibration text, over the outputs' root mean square.
    pub error: f64,
}

/// Results by tensor index.
pub type Ready = BTreeMap<usize, Calibrated>;

/// What the pass needs.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// The float twin.
    pub twin: Model<'a>,
    /// The model to make: the same tensors, in the formats they get.
    pub target: &'a Lowered,
    /// Table of `q4`.
    pub codebook: &'a [u8; 16],
    /// Whether the quantized prefix runs along.
    pub two_streams: bool,
    /// The values of a tensor, row-major.
    pub values: &'a (dyn Fn(usize) -> Result<Vec<f32>> + Sync),
}

/// Quantizes every matrix that some document reaches, in the order in which the model uses them. `progress` hears of
/// matrices done and to do.
///
/// # Errors
/// A matrix cannot be quantized, or a document does not fit the model.
pub fn calibrate(job: &Job<'_>, documents: &[Document], progress: &mut dyn FnMut(usize, usize)) -> Result<Ready> {
    let runs: Vec<Sequence> = documents.iter().map(|d| Sequence::new(&job.twin, d)).collect();
    let (mut arenas, mut rounded_arenas) = (arenas(job, &runs), Vec::new());
    if job.two_streams {
        rounded_arenas = self::arenas(job, &runs);
    }
    let mut float = sessions(job, &runs, &mut arenas)?;
    let mut rounded = sessions(job, &runs, &mut rounded_arenas)?;
    let mut walk = Walk::new(job, progress);
    for kind in [EntryKind::Encode, EntryKind::Decode] {
        if job.twin.entry(kind).is_err() {
            continue;
        }
        let mut lanes = Vec::new();
        let mut rounded = rounded.iter_mut();
        for (run, session) in runs.iter().zip(&mut float) {
            let rounded = rounded.next();
            if let Some(step) = run.step(kind) {
                let rounded = rounded.map(|s| s.start(kind, step)).transpose()?;
                lanes.push(Lane { float: session.start(kind, step)?, rounded });
            }
        }
        walk.entry(&mut lanes)?;
    }
    Ok(walk.ready)
}

/// The step of a document in each entry.
pub(super) struct Sequence {
    encode: Vec<u32>,
    decode: Vec<u32>,
    types: Vec<u32>,
    segments: [[Segment; 1]; 2],
    outputs: [Vec<u32>; 2],
}

impl Sequence {
    pub(super) fn new(model: &Model<'_>, document: &Document) -> Self {
        let encodes = model.entry(EntryKind::Encode).is_ok();
        let (encode, decode) = if encodes {
            (document.tokens.clone(), document.target.clone())
        } else {
            (Vec::new(), document.tokens.clone())
        };
        let lm = matches!(model.task(), Task::CausalLm | Task::Seq2SeqLm);
        let rows = |n: usize| -> Vec<u32> {
            let wanted = if lm { HEAD_ROWS.min(n) } else { n.min(1) };
            (1..=wanted).map(|i| (i * n / wanted - 1) as u32).collect()
        };
        let segment = |n: usize| [Segment { sequence: 0, past: 0, len: n as u32 }];
        Self {
            segments: [segment(encode.len()), segment(decode.len())],
            outputs: [rows(encode.len()), rows(decode.len())],
            types: document.types.clone(),
            encode,
            decode,
        }
    }

    pub(super) fn step(&self, kind: EntryKind) -> Option<Step<'_>> {
        let (tokens, i) = if kind == EntryKind::Encode { (&self.encode, 0) } else { (&self.decode, 1) };
        let token_types = if self.types.len() == tokens.len() { self.types.as_slice() } else { &[] };
        let step = Step { tokens, token_types, segments: &self.segments[i], outputs: &self.outputs[i] };
        (!tokens.is_empty()).then_some(step)
    }

    pub(super) fn config(&self) -> SessionConfig {
        SessionConfig {
            context: self.decode.len().max(1) as u32,
            tokens: self.encode.len().max(self.decode.len()) as u32,
            outputs: self.outputs.iter().map(Vec::len).max().unwrap_or(1).max(1) as u32,
            source: self.encode.len() as u32,
            sequences: 1,
            kv: KvType::F32,
            adapters: AdapterNeeds::NONE,
        }
    }
}

fn arenas(job: &Job<'_>, runs: &[Sequence]) -> Vec<ArenaBox> {
    runs.iter().map(|r| ArenaBox::new(job.twin.plan(&r.config()).arena_bytes as usize)).collect()
}

fn sessions<'m>(job: &Job<'m>, runs: &[Sequence], arenas: &'m mut [ArenaBox]) -> Result<Vec<Session<'m>>> {
    let one = |(run, arena): (&Sequence, &'m mut ArenaBox)| {
        Ok(Session::new(job.twin, run.config(), Kernels::best(), &Inline, arena.as_mut_slice())?)
    };
    runs.iter().zip(arenas).map(one).collect()
}

/// One document in one entry.
struct Lane<'r, 'm> {
    float: Pass<'r, 'm>,
    rounded: Option<Pass<'r, 'm>>,
}

/// Sums of a linear's inputs.
struct Inputs {
    /// The operand, and the op after the last linear that read it.
    of: (Operand, u32),
    /// `x·xᵀ`, of the quantized stream where there is one.
    square: Moments,
    /// `(x − x̃)·x̃ᵀ`.
    drift: Option<Moments>,
    /// Factors for error feedback, made when first needed.
    factor: Option<Factor>,
    /// Transposed `C − H̃`, and the factors of `H̃ + λ`.
    fit: Option<(Vec<f32>, Factor)>,
}

/// A linear's operands that matter here.
#[derive(Clone, Copy)]
struct Linear {
    a: Operand,
    tensor: usize,
    /// What the output is added to, and the factor of the output; none behind an activation.
    residual: Option<(Operand, f32)>,
}

struct Walk<'j, 'a> {
    job: &'j Job<'a>,
    ready: Ready,
    /// Linears that still use a matrix.
    uses: BTreeMap<usize, usize>,
    /// Sums of matrices that several linears use.
    shared: BTreeMap<usize, Moments>,
    inputs: Option<Inputs>,
    total: usize,
    progress: &'j mut dyn FnMut(usize, usize),
}

impl<'j, 'a> Walk<'j, 'a> {
    fn new(job: &'j Job<'a>, progress: &'j mut dyn FnMut(usize, usize)) -> Self {
        let mut uses = BTreeMap::new();
        for entry in job.twin.file.entries {
            for op in entry.op_start..entry.op_start + entry.op_count {
                if let Ok(Op::Linear { weight, .. }) = Op::parse(&job.twin.file.ops[op as usize])
                    && matches!(job.target.tensors[weight as usize].storage, Storage::Panels(f) if !f.is_float())
                {
                    *uses.entry(weight as usize).or_insert(0) += 1;
                }
            }
        }
        let total = uses.len();
        Self { job, ready: Ready::new(), uses, shared: BTreeMap::new(), inputs: None, total, progress }
    }

    fn entry(&mut self, lanes: &mut [Lane<'_, '_>]) -> Result<()> {
        self.inputs = None;
        let Some(first) = lanes.first() else { return Ok(()) };
        for index in first.float.ops() {
            let op = lanes[0].float.op(index)?;
            let mut panels = None;
            if let Op::Linear { a, weight, residual, act, scale, .. } = op
                && let Some(left) = self.uses.get(&(weight as usize)).copied()
            {
                let name = &self.job.target.tensors[weight as usize].name;
                let added = !residual.is_none() && act == Act::None && scale != 0.0;
                let linear = Linear { a, tensor: weight as usize, residual: added.then_some((residual, scale)) };
                panels = self.linear(lanes, index, linear, left).with_context(|| name.clone())?;
                (self.progress)(self.ready.len(), self.total);
            }
            if self.ready.len() == self.total {
                return Ok(());
            }
            lanes.par_iter_mut().try_for_each(|lane| {
                if let Some(rounded) = &mut lane.rounded {
                    rounded.run(index, panels.as_deref())?;
                }
                lane.float.run(index, None)
            })?;
        }
        Ok(())
    }

    /// Quantizes the matrix of a linear; its rounded values as float panels, where the quantized stream needs them.
    fn linear(&mut self, lanes: &[Lane<'_, '_>], index: u32, linear: Linear, left: usize) -> Result<Option<Vec<u8>>> {
        let Linear { a, tensor, residual } = linear;
        self.uses.insert(tensor, left - 1);
        let spec = &self.job.target.tensors[tensor];
        let used_once = left == 1 && !self.shared.contains_key(&tensor);
        if !used_once {
            let sums = self.shared.remove(&tensor).unwrap_or_else(|| Moments::new(spec.cols));
            let sums = gather(lanes, a, sums, None).0;
            if left > 1 {
                self.shared.insert(tensor, sums);
                return Ok(None);
            }
            let mut inputs = Inputs { of: (a, index), square: sums, drift: None, factor: None, fit: None };
            self.quantize(tensor, &mut inputs, None)?;
            return Ok(None);
        }
        let mut inputs = match self.inputs.take() {
            Some(inputs) if inputs.of == (a, index) => inputs,
            _ => {
                let drift = self.job.two_streams.then(|| Moments::new(spec.cols));
                let (square, drift) = gather(lanes, a, Moments::new(spec.cols), drift);
                Inputs { of: (a, index), square, drift, factor: None, fit: None }
            }
        };
        let lost = residual.filter(|_| self.job.two_streams).map(|r| lost(lanes, a, r, spec.rows, spec.cols));
        let rows = self.quantize(tensor, &mut inputs, lost)?;
        let panels = self.job.two_streams.then(|| {
            let values = rows.dequantize(self.job.codebook);
            pack_float(WeightFormat::F32, &values, spec.rows, spec.cols)
        });
        inputs.of.1 = index + 1;
        self.inputs = Some(inputs);
        Ok(panels)
    }

    /// `lost` is `R`.
    fn quantize(&mut self, tensor: usize, inputs: &mut Inputs, lost: Option<Vec<f32>>) -> Result<QuantizedRows> {
        let spec = &self.job.target.tensors[tensor];
        let Storage::Panels(format) = spec.storage else { anyhow::bail!("not a matrix") };
        let (n, k, codebook) = (spec.rows, spec.cols, self.job.codebook);
        let w = (self.job.values)(tensor)?;
        let head = matches!(spec.role, Some(Role::Head | Role::TiedEmbedding));
        let rows = if head && inputs.square.rows < LEAST_ROWS * k {
            quantize_rows(format, &w, n, k, Some(&inputs.square.diagonal()), codebook)?
        } else {
            // A head may be the embedding too, which reads no states: it is not fitted to them.
            let target = if head { None } else { inputs.fitted(&w, lost) };
            let square = &inputs.square;
            let factor = inputs.factor.get_or_insert_with(|| Factor::new(square.mean_symmetric(), k, FEEDBACK_DAMPING));
            quantize_with_feedback(format, target.as_deref().unwrap_or(&w), n, factor, codebook)?
        };
        let error = if head { 0.0 } else { output_error(&w, &rows.dequantize(codebook), &inputs.square) };
        self.ready.insert(tensor, Calibrated { bytes: rows.pack(), error });
        Ok(rows)
    }
}

impl Inputs {
    /// The weights that give the float model's outputs from the quantized model's inputs, half of the way.
    fn fitted(&mut self, w: &[f32], lost: Option<Vec<f32>>) -> Option<Vec<f32>> {
        let k = self.square.k;
        let drift = self.drift.as_ref()?.mean();
        if drift.iter().chain(lost.iter().flatten()).all(|d| *d == 0.0) {
            return None;
        }
        let square = &self.square;
        let (drift, factor) = self.fit.get_or_insert_with(|| {
            // Rows of the transposed drift: product() multiplies by a transpose.
            let transposed = (0..k * k).into_par_iter().map(|i| drift[i % k * k + i / k]).collect();
            (transposed, Factor::new(square.mean_symmetric(), k, FIT_DAMPING))
        });
        let mut missing = product(w, drift, k);
        for (m, l) in missing.iter_mut().zip(lost.iter().flatten()) {
            *m += l;
        }
        let change = factor.solve(&missing);
        Some(w.iter().zip(&change).map(|(w, c)| w + ALPHA * c).collect())
    }
}

/// `mean (r − r̃)·x̃ᵀ` over all lanes, in units of the linear's own sums: `n` outputs, `k` inputs.
fn lost(lanes: &[Lane<'_, '_>], a: Operand, (residual, scale): (Operand, f32), n: usize, k: usize) -> Vec<f32> {
    let mut sums = Moments::between(n, k);
    let (mut error, mut x) = (Vec::with_capacity(RUN * n), Vec::with_capacity(RUN * k));
    let mut flush = |error: &mut Vec<f32>, x: &mut Vec<f32>| {
        sums.add_product(error, x);
        error.clear();
        x.clear();
    };
    for lane in lanes {
        let Some(rounded) = &lane.rounded else { continue };
        let (inputs, float, rounded) = (rounded.rows(a, k), lane.float.rows(residual, n), rounded.rows(residual, n));
        for i in 0..inputs.len() {
            x.extend_from_slice(inputs.row(i));
            error.extend(float.row(i).iter().zip(rounded.row(i)).map(|(r, rounded)| (r - rounded) / scale));
            if x.len() == RUN * k {
                flush(&mut error, &mut x);
            }
        }
    }
    flush(&mut error, &mut x);
    sums.mean()
}

/// Adds up the inputs of a linear over all lanes.
fn gather(
    lanes: &[Lane<'_, '_>],
    a: Operand,
    mut square: Moments,
    mut drift: Option<Moments>,
) -> (Moments, Option<Moments>) {
    let k = square.k;
    let (mut x, mut rounded) = (Vec::with_capacity(RUN * k), Vec::new());
    let mut flush = |x: &mut Vec<f32>, rounded: &mut Vec<f32>| {
        if x.is_empty() {
            return;
        }
        if let Some(drift) = &mut drift {
            square.add_square(rounded);
            x.iter_mut().zip(rounded.iter()).for_each(|(x, r)| *x -= r);
            drift.add_product(x, rounded);
        } else {
            square.add_square(x);
        }
        x.clear();
        rounded.clear();
    };
    for lane in lanes {
        let rows = lane.float.rows(a, k);
        let of_rounded = lane.rounded.as_ref().map(|r| r.rows(a, k));
        for i in 0..rows.len() {
            x.extend_from_slice(rows.row(i));
            if let Some(r) = &of_rounded {
                rounded.extend_from_slice(r.row(i));
            }
            if x.len() == RUN * k {
                flush(&mut x, &mut rounded);
            }
        }
    }
    flush(&mut x, &mut rounded);
    (square, drift)
}

/// Relative error of the outputs: `√(tr ΔHΔᵀ / tr WHWᵀ)`.
fn output_error(w: &[f32], rounded: &[f32], square: &Moments) -> f64 {
    let k = square.k;
    let h: Vec<f32> = square.mean_symmetric().into_iter().map(|v| v as f32).collect();
    let power = |w: &[f32]| -> f64 {
        product(w, &h, k).iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>().max(0.0)
    };
    let delta: Vec<f32> = w.iter().zip(rounded).map(|(a, b)| a - b).collect();
    (power(&delta) / power(w).max(f64::MIN_POSITIVE)).sqrt()
}
