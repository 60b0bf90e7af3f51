//! Trained models and adapters: reference logits, and answers to a test set.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::desk::{Checked, Desk, Ids, Report, fail};
use crate::score::{max_error, top};
use crate::tensors::{Archive, Tensor};

/// Longest answer, in tokens, that the references were made with.
const ANSWER: usize = 72;

/// How a model is asked, and which field of an answer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Prompt to text.
    Generate,
    /// Text to label.
    Classify,
    /// Words to tags.
    Tag,
    /// Question and context to a span.
    Qa,
    /// Text to text, encoder–decoder.
    Seq2seq,
    /// Text to vector; has references but no test set.
    Embed,
}

/// A trained adapter with its base and its folder of references.
#[derive(Clone, Copy, Debug)]
pub struct Asset {
    /// Folder name, of the adapter or, without one, of the references.
    pub name: &'static str,
    /// Folder name of the base.
    pub base: &'static str,
    /// False: the base alone.
    pub adapter: bool,
    /// How it is asked.
    pub verb: Verb,
}

const fn asset(name: &'static str, base: &'static str, verb: Verb) -> Asset {
    Asset { name, base, adapter: true, verb }
}

const fn plain(name: &'static str, base: &'static str, verb: Verb) -> Asset {
    Asset { name, base, adapter: false, verb }
}

/// All assets.
pub const ASSETS: &[Asset] = &[
    asset("tiny-home-control", "tiny-base", Verb::Generate),
    asset("tiny-sensor-log", "tiny-base", Verb::Generate),
    asset("tiny-pirate", "tiny-base", Verb::Generate),
    asset("smollm2-home-control", "smollm2-135m-instruct", Verb::Generate),
    asset("smollm2-intent", "smollm2-135m-instruct", Verb::Classify),
    asset("minilm-intent", "minilm-l6", Verb::Classify),
    asset("minilm-slots", "minilm-l6", Verb::Tag),
    asset("minilm-qa", "minilm-l6", Verb::Qa),
    plain("minilm-l6-embed", "minilm-l6", Verb::Embed),
    plain("t5-normalize", "t5-normalize", Verb::Seq2seq),
    asset("t5-normalize-gb", "t5-normalize", Verb::Seq2seq),
    plain("bart-g2p", "bart-g2p", Verb::Seq2seq),
    asset("bart-g2p-plain", "bart-g2p", Verb::Seq2seq),
];

impl Verb {
    /// Name of the verb, the answer's field, and the field of a test line that holds the truth.
    fn fields(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Generate => ("generate", "text", "expect"),
            Self::Classify => ("classify", "label", "label"),
            Self::Tag => ("tag", "tags", "tags"),
            Self::Qa => ("qa", "answer", "answer"),
            Self::Seq2seq => ("seq2seq", "text", "expect"),
            Self::Embed => ("embed", "embedding", ""),
        }
    }

    fn request(self, line: &Value) -> Value {
        match self {
            Self::Generate => json!({ "prompt": line["prompt"] }),
            Self::Tag => json!({ "tokens": line["tokens"] }),
            Self::Qa => json!({ "question": line["question"], "context": line["context"] }),
            Self::Classify | Self::Seq2seq | Self::Embed => json!({ "text": line["text"] }),
        }
    }
}

/// Answers to a test set.
#[derive(Debug, Default)]
pub struct Answers {
    /// Lines asked.
    pub count: usize,
    /// Answers that equal the truth, of all lines.
    pub right: usize,
    /// Lines that hold the recorded float32 answer.
    pub recorded: usize,
    /// Answers that equal it.
    pub same_as_recorded: usize,
    /// Recorded answers that equal the truth.
    pub recorded_right: usize,
    /// Answers that equal the truth, of the lines with a recorded answer.
    pub right_of_recorded: usize,
    /// Lines whose answer is not the recorded one.
    pub differences: Vec<String>,
}

/// Asks the first `limit` lines of a test set, greedily.
///
/// # Errors
/// As [`Desk::succeed`], or if the test set cannot be read.
pub fn answers(desk: &Desk, lpk: &Path, verb: Verb, tests: &Path, limit: usize) -> Checked<Answers> {
    let text = std::fs::read_to_string(tests).with_context(|| format!("reading {}", tests.display()))?;
    let lines: Result<Vec<Value>, _> = text.lines().take(limit).map(serde_json::from_str).collect();
    let lines = lines.map_err(|e| anyhow::anyhow!("{}: {e}", tests.display()))?;
    let (name, field, truth) = verb.fields();
    // Stories are longer than commands.
    let longest = if tests.to_string_lossy().contains("pirate") { 200 } else { ANSWER };
    let mut call = desk.run(name, lpk).wall(std::time::Duration::from_secs(3600));
    if matches!(verb, Verb::Generate | Verb::Seq2seq) {
        call = call.args(["--temp", "0", "-n", &longest.to_string()]);
    }
    let requests: Vec<Value> = lines.iter().map(|line| verb.request(line)).collect();
    let got = desk.answers(call, &requests)?;
    let mut sum = Answers { count: lines.len(), ..Answers::default() };
    for (line, answer) in lines.iter().zip(&got) {
        let right = answer[field] == line[truth];
        sum.right += usize::from(right);
        if let Some(recorded) = line.get("fp32") {
            sum.recorded += 1;
            sum.recorded_right += usize::from(*recorded == line[truth]);
            sum.right_of_recorded += usize::from(right);
            if answer[field] == *recorded {
                sum.same_as_recorded += 1;
            } else {
                sum.differences.push(format!("{}: {} instead of {recorded}", verb.request(line), answer[field]));
            }
        }
    }
    Ok(sum)
}

/// Merges and packs; the file's path.
///
/// # Errors
/// As [`Desk::produce`].
pub fn pack(desk: &Desk, base: &Path, adapter: Option<&Path>, options: &[String]) -> Checked<PathBuf> {
    let out = desk.path("model.lpk");
    let mut call = desk.pack("merge").arg("--base").arg(base).args(options);
    if let Some(adapter) = adapter {
        call = call.arg("--adapter").arg(adapter);
    }
    desk.produce(call.wall(std::time::Duration::from_secs(3600)), &out)?;
    Ok(out)
}

/// The folders that real models are read from.
#[derive(Debug)]
pub struct Places {
    /// Adapters, references and the smaller bases.
    pub assets: PathBuf,
    /// The larger bases, where they were built.
    pub bases: Option<PathBuf>,
}

impl Places {
    /// The base's folder, if it is there.
    #[must_use]
    pub fn base(&self, asset: &Asset) -> Option<PathBuf> {
        let folders = [Some(&self.assets), self.bases.as_ref()];
        folders.into_iter().flatten().map(|f| f.join(asset.base)).find(|p| p.join("config.json").is_file())
    }
}

/// Runs the checks of one asset in one weight format over at most `limit` test lines.
///
/// # Errors
/// If there is no temporary folder.
pub fn check(places: &Places, asset: &Asset, base: &Path, quant: &str, limit: usize) -> Result<Report> {
    let desk = Desk::new(base)?;
    let folder = places.assets.join(asset.name);
    let mut report = Report::new();
    let options = match options(&folder, quant) {
        Ok(options) => options,
        Err(e) => return Ok(vec![("pack", Err(e.into()))]),
    };
    let lpk = match pack(&desk, base, asset.adapter.then_some(folder.as_path()), &options) {
        Ok(lpk) => lpk,
        Err(miss) => return Ok(vec![("pack", Err(miss))]),
    };
    report.push(("pack", Ok(format!("{:.1} MB", lpk.metadata().map_or(0, |m| m.len()) as f64 / 1e6))));
    if quant == "f32" {
        report.push(("references", references(&desk, &lpk, asset, base, &folder)));
    }
    let tests = folder.join("test.public.jsonl");
    if tests.is_file() {
        report.push(("answers", judged(&desk, &lpk, asset, &tests, quant, limit)));
    }
    Ok(report)
}

/// `--quant`, with the asset's calibration text where the format's name ends in ` calib`, and its labels.
fn options(folder: &Path, quant: &str) -> Result<Vec<String>> {
    let (format, calib) = quant.strip_suffix(" calib").map_or((quant, false), |q| (q, true));
    let mut options = vec!["--quant".to_owned(), format.to_owned()];
    if calib {
        options.extend(["--calib".to_owned(), folder.join("calib.txt").display().to_string()]);
    }
    options.extend(labels(folder)?);
    Ok(options)
}

/// `--labels` of an asset whose metrics name them, else nothing.
///
/// # Errors
/// The metrics are no JSON.
pub fn labels(folder: &Path) -> Result<Vec<String>> {
    let Ok(text) = std::fs::read_to_string(folder.join("metrics.json")) else { return Ok(Vec::new()) };
    let metrics: Value = serde_json::from_str(&text)?;
    let Some(labels) = metrics["labels"].as_array() else { return Ok(Vec::new()) };
    let names: Vec<&str> = labels.iter().filter_map(Value::as_str).collect();
    Ok(vec!["--labels".into(), names.join(",")])
}

/// Float packs give the recorded answers; quantized ones may lose one right answer in a hundred at 8 bits, two at 4.
fn judged(desk: &Desk, lpk: &Path, asset: &Asset, tests: &Path, quant: &str, limit: usize) -> Checked {
    let sum = answers(desk, lpk, asset.verb, tests, limit)?;
    let differences = sum.differences.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
    if quant == "f32" && sum.same_as_recorded < sum.recorded {
        fail!("{} of {} answers as recorded: {differences}", sum.same_as_recorded, sum.recorded);
    }
    let allowed = if quant.starts_with("q4") { 2 } else { 1 };
    if (sum.recorded_right - sum.right_of_recorded.min(sum.recorded_right)) * 100 > allowed * sum.recorded {
        fail!("{} of {} right, float32 has {}: {differences}", sum.right_of_recorded, sum.recorded, sum.recorded_right);
    }
    Ok(format!(
        "{}/{} right (float32 {}/{}, same {})",
        sum.right, sum.count, sum.recorded_right, sum.recorded, sum.same_as_recorded
    ))
}

/// What is compared with a reference: an output of one input, all of it or its last row.
struct Reference {
    input: usize,
    output: &'static str,
    last_row: bool,
    key: String,
}

/// Recorded logits and hidden states: error at most 0.001 of their standard deviation, same best token wherever
/// it is clear.
fn references(desk: &Desk, lpk: &Path, asset: &Asset, base: &Path, folder: &Path) -> Checked {
    let archive = Archive::read(&folder.join("refs.safetensors"))?;
    let start = decoder_start(base)?;
    let mut inputs: Vec<Ids> = Vec::new();
    let mut wanted = Vec::new();
    for i in 0.. {
        let Ok(ids) = archive.ids(&format!("{i}.input_ids")) else { break };
        let ids = ids.to_vec();
        let mut add = |ids: Vec<u32>, types, decoder, outputs: &[(&'static str, bool, &str)]| {
            for (output, last_row, key) in outputs {
                let key = format!("{i}.{key}");
                if archive.get(&key).is_ok() {
                    wanted.push(Reference { input: inputs.len(), output, last_row: *last_row, key });
                }
            }
            inputs.push(Ids { ids, types, decoder });
        };
        match asset.verb {
            Verb::Generate => {
                add(ids, None, None, &[("logits", true, "last_logits")]);
                if let Ok(full) = archive.ids(&format!("{i}.full_input_ids")) {
                    add(full.to_vec(), None, None, &[("logits", false, "full_logits")]);
                }
            }
            Verb::Classify | Verb::Tag => add(ids, None, None, &[("logits", false, "logits")]),
            Verb::Qa => {
                let types = archive.ids(&format!("{i}.token_type_ids"))?.to_vec();
                let plain = [("start_logits", false, "start_logits"), ("end_logits", false, "end_logits")];
                let typed = [("start_logits", false, "typed.start_logits"), ("end_logits", false, "typed.end_logits")];
                add(ids.clone(), Some(vec![0; ids.len()]), None, &plain);
                add(ids, Some(types), None, &typed);
            }
            Verb::Seq2seq => {
                let labels = archive.ids(&format!("{i}.labels"))?;
                let shifted = std::iter::once(start).chain(labels[..labels.len() - 1].iter().copied()).collect();
                let hidden = "encoder_last_hidden_state";
                add(ids, None, Some(shifted), &[("logits", false, "logits"), (hidden, false, hidden)]);
            }
            Verb::Embed => {
                let hidden = "last_hidden_state";
                add(ids, None, None, &[("mean_pooled", false, "embedding"), (hidden, false, hidden)]);
            }
        }
    }
    let got = desk.raw(lpk, &inputs, &[])?;
    let mut worst = (0.0, String::new());
    for reference in &wanted {
        let expected = archive.get(&reference.key)?;
        let whole = got.get(&format!("{}.{}", reference.input, reference.output))?;
        let output = if reference.last_row { last_row(whole) } else { whole.clone() };
        let error = max_error(expected, &output).with_context(|| reference.key.clone())?;
        if error > worst.0 {
            worst = (error, reference.key.clone());
        }
        let width = expected.shape.last().copied().unwrap_or(1);
        for (a, b) in expected.data.chunks(width).zip(output.data.chunks(width)) {
            let (best, margin) = top(a);
            if reference.output == "logits" && margin > 1e-3 && top(b).0 != best {
                fail!("{}: best is {} instead of {best}", reference.key, top(b).0);
            }
        }
    }
    if wanted.is_empty() || worst.0 > 1e-3 {
        fail!("{} references, error {:.2e} std in {}", wanted.len(), worst.0, worst.1);
    }
    Ok(format!("{} within {:.1e}", wanted.len(), worst.0))
}

fn last_row(t: &Tensor) -> Tensor {
    let width = t.shape.last().copied().unwrap_or(0);
    Tensor { shape: vec![width], data: t.data[t.data.len() - width..].to_vec() }
}

/// `decoder_start_token_id` of the base's config; 0 where there is no decoder.
fn decoder_start(base: &Path) -> Result<u32> {
    let config: Value = serde_json::from_str(&std::fs::read_to_string(base.join("config.json"))?)?;
    Ok(u32::try_from(config["decoder_start_token_id"].as_u64().unwrap_or(0))?)
}
