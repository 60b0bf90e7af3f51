//! `rerank`: documents in order of how well they fit a query.

use anyhow::{Context, Result};
use lora_runtime::Model;
use lora_runtime::format::Task;
use serde_json::{Value as Json, json};

use super::check_task;
use super::classify::label_scores;
use super::embed::{embed, pooled_output};
use crate::cli::{ModelArgs, RequestArgs};
use crate::load::{Host, Room, positions};
use crate::requests::{number, serve, text, texts};
use crate::text::{encode, fit};

/// Arguments of `rerank`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lora-run rerank ranker.lpk --query 'how to reset' 'Hold the button.' 'The cat sat.' --json
  lora-run rerank ranker.lpk --file queries.jsonl --json
      a line in:  {\"query\": \"how to reset\", \"documents\": [\"Hold the button.\", \"The cat sat.\"]}
      a line out: {\"scores\": [4.1, -7.2], \"order\": [0, 1]}

A classifier (cross-encoder) scores each pair; an embedding model scores by cosine similarity.")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArgs,
    /// What is looked for
    #[arg(short = 'q', long, value_name = "TEXT", required_unless_present = "file", allow_hyphen_values = true)]
    pub query: Option<String>,
    /// The documents
    #[arg(value_name = "TEXT", required_unless_present = "file")]
    pub documents: Vec<String>,
    #[command(flatten)]
    pub requests: RequestArgs,
}

/// Runs the verb.
///
/// # Errors
/// The model neither classifies nor embeds, or a text does not fit.
pub fn run(args: &Args) -> Result<()> {
    let host = Host::open(&args.model)?;
    let model = host.model()?;
    check_task(&model, &[Task::SeqCls, Task::FeatureExtraction, Task::Other])?;
    let mut room = Room::default();
    let requests = &args.requests;
    let single = || json!({ "query": args.query, "documents": args.documents });
    let answer = |request: &Json| {
        let documents = texts(request, "documents")?.context("the request has no \"documents\"")?;
        let scores = scores(&host, model, &mut room, text(request, "query")?, &documents, requests.truncate)?;
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        Ok(json!({ "scores": scores.iter().map(|s| number(*s)).collect::<Vec<_>>(), "order": order }))
    };
    let show = |answer: &Json| {
        let place = |i: &Json| {
            let i = i.as_u64().unwrap_or(0) as usize;
            let document = args.documents.get(i).map_or("", String::as_str);
            format!("{:>10}  {i}  {document}", answer["scores"][i].to_string())
        };
        answer["order"].as_array().into_iter().flatten().map(place).collect::<Vec<_>>().join("\n")
    };
    serve(requests.file.as_deref(), single, requests.json, answer, show)
}

fn scores(
    host: &Host,
    model: Model<'_>,
    room: &mut Room,
    query: &str,
    documents: &[&str],
    truncate: bool,
) -> Result<Vec<f32>> {
    if model.task() == Task::SeqCls {
        let score = |document: &&str| {
            let encoding = encode(&model, query.into(), Some((*document).into()), true)?;
            let encoding = fit(encoding, positions(&model), truncate)?;
            let logits = label_scores(host, model, room, &encoding)?;
            // One label is the score; of several the last one is "relevant", against the best of the others.
            let (last, others) = logits.split_last().context("the model has no labels")?;
            Ok(others.iter().copied().reduce(f32::max).map_or(*last, |best| last - best))
        };
        return documents.iter().map(score).collect();
    }
    let output = pooled_output(&model, None);
    let wanted = embed(host, model, room, query, output, truncate)?;
    let score = |document: &&str| -> Result<f32> {
        let vector = embed(host, model, room, document, output, truncate)?;
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let lengths = dot(&wanted, &wanted) * dot(&vector, &vector);
        Ok(if lengths > 0.0 { dot(&wanted, &vector) / lengths.sqrt() } else { 0.0 })
    };
    documents.iter().map(score).collect()
}
