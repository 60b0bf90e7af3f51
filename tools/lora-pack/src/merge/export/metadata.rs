//! A checkpoint's config as GGUF metadata.
//!
//! What goes in is read off the description that the model is lowered by, so that defaults are those of its family.
//! Afterwards the metadata are read back, and both descriptions must agree: a config that GGUF has no words for is
//! found out and refused, or with `force` written down with a note of what changes.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use lora_models::arch::{ARCHITECTURES, Reader};
use lora_models::config::Config;
use lora_models::decoder::LmHead;
use lora_models::rope::Rope;
use lora_models::stack::{Embeddings, PositionBias, Stack};
use serde_json::Value;

use crate::source::gguf::container::{self, Entry, Metadata};
use crate::source::gguf::names::{self, Family, Heads};
use crate::source::gguf::writer::{self, Item, Planned};
use crate::source::{SourceError, gguf};

/// Metadata in the order in which they are written.
pub type Pairs = Vec<(String, Item)>;

/// A model as the lowering sees it.
struct Described {
    stack: Stack,
    decoder: Option<Stack>,
    head: Option<LmHead>,
}

fn describe(config: &Value) -> Result<Described> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let found = ARCHITECTURES.iter().find(|(name, _)| *name == model_type);
    let (_, reader) = found.ok_or_else(|| anyhow!("model_type {model_type:?} is not supported"))?;
    let c = Config::new(config);
    Ok(match reader {
        Reader::Decoder(read) => {
            let d = read(c)?;
            Described { stack: d.stack, decoder: None, head: Some(d.head) }
        }
        Reader::Encoder(read) => Described { stack: read(c)?.stack, decoder: None, head: None },
        Reader::Seq2Seq(read) => {
            let m = read(c)?;
            Described { stack: m.encoder, decoder: Some(m.decoder), head: Some(m.head) }
        }
    })
}

/// How the head comes out of the word embedding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tied {
    /// It does not.
    No,
    /// It is the embedding.
    Yes,
    /// It is the embedding times a factor that only a head of its own can hold (T5: llama.cpp scales no logits).
    Scaled(f32),
}

/// Whether the head is the word embedding.
pub fn tied(config: &Value, family: &Family) -> Result<Tied> {
    Ok(match describe(config)?.head {
        Some(head) if head.tied && head.scale != 1.0 && family.gguf == "t5" => Tied::Scaled(head.scale),
        Some(head) if head.tied => Tied::Yes,
        _ => Tied::No,
    })
}

/// The modules that may hold the word table, the first that is there does: of the model, and of its decoder if that is a
/// stack of its own.
pub fn word_tables(config: &Value) -> Result<Vec<&'static [&'static str]>> {
    let d = describe(config)?;
    Ok(std::iter::once(&d.stack).chain(&d.decoder).map(|s| s.embeddings.words).collect())
}

/// The architecture keys of a config.
pub fn architecture(config: &Value, family: &'static Family) -> Result<Pairs> {
    let d = describe(config)?;
    let mut pairs = Pairs::new();
    let mut set = |key: &str, item: Item| pairs.push((format!("{}.{key}", family.gguf), item));
    let count = |n: usize| -> Result<Item> { Ok(Item::Count(u32::try_from(n).context("a size beyond 32 bits")?)) };
    let stack = &d.stack;
    let layer = stack.layers.first().context("the model has no layers")?;
    let a = &layer.attention;
    set("context_length", count(stack.max_positions)?);
    set("embedding_length", count(stack.hidden)?);
    set("block_count", count(stack.layers.len())?);
    let inner = config.get("intermediate_size").and_then(Value::as_u64).filter(|_| layer.mlp.experts.is_some());
    set("feed_forward_length", count(inner.map_or(layer.mlp.inner, |n| n as usize))?);
    set("attention.head_count", count(a.heads)?);
    set("attention.head_count_kv", count(a.kv_heads)?);
    set("attention.key_length", count(a.head_dim)?);
    set("attention.value_length", count(a.head_dim)?);
    set("vocab_size", count(stack.embeddings.vocab)?);
    if let Some(e) = &layer.mlp.experts {
        set("expert_count", count(e.count)?);
        set("expert_used_count", count(e.chosen)?);
        set("expert_feed_forward_length", count(layer.mlp.inner)?);
        if let Some(shared) = &e.shared {
            set("expert_shared_feed_forward_length", count(shared.inner)?);
        }
    }
    let rms = stack.norm.kind == lora_runtime::program::NormKind::Rms;
    let eps = if rms { "attention.layer_norm_rms_epsilon" } else { "attention.layer_norm_epsilon" };
    set(eps, Item::Number(stack.norm.eps));
    let windows: Vec<usize> = stack.layers.iter().map(|l| l.attention.window).collect();
    if let Some(window) = windows.iter().copied().find(|w| *w > 0)
        && matches!(family.gguf, "phi3" | "gemma2" | "gemma3")
    {
        set("attention.sliding_window", count(window)?);
        if family.gguf == "gemma3" {
            set("attention.sliding_window_pattern", Item::Flags(windows.iter().map(|w| *w > 0).collect()));
        }
    }
    let head = d.head.as_ref();
    if a.softcap != 0.0 {
        set("attn_logit_softcapping", Item::Number(a.softcap));
    }
    if let Some(head) = head.filter(|h| h.softcap != 0.0) {
        set("final_logit_softcapping", Item::Number(head.softcap));
    }
    match family.gguf {
        "granite" => {
            set("attention.scale", Item::Number(a.scale as f32));
            set("embedding_scale", Item::Number(stack.embeddings.scale));
            set("residual_scale", Item::Number(layer.residual));
            set("logit_scale", Item::Number(head.map_or(1.0, |h| h.scale.recip())));
        }
        "gptneox" => set("use_parallel_residual", Item::Flag(layer.parallel)),
        "falcon" => set("tensor_data_layout", Item::Text("jploski".into())),
        "bert" => set("attention.causal", Item::Flag(a.causal)),
        "t5" => {
            let buckets = match &stack.bias {
                PositionBias::Buckets { buckets, .. } => *buckets,
                _ => bail!("a T5 without relative positions"),
            };
            set("attention.relative_buckets_count", count(buckets)?);
            set("decoder_block_count", count(d.decoder.as_ref().map_or(0, |d| d.layers.len()))?);
            let start = config.get("decoder_start_token_id").and_then(Value::as_u64).unwrap_or(0);
            set("decoder_start_token_id", count(start as usize)?);
        }
        _ => {}
    }
    if let Some(rope) = stack.ropes.first() {
        set("rope.dimension_count", count(2 * rope.inv_freq.len())?);
        set("rope.freq_base", Item::Number(theta(config) as f32));
        rotary(config, family, rope, &mut set, &mut Vec::new())?;
    }
    if let Some(types) = stack.embeddings.types {
        pairs.push(("tokenizer.ggml.token_type_count".into(), count(types.1)?));
    }
    Ok(pairs)
}

/// What the metadata say and llama.cpp does in its own way.
pub fn left_to_the_reader(config: &Value, family: &Family) -> Result<Option<String>> {
    let stack = describe(config)?.stack;
    let window = stack.layers.iter().map(|l| l.attention.window).max().unwrap_or(0);
    let long = stack.ropes.iter().find_map(|r| r.long.as_ref());
    Ok(match family.gguf {
        "phi3" if window > 0 && window < stack.max_positions => {
            Some(format!("llama.cpp has no sliding window for phi3: past {window} tokens its results differ"))
        }
        "phi3" => long.map(|long| {
            let n = long.above;
            format!(
                "llama.cpp takes LongRoPE's factors by the size of the context: choose one up to {n}, or longer texts"
            )
        }),
        _ => None,
    })
}

/// The tensors of rotary factors that go with a config.
pub fn factors(config: &Value, family: &Family) -> Result<Vec<Factors>> {
    let mut factors = Vec::new();
    if let Some(rope) = describe(config)?.stack.ropes.first() {
        rotary(config, family, rope, &mut |_, _| {}, &mut factors)?;
    }
    Ok(factors)
}

/// A tensor of rotary factors.
#[derive(Debug, Clone)]
pub struct Factors {
    /// GGUF's name.
    pub name: &'static str,
    /// Divisors of the frequencies.
    pub values: Vec<f32>,
}

/// The base of the rotary frequencies, by whichever name the config uses.
fn theta(config: &Value) -> f64 {
    let number = |v: &Value, name: &str| v.get(name).and_then(Value::as_f64);
    let nested = config.get("rope_parameters");
    let nested = nested.and_then(|p| p.get("full_attention").or(Some(p))).and_then(|p| number(p, "rope_theta"));
    let default = if config.get("model_type").and_then(Value::as_str) == Some("gemma3_text") { 1e6 } else { 10000.0 };
    nested.or(number(config, "rotary_emb_base")).or(number(config, "rope_theta")).unwrap_or(default)
}

fn rotary(
    config: &Value,
    family: &Family,
    rope: &Rope,
    set: &mut dyn FnMut(&str, Item),
    factors: &mut Vec<Factors>,
) -> Result<()> {
    let nested = config.get("rope_parameters").or_else(|| config.get("rope_scaling")).filter(|v| v.is_object());
    let nested = nested.map(|p| p.get("full_attention").unwrap_or(p));
    let text = |name: &str| nested.and_then(|n| n.get(name)).and_then(Value::as_str);
    let number = |name: &str| nested.and_then(|n| n.get(name)).and_then(Value::as_f64);
    let divisors = |inv_freq: &[f32]| -> Vec<f32> {
        let (theta, dim) = (theta(config), 2 * inv_freq.len());
        let base = |i: usize| theta.powf(-(2.0 * i as f64) / dim as f64);
        inv_freq.iter().enumerate().map(|(i, f)| (base(i) / f64::from(*f)) as f32).collect()
    };
    match text("rope_type").or(text("type")).unwrap_or("default") {
        "default" => {}
        "linear" => {
            set("rope.scaling.type", Item::Text("linear".into()));
            set("rope.scaling.factor", Item::Number(number("factor").unwrap_or(1.0) as f32));
        }
        "llama3" => factors.push(Factors { name: "rope_freqs.weight", values: divisors(&rope.inv_freq) }),
        "longrope" | "su" => {
            let long = rope.long.as_ref().context("LongRoPE without its second list")?;
            if family.gguf != "phi3" {
                // What a GGUF file of Llama's became, if both lists are the same.
                if long.inv_freq != rope.inv_freq || rope.scale != 1.0 {
                    bail!("rope_scaling: LongRoPE in {} has no words in GGUF", family.gguf);
                }
                factors.push(Factors { name: "rope_freqs.weight", values: divisors(&rope.inv_freq) });
                return Ok(());
            }
            set("rope.scaling.original_context_length", Item::Count(long.above));
            set("rope.scaling.attn_factor", Item::Number(rope.scale));
            factors.push(Factors { name: "rope_factors_long.weight", values: divisors(&long.inv_freq) });
            factors.push(Factors { name: "rope_factors_short.weight", values: divisors(&rope.inv_freq) });
        }
        "yarn" => {
            set("rope.scaling.type", Item::Text("yarn".into()));
            set("rope.scaling.factor", Item::Number(number("factor").unwrap_or(1.0) as f32));
            if let Some(old) = number("original_max_position_embeddings") {
                set("rope.scaling.original_context_length", Item::Count(old as u32));
            }
        }
        other => bail!("rope_scaling: type {other:?} has no words in GGUF"),
    }
    Ok(())
}

/// Reads the metadata back, and says where the model that they describe differs from `config`.
pub fn differences(config: &Value, pairs: &Pairs, tensors: &[Planned]) -> Result<Vec<String>> {
    let bytes = writer::header(pairs, &[]);
    let path = Path::new("the metadata to be written");
    let header = container::parse(path, &bytes)?;
    let metadata = Metadata { file: path, values: &header.metadata };
    let architecture = metadata.text("general.architecture")?.context("no architecture")?;
    let experts = gguf::config::has_experts(metadata, architecture)?;
    let family = names::family(architecture, experts).context("no such architecture")?;
    let entry = |t: &Planned| Entry { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone(), range: 0..0 };
    let entries: Vec<Entry> = tensors.iter().map(entry).collect();
    let factors = factors(config, family)?;
    let values = |e: &Entry| -> Result<Vec<f32>, SourceError> {
        Ok(factors.iter().find(|f| f.name == e.name).map(|f| f.values.clone()).unwrap_or_default())
    };
    let read = gguf::config::read(metadata, family, &entries, &values)?;
    let (mut want, got) = (describe(config)?, describe(&read.config)?);
    if let (Tied::Scaled(_), Some(head)) = (tied(config, family)?, &mut want.head) {
        (head.tied, head.scale) = (false, 1.0);
    }
    let mut out = Vec::new();
    compare("", &want.stack, &got.stack, &mut out);
    if let (Some(a), Some(b)) = (&want.decoder, &got.decoder) {
        compare("decoder: ", a, b, &mut out);
    }
    if let (Some(a), Some(b)) = (&want.head, &got.head) {
        compare_text("head", &format!("{a:?}"), &format!("{b:?}"), &mut out);
    }
    let heads = Heads::of(config);
    if family.gguf != "bert" && (heads.queries, heads.dim) != (read.heads.queries, read.heads.dim) {
        out.push(format!("heads: {heads:?} would become {:?}", read.heads));
    }
    if family.gguf == "olmoe" && heads.kv != heads.queries {
        out.push(format!(
            "llama.cpp loads it with as many key heads as query heads, here {} and {}",
            heads.kv, heads.queries
        ));
    }
    Ok(out)
}

/// Under whichever name the table stands.
fn embeddings(s: &Stack) -> String {
    format!("{:?}", Embeddings { words: &[], ..s.embeddings.clone() })
}

fn compare(what: &str, a: &Stack, b: &Stack, out: &mut Vec<String>) {
    if a.layers.len() != b.layers.len() {
        out.push(format!("{what}{} layers would become {}", a.layers.len(), b.layers.len()));
        return;
    }
    for (i, (x, y)) in a.layers.iter().zip(&b.layers).enumerate() {
        compare_text(&format!("{what}layer {i}"), &format!("{x:?}"), &format!("{y:?}"), out);
    }
    for (name, x, y) in [
        ("embeddings", embeddings(a), embeddings(b)),
        ("norm", format!("{:?}", a.norm), format!("{:?}", b.norm)),
        ("position bias", format!("{:?}", a.bias), format!("{:?}", b.bias)),
        ("sizes", format!("{:?}, {}", a.hidden, a.max_positions), format!("{:?}, {}", b.hidden, b.max_positions)),
    ] {
        compare_text(&format!("{what}{name}"), &x, &y, out);
    }
    let near =
        |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * a.abs());
    let same = a.ropes.len() == b.ropes.len()
        && a.ropes.iter().zip(&b.ropes).all(|(a, b)| {
            let long = |r: &Rope| r.long.as_ref().map_or(r.inv_freq.clone(), |l| l.inv_freq.clone());
            near(&a.inv_freq, &b.inv_freq) && near(&long(a), &long(b)) && near(&[a.scale], &[b.scale])
        });
    if !same {
        out.push(format!("{what}the rotary frequencies would change"));
    }
}

/// The first part of two descriptions that differs.
fn compare_text(what: &str, a: &str, b: &str, out: &mut Vec<String>) {
    if a == b || out.len() > 20 {
        return;
    }
    let number = |s: &str| s.rsplit_once(": ").map_or(s, |p| p.1).trim_matches(['}', ' ']).parse::<f64>();
    for (x, y) in a.split(", ").zip(b.split(", ")).filter(|(x, y)| x != y) {
        // Numbers went through f32.
        if let (Ok(p), Ok(q)) = (number(x), number(y))
            && (p - q).abs() <= 1e-6 * p.abs()
        {
            continue;
        }
        out.push(format!("{what}: `{x}` would become `{y}`"));
        return;
    }
}
