//! `seq2seq`: texts rewritten by an encoder–decoder.

use std::time::Instant;

use anyhow::Result;
use lora_runtime::format::Task;
use serde_json::{Value as Json, json};

use super::check_task;
use crate::cli::{ModelArgs, SamplingArgs, TextArgs};
use crate::generation::{Request, Settings, generate};
use crate::load::{Host, Room};
use crate::requests::{serve, text};
use crate::text::{encode, fit};

/// Arguments of `seq2seq`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lora-run seq2seq normalize.lpk 'It costs $5.' --json
  lora-run seq2seq normalize.lpk --file texts.jsonl --json > texts.out.jsonl
      a line in:  {\"text\": \"It costs $5.\"}
      a line out: {\"text\": \"It costs five dollars.\", … }")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub text: TextArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// Runs the verb.
///
/// # Errors
/// The model is not an encoder–decoder, or a text does not fit.
pub fn run(args: &Args) -> Result<()> {
    let host = Host::open(&args.model)?;
    let model = host.model()?;
    check_task(&model, &[Task::Seq2SeqLm])?;
    let settings = Settings::new(&args.sampling, &model)?;
    let load = host.since_start();
    let mut room = Room::default();
    let requests = &args.text.requests;
    let limit = model.entry(lora_runtime::format::EntryKind::Encode)?.max_positions;
    let answer = |request: &Json| {
        let started = Instant::now();
        let encoding = fit(encode(&model, text(request, "text")?.into(), None, true)?, limit, requests.truncate)?;
        let prompt = encoding.ids();
        let request = Request { prompt: &prompt, settings: &settings, started };
        Ok(generate(&host, model, &mut room, request, &mut |_| Ok(()))?.json(load))
    };
    let show = |answer: &Json| answer["text"].as_str().unwrap_or("").to_owned();
    serve(requests.file.as_deref(), || json!({ "text": args.text.text() }), requests.json, answer, show)
}
