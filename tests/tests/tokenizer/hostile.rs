//! Damaged and hostile `tokenizer.json` files: refused in bounded time and memory, or compiled to something that encodes.
//! Where the reference takes the damaged file too, both must still agree: a field that changes tokens may not be overlooked.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use conformance::data;
use lora_pack::compile::tokenizer::compile_tokenizer;
use lora_runtime::tokenizer::EncodeOptions;
use serde_json::{Value, json};

use crate::both::{Both, How};
use crate::regressions::TEXTS;
use crate::texts::{Random, Texts};

/// A value that no tokenizer should have where it is put.
fn hostile(random: &mut Random) -> Value {
    match random.below(16) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(false),
        3 => json!(-1),
        4 => json!(0),
        5 => json!(1),
        6 => json!(u64::MAX),
        7 => json!(1e308),
        8 => json!(0.5),
        9 => json!(""),
        10 => json!("\u{10ffff}"),
        11 => json!("a".repeat(70_000)),
        12 => json!([]),
        13 => json!({}),
        14 => (0..100).fold(json!("deep"), |inner, _| json!([inner])),
        _ => json!({"Regex": "(((x{99}){99}){99})*"}),
    }
}

/// How many values there are in `value`, itself included.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// The `n`-th value, counted from outside.
fn nth(value: &mut Value, n: usize) -> Option<&mut Value> {
    if n == 0 {
        return Some(value);
    }
    let mut left = n - 1;
    let children: Vec<&mut Value> = match value {
        Value::Array(items) => items.iter_mut().collect(),
        Value::Object(map) => map.values_mut().collect(),
        _ => Vec::new(),
    };
    for child in children {
        let inside = count(child);
        if left < inside {
            return nth(child, left);
        }
        left -= inside;
    }
    None
}

/// Changes one thing. The vocabulary is most of a file, so values outside of it are preferred.
fn damage(file: &mut Value, random: &mut Random) {
    let mut target = file;
    for _ in 0..4 {
        let members = target.as_object().map_or(0, serde_json::Map::len);
        if members == 0 || random.below(4) == 0 {
            break;
        }
        let at = random.below(members);
        target = target.as_object_mut().and_then(|m| m.values_mut().nth(at)).expect("it is that long");
    }
    let at = random.below(count(target));
    let Some(target) = nth(target, at) else { return };
    match target {
        Value::Object(map) if !map.is_empty() && random.below(2) == 0 => {
            let key = map.keys().nth(random.below(map.len())).expect("it is that long").clone();
            let value = map.shift_remove(&key).unwrap_or_default();
            if random.below(2) == 0 {
                map.insert(format!("{key}_"), value);
            }
        }
        Value::Array(items) if !items.is_empty() && random.below(2) == 0 => {
            let i = random.below(items.len());
            match random.below(3) {
                0 => drop(items.remove(i)),
                1 => items.push(items[i].clone()),
                _ => items.swap(0, i),
            }
        }
        Value::Bool(b) if random.below(2) == 0 => *b = !*b,
        other => *other = hostile(random),
    }
}

/// Compiles bytes that may be anything, and uses what comes out; whether anything did.
fn survives(name: &str, json: &[u8]) -> bool {
    let start = Instant::now();
    let compiled = compile_tokenizer(json, 1 << 20);
    let took = start.elapsed();
    // Generous, for busy machines; what it guards against would take minutes.
    assert!(took < Duration::from_secs(20), "{name}: {took:?}");
    let Ok(compiled) = compiled else { return false };
    assert!(
        compiled.bytes.len() < 64 * json.len() + (8 << 20),
        "{name}: {} bytes from {}",
        compiled.bytes.len(),
        json.len()
    );
    for text in TEXTS {
        // An error is an answer; a panic is not.
        let ids = compiled.open().encode(text, EncodeOptions::default()).map(|e| e.ids()).unwrap_or_default();
        let _ = compiled.open().decode(&ids, false);
    }
    true
}

/// The files to damage: the small ones.
fn files() -> Vec<(String, Vec<u8>)> {
    let shared = data::shared().map(|s| s.join("fixtures"));
    let folders: Vec<_> = [Some(data::committed()), shared].into_iter().flatten().collect();
    let cases = folders.iter().flat_map(|f| data::case_folders(f).unwrap_or_default());
    let mut found: Vec<(String, Vec<u8>)> = Vec::new();
    for case in cases {
        let name = case.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Ok(json) = std::fs::read(case.join("base/tokenizer.json"))
            && json.len() < 100_000
            && found.iter().all(|(_, other)| *other != json)
        {
            found.push((name, json));
        }
    }
    found
}

#[test]
fn damaged_bytes() {
    let mut random = Random::new(5);
    for (name, json) in files() {
        for _ in 0..10 {
            let mut bytes = json.clone();
            match random.below(2) {
                0 => bytes.truncate(random.below(json.len())),
                _ => (0..=random.below(3)).for_each(|_| bytes[random.below(json.len())] ^= 1 << random.below(8)),
            }
            survives(&name, &bytes);
        }
    }
}

#[test]
fn damaged_values() {
    let mut random = Random::new(6);
    let mut compiled = 0;
    for (name, json) in files() {
        let file: Value = serde_json::from_slice(&json).unwrap_or_else(|e| panic!("{name}: {e}"));
        for _ in 0..12 {
            let mut file = file.clone();
            damage(&mut file, &mut random);
            compiled += usize::from(survives(&name, file.to_string().as_bytes()));
        }
    }
    assert!(compiled > 20, "only {compiled} damaged files still compiled: the damage is too coarse to find anything");
}

/// What both take must mean the same to both. The reference may panic over a damaged file; that is its answer then.
#[test]
#[ignore = "takes minutes"]
fn damaged_files_that_both_take_agree() {
    std::panic::set_hook(Box::new(|_| {}));
    let work = files();
    let results = conformance::in_parallel(&work, |(name, json)| {
        let mut random = Random::new(json.len() as u64);
        let file: Value = serde_json::from_slice(json).unwrap_or_default();
        let (mut both_take, mut failures) = (0, Vec::new());
        for _ in 0..300 {
            let mut damaged = file.clone();
            damage(&mut damaged, &mut random);
            let json = damaged.to_string();
            let Ok(Ok(Some(both))) = catch_unwind(|| Both::new(name, json.as_bytes())) else { continue };
            both_take += 1;
            let mut texts = Texts::new(&both, json.len() as u64);
            let found =
                catch_unwind(AssertUnwindSafe(|| (0..40).find_map(|_| both.difference(How::Whole, &texts.text(), ""))));
            if let Ok(Some(difference)) = found {
                let changed = difference_of(&file, &damaged, "");
                failures.push(format!("{name}: {changed}: {}", difference.chars().take(300).collect::<String>()));
            }
        }
        (both_take, failures)
    });
    let _ = std::panic::take_hook();
    let both_take: usize = results.iter().map(|(n, _)| n).sum();
    let failures: Vec<String> = results.into_iter().flat_map(|(_, f)| f).collect();
    conformance::say(&format!(
        "{both_take} damaged files were taken by both, {} mean another thing here",
        failures.len()
    ));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Where two files differ first, in words.
fn difference_of(a: &Value, b: &Value, at: &str) -> String {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) if x.keys().eq(y.keys()) => {
            let differing = x.iter().find(|(k, v)| y.get(*k) != Some(v));
            differing.map_or_else(String::new, |(k, v)| difference_of(v, &y[k], &format!("{at}.{k}")))
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            let differing = x.iter().zip(y).position(|(v, w)| v != w);
            differing.map_or_else(String::new, |i| difference_of(&x[i], &y[i], &format!("{at}[{i}]")))
        }
        _ => {
            let short = |v: &Value| v.to_string().chars().take(80).collect::<String>();
            format!("{at}: {} became {}", short(a), short(b))
        }
    }
}
