//! `raw`: exactly these token ids, every output to a file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ArgGroup;
use lora_runtime::format::{EntryKind, NONE, OutputRecord};
use lora_runtime::{Model, Session};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize_to_file};
use serde_json::Value as Json;

use crate::cli::ModelArgs;
use crate::forward::{Ids, Steps, forward};
use crate::load::{Host, Room};
use crate::output::note;

/// Arguments of `raw`.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("input").required(true).args(["ids", "ids_file"]), after_help = "\
Examples:
  lora-run raw model.lpk --ids 1,2,3 --out logits.safetensors
  lora-run raw t5.lpk --ids 37,1712,1 --decoder-ids 0,37 --out logits.safetensors
  lora-run raw model.lpk --ids-file inputs.json --chunk 16 --out logits.safetensors
      inputs.json: {\"ids\": [1, 2, 3], \"token_type_ids\": [0, 0, 1], \"decoder_ids\": [0]}   or a list of such
      objects: their outputs are named 0.logits, 1.logits, …

Outputs are float32, row-major: logits [tokens, vocabulary] of a language model, [labels] or [tokens, labels] of a
classifier, start_logits and end_logits [tokens], last_hidden_state [tokens, hidden], mean_pooled [hidden], …")]
pub struct Args {
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

/// One input.
#[derive(Default)]
struct Input {
    ids: Vec<u32>,
    types: Vec<u32>,
    decoder: Option<Vec<u32>>,
}

/// One output, little-endian.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// Runs the verb.
///
/// # Errors
/// The ids do not fit the model, or a file cannot be read or written.
pub fn run(args: &Args) -> Result<()> {
    let host = Host::open(&args.model)?;
    let model = host.model()?;
    let (inputs, named) = match &args.ids_file {
        Some(file) => read(file).with_context(|| file.display().to_string())?,
        None => (vec![from_arguments(args)], false),
    };
    let mut room = Room::default();
    let mut tensors = Vec::new();
    for (i, input) in inputs.iter().enumerate() {
        let outputs = outputs(&host, model, &mut room, input).with_context(|| format!("input {i}"))?;
        tensors.extend(outputs.into_iter().map(|t| match named {
            true => Tensor { name: format!("{i}.{}", t.name), ..t },
            false => t,
        }));
    }
    write(&tensors, &args.out)?;
    for t in tensors.iter().take(8) {
        note(&format!("{} {:?}", t.name, t.shape));
    }
    if tensors.len() > 8 {
        note(&format!("… {} outputs in {}", tensors.len(), args.out.display()));
    }
    Ok(())
}

fn from_arguments(args: &Args) -> Input {
    let ids = [args.ids.as_slice(), &args.pair_ids].concat();
    let types = if args.pair_ids.is_empty() {
        Vec::new()
    } else {
        (0..ids.len()).map(|i| u32::from(i >= args.ids.len())).collect()
    };
    Input { ids, types, decoder: (!args.decoder_ids.is_empty()).then(|| args.decoder_ids.clone()) }
}

/// The inputs of a file, and whether it is a list of them.
fn read(file: &Path) -> Result<(Vec<Input>, bool)> {
    let json: Json = serde_json::from_slice(&std::fs::read(file)?)?;
    match &json {
        Json::Array(list) => Ok((list.iter().map(input).collect::<Result<_>>()?, true)),
        one => Ok((vec![input(one)?], false)),
    }
}

fn input(json: &Json) -> Result<Input> {
    let list = |name: &str| -> Result<Option<Vec<u32>>> {
        let Some(value) = json.get(name).filter(|v| !v.is_null()) else { return Ok(None) };
        let id = |v: &Json| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids: Option<Vec<u32>> = value.as_array().and_then(|a| a.iter().map(id).collect());
        Ok(Some(ids.with_context(|| format!("{name:?} is not a list of token ids"))?))
    };
    Ok(Input {
        ids: list("ids")?.context("an object with \"ids\" is expected")?,
        types: list("token_type_ids")?.unwrap_or_default(),
        decoder: list("decoder_ids")?,
    })
}

fn outputs(host: &Host, model: Model<'_>, room: &mut Room, input: &Input) -> Result<Vec<Tensor>> {
    if input.ids.is_empty() {
        bail!("no token ids");
    }
    if !input.types.is_empty() && input.types.len() != input.ids.len() {
        bail!("{} token types for {} token ids", input.types.len(), input.ids.len());
    }
    // A model without token types takes those of a tokenizer that has them, as long as they say nothing.
    let types =
        if model.file.info.token_types == 0 && input.types.iter().all(|t| *t == 0) { &[][..] } else { &input.types };
    let ids = Ids { tokens: &input.ids, types };
    let both = model.entry(EntryKind::Encode).is_ok() && model.entry(EntryKind::Decode).is_ok();
    if !both && input.decoder.is_some() {
        bail!("decoder ids are for encoder-decoder models, this one is {}", model.task().name());
    }
    let steps = Steps::of(&model, ids.tokens.len(), host.chunk());
    let source = ids.tokens.len() as u32;
    let start = [model.face.info.decoder_start];
    let decoder = input.decoder.as_deref().unwrap_or(if start[0] == NONE { &[] } else { &start });
    let decode = Steps { entry: EntryKind::Decode, tokens: host.chunk().min(decoder.len() as u32), every_row: true };
    let context = match (both, steps.entry) {
        (true, _) => host.context(&model, decoder.len() as u32)?,
        (false, EntryKind::Decode) => host.context(&model, source)?,
        (false, EntryKind::Encode) => 0,
    };
    let limit = model.entry(steps.entry)?.max_positions;
    if source > limit {
        bail!("{source} token ids, the model has {limit} positions");
    }
    let (tokens, rows) = match both {
        true => (steps.tokens.max(decode.tokens), decode.tokens),
        false => (steps.tokens, if steps.every_row { steps.tokens } else { 1 }),
    };
    let mut config = host.config(&model, context, tokens, rows);
    config.source = if both { source } else { 0 };
    let mut session = host.session(model, config, room)?;
    let mut tensors = Collector::new(&model, steps, ids.tokens.len())?;
    forward(&mut session, steps, ids, |_, s| tensors.take(s))?;
    let mut all = tensors.finish();
    if both {
        let mut tensors = Collector::new(&model, decode, decoder.len())?;
        forward(&mut session, decode, Ids { tokens: decoder, types: &[] }, |_, s| tensors.take(s))?;
        all.extend(tensors.finish());
    }
    Ok(all)
}

/// Gathers an entry's outputs over the steps of an input.
struct Collector {
    entry: EntryKind,
    /// Whether an output has a row for every token.
    per_token: Vec<bool>,
    tensors: Vec<Tensor>,
}

impl Collector {
    fn new(model: &Model<'_>, steps: Steps, tokens: usize) -> Result<Self> {
        let entry = model.entry(steps.entry)?;
        let outputs = model.outputs(entry);
        let per_token: Vec<bool> = outputs.iter().map(|o| steps.every_row || model.has_token_rows(entry, o)).collect();
        let tensor = |(o, per_token): (&OutputRecord, &bool)| Tensor {
            name: model.output_name(entry, o).to_owned(),
            shape: match (*per_token, o.width as usize) {
                (true, 1) => vec![tokens],
                (true, width) => vec![tokens, width],
                (false, width) => vec![width],
            },
            bytes: Vec::new(),
        };
        let tensors = outputs.iter().zip(&per_token).map(tensor).collect();
        Ok(Self { entry: steps.entry, per_token, tensors })
    }

    fn take(&mut self, session: &Session<'_>) -> Result<()> {
        for (i, tensor) in self.tensors.iter_mut().enumerate() {
            let rows = session.output(self.entry, &tensor.name)?;
            if !self.per_token[i] {
                // One row for the whole input: the last step's.
                tensor.bytes.clear();
            }
            let take = if self.per_token[i] { rows.len() } else { 1 };
            if tensor.bytes.is_empty() {
                tensor.bytes.reserve_exact(tensor.shape.iter().product::<usize>() * 4);
            }
            for row in 0..take {
                tensor.bytes.extend(rows.row(row).iter().flat_map(|x| x.to_le_bytes()));
            }
        }
        Ok(())
    }

    fn finish(self) -> Vec<Tensor> {
        self.tensors
    }
}

/// Writes the file beside its place and renames it: nobody sees half of it.
fn write(tensors: &[Tensor], out: &Path) -> Result<()> {
    let mut views = Vec::with_capacity(tensors.len());
    for t in tensors {
        let view = TensorView::new(Dtype::F32, t.shape.clone(), &t.bytes).with_context(|| t.name.clone())?;
        views.push((t.name.as_str(), view));
    }
    let mut part = out.as_os_str().to_owned();
    part.push(format!(".{}.part", std::process::id()));
    let part = Path::new(&part);
    let written = serialize_to_file(views, None, part)
        .map_err(anyhow::Error::from)
        .and_then(|()| Ok(std::fs::rename(part, out)?));
    if written.is_err() {
        let _ = std::fs::remove_file(part);
    }
    written.with_context(|| format!("cannot write {}", out.display()))
}
