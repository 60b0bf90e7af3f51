//! The `config.json` that a GGUF file's metadata amounts to.
//!
//! Keys after ggml's `docs/gguf.md`; what a key leaves unsaid is filled in as llama.cpp does when it loads the
//! architecture. A value that could not be honoured is refused by its key.

use serde_json::{Map, Value as Json, json};

use super::container::{Entry, Metadata, Value};
use super::names::{Family, Heads};
use crate::source::SourceError;

/// A model's config and the sizes that its tensors' order depends on.
#[derive(Debug)]
pub struct ReadConfig {
    /// As `config.json` would say it.
    pub config: Json,
    /// Heads.
    pub heads: Heads,
    /// Experts of a layer, 0 where it is no mixture.
    pub experts: usize,
}

/// The metadata under the architecture's prefix.
struct Keys<'a> {
    metadata: Metadata<'a>,
    arch: &'static str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    fn count(&self, name: &str) -> Result<u32, SourceError> {
        let key = self.key(name);
        self.metadata.count(&key)?.ok_or_else(|| self.metadata.missing(&key))
    }

    fn optional(&self, name: &str) -> Result<Option<u32>, SourceError> {
        self.metadata.count(&self.key(name))
    }

    /// A count that newer files may give for every layer: all must agree.
    fn uniform(&self, name: &str) -> Result<Option<u32>, SourceError> {
        let key = self.key(name);
        let Some(Value::Numbers(list)) = self.metadata.get(&key) else { return self.metadata.count(&key) };
        let first = list.iter().next();
        match first {
            Some(n) if list.iter().all(|x| x == n) && n.fract() == 0.0 && (0.0..4e9).contains(&n) => Ok(Some(n as u32)),
            _ => Err(self.metadata.refuse(&key, "differs from layer to layer, which is not supported")),
        }
    }

    fn number(&self, name: &str) -> Result<Option<f64>, SourceError> {
        self.metadata.number(&self.key(name))
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, SourceError> {
        self.metadata.flag(&self.key(name))
    }

    fn text(&self, name: &str) -> Result<Option<&str>, SourceError> {
        self.metadata.text(&self.key(name))
    }
}

/// Reads the config of `family` from the metadata and the tensors' names and shapes. `factors` reads a tensor of rotary
/// factors.
pub fn read(
    metadata: Metadata<'_>,
    family: &Family,
    tensors: &[Entry],
    factors: &dyn Fn(&Entry) -> Result<Vec<f32>, SourceError>,
) -> Result<ReadConfig, SourceError> {
    let k = Keys { metadata, arch: family.gguf };
    let tensor = |name: &str| tensors.iter().find(|t| t.name == name);
    let has = |name: &str| tensor(name).is_some();
    let hidden = k.count("embedding_length")?;
    let heads = k.uniform("attention.head_count")?.filter(|n| *n > 0);
    let heads = heads.ok_or_else(|| metadata.missing(&k.key("attention.head_count")))?;
    let kv = k.uniform("attention.head_count_kv")?.filter(|n| *n > 0).unwrap_or(heads);
    let key_length = k.uniform("attention.key_length")?;
    let dim = key_length.unwrap_or(hidden / heads);
    if k.uniform("attention.value_length")?.is_some_and(|v| v != dim) {
        return Err(metadata.refuse(&k.key("attention.value_length"), "differs from the keys' length"));
    }
    let embedding = tensor("token_embd.weight");
    let embedding = embedding.ok_or_else(|| SourceError::tensor(metadata.file, "token_embd.weight", "missing"))?;
    let vocab = embedding.shape.first().copied().unwrap_or(0);
    let mut c = Map::new();
    let mut set = |name: &str, value: Json| c.insert(name.into(), value);
    set("architectures", json!([family.class]));
    set("model_type", family.model_type.into());
    set("vocab_size", vocab.into());
    let rms = k.number("attention.layer_norm_rms_epsilon")?;
    let eps = k.number("attention.layer_norm_epsilon")?;
    let context = k.count("context_length")?;
    match family.gguf {
        "gpt2" => {
            set("n_embd", hidden.into());
            set("n_layer", k.count("block_count")?.into());
            set("n_head", heads.into());
            set("n_positions", context.into());
            set("n_inner", k.uniform("feed_forward_length")?.into());
            set("layer_norm_epsilon", eps.into());
        }
        "bloom" => {
            set("hidden_size", hidden.into());
            set("n_layer", k.count("block_count")?.into());
            set("n_head", heads.into());
            set("seq_length", context.into());
            set("layer_norm_epsilon", eps.into());
            if k.uniform("feed_forward_length")?.is_some_and(|n| n != 4 * hidden) {
                return Err(metadata.refuse(&k.key("feed_forward_length"), "not four times the embedding_length"));
            }
        }
        "t5" => t5(&k, &mut set, (hidden, heads, dim), rms, &has)?,
        _ => {
            set("hidden_size", hidden.into());
            set("num_hidden_layers", k.count("block_count")?.into());
            set("num_attention_heads", heads.into());
            set("num_key_value_heads", kv.into());
            set("max_position_embeddings", context.into());
            let inner = k.uniform("feed_forward_length")?;
            set("intermediate_size", inner.ok_or_else(|| metadata.missing(&k.key("feed_forward_length")))?.into());
            if let Some(n) = key_length {
                set("head_dim", n.into());
            }
            if let Some(eps) = rms {
                set("rms_norm_eps", eps.into());
            }
            if let Some(eps) = eps {
                for name in ["layer_norm_eps", "norm_epsilon", "layer_norm_epsilon"] {
                    set(name, eps.into());
                }
            }
            if let Some(theta) = k.number("rope.freq_base")? {
                set("rope_theta", theta.into());
            }
        }
    }
    set("tie_word_embeddings", (!has("output.weight")).into());
    set("attention_bias", has("blk.0.attn_q.bias").into());
    set("mlp_bias", has("blk.0.ffn_down.bias").into());
    let experts = if family.experts { mixture(&k, family, &mut set)? } else { 0 };
    let window = k.uniform("attention.sliding_window")?.filter(|w| *w > 0);
    family_options(&k, family, &mut set, (hidden, heads, dim), window, &has)?;
    rotary(&k, &mut set, (dim, context), tensors, factors)?;
    special_tokens(metadata, &mut set)?;
    let heads = Heads { queries: heads as usize, kv: kv as usize, dim: dim as usize };
    Ok(ReadConfig { config: Json::Object(c), heads, experts })
}

/// Whether a file of this architecture is a mixture of experts.
pub fn has_experts(metadata: Metadata<'_>, architecture: &str) -> Result<bool, SourceError> {
    Ok(metadata.count(&format!("{architecture}.expert_count"))?.is_some_and(|n| n > 0))
}

type Set<'s> = dyn FnMut(&str, Json) -> Option<Json> + 's;

fn t5(
    k: &Keys<'_>,
    set: &mut Set<'_>,
    (hidden, heads, dim): (u32, u32, u32),
    rms: Option<f64>,
    has: &dyn Fn(&str) -> bool,
) -> Result<(), SourceError> {
    let layers = k.count("block_count")?;
    set("d_model", hidden.into());
    set("num_layers", layers.into());
    set("num_decoder_layers", k.optional("decoder_block_count")?.unwrap_or(layers).into());
    set("num_heads", heads.into());
    set("d_kv", dim.into());
    set("d_ff", k.uniform("feed_forward_length")?.into());
    set("layer_norm_epsilon", rms.into());
    set("relative_attention_num_buckets", k.count("attention.relative_buckets_count")?.into());
    set("decoder_start_token_id", k.optional("decoder_start_token_id")?.unwrap_or(0).into());
    // llama.cpp computes gated MLPs with GELU and plain ones with ReLU.
    let gated = has("enc.blk.0.ffn_gate.weight");
    set("feed_forward_proj", if gated { "gated-gelu" } else { "relu" }.into());
    set("is_encoder_decoder", true.into());
    Ok(())
}

/// Experts, with the choices that llama.cpp makes for the architecture. Gives their number.
fn mixture(k: &Keys<'_>, family: &Family, set: &mut Set<'_>) -> Result<usize, SourceError> {
    for (key, is_default) in [
        ("leading_dense_block_count", &(|n| n == 0.0) as &dyn Fn(f64) -> bool),
        ("expert_gating_func", &|n| n == 1.0),
        ("expert_weights_scale", &|x| x == 0.0 || x == 1.0),
        ("expert_group_count", &|n| n <= 1.0),
    ] {
        if k.number(key)?.is_some_and(|x| !is_default(x)) {
            return Err(k.metadata.refuse(&k.key(key), "not supported in a mixture of experts"));
        }
    }
    let (count, used) = (k.count("expert_count")?, k.count("expert_used_count")?);
    set("num_experts_per_tok", used.into());
    let inner = k.uniform("feed_forward_length")?.unwrap_or(0);
    let of_expert = k.uniform("expert_feed_forward_length")?;
    let normalize = match family.gguf {
        "qwen2moe" => {
            let shared = k.uniform("expert_shared_feed_forward_length")?;
            set("shared_expert_intermediate_size", shared.unwrap_or(inner).into());
            false
        }
        "olmoe" => false,
        _ => true,
    };
    if let Some(said) = k.flag("expert_weights_norm")?
        && said != normalize
    {
        return Err(k.metadata.refuse(&k.key("expert_weights_norm"), format!("only {normalize} is supported")));
    }
    match family.gguf {
        "llama" => {
            set("num_local_experts", count.into());
            set("intermediate_size", of_expert.unwrap_or(inner).into());
        }
        "olmoe" => {
            set("num_experts", count.into());
            set("intermediate_size", of_expert.unwrap_or(inner).into());
            set("norm_topk_prob", normalize.into());
        }
        _ => {
            set("num_experts", count.into());
            set("moe_intermediate_size", of_expert.unwrap_or(inner / used.max(1)).into());
            set("norm_topk_prob", normalize.into());
        }
    }
    Ok(count as usize)
}

/// What single architectures add.
fn family_options(
    k: &Keys<'_>,
    family: &Family,
    set: &mut Set<'_>,
    (hidden, heads, dim): (u32, u32, u32),
    window: Option<u32>,
    has: &dyn Fn(&str) -> bool,
) -> Result<(), SourceError> {
    let layers = k.count("block_count")?;
    match family.gguf {
        "granite" => {
            for (key, name) in [
                ("attention.scale", "attention_multiplier"),
                ("embedding_scale", "embedding_multiplier"),
                ("residual_scale", "residual_multiplier"),
                ("logit_scale", "logits_scaling"),
            ] {
                set(name, k.number(key)?.into());
            }
        }
        "gemma" | "gemma2" | "gemma3" => {
            set("hidden_activation", "gelu_pytorch_tanh".into());
            // Only the 27B models divide by something else, and no key says so.
            let large = matches!((family.gguf, layers), ("gemma2", 46) | ("gemma3", 62));
            set("query_pre_attn_scalar", if large { hidden / heads } else { dim }.into());
            set("attn_logit_softcapping", k.number("attn_logit_softcapping")?.into());
            set("final_logit_softcapping", k.number("final_logit_softcapping")?.into());
            set("sliding_window", window.into());
            if family.gguf == "gemma3" {
                set("rope_local_base_freq", k.number("rope.freq_base_swa")?.unwrap_or(10000.0).into());
                let key = k.key("attention.sliding_window_pattern");
                match k.metadata.get(&key) {
                    Some(Value::Numbers(list)) => {
                        let kind = |slides| if slides == 0.0 { "full_attention" } else { "sliding_attention" };
                        set("layer_types", list.iter().map(kind).collect());
                    }
                    _ => {
                        set("sliding_window_pattern", k.metadata.count(&key)?.unwrap_or(6).into());
                    }
                }
            }
        }
        "phi3" => {
            set("sliding_window", window.into());
            let rotated = k.optional("rope.dimension_count")?.unwrap_or(dim);
            set("partial_rotary_factor", (f64::from(rotated) / f64::from(dim)).into());
        }
        "gptneox" => {
            let rotated = k.optional("rope.dimension_count")?.unwrap_or(dim);
            set("rotary_pct", (f64::from(rotated) / f64::from(dim)).into());
            set("use_parallel_residual", k.flag("use_parallel_residual")?.unwrap_or(true).into());
            set("attention_bias", has("blk.0.attn_qkv.bias").into());
        }
        "falcon" => {
            let grouped = has("blk.0.attn_norm_2.weight");
            set("new_decoder_architecture", grouped.into());
            set("num_kv_heads", k.uniform("attention.head_count_kv")?.unwrap_or(heads).into());
            set("multi_query", (k.uniform("attention.head_count_kv")? == Some(1)).into());
            set("parallel_attn", true.into());
            set("ffn_hidden_size", k.uniform("feed_forward_length")?.into());
            set("bias", has("blk.0.attn_qkv.bias").into());
        }
        "starcoder2" => {
            set("hidden_act", "gelu_pytorch_tanh".into());
            set("use_bias", has("blk.0.attn_q.bias").into());
        }
        "qwen2moe" => {
            set("qkv_bias", has("blk.0.attn_q.bias").into());
        }
        "smollm3" => {
            set("no_rope_layer_interval", 4.into());
        }
        "bert" => {
            set("hidden_act", "gelu".into());
            let types = k.metadata.count("tokenizer.ggml.token_type_count")?.unwrap_or(2);
            set("type_vocab_size", types.into());
            if k.flag("attention.causal")? == Some(true) {
                return Err(k.metadata.refuse(&k.key("attention.causal"), "a causal BERT is not supported"));
            }
        }
        _ => {}
    }
    Ok(())
}

/// Scaled rotary embeddings. Factors by frequency (Llama 3.1, LongRoPE) are given as LongRoPE's lists.
fn rotary(
    k: &Keys<'_>,
    set: &mut Set<'_>,
    (dim, context): (u32, u32),
    tensors: &[Entry],
    factors: &dyn Fn(&Entry) -> Result<Vec<f32>, SourceError>,
) -> Result<(), SourceError> {
    let rotated = k.optional("rope.dimension_count")?.unwrap_or(dim);
    if rotated != dim && !matches!(k.arch, "gptneox" | "phi3") {
        return Err(k.metadata.refuse(&k.key("rope.dimension_count"), format!("not the length of a head ({dim})")));
    }
    let list = |name: &str| {
        let Some(entry) = tensors.iter().find(|t| t.name == name) else { return Ok(None) };
        if entry.shape != [rotated as usize / 2] {
            let problem = format!("shape {:?}, expected [{}]", entry.shape, rotated / 2);
            return Err(SourceError::tensor(k.metadata.file, name, problem));
        }
        factors(entry).map(Some)
    };
    let kind = k.text("rope.scaling.type")?;
    let factor = k.number("rope.scaling.factor")?.or(k.number("rope.scale_linear")?).filter(|f| *f != 1.0);
    let original = k.optional("rope.scaling.original_context_length")?;
    let attention = k.number("rope.scaling.attn_factor")?;
    if let Some(all) = list("rope_freqs.weight")? {
        if kind.is_some_and(|kind| kind != "none") {
            return Err(k.metadata.refuse(&k.key("rope.scaling.type"), "together with rope_freqs, is not supported"));
        }
        set(
            "rope_scaling",
            json!({"rope_type": "longrope", "short_factor": all, "long_factor": all, "attention_factor": 1.0,
                   "original_max_position_embeddings": context}),
        );
        return Ok(());
    }
    match (list("rope_factors_short.weight")?, list("rope_factors_long.weight")?) {
        (Some(short), Some(long)) => {
            let original = original.unwrap_or(context);
            set("original_max_position_embeddings", original.into());
            set(
                "rope_scaling",
                json!({"rope_type": "longrope", "short_factor": short, "long_factor": long,
                       "attention_factor": attention.unwrap_or(1.0)}),
            );
            return Ok(());
        }
        (None, None) => {}
        _ => {
            return Err(SourceError::file(
                k.metadata.file,
                "only one of rope_factors_short and rope_factors_long is there",
            ));
        }
    }
    match (kind, factor) {
        (None | Some("none" | "linear" | "longrope"), None) => {}
        (Some("linear") | None, Some(factor)) => {
            set("rope_scaling", json!({"rope_type": "linear", "factor": factor}));
        }
        (Some("yarn"), factor) => {
            let mut yarn = json!({"rope_type": "yarn", "factor": factor.unwrap_or(1.0),
                                  "original_max_position_embeddings": original.unwrap_or(context)});
            if attention.is_some_and(|a| a != 1.0) {
                return Err(k.metadata.refuse(&k.key("rope.scaling.attn_factor"), "with yarn, only 1 is supported"));
            }
            for (key, name) in
                [("rope.scaling.yarn_beta_fast", "beta_fast"), ("rope.scaling.yarn_beta_slow", "beta_slow")]
            {
                if let Some(x) = k.number(key)? {
                    yarn[name] = x.into();
                }
            }
            set("rope_scaling", yarn);
        }
        (Some(other), _) => {
            let problem = format!("{other:?} is not supported; none, linear, yarn and longrope with its factors are");
            return Err(k.metadata.refuse(&k.key("rope.scaling.type"), problem));
        }
    }
    Ok(())
}

/// Ids that generation looks for.
fn special_tokens(metadata: Metadata<'_>, set: &mut Set<'_>) -> Result<(), SourceError> {
    let id = |name: &str| metadata.count(&format!("tokenizer.ggml.{name}_token_id"));
    set("bos_token_id", id("bos")?.into());
    set("pad_token_id", id("padding")?.into());
    let mut ends = Vec::new();
    for name in ["eos", "eot", "eom"] {
        ends.extend(id(name)?.filter(|n| !ends.contains(n)));
    }
    let ends = if ends.len() == 1 { json!(ends[0]) } else { json!(ends) };
    set("eos_token_id", if ends == json!([]) { Json::Null } else { ends });
    Ok(())
}
