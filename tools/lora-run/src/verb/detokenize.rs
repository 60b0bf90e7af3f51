//! `detokenize`: token ids to text.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::json;

use crate::load;
use crate::output::Out;

/// Arguments of `detokenize`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lora-run detokenize model.lpk --ids 1,15043,3186
  lora-run detokenize model.lpk --ids 1,15043,3186 --keep-special")]
pub struct Args {
    /// The model file
    pub model: PathBuf,
    /// The ids
    #[arg(long, value_name = "1,2,3", value_delimiter = ',', required = true)]
    pub ids: Vec<u32>,
    /// Print special tokens too
    #[arg(long)]
    pub keep_special: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb.
///
/// # Errors
/// The file has no tokenizer, or an id is not in its vocabulary.
pub fn run(args: &Args) -> Result<()> {
    let mapping = load::map(&args.model)?;
    let model = load::verify(&mapping, &args.model)?;
    let tokenizer = model.tokenizer()?;
    if let Some(id) = args.ids.iter().find(|id| **id >= model.face.info.vocab) {
        bail!("id {id}: the model has ids below {}", model.face.info.vocab);
    }
    let text = tokenizer.decode(&args.ids, !args.keep_special);
    let mut out = Out::new();
    if args.json { out.json(&json!({ "text": text })) } else { out.line(&text) }
}
