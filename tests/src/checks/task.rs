//! The task verbs: label, tags, answer, vector.

use std::path::Path;

use serde_json::{Value, json};

use super::Bench;
use crate::case::{Case, Expected, Mode, Run, Task};
use crate::desk::{Checked, Miss, fail, head};

/// A request and the judge of its answer.
type Request<'a> = (Value, Box<dyn Fn(&Value) -> Checked<()> + 'a>);

impl Bench<'_> {
    /// Asks the task's verb about the recorded texts; `None` for language models.
    pub(super) fn task(&self, mode: &Mode, lpk: &Path) -> Option<Checked> {
        let verb = match self.case.task {
            Task::SeqCls => "classify",
            Task::TokenCls => "tag",
            Task::QuestionAnswering => "qa",
            Task::FeatureExtraction => "embed",
            Task::CausalLm | Task::Seq2seqLm => return None,
        };
        let (mut requests, mut judges) = (Vec::new(), Vec::new());
        for (run, expected) in self.case.expected(mode) {
            let request = match verb {
                "classify" => self.classify(run, expected),
                "tag" => self.tag(run, expected),
                "qa" => answer(run, expected),
                _ => self.embed(run, expected),
            };
            if let Some((request, judge)) = request {
                requests.push(request);
                judges.push((run.id.as_str(), judge));
            }
        }
        if requests.is_empty() {
            return None;
        }
        let ask = || {
            let answers = self.desk.answers(self.desk.run(verb, lpk), &requests)?;
            for (answer, (id, judge)) in answers.iter().zip(&judges) {
                if let Err(Miss::Failed(why)) = judge(answer) {
                    fail!("{id}: {why} in {}", head(&answer.to_string()));
                }
            }
            Ok(format!("{}", answers.len()))
        };
        Some(ask())
    }

    fn classify<'a>(&'a self, run: &'a Run, expected: &'a Expected) -> Option<Request<'a>> {
        let (label, labels) = (expected.label?, self.case.labels.as_ref()?);
        if run.text_pair.is_some() {
            return None; // the verb's requests hold one text
        }
        let judge = move |answer: &Value| {
            if answer["label"] != labels[label] {
                fail!("label should be {}", labels[label]);
            }
            for (i, (name, p)) in labels.iter().zip(expected.probs.iter().flatten()).enumerate() {
                let scores = &answer["scores"];
                let got = scores.get(name).or_else(|| scores.get(i)).and_then(Value::as_f64);
                if !got.is_some_and(|g| (g - p).abs() <= 1e-3) {
                    fail!("score of {name} should be {p}, is {got:?}");
                }
            }
            Ok(())
        };
        Some((json!({ "text": run.text }), Box::new(judge)))
    }

    fn tag<'a>(&'a self, run: &'a Run, expected: &'a Expected) -> Option<Request<'a>> {
        let (words, tags) = word_tags(self.case, run, expected.labels.as_ref()?)?;
        let judge = move |answer: &Value| {
            if answer["tags"] != json!(tags) {
                fail!("tags should be {tags:?}");
            }
            Ok(())
        };
        Some((json!({ "tokens": words }), Box::new(judge)))
    }

    fn embed<'a>(&'a self, run: &'a Run, expected: &'a Expected) -> Option<Request<'a>> {
        let pooled = self.expected.get(expected.tensors.get("mean_pooled")?).ok()?;
        let judge = move |answer: &Value| {
            let Some(vector) = answer["embedding"].as_array() else { fail!("no embedding") };
            let off =
                vector.iter().zip(&pooled.data).map(|(g, e)| (g.as_f64().unwrap_or(f64::NAN) - f64::from(*e)).abs());
            let worst = off.fold(0.0, |m: f64, d| if d > m || d.is_nan() { d } else { m });
            // The vector has length one, so this is far below any use of it.
            if vector.len() != pooled.data.len() || worst.is_nan() || worst > 1e-4 {
                fail!("{} values, off by {worst:.2e}", vector.len());
            }
            Ok(())
        };
        Some((json!({ "text": run.text }), Box::new(judge)))
    }
}

/// Blank-separated words and the recorded label of each word's first token; `None` if some word has no token.
fn word_tags<'a>(case: &'a Case, run: &'a Run, labels: &[usize]) -> Option<(Vec<&'a str>, Vec<&'a str>)> {
    let (names, offsets) = (case.labels.as_ref()?, run.offsets.as_ref()?);
    let mut tags = Vec::new();
    let words: Vec<&str> = run.text.split_whitespace().collect();
    for word in &words {
        // A slice of the text knows where it starts; offsets count characters.
        let at = word.as_ptr() as usize - run.text.as_ptr() as usize;
        let start = run.text[..at].chars().count();
        let token = offsets.iter().position(|[a, b]| *a == start && b > a)?;
        tags.push(names[labels[token]].as_str());
    }
    Some((words, tags))
}

fn answer<'a>(run: &'a Run, expected: &'a Expected) -> Option<Request<'a>> {
    let (first, last) = (expected.start?, expected.end?);
    let (context, offsets) = (run.text_pair.as_ref()?, run.offsets.as_ref()?);
    let (start, end) = (offsets[first][0], offsets[last][1]);
    let judge = move |answer: &Value| {
        if answer["answer"].as_str() != expected.answer.as_deref() {
            fail!("answer should be {:?}", expected.answer);
        }
        if answer["start"] != start || answer["end"] != end {
            fail!("span should be {start}..{end}");
        }
        Ok(())
    };
    Some((json!({ "question": run.text, "context": context }), Box::new(judge)))
}
