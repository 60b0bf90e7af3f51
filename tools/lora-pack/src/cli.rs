//! The command line: arguments of every verb, and the dispatch to `verb/`.
//!
//! Exit codes: 0 success, 1 refused input or failed check, 2 wrong usage (clap).

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use lora_runtime::format::Task;
use lora_runtime::kernels::KvType;
use lora_runtime::weights::WeightFormat;

use crate::calibrate::Effort;
use crate::merge::export::gguf::Encoding;
use crate::source::bnb::Quantization;
use crate::target::{TARGETS, Target};
use crate::verb;

/// Merge PEFT LoRA adapters into a base model, quantize, and write one .lpk file that lora-run runs in place.
#[derive(Debug, Parser)]
#[command(
    name = "lora-pack",
    version,
    max_term_width = 110,
    after_help = "\
Examples:
  lora-pack merge --base SmolLM2-135M-Instruct --adapter my-lora --quant q4 -o model.lpk
  lora-pack inspect model.lpk
  lora-pack plan model.lpk --ctx 2048
  lora-pack demo"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Merge adapters into a base, quantize, and pack into one file
    Merge(MergeArgs),
    /// Pack one adapter by itself: lora-run attaches it to the packed base, per request
    Adapter(AdapterArgs),
    /// Put a packed base and its adapters into one file
    Bundle(BundleArgs),
    /// Take a bundle apart again
    Unbundle(UnbundleArgs),
    /// Names of the adapters in a bundle
    List(ListArgs),
    /// Show what a file holds: header, metadata, program, tensors
    Inspect(InspectArgs),
    /// Check a file: content hash, structure, program
    Verify(VerifyArgs),
    /// Flash and RAM that a file needs, by context length
    Plan(PlanArgs),
    /// Write a file as Rust or C source or as an object file, for firmware
    Embed(EmbedArgs),
    /// What an adapter holds, what each of its options means, and whether it fits a base
    Doctor(DoctorArgs),
    /// Write the merged weights for other tools: a Hugging Face folder or a GGUF file
    Export(ExportArgs),
    /// Get a model or adapter of the Hugging Face Hub into the local cache, and say where it is
    Fetch(FetchArgs),
    /// Pack the shipped demo model with its adapter and run it
    Demo(DemoArgs),
}

/// Arguments of `merge`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lora-pack merge --base SmolLM2-135M-Instruct --adapter home-control --quant q4 -o home.lpk
  lora-pack merge --base SmolLM2-135M-Instruct --adapter home-control --quant q4 --calib prompts.txt -o home.lpk
  lora-pack merge --base base --adapter style=0.7 --adapter facts=1.2 --quant q8 -o both.lpk
  lora-pack merge --base bert-base --adapter intents --labels on,off,dim --quant q8 -o intents.lpk
  lora-pack merge --base base --quant f32 -o base.lpk          (no adapter: just pack)")]
pub struct MergeArgs {
    /// Base model: a Hugging Face folder, a .safetensors file with its config.json beside it, a .gguf file, or org/name on
    /// the Hub
    #[arg(long, value_name = "DIR|FILE|ORG/NAME")]
    pub base: PathBuf,
    /// PEFT adapter folder, LoRA .gguf file, or org/name on the Hub, optionally with a weight (repeatable)
    #[arg(long = "adapter", value_name = "DIR[=WEIGHT]")]
    pub adapters: Vec<String>,
    /// Combination.
    #[command(flatten)]
    pub combine: CombineArgs,
    /// What the base is.
    #[command(flatten)]
    pub basis: BasisArgs,
    /// Weight format: f32 f16 q8 q8r q6 q5 q4 q4l; auto chooses one for each matrix, by measured loss per byte; keep carries a
    /// GGUF base's blocks over and gives changed matrices a finer format (default: keep for a quantized base, else q8)
    #[arg(long, value_name = "FORMAT", value_parser = parse_quant)]
    pub quant: Option<Quant>,
    /// Size of the file that auto keeps, in bytes or as 80M, 1.5G (powers of 1000)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub target_size: Option<u64>,
    /// Bits per weight that auto keeps, over all matrices with their scales (default: 5)
    #[arg(long, value_name = "BITS", conflicts_with = "target_size")]
    pub target_bpw: Option<f64>,
    /// Text to calibrate with, above all the task's own: lines of text, or of JSON with the fields of a test set
    /// (repeatable). Language models get as much general text beside it, others where this is too little
    #[arg(long, value_name = "FILE")]
    pub calib: Vec<PathBuf>,
    /// Work that goes into quantization: fast (scales alone), normal (error feedback on 8 k tokens of text; the default
    /// with --calib), best (fitted to the float model's outputs, on 24 k tokens)
    #[arg(long, value_name = "fast|normal|best", value_parser = parse_effort)]
    pub effort: Option<Effort>,
    /// Whether to move a part of large channels' size from activations into weights, as the text shows them: the float
    /// model stays the same, the quantized one gets closer to it, but adapters can no longer be attached to the file
    /// (default: where text is read, adapters are merged and the base is not quantized)
    #[arg(long, value_name = "yes|no", value_parser = parse_yes_no)]
    pub balance: Option<bool>,
    /// Packing.
    #[command(flatten)]
    pub pack: PackArgs,
}

/// What `--quant` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quant {
    /// The preset of a main format.
    Format(WeightFormat),
    /// Formats chosen by measurement.
    Auto,
    /// The base's own, where they can be.
    Keep,
}

impl Quant {
    /// As the user wrote it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Format(format) => format.name(),
            Self::Auto => "auto",
            Self::Keep => "keep",
        }
    }

    /// The main format.
    #[must_use]
    pub const fn format(self) -> WeightFormat {
        match self {
            Self::Format(format) => format,
            Self::Auto => WeightFormat::Q4,
            Self::Keep => WeightFormat::Q8,
        }
    }
}

/// Arguments of `adapter`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lora-pack merge --base SmolLM2-135M-Instruct --quant q4 -o base.lpk           (the base, once)
  lora-pack adapter --base SmolLM2-135M-Instruct --adapter home-control -o home.lpk
  lora-pack adapter --base base.lpk --adapter home-control -o home.lpk          (without the base's folder)
  lora-pack adapter --base bert-base --adapter intents --labels on,off,dim --quant f16 -o intents.lpk
  lora-run generate base.lpk --adapter home.lpk -p 'Turn on the light'")]
pub struct AdapterArgs {
    /// The base that the adapter was trained on: a Hugging Face folder, a .safetensors file with its config.json, a GGUF
    /// file, or the base's pack
    #[arg(long, value_name = "DIR|FILE|BASE.lpk")]
    pub base: PathBuf,
    /// What the base is.
    #[command(flatten)]
    pub basis: BasisArgs,
    /// PEFT adapter folder, optionally with a weight that is folded in
    #[arg(long, value_name = "DIR[=WEIGHT]")]
    pub adapter: String,
    /// Format of the factors: f32 f16 q8 (8-bit A, f16 B)
    #[arg(long, value_name = "FORMAT", default_value = "q8", value_parser = parse_factor_format)]
    pub quant: WeightFormat,
    /// Packing.
    #[command(flatten)]
    pub pack: PackArgs,
}

/// Arguments of `bundle`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lora-pack bundle base.lpk home.lpk style.lpk -o all.lpk
  lora-run chat all.lpk --adapter home          (names are those of the files)")]
pub struct BundleArgs {
    /// The packed base
    pub base: PathBuf,
    /// Adapter files for it
    #[arg(required = true, value_name = "ADAPTER.lpk")]
    pub adapters: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// File to write
    #[arg(short = 'o', long = "out", value_name = "OUT.lpk")]
    pub out: PathBuf,
}

/// Arguments of `unbundle`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lora-pack unbundle all.lpk -o parts          (parts/base.lpk, parts/home.lpk, …)")]
pub struct UnbundleArgs {
    /// The bundle
    pub file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Folder to write; it must not exist
    #[arg(short = 'o', long = "out", value_name = "DIR")]
    pub out: PathBuf,
}

/// Arguments of `list`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lora-pack list all.lpk\n  lora-pack list all.lpk --json")]
pub struct ListArgs {
    /// The bundle
    pub file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// How several adapters are combined.
#[derive(Debug, Args)]
pub struct CombineArgs {
    /// Combine adapters as PEFT's add_weighted_adapter does, instead of stacking their deltas:
    /// linear, cat, svd, ties, ties_svd, dare_linear, dare_ties, dare_linear_svd, dare_ties_svd,
    /// magnitude_prune, magnitude_prune_svd
    #[arg(long, value_name = "TYPE")]
    pub combine: Option<String>,
    /// Share of entries kept by ties, dare and magnitude_prune
    #[arg(long, value_name = "D")]
    pub density: Option<f64>,
    /// Rank of the svd combination types
    #[arg(long, value_name = "R")]
    pub svd_rank: Option<usize>,
    /// How ties elects signs
    #[arg(long, value_name = "total|frequency")]
    pub majority_sign: Option<String>,
    /// Seed of dare's random choice
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Round every merged weight once to the type that the base stores, as PEFT's merge does, before anything else
    #[arg(long)]
    pub peft_exact: bool,
}

/// Which base it is, and what was done to it before the adapters were trained.
#[derive(Debug, Args)]
pub struct BasisArgs {
    /// Revision of the base on the Hub (branch, tag or commit): which one to take from the cache, and compared with the
    /// one that the adapter was trained on
    #[arg(long, value_name = "REVISION")]
    pub base_revision: Option<String>,
    /// Whether the base is the published model or, for adapters whose start changed it (pissa, olora, corda, …), the
    /// changed one
    #[arg(long, value_name = "original|residual")]
    pub init_base: Option<String>,
    /// For adapters that were trained over a base which bitsandbytes had quantized (QLoRA), over a float base: take its
    /// weights as they are (original, the default), or as training saw its linear layers: dequantized (as nf4-double, the
    /// recipe of QLoRA), nf4, nf4-double, fp4, fp4-double, int8
    #[arg(long, value_name = "original|dequantized|TYPE", value_parser = parse_qlora_base)]
    pub qlora_base: Option<QloraBase>,
}

/// What `--qlora-base` says: nothing is done to the original weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QloraBase(pub Option<Quantization>);

/// What packing a model and packing an adapter have in common.
#[derive(Debug, Args)]
pub struct PackArgs {
    /// Label names by index: a,b,c or a .json file (list, or id2label map)
    #[arg(long, value_name = "a,b,c|FILE.json")]
    pub labels: Option<String>,
    /// Task, where neither the adapter nor the base says: causal_lm, seq_cls, token_cls, …
    #[arg(long, value_name = "TASK", value_parser = parse_task)]
    pub task: Option<Task>,
    /// Accept unknown adapter settings (each is still reported)
    #[arg(long)]
    pub force: bool,
    /// Pack a base without tokenizer files: the file then takes and gives token ids only
    #[arg(long)]
    pub no_tokenizer: bool,
    /// Print one JSON object instead of the summary
    #[arg(long)]
    pub json: bool,
    /// File to write
    #[arg(short = 'o', long = "out", value_name = "OUT.lpk")]
    pub out: PathBuf,
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lora-pack doctor my-lora\n  lora-pack doctor my-lora --base SmolLM2-135M --json\n  lora-pack doctor checkpoints#second"
)]
pub struct DoctorArgs {
    /// PEFT adapter folder, DIR#NAME for a named adapter in it, or LoRA .gguf file (with --base)
    pub adapter: PathBuf,
    /// Base model that it should fit
    #[arg(long, value_name = "DIR|FILE")]
    pub base: Option<PathBuf>,
    /// What the base is.
    #[command(flatten)]
    pub basis: BasisArgs,
    /// Accept unknown adapter settings (each is still reported)
    #[arg(long)]
    pub force: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lora-pack export --base base --adapter my-lora --to safetensors -o merged\n  lora-pack export --base base --adapter a=0.7 --adapter b --combine ties --density 0.5 --dtype f32 -o merged\n  lora-pack export --base base --adapter my-lora --to gguf --type q8_0 -o model.gguf"
)]
pub struct ExportArgs {
    /// Base model: a Hugging Face folder, a .safetensors file with its config.json beside it, a .gguf file, or org/name on
    /// the Hub
    #[arg(long, value_name = "DIR|FILE|ORG/NAME")]
    pub base: PathBuf,
    /// PEFT adapter folder, LoRA .gguf file, or org/name on the Hub, optionally with a weight (repeatable)
    #[arg(long = "adapter", value_name = "DIR[=WEIGHT]")]
    pub adapters: Vec<String>,
    /// Combination.
    #[command(flatten)]
    pub combine: CombineArgs,
    /// What the base is.
    #[command(flatten)]
    pub basis: BasisArgs,
    /// Format to write
    #[arg(long, value_name = "FORMAT", default_value = "safetensors", value_parser = ["safetensors", "gguf"])]
    pub to: String,
    /// Type of a GGUF file's matrices: f32, f16 (default), bf16, q8_0, q5_0, q4_0, or keep (as a GGUF base stores them)
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_encoding)]
    pub encoding: Option<Encoding>,
    /// Type of safetensors' weights: f32 (exact merged values), f16, bf16, or base (each tensor as the base stores it, rounded once)
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = ["f32", "f16", "bf16", "base"])]
    pub dtype: String,
    /// Label names by index, for the config: a,b,c or a .json file (list, or id2label map)
    #[arg(long, value_name = "a,b,c|FILE.json")]
    pub labels: Option<String>,
    /// Accept unknown adapter settings (each is still reported)
    #[arg(long)]
    pub force: bool,
    /// Write a GGUF file without a vocabulary: it then takes token ids only
    #[arg(long)]
    pub no_tokenizer: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Folder to write, which must not exist; for GGUF a file, or a folder to put one in, named by GGUF's convention
    #[arg(short = 'o', long = "out", value_name = "OUT")]
    pub out: PathBuf,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lora-pack inspect model.lpk\n  lora-pack inspect model.lpk --ops\n  lora-pack inspect model.lpk --json"
)]
pub struct InspectArgs {
    /// The file
    pub file: PathBuf,
    /// List every tensor
    #[arg(long)]
    pub tensors: bool,
    /// List every op
    #[arg(long)]
    pub ops: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lora-pack verify model.lpk
  lora-pack verify model.lpk --base SmolLM2-135M-Instruct --adapter home-control --text prompts.txt
  lora-pack verify model.lpk --base base --adapter lora --text t.txt --max-kl 0.01 --min-retention 0.98 --json")]
pub struct VerifyArgs {
    /// The file
    pub file: PathBuf,
    /// The base it was packed from: compare the numbers too
    #[arg(long, value_name = "DIR|FILE")]
    pub base: Option<PathBuf>,
    /// The adapters that were merged, as for merge
    #[arg(long = "adapter", value_name = "DIR[=WEIGHT]", requires = "base")]
    pub adapters: Vec<String>,
    /// Combination, as for merge.
    #[command(flatten)]
    pub combine: CombineArgs,
    /// What the base is, as for merge.
    #[command(flatten)]
    pub basis: BasisArgs,
    /// Text to compare on: lines, or JSON with the fields of a test set (default: a short general text)
    #[arg(long, value_name = "FILE", requires = "base")]
    pub text: Option<PathBuf>,
    /// Most tokens of the text
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub tokens: usize,
    /// Element type of the KV cache: f32, f16, i8 (default: the file's)
    #[arg(long, value_name = "TYPE", value_parser = parse_kv)]
    pub kv: Option<KvType>,
    /// Fail when the mean KL divergence is above
    #[arg(long, value_name = "NATS", requires = "base")]
    pub max_kl: Option<f64>,
    /// Fail when the share of equal first choices is below (0…1)
    #[arg(long, value_name = "SHARE", requires = "base")]
    pub min_top1: Option<f64>,
    /// Fail when the functional retention of the adapter is below (0…1)
    #[arg(long, value_name = "SHARE", requires = "adapters")]
    pub min_retention: Option<f64>,
    /// Fail when the projection of the change onto the adapter's is below (0…1)
    #[arg(long, value_name = "SHARE", requires = "adapters")]
    pub min_projection: Option<f64>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lora-pack plan model.lpk --ctx 2048\n  lora-pack plan model.lpk --ctx 512 --batch 32 --json\n  lora-pack plan model.lpk --ctx 96 --batch 8 --target cortex-m4 --clock 168\n  lora-pack plan model.lpk --ctx 512 --target cortex-a72 --clock 1800 --bandwidth 4"
)]
pub struct PlanArgs {
    /// The file
    pub file: PathBuf,
    /// Positions of the KV cache (default: a table of several)
    #[arg(long, value_name = "N")]
    pub ctx: Option<u32>,
    /// Tokens per step: the prefill chunk; encoders need the whole sequence
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub batch: u32,
    /// Element type of the KV cache: f32, f16, i8 (default: the file's)
    #[arg(long, value_name = "TYPE")]
    pub kv: Option<String>,
    /// A processor, to say how fast a token is and, for firmware, what code and stack take: cortex-m4, cortex-m7, cortex-m33,
    /// cortex-m55; cortex-a53, cortex-a72, cortex-a76
    #[arg(long, value_name = "CPU", value_parser = parse_target, requires = "ctx")]
    pub target: Option<Target>,
    /// The processor's clock in MHz
    #[arg(long, value_name = "MHZ", default_value_t = 100.0, requires = "target")]
    pub clock: f64,
    /// What the processor reads from memory in GB/s: a token cannot be faster than its weights
    #[arg(long, value_name = "GB/S", requires = "target")]
    pub bandwidth: Option<f64>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `fetch`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lora-pack fetch org/name
  lora-pack fetch org/name --revision v1.1
  lora-pack merge --base org/name --adapter org/adapter -o model.lpk    (the same names work there)

The cache is that of Hugging Face's own libraries (HF_HOME, HF_HUB_CACHE). Downloads need a lora-pack built with the
feature `hub`; they honour HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE.")]
pub struct FetchArgs {
    /// The model's name on the Hub
    #[arg(value_name = "ORG/NAME")]
    pub model: String,
    /// Branch, tag or commit (default: main)
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
    /// Print one JSON object: model, commit, folder
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `embed`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lora-pack embed home.lpk -o src/model.rs --section .model\n  lora-pack embed home.lpk -o model.c\n  lora-pack embed home.lpk -o model.o --target cortex-m7 --section .model\n\nC programs declare: extern const unsigned char model[]; extern const size_t model_len;"
)]
pub struct EmbedArgs {
    /// The file
    pub file: PathBuf,
    /// File to write: Rust source (.rs; includes the file by its path), C source (.c) or an object file (.o)
    #[arg(short = 'o', long = "out", value_name = "OUT.rs|.c|.o")]
    pub out: PathBuf,
    /// Name in the program (upper case in Rust)
    #[arg(long, value_name = "NAME", default_value = "model")]
    pub name: String,
    /// Section that the linker script places
    #[arg(long, value_name = "SECTION")]
    pub section: Option<String>,
    /// Machine of an object file: arm, aarch64, x86_64, or a processor or target like cortex-m4
    #[arg(long, value_name = "TARGET")]
    pub target: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lora-pack demo\n  lora-pack demo --quant q4 -o demo.lpk \"switch off the kitchen lights\""
)]
pub struct DemoArgs {
    /// What to tell the smart home (default: a few examples)
    pub commands: Vec<String>,
    /// Weight format
    #[arg(long, value_name = "FORMAT", default_value = "q8", value_parser = parse_format)]
    pub quant: WeightFormat,
    /// Keep the packed file
    #[arg(short = 'o', long = "out", value_name = "OUT.lpk")]
    pub out: Option<PathBuf>,
    /// Folder of the demo model (default: models/demo, looked for upwards from here)
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

fn parse_format(s: &str) -> Result<WeightFormat, String> {
    let format = WeightFormat::from_name(s).filter(|format| !format.is_import());
    format.ok_or_else(|| "expected one of f32, f16, q8, q8r, q6, q5, q4, q4l".into())
}

fn parse_kv(s: &str) -> Result<KvType, String> {
    match s {
        "f32" => Ok(KvType::F32),
        "f16" => Ok(KvType::F16),
        "i8" => Ok(KvType::I8),
        _ => Err("expected f32, f16 or i8".into()),
    }
}

fn parse_quant(s: &str) -> Result<Quant, String> {
    match s {
        "auto" => Ok(Quant::Auto),
        "keep" => Ok(Quant::Keep),
        _ => parse_format(s).map(Quant::Format).map_err(|e| e + ", auto, keep"),
    }
}

fn parse_size(s: &str) -> Result<u64, String> {
    let (digits, factor) = match s.char_indices().last() {
        Some((i, 'k' | 'K')) => (&s[..i], 1e3),
        Some((i, 'm' | 'M')) => (&s[..i], 1e6),
        Some((i, 'g' | 'G')) => (&s[..i], 1e9),
        _ => (s, 1.0),
    };
    match digits.parse::<f64>() {
        Ok(n) if n.is_finite() && n > 0.0 => Ok((n * factor) as u64),
        _ => Err("expected a number of bytes, or one with k, M or G".into()),
    }
}

fn parse_yes_no(s: &str) -> Result<bool, String> {
    match s {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("yes or no?".into()),
    }
}

fn parse_effort(s: &str) -> Result<Effort, String> {
    Effort::ALL.into_iter().find(|e| e.name() == s).ok_or_else(|| "expected fast, normal or best".into())
}

fn parse_factor_format(s: &str) -> Result<WeightFormat, String> {
    let fits = |f: &WeightFormat| matches!(f, WeightFormat::F32 | WeightFormat::F16 | WeightFormat::Q8);
    WeightFormat::from_name(s).filter(fits).ok_or_else(|| "expected f32, f16 or q8".into())
}

fn parse_qlora_base(s: &str) -> Result<QloraBase, String> {
    if s == "original" { Ok(QloraBase(None)) } else { s.parse().map(|q| QloraBase(Some(q))) }
}

fn parse_encoding(s: &str) -> Result<Encoding, String> {
    Encoding::from_name(s).ok_or_else(|| "expected one of f32, f16, bf16, q8_0, q5_0, q4_0, keep".into())
}

fn parse_task(s: &str) -> Result<Task, String> {
    let wanted = s.to_ascii_uppercase();
    let wanted = if wanted == "QUESTION_ANS" { "QUESTION_ANSWERING" } else { &wanted };
    Task::ALL.into_iter().find(|t| t.name() == wanted).ok_or_else(|| {
        let names: Vec<&str> = Task::ALL.iter().map(|t| t.name()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// Runs a verb.
///
/// # Errors
/// Refused input or a failed check, ready to print.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.verb {
        Verb::Adapter(a) => verb::adapter::run(&a),
        Verb::Bundle(a) => verb::bundle::run(&a),
        Verb::Unbundle(a) => verb::bundle::unbundle(&a),
        Verb::List(a) => verb::bundle::list(&a),
        Verb::Merge(a) => verb::merge::run(&a),
        Verb::Inspect(a) => verb::inspect::run(&a),
        Verb::Verify(a) => verb::verify::run(&a),
        Verb::Plan(a) => verb::plan::run(&a),
        Verb::Embed(a) => verb::embed::run(&a),
        Verb::Doctor(a) => verb::doctor::run(&a),
        Verb::Export(a) => verb::export::run(&a),
        Verb::Fetch(a) => verb::fetch::run(&a),
        Verb::Demo(a) => verb::demo::run(&a),
    }
}

/// An error and its causes in one printable line, control characters removed (names may come from files).
#[must_use]
pub fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn parse_target(name: &str) -> Result<Target, String> {
    let names = TARGETS.map(|t| t.name).join(", ");
    Target::from_name(name).ok_or_else(|| format!("expected one of {names}"))
}
