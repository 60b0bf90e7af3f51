//! Two models on the same text: how far the second one's answers are from the first one's.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use lora_runtime::format::{EntryKind, Task};
use lora_runtime::kernels::{Kernels, KvType};
use lora_runtime::program::{AdapterNeeds, Op, SessionConfig};
use lora_runtime::session::workers::Inline;
use lora_runtime::threads::ArenaBox;
use lora_runtime::{Model, Segment, Session, Step};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::Document;

/// Rows of outputs by token position (or one row for a whole document), for each named output.
type Outputs = Vec<(&'static str, Vec<Vec<f32>>)>;

/// How far a model is from another on some text.
#[derive(Clone, Debug, Default)]
pub struct Distance {
    /// Rows compared: tokens of language models and taggers, texts of others.
    pub rows: usize,
    /// KL(first ‖ second) of every row, ascending; empty for embeddings.
    pub kl: Vec<f64>,
    /// Rows whose largest output is the same.
    pub same_top: usize,
    /// Next tokens that the text has.
    pub tokens: usize,
    /// Mean negative log-likelihood of those under both; for language models.
    pub loss: Option<(f64, f64)>,
    /// Mean cosine of the outputs; for embeddings.
    pub cosine: Option<f64>,
}

impl Distance {
    /// Mean KL in nats.
    #[must_use]
    pub fn mean_kl(&self) -> Option<f64> {
        (!self.kl.is_empty()).then(|| self.kl.iter().sum::<f64>() / self.kl.len() as f64)
    }

    /// The KL below which 99 % of the rows are.
    #[must_use]
    pub fn p99_kl(&self) -> Option<f64> {
        self.kl.get((self.kl.len() * 99).div_ceil(100).saturating_sub(1)).copied()
    }

    /// The numbers, as reports give them; absent ones are null.
    #[must_use]
    pub fn json(&self) -> Value {
        let perplexity = |l: f64| l.exp();
        json!({"rows": self.rows, "kl_mean": self.mean_kl(), "kl_p99": self.p99_kl(), "top1": self.top1(),
               "perplexity_float": self.loss.map(|l| perplexity(l.0)), "perplexity": self.loss.map(|l| perplexity(l.1)),
               "cosine": self.cosine})
    }

    /// Share of rows whose largest output is the same.
    #[must_use]
    pub fn top1(&self) -> f64 {
        self.same_top as f64 / self.rows.max(1) as f64
    }
}

/// A model and how its keys and values are kept.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    /// The model.
    pub model: Model<'a>,
    /// Element type of the KV cache.
    pub kv: KvType,
    /// Float panels that stand in for matrices, by tensor index.
    pub panels: Option<&'a BTreeMap<usize, Vec<u8>>>,
}

impl<'a> Side<'a> {
    /// A model as it is.
    #[must_use]
    pub const fn new(model: Model<'a>, kv: KvType) -> Self {
        Self { model, kv, panels: None }
    }
}

/// Runs both models over `documents`, every one in a step of its own.
///
/// # Errors
/// The models have different outputs, or a document does not fit them.
pub fn compare(first: Side<'_>, second: Side<'_>, documents: &[Document]) -> Result<Distance> {
    let task = first.model.task();
    if task != second.model.task() || first.model.file.info.vocab != second.model.file.info.vocab {
        bail!("the models have different tasks or vocabularies");
    }
    let one = |d: &Document| -> Result<Distance> {
        let (a, b) = (outputs(first, d)?, outputs(second, d)?);
        distance(task, d, &a, &b)
    };
    // Few at a time: the logits of a document are large.
    let all: Vec<Distance> = documents.par_iter().map(one).collect::<Result<_>>()?;
    let mut sum = Distance::default();
    let (mut losses, mut cosines) = ((0.0, 0.0), 0.0);
    for d in &all {
        sum.rows += d.rows;
        sum.same_top += d.same_top;
        sum.kl.extend(&d.kl);
        if let Some((a, b)) = d.loss {
            let n = d.tokens as f64;
            losses = (losses.0 + a * n, losses.1 + b * n);
            sum.tokens += d.tokens;
        }
        cosines += d.cosine.unwrap_or(0.0);
    }
    sum.kl.sort_by(f64::total_cmp);
    let tokens = sum.tokens as f64;
    sum.loss = (tokens > 0.0).then(|| (losses.0 / tokens, losses.1 / tokens));
    sum.cosine = all.iter().any(|d| d.cosine.is_some()).then(|| cosines / all.len() as f64);
    Ok(sum)
}

/// Every output that is compared, for one document.
fn outputs(side: Side<'_>, document: &Document) -> Result<Outputs> {
    let model = side.model;
    let decodes = model.entry(EntryKind::Decode).is_ok();
    let encodes = model.entry(EntryKind::Encode).is_ok();
    let decoder: &[u32] = if encodes { &document.target } else { &document.tokens };
    let lm = matches!(model.task(), Task::CausalLm | Task::Seq2SeqLm);
    let rows: Vec<u32> = if lm { (0..decoder.len() as u32).collect() } else { Vec::new() };
    let config = SessionConfig {
        context: decoder.len().max(1) as u32,
        tokens: document.tokens.len().max(decoder.len()) as u32,
        outputs: rows.len().max(1) as u32,
        source: if encodes { document.tokens.len() as u32 } else { 0 },
        sequences: 1,
        kv: side.kv,
        adapters: AdapterNeeds::NONE,
    };
    let mut arena = ArenaBox::new(model.plan(&config).arena_bytes as usize);
    let mut session = Session::new(model, config, Kernels::best(), &Inline, arena.as_mut_slice())?;
    let mut run = |entry, tokens: &[u32], types: &[u32], outputs: &[u32]| {
        let segments = [Segment { sequence: 0, past: 0, len: tokens.len() as u32 }];
        let step = Step { tokens, token_types: types, segments: &segments, outputs };
        let mut pass = session.start(entry, step)?;
        for index in pass.ops() {
            let stand_in = match (side.panels, pass.op(index)?) {
                (Some(panels), Op::Linear { weight, .. }) => panels.get(&(weight as usize)),
                _ => None,
            };
            pass.run(index, stand_in.map(Vec::as_slice))?;
        }
        Ok::<_, lora_runtime::Error>(())
    };
    let last = |tokens: &[u32]| [tokens.len() as u32 - 1];
    let mut entry = EntryKind::Decode;
    if encodes {
        run(EntryKind::Encode, &document.tokens, &document.types, &last(&document.tokens))?;
        entry = EntryKind::Encode;
    }
    if decodes && !decoder.is_empty() {
        let last = last(decoder);
        run(EntryKind::Decode, decoder, if encodes { &[] } else { &document.types }, if lm { &rows } else { &last })?;
        entry = EntryKind::Decode;
    }
    let names: &[&'static str] = match model.task() {
        Task::QuestionAnswering => &["start_logits", "end_logits"],
        Task::FeatureExtraction | Task::Other => &["mean_pooled"],
        _ => &["logits"],
    };
    let read = |name: &&'static str| -> Result<(&'static str, Vec<Vec<f32>>)> {
        let rows = session.output(entry, name)?;
        Ok((*name, (0..rows.len()).map(|i| rows.row(i).to_vec()).collect()))
    };
    names.iter().map(read).collect()
}

fn distance(task: Task, document: &Document, a: &Outputs, b: &Outputs) -> Result<Distance> {
    let mut out = Distance::default();
    for ((name, a), (_, b)) in a.iter().zip(b) {
        if a.len() != b.len() || a.iter().zip(b).any(|(a, b)| a.len() != b.len()) {
            bail!("{name}: outputs of different sizes");
        }
        match task {
            Task::FeatureExtraction | Task::Other => {
                out.rows += a.len();
                let cosines: Vec<f64> = a.iter().zip(b).map(|(a, b)| cosine(a, b)).collect();
                out.cosine = Some(cosines.iter().sum::<f64>() / cosines.len().max(1) as f64);
                out.same_top += a.iter().zip(b).filter(|(a, b)| top(a) == top(b)).count();
            }
            // A span's ends are distributions over the tokens.
            Task::QuestionAnswering => {
                let column = |rows: &[Vec<f32>]| rows.iter().map(|r| r[0]).collect::<Vec<f32>>();
                out.add(&column(a), &column(b));
            }
            _ => a.iter().zip(b).skip(document.counts_from).for_each(|(a, b)| out.add(a, b)),
        }
    }
    let tokens = if document.target.is_empty() { &document.tokens } else { &document.target };
    if let (Task::CausalLm | Task::Seq2SeqLm, Some(((_, a), (_, b)))) = (task, a.first().zip(b.first()))
        && tokens.len() > document.counts_from + 1
    {
        let loss = |rows: &[Vec<f32>]| {
            let one = |(row, next): (&Vec<f32>, &u32)| -log_softmax(row)[*next as usize];
            rows.iter().zip(&tokens[1..]).skip(document.counts_from).map(one).sum::<f64>()
        };
        out.tokens = tokens.len() - 1 - document.counts_from;
        out.loss = Some((loss(a) / out.tokens as f64, loss(b) / out.tokens as f64));
    }
    Ok(out)
}

impl Distance {
    fn add(&mut self, a: &[f32], b: &[f32]) {
        self.rows += 1;
        if a.len() > 1 {
            let (p, q) = (log_softmax(a), log_softmax(b));
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
            // Written so that a NaN counts as the worst.
            self.kl.push(if kl.is_finite() { kl.max(0.0) } else { f64::INFINITY });
        }
        self.same_top += usize::from(top(a) == top(b));
    }
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|x| f64::from(x - top).exp()).sum();
    row.iter().map(|x| f64::from(x - top) - sum.ln()).collect()
}

/// Index of the first largest value.
fn top(row: &[f32]) -> usize {
    row.iter().enumerate().fold(0, |best, (i, x)| if *x > row[best] { i } else { best })
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_of_known_distributions() {
        let mut d = Distance::default();
        d.add(&[0.0, 0.0], &[0.0, 3f32.ln()]);
        d.add(&[1.0, 1.0], &[7.0, 7.0]);
        // KL((1/2, 1/2) ‖ (1/4, 3/4)) = ln 2 − ln(3) / 2
        assert!((d.kl[0] - (2f64.ln() - 3f64.ln() / 2.0)).abs() < 1e-6 && d.kl[1].abs() < 1e-12);
        assert_eq!((d.rows, d.same_top), (2, 1));
        d.add(&[0.0, 1.0], &[f32::NAN, 1.0]);
        assert_eq!(d.kl[2], f64::INFINITY);
    }

    #[test]
    fn percentiles_are_of_the_sorted_list() {
        let d = Distance { kl: (1..=200).map(f64::from).collect(), ..Distance::default() };
        assert_eq!((d.p99_kl(), d.mean_kl()), (Some(198.0), Some(100.5)));
        assert_eq!(Distance::default().p99_kl(), None);
    }
}
