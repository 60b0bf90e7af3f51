//! # lora-models
//!
//! Lowers a Hugging Face model (config + tensor names) to a flat program of the runtime's ops. A family is a small
//! description in [`arch`]; [`decoder`] and [`encoder`] turn descriptions into ops; [`allocate`](mod@allocate) plans the memory. The
//! runtime never sees an architecture.

pub mod allocate;
pub mod arch;
pub mod config;
pub mod decoder;
pub mod encoder;
pub mod error;
pub mod graph;
pub mod heads;
pub mod names;
pub mod policy;
pub mod rope;
pub mod spec;

use lora_runtime::format::{ProblemType, Task};
use serde_json::Value;

use crate::config::Config;
use crate::graph::Graph;
use crate::heads::HeadInput;

pub use error::ModelError;
pub use graph::Checkpoint;
pub use policy::Policy;
pub use spec::Lowered;

/// Names of the supported `model_type`s.
pub const SUPPORTED: &[&str] = &["bert", "llama", "mistral", "qwen2", "qwen3"];

fn problem_type(c: Config<'_>, labels: usize) -> Result<ProblemType, ModelError> {
    match c.text("problem_type")? {
        None if labels == 1 => Ok(ProblemType::Regression),
        None | Some("single_label_classification") => Ok(ProblemType::SingleLabel),
        Some("multi_label_classification") => Ok(ProblemType::MultiLabel),
        Some("regression") => Ok(ProblemType::Regression),
        Some(_) => {
            Err(c.unsupported("problem_type", "single_label_classification, multi_label_classification or regression"))
        }
    }
}

/// Lowers a model for `task`, with formats by `policy`.
///
/// # Errors
/// An unsupported architecture or option, a missing or misshapen tensor: each named.
pub fn lower(config: &Value, checkpoint: &dyn Checkpoint, task: Task, policy: Policy) -> Result<Lowered, ModelError> {
    let c = Config::new(config);
    let model_type = c.text("model_type")?.ok_or(ModelError::ConfigMissing { field: "model_type" })?;
    let architecture = SUPPORTED
        .iter()
        .find(|s| **s == model_type)
        .ok_or_else(|| ModelError::UnknownArchitecture(model_type.into(), SUPPORTED.join(", ")))?;
    let mut g = Graph::new(checkpoint, policy);
    let input = HeadInput { task, architecture, labels: None, module: None };
    let (vocab, max_positions, token_types, hidden, head) = if model_type == "bert" {
        let e = arch::bert::bert(c)?;
        (e.vocab, e.positions, e.token_types, e.hidden, encoder::lower(&mut g, &e, &input)?)
    } else {
        let d = match model_type {
            "llama" => arch::llama::llama(c)?,
            "mistral" => arch::llama::mistral(c)?,
            "qwen2" => arch::llama::qwen2(c)?,
            _ => arch::llama::qwen3(c)?,
        };
        (d.vocab, d.max_positions, 0, d.hidden, decoder::lower(&mut g, &d, &input)?)
    };
    let Graph { mut buffers, tensors, caches, entries, .. } = g;
    let (per_token, per_output) = allocate::allocate(&mut buffers, &entries);
    Ok(Lowered {
        architecture,
        task,
        problem: problem_type(c, head.labels)?,
        vocab: vocab as u32,
        max_positions: max_positions as u32,
        token_types: token_types as u32,
        hidden: hidden as u32,
        labels: head.labels as u32,
        pooling: head.pooling,
        entries,
        buffers,
        caches,
        tensors,
        per_token,
        per_output,
    })
}
