//! `tokenize`: text to token ids.

use std::path::PathBuf;

use anyhow::Result;
use lora_runtime::Model;
use lora_runtime::map::Mapping;
use serde_json::json;

use crate::load;
use crate::output::Out;
use crate::requests::read_text;
use crate::text::encode;

/// Arguments of `tokenize`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lora-run tokenize model.lpk 'Hello world'
  lora-run tokenize model.lpk --file story.txt --json
  lora-run tokenize model.lpk 'a question' --pair 'a text' --no-special --json")]
pub struct Args {
    /// The model file
    pub model: PathBuf,
    /// The text
    #[arg(value_name = "TEXT", required_unless_present = "file", conflicts_with = "file", allow_hyphen_values = true)]
    pub text: Option<String>,
    /// A file that holds the text; `-` reads standard input
    #[arg(long, value_name = "F")]
    pub file: Option<PathBuf>,
    /// The second text of a pair
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub pair: Option<String>,
    /// Without the tokens that the model's template adds
    #[arg(long)]
    pub no_special: bool,
    /// Print one JSON object: ids, tokens, offsets in characters
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb.
///
/// # Errors
/// The file has no tokenizer, or the text cannot be read.
pub fn run(args: &Args) -> Result<()> {
    let mapping: Mapping = load::map(&args.model)?;
    let model: Model<'_> = load::verify(&mapping, &args.model)?;
    let text = match (&args.text, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(file)) => read_text(file)?,
        (None, None) => String::new(),
    };
    let second = args.pair.as_deref().map(Into::into);
    let encoding = encode(&model, text.as_str().into(), second, !args.no_special)?;
    let tokenizer = model.tokenizer()?;
    let tokens: Vec<String> = encoding
        .tokens
        .iter()
        .map(|t| tokenizer.token_text(t.id).map_or_else(String::new, |t| t.to_string()))
        .collect();
    let mut out = Out::new();
    if args.json {
        let offsets = encoding.char_offsets(text.as_str().into(), second);
        let type_ids = encoding.type_ids();
        out.json(&json!({ "ids": encoding.ids(), "tokens": tokens, "offsets": offsets, "type_ids": type_ids }))?;
        return Ok(());
    }
    let width = tokenizer.vocab_len().max(1).ilog10() as usize + 1;
    for (token, text) in encoding.tokens.iter().zip(&tokens) {
        out.line(&format!("{:width$}  {}", token.id, text.escape_debug()))?;
    }
    Ok(())
}
