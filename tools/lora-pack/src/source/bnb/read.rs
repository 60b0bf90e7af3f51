//! Finding bitsandbytes' tensors among those of a checkpoint. Each weight comes with companions:
//!
//! ```text
//! X.weight                                 codes, in one column
//! X.weight.absmax                          scales of its blocks: f32, or codes (u8) where they are quantized again
//! X.weight.quant_map                       the table of 16 values
//! X.weight.nested_absmax, nested_quant_map scales and table of the scales' codes
//! X.weight.quant_state.bitsandbytes__nf4   JSON: type, block sizes, shape and type that the weight had
//!
//! X.weight (i8)  X.SCB  X.weight_format    8 bits: codes, scales of the rows, layout (0: rows)
//! ```

use std::path::Path;

use serde::Deserialize;

use super::{Coded, FourBit, Scales};
use crate::source::arrange::Arrangement;
use crate::source::model::is_conv1d;
use crate::source::tensors::{TensorIndex, TensorView};
use crate::source::{Dtype, SourceError, quote};

const STATE: &str = ".quant_state.bitsandbytes__";
/// Companions that go with a state.
const COMPANIONS: [&str; 4] = [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"];
const SCB: &str = ".SCB";

/// What bitsandbytes writes beside 4-bit codes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_dtype: Option<String>,
    nested_offset: Option<f64>,
}

/// Puts float tensors in the place of bitsandbytes' codes and their companions.
pub(in crate::source) fn adopt(index: &mut TensorIndex, model_type: &str) -> Result<(), SourceError> {
    let names: Vec<String> = index.iter().map(|t| t.name.to_owned()).collect();
    for name in &names {
        if let Some((weight, kind)) = name.rsplit_once(STATE) {
            four(index, name, weight, kind, model_type)?;
        } else if let Some(module) = name.strip_suffix(SCB) {
            eight(index, name, module, model_type)?;
        }
    }
    for t in index.iter() {
        if COMPANIONS.iter().any(|c| t.name.ends_with(&format!(".weight{c}"))) {
            return Err(t.problem("no quant_state goes with it: a part of a weight that bitsandbytes quantized"));
        }
        if t.dtype == Dtype::I8 && t.name.ends_with(".weight") {
            return Err(t.problem("8-bit codes, and no SCB with their scales goes with them"));
        }
    }
    Ok(())
}

fn four(index: &mut TensorIndex, name: &str, weight: &str, kind: &str, model_type: &str) -> Result<(), SourceError> {
    let get = |suffix: &str, dtype: Dtype, count: usize| part(index, name, &format!("{weight}{suffix}"), dtype, count);
    let at = get_any(index, name, name)?;
    let state: State = serde_json::from_slice(at.bytes).map_err(|e| at.problem(format!("not a quant_state: {e}")))?;
    let table = FourBit::ALL.into_iter().find(|t| t.name() == kind && t.name() == state.quant_type);
    let table =
        table.ok_or_else(|| at.problem(format!("quant_type {}: neither nf4 nor fp4", quote(&state.quant_type))))?;
    let dtype = match &*state.dtype {
        "bfloat16" => Dtype::BF16,
        "float16" => Dtype::F16,
        "float32" => Dtype::F32,
        other => return Err(at.problem(format!("dtype {}: none of bfloat16, float16, float32", quote(other)))),
    };
    if !(state.blocksize.is_power_of_two() && (32..=4096).contains(&state.blocksize)) {
        return Err(at.problem(format!("blocksize {}: no power of two from 32 to 4096", state.blocksize)));
    }
    let &[rows, columns] = &state.shape[..] else {
        return Err(at.problem(format!("shape {:?}: no matrix", state.shape)));
    };
    let elements = rows.checked_mul(columns).ok_or_else(|| at.problem(format!("shape {:?} overflows", state.shape)))?;
    let codes = get_any(index, name, weight)?;
    if !matches!(codes.dtype, Dtype::U8 | Dtype::F16 | Dtype::BF16 | Dtype::F32) {
        return Err(codes.problem(format!("dtype {} where 4-bit codes are stored", codes.dtype.name())));
    }
    if codes.bytes.len() != elements.div_ceil(2) {
        let problem = format!(
            "{} bytes, and the shape {:?} of its quant_state needs {}",
            codes.bytes.len(),
            state.shape,
            elements.div_ceil(2)
        );
        return Err(codes.problem(problem));
    }
    let map = get(".quant_map", Dtype::F32, 16)?;
    if !map.read_f32()?.iter().zip(table.table()).all(|(a, b)| (a - b).abs() < 1e-6) {
        return Err(map.problem(format!("not the table of {kind}")));
    }
    let blocks = elements.div_ceil(state.blocksize);
    let nested = state.nested_offset.is_some() || index.contains(&format!("{weight}.nested_absmax"));
    let scales = if nested {
        let block = state.nested_blocksize.filter(|b| *b > 0);
        let block = block.ok_or_else(|| at.problem("nested_blocksize: missing or 0"))?;
        let offset = state.nested_offset.filter(|o| o.is_finite());
        let offset = offset.ok_or_else(|| at.problem("nested_offset: missing or not finite"))? as f32;
        if state.nested_dtype.as_deref() != Some("float32") {
            return Err(at.problem("nested_dtype: not float32"));
        }
        let absmax = get(".nested_absmax", Dtype::F32, blocks.div_ceil(block))?.read_f32()?;
        let map = get(".nested_quant_map", Dtype::F32, 256)?;
        let map = <Box<[f32; 256]>>::try_from(map.read_f32()?).map_err(|_| map.problem("not 256 values"))?;
        let codes = get(".absmax", Dtype::U8, blocks)?.name.to_owned();
        Scales::Nested {
            codes: index.place(&codes).ok_or_else(|| at.problem("absmax is not stored"))?,
            map,
            absmax,
            block,
            offset,
        }
    } else {
        let plain = get(".absmax", Dtype::F32, blocks)?.name.to_owned();
        Scales::Plain(index.place(&plain).ok_or_else(|| at.problem("absmax is not stored"))?)
    };
    let coded = Coded::Four { table, block: state.blocksize, scales };
    for companion in COMPANIONS {
        index.remove(&format!("{weight}{companion}"));
    }
    index.remove(name);
    place(index, weight, dtype, vec![rows, columns], coded, model_type);
    Ok(())
}

fn eight(index: &mut TensorIndex, name: &str, module: &str, model_type: &str) -> Result<(), SourceError> {
    let weight = format!("{module}.weight");
    let codes = get_any(index, name, &weight)?;
    let (&[rows, columns], Dtype::I8) = (codes.shape, codes.dtype) else {
        let problem =
            format!("{} of shape {:?}, where a matrix of 8-bit codes goes with SCB", codes.dtype.name(), codes.shape);
        return Err(codes.problem(problem));
    };
    let scales = part(index, name, name, Dtype::F32, rows)?.read_f32()?;
    let format = format!("{module}.weight_format");
    if let Some(layout) = index.get(&format)
        && layout.bytes.iter().any(|b| *b != 0)
    {
        return Err(layout.problem("the codes are not stored by rows: save the model with a current bitsandbytes"));
    }
    index.remove(&format);
    index.remove(name);
    place(index, &weight, Dtype::F32, vec![rows, columns], Coded::Eight { scales }, model_type);
    Ok(())
}

/// The codes under their name become a float tensor. Conv1D's weights are quantized as those of a linear layer.
fn place(index: &mut TensorIndex, weight: &str, dtype: Dtype, stored: Vec<usize>, coded: Coded, model_type: &str) {
    let module = weight.strip_suffix(".weight").unwrap_or(weight);
    let arrangement = if is_conv1d(model_type, module) { Arrangement::Transposed } else { Arrangement::Same };
    index.set_coded(weight, dtype, arrangement.checkpoint_shape(stored), arrangement, coded);
}

/// A tensor that `name` speaks of.
fn get_any<'a>(index: &'a TensorIndex, name: &str, wanted: &str) -> Result<TensorView<'a>, SourceError> {
    let file = index.get(name).map_or(Path::new(""), |t| t.file);
    index
        .get(wanted)
        .ok_or_else(|| SourceError::tensor(file, wanted, format!("missing, though {} is here", quote(name))))
}

/// One that must have that many elements of that type.
fn part<'a>(
    index: &'a TensorIndex,
    name: &str,
    wanted: &str,
    dtype: Dtype,
    count: usize,
) -> Result<TensorView<'a>, SourceError> {
    let tensor = get_any(index, name, wanted)?;
    if (tensor.dtype, tensor.elements()) != (dtype, count) {
        let problem = format!(
            "{} of shape {:?}, where {count} elements of {} are needed",
            tensor.dtype.name(),
            tensor.shape,
            dtype.name()
        );
        return Err(tensor.problem(problem));
    }
    Ok(tensor)
}
