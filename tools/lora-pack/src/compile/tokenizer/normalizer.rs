//! The `normalizer` part.

use serde_json::Value;
use unicode_categories::UnicodeCategories;
use unicode_normalization_alignments::char as ucd;

use super::charset::{CharSet, Classes};
use super::error::{TokenizerError, refuse};
use super::json::{Object, typed};
use super::regex::Program;

type Result<T> = std::result::Result<T, TokenizerError>;

/// A function from one character to several.
pub(super) type CharMap = Box<dyn Fn(char) -> Vec<char>>;

/// An operation, not yet laid out.
pub(super) enum Op {
    /// Character by character.
    Map(CharMap),
    /// Decomposition, and composition.
    Decompose { compatible: bool, compose: bool },
    /// Matches of a pattern become a string.
    Replace { pattern: Program, by: String },
    /// A string in front.
    Prepend(String),
    /// White space at the ends.
    Strip { class: u32, left: bool, right: bool },
    /// A precompiled character map.
    Precompiled(Vec<u8>),
    /// Bytes to printable stand-ins.
    StandIns,
}

/// Reads a normalizer into operations.
pub(super) fn normalizer(value: &Value, place: &str, classes: &mut Classes, out: &mut Vec<Op>) -> Result<()> {
    let (name, mut object) = typed(value, place)?;
    match name {
        "Sequence" => {
            object.require("normalizers")?;
            for (i, value) in object.array("normalizers")?.iter().enumerate() {
                normalizer(value, &format!("{place}.normalizers[{i}]"), classes, out)?;
            }
        }
        "NFC" => out.push(Op::Decompose { compatible: false, compose: true }),
        "NFD" => out.push(Op::Decompose { compatible: false, compose: false }),
        "NFKC" => out.push(Op::Decompose { compatible: true, compose: true }),
        "NFKD" => out.push(Op::Decompose { compatible: true, compose: false }),
        "Lowercase" => out.push(Op::Map(Box::new(|c| c.to_lowercase().collect()))),
        "StripAccents" => {
            out.push(Op::Map(Box::new(|c| if ucd::is_combining_mark(c) { Vec::new() } else { vec![c] })));
        }
        "BertNormalizer" => bert(&mut object, out)?,
        "Nmt" => out.push(Op::Map(Box::new(nmt))),
        "ByteLevel" => out.push(Op::StandIns),
        "Strip" => {
            let (left, right) = (object.require_bool("strip_left")?, object.require_bool("strip_right")?);
            let class = classes.add(white_space());
            out.push(Op::Strip { class, left, right });
        }
        "Prepend" => {
            let text = object.require_string("prepend")?;
            if text.is_empty() {
                return refuse(place, "Prepend of nothing");
            }
            out.push(Op::Prepend(text.to_owned()));
        }
        "Replace" => {
            let by = object.require_string("content")?.to_owned();
            let pattern = object.require("pattern")?;
            let place = object.at("pattern");
            if let Some(Value::String(text)) = pattern.get("String")
                && let (Some(only), None) = (text.chars().next(), text.chars().nth(1))
            {
                // One character: a map does, which joins its neighbours.
                Object::new(pattern, &place)?.string("String")?;
                out.push(Op::Map(Box::new(move |c| if c == only { by.chars().collect() } else { vec![c] })));
            } else {
                out.push(Op::Replace { pattern: split_pattern(pattern, &place, classes)?, by });
            }
        }
        "Precompiled" => {
            let text = object.require_string("precompiled_charsmap")?;
            let place = object.at("precompiled_charsmap");
            let Some(bytes) = super::precompiled::base64(text) else { return refuse(place, "not base64") };
            if !bytes.is_empty() {
                super::precompiled::check(&bytes).map_err(|what| super::error::error(place, what))?;
                out.push(Op::Precompiled(bytes));
            }
        }
        other => return refuse(place, format!("unknown normalizer `{other}`")),
    }
    object.finish()
}

/// A pattern written `{"String": …}` or `{"Regex": …}`.
pub(super) fn split_pattern(value: &Value, place: &str, classes: &mut Classes) -> Result<Program> {
    let mut object = Object::new(value, place)?;
    let (text, regex) = match (object.string("String")?, object.string("Regex")?) {
        (Some(text), None) => (text, false),
        (None, Some(text)) => (text, true),
        _ => return refuse(place, "neither a `String` nor a `Regex`"),
    };
    object.finish()?;
    if text.is_empty() {
        return refuse(place, "an empty pattern");
    }
    let program = if regex { Program::regex(text, classes) } else { Program::literal(text, classes) };
    program.or_else(|what| refuse(place, format!("pattern `{text}` cannot be compiled exactly: {what}")))
}

/// Characters that count as white space.
pub(super) fn white_space() -> CharSet {
    CharSet::from_fn(char::is_whitespace)
}

fn bert(object: &mut Object<'_>, out: &mut Vec<Op>) -> Result<()> {
    let clean = object.require_bool("clean_text")?;
    let chinese = object.require_bool("handle_chinese_chars")?;
    let lowercase = object.require_bool("lowercase")?;
    let strip = object.bool("strip_accents")?.unwrap_or(lowercase);
    if clean {
        out.push(Op::Map(Box::new(|c| match c {
            '\t' | '\n' | '\r' => vec![' '],
            '\0' | '\u{fffd}' => Vec::new(),
            c if c.is_other() => Vec::new(),
            c if c.is_whitespace() => vec![' '],
            c => vec![c],
        })));
    }
    if chinese {
        out.push(Op::Map(Box::new(|c| if is_chinese(c) { vec![' ', c, ' '] } else { vec![c] })));
    }
    if strip {
        out.push(Op::Decompose { compatible: false, compose: false });
        out.push(Op::Map(Box::new(|c| if c.is_mark_nonspacing() { Vec::new() } else { vec![c] })));
    }
    if lowercase {
        out.push(Op::Map(Box::new(|c| c.to_lowercase().collect())));
    }
    Ok(())
}

/// The ideographs that BERT's normalizer sets apart (the third range of the extensions begins late there, too).
fn is_chinese(c: char) -> bool {
    matches!(
        u32::from(c),
        0x4e00..=0x9fff
            | 0x3400..=0x4dbf
            | 0x20000..=0x2a6df
            | 0x2a700..=0x2b73f
            | 0x2b740..=0x2b81f
            | 0x2b920..=0x2ceaf
            | 0xf900..=0xfaff
            | 0x2f800..=0x2fa1f
    )
}

fn nmt(c: char) -> Vec<char> {
    match u32::from(c) {
        0x01..=0x08 | 0x0b | 0x0e..=0x1f | 0x7f | 0x8f | 0x9f => Vec::new(),
        0x09 | 0x0a | 0x0c | 0x0d | 0x1680 | 0x200b..=0x200f | 0x2028 | 0x2029 | 0x2581 | 0xfeff | 0xfffd => {
            vec![' ']
        }
        _ => vec![c],
    }
}
