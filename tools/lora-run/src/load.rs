//! From a path to a session: the mapped file, the kernels, the threads, the arena.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use lora_runtime::format::{Bundle, EntryKind};
use lora_runtime::kernels::{Kernels, KvType, Level};
use lora_runtime::map::Mapping;
use lora_runtime::program::{AdapterNeeds, SessionConfig};
use lora_runtime::threads::{ArenaBox, Pool};
use lora_runtime::{Active, Adapter, Error, ErrorKind, Model, Session, Set};

use crate::cli::ModelArgs;
use crate::pin;
use crate::stats::{available_memory, human};

/// Tokens of one prefill step, unless `--chunk` says otherwise.
const CHUNK: u32 = 64;

/// Everything that outlives the sessions of a run.
pub struct Host {
    mapping: &'static Mapping,
    path: PathBuf,
    adapters: Vec<AdapterFile>,
    /// Those of the bundle, whether asked for or not.
    members: Vec<AdapterFile>,
    pool: Pool,
    pin: Vec<usize>,
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
        let mapping = keep(map(&args.model)?);
        let bundle = Bundle::is_bundle(mapping).then(|| Bundle::open(mapping)).transpose();
        let bundle = bundle.map_err(|e| anyhow!("{}: {e}{}", args.model.display(), advice(&e)))?;
        let adapters = args.adapters.iter().map(|a| AdapterFile::open(a, bundle.as_ref())).collect::<Result<_>>()?;
        let members = bundle.iter().flat_map(Bundle::adapters).map(|(n, b)| AdapterFile::new(n, 1.0, b)).collect();
        let kernels = match args.isa {
            None => Kernels::best(),
            Some(level) => Kernels::for_level(level).ok_or_else(|| {
                let names: Vec<&str> = Level::supported().map(Level::name).collect();
                anyhow!("--isa {}: this CPU runs {}", level.name(), names.join(", "))
            })?,
        };
        let threads = match args.threads {
            Some(n) => usize::from(n),
            None if args.pin.is_empty() => default_threads(),
            None => args.pin.len(),
        };
        let pool = pin::pool(threads, &args.pin)?;
        Ok(Self {
            mapping,
            path: args.model.clone(),
            adapters,
            members,
            pool,
            pin: args.pin.clone(),
            kernels,
            threads,
            chunk: args.chunk.unwrap_or(CHUNK),
            context: args.ctx,
            kv: args.kv,
            started,
        })
    }

    /// Verifies the file and attaches the adapters; the cost does not depend on the size of the model. With adapters, the
    /// model speaks with the voice of the one that brings a head, else of the first.
    ///
    /// # Errors
    /// What is wrong with a file, and what to do.
    pub fn model(&self) -> Result<Model<'_>> {
        let base = verify(self.mapping, &self.path)?;
        for file in &self.adapters {
            file.attach(&base)?;
        }
        let attached: Vec<&Adapter<'_>> = self.adapters.iter().filter_map(AdapterFile::attached).collect();
        let voice = attached.iter().find(|a| a.head().is_some()).or(attached.first());
        Ok(voice.map_or(base, |a| base.with_adapter(a)))
    }

    /// The adapters of the command line, all at once; the base alone where there are none.
    ///
    /// # Errors
    /// They do not go together.
    pub fn set(&self) -> Result<Set<'_>> {
        let active: Vec<Active<'_>> = self.adapters.iter().filter_map(AdapterFile::active).collect();
        Set::new(&active).map_err(|e| match self.adapters.get(e.index as usize) {
            Some(file) => anyhow!("--adapter {}: {}", file.name, Error { index: u64::MAX, ..e }),
            None => e.into(),
        })
    }

    /// Adapters that a conversation can choose from: those of the command line and of the bundle.
    pub fn library(&self) -> impl Iterator<Item = &AdapterFile> {
        self.adapters.iter().chain(&self.members)
    }

    /// What a session needs to choose any one of the library.
    ///
    /// # Errors
    /// A file is not sound or of another base.
    pub fn library_needs(&self, model: &Model<'_>) -> Result<AdapterNeeds> {
        self.library().try_fold(AdapterNeeds::NONE, |needs, file| Ok(needs.or(file.attach(model)?.needs())))
    }

    /// The adapters of a list of `NAME` or `NAME=WEIGHT`.
    ///
    /// # Errors
    /// An unknown name, or adapters that do not go together or bring a head or tokens of their own.
    pub fn choose(&self, list: &str) -> Result<Set<'_>> {
        let mut active = Vec::new();
        for word in list.split_whitespace() {
            let (name, weight) = match word.rsplit_once('=') {
                Some((name, weight)) => (name, weight.parse().with_context(|| format!("{word}: not a number"))?),
                None => (word, 1.0),
            };
            let file =
                self.library().find(|f| f.name == name).with_context(|| format!("no adapter is named {name}"))?;
            let adapter = file.attached().with_context(|| format!("adapter {name} is not attached"))?;
            if adapter.head().is_some() || !adapter.file.tokenizer.is_empty() {
                bail!("adapter {name} brings a head or tokens of its own: start with --adapter");
            }
            active.push(Active { weight, ..Active::new(adapter) });
        }
        Ok(Set::new(&active)?)
    }

    /// Time since the start of loading.
    pub fn since_start(&self) -> Duration {
        self.started.elapsed()
    }

    /// Tokens of one prefill step.
    pub fn chunk(&self) -> u32 {
        self.chunk
    }

    /// A pool of another number of threads.
    ///
    /// # Errors
    /// The system cannot start them, or there are fewer processors to stay on.
    pub fn pool_of(&self, threads: usize) -> Result<Pool> {
        pin::pool(threads, &self.pin)
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
            adapters: AdapterNeeds::NONE,
        }
    }

    /// A session in `room`, which grows where it is too small.
    ///
    /// # Errors
    /// The plan does not fit this machine or this model.
    pub fn session<'s>(&'s self, model: Model<'s>, config: SessionConfig, room: &'s mut Room) -> Result<Session<'s>> {
        let set = self.set()?;
        let config = SessionConfig { adapters: config.adapters.or(set.needs()), ..config };
        let need = model.plan(&config).arena_bytes;
        let memory = room.take(need).with_context(|| {
            format!("a session of {} positions, {} tokens a step", config.context.max(config.source), config.tokens)
        })?;
        let mut session = Session::new(model, config, self.kernels, &self.pool, memory)?;
        session.select(set)?;
        Ok(session)
    }
}

/// An adapter file, of the command line or in the bundle.
pub struct AdapterFile {
    /// The name of the file, or in the bundle.
    pub name: String,
    weight: f32,
    bytes: &'static [u8],
    adapter: OnceCell<Adapter<'static>>,
}

impl AdapterFile {
    /// `FILE`, or the name of one in the bundle; with `=WEIGHT` behind it. What exists as it is written is taken so.
    fn open(arg: &str, bundle: Option<&Bundle<'static>>) -> Result<Self> {
        let known = |name: &str| Path::new(name).exists() || bundle.is_some_and(|b| b.adapter(name).is_some());
        let (name, weight) = match arg.rsplit_once('=').filter(|_| !known(arg)) {
            None => (arg, 1.0),
            Some((name, weight)) => {
                (name, weight.parse().with_context(|| format!("--adapter {arg}: the weight is not a number"))?)
            }
        };
        let path = Path::new(name);
        let member = || bundle?.adapter(name);
        if let Some(bytes) = member().filter(|_| !path.exists()) {
            return Ok(Self::new(name, weight, bytes));
        }
        if let Some(bundle) = bundle.filter(|_| !path.exists()) {
            let names: Vec<&str> = bundle.adapters().map(|a| a.0).collect();
            bail!("--adapter {name}: no such file, and the bundle has {}", names.join(", "));
        }
        let stem = path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
        Ok(Self::new(&stem, weight, keep(map(path)?)))
    }

    fn new(name: &str, weight: f32, bytes: &'static [u8]) -> Self {
        Self { name: name.to_owned(), weight, bytes, adapter: OnceCell::new() }
    }

    fn attach(&self, base: &Model<'_>) -> Result<&Adapter<'static>> {
        if let Some(adapter) = self.adapter.get() {
            return Ok(adapter);
        }
        let adapter = Adapter::attach(base, self.bytes)
            .map_err(|e| anyhow!("adapter {}: {e}{}", self.name, adapter_advice(&e)))?;
        Ok(self.adapter.get_or_init(|| adapter))
    }

    fn attached(&self) -> Option<&Adapter<'static>> {
        self.adapter.get()
    }

    fn active(&self) -> Option<Active<'_>> {
        Some(Active { weight: self.weight, ..Active::new(self.attached()?) })
    }
}

/// Keeps a file mapped until the program ends, so that adapters can be kept beside what they point into.
fn keep(mapping: Mapping) -> &'static Mapping {
    Box::leak(Box::new(mapping))
}

/// What to do about an error in an adapter file.
fn adapter_advice(error: &Error) -> &'static str {
    match error.kind {
        ErrorKind::Mismatch => "; make one for this base with `lora-pack adapter`",
        _ => advice(error),
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
