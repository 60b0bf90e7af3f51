//! Both sides in one process, turn by turn, so that whatever disturbs the machine disturbs both.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value as Json, json};

use crate::clock::Clock;
use crate::lora::{self, Options};
use crate::runner::{Runner, Setup};
use crate::stats::Spread;

/// Arguments of `compare`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Our model
    pub model: PathBuf,
    /// The same model as a GGUF file; left out, only ours is measured
    pub peer: Option<PathBuf>,
    #[command(flatten)]
    pub options: Options,
    /// What to do how often
    #[command(flatten)]
    pub plan: Plan,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// The measurements.
#[derive(Clone, Debug, clap::Args)]
pub struct Plan {
    /// Numbers of threads. One thread is measured in CPU time, several in wall time
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [1])]
    pub threads: Vec<usize>,
    /// Prompt lengths
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [128])]
    pub prompt: Vec<u32>,
    /// Tokens to generate in a turn; 0 for none
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub generate: u32,
    /// Positions already in the cache when generating
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [0, 1024])]
    pub depth: Vec<u32>,
    /// Turns of each side
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
}

/// What a row measures.
#[derive(Clone, Copy, Debug)]
enum Test {
    Prompt(u32),
    Generate { depth: u32, n: u32 },
}

impl Test {
    fn name(self) -> String {
        match self {
            Self::Prompt(n) => format!("prefill {n}"),
            Self::Generate { depth: 0, n } => format!("decode {n}"),
            Self::Generate { depth, n } => format!("decode {n} at {depth}"),
        }
    }
    fn run(self, runner: &mut dyn Runner) -> Result<()> {
        match self {
            Self::Prompt(n) => runner.prefill(n),
            Self::Generate { depth, n } => runner.decode(depth, n),
        }
    }
    fn tokens(self) -> f64 {
        match self {
            Self::Prompt(n) | Self::Generate { n, .. } => f64::from(n),
        }
    }
    fn positions(self) -> u32 {
        match self {
            Self::Prompt(n) => n,
            Self::Generate { depth, n } => depth + n,
        }
    }
}

/// A measured row.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was measured.
    pub test: String,
    /// Threads of both sides.
    pub threads: usize,
    /// Tokens per second of ours.
    pub ours: Spread,
    /// Tokens per second of the other side.
    pub theirs: Option<Spread>,
    /// Ours ÷ theirs, turn by turn.
    pub ratio: Option<Spread>,
}

impl Row {
    /// The row that another process printed as JSON.
    pub fn of_json(json: &Json) -> Option<Self> {
        let spread = |name: &str| {
            let field = |part: &str| json[name][part].as_f64();
            Some(Spread { low: field("low")?, median: field("median")?, high: field("high")? })
        };
        Some(Self {
            test: json["test"].as_str()?.to_owned(),
            threads: json["threads"].as_u64()? as usize,
            ours: spread("tokens_per_second")?,
            theirs: spread("peer_tokens_per_second"),
            ratio: spread("ratio"),
        })
    }

    /// The row as JSON.
    pub fn json(&self) -> Json {
        let spread = |s: Spread| json!({ "low": s.low, "median": s.median, "high": s.high });
        json!({
            "test": self.test, "threads": self.threads, "clock": Clock::for_threads(self.threads).name(),
            "tokens_per_second": spread(self.ours),
            "peer_tokens_per_second": self.theirs.map(spread), "ratio": self.ratio.map(spread),
        })
    }
}

/// Runs the verb.
///
/// # Errors
/// A side cannot load or run its model.
pub fn run(args: &Args) -> Result<()> {
    let rows = measure(&args.model, args.peer.as_deref(), &args.options, &args.plan)?;
    if args.json {
        let rows: Vec<Json> = rows.iter().map(Row::json).collect();
        println!("{}", json!({ "model": args.model, "peer": args.peer, "peer_build": peer_build(), "rows": rows }));
    } else {
        println!("llama.cpp: {}", peer_build().unwrap_or_else(|| "not in this build".into()));
        print!("{}", table(&rows));
    }
    Ok(())
}

/// What the other side says about its build.
pub fn peer_build() -> Option<String> {
    #[cfg(feature = "llama-cpp")]
    return Some(crate::llama::system_info());
    #[cfg(not(feature = "llama-cpp"))]
    None
}

/// The rows as a Markdown table.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| test | threads | clock | ours, tokens/s | llama.cpp | ratio (quartiles) |\n|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let theirs = row.theirs.map_or("–".into(), |t| format!("{:.1}", t.median));
        let ratio = row.ratio.map_or("–".into(), |r| format!("**{:.2}** ({:.2}…{:.2})", r.median, r.low, r.high));
        let clock = Clock::for_threads(row.threads).name();
        text +=
            &format!("| {} | {} | {clock} | {:.1} | {theirs} | {ratio} |\n", row.test, row.threads, row.ours.median);
    }
    text
}

/// Measures every test at every number of threads.
///
/// # Errors
/// A side cannot load or run its model.
pub fn measure(model: &Path, peer: Option<&Path>, options: &Options, plan: &Plan) -> Result<Vec<Row>> {
    let prompts = plan.prompt.iter().filter(|n| **n > 0).map(|n| Test::Prompt(*n));
    let decodes = plan.depth.iter().filter(|_| plan.generate > 0);
    let tests: Vec<Test> = prompts.chain(decodes.map(|d| Test::Generate { depth: *d, n: plan.generate })).collect();
    let mapping = lora::map(model)?;
    let model = lora::verify(&mapping)?;
    let peer = Peer::load(peer)?;
    let mut rows = Vec::new();
    for threads in &plan.threads {
        for test in &tests {
            let batch = plan.prompt.iter().copied().max().unwrap_or(1).max(128);
            let setup = Setup { context: test.positions() + 1, batch, threads: *threads };
            let row = lora::with_session(model, options, setup, |mut ours| {
                peer.with(setup, |theirs| turns(*test, setup, plan.rounds, &mut ours, theirs))
            })?;
            rows.push(row);
        }
    }
    Ok(rows)
}

fn turns(
    test: Test,
    setup: Setup,
    rounds: u32,
    ours: &mut dyn Runner,
    mut theirs: Option<&mut dyn Runner>,
) -> Result<Row> {
    let clock = Clock::for_threads(setup.threads);
    let (mut a, mut b, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    // The first round only warms up.
    for round in 0..=rounds {
        let mine = test.tokens() / clock.seconds(|| test.run(ours))?;
        let other = match &mut theirs {
            Some(runner) => Some(test.tokens() / clock.seconds(|| test.run(*runner))?),
            None => None,
        };
        if round > 0 {
            a.push(mine);
            b.extend(other);
            ratios.extend(other.map(|other| mine / other));
        }
    }
    let spread = |values: &mut Vec<f64>| (!values.is_empty()).then(|| Spread::of(values));
    Ok(Row {
        test: test.name(),
        threads: setup.threads,
        ours: Spread::of(&mut a),
        theirs: spread(&mut b),
        ratio: spread(&mut ratios),
    })
}

/// The other side's model, if there is one.
struct Peer {
    #[cfg(feature = "llama-cpp")]
    loaded: Option<(llama_cpp_2::llama_backend::LlamaBackend, llama_cpp_2::model::LlamaModel)>,
}

impl Peer {
    #[cfg(feature = "llama-cpp")]
    fn load(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self { loaded: None }) };
        let backend = crate::llama::backend()?;
        let model = crate::llama::load(&backend, path)?;
        Ok(Self { loaded: Some((backend, model)) })
    }
    #[cfg(feature = "llama-cpp")]
    fn with<T>(&self, setup: Setup, f: impl FnOnce(Option<&mut dyn Runner>) -> Result<T>) -> Result<T> {
        match &self.loaded {
            Some((backend, model)) => f(Some(&mut crate::llama::Llama::new(backend, model, setup)?)),
            None => f(None),
        }
    }
    #[cfg(not(feature = "llama-cpp"))]
    fn load(path: Option<&Path>) -> Result<Self> {
        if path.is_some() {
            anyhow::bail!("this build has no llama.cpp: cargo build --release -p lora-bench --features llama-cpp");
        }
        Ok(Self {})
    }
    #[cfg(not(feature = "llama-cpp"))]
    fn with<T>(&self, _: Setup, f: impl FnOnce(Option<&mut dyn Runner>) -> Result<T>) -> Result<T> {
        f(None)
    }
}
