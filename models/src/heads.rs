//! Task heads: from the last hidden states to named outputs.

use lora_runtime::format::{NONE, Operand, Task};
use lora_runtime::kernels::Act;
use lora_runtime::program::{NormKind, Op, SelectRows};

use crate::decoder::Decoder;
use crate::encoder::Encoder;
use crate::error::ModelError;
use crate::graph::{Epilogue, Graph, NormSpec, Projection};
use crate::spec::Role;

/// What the head needs to know beside the backbone.
#[derive(Clone, Copy, Debug)]
pub struct HeadInput<'a> {
    /// Task.
    pub task: Task,
    /// Architecture name, for errors.
    pub architecture: &'static str,
    /// `num_labels` of the config, if it says so; the head tensor decides.
    pub labels: Option<usize>,
    /// The head's module when it is not the task's usual one.
    pub module: Option<&'a str>,
}

/// What the head turned out to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Head {
    /// Labels.
    pub labels: usize,
    /// Default pooling: 0 none, 1 mean, 2 first, 3 last.
    pub pooling: u32,
}

impl HeadInput<'_> {
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

/// The prefix under which the backbone's tensors stand: the first of `prefixes` with which `probe` exists.
#[must_use]
pub fn backbone(g: &Graph<'_>, prefixes: &[&str], probe: &str) -> String {
    let found = prefixes.iter().find(|p| g.has(&format!("{p}{probe}")));
    (*found.unwrap_or(&prefixes[0])).to_string()
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

/// The head of a decoder: final norm included. `x` is the residual stream, `table` the input embedding.
///
/// # Errors
/// A missing head, or a task that decoders do not serve.
pub fn decoder_head(
    g: &mut Graph<'_>,
    input: &HeadInput<'_>,
    d: &Decoder,
    x: Operand,
    final_norm: &str,
    table: u32,
) -> Result<Head, ModelError> {
    let normed = |g: &mut Graph<'_>, rows: Operand| -> Result<Operand, ModelError> {
        let h = g.value_like(rows, d.hidden)?;
        g.norm(rows, h, final_norm, d.hidden, 1, d.norm)?;
        Ok(h)
    };
    match input.task {
        Task::CausalLm => {
            let last = g.select(x, d.hidden, SelectRows::Requested)?;
            let h = normed(g, last)?;
            let logits = if d.tied {
                g.linear_with(h, table, NONE, Epilogue::default())?
            } else {
                let head = g.matrix("lm_head", d.vocab, d.hidden, Role::Head, "vocab_size, hidden_size")?;
                let bias =
                    if g.has("lm_head.bias") { g.vector("lm_head.bias", d.vocab, 0.0, "vocab_size")? } else { NONE };
                g.linear_with(h, head, bias, Epilogue::default())?
            };
            g.output("logits", logits, d.vocab);
            Ok(Head::default())
        }
        Task::SeqCls => {
            let labels = input.head_rows(g, "score", d.hidden)?;
            let last = g.select(x, d.hidden, SelectRows::Last)?;
            let h = normed(g, last)?;
            let logits = task_linear(g, "score", h, d.hidden, labels, Act::None)?;
            g.output("logits", logits, labels);
            Ok(Head { labels, pooling: 3 })
        }
        Task::TokenCls => {
            let module = if g.has("score.weight") { "score" } else { "classifier" };
            let labels = input.head_rows(g, module, d.hidden)?;
            let h = normed(g, x)?;
            let logits = task_linear(g, module, h, d.hidden, labels, Act::None)?;
            g.output("logits", logits, labels);
            Ok(Head { labels, pooling: 0 })
        }
        Task::QuestionAnswering => {
            let h = normed(g, x)?;
            span_outputs(g, input, h, d.hidden)
        }
        Task::FeatureExtraction | Task::Other => {
            let h = normed(g, x)?;
            embedding_outputs(g, h, d.hidden)?;
            Ok(Head { labels: 0, pooling: 3 })
        }
        Task::Seq2SeqLm => Err(ModelError::Task { architecture: input.architecture, task: input.task.name() }),
    }
}

fn span_outputs(g: &mut Graph<'_>, input: &HeadInput<'_>, h: Operand, hidden: usize) -> Result<Head, ModelError> {
    let rows = HeadInput { labels: None, ..*input }.head_rows(g, "qa_outputs", hidden)?;
    if rows != 2 {
        return Err(ModelError::Shape {
            name: "qa_outputs.weight".into(),
            found: vec![rows, hidden],
            expected: vec![2, hidden],
            field: "two columns: start and end",
        });
    }
    let logits = task_linear(g, "qa_outputs", h, hidden, 2, Act::None)?;
    g.output("start_logits", logits, 1);
    g.output("end_logits", Graph::columns(logits, 1), 1);
    Ok(Head { labels: 0, pooling: 0 })
}

/// The head of a BERT-like encoder over its last hidden states `h`.
///
/// # Errors
/// A missing head, or a task that encoders do not serve.
pub fn encoder_head(
    g: &mut Graph<'_>,
    input: &HeadInput<'_>,
    e: &Encoder,
    h: Operand,
    prefix: &str,
) -> Result<Head, ModelError> {
    let pooler = format!("{prefix}pooler.dense");
    let has_pooler = g.has(&format!("{pooler}.weight"));
    match input.task {
        Task::SeqCls => {
            let labels = input.head_rows(g, "classifier", e.hidden)?;
            if !has_pooler {
                return Err(ModelError::MissingTensor {
                    name: format!("{pooler}.weight"),
                    hint: ": SEQ_CLS feeds the classifier from the pooler; a base without one (a masked language \
                           model) had it filled with random values in training, which no file holds"
                        .into(),
                });
            }
            let first = g.select(h, e.hidden, SelectRows::First)?;
            let pooled = task_linear(g, &pooler, first, e.hidden, e.hidden, Act::Tanh)?;
            let logits = task_linear(g, "classifier", pooled, e.hidden, labels, Act::None)?;
            g.output("logits", logits, labels);
            Ok(Head { labels, pooling: 2 })
        }
        Task::TokenCls => {
            let labels = input.head_rows(g, "classifier", e.hidden)?;
            let logits = task_linear(g, "classifier", h, e.hidden, labels, Act::None)?;
            g.output("logits", logits, labels);
            Ok(Head { labels, pooling: 0 })
        }
        Task::QuestionAnswering => span_outputs(g, input, h, e.hidden),
        Task::FeatureExtraction | Task::Other => {
            embedding_outputs(g, h, e.hidden)?;
            if has_pooler {
                let first = g.select(h, e.hidden, SelectRows::First)?;
                let pooled = task_linear(g, &pooler, first, e.hidden, e.hidden, Act::Tanh)?;
                g.output("pooler_output", pooled, e.hidden);
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
    NormSpec { kind: NormKind::Rms, eps, add: 0.0 }
}

/// A layer norm.
#[must_use]
pub const fn layer_norm(eps: f32) -> NormSpec {
    NormSpec { kind: NormKind::Layer, eps, add: 0.0 }
}
