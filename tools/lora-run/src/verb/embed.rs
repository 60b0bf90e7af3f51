//! `embed`: texts to vectors.

use anyhow::{Context, Result};
use lora_runtime::Model;
use lora_runtime::format::Task;
use lora_runtime::session::arena::Rows;
use serde_json::{Value as Json, json};

use super::check_task;
use crate::cli::{ModelArgs, TextArgs};
use crate::forward::{Ids, Steps, run_alone};
use crate::load::{Host, Room, positions};
use crate::requests::{number, serve, text};
use crate::text::{encode, fit, token_types};

/// Arguments of `embed`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lora-run embed embed.lpk 'a sentence' --json
  lora-run embed embed.lpk --file texts.jsonl --json > vectors.jsonl
      a line in:  {\"text\": \"a sentence\"}
      a line out: {\"embedding\": [0.0123, … ]}")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub text: TextArgs,
    /// How the vectors of the tokens become one: mean, cls (the first), last (default: the model's)
    #[arg(long, value_name = "HOW", value_parser = ["mean", "cls", "last"])]
    pub pool: Option<String>,
}

/// Runs the verb.
///
/// # Errors
/// The model does not embed, or a text does not fit.
pub fn run(args: &Args) -> Result<()> {
    let host = Host::open(&args.model)?;
    let model = host.model()?;
    check_task(&model, &[Task::FeatureExtraction, Task::Other])?;
    let output = pooled_output(&model, args.pool.as_deref());
    let mut room = Room::default();
    let requests = &args.text.requests;
    let answer = |request: &Json| {
        let vector = embed(&host, model, &mut room, text(request, "text")?, output, requests.truncate)?;
        Ok(json!({ "embedding": vector.iter().map(|x| number(*x)).collect::<Vec<_>>() }))
    };
    serve(requests.file.as_deref(), || json!({ "text": args.text.text() }), requests.json, answer, show)
}

/// The output that holds the pooled vector.
pub fn pooled_output(model: &Model<'_>, pool: Option<&str>) -> &'static str {
    match (pool, model.face.info.pooling) {
        (Some("cls"), _) | (None, 2) => "cls_pooled",
        (Some("last"), _) | (None, 3) => "last_pooled",
        _ => "mean_pooled",
    }
}

/// The vector of a text.
///
/// # Errors
/// As [`run_alone`]; the text does not fit, or the model has no such output.
pub fn embed(
    host: &Host,
    model: Model<'_>,
    room: &mut Room,
    text: &str,
    output: &str,
    truncate: bool,
) -> Result<Vec<f32>> {
    let encoding = fit(encode(&model, text.into(), None, true)?, positions(&model), truncate)?;
    let (tokens, types) = (encoding.ids(), token_types(&model, &encoding));
    let entry = Steps::of(&model, tokens.len(), host.chunk()).entry;
    let mut vector = Vec::new();
    run_alone(host, model, room, Ids { tokens: &tokens, types: &types }, |_, session| {
        let named = |name: &str| session.output(entry, name).with_context(|| format!("output {name}"));
        vector = match model.file.info.normalize {
            0 => pool(named("last_hidden_state")?, output),
            _ => named(output)?.row(0).to_vec(),
        };
        Ok(())
    })?;
    Ok(vector)
}

/// The pooled vector of a model whose vectors keep their length; the outputs of the file have length one.
fn pool(rows: Rows<'_>, output: &str) -> Vec<f32> {
    let last = rows.len() - 1;
    match output {
        "cls_pooled" => rows.row(0).to_vec(),
        "last_pooled" => rows.row(last).to_vec(),
        _ => {
            let mut sum = rows.row(0).to_vec();
            for i in 1..=last {
                sum.iter_mut().zip(rows.row(i)).for_each(|(s, x)| *s += x);
            }
            sum.iter_mut().for_each(|s| *s /= rows.len() as f32);
            sum
        }
    }
}

fn show(answer: &Json) -> String {
    let none = Vec::new();
    let vector = answer["embedding"].as_array().unwrap_or(&none);
    vector.iter().map(Json::to_string).collect::<Vec<_>>().join(" ")
}
