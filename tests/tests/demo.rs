//! The shipped demo model: packed with its adapter, it answers the shipped prompts as the float model did.

use conformance::data;
use conformance::desk::{Checked, Desk};
use conformance::real::{Answers, Verb, answers, pack};

fn demo(quant: &str) -> Answers {
    let demo = data::workspace().join("models/demo");
    let asked = || -> Checked<Answers> {
        let desk = Desk::new(&demo)?;
        let options = ["--quant".to_owned(), quant.to_owned()];
        let lpk = pack(&desk, &demo.join("tiny-base"), Some(&demo.join("tiny-home-control")), &options)?;
        answers(&desk, &lpk, Verb::Generate, &demo.join("prompts.jsonl"), usize::MAX)
    };
    asked().unwrap_or_else(|miss| panic!("the demo as {quant}: {miss:?}"))
}

/// In float mode every answer is the recorded one, to the last character.
#[test]
fn float_pack_gives_the_recorded_answers() {
    let sum = demo("f32");
    assert_eq!(sum.count, 100, "the prompts are gone");
    assert_eq!(sum.same_as_recorded, sum.recorded, "{}", sum.differences.join("\n"));
}

/// Quantized packs may change a doubtful answer, not the model's ability: the float model has 98 of 100 right.
#[test]
fn quantized_packs_keep_the_ability() {
    for quant in ["q8", "q4"] {
        let sum = demo(quant);
        conformance::say(&format!("demo {quant}: {} of {} answers right", sum.right, sum.count));
        assert!(sum.right >= 96, "{quant}: {}", sum.differences.join("\n"));
    }
}

/// Every pack holds the result of a run, and a device that computes another says so.
#[test]
fn packs_hold_a_golden_result_that_selftest_checks() {
    let demo = data::workspace().join("models/demo");
    let desk = Desk::new(&demo).expect("a temporary folder");
    for quant in ["f32", "f16", "q8", "q4"] {
        let options = ["--quant".to_owned(), quant.to_owned()];
        let lpk = pack(&desk, &demo.join("tiny-base"), Some(&demo.join("tiny-home-control")), &options)
            .unwrap_or_else(|miss| panic!("{quant}: {miss:?}"));
        let seen =
            desk.json_object(&desk.run("selftest", &lpk).arg("--json")).unwrap_or_else(|miss| panic!("{miss:?}"));
        assert_eq!(seen["ok"], true, "{quant}: {seen}");
        let runs = seen["runs"].as_array().expect("runs");
        assert!(runs.len() > 1 && runs[0]["isa"] == "scalar", "{quant}: {seen}");
        // A change of it is a change of every device's results: models/demo/golden.txt is then written anew, with a reason.
        assert_eq!(seen["digest"], data::golden(quant), "{quant}");

        // One digit of the digest changed: the file is sound, the result is another's.
        let mut bytes = std::fs::read(&lpk).expect("the pack");
        let digest = seen["digest"].as_str().expect("a digest").as_bytes();
        let at = bytes.windows(16).position(|w| w == digest).expect("the digest stands in the file");
        bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
        let other = desk.path("other.lpk");
        std::fs::write(&other, bytes).expect("a copy");
        let done = desk.run("selftest", &other).run().expect("lora-run starts");
        assert_eq!(done.code, Some(1), "{quant}: {}", done.stderr);
        assert!(done.stderr.contains("do not give the packer's result"), "{quant}: {}", done.stderr);
    }
}
