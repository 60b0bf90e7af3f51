//! Texts that make tokenizers stumble: random, adversarial, and built from the vocabulary itself. The same seed gives the
//! same texts.

use crate::both::Both;

/// A small generator of random numbers (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..4 {
            random.next();
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (((self.next() >> 32) * n as u64) >> 32) as usize
    }

    pub fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }

    fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
}

/// Ranges of characters: letters of many scripts, digits of all kinds, marks, joiners, spaces, symbols, private use,
/// unassigned and noncharacters.
const RANGES: &[(u32, u32)] = &[
    (0x20, 0x7e),
    (0x30, 0x39),
    (0x41, 0x5a),
    (0x61, 0x7a),
    (0x00, 0x20),
    (0x7f, 0xa0),
    (0xa1, 0x17f),
    (0x180, 0x24f),
    (0x250, 0x2ff),
    (0x300, 0x36f),
    (0x370, 0x52f),
    (0x531, 0x5ff),
    (0x600, 0x6ff),
    (0x900, 0x97f),
    (0xe00, 0xe5b),
    (0x1100, 0x11ff),
    (0x1e00, 0x1fff),
    (0x2000, 0x206f),
    (0x2070, 0x218b),
    (0x2190, 0x23ff),
    (0x2460, 0x24ff),
    (0x2580, 0x25ff),
    (0x2600, 0x27bf),
    (0x3000, 0x30ff),
    (0x3200, 0x33ff),
    (0x4e00, 0x9fff),
    (0xac00, 0xd7a3),
    (0xe000, 0xe010),
    (0xf900, 0xfaff),
    (0xfb00, 0xfb4f),
    (0xfe00, 0xfe0f),
    (0xfe30, 0xffff),
    (0x1_0000, 0x1_00ff),
    (0x1_0400, 0x1_044f),
    (0x1_d400, 0x1_d7ff),
    (0x1_e900, 0x1_e95f),
    (0x1_f000, 0x1_faff),
    (0x2_0000, 0x2_00ff),
    (0xe_0000, 0xe_007f),
    (0xe_0100, 0xe_01ef),
    (0x10_ff00, 0x10_ffff),
    (0, 0x10_ffff),
];

/// Pieces with a meaning to some normalizer, pattern or model.
const PIECES: &[&str] = &[
    " ",
    "  ",
    "   ",
    "\n",
    "\r\n",
    "\n\n",
    "\t",
    " \n ",
    "\u{a0}",
    "\u{2003}",
    "\u{3000}",
    "\u{200b}",
    "\u{85}",
    "\u{feff}",
    "\u{2028}",
    "\0",
    "'s",
    "'S",
    "'t",
    "'re",
    "'VE",
    "'m",
    "'ll",
    "'LL",
    "'d",
    "'\u{17f}",
    "\u{2019}s",
    "''",
    "it's",
    "n't",
    "0",
    "1",
    "12",
    "123",
    "1234",
    "1234567890",
    "3.14",
    "1,000",
    "-5",
    "\u{663}\u{664}",
    "\u{ff11}\u{ff12}",
    "\u{2167}",
    "\u{bd}",
    "\u{b2}",
    "a",
    "A",
    "the",
    "The",
    " the",
    "hello",
    "HELLO",
    "Hello",
    "World",
    "caf\u{e9}",
    "cafe\u{301}",
    "na\u{ef}ve",
    "stra\u{df}e",
    "\u{130}stanbul",
    "\u{131}",
    "\u{1e9e}",
    "\u{fb01}",
    "\u{fb03}n",
    "\u{1c4}",
    "\u{3a3}\u{3c2}",
    "\u{1f88}",
    "\u{345}",
    "\u{4f60}\u{597d}",
    "\u{65e5}\u{672c}\u{8a9e}",
    "\u{30ab}\u{3099}",
    "\u{ff76}\u{ff9e}",
    "\u{d55c}\u{ae00}",
    "\u{1112}\u{1161}\u{11ab}",
    "\u{627}\u{644}\u{639}\u{631}\u{628}\u{64a}\u{629}",
    "\u{5e9}\u{5dc}\u{5d5}\u{5dd}",
    "\u{928}\u{92e}\u{938}\u{94d}\u{924}\u{947}",
    "\u{e2a}\u{e27}\u{e31}",
    "\u{1f600}",
    "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",
    "\u{1f44d}\u{1f3fd}",
    "\u{1f1e9}\u{1f1ea}",
    "\u{2764}\u{fe0f}",
    "1\u{fe0f}\u{20e3}",
    "a\u{301}\u{323}",
    "a\u{323}\u{301}",
    "\u{301}",
    "\u{344}",
    "\u{958}",
    "\u{212b}",
    "\u{2126}",
    "\u{ac00}\u{11a8}",
    "\u{1d504}",
    "\u{ff21}",
    "...",
    "!!!",
    "?!",
    "--",
    "\u{2014}",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "<",
    ">",
    "/",
    "\\",
    "\"",
    "`",
    "``",
    "#",
    "##",
    "##ing",
    "@",
    "_",
    "__init__",
    "\u{2581}",
    "\u{2581}\u{2581}",
    "\u{2581}the",
    "\u{120}",
    "\u{120}the",
    "\u{10a}",
    "\u{c4}\u{a0}",
    "</w>",
    "<0x0A>",
    "<0xE2>",
    "<0xff>",
    "<0xGG>",
    "<s>",
    "</s>",
    "<unk>",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "<pad>",
    "<mask>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|",
    "|>",
    "<extra_id_0>",
    "\u{fffd}",
    "\u{fffe}",
    "\u{ffff}",
    "\u{ad}",
    "\u{200d}",
    "\u{200e}",
    "\u{202e}",
    "\u{2060}",
    "\u{fe0f}",
    "\u{e0001}",
    "\u{378}",
    "\u{e000}",
    "https://example.org/a?b=c&d=%20",
    "user@example.org",
    "def f(x):\n    return x  # y\n",
    "for (int i=0;i<n;++i) {\n\t",
    "x = y+1;",
    "SELECT *",
    "snake_case",
    "camelCase",
    "XMLHttpRequest",
    "I'm",
    "don't",
    "O'Neill",
    "rock'n'roll",
    "co-op",
    "e.g.",
    "U.S.A.",
    "$5.00",
    "50%",
    "#1",
];

/// Texts for one tokenizer.
pub struct Texts<'a> {
    pub random: Random,
    both: &'a Both,
}

impl<'a> Texts<'a> {
    pub fn new(both: &'a Both, seed: u64) -> Self {
        Self { random: Random::new(seed), both }
    }

    fn character(&mut self) -> char {
        loop {
            let (lo, hi) = RANGES[self.random.below(RANGES.len())];
            if let Some(c) = char::from_u32(lo + self.random.below((hi - lo + 1) as usize) as u32) {
                return c;
            }
        }
    }

    /// A token of the vocabulary, as it is spelled there or as text.
    fn token(&mut self) -> String {
        let token = &self.both.tokens[self.random.below(self.both.tokens.len())];
        match self.random.below(3) {
            0 => token.clone(),
            1 => token.replace(['\u{120}', '\u{2581}'], " ").replace('\u{10a}', "\n").replace("##", ""),
            _ => token.chars().take(1 + self.random.below(4)).collect(),
        }
    }

    /// An added token with something at its edges, or a part of one.
    fn added(&mut self) -> String {
        if self.both.added.is_empty() {
            return String::new();
        }
        let token = self.both.added[self.random.below(self.both.added.len())].clone();
        match self.random.below(6) {
            0 => token.chars().skip(1).collect(),
            1 => token.chars().take(token.chars().count().saturating_sub(1)).collect(),
            2 => token.to_uppercase(),
            3 => format!("{}{token}{}", self.random.pick(PIECES), self.random.pick(PIECES)),
            _ => token,
        }
    }

    fn part(&mut self, out: &mut String) {
        match self.random.below(16) {
            0..=3 => out.push_str(self.random.pick(PIECES)),
            4..=6 => out.push(self.character()),
            7..=9 => out.push_str(&self.token()),
            10 => out.push_str(&self.added()),
            11 => out.push((b'a' + self.random.below(26) as u8) as char),
            12 => out.push(' '),
            13 => {
                // A run of one thing.
                let piece =
                    if self.random.chance(2) { self.character().to_string() } else { self.random.pick(PIECES).into() };
                let times = [2, 3, 4, 9, 33, 130][self.random.below(6)];
                out.push_str(&piece.repeat(times));
            }
            14 => (0..self.random.below(12)).for_each(|_| {
                let (lo, hi) = RANGES[self.random.below(4)];
                out.extend(char::from_u32(lo + self.random.below((hi - lo + 1) as usize) as u32));
            }),
            _ => {
                // Bytes that are mostly no UTF-8: many replacement characters.
                let bytes: Vec<u8> = (0..self.random.below(8)).map(|_| self.random.below(256) as u8).collect();
                out.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
    }

    /// The next text.
    pub fn text(&mut self) -> String {
        let mut out = String::new();
        let parts = match self.random.below(20) {
            0 => 0,
            1..=9 => 1 + self.random.below(4),
            10..=18 => 1 + self.random.below(16),
            _ => 20 + self.random.below(60),
        };
        for _ in 0..parts {
            self.part(&mut out);
            if self.random.chance(4) {
                out.push(' ');
            }
        }
        out
    }

    /// Ids in any order, some beyond the vocabulary.
    pub fn ids(&mut self) -> Vec<u32> {
        let vocab = self.both.compiled.vocab_len as usize;
        (0..self.random.below(12)).map(|_| self.random.below(vocab + 2) as u32).collect()
    }
}
