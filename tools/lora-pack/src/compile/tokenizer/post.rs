//! The `post_processor` part.

use std::collections::HashMap;

use serde_json::Value;

use super::error::{TokenizerError, error, refuse};
use super::json::{Object, typed};
use super::model;
use lora_runtime::tokenizer::layout::piece;

type Result<T> = std::result::Result<T, TokenizerError>;

/// A template: pieces and their type ids, as the blob holds them.
pub(super) type Template = Vec<[u32; 2]>;

/// What a post-processor does.
#[derive(Default)]
pub(super) struct Post {
    /// Template of one text, and of a pair.
    pub templates: Option<(Template, Template)>,
    /// Trims offsets, once per entry; true where a leading space may have been inserted.
    pub trims: Vec<bool>,
}

/// Reads a post-processor.
pub(super) fn post_processor(value: &Value, place: &str, rows: u32, out: &mut Post) -> Result<()> {
    let (name, mut object) = typed(value, place)?;
    if out.templates.is_some() {
        return refuse(place, format!("`{name}` after a post-processor that adds tokens"));
    }
    match name {
        "Sequence" => {
            object.require("processors")?;
            for (i, value) in object.array("processors")?.iter().enumerate() {
                post_processor(value, &format!("{place}.processors[{i}]"), rows, out)?;
            }
        }
        "ByteLevel" => {
            let prefix = object.require_bool("add_prefix_space")?;
            if object.require_bool("trim_offsets")? {
                out.trims.push(prefix);
            }
            object.harmless(&["use_regex"]);
        }
        "BertProcessing" => {
            let (sep, cls) = (marker(&mut object, "sep", rows)?, marker(&mut object, "cls", rows)?);
            let single = vec![[cls, 0], [piece::A, 0], [sep, 0]];
            let pair = vec![[cls, 0], [piece::A, 0], [sep, 0], [piece::B, 1], [sep, 1]];
            out.templates = Some((single, pair));
        }
        "RobertaProcessing" => {
            let (sep, cls) = (marker(&mut object, "sep", rows)?, marker(&mut object, "cls", rows)?);
            let prefix = object.require_bool("add_prefix_space")?;
            if object.require_bool("trim_offsets")? {
                out.trims.push(prefix);
            }
            let single = vec![[cls, 0], [piece::A, 0], [sep, 0]];
            let pair = vec![[cls, 0], [piece::A, 0], [sep, 0], [sep, 0], [piece::B, 0], [sep, 0]];
            out.templates = Some((single, pair));
        }
        "TemplateProcessing" => out.templates = Some(templates(&mut object, rows)?),
        other => return refuse(place, format!("unknown post_processor `{other}`")),
    }
    object.finish()
}

/// A special token written as a list of its text and id.
fn marker(object: &mut Object<'_>, key: &'static str, rows: u32) -> Result<u32> {
    let place = object.at(key);
    match object.require(key)?.as_array().map(Vec::as_slice) {
        Some([Value::String(text), id]) => Ok(model::id(id, &place, text, rows)? + piece::SPECIAL),
        _ => refuse(place, "not a token and its id"),
    }
}

fn templates(object: &mut Object<'_>, rows: u32) -> Result<(Template, Template)> {
    let place = object.at("special_tokens");
    let Value::Object(entries) = object.require("special_tokens")? else { return refuse(place, "not an object") };
    let mut specials: HashMap<&str, Vec<u32>> = HashMap::new();
    for (name, value) in entries {
        let place = format!("{place}.{name}");
        let mut token = Object::new(value, &place)?;
        token.harmless(&["id"]);
        let texts = token.array("tokens")?;
        let ids = token.array("ids")?;
        if ids.len() != texts.len() {
            return refuse(place, "as many tokens as ids are needed");
        }
        token.finish()?;
        let ids = ids.iter().map(|id| Ok(model::id(id, &place, name, rows)? + piece::SPECIAL));
        specials.insert(name, ids.collect::<Result<_>>()?);
    }
    let mut template = |key: &'static str, sequences: &[u32]| -> Result<Template> {
        let place = object.at(key);
        object.require(key)?;
        let mut out = Vec::new();
        let mut seen = Vec::new();
        for (i, value) in object.array(key)?.iter().enumerate() {
            let place = format!("{place}[{i}]");
            let mut item = Object::new(value, &place)?;
            if let Some(value) = item.get("Sequence") {
                let mut sequence = Object::new(value, &place)?;
                let what = match sequence.require_string("id")? {
                    "A" => piece::A,
                    "B" => piece::B,
                    other => return refuse(place, format!("unknown sequence `{other}`")),
                };
                out.push([what, type_id(&mut sequence)?]);
                seen.push(what);
                sequence.finish()?;
            } else {
                let mut special = Object::new(item.require("SpecialToken")?, &place)?;
                let name = special.require_string("id")?;
                let ids = specials.get(name);
                let ids = ids.ok_or_else(|| error(&place, format!("special token `{name}` is not defined")))?;
                let kind = type_id(&mut special)?;
                out.extend(ids.iter().map(|id| [*id, kind]));
                special.finish()?;
            }
            item.finish()?;
        }
        seen.sort_unstable();
        if seen != sequences {
            return refuse(place, "a template must hold each of its sequences once");
        }
        Ok(out)
    };
    Ok((template("single", &[piece::A])?, template("pair", &[piece::A, piece::B])?))
}

fn type_id(object: &mut Object<'_>) -> Result<u32> {
    let place = object.at("type_id");
    let id = object.require_number("type_id")?;
    u8::try_from(id).map(u32::from).or_else(|_| refuse(place, format!("type id {id} is above 255")))
}
