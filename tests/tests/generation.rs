//! Settings that a model was published with hold in what it generates, alone and in beam search.

use std::path::{Path, PathBuf};

use conformance::data;
use conformance::desk::Desk;
use conformance::real::pack;
use serde_json::{Value, json};

/// A copy of a small translator with other generation settings.
fn model(desk: &Desk, name: &str, settings: &Value) -> PathBuf {
    let from = data::committed().join("mbart_prenorm/base");
    let base = desk.path(name);
    std::fs::create_dir(&base).expect("a folder");
    for file in std::fs::read_dir(from).expect("the fixture").flatten() {
        std::fs::copy(file.path(), base.join(file.file_name())).expect("a copy");
    }
    std::fs::write(base.join("generation_config.json"), settings.to_string()).expect("the settings");
    let options = ["--quant".to_owned(), "f32".to_owned()];
    pack(desk, &base, None, &options).unwrap_or_else(|miss| panic!("{miss:?}"))
}

fn ids(desk: &Desk, lpk: &Path, flags: &[&str]) -> Vec<u64> {
    let call = desk.run("seq2seq", lpk).args(["wait for the green light", "-n", "16", "--json"]).args(flags);
    let answer = desk.json_object(&call).unwrap_or_else(|miss| panic!("{miss:?}"));
    answer["ids"].as_array().expect("ids").iter().filter_map(Value::as_u64).collect()
}

#[test]
fn what_the_authors_force_and_forbid_holds() {
    let desk = Desk::new(&data::committed().join("mbart_prenorm")).expect("a temporary folder");
    let ids_of = |lpk: &Path, flags: &[&str]| ids(&desk, lpk, flags);
    let start = json!({"decoder_start_token_id": 2, "eos_token_id": 2});
    let free = model(&desk, "free", &start);
    let greedy = ids_of(&free, &["--temp", "0"]);
    let (first, again) = (greedy[0], greedy.windows(2).find(|w| w[0] == w[1]).map(|w| w[0]));
    let mut settings = start;
    settings["forced_bos_token_id"] = json!(40);
    settings["bad_words_ids"] = json!([[first], [again.unwrap_or(41)]]);
    settings["no_repeat_ngram_size"] = json!(2);
    settings["min_new_tokens"] = json!(16);
    let bound = model(&desk, "bound", &settings);
    for flags in [&["--temp", "0"][..], &["--temp", "1", "--seed", "5"], &["--beams", "3"]] {
        let made = ids_of(&bound, flags);
        assert_eq!((made.len(), made[0]), (16, 40), "{flags:?}: {made:?}");
        assert!(!made.contains(&first), "{flags:?}: {first} in {made:?}");
        let runs: Vec<&[u64]> = made.windows(2).collect();
        for (i, run) in runs.iter().enumerate() {
            assert!(!runs[..i].contains(run), "{flags:?}: {run:?} twice in {made:?}");
        }
        // The user's first token goes before the file's.
        let flags: Vec<&str> = flags.iter().copied().chain(["--first", "60"]).collect();
        assert_eq!(ids_of(&bound, &flags)[0], 60);
    }
    let call = desk.run("seq2seq", &free).args(["a", "--first", "9999"]);
    let done = call.run().expect("lora-run starts");
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    assert!(done.stderr.contains("--first 9999"), "{}", done.stderr);
}
