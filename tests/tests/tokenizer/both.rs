//! A tokenizer twice: as compiled here, and as the `tokenizers` crate reads it. Everything that both can do is compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use conformance::data;
use lora_pack::compile::tokenizer::{Compiled, compile_tokenizer};
use lora_runtime::tokenizer::{EncodeOptions, Encoding, Input, Tokenizer};
use serde_json::Value;
use tokenizers::Tokenizer as Reference;

/// The same `tokenizer.json`, read twice.
pub struct Both {
    /// Where it is from.
    pub name: String,
    /// What kind it is.
    pub family: String,
    pub compiled: Compiled,
    /// Opened once: that checks every table.
    pub tokenizer: Tokenizer<'static>,
    pub reference: Reference,
    /// The reference with special tokens in the text taken as ordinary text.
    plain: Reference,
    /// Every token as the vocabulary spells it.
    pub tokens: Vec<String>,
    /// The spelling of the added ones.
    pub added: Vec<String>,
}

/// What is encoded and how.
#[derive(Clone, Copy, Debug)]
pub enum How {
    /// With special tokens, then the ids decoded.
    Whole,
    /// Without special tokens.
    Bare,
    /// Special tokens in the text are text.
    Plain,
    /// With a second text.
    Pair,
    /// As words.
    Words,
}

impl How {
    pub const ALL: [Self; 5] = [Self::Whole, Self::Bare, Self::Plain, Self::Pair, Self::Words];
}

/// Name of the family that a `tokenizer.json` belongs to, by model and split pattern.
fn family(json: &Value) -> String {
    let model = json["model"]["type"].as_str().unwrap_or("BPE");
    let pre = json["pre_tokenizer"].to_string();
    match model {
        "BPE" if json["model"]["byte_fallback"] == true => "SentencePiece BPE".into(),
        "BPE" if pre.contains(r"\\p{N}{1,3}") => "byte-level BPE, Llama 3".into(),
        "BPE" if pre.contains(r"(?i:'s|'t") => "byte-level BPE, Qwen".into(),
        "BPE" if pre.contains("Digits") => "byte-level BPE, StarCoder".into(),
        "BPE" if pre.contains("Split") => "byte-level BPE, other patterns".into(),
        "BPE" => "byte-level BPE, GPT-2".into(),
        other => other.into(),
    }
}

impl Both {
    /// Reads `json` twice. `Ok(None)` where ours refuses it.
    ///
    /// # Errors
    /// Why the reference does not read it.
    pub fn new(name: &str, json: &[u8]) -> Result<Option<Self>, String> {
        let mut reference = Reference::from_bytes(json).map_err(|e| e.to_string())?;
        let Ok(compiled) = compile_tokenizer(json, 1 << 22) else { return Ok(None) };
        let bytes: &'static [u8] = compiled.bytes.clone().leak();
        let tokenizer = Tokenizer::new_checked(bytes, compiled.vocab_len).map_err(|e| e.to_string())?;
        // Lengths are the caller's business.
        reference.with_padding(None);
        reference.with_truncation(None).map_err(|e| e.to_string())?;
        let mut plain = reference.clone();
        plain.set_encode_special_tokens(true);
        let value: Value = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        let mut vocab: Vec<(u32, String)> = reference.get_vocab(true).into_iter().map(|(t, i)| (i, t)).collect();
        vocab.sort();
        let added = compiled.added.iter().map(|a| a.content.clone()).collect();
        let tokens = vocab.into_iter().map(|(_, t)| t).collect();
        Ok(Some(Self {
            name: name.into(),
            family: family(&value),
            compiled,
            tokenizer,
            reference,
            plain,
            tokens,
            added,
        }))
    }

    /// How the two differ over a text (and a second one); `None` if they do not.
    pub fn difference(&self, how: How, text: &str, second_text: &str) -> Option<String> {
        let tokenizer = &self.tokenizer;
        let special = !matches!(how, How::Bare);
        let words: Vec<&str> = text.split(' ').collect();
        let options = EncodeOptions { add_special: special, parse_special: !matches!(how, How::Plain) };
        let (first, second) = match how {
            How::Words => (Input::Words(&words), None),
            How::Pair => (text.into(), Some(second_text.into())),
            _ => (text.into(), None),
        };
        let ours = tokenizer.encode_input(first, second, options);
        // Offsets in characters: the reference cuts white space off those in bytes by the number of its characters.
        let theirs = match how {
            How::Whole | How::Bare => self.reference.encode_char_offsets(text, special),
            How::Plain => self.plain.encode_char_offsets(text, special),
            How::Pair => self.reference.encode_char_offsets((text, second_text), special),
            How::Words => self.reference.encode_char_offsets(&words[..], special),
        };
        let (ours, theirs) = match (ours, theirs) {
            (Ok(ours), Ok(theirs)) => (ours, theirs),
            (Err(_), Err(_)) => return None,
            (Ok(_), Err(e)) => return Some(format!("only the reference refuses it: {e}")),
            (Err(e), Ok(_)) => return Some(format!("only ours refuses it: {e}")),
        };
        if let Some(difference) = encodings(&ours, &ours.char_offsets(first, second), &theirs) {
            return Some(difference);
        }
        if matches!(how, How::Whole | How::Plain) { self.decoded(&ours.ids()) } else { None }
    }

    /// How the texts that the two decode differ.
    pub fn decoded(&self, ids: &[u32]) -> Option<String> {
        let tokenizer = &self.tokenizer;
        [true, false].into_iter().find_map(|skip| {
            let ours = tokenizer.decode(ids, skip);
            let theirs = self.reference.decode(ids, skip).ok()?;
            (ours != theirs).then(|| format!("ids {ids:?} decode (skip {skip}) to {ours:?}, not to {theirs:?}"))
        })
    }
}

fn encodings(ours: &Encoding, own_offsets: &[(u32, u32)], theirs: &tokenizers::Encoding) -> Option<String> {
    fn column<T: PartialEq + std::fmt::Debug>(name: &str, ours: &[T], theirs: &[T]) -> Option<String> {
        (ours != theirs).then(|| format!("{name} {ours:?}, not {theirs:?}"))
    }
    let offsets: Vec<(u32, u32)> = theirs.get_offsets().iter().map(|(a, b)| (*a as u32, *b as u32)).collect();
    let sequences: Vec<Option<u8>> = theirs.get_sequence_ids().iter().map(|s| s.map(|s| s as u8)).collect();
    column("ids", &ours.ids(), theirs.get_ids())
        .or_else(|| column("offsets", own_offsets, &offsets))
        .or_else(|| column("type ids", &ours.type_ids(), theirs.get_type_ids()))
        .or_else(|| column("special mask", &ours.special_mask(), theirs.get_special_tokens_mask()))
        .or_else(|| column("words", &ours.word_ids(), theirs.get_word_ids()))
        .or_else(|| column("sequences", &ours.sequence_ids(), &sequences))
}

/// Every `tokenizer.json` that is at hand, each content once: the committed ones, and those of the kit, the assets and
/// the larger bases where they are. Ours must compile them all.
pub fn all() -> Vec<Both> {
    let mut folders: Vec<PathBuf> = vec![data::workspace().join("models/demo/tiny-base")];
    let mut cases = data::case_folders(&data::committed()).unwrap_or_default();
    if let Some(shared) = data::shared() {
        cases.extend(data::case_folders(&shared.join("fixtures")).unwrap_or_default());
        folders.extend(sub_folders(&shared.join("assets")));
    }
    folders.extend(data::bases().into_iter().flat_map(|b| sub_folders(&b)));
    folders.extend(cases.iter().flat_map(|c| [c.join("base"), c.join("reference_only")]));
    let mut once: BTreeMap<Vec<u8>, PathBuf> = BTreeMap::new();
    for folder in folders {
        if let Ok(json) = std::fs::read(folder.join("tokenizer.json")) {
            once.entry(json).or_insert(folder);
        }
    }
    let read = |(json, folder): (Vec<u8>, PathBuf)| {
        let parts: Vec<_> = folder.iter().map(|p| p.to_string_lossy()).collect();
        let name = parts[parts.len().saturating_sub(2)..].join("/");
        let both = Both::new(&name, &json).unwrap_or_else(|e| panic!("{name}: the reference: {e}"));
        both.unwrap_or_else(|| {
            panic!("{name}: {}", compile_tokenizer(&json, 1 << 22).err().map_or_else(String::new, |e| e.to_string()))
        })
    };
    once.into_iter().map(read).collect()
}

fn sub_folders(path: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    found.sort();
    found
}
