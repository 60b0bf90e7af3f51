//! Every `peft_type`: what it is, whether it is merged here, and which fields its config has beside the common ones.
//!
//! All of them end as steps of a recipe. Those that are low-rank in disguise (AdaLoRA, VeRA, DeLoRA) become factors
//! like LoRA's; the others are `dense` steps.

pub(crate) mod dense;
mod fourier;

use super::config::{Action, Field};
pub(crate) use fourier::LARGEST;

/// The methods that are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are PEFT's")]
pub enum Kind {
    Lora,
    AdaLora,
    Ia3,
    LoHa,
    LoKr,
    TrainableTokens,
    LnTuning,
    Vera,
    Oft,
    Boft,
    FourierFt,
    Hra,
    Miss,
    HiRa,
    DeLora,
    Shira,
}

/// One merged method.
#[derive(Debug)]
pub struct Method {
    /// `peft_type`.
    pub name: &'static str,
    /// Which.
    pub kind: Kind,
    /// The merged weight, in formulas.
    pub formula: &'static str,
    /// The field that holds alpha, where the scale needs one.
    pub alpha: Option<&'static str>,
    /// Fields that only this method has.
    pub fields: &'static [Field],
}

const fn f(name: &'static str, default: &'static str, action: Action, meaning: &'static str) -> Field {
    Field { name, default, action, meaning }
}

use Action::{Applied, Checked, Irrelevant, Refused};

const INIT: Field = f("init_weights", "true", Irrelevant, "how training started");
const DROP: Field = f("module_dropout", "0.0", Irrelevant, "training only");
const ALPHA: Field = f("alpha", "8", Applied, "scale is alpha / r");

/// All merged methods.
#[rustfmt::skip]
pub const METHODS: &[Method] = &[
    Method { name: "LORA", kind: Kind::Lora, formula: "`W + s·B·A` and its variants, see the fields below", alpha: Some("lora_alpha"), fields: &[] },
    Method { name: "ADALORA", kind: Kind::AdaLora, formula: "`W + B·(A ⊙ E)·alpha/(init_r + 1e-5)`", alpha: Some("lora_alpha"), fields: &[
        f("init_r", "12", Applied, "divides alpha"),
        f("target_r", "8", Irrelevant, "budget of training"),
        f("tinit", "0", Irrelevant, "schedule of training"),
        f("tfinal", "0", Irrelevant, "schedule of training"),
        f("deltaT", "1", Irrelevant, "schedule of training"),
        f("beta1", "0.85", Irrelevant, "training only"),
        f("beta2", "0.85", Irrelevant, "training only"),
        f("orth_reg_weight", "0.5", Irrelevant, "training only"),
        f("total_step", "null", Irrelevant, "schedule of training"),
    ] },
    Method { name: "IA3", kind: Kind::Ia3, formula: "`W ⊙ l` and `b ⊙ l` over outputs; over inputs, without the bias, for feedforward modules", alpha: None, fields: &[
        f("feedforward_modules", "null", Applied, "modules whose inputs are scaled instead of their outputs"),
        f("init_ia3_weights", "true", Irrelevant, "how training started"),
    ] },
    Method { name: "LOHA", kind: Kind::LoHa, formula: "`W + (alpha/r)·(w1_a·w1_b) ⊙ (w2_a·w2_b)`", alpha: Some("alpha"), fields: &[
        ALPHA, INIT, DROP,
        f("rank_dropout", "0.0", Irrelevant, "training only"),
        f("use_effective_conv2d", "false", Irrelevant, "convolutions only; those are told by shape"),
    ] },
    Method { name: "LOKR", kind: Kind::LoKr, formula: "`W + (alpha/r)·kron(w1, w2)`, each whole or as a product", alpha: Some("alpha"), fields: &[
        ALPHA, INIT, DROP,
        f("rank_dropout", "0.0", Irrelevant, "training only"),
        f("rank_dropout_scale", "false", Irrelevant, "training only"),
        f("use_effective_conv2d", "false", Irrelevant, "convolutions only; those are told by shape"),
        f("decompose_both", "false", Irrelevant, "told from the tensors"),
        f("decompose_factor", "-1", Irrelevant, "told from the tensors"),
    ] },
    Method { name: "TRAINABLE_TOKENS", kind: Kind::TrainableTokens, formula: "rows of the embedding are replaced", alpha: None, fields: &[
        f("token_indices", "[]", Applied, "the rows"), INIT,
    ] },
    Method { name: "LN_TUNING", kind: Kind::LnTuning, formula: "the norm's weight and bias are replaced", alpha: None, fields: &[] },
    Method { name: "VERA", kind: Kind::Vera, formula: "`W + (λ_b ⊙ B)·(λ_d ⊙ A)` with the saved shared A and B", alpha: None, fields: &[
        f("save_projection", "true", Checked, "without the projections in the file they would have to be drawn again as torch does: refused"),
        f("projection_prng_key", "0", Irrelevant, "only matters when the projections are not saved"),
        f("vera_dropout", "0.0", Irrelevant, "training only"),
        f("d_initial", "0.1", Irrelevant, "how training started"), INIT,
    ] },
    Method { name: "OFT", kind: Kind::Oft, formula: "`W·blockdiag(R)ᵀ`, R the Cayley transform of the stored skew matrices, or its Neumann series", alpha: None, fields: &[
        f("oft_block_size", "32", Checked, "told from the tensors"),
        f("block_share", "false", Applied, "one block for all"),
        f("coft", "false", Refused, "constrained rotations are projected at load; merge it with PEFT"),
        f("eps", "6e-5", Irrelevant, "only matters with coft"),
        f("use_cayley_neumann", "true", Applied, "a series instead of the inverse"),
        f("num_cayley_neumann_terms", "5", Applied, "its length"), INIT, DROP,
    ] },
    Method { name: "BOFT", kind: Kind::Boft, formula: "`s ⊙ W·blockdiag(R)ᵀ`, R the Cayley transform of the skew part of the stored matrices, s over outputs", alpha: None, fields: &[
        f("boft_block_size", "4", Checked, "told from the tensors"),
        f("boft_block_num", "0", Checked, "told from the tensors"),
        f("boft_n_butterfly_factor", "1", Checked, "told from the tensors; more than one, which PEFT only runs with a CUDA extension, is refused"),
        f("boft_dropout", "0.0", Irrelevant, "training only"), INIT,
    ] },
    Method { name: "FOURIERFT", kind: Kind::FourierFt, formula: "`W + scaling · Re ifft2(F)`, F zero but for the stored coefficients, at places drawn as torch does", alpha: None, fields: &[
        f("scaling", "150.0", Applied, "multiplies the change"),
        f("random_loc_seed", "777", Applied, "decides which coefficients are stored"),
        f("n_frequency", "1000", Checked, "told from the tensors"),
        f("n_frequency_pattern", "{}", Checked, "told from the tensors"), INIT,
    ] },
    Method { name: "HRA", kind: Kind::Hra, formula: "`W·Π(I − 2·u·uᵀ)`, in order", alpha: None, fields: &[
        f("apply_GS", "false", Applied, "the vectors are made orthogonal first"), INIT,
    ] },
    Method { name: "MISS", kind: Kind::Miss, formula: "`W[o,i] + block[i mod r, o]`", alpha: None, fields: &[
        f("init_weights", "true", Checked, "\"bat\" and \"mini\" are other methods: refused"),
        f("mini_r", "1", Irrelevant, "only matters for \"mini\""),
        f("miss_dropout", "0.0", Irrelevant, "training only"),
    ] },
    Method { name: "HIRA", kind: Kind::HiRa, formula: "`W + W ⊙ (B·A)`", alpha: None, fields: &[
        f("hira_dropout", "0.0", Irrelevant, "training only"), INIT,
    ] },
    Method { name: "DELORA", kind: Kind::DeLora, formula: "`W + B·diag(λ / (r·‖A_k‖·‖B_k‖))·A·diag(w_norm)`", alpha: None, fields: &[
        f("delora_lambda", "15", Irrelevant, "the start; the trained value is in the file"),
        f("lambda_pattern", "{}", Irrelevant, "the start; the trained values are in the file"), INIT, DROP,
    ] },
    Method { name: "SHIRA", kind: Kind::Shira, formula: "`W[i,j] += w` at the stored positions", alpha: None, fields: &[
        f("mask_type", "\"random\"", Irrelevant, "the positions are in the file"),
        f("random_seed", "null", Irrelevant, "the positions are in the file"), INIT,
    ] },
];

/// Methods that are refused, and why.
#[rustfmt::skip]
pub const REFUSED: &[(&str, &str)] = &[
    ("PROMPT_TUNING", PROMPT), ("MULTITASK_PROMPT_TUNING", PROMPT), ("P_TUNING", PROMPT), ("PREFIX_TUNING", PROMPT),
    ("CPT", PROMPT), ("CARTRIDGE", PROMPT), ("ADAPTION_PROMPT", PROMPT),
    ("XLORA", ROUTER), ("POLY", ROUTER), ("LILY", ROUTER),
    ("C3A", RARE), ("RANDLORA", RARE), ("VBLORA", RARE), ("ROAD", RARE),
    ("GRALORA", RARE), ("GLORA", RARE), ("WAVEFT", RARE), ("PSOFT", RARE), ("TINYLORA", RARE), ("UNILORA", RARE),
    ("BONE", "its blocks changed meaning between PEFT releases; merge it with PEFT's merge_and_unload first"),
    ("OSF", RARE), ("ADAMSS", RARE), ("BEFT", RARE), ("FROD", RARE), ("PVERA", RARE), ("PEANUT", RARE),
    ("SUPERTUNING", RARE), ("DEFT", RARE),
    ("SHADOW", "it runs beside the model and depends on the input: it cannot be merged"),
];

const PROMPT: &str = "learned prompts are inputs, not weights: they cannot be merged";
const ROUTER: &str = "its experts are chosen for every input: it cannot be merged";
const RARE: &str = "not merged here; use PEFT's merge_and_unload (or convert_to_lora) first";

/// The method of that name.
pub fn find(name: &str) -> Option<&'static Method> {
    METHODS.iter().find(|m| m.name == name)
}

/// Why a method is refused.
pub fn why_refused(name: &str) -> &'static str {
    let known = REFUSED.iter().find(|(n, _)| *n == name);
    known.map_or("an unknown method", |(_, why)| why)
}
