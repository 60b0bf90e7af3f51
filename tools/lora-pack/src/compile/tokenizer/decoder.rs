//! The `decoder` part: one rule that fits most tokens, and the tokens that it does not fit, spelled out.
//!
//! Everything that a decoder does to a token by itself is done here, for every token of the vocabulary, so that the runtime
//! only joins texts. What needs more than one token (runs of bytes, stripping the whole text) stays a step of the
//! runtime.

use serde_json::Value;

use super::error::{TokenizerError, refuse};
use super::json::{Object, typed};
use super::pretokenizer::metaspace;
use lora_runtime::tokenizer::layout::scheme;

type Result<T> = std::result::Result<T, TokenizerError>;

enum Step {
    ByteLevel,
    WordPiece { prefix: String, cleanup: bool },
    Metaspace { replacement: char, scheme: u32 },
    Replace { from: String, to: String },
    ByteFallback,
    Fuse,
    Strip { content: char, start: usize },
    Suffix(String),
}

/// The rule for tokens.
#[derive(Default)]
pub(super) struct Rule {
    /// Text to replace in a token, its replacement elsewhere and in the token at the edge.
    pub from: String,
    pub to: String,
    pub to_edge: String,
    /// Text before every token but the first, unless it starts with (and loses) `continuing`.
    pub glue: String,
    pub continuing: String,
    /// The edge is the last token, not the first.
    pub hold: bool,
}

/// A decoder, taken apart.
#[derive(Default)]
pub(super) struct Decoder {
    /// Steps on single tokens.
    local: Vec<Step>,
    pub rule: Rule,
    /// Tokens are bytes or stand for bytes.
    pub bytes: bool,
    pub fallback: bool,
    /// Stripped from the start of the text.
    pub strip: Option<(char, u32)>,
}

/// Reads a decoder; without one, tokens are joined by spaces.
pub(super) fn decoder(value: Option<&Value>) -> Result<Decoder> {
    let mut steps = Vec::new();
    let mut out = Decoder::default();
    let Some(value) = value else {
        out.rule.glue = " ".into();
        return Ok(out);
    };
    read(value, "decoder", &mut steps)?;
    let mut fused = false;
    for step in steps {
        let unusual = |what: &str| refuse("decoder", format!("{what} in an order that is not supported"));
        match step {
            _ if out.bytes && !matches!(step, Step::Fuse) => return unusual("a step after ByteLevel"),
            Step::ByteLevel if !out.local.is_empty() || out.fallback || fused => return unusual("ByteLevel"),
            Step::ByteLevel => out.bytes = true,
            Step::Fuse => fused = true,
            Step::ByteFallback if fused => return unusual("ByteFallback"),
            Step::ByteFallback if out.fallback => return unusual("ByteFallback"),
            Step::ByteFallback => out.fallback = true,
            Step::Strip { content, start } if fused && out.strip.is_none() => {
                out.strip = Some((content, u32::try_from(start).unwrap_or(u32::MAX)));
            }
            _ if fused || out.fallback => return unusual("a step on single tokens"),
            step => out.local.push(step),
        }
    }
    match &out.local[..] {
        [Step::Suffix(suffix)] => {
            if out.fallback {
                return refuse("decoder", "BPEDecoder with ByteFallback");
            }
            out.rule = Rule { from: suffix.clone(), to: " ".into(), hold: true, ..Rule::default() };
        }
        steps if steps.iter().any(|s| matches!(s, Step::Suffix(_))) => {
            return refuse("decoder", "BPEDecoder with other steps on single tokens");
        }
        [Step::WordPiece { prefix, .. }, ..] => {
            // An empty prefix is one that every token has.
            let glue = if prefix.is_empty() { "" } else { " " };
            out.rule = Rule { glue: glue.into(), continuing: prefix.clone(), ..Rule::default() };
        }
        [Step::Metaspace { replacement, scheme }, ..] => {
            let to_edge = if *scheme == scheme::NEVER { " " } else { "" };
            out.rule =
                Rule { from: replacement.to_string(), to: " ".into(), to_edge: to_edge.into(), ..Rule::default() };
        }
        [Step::Replace { from, to }, ..] => {
            out.rule = Rule { from: from.clone(), to: to.clone(), to_edge: to.clone(), ..Rule::default() };
        }
        _ => {}
    }
    Ok(out)
}

fn read(value: &Value, place: &str, out: &mut Vec<Step>) -> Result<()> {
    let (name, mut object) = typed(value, place)?;
    match name {
        "Sequence" => {
            object.require("decoders")?;
            for (i, value) in object.array("decoders")?.iter().enumerate() {
                read(value, &format!("{place}.decoders[{i}]"), out)?;
            }
        }
        "ByteLevel" => {
            object.harmless(&["add_prefix_space", "trim_offsets", "use_regex"]);
            out.push(Step::ByteLevel);
        }
        "WordPiece" => out.push(Step::WordPiece {
            prefix: object.require_string("prefix")?.to_owned(),
            cleanup: object.require_bool("cleanup")?,
        }),
        "Metaspace" => {
            let (replacement, scheme) = metaspace(&mut object)?;
            object.harmless(&["split"]);
            out.push(Step::Metaspace { replacement, scheme });
        }
        "Replace" => {
            let to = object.require_string("content")?.to_owned();
            let place = object.at("pattern");
            let mut pattern = Object::new(object.require("pattern")?, &place)?;
            let Some(from) = pattern.string("String")?.map(str::to_owned) else {
                return refuse(place, "a regular expression in a decoder");
            };
            pattern.finish()?;
            if from.is_empty() {
                return refuse(place, "an empty pattern");
            }
            out.push(Step::Replace { from, to });
        }
        "ByteFallback" => out.push(Step::ByteFallback),
        "Fuse" => out.push(Step::Fuse),
        "Strip" => {
            let content = object.require_char("content")?;
            let start = object.require_number("start")? as usize;
            if object.require_number("stop")? != 0 {
                return refuse(object.at("stop"), "stripping the end of the text");
            }
            out.push(Step::Strip { content, start });
        }
        "BPEDecoder" => {
            let suffix = object.require_string("suffix")?;
            if suffix.is_empty() {
                return refuse(object.at("suffix"), "an empty suffix");
            }
            out.push(Step::Suffix(suffix.to_owned()));
        }
        other => return refuse(place, format!("unknown or unsupported decoder `{other}`")),
    }
    object.finish()
}

impl Decoder {
    /// What a token decodes to by itself, at the edge (first, or last with `hold`) or elsewhere.
    pub(super) fn decoded(&self, token: &str, edge: bool) -> String {
        if self.bytes {
            return token.to_owned();
        }
        let mut text = token.to_owned();
        if self.local.is_empty() && !edge {
            text.insert_str(0, &self.rule.glue);
        }
        for step in &self.local {
            text = match step {
                Step::WordPiece { prefix, cleanup } => {
                    if !edge {
                        text = match text.strip_prefix(prefix) {
                            Some(rest) => rest.to_owned(),
                            None => format!(" {text}"),
                        };
                    }
                    if *cleanup { clean(&text) } else { text }
                }
                Step::Metaspace { replacement, scheme } => {
                    let by = if edge && *scheme != scheme::NEVER { "" } else { " " };
                    text.replace(*replacement, by)
                }
                Step::Replace { from, to } => text.replace(from, to),
                Step::Strip { content, start } => {
                    let cut = text.chars().take(*start).take_while(|c| c == content).count();
                    text.chars().skip(cut).collect()
                }
                Step::Suffix(suffix) => text.replace(suffix, if edge { "" } else { " " }),
                Step::ByteLevel | Step::ByteFallback | Step::Fuse => text,
            };
        }
        text
    }

    /// What the rule alone makes of a token.
    pub(super) fn by_rule(&self, token: &str, edge: bool) -> String {
        if self.bytes {
            return token.to_owned();
        }
        let rule = &self.rule;
        let mut out = String::new();
        let mut rest = token;
        if !edge && !rule.hold {
            match token.strip_prefix(rule.continuing.as_str()) {
                Some(tail) if !rule.continuing.is_empty() => rest = tail,
                _ => out.push_str(&rule.glue),
            }
        }
        if rule.from.is_empty() {
            return out + rest;
        }
        out + &rest.replace(&rule.from, if edge { &rule.to_edge } else { &rule.to })
    }

    /// The byte that a token stands for.
    pub(super) fn byte(&self, token: &str) -> Option<u8> {
        let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
        if !self.fallback || token.len() != 6 {
            return None;
        }
        u8::from_str_radix(digits, 16).ok()
    }
}

/// English spacing as BERT's decoder repairs it.
fn clean(text: &str) -> String {
    let repairs = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" do not", " don't"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    repairs.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}
