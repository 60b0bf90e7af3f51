//! What the model is for.

use anyhow::{Result, anyhow};
use lora_runtime::format::Task;
use serde_json::Value;

use super::PackOptions;
use crate::merge::{Merged, TaskType};

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
