//! Calibration texts: lines of a file, as documents of token ids.

use std::path::Path;

use anyhow::{Context, Result, bail};
use lora_runtime::Model;
use lora_runtime::format::Task;
use lora_runtime::tokenizer::{EncodeOptions, Tokenizer};
use serde_json::Value;

/// Tokens of the longest document; longer lines are cut.
pub const LONGEST: usize = 512;

/// The general text that is used where the user gives none.
pub const GENERAL: &str = include_str!("general.txt");

/// One sequence to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Token types, or empty.
    pub types: Vec<u32>,
    /// Ids that the decoder of an encoder–decoder reads, start token included; empty where they are not known.
    pub target: Vec<u32>,
    /// First row whose output counts when models are compared: of a prompt with its answer, the prompt's last token.
    pub counts_from: usize,
}

/// Reads a file of plain lines, or of JSON objects with the fields of a test set: `text`, `prompt` (and `expect`, the
/// answer), `question` and `context`, or `tokens` (words).
///
/// # Errors
/// The file cannot be read, a line is not what it looks like, or it holds nothing.
pub fn read(path: &Path, model: &Model<'_>) -> Result<Vec<Document>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    documents(&text, model).with_context(|| path.display().to_string())
}

/// The documents of a text, a line each.
///
/// # Errors
/// As [`read`].
pub fn documents(text: &str, model: &Model<'_>) -> Result<Vec<Document>> {
    let tokenizer = model.tokenizer()?;
    let limit = LONGEST.min(model.file.info.max_positions as usize).max(1);
    let mut out = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let object = line.starts_with('{').then(|| serde_json::from_str(line).ok()).flatten();
        let document = match object {
            Some(Value::Object(fields)) => of_fields(&fields, model, tokenizer)?,
            _ => None,
        };
        // JSON with other fields is a text like any other.
        let mut document = match document {
            Some(document) => document,
            None => plain(tokenizer, line).with_context(|| format!("line {}", number + 1))?,
        };
        document.target.truncate(limit);
        out.extend(cut(document, limit, model.task()));
    }
    if out.is_empty() {
        bail!("holds no text");
    }
    Ok(out)
}

fn plain(tokenizer: &Tokenizer<'_>, line: &str) -> Result<Document> {
    Ok(Document { tokens: tokenizer.encode(line, EncodeOptions::default())?.ids(), ..Document::default() })
}

fn of_fields(
    fields: &serde_json::Map<String, Value>,
    model: &Model<'_>,
    tokenizer: &Tokenizer<'_>,
) -> Result<Option<Document>> {
    let field = |names: &[&str]| names.iter().find_map(|n| fields.get(*n).and_then(Value::as_str));
    if let (Some(question), Some(context)) = (field(&["question"]), field(&["context"])) {
        let encoding = tokenizer.encode_pair(question, context, EncodeOptions::default())?;
        let types = if model.file.info.token_types > 1 { encoding.type_ids() } else { Vec::new() };
        return Ok(Some(Document { tokens: encoding.ids(), types, ..Document::default() }));
    }
    let answer = field(&["expect", "answer", "completion", "response", "target"]);
    if let Some(Value::Array(words)) = fields.get("tokens") {
        let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
        return plain(tokenizer, &words.join(" ")).map(Some);
    }
    let Some(text) = field(&["prompt", "text", "input", "source"]) else {
        return Ok(None);
    };
    if model.task() == Task::Seq2SeqLm {
        let mut document = plain(tokenizer, text)?;
        if let Some(answer) = answer {
            document.target = target(model, &plain(tokenizer, answer)?.tokens);
        }
        return Ok(Some(document));
    }
    let mut document = plain(tokenizer, &format!("{text}{}", answer.unwrap_or_default()))?;
    if answer.is_some() {
        let prompt = plain(tokenizer, text)?.tokens;
        if document.tokens.starts_with(&prompt) {
            document.counts_from = prompt.len().saturating_sub(1);
        }
    }
    Ok(Some(document))
}

/// What a decoder reads to say `ids`.
pub fn target(model: &Model<'_>, ids: &[u32]) -> Vec<u32> {
    let start = model.file.info.decoder_start;
    let start = if start < model.file.info.vocab { start } else { 0 };
    let rest = ids.strip_prefix(&[start]).unwrap_or(ids);
    let rest = if rest.last().is_some_and(|id| model.eos().contains(id)) { &rest[..rest.len() - 1] } else { rest };
    [&[start], rest].concat()
}

/// Long documents of language models go on in further ones; of others the beginning counts.
fn cut(document: Document, limit: usize, task: Task) -> Vec<Document> {
    if document.tokens.is_empty() {
        return Vec::new();
    }
    if document.tokens.len() <= limit {
        return vec![document];
    }
    let pieces = if task == Task::CausalLm { document.tokens.len().div_ceil(limit) } else { 1 };
    let piece = |i: usize| Document {
        tokens: document.tokens.iter().skip(i * limit).take(limit).copied().collect(),
        types: document.types.iter().skip(i * limit).take(limit).copied().collect(),
        target: document.target.clone(),
        counts_from: document.counts_from.saturating_sub(i * limit),
    };
    (0..pieces).map(piece).collect()
}

/// At most `budget` tokens of `documents`, taken evenly from all over the list.
#[must_use]
pub fn sample(documents: Vec<Document>, budget: usize) -> Vec<Document> {
    let total: usize = documents.iter().map(|d| d.tokens.len() + d.target.len()).sum();
    if total <= budget {
        return documents;
    }
    let mut seen = 0;
    let mut taken = 0;
    let mut keep = |d: &Document| {
        let len = d.tokens.len() + d.target.len();
        seen += len;
        // Wanted so far: the budget's share of what has been seen.
        let take = taken + len <= (seen as u64 * budget as u64 / total as u64) as usize;
        taken += if take { len } else { 0 };
        take
    };
    let mut kept: Vec<Document> = documents.iter().filter(|d| keep(d)).cloned().collect();
    if kept.is_empty() {
        kept.extend(documents.into_iter().next().map(|mut d| {
            d.tokens.truncate(budget.max(1));
            d.types.truncate(budget.max(1));
            d
        }));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(lengths: &[usize]) -> Vec<Document> {
        lengths.iter().map(|n| Document { tokens: vec![1; *n], ..Document::default() }).collect()
    }

    #[test]
    fn a_sample_is_spread_over_the_list_and_within_the_budget() {
        let all = documents(&[10; 100]);
        let kept = sample(all, 250);
        assert!((20..=25).contains(&kept.len()), "{}", kept.len());
        assert_eq!(sample(documents(&[3, 4]), 7).len(), 2);
        assert_eq!(sample(documents(&[900]), 100)[0].tokens.len(), 100);
    }

    #[test]
    fn long_texts_of_language_models_go_on() {
        let long = Document { tokens: (0..1100).collect(), ..Document::default() };
        let cut_up = cut(long.clone(), 512, Task::CausalLm);
        assert_eq!(cut_up.iter().map(|d| d.tokens.len()).collect::<Vec<_>>(), [512, 512, 76]);
        assert_eq!(cut_up[2].tokens[0], 1024);
        assert_eq!(cut(long, 512, Task::SeqCls).len(), 1);
    }
}
