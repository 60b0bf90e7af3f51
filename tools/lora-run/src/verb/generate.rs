//! `generate`: continues prompts.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use clap::ArgGroup;
use lora_runtime::Model;
use lora_runtime::format::Task;
use serde_json::{Value as Json, json};

use super::check_task;
use crate::cli::{ModelArgs, SamplingArgs};
use crate::generation::{Continuation, Request, Settings, generate};
use crate::load::{Host, Room};
use crate::output::{Out, note};
use crate::requests::{for_each, optional_text, read_text};
use crate::template::ChatTemplate;
use crate::text::prompt_ids;

/// Arguments of `generate`.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("input").required(true).args(["prompt", "ids", "file"]), after_help = "\
Examples:
  lora-run generate model.lpk -p 'Once upon a time' -n 100
  lora-run generate model.lpk -p 'What is the capital of France?' --chat --system 'Answer briefly.'
  lora-run generate model.lpk -p 'List: a, b,' --temp 0 --stop $'\\n' --json
  lora-run generate model.lpk --ids 1,306,4658 -n 20 --temp 0 --json
  lora-run generate model.lpk --file prompts.jsonl --json > answers.jsonl
      a line in:  {\"prompt\": \"Once upon a time\"}   or   {\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}
                  and with them {\"tools\": [ … ]} where the model's chat template knows tools
      a line out: {\"text\": \" there was …\", \"ids\": [ … ], … }")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The prompt; `-` reads standard input
    #[arg(short = 'p', long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// The prompt as token ids
    #[arg(long, value_name = "1,2,3", value_delimiter = ',')]
    pub ids: Vec<u32>,
    /// One request a line; `-` reads standard input
    #[arg(long, value_name = "F.jsonl")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Take the prompt as a chat message: put it into the model's chat template
    #[arg(long, conflicts_with = "ids")]
    pub chat: bool,
    /// System message of the chat template
    #[arg(long, value_name = "TEXT", requires = "chat", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// Print one JSON object (with --file one a line)
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb.
///
/// # Errors
/// The model does not generate, a prompt does not fit, a request is malformed.
pub fn run(args: &Args) -> Result<()> {
    let host = Host::open(&args.model)?;
    let model = host.model()?;
    check_task(&model, &[Task::CausalLm, Task::Seq2SeqLm])?;
    let settings = Settings::new(&args.sampling, &model)?;
    let template = args.chat.then(|| ChatTemplate::of(&model)).transpose()?;
    let load = host.since_start();
    let (mut room, mut out) = (Room::default(), Out::new());
    if let Some(file) = &args.file {
        let mut template = template;
        return for_each(file, |request| {
            let started = Instant::now();
            if template.is_none() && request.get("messages").is_some() {
                template = Some(ChatTemplate::of(&model)?);
            }
            let prompt = request_ids(&model, template.as_ref(), args.system.as_deref(), request)?;
            let request = Request { prompt: &prompt, settings: &settings, started };
            let answer = generate(&host, model, &mut room, request, &mut |_| Ok(()))?;
            if args.json { out.json(&answer.json(load)) } else { out.line(&answer.text) }
        });
    }
    let started = Instant::now();
    let prompt = match (&args.prompt, template.as_ref()) {
        (None, _) => args.ids.clone(),
        (Some(text), template) => {
            let text = if text == "-" { read_text(Path::new("-"))? } else { text.clone() };
            let request = json!({ "prompt": text });
            request_ids(&model, template, args.system.as_deref(), &request)?
        }
    };
    let request = Request { prompt: &prompt, settings: &settings, started };
    if args.json {
        let answer = generate(&host, model, &mut room, request, &mut |_| Ok(()))?;
        return out.json(&answer.json(load));
    }
    let answer = generate(&host, model, &mut room, request, &mut |text| out.text(text))?;
    finish(&mut out, &answer)?;
    note(&answer.summary(load));
    Ok(())
}

/// Ends a streamed answer with a line end; an answer without a tokenizer is its ids.
fn finish(out: &mut Out, answer: &Continuation) -> Result<()> {
    if answer.text.is_empty() && !answer.ids.is_empty() {
        let ids: Vec<String> = answer.ids.iter().map(u32::to_string).collect();
        return out.line(&ids.join(","));
    }
    if answer.text.ends_with('\n') { Ok(()) } else { out.line("") }
}

/// The token ids of a request: its messages in the template, its prompt as a message, or its prompt as it is.
fn request_ids(
    model: &Model<'_>,
    template: Option<&ChatTemplate>,
    system: Option<&str>,
    request: &Json,
) -> Result<Vec<u32>> {
    let messages = request.get("messages").cloned();
    let prompt = optional_text(request, "prompt")?;
    let messages = match (messages, prompt, template) {
        (Some(_), Some(_), _) => bail!("the request has both \"prompt\" and \"messages\""),
        (None, None, _) => bail!("the request has neither \"prompt\" nor \"messages\""),
        (None, Some(prompt), None) => return prompt_ids(model, prompt, true),
        (None, Some(prompt), Some(_)) => json!([{ "role": "user", "content": prompt }]),
        (Some(messages), None, _) => messages,
    };
    let Json::Array(mut messages) = messages else { bail!("\"messages\" is not a list") };
    if let Some(system) = system
        && messages.first().is_none_or(|m| m["role"] != "system")
    {
        messages.insert(0, json!({ "role": "system", "content": system }));
    }
    let Some(template) = template else { bail!("the model has no chat template") };
    prompt_ids(model, &template.render(&Json::Array(messages), request.get("tools"), true)?, false)
}
