//! Differential fuzz: ids, offsets, words, masks and decoded texts equal those of the `tokenizers` crate.
//!
//! `TOKENIZER_FUZZ=1000000 cargo test --release -p conformance --test tokenizer -- --ignored --nocapture fuzz::long` runs so
//! many texts per family; `TOKENIZER_FUZZ_SEED` starts elsewhere.

use std::collections::BTreeMap;

use crate::both::{self, Both, How};
use crate::regressions;
use crate::texts::Texts;

fn setting(name: &str, default: usize) -> usize {
    match std::env::var(name) {
        Err(_) => default,
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
    }
}

/// A shorter pair of texts that still differs: characters are taken away while it does.
fn shrink(both: &Both, how: How, text: &str, second: &str) -> (String, String) {
    let mut pair = [text.to_owned(), second.to_owned()];
    let differs = |p: &[String; 2]| both.difference(how, &p[0], &p[1]).is_some();
    for width in [64, 16, 4, 1] {
        for side in [1, 0] {
            let mut at = 0;
            while at < pair[side].chars().count() {
                let mut shorter = pair.clone();
                shorter[side] = pair[side].chars().take(at).chain(pair[side].chars().skip(at + width)).collect();
                if differs(&shorter) { pair = shorter } else { at += width }
            }
        }
    }
    let [text, second] = pair;
    (text, second)
}

/// Runs `count` texts; what differs, shortened.
fn run(both: &Both, count: usize, seed: u64) -> Vec<String> {
    let mut texts = Texts::new(both, seed);
    let mut found = Vec::new();
    let mut second = String::new();
    for i in 0..count {
        let text = texts.text();
        let how = match texts.random.below(8) {
            0..=3 => How::Whole,
            4 => How::Bare,
            5 => How::Plain,
            6 => How::Pair,
            _ => How::Words,
        };
        if both.difference(how, &text, &second).is_some() {
            let (text, second) = shrink(both, how, &text, &second);
            let what = both.difference(how, &text, &second).unwrap_or_default();
            found.push(format!("{how:?} {text:?} {second:?}: {what}"));
        }
        if i % 4 == 0 {
            found.extend(both.decoded(&texts.ids()));
        }
        if found.len() >= 3 {
            break;
        }
        second = text;
    }
    found
}

/// `per_family` texts for each family, spread over its tokenizers and over the cores.
fn fuzz(per_family: usize, seed: u64) {
    let all = both::all();
    let mut families: BTreeMap<&str, Vec<&Both>> = BTreeMap::new();
    for both in &all {
        families.entry(&both.family).or_default().push(both);
    }
    let mut failures = Vec::new();
    for (family, members) in families {
        let each = per_family.div_ceil(members.len());
        // Several parts of each, so that all cores have work.
        const PARTS: usize = 4;
        let work: Vec<(&Both, u64)> =
            members.iter().flat_map(|b| (0..PARTS as u64).map(move |p| (*b, seed * PARTS as u64 + p))).collect();
        let results =
            conformance::in_parallel(&work, |(both, seed)| (both.name.clone(), run(both, each.div_ceil(PARTS), *seed)));
        let texts = each.div_ceil(PARTS) * work.len();
        let bad: Vec<String> =
            results.into_iter().flat_map(|(name, f)| f.into_iter().map(move |f| format!("{name}: {f}"))).collect();
        conformance::say(&format!("{family}: {} tokenizers, {texts} texts, {} differences", members.len(), bad.len()));
        bad.iter().for_each(|b| conformance::say(b));
        failures.extend(bad);
    }
    assert!(failures.is_empty(), "{} differences from the reference:\n{}", failures.len(), failures.join("\n"));
}

/// A slice of the long run below.
#[test]
fn slice() {
    fuzz(setting("TOKENIZER_FUZZ_SLICE", 3000), 1);
}

/// The long run.
#[test]
#[ignore = "takes minutes: a million texts per family"]
fn long() {
    fuzz(setting("TOKENIZER_FUZZ", 1_000_000), setting("TOKENIZER_FUZZ_SEED", 2) as u64);
}

/// Texts that once differed, on every tokenizer in every way.
#[test]
fn kept_regressions() {
    let mut failures = Vec::new();
    for both in both::all() {
        for (i, text) in regressions::TEXTS.iter().enumerate() {
            let second = regressions::TEXTS[(i + 1) % regressions::TEXTS.len()];
            for how in How::ALL {
                failures.extend(
                    both.difference(how, text, second).map(|d| format!("{}: {how:?} {text:?}: {d}", both.name)),
                );
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
