//! Task heads: from the last hidden states to named outputs.

use lora_runtime::format::{NONE, Operand, Task};
use lora_runtime::kernels::Act;
use lora_runtime::program::{NormKind, Op, SelectRows};

use crate::decoder::{Decoder, LmHead};
use crate::encoder::{Dense, Encoder, Sentence};
use crate::error::ModelError;
use crate::graph::{Epilogue, Graph, NormSpec, Projection};
use crate::spec::Role;

/// What the head needs to know beside the backbone.
#[derive(Clone, Copy, Debug)]
pub struct HeadInput {
    /// Task.
    pub task: Task,
    /// Architecture name, for errors.
    pub architecture: &'static str,
    /// `num_labels` of the config, if it says so; the head tensor decides.
    pub labels: Option<usize>,
}

/// What the head turned out to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Head {
    /// Labels.
    pub labels: usize,
    /// Default pooling: 0 none, 1 mean, 2 first, 3 last.
    pub pooling: u32,
}

impl HeadInput {
    /// Whether the task has a language-model head.
    #[must_use]
    pub const fn uses_lm_head(&self) -> bool {
        matches!(self.task, Task::CausalLm | Task::Seq2SeqLm)
    }

    /// Rows of the head matrix `module.weight`.
    fn head_rows(&self, g: &Graph<'_>, module: &str, hidden: usize) -> Result<usize, ModelError> {
        let name = format!("{module}.weight");
        let shape = g.shape(&name).ok_or_else(|| ModelError::MissingTensor {
            name: name.clone(),
            hint: format!(": a model for {} needs it, and random values are never filled in", self.task.name()),
        })?;
        match shape[..] {
            [rows, cols] if cols == hidden && rows > 0 && self.labels.is_none_or(|n| n == rows) => Ok(rows),
            _ => Err(ModelError::Shape {
                name,
                found: shape,
                expected: vec![self.labels.unwrap_or(0), hidden],
                field: "num_labels, hidden_size",
            }),
        }
    }
}

fn task_linear(
    g: &mut Graph<'_>,
    module: &str,
    x: Operand,
    cols: usize,
    rows: usize,
    act: Act,
) -> Result<Operand, ModelError> {
    g.project(module, x, cols, &[Projection::new(module, rows, Role::TaskHead)], Epilogue { act, scale: 1.0 })
}

/// Mean, first and last rows, L2-normalised, and the hidden states themselves.
fn embedding_outputs(g: &mut Graph<'_>, h: Operand, width: usize) -> Result<(), ModelError> {
    g.output("last_hidden_state", h, width);
    let mean = g.output_value(width)?;
    g.push(Op::Pool { a: h, out: mean, width: width as u32 });
    let first = g.select(h, width, SelectRows::First)?;
    let last = g.select(h, width, SelectRows::Last)?;
    for (name, at) in [("mean_pooled", mean), ("cls_pooled", first), ("last_pooled", last)] {
        // x / ‖x‖₂ = (x / rms(x)) / √n; the epsilon only keeps an all-zero row from dividing by zero.
        g.push(Op::Norm {
            kind: NormKind::Rms,
            a: at,
            out: at,
            width: width as u32,
            groups: 1,
            eps: 1e-30,
            weight: NONE,
            bias: NONE,
        });
        let factor = (width as f64).sqrt().recip() as f32;
        g.push(Op::Scale { a: at, out: at, width: width as u32, factor, cap: 0.0 });
        g.output(name, at, width);
    }
    Ok(())
}

/// The head of a decoder: final norm included. `x` is the residual stream.
///
/// # Errors
/// A missing head, or a task that decoders do not serve.
pub fn decoder_head(
    g: &mut Graph<'_>,
    input: &HeadInput,
    d: &Decoder,
    x: Operand,
    prefix: &str,
) -> Result<Head, ModelError> {
    g.begin_head(x);
    let hidden = d.stack.hidden;
    let normed = |g: &mut Graph<'_>, rows: Operand| -> Result<Operand, ModelError> {
        let Some(name) = d.stack.final_norm else { return Ok(rows) };
        let h = g.value_like(rows, hidden)?;
        g.norm(rows, h, &format!("{prefix}{name}"), hidden, 1, d.stack.norm)?;
        Ok(h)
    };
    match input.task {
        Task::CausalLm => {
            let last = g.select(x, hidden, SelectRows::Requested)?;
            let h = normed(g, last)?;
            lm_head(g, &d.head, &d.stack.word_module(g, prefix), h, (d.stack.embeddings.vocab, hidden), NONE)?;
            Ok(Head::default())
        }
        Task::SeqCls => {
            let labels = input.head_rows(g, "score", hidden)?;
            let last = g.select(x, hidden, SelectRows::Last)?;
            let h = normed(g, last)?;
            let logits = task_linear(g, "score", h, hidden, labels, Act::None)?;
            g.output("logits", logits, labels);
            Ok(Head { labels, pooling: 3 })
        }
        Task::TokenCls => {
            let module = if g.has("score.weight") { "score" } else { "classifier" };
            let labels = input.head_rows(g, module, hidden)?;
            let h = normed(g, x)?;
            let logits = task_linear(g, module, h, hidden, labels, Act::None)?;
            g.output("logits", logits, labels);
            Ok(Head { labels, pooling: 0 })
        }
        Task::QuestionAnswering => {
            let h = normed(g, x)?;
            span_outputs(g, input, "qa_outputs", h, hidden)
        }
        Task::FeatureExtraction | Task::Other => {
            let h = normed(g, x)?;
            embedding_outputs(g, h, hidden)?;
            Ok(Head { labels: 0, pooling: 3 })
        }
        Task::Seq2SeqLm => Err(ModelError::Task { architecture: input.architecture, task: input.task.name() }),
    }
}

/// The output `logits` over the vocabulary. `words` is the module of the input embedding, `bias` a vector that the
/// model keeps beside the head.
///
/// # Errors
/// A missing or misshapen head.
pub fn lm_head(
    g: &mut Graph<'_>,
    head: &LmHead,
    words: &str,
    h: Operand,
    (vocab, hidden): (usize, usize),
    bias: u32,
) -> Result<(), ModelError> {
    let (module, role) = if head.tied { (words, Role::TiedEmbedding) } else { (head.module, Role::Head) };
    let table = g.matrix(module, vocab, hidden, role, "vocab_size, hidden_size")?;
    let bias = match head.bias {
        true => g.vector(&format!("{}.bias", head.module), vocab, 0.0, "vocab_size")?,
        false => bias,
    };
    let logits = g.linear_with(head.module, h, table, bias, Epilogue { act: Act::None, scale: head.scale })?;
    if head.softcap != 0.0 {
        g.push(Op::Scale { a: logits, out: logits, width: vocab as u32, factor: 1.0, cap: head.softcap });
    }
    g.output("logits", logits, vocab);
    Ok(())
}

fn span_outputs(
    g: &mut Graph<'_>,
    input: &HeadInput,
    module: &str,
    h: Operand,
    hidden: usize,
) -> Result<Head, ModelError> {
    let rows = HeadInput { labels: None, ..*input }.head_rows(g, module, hidden)?;
    if rows != 2 {
        return Err(ModelError::Shape {
            name: format!("{module}.weight"),
            found: vec![rows, hidden],
            expected: vec![2, hidden],
            field: "two columns: start and end",
        });
    }
    let logits = task_linear(g, module, h, hidden, 2, Act::None)?;
    g.output("start_logits", logits, 1);
    g.output("end_logits", Graph::columns(logits, 1), 1);
    Ok(Head { labels: 0, pooling: 0 })
}

/// A dense layer of a head.
fn dense(g: &mut Graph<'_>, e: &Encoder, d: Dense, x: Operand, prefix: &str) -> Result<Operand, ModelError> {
    let prefix = if d.in_backbone { prefix } else { "" };
    let module = format!("{prefix}{}", d.module);
    if !g.has(&format!("{module}.weight")) {
        return Err(ModelError::MissingTensor {
            name: format!("{module}.weight"),
            hint:
                ": the task's head feeds its classifier from it; a base without one (a masked language model) had it \
                   filled with random values in training, which no file holds"
                    .into(),
        });
    }
    let hidden = e.stack.hidden;
    let h = task_linear(g, &module, x, hidden, hidden, d.act)?;
    if let Some(name) = d.norm {
        g.norm(h, h, &format!("{prefix}{name}"), hidden, 1, e.stack.norm)?;
    }
    Ok(h)
}

/// The head of an encoder over its last hidden states `h`.
///
/// # Errors
/// A missing head, or a task that encoders do not serve.
pub fn encoder_head(
    g: &mut Graph<'_>,
    input: &HeadInput,
    e: &Encoder,
    h: Operand,
    prefix: &str,
) -> Result<Head, ModelError> {
    g.begin_head(h);
    let hidden = e.stack.hidden;
    let heads = &e.heads;
    let tokens = |g: &mut Graph<'_>| match heads.token_dense {
        Some(d) => dense(g, e, d, h, prefix),
        None => Ok(h),
    };
    match input.task {
        Task::SeqCls => {
            let labels = input.head_rows(g, heads.sentence_classifier, hidden)?;
            let (row, pooling) = match heads.sentence {
                Sentence::First => (g.select(h, hidden, SelectRows::First)?, 2),
                Sentence::Mean => {
                    let out = g.output_value(hidden)?;
                    g.push(Op::Pool { a: h, out, width: hidden as u32 });
                    (out, 1)
                }
            };
            let pooled = dense(g, e, heads.sentence_dense, row, prefix)?;
            let logits = task_linear(g, heads.sentence_classifier, pooled, hidden, labels, Act::None)?;
            g.output("logits", logits, labels);
            Ok(Head { labels, pooling })
        }
        Task::TokenCls => {
            let labels = input.head_rows(g, "classifier", hidden)?;
            let h = tokens(g)?;
            let logits = task_linear(g, "classifier", h, hidden, labels, Act::None)?;
            g.output("logits", logits, labels);
            Ok(Head { labels, pooling: 0 })
        }
        Task::QuestionAnswering => {
            let h = tokens(g)?;
            span_outputs(g, input, heads.spans, h, hidden)
        }
        Task::FeatureExtraction | Task::Other => {
            embedding_outputs(g, h, hidden)?;
            if let Some(d) = heads.pooler.filter(|d| g.has(&format!("{prefix}{}.weight", d.module))) {
                let first = g.select(h, hidden, SelectRows::First)?;
                let pooled = dense(g, e, d, first, prefix)?;
                g.output("pooler_output", pooled, hidden);
            }
            Ok(Head { labels: 0, pooling: 1 })
        }
        Task::CausalLm | Task::Seq2SeqLm => {
            Err(ModelError::Task { architecture: input.architecture, task: input.task.name() })
        }
    }
}

/// An RMS norm.
#[must_use]
pub const fn rms(eps: f32) -> NormSpec {
    NormSpec { kind: NormKind::Rms, eps, add: 0.0, weights: true }
}

/// A layer norm.
#[must_use]
pub const fn layer_norm(eps: f32) -> NormSpec {
    NormSpec { kind: NormKind::Layer, eps, add: 0.0, weights: true }
}
