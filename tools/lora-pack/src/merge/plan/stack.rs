//! What is known about a model's modules from their names alone.

use super::super::config::TaskType;
use super::super::layout::OUTPUTS;
use super::super::names::Names;

/// Last segments of modules that are embeddings, not linear layers.
const EMBEDDINGS: &[&str] = &[
    "embed_tokens",
    "word_embeddings",
    "wte",
    "wpe",
    "embed_in",
    "tok_embeddings",
    "shared",
    "embed_positions",
    "position_embeddings",
    "token_type_embeddings",
    "relative_attention_bias",
    "rel_embeddings",
];

/// First segments of task heads.
const HEADS: &[&str] = &["classifier", "score", "qa_outputs", "classification_head", "pre_classifier"];

pub fn is_embedding(module: &str) -> bool {
    module.rsplit('.').next().is_some_and(|last| EMBEDDINGS.contains(&last))
}

/// The module whose output are the logits of a language model.
pub fn output_head(names: &Names) -> Option<String> {
    OUTPUTS.iter().find(|o| names.origin(&format!("{o}.weight")).is_some()).map(|o| o.to_string())
}

pub fn is_output_head(module: &str) -> bool {
    OUTPUTS.contains(&module)
}

pub fn is_task_head(path: &str) -> bool {
    HEADS.contains(&path.split('.').next().unwrap_or(path))
}

/// Whether the model of this task surely has the module: layers always do; poolers and heads of other tasks in the
/// base's file may not be part of what was trained.
pub fn is_certainly_used(module: &str, task: Option<TaskType>) -> bool {
    if module.split('.').any(|s| s.parse::<u32>().is_ok()) {
        return true;
    }
    if is_output_head(module) {
        return matches!(task, Some(TaskType::CausalLm | TaskType::Seq2SeqLm));
    }
    is_embedding(module)
}
