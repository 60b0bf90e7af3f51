//! `detokenize`: token ids to text.

use anyhow::{Result, bail};
use serde_json::json;

use crate::cli::DetokenizeArgs;
use crate::load;
use crate::output::Out;

/// Runs the verb.
///
/// # Errors
/// The file has no tokenizer, or an id is not in its vocabulary.
pub fn run(args: &DetokenizeArgs) -> Result<()> {
    let mapping = load::map(&args.model)?;
    let model = load::verify(&mapping, &args.model)?;
    let tokenizer = model.tokenizer()?;
    if let Some(id) = args.ids.iter().find(|id| **id >= model.file.info.vocab) {
        bail!("id {id}: the model has ids below {}", model.file.info.vocab);
    }
    let text = tokenizer.decode(&args.ids, !args.keep_special);
    let mut out = Out::new();
    if args.json { out.json(&json!({ "text": text })) } else { out.line(&text) }
}
