//! Which checkpoint tensor a GGUF tensor stands for, architecture by architecture.
//!
//! GGUF's names are those of gguf-py's `MODEL_TENSORS`, the checkpoints' those of transformers; what happens to the rows on
//! the way is [`Arrangement`]'s. One table serves import and export.

use serde_json::Value as Json;

use crate::source::arrange::Arrangement;

/// How the elements of a tensor were moved, before the sizes of the model are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Not at all.
    Same,
    /// [`Arrangement::Pairs`].
    Pairs,
    /// [`Arrangement::Blocks`].
    Blocks,
    /// [`Arrangement::Transposed`], the weight alone.
    Transposed,
    /// [`Arrangement::PlusOne`].
    PlusOne,
    /// [`Arrangement::Row`].
    Row,
}

/// A module: GGUF's name, the checkpoint's, the order. `{}` is the layer; a second one, in the checkpoint's name alone, the
/// number of an expert, whose matrices GGUF stacks.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// In GGUF, without `.weight` or `.bias`.
    pub gguf: &'static str,
    /// In the checkpoint, likewise.
    pub hf: &'static str,
    /// What happens on the way.
    pub order: Order,
}

const fn same(gguf: &'static str, hf: &'static str) -> Rule {
    Rule { gguf, hf, order: Order::Same }
}

const fn moved(gguf: &'static str, hf: &'static str, order: Order) -> Rule {
    Rule { gguf, hf, order }
}

/// An architecture of GGUF and the checkpoints that become it.
#[derive(Debug)]
pub struct Family {
    /// `general.architecture`.
    pub gguf: &'static str,
    /// `model_type` of the config that a file of it is presented with.
    pub model_type: &'static str,
    /// Class name of the model.
    pub class: &'static str,
    /// A mixture of experts.
    pub experts: bool,
    /// Modules.
    pub rules: &'static [&'static [Rule]],
}

impl Family {
    /// Modules of members that differ: Falcon's layers with a norm for each branch, T5's MLPs without a gate.
    const fn variant(&self) -> &'static [Rule] {
        match self.gguf.as_bytes() {
            b"falcon" => FALCON_NORMS,
            b"t5" => T5_PLAIN,
            _ => &[],
        }
    }

    /// Whether a file with these tensors is such a member.
    pub fn is_variant(&self, has: impl Fn(&str) -> bool) -> bool {
        match self.gguf {
            "falcon" => has("blk.0.attn_norm_2.weight"),
            "t5" => !has("enc.blk.0.ffn_gate.weight"),
            _ => false,
        }
    }
}

/// Embedding, head, final norm and MLP of everything that follows Llama.
const LLAMA: &[Rule] = &[
    same("token_embd", "model.embed_tokens"),
    same("output", "lm_head"),
    same("blk.{}.attn_v", "model.layers.{}.self_attn.v_proj"),
    same("blk.{}.attn_output", "model.layers.{}.self_attn.o_proj"),
    same("blk.{}.ffn_gate", "model.layers.{}.mlp.gate_proj"),
    same("blk.{}.ffn_up", "model.layers.{}.mlp.up_proj"),
    same("blk.{}.ffn_down", "model.layers.{}.mlp.down_proj"),
];
const NORMS: &[Rule] = &[
    same("output_norm", "model.norm"),
    same("blk.{}.attn_norm", "model.layers.{}.input_layernorm"),
    same("blk.{}.ffn_norm", "model.layers.{}.post_attention_layernorm"),
];
const PAIRED: &[Rule] = &[
    moved("blk.{}.attn_q", "model.layers.{}.self_attn.q_proj", Order::Pairs),
    moved("blk.{}.attn_k", "model.layers.{}.self_attn.k_proj", Order::Pairs),
];
const UNPAIRED: &[Rule] = &[
    same("blk.{}.attn_q", "model.layers.{}.self_attn.q_proj"),
    same("blk.{}.attn_k", "model.layers.{}.self_attn.k_proj"),
];
const QK_NORMS: &[Rule] = &[
    same("blk.{}.attn_q_norm", "model.layers.{}.self_attn.q_norm"),
    same("blk.{}.attn_k_norm", "model.layers.{}.self_attn.k_norm"),
];
const GEMMA_NORMS: &[Rule] = &[
    moved("output_norm", "model.norm", Order::PlusOne),
    moved("blk.{}.attn_norm", "model.layers.{}.input_layernorm", Order::PlusOne),
];
const GEMMA_SANDWICH: &[Rule] = &[
    moved("blk.{}.post_attention_norm", "model.layers.{}.post_attention_layernorm", Order::PlusOne),
    moved("blk.{}.ffn_norm", "model.layers.{}.pre_feedforward_layernorm", Order::PlusOne),
    moved("blk.{}.post_ffw_norm", "model.layers.{}.post_feedforward_layernorm", Order::PlusOne),
];

const QWEN_EXPERTS: &[Rule] = &[
    same("blk.{}.ffn_gate_inp", "model.layers.{}.mlp.gate"),
    same("blk.{}.ffn_gate_exps", "model.layers.{}.mlp.experts.{}.gate_proj"),
    same("blk.{}.ffn_up_exps", "model.layers.{}.mlp.experts.{}.up_proj"),
    same("blk.{}.ffn_down_exps", "model.layers.{}.mlp.experts.{}.down_proj"),
];

/// Every architecture, by GGUF's name.
pub const FAMILIES: &[Family] = &[
    Family {
        gguf: "llama",
        model_type: "llama",
        class: "LlamaForCausalLM",
        experts: false,
        rules: &[LLAMA, NORMS, PAIRED],
    },
    Family {
        gguf: "granite",
        model_type: "granite",
        class: "GraniteForCausalLM",
        experts: false,
        rules: &[LLAMA, NORMS, PAIRED],
    },
    Family {
        gguf: "smollm3",
        model_type: "smollm3",
        class: "SmolLM3ForCausalLM",
        experts: false,
        rules: &[LLAMA, NORMS, PAIRED],
    },
    Family {
        gguf: "qwen2",
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        experts: false,
        rules: &[LLAMA, NORMS, UNPAIRED],
    },
    Family {
        gguf: "qwen3",
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        experts: false,
        rules: &[LLAMA, NORMS, UNPAIRED, QK_NORMS],
    },
    Family {
        gguf: "llama",
        model_type: "mixtral",
        class: "MixtralForCausalLM",
        experts: true,
        rules: &[
            LLAMA,
            NORMS,
            PAIRED,
            &[
                same("blk.{}.ffn_gate_inp", "model.layers.{}.block_sparse_moe.gate"),
                same("blk.{}.ffn_gate_exps", "model.layers.{}.block_sparse_moe.experts.{}.w1"),
                same("blk.{}.ffn_up_exps", "model.layers.{}.block_sparse_moe.experts.{}.w3"),
                same("blk.{}.ffn_down_exps", "model.layers.{}.block_sparse_moe.experts.{}.w2"),
            ],
        ],
    },
    Family {
        gguf: "qwen2moe",
        model_type: "qwen2_moe",
        class: "Qwen2MoeForCausalLM",
        experts: true,
        rules: &[
            LLAMA,
            NORMS,
            UNPAIRED,
            QWEN_EXPERTS,
            &[
                moved("blk.{}.ffn_gate_inp_shexp", "model.layers.{}.mlp.shared_expert_gate", Order::Row),
                same("blk.{}.ffn_gate_shexp", "model.layers.{}.mlp.shared_expert.gate_proj"),
                same("blk.{}.ffn_up_shexp", "model.layers.{}.mlp.shared_expert.up_proj"),
                same("blk.{}.ffn_down_shexp", "model.layers.{}.mlp.shared_expert.down_proj"),
            ],
        ],
    },
    Family {
        gguf: "qwen3moe",
        model_type: "qwen3_moe",
        class: "Qwen3MoeForCausalLM",
        experts: true,
        rules: &[LLAMA, NORMS, UNPAIRED, QK_NORMS, QWEN_EXPERTS],
    },
    Family {
        gguf: "olmoe",
        model_type: "olmoe",
        class: "OlmoeForCausalLM",
        experts: true,
        rules: &[LLAMA, NORMS, UNPAIRED, QK_NORMS, QWEN_EXPERTS],
    },
    Family {
        gguf: "gemma",
        model_type: "gemma",
        class: "GemmaForCausalLM",
        experts: false,
        rules: &[
            LLAMA,
            UNPAIRED,
            GEMMA_NORMS,
            &[moved("blk.{}.ffn_norm", "model.layers.{}.post_attention_layernorm", Order::PlusOne)],
        ],
    },
    Family {
        gguf: "gemma2",
        model_type: "gemma2",
        class: "Gemma2ForCausalLM",
        experts: false,
        rules: &[LLAMA, UNPAIRED, GEMMA_NORMS, GEMMA_SANDWICH],
    },
    Family {
        gguf: "gemma3",
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        experts: false,
        rules: &[
            LLAMA,
            UNPAIRED,
            GEMMA_NORMS,
            GEMMA_SANDWICH,
            &[
                moved("blk.{}.attn_q_norm", "model.layers.{}.self_attn.q_norm", Order::PlusOne),
                moved("blk.{}.attn_k_norm", "model.layers.{}.self_attn.k_norm", Order::PlusOne),
            ],
        ],
    },
    Family {
        gguf: "olmo2",
        model_type: "olmo2",
        class: "Olmo2ForCausalLM",
        experts: false,
        rules: &[
            LLAMA,
            UNPAIRED,
            QK_NORMS,
            &[
                same("output_norm", "model.norm"),
                same("blk.{}.post_attention_norm", "model.layers.{}.post_attention_layernorm"),
                same("blk.{}.post_ffw_norm", "model.layers.{}.post_feedforward_layernorm"),
            ],
        ],
    },
    Family {
        gguf: "phi3",
        model_type: "phi3",
        class: "Phi3ForCausalLM",
        experts: false,
        rules: &[
            NORMS,
            &[
                same("token_embd", "model.embed_tokens"),
                same("output", "lm_head"),
                same("blk.{}.attn_qkv", "model.layers.{}.self_attn.qkv_proj"),
                same("blk.{}.attn_output", "model.layers.{}.self_attn.o_proj"),
                same("blk.{}.ffn_up", "model.layers.{}.mlp.gate_up_proj"),
                same("blk.{}.ffn_down", "model.layers.{}.mlp.down_proj"),
            ],
        ],
    },
    Family {
        gguf: "starcoder2",
        model_type: "starcoder2",
        class: "Starcoder2ForCausalLM",
        experts: false,
        rules: &[
            NORMS,
            UNPAIRED,
            &[
                same("token_embd", "model.embed_tokens"),
                same("output", "lm_head"),
                same("blk.{}.attn_v", "model.layers.{}.self_attn.v_proj"),
                same("blk.{}.attn_output", "model.layers.{}.self_attn.o_proj"),
                same("blk.{}.ffn_up", "model.layers.{}.mlp.c_fc"),
                same("blk.{}.ffn_down", "model.layers.{}.mlp.c_proj"),
            ],
        ],
    },
    Family {
        gguf: "gpt2",
        model_type: "gpt2",
        class: "GPT2LMHeadModel",
        experts: false,
        rules: &[&[
            same("token_embd", "transformer.wte"),
            same("position_embd", "transformer.wpe"),
            same("output", "lm_head"),
            same("output_norm", "transformer.ln_f"),
            same("blk.{}.attn_norm", "transformer.h.{}.ln_1"),
            moved("blk.{}.attn_qkv", "transformer.h.{}.attn.c_attn", Order::Transposed),
            moved("blk.{}.attn_output", "transformer.h.{}.attn.c_proj", Order::Transposed),
            same("blk.{}.ffn_norm", "transformer.h.{}.ln_2"),
            moved("blk.{}.ffn_up", "transformer.h.{}.mlp.c_fc", Order::Transposed),
            moved("blk.{}.ffn_down", "transformer.h.{}.mlp.c_proj", Order::Transposed),
        ]],
    },
    Family {
        gguf: "gptneox",
        model_type: "gpt_neox",
        class: "GPTNeoXForCausalLM",
        experts: false,
        rules: &[&[
            same("token_embd", "gpt_neox.embed_in"),
            same("output", "embed_out"),
            same("output_norm", "gpt_neox.final_layer_norm"),
            same("blk.{}.attn_norm", "gpt_neox.layers.{}.input_layernorm"),
            moved("blk.{}.attn_qkv", "gpt_neox.layers.{}.attention.query_key_value", Order::Blocks),
            same("blk.{}.attn_output", "gpt_neox.layers.{}.attention.dense"),
            same("blk.{}.ffn_norm", "gpt_neox.layers.{}.post_attention_layernorm"),
            same("blk.{}.ffn_up", "gpt_neox.layers.{}.mlp.dense_h_to_4h"),
            same("blk.{}.ffn_down", "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
        ]],
    },
    Family {
        gguf: "bloom",
        model_type: "bloom",
        class: "BloomForCausalLM",
        experts: false,
        rules: &[&[
            same("token_embd", "transformer.word_embeddings"),
            same("token_embd_norm", "transformer.word_embeddings_layernorm"),
            same("output", "lm_head"),
            same("output_norm", "transformer.ln_f"),
            same("blk.{}.attn_norm", "transformer.h.{}.input_layernorm"),
            moved("blk.{}.attn_qkv", "transformer.h.{}.self_attention.query_key_value", Order::Blocks),
            same("blk.{}.attn_output", "transformer.h.{}.self_attention.dense"),
            same("blk.{}.ffn_norm", "transformer.h.{}.post_attention_layernorm"),
            same("blk.{}.ffn_up", "transformer.h.{}.mlp.dense_h_to_4h"),
            same("blk.{}.ffn_down", "transformer.h.{}.mlp.dense_4h_to_h"),
        ]],
    },
    Family {
        gguf: "falcon",
        model_type: "falcon",
        class: "FalconForCausalLM",
        experts: false,
        rules: &[&[
            same("token_embd", "transformer.word_embeddings"),
            same("output", "lm_head"),
            same("output_norm", "transformer.ln_f"),
            same("blk.{}.attn_norm", "transformer.h.{}.input_layernorm"),
            moved("blk.{}.attn_qkv", "transformer.h.{}.self_attention.query_key_value", Order::Blocks),
            same("blk.{}.attn_output", "transformer.h.{}.self_attention.dense"),
            same("blk.{}.ffn_up", "transformer.h.{}.mlp.dense_h_to_4h"),
            same("blk.{}.ffn_down", "transformer.h.{}.mlp.dense_4h_to_h"),
        ]],
    },
    Family {
        gguf: "bert",
        model_type: "bert",
        class: "BertModel",
        experts: false,
        rules: &[&[
            same("token_embd", "embeddings.word_embeddings"),
            same("token_types", "embeddings.token_type_embeddings"),
            same("position_embd", "embeddings.position_embeddings"),
            same("token_embd_norm", "embeddings.LayerNorm"),
            same("blk.{}.attn_q", "encoder.layer.{}.attention.self.query"),
            same("blk.{}.attn_k", "encoder.layer.{}.attention.self.key"),
            same("blk.{}.attn_v", "encoder.layer.{}.attention.self.value"),
            same("blk.{}.attn_output", "encoder.layer.{}.attention.output.dense"),
            same("blk.{}.attn_output_norm", "encoder.layer.{}.attention.output.LayerNorm"),
            same("blk.{}.ffn_up", "encoder.layer.{}.intermediate.dense"),
            same("blk.{}.ffn_down", "encoder.layer.{}.output.dense"),
            same("blk.{}.layer_output_norm", "encoder.layer.{}.output.LayerNorm"),
        ]],
    },
    Family {
        gguf: "t5",
        model_type: "t5",
        class: "T5ForConditionalGeneration",
        experts: false,
        rules: &[&[
            same("token_embd", "shared"),
            same("output", "lm_head"),
            same("enc.output_norm", "encoder.final_layer_norm"),
            same("enc.blk.{}.attn_norm", "encoder.block.{}.layer.0.layer_norm"),
            same("enc.blk.{}.attn_q", "encoder.block.{}.layer.0.SelfAttention.q"),
            same("enc.blk.{}.attn_k", "encoder.block.{}.layer.0.SelfAttention.k"),
            same("enc.blk.{}.attn_v", "encoder.block.{}.layer.0.SelfAttention.v"),
            same("enc.blk.{}.attn_o", "encoder.block.{}.layer.0.SelfAttention.o"),
            same("enc.blk.{}.attn_rel_b", "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias"),
            same("enc.blk.{}.ffn_norm", "encoder.block.{}.layer.1.layer_norm"),
            same("enc.blk.{}.ffn_gate", "encoder.block.{}.layer.1.DenseReluDense.wi_0"),
            same("enc.blk.{}.ffn_up", "encoder.block.{}.layer.1.DenseReluDense.wi_1"),
            same("enc.blk.{}.ffn_down", "encoder.block.{}.layer.1.DenseReluDense.wo"),
            same("dec.output_norm", "decoder.final_layer_norm"),
            same("dec.blk.{}.attn_norm", "decoder.block.{}.layer.0.layer_norm"),
            same("dec.blk.{}.attn_q", "decoder.block.{}.layer.0.SelfAttention.q"),
            same("dec.blk.{}.attn_k", "decoder.block.{}.layer.0.SelfAttention.k"),
            same("dec.blk.{}.attn_v", "decoder.block.{}.layer.0.SelfAttention.v"),
            same("dec.blk.{}.attn_o", "decoder.block.{}.layer.0.SelfAttention.o"),
            same("dec.blk.{}.attn_rel_b", "decoder.block.{}.layer.0.SelfAttention.relative_attention_bias"),
            same("dec.blk.{}.cross_attn_norm", "decoder.block.{}.layer.1.layer_norm"),
            same("dec.blk.{}.cross_attn_q", "decoder.block.{}.layer.1.EncDecAttention.q"),
            same("dec.blk.{}.cross_attn_k", "decoder.block.{}.layer.1.EncDecAttention.k"),
            same("dec.blk.{}.cross_attn_v", "decoder.block.{}.layer.1.EncDecAttention.v"),
            same("dec.blk.{}.cross_attn_o", "decoder.block.{}.layer.1.EncDecAttention.o"),
            same("dec.blk.{}.ffn_norm", "decoder.block.{}.layer.2.layer_norm"),
            same("dec.blk.{}.ffn_gate", "decoder.block.{}.layer.2.DenseReluDense.wi_0"),
            same("dec.blk.{}.ffn_up", "decoder.block.{}.layer.2.DenseReluDense.wi_1"),
            same("dec.blk.{}.ffn_down", "decoder.block.{}.layer.2.DenseReluDense.wo"),
        ]],
    },
];

const FALCON_NORMS: &[Rule] =
    &[same("blk.{}.attn_norm", "transformer.h.{}.ln_mlp"), same("blk.{}.attn_norm_2", "transformer.h.{}.ln_attn")];

const T5_PLAIN: &[Rule] = &[
    same("enc.blk.{}.ffn_up", "encoder.block.{}.layer.1.DenseReluDense.wi"),
    same("dec.blk.{}.ffn_up", "decoder.block.{}.layer.2.DenseReluDense.wi"),
];

/// The architecture of that name in GGUF, with or without experts.
pub fn family(gguf: &str, experts: bool) -> Option<&'static Family> {
    FAMILIES.iter().find(|f| f.gguf == gguf && f.experts == experts)
}

/// The architecture that a checkpoint of this `model_type` becomes.
pub fn family_of(model_type: &str) -> Option<&'static Family> {
    let model_type = match model_type {
        "mistral" => "llama",
        other => other,
    };
    FAMILIES.iter().find(|f| f.model_type == model_type)
}

/// Tensors that hold no weights of the checkpoint: rotary factors, which the config speaks of.
pub const ROTARY_FACTORS: &[&str] = &["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// Sizes of the heads.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key/value heads.
    pub kv: usize,
    /// Rows of a head.
    pub dim: usize,
}

impl Heads {
    /// Of a checkpoint's config, by whichever of transformers' names it uses; zeros where it says nothing.
    pub fn of(config: &Json) -> Self {
        let count = |names: &[&str]| names.iter().find_map(|n| config.get(n)?.as_u64()).unwrap_or(0) as usize;
        let queries = count(&["num_attention_heads", "n_head", "num_heads"]);
        let hidden = count(&["hidden_size", "n_embd", "n_embed", "d_model"]);
        let flag = |name: &str| config.get(name).and_then(Json::as_bool);
        let falcon = config.get("model_type").and_then(Json::as_str) == Some("falcon");
        let kv = match falcon {
            true if flag("new_decoder_architecture") == Some(true) => count(&["num_kv_heads"]),
            true if flag("multi_query") != Some(false) => 1,
            true => queries,
            false => count(&["num_key_value_heads"]),
        };
        let dim = match count(&["head_dim", "d_kv"]) {
            0 => hidden.checked_div(queries).unwrap_or(0),
            dim => dim,
        };
        Self { queries, kv: if kv == 0 { queries } else { kv }, dim }
    }
}

/// The rules of a model: its family's, with what the tensors say.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    family: &'static Family,
    heads: Heads,
    variant: bool,
}

impl Rules {
    /// The rules of `family`, of its variant where [`Family::is_variant`].
    pub fn new(family: &'static Family, heads: Heads, variant: bool) -> Self {
        Self { family, heads, variant }
    }

    /// The checkpoint's tensor for the GGUF tensor `name`.
    pub fn to_hf(self, name: &str) -> Option<Place> {
        self.find(name, self.variant, |r| (r.gguf, r.hf))
    }

    /// GGUF's tensor for the checkpoint tensor `name`.
    pub fn to_gguf(self, name: &str) -> Option<Place> {
        self.find(name, true, |r| (r.hf, r.gguf))
    }

    fn find(self, name: &str, variant: bool, sides: impl Fn(&Rule) -> (&'static str, &'static str)) -> Option<Place> {
        let (module, suffix) = name.rsplit_once('.')?;
        if !matches!(suffix, "weight" | "bias") {
            return None;
        }
        let own = if variant { self.family.variant() } else { &[] };
        own.iter().chain(self.family.rules.iter().copied().flatten()).find_map(|rule| {
            let (from, to) = sides(rule);
            let numbers = numbers(from, module)?;
            let other = numbers.iter().fold(to.to_owned(), |name, n| name.replacen("{}", n, 1));
            let expert = numbers.get(to.matches("{}").count()).and_then(|n| n.parse().ok());
            let name = format!("{other}.{suffix}");
            Some(Place { name, arrangement: self.arrangement(rule.order, suffix), expert })
        })
    }

    fn arrangement(self, order: Order, suffix: &str) -> Arrangement {
        let Heads { queries, kv, dim } = self.heads;
        match order {
            Order::Same => Arrangement::Same,
            Order::Pairs => Arrangement::Pairs { head_dim: dim },
            Order::Blocks => Arrangement::Blocks { queries: queries / kv.max(1), head_dim: dim },
            Order::Transposed if suffix == "bias" => Arrangement::Same,
            Order::Transposed => Arrangement::Transposed,
            Order::PlusOne => Arrangement::PlusOne,
            Order::Row => Arrangement::Row,
        }
    }
}

/// Where a tensor stands on the other side.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// Its name; of a checkpoint's matrices that GGUF stacks, with `{}` for the number of the expert.
    pub name: String,
    /// How its stored elements differ from the checkpoint's.
    pub arrangement: Arrangement,
    /// Which part of a stack it is.
    pub expert: Option<usize>,
}

/// What stands in `name` for each `{}` of `pattern`: numbers as a program writes them.
fn numbers<'n>(pattern: &str, name: &'n str) -> Option<Vec<&'n str>> {
    let mut literals = pattern.split("{}");
    let mut rest = name.strip_prefix(literals.next()?)?;
    let mut out = Vec::new();
    for literal in literals {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        if !(1..6).contains(&end) || number != "0" && number.starts_with('0') {
            return None;
        }
        rest = after.strip_prefix(literal)?;
        out.push(number);
    }
    rest.is_empty().then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads = Heads { queries: 4, kv: 2, dim: 8 };

    #[test]
    fn names_lead_back() {
        for family in FAMILIES {
            let rules = Rules::new(family, HEADS, false);
            for rule in family.rules.iter().flat_map(|r| r.iter()) {
                let name = format!("{}.weight", rule.gguf.replace("{}", "11"));
                let hf = rules.to_hf(&name).unwrap();
                let stacked = hf.name.contains("{}");
                let back = rules.to_gguf(&hf.name.replace("{}", "7")).unwrap();
                assert_eq!((back.name, back.arrangement), (name, hf.arrangement), "{}", family.gguf);
                assert_eq!(back.expert, stacked.then_some(7));
                assert!(family.experts || !stacked);
            }
        }
    }

    #[test]
    fn names_that_only_look_alike_are_none() {
        let rules = Rules::new(family("llama", false).unwrap(), HEADS, false);
        for name in
            ["blk.01.attn_q.weight", "blk..attn_q.weight", "blk.1.attn_q", "blk.1.attn_q.scale", "xblk.1.attn_q.weight"]
        {
            assert_eq!(rules.to_hf(name), None, "{name}");
        }
        assert_eq!(rules.to_hf("blk.3.attn_k.bias").unwrap().arrangement, Arrangement::Pairs { head_dim: 8 });
        assert_eq!(rules.to_hf("blk.3.ffn_up_exps.weight"), None);
    }
}
