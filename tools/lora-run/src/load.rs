//! From a path to a session: the mapped file, the kernels, the threads, the arena.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use lora_runtime::format::EntryKind;
use lora_runtime::kernels::{Kernels, KvType, Level};
use lora_runtime::map::Mapping;
use lora_runtime::program::SessionConfig;
use lora_runtime::threads::{ArenaBox, Pool};
use lora_runtime::{Error, ErrorKind, Model, Session};

use crate::cli::ModelArgs;
use crate::stats::{available_memory, human};

/// Tokens of one prefill step, unless `--chunk` says otherwise.
const CHUNK: u32 = 64;

/// Everything that outlives the sessions of a run.
pub struct Host {
    mapping: Mapping,
    path: PathBuf,
    pool: Pool,
    /// The kernels in use.
    pub kernels: &'static Kernels,
    threads: usize,
    chunk: u32,
    context: Option<u32>,
    kv: Option<KvType>,
    started: Instant,
}

impl Host {
    /// Maps the file and starts the threads.
    ///
    /// # Errors
    /// The file cannot be opened, or this CPU does not run the level that was asked for.
    pub fn open(args: &ModelArgs) -> Result<Self> {
        let started = Instant::now();
        let mapping = map(&args.model)?;
        let kernels = match args.isa {
            None => Kernels::best(),
            Some(level) => Kernels::for_level(level).ok_or_else(|| {
                let names: Vec<&str> = Level::supported().map(Level::name).collect();
                anyhow!("--isa {}: this CPU runs {}", level.name(), names.join(", "))
            })?,
        };
        let threads = args.threads.map_or_else(default_threads, usize::from);
        let pool = Pool::new(threads).with_context(|| format!("cannot start {threads} threads"))?;
        Ok(Self {
            mapping,
            path: args.model.clone(),
            pool,
            kernels,
            threads,
            chunk: args.chunk.unwrap_or(CHUNK),
            context: args.ctx,
            kv: args.kv,
            started,
        })
    }

    /// Verifies the file; its cost does not depend on the size of the model.
    ///
    /// # Errors
    /// What is wrong with the file, and what to do.
    pub fn model(&self) -> Result<Model<'_>> {
        verify(&self.mapping, &self.path)
    }

    /// Time since the start of loading.
    pub fn since_start(&self) -> Duration {
        self.started.elapsed()
    }

    /// Tokens of one prefill step.
    pub fn chunk(&self) -> u32 {
        self.chunk
    }

    /// Threads that work, this one included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Element type of the KV cache: the user's word, else the file's default.
    pub fn kv(&self, model: &Model<'_>) -> KvType {
        let default = || u16::try_from(model.file.info.kv_type).ok().and_then(KvType::from_u16);
        self.kv.or_else(default).unwrap_or(KvType::F32)
    }

    /// Positions to plan for: the user's word, else `wanted` as far as the model has positions.
    ///
    /// # Errors
    /// `--ctx` is beyond the model's positions.
    pub fn context(&self, model: &Model<'_>, wanted: u32) -> Result<u32> {
        let limit = positions(model);
        match self.context {
            Some(n) if n > limit => bail!("--ctx {n}: the model has {limit} positions"),
            Some(n) => Ok(n),
            None => Ok(wanted.min(limit)),
        }
    }

    /// A plan for one sequence of `context` positions, `tokens` a step, `outputs` output rows a step.
    pub fn config(&self, model: &Model<'_>, context: u32, tokens: u32, outputs: u32) -> SessionConfig {
        SessionConfig {
            context,
            tokens: tokens.max(1),
            outputs: outputs.max(1),
            source: 0,
            sequences: 1,
            kv: self.kv(model),
        }
    }

    /// A session in `room`, which grows where it is too small.
    ///
    /// # Errors
    /// The plan does not fit this machine or this model.
    pub fn session<'s>(&'s self, model: Model<'s>, config: SessionConfig, room: &'s mut Room) -> Result<Session<'s>> {
        let need = model.plan(&config).arena_bytes;
        let memory = room.take(need).with_context(|| {
            format!("a session of {} positions, {} tokens a step", config.context.max(config.source), config.tokens)
        })?;
        Ok(Session::new(model, config, self.kernels, &self.pool, memory)?)
    }
}

/// Maps a file.
///
/// # Errors
/// The system's.
pub fn map(path: &Path) -> Result<Mapping> {
    Mapping::open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// Verifies a mapped file.
///
/// # Errors
/// What is wrong with it, and what to do.
pub fn verify<'m>(mapping: &'m Mapping, path: &Path) -> Result<Model<'m>> {
    Model::open(mapping).map_err(|e| anyhow!("{}: {e}{}", path.display(), advice(&e)))
}

/// Positions of a model: of its decoder, else of its encoder.
pub fn positions(model: &Model<'_>) -> u32 {
    let entry = model.entry(EntryKind::Decode).or_else(|_| model.entry(EntryKind::Encode));
    entry.map_or(model.file.info.max_positions, |e| e.max_positions)
}

/// Memory that sessions use one after another.
#[derive(Default)]
pub struct Room {
    arena: Option<ArenaBox>,
    bytes: u64,
}

impl Room {
    fn take(&mut self, bytes: u64) -> Result<&mut [u8]> {
        if bytes > self.bytes || self.arena.is_none() {
            // The old one goes first: the peak is what is needed now.
            self.arena = None;
            let available = available_memory().unwrap_or(u64::MAX / 4);
            let size = usize::try_from(bytes).ok().filter(|_| bytes <= available).with_context(|| {
                format!("needs {}, {} are free: lower --ctx or --chunk", human(bytes), human(available))
            })?;
            self.arena = Some(ArenaBox::new(size));
            self.bytes = bytes;
        }
        Ok(self.arena.get_or_insert_with(|| ArenaBox::new(0)).as_mut_slice())
    }
}

fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(16)
}

/// What to do about an error in a file.
fn advice(error: &Error) -> &'static str {
    match error.kind {
        ErrorKind::NotLpk => "; make one with `lora-pack merge`",
        ErrorKind::TooNew => "; update lora-run, or pack the model again with the lora-pack of this version",
        ErrorKind::Truncated => "; copy the file again",
        ErrorKind::OutOfBounds | ErrorKind::Invalid | ErrorKind::Misaligned | ErrorKind::Hash => {
            "; the file is damaged: copy or pack it again"
        }
        _ => "",
    }
}
