//! Ids, offsets and decoded texts that were recorded with the cases.

use std::path::Path;

use conformance::data;
use lora_pack::compile::tokenizer::compile_tokenizer;
use lora_runtime::tokenizer::{EncodeOptions, Input, Tokenizer};
use serde_json::Value;

const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: true };

fn read(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().into_iter().flatten().map(|v| v.as_u64().unwrap_or(u64::MAX) as u32).collect()
}

/// Checks one case; the number of things compared.
fn check(dir: &Path) -> usize {
    let case = read(&dir.join("case.json"));
    let base = dir.join(case["base"]["dir"].as_str().unwrap_or("base"));
    if case["base"]["format"] == "gguf" {
        return 0;
    }
    let name = case["name"].as_str().unwrap_or_default();
    let rows = read(&base.join("config.json"))["vocab_size"].as_u64().unwrap_or(0) as u32;
    let json = std::fs::read(base.join("tokenizer.json")).unwrap_or_default();
    let compiled = compile_tokenizer(&json, rows).unwrap_or_else(|e| panic!("{name}: {e}"));
    let tokenizer = Tokenizer::new_checked(&compiled.bytes, rows).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut compared = 0;
    for test in case["tokenizer"]["tests"].as_array().into_iter().flatten() {
        let text = test["text"].as_str().unwrap_or_default();
        let at = format!("{name}: {text:?}");
        let ids = numbers(&test["ids"]);
        let encode = |o| tokenizer.encode(text, o).unwrap_or_else(|e| panic!("{at}: {e}")).ids();
        assert_eq!(encode(EncodeOptions::default()), ids, "{at}");
        assert_eq!(encode(PLAIN), numbers(&test["ids_no_special"]), "{at} without special tokens");
        assert_eq!(tokenizer.decode(&ids, true), test["decoded_skip_special"], "{at} decoded");
        assert_eq!(tokenizer.decode(&ids, false), test["decoded_keep_special"], "{at} decoded with specials");
        compared += 4;
    }
    for run in case["runs"].as_array().into_iter().flatten() {
        let Some(text) = run["text"].as_str() else { continue };
        let second = run["text_pair"].as_str().map(Input::from);
        let at = format!("{name}: run {}", run["id"]);
        let encoding = tokenizer
            .encode_input(text.into(), second, EncodeOptions::default())
            .unwrap_or_else(|e| panic!("{at}: {e}"));
        assert_eq!(encoding.ids(), numbers(&run["input_ids"]), "{at}");
        compared += 1;
        if !run["token_type_ids"].is_null() {
            assert_eq!(encoding.type_ids(), numbers(&run["token_type_ids"]), "{at}: type ids");
            compared += 1;
        }
        if let Some(expected) = run["sequence_ids"].as_array() {
            let expected: Vec<_> = expected.iter().map(|v| v.as_u64().map(|n| n as u8)).collect();
            assert_eq!(encoding.sequence_ids(), expected, "{at}: sequence ids");
            compared += 1;
        }
        if let Some(expected) = run["offsets"].as_array() {
            let expected: Vec<_> = expected.iter().map(|v| (numbers(v)[0], numbers(v)[1])).collect();
            assert_eq!(encoding.char_offsets(text.into(), second), expected, "{at}: offsets");
            compared += 1;
        }
    }
    for chat in case["tokenizer"]["chat"].as_array().into_iter().flatten() {
        let text = chat["rendered"].as_str().unwrap_or_default();
        let ids = tokenizer.encode(text, PLAIN).unwrap_or_else(|e| panic!("{name}: {e}")).ids();
        assert_eq!(ids, numbers(&chat["ids"]), "{name}: chat {text:?}");
        compared += 1;
    }
    compared
}

fn check_all(root: &Path) -> usize {
    let folders = data::case_folders(root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    conformance::in_parallel(&folders, |dir| check(dir)).into_iter().sum()
}

#[test]
fn committed_cases() {
    assert!(check_all(&data::committed()) > 100, "the committed cases hold tokenizer tests");
}

#[test]
fn shared_cases() {
    let Some(root) = data::shared_fixtures("tokenizer tests of all recorded cases") else { return };
    let compared = check_all(&root);
    conformance::say(&format!("tokenizers: {compared} recorded results agree"));
    assert!(compared > 1000, "only {compared} results were recorded");
}
