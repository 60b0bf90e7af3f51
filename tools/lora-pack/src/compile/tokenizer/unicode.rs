//! Unicode tables for normalization, from the crates whose tables the reference library uses.

use std::collections::{BTreeSet, HashMap};

use unicode_normalization_alignments::char as ucd;
use unicode_segmentation::UnicodeSegmentation;

use super::table::{self, Table};
use lora_runtime::tokenizer::layout::{combining, grapheme as g};

/// Hangul syllables, which the runtime takes apart by arithmetic.
const HANGUL: std::ops::RangeInclusive<char> = '\u{ac00}'..='\u{d7a3}';

/// Full decompositions of all characters but Hangul syllables.
pub(super) fn decompositions(compatible: bool) -> Vec<u8> {
    table::map(|c| {
        if HANGUL.contains(&c) {
            return None;
        }
        let text = decomposed(c, compatible);
        (text != [c]).then_some(text)
    })
    .expect("Unicode's decompositions fit")
}

fn decomposed(c: char, compatible: bool) -> Vec<char> {
    let mut out = Vec::new();
    if compatible {
        ucd::decompose_compatible(c, |d| out.push(d));
    } else {
        ucd::decompose_canonical(c, |d| out.push(d));
    }
    out
}

/// The table of combining classes, and the list of compositions.
pub(super) fn combining() -> (Vec<u8>, Vec<u32>) {
    // A composition's parts both occur in the full decomposition of what they compose to; the first may itself be
    // composed.
    let (mut firsts, mut seconds) = (BTreeSet::new(), BTreeSet::new());
    for c in ('\0'..=char::MAX).filter(|c| !HANGUL.contains(c)) {
        let parts = decomposed(c, false);
        if parts.len() > 1 {
            firsts.extend([c, parts[0]]);
            seconds.extend(&parts[1..]);
        }
    }
    let mut compositions = Vec::new();
    let mut composing = BTreeSet::new();
    for &first in &firsts {
        for &second in &seconds {
            if let Some(c) = ucd::compose(first, second) {
                compositions.extend([u32::from(first), second.into(), c.into()]);
                composing.insert(second);
            }
        }
    }
    // Vowels and trailing consonants of Hangul compose by arithmetic.
    composing.extend('\u{1161}'..='\u{1175}');
    composing.extend('\u{11a8}'..='\u{11c2}');
    let mut head = vec![0];
    let mut known = HashMap::from([(0, 0)]);
    let mut leaves = Table::new(1);
    for c in '\0'..=char::MAX {
        let class = u32::from(ucd::canonical_combining_class(c));
        let word = class | if composing.contains(&c) { combining::SECOND } else { 0 };
        let leaf = *known.entry(word).or_insert_with(|| {
            head.push(word);
            head.len() as u16 - 1
        });
        leaves.set(c.into(), leaf);
    }
    (leaves.bytes(&head), compositions)
}

/// Grapheme cluster properties, asked out of the crate whose boundaries the reference library uses: it tells
/// boundaries, not properties, so each character is tried between others.
pub(super) fn graphemes() -> Vec<u8> {
    let mut leaves = Table::new(1);
    for c in '\0'..=char::MAX {
        let property = grapheme(c);
        if property != g::OTHER {
            leaves.set(c.into(), property.into());
        }
    }
    leaves.bytes(&[])
}

fn grapheme(c: char) -> u8 {
    // `joins([x, c], …)`: all characters are one cluster.
    let joins = |chars: &[char]| chars.iter().collect::<String>().graphemes(true).count() == 1;
    match c {
        '\r' => return g::CR,
        '\n' => return g::LF,
        ' '..='~' => return g::OTHER,
        _ => {}
    }
    const KA: char = '\u{915}';
    const VIRAMA: char = '\u{94d}';
    const ZWJ: char = '\u{200d}';
    const SIGN: char = '\u{a9}';
    if joins(&['a', c]) {
        let category = match c {
            ZWJ => g::ZWJ,
            _ if joins(&[SIGN, c, ZWJ, SIGN]) => g::EXTEND,
            _ => g::SPACING,
        };
        let indic = match c {
            _ if joins(&[KA, c, KA]) => g::LINKER,
            _ if joins(&[KA, VIRAMA, c, KA]) => g::INDIC_EXTEND,
            _ => 0,
        };
        return category | indic;
    }
    if joins(&[c, 'a']) {
        return g::PREPEND;
    }
    if !joins(&[c, '\u{301}']) {
        return g::CONTROL;
    }
    match c {
        '\u{1f1e6}'..='\u{1f1ff}' => return g::REGIONAL,
        '\u{1100}'..='\u{11ff}' | '\u{a960}'..='\u{d7ff}' => {
            let (l, v, t) = ('\u{1100}', '\u{1161}', '\u{11a8}');
            for (pair, property) in [([c, l], g::L), ([t, c], g::T), ([v, c], g::V), ([c, v], g::LV), ([c, t], g::LVT)]
            {
                if joins(&pair) {
                    return property;
                }
            }
        }
        _ => {}
    }
    if joins(&[SIGN, ZWJ, c]) {
        g::PICTOGRAPHIC
    } else if joins(&[KA, VIRAMA, c]) {
        g::CONSONANT
    } else {
        g::OTHER
    }
}
