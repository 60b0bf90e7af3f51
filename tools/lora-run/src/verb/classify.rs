//! `classify`: labels for texts.

use anyhow::{Result, bail};
use lora_runtime::Model;
use lora_runtime::format::{ProblemType, Task};
use lora_runtime::tokenizer::Encoding;
use serde_json::{Map, Value as Json, json};

use super::{check_task, label_name, probability};
use crate::cli::{ModelArgs, TextArgs};
use crate::forward::{Ids, Steps, run_alone};
use crate::load::{Host, Room, positions};
use crate::requests::{number, optional_text, serve, text};
use crate::text::{encode, fit, token_types};

/// Arguments of `classify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lora-run classify intents.lpk 'turn on the kitchen light'
  lora-run classify nli.lpk 'A man sleeps.' --pair 'Nobody is awake.' --json
  lora-run classify intents.lpk --file texts.jsonl --json > labels.jsonl
      a line in:  {\"text\": \"turn on the kitchen light\"}      (a pair: also \"pair\")
      a line out: {\"label\": \"light_on\", \"scores\": {\"light_on\": 0.98, … }}")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub text: TextArgs,
    /// The second text of a pair
    #[arg(long, value_name = "TEXT", conflicts_with = "file", allow_hyphen_values = true)]
    pub pair: Option<String>,
}

/// Runs the verb.
///
/// # Errors
/// The model does not classify, or a text does not fit.
pub fn run(args: &Args) -> Result<()> {
    let host = Host::open(&args.model)?;
    let model = host.model()?;
    check_task(&model, &[Task::SeqCls])?;
    let mut room = Room::default();
    let requests = &args.text.requests;
    let single = || json!({ "text": args.text.text(), "pair": args.pair });
    let answer = |request: &Json| {
        let pair = optional_text(request, "pair")?;
        let encoding = encode(&model, text(request, "text")?.into(), pair.map(Into::into), true)?;
        let encoding = fit(encoding, positions(&model), requests.truncate)?;
        Ok(read(&host, &model, &label_scores(&host, model, &mut room, &encoding)?))
    };
    serve(requests.file.as_deref(), single, requests.json, answer, show)
}

/// The logits of the labels.
///
/// # Errors
/// As [`run_alone`].
pub fn label_scores(host: &Host, model: Model<'_>, room: &mut Room, encoding: &Encoding) -> Result<Vec<f32>> {
    let (tokens, types) = (encoding.ids(), token_types(&model, encoding));
    let entry = Steps::of(&model, tokens.len(), host.chunk()).entry;
    let mut logits = Vec::new();
    run_alone(host, model, room, Ids { tokens: &tokens, types: &types }, |_, session| {
        let rows = session.output(entry, "logits")?;
        logits = rows.row(rows.len() - 1).to_vec();
        Ok(())
    })?;
    if logits.is_empty() || logits.iter().any(|x| x.is_nan()) {
        bail!("the model's scores are not numbers: the file's weights are damaged");
    }
    Ok(logits)
}

/// Scores as the model's problem means them.
fn read(host: &Host, model: &Model<'_>, logits: &[f32]) -> Json {
    let best = host.kernels.argmax(logits).unwrap_or(0);
    let named = |scores: &[Json]| -> Json {
        let pairs = scores.iter().enumerate().map(|(i, s)| (label_name(model, i), s.clone()));
        let map: Map<String, Json> = pairs.collect();
        // Names that occur twice would lose scores: then a list by index.
        if map.len() == scores.len() { Json::Object(map) } else { Json::Array(scores.to_vec()) }
    };
    match model.problem() {
        ProblemType::Regression => {
            let values: Vec<Json> = logits.iter().map(|x| number(*x)).collect();
            json!({ "label": label_name(model, best), "value": values[0], "scores": named(&values) })
        }
        ProblemType::MultiLabel => {
            // The sigmoid is a softmax against 0.
            let sigmoid = |x: &f32| {
                let mut pair = [*x, 0.0];
                host.kernels.softmax_in_place(&mut pair);
                probability(pair[0])
            };
            let p: Vec<f64> = logits.iter().map(sigmoid).collect();
            let labels: Vec<String> = (0..p.len()).filter(|i| p[*i] > 0.5).map(|i| label_name(model, i)).collect();
            let scores: Vec<Json> = p.iter().map(|p| json!(p)).collect();
            json!({ "label": label_name(model, best), "labels": labels, "scores": named(&scores) })
        }
        ProblemType::SingleLabel => {
            let mut p = logits.to_vec();
            host.kernels.softmax_in_place(&mut p);
            let scores: Vec<Json> = p.iter().map(|p| json!(probability(*p))).collect();
            json!({ "label": label_name(model, best), "scores": named(&scores) })
        }
    }
}

/// The label, then the best few scores.
fn show(answer: &Json) -> String {
    let label = answer["label"].as_str().unwrap_or("");
    if let Some(value) = answer.get("value") {
        return format!("{label}  {value}");
    }
    let mut scores: Vec<(&str, f64)> = match &answer["scores"] {
        Json::Object(map) => map.iter().filter_map(|(k, v)| Some((k.as_str(), v.as_f64()?))).collect(),
        _ => return label.to_owned(),
    };
    scores.sort_by(|a, b| b.1.total_cmp(&a.1));
    let list: Vec<String> = scores.iter().take(5).map(|(name, p)| format!("{name} {p:.3}")).collect();
    format!("{label}  ({})", list.join(", "))
}
