//! Every field that PEFT writes into a LoRA config, and what becomes of it here. `docs/peft.md` is made of this table.

use serde_json::Value;

use super::super::method::{Kind, Method};
use super::read::looks_default;

/// What is done with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It changes the merged numbers, and is followed.
    Applied,
    /// It is compared with the file or the base.
    Checked,
    /// It only matters for training or for PEFT's own bookkeeping.
    Irrelevant,
    /// Anything but its default is refused.
    Refused,
}

impl Action {
    /// The word for reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Checked => "checked",
            Self::Irrelevant => "irrelevant",
            Self::Refused => "refused",
        }
    }
}

/// One field of `LoraConfig`.
#[derive(Debug)]
pub struct Field {
    /// Its name in the file.
    pub name: &'static str,
    /// PEFT's default.
    pub default: &'static str,
    /// What is done with it.
    pub action: Action,
    /// In words.
    pub meaning: &'static str,
}

const fn f(name: &'static str, default: &'static str, action: Action, meaning: &'static str) -> Field {
    Field { name, default, action, meaning }
}

use Action::{Applied, Checked, Irrelevant, Refused};

/// The fields, in the order of the documentation.
#[rustfmt::skip]
pub const FIELDS: &[Field] = &[
    f("peft_type", "–", Checked, "must be there; decides which of the methods below the file holds"),
    f("r", "8", Applied, "default rank; must agree with the shapes of the factors"),
    f("lora_alpha", "8", Applied, "scale is alpha / r; must be in the file, since a default would be a guess"),
    f("use_rslora", "false", Applied, "scale is alpha / sqrt(r)"),
    f("rank_pattern", "{}", Applied, "rank by module; keys are regular expressions, the first that matches in file order wins"),
    f("alpha_pattern", "{}", Applied, "alpha by module, likewise"),
    f("target_modules", "null", Applied, "list of name endings, or one regular expression for whole names; the file must hold factors for exactly these modules"),
    f("exclude_modules", "null", Applied, "taken out of target_modules"),
    f("layers_to_transform", "null", Applied, "only these layer indices; does not bind modules that target_modules names in full"),
    f("layers_pattern", "null", Applied, "the name before the layer index"),
    f("target_parameters", "null", Applied, "factors for bare parameters, such as the fused experts of a mixture; mapped to per-expert tensors where the base stores those"),
    f("use_dora", "false", Applied, "rows are rescaled to the learned magnitudes; Linear, Conv1D and Embedding"),
    f("lora_bias", "false", Applied, "the layer's bias becomes b + scale · lora_B.bias"),
    f("bias", "\"none\"", Applied, "\"all\" and \"lora_only\" replace biases of the base; other words are refused"),
    f("modules_to_save", "null", Applied, "whole tensors that replace the base's; heads come from here"),
    f("init_lora_weights", "true", Applied, "\"pissa\" and \"olora\" subtract the initial factors from the base first; random and data-dependent starts (\"pissa_niter_*\", \"corda\", \"lora_ga\", \"loftq\") are refused unless --init-base residual says that the base is already the one that was trained on"),
    f("trainable_token_indices", "null", Applied, "replaces rows of the embedding, on both sides of a tied model"),
    f("layer_replication", "null", Applied, "the stack of layers is copied as told and every copy gets its own factors"),
    f("ensure_weight_tying", "false", Applied, "the same update on both sides of a tied model keeps it tied"),
    f("fan_in_fan_out", "false", Irrelevant, "the architecture says how a layer is stored; PEFT corrects the flag by itself too"),
    f("task_type", "null", Applied, "chooses the head; not used to choose layers"),
    f("auto_mapping", "null", Applied, "chooses the head where task_type is null"),
    f("base_model_name_or_path", "null", Checked, "a warning when it differs from the base's own name"),
    f("revision", "null", Checked, "an error when the base is known to be another revision"),
    f("peft_version", "–", Checked, "decides the axes of target_parameters in files of PEFT before 0.19"),
    f("alora_invocation_tokens", "null", Applied, "activated LoRA acts on a part of the prompt: adapter files only, refused for merging"),
    f("invocation_string", "null", Refused, "the older form of activated LoRA"),
    f("use_bdlora", "null", Applied, "block-diagonal factors are expanded"),
    f("kasa_config", "null", Applied, "the smallest singular values of the base are dropped, then B·diag·A is added"),
    f("use_qalora", "false", Applied, "factors over groups of inputs are expanded; told from the shape of lora_A, as PEFT does"),
    f("qalora_group_size", "16", Applied, "the size of those groups"),
    f("arrow_config", "null", Refused, "a router chooses among adapters for every token; no merged weight can express it"),
    f("lora_dropout", "0.0", Irrelevant, "training only"),
    f("inference_mode", "true", Irrelevant, "changes nothing"),
    f("loftq_config", "{}", Irrelevant, "details of init_lora_weights \"loftq\""),
    f("eva_config", "null", Irrelevant, "details of init_lora_weights \"eva\"; its ranks are in rank_pattern"),
    f("corda_config", "null", Irrelevant, "details of init_lora_weights \"corda\""),
    f("lora_ga_config", "null", Irrelevant, "details of init_lora_weights \"lora_ga\""),
    f("velora_config", "null", Irrelevant, "saves memory in training"),
    f("monteclora_config", "null", Irrelevant, "samples in training; the stored mean is the adapter"),
    f("megatron_config", "null", Irrelevant, "layer classes of training"),
    f("megatron_core", "\"megatron.core\"", Irrelevant, "layer classes of training"),
    f("runtime_config", "–", Irrelevant, "not meant to be in the file"),
    f("enable_lora", "null", Refused, "grouped factors of PEFT 0.2; save the adapter with a newer PEFT"),
    f("merge_weights", "false", Irrelevant, "a habit of PEFT 0.2"),
];

/// The fields that the configs of all methods share.
const COMMON: &[&str] = &[
    "peft_type",
    "r",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "bias",
    "fan_in_fan_out",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "inference_mode",
    "runtime_config",
];

/// The rule for a field in the config of a method, if PEFT knows it there.
pub fn find(name: &str, method: &Method) -> Option<&'static Field> {
    if let Some(field) = method.fields.iter().find(|f| f.name == name) {
        return Some(field);
    }
    let of_lora = matches!(method.kind, Kind::Lora | Kind::AdaLora);
    FIELDS.iter().find(|f| f.name == name).filter(|_| of_lora || COMMON.contains(&name))
}

impl Field {
    /// Whether a value is this field's default, or looks unset.
    pub fn is_default(&self, value: &Value) -> bool {
        looks_default(value) || *value.to_string() == *self.default
    }

    /// Whether LoRA's mathematics depend on it and no other method knows it.
    pub fn is_lora_only(&self) -> bool {
        self.action == Applied && !COMMON.contains(&self.name) && FIELDS.iter().any(|f| std::ptr::eq(f, self))
    }
}
