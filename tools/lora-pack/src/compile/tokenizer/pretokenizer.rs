//! The `pre_tokenizer` part.

use serde_json::Value;
use unicode_categories::UnicodeCategories;

use super::charset::{CharSet, Classes};
use super::error::{TokenizerError, refuse};
use super::json::{Object, typed};
use super::normalizer::{split_pattern, white_space};
use super::regex::Program;
use lora_runtime::tokenizer::layout::{behavior, scheme};

type Result<T> = std::result::Result<T, TokenizerError>;

/// The split pattern of GPT-2, which `ByteLevel` uses.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// A stage, not yet laid out.
pub(super) enum Stage {
    /// Split at a pattern.
    Pattern { pattern: Program, behavior: u32, invert: bool },
    /// Split at characters of a class.
    Class { class: u32, behavior: u32 },
    /// Spaces to a replacement.
    Metaspace { replacement: char, scheme: u32 },
    /// A space in front.
    PrefixSpace,
    /// Bytes from here on.
    Bytes,
}

/// Reads a pre-tokenizer into stages.
pub(super) fn pre_tokenizer(value: &Value, place: &str, classes: &mut Classes, out: &mut Vec<Stage>) -> Result<()> {
    let (name, mut object) = typed(value, place)?;
    let mut class = |set: CharSet, behavior: u32| Stage::Class { class: classes.add(set), behavior };
    match name {
        "Sequence" => {
            object.require("pretokenizers")?;
            for (i, value) in object.array("pretokenizers")?.iter().enumerate() {
                pre_tokenizer(value, &format!("{place}.pretokenizers[{i}]"), classes, out)?;
            }
        }
        "BertPreTokenizer" => {
            out.push(class(white_space(), behavior::REMOVED));
            out.push(class(punctuation(), behavior::ISOLATED));
        }
        "ByteLevel" => {
            let prefix = object.require_bool("add_prefix_space")?;
            let regex = object.bool("use_regex")?.unwrap_or(true);
            // Only post-processors trim offsets.
            object.harmless(&["trim_offsets"]);
            if out.iter().any(|s| matches!(s, Stage::Bytes)) {
                return refuse(place, "a second ByteLevel");
            }
            if prefix {
                out.push(Stage::PrefixSpace);
            }
            if regex {
                let pattern = Program::regex(GPT2, classes).or_else(|what| refuse(place, what))?;
                out.push(Stage::Pattern { pattern, behavior: behavior::ISOLATED, invert: false });
            }
            out.push(Stage::Bytes);
        }
        "Whitespace" => {
            let pattern = Program::regex(r"\w+|[^\w\s]+", classes).or_else(|what| refuse(place, what))?;
            out.push(Stage::Pattern { pattern, behavior: behavior::REMOVED, invert: true });
        }
        "WhitespaceSplit" => out.push(class(white_space(), behavior::REMOVED)),
        "Delimiter" | "CharDelimiterSplit" => {
            let c = object.require_char("delimiter")?;
            out.push(class(CharSet::single(c), behavior::REMOVED));
        }
        "Digits" => {
            let individual = object.require_bool("individual_digits")?;
            let behavior = if individual { behavior::ISOLATED } else { behavior::CONTIGUOUS };
            out.push(class(CharSet::from_fn(char::is_numeric), behavior));
        }
        "Punctuation" => {
            let behavior = behavior_of(&mut object)?.unwrap_or(behavior::ISOLATED);
            out.push(class(punctuation(), behavior));
        }
        "Split" => {
            let Some(behavior) = behavior_of(&mut object)? else { return refuse(object.at("behavior"), "missing") };
            let invert = object.require_bool("invert")?;
            let pattern = object.require("pattern")?;
            let pattern = split_pattern(pattern, &object.at("pattern"), classes)?;
            out.push(Stage::Pattern { pattern, behavior, invert });
        }
        "Metaspace" => {
            let (replacement, scheme) = metaspace(&mut object)?;
            let split = object.bool("split")?.unwrap_or(true);
            if out.iter().any(|s| matches!(s, Stage::Bytes)) {
                return refuse(place, "Metaspace after ByteLevel");
            }
            out.push(Stage::Metaspace { replacement, scheme });
            if split {
                let class = classes.add(CharSet::single(replacement));
                out.push(Stage::Class { class, behavior: behavior::MERGED_WITH_NEXT });
            }
        }
        other => return refuse(place, format!("unknown or unsupported pre_tokenizer `{other}`")),
    }
    object.finish()
}

/// Replacement and scheme of a Metaspace pre-tokenizer or decoder, in the new form or the old.
pub(super) fn metaspace(object: &mut Object<'_>) -> Result<(char, u32)> {
    let replacement = object.require_char("replacement")?;
    object.harmless(&["str_rep"]);
    let prefix = object.bool("add_prefix_space")?;
    let scheme = match object.string("prepend_scheme")? {
        None | Some("always") => scheme::ALWAYS,
        Some("first") => scheme::FIRST,
        Some("never") => scheme::NEVER,
        Some(other) => return refuse(object.at("prepend_scheme"), format!("unknown scheme `{other}`")),
    };
    if prefix == Some(false) && scheme != scheme::NEVER {
        return refuse(object.at("add_prefix_space"), "does not agree with prepend_scheme");
    }
    Ok((replacement, scheme))
}

fn behavior_of(object: &mut Object<'_>) -> Result<Option<u32>> {
    Ok(Some(match object.string("behavior")? {
        None => return Ok(None),
        Some("Removed") => behavior::REMOVED,
        Some("Isolated") => behavior::ISOLATED,
        Some("MergedWithPrevious") => behavior::MERGED_WITH_PREVIOUS,
        Some("MergedWithNext") => behavior::MERGED_WITH_NEXT,
        Some("Contiguous") => behavior::CONTIGUOUS,
        Some(other) => return refuse(object.at("behavior"), format!("unknown behavior `{other}`")),
    }))
}

fn punctuation() -> CharSet {
    CharSet::from_fn(|c| c.is_ascii_punctuation() || c.is_punctuation())
}
