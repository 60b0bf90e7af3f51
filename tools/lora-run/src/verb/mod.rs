//! One file per verb.

pub mod bench;
pub mod chat;
pub mod classify;
pub mod detokenize;
pub mod embed;
pub mod generate;
pub mod qa;
pub mod raw;
pub mod rerank;
pub mod selftest;
pub mod seq2seq;
pub mod tag;
pub mod tokenize;

use anyhow::{Result, bail};
use lora_runtime::Model;
use lora_runtime::format::Task;

/// Refuses a model of another task, and says which verb to use.
fn check_task(model: &Model<'_>, fits: &[Task]) -> Result<()> {
    let task = model.task();
    if fits.contains(&task) {
        return Ok(());
    }
    let verb = match task {
        Task::CausalLm => "generate",
        Task::Seq2SeqLm => "seq2seq",
        Task::SeqCls => "classify",
        Task::TokenCls => "tag",
        Task::QuestionAnswering => "qa",
        Task::FeatureExtraction | Task::Other => "embed",
    };
    bail!("the model's task is {}: use `lora-run {verb}`", task.name())
}

/// The name of a label; files without names count them.
fn label_name(model: &Model<'_>, i: usize) -> String {
    model.face.label(i).map_or_else(|| format!("LABEL_{i}"), str::to_owned)
}

/// A probability with six digits.
fn probability(p: f32) -> f64 {
    (f64::from(p) * 1e6).round() / 1e6
}
