//! Compiling `tokenizer.json` to the runtime's flat tables.
//!
//! Every part of the file is read strictly: a field is used, known to change no token, or refused by name. What compiles
//! gives the ids, offsets and texts of the `tokenizers` library; what would not is refused.
//!
//! | file | part |
//! |---|---|
//! | `json`, `error` | strict reading, refusals |
//! | `model`, `added`, `normalizer`, `pretokenizer`, `post`, `decoder` | the parts of `tokenizer.json` |
//! | `charset`, `regex`, `precompiled`, `unicode` | classes of characters, patterns, character maps, Unicode tables |
//! | `table`, `trie`, `merges`, `blob` | writers of the runtime's structures |

mod added;
mod blob;
mod charset;
mod decoder;
mod error;
mod json;
mod merges;
mod model;
mod normalizer;
mod post;
mod precompiled;
mod pretokenizer;
mod regex;
mod table;
mod trie;
mod unicode;

use lora_runtime::tokenizer::Tokenizer;
use lora_runtime::tokenizer::layout::{self, NONE, flag, header, op, piece, section, stage, stood_for, token};
use serde_json::Value;

use added::Added;
use blob::Writer;
use charset::{CharSet, Classes};
pub use error::TokenizerError;
use error::{error, refuse};
use json::Object;
use model::{Kind, Model};
use normalizer::Op;
use post::Post;
use pretokenizer::Stage;
use regex::Program;

type Result<T> = std::result::Result<T, TokenizerError>;

/// A compiled tokenizer.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The blob for [`Tokenizer::new_checked`].
    pub bytes: Vec<u8>,
    /// Number of ids: the largest plus one.
    pub vocab_len: u32,
    /// Added tokens with their ids, in the order of the file.
    pub added: Vec<AddedToken>,
    /// Id of the unknown token.
    pub unk: Option<u32>,
    /// What deserves a word but no refusal.
    pub notes: Vec<String>,
}

/// An added token of a compiled tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedToken {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub content: String,
    /// Whether it is special.
    pub special: bool,
}

impl Compiled {
    /// The tokenizer, opened.
    ///
    /// # Panics
    /// Never: [`compile_tokenizer`] opened it before.
    #[must_use]
    pub fn open(&self) -> Tokenizer<'_> {
        Tokenizer::new_checked(&self.bytes, self.vocab_len).expect("checked when it was compiled")
    }

    /// The id of a token.
    #[must_use]
    pub fn id_of(&self, text: &str) -> Option<u32> {
        self.open().id_of(text)
    }
}

/// Compiles a `tokenizer.json` for a model with `rows` embedding rows. The same file gives the same bytes.
///
/// # Errors
/// A refusal that names the part of the file.
pub fn compile_tokenizer(json: &[u8], rows: u32) -> Result<Compiled> {
    let value: Value = serde_json::from_slice(json).map_err(|e| error("file", format!("not valid JSON: {e}")))?;
    let mut top = Object::new(&value, "")?;
    if let Some(version) = top.string("version")?
        && version != "1.0"
    {
        return refuse("version", format!("unknown tokenizer version `{version}`"));
    }
    // Truncation and padding are the caller's business; they change no token.
    top.harmless(&["truncation", "padding"]);
    let mut notes = Vec::new();
    let mut compiler = Compiler { blob: Writer::new(), classes: Classes::default(), patterns: Vec::new() };
    let mut ops = Vec::new();
    if let Some(value) = top.get("normalizer") {
        normalizer::normalizer(value, "normalizer", &mut compiler.classes, &mut ops)?;
    }
    let mut stages = Vec::new();
    if let Some(value) = top.get("pre_tokenizer") {
        pretokenizer::pre_tokenizer(value, "pre_tokenizer", &mut compiler.classes, &mut stages)?;
    }
    let mut post = Post::default();
    if let Some(value) = top.get("post_processor") {
        post::post_processor(value, "post_processor", rows, &mut post)?;
    }
    let decoder = decoder::decoder(top.get("decoder"))?;
    let model = model::model(top.require("model")?, rows)?;
    let added = added::added(top.array("added_tokens")?, &model, rows, &mut notes)?;
    top.finish()?;

    compiler.pipeline(ops, stages)?;
    compiler.added_classes(&added, !post.trims.is_empty());
    compiler.finish_classes()?;
    let spellings = compiler.added(&added)?;
    compiler.post(&post);
    compiler.model(&model)?;
    compiler.tokens(&model, &added, &spellings, &decoder, &post)?;
    let bytes = compiler.bytes()?;
    let opened = Tokenizer::new_checked(&bytes, rows).map_err(|e| error("compiled tables", e.to_string()))?;
    Ok(Compiled {
        vocab_len: opened.vocab_len(),
        added: added
            .iter()
            .map(|t| AddedToken { id: t.id, content: t.content.clone(), special: t.bits & layout::added::SPECIAL != 0 })
            .collect(),
        unk: (model.unk < rows).then_some(model.unk),
        notes,
        bytes,
    })
}

struct Compiler {
    blob: Writer,
    classes: Classes,
    patterns: Vec<Program>,
}

impl Compiler {
    fn bytes(&self) -> Result<Vec<u8>> {
        self.blob.finish().ok_or_else(|| error("compiled tables", "more than 4 GiB"))
    }

    fn pattern(&mut self, pattern: Program) -> u32 {
        self.patterns.push(pattern);
        self.patterns.len() as u32 - 1
    }

    /// Normalizer operations and pre-tokenizer stages.
    fn pipeline(&mut self, ops: Vec<Op>, stages: Vec<Stage>) -> Result<()> {
        if !ops.is_empty() {
            self.blob.flag(flag::BUFFERED);
        }
        let mut ops = ops.into_iter().peekable();
        while let Some(op) = ops.next() {
            let record = match op {
                Op::Map(map) => {
                    // Neighbouring maps are one.
                    let mut maps = vec![map];
                    while let Some(Op::Map(map)) = ops.next_if(|o| matches!(o, Op::Map(_))) {
                        maps.push(map);
                    }
                    let of = |c: char| {
                        let mut text = vec![c];
                        for map in &maps {
                            text = text.into_iter().flat_map(map).collect();
                        }
                        (text != [c]).then_some(text)
                    };
                    let same = ('\0'..='\x7f').all(|c| of(c).is_none());
                    let table = table::map(of).ok_or_else(|| error("normalizer", "maps too many characters"))?;
                    let [at, len] = self.map(&table);
                    [op::MAP | if same { op::ASCII_SAME } else { 0 }, at, len, 0]
                }
                Op::Decompose { compatible, compose } => {
                    let table = unicode::decompositions(compatible);
                    let [at, len] = self.map(&table);
                    if self.blob.section(section::COMBINING).is_empty() {
                        let (combining, compositions) = unicode::combining();
                        self.blob.section(section::COMBINING).extend(combining);
                        self.blob.words(section::COMPOSITIONS, &compositions);
                    }
                    [op::DECOMPOSE | op::ASCII_SAME, at, len, compose.into()]
                }
                Op::Replace { pattern, by } => {
                    let same = !pattern.begins_in(&CharSet::new(vec![(0, 0x7f)]));
                    let [at, len] = self.blob.string(by.as_bytes());
                    [op::REPLACE | if same { op::ASCII_SAME } else { 0 }, self.pattern(pattern), at, len]
                }
                Op::Prepend(text) => {
                    let [at, len] = self.blob.string(text.as_bytes());
                    [op::PREPEND, 0, at, len]
                }
                Op::Strip { class, left, right } => [op::STRIP, class, u32::from(left) | u32::from(right) << 1, 0],
                Op::Precompiled(map) => {
                    self.precompiled(&map)?;
                    [op::PRECOMPILED, 0, 0, 0]
                }
                Op::StandIns => [op::STAND_INS, 0, 0, 0],
            };
            self.blob.words(section::NORMALIZER, &record);
        }
        if stages.len() > 16 {
            return refuse("pre_tokenizer", "more than 16 stages");
        }
        for stage in stages {
            let record = match stage {
                Stage::Pattern { pattern, behavior, invert } => {
                    [stage::PATTERN, self.pattern(pattern), behavior, invert.into()]
                }
                Stage::Class { class, behavior } => [stage::CLASS, class, behavior, 0],
                Stage::Metaspace { replacement, scheme } => {
                    self.blob.flag(flag::BUFFERED | flag::REWRITES);
                    let [at, len] = self.blob.string(replacement.to_string().as_bytes());
                    [stage::METASPACE, scheme, at, len]
                }
                Stage::PrefixSpace => {
                    self.blob.flag(flag::BUFFERED | flag::REWRITES);
                    [stage::PREFIX_SPACE, 0, 0, 0]
                }
                Stage::Bytes => {
                    self.blob.flag(flag::RAW);
                    [stage::BYTES, 0, 0, 0]
                }
            };
            self.blob.words(section::STAGES, &record);
        }
        Ok(())
    }

    /// Stores a character map.
    fn map(&mut self, table: &[u8]) -> [u32; 2] {
        let maps = self.blob.section(section::MAPS);
        let at = maps.len() as u32;
        maps.extend_from_slice(table);
        [at, table.len() as u32]
    }

    fn precompiled(&mut self, map: &[u8]) -> Result<()> {
        if !self.blob.section(section::GRAPHEMES).is_empty() {
            return refuse("normalizer", "a second Precompiled");
        }
        let (units, texts) = map[4..].split_at(precompiled::units_len(map));
        self.blob.section(section::CHARSMAP).extend_from_slice(units);
        self.blob.section(section::CHARSMAP_TEXT).extend_from_slice(texts);
        self.blob.section(section::GRAPHEMES).extend(unicode::graphemes());
        Ok(())
    }

    fn post(&mut self, post: &Post) {
        let default = (vec![[piece::A, 0]], vec![[piece::A, 0], [piece::B, 1]]);
        let (single, pair) = post.templates.as_ref().unwrap_or(&default);
        self.blob.words(section::TEMPLATES, &[single.len() as u32, pair.len() as u32]);
        for piece in single.iter().chain(pair) {
            self.blob.words(section::TEMPLATES, piece);
        }
        for trim in &post.trims {
            self.blob.words(section::TRIMS, &[(*trim).into()]);
        }
    }

    fn model(&mut self, model: &Model) -> Result<()> {
        let raw = self.blob.has(flag::RAW);
        let number = match &model.kind {
            Kind::Bpe { .. } => layout::model::BPE,
            Kind::WordPiece { .. } => layout::model::WORD_PIECE,
            Kind::Unigram { .. } => layout::model::UNIGRAM,
            Kind::WordLevel => layout::model::WORD_LEVEL,
        };
        if raw && number != layout::model::BPE {
            return refuse("pre_tokenizer", "ByteLevel with a model that is not BPE");
        }
        self.blob.set(header::MODEL, number);
        self.blob.set(header::UNK, model.unk);
        let mut byte_ids = Vec::new();
        if raw {
            byte_ids = (0..=255u8).map(|b| self.stand_in_id(model, b)).collect();
        }
        if model.byte_fallback {
            if !raw {
                byte_ids =
                    (0..=255u8).map(|b| model.ids.get(&format!("<0x{b:02X}>")).copied().unwrap_or(NONE)).collect();
                self.blob.flag(flag::BYTE_FALLBACK);
            } else if byte_ids.contains(&NONE) {
                return refuse("model.byte_fallback", "together with ByteLevel and an incomplete alphabet");
            }
        }
        self.blob.words(section::BYTE_IDS, &byte_ids);
        match &model.kind {
            Kind::Bpe { merges, prefix, suffix, fuse_unk, ignore_merges } => {
                self.blob.set_string(header::PREFIX, prefix);
                self.blob.set_string(header::SUFFIX, suffix);
                self.blob.flag(if *fuse_unk { flag::FUSE_UNK } else { 0 });
                self.blob.flag(if *ignore_merges { flag::IGNORE_MERGES } else { 0 });
                let (pilots, slots) = merges::build(merges)
                    .ok_or_else(|| error("model.merges", "no hash without collisions was found"))?;
                self.blob.section(section::MERGE_PILOTS).extend(pilots);
                self.blob.section(section::MERGES).extend(slots);
            }
            Kind::WordPiece { prefix, max_chars } => {
                self.blob.set_string(header::PREFIX, prefix);
                self.blob.set(header::MAX_CHARS, *max_chars);
            }
            Kind::Unigram { scores } => {
                let least = scores.iter().copied().fold(f64::INFINITY, |a, b| if b < a { b } else { a });
                let bits = (least - 10.0).to_bits();
                self.blob.set(header::UNK_SCORE, bits as u32);
                self.blob.set(header::UNK_SCORE + 1, (bits >> 32) as u32);
                self.blob.section(section::SCORES).extend(scores.iter().flat_map(|s| s.to_le_bytes()));
            }
            Kind::WordLevel => {}
        }
        self.vocabulary_trie(model)
    }

    fn stand_in_id(&self, model: &Model, byte: u8) -> u32 {
        let text = char::from_u32(layout::stand_in(byte)).map(String::from).unwrap_or_default();
        model.ids.get(&text).copied().unwrap_or(NONE)
    }

    /// The trie over the entries that encoding looks up by text.
    fn vocabulary_trie(&mut self, model: &Model) -> Result<()> {
        let raw = self.blob.has(flag::RAW);
        let wanted = |text: &str| match &model.kind {
            Kind::Bpe { ignore_merges: true, .. } => true,
            // Single characters (and bytes, where there are affixes).
            Kind::Bpe { prefix, suffix, .. } => {
                let affixes = prefix.chars().count() + suffix.chars().count();
                (!raw || affixes > 0) && text.chars().count() <= 1 + affixes
            }
            _ => true,
        };
        let mut entries: Vec<(Vec<u8>, u32)> = model
            .ids
            .iter()
            .filter(|(text, _)| wanted(text) && !text.is_empty())
            .filter_map(|(text, id)| Some((if raw { raw_bytes(text)? } else { text.clone().into_bytes() }, *id)))
            .collect();
        entries.sort_unstable();
        let entries: Vec<(&[u8], u32)> = entries.iter().map(|(text, id)| (text.as_slice(), *id)).collect();
        let trie = trie::build(&entries).ok_or_else(|| error("model.vocab", "too large for the format"))?;
        self.blob.section(section::VOCAB_TRIE).extend(trie);
        Ok(())
    }

    /// Classes that added tokens and offset trimming ask for.
    fn added_classes(&mut self, added: &[Added], trims: bool) {
        let any = |bits| added.iter().any(|t| t.bits & bits != 0);
        if trims || any(layout::added::LSTRIP | layout::added::RSTRIP) {
            let class = self.classes.add(normalizer::white_space());
            self.blob.set(header::SPACE_CLASS, class);
        }
        if any(layout::added::SINGLE_WORD) {
            let word = regex::class(r"\w").unwrap_or_default();
            let class = self.classes.add(word);
            self.blob.set(header::WORD_CLASS, class);
        }
    }

    /// Lays out classes and the patterns that refer to them.
    fn finish_classes(&mut self) -> Result<()> {
        let kinds = self
            .classes
            .kinds()
            .ok_or_else(|| error("pre_tokenizer", "tells more than 64 kinds of characters apart"))?;
        let programs: Vec<Vec<u8>> = self.patterns.iter().map(|p| p.bytes(&kinds)).collect();
        self.blob.section(section::CHARS).extend_from_slice(&kinds.table);
        self.blob.section(section::CLASSES).extend_from_slice(&kinds.sets);
        if !programs.is_empty() {
            let mut at = 4 + 8 * programs.len();
            self.blob.words(section::PATTERNS, &[programs.len() as u32]);
            for program in &programs {
                self.blob.words(section::PATTERNS, &[at as u32, program.len() as u32]);
                at += program.len();
            }
            programs.iter().for_each(|p| self.blob.section(section::PATTERNS).extend_from_slice(p));
        }
        Ok(())
    }

    /// Added tokens and their tries; returns how each is spelled when it is decoded.
    fn added(&mut self, added: &[Added]) -> Result<Vec<String>> {
        // Normalized tokens match what the normalizer makes of their content. The runtime's own normalizer says what
        // that is: all that it needs is in the blob by now, and no token.
        let mut probe = self.blob.clone();
        probe.set(header::UNK, NONE);
        probe.words(section::TOKEN_OFFSETS, &[0]);
        let probe = probe.finish().ok_or_else(|| error("compiled tables", "more than 4 GiB"))?;
        let internal = |e: lora_runtime::Error| error("compiled tables", e.to_string());
        let probe = Tokenizer::new_checked(&probe, 0).map_err(internal)?;
        let spellings: Vec<String> = added
            .iter()
            .map(|t| if t.normalized { probe.normalize(&t.content).map_err(internal) } else { Ok(t.content.clone()) })
            .collect::<Result<_>>()?;
        for (i, token) in added.iter().enumerate() {
            let [at, len] = self.blob.string(token.content.as_bytes());
            self.blob.words(section::ADDED, &[token.id, token.bits, at, len]);
            if spellings[i].is_empty() {
                return refuse("added_tokens", format!("`{}` normalizes to nothing", token.content));
            }
        }
        for (target, normalized) in [(section::ADDED_RAW, false), (section::ADDED_NORMALIZED, true)] {
            let mut entries: Vec<(&[u8], u32)> = (0..added.len())
                .filter(|i| added[*i].normalized == normalized)
                .map(|i| (spellings[i].as_bytes(), i as u32))
                .collect();
            entries.sort_unstable();
            if let Some(pair) = entries.windows(2).find(|w| w[0].0 == w[1].0) {
                let (a, b) = (&added[pair[0].1 as usize].content, &added[pair[1].1 as usize].content);
                return refuse("added_tokens", format!("`{a}` and `{b}` normalize to the same text"));
            }
            let trie = trie::build(&entries).ok_or_else(|| error("added_tokens", "too many"))?;
            self.blob.section(target).extend(trie);
        }
        Ok(spellings)
    }

    /// Texts and flags of all tokens, and the decoder.
    fn tokens(
        &mut self,
        model: &Model,
        added: &[Added],
        spellings: &[String],
        decoder: &decoder::Decoder,
        post: &Post,
    ) -> Result<()> {
        let raw = self.blob.has(flag::RAW);
        if raw && !decoder.bytes {
            return refuse("decoder", "a byte-level pre-tokenizer without a byte-level decoder");
        }
        let mut texts = model.texts.clone();
        let mut flags = vec![0u8; texts.len()];
        for (token, spelling) in added.iter().zip(spellings) {
            let id = token.id as usize;
            if texts.len() <= id {
                texts.resize(id + 1, None);
                flags.resize(id + 1, 0);
            }
            texts[id] = Some(spelling.clone());
            flags[id] |= token::ADDED;
        }
        // Ids that only a template uses have no text, but they are ids.
        let pieces = post.templates.iter().flat_map(|(single, pair)| single.iter().chain(pair));
        let last = pieces.map(|p| (p[0] + 1).saturating_sub(piece::SPECIAL) as usize).max().unwrap_or(0);
        if texts.len() < last {
            texts.resize(last, None);
            flags.resize(last, 0);
        }
        let special = |text: &str| added.iter().any(|t| t.bits & layout::added::SPECIAL != 0 && t.content == text);
        let (mut offsets, mut bytes) = (vec![0u32], Vec::new());
        let mut overrides = Vec::new();
        for (id, text) in texts.iter().enumerate() {
            if let Some(text) = text {
                flags[id] |= token::PRESENT | if special(text) { token::SPECIAL } else { 0 };
                match raw_bytes(text).filter(|_| raw) {
                    Some(raw) => bytes.extend(raw),
                    None => {
                        flags[id] |= if raw { token::LITERAL } else { 0 };
                        bytes.extend(text.as_bytes());
                    }
                }
                let forms = [decoder.decoded(text, true), decoder.decoded(text, false)];
                if let Some(byte) = decoder.byte(&forms[0]).or_else(|| decoder.byte(&forms[1])) {
                    if forms[0] != *text || forms[1] != *text || !text.eq_ignore_ascii_case(&format!("<0x{byte:02X}>"))
                    {
                        return refuse("decoder", format!("token `{text}` stands for a byte in an unusual way"));
                    }
                    flags[id] |= token::BYTE;
                } else if forms[0] != decoder.by_rule(text, true) || forms[1] != decoder.by_rule(text, false) {
                    flags[id] |= token::OVERRIDE;
                    overrides.push((id as u32, forms));
                }
            }
            offsets.push(u32::try_from(bytes.len()).or_else(|_| refuse("model.vocab", "more than 4 GiB of text"))?);
        }
        self.blob.set(header::VOCAB, texts.len() as u32);
        self.blob.words(section::TOKEN_OFFSETS, &offsets);
        self.blob.section(section::TOKEN_BYTES).extend(bytes);
        self.blob.section(section::TOKEN_FLAGS).extend(&flags);
        if let Kind::Unigram { scores } = &model.kind {
            let missing = texts.len() - scores.len();
            self.blob.section(section::SCORES).extend(std::iter::repeat_n(0u8, 8 * missing));
        }
        for (id, [edge, elsewhere]) in overrides {
            let (edge, elsewhere) = (self.blob.string(edge.as_bytes()), self.blob.string(elsewhere.as_bytes()));
            self.blob.words(section::OVERRIDES, &[id, edge[0], edge[1], elsewhere[0], elsewhere[1]]);
        }
        let rule = &decoder.rule;
        self.blob.set_string(header::SUB_FROM, &rule.from);
        self.blob.set_string(header::SUB_TO, &rule.to);
        self.blob.set_string(header::SUB_EDGE, &rule.to_edge);
        self.blob.set_string(header::GLUE, &rule.glue);
        self.blob.set_string(header::CONTINUING, &rule.continuing);
        let bits = [
            (decoder.bytes, if raw { flag::DECODE_BYTES } else { flag::DECODE_STAND_INS }),
            (decoder.fallback, flag::DECODE_FALLBACK),
            (rule.hold, flag::DECODE_HOLD),
        ];
        bits.iter().filter(|b| b.0).for_each(|b| self.blob.flag(b.1));
        if let Some((c, count)) = decoder.strip {
            self.blob.set(header::STRIP_CHAR, c.into());
            self.blob.set(header::STRIP_COUNT, count);
        }
        Ok(())
    }
}

/// The bytes that a text of printable stand-ins stands for.
fn raw_bytes(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|c| stood_for(c.into())).collect()
}
