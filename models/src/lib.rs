//! # lora-models
//!
//! Lowers a Hugging Face model (config + tensor names) to a flat program of the runtime's ops. A family is a small
//! description in [`arch`]; [`decoder`] and [`encoder`] turn descriptions into ops; [`allocate`](mod@allocate) plans the memory. The
//! runtime never sees an architecture.

pub mod allocate;
pub mod arch;
pub mod balance;
pub mod block;
pub mod buckets;
pub mod config;
pub mod decoder;
pub mod encoder;
pub mod error;
pub mod experts;
pub mod graph;
pub mod heads;
pub mod layer;
pub mod names;
pub mod policy;
pub mod rope;
pub mod seq2seq;
pub mod spec;
pub mod stack;

use lora_runtime::format::{ProblemType, Task};
use serde_json::Value;

use crate::arch::{ARCHITECTURES, Reader};
use crate::config::Config;
use crate::graph::Graph;
use crate::heads::HeadInput;

pub use error::ModelError;
pub use graph::Checkpoint;
pub use policy::{Depth, Policy};
pub use spec::Lowered;

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
    let (architecture, reader) = *ARCHITECTURES.iter().find(|(name, _)| *name == model_type).ok_or_else(|| {
        let names: Vec<&str> = ARCHITECTURES.iter().map(|(name, _)| *name).collect();
        ModelError::UnknownArchitecture(model_type.into(), names.join(", "))
    })?;
    let policy = Policy { embeds: task == Task::FeatureExtraction, ..policy };
    let mut g = Graph::new(checkpoint, policy);
    let input = HeadInput { task, architecture, labels: None };
    let (stack, head) = match reader {
        Reader::Decoder(read) => {
            let d = read(c)?;
            let head = decoder::lower(&mut g, &d, &input)?;
            (d.stack, head)
        }
        Reader::Encoder(read) => {
            let e = read(c)?;
            let head = encoder::lower(&mut g, &e, &input)?;
            (e.stack, head)
        }
        Reader::Seq2Seq(read) => {
            let m = read(c)?;
            let head = seq2seq::lower(&mut g, &m, &input)?;
            (m.encoder, head)
        }
    };
    let Graph { mut buffers, tensors, slots, caches, entries, .. } = g;
    let (per_token, per_output) = allocate::allocate(&mut buffers, &entries);
    Ok(Lowered {
        architecture,
        task,
        problem: problem_type(c, head.labels)?,
        vocab: stack.embeddings.vocab as u32,
        max_positions: stack.max_positions as u32,
        token_types: stack.embeddings.types.map_or(0, |t| t.1) as u32,
        hidden: stack.hidden as u32,
        labels: head.labels as u32,
        pooling: head.pooling,
        entries,
        buffers,
        caches,
        tensors,
        slots,
        per_token,
        per_output,
    })
}
