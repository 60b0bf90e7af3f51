//! The `tokenizer.json` that a GGUF file's metadata amounts to.
//!
//! | `tokenizer.ggml.model` | becomes |
//! |---|---|
//! | `gpt2` | byte-level BPE; the pre-tokenizer by `tokenizer.ggml.pre` |
//! | `llama` | SentencePiece's BPE: merges out of the scores, byte fallback |
//! | `bert` | WordPiece; pieces that continue a word stand without `▁` in GGUF |
//! | `t5` | Unigram |
//!
//! What GGUF does not record is filled in with what the tokenizers of these models do: patterns by the name of the
//! pre-tokenizer, the first and last token by `add_bos_token` and `add_eos_token`.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use super::container::{Metadata, Value};
use crate::source::{SourceError, quote};

/// ggml's kinds of tokens.
mod kind {
    pub const NORMAL: i64 = 1;
    pub const UNKNOWN: i64 = 2;
    pub const CONTROL: i64 = 3;
    pub const USER_DEFINED: i64 = 4;
    pub const UNUSED: i64 = 5;
    pub const BYTE: i64 = 6;
}

/// Kinds of the tokens that have a text. Added tokens are among them: their ids are looked up in the vocabulary.
const USED: [i64; 5] = [kind::NORMAL, kind::UNKNOWN, kind::CONTROL, kind::USER_DEFINED, kind::BYTE];
const ALL: [i64; 6] = [kind::NORMAL, kind::UNKNOWN, kind::CONTROL, kind::USER_DEFINED, kind::UNUSED, kind::BYTE];

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BLOOM: &str = r" ?[^(\s|[.,!?…。，、।۔،])]+";

/// The normalizer, the pre-tokenizer and `ignore_merges` that go with a name in `tokenizer.ggml.pre`.
pub fn pre(name: &str) -> Option<(Json, Json, bool)> {
    let bytes =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let sequence = |list: Vec<Json>| json!({"type": "Sequence", "pretokenizers": list});
    let nfc = json!({"type": "NFC"});
    Some(match name {
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" => {
            (Json::Null, sequence(vec![split(LLAMA3), bytes(false)]), true)
        }
        "dbrx" | "smaug-bpe" => (Json::Null, sequence(vec![split(LLAMA3), bytes(false)]), false),
        "qwen2" | "stablelm2" | "deepseek-r1-qwen" | "megrez" => {
            (nfc, sequence(vec![split(QWEN2), bytes(false)]), false)
        }
        "gpt-2" | "mpt" | "phi-2" | "roberta-bpe" => (Json::Null, bytes(true), false),
        "olmo" => (nfc, bytes(true), false),
        "smollm" | "starcoder" | "refact" | "codeshell" | "command-r" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            (Json::Null, sequence(vec![digits, bytes(true)]), false)
        }
        "bloom" | "poro-chat" | "gpt3-finnish" => (Json::Null, sequence(vec![split(BLOOM), bytes(false)]), false),
        "falcon" => {
            let list = vec![
                json!({"type": "Punctuation", "behavior": "Contiguous"}),
                bytes(true),
                json!({"type": "Digits", "individual_digits": false}),
                split("[0-9][0-9][0-9]"),
            ];
            (Json::Null, sequence(list), false)
        }
        _ => return None,
    })
}

/// A name in `tokenizer.ggml.pre` for each pre-tokenizer that is known; some have more than one.
pub const PRE: [&str; 8] = ["llama-bpe", "dbrx", "qwen2", "gpt-2", "olmo", "smollm", "bloom", "falcon"];

/// The vocabulary as stored.
struct Vocabulary<'a> {
    metadata: Metadata<'a>,
    tokens: Vec<&'a str>,
    kinds: Vec<i64>,
    scores: Vec<f64>,
}

const TOKENS: &str = "tokenizer.ggml.tokens";

impl<'a> Vocabulary<'a> {
    fn read(metadata: Metadata<'a>) -> Result<Self, SourceError> {
        let tokens = metadata.texts(TOKENS)?.ok_or_else(|| metadata.missing(TOKENS))?;
        let list = |key: &str| -> Result<Option<Vec<f64>>, SourceError> {
            match metadata.numbers(key)? {
                Some(n) if n.count() != tokens.len() => {
                    Err(metadata.refuse(key, format!("{} entries for {} tokens", n.count(), tokens.len())))
                }
                n => Ok(n.map(|n| n.iter().collect())),
            }
        };
        let kinds = list("tokenizer.ggml.token_type")?.map(|k| k.iter().map(|n| *n as i64).collect());
        let kinds = kinds.unwrap_or_else(|| vec![kind::NORMAL; tokens.len()]);
        let scores = list("tokenizer.ggml.scores")?.unwrap_or_default();
        if let Some(i) = scores.iter().position(|s| !s.is_finite()) {
            return Err(metadata.refuse("tokenizer.ggml.scores", format!("entry {i} is not finite")));
        }
        Ok(Self { metadata, tokens, kinds, scores })
    }

    /// Tokens of one of the kinds, with their ids.
    fn of(&self, kinds: &'a [i64]) -> impl Iterator<Item = (usize, &'a str)> + '_ {
        self.tokens.iter().copied().enumerate().filter(move |(i, _)| kinds.contains(&self.kinds[*i]))
    }

    fn vocab(&self, kinds: &'a [i64], name: impl Fn(&str) -> String) -> Result<Map<String, Json>, SourceError> {
        let mut vocab = Map::new();
        for (id, token) in self.of(kinds) {
            if vocab.insert(name(token), id.into()).is_some() {
                return Err(self.metadata.refuse(TOKENS, format!("token {} stands twice", quote(token))));
            }
        }
        Ok(vocab)
    }

    /// `added_tokens`: matched in the text as a whole.
    fn added(&self) -> Vec<Json> {
        let added = self.of(&[kind::UNKNOWN, kind::CONTROL, kind::USER_DEFINED]);
        let one = |(id, token): (usize, &str)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": self.kinds[id] != kind::USER_DEFINED})
        };
        added.filter(|(_, token)| !token.is_empty()).map(one).collect()
    }

    /// The token of an id given by `tokenizer.ggml.<name>_token_id`.
    fn special(&self, name: &str) -> Result<Option<(&'a str, u32)>, SourceError> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = self.metadata.count(&key)? else { return Ok(None) };
        match self.tokens.get(id as usize) {
            Some(token) => Ok(Some((token, id))),
            None => Err(self.metadata.refuse(&key, format!("{id} is not below the {} tokens", self.tokens.len()))),
        }
    }

    /// Tokens around the text, as a template. `bos`, `eos`: where the file does not say.
    fn template(&self, bos: bool, eos: bool) -> Result<Option<Json>, SourceError> {
        let wanted = |flag: &str, default| {
            self.metadata.flag(&format!("tokenizer.ggml.add_{flag}_token")).map(|f| f.unwrap_or(default))
        };
        let first = self.special("bos")?.filter(|_| wanted("bos", bos).unwrap_or(false));
        let last = self.special("eos")?.filter(|_| wanted("eos", eos).unwrap_or(false));
        wanted("bos", bos)?;
        wanted("eos", eos)?;
        if first.is_none() && last.is_none() {
            return Ok(None);
        }
        let around = |sequence: &str, type_id: u32| -> Vec<Json> {
            let token = |t: (&str, u32)| json!({"SpecialToken": {"id": t.0, "type_id": type_id}});
            let text = json!({"Sequence": {"id": sequence, "type_id": type_id}});
            first.map(token).into_iter().chain([text]).chain(last.map(token)).collect()
        };
        let pair: Vec<Json> = around("A", 0).into_iter().chain(around("B", 1)).collect();
        Ok(Some(template(around("A", 0), pair, first.into_iter().chain(last))))
    }
}

fn template<'t>(single: Vec<Json>, pair: Vec<Json>, specials: impl Iterator<Item = (&'t str, u32)>) -> Json {
    let specials: Map<String, Json> =
        specials.map(|(t, id)| (t.to_owned(), json!({"id": t, "ids": [id], "tokens": [t]}))).collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": specials})
}

/// The tokenizer of a file; `None` where it has none. The inner error says why it cannot be expressed.
pub fn read(metadata: Metadata<'_>) -> Result<Option<Result<Vec<u8>, String>>, SourceError> {
    if let Some(json) = metadata.text("tokenizer.huggingface.json")? {
        return Ok(Some(Ok(json.as_bytes().to_vec())));
    }
    let Some(model) = metadata.text("tokenizer.ggml.model")? else { return Ok(None) };
    if matches!(model, "none" | "no_vocab") {
        return Ok(None);
    }
    let vocabulary = Vocabulary::read(metadata)?;
    let tokenizer = match model {
        "gpt2" => match byte_level(&vocabulary)? {
            Ok(tokenizer) => tokenizer,
            Err(why) => return Ok(Some(Err(why))),
        },
        "llama" => sentence_piece(&vocabulary)?,
        "bert" => word_piece(&vocabulary)?,
        "t5" => unigram(&vocabulary)?,
        other => {
            let why = format!("tokenizer.ggml.model {} is not supported; gpt2, llama, bert and t5 are", quote(other));
            return Ok(Some(Err(why)));
        }
    };
    let mut file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": vocabulary.added()});
    for (part, value) in tokenizer {
        file[part] = value;
    }
    Ok(Some(Ok(file.to_string().into_bytes())))
}

type Parts = Vec<(&'static str, Json)>;

fn byte_level(v: &Vocabulary<'_>) -> Result<Result<Parts, String>, SourceError> {
    let name = v.metadata.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let Some((normalizer, pre_tokenizer, ignore_merges)) = pre(name) else {
        return Ok(Err(format!(
            "tokenizer.ggml.pre {} is not supported; supported are {} and others",
            quote(name),
            PRE.join(", ")
        )));
    };
    let key = "tokenizer.ggml.merges";
    let merges = v.metadata.texts(key)?.ok_or_else(|| v.metadata.missing(key))?;
    let post = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
    // llama.cpp adds the first token for Llama 3's pre-tokenizer unless the file says otherwise.
    let post = match v.template(ignore_merges, false)? {
        Some(template) => json!({"type": "Sequence", "processors": [post, template]}),
        None => post,
    };
    Ok(Ok(vec![
        ("normalizer", normalizer),
        ("pre_tokenizer", pre_tokenizer),
        ("post_processor", post),
        ("decoder", json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true})),
        (
            "model",
            json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                   "ignore_merges": ignore_merges, "vocab": v.vocab(&USED, str::to_owned)?,
                   "merges": merges}),
        ),
    ]))
}

/// SentencePiece merges the neighbours whose union has the best score: the merges are all ways to split a piece in two,
/// the best piece first.
fn merges_by_score(v: &Vocabulary<'_>) -> Vec<Json> {
    let ids: HashMap<&str, usize> = v.of(&[kind::NORMAL]).map(|(id, token)| (token, id)).collect();
    let mut merges = Vec::new();
    for (id, token) in v.of(&[kind::NORMAL]) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                merges.push((v.scores[id], id, *l, *r, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    merges.into_iter().map(|m| json!([m.4, m.5])).collect()
}

fn sentence_piece(v: &Vocabulary<'_>) -> Result<Parts, SourceError> {
    if v.scores.is_empty() {
        return Err(v.metadata.missing("tokenizer.ggml.scores"));
    }
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prefix = v.metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers = vec![spaces];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = v.special("unknown")?.map(|t| t.0);
    let vocab = v.vocab(&USED, str::to_owned)?;
    Ok(vec![
        ("normalizer", json!({"type": "Sequence", "normalizers": normalizers})),
        ("pre_tokenizer", Json::Null),
        ("post_processor", v.template(true, false)?.unwrap_or(Json::Null)),
        ("decoder", json!({"type": "Sequence", "decoders": decoders})),
        (
            "model",
            json!({"type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                   "vocab": vocab, "merges": merges_by_score(v)}),
        ),
    ])
}

fn word_piece(v: &Vocabulary<'_>) -> Result<Parts, SourceError> {
    let bracketed = |t: &str| t.starts_with('[') && t.ends_with(']') && t.len() > 2;
    let spelled = |t: &str| match t.strip_prefix('▁') {
        Some(word) => word.to_owned(),
        None if bracketed(t) => t.to_owned(),
        None => format!("##{t}"),
    };
    // GGUF does not say whether case counts; a vocabulary with capitals says that it does.
    let cased = v.of(&[kind::NORMAL]).any(|(_, t)| !bracketed(t) && t.chars().any(char::is_uppercase));
    let find = |text: &str| v.tokens.iter().position(|t| *t == text).map(|id| (text.to_owned(), id as u32));
    let named = |key: &str, text: &str| -> Result<(String, u32), SourceError> {
        let by_key = v.special(key)?.map(|(t, id)| (t.to_owned(), id));
        by_key.or_else(|| find(text)).ok_or_else(|| v.metadata.refuse(TOKENS, format!("there is no {text}")))
    };
    // Whatever the id keys say, these two stand around texts.
    let first = find("[CLS]").map_or_else(|| named("bos", "[CLS]"), Ok)?;
    let last = named("seperator", "[SEP]")?;
    let unknown = named("unknown", "[UNK]")?;
    let token = |t: &(String, u32), type_id: u32| json!({"SpecialToken": {"id": t.0, "type_id": type_id}});
    let text = |id: &str, type_id: u32| json!({"Sequence": {"id": id, "type_id": type_id}});
    let single = vec![token(&first, 0), text("A", 0), token(&last, 0)];
    let pair: Vec<Json> = single.iter().cloned().chain([text("B", 1), token(&last, 1)]).collect();
    let specials = [(first.0.as_str(), first.1), (last.0.as_str(), last.1)].into_iter();
    let vocab = v.vocab(&ALL, spelled)?;
    Ok(vec![
        (
            "normalizer",
            json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
                   "lowercase": !cased}),
        ),
        ("pre_tokenizer", json!({"type": "BertPreTokenizer"})),
        ("post_processor", template(single, pair, specials)),
        ("decoder", json!({"type": "WordPiece", "prefix": "##", "cleanup": true})),
        (
            "model",
            json!({"type": "WordPiece", "unk_token": unknown.0, "continuing_subword_prefix": "##",
                   "max_input_chars_per_word": 100, "vocab": vocab}),
        ),
    ])
}

fn unigram(v: &Vocabulary<'_>) -> Result<Parts, SourceError> {
    if v.scores.is_empty() {
        return Err(v.metadata.missing("tokenizer.ggml.scores"));
    }
    let mut normalizers = Vec::new();
    let key = "tokenizer.ggml.precompiled_charsmap";
    if let Some(map) = v.metadata.numbers(key)?.filter(|m| m.count() > 0) {
        let bytes: Option<Vec<u8>> = map.iter().map(|x| (x.fract() == 0.0).then_some(x as i64 as u8)).collect();
        let bytes = bytes.ok_or_else(|| v.metadata.refuse(key, "not bytes"))?;
        normalizers.push(json!({"type": "Precompiled", "precompiled_charsmap": base64(&bytes)}));
    }
    if v.metadata.flag("tokenizer.ggml.remove_extra_whitespaces")?.unwrap_or(true) {
        normalizers.push(json!({"type": "Strip", "strip_left": false, "strip_right": true}));
        normalizers.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}));
    }
    let prefix = v.metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "split": true,
                           "prepend_scheme": if prefix { "always" } else { "never" }});
    let vocab: Vec<Json> = v.tokens.iter().zip(&v.scores).map(|(t, s)| json!([t, s])).collect();
    let unknown =
        v.special("unknown")?.map_or_else(|| v.of(&[kind::UNKNOWN]).next().map(|u| u.0 as u32), |u| Some(u.1));
    let normalizer =
        if normalizers.is_empty() { Json::Null } else { json!({"type": "Sequence", "normalizers": normalizers}) };
    Ok(vec![
        ("normalizer", normalizer),
        ("pre_tokenizer", metaspace.clone()),
        ("post_processor", v.template(false, true)?.unwrap_or(Json::Null)),
        ("decoder", metaspace),
        ("model", json!({"type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": false})),
    ])
}

/// Standard base64 with padding, as `tokenizer.json` holds character maps.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let n = chunk.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = DIGITS[(n >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

/// The chat template: the default one.
pub fn chat_template(metadata: Metadata<'_>) -> Result<Option<String>, SourceError> {
    Ok(metadata.text("tokenizer.chat_template")?.map(str::to_owned))
}

/// What `tokenizer_config.json` would say: the texts of the special tokens, which chat templates use.
pub fn config(metadata: Metadata<'_>) -> Result<Option<Json>, SourceError> {
    let Some(Value::Texts(tokens)) = metadata.get(TOKENS) else { return Ok(None) };
    let mut out = Map::new();
    for (key, name) in [("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")]
    {
        let id = metadata.count(&format!("tokenizer.ggml.{key}_token_id"))?;
        let text = id.and_then(|id| tokens.get(id as usize)).and_then(|t| std::str::from_utf8(t).ok());
        if let Some(text) = text {
            out.insert(name.into(), text.into());
        }
    }
    Ok(Some(Json::Object(out)))
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_of_every_remainder() {
        assert_eq!([&b""[..], b"f", b"fo", b"foo", b"foob"].map(base64), ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]);
    }
}
