//! The `model` part: vocabulary, merges, scores.

use std::collections::HashMap;

use serde_json::Value;

use super::error::{TokenizerError, error, refuse};
use super::json::Object;
use super::merges::Merge;
use lora_runtime::tokenizer::layout;

type Result<T> = std::result::Result<T, TokenizerError>;

/// Ids by text.
pub(super) type Ids = HashMap<String, u32>;
/// Texts by id.
pub(super) type Texts = Vec<Option<String>>;

/// What is particular to a kind of model.
pub(super) enum Kind {
    /// Byte-pair encoding.
    Bpe { merges: Vec<Merge>, prefix: String, suffix: String, fuse_unk: bool, ignore_merges: bool },
    /// WordPiece.
    WordPiece { prefix: String, max_chars: u32 },
    /// Unigram, with a score per id.
    Unigram { scores: Vec<f64> },
    /// Whole words.
    WordLevel,
}

/// A model.
pub(super) struct Model {
    pub kind: Kind,
    /// Ids of all entries; where an entry occurs twice, the last.
    pub ids: Ids,
    /// Entries by id.
    pub texts: Texts,
    /// Entries, as the reference library counts them to number further tokens.
    pub size: u32,
    /// Id for unknown text, or [`layout::NONE`], or [`layout::UNK_MISSING`].
    pub unk: u32,
    pub byte_fallback: bool,
}

/// Reads the `model` part; every id must have a row among `rows`.
pub(super) fn model(value: &Value, rows: u32) -> Result<Model> {
    let mut object = Object::new(value, "model")?;
    let kind = match object.string("type")? {
        Some(kind) => kind,
        // Files of old versions leave the type out; what they hold gives it away, in the order that the reference
        // library tries.
        None if object.get("merges").is_some() => "BPE",
        None if object.get("max_input_chars_per_word").is_some() => "WordPiece",
        None if object.get("vocab").is_some_and(Value::is_array) => "Unigram",
        None => "WordLevel",
    };
    let model = match kind {
        "BPE" => bpe(&mut object, rows),
        "WordPiece" => word_piece(&mut object, rows),
        "WordLevel" => word_level(&mut object, rows),
        "Unigram" => unigram(&mut object, rows),
        other => refuse("model.type", format!("unknown model type `{other}`")),
    }?;
    object.finish()?;
    Ok(model)
}

/// An id from the file, with a row.
pub(super) fn id(value: &Value, place: &str, name: &str, rows: u32) -> Result<u32> {
    let Some(id) = value.as_u64() else { return refuse(place, format!("the id of `{name}` is not a whole number")) };
    row(id, place, name, rows)
}

/// Refuses an id without an embedding row.
pub(super) fn row(id: u64, place: &str, name: &str, rows: u32) -> Result<u32> {
    match u32::try_from(id) {
        Ok(id) if id < rows.min(layout::MAX_VOCAB) => Ok(id),
        _ => refuse(place, format!("token `{name}` has id {id}, past the model's vocabulary of {rows} embedding rows")),
    }
}

/// The vocabulary of a model that lists it by entry: ids, and entries by id.
fn vocabulary(object: &mut Object<'_>, rows: u32) -> Result<(Ids, Texts)> {
    let place = object.at("vocab");
    let Value::Object(entries) = object.require("vocab")? else { return refuse(place, "not an object") };
    let mut ids = HashMap::with_capacity(entries.len());
    let mut texts = Vec::new();
    for (text, value) in entries {
        let id = id(value, &place, text, rows)?;
        name(&mut texts, id, text, &place)?;
        ids.insert(text.clone(), id);
    }
    Ok((ids, texts))
}

/// Notes the text of an id, which must have none yet.
pub(super) fn name(texts: &mut Texts, id: u32, text: &str, place: &str) -> Result<()> {
    if texts.len() <= id as usize {
        texts.resize(id as usize + 1, None);
    }
    match &texts[id as usize] {
        Some(other) if other != text => refuse(place, format!("`{other}` and `{text}` have the same id {id}")),
        _ => {
            texts[id as usize] = Some(text.to_owned());
            Ok(())
        }
    }
}

fn unknown(ids: &Ids, text: Option<&str>) -> u32 {
    match text {
        Some(text) => ids.get(text).copied().unwrap_or(layout::UNK_MISSING),
        None => layout::NONE,
    }
}

fn bpe(object: &mut Object<'_>, rows: u32) -> Result<Model> {
    if let Some(dropout) = object.get("dropout")
        && dropout.as_f64() != Some(0.0)
    {
        return refuse("model.dropout", "random tokenization cannot be compiled");
    }
    let unk_token = object.string("unk_token")?;
    let prefix = object.string("continuing_subword_prefix")?.unwrap_or_default().to_owned();
    let suffix = object.string("end_of_word_suffix")?.unwrap_or_default().to_owned();
    let fuse_unk = object.bool("fuse_unk")?.unwrap_or(false);
    let byte_fallback = object.bool("byte_fallback")?.unwrap_or(false);
    let ignore_merges = object.bool("ignore_merges")?.unwrap_or(false);
    if byte_fallback && !(prefix.is_empty() && suffix.is_empty()) {
        return refuse("model.byte_fallback", "together with a subword prefix or suffix");
    }
    let (ids, texts) = vocabulary(object, rows)?;
    object.require("merges")?;
    let mut merges: HashMap<(u32, u32), (u32, u32)> = HashMap::new();
    let mut order = Vec::new();
    let mut rank = 0;
    for value in object.array("merges")? {
        let place = || format!("model.merges[{rank}]");
        let (left, right) = match value {
            Value::String(line) if line.starts_with("#version") => continue,
            Value::String(line) => {
                let mut parts = line.split(' ');
                match (parts.next(), parts.next(), parts.next()) {
                    (Some(left), Some(right), None) => (left, right),
                    _ => return refuse(place(), format!("merge `{line}` is not two parts with a space between")),
                }
            }
            Value::Array(parts) => match &parts[..] {
                [Value::String(left), Value::String(right)] => (left.as_str(), right.as_str()),
                _ => return refuse(place(), "merge is not two strings"),
            },
            _ => return refuse(place(), "merge is neither a string nor a list"),
        };
        let find = |text: &str| {
            ids.get(text).copied().ok_or_else(|| {
                error(place(), format!("merge of `{left}` and `{right}`: `{text}` is not in the vocabulary"))
            })
        };
        let (a, b) = (find(left)?, find(right)?);
        let Some(tail) = right.strip_prefix(prefix.as_str()).filter(|t| !t.is_empty() && !left.is_empty()) else {
            return refuse(place(), format!("merge of `{left}` and `{right}` adds nothing"));
        };
        let result = find(&format!("{left}{tail}"))?;
        if merges.insert((a, b), (rank, result)).is_none() {
            order.push((a, b));
        }
        rank += 1;
    }
    let merges = order
        .into_iter()
        .map(|pair| {
            let (rank, result) = merges[&pair];
            [pair.0, pair.1, rank, result]
        })
        .collect();
    Ok(Model {
        unk: unknown(&ids, unk_token),
        size: ids.len() as u32,
        kind: Kind::Bpe { merges, prefix, suffix, fuse_unk, ignore_merges },
        ids,
        texts,
        byte_fallback,
    })
}

fn word_piece(object: &mut Object<'_>, rows: u32) -> Result<Model> {
    let unk_token = object.require_string("unk_token")?;
    let prefix = object.require_string("continuing_subword_prefix")?.to_owned();
    let max_chars = object.require_number("max_input_chars_per_word")?;
    let (ids, texts) = vocabulary(object, rows)?;
    Ok(Model {
        unk: unknown(&ids, Some(unk_token)),
        size: ids.len() as u32,
        kind: Kind::WordPiece { prefix, max_chars: u32::try_from(max_chars).unwrap_or(u32::MAX) },
        ids,
        texts,
        byte_fallback: false,
    })
}

fn word_level(object: &mut Object<'_>, rows: u32) -> Result<Model> {
    let unk_token = object.require_string("unk_token")?;
    let (ids, texts) = vocabulary(object, rows)?;
    Ok(Model {
        unk: unknown(&ids, Some(unk_token)),
        size: ids.len() as u32,
        kind: Kind::WordLevel,
        ids,
        texts,
        byte_fallback: false,
    })
}

fn unigram(object: &mut Object<'_>, rows: u32) -> Result<Model> {
    object.require("vocab")?;
    let mut ids = HashMap::new();
    let (mut texts, mut scores) = (Vec::new(), Vec::new());
    for (i, value) in object.array("vocab")?.iter().enumerate() {
        let place = || format!("model.vocab[{i}]");
        let (text, score) = match value.as_array().map(Vec::as_slice) {
            Some([Value::String(text), score]) => match score.as_f64() {
                Some(score) => (text, score),
                None => return refuse(place(), format!("the score of `{text}` is not a number")),
            },
            _ => return refuse(place(), "not a token and its score"),
        };
        let id = row(i as u64, "model.vocab", text, rows)?;
        ids.insert(text.clone(), id);
        texts.push(Some(text.clone()));
        scores.push(score);
    }
    let unk = match object.number("unk_id")? {
        None => layout::NONE,
        Some(id) if id < scores.len() as u64 => id as u32,
        Some(id) => return refuse("model.unk_id", format!("{id} is not in the vocabulary")),
    };
    let byte_fallback = object.bool("byte_fallback")?.unwrap_or(false);
    Ok(Model { unk, size: scores.len() as u32, kind: Kind::Unigram { scores }, ids, texts, byte_fallback })
}
