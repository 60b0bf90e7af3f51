//! `tokenize`: text to token ids.

use anyhow::Result;
use lora_runtime::Model;
use lora_runtime::map::Mapping;
use serde_json::json;

use crate::cli::TokenizeArgs;
use crate::load;
use crate::output::Out;
use crate::requests::read_text;
use crate::text::encode;

/// Runs the verb.
///
/// # Errors
/// The file has no tokenizer, or the text cannot be read.
pub fn run(args: &TokenizeArgs) -> Result<()> {
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
