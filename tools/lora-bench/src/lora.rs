//! The side of this project.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use lora_runtime::format::EntryKind;
use lora_runtime::kernels::{Kernels, KvType, Level};
use lora_runtime::map::Mapping;
use lora_runtime::program::{AdapterNeeds, SessionConfig};
use lora_runtime::threads::{ArenaBox, Pool};
use lora_runtime::{Model, Segment, Session, Step};

use crate::runner::{Runner, Setup, token};

/// How our side runs.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Instruction set of our kernels (default: the best that this CPU runs)
    #[arg(long, value_name = "NAME", value_parser = parse_level)]
    pub isa: Option<Level>,
    /// Element type of our KV cache: f32, f16, i8. llama.cpp keeps f16
    #[arg(long, value_name = "TYPE", value_parser = parse_kv, default_value = "f16")]
    pub kv: KvType,
}

fn parse_level(name: &str) -> Result<Level, String> {
    Level::from_name(name).ok_or_else(|| format!("no instruction set named {name}"))
}

fn parse_kv(name: &str) -> Result<KvType, String> {
    KvType::from_name(name).ok_or_else(|| "f32, f16 or i8".to_owned())
}

impl Options {
    /// The kernels.
    ///
    /// # Errors
    /// This CPU does not run them.
    pub fn kernels(&self) -> Result<&'static Kernels> {
        match self.isa {
            None => Ok(Kernels::best()),
            Some(level) => Kernels::for_level(level).with_context(|| format!("this CPU does not run {}", level.name())),
        }
    }
}

/// Maps a model file.
///
/// # Errors
/// The system's.
pub fn map(path: &Path) -> Result<Mapping> {
    Mapping::open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// Verifies a mapped model.
///
/// # Errors
/// What is wrong with the file.
pub fn verify(mapping: &Mapping) -> Result<Model<'_>> {
    Model::open(mapping).map_err(|e| anyhow!("{e}"))
}

/// The plan of a run.
pub fn config(options: &Options, setup: Setup) -> SessionConfig {
    SessionConfig {
        context: setup.context,
        tokens: setup.batch,
        outputs: 1,
        source: 0,
        sequences: 1,
        kv: options.kv,
        adapters: AdapterNeeds::NONE,
    }
}

/// Runs `f` with a session of the model.
///
/// # Errors
/// The model cannot run like this, or `f`'s error.
pub fn with_session<T>(
    model: Model<'_>,
    options: &Options,
    setup: Setup,
    f: impl FnOnce(Lora<'_>) -> Result<T>,
) -> Result<T> {
    let config = config(options, setup);
    let pool = Pool::new(setup.threads)?;
    let mut arena = ArenaBox::new(usize::try_from(model.plan(&config).arena_bytes)?);
    let session = Session::new(model, config, options.kernels()?, &pool, arena.as_mut_slice())?;
    f(Lora::new(session))
}

/// A session, and how much of its cache holds something.
pub struct Lora<'m> {
    /// The session.
    pub session: Session<'m>,
    filled: u32,
}

impl<'m> Lora<'m> {
    /// A session that has run nothing yet.
    pub fn new(session: Session<'m>) -> Self {
        Self { session, filled: 0 }
    }
}

impl Lora<'_> {
    /// One step of `len` tokens after `past`.
    ///
    /// # Errors
    /// Beyond the plan.
    pub fn step(&mut self, past: u32, len: u32) -> Result<()> {
        let tokens = self.tokens(past, len);
        let segments = [Segment { sequence: 0, past, len }];
        let step = Step { tokens: &tokens, token_types: &[], segments: &segments, outputs: &[len - 1] };
        self.session.run(EntryKind::Decode, &step)?;
        self.filled = past + len;
        Ok(())
    }

    /// The tokens of positions `past..past + len`.
    pub fn tokens(&self, past: u32, len: u32) -> Vec<u32> {
        let vocab = self.session.model().file.info.vocab;
        (past..past + len).map(|i| token(i, vocab)).collect()
    }

    /// Fills the cache up to `depth`, if it is not.
    fn fill(&mut self, depth: u32) -> Result<()> {
        let batch = self.session.config().tokens;
        while self.filled < depth {
            self.step(self.filled, batch.min(depth - self.filled))?;
        }
        Ok(())
    }
}

impl Runner for Lora<'_> {
    fn prefill(&mut self, n: u32) -> Result<()> {
        let batch = self.session.config().tokens;
        for past in (0..n).step_by(batch as usize) {
            self.step(past, batch.min(n - past))?;
        }
        Ok(())
    }

    fn decode(&mut self, depth: u32, n: u32) -> Result<()> {
        self.fill(depth)?;
        for i in 0..n {
            self.step(depth + i, 1)?;
        }
        Ok(())
    }
}
