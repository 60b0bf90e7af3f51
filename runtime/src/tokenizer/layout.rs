//! Byte layout of a compiled tokenizer: the single definition of every number that the packer writes and
//! the runtime reads. `docs/tokenizer-format.md` says the same in prose.
//!
//! Everything is little-endian; nothing needs an alignment. A *word* is a `u32`, a *string reference* is two words
//! (offset and length inside [`section::STRINGS`]).

/// First four bytes.
pub const MAGIC: [u8; 4] = *b"LTOK";
/// Version of this layout.
pub const VERSION: u32 = 1;
/// "No id" in a table of ids.
pub const NONE: u32 = u32::MAX;
/// Unknown-token id: the tokenizer names one that its vocabulary lacks, so meeting unknown text is an error.
pub const UNK_MISSING: u32 = u32::MAX - 1;
/// Ids stay below this, so that no id can be mistaken for a marker.
pub const MAX_VOCAB: u32 = (1 << 22) - 1;

/// Words of the header, before the section table.
pub mod header {
    /// [`super::MAGIC`].
    pub const MAGIC: usize = 0;
    /// [`super::VERSION`].
    pub const VERSION: usize = 1;
    /// Length of the whole blob in bytes.
    pub const LENGTH: usize = 2;
    /// Number of ids: the largest id plus one.
    pub const VOCAB: usize = 3;
    /// Bits of [`super::flag`].
    pub const FLAGS: usize = 4;
    /// One of [`super::model`].
    pub const MODEL: usize = 5;
    /// Id for unknown text, [`super::NONE`] or [`super::UNK_MISSING`].
    pub const UNK: usize = 6;
    /// WordPiece: longest word in characters.
    pub const MAX_CHARS: usize = 7;
    /// Unigram: score of unknown text, binary64 (two words).
    pub const UNK_SCORE: usize = 8;
    /// Prefix of a subword that continues a word (string reference).
    pub const PREFIX: usize = 10;
    /// Suffix of a subword that ends a word (string reference).
    pub const SUFFIX: usize = 12;
    /// Decoding: text to replace inside every token (string reference; empty = nothing).
    pub const SUB_FROM: usize = 14;
    /// Decoding: its replacement (string reference).
    pub const SUB_TO: usize = 16;
    /// Decoding: its replacement in the first token (last token, with [`super::flag::DECODE_HOLD`]).
    pub const SUB_EDGE: usize = 18;
    /// Decoding: text before every token but the first (string reference).
    pub const GLUE: usize = 20;
    /// Decoding: tokens that start with this lose it instead of getting the glue (string reference).
    pub const CONTINUING: usize = 22;
    /// Decoding: character stripped from the start of the whole text.
    pub const STRIP_CHAR: usize = 24;
    /// Decoding: how many of them at most.
    pub const STRIP_COUNT: usize = 25;
    /// Class of white space, [`super::NONE`] where unused.
    pub const SPACE_CLASS: usize = 26;
    /// Class of word characters (`\w`), [`super::NONE`] where unused.
    pub const WORD_CLASS: usize = 27;
    /// Words reserved, zero, up to here.
    pub const WORDS: usize = 32;
}

/// Sections: index into the table of (offset, length) pairs that follows the header.
pub mod section {
    /// Text that string references point into.
    pub const STRINGS: usize = 0;
    /// Word per id, and one more: where each token's bytes begin in [`TOKEN_BYTES`].
    pub const TOKEN_OFFSETS: usize = 1;
    /// Bytes of all tokens.
    pub const TOKEN_BYTES: usize = 2;
    /// Byte per id: bits of [`super::token`].
    pub const TOKEN_FLAGS: usize = 3;
    /// Double-array trie from token bytes to id.
    pub const VOCAB_TRIE: usize = 4;
    /// 256 words: id of each single byte (byte-level), or of each `<0x..>` token (byte fallback).
    pub const BYTE_IDS: usize = 5;
    /// u16 per bucket of the merge hash.
    pub const MERGE_PILOTS: usize = 6;
    /// Merges, 4 words each: left, right, rank, result; left is [`super::NONE`] in an empty slot.
    pub const MERGES: usize = 7;
    /// binary64 per id: Unigram scores.
    pub const SCORES: usize = 8;
    /// Character table: kind of every character (leaf u8).
    pub const CHARS: usize = 9;
    /// Classes: u64 per class, the set of kinds.
    pub const CLASSES: usize = 10;
    /// Compiled patterns: word count, then offset/length pairs inside this section.
    pub const PATTERNS: usize = 11;
    /// Normalizer operations, [`super::RECORD`] words each.
    pub const NORMALIZER: usize = 12;
    /// Pre-tokenizer stages, [`super::RECORD`] words each.
    pub const STAGES: usize = 13;
    /// Character maps (leaf u16), referenced by offset and length from normalizer operations.
    pub const MAPS: usize = 14;
    /// Character table: combining class and composition bits (leaf u8, index of a u16 in the head).
    pub const COMBINING: usize = 15;
    /// Canonical compositions, three words each (first, second, composed), sorted.
    pub const COMPOSITIONS: usize = 16;
    /// Units of a precompiled character map.
    pub const CHARSMAP: usize = 17;
    /// Its replacement texts, each ended by a zero byte.
    pub const CHARSMAP_TEXT: usize = 18;
    /// Character table: grapheme cluster property (leaf u8).
    pub const GRAPHEMES: usize = 19;
    /// Added tokens, [`super::RECORD`] words each: id, bits of [`super::added`], string reference of the content.
    pub const ADDED: usize = 20;
    /// Trie over the added tokens matched in the raw text; values index [`ADDED`].
    pub const ADDED_RAW: usize = 21;
    /// Trie over those matched in normalized text.
    pub const ADDED_NORMALIZED: usize = 22;
    /// Post-processing templates: two words (pieces of the single and of the pair template), then pieces of
    /// 2 words: [`super::piece`] and type id, or id and type id with [`super::piece::SPECIAL`].
    pub const TEMPLATES: usize = 23;
    /// Offset trimming passes, one word each: 1 when a single leading space may have been inserted.
    pub const TRIMS: usize = 24;
    /// Decoded forms of tokens flagged [`super::token::OVERRIDE`], sorted, 5 words each: id, string references in
    /// first (last, with [`super::flag::DECODE_HOLD`]) place and elsewhere.
    pub const OVERRIDES: usize = 25;
    /// Number of sections.
    pub const COUNT: usize = 26;
    /// Names for errors.
    pub const NAMES: [&str; COUNT] = [
        "tokenizer strings",
        "tokenizer token offsets",
        "tokenizer token bytes",
        "tokenizer token flags",
        "tokenizer vocabulary trie",
        "tokenizer byte ids",
        "tokenizer merge pilots",
        "tokenizer merges",
        "tokenizer scores",
        "tokenizer character table",
        "tokenizer classes",
        "tokenizer patterns",
        "tokenizer normalizer",
        "tokenizer pre-tokenizer",
        "tokenizer character maps",
        "tokenizer combining classes",
        "tokenizer compositions",
        "tokenizer precompiled map",
        "tokenizer precompiled texts",
        "tokenizer grapheme table",
        "tokenizer added tokens",
        "tokenizer added-token trie",
        "tokenizer normalized added-token trie",
        "tokenizer templates",
        "tokenizer offset trims",
        "tokenizer decode overrides",
    ];
}

/// Bits of the header's flags.
pub mod flag {
    /// Token bytes are raw bytes (byte-level vocabulary), not the printable stand-ins of `tokenizer.json`.
    pub const RAW: u32 = 1;
    /// Text is copied to the scratch buffer: there is a normalizer, or a pre-tokenizer that inserts text.
    pub const BUFFERED: u32 = 2;
    /// A pre-tokenizer stage inserts or replaces text.
    pub const REWRITES: u32 = 4;
    /// BPE: a piece that is a token as a whole is taken as it is.
    pub const IGNORE_MERGES: u32 = 8;
    /// BPE: neighbouring unknown characters become one token.
    pub const FUSE_UNK: u32 = 16;
    /// Unknown characters become `<0x..>` tokens.
    pub const BYTE_FALLBACK: u32 = 32;
    /// The vocabulary trie holds every token of the model, not only those that encoding needs.
    pub const FULL_TRIE: u32 = 64;
    /// Decoding: tokens are bytes, turned to text with U+FFFD for what is not UTF-8.
    pub const DECODE_BYTES: u32 = 128;
    /// Decoding: tokens are printable stand-ins for bytes (a byte-level decoder on a vocabulary that is not raw).
    pub const DECODE_STAND_INS: u32 = 256;
    /// Decoding: runs of `<0x..>` tokens are bytes.
    pub const DECODE_FALLBACK: u32 = 512;
    /// Decoding: the edge form belongs to the last token, not to the first.
    pub const DECODE_HOLD: u32 = 1024;
    /// All bits that this version knows.
    pub const KNOWN: u32 = 2047;
}

/// Models.
pub mod model {
    /// Byte-pair encoding.
    pub const BPE: u32 = 0;
    /// Greedy longest match (BERT).
    pub const WORD_PIECE: u32 = 1;
    /// Most probable segmentation (SentencePiece unigram).
    pub const UNIGRAM: u32 = 2;
    /// Whole words.
    pub const WORD_LEVEL: u32 = 3;
}

/// Bits of a token's flag byte.
pub mod token {
    /// The id has a token.
    pub const PRESENT: u8 = 1;
    /// Left out of decoded text when special tokens are skipped.
    pub const SPECIAL: u8 = 2;
    /// Raw vocabulary: these bytes are literal text all the same.
    pub const LITERAL: u8 = 4;
    /// The decoded form stands in the override table.
    pub const OVERRIDE: u8 = 8;
    /// Spelled `<0x..>`: decodes to that byte (byte fallback).
    pub const BYTE: u8 = 16;
    /// An added token.
    pub const ADDED: u8 = 32;
}

/// Bits of an added token.
pub mod added {
    /// Only as a whole word.
    pub const SINGLE_WORD: u32 = 1;
    /// Takes white space on its left.
    pub const LSTRIP: u32 = 2;
    /// Takes white space on its right.
    pub const RSTRIP: u32 = 4;
    /// Special: matched only when special tokens are parsed.
    pub const SPECIAL: u32 = 8;
}

/// Words of a normalizer operation or pre-tokenizer stage; word 0 is the kind.
pub const RECORD: usize = 4;

/// Normalizer operations. Bit [`op::ASCII_SAME`] of the kind: leaves ASCII text as it is.
pub mod op {
    /// Every character through a map (words 1, 2: offset and length in the maps section).
    pub const MAP: u32 = 0;
    /// Decomposition and canonical ordering (words 1, 2: map; Hangul is computed), then composition if word 3 is 1.
    pub const DECOMPOSE: u32 = 1;
    /// Every match of pattern (word 1) by a string (words 2, 3).
    pub const REPLACE: u32 = 2;
    /// A string (words 2, 3) in front of text that is not empty.
    pub const PREPEND: u32 = 3;
    /// Strips class (word 1) on the left (bit 0 of word 2) and right (bit 1).
    pub const STRIP: u32 = 4;
    /// A SentencePiece precompiled character map.
    pub const PRECOMPILED: u32 = 5;
    /// Bytes to their printable stand-ins.
    pub const STAND_INS: u32 = 6;
    /// See the module.
    pub const ASCII_SAME: u32 = 256;
}

/// Pre-tokenizer stages.
pub mod stage {
    /// Split where pattern (word 1) matches; word 2: [`super::behavior`], word 3: 1 = inverted.
    pub const PATTERN: u32 = 0;
    /// Split at characters of class (word 1); word 2: [`super::behavior`].
    pub const CLASS: u32 = 1;
    /// Space to a replacement string (words 2, 3), also in front by scheme (word 1: [`super::scheme`]).
    pub const METASPACE: u32 = 2;
    /// A space in front of a piece that has none.
    pub const PREFIX_SPACE: u32 = 3;
    /// From here on, characters are the printable stand-ins of bytes.
    pub const BYTES: u32 = 4;
}

/// What becomes of a delimiter.
pub mod behavior {
    /// Dropped.
    pub const REMOVED: u32 = 0;
    /// A piece of its own.
    pub const ISOLATED: u32 = 1;
    /// Joined to the piece before.
    pub const MERGED_WITH_PREVIOUS: u32 = 2;
    /// Joined to the piece after.
    pub const MERGED_WITH_NEXT: u32 = 3;
    /// Neighbouring delimiters become one piece.
    pub const CONTIGUOUS: u32 = 4;
}

/// When a Metaspace stage puts its replacement in front.
pub mod scheme {
    /// Never.
    pub const NEVER: u32 = 0;
    /// Only at the start of the text.
    pub const FIRST: u32 = 1;
    /// In front of every piece.
    pub const ALWAYS: u32 = 2;
}

/// First word of a template piece: a sequence, or an id plus [`piece::SPECIAL`].
pub mod piece {
    /// The first text.
    pub const A: u32 = 0;
    /// The second text.
    pub const B: u32 = 1;
    /// Added to the id of a special token.
    pub const SPECIAL: u32 = 2;
}

/// Patterns: compiled regular expressions.
///
/// ```text
/// word 0: alternatives (at most 32)     word 1: instructions     word 2: kinds of characters
/// u32 per alternative: first instruction
/// u32 per kind: bit set of the alternatives that can start with it
/// instructions: [op u8, flag u8, arg u16, word]
/// ```
pub mod pattern {
    /// The character `word`.
    pub const CHAR: u8 = 0;
    /// A character of class `arg`.
    pub const CLASS: u8 = 1;
    /// `word & 0xffff` to `word >> 16` (0xffff: no bound) characters of class `arg`; flag 1: gives nothing back.
    pub const REPEAT: u8 = 2;
    /// Goes on; after a failure, at instruction `word`.
    pub const SPLIT: u8 = 3;
    /// Goes on at instruction `word`.
    pub const JUMP: u8 = 4;
    /// The next character is not of class `arg` (or there is none).
    pub const NOT_AHEAD: u8 = 5;
    /// The next character is of class `arg`.
    pub const AHEAD: u8 = 6;
    /// Matched.
    pub const MATCH: u8 = 7;
    /// Fields before the tables.
    pub const HEAD: usize = 3;
    /// Instructions at most.
    pub const MAX_INSTRUCTIONS: usize = 256;
    /// Alternatives at most.
    pub const MAX_ALTERNATIVES: usize = 32;
    /// Instructions of one alternative that can be returned to, at most.
    pub const MAX_CHOICES: usize = 24;
}

/// Character tables: three stages over the 1,114,112 code points.
///
/// ```text
/// u16: stage-2 blocks   u16: stage-3 blocks   u16: words of head   u16: 0
/// head: words (meaning depends on the table)
/// stage 1: 272 × u16 → stage-2 block;   stage 2: 64 × u16 each → stage-3 block;   stage 3: 64 leaves each
/// ```
pub mod table {
    /// Bytes before the head.
    pub const HEAD: usize = 8;
    /// Entries of stage 1: one per 4096 code points.
    pub const STAGE1: usize = 272;
    /// Entries of a stage-2 or stage-3 block.
    pub const BLOCK: usize = 64;
    /// Kinds of characters at most.
    pub const MAX_KINDS: usize = 64;
}

/// Character maps: a table with u16 leaves whose head is a pool of words. Leaf 0 keeps the character; leaf `n` stands for
/// the words from `n - 1` of the pool up to and including the first with [`map::LAST`].
pub mod map {
    /// Ends a replacement.
    pub const LAST: u32 = 1 << 31;
    /// The character itself, inside a replacement.
    pub const SELF: u32 = 0x20_0000;
    /// Nothing: as the only word of a replacement, deletes the character.
    pub const NOTHING: u32 = 0x20_0001;
}

/// Double-array tries: word per unit; unit 0 is the root.
///
/// ```text
/// bits 0..8 label    bit 8: a leaf, bits 10..32 are its value
/// bit 9: has a value, at unit base ^ 256    bits 10..32 base    all ones: a free unit
/// ```
/// The child of unit `u` for byte `b` is unit `base(u) ^ b`, if its label is `b`. No two units share a base.
pub mod trie {
    /// A free unit.
    pub const FREE: u32 = u32::MAX;
    /// Bit of a unit without children.
    pub const LEAF: u32 = 1 << 8;
    /// Bit of a unit with children and a value.
    pub const HAS_VALUE: u32 = 1 << 9;
    /// Shift of base or value.
    pub const SHIFT: u32 = 10;
    /// Units at most.
    pub const MAX_UNITS: usize = 1 << 22;
}

/// Combining properties: the head of the table holds, per leaf value, class in bits 0..8 and these bits.
pub mod combining {
    /// Can be the second of a composition.
    pub const SECOND: u32 = 256;
}

/// Grapheme cluster properties: a category, and how the character takes part in Indic conjuncts.
pub mod grapheme {
    /// Bits of the category.
    pub const CATEGORY: u8 = 31;
    /// Everything else.
    pub const OTHER: u8 = 0;
    /// Carriage return.
    pub const CR: u8 = 1;
    /// Line feed.
    pub const LF: u8 = 2;
    /// Control.
    pub const CONTROL: u8 = 3;
    /// Extend.
    pub const EXTEND: u8 = 4;
    /// Zero-width joiner.
    pub const ZWJ: u8 = 5;
    /// Spacing mark.
    pub const SPACING: u8 = 6;
    /// Prepend.
    pub const PREPEND: u8 = 7;
    /// Regional indicator.
    pub const REGIONAL: u8 = 8;
    /// Hangul L.
    pub const L: u8 = 9;
    /// Hangul V.
    pub const V: u8 = 10;
    /// Hangul T.
    pub const T: u8 = 11;
    /// Hangul LV.
    pub const LV: u8 = 12;
    /// Hangul LVT.
    pub const LVT: u8 = 13;
    /// Extended pictographic.
    pub const PICTOGRAPHIC: u8 = 14;
    /// Goes on after a consonant.
    pub const INDIC_EXTEND: u8 = 32;
    /// Links consonants.
    pub const LINKER: u8 = 64;
    /// A consonant of a conjunct.
    pub const CONSONANT: u8 = 96;
}

/// The merge hash: slot of a pair, given its bucket's pilot.
#[inline]
#[must_use]
pub fn pair_hash(left: u32, right: u32) -> u64 {
    // Two rounds of multiply and fold; every bit of both ids reaches the high half.
    let mut h = (u64::from(left) << 32 | u64::from(right)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    h ^= h >> 29;
    h = h.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h ^ (h >> 32)
}

/// Bucket of a hash among `buckets`.
#[inline]
#[must_use]
pub fn pair_bucket(hash: u64, buckets: usize) -> usize {
    (((hash >> 32) * buckets as u64) >> 32) as usize
}

/// Slot of a hash among `slots`, given the pilot of its bucket.
#[inline]
#[must_use]
pub fn pair_slot(hash: u64, pilot: u16, slots: usize) -> usize {
    let low = (hash as u32 ^ (u32::from(pilot).wrapping_mul(0x85eb_ca6b))).wrapping_mul(0xc2b2_ae35);
    ((u64::from(low ^ (low >> 15)) * slots as u64) >> 32) as usize
}

/// The printable stand-in of a byte in byte-level vocabularies.
#[inline]
#[must_use]
pub const fn stand_in(byte: u8) -> u32 {
    match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => byte as u32,
        0..=0x20 => 256 + byte as u32,
        0x7f..=0xa0 => 256 + 33 + (byte - 0x7f) as u32,
        0xad => 256 + 67,
    }
}

/// The byte that a stand-in stands for.
#[inline]
#[must_use]
pub const fn stood_for(character: u32) -> Option<u8> {
    match character {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => Some(character as u8),
        0x100..=0x120 => Some((character - 256) as u8),
        0x121..=0x142 => Some((character - 256 - 33) as u8 + 0x7f),
        0x143 => Some(0xad),
        _ => None,
    }
}
