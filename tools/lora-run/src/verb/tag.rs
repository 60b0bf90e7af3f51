//! `tag`: a label for every word, and the spans that they form.

use anyhow::{Result, bail};
use lora_runtime::Model;
use lora_runtime::format::Task;
use lora_runtime::tokenizer::{Encoding, Input, Token};
use serde_json::{Value as Json, json};

use super::{check_task, label_name, probability};
use crate::cli::{ModelArgs, TextArgs};
use crate::forward::{Ids, Steps, run_alone};
use crate::load::{Host, Room, positions};
use crate::requests::{serve, text, texts};
use crate::text::{encode, fit, token_types};

/// Arguments of `tag`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lora-run tag slots.lpk 'turn on the lamp in the hall'
  lora-run tag slots.lpk --file sentences.jsonl --json > tags.jsonl
      a line in:  {\"text\": \"turn on the lamp\"}   or   {\"tokens\": [\"turn\", \"on\", \"the\", \"lamp\"]}
      a line out: {\"tags\": [\"O\", \"O\", \"O\", \"B-device\"], \"spans\": [{\"label\": \"device\", \"text\": \"lamp\", … }]}

Given words keep their tags one for one; in a text the words are the tokenizer's. Spans count characters.")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub text: TextArgs,
}

/// Runs the verb.
///
/// # Errors
/// The model does not tag, or a text does not fit.
pub fn run(args: &Args) -> Result<()> {
    let host = Host::open(&args.model)?;
    let model = host.model()?;
    check_task(&model, &[Task::TokenCls])?;
    let mut room = Room::default();
    let requests = &args.text.requests;
    let answer = |request: &Json| {
        let truncate = requests.truncate;
        match texts(request, "tokens")? {
            Some(words) => answer_words(&host, model, &mut room, &words, truncate),
            None => answer_text(&host, model, &mut room, text(request, "text")?, truncate),
        }
    };
    serve(requests.file.as_deref(), || json!({ "text": args.text.text() }), requests.json, answer, show)
}

/// A word of the input: where it stands (in characters), and its first token's label.
struct Word {
    start: u32,
    end: u32,
    label: Option<(usize, f32)>,
}

fn answer_words(host: &Host, model: Model<'_>, room: &mut Room, words: &[&str], truncate: bool) -> Result<Json> {
    if words.is_empty() {
        return Ok(json!({ "tags": [], "spans": [] }));
    }
    let encoding = fit(encode(&model, Input::Words(words), None, true)?, positions(&model), truncate)?;
    let labels = token_labels(host, model, room, &encoding)?;
    // Offsets count in the words joined by blanks.
    let mut at = 0;
    let mut list: Vec<Word> = Vec::with_capacity(words.len());
    for word in words {
        let end = at + word.chars().count() as u32;
        list.push(Word { start: at, end, label: None });
        at = end + 1;
    }
    for (token, label) in encoding.tokens.iter().zip(labels) {
        if let Some(word) = list.get_mut(token.word as usize).filter(|w| w.label.is_none()) {
            word.label = Some(label);
        }
    }
    Ok(report(&model, &words.join(" "), &list, None))
}

fn answer_text(host: &Host, model: Model<'_>, room: &mut Room, text: &str, truncate: bool) -> Result<Json> {
    let encoding = fit(encode(&model, text.into(), None, true)?, positions(&model), truncate)?;
    let labels = token_labels(host, model, room, &encoding)?;
    let offsets = encoding.char_offsets(text.into(), None);
    let mut list: Vec<Word> = Vec::new();
    let mut current = Token::NO_WORD;
    for ((token, label), (start, end)) in encoding.tokens.iter().zip(labels).zip(offsets) {
        if token.word == Token::NO_WORD {
            continue;
        }
        match list.last_mut().filter(|_| token.word == current) {
            Some(word) => word.end = word.end.max(end),
            None => list.push(Word { start, end, label: Some(label) }),
        }
        current = token.word;
    }
    let words: Vec<String> = list.iter().map(|w| slice(text, w.start, w.end)).collect();
    Ok(report(&model, text, &list, Some(words)))
}

/// Characters `start..end` of a text.
fn slice(text: &str, start: u32, end: u32) -> String {
    text.chars().skip(start as usize).take(end.saturating_sub(start) as usize).collect()
}

/// Every token's best label and its probability.
fn token_labels(host: &Host, model: Model<'_>, room: &mut Room, encoding: &Encoding) -> Result<Vec<(usize, f32)>> {
    let (tokens, types) = (encoding.ids(), token_types(&model, encoding));
    let entry = Steps::of(&model, tokens.len(), host.chunk()).entry;
    let mut labels = Vec::with_capacity(tokens.len());
    let mut row = Vec::new();
    run_alone(host, model, room, Ids { tokens: &tokens, types: &types }, |_, session| {
        let rows = session.output(entry, "logits")?;
        for i in 0..rows.len() {
            row.clear();
            row.extend_from_slice(rows.row(i));
            let best = host.kernels.argmax(&row).unwrap_or(0);
            host.kernels.softmax_in_place(&mut row);
            labels.push((best, row[best]));
        }
        Ok(())
    })?;
    if labels.len() != tokens.len() || labels.iter().any(|(_, p)| p.is_nan()) {
        bail!("the model's scores are not numbers: the file's weights are damaged");
    }
    Ok(labels)
}

fn report(model: &Model<'_>, text: &str, list: &[Word], words: Option<Vec<String>>) -> Json {
    // A word without a token (blanks, characters that the normalizer drops) has no label of its own.
    let tags: Vec<String> =
        list.iter().map(|w| w.label.map_or_else(|| "O".into(), |(l, _)| label_name(model, l))).collect();
    let spans: Vec<Json> = spans(&tags)
        .iter()
        .map(|s| {
            let (first, last) = (&list[s.first], &list[s.end - 1]);
            let scores = list[s.first..s.end].iter().map(|w| w.label.map_or(0.0, |(_, p)| p));
            json!({
                "label": s.label,
                "start": first.start,
                "end": last.end,
                "text": slice(text, first.start, last.end),
                "words": [s.first, s.end],
                "score": probability(scores.sum::<f32>() / (s.end - s.first) as f32),
            })
        })
        .collect();
    match words {
        Some(words) => json!({ "tags": tags, "words": words, "spans": spans }),
        None => json!({ "tags": tags, "spans": spans }),
    }
}

/// A run of words with one label.
#[derive(Debug, PartialEq, Eq)]
struct Span<'t> {
    label: &'t str,
    first: usize,
    end: usize,
}

/// The spans of tags in any of the usual schemes: IO, BIO, BILOU, BIOES.
fn spans(tags: &[String]) -> Vec<Span<'_>> {
    let mut spans: Vec<Span<'_>> = Vec::new();
    let mut open = false;
    for (i, tag) in tags.iter().enumerate() {
        let (prefix, label) = match tag.split_once(['-', '_']) {
            Some((p, label)) if matches!(p, "B" | "I" | "E" | "L" | "S" | "U") => (p, label),
            _ if tag == "O" => ("O", ""),
            _ => ("I", tag.as_str()),
        };
        if prefix == "O" {
            open = false;
            continue;
        }
        let begins = matches!(prefix, "B" | "S" | "U");
        match spans.last_mut().filter(|s| open && !begins && s.label == label) {
            Some(span) => span.end = i + 1,
            None => spans.push(Span { label, first: i, end: i + 1 }),
        }
        open = !matches!(prefix, "E" | "L" | "S" | "U");
    }
    spans
}

/// The spans, one a line.
fn show(answer: &Json) -> String {
    let none = Vec::new();
    let spans = answer["spans"].as_array().unwrap_or(&none);
    if spans.is_empty() {
        return "(no spans)".into();
    }
    let line = |s: &Json| {
        let word = |name: &str| s[name].as_str().unwrap_or("").to_owned();
        format!("{:<12} {}..{}  {}  ({})", word("label"), s["start"], s["end"], word("text"), s["score"])
    };
    spans.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_every_scheme() {
        type Case = (&'static [&'static str], &'static [(&'static str, usize, usize)]);
        let cases: [Case; 6] = [
            (&["O", "B-room", "I-room", "O", "B-value"], &[("room", 1, 3), ("value", 4, 5)]),
            (&["B-a", "B-a", "I-b", "I-b"], &[("a", 0, 1), ("a", 1, 2), ("b", 2, 4)]),
            (&["I-a", "O", "I-a"], &[("a", 0, 1), ("a", 2, 3)]),
            (&["B-a", "E-a", "S-a", "U-b", "L-b"], &[("a", 0, 2), ("a", 2, 3), ("b", 3, 4), ("b", 4, 5)]),
            (&["NAME", "NAME", "O", "LABEL_1"], &[("NAME", 0, 2), ("LABEL_1", 3, 4)]),
            (&[], &[]),
        ];
        for (tags, expected) in cases {
            let tags: Vec<String> = tags.iter().map(|t| (*t).to_owned()).collect();
            let got: Vec<_> = spans(&tags).iter().map(|s| (s.label, s.first, s.end)).collect();
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn slices_count_characters() {
        assert_eq!(slice("aé🙂b", 1, 3), "é🙂");
        assert_eq!(slice("ab", 2, 9), "");
    }
}
