//! After planning: the merged config, and checks on the model as a whole.

use serde_json::Value;

use super::config::{info, warning};
use super::layout::{OUTPUTS, base_task, config_value};
use super::{Adapter, MergeError, Merged, TaskType};
use crate::source::{SourceError, TokenizerFiles, quote};

/// Task heads by the first segment of their parameters. Heads that PEFT does not save by itself are among them.
const HEADS: &[&str] = &["classifier", "score", "qa_outputs", "classification_head"];

/// Adjusts the config to the tensors, and refuses a model without its head.
pub(super) fn finish(merged: &mut Merged) -> Result<(), MergeError> {
    vocabulary(merged)?;
    task(merged)?;
    tokenizers(merged);
    Ok(())
}

/// The table of tokens may have been resized; its two sides must agree.
fn vocabulary(merged: &mut Merged) -> Result<(), MergeError> {
    let words = ["embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared"];
    let is_table =
        |n: &str| n.strip_suffix(".weight").and_then(|m| m.rsplit('.').next()).is_some_and(|l| words.contains(&l));
    let rows = |name: &str| merged.shape(name).and_then(|s| s.first().copied());
    let Some(input) = merged.names().find(|n| is_table(n)).map(str::to_owned) else { return Ok(()) };
    let Some(now) = rows(&input) else { return Ok(()) };
    let output = OUTPUTS.iter().map(|o| format!("{o}.weight")).find(|o| merged.shape(o).is_some());
    let touched = |n: &String| merged.recipes.contains_key(n);
    if let Some(output) = &output
        && (touched(output) || touched(&input))
        && rows(output) != Some(now)
    {
        let problem = format!(
            "{} rows, but the input embedding {} has {now}: the shape of one was changed without the other",
            rows(output).unwrap_or(0),
            quote(&input)
        );
        let file = merged.adapters.last().map_or(merged.base.dir.clone(), |a| a.files.weights_path.clone());
        return Err(SourceError::tensor(&file, output.as_str(), problem).into());
    }
    let before = merged.base.tensors().get(&input).and_then(|t| t.shape.first().copied());
    if touched(&input) && before != Some(now) && config_value(&merged.config, "vocab_size").is_some() {
        merged.notes.push(info("base", format!("the vocabulary has {now} rows now")));
        set(&mut merged.config, "vocab_size", now.into());
    }
    Ok(())
}

/// Sets a value where the config has it: at the top, or in its text part.
fn set(config: &mut Value, key: &str, value: Value) {
    let nested = config.get(key).is_none() && config.get("text_config").is_some_and(|t| t.get(key).is_some());
    let map = if nested { config.get_mut("text_config") } else { Some(config) };
    if let Some(map) = map.and_then(Value::as_object_mut) {
        map.insert(key.to_owned(), value);
    }
}

/// The class, the labels, and whether the head is there at all.
fn task(merged: &mut Merged) -> Result<(), MergeError> {
    let Some(task) = merged.task else { return Ok(()) };
    if base_task(&merged.config) != Some(task) {
        let class = merged.config.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
        if let Some(class) = class.and_then(|c| task.class_like(c)) {
            set(&mut merged.config, "architectures", vec![class].into());
        }
    }
    if !matches!(task, TaskType::SeqCls | TaskType::TokenCls | TaskType::QuestionAns) {
        return Ok(());
    }
    let is_head = |n: &str| {
        let first = n.split('.').next().unwrap_or(n);
        HEADS.contains(&first)
    };
    let heads: Vec<String> = merged.names().filter(|n| is_head(n)).map(str::to_owned).collect();
    if heads.is_empty() {
        let file = merged.adapters.iter().find(|a| a.config.task == Some(task)).map_or(&merged.base.dir, head_file);
        let problem = format!(
            "incomplete: task_type is {}, and neither the adapter nor the base has a head ({}); a missing head is not \
             made up",
            task.name(),
            HEADS.join(", ")
        );
        return Err(SourceError::file(file, problem).into());
    }
    // The last matrix of the head gives the labels: classifier.out_proj after classifier.dense.
    let last = heads.iter().rfind(|n| n.ends_with(".weight") && !n.ends_with("dense.weight"));
    if let Some(labels) = last.and_then(|n| merged.shape(n)).and_then(|s| s.first().copied())
        && task != TaskType::QuestionAns
    {
        labels_of(merged, labels);
    }
    Ok(())
}

fn head_file(adapter: &Adapter) -> &std::path::PathBuf {
    &adapter.files.weights_path
}

/// An adapter carries no label names; those of a base with another number of labels are not its.
fn labels_of(merged: &mut Merged, labels: usize) {
    let named = merged.config.get("id2label").and_then(Value::as_object).map(|m| m.len());
    let Some(map) = merged.config.as_object_mut() else { return };
    if named.is_some_and(|n| n != labels) {
        map.remove("id2label");
        map.remove("label2id");
        let text =
            format!("the head has {labels} labels; the base's names for {} do not belong to it", named.unwrap_or(0));
        merged.notes.push(warning("base", text));
    }
    map.insert("num_labels".into(), labels.into());
}

fn tokenizers(merged: &mut Merged) {
    let with: Vec<&Adapter> = merged.adapters.iter().filter(|a| a.files.tokenizer.is_present()).collect();
    let differ = with.windows(2).any(|w| differs(&w[0].files.tokenizer, &w[1].files.tokenizer));
    let Some(last) = with.last().map(|a| a.label.clone()) else { return };
    let note = match differ {
        true => {
            warning(&last, format!("the adapters bring different tokenizers or templates; those of {last} are used"))
        }
        false => info(&last, "the adapter's tokenizer or template is used instead of the base's".into()),
    };
    merged.notes.push(note);
}

fn differs(a: &TokenizerFiles, b: &TokenizerFiles) -> bool {
    a.tokenizer_json != b.tokenizer_json || a.chat_template != b.chat_template
}
