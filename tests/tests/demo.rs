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
