//! The `added_tokens` part.

use serde_json::Value;

use super::error::{TokenizerError, refuse};
use super::json::Object;
use super::model::{self, Model};
use lora_runtime::tokenizer::layout::added;

type Result<T> = std::result::Result<T, TokenizerError>;

/// An added token.
pub(super) struct Added {
    pub id: u32,
    pub content: String,
    /// Bits of [`added`].
    pub bits: u32,
    /// Matched in normalized text.
    pub normalized: bool,
}

/// Reads the list. Ids are those that the reference library gives: known content keeps its id, new content gets
/// the next; where the file says otherwise, a note is left.
pub(super) fn added(items: &[Value], model: &Model, rows: u32, notes: &mut Vec<String>) -> Result<Vec<Added>> {
    let mut out: Vec<Added> = Vec::new();
    let mut next = model.size;
    for (i, value) in items.iter().enumerate() {
        let place = format!("added_tokens[{i}]");
        let mut object = Object::new(value, &place)?;
        let content = object.require_string("content")?;
        let written = model::id(object.require("id")?, &place, content, rows)?;
        let mut bits = 0;
        for (key, bit) in [
            ("single_word", added::SINGLE_WORD),
            ("lstrip", added::LSTRIP),
            ("rstrip", added::RSTRIP),
            ("special", added::SPECIAL),
        ] {
            bits |= if object.require_bool(key)? { bit } else { 0 };
        }
        let normalized = object.require_bool("normalized")?;
        object.finish()?;
        if content.is_empty() {
            notes.push(format!("{place}: an added token without content is ignored"));
            continue;
        }
        let before = out.iter().position(|t| t.content == content);
        let id = match before.map(|b| out[b].id).or_else(|| model.ids.get(content).copied()) {
            Some(id) => id,
            None => {
                next += 1;
                next - 1
            }
        };
        model::row(id.into(), &place, content, rows)?;
        if id != written {
            notes.push(format!("{place}: `{content}` says id {written}, but its place gives it {id}, which is used"));
        }
        if model.texts.get(id as usize).is_some_and(|t| t.as_ref().is_some_and(|t| t != content)) {
            let other = model.texts[id as usize].clone().unwrap_or_default();
            return refuse(place, format!("`{other}` and `{content}` have the same id {id}"));
        }
        let mut token = Added { id, content: content.to_owned(), bits, normalized };
        match before {
            Some(b) => {
                // Special once, special for ever.
                token.bits |= out[b].bits & added::SPECIAL;
                out[b] = token;
            }
            None => out.push(token),
        }
    }
    Ok(out)
}
