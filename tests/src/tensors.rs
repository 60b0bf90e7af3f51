//! Safetensors files as the tests need them: float32 and int32 tensors by name.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use safetensors::{Dtype, SafeTensors};

/// A float32 tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub data: Vec<f32>,
}

/// All tensors of a file or of a folder's `*.safetensors`.
#[derive(Debug, Default)]
pub struct Archive {
    floats: BTreeMap<String, Tensor>,
    ids: BTreeMap<String, Vec<u32>>,
}

impl Archive {
    /// Reads a file, or every `*.safetensors` of a folder.
    ///
    /// # Errors
    /// If a file is malformed or holds another type than F32, F16, BF16 or I32.
    pub fn read(path: &Path) -> Result<Self> {
        let mut archive = Self::default();
        if path.is_dir() {
            for entry in std::fs::read_dir(path)? {
                let file = entry?.path();
                if file.extension().is_some_and(|e| e == "safetensors") {
                    archive.add(&file)?;
                }
            }
        } else {
            archive.add(path)?;
        }
        Ok(archive)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let file = SafeTensors::deserialize(&bytes).with_context(|| format!("reading {}", path.display()))?;
        for (name, view) in file.iter() {
            let shape = view.shape().to_vec();
            let raw = view.data();
            let data: Vec<f32> = match view.dtype() {
                Dtype::F32 => raw.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
                Dtype::BF16 => raw.as_chunks::<2>().0.iter().map(|b| f32::from_le_bytes([0, 0, b[0], b[1]])).collect(),
                Dtype::I32 => {
                    let ids = raw.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
                    self.ids.insert(name.into(), ids);
                    continue;
                }
                // Buffers that frameworks save beside the weights (causal masks); no check is about them.
                Dtype::BOOL | Dtype::U8 | Dtype::I64 => continue,
                other => bail!("{}: {name} has type {other:?}", path.display()),
            };
            ensure!(shape.iter().product::<usize>() == data.len(), "{}: {name} has a wrong size", path.display());
            self.floats.insert(name.into(), Tensor { shape, data });
        }
        Ok(())
    }

    /// The float tensor `name`.
    ///
    /// # Errors
    /// If there is none.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        // A base saved from the bare backbone has no prefix (GPT-2's `h.0…`), and its export keeps the base's names.
        let bare = name.split_once('.').map_or(name, |(_, rest)| rest);
        self.floats.get(name).or_else(|| self.floats.get(bare)).with_context(|| format!("no tensor {name}"))
    }

    /// The int32 tensor `name`, as token ids.
    ///
    /// # Errors
    /// If there is none.
    pub fn ids(&self, name: &str) -> Result<&[u32]> {
        self.ids.get(name).map(Vec::as_slice).with_context(|| format!("no int32 tensor {name}"))
    }

    /// Names of the float tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.floats.keys().map(String::as_str)
    }
}
