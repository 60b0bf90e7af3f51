//! A tiny Llama as GGUF.

use std::path::PathBuf;

use lora_pack::source::gguf::writer::{self, Item, Planned};
use lora_pack::source::{BaseModel, Dtype, SourceError};

/// A tensor to store.
#[derive(Clone)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// f32 values 0, 1, 2, … of a shape, scaled.
pub fn counting(shape: &[usize], by: f32) -> Tensor {
    let n: usize = shape.iter().product();
    let bytes = (0..n).flat_map(|i| (i as f32 * by).to_le_bytes()).collect();
    Tensor { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
}

/// A file to be.
#[derive(Clone)]
pub struct Gguf {
    pub metadata: Vec<(String, Item)>,
    pub tensors: Vec<(String, Tensor)>,
}

impl Gguf {
    /// One layer, hidden 8, two heads of 4 over one, vocabulary 6.
    pub fn llama() -> Self {
        let mut gguf = Self { metadata: Vec::new(), tensors: Vec::new() };
        gguf.meta("general.architecture", Item::Text("llama".into()));
        for (key, n) in [
            ("context_length", 64),
            ("embedding_length", 8),
            ("block_count", 1),
            ("feed_forward_length", 12),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
            ("rope.dimension_count", 4),
        ] {
            gguf.meta(&format!("llama.{key}"), Item::Count(n));
        }
        gguf.meta("llama.attention.layer_norm_rms_epsilon", Item::Number(1e-5));
        gguf.meta("llama.rope.freq_base", Item::Number(10000.0));
        for (name, shape) in [
            ("token_embd.weight", &[6, 8][..]),
            ("blk.0.attn_norm.weight", &[8]),
            ("blk.0.attn_q.weight", &[8, 8]),
            ("blk.0.attn_k.weight", &[4, 8]),
            ("blk.0.attn_v.weight", &[4, 8]),
            ("blk.0.attn_output.weight", &[8, 8]),
            ("blk.0.ffn_norm.weight", &[8]),
            ("blk.0.ffn_gate.weight", &[12, 8]),
            ("blk.0.ffn_up.weight", &[12, 8]),
            ("blk.0.ffn_down.weight", &[8, 12]),
            ("output_norm.weight", &[8]),
        ] {
            gguf.set(name, counting(shape, 0.01));
        }
        gguf
    }

    /// Sets a key.
    pub fn meta(&mut self, key: &str, item: Item) {
        self.metadata.retain(|(k, _)| k != key);
        self.metadata.push((key.to_owned(), item));
    }

    /// Sets a tensor.
    pub fn set(&mut self, name: &str, tensor: Tensor) {
        match self.tensors.iter_mut().find(|(n, _)| n == name) {
            Some((_, t)) => *t = tensor,
            None => self.tensors.push((name.to_owned(), tensor)),
        }
    }

    /// The file's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let planned: Vec<Planned> = self
            .tensors
            .iter()
            .map(|(name, t)| Planned { name: name.clone(), dtype: t.dtype, shape: t.shape.clone() })
            .collect();
        let mut out = writer::header(&self.metadata, &planned);
        for (_, t) in &self.tensors {
            out.extend(&t.bytes);
            out.resize(out.len() + writer::padding(out.len() as u64), 0);
        }
        out
    }

    /// Written to a temporary file and opened.
    pub fn open(&self) -> Result<BaseModel, SourceError> {
        open(&self.bytes())
    }
}

/// Makes the layer's MLP a mixture that says `said` experts and has stacks of `stacked`.
pub fn mixture(gguf: &mut Gguf, said: u32, stacked: usize) {
    gguf.tensors.retain(|(name, _)| !["ffn_gate", "ffn_up", "ffn_down"].iter().any(|f| name.contains(f)));
    gguf.meta("llama.expert_count", Item::Count(said));
    gguf.meta("llama.expert_used_count", Item::Count(1));
    gguf.set("blk.0.ffn_gate_inp.weight", counting(&[stacked, 8], 0.01));
    for (name, shape, by) in
        [("gate", [stacked, 12, 8], 0.01), ("up", [stacked, 12, 8], 0.02), ("down", [stacked, 8, 12], 0.03)]
    {
        gguf.set(&format!("blk.0.ffn_{name}_exps.weight"), counting(&shape, by));
    }
}

/// Opens bytes as a model file.
pub fn open(bytes: &[u8]) -> Result<BaseModel, SourceError> {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    // The mapping outlives the name.
    BaseModel::open(&path)
}

/// A llama with a byte-level tokenizer.
pub fn with_tokenizer() -> Gguf {
    let mut gguf = Gguf::llama();
    let texts = |list: &[&str]| Item::Texts(list.iter().map(|t| (*t).to_owned()).collect());
    gguf.meta("tokenizer.ggml.model", Item::Text("gpt2".into()));
    gguf.meta("tokenizer.ggml.pre", Item::Text("llama-bpe".into()));
    gguf.meta("tokenizer.ggml.tokens", texts(&["a", "b", "ab", "c", "<s>", "</s>"]));
    gguf.meta("tokenizer.ggml.token_type", Item::Integers(vec![1, 1, 1, 1, 3, 3]));
    gguf.meta("tokenizer.ggml.merges", texts(&["a b"]));
    gguf.meta("tokenizer.ggml.bos_token_id", Item::Count(4));
    gguf.meta("tokenizer.ggml.eos_token_id", Item::Count(5));
    gguf
}
