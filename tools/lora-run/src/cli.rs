//! The command line: arguments of every verb, and the dispatch to `verb/`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand};
use lora_runtime::kernels::{KvType, Level};

use crate::verb;

/// Run an .lpk model on this machine: generate, chat, classify, tag, answer, embed, measure.
#[derive(Debug, Parser)]
#[command(
    name = "lora-run",
    version,
    max_term_width = 110,
    after_help = "\
Examples:
  lora-run chat home.lpk
  lora-run generate home.lpk -p 'Once upon a time' -n 100 --temp 0.8
  lora-run classify intents.lpk 'turn on the light' --json
  lora-run bench home.lpk

`lora-run VERB --help` shows examples of each verb. Make .lpk files with lora-pack."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Continue a prompt
    Generate(GenerateArgs),
    /// Talk with a model
    Chat(ChatArgs),
    /// Label texts
    Classify(ClassifyArgs),
    /// Label the words of texts (names, slots, …)
    Tag(TagArgs),
    /// Find the answer to a question in a text
    Qa(QaArgs),
    /// Turn texts into vectors
    Embed(EmbedArgs),
    /// Order documents by how well they fit a query
    Rerank(RerankArgs),
    /// Rewrite texts with an encoder-decoder model
    Seq2seq(Seq2seqArgs),
    /// Text to token ids
    Tokenize(TokenizeArgs),
    /// Token ids to text
    Detokenize(DetokenizeArgs),
    /// Run exactly these token ids and write every output
    Raw(RawArgs),
    /// Measure the speed of a model here
    Bench(BenchArgs),
    /// Check that this machine computes what the packer computed
    Selftest(SelftestArgs),
}

/// The model and how to run it.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// The model file
    pub model: PathBuf,
    /// Threads to use (default: one for each CPU)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256), help_heading = "Running")]
    pub threads: Option<u16>,
    /// Instruction set of the kernels (default: the best that this CPU runs): scalar, sse41, avx2, avxvnni, avx512,
    /// neon, dotprod, i8mm; all give the same bits
    #[arg(long, value_name = "NAME", value_parser = parse_level, help_heading = "Running")]
    pub isa: Option<Level>,
    /// Positions to plan memory for (default: what the request needs)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Running")]
    pub ctx: Option<u32>,
    /// Tokens of one prefill step (default 64): more is faster and takes more memory, and gives the same bits
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536), help_heading = "Running")]
    pub chunk: Option<u32>,
    /// Element type of the KV cache: f32, f16, i8 (default: the file's)
    #[arg(long, value_name = "TYPE", value_parser = parse_kv, help_heading = "Running")]
    pub kv: Option<KvType>,
}

/// How tokens are chosen and when to stop.
#[derive(Debug, Args)]
pub struct SamplingArgs {
    /// Most tokens to generate
    #[arg(short = 'n', long = "max-tokens", value_name = "N", default_value_t = 256)]
    pub n: u32,
    /// Temperature; 0 always takes the likeliest token (default: the model's)
    #[arg(long, value_name = "T", value_parser = parse_at_least_zero, help_heading = "Choosing tokens")]
    pub temp: Option<f32>,
    /// Choose among the K likeliest tokens; 0 is off (default: the model's)
    #[arg(long, value_name = "K", help_heading = "Choosing tokens")]
    pub top_k: Option<u32>,
    /// Choose among the likeliest tokens that together have probability P; 1 is off (default: the model's)
    #[arg(long, value_name = "P", value_parser = parse_share, help_heading = "Choosing tokens")]
    pub top_p: Option<f32>,
    /// Leave out tokens less probable than P times the likeliest one; 0 is off
    #[arg(long, value_name = "P", value_parser = parse_share, help_heading = "Choosing tokens")]
    pub min_p: Option<f32>,
    /// Divide the logits of tokens that have occurred; 1 is off (default: the model's)
    #[arg(long, value_name = "R", value_parser = parse_penalty, help_heading = "Choosing tokens")]
    pub repeat_penalty: Option<f32>,
    /// Seed of the random choice: the same seed gives the same text on every machine (default: another each time)
    #[arg(long, value_name = "S", help_heading = "Choosing tokens")]
    pub seed: Option<u64>,
    /// Stop before this text (repeatable)
    #[arg(long, value_name = "TEXT", help_heading = "Choosing tokens")]
    pub stop: Vec<String>,
    /// Go on past the model's end tokens
    #[arg(long, help_heading = "Choosing tokens")]
    pub ignore_eos: bool,
}

/// Arguments of `generate`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("input").required(true).args(["prompt", "ids", "file"]), after_help = "\
Examples:
  lora-run generate model.lpk -p 'Once upon a time' -n 100
  lora-run generate model.lpk -p 'What is the capital of France?' --chat --system 'Answer briefly.'
  lora-run generate model.lpk -p 'List: a, b,' --temp 0 --stop $'\\n' --json
  lora-run generate model.lpk --ids 1,306,4658 -n 20 --temp 0 --json
  lora-run generate model.lpk --file prompts.jsonl --json > answers.jsonl
      a line in:  {\"prompt\": \"Once upon a time\"}   or   {\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}
      a line out: {\"text\": \" there was …\", \"ids\": [ … ], … }")]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The prompt; `-` reads standard input
    #[arg(short = 'p', long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// The prompt as token ids
    #[arg(long, value_name = "1,2,3", value_delimiter = ',')]
    pub ids: Vec<u32>,
    /// One request a line; `-` reads standard input
    #[arg(long, value_name = "F.jsonl")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Take the prompt as a chat message: put it into the model's chat template
    #[arg(long, conflicts_with = "ids")]
    pub chat: bool,
    /// System message of the chat template
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
    /// Print one JSON object (with --file one a line)
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `chat`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lora-run chat model.lpk
  lora-run chat model.lpk --system 'You are a pirate.' --temp 0.7 --ctx 4096

Commands in the chat: /help /reset /system TEXT /exit. Ctrl-C stops an answer, at the prompt it ends the chat.")]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// System message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
}

/// One text, or a file of requests.
#[derive(Debug, Args)]
pub struct TextArgs {
    /// The text
    #[arg(value_name = "TEXT", conflicts_with = "file", required_unless_present_any = ["file", "text_flag"])]
    pub text: Option<String>,
    /// The text, as a flag
    #[arg(short = 'p', long = "text", value_name = "TEXT", id = "text_flag", conflicts_with_all = ["text", "file"])]
    pub text_flag: Option<String>,
    #[command(flatten)]
    pub requests: RequestArgs,
}

impl TextArgs {
    /// The one text.
    pub fn text(&self) -> &str {
        self.text.as_deref().or(self.text_flag.as_deref()).unwrap_or("")
    }
}

/// Requests from a file, and the form of the answers.
#[derive(Debug, Args)]
pub struct RequestArgs {
    /// One request a line; `-` reads standard input
    #[arg(long, value_name = "F.jsonl")]
    pub file: Option<PathBuf>,
    /// Cut texts that are longer than the model's positions, instead of refusing them
    #[arg(long)]
    pub truncate: bool,
    /// Print one JSON object (with --file one a line)
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `classify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lora-run classify intents.lpk 'turn on the kitchen light'
  lora-run classify nli.lpk 'A man sleeps.' --pair 'Nobody is awake.' --json
  lora-run classify intents.lpk --file texts.jsonl --json > labels.jsonl
      a line in:  {\"text\": \"turn on the kitchen light\"}      (a pair: also \"pair\")
      a line out: {\"label\": \"light_on\", \"scores\": {\"light_on\": 0.98, … }}")]
pub struct ClassifyArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub text: TextArgs,
    /// The second text of a pair
    #[arg(long, value_name = "TEXT", conflicts_with = "file")]
    pub pair: Option<String>,
}

/// Arguments of `tag`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lora-run tag slots.lpk 'turn on the lamp in the hall'
  lora-run tag slots.lpk --file sentences.jsonl --json > tags.jsonl
      a line in:  {\"text\": \"turn on the lamp\"}   or   {\"tokens\": [\"turn\", \"on\", \"the\", \"lamp\"]}
      a line out: {\"tags\": [\"O\", \"O\", \"O\", \"B-device\"], \"spans\": [{\"label\": \"device\", \"text\": \"lamp\", … }]}

Given words keep their tags one for one; in a text the words are the tokenizer's. Spans count characters.")]
pub struct TagArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub text: TextArgs,
}

/// Arguments of `qa`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lora-run qa qa.lpk --question 'Who keeps it?' --context 'The harbour master keeps a notebook.'
  lora-run qa qa.lpk --file questions.jsonl --json > answers.jsonl
      a line in:  {\"question\": \"Who keeps it?\", \"context\": \"The harbour master keeps a notebook.\"}
      a line out: {\"answer\": \"The harbour master\", \"start\": 0, \"end\": 18, \"score\": 11.5}

The score is the sum of the start and end logits. A context beyond the model's positions is read in overlapping windows.")]
pub struct QaArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The question
    #[arg(short = 'q', long, value_name = "TEXT", requires = "context", required_unless_present = "file")]
    pub question: Option<String>,
    /// The text that holds the answer
    #[arg(short = 'c', long, value_name = "TEXT", requires = "question", required_unless_present = "file")]
    pub context: Option<String>,
    /// One request a line; `-` reads standard input
    #[arg(long, value_name = "F.jsonl", conflicts_with = "question")]
    pub file: Option<PathBuf>,
    /// Longest answer in tokens
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_answer: u32,
    /// Print one JSON object (with --file one a line)
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `embed`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lora-run embed embed.lpk 'a sentence' --json
  lora-run embed embed.lpk --file texts.jsonl --json > vectors.jsonl
      a line in:  {\"text\": \"a sentence\"}
      a line out: {\"embedding\": [0.0123, … ]}")]
pub struct EmbedArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub text: TextArgs,
    /// How the vectors of the tokens become one: mean, cls (the first), last (default: the model's)
    #[arg(long, value_name = "HOW", value_parser = ["mean", "cls", "last"])]
    pub pool: Option<String>,
}

/// Arguments of `rerank`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lora-run rerank ranker.lpk --query 'how to reset' 'Hold the button.' 'The cat sat.' --json
  lora-run rerank ranker.lpk --file queries.jsonl --json
      a line in:  {\"query\": \"how to reset\", \"documents\": [\"Hold the button.\", \"The cat sat.\"]}
      a line out: {\"scores\": [4.1, -7.2], \"order\": [0, 1]}

A classifier (cross-encoder) scores each pair; an embedding model scores by cosine similarity.")]
pub struct RerankArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// What is looked for
    #[arg(short = 'q', long, value_name = "TEXT", required_unless_present = "file")]
    pub query: Option<String>,
    /// The documents
    #[arg(value_name = "TEXT", required_unless_present = "file")]
    pub documents: Vec<String>,
    #[command(flatten)]
    pub requests: RequestArgs,
}

/// Arguments of `seq2seq`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lora-run seq2seq normalize.lpk 'It costs $5.' --json
  lora-run seq2seq normalize.lpk --file texts.jsonl --json > texts.out.jsonl
      a line in:  {\"text\": \"It costs $5.\"}
      a line out: {\"text\": \"It costs five dollars.\", … }")]
pub struct Seq2seqArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub text: TextArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// Arguments of `tokenize`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lora-run tokenize model.lpk 'Hello world'
  lora-run tokenize model.lpk --file story.txt --json
  lora-run tokenize model.lpk 'a question' --pair 'a text' --no-special --json")]
pub struct TokenizeArgs {
    /// The model file
    pub model: PathBuf,
    /// The text
    #[arg(value_name = "TEXT", required_unless_present = "file", conflicts_with = "file")]
    pub text: Option<String>,
    /// A file that holds the text; `-` reads standard input
    #[arg(long, value_name = "F")]
    pub file: Option<PathBuf>,
    /// The second text of a pair
    #[arg(long, value_name = "TEXT")]
    pub pair: Option<String>,
    /// Without the tokens that the model's template adds
    #[arg(long)]
    pub no_special: bool,
    /// Print one JSON object: ids, tokens, offsets in characters
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `detokenize`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lora-run detokenize model.lpk --ids 1,15043,3186
  lora-run detokenize model.lpk --ids 1,15043,3186 --keep-special")]
pub struct DetokenizeArgs {
    /// The model file
    pub model: PathBuf,
    /// The ids
    #[arg(long, value_name = "1,2,3", value_delimiter = ',', required = true)]
    pub ids: Vec<u32>,
    /// Print special tokens too
    #[arg(long)]
    pub keep_special: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `raw`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("input").required(true).args(["ids", "ids_file"]), after_help = "\
Examples:
  lora-run raw model.lpk --ids 1,2,3 --out logits.safetensors
  lora-run raw t5.lpk --ids 37,1712,1 --decoder-ids 0,37 --out logits.safetensors
  lora-run raw model.lpk --ids-file inputs.json --chunk 16 --out logits.safetensors
      inputs.json: {\"ids\": [1, 2, 3], \"token_type_ids\": [0, 0, 1], \"decoder_ids\": [0]}   or a list of such
      objects: their outputs are named 0.logits, 1.logits, …

Outputs are float32, row-major: logits [tokens, vocabulary] of a language model, [labels] or [tokens, labels] of a
classifier, start_logits and end_logits [tokens], last_hidden_state [tokens, hidden], mean_pooled [hidden], …")]
pub struct RawArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Token ids
    #[arg(long, value_name = "1,2,3", value_delimiter = ',')]
    pub ids: Vec<u32>,
    /// Token ids of a second segment (token type 1), after the first
    #[arg(long, value_name = "4,5", value_delimiter = ',', requires = "ids")]
    pub pair_ids: Vec<u32>,
    /// Decoder ids of an encoder-decoder
    #[arg(long, value_name = "0,5", value_delimiter = ',', requires = "ids")]
    pub decoder_ids: Vec<u32>,
    /// A JSON file with the ids
    #[arg(long, value_name = "F.json")]
    pub ids_file: Option<PathBuf>,
    /// File to write
    #[arg(short = 'o', long, value_name = "OUT.safetensors")]
    pub out: PathBuf,
}

/// Arguments of `bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lora-run bench model.lpk
  lora-run bench model.lpk -p 128,512 -n 64 -t 1,2,4 -r 5 --json
  lora-run bench model.lpk --isa avx2          (compare instruction sets)

Rows: ppN reads a prompt of N tokens, tgN generates N tokens; tokens per second, median and range of the repetitions.")]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Prompt lengths to measure; 0 for none
    #[arg(short = 'p', long, value_name = "N,N", value_delimiter = ',', default_values_t = [128, 512])]
    pub prompt: Vec<u32>,
    /// Tokens to generate; 0 for none
    #[arg(short = 'n', long, value_name = "N,N", value_delimiter = ',', default_values_t = [64])]
    pub generate: Vec<u32>,
    /// Numbers of threads (default: one for each CPU)
    #[arg(short = 't', value_name = "N,N", value_delimiter = ',', conflicts_with = "threads",
          value_parser = clap::value_parser!(u16).range(1..=256))]
    pub thread_counts: Vec<u16>,
    /// Repetitions
    #[arg(short = 'r', long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `selftest`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lora-run selftest model.lpk\n  lora-run selftest model.lpk --json")]
pub struct SelftestArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

fn parse_level(s: &str) -> Result<Level, String> {
    let names: Vec<&str> = Level::ALL.iter().map(|l| l.name()).collect();
    Level::from_name(s).ok_or_else(|| format!("expected one of {}", names.join(", ")))
}

fn parse_kv(s: &str) -> Result<KvType, String> {
    KvType::from_name(s).ok_or_else(|| "expected f32, f16 or i8".into())
}

fn parse_number(s: &str, fits: impl Fn(f32) -> bool, expected: &str) -> Result<f32, String> {
    s.parse().ok().filter(|x| fits(*x)).ok_or_else(|| format!("expected {expected}"))
}

fn parse_at_least_zero(s: &str) -> Result<f32, String> {
    parse_number(s, |x| x.is_finite() && x >= 0.0, "a number of at least 0")
}

fn parse_share(s: &str) -> Result<f32, String> {
    parse_number(s, |x| (0.0..=1.0).contains(&x), "a number from 0 to 1")
}

fn parse_penalty(s: &str) -> Result<f32, String> {
    parse_number(s, |x| x.is_finite() && x > 0.0, "a number above 0")
}

/// Runs a verb.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.verb {
        Verb::Generate(a) => verb::generate::run(&a),
        Verb::Chat(a) => verb::chat::run(&a),
        Verb::Classify(a) => verb::classify::run(&a),
        Verb::Tag(a) => verb::tag::run(&a),
        Verb::Qa(a) => verb::qa::run(&a),
        Verb::Embed(a) => verb::embed::run(&a),
        Verb::Rerank(a) => verb::rerank::run(&a),
        Verb::Seq2seq(a) => verb::seq2seq::run(&a),
        Verb::Tokenize(a) => verb::tokenize::run(&a),
        Verb::Detokenize(a) => verb::detokenize::run(&a),
        Verb::Raw(a) => verb::raw::run(&a),
        Verb::Bench(a) => verb::bench::run(&a),
        Verb::Selftest(a) => verb::selftest::run(&a),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_teaches_by_example() {
        for verb in Cli::command().get_subcommands_mut() {
            let help = verb.render_long_help().to_string();
            assert!(help.contains(&format!("lora-run {} ", verb.get_name())), "{}", verb.get_name());
        }
    }

    #[test]
    fn calls_of_the_contract() {
        let calls = [
            "generate m.lpk --ids 1,2 -n 3 --temp 0 --ignore-eos --json",
            "generate m.lpk -p x -n 3 --top-k 5 --top-p 0.5 --min-p 0.1 --repeat-penalty 1.1 --seed 4 --stop a --stop b",
            "generate m.lpk --file f.jsonl --json -n 5 --temp 0 --chat --system s",
            "raw m.lpk --ids 1,2,3 --pair-ids 4 --chunk 3 --threads 2 --isa scalar --out o.safetensors",
            "raw m.lpk --ids-file f.json --out o.safetensors",
            "tokenize m.lpk text --pair b --no-special --json",
            "tokenize m.lpk --file f.txt --json",
            "detokenize m.lpk --ids 1,2",
            "classify m.lpk text --json --threads 1 --ctx 64",
            "tag m.lpk --file f.jsonl --json",
            "qa m.lpk --file f.jsonl --json",
            "embed m.lpk text",
            "seq2seq m.lpk --file f.jsonl --json",
            "bench m.lpk -p 128,512 -n 64 -t 1,2 -r 5 --json",
            "selftest m.lpk",
            "chat m.lpk --kv i8",
        ];
        for call in calls {
            let args = ["lora-run"].into_iter().chain(call.split(' '));
            if let Err(e) = Cli::try_parse_from(args) {
                panic!("{call}: {e}");
            }
        }
        let wrong = [
            "generate m.lpk",
            "generate m.lpk -p x --top-p 2",
            "raw m.lpk --ids 1",
            "bench m.lpk -t 0",
            "qa m.lpk -q x",
        ];
        for call in wrong {
            assert!(Cli::try_parse_from(["lora-run"].into_iter().chain(call.split(' '))).is_err(), "{call}");
        }
    }
}
