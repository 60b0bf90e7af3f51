//! Shared vocabulary of the configs.

use lora_runtime::kernels::Act;

use crate::config::Config;
use crate::error::ModelError;

/// The activation that `field` names.
///
/// # Errors
/// An unknown name.
pub fn activation(c: Config<'_>, field: &'static str, default: &str) -> Result<Act, ModelError> {
    match c.text(field)?.unwrap_or(default) {
        "silu" | "swish" => Ok(Act::Silu),
        "gelu" | "gelu_python" => Ok(Act::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Act::GeluTanh),
        "quick_gelu" => Ok(Act::QuickGelu),
        "relu" => Ok(Act::Relu),
        "relu2" => Ok(Act::Relu2),
        "tanh" => Ok(Act::Tanh),
        "sigmoid" => Ok(Act::Sigmoid),
        _ => Err(c.unsupported(
            field,
            "a supported activation: silu, gelu, gelu_new, gelu_pytorch_tanh, quick_gelu, relu, relu2, tanh, sigmoid",
        )),
    }
}
