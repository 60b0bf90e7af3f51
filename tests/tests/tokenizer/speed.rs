//! Encoding speed beside the `tokenizers` crate, one thread each, interleaved.
//!
//! `cargo test --release -p conformance --test tokenizer -- --ignored --nocapture speed`

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::both;
use lora_runtime::tokenizer::{EncodeOptions, Token};

/// Sentences, code and numbers: 40 lines of the kind that models are asked.
const LINES: &[&str] = &[
    "Turn the lights in the living room down to thirty percent, please, and close the blinds.",
    "What is the capital of France, and how many people lived there in 1936?",
    "The quick brown fox jumps over the lazy dog; it wasn't amused.",
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "2024-11-24T15:04:05Z sensor=7 temp=21.5C humidity=40% status=ok",
    "日本語の文章もここに少しあります。",
    "Summarize the following report in three bullet points, then list every open question it raises.",
];

fn text(bytes: usize) -> String {
    LINES
        .iter()
        .cycle()
        .scan(0, |n, l| {
            *n += l.len() + 1;
            Some((*n, *l))
        })
        .take_while(|(n, _)| *n < bytes)
        .map(|(_, l)| l)
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
#[ignore = "a measurement: run it alone, in a release build"]
fn speed() {
    conformance::say(
        "tokenizer                            | MB/s ours | MB/s crate | ratio (prompt of 4 kB, median of 15)",
    );
    for both in both::all() {
        let text = text(4096);
        let tokenizer = &both.tokenizer;
        let mut scratch = vec![0; tokenizer.scratch_len(text.len())];
        let mut out = vec![Token::default(); text.len() + 64];
        let mut ours = || {
            let n = tokenizer.encode_into(black_box(&text), EncodeOptions::default(), &mut scratch, &mut out);
            black_box(n.expect("it fits"));
        };
        let mut theirs = || {
            black_box(both.reference.encode(black_box(text.as_str()), true).expect("it encodes"));
        };
        let time = |f: &mut dyn FnMut()| {
            let start = Instant::now();
            (0..8).for_each(|_| f());
            start.elapsed()
        };
        let mut times: Vec<(Duration, Duration)> = (0..15).map(|_| (time(&mut ours), time(&mut theirs))).collect();
        let mut median = |pick: fn(&(Duration, Duration)) -> Duration| {
            times.sort_by_key(pick);
            pick(&times[times.len() / 2]).as_secs_f64()
        };
        let (a, b) = (median(|t| t.0), median(|t| t.1));
        let rate = |t: f64| 8.0 * text.len() as f64 / t / 1e6;
        conformance::say(&format!("{:<36} | {:>9.2} | {:>10.2} | {:.2}", both.name, rate(a), rate(b), b / a));
    }
}
