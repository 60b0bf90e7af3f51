//! A `tokenizer.json` as GGUF metadata: the other direction of `source/gguf/tokenizer.rs`.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::metadata::Pairs;
use crate::source::gguf::tokenizer::{PRE, pre};
use crate::source::gguf::writer::Item;
use crate::source::{TokenizerFiles, quote};

/// ggml's kinds of tokens.
mod kind {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

/// What says that a file has no vocabulary; llama.cpp then takes the number of tokens from the architecture's metadata.
pub fn none() -> (String, Item) {
    ("tokenizer.ggml.model".into(), Item::Text("none".into()))
}

/// The tokenizer of a model with `rows` embedding rows; `config` and `generation` name the special ids.
pub fn pairs(files: &TokenizerFiles, rows: usize, config: &Value, generation: Option<&Value>) -> Result<Pairs> {
    let missing = "the base has no tokenizer.json: --no-tokenizer writes a model of token ids";
    let bytes = files.tokenizer_json.as_ref().context(missing)?;
    let json: Value = serde_json::from_slice(bytes).context("tokenizer.json")?;
    let model = json.get("model").context("tokenizer.json has no model")?;
    let kind_of_model = model.get("type").and_then(Value::as_str).unwrap_or("BPE");
    let byte_fallback = model.get("byte_fallback").and_then(Value::as_bool).unwrap_or(false);
    let mut v = Vocabulary { tokens: vec![None; rows], kinds: vec![kind::UNUSED; rows], scores: vec![0.0; rows] };
    let mut out = Pairs::new();
    let mut set = |key: &str, item: Item| out.push((format!("tokenizer.{key}"), item));
    match (kind_of_model, byte_fallback) {
        ("BPE", false) => {
            v.by_text(model, str::to_owned)?;
            set("ggml.model", Item::Text("gpt2".into()));
            set("ggml.pre", Item::Text(pre_of(&json)?.into()));
            set("ggml.merges", Item::Texts(merges(model)?.into_iter().map(|(a, b)| format!("{a} {b}")).collect()));
        }
        ("BPE", true) => {
            v.by_text(model, str::to_owned)?;
            v.score_by_merges(model)?;
            set("ggml.model", Item::Text("llama".into()));
            set("ggml.pre", Item::Text("default".into()));
            let prepends = json.get("normalizer").is_some_and(|n| n.to_string().contains("\"Prepend\""))
                || json.get("pre_tokenizer").is_some_and(|p| p.to_string().contains("\"Metaspace\""));
            set("ggml.add_space_prefix", Item::Flag(prepends));
        }
        ("WordPiece", _) => {
            let bracketed = |t: &str| t.starts_with('[') && t.ends_with(']') && t.len() > 2;
            v.by_text(model, |t| match t.strip_prefix("##") {
                _ if bracketed(t) => t.to_owned(),
                Some(rest) => rest.to_owned(),
                None => format!("▁{t}"),
            })?;
            let lower = json.get("normalizer").and_then(|n| n.get("lowercase")).and_then(Value::as_bool);
            if lower != Some(true) {
                bail!("the tokenizer keeps capitals, and llama.cpp lowers them for every BERT");
            }
            set("ggml.model", Item::Text("bert".into()));
        }
        ("Unigram", _) => {
            v.by_list(model)?;
            set("ggml.model", Item::Text("t5".into()));
            set("ggml.pre", Item::Text("default".into()));
            set("ggml.add_space_prefix", Item::Flag(true));
            let normalizer = json.get("normalizer").map_or(String::new(), Value::to_string);
            set(
                "ggml.remove_extra_whitespaces",
                Item::Flag(normalizer.contains("{2,}") || normalizer.contains("\"Nmt\"")),
            );
            if let Some(map) = find(&json["normalizer"], "precompiled_charsmap").and_then(Value::as_str) {
                set(
                    "ggml.precompiled_charsmap",
                    Item::Bytes(base64(map).context("precompiled_charsmap is not base64")?),
                );
            }
        }
        (other, _) => bail!("a tokenizer of type {other} has no words in GGUF"),
    }
    let spelled = |id: usize, text: &str| match kind_of_model {
        // Added tokens of WordPiece stand as they are.
        "WordPiece" => v.tokens[id].clone().unwrap_or_else(|| text.to_owned()),
        _ => text.to_owned(),
    };
    let mut added = Vec::new();
    for token in json.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
        let (Some(id), Some(text)) = (token["id"].as_u64(), token["content"].as_str()) else {
            bail!("an entry of added_tokens has no id or no content");
        };
        let id = usize::try_from(id).ok().filter(|id| *id < rows);
        let id = id.with_context(|| format!("the added token {} is past the embedding", quote(text)))?;
        added.push((id, spelled(id, text), token["special"].as_bool().unwrap_or(false)));
    }
    let unknown = model.get("unk_token").and_then(Value::as_str);
    for (id, text, special) in added {
        let kind = match special {
            _ if Some(text.as_str()) == unknown => kind::UNKNOWN,
            true => kind::CONTROL,
            false => kind::USER_DEFINED,
        };
        (v.tokens[id], v.kinds[id]) = (Some(text), kind);
    }
    if let Some(id) = model.get("unk_id").and_then(Value::as_u64).filter(|id| (*id as usize) < rows) {
        v.kinds[id as usize] = kind::UNKNOWN;
    }
    let specials = Specials { files, config, generation, tokens: &v.tokens };
    let (bos, ends) = (specials.id("bos"), specials.ends());
    let (first, last) = around(&json, bos, &ends);
    for (name, id) in [
        ("bos", bos.or(first)),
        ("eos", last.or(ends.first().copied())),
        ("unknown", specials.id("unk").or(specials.text(unknown))),
        ("padding", specials.id("pad")),
        ("seperator", specials.id("sep")),
        ("cls", specials.id("cls")),
        ("mask", specials.id("mask")),
    ] {
        if let Some(id) = id {
            set(&format!("ggml.{name}_token_id"), Item::Count(id));
        }
    }
    let eos = last.or(ends.first().copied());
    for (name, id) in ["eot", "eom"].into_iter().zip(ends.into_iter().filter(|id| Some(*id) != eos)) {
        set(&format!("ggml.{name}_token_id"), Item::Count(id));
    }
    if kind_of_model != "WordPiece" {
        set("ggml.add_bos_token", Item::Flag(first.is_some()));
        set("ggml.add_eos_token", Item::Flag(last.is_some()));
    }
    if let Some(template) = &files.chat_template {
        set("chat_template", Item::Text(template.clone()));
    }
    let filler = |(i, t): (usize, Option<String>)| t.unwrap_or_else(|| format!("[PAD{i}]"));
    set("ggml.tokens", Item::Texts(v.tokens.into_iter().enumerate().map(filler).collect()));
    set("ggml.token_type", Item::Integers(v.kinds));
    if matches!((kind_of_model, byte_fallback), ("BPE", true) | ("Unigram", _)) {
        set("ggml.scores", Item::Numbers(v.scores));
    }
    Ok(out)
}

struct Vocabulary {
    tokens: Vec<Option<String>>,
    kinds: Vec<i32>,
    scores: Vec<f32>,
}

impl Vocabulary {
    fn put(&mut self, id: u64, text: String, score: f32) -> Result<()> {
        let id = usize::try_from(id).ok().filter(|id| *id < self.tokens.len());
        let id = id.with_context(|| format!("the token {} is past the embedding", quote(&text)))?;
        let byte = text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        (self.kinds[id], self.scores[id]) = (if byte { kind::BYTE } else { kind::NORMAL }, score);
        self.tokens[id] = Some(text);
        Ok(())
    }

    fn by_text(&mut self, model: &Value, spell: impl Fn(&str) -> String) -> Result<()> {
        for (text, id) in model.get("vocab").and_then(Value::as_object).context("no vocabulary")? {
            self.put(id.as_u64().context("an id is not a number")?, spell(text), 0.0)?;
        }
        Ok(())
    }

    fn by_list(&mut self, model: &Value) -> Result<()> {
        for (id, entry) in model.get("vocab").and_then(Value::as_array).context("no vocabulary")?.iter().enumerate() {
            let (text, score) = (entry[0].as_str(), entry[1].as_f64());
            self.put(id as u64, text.context("a token without a text")?.to_owned(), score.unwrap_or(0.0) as f32)?;
        }
        Ok(())
    }

    /// SentencePiece prefers the piece with the best score; the first merge that makes a piece says when that is.
    fn score_by_merges(&mut self, model: &Value) -> Result<()> {
        let mut rank: HashMap<String, usize> = HashMap::new();
        let merges = merges(model)?;
        for (i, (a, b)) in merges.iter().enumerate() {
            rank.entry(format!("{a}{b}")).or_insert(i);
        }
        let last = merges.len();
        for (token, score) in self.tokens.iter().zip(&mut self.scores) {
            if let Some(token) = token {
                *score = -(rank.get(token).copied().unwrap_or(last) as f32);
            }
        }
        Ok(())
    }
}

fn merges(model: &Value) -> Result<Vec<(String, String)>> {
    let pair = |m: &Value| -> Option<(String, String)> {
        match m {
            Value::String(line) => line.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
            Value::Array(parts) => Some((parts.first()?.as_str()?.to_owned(), parts.get(1)?.as_str()?.to_owned())),
            _ => None,
        }
    };
    let list = model.get("merges").and_then(Value::as_array).context("no merges")?;
    let lines = list.iter().filter(|m| m.as_str().is_none_or(|m| !m.starts_with("#version")));
    lines.map(pair).collect::<Option<_>>().context("a merge is not two strings")
}

/// The steps of a pre-tokenizer, and what of them changes tokens.
fn steps(value: &Value, out: &mut Vec<String>) {
    let text = |v: &Value, key: &str| v.get(key).map_or(String::new(), Value::to_string);
    match value.get("type").and_then(Value::as_str) {
        Some("Sequence") => {
            let list = value.get("pretokenizers").or(value.get("normalizers")).and_then(Value::as_array);
            list.into_iter().flatten().for_each(|v| steps(v, out));
        }
        Some("ByteLevel") => {
            let regex = value.get("use_regex").and_then(Value::as_bool).unwrap_or(true);
            out.push(format!("ByteLevel {} {regex}", text(value, "add_prefix_space")));
        }
        Some("Split") => out.push(format!("Split {} {}", text(value, "pattern"), text(value, "behavior"))),
        Some("Digits") => out.push(format!("Digits {}", text(value, "individual_digits"))),
        Some("Punctuation") => out.push(format!("Punctuation {}", text(value, "behavior"))),
        Some(other) => out.push(other.to_owned()),
        None => {}
    }
}

/// The name in `tokenizer.ggml.pre` for a byte-level tokenizer.
fn pre_of(json: &Value) -> Result<&'static str> {
    let parts = |normalizer: &Value, pre_tokenizer: &Value| {
        let mut out = Vec::new();
        steps(normalizer, &mut out);
        steps(pre_tokenizer, &mut out);
        out
    };
    let own = parts(&json["normalizer"], &json["pre_tokenizer"]);
    let ignore = json["model"]["ignore_merges"].as_bool().unwrap_or(false);
    let same = |name: &&&str| {
        pre(name).is_some_and(|(normalizer, pre_tokenizer, ignores)| {
            ignores == ignore && parts(&normalizer, &pre_tokenizer) == own
        })
    };
    let found = PRE.iter().find(same).copied();
    found.with_context(|| format!("the pre-tokenizer ({}) has no name in GGUF", own.join(", ")))
}

/// The ids that stand before and after a single text, if the post-processor adds them.
fn around(json: &Value, bos: Option<u32>, ends: &[u32]) -> (Option<u32>, Option<u32>) {
    let Some(template) = find(&json["post_processor"], "single").and_then(Value::as_array) else { return (None, None) };
    let ids = find(&json["post_processor"], "special_tokens");
    let id = |piece: &Value| {
        let name = piece.get("SpecialToken")?.get("id")?.as_str()?;
        ids?.get(name)?.get("ids")?.get(0)?.as_u64().map(|id| id as u32)
    };
    let first = template.first().and_then(id);
    let last = template.last().and_then(id);
    // One that stands alone is the end of a text if it is known as such.
    match (first, last) {
        (Some(a), Some(b)) if template.len() == 1 && a == b => (None, None),
        (Some(a), last) if bos.is_none() && ends.contains(&a) && last.is_none() => (Some(a), None),
        other => other,
    }
}

/// A field anywhere within a value.
fn find<'v>(value: &'v Value, field: &str) -> Option<&'v Value> {
    match value {
        Value::Object(map) => map.get(field).or_else(|| map.values().find_map(|v| find(v, field))),
        Value::Array(list) => list.iter().find_map(|v| find(v, field)),
        _ => None,
    }
}

struct Specials<'a> {
    files: &'a TokenizerFiles,
    config: &'a Value,
    generation: Option<&'a Value>,
    tokens: &'a [Option<String>],
}

impl Specials<'_> {
    fn text(&self, text: Option<&str>) -> Option<u32> {
        let text = text?;
        self.tokens.iter().position(|t| t.as_deref() == Some(text)).map(|i| i as u32)
    }

    /// By the tokenizer's own config, else the model's.
    fn id(&self, name: &str) -> Option<u32> {
        let own = self.files.tokenizer_config.as_ref().and_then(|c| c.get(format!("{name}_token")));
        let own = own.or(self.files.special_tokens_map.as_ref().and_then(|m| m.get(format!("{name}_token"))));
        let own = own.and_then(|t| t.as_str().or_else(|| t.get("content")?.as_str()));
        self.text(own).or_else(|| self.of_config(name).first().copied())
    }

    fn of_config(&self, name: &str) -> Vec<u32> {
        let field = format!("{name}_token_id");
        let value = self.generation.and_then(|g| g.get(&field)).filter(|v| !v.is_null()).or(self.config.get(&field));
        let one =
            |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| (*n as usize) < self.tokens.len());
        match value {
            Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
            Some(v) => one(v).into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// Every id that ends a text, the tokenizer's own first.
    fn ends(&self) -> Vec<u32> {
        let mut out: Vec<u32> = self.id("eos").into_iter().collect();
        for id in self.of_config("eos") {
            if !out.contains(&id) {
                out.push(id);
            }
        }
        out
    }
}

/// Standard base64 with padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| match b {
        b'A'..=b'Z' => Some(b - b'A'),
        b'a'..=b'z' => Some(b - b'a' + 26),
        b'0'..=b'9' => Some(b - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    for chunk in text.trim_end_matches('=').as_bytes().chunks(4) {
        let n = chunk.iter().try_fold(0u32, |n, b| Some(n << 6 | u32::from(digit(*b)?)))? << (6 * (4 - chunk.len()));
        out.extend(&n.to_be_bytes()[1..chunk.len()]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_read() {
        let read = |t: &str| base64(t).map(|b| String::from_utf8(b).unwrap());
        assert_eq!(
            ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="].map(read),
            ["", "f", "fo", "foo", "foob"].map(|s| Some(s.into()))
        );
        assert_eq!(base64("a*bc"), None);
    }
}
