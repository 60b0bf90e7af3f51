//! `qa`: the answer to a question, as a span of a text.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use lora_runtime::Model;
use lora_runtime::format::Task;
use lora_runtime::tokenizer::{Encoding, Token};
use serde_json::{Value as Json, json};

use super::check_task;
use crate::cli::ModelArgs;
use crate::forward::{Ids, Steps, run_alone};
use crate::load::{Host, Room, positions};
use crate::requests::{number, serve, text};
use crate::text::{encode, token_types};

/// Arguments of `qa`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lora-run qa qa.lpk --question 'Who keeps it?' --context 'The harbour master keeps a notebook.'
  lora-run qa qa.lpk --file questions.jsonl --json > answers.jsonl
      a line in:  {\"question\": \"Who keeps it?\", \"context\": \"The harbour master keeps a notebook.\"}
      a line out: {\"answer\": \"The harbour master\", \"start\": 0, \"end\": 18, \"score\": 11.5, \"no_answer_score\": -3.1}

The score is the sum of the start and end logits, that of no answer their sum at the first token. A context beyond
--max-seq-len is read in windows that overlap by --doc-stride tokens; the best span of all of them is the answer.")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The question
    #[arg(
        short = 'q',
        long,
        value_name = "TEXT",
        requires = "context",
        required_unless_present = "file",
        allow_hyphen_values = true
    )]
    pub question: Option<String>,
    /// The text that holds the answer
    #[arg(
        short = 'c',
        long,
        value_name = "TEXT",
        requires = "question",
        required_unless_present = "file",
        allow_hyphen_values = true
    )]
    pub context: Option<String>,
    /// One request a line; `-` reads standard input
    #[arg(long, value_name = "F.jsonl", conflicts_with = "question")]
    pub file: Option<PathBuf>,
    /// Longest answer in tokens
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_answer: u32,
    /// Answer with nothing where no answer scores more than the best one by this much: for models that were trained to
    #[arg(long, value_name = "MARGIN", allow_hyphen_values = true)]
    pub no_answer: Option<f32>,
    /// Longest window in tokens, question and marks included (default: the model's positions)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_seq_len: Option<u32>,
    /// Tokens of the context that neighbouring windows share, at most half of what a window holds of it
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub doc_stride: u32,
    /// Print one JSON object (with --file one a line)
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb.
///
/// # Errors
/// The model does not answer questions, or the question alone does not fit.
pub fn run(args: &Args) -> Result<()> {
    let host = Host::open(&args.model)?;
    let model = host.model()?;
    check_task(&model, &[Task::QuestionAnswering])?;
    let limit = args.max_seq_len.unwrap_or(u32::MAX).min(positions(&model)) as usize;
    let mut room = Room::default();
    let single = || json!({ "question": args.question, "context": args.context });
    let answer = |request: &Json| {
        let (question, context) = (text(request, "question")?, text(request, "context")?);
        let encoding = encode(&model, question.into(), Some(context.into()), true)?;
        let (mut best, mut nothing): (Option<Best>, _) = (None, f32::INFINITY);
        for window in windows(encoding, limit, args.doc_stride as usize)? {
            let (start, end) = logits(&host, model, &mut room, &window)?;
            // A window that holds the answer says so, the others need not.
            nothing = nothing.min(start[0] + end[0]);
            let found = best_span(&window.tokens, &start, &end, args.max_answer as usize);
            best = [best, found].into_iter().flatten().reduce(|a, b| if b.score > a.score { b } else { a });
        }
        let best = best.context("the context has no tokens")?;
        if args.no_answer.is_some_and(|margin| nothing > best.score + margin) {
            return Ok(json!({
                "answer": "",
                "start": 0,
                "end": 0,
                "score": number(best.score),
                "no_answer_score": number(nothing),
            }));
        }
        let characters = |byte: u32| context.get(..byte as usize).unwrap_or(context).chars().count();
        Ok(json!({
            "answer": context.get(best.start as usize..best.end as usize).unwrap_or(""),
            "start": characters(best.start),
            "end": characters(best.end),
            "score": number(best.score),
            "no_answer_score": number(nothing),
        }))
    };
    serve(args.file.as_deref(), single, args.json, answer, show)
}

/// The best answer so far, in bytes of the context.
struct Best {
    start: u32,
    end: u32,
    score: f32,
}

/// The encoding itself if it fits `limit` tokens, else windows over its context, each with everything else around it;
/// neighbours share `overlap` tokens of the context, at most half of a window's.
fn windows(encoding: Encoding, limit: usize, overlap: usize) -> Result<Vec<Encoding>> {
    if encoding.tokens.len() <= limit {
        return Ok(vec![encoding]);
    }
    let in_context = |t: &Token| t.sequence == 1;
    let context: Vec<Token> = encoding.tokens.iter().copied().filter(in_context).collect();
    let first = encoding.tokens.iter().position(in_context).unwrap_or(0);
    let around = encoding.tokens.len() - context.len();
    let room = limit.saturating_sub(around);
    if room <= 1 {
        bail!("the question has {around} tokens with its marks, a window has room for {limit}");
    }
    let step = room - overlap.min(room / 2);
    let before = &encoding.tokens[..first];
    let after = &encoding.tokens[first + context.len()..];
    let mut list = Vec::new();
    let mut at = 0;
    loop {
        let end = (at + room).min(context.len());
        list.push(Encoding { tokens: [before, &context[at..end], after].concat() });
        if end == context.len() {
            return Ok(list);
        }
        at += step;
    }
}

fn logits(host: &Host, model: Model<'_>, room: &mut Room, encoding: &Encoding) -> Result<(Vec<f32>, Vec<f32>)> {
    let (tokens, types) = (encoding.ids(), token_types(&model, encoding));
    let entry = Steps::of(&model, tokens.len(), host.chunk()).entry;
    let (mut start, mut end) = (Vec::new(), Vec::new());
    run_alone(host, model, room, Ids { tokens: &tokens, types: &types }, |_, session| {
        for (name, to) in [("start_logits", &mut start), ("end_logits", &mut end)] {
            let rows = session.output(entry, name)?;
            to.extend((0..rows.len()).map(|i| rows.row(i)[0]));
        }
        Ok(())
    })?;
    Ok((start, end))
}

/// The span within the second text whose start and end logit sum to the most, at most `longest` tokens.
fn best_span(tokens: &[Token], start: &[f32], end: &[f32], longest: usize) -> Option<Best> {
    let inside = |i: usize| tokens[i].sequence == 1;
    let mut best: Option<Best> = None;
    for i in (0..tokens.len()).filter(|i| inside(*i)) {
        for j in (i..tokens.len().min(i + longest)).filter(|j| inside(*j)) {
            let score = start[i] + end[j];
            if best.as_ref().is_none_or(|b| score > b.score) {
                best = Some(Best { start: tokens[i].start, end: tokens[j].end, score });
            }
        }
    }
    best
}

fn show(answer: &Json) -> String {
    let text = answer["answer"].as_str().unwrap_or("");
    format!("{text}  ({}..{}, score {})", answer["start"], answer["end"], answer["score"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(sequences: &[u8]) -> Vec<Token> {
        let token = |(i, s): (usize, &u8)| Token {
            id: i as u32,
            start: i as u32,
            end: i as u32 + 1,
            sequence: *s,
            ..Token::default()
        };
        sequences.iter().enumerate().map(token).collect()
    }

    #[test]
    fn spans_stay_in_the_context_and_short() {
        let t = tokens(&[9, 0, 0, 9, 1, 1, 1, 9]);
        let mut start = [9.0, 9.0, 9.0, 9.0, 1.0, 2.0, 0.0, 9.0];
        let end = [9.0, 9.0, 9.0, 9.0, 5.0, 0.0, 3.0, 9.0];
        let best = best_span(&t, &start, &end, 30).unwrap();
        assert_eq!((best.start, best.end, best.score), (4, 5, 6.0));
        start[4] = -9.0;
        let best = best_span(&t, &start, &end, 30).unwrap();
        assert_eq!((best.start, best.end, best.score), (5, 7, 5.0));
        let best = best_span(&t, &start, &end, 1).unwrap();
        assert_eq!((best.start, best.end, best.score), (6, 7, 3.0));
        assert!(best_span(&tokens(&[9, 0, 9]), &start, &end, 30).is_none());
    }

    #[test]
    fn windows_cover_the_context() {
        let mut sequences = vec![9, 0, 9];
        sequences.extend([1; 20]);
        sequences.push(9);
        let whole = Encoding { tokens: tokens(&sequences) };
        assert_eq!(windows(whole.clone(), 24, 128).unwrap().len(), 1);
        // Six tokens of the context a window: 20 of them by steps of 3, of 4 and of 6.
        let count = |overlap| windows(whole.clone(), 10, overlap).unwrap().len();
        assert_eq!([count(128), count(2), count(0)], [6, 5, 4]);
        let list = windows(whole.clone(), 10, 128).unwrap();
        let mut covered = [false; 24];
        for w in &list {
            assert!(w.tokens.len() <= 10);
            assert_eq!((w.tokens[0].id, w.tokens.last().unwrap().id), (0, 23));
            w.tokens.iter().for_each(|t| covered[t.id as usize] = true);
        }
        assert_eq!(covered, [true; 24]);
        assert!(windows(whole, 5, 128).is_err());
    }
}
