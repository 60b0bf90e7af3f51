//! The merged model as a GGUF file, for llama.cpp and its kin.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use half::{bf16, f16};
use serde_json::Value;

use super::metadata::Tied;
use super::{metadata, vocabulary};
use crate::merge::{Level, Merged, Note};
use crate::source::arrange::Arrangement;
use crate::source::gguf::container::type_number;
use crate::source::gguf::file_name::{FileName, size_label};
use crate::source::gguf::names::{self, Heads, Place, Rules};
use crate::source::gguf::quantize;
use crate::source::gguf::writer::{self, Item, Planned};
use crate::source::{Dtype, TensorView, quote};

/// What matrices are written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// One type for all (embedding and head at least Q8_0; vectors stay f32).
    Type(Dtype),
    /// What the base, a GGUF file, stores; merged ones in the same type where it can be made, else Q8_0.
    Keep,
}

impl Encoding {
    /// The types that can be written, by their names in lower case, and `keep`.
    pub fn from_name(name: &str) -> Option<Self> {
        let types = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Q8_0, Dtype::Q5_0, Dtype::Q4_0];
        match name {
            "keep" => Some(Self::Keep),
            _ => types.into_iter().find(|t| t.name().eq_ignore_ascii_case(name)).map(Self::Type),
        }
    }

    /// The name in a file's name, and the number in `general.file_type`.
    fn label(self) -> (&'static str, Option<u32>) {
        match self {
            Self::Keep => ("mixed", None),
            Self::Type(dtype) => {
                let number = match dtype {
                    Dtype::F32 => 0,
                    Dtype::F16 => 1,
                    Dtype::Q4_0 => 2,
                    Dtype::Q8_0 => 7,
                    Dtype::Q5_0 => 8,
                    _ => 32,
                };
                (dtype.name(), Some(number))
            }
        }
    }
}

/// A file that was written.
#[derive(Debug, Clone)]
pub struct Written {
    /// Where it lies.
    pub path: PathBuf,
    /// Tensors in it.
    pub tensors: usize,
    /// Its bytes.
    pub bytes: u64,
    /// What a user should know.
    pub notes: Vec<Note>,
}

/// The word embedding.
const EMBEDDING: &str = "token_embd.weight";

/// Modules and tensors that llama.cpp's files leave out: it computes without them, or computes them itself.
const LEFT_OUT: &[&str] = &[
    ".pooler.dense.weight",
    ".pooler.dense.bias",
    ".embeddings.position_ids",
    ".embeddings.token_type_ids",
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
];

/// What to do where a model and GGUF do not fit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Options that GGUF has no words for are dropped with a note; else they are refused.
    pub force: bool,
    /// The file gets no vocabulary.
    pub no_tokenizer: bool,
}

/// Writes `out`, or a file named by the convention in the folder `out`.
pub fn write(merged: &Merged, out: &Path, encoding: Encoding, options: &Options) -> Result<Written> {
    let config = merged.config();
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let family = names::family_of(model_type).with_context(|| {
        let known: Vec<&str> = names::FAMILIES.iter().map(|f| f.model_type).collect();
        format!("GGUF has no architecture for {}; it has one for mistral, {}", quote(model_type), known.join(", "))
    })?;
    let rules = Rules::new(family, Heads::of(config), true);
    let mut notes = Vec::new();
    let mut items = items(merged, family, rules, encoding, &mut notes)?;
    let parameters: u64 = items.iter().map(|i| i.plan.shape.iter().product::<usize>() as u64).sum();
    for f in metadata::factors(config, family)? {
        let plan = Planned { name: f.name.into(), dtype: Dtype::F32, shape: vec![f.values.len()] };
        items.push(Content { plan, source: Source::Values(f.values) });
    }
    let base_name = merged.base().dir.canonicalize().unwrap_or_else(|_| merged.base().dir.clone());
    let base_name = base_name.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let file = FileName::of(&base_name, parameters);
    let mut pairs = general(&file, family.gguf, encoding, parameters);
    pairs.extend(metadata::architecture(config, family)?);
    let rows = items.iter().find(|i| i.plan.name == EMBEDDING).map(|i| i.plan.shape[0]);
    let rows = rows.context("the model has no word embedding")?;
    let generation = merged.base().generation_config.as_ref();
    if options.no_tokenizer {
        pairs.push(vocabulary::none());
    } else {
        pairs.extend(vocabulary::pairs(merged.tokenizer(), rows, config, generation).context("tokenizer")?);
    }
    let plans: Vec<Planned> = items.iter().map(|i| i.plan.clone()).collect();
    for difference in metadata::differences(config, &pairs, &plans)? {
        if !options.force {
            bail!("GGUF cannot say everything that this model needs: {difference} (--force writes it nevertheless)");
        }
        let text = format!("cannot say everything that this model needs: {difference}");
        notes.push(Note { level: Level::Warning, about: "GGUF".into(), text });
    }
    if let Some(text) = metadata::left_to_the_reader(config, family)? {
        notes.push(Note { level: Level::Warning, about: "GGUF".into(), text });
    }
    let path = if out.is_dir() { out.join(file.file(encoding.label().0)) } else { out.to_owned() };
    let bytes = store(merged, &path, &pairs, &plans, &items)?;
    Ok(Written { path, tensors: items.len(), bytes, notes })
}

fn general(file: &FileName, architecture: &str, encoding: Encoding, parameters: u64) -> metadata::Pairs {
    let text = |key: &str, text: &str| (format!("general.{key}"), Item::Text(text.to_owned()));
    let mut out = vec![
        text("architecture", architecture),
        text("type", "model"),
        text("name", &file.words()),
        text("basename", &file.base),
        text("size_label", &size_label(parameters)),
    ];
    out.extend(file.fine_tune.as_ref().map(|f| text("finetune", f)));
    out.push(("general.quantization_version".into(), Item::Count(2)));
    out.extend(encoding.label().1.map(|n| ("general.file_type".into(), Item::Count(n))));
    out
}

/// A tensor to write and where it comes from.
struct Content {
    plan: Planned,
    source: Source,
}

enum Source {
    /// Tensors of the merged model, one after the other, rearranged and multiplied.
    Tensors(Vec<String>, Arrangement, f32),
    /// Numbers.
    Values(Vec<f32>),
}

/// Every tensor, the embedding first, then by name.
fn items(
    merged: &Merged,
    family: &names::Family,
    rules: Rules,
    encoding: Encoding,
    notes: &mut Vec<Note>,
) -> Result<Vec<Content>> {
    let tied = metadata::tied(merged.config(), family)?;
    let words = WordTable::of(merged)?;
    // GGUF's name → the checkpoint's tensors by number, and how they are stored.
    let mut places: BTreeMap<String, (BTreeMap<usize, String>, Arrangement)> = BTreeMap::new();
    for name in merged.names() {
        if words.copies.iter().any(|c| c == name) {
            continue;
        }
        let dotted = format!(".{name}");
        if LEFT_OUT.iter().any(|l| dotted.ends_with(l)) {
            if dotted.ends_with(".pooler.dense.weight") {
                let text = "GGUF has no place for the pooler; it is left out".into();
                notes.push(Note { level: Level::Info, about: name.into(), text });
            }
            continue;
        }
        let place = match words.name.as_deref() == Some(name) {
            true => Some(Place { name: EMBEDDING.into(), arrangement: Arrangement::Same, expert: None }),
            false => spellings(name).iter().find_map(|n| rules.to_gguf(n)),
        };
        let Some(Place { name: gguf, arrangement, expert }) = place else {
            bail!("tensor {} has no place in GGUF's architecture {}", quote(name), family.gguf);
        };
        if tied != Tied::No && gguf == "output.weight" {
            continue;
        }
        let parts = &mut places.entry(gguf).or_insert_with(|| (BTreeMap::new(), arrangement)).0;
        parts.entry(expert.unwrap_or(0)).or_insert_with(|| name.to_owned());
    }
    let mut out = Vec::new();
    for (gguf, (parts, arrangement)) in places {
        let stacked = gguf.contains("_exps.");
        if stacked && parts.keys().copied().ne(0..parts.len()) {
            bail!("tensor {gguf}: experts are missing between others");
        }
        out.push(content(merged, gguf, parts.into_values().collect(), arrangement, stacked, encoding)?);
    }
    if let Tied::Scaled(factor) = tied {
        let embedding = out.iter().find(|c| c.plan.name == EMBEDDING).map(|c| &c.source);
        let Some(Source::Tensors(names, arrangement, _)) = embedding else { bail!("the model has no word embedding") };
        let (names, arrangement) = (names.clone(), *arrangement);
        let mut head = content(merged, "output.weight".into(), names, arrangement, false, encoding)?;
        if let Source::Tensors(_, _, times) = &mut head.source {
            *times = factor;
        }
        if head.plan.dtype.is_block() && !quantize::can_make(head.plan.dtype) {
            head.plan.dtype = Dtype::F16;
        }
        out.push(head);
    }
    out.sort_by_key(|i| (i.plan.name != EMBEDDING, i.plan.name.clone()));
    Ok(out)
}

/// Files leave the backbone's prefix out or write it, as the class had a head or not.
fn spellings(name: &str) -> Vec<String> {
    let bare = ["bert.", "model.", "transformer.", "gpt_neox."].iter().find_map(|p| name.strip_prefix(p));
    let longer = ["", "model.", "transformer.", "gpt_neox."].map(|p| format!("{p}{name}"));
    longer.into_iter().chain(bare.map(str::to_owned)).collect()
}

/// The plan for tensors of the merged model that become one.
fn content(
    merged: &Merged,
    gguf: String,
    names: Vec<String>,
    arrangement: Arrangement,
    stacked: bool,
    encoding: Encoding,
) -> Result<Content> {
    let shape = merged.shape(&names[0]).unwrap_or_default().to_vec();
    if let Some(other) = names.iter().find(|n| merged.shape(n) != Some(&shape)) {
        bail!("tensor {}: its shape is not that of {}", quote(other), quote(&names[0]));
    }
    if !arrangement.fits(&shape) {
        bail!("tensor {}: shape {shape:?} does not fit the sizes of the heads", quote(&names[0]));
    }
    let mut shape = arrangement.stored_shape(shape);
    let dtype = dtype_of(merged, &names, &gguf, &shape, arrangement, encoding);
    if stacked {
        shape.insert(0, names.len());
    }
    Ok(Content { plan: Planned { name: gguf, dtype, shape }, source: Source::Tensors(names, arrangement, 1.0) })
}

/// The word table of a model that may store several: GGUF has one.
#[derive(Default)]
struct WordTable {
    /// The one that is written.
    name: Option<String>,
    /// The others, which say the same or are not looked at.
    copies: Vec<String>,
}

impl WordTable {
    fn of(merged: &Merged) -> Result<Self> {
        let sides = metadata::word_tables(merged.config())?;
        if sides.len() < 2 {
            return Ok(Self::default());
        }
        let there = |module: &&&str| merged.shape(&format!("{module}.weight")).is_some();
        let used: Vec<String> =
            sides.iter().filter_map(|s| s.iter().find(there)).map(|m| format!("{m}.weight")).collect();
        let [first, others @ ..] = &used[..] else { return Ok(Self::default()) };
        for other in others.iter().filter(|o| *o != first) {
            if merged.tensor_f32(first)? != merged.tensor_f32(other)? {
                bail!("GGUF has one word embedding, and {} and {} differ", quote(first), quote(other));
            }
        }
        let all: BTreeSet<String> = sides.into_iter().flatten().map(|m| format!("{m}.weight")).collect();
        Ok(Self { name: Some(first.clone()), copies: all.into_iter().filter(|n| n != first).collect() })
    }
}

/// The stored tensor that can be copied as it lies: unchanged, and rearranged in the same way.
fn stored<'m>(merged: &'m Merged, name: &str, arrangement: Arrangement) -> Option<TensorView<'m>> {
    merged.unchanged(name).filter(|t| t.is_plain() && t.arrangement == arrangement)
}

/// What all of some tensors are stored as, where all can be copied.
fn stored_as(merged: &Merged, names: &[String], arrangement: Arrangement) -> Option<Dtype> {
    let mut types = names.iter().map(|n| stored(merged, n, arrangement).map(|t| t.dtype));
    let first = types.next()??;
    types.all(|t| t == Some(first)).then_some(first)
}

fn dtype_of(
    merged: &Merged,
    names: &[String],
    gguf: &str,
    shape: &[usize],
    arrangement: Arrangement,
    encoding: Encoding,
) -> Dtype {
    // What llama.cpp's converter keeps in f32.
    let always_float = shape.len() < 2
        || gguf.contains("_norm")
        || gguf.starts_with("position_embd")
        || gguf.starts_with("token_types")
        || gguf.contains("ffn_gate_inp")
        || gguf.contains("attn_rel_b");
    let columns = shape.last().copied().unwrap_or(1);
    let fits = |dtype: Dtype| if columns.is_multiple_of(dtype.block()) { dtype } else { Dtype::F16 };
    let outer = gguf.starts_with("token_embd") || gguf.starts_with("output.");
    match encoding {
        Encoding::Keep => match stored_as(merged, names, arrangement) {
            Some(t) if type_number(t).is_some() => t,
            _ if always_float => Dtype::F32,
            _ => match merged.base_dtype(&names[0]) {
                Some(d) if !d.is_block() && type_number(d).is_some() => d,
                Some(d) if quantize::can_make(d) => fits(d),
                _ => fits(Dtype::Q8_0),
            },
        },
        Encoding::Type(_) if always_float => Dtype::F32,
        Encoding::Type(Dtype::Q4_0 | Dtype::Q5_0) if outer => fits(Dtype::Q8_0),
        Encoding::Type(dtype) => fits(dtype),
    }
}

fn store(merged: &Merged, path: &Path, pairs: &metadata::Pairs, plans: &[Planned], items: &[Content]) -> Result<u64> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new().prefix(".lora-pack-export-").tempfile_in(parent);
    let temporary = temporary.with_context(|| parent.display().to_string())?;
    let mut file = BufWriter::with_capacity(1 << 20, temporary);
    let header = writer::header(pairs, plans);
    let mut at = header.len() as u64;
    file.write_all(&header)?;
    for item in items {
        write_tensor(merged, item, &mut file).with_context(|| format!("tensor {}", item.plan.name))?;
        let pad = writer::padding(item.plan.bytes());
        file.write_all(&vec![0; pad])?;
        at += item.plan.bytes() + pad as u64;
        merged.base().tensors().release();
    }
    let temporary = file.into_inner()?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).with_context(|| path.display().to_string())?;
    Ok(at)
}

fn write_tensor(merged: &Merged, item: &Content, file: &mut impl Write) -> Result<()> {
    let dtype = item.plan.dtype;
    match &item.source {
        Source::Values(values) => write_values(values, dtype, file),
        Source::Tensors(names, arrangement, factor) => names.iter().try_for_each(|name| {
            let same = stored(merged, name, *arrangement).filter(|t| t.dtype == dtype && *factor == 1.0);
            if let Some(t) = same {
                return Ok(file.write_all(t.bytes)?);
            }
            let shape = merged.shape(name).unwrap_or_default().to_vec();
            let mut values = arrangement.make(merged.tensor_f32(name)?, &shape);
            values.iter_mut().for_each(|v| *v *= factor);
            write_values(&values, dtype, file)
        }),
    }
}

fn write_values(values: &[f32], dtype: Dtype, file: &mut impl Write) -> Result<()> {
    for chunk in values.chunks(1 << 16) {
        let mut bytes = Vec::with_capacity(chunk.len() * 4);
        match dtype {
            Dtype::F32 => bytes.extend(chunk.iter().flat_map(|x| x.to_le_bytes())),
            Dtype::BF16 => bytes.extend(chunk.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes())),
            Dtype::F16 => {
                if let Some(x) = chunk.iter().find(|x| f16::from_f32(**x).is_infinite()) {
                    bail!("{x} is too large for F16; export as bf16 or f32");
                }
                bytes.extend(chunk.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()));
            }
            _ if quantize::can_make(dtype) => {
                if !quantize::blocks(dtype, chunk, &mut bytes) {
                    bail!("a value is too large for {}; export as bf16 or f32", dtype.name());
                }
            }
            other => bail!("cannot be written as {}", other.name()),
        }
        file.write_all(&bytes)?;
    }
    Ok(())
}
