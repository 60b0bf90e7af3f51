//! Adapters that were trained over a quantized base. Their files do not say so, so the user may: the matrices that
//! bitsandbytes would have quantized are then read as training saw them.

use super::MergeError;
use super::plan::stack;
use crate::source::bnb::Quantization;
use crate::source::{BaseModel, TensorView, quote};

/// Has the linear layers of a float base quantized and dequantized whenever they are read: all that transformers replaces
/// when it loads a model with bitsandbytes, which are not only the adapted ones.
///
/// # Errors
/// The base is quantized already, has experts, or has no linear layers.
pub fn round_trip(base: &mut BaseModel, quantization: Quantization) -> Result<(), MergeError> {
    let names = matrices(base).map_err(|problem| MergeError::Option { option: "--qlora-base", problem })?;
    base.round_trip(&names, quantization);
    Ok(())
}

/// The matrices of a float base that would have been quantized, or why that cannot be said.
pub(super) fn matrices(base: &BaseModel) -> Result<Vec<String>, String> {
    let all: Vec<TensorView<'_>> = base.tensors().iter().collect();
    if all.iter().any(|t| t.coded.is_some()) {
        return Err("bitsandbytes quantized this base, and what it holds is dequantized: leave the option out".into());
    }
    if base.packed().is_some() || all.iter().any(|t| t.dtype.is_block()) {
        return Err("this base is quantized already; give the float model that training quantized".into());
    }
    if let Some(t) = all.iter().find(|t| t.shape.len() == 3 || t.name.contains(".experts.")) {
        let what = quote(t.name);
        return Err(format!(
            "{what} belongs to experts, and which of them were quantized depends on the version of transformers; dequantize \
             the base there (model.dequantize(), save_pretrained) and give the result as --base"
        ));
    }
    let names: Vec<String> = all.iter().filter(|t| is_quantized(base, t)).map(|t| t.name.to_owned()).collect();
    if names.is_empty() {
        return Err("the base has no linear layers that would have been quantized".into());
    }
    Ok(names)
}

/// Whether transformers has bitsandbytes quantize it: linear layers, but not the head, and of T5 not the output of its
/// feedforward layers, which it keeps in f32.
fn is_quantized(base: &BaseModel, t: &TensorView<'_>) -> bool {
    let Some(module) = t.name.strip_suffix(".weight") else { return false };
    let last = module.rsplit('.').next().unwrap_or(module);
    let kept = last == "wo" && matches!(base.model_type(), "t5" | "mt5" | "umt5" | "longt5");
    t.shape.len() == 2
        && t.dtype.is_float()
        && !kept
        && !stack::is_embedding(module)
        && !stack::is_output_head(module)
        && !stack::is_task_head(module)
        && !module.starts_with("cls.")
}
