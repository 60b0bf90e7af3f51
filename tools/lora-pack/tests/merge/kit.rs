//! Tiny models and adapters, written into a temporary folder. The files are made by the `safetensors` crate, so what
//! our reader reads was written by somebody else.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use lora_pack::merge::{AdapterSpec, MergeError, MergeOptions, Merged};
use lora_pack::source::BaseModel;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// A tensor of f32 or i64.
#[derive(Clone)]
pub struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// A tensor of any shape.
pub fn tensor(shape: &[usize], values: &[f32]) -> Tensor {
    assert_eq!(shape.iter().product::<usize>(), values.len());
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    Tensor { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
}

/// A matrix by rows.
pub fn rows<const N: usize>(rows: &[[f32; N]]) -> Tensor {
    tensor(&[rows.len(), N], rows.as_flattened())
}

/// A vector.
pub fn list(values: &[f32]) -> Tensor {
    tensor(&[values.len()], values)
}

/// Integers.
pub fn integers(shape: &[usize], values: &[i64]) -> Tensor {
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    Tensor { dtype: Dtype::I64, shape: shape.to_vec(), bytes }
}

/// The same numbers, stored in bf16.
pub fn bf16(tensor: Tensor) -> Tensor {
    let upper = |x: &[u8; 4]| [x[2], x[3]];
    let bytes = tensor.bytes.as_chunks::<4>().0.iter().flat_map(upper).collect();
    Tensor { dtype: Dtype::BF16, bytes, ..tensor }
}

/// A folder with a base and adapters.
pub struct Kit {
    dir: tempfile::TempDir,
    adapters: Vec<PathBuf>,
}

impl Kit {
    /// A base of this type with these tensors.
    pub fn new(config: Value, tensors: &[(&str, Tensor)]) -> Self {
        let kit = Self { dir: tempfile::tempdir().unwrap(), adapters: Vec::new() };
        write(&kit.base(), "config.json", &config, "model.safetensors", tensors);
        kit
    }

    /// A llama with these tensors.
    pub fn llama(tensors: &[(&str, Tensor)]) -> Self {
        Self::new(json!({"model_type": "llama", "tie_word_embeddings": false}), tensors)
    }

    /// Where the base is.
    pub fn base(&self) -> PathBuf {
        self.dir.path().join("base")
    }

    /// Adds an adapter; `peft_type`, `r` and `lora_alpha` are filled in where absent, and `base_model.model.` is put
    /// before the names.
    pub fn adapter(&mut self, mut config: Value, tensors: &[(&str, Tensor)]) -> PathBuf {
        let map = config.as_object_mut().unwrap();
        for (key, value) in [("peft_type", json!("LORA")), ("r", json!(1)), ("lora_alpha", json!(2))] {
            map.entry(key).or_insert(value);
        }
        let path = self.dir.path().join(format!("adapter{}", self.adapters.len()));
        let names: Vec<String> = tensors.iter().map(|(n, _)| format!("base_model.model.{n}")).collect();
        let tensors: Vec<(&str, Tensor)> =
            names.iter().map(String::as_str).zip(tensors.iter().map(|(_, t)| t.clone())).collect();
        write(&path, "adapter_config.json", &config, "adapter_model.safetensors", &tensors);
        self.adapters.push(path.clone());
        path
    }

    /// Merges all adapters with these weights (1 where there are none) and hands the result on.
    pub fn merged<T>(
        &self,
        weights: &[f64],
        options: &MergeOptions,
        use_it: impl FnOnce(&Merged) -> T,
    ) -> Result<T, MergeError> {
        let base = BaseModel::open(&self.base())?;
        let spec = |(i, path): (usize, &PathBuf)| AdapterSpec {
            path: path.clone(),
            weight: weights.get(i).copied().unwrap_or(1.0),
        };
        let specs: Vec<AdapterSpec> = self.adapters.iter().enumerate().map(spec).collect();
        Ok(use_it(&Merged::new(&base, &specs, options)?))
    }

    /// One tensor of the merge of all adapters.
    pub fn tensor(&self, name: &str) -> Vec<f32> {
        self.merged(&[], &MergeOptions::default(), |m| m.tensor_f32(name).unwrap()).unwrap()
    }

    /// Why the merge is refused.
    pub fn refusal(&self) -> String {
        self.refusal_with(&MergeOptions::default())
    }

    /// Why the merge with these options is refused.
    pub fn refusal_with(&self, options: &MergeOptions) -> String {
        match self.merged(&[], options, |m| m.names().map(|n| m.tensor_f32(n)).collect::<Result<Vec<_>, _>>()) {
            Err(e) | Ok(Err(e)) => e.to_string(),
            Ok(Ok(_)) => panic!("not refused"),
        }
    }
}

fn write(dir: &Path, config_name: &str, config: &Value, weights_name: &str, tensors: &[(&str, Tensor)]) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join(config_name), config.to_string()).unwrap();
    let views: HashMap<&str, TensorView> =
        tensors.iter().map(|(name, t)| (*name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap())).collect();
    safetensors::serialize_to_file(views, None, &dir.join(weights_name)).unwrap();
}

/// Asserts that numbers agree to a tolerance.
#[track_caller]
pub fn close<const N: usize>(got: &[f32], want: &[[f32; N]], tolerance: f32) {
    let want = want.as_flattened();
    assert_eq!(got.len(), want.len(), "{got:?}");
    for (a, b) in got.iter().zip(want) {
        assert!((a - b).abs() <= tolerance, "got {got:?}, want {want:?}");
    }
}
