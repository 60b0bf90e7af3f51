//! Calibration through the command line, on the shipped demo: what it improves, what `verify` says of it and with which
//! exit code, and what `--quant auto` keeps to.

use std::path::{Path, PathBuf};

use conformance::data;
use conformance::desk::Desk;
use conformance::process::Call;
use serde_json::Value;

fn demo(name: &str) -> PathBuf {
    data::workspace().join("models/demo").join(name)
}

/// `lora-pack VERB … --base tiny-base --adapter tiny-home-control --json`.
fn of_demo(call: Call) -> Call {
    call.arg("--base").arg(demo("tiny-base")).arg("--adapter").arg(demo("tiny-home-control")).arg("--json")
}

fn packed(desk: &Desk, name: &str, options: &[&str]) -> (PathBuf, Value) {
    let out = desk.path(name);
    let call = of_demo(desk.pack("merge")).args(options);
    let done = desk.produce(call, &out).unwrap_or_else(|miss| panic!("{options:?}: {miss:?}"));
    (out, serde_json::from_str(&done.stdout).expect("a JSON object"))
}

fn verify(desk: &Desk, file: &Path, bars: &[&str]) -> Call {
    of_demo(desk.pack("verify").arg(file)).arg("--text").arg(demo("prompts.jsonl")).args(bars)
}

#[test]
fn task_text_keeps_the_fine_tune_and_verify_holds_packs_to_bars() {
    let desk = Desk::new(&demo("tiny-base")).expect("a temporary folder");
    let calib = demo("calib.txt");
    let calib = calib.to_str().expect("a plain path");
    let (plain, _) = packed(&desk, "plain.lpk", &["--quant", "q4"]);
    let (fitted, report) = packed(&desk, "fitted.lpk", &["--quant", "q4", "--calib", calib]);
    assert_eq!(report["effort"], "normal");
    // Judged on lines kept apart, prompts and answers alike.
    assert!(report["proof"]["kl_mean"].as_f64().is_some_and(|kl| kl > 0.0 && kl < 0.1), "{report}");
    let (again, _) = packed(&desk, "again.lpk", &["--quant", "q4", "--calib", calib]);
    let bytes = |file: &Path| std::fs::read(file).expect("a pack");
    assert!(bytes(&fitted) == bytes(&again), "the same inputs give other bytes");

    let numbers = |file: &Path| {
        let seen = desk.json_object(&verify(&desk, file, &[])).unwrap_or_else(|miss| panic!("{miss:?}"));
        assert_eq!(seen["ok"], true);
        seen["numbers"].clone()
    };
    let (before, after) = (numbers(&plain), numbers(&fitted));
    let kl = |n: &Value| n["kl_mean"].as_f64().expect("a divergence");
    conformance::say(&format!("task KL {:.5} without text, {:.5} with", kl(&before), kl(&after)));
    assert!(kl(&after) < 0.002, "{after}");
    assert!(kl(&after) < 0.7 * kl(&before), "{before} {after}");
    assert!(after["retention"].as_f64().is_some_and(|r| r > 0.98), "{after}");
    assert!(after["projection"].as_f64().is_some_and(|p| p > 0.9), "{after}");

    let lenient = ["--max-kl", "0.01", "--min-top1", "0.9", "--min-retention", "0.9", "--min-projection", "0.5"];
    desk.succeed(&verify(&desk, &fitted, &lenient)).unwrap_or_else(|miss| panic!("{miss:?}"));
    for (bar, value, name) in [
        ("--max-kl", "0.0000001", "KL"),
        ("--min-top1", "1.1", "top-1 agreement"),
        ("--min-retention", "1.1", "functional retention"),
        ("--min-projection", "1.5", "projection"),
    ] {
        let done = verify(&desk, &fitted, &[bar, value]).run().expect("lora-pack starts");
        assert_eq!(done.code, Some(1), "{bar}: {}", done.stderr);
        assert!(done.stderr.contains(name) && done.stderr.contains("beyond the bar"), "{bar}: {}", done.stderr);
        let report: Value = serde_json::from_str(&done.stdout).expect("one JSON object all the same");
        assert_eq!(report["ok"], false, "{bar}");
    }
}

#[test]
fn balanced_packs_are_closed_to_adapters_and_still_the_same_checkpoint() {
    let desk = Desk::new(&demo("tiny-base")).expect("a temporary folder");
    let calib = demo("calib.txt");
    let calib = calib.to_str().expect("a plain path");
    let options = |balance| ["--quant", "q8", "--calib", calib, "--balance", balance];
    let (open, _) = packed(&desk, "open.lpk", &options("no"));
    let (balanced, report) = packed(&desk, "balanced.lpk", &options("yes"));
    assert!(report["balanced"].as_u64().is_some_and(|n| n > 0), "{report}");
    let numbers = |file: &Path| {
        let seen = desk.json_object(&verify(&desk, file, &[])).unwrap_or_else(|miss| panic!("{miss:?}"));
        let number = |name: &str| seen["numbers"][name].as_f64().expect("a number");
        (number("kl_mean"), number("projection"))
    };
    let (before, after) = (numbers(&open), numbers(&balanced));
    // A small model has no outliers to speak of: here it has to be no worse than 8 bits are.
    conformance::say(&format!("task KL at 8 bits {:.6}, balanced {:.6}", before.0, after.0));
    assert!(after.0 < 0.0002 && (after.1 - 1.0).abs() < 0.001, "{before:?} {after:?}");

    let adapter = desk.path("adapter.lpk");
    desk.produce(of_demo(desk.pack("adapter")), &adapter).unwrap_or_else(|miss| panic!("{miss:?}"));
    let attached = |file: &Path| {
        let call = desk.run("generate", file).arg("--adapter").arg(&adapter).args(["-n", "1", "--ids", "5,6"]);
        call.run().expect("lora-run starts")
    };
    assert_eq!(attached(&open).code, Some(0), "{}", attached(&open).stderr);
    let refused = attached(&balanced);
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    assert!(refused.stderr.contains("--balance no"), "{}", refused.stderr);

    // Read as a base it has the checkpoint's values, as near as 8 bits are, and takes adapters.
    let again = desk.path("again.lpk");
    let call = desk.pack("merge").arg("--base").arg(&balanced).args(["--quant", "f32", "--no-tokenizer"]);
    desk.produce(call, &again).unwrap_or_else(|miss| panic!("{miss:?}"));
    let read = numbers(&again);
    assert!(read.0 < 0.0002 && (read.1 - 1.0).abs() < 0.001, "{read:?}");
    assert_eq!(attached(&again).code, Some(0), "{}", attached(&again).stderr);
}

#[test]
fn auto_keeps_the_size_and_spends_it_where_it_counts() {
    let desk = Desk::new(&demo("tiny-base")).expect("a temporary folder");
    let (file, report) = packed(&desk, "auto.lpk", &["--quant", "auto", "--target-size", "3600k"]);
    let bytes = std::fs::metadata(&file).expect("a pack").len();
    // What is left over is less than the step of one matrix to its next format.
    assert!((3_450_000..=3_600_000).contains(&bytes), "{bytes} bytes: {report}");
    let seen = desk.json_object(&desk.pack("inspect").arg(&file).arg("--json")).unwrap_or_else(|m| panic!("{m:?}"));
    let formats: std::collections::BTreeSet<&str> =
        seen["tensors"].as_array().into_iter().flatten().filter_map(|t| t["format"].as_str()).collect();
    assert!(formats.contains("q4") && (formats.contains("q5") || formats.contains("q6")), "{formats:?}");

    let out = desk.path("small.lpk");
    let options = ["--quant", "auto", "--target-size", "1M", "-o"];
    let done = of_demo(desk.pack("merge")).args(options).arg(&out).run().expect("lora-pack starts");
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    assert!(done.stderr.contains("the target is too small"), "{}", done.stderr);
    assert!(!out.exists());
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let desk = Desk::new(&demo("tiny-base")).expect("a temporary folder");
    let calib = demo("calib.txt");
    let calib = calib.to_str().expect("a plain path");
    let empty = desk.path("empty.txt");
    std::fs::write(&empty, "\n \n").expect("a file");
    let empty = empty.to_str().expect("a plain path");
    for (options, why) in [
        (vec!["--quant", "q4", "--effort", "fast", "--calib", calib], "--effort fast does not run the model"),
        (vec!["--quant", "auto", "--effort", "fast"], "--quant auto measures on text"),
        (vec!["--quant", "q4", "--target-size", "3M"], "go with --quant auto"),
        (vec!["--quant", "q4", "--calib", empty], "holds no text"),
        (vec!["--quant", "q4", "--balance", "yes"], "--balance yes needs text"),
    ] {
        let out = desk.path("refused.lpk");
        let done = of_demo(desk.pack("merge")).args(&options).arg("-o").arg(&out).run().expect("lora-pack starts");
        assert_eq!(done.code, Some(1), "{options:?}: {}", done.stderr);
        assert!(done.stderr.contains(why), "{options:?}: {}", done.stderr);
        assert!(!out.exists(), "{options:?}");
    }
}
