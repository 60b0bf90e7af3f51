//! `case.json`: one recorded case, everything that is not a tensor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::score::Digest;

/// What a model computes.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Logits of the next token.
    CausalLm,
    /// Encoder and decoder.
    Seq2seqLm,
    /// One label (or value) for a text.
    SeqCls,
    /// One label per token.
    TokenCls,
    /// Start and end of an answer.
    QuestionAnswering,
    /// Hidden states and pooled vectors.
    FeatureExtraction,
}

impl Task {
    /// PEFT's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CausalLm => "CAUSAL_LM",
            Self::Seq2seqLm => "SEQ_2_SEQ_LM",
            Self::SeqCls => "SEQ_CLS",
            Self::TokenCls => "TOKEN_CLS",
            Self::QuestionAnswering => "QUESTION_ANS",
            Self::FeatureExtraction => "FEATURE_EXTRACTION",
        }
    }
}

/// A case of the conformance kit.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// Folder name.
    pub name: String,
    /// `model_type`.
    pub arch: String,
    /// What the model computes.
    pub task: Task,
    /// Where the base is.
    pub base: Base,
    /// The adapters by name.
    pub adapters: Vec<Adapter>,
    /// Label names by index, for classifiers.
    pub labels: Option<Vec<String>>,
    /// Tags.
    pub features: Vec<String>,
    /// False: only the unmerged form is defined.
    pub mergeable: bool,
    /// Texts and their token ids.
    pub tokenizer: Tokenizer,
    /// Inputs.
    pub runs: Vec<Run>,
    /// The ways to run.
    pub modes: Vec<Mode>,
    /// What comes out: run, then mode.
    pub results: BTreeMap<String, BTreeMap<String, Expected>>,
    /// What an honest quantization reaches on this case.
    pub quant_sim: Option<QuantSim>,
    /// The case's folder.
    #[serde(skip)]
    pub dir: PathBuf,
}

/// The base model of a case.
#[derive(Debug, Deserialize)]
pub struct Base {
    dir: String,
    file: Option<String>,
    /// Stored under another head than the task's; the adapter brings the head.
    pub headless: bool,
}

/// An adapter of a case.
#[derive(Debug, Deserialize)]
pub struct Adapter {
    name: String,
    dir: String,
}

/// Tokenizer expectations.
#[derive(Debug, Deserialize)]
pub struct Tokenizer {
    /// Texts with their ids.
    pub tests: Vec<TokenTest>,
}

/// A text and its ids.
#[derive(Debug, Deserialize)]
pub struct TokenTest {
    /// Input.
    pub text: String,
    /// With special tokens.
    pub ids: Vec<u32>,
    /// Without.
    pub ids_no_special: Vec<u32>,
    /// `ids` decoded, special tokens left out.
    pub decoded_skip_special: String,
}

/// One input.
#[derive(Debug, Deserialize)]
pub struct Run {
    /// Name, e.g. `n33`.
    pub id: String,
    /// The text behind the ids.
    pub text: String,
    /// Second text of a pair.
    pub text_pair: Option<String>,
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// Segment of each token.
    pub token_type_ids: Option<Vec<u32>>,
    /// Forced decoder input.
    pub decoder_input_ids: Option<Vec<u32>>,
    /// Character range of each token.
    pub offsets: Option<Vec<[usize; 2]>>,
}

/// A way to run a case.
#[derive(Debug, Deserialize)]
pub struct Mode {
    /// Name, unique in the case.
    pub id: String,
    /// Base, one adapter, several, or a weighted merge.
    pub kind: ModeKind,
    /// The adapters in use; empty for the base.
    #[serde(default)]
    pub adapters: Vec<String>,
    /// Merge method, with PEFT's meaning.
    pub method: Option<String>,
    /// Weight of each adapter.
    pub weights: Option<Vec<f64>>,
    /// Further parameters of the method.
    #[serde(default)]
    params: MergeParams,
    /// Digest of every weight that merging changes.
    #[serde(default)]
    pub merged_changed: BTreeMap<String, Digest>,
    /// Whole merged tensors: weight name to key in the expected tensors.
    #[serde(default)]
    pub merged_tensors: BTreeMap<String, String>,
}

/// Kind of a [`Mode`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ModeKind {
    /// No adapter.
    Base,
    /// One adapter.
    Adapter,
    /// Several adapters, their deltas added.
    Stack,
    /// PEFT's `add_weighted_adapter`.
    Merge,
}

#[derive(Debug, Default, Deserialize)]
struct MergeParams {
    density: Option<f64>,
    svd_rank: Option<u32>,
    majority_sign_method: Option<String>,
}

/// What one run gives in one mode.
#[derive(Debug, Deserialize)]
pub struct Expected {
    /// Output name to key in the expected tensors.
    pub tensors: BTreeMap<String, String>,
    /// Standard deviation of the main output.
    pub std: f64,
    /// Greedy continuation.
    pub greedy: Option<Greedy>,
    /// Beam search.
    pub beam4: Option<Beam>,
    /// Index of the best label.
    pub label: Option<usize>,
    /// Best label of each token.
    pub labels: Option<Vec<usize>>,
    /// Softmax of a classifier.
    pub probs: Option<Vec<f64>>,
    /// First and last token of the best span.
    pub start: Option<usize>,
    /// Last token of the best span.
    pub end: Option<usize>,
    /// The span's text.
    pub answer: Option<String>,
}

/// Greedy continuation: arg-max ids, and how far the second best was behind.
#[derive(Debug, Deserialize)]
pub struct Greedy {
    /// Ids after the prompt; the end token does not stop it.
    pub ids: Vec<u32>,
    /// Best minus second best logit at each step.
    pub margins: Vec<f64>,
}

/// Beam search result.
#[derive(Debug, Deserialize)]
pub struct Beam {
    /// Settings.
    pub params: BeamParams,
    /// Best first, without start token and padding.
    pub sequences: Vec<Vec<u32>>,
}

/// Beam search settings.
#[derive(Debug, Deserialize)]
pub struct BeamParams {
    /// Width.
    pub num_beams: usize,
    /// Length limit.
    pub max_new_tokens: usize,
}

/// Error of fake-quantized models.
#[derive(Debug, Deserialize)]
pub struct QuantSim {
    /// The mode that was measured.
    pub mode: String,
    /// Int8 weights and activations, groups of 32.
    pub w8a8: SimError,
    /// Symmetric int4 weights, float activations, groups of 32.
    pub w4: SimError,
}

/// Error of one scheme.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct SimError {
    /// Mean KL over all positions of all runs, for logits.
    pub kl_mean: Option<f64>,
    /// Mean over outputs of the RMS error over the spread.
    pub rms_err_over_std: f64,
}

impl Case {
    /// Reads `dir/case.json`.
    ///
    /// # Errors
    /// If the file is not as described here.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("case.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let mut case: Self = serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
        case.dir = dir.to_path_buf();
        Ok(case)
    }

    /// What `--base` takes.
    #[must_use]
    pub fn base_path(&self) -> PathBuf {
        self.dir.join(self.base.file.as_ref().unwrap_or(&self.base.dir))
    }

    /// What `--adapter` takes for the adapter of this name.
    ///
    /// # Panics
    /// If the case has no such adapter.
    #[must_use]
    pub fn adapter_path(&self, name: &str) -> PathBuf {
        let adapter = self.adapters.iter().find(|a| a.name == name);
        self.dir.join(&adapter.unwrap_or_else(|| panic!("{}: no adapter {name}", self.name)).dir)
    }

    /// Arguments of `lora-pack merge` and `export` that name the inputs of a mode.
    #[must_use]
    pub fn inputs(&self, mode: &Mode) -> Vec<String> {
        let mut args = vec!["--base".to_owned(), self.base_path().display().to_string()];
        for (i, name) in mode.adapters.iter().enumerate() {
            let mut path = self.adapter_path(name).display().to_string();
            if let Some(weight) = mode.weights.as_ref().and_then(|w| w.get(i)) {
                path.push_str(&format!("={weight}"));
            }
            args.extend(["--adapter".to_owned(), path]);
        }
        let options = [
            ("--combine", mode.method.clone()),
            ("--density", mode.params.density.map(|d| d.to_string())),
            ("--svd-rank", mode.params.svd_rank.map(|r| r.to_string())),
            ("--majority-sign", mode.params.majority_sign_method.clone()),
        ];
        args.extend(options.into_iter().filter_map(|(flag, value)| Some([flag.to_owned(), value?])).flatten());
        args.extend(self.label_args());
        args
    }

    /// `--labels …` where the base has none of its own.
    #[must_use]
    pub fn label_args(&self) -> Vec<String> {
        match &self.labels {
            Some(labels) if self.base.headless => vec!["--labels".to_owned(), labels.join(",")],
            _ => Vec::new(),
        }
    }

    /// The runs that have a result in a mode, with it.
    pub fn expected<'a>(&'a self, mode: &'a Mode) -> impl Iterator<Item = (&'a Run, &'a Expected)> {
        self.runs.iter().filter_map(|run| Some((run, self.results.get(&run.id)?.get(&mode.id)?)))
    }

    /// True where merging goes through a singular value decomposition, whose last digits are free.
    #[must_use]
    pub fn goes_through_svd(&self, mode: &Mode) -> bool {
        mode.method.as_ref().is_some_and(|m| m.ends_with("svd"))
            || self.features.iter().any(|f| f == "pissa_raw" || f == "olora_raw")
    }
}
